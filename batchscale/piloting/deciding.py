"""The study that follows from the short runs: goal, learning rates, batch sizes, budgets."""

from __future__ import annotations

import bisect
import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pandas as pd

from batchscale import arguments, arrays, schedules
from batchscale.metrics import Goal
from batchscale.numeric import short
from batchscale.piloting.asked import Asked
from batchscale.piloting.effort import EVALUATION, RUNS, SEEDS, Effort, evaluations, longest, power
from batchscale.piloting.pricing import price, runs_of
from batchscale.study import Study, powers_of_two
from batchscale.tuner import Distribution, LogUniform

# Choices.
_DESIGNING = 1.5  # seconds that the design takes a batch size
_EARLY = 0.6  # of the rerun's steps, at which the goal is set: it can be reached well before
_PATIENCE = {False: 6.0, True: 2.0}  # budgets, in expected steps; with a schedule that ends
_DECADES = 10.0  # the range of the learning rate goes so far beyond the best ones
_AWAY = 8  # batch sizes go so far from the rough critical one, on either side
_BEGUN, _SHORT = 0.05, 0.04  # of the steps, and of the gain since
_FALLS = 0.01  # of all that was gained, in the second half of the reruns: it still gets better
_COUNTED = 10  # steps of an infinite batch: a goal of fewer tells nothing
_MOST_RUNS = 2.0  # times the usual number: where seeds differ more, an answer is less precise
_PAID = 0.8  # of the minutes of the answer, what the goal may be likely to take
_LONGER, _LONGER_TO_A_GIVEN = 1.5, 2.5  # times the pilot's minutes, with longer reruns
_MOST_LONGER = 8.0  # times the steps of the last reruns
_EXPECTED = ("batch_size", "steps", "max_steps", "minutes")


def _noise(asked: Asked, effort: Effort, value: float) -> float:
    """The standard error of a share on the goal's split; of others nothing is known beforehand."""
    split, _, name = asked.metric.partition("/")
    if name not in ("error", "accuracy") or not 0 <= value <= 1:
        return 0.0
    examples = arrays.examples(effort.workload.splits()[split])
    share = min(max(value, 1 / examples), 1 - 1 / examples)
    return math.sqrt(share * (1 - share) / examples)


@dataclasses.dataclass(frozen=True)
class Chosen:
    """A goal, and why it is that one.

    Attributes:
      goal: the goal.
      steps: after which the median of the reruns is there.
      words: why it is that one.
      reached: whether the reruns have got there; a guess is made of the steps where not.
      hardest: whether longer reruns could find a harder one that still gets better.
      limit: the steps at the middle batch size that the minutes pay for, of those that were looked
        at; inf if they pay for all.
    """

    goal: Goal
    steps: int
    words: str
    reached: bool = True
    hardest: bool = False
    limit: float = math.inf


def chosen(
    asked: Asked,
    effort: Effort,
    rerun: pd.DataFrame,
    affordable: Callable[[int], bool],
    fewest: float = 0.0,
) -> Chosen:
    """The goal: as hard as reruns reach well before their end and the minutes pay for.

    Args:
      asked: of the pilot.
      effort: how fast the machine is.
      rerun: of the best setting.
      affordable: whether the minutes pay for a goal that takes so many steps at the middle size.
      fewest: steps there that are worth to be counted at any batch size, whatever they cost.
    """
    steps, median = rerun["step"].to_numpy(int), rerun["median"].to_numpy(float)
    least = asked.worse(median)
    if asked.goal is not None:
        there = np.flatnonzero(asked.goal.reached(median))
        if len(there):
            words = f"{asked.goal}, as it was given"
            return Chosen(asked.goal, int(max(steps[there[0]], 1)), words)
        words = (
            f"{asked.goal}, as it was given; the best setting of the pilot has not reached it "
            f"in {steps[-1]:,} steps ({median[-1]:.4g}), so that its steps are a guess"
        )
        return Chosen(asked.goal, 2 * int(steps[-1]), words, reached=False)
    # Of five seeds the range is 2.33 standard deviations, if they are normal.
    apart = abs(float(rerun["high"].iloc[-1]) - float(rerun["low"].iloc[-1])) / 2.33
    noise = _noise(asked, effort, float(median[-1]))
    noise, of_noise = max((noise, "the split's standard error"), (apart, "the spread of seeds"))
    # Strictly worse than the end, for a goal is passed strictly; better than the beginning.
    between = np.isfinite(least) & (least > least[-1]) & (least < least[0])
    if not math.isfinite(least[-1]) or not between.any():
        raise ValueError(
            f"pilot: {asked.metric} of {SEEDS} reruns of the best setting goes from "
            f"{median[0]:.4g} to {median[-1]:.4g} with nothing in between in {steps[-1]:,} steps, "
            "so that no goal lies between. Give one, goal=Goal(metric, value); or another metric, "
            "such as the loss; or other ranges of hyperparameters, if training diverges."
        )
    # Well before the end, and where the curve still falls: by more than the split's noise, and by
    # a share of what was gained after the first steps, for other batch sizes may not get as far.
    begun = float(least[np.searchsorted(steps, _BEGUN * steps[-1])])
    above = max(noise, _SHORT * max(begun - least[-1], 0.0)) if math.isfinite(begun) else noise
    early = between & (steps <= _EARLY * steps[-1]) & (least > least[-1] + above)
    places = np.flatnonzero(early if early.any() else between)
    dear = bisect.bisect_left(places, True, key=lambda at: not affordable(int(steps[at])))
    # A goal of a few steps tells nothing, however little time there is.
    worth = int(np.searchsorted(steps[places], fewest))
    place = int(places[min(max(dear - 1, worth), len(places) - 1)])
    place = int(np.flatnonzero(least == least[place])[0])  # a value is reached once
    value = _rounded(least, place)
    goal = Goal(asked.metric, value if asked.mode == "min" else -value, asked.mode)
    at = max(int(steps[np.flatnonzero(goal.reached(median))[0]]), 1)
    words = (
        f"{goal}: the median of {SEEDS} reruns of batch size {effort.middle} is past it after "
        f"{at:,} of {steps[-1]:,} steps, and is at {median[-1]:.4g} in the end"
    )
    if noise:
        words += f"; {of_noise} is {short(noise, 2)}"
    if dear < len(places):
        words += "; a harder one is likely to take more minutes than there are"
    half = int(np.searchsorted(steps, steps[-1] / 2))
    enough = max(noise, _FALLS * (least[0] - least[-1]))
    falls = bool(early.any() and least[half] > least[-1] + enough)
    limit = math.inf if dear == len(places) else float(steps[places[dear - 1]]) if dear else 0.0
    return Chosen(goal, at, words, hardest=dear == len(places) and falls, limit=limit)


def _rounded(least: np.ndarray, place: int) -> float:
    """A round number that is no harder than the value at a place, nor passed much before it.

    >>> _rounded(np.array([0.9, 0.15, 0.1234, 0.12]), 2)
    0.13
    """
    value = float(least[place])
    for digits in range(1, 8):
        unit = 10.0 ** (math.floor(math.log10(abs(value) or 1e-12)) - digits + 1)
        rounded = round(math.ceil(value / unit) * unit, 14)
        if rounded >= value and not (least[: max(place, 1)] < rounded).any():
            return rounded
    return value


def _rough(table: pd.DataFrame) -> float:
    """The critical batch size by the scan's steps: a hint of where to measure, and nothing else."""
    sizes, steps = table[["batch_size", "steps"]].to_numpy(float).T
    known = np.isfinite(steps) & (steps > 0)
    if known.sum() < 2:
        return float(np.sqrt(sizes[0] * sizes[-1]))
    return _through(sizes, np.where(known, steps, np.nan))


def _rough_at(critical: float, there: Mapping[int, float], middle: int, steps: int) -> float:
    """The same for a goal, where the scan of other batch sizes than the middle one got to it.

    It grows as training goes on (McCandlish et al. 2018), and the scan's is of its beginning.

    Args:
      critical: by the scan's steps to where all batch sizes got.
      there: steps to the goal of those batch sizes of the scan that got there.
      middle: the batch size of the reruns.
      steps: of these.

    >>> there = {8: 100 * (1 + 24 / 8), 32: 1.0}
    >>> f"{_rough_at(6.0, there, 32, 175):.0f}", _rough_at(40.0, there, 32, 175)
    ('24', 40.0)
    """
    known = {**there, middle: float(steps)}
    if len(known) < 2:
        return critical
    sizes, counts = np.array(sorted(known.items()), float).T
    return max(critical, _through(sizes, counts))


def _through(sizes: np.ndarray, steps: np.ndarray) -> float:
    known = np.isfinite(steps)
    grid = np.geomspace(sizes[0], 4 * sizes[-1], 100)
    away = np.log(steps[known]) - np.log1p(grid[:, None] / sizes[known])
    return float(grid[np.argmin(away.var(axis=1))])


@dataclasses.dataclass(frozen=True)
class Decided:
    """What follows from the short runs.

    Attributes:
      study: to be measured.
      expected: what it is likely to cost, as `Pilot.expected`.
      reasons: why it is what it is.
      goal: of it.
    """

    study: Study
    expected: pd.DataFrame
    reasons: dict[str, str]
    goal: Chosen

    @property
    def seconds(self) -> float:
        """That the measurement is likely to take."""
        return 60 * float(self.expected["minutes"].sum())


def longer(asked: Asked, effort: Effort, steps: int, found: Decided, spent: float) -> int | None:
    """How many steps the best setting is to be run again for; None if that is of no use.

    Of use it is where a goal that was given has not been reached, and where the minutes pay for a
    harder one than the reruns show, which still get better.

    Args:
      asked: of the pilot.
      effort: how fast the machine is.
      steps: of the last reruns.
      found: what follows from them.
      spent: seconds that the pilot has taken.
    """
    goal, step = found.goal, float(effort.seconds_per_step(effort.middle))
    if goal.reached and not (goal.hardest and found.seconds < _PAID * asked.answer_seconds / 2):
        return None
    over = _LONGER if goal.reached else _LONGER_TO_A_GIVEN
    left = over * asked.seconds - spent
    many = evaluations(steps, effort.spacing) + 20
    left -= SEEDS * many * effort.seconds_per_evaluation()
    affordable = left / (SEEDS * step * 1.3)
    wanted = _MOST_LONGER * steps
    if goal.reached:
        wanted = min(wanted, steps * _PAID * asked.answer_seconds / max(found.seconds, 1e-9))
    examples = arrays.examples(asked.workload.splits()["train"])
    most = min(affordable, wanted, longest(effort.middle, examples))
    return int(most) if most >= 1.5 * steps else None


def decided(
    asked: Asked,
    effort: Effort,
    table: pd.DataFrame,
    rerun: pd.DataFrame,
    sizes: Sequence[int] | None = None,
    limit: float | None = None,
    reaching: Callable[[float], Mapping[int, float]] = lambda _: {},
) -> Decided:
    """The study that follows from the short runs.

    Args:
      asked: of the pilot.
      effort: how fast the machine is.
      table: of the scan.
      rerun: of the best setting.
      sizes: batch sizes, if they have been decided before.
      limit: as in `Chosen`, likewise: with more minutes a study goes on with the same goal.
      reaching: of the scan: the steps to a value of each batch size that got there.
    """
    first = _rough(table)
    examples = arrays.examples(asked.workload.splits()["train"])

    def critical_at(value: float, steps: int) -> float:
        return _rough_at(first, reaching(value), effort.middle, steps)

    def affordable(steps: int) -> bool:
        if limit is not None:
            return steps <= limit
        place = int(np.searchsorted(rerun["step"], steps))
        rough = Goal(asked.metric, float(rerun["median"].iloc[place]), asked.mode)
        runs = min(max(runs_of(rerun, rough), RUNS), _MOST_RUNS * RUNS)
        critical = critical_at(rough.value, steps)
        found, seconds = _sizes(asked, effort, critical, steps, examples, runs)
        within = asked.allows(_likely(effort, critical, steps, found))
        return within and seconds <= _PAID * asked.answer_seconds

    fewest = _COUNTED * (1 + first / effort.middle)
    found = chosen(asked, effort, rerun, affordable, fewest)
    goal, steps = found.goal, found.steps
    critical = critical_at(goal.value, steps) if found.reached else first
    if sizes is None:
        sizes = _sizes(asked, effort, critical, steps, examples)[0]
    of_sizes = (
        f"{sizes[0]} to {sizes[-1]}, about the rough critical batch size of the short runs, "
        f"{short(critical, 2)}"
    )
    if asked.batch_sizes is not None:
        of_sizes = "as they were given"
    rate, of_rate = _rates(asked, table, sizes)
    likely = _likely(effort, critical, steps, sizes)
    if asked.goal is None and not asked.allows(likely):
        raise ValueError(
            f"pilot: {found.goal} is likely to take {min(likely.values()):,.0f} to "
            f"{max(likely.values()):,.0f} steps at batch sizes {sizes[-1]} to {sizes[0]}, which "
            "max_steps does not allow. Give larger budgets, or none, which the pilot finds; or a "
            "goal that is reached within them."
        )
    ends = schedules.get(asked.schedule)[1]
    patience = _PATIENCE["learning_rate_decay_steps" in ends]
    budget = {size: math.ceil(patience * likely[size]) for size in sizes}
    of_budget = f"{patience:g} times the steps that are expected"
    if asked.max_steps is not None:
        budget, of_budget = asked.budget(sizes), "as they were given"
    study = asked.study(
        effort.workload,
        space=asked.space_with(rate),
        batch_sizes=sizes,
        goal=goal,
        stop=3.0,
        curves="bounds",
        trials=32,
        max_infeasible=None,
        max_steps=budget,
        evaluation_spacing=effort.spacing,
        evaluate=asked.evaluate,
    )
    starting = float(effort.timed["starting_seconds"].iloc[0]) + _DESIGNING
    runs = runs_of(rerun, goal, math.log2(sizes[-1] / sizes[0]))
    seconds = [price(asked, effort, size, likely[size], runs=runs) + starting for size in sizes]
    expected = pd.DataFrame(
        {
            "batch_size": sizes,
            "steps": [likely[size] for size in sizes],
            "max_steps": [budget[size] for size in sizes],
            "minutes": [each / 60 for each in seconds],
        }
    )
    split = asked.metric.partition("/")[0]
    of_evaluation = f"each {effort.spacing:.0%} of the steps, on all of {split}"
    if effort.share < 1:
        count = arrays.examples(effort.workload.splits()[split])
        of_evaluation = (
            f"each {effort.spacing:.0%} of the steps, on a fixed random part of {split}, {count:,} "
            f"examples: all of it would take more than {EVALUATION:.0%} of the training"
        )
    return Decided(
        study,
        expected[list(_EXPECTED)],
        {
            "goal": found.words,
            "learning_rate": of_rate,
            "batch_sizes": of_sizes,
            "max_steps": of_budget,
            "evaluation": of_evaluation,
        },
        found,
    )


def _likely(effort: Effort, critical: float, steps: int, sizes: Sequence[int]) -> dict[int, float]:
    """Steps to the goal by the rough curve, through those of the middle batch size."""
    through = steps / (1 + critical / effort.middle)
    return {size: max(through * (1 + critical / size), 1.0) for size in sizes}


def _sizes(
    asked: Asked,
    effort: Effort,
    critical: float,
    steps: int,
    examples: int,
    runs: float = RUNS,
) -> tuple[list[int], float]:
    """Batch sizes that are likely to be affordable, and the seconds that they are likely to take.

    Powers of two about the rough critical batch size, unless they were given.
    """

    def cost_of(sizes: Sequence[int]) -> dict[int, float]:
        likely = _likely(effort, critical, steps, sizes)
        return {size: price(asked, effort, size, likely[size], runs=runs) for size in sizes}

    if asked.batch_sizes is not None:
        sizes = arguments.batch_sizes(asked.batch_sizes, examples, asked.workload.name)
        return list(sizes), sum(cost_of(sizes).values())
    high = min(critical * _AWAY, examples)
    while len(powers_of_two(1, max(power(high), 1))) < 4 and high < examples:
        high *= 2
    # Further below it where there is time: the bend is then seen whole, were it a rough guess.
    for away in (4 * _AWAY, _AWAY):
        sizes = powers_of_two(1, max(power(high), 1))
        sizes = [size for size in sizes if size >= power(critical / away)]
        if len(sizes) < 4:
            sizes = powers_of_two(1, power(high))[-4:]
        cost = cost_of(sizes)
        if sum(cost.values()) <= asked.answer_seconds / 2:
            break
    while len(sizes) > 5 and sum(cost[size] for size in sizes) > asked.answer_seconds:
        dearest = max(sizes[0], sizes[-1], key=lambda size: cost[size])
        sizes.remove(dearest)
    # A part of a group is another objective.
    group = asked.workload.ghost_batch_size or 1
    whole = [size for size in sizes if size % group == 0]
    sizes = whole if len(whole) > 2 else sizes
    return sizes, sum(cost[size] for size in sizes)


def _rates(asked: Asked, table: pd.DataFrame, sizes: Sequence[int]) -> tuple[Distribution, str]:
    """The range of learning rates, and why."""
    if asked.rate_given:
        return asked.rate, "as it was given"
    tried = table["batch_size"].to_numpy(float)
    best = table["best_learning_rate"].to_numpy(float)
    low = best.min() / _DECADES * min(1.0, math.sqrt(sizes[0] / tried[0]))
    high = best.max() * _DECADES * max(1.0, math.sqrt(sizes[-1] / tried[-1]))
    low, high = _one_digit(low, math.floor), _one_digit(high, math.ceil)
    diverged = table["diverges_from"].min()
    words = (
        f"{low:g} to {high:g}, a factor of {_DECADES:g} or more beyond the best of the short "
        f"runs, {short(best.min(), 2)} to {short(best.max(), 2)}"
    )
    if math.isfinite(diverged):
        words += f"; training diverged from {short(diverged, 2)} on"
    return LogUniform(low, high), words


def _one_digit(value: float, way: Callable[[float], int]) -> float:
    unit = 10.0 ** math.floor(math.log10(value))
    return float(f"{way(value / unit) * unit:.1g}")
