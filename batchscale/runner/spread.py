"""A plan carried out by workers: a batch size each, written by one process into the folder."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from batchscale.engine.engine import Training
from batchscale.engine.layout import LayoutOf
from batchscale.engine.packs import TrialId
from batchscale.records import Status, StudyFolder
from batchscale.runner import candidates, planning, pool, sending, sweep, worker
from batchscale.runner.candidates import Job
from batchscale.runner.confirm import Settings
from batchscale.runner.desk import Away, Desk
from batchscale.runner.ledger import Ledger
from batchscale.runner.pool import Executor, Returned, Task
from batchscale.runner.session import Session
from batchscale.stored import consistency, opening
from batchscale.stored.followups import ConfirmationPlan, RefinementPlan
from batchscale.stored.measured import MeasurePlan


def away(
    executor: Executor,
    devices: Any,
    training: Callable[[], Training],
    layout_of: LayoutOf,
    names: Mapping[str, Any],
) -> Away:
    """The study, packed for workers.

    Args:
      executor: as the user gave it.
      devices: as the user gave them; none, for workers have their own.
      training: makes what is trained; it is sent.
      layout_of: how trials are packed; it is sent.
      names: the parts of the study, by what an error calls them.

    Raises:
      TypeError: it is no executor, or something cannot be sent to workers.
      ValueError: devices were given.
    """
    pool.check(executor)
    if devices is not None:
        raise ValueError(
            f"devices: got {devices!r} beside an executor, whose workers use all devices that they "
            "have. Choose those where the workers are started (CUDA_VISIBLE_DEVICES)."
        )
    sent = sending.pack({"training": training, "layout": layout_of}, names)
    return Away(executor, sent, training())


def run(session: Session, away: Away, *, probe: bool = False) -> None:
    """Runs what is left of a plan on workers, and writes it into the folder.

    Args:
      session: of the study.
      away: the workers.
      probe: as of `sweep.run`.
    """
    plan, folder = session.plan, session.folder
    asked = {size: {"search": {"probe": probe}} for size in plan.definition.batch_sizes}
    desk = Desk(session, away, asked)
    for size in plan.definition.batch_sizes:
        known = desk.known[size]
        ledger = Ledger(sweep.spec_of(plan, size, bounded=False), *known)
        done = ledger.next({}) is None and (known[1]["status"] != Status.INCOMPLETE).all()
        if done and size not in planning.measured_again(plan.definition, known[0]):
            desk.finish(size, ledger)
    desk.carry_out()
    folder.compact()


def run_confirmation(
    session: Session, away: Away, plan: ConfirmationPlan, values: Settings
) -> None:
    """Runs what is left of a confirmation on workers, and writes it into the folder.

    Args:
      session: of the folder of the confirmation.
      away: the workers.
      plan: of the confirmation, which is on disk.
      values: the hyperparameters of its settings.
    """
    of_size: dict[int, list[Any]] = {size: [] for size in plan.settings}
    for (size, number), settings in values.items():
        if size in of_size:
            of_size[size].append([int(number), dict(settings)])
    asked = {
        size: {"confirmation": {"plan": plan.only(size).to_json(), "values": of_size[size]}}
        for size in plan.settings
    }
    where, refined = session.folder.folder, _refined(session)

    def check(measurements: pd.DataFrame, trials: pd.DataFrame) -> None:
        consistency.check_confirmation(where, session.plan, refined, measurements, trials)

    Desk(session, away, asked, side=plan, check=check).carry_out()
    session.folder.compact()


def run_jobs(
    session: Session, away: Away, side: RefinementPlan | MeasurePlan, jobs: Sequence[Job]
) -> dict[int, float]:
    """Runs what is left of trials on workers, and writes it into the folder.

    Args:
      session: of the folder beside the study's.
      away: the workers.
      side: the plan there, on disk.
      jobs: the trials, of each batch size at most once.

    Returns:
      How many seconds each batch size took.
    """
    where, plan = session.folder.folder, session.plan

    def check(measurements: pd.DataFrame, trials: pd.DataFrame) -> None:
        if isinstance(side, RefinementPlan):
            consistency.check_refinement(where, plan, side, measurements, trials)
        else:
            consistency.check_measured(where, plan, side, measurements, trials)

    desk = Desk(session, away, {job.batch_size: {} for job in jobs}, side=side, check=check)
    for job in jobs:
        size, known = job.batch_size, desk.known[job.batch_size]
        if candidates.is_done(plan, job, *known):
            del desk.known[size]
            continue
        index = [TrialId(number, replicate) for _, number, replicate in known[1].index]
        planned = [(trial, job.of(trial)) for trial in dict.fromkeys([*index, *job.trials])]
        desk.asked[size]["trials"] = {
            "trials": [list(trial) for trial in job.trials],
            "planned": [[list(i), dict(of.hyperparameters), str(of.origin)] for i, of in planned],
            "limit": float(job.limit),
            "stop": job.stop,
        }
    desk.carry_out()
    return {job.batch_size: desk.spent.get(job.batch_size, 0.0) for job in jobs}


def look(session: Session, away: Away, timed: bool) -> tuple[dict[int, float], int]:
    """What a worker says of how fast it is: as `measure.Elsewhere.look`."""
    about = {
        "plan": session.plan.to_json(),
        "folder": str(session.folder.folder),
        "conditions": dict(session.conditions),
        "versions": sending.versions(),
        "timed": timed,
    }
    found: list[dict[str, Any]] = []

    def receive(returned: Sequence[Returned]) -> Iterable[Task]:
        found.extend(one.value for one in returned)
        return ()

    task = Task("timing", worker.look, (away.study, json.dumps(about)))
    pool.carry_out(away.executor, [task], receive, session.say)
    try:
        seconds = {int(size): float(value) for size, value in found[0]["seconds"]}
        together = found[0]["width"]
        wanted = set(session.plan.definition.batch_sizes) if timed else set()
        if set(seconds) != wanted or not all(0 < one < 1e6 for one in seconds.values()):
            raise ValueError(f"seconds of a step are {seconds}")
        if isinstance(together, bool) or not isinstance(together, int) or together < 1:
            raise ValueError(f"trials of a pack are {together!r}")
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise ValueError(
            f"executor: what a worker returned of the timing does not fit ({error!r}). Nothing of "
            "it is written; the same call times again."
        ) from error
    return seconds, together


def _refined(session: Session) -> RefinementPlan | None:
    """What was refined of the study that a folder is beside, if anything was."""
    with StudyFolder.open(session.folder.folder.parent, write=False) as study:
        found = opening.refinement(study, session.plan)
    return None if found is None else found.plan
