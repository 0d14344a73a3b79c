"""What a worker does: trains one batch size in a folder of its own, and hands back its tables."""

from __future__ import annotations

import ctypes
import dataclasses
import hashlib
import json
import os
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from batchscale import records
from batchscale.engine import compilation_cache
from batchscale.engine.engine import Engine
from batchscale.engine.layout import LayoutOf
from batchscale.engine.packs import TrialId
from batchscale.plan import Plan
from batchscale.records import Origin, StudyFolder, parcels
from batchscale.runner import candidates, confirm, measure, planning, sending, session, sweep
from batchscale.runner.candidates import Candidate
from batchscale.runner.planning import RunPlan
from batchscale.runner.progress import Progress
from batchscale.runner.session import Session
from batchscale.stored.followups import ConfirmationPlan

_IMPORTED_IN = os.getpid()
_ONE_AT_A_TIME = threading.Lock()  # of the tasks of a process: each uses all of its devices
_LARGEST_STATE = 256e6  # bytes that are sent in the midst of a batch size
_M_TRIM, _M_MMAP = -1, -3  # glibc's M_TRIM_THRESHOLD and M_MMAP_THRESHOLD
_KEPT = 32 * 2**20  # bytes; glibc's largest
_TRAJECTORIES = ("float_type", "matmul_precision")


class _TimeIsUpError(Exception):
    """A worker hands back what it has."""


class _Reports:
    """What a run says on a worker: its last words are kept, and it is ended when time is up."""

    def __init__(self, seconds: float) -> None:
        self.last: Progress | None = None
        self.until = time.monotonic() + seconds

    def __call__(self, progress: Progress) -> None:
        self.last = progress
        if not progress.finished and time.monotonic() >= self.until:
            raise _TimeIsUpError


def carry_out(study: bytes, task: str, parcel: parcels.Parcel) -> dict[str, Any]:
    """Carries a task out: a pure function of its arguments, to the bit.

    Args:
      study: from `sending.pack`: functions that make the `training`, and the `layout` of a batch
        size on a mesh.
      task: JSON: the `plan` of one batch size; what of it is run, a `search`, a `confirmation` or
        `trials`; and the `seconds` after which what there is is handed back.
      parcel: what is known of the batch size.

    Returns:
      Bytes, and `about` as JSON; or `error`, as `sending.fault` says it, with what was measured
      before it, if anything was.
    """
    about = json.loads(task)
    try:
        with _ONE_AT_A_TIME, compilation_cache.cached():
            return _carried_out(study, about, parcel)
    except Exception as error:
        return {"error": sending.fault(error, f"batch size {about['batch_size']}")}


def look(study: bytes, task: str) -> dict[str, Any]:
    """Times steps, and says how many trials a full pack has: what a measurement asks first.

    Args:
      study: as of `carry_out`.
      task: as of `carry_out`, with the plan of all batch sizes; `timed`, whether that is asked.
    """
    about = json.loads(task)
    try:
        with _ONE_AT_A_TIME, compilation_cache.cached():
            plan = Plan.from_json(about["plan"])
            engine = _ready(study, about, plan).engine
            seconds = (
                measure.seconds_per_step(plan, engine, lambda _: None) if about["timed"] else {}
            )
            return {"seconds": list(seconds.items()), "width": measure.width(plan, engine)}
    except Exception as error:
        return {"error": sending.fault(error, "timing")}


class _Ready(NamedTuple):
    """A study on this machine, ready to be trained.

    Attributes:
      key: what all tasks have in common that it is ready for.
      engine: with the data on its devices, and the programs that were compiled so far.
      layout_of: how trials are packed.
      conditions: what trials run under here.
    """

    key: str
    engine: Engine
    layout_of: LayoutOf
    conditions: dict[str, Any]


_LAST: list[_Ready] = []  # at most one; the next task is likely to be of the same study


def _ready(study: bytes, about: Mapping[str, Any], plan: Plan) -> _Ready:
    """A study that is trained here as it would be where it comes from.

    Raises:
      ValueError: it would not.
    """
    if os.getpid() != _IMPORTED_IN:
        raise RuntimeError(
            "executor: its workers were forked from a process in which JAX runs, whose threads are "
            "not in them, so that they would hang. Let them be spawned: ProcessPoolExecutor(2, "
            'mp_context=multiprocessing.get_context("spawn")).'
        )
    if about["versions"] != sending.versions():
        raise ValueError(
            f"executor: a worker has {sending.versions()}, and here it is {about['versions']}. "
            "Give workers the same Python and the same batchscale."
        )
    mesh = session.mesh_of(None)
    here = planning.conditions(mesh)
    for name in _TRAJECTORIES:
        if here[name] != about["conditions"][name]:
            raise ValueError(
                f"executor: a worker has {name} {here[name]}, and here it is "
                f"{about['conditions'][name]}: trials would be others. Configure JAX on workers as "
                "here (JAX_ENABLE_X64, JAX_DEFAULT_MATMUL_PRECISION)."
            )
    same = [dict(plan.fingerprint), plan.mixes_examples, plan.measured, here]
    key = hashlib.blake2b(study).hexdigest() + json.dumps(same, sort_keys=True)
    if _LAST and _LAST[0].key == key:
        return _LAST[0]
    keep_memory()
    _forget()  # first, for both may not fit into memory
    sent = sending.unpack(study)
    training = sent["training"]()
    planning.same_study(plan, training, plan.definition, mesh, about["folder"])
    training = dataclasses.replace(training, mixes_examples=plan.mixes_examples)
    engine = Engine(training, mesh=mesh, examples=plan.measured)
    _LAST.append(_Ready(key, engine, sent["layout"], here))
    return _LAST[0]


def keep_memory() -> bool:
    """Has the C library keep what it would give back to the system and fetch anew at every step.

    Dask's nannies start workers with `MALLOC_TRIM_THRESHOLD_=65536`, under which a step of a
    perceptron takes 1.4 times as long on a CPU. Nothing is changed where that is not so.

    Returns:
      Whether it was changed.
    """
    trimmed = os.environ.get("MALLOC_TRIM_THRESHOLD_", "")
    if not trimmed.isdecimal() or int(trimmed) >= _KEPT or sys.platform != "linux":
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # other C libraries have none
    return mallopt is not None and all(mallopt(what, _KEPT) for what in (_M_TRIM, _M_MMAP))


def _forget() -> None:
    """Lets go of the study that is ready."""
    while _LAST:
        _LAST.pop().engine.__exit__()


@dataclasses.dataclass
class _Conditions:
    """The part of a plan that says what its batch sizes were run under."""

    conditions: dict[int, list[dict[str, Any]]]

    def to_json(self) -> dict[str, Any]:
        return {"conditions": {str(size): found for size, found in self.conditions.items()}}


def _run(session: Session, about: Mapping[str, Any], noted: RunPlan) -> None:
    """Runs what a task asks for, and notes what it is run under."""
    size, asked = about["batch_size"], about["asked"]
    if "search" in asked:
        sweep.run(session, probe=asked["search"]["probe"])
    elif "confirmation" in asked:
        values = {(size, number): of for number, of in asked["confirmation"]["values"]}
        plan = ConfirmationPlan.from_json(asked["confirmation"]["plan"], "task")
        plan = dataclasses.replace(plan, conditions=noted.conditions)
        confirm.confirm_batch_size(session, plan, size, values)
    else:
        trials = [TrialId(*trial) for trial in asked["trials"]["trials"]]
        planned = {
            TrialId(*trial): Candidate(values, Origin(origin))
            for trial, values, origin in asked["trials"]["planned"]
        }
        limit, stop = asked["trials"]["limit"], asked["trials"]["stop"]
        of = planned.__getitem__
        candidates.run(session, noted, size, trials, of, limit, session.report, stop)


def _carried_out(study: bytes, about: dict[str, Any], parcel: parcels.Parcel) -> dict[str, Any]:
    size, plan = about["batch_size"], Plan.from_json(about["plan"])
    _, engine, layout_of, here = _ready(study, about, plan)
    before = engine.seconds
    if about["free"] and here["backend"] != about["conditions"]["backend"]:
        plan.layouts[size] = layout_of(size, engine.mesh)
    # Of a search its own plan says what it was run under; the others have plans of their own.
    noted = plan if "search" in about["asked"] else _Conditions({size: about["under"]})
    if isinstance(noted, _Conditions) and not noted.conditions[size]:
        del noted.conditions[size]
    reports, error, done = _Reports(about["seconds"]), None, False
    with (
        tempfile.TemporaryDirectory(prefix="batchscale-") as folder,
        StudyFolder.open(Path(folder) / "study") as stored,
    ):
        stored.identity = planning.identity(plan)
        stored.write_plan(noted.to_json())
        parcels.write(parcel, size, stored)
        opened = Session(plan, engine, stored, reports, here, [])
        while True:
            try:
                _run(opened, about, noted)
                done = True
            except _TimeIsUpError:
                state = stored.read_state(size)
                if state and sum(x.nbytes for x in state[0].values()) > _LARGEST_STATE:
                    reports.until = float("inf")
                    continue
            except Exception as raised:
                error = sending.fault(raised, f"batch size {size}")
                _forget()  # a device may be what is wrong
            break
        found = parcels.packed(*stored.tables(), stored.read_state(size))
        last = reports.last
        told = {
            "done": done,
            "layout": plan.layouts[size]._asdict(),
            "finding": plan.findings.get(size),
            "rows": plan.rows[size],
            "drawn_with": plan.drawn_with,
            "conditions": noted.conditions.get(size, []),
            "worker": _worker(),
            "seconds": {name: of - before[name] for name, of in engine.seconds.items()},
            "last": None if last is None else _scalars(last),
        }
    return {**found, "about": json.dumps(told), "error": error}


def _scalars(progress: Progress) -> dict[str, Any]:
    names = [field.name for field in dataclasses.fields(progress) if field.name != "measured"]
    return {name: getattr(progress, name) for name in names}


def _worker() -> dict[str, Any]:
    """The machine and its software, without what differs from task to task."""
    found = records.provenance()
    return {name: found[name] for name in found if name not in ("date", "command")}
