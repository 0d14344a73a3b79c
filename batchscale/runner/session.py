"""What all runs of a study share: its folder, held; the plan and the engine; who is told."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import time
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from batchscale import checks, given, jitting, records
from batchscale.engine import compilation_cache, devices, hosts, parallel
from batchscale.engine.engine import Engine, Training
from batchscale.engine.layout import LayoutOf
from batchscale.engine.led import LeadingEngine
from batchscale.plan import Definition, Plan
from batchscale.records import StudyFolder
from batchscale.runner import costs, planning, room
from batchscale.runner.interruption import Interruption
from batchscale.runner.progress import Progress, ProgressBar, tell
from batchscale.stored import opening


def _nothing(line: str) -> None:
    """Shows no line."""


class Session(NamedTuple):
    """What trains and where it is written.

    Attributes:
      plan: of the study, as it is on disk.
      engine: trains and measures; None where workers do.
      folder: that trials are written into.
      report: told of every evaluation.
      conditions: what trials run under here; written into the plan of the batch sizes that do.
      workers: that have trained, for the provenance of the run; none where the engine does.
      held: entered for what is finished before a signal ends the run.
      say: shows a line, where progress is shown as lines or a bar.
      began: when the call began, by `time.monotonic`.
    """

    plan: Plan
    engine: Engine
    folder: StudyFolder
    report: Callable[[Progress], None]
    conditions: Mapping[str, Any]
    workers: list[dict[str, Any]]
    held: Callable[[], AbstractContextManager[None]] = contextlib.nullcontext
    say: Callable[[str], None] = _nothing
    began: float = 0.0


@contextlib.contextmanager
def opened(
    training: Training,
    definition: Definition,
    layout_of: LayoutOf,
    folder: Path,
    progress: bool | Callable[[Progress], None],
    chosen: Sequence[Any] | None,
    *,
    extend: bool = False,
    share: bool = False,
    beside: str | None = None,
    workers: str | None = None,
    opening_words: Callable[[str], str] | None = None,
    quiet: bool = False,
) -> Iterator[Session]:
    """Holds the folder of a study, with its plan written, for as long as trials are trained.

    Args:
      training: what is trained.
      definition: of the study.
      layout_of: how the trials of a batch size are packed, unless the plan on disk says otherwise.
      folder: the study's.
      progress: a bar, silence, or a function.
      chosen: devices; all if None.
      extend: whether the plan may grow.
      share: whether batch sizes share programs where to compile them costs more.
      beside: the name of a folder in the study's, where its trials are written instead.
      workers: what trains in place of an engine here, in words; None where nothing does.
      opening_words: says what begins, of where it does; by default the budgets of all trials.
      quiet: whether the end of a batch size is no news, for it comes again and again.

    Raises:
      ValueError: the folder holds another study, or a smaller one that may not grow; or one that
        was begun under another type of floats.
      DamagedError: a file in it was changed since it was written, or does not fit the others.
    """
    began = time.monotonic()
    with ExitStack() as stack:
        check_progress(progress)
        interruption = stack.enter_context(Interruption(tell))
        stack.enter_context(jitting.as_usual())
        mesh = mesh_of(chosen)
        check(training, mesh if workers is None else None)
        stored = stack.enter_context(StudyFolder.open(folder))
        stack.enter_context(compilation_cache.cached())
        with warnings.catch_warnings():
            if workers is not None:  # where this process is tells nothing of them
                warnings.filterwarnings("ignore", ".*was run elsewhere")
            plan = planning.planned(
                training, definition, layout_of, mesh, stored, extend=extend, share=share
            )
        training = dataclasses.replace(training, mixes_examples=plan.mixes_examples)
        stored.identity = planning.identity(plan)
        written = stored
        if beside is not None:
            opening.refinement(stored, plan)
            opening.confirmed(stored, plan)
            written = stack.enter_context(stored.beside(beside))
        engine: Any = None
        if workers is None:
            made = Engine
            if hosts.several():
                made = functools.partial(LeadingEngine, marks=plan.fingerprint)
            engine = stack.enter_context(made(training, mesh=mesh, examples=plan.measured))
        if plan.batch_dependent:
            warnings.warn(
                f"workload {training.workload.name!r}: the loss of an example depends on the "
                "others of its batch, as with batch norm, or with a mean over those words of a "
                "batch that are not masked, so that every batch size has another objective. Of "
                "ghost batch norm say ghost_batch_size=N with the workload, and take batch sizes "
                "that N divides; the audit says more.",
                stacklevel=5,
            )
        stored.write_provenance(records.provenance())
        report: Callable[[Progress], None] = progress if callable(progress) else lambda _: None
        bar = None
        if progress and not callable(progress):
            title = f"{plan.definition.workload}, {plan.definition.optimizer}"
            sizes = len(plan.definition.batch_sizes)
            bar = ProgressBar(sizes, plan.definition.goal, title, quiet=quiet)
            report = stack.enter_context(bar)
            where = workers or devices.describe()
            words = opening_words or functools.partial(_opening, training, plan.definition)
            bar.say(words(where))
            interruption.say = bar.say
        away: list[dict[str, Any]] = []
        try:
            conditions = planning.conditions(mesh)
            say = _nothing if bar is None else bar.say
            yield Session(
                plan, engine, written, report, conditions, away, interruption.held, say, began
            )
        except (KeyboardInterrupt, SystemExit):
            if bar is not None or interruption.asked:
                interruption.say(
                    f"Interrupted. The same call goes on from what is in {stored.folder}."
                )
            raise
        finally:
            total = {"total": time.monotonic() - began}
            spent = {} if engine is None else engine.seconds
            with contextlib.suppress(OSError, RuntimeError):  # what ended the run is to be told
                stored.write_seconds(total | spent, away)


def check(training: Training, mesh: Mesh | None = None) -> None:
    """Refuses functions that do not fit, and hyperparameters that nothing reads; compiles none.

    Args:
      training: what is to be trained.
      mesh: where; None where others train, or nothing is.

    Raises:
      ValueError: what does not fit.
      MemoryError: a single trial has no room on a device.
    """
    checks.metric(training.goal, training.workload, training.names)
    needed = checks.updates(
        training.workload, training.optimizer, training.schedule, training.names
    )
    if mesh is not None:
        # Of another process's devices nothing is known.
        there = devices.most_memory(hosts.own_devices(mesh))
        room.check(training.workload.name, needed, there)


def mesh_of(chosen: Sequence[Any] | None) -> Mesh:
    """A mesh over the chosen devices; over all, one for each core of a CPU, if None."""
    check_devices(chosen)
    if chosen is None:
        devices.ask_for_cores()
    mesh = parallel.mesh(None if chosen is None else list(chosen))
    hosts.check(mesh)
    return mesh


def check_devices(chosen: Any) -> None:
    """Refuses what are no devices, and one that is given twice; starts no backend.

    >>> check_devices("cpu")
    Traceback (most recent call last):
    TypeError: devices: got 'cpu', wanted a list of JAX devices, such as jax.devices()[:1].
    """
    if chosen is None:
        return
    several = isinstance(chosen, Collection) and not isinstance(chosen, str)
    if not several or not all(isinstance(device, jax.Device) for device in chosen):
        raise TypeError(
            f"devices: got {chosen!r}, wanted a list of JAX devices, such as jax.devices()[:1]."
        )
    if not chosen or len(set(chosen)) < len(chosen):
        raise ValueError(f"devices: got {list(chosen)}, wanted at least one, and each once.")


def check_progress(progress: Any) -> None:
    """Refuses what is neither a bar, nor silence, nor a function.

    >>> check_progress("no")
    Traceback (most recent call last):
    TypeError: progress: got 'no', wanted True, False or a function that is told of evaluations.
    """
    if not isinstance(progress, bool | np.bool_) and not callable(progress):
        raise TypeError(
            f"progress: got {progress!r}, wanted True, False or a function that is told of "
            "evaluations."
        )
    if callable(progress):
        given.called("progress", progress, "progress(told), with a Progress", 1)


def _opening(training: Training, definition: Definition, where: str) -> str:
    table = costs.cost(training, definition)
    return (
        f"{len(table)} batch sizes, {definition.trials} trials each, on {where}; "
        f"at most {table['examples'].sum():.2g} examples and {table['flops'].sum():.2g} "
        "operations of training, if no trial stops before its budget"
    )
