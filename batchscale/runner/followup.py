"""Trials after the search, kept beside the study's own tables: refined ones, and reruns."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pandas as pd

from batchscale import records, tuner
from batchscale.engine.engine import Engine
from batchscale.engine.packs import HyperparametersOf, TrialId
from batchscale.plan import Plan
from batchscale.records import TRIAL_COLUMNS, Origin, Records, Status
from batchscale.runner.batch_size import BatchSizeRun, Progress
from batchscale.runner.ledger import Ledger, Question
from batchscale.stopping import StopRule, evaluation_grid
from batchscale.stored import opening
from batchscale.stored.followups import FIRST_REFINED, ConfirmationPlan, RefinementPlan
from batchscale.tuner import SearchSpace


def confirm(
    plan: Plan,
    engine: Engine,
    side: Records,
    report: Callable[[Progress], None],
    conditions: Mapping[str, Any],
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
      conditions: what trials run under here; written down for the batch sizes that do.
      trials: of the study.
      best: steps to target of the study, by batch size; one that is inf is passed over.
      settings: how many are compared at each batch size.
      selection_seeds: under which they are compared.
      seeds: under which the chosen one is reported.
      patience: a run ends after so many times the steps of the best.
    """
    lead = tuner.leading(trials, settings)
    names = [name for name in trials.columns if name not in TRIAL_COLUMNS]
    # Of all trials: what was confirmed before may no longer lead.
    values: dict[tuple[int, int], Mapping[Any, Any]] = {
        (batch_size, number): row
        for (batch_size, number, _), row in zip(
            trials.index, trials[names].to_dict("records"), strict=True
        )
    }
    compared: dict[int, list[int]] = {}
    for batch_size, number, _ in lead.index:
        compared.setdefault(batch_size, []).append(number)
    # Where only trials that diverged later got there, there is no setting to take over.
    limits = {size: patience * best[size] for size in compared if math.isfinite(best[size])}
    found = side.read_plan()
    known = {}
    if found is not None:
        known = ConfirmationPlan.from_json(found, str(side.folder / "plan.json")).conditions
    asked = ConfirmationPlan(
        settings={size: compared[size] for size in limits},
        selection_seeds=selection_seeds,
        seeds=seeds,
        best={size: best[size] for size in limits},
        limits=limits,
        conditions=known,
    )
    side.write_plan(asked.to_json())
    for batch_size, limit in limits.items():
        first = [TrialId(n, r + 1) for n in compared[batch_size] for r in range(selection_seeds)]

        def of(trial: TrialId, size: int = batch_size) -> Mapping[str, Any]:
            return values[size, trial.number]

        def begins(size: int = batch_size) -> None:
            _begins(side, asked, size, conditions)

        def comparing(progress: Progress) -> None:
            report(dataclasses.replace(progress, finished=False))

        _run(plan, engine, side, comparing, of, batch_size, first, limit, begins)
        runs = _of(side, batch_size)[1].loc[[(batch_size, *trial) for trial in first]]
        chosen = int(tuner.by_median(tuner.within(runs, limit))["trial"].iloc[0])
        fresh = [TrialId(chosen, selection_seeds + 1 + r) for r in range(seeds)]

        def reporting(progress: Progress, size: int = batch_size, ids=tuple(fresh)) -> None:
            if progress.finished:
                runs = _of(side, size)[1].loc[[(size, *trial) for trial in ids]]
                median = tuner.middle(np.sort(tuner.steps_of(runs)))
                progress = dataclasses.replace(progress, steps=median, trials=seeds)
            report(progress)

        _run(plan, engine, side, reporting, of, batch_size, [*first, *fresh], limit, begins)
    side.compact()


def refine(
    plan: Plan,
    engine: Engine,
    side: Records,
    report: Callable[[Progress], None],
    conditions: Mapping[str, Any],
    *,
    trials: pd.DataFrame,
    best: Mapping[int, float],
    rounds: int,
    trials_a_round: int,
    until: float,
    patience: float,
) -> None:
    """Searches around the leading trials of every batch size, and beyond an edge that they crowd.

    Args:
      plan: of the study.
      engine: trains and measures.
      side: the folder of the refinement.
      report: told of every evaluation.
      conditions: what trials run under here; written down for the batch sizes that do.
      trials: of the study.
      best: steps to target of the study, by batch size; one that is inf is passed over.
      rounds: at most; every batch size takes part in each, for equal effort.
      trials_a_round: at each batch size.
      until: no more rounds once, at every batch size, no edge is crowded and the leading trials
        spread over no more than this share of each range.
      patience: a trial ends after so many times the steps of the best.
    """
    found = side.read_plan()
    stored = RefinementPlan()
    if found is not None:
        stored = RefinementPlan.from_json(found, str(side.folder / "plan.json"))
    for number in range(rounds):
        is_new = number == len(stored.rounds)
        planned = {} if is_new else stored.rounds[number]
        # Of an older round those that an extension has brought since.
        sizes = [size for size in best if math.isfinite(best[size]) and size not in planned]
        known = pd.concat([trials, side.tables()[1]]) if sizes else trials
        boxes = {}
        for size in sizes:
            try:
                space = plan.definition.spaces[size]
                candidates = tuner.looked_at(space, _of_size(known, size))
                boxes[size] = _box(space, candidates, stored, size)
            except ValueError as error:
                raise ValueError(f"batch size {size}: {error}") from None
        if is_new and number and all(box.is_done(until) for box in boxes.values()):
            break
        if is_new:
            stored.rounds.append(planned)
        for size, box in boxes.items():
            planned[size] = {
                "origin": str(Origin.EXPAND if box.beyond else Origin.REFINE),
                "space": box.space.to_json(),
                "trials": tuner.plan(
                    box.space,
                    batch_size=size,
                    trials=trials_a_round,
                    # Another part of the space's own sequence would do as well.
                    seed=plan.definition.seed + 1 + number,
                ).to_dict("records"),
            }
        if boxes or is_new:
            side.write_plan(stored.to_json())
        for size, steps in best.items():
            names = dict(enumerate(stored.trials(size), FIRST_REFINED))
            so_far = len(RefinementPlan(stored.rounds[: number + 1]).trials(size))
            if not so_far:
                continue
            _run(
                plan,
                engine,
                side,
                report,
                lambda trial, names=names: names[trial.number][0],
                size,
                [TrialId(FIRST_REFINED + i) for i in range(so_far)],
                patience * steps,
                lambda size=size: _begins(side, stored, size, conditions),
                origin=lambda trial, names=names: Origin(names[trial.number][1]),
            )
    side.compact()


@dataclasses.dataclass(frozen=True)
class _Box:
    """Where a batch size is searched further, and how far its leading trials are spread."""

    space: SearchSpace
    beyond: bool
    spread: float

    def is_done(self, until: float) -> bool:
        return not self.beyond and self.spread <= until


def _of_size(trials: pd.DataFrame, batch_size: int) -> pd.DataFrame:
    return trials.loc[trials.index.get_level_values("batch_size") == batch_size]


def _box(space: SearchSpace, trials: pd.DataFrame, stored: RefinementPlan, batch_size: int) -> _Box:
    searched = [
        SearchSpace.from_json(part[batch_size]["space"])
        for part in stored.rounds
        if part.get(batch_size, {}).get("origin") == Origin.EXPAND
    ]
    for other in searched:
        space = tuner.united(space, other)
    expanded = tuner.expand(space, trials)
    return _Box(
        expanded or tuner.refine(space, trials), expanded is not None, tuner.spread(space, trials)
    )


def refined_values(
    folder: str | os.PathLike[str] | None, batch_size: int, number: int
) -> dict[str, float]:
    """The hyperparameters of a refined trial.

    Raises:
      ValueError: there is none of this number.
    """
    rows: list[tuple[dict[str, float], str]] = []
    if folder is not None:
        with Records.open(folder, write=False) as stored:
            plan = opening.plan(stored)
            found = None if plan is None else opening.refinement(stored, plan)
        rows = [] if found is None else found.plan.trials(batch_size)
    if number - FIRST_REFINED >= len(rows):
        raise ValueError(
            f"trial: got {number}, the number of a refined trial, wanted one of the "
            f"{len(rows)} at batch size {batch_size}, and the folder of their study."
        )
    return rows[number - FIRST_REFINED][0]


def _run(
    plan: Plan,
    engine: Engine,
    side: Records,
    report: Callable[[Progress], None],
    hyperparameters: HyperparametersOf,
    batch_size: int,
    candidates: list[TrialId],
    limit: float,
    begins: Callable[[], None],
    *,
    origin: Callable[[TrialId], Origin] = lambda _: Origin.CONFIRM,
) -> None:
    """Trains these trials until each is past the goal, or the limit is; not those that are done."""
    definition = plan.definition
    grid = evaluation_grid(
        definition.max_steps[batch_size],
        definition.evaluation_spacing,
        budgets=definition.earlier_budgets.get(batch_size, ()),
    )
    last = next((step for step in grid if step >= limit), grid[-1])
    grid = [step for step in grid if step <= last]
    question = Question(
        batch_size=batch_size,
        trials=len(candidates),
        max_infeasible=0,
        grid=grid,
        goal=definition.goal,
        rule=StopRule.of("all"),
        exact=False,
        others=plan.others(batch_size, grid, bounds=engine.bounded),
        candidates=tuple(candidates),
    )
    measurements, trials = _of(side, batch_size)
    ledger = Ledger(question, measurements, trials)
    concluded = trials.loc[(trials["status"] != Status.INCOMPLETE).to_numpy()]
    known = {TrialId(number, replicate) for _, number, replicate in concluded.index}
    if known.issuperset(candidates) and not ledger.behind(last, -1):
        return  # and the state of those that come after them is left alone
    BatchSizeRun(
        ledger,
        plan.layouts[batch_size],
        engine,
        side,
        hyperparameters=hyperparameters,
        origin=origin,
        report=report,
        begins=begins,
    ).run()


def _begins(
    side: Records,
    plan: ConfirmationPlan | RefinementPlan,
    batch_size: int,
    conditions: Mapping[str, Any],
) -> None:
    if records.runs_under(plan.conditions, batch_size, conditions):
        side.write_plan(plan.to_json())


def _of(side: Records, batch_size: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The measurements and the trials of one batch size."""
    measurements, trials = (
        table.loc[table.index.get_level_values("batch_size") == batch_size]
        for table in side.tables()
    )
    return measurements, trials
