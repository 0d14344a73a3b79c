"""The leading settings of a study, run again under fresh seeds."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from batchscale.engine.packs import TrialId
from batchscale.records import TRIAL_COLUMNS, Origin
from batchscale.runner import candidates, planning
from batchscale.runner.candidates import Candidate
from batchscale.runner.progress import Progress
from batchscale.runner.session import Session
from batchscale.stored.followups import ConfirmationPlan
from batchscale.tuner import medians

Settings = Mapping[tuple[int, int], Mapping[str, float]]
"""The hyperparameters of trials, by batch size and number."""


def confirm(session: Session, plan: ConfirmationPlan, values: Settings) -> None:
    """Runs the leading settings under fresh seeds, then the one with the least median under others.

    Args:
      session: of the folder of the confirmation.
      plan: from `planned`.
      values: likewise.
    """
    for batch_size in plan.settings:
        confirm_batch_size(session, plan, batch_size, values)
    session.folder.compact()


def planned(
    session: Session,
    *,
    trials: pd.DataFrame,
    best: Mapping[int, float],
    settings: int,
    selection_seeds: int,
    seeds: int,
    patience: float,
) -> tuple[ConfirmationPlan, Settings]:
    """What `confirm` runs, written into the folder; and the hyperparameters of all trials.

    Args:
      session: of the folder of the confirmation.
      trials: of the study, refined ones too.
      best: steps to target of the study, by batch size; one that is inf is passed over.
      settings: how many are compared at each batch size.
      selection_seeds: under which they are compared.
      seeds: under which the chosen one is reported.
      patience: a run ends after so many times the steps of the best.
    """
    compared: dict[int, list[int]] = {}
    for batch_size, number, _ in medians.leading(trials, settings).index:
        # Where only trials that diverged later got there, there is no setting to take over.
        if math.isfinite(best[batch_size]):
            compared.setdefault(batch_size, []).append(number)
    found = session.folder.read_plan()
    where = str(session.folder.folder / "plan.json")
    known = None if found is None else ConfirmationPlan.from_json(found, where)
    plan = ConfirmationPlan(
        settings=compared,
        selection_seeds=selection_seeds,
        seeds=seeds,
        best={size: best[size] for size in compared},
        limits={size: patience * best[size] for size in compared},
        conditions={} if known is None else known.conditions,
    )
    session.folder.write_plan(plan.to_json())
    names = [name for name in trials.columns if name not in TRIAL_COLUMNS]
    # Of all trials: what was confirmed before may no longer lead.
    values: Settings = {
        (batch_size, number): {str(name): value for name, value in row.items()}
        for (batch_size, number, _), row in zip(
            trials.index, trials[names].to_dict("records"), strict=True
        )
    }
    return plan, values


def confirm_batch_size(
    session: Session, plan: ConfirmationPlan, batch_size: int, values: Settings
) -> None:
    """Runs the settings of one batch size, and then the best of them, as `confirm` does.

    Args:
      session: of the folder of the confirmation.
      plan: of the confirmation.
      batch_size: one of the plan's.
      values: the hyperparameters of its settings.
    """
    _BatchSize(session, plan, batch_size, values).run()


@dataclasses.dataclass(frozen=True)
class _BatchSize:
    """The confirmation of one batch size.

    Attributes:
      session: of the folder of the confirmation.
      plan: of the confirmation.
      batch_size: examples a step.
      values: of the settings.
    """

    session: Session
    plan: ConfirmationPlan
    batch_size: int
    values: Settings

    def run(self) -> None:
        """Compares the settings, chooses one, and runs it under seeds of its own."""
        plan, size = self.plan, self.batch_size
        tables = candidates.tables_of(self.session.folder, size)
        anew = bool(planning.measured_again(self.session.plan.definition, tables[0]))
        if anew:
            plan.conditions.pop(size, None)
            self.session.say(
                f"batch size {size:,}: of its confirmation there are bounds alone, and curves are "
                "exact: it is measured again"
            )
        compared = [
            TrialId(number, 1 + seed)
            for number in plan.settings[size]
            for seed in range(plan.selection_seeds)
        ]
        self._run(compared, anew=anew)
        runs = medians.within(self._runs(compared), plan.limits[size])
        chosen = int(medians.by_median(runs)["trial"].iloc[0])
        fresh = [TrialId(chosen, plan.selection_seeds + 1 + seed) for seed in range(plan.seeds)]
        self._run([*compared, *fresh], reported=fresh)

    def _run(
        self, trials: Sequence[TrialId], reported: Sequence[TrialId] = (), *, anew: bool = False
    ) -> None:
        def report(progress: Progress) -> None:
            if progress.finished and reported:
                steps = np.sort(medians.steps_of(self._runs(reported)))
                progress = dataclasses.replace(
                    progress, steps=medians.middle(steps), trials=len(reported)
                )
            elif progress.finished:  # of the comparison alone
                progress = dataclasses.replace(progress, finished=False)
            self.session.report(progress)

        def of(trial: TrialId) -> Candidate:
            return Candidate(self.values[self.batch_size, trial.number], Origin.CONFIRM)

        limit = self.plan.limits[self.batch_size]
        candidates.run(
            self.session, self.plan, self.batch_size, trials, of, limit, report, anew=anew
        )

    def _runs(self, trials: Sequence[TrialId]) -> pd.DataFrame:
        """The rows of trials."""
        table = candidates.tables_of(self.session.folder, self.batch_size)[1]
        return table.loc[[(self.batch_size, *trial) for trial in trials]]
