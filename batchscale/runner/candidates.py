"""Given trials of a batch size, run beside the search: until each reaches the goal, or a limit."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import pandas as pd

from batchscale.engine.packs import TrialId
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

    Returns:
      The rows of all trials of the batch size.
    """
    plan, definition = session.plan, session.plan.definition
    grid = definition.grid(batch_size)
    last = next((step for step in grid if step >= limit), grid[-1])
    grid = [step for step in grid if step <= last]
    spec = BatchSizeSpec(
        batch_size=batch_size,
        trials=len(candidates),
        max_infeasible=0,
        grid=grid,
        goal=definition.goal,
        rule=StopRule.of(stop),
        exact=False,
        others=plan.others(batch_size, grid, bounds=session.engine.bounded),
        candidates=tuple(candidates),
    )
    measurements, trials = pd.DataFrame(), others
    if trials is None:
        measurements, trials = tables_of(session.folder, batch_size)
    ledger = Ledger(spec, measurements, trials)
    concluded = trials.loc[(trials["status"] != Status.INCOMPLETE).to_numpy()]
    known = {TrialId(number, replicate) for _, number, replicate in concluded.index}
    if known.issuperset(candidates) and ledger.next({}) is None:
        return trials  # and the state of those that come after them is left alone
    planned = _Candidates(of)
    BatchSizeRun(
        ledger,
        plan.layouts[batch_size],
        session.engine,
        session.folder,
        trials=planned,
        report=report,
        begins=functools.partial(
            planning.begin, side, batch_size, session.conditions, session.folder
        ),
        held=session.held,
    ).run()
    return ledger.trials(planned.hyperparameters, planned.origin)


def tables_of(folder: StudyFolder, batch_size: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The measurements and the trials of one batch size."""
    measurements, trials = (
        table.loc[table.index.get_level_values("batch_size") == batch_size]
        for table in folder.tables()
    )
    return measurements, trials
