"""A plan, carried out: every batch size in turn."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pandas as pd

from batchscale import records
from batchscale.engine import autotune
from batchscale.engine.engine import Engine
from batchscale.engine.packs import TrialId
from batchscale.metrics import BOUNDS, Goal, with_goal
from batchscale.plan import Plan
from batchscale.records import Origin, Records, Status
from batchscale.runner.batch_size import BatchSizeRun, Progress
from batchscale.runner.ledger import Ledger, Question
from batchscale.stopping import StopRule, evaluation_grid

# Replacements of diverged trials are planned so many at a time: each time the plan is written.
_REPLACEMENTS = 16


def run(
    plan: Plan,
    engine: Engine,
    folder: Records,
    report: Callable[[Progress], None],
    conditions: Mapping[str, Any],
    *,
    probe: bool = False,
) -> None:
    """Runs what is left of a plan, and writes it into the folder.

    Args:
      plan: what is measured; its trials are extended in place of those that diverge.
      engine: trains and measures.
      folder: the study's.
      report: told of every evaluation.
      conditions: what trials run under here; written into the plan of the batch sizes that do.
      probe: whether lanes are timed before the first step of a batch size.
    """
    measurements, trials = folder.tables()

    def begins(batch_size: int) -> None:
        if records.runs_under(plan.conditions, batch_size, conditions):
            folder.write_plan(plan.to_json())

    runs = [
        _batch_size_run(batch_size, plan, engine, folder, measurements, trials, report, begins)
        for batch_size in plan.definition.batch_sizes
    ]
    for now, following in zip(runs, [*runs[1:], None], strict=True):
        if not now.has_begun:
            plan.conditions.pop(now.batch_size, None)
            chosen = plan.layouts[now.batch_size]
            if not probe:
                engine.compile_ahead(now.batch_size, chosen)
            plan.layouts[now.batch_size] = now.settle(
                lambda layout, hyperparameters, now=now: autotune.settle(
                    engine,
                    now.batch_size,
                    layout,
                    hyperparameters,
                    trials=plan.definition.trials,
                    probe=probe,
                )
            )
            if plan.layouts[now.batch_size] != chosen:
                folder.write_plan(plan.to_json())
        now.run(following)
    folder.compact()


def warn_of_misses(
    steps: pd.DataFrame, measurements: pd.DataFrame, trials: pd.DataFrame, goal: Goal
) -> None:
    """Warns of batch sizes that say nothing: none reached the goal, or all began beyond it.

    Args:
      steps: the steps to target.
      measurements: of the study.
      trials: likewise.
      goal: the study's.
    """
    at_once = steps.loc[steps["steps"] == 0, "batch_size"].tolist()
    if at_once:
        warnings.warn(
            f"{goal} held before the first step at batch size {', '.join(map(str, at_once))}: "
            "choose a harder goal.",
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


def _never_numbers(measurements: pd.DataFrame) -> list[str]:
    """The metrics that are NaN wherever others of their split were measured."""
    found = []
    metrics = [name for name in measurements if not str(name).endswith(BOUNDS)]
    for split in dict.fromkeys(str(name).partition("/")[0] for name in metrics):
        own = measurements[[name for name in metrics if str(name).startswith(f"{split}/")]]
        seen = own.loc[own.notna().any(axis=1)]
        found += [str(name) for name in own if len(seen) and seen[name].isna().all()]
    return found


def _batch_size_run(
    batch_size: int,
    plan: Plan,
    engine: Engine,
    folder: Records,
    measurements: pd.DataFrame,
    trials: pd.DataFrame,
    report: Callable[[Progress], None],
    begins: Callable[[int], None],
) -> BatchSizeRun:
    definition = plan.definition
    grid = evaluation_grid(
        definition.max_steps[batch_size],
        definition.evaluation_spacing,
        budgets=definition.earlier_budgets.get(batch_size, ()),
    )
    exact = definition.curves == "exact"
    question = Question(
        batch_size=batch_size,
        trials=definition.trials,
        max_infeasible=definition.max_infeasible,
        grid=grid,
        goal=definition.goal,
        rule=StopRule.of(definition.stop),
        exact=exact,
        others=plan.others(batch_size, grid, bounds=engine.bounded and not exact),
    )

    def hyperparameters(trial: TrialId) -> Mapping[str, float]:
        if trial.number >= len(plan.rows[batch_size]):
            some = -(-(trial.number + 1) // _REPLACEMENTS) * _REPLACEMENTS
            plan.extend(batch_size, some, Origin.TOPUP)
            folder.write_plan(plan.to_json())
        return plan.rows[batch_size][trial.number]["hyperparameters"]

    def origin(trial: TrialId) -> Origin:
        return Origin(plan.rows[batch_size][trial.number]["origin"])

    measurements = measurements.query("batch_size == @batch_size")
    trials = trials.query("batch_size == @batch_size")
    bound = definition.goal.bound
    bounded = bound in measurements and bool(measurements[bound].notna().to_numpy().any())
    if question.exact and bounded:
        # Bounds were enough before: the batch size is measured again, from its beginning.
        folder.drop([batch_size])
        measurements, trials = measurements.iloc[:0], trials.iloc[:0]
    ledger = Ledger(question, measurements, trials)
    return BatchSizeRun(
        ledger,
        plan.layouts[batch_size],
        engine,
        folder,
        hyperparameters=hyperparameters,
        origin=origin,
        report=report,
        begins=lambda: begins(batch_size),
    )
