"""What a worker does: trains one batch size in a folder of its own, and hands back its tables."""

from __future__ import annotations

import dataclasses
import json
import tempfile
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from batchscale import records
from batchscale.engine import compilation_cache
from batchscale.engine.engine import Engine
from batchscale.plan import Plan
from batchscale.records import StudyFolder, parcels
from batchscale.runner import confirm, planning, sending, session, sweep
from batchscale.runner.progress import Progress
from batchscale.runner.session import Session
from batchscale.stored.followups import ConfirmationPlan

_ONE_AT_A_TIME = threading.Lock()  # of the tasks of a process: each uses all of its devices
_LARGEST_STATE = 256e6  # bytes that are sent in the midst of a batch size
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
      task: JSON: the `plan` of one batch size; its `kind`, `search` or `confirm`, and what that
        needs; the `seconds` after which what there is is handed back.
      parcel: what is known of the batch size.

    Returns:
      Bytes, and `about` as JSON; or `error`, as `sending.fault` says it, with what was measured
      before it, if anything was.
    """
    try:
        about = json.loads(task)
        if about["versions"] != sending.versions():
            raise ValueError(
                f"executor: a worker has {sending.versions()}, and here it is {about['versions']}. "
                "Give workers the same Python and the same batchscale."
            )
        with _ONE_AT_A_TIME, compilation_cache.cached():
            return _carried_out(sending.unpack(study), about, parcel)
    except Exception as error:
        return {"error": sending.fault(error, f"batch size {json.loads(task)['batch_size']}")}


def _carried_out(
    parts: Mapping[str, Any], about: dict[str, Any], parcel: parcels.Parcel
) -> dict[str, Any]:
    size, plan = about["batch_size"], Plan.from_json(about["plan"])
    side = ConfirmationPlan.from_json(about["side"], "task") if "side" in about else plan
    mesh, training = session.mesh_of(None), parts["training"]()
    here = planning.conditions(mesh)
    for name in _TRAJECTORIES:
        if here[name] != about["conditions"][name]:
            raise ValueError(
                f"executor: a worker has {name} {here[name]}, and here it is "
                f"{about['conditions'][name]}: trials would be others. Configure JAX on workers as "
                "here (JAX_ENABLE_X64, JAX_DEFAULT_MATMUL_PRECISION)."
            )
    planning.same_study(plan, training, plan.definition, mesh, about["folder"])
    if about["free"] and here["backend"] != about["conditions"]["backend"]:
        plan.layouts[size] = parts["layout"](size, mesh)
    training = dataclasses.replace(training, mixes_examples=plan.mixes_examples)
    reports, error = _Reports(about["seconds"]), None
    with (
        tempfile.TemporaryDirectory(prefix="batchscale-") as folder,
        StudyFolder.open(Path(folder) / "study") as stored,
    ):
        stored.identity = planning.identity(plan)
        stored.write_plan(side.to_json())
        parcels.write(parcel, size, stored)
        with Engine(training, mesh=mesh, examples=plan.measured) as engine:
            opened = Session(plan, engine, stored, reports, here, [])
            while True:
                try:
                    if isinstance(side, ConfirmationPlan):
                        values = {(size, number): of for number, of in about["values"]}
                        confirm.confirm_batch_size(opened, side, size, values)
                    else:
                        sweep.run(opened, probe=about["probe"])
                except _TimeIsUpError:
                    state = stored.read_state(size)
                    if state and sum(x.nbytes for x in state[0].values()) > _LARGEST_STATE:
                        reports.until = float("inf")
                        continue
                except Exception as raised:
                    error = sending.fault(raised, f"batch size {size}")
                break
        found = parcels.packed(*stored.tables(), stored.read_state(size))
        last = reports.last
        done = error is None and last is not None and last.finished
        told = {
            "done": done,
            "layout": plan.layouts[size]._asdict(),
            "finding": plan.findings.get(size),
            "rows": plan.rows[size],
            "drawn_with": plan.drawn_with,
            "conditions": side.conditions.get(size, []),
            "worker": _worker(),
            "seconds": engine.seconds,
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
