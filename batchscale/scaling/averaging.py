"""The critical batch size, averaged over the sharpness of the bend, which data seldom tell."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import scipy
from jaxtyping import Float

from batchscale.numeric import short
from batchscale.scaling.curve import Interval
from batchscale.scaling.fitted import Fit, judged
from batchscale.scaling.posterior import Misfits, Posterior, posterior, scattered

# Choices.
LUCK = 0.4
"""How much luckier, as a standard deviation of log steps, minima over trials may be at the smallest
batch size than at the largest: on digits, MNIST and a noisy quadratic it was 0.1 to 0.4."""
_STRAIGHT = 0.1  # slopes of log steps so near to 0 and -1 are those of a plateau, of scaling
_LEAST = 0.005  # of the scatter of log steps


def lucky(steps: pd.DataFrame, luck: float) -> float:
    """The luck of a table of steps; none of medians, whose precision is known.

    >>> lucky(pd.DataFrame({"steps": [8.0]}), LUCK)
    0.4
    >>> lucky(pd.DataFrame({"steps": [8.0], "log_deviation": [0.1]}), LUCK)
    0.0
    """
    known = "log_deviation" in steps and steps["log_deviation"].notna().any()
    return 0.0 if known else luck


def averaged(table: pd.DataFrame, *, confidence: float, luck: float) -> Fit:
    """The curve through a checked table of steps, by the posterior over all of its parameters.

    Args:
      table: of `points`, of which 4 or more reach the goal.
      confidence: of the intervals.
      luck: as for `fit`.
    """
    logs = np.log(table["batch_size"].to_numpy())
    reached = np.isfinite(table["steps"].to_numpy())
    high = np.log(table["steps"].to_numpy())
    after = table["after"].to_numpy()
    # A crossing is as likely anywhere between two evaluations.
    low = np.log(np.where(np.isnan(after), np.exp(high), np.maximum(after, 0.5 * np.exp(high))))
    with np.errstate(invalid="ignore"):  # of what was not reached both are infinite
        grid = np.where(reached, (high - low) ** 2 / 12, 0.0)
    variance = (table["deviation"].to_numpy() ** 2 + grid)[reached]
    span = max(logs[reached][-1] - logs[reached][0], 1e-9)
    lucky = luck * (logs[reached][-1] - logs[reached]) / span
    known = ~reached & (after > 0)
    return quoted(
        logs[reached],
        np.where(reached, (low + high) / 2, high)[reached],
        np.diag(variance) + np.outer(lucky, lucky),
        scattered(int(reached.sum())),
        confidence=confidence,
        beyond=np.column_stack([logs[known], np.log(after[known])]),
        misses=int((~reached).sum()),
        luck=luck,
    )


def quoted(
    log_batch_size: Float[np.ndarray, " batch_sizes"],
    levels: Float[np.ndarray, " batch_sizes"],
    covariance: Float[np.ndarray, "batch_sizes batch_sizes"],
    misfits: Misfits,
    *,
    confidence: float,
    beyond: Float[np.ndarray, "misses 2"] | None = None,
    misses: int = 0,
    luck: float = 0.0,
) -> Fit:
    """What the posterior of levels says of B_crit, or why it is not quoted.

    Args:
      log_batch_size: in increasing order.
      levels: log steps at each.
      covariance: of the levels.
      misfits: of the levels about the curve.
      confidence: of the intervals.
      beyond: as for `posterior`.
      misses: how many batch sizes do not reach the goal.
      luck: as for `fit`.
    """
    found = posterior(log_batch_size, levels, covariance, misfits, beyond=beyond)
    tail = (1 - confidence) / 2
    sizes = Interval(*np.exp(log_batch_size[[0, -1]]).tolist())
    interval = Interval(found.b_crit(tail), found.b_crit(1 - tail))
    ends = Interval(found.batch_size_at_overhead(1.0, 0.5), found.batch_size_at_excess(1.0, 0.5))
    interval, refusal, refused = judged(
        interval, found.misfit, sizes, _is_line(found, log_batch_size, levels, covariance), ends
    )
    b_crit = found.b_crit(0.5)
    fitted = Fit(
        form="averaged",
        s_min=found.s_min(0.5),
        b_crit=math.nan if refused else b_crit,
        sharpness=found.sharpness(),
        b_crit_interval=interval,
        s_min_interval=Interval(found.s_min(tail), found.s_min(1 - tail)),
        confidence=confidence,
        spread=max(found.misfit, _LEAST),
        batch_sizes=len(levels),
        misses=misses,
        refused=refused,
        refusals=() if refusal is None else (refusal,),
        _log_b_crit=math.log(b_crit),
        _posterior=found,
    )
    return fitted.cautioned(
        "the steps are minima over trials, whose luck is allowed for, not measured" if luck else "",
        "" if refused else _disagreement(found, interval),
        fitted.unseen(*sizes),
    )


def _disagreement(found: Posterior, interval: Interval) -> str:
    """What the hyperbola would say, where that is outside of the interval."""
    middle = int(np.argmin(np.abs(found.log_sharpness)))
    weights = found.weights[:, middle]
    if not weights.sum() > 0:
        return ""
    cumulated = np.cumsum(weights) / weights.sum()
    by_hyperbola = math.exp(float(np.interp(0.5, cumulated, found.log_b_crit)))
    if interval.low <= by_hyperbola <= interval.high:
        return ""
    sharper = "sharper" if found.sharpness() > 1 else "softer"
    return (
        f"the forms disagree: by the hyperbola it would be {short(by_hyperbola)}, and a {sharper} "
        f"bend (a = {short(found.sharpness(), 2)}) describes the steps better"
    )


def _is_line(
    found: Posterior, log_batch: np.ndarray, levels: np.ndarray, covariance: np.ndarray
) -> bool:
    """Whether log steps are as well described by a line, whose slope is neither end's."""
    n = len(levels)
    about = covariance + max(found.misfit, _LEAST) ** 2 * np.eye(n)
    root = scipy.linalg.solve_triangular(np.linalg.cholesky(about), np.eye(n), lower=True)
    a = np.exp(found.log_sharpness)[:, None]
    curve = np.logaddexp(0, a * (found.log_b_crit[:, None, None] - log_batch)) / a
    off, one = (levels - curve) @ root.T, root @ np.ones(n)
    off = off - (off @ one / (one @ one))[..., None] * one
    squares = float((off**2).sum(-1).min())
    X = root @ np.column_stack([np.ones(n), log_batch])
    (_, slope), *_ = np.linalg.lstsq(X, root @ levels, rcond=None)
    line = float(
        ((root @ levels - X @ np.linalg.lstsq(X, root @ levels, rcond=None)[0]) ** 2).sum()
    )
    # One parameter more than a line, by the Bayesian information criterion (Schwarz 1978).
    return line - squares <= math.log(n) and _STRAIGHT < -slope < 1 - _STRAIGHT
