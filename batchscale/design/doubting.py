"""Where the model is doubted, and the search that takes its place there."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from batchscale.design.basins import JUMP, Basins
from batchscale.design.checking import Levels
from batchscale.design.fitting import Fitted
from batchscale.design.question import Asked, Question, Round
from batchscale.design.trials import Purpose, Trials

# Choices.
_FAST = 4.0  # standard deviations below the model's mean: such a trial has another explanation
_LEVEL_WITH = 0.25  # in log steps above the best setting
_FAR = 0.5  # from the optimum, in log steps of the model
_FLAT = 0.06  # a curvature below which settings hardly differ, so that an optimum is none
_LOCKSTEP = 1.5
_LOCAL, _ABOUT = 8, 1.0  # trials about the fastest one, and how far away in log rate
_SETTINGS, _SEEDS, _FINAL_SEEDS = 4, 5, 15
_PATIENCE = 4.0


def doubtful(fitted: Fitted, levels: Levels, basins: Basins | None = None) -> np.ndarray:
    """A mask of batch sizes where something speaks against the model.

    The median of fresh seeds is not as predicted; a trial far from the optimum was as fast as the
    optimum; there are two basins, either of which may be the faster; the best rate jumps; the
    response is flat.

    Args:
      fitted: to the trials of the design.
      levels: with the check.
      basins: where there are two.
    """
    trials, model = fitted.trials, fitted.model
    said = fitted.describe(trials.size, trials.rate, trials.second)
    spread = np.sqrt(np.exp(2 * said.log_scatter) + model.distrust(said.height))
    fast = trials.crossed & ((trials.log_steps - said.mean) < -_FAST * spread)
    fast &= trials.log_steps < fitted.level[trials.size] + _LEVEL_WITH
    fast &= said.height > _FAR
    found = levels.rejected | (fitted.curvature < _FLAT)
    found[np.unique(trials.size[fast])] = True
    if basins is not None:
        return found | basins.undecided
    step = np.diff(fitted.rate - 0.5 * model.centred)
    for place in np.flatnonzero(np.abs(step) > JUMP).tolist():
        # Either side may be wrong: the one with fewer batch sizes is looked at.
        few = slice(0, place + 1) if place + 1 <= model.sizes / 2 else slice(place + 1, None)
        found[few] = True
    return found


class Searched(NamedTuple):
    """What a search in the place of the model has found at a batch size.

    Attributes:
      rate: of the chosen setting.
      second: of it.
      log_steps: the median of seeds that took no part in the choice; inf if half of them missed.
      deviation: of that median.
      seeds: how many.
      missed: how many of them did not reach the goal.
    """

    rate: float
    second: float
    log_steps: float
    deviation: float
    seeds: int
    missed: int


def search(question: Question, fitted: Fitted, sizes: np.ndarray, round_: int) -> Round:
    """The doubtful batch sizes anew: over the whole range, and about the best trial so far.

    A narrow optimum lies between trials that are spread over the range.
    """
    random = np.random.default_rng([question.seed, round_])
    count = 24 if question.second else 16
    asked = []
    for size in sizes.tolist():
        places = (random.permutation(count) + random.random(count)) / count
        rates = question.low + (question.high - question.low) * places
        second = 4 * (random.permutation(count) + random.random(count)) / count - 2
        best, of_best = _fastest(fitted, size)
        rates = np.r_[rates, best + _ABOUT * np.linspace(-1, 1, _LOCAL)]
        second = np.r_[second, np.full(_LOCAL, of_best)]
        limit = float(question.max_steps[size])
        asked += [
            Asked(size, float(x), float(v) if question.second else 0.0, limit, Purpose.SEARCH)
            for x, v in zip(rates, second, strict=True)
        ]
    return Round(asked, _LOCKSTEP)


def _fastest(fitted: Fitted, size: int) -> tuple[float, float]:
    """The setting of the fastest trial of a batch size; the model's where none crossed."""
    here = fitted.trials.where((fitted.trials.size == size) & fitted.trials.crossed)
    if not len(here):
        return float(fitted.rate[size]), float(fitted.second[size])
    first = int(np.argmin(here.log_steps))
    return float(here.rate[first]), float(here.second[first])


def select(question: Question, fitted: Fitted, trials: Trials, sizes: np.ndarray) -> Round:
    """The leading settings of the search, and the model's, under a few fresh seeds each."""
    asked = []
    for size in sizes.tolist():
        here = trials.where((trials.size == size) & (trials.purpose == Purpose.SEARCH))
        order = np.argsort(np.where(here.crossed, here.log_steps, math.inf), kind="stable")
        lead = here.where(order[:_SETTINGS])
        lead = lead.where(lead.crossed)
        limit = _limit(question, size, lead.log_steps.min(initial=float(fitted.level[size])))
        settings = [(float(x), float(v)) for x, v in zip(lead.rate, lead.second, strict=True)]
        settings.append((float(fitted.rate[size]), float(fitted.second[size])))
        asked += [
            Asked(size, rate, second, limit, Purpose.SELECT)
            for rate, second in settings
            for _ in range(_SEEDS)
        ]
    return Round(asked)


def final(question: Question, trials: Trials, sizes: np.ndarray) -> Round:
    """The setting with the least median under seeds that took no part in the choice."""
    asked = []
    for size in sizes.tolist():
        rate, second, level = _chosen(trials, size)
        limit = _limit(question, size, level)
        asked += [Asked(size, rate, second, limit, Purpose.FINAL)] * _FINAL_SEEDS
    return Round(asked)


def searched(trials: Trials, size: int, scatter: float) -> Searched | None:
    """What the search has found at a batch size; None where there was none, or it is not done.

    Args:
      trials: all.
      size: the place of the batch size.
      scatter: of seeds, by the model: the least that is taken for the deviation.
    """
    here = trials.where((trials.size == size) & (trials.purpose == Purpose.FINAL))
    if not len(here):
        return None
    steps = np.sort(np.where(here.crossed, here.log_steps, math.inf))
    count = len(steps)
    middle = (steps[(count - 1) // 2] + steps[count // 2]) / 2
    finite = steps[np.isfinite(steps)]
    low, high = np.quantile(finite, [0.25, 0.75]) if len(finite) else (0.0, 0.0)
    own = max(float(high - low) / 1.349, 0.7 * scatter)
    deviation = 1.25 * math.hypot(own, 0.015) / math.sqrt(count)
    setting = float(here.rate[0]), float(here.second[0])
    return Searched(*setting, float(middle), float(deviation), count, count - len(finite))


def _chosen(trials: Trials, size: int) -> tuple[float, float, float]:
    here = trials.where((trials.size == size) & (trials.purpose == Purpose.SELECT))
    best = (math.inf, math.inf, 0.0, 0.0)
    for rate, second in sorted(set(zip(here.rate.tolist(), here.second.tolist(), strict=True))):
        runs = here.where((here.rate == rate) & (here.second == second))
        steps = np.sort(np.where(runs.crossed, runs.log_steps, math.inf))
        middle = float(steps[len(steps) // 2])
        best = min(best, (middle, float(np.mean(np.isinf(steps))), rate, second))
    return best[2], best[3], best[0]


def _limit(question: Question, size: int, level: float) -> float:
    most = float(question.max_steps[size])
    return min(_PATIENCE * math.exp(min(level, 50.0)), most)
