"""Two basins: ranges of learning rates, far apart, that train about as fast as one another.

One best rate is fitted at each batch size. A trial far from it that was much faster than so far
away it should be, or a best rate that jumps from one batch size to the next, speaks for a second
basin. Then each basin gets a model of its own, and each batch size the faster of the two.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import scipy
from jaxtyping import Bool, Float

from batchscale.design.fitting import Fitted, fit
from batchscale.design.trials import Trials

# Choices, in log steps and log rates.
JUMP = 2.3  # of the best rate between neighbours, besides what moves it on average
_FAR = 1.2  # above the best, by the model
_SHARE, _MOST = 0.5, 1.2  # of that height, and in all: so much at most a fast trial is above it
_APART = 1.5  # the least between two basins
_NEAR = 1.2  # a trial so far from a basin's best rate is one of its own
_GAIN = 8.0  # in the log posterior: so much better two explain trials than a wide one
_UNSURE = 0.05  # the probability that the slower basin is the faster
_KNOWN = 0.6  # the standard deviation of a level, in log steps: beyond, it is a guess
_GUESSED = 0.49  # a basin whose level is a guess is the faster with this probability at most


class Basins(NamedTuple):
    """Two models, each of the trials that are nearer to its best rates.

    Attributes:
      lower: of the smaller rates.
      upper: of the larger.
      faster: the probability that the upper basin is the faster, by batch size.
      trials: of the design, all of them.
      in_upper: a mask of those that are the upper's.
    """

    lower: Fitted
    upper: Fitted
    faster: Float[np.ndarray, " batch_sizes"]
    trials: Trials
    in_upper: Bool[np.ndarray, " trials"]

    @property
    def undecided(self) -> Bool[np.ndarray, " batch_sizes"]:
        """A mask of batch sizes where either basin may be the faster."""
        return (self.faster > _UNSURE) & (self.faster < 1 - _UNSURE)

    @property
    def chosen(self) -> Bool[np.ndarray, " batch_sizes"]:
        """A mask of batch sizes where the upper basin is likelier to be the faster."""
        return self.faster > 0.5

    @property
    def others(self) -> list[Fitted]:
        """Of each batch size the model of the basin that was not chosen."""
        return [self.lower if upper else self.upper for upper in self.chosen]

    def tried(self, size: int) -> int:
        """How many trials there are of a batch size about the best rate of the other basin."""
        here = (self.trials.size == size) & (self.in_upper != self.chosen[size])
        away = np.abs(self.trials.rate - self.others[size].rate[size])
        return int((here & (away < _NEAR)).sum())

    def fitted(self) -> Fitted:
        """One model of the faster basin of each batch size."""
        kept = self.in_upper == self.chosen[self.trials.size]
        upper, at = self.chosen, self.upper.model.at
        start = (self.upper if upper.mean() > 0.5 else self.lower).parameters.copy()
        for part in (at.level, at.rate, at.cliff):
            start[part] = np.where(upper, self.upper.parameters[part], self.lower.parameters[part])
        return fit(self.upper.model, self.trials.where(kept), warm=start, fresh=False)


def basins(fitted: Fitted) -> Basins | None:
    """The two basins that trials speak for; None where one explains them.

    Args:
      fitted: to all trials of the design.
    """
    lines = _lines(fitted)
    if lines is None:
        # A wide basin may lie over both, with its best rate between them.
        lines = fitted.rate - _APART, fitted.rate + _APART
        found = _split(fitted, lines, fresh=False)
        if (
            found is None
            or found.lower.value + found.upper.value > fitted.value - _GAIN
            or np.median(found.upper.rate - found.lower.rate) < _APART
        ):
            return None
        lines = _where_apart(fitted, found)
    return _split(fitted, lines)


def _split(
    fitted: Fitted, lines: tuple[np.ndarray, np.ndarray], *, fresh: bool = True
) -> Basins | None:
    """A model of the trials about each of two lines; None where one of them has no crossing."""
    lower, upper = lines
    trials = fitted.trials
    in_upper = trials.rate > ((lower + upper) / 2)[trials.size]
    found = []
    for line, own in ((lower, ~in_upper), (upper, in_upper)):
        if not trials.crossed[own].any():
            return None
        start, at = fitted.parameters.copy(), fitted.model.at
        start[at.rate] = line
        start[at.cliff] = np.maximum(start[at.cliff], line + 1)
        found.append(fit(fitted.model, trials.where(own), warm=start, fresh=fresh))
    of_lower, of_upper = found
    at = fitted.model.at.level
    of_each = of_lower.deviation(at), of_upper.deviation(at)
    faster = scipy.special.ndtr((of_lower.level - of_upper.level) / np.hypot(*of_each))
    # A best rate that lies far beyond all trials may have any level.
    guess_lower, guess_upper = (deviation > _KNOWN for deviation in of_each)
    faster = np.where(guess_upper & ~guess_lower, np.minimum(faster, _GUESSED), faster)
    faster = np.where(guess_lower & ~guess_upper, np.maximum(faster, 1 - _GUESSED), faster)
    return Basins(of_lower, of_upper, faster, trials, in_upper)


def _where_apart(fitted: Fitted, found: Basins) -> tuple[np.ndarray, np.ndarray]:
    """The lines of two models; where they coincide, trials are of one basin, the nearer one."""
    sizes, growth = np.arange(fitted.model.sizes), 0.5 * fitted.model.centred
    gap = found.upper.rate - found.lower.rate
    apart = gap >= _APART
    lower, upper = (
        growth + np.interp(sizes, sizes[apart], (one.rate - growth)[apart])
        for one in (found.lower, found.upper)
    )
    gap = np.interp(sizes, sizes[apart], gap[apart])
    is_upper = np.abs(fitted.rate - upper) < np.abs(fitted.rate - lower)
    lower = np.where(apart, lower, np.where(is_upper, fitted.rate - gap, fitted.rate))
    upper = np.where(apart, upper, np.where(is_upper, fitted.rate, fitted.rate + gap))
    return lower, upper


def _lines(fitted: Fitted) -> tuple[np.ndarray, np.ndarray] | None:
    """The log rates of two basins, one a batch size.

    Where nothing is known of a basin, it is as far from the average growth of rates as at the
    batch sizes next to it, or as far from the other.
    """
    trials, sizes = fitted.trials, np.arange(fitted.model.sizes)
    growth = 0.5 * fitted.model.centred
    jumps = np.abs(np.diff(fitted.rate - growth)) > JUMP
    height = fitted.describe(trials.size, trials.rate, trials.second).height
    above = trials.log_steps - fitted.level[trials.size]
    fast = trials.crossed & (height > _FAR) & (above < np.minimum(_SHARE * height, _MOST))
    away = trials.rate - fitted.rate[trials.size]
    if jumps.any():
        base = growth
        own = fitted.rate - base
        in_upper = own > (own.min() + own.max()) / 2
    elif fast.any():
        base = fitted.rate
        own = np.zeros(len(sizes))
        first = int(np.argmin(np.where(fast, above, math.inf)))
        in_upper = np.full(len(sizes), away[first] < 0)
    else:
        return None
    lines = []
    for upper in (False, True):
        known = {}
        for size in sizes:
            here = fast & (trials.size == size) & ((away > 0) == upper)
            if in_upper[size] == upper:
                known[size] = own[size]
            elif here.any():
                best = int(np.argmin(np.where(here, above, math.inf)))
                known[size] = trials.rate[best] - base[size]
        lines.append(base + np.interp(sizes, list(known), list(known.values())))
    return (lines[0], lines[1]) if (lines[1] - lines[0] > _APART).all() else None
