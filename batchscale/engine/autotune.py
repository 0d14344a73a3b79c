"""Before the first step of a batch size: whether a layout fits into memory, and which is fastest.

The layout decides the last bits of every trial, so it is found once, written into the plan, and
kept. Lanes are timed only on request (`lanes="probe"`): each candidate is a program to compile, and
timings differ from run to run, so that the same command may choose otherwise another time.
"""

from __future__ import annotations

import dataclasses
import statistics
import time
import warnings
from collections.abc import Callable

from batchscale.engine.engine import Engine
from batchscale.engine.layout import Layout
from batchscale.engine.packs import Pack, TrialId, ValuesOf

_SHARE = 0.9  # of a device's memory that may be planned for
_SECONDS = 0.1  # a timing takes at least so long
_TIMINGS = 3
_FASTER = 0.95  # of the time before: what is worth going on for
_MOST_LANES = 256


@dataclasses.dataclass(frozen=True)
class Rehearsal:
    """What is run to find out about layouts of a batch size.

    Attributes:
      engine: of the study.
      batch_size: examples a step.
      values: the hyperparameters of trials.
      trials: how many there are.
      group: examples that microbatches do not cut apart; None where they stay as they are.
    """

    engine: Engine
    batch_size: int
    values: ValuesOf
    trials: int
    group: int | None = 1

    def full_pack(self, layout: Layout) -> list[Pack]:
        """A full pack before its first step; where there are fewer trials, some stand twice."""
        width = self.engine.mesh.size * layout.lanes
        # Replicates, for a pack holds a trial once.
        ids = [TrialId(n % self.trials, n // self.trials) for n in range(width)]
        values = self.values([TrialId(trial.number) for trial in ids])
        return self.engine.start(ids, values, batch_size=self.batch_size, layout=layout)


def final_layout(rehearsal: Rehearsal, layout: Layout, *, probe: bool) -> tuple[Layout, str]:
    """The layout that a batch size is run with.

    Args:
      rehearsal: of the batch size.
      layout: what would be chosen.
      probe: whether lanes are timed.

    Returns:
      A layout that fits into memory, and what was found out about it, in words; nothing where it
      is the one that was given.

    Raises:
      MemoryError: a single trial with the smallest microbatch does not fit.
    """
    found = ""
    if probe:
        layout, found = _fastest(rehearsal, layout)
    layout, problem = _fitting(rehearsal, layout)
    return layout, problem or found


def seconds_per_step(rehearsal: Rehearsal, layout: Layout, *, at_least: float = _SECONDS) -> float:
    """Seconds a step of one trial, in a full pack.

    Args:
      rehearsal: of the batch size.
      layout: how trials are packed.
      at_least: how long each of the timings takes, of which the median counts.
    """
    engine, batch_size = rehearsal.engine, rehearsal.batch_size
    packs = rehearsal.full_pack(layout)
    at, steps = 0, 1
    times: list[float] = []
    while len(times) < _TIMINGS:
        began = time.perf_counter()
        engine.advance(packs, batch_size=batch_size, layout=layout, step=at, to=at + steps)
        seconds = time.perf_counter() - began
        at += steps
        if seconds < at_least:
            steps *= 2
            times.clear()
        else:
            times.append(seconds / steps / (engine.mesh.size * layout.lanes))
    return statistics.median(times)


def seconds_per_evaluation(rehearsal: Rehearsal, layout: Layout, split: str) -> float:
    """Seconds of a whole evaluation of one trial on a split, in a full pack."""
    engine = rehearsal.engine
    packs = rehearsal.full_pack(layout)
    engine.measure(packs, [split], layout=layout)  # compiles
    times = []
    while len(times) < _TIMINGS:
        began = time.perf_counter()
        engine.measure(packs, [split], layout=layout)
        times.append((time.perf_counter() - began) / (engine.mesh.size * layout.lanes))
    return statistics.median(times)


def fastest_lanes(first: int, most: int, seconds: Callable[[int], float]) -> tuple[int, str]:
    """Climbs from a number of lanes, by factors of two, as long as a step of a trial gets faster.

    Args:
      first: number of lanes.
      most: lanes.
      seconds: a step of a trial in so many lanes; inf where they do not fit into memory.

    Returns:
      The lanes, and the timings in words.

    >>> fastest_lanes(4, 32, {2: 5.0, 4: 4.0, 8: 2.0, 16: 1.99}.__getitem__)
    (8, 'microseconds a step of a trial by lanes: 2: 5e+06, 4: 4e+06, 8: 2e+06, 16: 1.99e+06')
    """
    times: dict[int, float] = {}

    def timed(lanes: int) -> float:
        if 1 <= lanes <= most and lanes not in times:
            times[lanes] = seconds(lanes)
        return times.get(lanes, float("inf"))

    best = min(first, most)
    for factor in (0.5, 2.0):
        start = best
        while timed(int(best * factor)) < _FASTER * timed(best):
            best = int(best * factor)
        if best != start:
            break
    found = ", ".join(f"{lanes}: {times[lanes] * 1e6:.3g}" for lanes in sorted(times))
    return best, f"microseconds a step of a trial by lanes: {found}"


def _fastest(rehearsal: Rehearsal, layout: Layout) -> tuple[Layout, str]:
    def seconds(lanes: int) -> float:
        try:
            return seconds_per_step(rehearsal, layout.with_lanes(lanes))
        except RuntimeError as error:
            if not _is_out_of_memory(error):
                raise
            return float("inf")

    most = min(_MOST_LANES, -(-rehearsal.trials // rehearsal.engine.mesh.size))
    lanes, found = fastest_lanes(layout.lanes, most, seconds)
    return layout.with_lanes(lanes), found


def _fitting(rehearsal: Rehearsal, layout: Layout) -> tuple[Layout, str]:
    """Smaller microbatches, then fewer lanes, until the trials fit into memory; and why."""
    wanted, why, batch_size = layout, "", rehearsal.batch_size
    while problem := _problem(rehearsal, layout):
        smaller = layout.smaller(rehearsal.group or layout.microbatch)
        if smaller is None:
            remedy = "Take a smaller model, fewer trials, or another device."
            if rehearsal.group is None:
                remedy += (
                    " The loss of an example depends on the others, so that no batch is cut: "
                    "another microbatch= is another objective, of so many examples."
                )
            raise MemoryError(
                f"batch size {batch_size}: {problem}, with one trial at a time and microbatches of "
                f"{layout.microbatch}. {remedy}"
            )
        layout, why = smaller, f"{wanted.lanes} lanes, microbatch {wanted.microbatch}: {problem}"
    if layout != wanted:
        warnings.warn(
            f"batch size {batch_size}: {why}. Runs with {layout.lanes} lanes and "
            f"microbatches of {layout.microbatch} instead.",
            stacklevel=2,
        )
    return layout, why


def _problem(rehearsal: Rehearsal, layout: Layout) -> str | None:
    """Why a layout does not fit, or None: what XLA says it needs, and a run of no steps."""
    engine, batch_size = rehearsal.engine, rehearsal.batch_size
    try:
        needed = engine.memory(batch_size, layout, rehearsal.trials)
        if engine.memory_limit is not None and needed > _SHARE * engine.memory_limit:
            return (
                f"{_gigabytes(needed)} needed on a device, {_gigabytes(engine.memory_limit)} there"
            )
        first = [TrialId(0)]
        packs = engine.start(first, rehearsal.values(first), batch_size=batch_size, layout=layout)
        engine.advance(packs, batch_size=batch_size, layout=layout, step=0, to=0)
    except RuntimeError as error:
        if not _is_out_of_memory(error):
            raise
        return "out of memory"
    return None


def _is_out_of_memory(error: RuntimeError) -> bool:
    return "RESOURCE_EXHAUSTED" in str(error) or "out of memory" in str(error).lower()


def _gigabytes(size: float) -> str:
    return f"{size / 1e9:.3g} GB"
