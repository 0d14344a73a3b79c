"""Which trials tell most for their price: the scout, and rounds that follow from what is known."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import scipy

from batchscale.design.basins import Basins
from batchscale.design.fitting import Fitted
from batchscale.design.model import FREEDOM, GRID_SD
from batchscale.design.question import Asked, Question, Round
from batchscale.design.trials import Outcome, Purpose

# Choices.
_SCOUTS, _SCOUTS_OF_TWO = 8, 12
_LOCKSTEP = 1.25
_BEYOND = 3.0  # outside the searched range, in log learning rate
_OFFSETS = np.array([-1.3, -0.7, 0.0, 0.6, 1.1])  # about an optimum, in widths of it
_LOSS = 0.35  # of log steps: the width of an optimum is where so much is lost
_NEAR = 3.0  # widths
_BELOW, _ABOVE = 0.5, 0.4  # an optimum is bracketed by trials so many widths away
_ASK_BELOW, _ASK_ABOVE = 0.8, 0.7
_ENOUGH_LOSS = 0.015  # by an optimum that is not known better
_LATE, _LATEST = 2.5, 1.6  # trials are cut so many deviations late, at most so far in log steps
_LATE_EXPLORING = 0.4
_AT_LEAST, _IN_DOUBT = 2, 8  # trials of the basin that was not chosen, at a batch size
_ABOUT_OTHERS = (-0.4, 0.4, 0.0, -0.8, 0.8, 0.2, -0.2, 0.0)  # about its best rate, in widths
_LIKELY = 0.5  # nothing is asked that diverges more often than not
_FIRST_ROUNDS = 4


def scout(question: Question) -> Round:
    """The whole range at the smallest and a middle batch size, one trial in each of equal parts.

    The largest is left out: its trials cost most examples, and the model leads there.
    """
    random = np.random.default_rng([question.seed, 0])
    count = _SCOUTS_OF_TWO if question.second else _SCOUTS
    asked = []
    for size in sorted({0, question.sizes // 2}):
        rate = _stratified(random, count, question.low, question.high)
        second = _stratified(random, count, -2.0, 2.0) if question.second else np.zeros(count)
        limit = float(question.max_steps[size])
        asked += [
            Asked(size, float(x), float(v), limit, Purpose.SCOUT)
            for x, v in zip(rate, second, strict=True)
        ]
    return Round(asked, _LOCKSTEP)


def _stratified(random: np.random.Generator, count: int, low: float, high: float) -> np.ndarray:
    return low + (high - low) * (random.permutation(count) + random.random(count)) / count


def ask(
    fitted: Fitted, question: Question, round_: int, left: float, basins: Basins | None = None
) -> Round:
    """The next trials, one after the other where the wanted variances fall most for the price.

    No optimum is believed that is not bracketed: first a trial below and one above each. What is
    wanted is the level of each batch size, its best rate as far as a wrong one costs steps, and
    B_crit. Packs that are begun are filled: an idle lane costs as much as one at work.

    Args:
      fitted: to all trials so far.
      question: what is asked.
      round_: which round this is; the scout was 0.
      left: what may be spent on it, in the unit of `Question.seconds`.
      basins: where there are two.
    """
    greedy = _Greedy(fitted, question, np.random.default_rng([question.seed, round_]))
    asked = _exploring(fitted, question, greedy.random) if round_ == 1 else []
    others = [] if basins is None else _of_other_basins(basins, question)
    for size, rate in others:
        limit = math.exp(fitted.level[size] + _LATE_EXPLORING)
        asked.append(Asked(size, rate, float(fitted.second[size]), limit, Purpose.ASK))
    for one in asked:
        greedy.counts[one.size] += 1
    for size, offset in _brackets(fitted, greedy.width):
        asked.append(greedy.nearest(size, offset))
    most = len(others) + question.sizes * (1 if round_ < _FIRST_ROUNDS else 2)
    while len(asked) < most:
        aims = greedy.aims()
        if not aims.any():
            if not asked or len(asked) >= question.sizes or question.lanes.max() > 1:
                break
            # A round that has begun is a full one: rounds cost time too.
            aims = greedy.aims(all_of_them=True)
        found = greedy.best(aims, left if asked else math.inf)
        if found is None:
            break
        asked.append(found)
    for size in range(question.sizes):
        while greedy.counts[size] % question.lanes[size]:
            found = greedy.best(greedy.aims(all_of_them=True), math.inf, only=size)
            assert found is not None
            asked.append(found)
    return Round(asked)


class _Greedy:
    """Trials chosen one after the other, each as if the ones before had been run.

    Args:
      fitted: to all trials so far.
      question: what is asked.
      random: of what is drawn.

    Attributes:
      random: of what is drawn.
      width: of each optimum, in log rate.
      counts: trials asked for at each batch size.
    """

    def __init__(self, fitted: Fitted, question: Question, random: np.random.Generator) -> None:
        self.random = random
        self.width = np.sqrt(_LOSS / fitted.curvature)
        self.counts = np.zeros(question.sizes, np.int64)
        self._fitted, self._question = fitted, question
        self._covariance = fitted.covariance.copy()
        self._want = question.precision / 3.0, question.precision / 1.645
        self._planned = 0.0

    def aims(self, *, all_of_them: bool = False) -> np.ndarray:
        """How much each variance counts; nothing once it is small enough, unless all are wanted."""
        at, curvature = self._fitted.model.at, self._fitted.curvature
        variance = np.diag(self._covariance)
        loss = curvature * variance[at.rate]
        found = np.zeros(len(variance))
        level, log_b = self._want
        place = at.curve.start + 1
        found[at.level] = ((variance[at.level] > level**2) | all_of_them) / level**2
        found[at.rate] = (loss > _ENOUGH_LOSS) * curvature / _ENOUGH_LOSS
        found[place] = 2 * ((variance[place] > log_b**2) | all_of_them) / log_b**2
        return found

    def best(self, aims: np.ndarray, left: float, *, only: int | None = None) -> Asked | None:
        """The trial by which the aims fall most for its price; None where it costs too much.

        Args:
          aims: of `aims`.
          left: what may be spent.
          only: at this batch size.
        """
        table = self._candidates()
        score = (table.told**2 @ aims) * table.scale / table.price
        if only is not None:
            score = np.where(table.size == only, score, -np.inf)
        best = int(np.argmax(score))
        if self._planned + table.price[best] > left:
            return None
        return self._take(table, best)

    def nearest(self, size: int, offset: float) -> Asked:
        """The candidate of a batch size nearest to an offset from its optimum."""
        table = self._candidates()
        away = np.abs(table.rate - self._fitted.rate[size] - offset)
        return self._take(table, int(np.argmin(np.where(table.size == size, away, np.inf))))

    def _take(self, table: _Candidates, best: int) -> Asked:
        told, scale = table.told[best], table.scale[best]
        self._covariance = self._covariance - scale * np.outer(told, told)
        size = int(table.size[best])
        self._planned += float(table.price[best])
        self.counts[size] += 1
        asked = float(table.rate[best]), float(table.second[best])
        return Asked(size, *asked, float(table.limit[best]), Purpose.ASK)

    def _candidates(self) -> _Candidates:
        """Settings about every optimum: as far away as it is wide, or not known."""
        fitted, question, model = self._fitted, self._question, self._fitted.model
        deviation = np.sqrt(np.diag(self._covariance))
        level_sd, moved = deviation[model.at.level], deviation[model.at.rate]
        reach = np.maximum(self.width, 1.2 * np.minimum(moved, 3.0))
        rate = fitted.rate[:, None] + _OFFSETS * reach[:, None]
        rate = np.clip(rate, question.low - _BEYOND, question.high + _BEYOND).ravel()
        size = np.repeat(np.arange(question.sizes), len(_OFFSETS))
        second = np.zeros(len(size))
        if question.second:
            narrow = 0.45 / np.sqrt(fitted.second_curvature[size])
            offset = self.random.choice([-1.4, 0.0, 0.0, 1.4], len(size)) * narrow
            second = np.clip(fitted.second[size] + offset, -2.0, 2.0)
        said = fitted.describe(size, rate, second)
        above = said.height + fitted.curvature[size] * np.minimum(moved[size], 1.0) ** 2
        variance = np.exp(2 * said.log_scatter) + model.distrust(above) + GRID_SD**2
        alive = scipy.special.ndtr(-said.beyond)
        steps = np.exp(fitted.level[size] + np.minimum(above, 1.5) + 0.5 * variance)
        price = question.seconds[size] * np.minimum(steps, question.max_steps[size])
        # Within a pack that is begun a trial costs next to nothing.
        begun = self.counts % question.lanes > 0
        price = price * (alive + 0.2) * np.where(begun, 0.1, question.lanes)[size]
        noise = variance * (FREEDOM + 3) / (FREEDOM + 1)
        noise = noise / np.where(alive > _LIKELY, alive, 1e-3)
        told = said.jacobian @ self._covariance
        scale = 1 / (noise + np.einsum("ij,ij->i", told, said.jacobian))
        late = np.sqrt(variance + np.minimum(level_sd[size] ** 2, 0.25))
        limit = np.minimum(said.mean + _LATE * late, fitted.level[size] + _LATEST)
        return _Candidates(size, rate, second, price, told, scale, np.exp(limit))


class _Candidates(NamedTuple):
    """Settings that may be asked for, one entry each.

    Attributes:
      size, rate, second: as of `Asked`.
      price: in the unit of `Question.seconds`.
      told: the covariance of all parameters with what a trial would say.
      scale: 1 over the variance of what it would say.
      limit: in steps.
    """

    size: np.ndarray
    rate: np.ndarray
    second: np.ndarray
    price: np.ndarray
    told: np.ndarray
    scale: np.ndarray
    limit: np.ndarray


def _brackets(fitted: Fitted, width: np.ndarray) -> list[tuple[int, float]]:
    """Batch sizes whose optimum has no trial below or none above it, and where to look."""
    trials, found = fitted.trials, []
    away = trials.rate - fitted.rate[trials.size]
    near = np.abs(away) < _NEAR * width[trials.size]
    for size in range(fitted.model.sizes):
        here = near & (trials.size == size)
        if not (here & trials.crossed).any():
            continue
        below = here & (away < -_BELOW * width[size]) & (trials.outcome < Outcome.DIVERGED)
        above = here & (away > _ABOVE * width[size])
        if not below.any():
            found.append((size, -_ASK_BELOW * width[size]))
        elif not above.any():
            found.append((size, _ASK_ABOVE * width[size]))
    return found


def _exploring(fitted: Fitted, question: Question, random: np.random.Generator) -> list[Asked]:
    """One trial far from the expected optimum of each batch size that was not scouted.

    Together they cover the range: what the model does not expect is found by them.
    """
    scouted = set(fitted.trials.size.tolist())
    sizes = [size for size in range(question.sizes) if size not in scouted]
    places = random.permutation(len(sizes))
    span = question.high - question.low
    asked = []
    for size, place in zip(sizes, places, strict=True):
        rate = question.low + span * (place + random.random()) / len(sizes)
        second = 4 * random.random() - 2 if question.second else 0.0
        limit = math.exp(fitted.level[size] + _LATE_EXPLORING)
        asked.append(Asked(size, float(rate), second, limit, Purpose.ASK))
    return asked


def _of_other_basins(basins: Basins, question: Question) -> list[tuple[int, float]]:
    """Batch sizes and log rates where the basin that was not chosen is known too little.

    Some trials are asked for at every batch size, more where either may be the faster.
    """
    asked, ends = [], (question.low - _BEYOND, question.high + _BEYOND)
    for size, other in enumerate(basins.others):
        tried = basins.tried(size)
        wanted = _IN_DOUBT if basins.undecided[size] else _AT_LEAST
        width = math.sqrt(_LOSS / other.curvature[size])
        offsets = _ABOUT_OTHERS[tried % len(_ABOUT_OTHERS) :][: max(min(2, wanted - tried), 0)]
        rates = np.clip([other.rate[size] + offset * width for offset in offsets], *ends)
        asked += [(size, float(rate)) for rate in rates]
    return asked
