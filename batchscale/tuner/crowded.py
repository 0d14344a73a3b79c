"""Which edges of the search space the leading trials crowd, over all batch sizes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import pandas as pd

from batchscale import given
from batchscale.tuner.distributions import Choice, Distribution
from batchscale.tuner.refining import CROWDED, crowding, looked_at
from batchscale.tuner.search_space import SearchSpace

_COLUMNS = ["batch_size", "trial", "status", "first_crossing"]
_LEADING, _FEWEST = 5, 3  # trials that are looked at together, at the most and at the least


class Crowded(NamedTuple):
    """What is known of the edges.

    Attributes:
      edges: batch sizes by (hyperparameter, edge), where the leading trials crowd it.
      unseen: batch sizes of which too few trials reached the goal to tell.
      looked_at: how many edges there are, over all batch sizes.
    """

    edges: Mapping[tuple[str, str], list[int]]
    unseen: list[int]
    looked_at: int

    def __str__(self) -> str:
        return "; ".join(
            f"the leading trials crowd the {edge} edge of {name} at batch size"
            f"{'s' if len(sizes) > 1 else ''} {', '.join(map(str, sizes))}"
            for (name, edge), sizes in self.edges.items()
        )


def crowded_edges(trials: pd.DataFrame, spaces: Mapping[int, SearchSpace]) -> Crowded:
    """Which edges the leading trials crowd; see `crowding`.

    Corrected (Bonferroni) for the number of edges, hyperparameters and batch sizes.

    Args:
      trials: of a search, with the columns `batch_size` and `trial`, their hyperparameters,
        `status` and `first_crossing`.
      spaces: what they were drawn from, by batch size.

    >>> from batchscale.tuner import LogUniform
    >>> rates = np.geomspace(0.01, 1, 16)
    >>> trials = pd.DataFrame({"batch_size": 8, "trial": range(16), "learning_rate": rates})
    >>> trials = trials.assign(status="complete", first_crossing=9 / rates)
    >>> print(crowded_edges(trials, {8: SearchSpace(learning_rate=LogUniform(0.01, 1))}))
    the leading trials crowd the high edge of learning_rate at batch size 8
    """
    given.frame("trials", trials, "Result.trials.reset_index()", _COLUMNS)
    given.by_batch_size("spaces", spaces, SearchSpace, "a SearchSpace")
    cases, unseen = [], []
    for batch_size, space in spaces.items():
        here = looked_at(space, trials.loc[trials["batch_size"] == batch_size])
        if here.empty:
            continue
        lead = here.loc[np.isfinite(here["first_crossing"])]
        lead = lead.sort_values(["first_crossing", "trial"]).head(_LEADING)
        if len(lead) < _FEWEST:
            unseen.append(batch_size)
            continue
        for name, dimension in space.items():
            if not isinstance(dimension, Distribution) or isinstance(dimension, Choice):
                continue
            leads = here["trial"].isin(lead["trial"]).to_numpy()
            values = here[name].to_numpy(np.float64)
            for edge, chance in crowding(dimension, values, leads).items():
                cases.append((chance, name, edge, batch_size))
    edges: dict[tuple[str, str], list[int]] = {}
    for chance, name, edge, batch_size in cases:
        if chance * len(cases) < CROWDED:
            edges.setdefault((name, edge), []).append(batch_size)
    return Crowded(edges, unseen, len(cases))
