"""What a call would do at every batch size: of a search, a refinement, a confirmation."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np
import pandas as pd

from batchscale.engine.packs import TrialId
from batchscale.plan import Plan
from batchscale.records import MEASUREMENT_INDEX, TRIAL_INDEX, Status
from batchscale.runner import counting, foreseeing, planning, sweep
from batchscale.runner.counting import Counts
from batchscale.runner.ledger import BatchSizeSpec, Ledger
from batchscale.stopping import StopRule
from batchscale.stored.followups import FIRST_REFINED
from batchscale.tuner import medians

Call = Literal["run", "refine", "confirm"]


def _index(names: Sequence[str]) -> pd.MultiIndex:
    return pd.MultiIndex.from_arrays([[] for _ in names], names=list(names))


class Tables(NamedTuple):
    """Measurements and trials of a search, or of what was run beside it; empty where nothing was.

    Attributes:
      measurements: one row an evaluation.
      trials: one row a trial.
    """

    measurements: pd.DataFrame
    trials: pd.DataFrame

    def at(self, batch_size: int) -> Tables:
        """Those of one batch size."""
        return Tables(*(_of(table, batch_size) for table in self))


NOTHING = Tables(
    pd.DataFrame(index=_index(MEASUREMENT_INDEX)),
    pd.DataFrame(
        columns=["status", "steps_trained", "stop_reason", "first_crossing"],
        index=_index(TRIAL_INDEX),
    ),
)


@dataclasses.dataclass(frozen=True)
class Known:
    """What is known before a call.

    Attributes:
      plan: of the study.
      bounded: whether evaluations on the goal's split can end early.
      search: its tables.
      refined: of what was refined.
      confirmed: of what was confirmed.
      first: the steps of the first crossing, by batch size, that are assumed; None for a count of
        what is done at most.
      widths: trials of a full pack, by batch size.
    """

    plan: Plan
    bounded: bool
    search: Tables
    refined: Tables
    confirmed: Tables
    first: Mapping[int, float] | None
    widths: Mapping[int, int]

    def spec(self, batch_size: int, **fields: object) -> BatchSizeSpec:
        """What a ledger is told, with what is another's than the search's."""
        spec = sweep.spec_of(self.plan, batch_size, bounded=self.bounded)
        spec = dataclasses.replace(spec, **fields)  # pyright: ignore[reportArgumentType]
        others = self.plan.others(batch_size, spec.grid, bounds=self.bounded and not spec.exact)
        return dataclasses.replace(spec, others=others)

    def counts(
        self, spec: BatchSizeSpec, tables: Tables, crossings: Mapping[TrialId, float]
    ) -> Counts:
        """What a ledger asks for that knows these tables, if trials cross where it is said."""
        size, goal = spec.batch_size, spec.goal
        others = [split for split in self.plan.measured if split != goal.split]
        ledger = Ledger(spec, *tables)
        at = {}
        if len(tables.trials):
            open_ = tables.trials.loc[(tables.trials["status"] == Status.INCOMPLETE).to_numpy()]
            at = {TrialId(n, r): ledger.measured(TrialId(n, r)) for _, n, r in open_.index}
        likely = self.first is not None
        found = counting.count(
            ledger,
            crossings if likely else {},
            width=self.widths[size],
            bounded=self.bounded and likely,
            others=others,
            at=at,
        )
        if not likely:  # each trial may cross the goal where the others are not measured
            packs = -(-found.trials // self.widths[size])
            for split in others:
                found.measured(split, found.trials, packs)
        return found


def of_run(known: Known, size: int) -> Counts:
    """What is left of a search at a batch size."""
    own = known.search.at(size)
    crossings = {}
    if known.first is not None:
        found = foreseeing.of_search(
            known.first[size], known.plan.definition.trials, _pattern(known, size)
        )
        crossings = {TrialId(number): steps for number, steps in found.items()}
        crossings |= _crossed(own.trials)
        if math.isfinite(known.first[size]) and not crossings:
            crossings = {TrialId(0): known.first[size]}
    return known.counts(known.spec(size), own, crossings)


def of_refine(known: Known, size: int, *, rounds: int, trials: int, patience: float) -> Counts:
    """What is left of a refinement at a batch size, if all of its rounds are made."""
    best = _best(known, size)
    if not math.isfinite(best):
        return Counts()
    done, total = known.refined.at(size), Counts()
    before = {TrialId(n, r) for _, n, r in done.trials.index}
    # Some are better than those that they were drawn around, and some run to the limit.
    steps = np.linspace(best, patience * best, trials).tolist()
    for number in range(rounds):
        asked = [TrialId(FIRST_REFINED + number * trials + n) for n in range(trials)]
        crossings = dict(zip(asked, steps, strict=True))
        total += _candidates(known, size, asked, patience * best, done, crossings, before)
    return total


def of_confirm(
    known: Known, size: int, *, settings: int, selection_seeds: int, seeds: int, patience: float
) -> Counts:
    """What is left of a confirmation at a batch size."""
    best = _best(known, size)
    if not math.isfinite(best):
        return Counts()
    searched, refined = known.search.at(size).trials, known.refined.at(size).trials
    numbers, steps = list(range(settings)), {}
    if len(searched):
        both = pd.concat([searched, refined]) if len(refined) else searched
        leading = medians.leading(both, settings)
        numbers = leading.index.get_level_values("trial").tolist()
        steps = dict(zip(numbers, leading["first_crossing"].tolist(), strict=True))
    if not numbers:  # no trial reached the goal
        return Counts()
    compared = [TrialId(n, 1 + seed) for n in numbers for seed in range(selection_seeds)]
    fresh = [TrialId(numbers[0], 1 + selection_seeds + seed) for seed in range(seeds)]
    done = known.confirmed.at(size)
    if planning.measured_again(known.plan.definition, done.measurements):
        done = Tables(done.measurements.iloc[:0], done.trials.iloc[:0])
    before = {TrialId(n, r) for _, n, r in done.trials.index}
    limit, total = patience * best, Counts()
    # Another setting may have been chosen there; its runs under fresh seeds are as many.
    later = {t for t in before if t.replicate > selection_seeds}
    if len({t.replicate for t in later}) >= seeds:
        fresh = []
    for trials in (compared, fresh):
        for number in dict.fromkeys(trial.number for trial in trials):
            steps.setdefault(number, best)
        crossing = {t: foreseeing.LUCK * steps[t.number] for t in trials}
        total += _candidates(known, size, trials, limit, done, crossing, before)
    return total


def _candidates(
    known: Known,
    size: int,
    asked: Sequence[TrialId],
    limit: float,
    done: Tables,
    crossings: Mapping[TrialId, float],
    before: set[TrialId],
) -> Counts:
    """What is left of given trials, each of which runs to its crossing or a limit."""
    asked = [trial for trial in asked if trial not in before or _is_open(done.trials, trial)]
    if not asked:
        return Counts()
    grid = known.plan.definition.grid(size)
    last = next((step for step in grid if step >= limit), grid[-1])
    spec = known.spec(
        size,
        trials=len(asked),
        max_infeasible=0,
        grid=[step for step in grid if step <= last],
        rule=StopRule.of("all"),
        candidates=tuple(asked),
    )
    return known.counts(spec, done, crossings)


def _best(known: Known, size: int) -> float:
    """The first crossing, of the tables where there are any, or as it is assumed."""
    crossings = _crossings(known.search.at(size).trials)
    if len(crossings):
        return float(crossings.min())
    if known.first is not None:
        return known.first[size]
    return math.inf if len(known.search.trials) else known.plan.definition.max_steps[size]


def _pattern(known: Known, size: int) -> list[float] | None:
    """The crossings of the nearest batch size that is done, over its first."""
    best = {}
    for other in known.plan.definition.batch_sizes:
        trials = known.search.at(other).trials
        if other != size and len(crossings := _crossings(trials)):
            best[other] = trials, float(crossings.min())
    if not best:
        return None
    trials, first = best[min(best, key=lambda other: abs(math.log(other / size)))]
    return foreseeing.pattern_of(trials, first, known.plan.definition.trials)


def _crossings(trials: pd.DataFrame) -> np.ndarray:
    """The finite crossings of feasible trials."""
    if not len(trials):
        return np.zeros(0)
    found = medians.steps_of(trials).to_numpy(float)
    return found[np.isfinite(found)]


def _crossed(trials: pd.DataFrame) -> dict[TrialId, float]:
    if not len(trials):
        return {}
    steps = medians.steps_of(trials)
    return {TrialId(n, r): float(s) for (_, n, r), s in zip(steps.index, steps, strict=True)}


def _is_open(trials: pd.DataFrame, trial: TrialId) -> bool:
    open_ = trials.index[(trials["status"] == Status.INCOMPLETE).to_numpy()]
    return tuple(trial) in {(n, r) for _, n, r in open_}


def _of(table: pd.DataFrame, batch_size: int) -> pd.DataFrame:
    if not len(table):
        return table
    return table.loc[table.index.get_level_values("batch_size") == batch_size]


def counter(call: Call, numbers: Mapping[str, float]) -> Callable[[Known, int], Counts]:
    """What counts a call, with its own numbers."""
    of = {"run": of_run, "refine": of_refine, "confirm": of_confirm}[call]
    return functools.partial(of, **numbers)
