"""The quoted settings under fresh seeds: does their plain median say what the model predicts?"""

from __future__ import annotations

import dataclasses
import itertools
import math

import numpy as np
import scipy
from jaxtyping import Bool, Float, Int

from batchscale.design.fitting import Fitted, fit
from batchscale.design.model import FREEDOM, GRID_SD
from batchscale.design.trials import Purpose, Trials

# Choices.
_NEAR = 0.06  # in log steps: settings that are no worse count as the quoted one
_MEDIAN = 1.71  # the variance of a median of Student t with 6 degrees over that of one seed's scale
_INFLATE = 1.2  # of the model's variances, by simulation
_REJECTED = 3.0  # in standard deviations
_UNKNOWN = 4.0  # the variance of a level that the model is not asked for any more
_SHARED = np.array([0.0, 0.015, 0.03, 0.06, 0.12, 0.25])
_ALONE = np.array([0.0, 0.02, 0.05, 0.12])
_SHARED_SCALE, _ALONE_SCALE = 0.08, 0.05
_REACH = 2.0  # of what is shared, in log batch size


@dataclasses.dataclass(frozen=True)
class Levels:
    """The log steps of the best setting of each batch size, before any curve is drawn to them.

    Attributes:
      mean: of each.
      covariance: of all.
      predicted: by the model alone.
      predicted_sd: of it.
      seen: the median of fresh seeds; inf where half of them missed, NaN where none was run.
      seen_sd: of it.
      seeds: how many.
      missed: how many of them did not reach the goal.
      expected_sd: of the median of fresh seeds about the prediction: the prediction's error, what
        batch sizes and the model itself have been seen to be off by, and the seeds' own; inf where
        no seed was run.
      rejected: where the model is not believed, and the median of fresh seeds stands alone.
    """

    mean: Float[np.ndarray, " batch_sizes"]
    covariance: Float[np.ndarray, "batch_sizes batch_sizes"]
    predicted: Float[np.ndarray, " batch_sizes"]
    predicted_sd: Float[np.ndarray, " batch_sizes"]
    seen: Float[np.ndarray, " batch_sizes"]
    seen_sd: Float[np.ndarray, " batch_sizes"]
    seeds: Int[np.ndarray, " batch_sizes"]
    missed: Int[np.ndarray, " batch_sizes"]
    expected_sd: Float[np.ndarray, " batch_sizes"]
    rejected: Bool[np.ndarray, " batch_sizes"]


def design_trials(trials: Trials) -> Trials:
    """Those that the model is fitted to: not the fresh seeds, which check it."""
    return trials.where(trials.purpose <= Purpose.ASK)


def levels(fitted: Fitted, trials: Trials) -> Levels:
    """The model's levels and the medians of fresh seeds, taken together as far as they agree.

    Both measure the same; a difference that batch sizes share, as skewed scatter or another shape
    of the response makes, moves all levels; one of a single batch size rejects the model there.

    Args:
      fitted: to the trials of the design.
      trials: all, fresh seeds too.
    """
    predicted, covariance = unshrunk(fitted)
    predicted_sd = np.sqrt(np.diag(covariance))
    seen, seen_sd, seeds, missed = medians(fitted, trials)
    sizes = fitted.model.sizes
    rejected = np.isinf(seen)
    known = np.flatnonzero(np.isfinite(seen))
    between = fitted.model.log_batch[:, None] - fitted.model.log_batch
    shared = 0.4 + 0.6 * np.exp(-0.5 * (between / _REACH) ** 2)
    expected_sd = None
    while True:
        mean, combined, total, differences = _combined(
            predicted, covariance, shared, known, seen, seen_sd
        )
        if expected_sd is None:  # before anything is rejected
            expected_sd = np.sqrt(predicted_sd**2 + differences + seen_sd**2)
        off = np.zeros(sizes)
        off[known] = (seen - predicted - total[1])[known]
        z = np.abs(off) / np.sqrt(np.diag(total[0]) + np.where(seeds > 0, seen_sd, 1.0) ** 2)
        z[rejected] = 0
        worst = int(np.argmax(z))
        if z[worst] < _REJECTED:
            break
        rejected[worst] = True
        covariance = covariance.copy()
        covariance[worst, worst] += _UNKNOWN
    return Levels(
        mean, combined, predicted, predicted_sd, seen, seen_sd, seeds, missed, expected_sd, rejected
    )


def _combined(
    predicted: np.ndarray,
    covariance: np.ndarray,
    shared: np.ndarray,
    known: np.ndarray,
    seen: np.ndarray,
    seen_sd: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, tuple[np.ndarray, np.ndarray], float]:
    """Levels given both, the sizes of their differences marginalised on a grid.

    Returns the mean, its covariance; of the differences that are expected where nothing is seen,
    their covariance and what batch sizes share of them; and the variance of differences.
    """
    count = len(predicted)
    if not len(known):
        return predicted, covariance, (covariance, np.zeros(count)), 0.0
    found = []
    for large, alone in itertools.product(_SHARED, _ALONE):
        prior = covariance + large**2 * shared + alone**2 * np.eye(count)
        K = prior[np.ix_(known, known)] + np.diag(seen_sd[known] ** 2)
        off = (seen - predicted)[known]
        inverse = np.linalg.inv(K)
        log_weight = 0.5 * np.linalg.slogdet(inverse)[1] - 0.5 * off @ inverse @ off
        log_weight -= 0.5 * (large / _SHARED_SCALE) ** 2 + 0.5 * (alone / _ALONE_SCALE) ** 2
        gain = prior[:, known] @ inverse
        offset = (large**2 * shared[:, known] @ inverse) @ off
        found.append(
            (
                log_weight,
                gain @ off,
                prior - gain @ prior[known],
                prior - large**2 * shared,
                offset,
                large**2 + alone**2,
            )
        )
    weight = np.exp([one[0] - max(f[0] for f in found) for one in found])
    weight /= weight.sum()
    moves = np.array([one[1] for one in found])
    move = weight @ moves
    spread = (moves - move).T @ ((moves - move) * weight[:, None])
    within = np.einsum("k,kij->ij", weight, np.array([one[2] for one in found]))
    expected = np.einsum("k,kij->ij", weight, np.array([one[3] for one in found]))
    offset = weight @ np.array([one[4] for one in found])
    differences = float(weight @ np.array([one[5] for one in found]))
    return predicted + move, within + spread, (expected, offset), differences


def unshrunk(fitted: Fitted) -> tuple[np.ndarray, np.ndarray]:
    """The model's levels without the help of the curve, and their covariance.

    Misses count: they move the median up. The covariance is as much larger as in a regression,
    where parameters that the data decide cost freedom.
    """
    model = fitted.model
    kept, model.misfit = model.misfit, 1.0
    try:
        free = fit(model, fitted.trials, warm=fitted.parameters, fresh=False, rounds=2, steps=6)
        crossed = int(fitted.trials.crossed.sum())
        nothing = fitted.trials.where(np.zeros(len(fitted.trials), bool))
        prior = model.minus_log(free.parameters, nothing, np.zeros(0))[2]
    finally:
        model.misfit = kept
    decided = model.parameters - float(np.trace(free.covariance @ prior))
    freedom = crossed / max(crossed - decided, 0.3 * crossed, 1.0)
    at = model.at.level
    covariance = free.covariance[at, at] * _INFLATE * freedom
    place = min(0.5 / (1 - free.missed), 0.95)
    return free.level + free.scatter * scipy.special.stdtrit(FREEDOM, place), covariance


def medians(
    fitted: Fitted, trials: Trials, purpose: Purpose = Purpose.CHECK
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The median log steps of fresh seeds, less what their setting loses.

    Returns:
      Of each batch size: the median, its standard deviation, the seeds, and those that missed.
    """
    n = fitted.model.sizes
    seen, deviation, seeds = np.full(n, math.nan), np.full(n, math.inf), np.zeros(n, np.int64)
    missed = np.zeros(n, np.int64)
    runs = trials.where(trials.purpose == purpose)
    if not len(runs):
        return seen, deviation, seeds, missed
    height = fitted.describe(runs.size, runs.rate, runs.second).height
    moved = np.minimum(fitted.deviation(fitted.model.at.rate), 1.0)
    loss = fitted.curvature * moved**2
    for size in range(n):
        here = (runs.size == size) & (height < _NEAR + loss[size])
        count = int(here.sum())
        if not count:
            continue
        steps = np.where(runs.crossed, runs.log_steps - height, math.inf)[here]
        steps = np.sort(steps)
        low, high = steps[(count - 1) // 2], steps[count // 2]
        seen[size] = (low + high) / 2 - min(loss[size], _NEAR)
        seeds[size], missed[size] = count, count - int(np.isfinite(steps).sum())
        own = math.sqrt(fitted.scatter[size] ** 2 + GRID_SD**2)
        finite = steps[np.isfinite(steps)]
        if len(finite) >= 5:  # seeds of the setting itself may scatter more than the model says
            own = math.sqrt((own**2 * 6 + len(finite) * _scale(finite) ** 2) / (6 + len(finite)))
        deviation[size] = own * math.sqrt(_MEDIAN / count) + loss[size] / 2
    return seen, deviation, seeds, missed


def _scale(values: np.ndarray) -> float:
    """The scatter by the quartiles, as if normal."""
    low, high = np.quantile(values, [0.25, 0.75])
    return float(high - low) / 1.349
