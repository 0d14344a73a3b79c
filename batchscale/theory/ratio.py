"""The ratio tr(Sigma) / |G|^2, estimated from gradients: without bias, and with an interval."""

from __future__ import annotations

import math

import numpy as np
import scipy
from jaxtyping import Float

from batchscale.scaling import Interval

CONFIDENCE = 0.9


class Moments:
    """What the gradients of single examples add up to, by some inner product.

    Args:
      norm: the square of their mean.
      squares: that of each.
    """

    def __init__(self, norm: float, squares: Float[np.ndarray, " examples"]) -> None:
        self._squares, self._norm, self._count = squares, norm, len(squares)

    @property
    def trace(self) -> float:
        """The trace of their covariance, unbiased."""
        return float((self._squares.sum() - self._count * self._norm) / (self._count - 1))

    def squared_gradient(self, population: float) -> float:
        """|G|^2 of the population, unbiased: the mean's norm, less what is the sample's noise."""
        return self._norm - self.trace * (1 / self._count - 1 / population)

    def interval(self, along: Float[np.ndarray, " examples"] | None, population: float) -> Interval:
        """Of tr(Sigma) / |G|^2; a point where `along` is None, for then nothing was drawn."""
        covariance = np.zeros((2, 2)) if along is None else self.covariance(along, population)
        squared = self.squared_gradient(population)
        return fieller(self.trace, squared, covariance, freedom=self._count - 1)

    def covariance(
        self, along: Float[np.ndarray, " examples"], population: float
    ) -> Float[np.ndarray, "2 2"]:
        """Of the estimates of tr(Sigma) and |G|^2, by the delete-one jackknife.

        Args:
          along: the product of each gradient with the mean.
          population: the part of it that was drawn is known, and adds no variance.
        """
        count, fewer = self._count, self._count - 1
        norms = (count**2 * self._norm - 2 * count * along + self._squares) / fewer**2
        traces = (self._squares.sum() - self._squares - fewer * norms) / (fewer - 1)
        squared = norms - traces * (1 / fewer - 1 / population)
        return np.cov(traces, squared) * fewer**2 / count * (1 - count / population)


def population_without_noise(examples: int, redrawn: float, trace: float) -> float:
    """How many examples a batch without noise has: more than there are where the loss is random.

    >>> population_without_noise(100, 0.0, 4.0), population_without_noise(100, 4.0, 4.0)
    (100.0, inf)
    >>> population_without_noise(100, 1.0, 4.0)
    133.33333333333334
    """
    return ratio(examples, 1 - ratio(redrawn, trace, otherwise=0.0))


def ratio(value: float, by: float, *, otherwise: float = math.inf) -> float:
    """One over the other; `otherwise` where that is not above 0, NaN where one of them is.

    >>> ratio(1.0, 0.0), ratio(1.0, math.nan)
    (inf, nan)
    """
    if math.isnan(value) or math.isnan(by):
        return math.nan
    return float(value / by) if by > 0 else otherwise


def fieller(
    above: float, below: float, covariance: Float[np.ndarray, "2 2"], *, freedom: int
) -> Interval:
    """The ratios r of which above - r below is not significantly different from 0.

    `above` and `below` estimate numbers of at least 0, with so many degrees of freedom.

    >>> fieller(6.0, 2.0, np.zeros((2, 2)), freedom=9)
    Interval(low=3.0, high=3.0)
    >>> fieller(6.0, 2.0, np.diag([0.0, 4.0]), freedom=9).high
    inf
    """
    above, below = max(above, 0.0), max(below, 0.0)
    limit = float(scipy.stats.t.ppf((1 + CONFIDENCE) / 2, freedom)) ** 2
    (of_above, of_both), (_, of_below) = limit * covariance
    # They are where a r^2 - 2 b r + c <= 0.
    a, b, c = below**2 - of_below, above * below - of_both, above**2 - of_above
    # b^2 - a c, so that nothing is left of it where there is no variance.
    square = above**2 * of_below - 2 * above * below * of_both + below**2 * of_above
    root = math.sqrt(max(square - (of_above * of_below - of_both**2), 0.0))
    low = ratio(c, b + root) if c > 0 else 0.0
    return Interval(low, ratio(b + root, a))
