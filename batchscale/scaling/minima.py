"""The critical batch size of a search, whose steps are the fewest of its trials."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

from batchscale import tuner
from batchscale.scaling.averaging import LUCK
from batchscale.scaling.curve import Form
from batchscale.scaling.fitted import Fit, Refusal
from batchscale.scaling.fitting import fit
from batchscale.scaling.pace import Pace
from batchscale.tuner import SearchSpace


def of_search(
    steps: pd.DataFrame,
    trials: pd.DataFrame,
    spaces: Mapping[int, SearchSpace],
    *,
    form: Form = "averaged",
    paces: Mapping[int, Pace] | None = None,
) -> Fit:
    """The fit that is quoted of a search: its luck is allowed for, crowded edges refuse it.

    Args:
      steps: the table of `metrics.steps_to_target`.
      trials: of the search, with the columns of `tuner.crowded_edges`.
      spaces: what they were drawn from, by batch size.
      form: as for `fit`; one that is assumed has no luck, which is cautioned against.
      paces: as for `fit`.

    >>> sizes = [1, 4, 16, 64, 256, 1024]
    >>> table = pd.DataFrame({"batch_size": sizes, "steps": [1710, 435, 116, 40, 22, 18]})
    >>> trials = pd.DataFrame(columns=["batch_size", "trial", "status", "first_crossing"])
    >>> low, high = of_search(table, trials, {}).b_crit_interval
    >>> wide = high / low
    >>> low, high = fit(table, form="averaged").b_crit_interval
    >>> wide > high / low
    True
    """
    luck = LUCK if form == "averaged" else 0.0
    found = fit(steps, form=form, paces=paces, luck=luck)
    if not luck:
        found = found.cautioned("the steps are minima over trials, whose luck is not allowed for")
    return found.refuse(Refusal.EDGE, str(tuner.crowded_edges(trials, spaces)))
