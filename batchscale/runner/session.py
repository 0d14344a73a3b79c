"""What all runs of a study share: its folder, held; the plan and the engine; who is told."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import os
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np
import pandas as pd
from jax.sharding import Mesh

from batchscale import (
    arrays,
    checks,
    columns,
    datasets,
    keys,
    optimizers,
    records,
    schedules,
    tuner,
)
from batchscale.engine import autotune, compilation_cache, devices, layout, parallel
from batchscale.engine.engine import Engine
from batchscale.engine.evaluation import counted, is_bounded
from batchscale.engine.packs import HyperparametersOf
from batchscale.evaluate import Work
from batchscale.plan import Definition, Plan
from batchscale.records import Origin, Records
from batchscale.runner.batch_size import Progress
from batchscale.runner.pacing import paces
from batchscale.runner.progress import ProgressBar
from batchscale.stopping import evaluation_grid
from batchscale.stored import opening
from batchscale.workloads import Workload
from batchscale.workloads.coupling import mixes_examples
from batchscale.workloads.fingerprint import changes, fingerprint

if TYPE_CHECKING:
    from batchscale.study import Study

_COST = columns.declare(
    "estimate",
    *("batch_size", "max_steps", "trials", "examples", "flops"),
    *("goal_examples", "other_examples", "evaluation_flops"),
)
_SECONDS = columns.declare(
    "estimate in seconds",
    *("batch_size", "training_seconds", "goal_seconds", "other_seconds", "seconds"),
)


class Session(NamedTuple):
    """What trains and where it is written.

    Attributes:
      plan: of the study, as it is on disk.
      engine: trains and measures.
      records: the folder that trials are written into.
      report: told of every evaluation.
      conditions: what trials run under here; written into the plan of the batch sizes that do.
    """

    plan: Plan
    engine: Engine
    records: Records
    report: Callable[[Progress], None]
    conditions: Mapping[str, Any]


@contextlib.contextmanager
def opened(
    study: Study,
    definition: Definition,
    folder: str | os.PathLike[str],
    progress: bool | Callable[[Progress], None],
    chosen: Sequence[Any] | None,
    *,
    extend: bool = False,
    beside: str | None = None,
) -> Iterator[Session]:
    """Holds the folder of a study, with its plan written, for as long as trials are trained.

    Args:
      study: what is run.
      definition: of the study.
      folder: the study's.
      progress: a bar, silence, or a function.
      chosen: devices; all if None.
      extend: whether the plan may grow.
      beside: the name of a folder in the study's, where its trials are written instead.

    Raises:
      ValueError: the folder holds another study, or a smaller one that may not grow; or one that
        was begun under another type of floats.
      DamagedError: a file in it was changed since it was written, or does not fit the others.
    """
    began = time.monotonic()
    with ExitStack() as stack:
        on = mesh(chosen)
        check(study)
        stored = stack.enter_context(Records.open(folder))
        stack.enter_context(compilation_cache.cached())
        plan = _planned(study, definition, stored, on, extend=extend)
        stored.identity = identity(plan)
        written = stored
        if beside is not None:
            opening.refinement(stored, plan)
            opening.confirmed(stored, plan)
            written = stack.enter_context(stored.beside(beside))
        trains = stack.enter_context(engine(study, on, plan.measured))
        if plan.batch_dependent:
            warnings.warn(
                f"workload {study.workload.name!r}: the loss of an example depends on the others "
                "of its batch, as with batch norm, or with a mean over those words of a batch "
                "that are not masked, so that every batch size has another objective; "
                "result.audit() says what to do.",
                stacklevel=5,
            )
        stored.write_provenance(records.provenance())
        report: Callable[[Progress], None] = progress if callable(progress) else lambda _: None
        bar = None
        if progress and not callable(progress):
            title = f"{plan.definition.workload}, {plan.definition.optimizer}"
            bar = ProgressBar(len(plan.definition.batch_sizes), plan.definition.goal, title)
            report = stack.enter_context(bar)
            bar.say(_opening(study, plan.definition))
        try:
            yield Session(plan, trains, written, report, conditions(on))
        except KeyboardInterrupt:
            if bar is not None:
                bar.say(f"Interrupted. The same call goes on from what is in {stored.folder}.")
            raise
        finally:
            total = {"total": time.monotonic() - began}
            with contextlib.suppress(OSError):  # what ended the run is to be told
                stored.write_seconds(total | trains.seconds)


def check(study: Study) -> None:
    """Refuses functions that do not fit, and hyperparameters that nothing reads; compiles none."""
    checks.metric(study.goal, study.workload, study.space.names)
    checks.updates(
        study.workload, optimizers.get(study.optimizer), study.schedule, study.space.names
    )


def mesh(chosen: Sequence[Any] | None) -> Mesh:
    """A mesh over the chosen devices; over all, one for each core of a CPU, if None."""
    if chosen is None:
        devices.ask_for_cores()
    return parallel.mesh(chosen)


def engine(study: Study, on: Mesh, measured: Mapping[str, int] | None = None) -> Engine:
    """What trains the study's trials on a mesh, and how many examples of which splits it measures.

    A plan says how many; without one the study does.
    """
    if measured is None:
        measured = counts(study)
    return Engine(
        study.workload,
        optimizers.get(study.optimizer),
        schedules.get(study.schedule)[0],
        names=study.space.names,
        seed=study.seed,
        mesh=on,
        goal=study.goal,
        examples=measured,
    )


def counts(study: Study) -> dict[str, int]:
    """How many examples the study measures of every split that it does."""
    return study.evaluate.counts(study.workload.splits(), study.goal.metric.partition("/")[0])


def choose_layout(study: Study, batch_size: int, on: Mesh) -> layout.Layout:
    """How the trials of a batch size are packed, unless its plan says otherwise."""
    return layout.choose(
        study.workload,
        cpu=on.devices.flat[0].platform == "cpu",
        batch_size=batch_size,
        trials=study.trials,
        lanes=None if isinstance(study.lanes, str) else study.lanes,
        microbatch=None if study.microbatch == "auto" else study.microbatch,
    )


def cost(study: Study, definition: Definition) -> pd.DataFrame:
    """The table of `Study.estimate`."""
    work, measured = _work(study.workload, tuple(study.space.names)), counts(study)
    goal_split = study.goal.metric.partition("/")[0]
    split = study.workload.splits()[goal_split]
    bounds = study.curves == "bounds" and is_bounded(study.workload, study.goal, split)
    rows = []
    for batch_size in definition.batch_sizes:
        steps = definition.max_steps[batch_size]
        first = study.evaluate.first_steps(measured, goal_split, batch_size, work)
        grid = evaluation_grid(steps, definition.evaluation_spacing)
        times = {  # and once more at the crossing
            split: len(study.evaluate.steps(split, grid, first=first[split], bounds=bounds)) + 1
            for split in first
        }
        examples = steps * batch_size
        of_goal = len(grid) * measured[goal_split]
        others = sum(count * measured[split] for split, count in times.items())
        totals = np.array([examples, of_goal, others]) * definition.trials
        rows.append((batch_size, steps, definition.trials, *totals.tolist()))
    sizes = ["batch_size", "max_steps", "trials", "examples", "goal_examples", "other_examples"]
    table = pd.DataFrame(rows, columns=sizes)
    evaluated = table["goal_examples"] + table["other_examples"]
    table = table.assign(
        flops=table["examples"] * work.training, evaluation_flops=evaluated * work.evaluation
    )
    return table[list(_COST)]


def seconds(study: Study, definition: Definition, on: Mesh) -> pd.DataFrame:
    """The table of `Study.estimate_seconds`."""
    table, sizes = cost(study, definition), np.array(definition.batch_sizes)
    goal_split = study.goal.metric.partition("/")[0]
    far = np.abs(np.log(sizes / math.sqrt(sizes[0] * sizes[-1])))
    timed = sorted({int(sizes[0]), int(sizes[far.argmin()]), int(sizes[-1])})

    def values(batch_size: int) -> HyperparametersOf:
        space = definition.spaces[batch_size]
        plan = tuner.plan(space, batch_size=batch_size, trials=1, seed=definition.seed)
        return lambda _: plan.to_dict("records")[0]  # pyright: ignore[reportReturnType]

    with engine(study, on) as trains:
        steps = [
            autotune.seconds_per_step(
                trains, size, choose_layout(study, size, on), values(size), definition.trials
            )
            for size in timed
        ]
        size = timed[0]
        packing = choose_layout(study, size, on)
        whole = {
            split: autotune.seconds_per_evaluation(
                trains, split, size, packing, values(size), definition.trials
            )
            for split in trains.splits
        }
    training = np.interp(sizes, timed, steps) * table["max_steps"] * definition.trials
    measured = counts(study)
    others = [split for split in measured if split != goal_split]
    of_others = sum(whole[split] for split in others) / max(sum(measured[s] for s in others), 1)
    found = table[["batch_size"]].assign(
        training_seconds=training,
        goal_seconds=table["goal_examples"] * whole[goal_split] / measured[goal_split],
        other_seconds=table["other_examples"] * of_others,
    )
    return found.assign(seconds=found.drop(columns="batch_size").sum(axis=1))[list(_SECONDS)]


@functools.lru_cache(maxsize=8)
def _work(workload: Workload, names: tuple[str, ...]) -> Work:
    """The operations of an example; starts JAX, and compiles nothing."""
    return Work(workload.flops(names=names), workload.evaluation_flops())


def conditions(on: Mesh) -> dict[str, Any]:
    """What trials run under here."""
    return records.conditions(on.devices.flat[0], str(arrays.float_type()))


def identity(plan: Plan) -> dict[str, Any]:
    """What a training state must have been written under to be taken up."""
    definition, floats = plan.definition, str(arrays.float_type())
    return {"study": dict(plan.fingerprint), "seed": definition.seed, "type of floats": floats}


def same_study(
    plan: Plan, study: Study, definition: Definition, on: Mesh, where: os.PathLike[str]
) -> None:
    """Refuses a plan of another study, and tells what it was run under otherwise.

    Args:
      plan: that a folder holds.
      study: that is to be run there.
      definition: of the study.
      on: where it is to be run.
      where: the folder, for errors.

    Raises:
      ValueError: the data, the model or the study differ; or batch sizes were begun under another
        type of floats, or another precision of matrix products.
    """
    marks = _marks(study)
    definition = dataclasses.replace(definition, workload=study.workload.title())
    differ = plan.definition.differences(definition)
    differ += [f"{what} changed" for what in changes(plan.fingerprint, marks)]
    if differ:
        raise ValueError(
            f"{where}: holds another study ({'; '.join(differ)}). "
            "Give this one a folder of its own."
        )
    here = conditions(on)
    for name, remedy in _TRAJECTORIES.items():
        others = plan.begun_under_other(here, name)
        if others:
            there = plan.conditions[others[0]][0][name]
            raise ValueError(
                f"{where}: batch size {_listed(others)} was begun with {name} {there}, and here it "
                f"is {here[name]}: trials would be others. {remedy.format(there)}; or give this "
                "study a folder of its own."
            )
    moved = {}
    for name in sorted(set(here) - set(_TRAJECTORIES)):
        for size in plan.begun_under_other(here, name):
            moved.setdefault(size, []).append(
                f"{name} {plan.conditions[size][-1][name]}, here {here[name]}"
            )
    if moved:
        first = next(iter(moved))
        warnings.warn(
            f"{where}: batch size {_listed(list(moved))} was run elsewhere "
            f"({'; '.join(moved[first])}). What is trained now may differ from it in the last "
            "bits; the plan records under what each batch size was run.",
            stacklevel=6,
        )


def _marks(study: Study) -> dict[str, str]:
    schedule, _ = schedules.get(study.schedule)
    return fingerprint(study.workload, optimizers.get(study.optimizer), schedule, study.space.names)


_TRAJECTORIES = {
    "float_type": "Run it with JAX_ENABLE_X64 as it was then (wanted {})",
    "matmul_precision": "Set jax_default_matmul_precision as it was then (wanted {})",
}


def _listed(sizes: Sequence[int]) -> str:
    return ", ".join(map(str, sizes))


def _planned(
    study: Study, definition: Definition, folder: Records, on: Mesh, *, extend: bool
) -> Plan:
    """The plan on disk, after what is new in it has been written there."""
    definition = dataclasses.replace(definition, workload=study.workload.title())
    stored = opening.study(folder)
    if stored is None:
        plan = Plan(definition, _marks(study))
        if lost := datasets.not_finite(study.workload.splits()):
            warnings.warn(
                f"workload {study.workload.name!r}: NaN or infinity in {'; '.join(lost)}. Unless "
                "the loss leaves them out, trials diverge as soon as they meet one. Leave these "
                "examples out, or fill them in.",
                stacklevel=6,
            )
    else:
        plan = stored.plan
        same_study(plan, study, definition, on, folder.folder)
        lacks = plan.definition.lacks(definition)
        if lacks and not extend:
            raise ValueError(
                f"{folder.folder}: holds a smaller study ({'; '.join(lacks)}). Call "
                "study.extend(folder, ...) to go on with it, or give another folder."
            )
        if extend:
            plan.definition = plan.definition.extended(definition)
    plan.examples = {
        split: arrays.examples(fields) for split, fields in study.workload.splits().items()
    }
    if plan.mixes_examples is None:
        plan.mixes_examples = mixes_examples(
            study.workload, plan.definition.spaces[plan.definition.batch_sizes[0]]
        )
    goal_split = study.goal.metric.partition("/")[0]
    if not plan.measured:
        plan.measured = counts(study)
        plan.counted = counted(study.workload, study.goal, plan.measured)
    for batch_size in plan.definition.batch_sizes:
        if batch_size not in plan.measured_from:
            work = _work(study.workload, tuple(study.space.names))
            plan.measured_from[batch_size] = study.evaluate.first_steps(
                plan.measured, goal_split, batch_size, work
            )
        plan.extend(batch_size, plan.definition.trials, Origin.PLAN)
        if batch_size not in plan.layouts:
            plan.layouts[batch_size] = choose_layout(study, batch_size, on)
    if plan.paces is None or extend:
        plan.paces = paces(
            schedules.get(study.schedule)[0],
            optimizers.get(study.optimizer),
            jax.eval_shape(study.workload.init, keys.shape())[0],
            {b: plan.planned(b) for b in plan.definition.batch_sizes},
            plan.definition.max_steps,
        )
    folder.write_plan(plan.to_json())
    return plan


def _opening(study: Study, definition: Definition) -> str:
    table = cost(study, definition)
    return (
        f"{len(table)} batch sizes, {definition.trials} trials each, on {devices.describe()}; "
        f"at most {table['examples'].sum():.2g} examples and {table['flops'].sum():.2g} "
        "operations of training, if no trial stops before its budget"
    )
