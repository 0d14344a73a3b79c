"""One model of all trials of a measurement: levels, best rates, curvatures, scatter, divergence.

Log steps of a trial are the level of its batch size, the median steps of its best setting, plus the
height of its own setting above that, plus scatter. Levels lie about a generalised hyperbola; the
best rate and the rate at which training diverges move from batch size to batch size by steps that
are mostly small (a Student t: jumps are possible); scatter and curvature change slowly.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, NamedTuple

import numpy as np
import scipy
from jaxtyping import Float

from batchscale.design.response import of_rate, of_second
from batchscale.design.trials import Outcome, Trials

# Choices.
FREEDOM = 6.0  # of the Student t of log steps: unlucky seeds
GRID_SD = 0.05 / math.sqrt(12)  # of a crossing within its interval
_SHAPE = 0.25  # the height is trusted to this share of itself, as a standard deviation
_HIGHEST = 3.0
_STRANGE, _STRANGE_WIDTH = 0.02, 8.0  # the share of trials that the model does not describe
_STRANGE_FAR = 0.3  # of those far from the optimum, where there may be another one
_EDGE = 0.25  # the width of the edge of divergence, in log learning rate
_ROOM, _ROOM_WIDTH = 0.2, 0.1  # the best rate lies so far below what diverges
_WALK, _WALK_FREEDOM = 0.35, 3.0  # of steps of the best rate a factor of two in batch size
_CLIFF_WALK = 0.4
_ON_ONE_THREAD = 200_000  # multiplications of a product that OpenBLAS does not share out
_LOG_T = (
    scipy.special.gammaln((FREEDOM + 1) / 2)
    - scipy.special.gammaln(FREEDOM / 2)
    - 0.5 * math.log(FREEDOM * math.pi)
)


class Places(NamedTuple):
    """Where each parameter is in the vector of all.

    Attributes:
      level, rate, cliff: one a batch size: the log steps of the best setting, its log rate, and
        the log rate at which half of the trials diverge.
      scatter, curvature: one a batch size: deviations of both from their trends.
      shape: the log curvature below the optimum, the log of that above over that below, and the
        trend of the curvature in log batch size.
      spread: the log scatter of seeds and its trend.
      miss: the logit of the share of trials that never reach the goal.
      curve: log S_min, log B_crit and the log of the sharpness.
      second: the optimum of the second hyperparameter, its trend, its log curvature, how it moves
        with the rate, and the trend of the log curvature: momentum decides little in small batches
        and much in large ones. Empty where there is none.
    """

    level: slice
    rate: slice
    cliff: slice
    scatter: slice
    curvature: slice
    shape: slice
    spread: slice
    miss: slice
    curve: slice
    second: slice


def _places(sizes: int, second: bool) -> tuple[Places, int]:
    lengths = [*[sizes] * 5, 3, 2, 1, 3, 5 if second else 0]
    ends = np.cumsum([0, *lengths]).tolist()
    return Places(*map(slice, ends[:-1], ends[1:])), ends[-1]


@dataclasses.dataclass(frozen=True)
class Described:
    """What the model says of trials.

    Attributes:
      mean: log steps.
      height: of their settings above the best.
      log_scatter: the log of the standard deviation of seeds.
      beyond: their distance above the cliff, in widths of it.
      jacobian: of the mean, by all parameters.
    """

    mean: Float[np.ndarray, " trials"]
    height: Float[np.ndarray, " trials"]
    log_scatter: Float[np.ndarray, " trials"]
    beyond: Float[np.ndarray, " trials"]
    jacobian: Float[np.ndarray, "trials parameters"]


class Model:
    """The prior and the likelihood.

    Args:
      batch_sizes: in increasing order, two or more.
      low: the smallest log effective learning rate of the search space.
      high: the largest.
      second: whether there is a second hyperparameter.

    Attributes:
      log_batch: logs of the batch sizes.
      centred: the same about their mean.
      low, high: as given.
      at: where each parameter is.
      parameters: how many.
      misfit: the standard deviation of levels about the curve.
    """

    def __init__(
        self,
        batch_sizes: Float[np.ndarray, " batch_sizes"],
        low: float,
        high: float,
        *,
        second: bool = False,
    ) -> None:
        self.log_batch = np.log(np.asarray(batch_sizes, np.float64))
        self.centred = self.log_batch - self.log_batch.mean()
        self.low, self.high, self.has_second = low, high, second
        self.sizes = len(self.log_batch)
        self.at, self.parameters = _places(self.sizes, second)
        self.misfit = 0.15
        self._octaves = np.sqrt(np.diff(self.log_batch) / math.log(2))
        self._mean, self._precision = self._normal_prior()

    def _normal_prior(self) -> tuple[np.ndarray, np.ndarray]:
        """What is normal in the prior: means, and a diagonal of precisions."""
        at, count = self.at, self.parameters
        mean, deviation = np.zeros(count), np.full(count, np.inf)
        middle, half = (self.low + self.high) / 2, (self.high - self.low) / 2
        mean[at.rate], deviation[at.rate] = middle, 3 * half * math.sqrt(self.sizes)
        mean[at.cliff], deviation[at.cliff] = middle + half, 3 * half * math.sqrt(self.sizes)
        deviation[at.scatter], deviation[at.curvature] = 0.25, 0.25
        mean[at.shape] = [math.log(0.25), 0.15, 0.0]
        deviation[at.shape] = [0.5, 0.5, 0.12]
        mean[at.spread], deviation[at.spread] = [math.log(0.2), 0.0], [0.7, 0.15]
        mean[at.miss], deviation[at.miss] = -4.0, 1.0
        deviation[at.curve] = [3.0, 3.0, 0.4]
        mean[at.curve] = [5.0, float(self.log_batch.mean()), 0.0]
        if self.has_second:
            mean[at.second] = [0.0, 0.0, math.log(0.12), 0.0, 0.0]
            deviation[at.second] = [1.2, 0.2, 0.9, 0.5, 0.25]
        return mean, deviation**-2.0

    def starts(self, trials: Trials) -> list[Float[np.ndarray, " parameters"]]:
        """Parameters to begin from: through the best trial of each batch size, and along lines.

        Where there are two basins, the best trials alternate between them; so there is a line
        through the lower and one through the upper of them, too.
        """
        begin, at = self._mean.copy(), self.at
        sizes = np.unique(trials.size[trials.crossed])
        if not len(sizes):
            return [begin]
        best = []
        for size in sizes:
            here = np.flatnonzero(trials.crossed & (trials.size == size))
            best.append(here[np.argmin(trials.log_steps[here])])
        level = np.interp(self.log_batch, self.log_batch[sizes], trials.log_steps[best])
        begin[at.level] = level
        begin[at.curve] = [level.min() - 0.2, self.log_batch.mean(), 0.0]
        rates = [np.interp(np.arange(self.sizes), sizes, trials.rate[best])]
        along = trials.rate[best] - 0.5 * self.centred[sizes]
        ends = np.quantile(along, [0.25, 0.75])
        if ends[1] - ends[0] > 1:
            rates += [end + 0.5 * self.centred for end in ends]
        found = []
        for rate in rates:
            start = begin.copy()
            start[at.rate] = rate
            start[at.cliff] = np.maximum(start[at.cliff], rate + 1.0)
            found.append(start)
        return found

    def settle(self, trials: Trials) -> None:
        """Sets the scale of steps in the prior, by the fastest trial."""
        crossed = trials.log_steps[trials.crossed]
        self._mean[self.at.curve.start] = crossed.min() if len(crossed) else 5.0

    def describe(
        self,
        parameters: np.ndarray,
        size: np.ndarray,
        rate: np.ndarray,
        second: np.ndarray,
    ) -> Described:
        """What the model says of settings.

        Args:
          parameters: of the model.
          size: places of batch sizes.
          rate: log effective learning rates.
          second: second hyperparameters.
        """
        at, t, c = self.at, parameters, self.centred[size]
        rows = np.arange(len(size))
        left = np.exp(t[at.shape][0] + t[at.shape][2] * c + t[at.curvature][size])
        distance = rate - t[at.rate][size]
        found = of_rate(distance, left, left * math.exp(t[at.shape][1]))
        height, by_rate = found.value, -found.by_distance
        jacobian = np.zeros((len(size), self.parameters))
        jacobian[rows, at.level.start + size] = 1
        jacobian[rows, at.curvature.start + size] = found.by_left
        jacobian[:, at.shape] = np.stack([found.by_left, found.by_right, found.by_left * c], 1)
        if self.has_second:
            place, trend, log_curvature, tilt, growth = t[at.second]
            curved = np.exp(log_curvature + growth * c)
            other = of_second(second - place - trend * c, distance, curved, tilt)
            height = height + other.value
            by_rate = by_rate + other.by_offset * tilt * other.held
            jacobian[:, at.second] = np.stack(
                [
                    -other.by_offset,
                    -other.by_offset * c,
                    other.by_curvature,
                    -other.by_offset * other.moved,
                    other.by_curvature * c,
                ],
                1,
            )
        jacobian[rows, at.rate.start + size] = by_rate
        log_scatter = t[at.spread][0] + t[at.spread][1] * c + t[at.scatter][size]
        return Described(
            t[at.level][size] + height,
            height,
            np.clip(log_scatter, -4.5, 0.5),
            (rate - t[at.cliff][size]) / _EDGE,
            jacobian,
        )

    def distrust(self, height: np.ndarray) -> np.ndarray:
        """The variance by which the height of a setting may be wrong."""
        return (_SHAPE * np.minimum(height, _HIGHEST)) ** 2

    def minus_log(
        self, parameters: np.ndarray, trials: Trials, distrust: np.ndarray
    ) -> tuple[float, np.ndarray, np.ndarray]:
        """Minus the log posterior, its gradient, and its expected Hessian.

        Args:
          parameters: of the model.
          trials: that were run.
          distrust: of their heights, held fixed.
        """
        value, gradient, hessian = self._prior(parameters)
        for part in (self._of_steps, self._of_divergence):
            more = part(parameters, trials, distrust)
            value, gradient, hessian = value + more[0], gradient + more[1], hessian + more[2]
        return value, gradient, hessian

    def _of_steps(self, t: np.ndarray, trials: Trials, distrust: np.ndarray) -> Any:
        """Crossings, and trials that were cut before one."""
        at, said = self.at, self.describe(t, trials.size, trials.rate, trials.second)
        crossed, cut = trials.crossed, trials.outcome == Outcome.CUT
        seeds = np.exp(2 * said.log_scatter)
        deviation = np.sqrt(seeds + distrust + GRID_SD**2)
        share = seeds / deviation**2  # of the variance, which the scatter's parameters move
        missed = scipy.special.expit(t[at.miss][0])
        r = (trials.log_steps - said.mean) / deviation
        density = np.exp(_LOG_T - (FREEDOM + 1) / 2 * np.log1p(r * r / FREEDOM))
        far = np.sqrt(distrust) / (_SHAPE * _HIGHEST)
        strange = _STRANGE + (_STRANGE_FAR - _STRANGE) * np.minimum(1.5 * far, 1.0)
        usual = (1 - strange) * density / deviation
        likelihood = usual + strange / _STRANGE_WIDTH
        trust = usual / likelihood
        tail = scipy.special.stdtr(FREEDOM, -r)
        later = (1 - missed) * tail + missed
        value = -np.log(likelihood[crossed]).sum() - crossed.sum() * math.log1p(-missed)
        value -= np.log(later[cut]).sum()
        pull = (FREEDOM + 1) * r / (FREEDOM + r * r)
        by_mean = np.where(crossed, trust * pull / deviation, 0.0)
        by_mean = np.where(cut, (1 - missed) * density / (deviation * later), by_mean)
        by_scatter = np.where(crossed, trust * (pull * r - 1), 0.0)
        by_scatter = np.where(cut, (1 - missed) * density * r / later, by_scatter) * share
        of_mean = np.where(
            crossed, trust * (FREEDOM + 1) / (FREEDOM + 3) / deviation**2, by_mean**2
        )
        of_scatter = np.where(
            crossed, trust * 2 * FREEDOM / (FREEDOM + 3) * share**2, by_scatter**2
        )
        J, S = said.jacobian, self._of_log_scatter(trials.size)
        gradient = -J.T @ by_mean - S.T @ by_scatter
        hessian = _gram(J, of_mean) + _gram(S, of_scatter)
        by_miss = np.where(crossed, -missed, 0.0)
        by_miss = np.where(cut, missed * (1 - missed) * (1 - tail) / later, by_miss)
        gradient[at.miss] -= by_miss.sum()
        hessian[at.miss, at.miss] += np.where(crossed, missed * (1 - missed), by_miss**2).sum()
        return value, gradient, hessian

    def _of_log_scatter(self, size: np.ndarray) -> np.ndarray:
        """The Jacobian of the log scatter."""
        found = np.zeros((len(size), self.parameters))
        found[np.arange(len(size)), self.at.scatter.start + size] = 1
        found[:, self.at.spread.start] = 1
        found[:, self.at.spread.start + 1] = self.centred[size]
        return found

    def _of_divergence(self, t: np.ndarray, trials: Trials, _: np.ndarray) -> Any:
        """Which trials diverged, and that the best setting does not."""
        at, n = self.at, self.sizes
        cliff = np.arange(at.cliff.start, at.cliff.stop)
        rate = np.arange(at.rate.start, at.rate.stop)
        beyond = (trials.rate - t[at.cliff][trials.size]) / _EDGE
        diverged = trials.outcome == Outcome.DIVERGED
        value = -scipy.special.log_ndtr(np.where(diverged, beyond, -beyond)).sum()
        up, down = _mills(beyond), _mills(-beyond)
        gradient, hessian = np.zeros(self.parameters), np.zeros((self.parameters,) * 2)
        pull = np.where(diverged, up, -down) / _EDGE
        gradient[cliff] += np.bincount(trials.size, pull, n)
        hessian[cliff, cliff] += np.bincount(trials.size, up * down / _EDGE**2, n)
        room = (t[at.cliff] - t[at.rate] - _ROOM) / _ROOM_WIDTH
        value -= scipy.special.log_ndtr(room).sum()
        push = _mills(room)
        stiff = push * (push + room) / _ROOM_WIDTH**2
        gradient[cliff] -= push / _ROOM_WIDTH
        gradient[rate] += push / _ROOM_WIDTH
        hessian[cliff, cliff] += stiff
        hessian[rate, rate] += stiff
        hessian[cliff, rate] -= stiff
        hessian[rate, cliff] -= stiff
        return value, gradient, hessian

    def _prior(self, t: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
        """What is known before any trial."""
        at = self.at
        off = t - self._mean
        value = 0.5 * float(self._precision @ off**2)
        gradient, hessian = self._precision * off, np.diag(self._precision)
        log_s, log_b, log_a = t[at.curve]
        a = math.exp(log_a)
        u = a * (log_b - self.log_batch)
        share, bend = scipy.special.expit(u), np.logaddexp(0, u) / a
        left = (t[at.level] - log_s - bend) / self.misfit
        F = np.stack([np.ones(self.sizes), share, share * u / a - bend], 1) / self.misfit
        value += 0.5 * float(left @ left)
        gradient[at.level] += left / self.misfit
        gradient[at.curve] -= F.T @ left
        hessian[at.level, at.level] += np.eye(self.sizes) / self.misfit**2
        hessian[at.level, at.curve] -= F / self.misfit
        hessian[at.curve, at.level] -= F.T / self.misfit
        hessian[at.curve, at.curve] += F.T @ F
        for part, scale, drift in ((at.rate, _WALK, 0.5), (at.cliff, _CLIFF_WALK, 0.3)):
            walked = _walk(t[part], np.diff(self.log_batch) * drift, scale * self._octaves)
            value += walked[0]
            gradient[part] += walked[1]
            hessian[part, part] += walked[2]
        return value, gradient, hessian


def _gram(J: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """The product J' diag(weight) J, in parts that are too small for a thread pool.

    Threads of the linear algebra library wait for those that train, which may take a hundred times
    as long as the product.
    """
    rows = max(_ON_ONE_THREAD // J.shape[1] ** 2, 1)
    found = np.zeros((J.shape[1],) * 2)
    for first in range(0, len(J), rows):
        part = J[first : first + rows]
        found += (part * weight[first : first + rows, None]).T @ part
    return found


def _walk(
    values: np.ndarray, drift: np.ndarray, scale: np.ndarray
) -> tuple[float, np.ndarray, np.ndarray]:
    """Minus the log density of steps from one value to the next: a Student t about a drift."""
    r = (np.diff(values) - drift) / scale
    value = (_WALK_FREEDOM + 1) / 2 * float(np.log1p(r * r / _WALK_FREEDOM).sum())
    weight = (_WALK_FREEDOM + 1) / (_WALK_FREEDOM + r * r)
    D = np.diff(np.eye(len(values)), axis=0) / scale[:, None]
    return value, D.T @ (weight * r), (D * weight[:, None]).T @ D


def _mills(u: np.ndarray) -> np.ndarray:
    """The normal density over its distribution function."""
    return np.exp(-0.5 * u * u - 0.5 * math.log(2 * math.pi) - scipy.special.log_ndtr(u))
