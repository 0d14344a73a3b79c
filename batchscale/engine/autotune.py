"""Before the first step of a batch size: whether a layout fits into memory, and which is fastest.

The layout decides the last bits of every trial, so it is settled once, written into the plan, and
kept. Lanes are timed only on request (`lanes="probe"`): each candidate is a program to compile, and
timings differ from run to run, so that the same command may choose otherwise another time.
"""

from __future__ import annotations

import statistics
import time
import warnings

from batchscale.engine.engine import Engine
from batchscale.engine.layout import Layout
from batchscale.engine.packs import HyperparametersOf, TrialId

_SHARE = 0.9  # of a device's memory that may be planned for
_SECONDS = 0.1  # a timing takes at least so long
_TIMINGS = 3
_FASTER = 0.95  # of the time before: what is worth going on for
_MOST_LANES = 256


def settle(
    engine: Engine,
    batch_size: int,
    layout: Layout,
    hyperparameters: HyperparametersOf,
    *,
    trials: int,
    probe: bool,
) -> Layout:
    """The layout that a batch size is run with.

    Args:
      engine: of the study.
      batch_size: examples a step.
      layout: what would be chosen.
      hyperparameters: of the trials.
      trials: how many there are.
      probe: whether lanes are timed.

    Returns:
      A layout that fits into memory, and says in `why` what was found out about it.

    Raises:
      MemoryError: a single trial with the smallest microbatch does not fit.
    """
    if probe:
        layout = _fastest(engine, batch_size, layout, hyperparameters, trials)
    return _fitting(engine, batch_size, layout, hyperparameters, trials)


def _fastest(
    engine: Engine,
    batch_size: int,
    layout: Layout,
    hyperparameters: HyperparametersOf,
    trials: int,
) -> Layout:
    """Climbs from the lanes of a layout, by factors of two, as long as it gets faster."""
    most = min(_MOST_LANES, -(-trials // engine.mesh.size))
    times: dict[int, float] = {}

    def timed(lanes: int) -> float:
        if not 1 <= lanes <= most:
            return float("inf")
        if lanes not in times:
            candidate = layout.with_lanes(lanes)
            try:
                times[lanes] = seconds_per_step(
                    engine, batch_size, candidate, hyperparameters, trials
                )
            except RuntimeError as error:
                if not _is_out_of_memory(error):
                    raise
                return float("inf")
        return times[lanes]

    best = min(layout.lanes, most)
    for factor in (0.5, 2.0):
        start = best
        while timed(int(best * factor)) < _FASTER * timed(best):
            best = int(best * factor)
        if best != start:
            break
    found = ", ".join(f"{lanes}: {times[lanes] * 1e6:.3g}" for lanes in sorted(times))
    return layout.with_lanes(best)._replace(why=f"microseconds a step of a trial by lanes: {found}")


def seconds_per_step(
    engine: Engine,
    batch_size: int,
    layout: Layout,
    hyperparameters: HyperparametersOf,
    trials: int,
) -> float:
    """Seconds a step of one trial, in a full pack."""
    width = engine.mesh.size * layout.lanes
    ids = [TrialId(n % trials) for n in range(width)]
    packs = engine.start(ids, hyperparameters, batch_size=batch_size, layout=layout)
    at, steps = 0, 1
    times: list[float] = []
    while len(times) < _TIMINGS:
        began = time.perf_counter()
        engine.advance(packs, batch_size=batch_size, layout=layout, step=at, to=at + steps)
        seconds = time.perf_counter() - began
        at += steps
        if seconds < _SECONDS:
            steps *= 2
            times.clear()
        else:
            times.append(seconds / steps / width)
    return statistics.median(times)


def seconds_per_evaluation(
    engine: Engine,
    split: str,
    batch_size: int,
    layout: Layout,
    hyperparameters: HyperparametersOf,
    trials: int,
) -> float:
    """Seconds of a whole evaluation of one trial on a split, in a full pack."""
    width = engine.mesh.size * layout.lanes
    ids = [TrialId(n % trials) for n in range(width)]
    packs = engine.start(ids, hyperparameters, batch_size=batch_size, layout=layout)
    engine.measure(packs, [split], layout=layout)  # compiles
    times = []
    while len(times) < _TIMINGS:
        began = time.perf_counter()
        engine.measure(packs, [split], layout=layout)
        times.append((time.perf_counter() - began) / width)
    return statistics.median(times)


def _fitting(
    engine: Engine,
    batch_size: int,
    layout: Layout,
    hyperparameters: HyperparametersOf,
    trials: int,
) -> Layout:
    """Smaller microbatches, then fewer lanes, until the trials fit into memory."""
    wanted = layout
    while True:
        problem = _problem(engine, batch_size, layout, hyperparameters, trials)
        if problem is None:
            break
        smaller = layout.smaller()
        if smaller is None:
            raise MemoryError(
                f"batch size {batch_size}: {problem}, with one trial at a time and microbatches of "
                f"{layout.microbatch}. Take a smaller model, fewer trials, or another device."
            )
        layout = smaller._replace(
            why=f"{wanted.lanes} lanes, microbatch {wanted.microbatch}: {problem}"
        )
    if layout[:2] != wanted[:2]:
        warnings.warn(
            f"batch size {batch_size}: {layout.why}. Runs with {layout.lanes} lanes and "
            f"microbatches of {layout.microbatch} instead.",
            stacklevel=2,
        )
    return layout


def _problem(
    engine: Engine,
    batch_size: int,
    layout: Layout,
    hyperparameters: HyperparametersOf,
    trials: int,
) -> str | None:
    """Why a layout does not fit, or None: what XLA says it needs, and a run of no steps."""
    try:
        needed = engine.memory(batch_size, layout, trials)
        if engine.memory_limit is not None and needed > _SHARE * engine.memory_limit:
            return (
                f"{_gigabytes(needed)} needed on a device, {_gigabytes(engine.memory_limit)} there"
            )
        packs = engine.start([TrialId(0)], hyperparameters, batch_size=batch_size, layout=layout)
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
