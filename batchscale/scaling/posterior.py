"""What levels of log steps say of the curve: its bend, its exponent and its misfit, all at once."""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple

import numpy as np
import scipy
from jaxtyping import Float

# Choices.
_BEYOND = 2.5  # in log batch size, outside of those that were measured
_COARSE, _FINE = 80, 120  # values of log B_crit: first everywhere, then where the posterior is
_SHARPNESSES = np.linspace(-1.3, 1.3, 27)
_SHARPNESS_SD = 0.5  # of log a a priori: a = 0.6 to 1.6 in two of three studies
_NEGLIGIBLE = 1e-6
_SMALLEST = 1e-3


class Misfits(NamedTuple):
    """How far levels may lie off the curve, besides what they are known to.

    Attributes:
      deviations: standard deviations of log steps, increasing.
      log_weights: of each, a priori.
      correlation: between batch sizes, with ones on the diagonal.
    """

    deviations: Float[np.ndarray, " misfits"]
    log_weights: Float[np.ndarray, " misfits"]
    correlation: Float[np.ndarray, "batch_sizes batch_sizes"]


def scattered(batch_sizes: int) -> Misfits:
    """Scatter of no known size, independent between batch sizes: that of one number at each.

    >>> scattered(5).correlation.shape
    (5, 5)
    """
    deviations = np.geomspace(0.004, 0.8, 20)
    return Misfits(deviations, -0.5 * (deviations / 0.5) ** 2, np.eye(batch_sizes))


def smooth(log_batch_size: Float[np.ndarray, " batch_sizes"], *, size: float = 0.1) -> Misfits:
    """The curve is of another form: half of its misfit is shared by batch sizes near one another.

    Args:
      log_batch_size: in increasing order.
      size: in log steps, the scale of the misfit a priori.

    >>> smooth(np.log([1.0, 2.0, 64.0])).correlation.round(2)[0]
    array([1.  , 0.44, 0.01])
    """
    deviations = np.array([0.0, 0.01, 0.02, 0.035, 0.055, 0.08, 0.115, 0.16, 0.23, 0.33])
    between = log_batch_size[:, None] - log_batch_size
    correlation = 0.5 * np.eye(len(log_batch_size)) + 0.5 * np.exp(-0.5 * (between / 1.4) ** 2)
    weights = -0.5 * (deviations / size) ** 2 + np.log(np.gradient(deviations))
    return Misfits(deviations, weights, correlation)


@dataclasses.dataclass(frozen=True)
class Posterior:
    """Of the curve S = S_min (1 + (B_crit / B)^a)^(1/a) and of the levels about it.

    Attributes:
      log_b_crit: values of its logarithm.
      log_sharpness: values of log a.
      weights: of each pair, together 1.
      log_s_min: mean and standard deviation.
      misfit: the mean of the standard deviation of levels about the curve.
      levels: the mean of the true levels, given the measured ones and the curve.
      covariance: of the levels.
    """

    log_b_crit: Float[np.ndarray, " values"]
    log_sharpness: Float[np.ndarray, " sharpnesses"]
    weights: Float[np.ndarray, "values sharpnesses"]
    log_s_min: tuple[float, float]
    misfit: float
    levels: Float[np.ndarray, " batch_sizes"]
    covariance: Float[np.ndarray, "batch_sizes batch_sizes"]

    def b_crit(self, probability: float) -> float:
        """A quantile of B_crit."""
        return math.exp(_quantile(self.log_b_crit, self.weights.sum(1), probability))

    def sharpness(self) -> float:
        """The geometric mean of a."""
        return math.exp(float(self.weights.sum(0) @ self.log_sharpness))

    def s_min(self, probability: float) -> float:
        """A quantile of S_min."""
        mean, deviation = self.log_s_min
        return math.exp(mean + deviation * float(scipy.special.ndtri(probability)))

    def batch_size_at_overhead(self, overhead: float, probability: float) -> float:
        """A quantile of the batch size at which examples are (1 + overhead) times the fewest."""
        return self._moved(overhead, 1.0, probability)

    def batch_size_at_excess(self, excess: float, probability: float) -> float:
        """A quantile of the batch size at which steps are (1 + excess) times the fewest."""
        return self._moved(excess, -1.0, probability)

    def _moved(self, share: float, sign: float, probability: float) -> float:
        a = np.exp(self.log_sharpness)
        away = sign * np.log(np.expm1(a * math.log1p(share))) / a
        values = (self.log_b_crit[:, None] + away).ravel()
        order = np.argsort(values)
        return math.exp(_quantile(values[order], self.weights.ravel()[order], probability))


def posterior(
    log_batch_size: Float[np.ndarray, " batch_sizes"],
    levels: Float[np.ndarray, " batch_sizes"],
    covariance: Float[np.ndarray, "batch_sizes batch_sizes"],
    misfits: Misfits,
    *,
    beyond: Float[np.ndarray, "misses 2"] | None = None,
) -> Posterior:
    """The posterior of the curve, its exponent and its misfit marginalised on a grid.

    Levels are normal about the curve, with their covariance and the misfit's; S_min is integrated
    out in closed form. A priori log B_crit is uniform to a factor of 12 beyond the batch sizes, and
    log a normal about 0, the hyperbola of McCandlish et al. (2018, arXiv:1812.06162). The grid is
    laid twice, the second time only where the posterior is: one coarser than it makes intervals
    too wide.

    Args:
      log_batch_size: in increasing order.
      levels: log steps measured at each.
      covariance: of the levels about the true ones.
      misfits: of the true levels about the curve.
      beyond: misses: their log batch sizes, and the log steps that they need more than.

    >>> sizes = np.log(2.0 ** np.arange(11))
    >>> found = posterior(
    ...     sizes, np.log1p(32 / np.exp(sizes)), 0.05**2 * np.eye(11), smooth(sizes)
    ... )
    >>> 28 < found.b_crit(0.05) < found.b_crit(0.5) < found.b_crit(0.95) < 38
    True
    """
    window = (float(log_batch_size[0]) - _BEYOND, float(log_batch_size[-1]) + _BEYOND)
    coarse = _on_grid(
        np.linspace(*window, _COARSE), log_batch_size, levels, covariance, misfits, beyond
    )
    marginal, values = coarse.weights.sum(1), coarse.log_b_crit
    seen = values[marginal > _NEGLIGIBLE * marginal.max()]
    step = values[1] - values[0]
    fine = np.linspace(seen[0] - step, seen[-1] + step, _FINE)
    return _on_grid(fine, log_batch_size, levels, covariance, misfits, beyond)


def _on_grid(
    log_b_crit: np.ndarray,
    log_batch: np.ndarray,
    levels: np.ndarray,
    covariance: np.ndarray,
    misfits: Misfits,
    beyond: np.ndarray | None,
) -> Posterior:
    a = np.exp(_SHARPNESSES)[:, None]
    curve = _curve(log_b_crit[:, None, None], a, log_batch)
    off = levels - curve
    shape = (len(misfits.deviations), *off.shape[:2])
    log_weights, s_min = np.empty(shape), np.empty(shape)
    s_variance, inverses = [], []
    for k, deviation in enumerate(misfits.deviations):
        about = (deviation**2 + _SMALLEST**2) * misfits.correlation
        inverse = np.linalg.inv(covariance + about)
        one = inverse.sum(0)
        precision = float(one.sum())
        s_min[k] = off @ one / precision
        left = off - s_min[k][..., None]
        squares = np.einsum("abi,abi->ab", left @ inverse, left)
        log_weights[k] = misfits.log_weights[k] - 0.5 * squares
        log_weights[k] += 0.5 * (np.linalg.slogdet(inverse)[1] - math.log(precision))
        if beyond is not None and len(beyond):
            mean = _curve(log_b_crit[:, None, None], a, beyond[:, 0]) + s_min[k][..., None]
            spread = math.sqrt(deviation**2 + 1 / precision + _SMALLEST**2)
            above = (mean - beyond[:, 1]) / spread
            log_weights[k] += scipy.special.log_ndtr(above).sum(-1)
        s_variance.append(1 / precision)
        inverses.append((about, inverse))
    log_weights -= 0.5 * (_SHARPNESSES / _SHARPNESS_SD) ** 2
    weights = np.exp(log_weights - log_weights.max())
    weights /= weights.sum()
    by_misfit = weights.sum((1, 2))
    mean_s = float((weights * s_min).sum())
    variance_s = float((weights * s_min**2).sum()) - mean_s**2 + float(by_misfit @ s_variance)
    return Posterior(
        log_b_crit,
        _SHARPNESSES,
        weights.sum(0),
        (mean_s, math.sqrt(max(variance_s, 0.0))),
        float(by_misfit @ misfits.deviations),
        *_levels(weights, curve, s_min, np.array(s_variance), inverses, levels),
    )


def _levels(
    weights: np.ndarray,
    curve: np.ndarray,
    s_min: np.ndarray,
    s_variance: np.ndarray,
    inverses: list[tuple[np.ndarray, np.ndarray]],
    levels: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Mean and covariance of the true levels: a mixture of normals over the grid."""
    count = len(levels)
    mean, second = np.zeros(count), np.zeros((count, count))
    for k, (about, inverse) in enumerate(inverses):
        weight, gain = weights[k].ravel(), about @ inverse
        # Of each curve: how far its own height, drawn to what was measured, lies from that. Levels
        # themselves, of some 10, would lose the digits of their squares.
        away = (curve + s_min[k][..., None]).reshape(-1, count) - levels
        moves = away @ (np.eye(count) - gain).T
        stay = np.ones(count) - gain.sum(1)
        within = about - gain @ about + s_variance[k] * np.outer(stay, stay)
        mean += weight @ moves
        second += (moves * weight[:, None]).T @ moves + weight.sum() * within
    return levels + mean, second - np.outer(mean, mean)


def _curve(log_b_crit: np.ndarray, a: np.ndarray, log_batch: np.ndarray) -> np.ndarray:
    return np.logaddexp(0, a * (log_b_crit - log_batch)) / a


def _quantile(values: np.ndarray, weights: np.ndarray, probability: float) -> float:
    cumulated = np.cumsum(weights)
    return float(np.interp(probability, (cumulated - weights / 2) / cumulated[-1], values))
