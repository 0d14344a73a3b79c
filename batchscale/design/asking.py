"""Which trials tell most for their price: the scout, and rounds that follow from what is known."""

from __future__ import annotations

import math

import numpy as np
import scipy

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
JUMP = 2.3  # of the best log rate between neighbours, besides what moves it on average
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


def ask(fitted: Fitted, question: Question, round_: int, left: float) -> Round:
    """The next trials, one after the other where the wanted variances fall most for the price.

    No optimum is believed that is not bracketed: first a trial below and one above each. What is
    wanted is the level of each batch size, its best rate as far as a wrong one costs steps, and
    B_crit.

    Args:
      fitted: to all trials so far.
      question: what is asked.
      round_: which round this is; the scout was 0.
      left: what may be spent on it, in the unit of `Question.seconds`.
    """
    model, at = fitted.model, fitted.model.at
    random = np.random.default_rng([question.seed, round_])
    covariance = fitted.covariance.copy()
    width = np.sqrt(_LOSS / fitted.curvature)
    forced = _brackets(fitted, width)
    asked: list[Asked] = []
    if round_ == 1:
        asked += _exploring(fitted, question, random)
    asked += _across(fitted, question)
    want = question.precision / 3.0, question.precision / 1.645
    most = question.sizes * (1 if round_ < _FIRST_ROUNDS else 2)
    planned = 0.0
    while len(asked) < most or forced:
        deviation = np.sqrt(np.diag(covariance))
        moved = deviation[at.rate]
        loss = fitted.curvature * moved**2
        aims = np.zeros(model.parameters)
        aims[at.level] = (deviation[at.level] > want[0]) / want[0] ** 2
        aims[at.rate] = (loss > _ENOUGH_LOSS) * fitted.curvature / _ENOUGH_LOSS
        log_b = at.curve.start + 1
        aims[log_b] = 2 * (deviation[log_b] > want[1]) / want[1] ** 2
        if not forced and not aims.any():
            if not asked or len(asked) >= question.sizes:
                break
            # A round that has begun is a full one: rounds cost time too.
            aims[at.level], aims[log_b] = 1 / want[0] ** 2, 2 / want[1] ** 2
        size, rate, second = _candidates(fitted, question, width, moved, random)
        said = fitted.describe(size, rate, second)
        above = said.height + fitted.curvature[size] * np.minimum(moved[size], 1.0) ** 2
        variance = np.exp(2 * said.log_scatter) + model.distrust(above) + GRID_SD**2
        alive = scipy.special.ndtr(-said.beyond)
        steps = np.exp(fitted.level[size] + np.minimum(above, 1.5) + 0.5 * variance)
        price = question.seconds[size] * np.minimum(steps, question.max_steps[size])
        price = price * (alive + 0.2)
        noise = variance * (FREEDOM + 3) / (FREEDOM + 1)
        noise = noise / np.where(alive > _LIKELY, alive, 1e-3)
        told = said.jacobian @ covariance
        scale = 1 / (noise + np.einsum("ij,ij->i", told, said.jacobian))
        score = (told**2 @ aims) * scale / price
        if forced:
            where, offset = forced.pop(0)
            score = -np.abs(rate - fitted.rate[where] - offset) - 1e9 * (size != where)
        best = int(np.argmax(score))
        if asked and not forced and planned + price[best] > left:
            break
        covariance -= scale[best] * np.outer(told[best], told[best])
        place = int(size[best])
        late = math.sqrt(variance[best] + min(deviation[at.level][place] ** 2, 0.25))
        limit = min(said.mean[best] + _LATE * late, fitted.level[place] + _LATEST)
        asked.append(
            Asked(place, float(rate[best]), float(second[best]), math.exp(limit), Purpose.ASK)
        )
        planned += float(price[best])
    return Round(asked)


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


def _exploring(
    fitted: Fitted, question: Question, random: np.random.Generator
) -> list[Asked]:
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


def _across(fitted: Fitted, question: Question) -> list[Asked]:
    """Where the best rate jumps from one batch size to the next, the rate of the other side.

    Either the optimum has jumped, or one side is in another basin than the best.
    """
    rate, drift = fitted.rate, 0.5 * fitted.model.centred
    asked = []
    for place in np.flatnonzero(np.abs(np.diff(rate - drift)) > JUMP).tolist():
        for size, other in (
            (place, place + 1), (place - 1, place + 1), (place + 1, place), (place + 2, place)
        ):  # fmt: skip
            if not 0 <= size < question.sizes:
                continue
            wanted = float(rate[other] - drift[other] + drift[size])
            trials = fitted.trials
            tried = (trials.size == size) & (np.abs(trials.rate - wanted) < 1.0)
            if abs(wanted - rate[size]) > JUMP / 2 and tried.sum() < 2:
                limit = math.exp(fitted.level[size] + _LATE_EXPLORING)
                second = float(fitted.second[size])
                asked += [Asked(size, wanted, second, limit, Purpose.ASK)] * 2
    return asked


def _candidates(
    fitted: Fitted,
    question: Question,
    width: np.ndarray,
    moved: np.ndarray,
    random: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Settings about every optimum: as far away as it is wide, or not known."""
    reach = np.maximum(width, 1.2 * np.minimum(moved, 3.0))
    rate = fitted.rate[:, None] + _OFFSETS * reach[:, None]
    rate = np.clip(rate, question.low - _BEYOND, question.high + _BEYOND).ravel()
    size = np.repeat(np.arange(question.sizes), len(_OFFSETS))
    second = np.zeros(len(size))
    if question.second:
        narrow = 0.45 * math.exp(-0.5 * fitted.parameters[fitted.model.at.second][2])
        offset = random.choice([-1.4, 0.0, 0.0, 1.4], len(size)) * narrow
        second = np.clip(fitted.second[size] + offset, -2.0, 2.0)
    return size, rate, second
