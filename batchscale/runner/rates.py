"""How fast this machine is: what each part of a study costs, measured in a few steps."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import tempfile
import time
import warnings
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from batchscale.engine import autotune
from batchscale.engine.engine import Training
from batchscale.engine.layout import Layout, LayoutOf
from batchscale.engine.packs import Pack, TrialId
from batchscale.plan import Definition
from batchscale.records import Origin
from batchscale.runner import candidates, costs, session
from batchscale.runner.candidates import Candidate
from batchscale.runner.counting import Counts
from batchscale.runner.session import Session

BOUNDED = 0.2
"""A choice: the share of a split that evaluations look at which end early; measured: 14 to 24%."""
_PACKS = 4  # that are timed together, at most
_CALLS, _SECONDS, _MOST_SECONDS = 5, 0.4, 2.0  # of timing a call: at least both, at most this


@dataclasses.dataclass(frozen=True)
class Line:
    """Seconds of a call, and of each trial in it, or of each step."""

    call: float
    each: float

    def of(self, calls: float, many: float) -> float:
        """Seconds of several calls, with so many trials or steps in all."""
        return self.call * calls + self.each * many


@dataclasses.dataclass(frozen=True)
class Rates:
    """Seconds here of all that a study does.

    Attributes:
      opening: of a call of the study, before anything is compiled.
      closing: of every batch size, for what is written down.
      evaluation: of what is noted of an evaluation, beside the evaluation.
      compilation: by batch size, of programs that earlier ones do not have.
      steps: by batch size, of advancing a pack, and of each step.
      whole: by split, of evaluating a pack, and of each trial of it.
      bounded: the same, of evaluations that end early.
      first: of compiling what all batch sizes share.
    """

    opening: float
    closing: float
    evaluation: float
    compilation: Mapping[int, float]
    steps: Mapping[int, Line]
    whole: Mapping[str, Line]
    bounded: Line | None
    first: float

    def training(self, size: int, counts: Counts) -> float:
        """Seconds of the training of a batch size."""
        return self.steps[size].of(counts.advances, counts.pack_steps)

    def evaluations(self, split: str, counts: Counts, goal: str) -> float:
        """Seconds of the evaluations of a batch size on a split."""
        whole, packs = counts.whole.get(split, 0), counts.packs.get(split, 0)
        seconds = self.whole[split].of(packs, whole)
        if split == goal and self.bounded is not None and counts.bounded:
            each = max(self.bounded.each, BOUNDED * self.whole[split].each)
            seconds += Line(self.bounded.call, each).of(counts.bounded_packs, counts.bounded)
        return seconds


def measured(
    training: Training,
    definition: Definition,
    layout_of: LayoutOf,
    sizes: Sequence[int],
    chosen: Sequence[Any] | None,
) -> Rates:
    """Opens the study in a temporary folder, and times what it does there.

    Args:
      training: what is trained.
      definition: of the study.
      layout_of: how the trials of a batch size are packed.
      sizes: the batch sizes that something is done at, in order.
      chosen: devices; all if None.
    """
    timed = sorted({sizes[0], sizes[len(sizes) // 2], sizes[-1]})
    with tempfile.TemporaryDirectory(prefix="batchscale-estimate-") as folder:
        opened = functools.partial(_opened, training, definition, layout_of, chosen=chosen)
        with opened(Path(folder) / "cold") as cold:
            price = _compilation(cold, layout_of, timed)
        # As a run that follows has it: what was compiled is at hand, or is not.
        began = time.perf_counter()
        with opened(Path(folder) / "warm") as warm:
            opening = time.perf_counter() - began
            first, compilation = _compilations(warm, layout_of, timed, sizes, price)
            steps = [_steps(warm, layout_of, size) for size in timed]
            whole, bounded = _evaluations(warm, layout_of, timed[0])
            closing, evaluation = _host(warm, layout_of, timed[0])
    ends = np.array([[line.call, line.each] for line in steps]).T
    between = [np.interp(sizes, timed, values) for values in ends]
    return Rates(
        opening=opening,
        closing=closing,
        evaluation=evaluation,
        compilation=compilation,
        steps={size: Line(*map(float, line)) for size, *line in zip(sizes, *between, strict=True)},
        whole=whole,
        bounded=bounded,
        first=first,
    )


def _opened(
    training: Training,
    definition: Definition,
    layout_of: LayoutOf,
    folder: Path,
    chosen: Sequence[Any] | None,
) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the run itself says it
        return session.opened(training, definition, layout_of, folder, False, chosen)


def _compilation(now: Session, layout_of: LayoutOf, timed: Sequence[int]) -> float:
    """Seconds of a program of one batch size alone, before anything is compiled."""
    seconds, programs = [], []
    for size in timed:
        began = time.perf_counter()
        programs.append(now.engine.compiled(size, _layout(now, layout_of, size)))
        seconds.append(time.perf_counter() - began)
    alone = sum(programs[1:])
    if alone:
        return sum(seconds[1:]) / alone
    return sum(seconds) / max(sum(programs), 1)


def _compilations(
    now: Session, layout_of: LayoutOf, timed: Sequence[int], sizes: Sequence[int], cold: float
) -> tuple[float, dict[int, float]]:
    """Seconds of what all batch sizes share, and of what each has alone, once some are compiled."""
    engine = now.engine
    known: set[Hashable] = set()
    compiled = {}
    for size in timed:
        began = time.perf_counter()
        engine.compiled(size, _layout(now, layout_of, size))
        compiled[size] = time.perf_counter() - began
        known.update(engine.programs_of(size, _layout(now, layout_of, size)))
    others = [compiled[size] for size in timed[1:]]
    own = max(others, default=0.0)
    first = max(compiled[timed[0]] - own, 0.0)
    found: dict[int, float] = {timed[0]: compiled[timed[0]] - first}
    for size in sizes:
        names = engine.programs_of(size, _layout(now, layout_of, size))
        new = len(set(names) - known)
        found[size] = found.get(size, 0.0) + new * cold
        found[size] += compiled[size] if size in timed[1:] else 0.0
        known.update(names)
    return first, found


def _layout(now: Session, layout_of: LayoutOf, size: int) -> Layout:
    return now.plan.layouts.get(size) or layout_of(size, now.engine.mesh)


def _steps(now: Session, layout_of: LayoutOf, size: int) -> Line:
    """Of a pack: seconds of a call that advances it, and of each step."""
    engine, layout = now.engine, _layout(now, layout_of, size)
    rehearsal = costs.rehearsal(engine, now.plan.definition, size)
    width = engine.mesh.size * layout.lanes
    each = width * autotune.seconds_per_step(rehearsal, layout)
    packs, steps = _packs(now, layout, size), itertools.count()

    def one() -> None:
        at = next(steps)  # onwards, as a run goes: its examples have to be drawn, too
        engine.advance(packs, batch_size=size, layout=layout, step=at, to=at + 1)

    return Line(max(_mean(one) / len(packs) - each, 0.0), each)


def _packs(now: Session, layout: Layout, size: int) -> list[Pack]:
    """As many full packs as a study has at once, up to some: the host is ahead of devices then."""
    engine, definition = now.engine, now.plan.definition
    width = engine.mesh.size * layout.lanes
    many = max(min(definition.trials // width, _PACKS), 1)
    trials = [TrialId(0, n) for n in range(many * width)]
    values = costs.rehearsal(engine, definition, size).values(trials)
    return engine.start(trials, values, batch_size=size, layout=layout)


def _evaluations(
    now: Session, layout_of: LayoutOf, size: int
) -> tuple[dict[str, Line], Line | None]:
    """Of a pack before its first step: seconds of a call that evaluates it, and of each trial."""
    engine, layout = now.engine, _layout(now, layout_of, size)
    packs = _packs(now, layout, size)
    trials = [trial for pack in packs for trial in pack.ids if trial is not None]
    few = [trial for pack in packs for trial in pack.ids[::2] if trial is not None]

    def timed(split: str, *, early: bool) -> Line:
        def seconds(some: Sequence[TrialId]) -> float:
            return _mean(
                lambda: engine.measure(
                    packs, [split], layout=layout, trials=some, bounded=some if early else ()
                )
            )

        whole = seconds(trials)
        each = 0.0
        if len(few) < len(trials):
            each = max((whole - seconds(few)) / (len(trials) - len(few)), 0.0)
        return Line(max(whole - each * len(trials), 0.0) / len(packs), each)

    split = now.plan.definition.goal.split
    early = timed(split, early=True) if engine.bounded else None
    return {name: timed(name, early=False) for name in engine.splits}, early


def _host(now: Session, layout_of: LayoutOf, size: int) -> tuple[float, float]:
    """Seconds beside the devices' work: of a batch size, and of an evaluation of it."""
    engine, layout = now.engine, _layout(now, layout_of, size)
    width = min(engine.mesh.size * layout.lanes, now.plan.definition.trials)
    told: list[float] = []

    def of(trial: TrialId) -> Candidate:
        return Candidate(now.plan.rows[size][trial.number]["hyperparameters"], Origin.PLAN)

    def beside() -> float:
        return time.perf_counter() - sum(engine.seconds.values())

    began = beside()
    candidates.run(
        now, now.plan, size, [TrialId(n) for n in range(width)], of, _CALLS,
        lambda progress: told.append(beside()),
    )  # fmt: skip
    now.folder.compact()
    total = beside() - began
    between = np.diff(told[:-1])
    evaluation = float(between.mean()) if len(between) else 0.0
    return max(total - evaluation * len(told), 0.0), max(evaluation, 0.0)


def _mean(call: Callable[[], Any]) -> float:
    """Seconds of a call that has been made once before, the mean of several.

    Not the median: what else the machine does holds a run up as well.
    """
    call()
    began, calls, seconds = time.perf_counter(), 0, 0.0
    while seconds < _MOST_SECONDS and (calls < _CALLS or seconds < _SECONDS):
        call()
        calls += 1
        seconds = time.perf_counter() - began
    return seconds / calls
