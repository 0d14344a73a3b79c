"""Given trials of a batch size, run beside the search: until each reaches the goal, or a limit."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import pandas as pd

from batchscale.engine.packs import TrialId
from batchscale.plan import Plan
from batchscale.records import Origin, Status, StudyFolder
from batchscale.runner import planning
from batchscale.runner.batch_size import BatchSizeRun
from batchscale.runner.ledger import BatchSizeSpec, Ledger
from batchscale.runner.planning import RunPlan
from batchscale.runner.progress import Progress
from batchscale.runner.session import Session
from batchscale.stopping import Stop, StopRule


class Candidate(NamedTuple):
    """A trial that is planned beside the search.

    Attributes:
      hyperparameters: by name.
      origin: why it is run.
    """

    hyperparameters: Mapping[str, float]
    origin: Origin


class Job(NamedTuple):
    """Trials of a batch size that are to be run: the arguments of `run`.

    Attributes:
      batch_size: of the trials.
      trials: those that are asked about.
      of: what is planned of these, and of those that were run before.
      limit: in steps.
      stop: `"all"`, or a factor.
    """

    batch_size: int
    trials: Sequence[TrialId]
    of: Callable[[TrialId], Candidate]
    limit: float
    stop: Stop = "all"


class _Candidates(NamedTuple):
    """Trials that are planned beside the search."""

    of: Callable[[TrialId], Candidate]

    def plan(self, trials: Sequence[TrialId]) -> None:
        """They are."""

    def hyperparameters(self, trial: TrialId) -> Mapping[str, float]:
        return self.of(trial).hyperparameters

    def origin(self, trial: TrialId) -> Origin:
        return self.of(trial).origin


def run(
    session: Session,
    side: RunPlan,
    batch_size: int,
    candidates: Sequence[TrialId],
    of: Callable[[TrialId], Candidate],
    limit: float,
    report: Callable[[Progress], None],
    stop: Stop = "all",
    *,
    others: pd.DataFrame | None = None,
    anew: bool = False,
) -> pd.DataFrame:
    """Trains trials until each is past the goal, or a limit is; not those that are done.

    Args:
      session: of the folder beside the study's.
      side: the plan there.
      batch_size: of the trials.
      candidates: the trials.
      of: what is planned of these, and of those that were run before.
      limit: in steps; they end at the first evaluation from there on, or with the budget.
      report: told of every evaluation.
      stop: `"all"`, each at its own crossing; or a factor, all at so many times the first.
      others: the rows of all trials of the batch size, where they are known and concluded, and
        none of the candidates is among them: nothing is read then.
      anew: whether what was measured of the batch size is measured again, and then replaced.

    Returns:
      The rows of all trials of the batch size.
    """
    plan, engine = session.plan, session.engine
    job = Job(batch_size, candidates, of, limit, stop)
    spec = _spec(plan, job, bounded=engine.bounded)
    measurements, trials = pd.DataFrame(), others
    if trials is None:
        measurements, trials = tables_of(session.folder, batch_size)
    if anew:
        measurements, trials = measurements.iloc[:0], trials.iloc[:0]
    ledger = Ledger(spec, measurements, trials)
    if _nothing_is_left(ledger, trials, candidates):
        return trials  # and the state of those that come after them is left alone
    planned = _Candidates(of)
    BatchSizeRun(
        ledger,
        plan.layouts[batch_size],
        engine,
        session.folder,
        trials=planned,
        report=report,
        begins=functools.partial(
            planning.begin, side, batch_size, session.conditions, session.folder
        ),
        held=session.held,
        anew=anew,
    ).run()
    return ledger.trials(planned.hyperparameters, planned.origin)


def is_done(plan: Plan, job: Job, measurements: pd.DataFrame, trials: pd.DataFrame) -> bool:
    """Whether `run` would find nothing left to do.

    Args:
      plan: of the study.
      job: what is asked.
      measurements: of the batch size, of what is run beside the search.
      trials: of the same.
    """
    ledger = Ledger(_spec(plan, job, bounded=False), measurements, trials)
    return _nothing_is_left(ledger, trials, job.trials)


def _spec(plan: Plan, job: Job, *, bounded: bool) -> BatchSizeSpec:
    grid = plan.definition.grid(job.batch_size)
    last = next((step for step in grid if step >= job.limit), grid[-1])
    grid = [step for step in grid if step <= last]
    exact = plan.definition.curves == "exact"
    return BatchSizeSpec(
        batch_size=job.batch_size,
        trials=len(job.trials),
        max_infeasible=0,
        grid=grid,
        goal=plan.definition.goal,
        rule=StopRule.of(job.stop),
        exact=exact,
        others=plan.others(job.batch_size, grid, bounds=bounded and not exact),
        candidates=tuple(job.trials),
    )


def _nothing_is_left(ledger: Ledger, trials: pd.DataFrame, asked: Sequence[TrialId]) -> bool:
    concluded = trials.loc[(trials["status"] != Status.INCOMPLETE).to_numpy()]
    known = {TrialId(number, replicate) for _, number, replicate in concluded.index}
    return known.issuperset(asked) and ledger.next({}) is None


def tables_of(folder: StudyFolder, batch_size: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The measurements and the trials of one batch size."""
    measurements, trials = (
        table.loc[table.index.get_level_values("batch_size") == batch_size]
        for table in folder.tables()
    )
    return measurements, trials
