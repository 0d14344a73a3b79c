"""A power law that ends in a knee: how the best learning rate grows before it stays where it is."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from batchscale.scaling.curve import Interval

# Choices.
FEWEST = 4  # batch sizes: a height, an exponent, a knee and a scatter
_EXPONENTS = np.linspace(-0.4, 1.9, 116)
_SHARPNESSES = np.array([0.7, 1.0, 1.5, 2.5, 6.0])
_KNEES = 48
_BEYOND = (1.0, 2.5)  # in log batch size, below the smallest and above the largest
_RESOLUTION = 0.03  # of log rates: no fit is better than that


class Knee(NamedTuple):
    """rate = c B^p (1 + (B / knee)^s)^(-p / s), the sharpness s averaged over.

    Attributes:
      exponent: p, the median of the posterior.
      exponent_interval: of p.
      knee: the batch size where the rate stops to grow; inf if it is likelier beyond the largest.
      knee_interval: of it; inf where it may lie beyond the largest batch size.
    """

    exponent: float
    exponent_interval: Interval
    knee: float
    knee_interval: Interval


def knee(
    batch_sizes: Float[np.ndarray, " batch_sizes"],
    rates: Float[np.ndarray, " batch_sizes"],
    confidence: float,
) -> Knee:
    """The exponent below the knee, the knee itself not known.

    A line through all batch sizes, or through those below the critical one, takes a linear rule
    that levels off for a lower power. Here the knee may lie anywhere from below the smallest batch
    size to beyond the largest, and be soft or sharp; height and scatter are integrated out. Where
    the range hardly shows what lies below the knee, the interval is wide.

    Args:
      batch_sizes: in increasing order, `FEWEST` or more.
      rates: the best at each, above 0.
      confidence: of the intervals.

    >>> sizes = 2.0 ** np.arange(11)
    >>> found = knee(sizes, 0.01 * sizes / (1 + sizes / 64), 0.9)
    >>> found.exponent_interval.low < 1 < found.exponent_interval.high
    True
    >>> 20 < found.knee < 200
    True
    """
    logs, y = np.log(batch_sizes), np.log(rates)
    knees = np.linspace(logs[0] - _BEYOND[0], logs[-1] + _BEYOND[1], _KNEES)
    s = _SHARPNESSES[:, None, None]
    bend = np.logaddexp(0, s * (logs - knees[:, None])) / s
    shape = _EXPONENTS[:, None, None, None] * (logs - bend)
    left = y - shape
    left = left - left.mean(-1, keepdims=True)
    squares = (left**2).sum(-1) + len(y) * _RESOLUTION**2
    log_weights = -0.5 * (len(y) - 1) * np.log(squares)
    weights = np.exp(log_weights - log_weights.max())
    of_exponent, of_knee = weights.sum((1, 2)), weights.sum((0, 1))
    tail = (1 - confidence) / 2
    low, exponent, high = (_quantile(_EXPONENTS, of_exponent, q) for q in (tail, 0.5, 1 - tail))
    ends = [math.exp(_quantile(knees, of_knee, q)) for q in (tail, 0.5, 1 - tail)]
    largest = float(batch_sizes[-1])
    first, middle, last = (math.inf if end > largest else end for end in ends)
    return Knee(exponent, Interval(low, high), middle, Interval(first, last))


def _quantile(values: np.ndarray, weights: np.ndarray, probability: float) -> float:
    cumulated = np.cumsum(weights)
    return float(np.interp(probability, (cumulated - weights / 2) / cumulated[-1], values))
