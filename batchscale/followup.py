"""Trials after the search: the leading settings again, kept beside the study's own tables."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pandas as pd

from batchscale import tuner
from batchscale.engine import Engine
from batchscale.ledger import Ledger, Question
from batchscale.packs import TrialId
from batchscale.plan import Plan
from batchscale.records import TRIAL_COLUMNS, Origin, Records
from batchscale.runner import BatchSizeRun, Progress
from batchscale.stopping import StopRule, evaluation_grid

FOLDER = "confirm"
"""Where, in the folder of a study, its confirmation is."""

_FORMAT = 1


def confirm(
    plan: Plan,
    engine: Engine,
    side: Records,
    report: Callable[[Progress], None],
    *,
    trials: pd.DataFrame,
    best: Mapping[int, float],
    settings: int,
    selection_seeds: int,
    seeds: int,
    patience: float,
) -> None:
    """Runs the leading settings under fresh seeds, then the one with the least median under others.

    Args:
      plan: of the study.
      engine: trains and measures.
      side: the folder of the confirmation.
      report: told of every evaluation.
      trials: of the study.
      best: steps to target of the study, by batch size; one that is inf is passed over.
      settings: how many are compared at each batch size.
      selection_seeds: under which they are compared.
      seeds: under which the chosen one is reported.
      patience: a run ends after so many times the steps of the best.
    """
    lead = tuner.leading(trials, settings)
    names = [name for name in trials.columns if name not in TRIAL_COLUMNS]
    values = {
        (batch_size, number): row
        for (batch_size, number, _), row in zip(
            lead.index, lead[names].to_dict("records"), strict=True
        )
    }
    compared: dict[int, list[int]] = {}
    for batch_size, number in values:
        compared.setdefault(batch_size, []).append(number)
    side.write_plan(
        {
            "format": _FORMAT,
            "settings": {str(size): numbers for size, numbers in compared.items()},
            "selection_seeds": selection_seeds,
            "seeds": seeds,
            "patience": patience,
        }
    )
    for batch_size, steps in best.items():
        if math.isinf(steps):
            continue
        limit = patience * steps
        first = [TrialId(n, r + 1) for n in compared[batch_size] for r in range(selection_seeds)]

        def comparing(progress: Progress) -> None:
            report(dataclasses.replace(progress, finished=False))

        _run(plan, engine, side, comparing, values, batch_size, first, limit)
        runs = _of(side, batch_size)[1].loc[[(batch_size, *trial) for trial in first]]
        chosen = int(tuner.by_median(runs)["trial"].iloc[0])
        fresh = [TrialId(chosen, selection_seeds + 1 + r) for r in range(seeds)]

        def reporting(progress: Progress, size: int = batch_size, ids=tuple(fresh)) -> None:
            if progress.finished:
                runs = _of(side, size)[1].loc[[(size, *trial) for trial in ids]]
                median = tuner.middle(np.sort(tuner.steps_of(runs)))
                progress = dataclasses.replace(progress, steps=median, trials=seeds)
            report(progress)

        _run(plan, engine, side, reporting, values, batch_size, [*first, *fresh], limit)
    side.compact()


def _run(
    plan: Plan,
    engine: Engine,
    side: Records,
    report: Callable[[Progress], None],
    values: Mapping[tuple[int, int], Mapping[str, Any]],
    batch_size: int,
    candidates: list[TrialId],
    limit: float,
) -> None:
    """Trains these trials until each is past the goal, or the limit is."""
    definition = plan.definition
    grid = evaluation_grid(
        definition.max_steps[batch_size],
        definition.evaluation_spacing,
        budgets=definition.earlier_budgets.get(batch_size, ()),
    )
    last = next((step for step in grid if step >= limit), grid[-1])
    question = Question(
        batch_size=batch_size,
        trials=len(candidates),
        max_infeasible=0,
        grid=[step for step in grid if step <= last],
        goal=definition.goal,
        rule=StopRule.of("all"),
        exact=False,
        candidates=tuple(candidates),
    )
    BatchSizeRun(
        Ledger(question, *_of(side, batch_size)),
        plan.layouts[batch_size],
        engine,
        side,
        hyperparameters=lambda trial: values[batch_size, trial.number],
        origin=lambda _: Origin.CONFIRM,
        report=report,
    ).run()


def _of(side: Records, batch_size: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The measurements and the trials of one batch size."""
    measurements, trials = (
        table.loc[table.index.get_level_values("batch_size") == batch_size]
        for table in side.tables()
    )
    return measurements, trials
