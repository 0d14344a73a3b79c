"""What all runs of a study share: its folder, held; the plan and the engine; who is told."""

from __future__ import annotations

import contextlib
import os
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import pandas as pd
from jax.sharding import Mesh

from batchscale import (
    checks,
    compilation,
    devices,
    layout,
    opening,
    optimizers,
    parallel,
    records,
    schedules,
)
from batchscale.engine import Engine
from batchscale.fingerprint import changes, fingerprint
from batchscale.mixing import mixes_examples
from batchscale.plan import Definition, Plan
from batchscale.programs import float_type
from batchscale.progress import ProgressBar
from batchscale.records import Origin, Records
from batchscale.runner import Progress

if TYPE_CHECKING:
    from batchscale.study import Study


class Session(NamedTuple):
    """What trains and where it is written.

    Attributes:
      plan: of the study, as it is on disk.
      engine: trains and measures.
      records: the folder that trials are written into.
      report: told of every evaluation.
    """

    plan: Plan
    engine: Engine
    records: Records
    report: Callable[[Progress], None]


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
        checks.metric(study.goal, study.workload, study.space.names)
        stored = stack.enter_context(Records.open(folder))
        stack.enter_context(compilation.cached())
        plan = _planned(study, definition, stored, on, extend=extend)
        stored.identity = identity(plan)
        written = stored
        if beside is not None:
            opening.refinement(stored, plan)
            opening.confirmed(stored, plan)
            written = stack.enter_context(stored.beside(beside))
        trains = stack.enter_context(engine(study, on))
        stored.write_provenance(records.provenance())
        report: Callable[[Progress], None] = progress if callable(progress) else lambda _: None
        bar = None
        if progress and not callable(progress):
            title = f"{plan.definition.workload}, {plan.definition.optimizer}"
            bar = ProgressBar(len(plan.definition.batch_sizes), plan.definition.goal, title)
            report = stack.enter_context(bar)
            bar.say(_opening(study, plan.definition))
            if plan.batch_dependent:
                bar.say(
                    "Note: the loss of an example depends on the others of its batch, so that "
                    "every batch size has another objective; result.audit() says what to do."
                )
        try:
            yield Session(plan, trains, written, report)
        except KeyboardInterrupt:
            if bar is not None:
                bar.say(f"Interrupted. The same call goes on from what is in {stored.folder}.")
            raise
        finally:
            total = {"total": time.monotonic() - began}
            with contextlib.suppress(OSError):  # what ended the run is to be told
                stored.write_seconds(total | trains.seconds)


def mesh(chosen: Sequence[Any] | None) -> Mesh:
    """A mesh over the chosen devices; over all, one for each core of a CPU, if None."""
    if chosen is None:
        devices.ask_for_cores()
    return parallel.mesh(chosen)


def engine(study: Study, on: Mesh) -> Engine:
    """What trains the study's trials on a mesh."""
    return Engine(
        study.workload,
        optimizers.get(study.optimizer),
        schedules.get(study.schedule)[0],
        names=study.space.names,
        seed=study.seed,
        mesh=on,
        goal=study.goal,
    )


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
    each = study.workload.flops(names=study.space.names)
    rows = []
    for batch_size in definition.batch_sizes:
        steps = definition.max_steps[batch_size]
        examples = steps * batch_size * definition.trials
        rows.append((batch_size, steps, definition.trials, examples, examples * each))
    columns = ["batch_size", "max_steps", "trials", "examples", "flops"]
    return pd.DataFrame(rows, columns=columns)


def conditions(on: Mesh) -> dict[str, Any]:
    """What trials run under here."""
    return records.conditions(on.devices.flat[0], str(float_type()))


def identity(plan: Plan) -> dict[str, Any]:
    """What a training state must have been written under to be taken up."""
    definition, floats = plan.definition, str(float_type())
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
    schedule, _ = schedules.get(study.schedule)
    marks = fingerprint(
        study.workload, optimizers.get(study.optimizer), schedule, study.space.names
    )
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
    stored = opening.study(folder)
    if stored is None:
        schedule, _ = schedules.get(study.schedule)
        marks = fingerprint(
            study.workload, optimizers.get(study.optimizer), schedule, study.space.names
        )
        plan = Plan(definition, marks)
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
        split: len(jax.tree.leaves(fields)[0]) for split, fields in study.workload.splits().items()
    }
    if plan.mixes_examples is None:
        plan.mixes_examples = mixes_examples(
            study.workload, plan.definition.spaces[plan.definition.batch_sizes[0]]
        )
    for batch_size in plan.definition.batch_sizes:
        plan.extend(batch_size, plan.definition.trials, Origin.PLAN)
        if batch_size not in plan.layouts:
            plan.layouts[batch_size] = choose_layout(study, batch_size, on)
    folder.write_plan(plan.to_json())
    return plan


def _opening(study: Study, definition: Definition) -> str:
    table = cost(study, definition)
    return (
        f"{len(table)} batch sizes, {definition.trials} trials each, on {devices.describe()}; "
        f"at most {table['examples'].sum():.2g} examples and {table['flops'].sum():.2g} "
        "operations of training, if no trial stops before its budget"
    )
