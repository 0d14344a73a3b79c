"""What a measurement says: steps and setting of every batch size, and the critical batch size."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
from jaxtyping import Bool, Float, Int

from batchscale.design.basins import Basins
from batchscale.design.checking import Levels, levels
from batchscale.design.doubting import doubtful, searched
from batchscale.design.fitting import Fitted
from batchscale.design.trials import Purpose, Trials
from batchscale.scaling.posterior import Posterior, posterior, smooth

_Z = 1.6449  # of 90%
# Choices, in log steps.
_DOUBT = 0.15  # a level may be off by so much where the model is doubted and nothing else known
_CHOICE = 0.03  # the chosen of a few settings is not quite the best
# By simulation of all worlds of `validation.measure`.
_WIDER = 1.5  # of the variances of levels
_NO_CURVE = 0.025  # steps of another form than the curve lie so far off what is drawn to it
_TWO_CURVES = 0.05  # and those of two basins so far


def finest(spacing: float) -> float:
    """The half width of about the narrowest 90% interval of steps, in logs, of however many trials.

    Of what evaluations leave open at a batch size, others, and the curve, take about half away.

    Args:
      spacing: of evaluations, as a share of the steps.

    >>> round(finest(0.05), 3)
    0.043
    """
    return _Z * math.hypot(_NO_CURVE, 0.5 * spacing / math.sqrt(12))


@dataclasses.dataclass(frozen=True)
class Answer:
    """Of all trials so far; every interval is at 90%.

    Attributes:
      fitted: the model of the design's trials.
      levels: of each batch size by itself.
      mean: levels, where a search has taken the model's place those of the search.
      covariance: of them.
      curve: through them.
      log_steps: of the best setting of each batch size, the curve taken into account.
      log_steps_sd: their standard deviations.
      rate: the log of the best effective learning rate.
      rate_sd: of it.
      second: the best second hyperparameter.
      seeds: fresh ones, under which that setting was run.
      missed: how many of them did not reach the goal.
      doubted: where something speaks against the model.
      searched: where a search has taken its place.
      mixed: whether some batch sizes have their best setting in another basin than others.
    """

    fitted: Fitted
    levels: Levels
    mean: Float[np.ndarray, " batch_sizes"]
    covariance: Float[np.ndarray, "batch_sizes batch_sizes"]
    curve: Posterior
    log_steps: Float[np.ndarray, " batch_sizes"]
    log_steps_sd: Float[np.ndarray, " batch_sizes"]
    rate: Float[np.ndarray, " batch_sizes"]
    rate_sd: Float[np.ndarray, " batch_sizes"]
    second: Float[np.ndarray, " batch_sizes"]
    seeds: Int[np.ndarray, " batch_sizes"]
    missed: Int[np.ndarray, " batch_sizes"]
    doubted: Bool[np.ndarray, " batch_sizes"]
    searched: Bool[np.ndarray, " batch_sizes"]
    mixed: bool

    @property
    def width(self) -> float:
        """The half width of the widest interval of steps, in log steps."""
        return float(_Z * self.log_steps_sd.max())

    @property
    def b_crit_width(self) -> float:
        """Half of the width of the interval of B_crit, in logs; inf where it is not within."""
        low, high = (self.curve.b_crit(q) for q in (0.05, 0.95))
        first, last = np.exp(self.fitted.model.log_batch[[0, -1]])
        if low < first or high > last:
            return math.inf
        return 0.5 * math.log(high / low)

    def steps_interval(self) -> tuple[np.ndarray, np.ndarray]:
        """The ends of the intervals of steps."""
        return (
            np.exp(self.log_steps - _Z * self.log_steps_sd),
            np.exp(self.log_steps + _Z * self.log_steps_sd),
        )

    @property
    def rejected(self) -> Bool[np.ndarray, " batch_sizes"]:
        """Where the median of fresh seeds did not agree with the model, and stands alone."""
        return self.levels.rejected


def answer(
    fitted: Fitted, trials: Trials, basins: Basins | None = None, *, spacing: float = 0.05
) -> Answer:
    """The levels, checked, and the curve through them.

    Args:
      fitted: to `design_trials(trials)`; where there are two basins, to those of the faster.
      trials: all.
      basins: where there are two.
      spacing: of evaluations, as a share of the steps: all crossings of a batch size lie on the
        same ones, so that its level is known no better than them, under however many seeds.
    """
    found = levels(fitted, trials)
    model = fitted.model
    between = spacing**2 / 12
    mean = found.mean.copy()
    covariance = _WIDER * found.covariance + between * np.eye(len(mean))
    rate, second = fitted.rate.copy(), fitted.second.copy()
    seeds, missed = found.seeds.copy(), found.missed.copy()
    moved = fitted.deviation(model.at.rate)
    checked = bool((trials.purpose == Purpose.CHECK).any())
    doubted = doubtful(fitted, found, basins) & checked
    replaced = np.zeros(model.sizes, bool)
    for size in range(model.sizes):
        other = searched(trials, size, float(fitted.scatter[size]))
        if other is not None and np.isfinite(other.log_steps):
            replaced[size] = True
            mean[size] = other.log_steps
            covariance[size], covariance[:, size] = 0.0, 0.0
            covariance[size, size] = other.deviation**2 + _CHOICE**2 + between
            rate[size], second[size] = other.rate, other.second
            seeds[size], missed[size] = other.seeds, other.missed
            moved[size] = math.sqrt(_CHOICE / fitted.curvature[size])
        elif doubted[size]:
            covariance[size, size] += _DOUBT**2
    log_batch = model.log_batch
    curve = posterior(log_batch, mean, covariance, smooth(log_batch))
    mixed = basins is not None and len(set(basins.chosen.tolist())) > 1
    off = _TWO_CURVES if mixed else _NO_CURVE
    deviation = np.sqrt(np.diag(curve.covariance) + off**2)
    return Answer(
        fitted, found, mean, covariance, curve, curve.levels, deviation, rate, moved, second,
        seeds, missed, doubted, replaced, mixed,
    )  # fmt: skip
