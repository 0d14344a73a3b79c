"""The critical batch size: a curve fitted to steps to target, with an interval, or a refusal."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import pandas as pd
import scipy

from batchscale import numeric
from batchscale.scaling.averaging import averaged
from batchscale.scaling.curve import Form, Interval, check_begun, points
from batchscale.scaling.fitted import Fit, Refusal, judged, moved
from batchscale.scaling.likelihood import Likelihood
from batchscale.scaling.pace import Pace, paced

# Choices.
_FEWEST = {"hyperbolic": 4, "generalised": 5, "averaged": 4}  # batch sizes that reach the goal
_DECADES = 2.0  # beyond the batch sizes in which B_crit is looked for


def fit(
    steps: pd.DataFrame,
    *,
    form: Form = "hyperbolic",
    confidence: float = 0.9,
    paces: Mapping[int, Pace] | None = None,
    luck: float = 0.0,
) -> Fit:
    """Fits a curve to steps to target, in log space.

    log S scatters normally about the curve. What was measured is that the crossing lies between two
    evaluations, or, of a miss, beyond the last: both enter as intervals. The interval of B_crit is
    that of the profile likelihood, with the threshold of an F test, so that few batch sizes make it
    wide. Where the steps' own precision is known (`log_deviation`, as of confirmed medians), the
    scatter about the curve comes on top of it.

    `averaged` is the posterior over B_crit, the sharpness of the bend and the scatter (see
    `posterior`), and B_crit its median: what is quoted of studies, for the data seldom tell the
    sharpness, and B_crit by the hyperbola is as far off as that is wrong.

    B_crit is refused (NaN, with the reason) where fewer than 4 batch sizes reach the goal (5 for
    the generalised form), where steps scatter by more than half about the curve, where a straight
    line in logs (a power law, which has no bend to speak of) describes them as well, and where the
    interval leaves the batch sizes that were measured: then the bend has not been seen, and the
    interval is the one-sided bound that is left. As well is by the Bayesian information criterion
    (Schwarz 1978); of the hyperbola, which has as many parameters as a line, by the squares left.
    It is refused too where the plateau is the schedule's doing; see `paced`.

    Args:
      steps: the table of `metrics.steps_to_target`; `previous_evaluation` may be missing.
      form: `hyperbolic`, S = S_min (1 + B_crit / B); `generalised`, whose bend may be sharper or
        softer; or `averaged` over the sharpness.
      confidence: of the intervals.
      paces: where the schedule decides when the goal is reached, as `Result.paces`; by default
        nowhere.
      luck: of minima over trials, with the form `averaged`: the standard deviation of the log by
        which those at the smallest batch size are luckier than at the largest; see `LUCK`.

    Raises:
      ValueError: the table or an argument is not as above.

    >>> table = pd.DataFrame({"batch_size": [1, 4, 16, 64, 256], "steps": [1710, 435, 116, 37, 16]})
    >>> found = fit(table)
    >>> round(found.b_crit), found.refused
    (181, '')
    """
    if not isinstance(form, str) or form not in _FEWEST:
        raise ValueError(f"form: got {form!r}, wanted 'hyperbolic', 'generalised' or 'averaged'.")
    numeric.at_least("luck", luck, 0, "a share, 0 or more")
    if luck and form != "averaged":
        raise ValueError(f"luck: got {luck!r} with form {form!r}, wanted the form 'averaged'.")
    confidence = numeric.confidence(confidence)
    table = points(steps)
    check_begun(table)
    reached = np.isfinite(table["steps"])
    count, misses = int(reached.sum()), int((~reached).sum())
    nothing = Interval(math.nan, math.nan)
    if count < _FEWEST[form]:
        reach = "batch size reaches" if count == 1 else "batch sizes reach"
        why = f"{count} {reach} the goal, at least {_FEWEST[form]} are needed"
        few = Fit(
            form, math.nan, math.nan, math.nan, nothing, nothing, confidence, math.nan, count,
            misses, why, (Refusal.TOO_FEW,),
        )  # fmt: skip
        return few.refuse(Refusal.SCHEDULE, paced(table, {} if paces is None else paces).refusal)
    if form == "averaged":
        found = averaged(table, confidence=confidence, luck=luck)
        return found.refuse(Refusal.SCHEDULE, paced(table, {} if paces is None else paces).refusal)
    likelihood = Likelihood(table, form)
    logs = np.log(table["batch_size"][reached].to_numpy())
    margin = _DECADES * math.log(10)
    limits = Interval(logs.min() - margin, logs.max() + margin)
    best = likelihood.best(limits)
    freedom = max(count - (2 if form == "hyperbolic" else 3), 1)
    allowed = count / 2 * math.log1p(scipy.stats.f.ppf(confidence, 1, freedom) / freedom)
    s_min = likelihood.interval(0, best, Interval(best[0] - 3, best[0] + 3), allowed)
    b_crit = likelihood.interval(1, best, limits, allowed)
    spread = likelihood.spread(best)
    sizes = Interval(math.exp(logs.min()), math.exp(logs.max()))
    at, sharpness = math.exp(best[1]), likelihood.sharpness(best)
    ends = Interval(*(at * moved(1.0, sharpness, sign) for sign in (1.0, -1.0)))
    b_crit, refusal, refused = judged(b_crit, spread, sizes, likelihood.is_line(best), ends)
    found = Fit(
        form=form,
        s_min=math.exp(best[0]),
        b_crit=math.nan if refused else at,
        sharpness=sharpness,
        b_crit_interval=b_crit,
        s_min_interval=s_min,
        confidence=confidence,
        spread=spread,
        batch_sizes=count,
        misses=misses,
        refused=refused,
        refusals=() if refusal is None else (refusal,),
        _log_b_crit=float(best[1]),
    )
    found = found.cautioned(found.unseen(*sizes))
    return found.refuse(Refusal.SCHEDULE, paced(table, {} if paces is None else paces).refusal)
