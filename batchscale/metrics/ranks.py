"""How the minimum of n trials lies among N others: by ranks, and below the first of them."""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import numpy as np
import scipy


class Ranks(NamedTuple):
    """Which of the N crossings, counted from 1, are the ends and the median; 0 and N + 1: none."""

    low: int
    median: int
    high: int


@functools.cache
def ranks_of(size: int, n: int, confidence: float) -> Ranks:
    """Which of N crossings bound the minimum of n others, whatever the distribution.

    Args:
      size: N.
      n: of the others.
      confidence: of both bounds together.
    """
    outside = (1 - confidence) / 2 + 1e-12
    # That n of N + n are all above the k-th of the N, if any order is as likely.
    above = [math.comb(size + n - k, n) / math.comb(size + n, n) for k in range(1, size + 1)]
    low = sum(1 - share <= outside for share in above)
    high = size + 1 - sum(share <= outside for share in above)
    median = next(k for k in range(size + 1) if 2 * math.comb(size - k, n) <= math.comb(size, n))
    return Ranks(low, median, high)


@functools.cache
def largest_drop(size: int, n: int, fastest: int, outside: float) -> float:
    """How far below the first of N crossings the minimum of n others is, with P(more) = `outside`.

    In logs, and in units of the mean distance of the first crossings from the last of the
    `fastest`, under a power law. Let U be the share of all trials that are no slower than the m-th
    of N: it is Beta(m, N + 1 - m), and the logs of the m - 1 steps below it are exponential
    (Renyi 1953): log(U_1 / U) = -sum(E_i / i), their mean distance sum(E_i) / (m - 1). So the new
    minimum is t of them below the first with P = 1 - E[(1 - U w)^n], where
    w = exp(-sum(E_i (1 / i + t / (m - 1)))); expanded, its moments are products.
    """
    power = np.arange(1, n + 1)
    log = scipy.special.gammaln
    log_term = log(n + 1) - log(power + 1) - log(n - power + 1)  # C(n, power) E[U^power]
    log_term += log(fastest + power) - log(fastest) + log(size + 1) - log(size + 1 + power)
    term = (-1.0) ** (power + 1) * np.exp(log_term)
    order = np.arange(1, fastest)

    def excess(t: float) -> float:
        rate = 1 + power[:, None] * (1 / order + t / (fastest - 1))
        return float(np.sum(term / np.prod(rate, axis=1))) - outside

    return scipy.optimize.root_scalar(excess, bracket=(0, n / outside)).root
