"""A plan, carried out: every batch size in turn."""

from __future__ import annotations

import dataclasses
import functools
import warnings
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from batchscale.engine import autotune
from batchscale.engine.autotune import Rehearsal
from batchscale.engine.packs import TrialId
from batchscale.metrics import BOUNDS, Goal, with_goal
from batchscale.plan import Plan
from batchscale.records import Origin, Status, StudyFolder
from batchscale.runner import planning
from batchscale.runner.batch_size import BatchSizeRun
from batchscale.runner.ledger import BatchSizeSpec, Ledger
from batchscale.runner.session import Session
from batchscale.stopping import StopRule

# Replacements of diverged trials are planned so many at a time: each time the plan is written.
_REPLACEMENTS = 16


def run(session: Session, *, probe: bool = False) -> None:
    """Runs what is left of a plan, and writes it into the folder.

    Args:
      session: the plan, whose trials are extended in place of those that diverge; what trains, and
        where it is written.
      probe: whether lanes are timed before the first step of a batch size.
    """
    plan, engine = session.plan, session.engine
    measurements, trials = session.folder.tables()
    anew = planning.measured_again(plan.definition, measurements)
    runs = [
        _batch_size_run(session, size, measurements, trials, anew=size in anew)
        for size in plan.definition.batch_sizes
    ]
    for now, following in zip(runs, [*runs[1:], None], strict=True):
        if not now.has_begun:
            batch_size = now.batch_size
            plan.conditions.pop(batch_size, None)
            chosen = plan.layouts[batch_size]
            if not probe:
                engine.compile_ahead(batch_size, chosen)
            rehearsal = Rehearsal(
                engine, batch_size, now.values, plan.definition.trials, engine.group
            )
            now.layout, finding = autotune.final_layout(rehearsal, chosen, probe=probe)
            if finding:
                plan.layouts[batch_size], plan.findings[batch_size] = now.layout, finding
                session.folder.write_plan(plan.to_json())
        now.run(following)
    session.folder.compact()


def warn_of_misses(
    steps: pd.DataFrame, measurements: pd.DataFrame, trials: pd.DataFrame, goal: Goal
) -> None:
    """Warns of batch sizes that say nothing: none reached the goal, or all began beyond it.

    Args:
      steps: the steps to target.
      measurements: of the study.
      trials: of the study.
      goal: the study's.
    """
    at_once = steps.loc[steps["steps"] == 0, "batch_size"].tolist()
    if at_once:
        warnings.warn(
            f"{goal} held before the first step at batch size {', '.join(map(str, at_once))}: "
            f"choose a harder goal{_other_mode(goal)}.",
            stacklevel=4,
        )
    status = trials["status"].groupby(level="batch_size")
    dead = [size for size, words in status if set(words) == {Status.INFEASIBLE}]
    if dead:
        warnings.warn(
            f"all of the {len(trials.loc[dead])} trials diverged at batch size "
            f"{', '.join(map(str, dead))}. Search lower learning rates, and make sure that the "
            "data and the loss are finite.",
            stacklevel=4,
        )
    never = _never_numbers(measurements)
    if never:
        warnings.warn(
            f"{', '.join(never)}: not a number in any evaluation. If it is the loss, nothing was "
            "trained by it: labels may be out of range (the `classes` of a Workload checks them), "
            "or it overflows.",
            stacklevel=4,
        )
    missed = steps.loc[np.isinf(steps["steps"]), "batch_size"]
    missed = [size for size in missed.tolist() if size not in dead]
    if not missed:
        return
    best = "nothing finite was measured"
    some = with_goal(measurements, goal)[goal.metric]
    some = some.loc[some.index.get_level_values("batch_size").isin(missed)]
    if some.notna().any():
        best = f"the best value there was {some.min() if goal.mode == 'min' else some.max():.4g}"
    warnings.warn(
        f"no trial reached {goal} at batch size {', '.join(map(str, missed))}; {best}. "
        "Their steps are inf; a goal has to be passed strictly. Choose an easier goal, or extend "
        "the study: more max_steps, or more trials.",
        stacklevel=4,
    )


def _other_mode(goal: Goal) -> str:
    """What else may be wrong with a goal that held from the start."""
    return ", or mode='max' if more of it is better" if goal.mode == "min" else ""


def _never_numbers(measurements: pd.DataFrame) -> list[str]:
    """The metrics that are NaN wherever others of their split were measured."""
    found = []
    metrics = [name for name in measurements if not str(name).endswith(BOUNDS)]
    for split in dict.fromkeys(str(name).partition("/")[0] for name in metrics):
        own = measurements[[name for name in metrics if str(name).startswith(f"{split}/")]]
        seen = own.loc[own.notna().any(axis=1)]
        found += [str(name) for name in own if len(seen) and seen[name].isna().all()]
    return found


@dataclasses.dataclass(frozen=True)
class _Searched:
    """The trials of the search at a batch size, and those that take the place of diverged ones."""

    plan_of_study: Plan
    batch_size: int
    folder: StudyFolder

    def plan(self, trials: Sequence[TrialId]) -> None:
        last = max(trial.number for trial in trials)
        if last >= len(self.plan_of_study.rows[self.batch_size]):
            some = -(-(last + 1) // _REPLACEMENTS) * _REPLACEMENTS
            self.plan_of_study.extend(self.batch_size, some, Origin.TOPUP)
            self.folder.write_plan(self.plan_of_study.to_json())

    def hyperparameters(self, trial: TrialId) -> Mapping[str, float]:
        return self.plan_of_study.rows[self.batch_size][trial.number]["hyperparameters"]

    def origin(self, trial: TrialId) -> Origin:
        return Origin(self.plan_of_study.rows[self.batch_size][trial.number]["origin"])


def spec_of(plan: Plan, batch_size: int, *, bounded: bool) -> BatchSizeSpec:
    """What a plan asks of a batch size.

    Args:
      plan: of the study.
      batch_size: one of its own.
      bounded: whether evaluations can be bounds, as of `Engine.bounded`.
    """
    definition, grid = plan.definition, plan.definition.grid(batch_size)
    exact = definition.curves == "exact"
    return BatchSizeSpec(
        batch_size=batch_size,
        trials=definition.trials,
        max_infeasible=definition.max_infeasible,
        grid=grid,
        goal=definition.goal,
        rule=StopRule.of(definition.stop),
        exact=exact,
        others=plan.others(batch_size, grid, bounds=bounded and not exact),
    )


def _batch_size_run(
    session: Session,
    batch_size: int,
    measurements: pd.DataFrame,
    trials: pd.DataFrame,
    *,
    anew: bool,
) -> BatchSizeRun:
    plan = session.plan
    spec = spec_of(plan, batch_size, bounded=session.engine.bounded)
    measurements = measurements.query("batch_size == @batch_size")
    trials = trials.query("batch_size == @batch_size")
    if anew:
        measurements, trials = measurements.iloc[:0], trials.iloc[:0]
    return BatchSizeRun(
        Ledger(spec, measurements, trials),
        plan.layouts[batch_size],
        session.engine,
        session.folder,
        trials=_Searched(plan, batch_size, session.folder),
        report=session.report,
        begins=functools.partial(
            planning.begin, plan, batch_size, session.conditions, session.folder
        ),
        held=session.held,
        anew=anew,
    )
