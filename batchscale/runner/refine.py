"""A search that goes on around the leading trials of a study, and beyond an edge they crowd."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from batchscale import tuner
from batchscale.engine.packs import TrialId
from batchscale.records import Origin, StudyFolder
from batchscale.runner import candidates
from batchscale.runner.candidates import Candidate, Job
from batchscale.runner.session import Session
from batchscale.stored import opening
from batchscale.stored.followups import FIRST_REFINED, RefinementPlan
from batchscale.tuner import SearchSpace, refining


def refine(
    session: Session,
    *,
    trials: pd.DataFrame,
    best: Mapping[int, float],
    rounds: int,
    trials_a_round: int,
    until: float,
    patience: float,
    elsewhere: Callable[[RefinementPlan, Sequence[Job]], Any] | None = None,
) -> None:
    """Searches around the leading trials of every batch size, and beyond an edge that they crowd.

    Args:
      session: of the folder of the refinement.
      trials: of the study.
      best: steps to target of the study, by batch size; one that is inf is passed over.
      rounds: at most; every batch size takes part in each, for equal effort.
      trials_a_round: at each batch size.
      until: no more rounds once, at every batch size, no edge is crowded and the leading trials
        spread over no more than this share of each range.
      patience: a trial ends after so many times the steps of the best.
      elsewhere: runs the trials of a round, where the engine does not.
    """
    side = session.folder
    found = side.read_plan()
    where = str(side.folder / "plan.json")
    plan = RefinementPlan() if found is None else RefinementPlan.from_json(found, where)
    for number in range(rounds):
        is_new = number == len(plan.rounds)
        planned = {} if is_new else plan.rounds[number]
        # Of an older round those that an extension has brought since.
        sizes = [size for size in best if math.isfinite(best[size]) and size not in planned]
        boxes = _boxes(session, plan, trials, sizes)
        if is_new and number and all(box.is_done(until) for box in boxes.values()):
            break
        if is_new:
            plan.rounds.append(planned)
        for size, box in boxes.items():
            planned[size] = {
                "origin": str(Origin.EXPAND if box.beyond else Origin.REFINE),
                "space": box.space.to_json(),
                "trials": tuner.plan(
                    box.space,
                    batch_size=size,
                    trials=trials_a_round,
                    # Another part of the space's own sequence would do as well.
                    seed=session.plan.definition.seed + 1 + number,
                ).to_dict("records"),
            }
        if boxes or is_new:
            side.write_plan(plan.to_json())
        so_far = RefinementPlan(plan.rounds[: number + 1])
        jobs = []
        for size, steps in best.items():
            asked = [TrialId(FIRST_REFINED + i) for i in range(len(so_far.trials(size)))]
            of = functools.partial(_candidate, plan.trials(size))
            if asked:
                jobs.append(Job(size, asked, of, patience * steps))
        if elsewhere is not None:
            elsewhere(plan, jobs)
            continue
        for size, asked, of, limit, _ in jobs:
            candidates.run(session, plan, size, asked, of, limit, session.report)
    side.compact()


def _candidate(planned: Sequence[tuple[Mapping[str, float], str]], trial: TrialId) -> Candidate:
    hyperparameters, origin = planned[trial.number - FIRST_REFINED]
    return Candidate(hyperparameters, Origin(origin))


@dataclasses.dataclass(frozen=True)
class _Box:
    """Where a batch size is searched further.

    Attributes:
      space: that is searched.
      beyond: whether it lies beyond an edge of the space before.
      spread: of the leading trials, as a share of each range.
    """

    space: SearchSpace
    beyond: bool
    spread: float

    def is_done(self, until: float) -> bool:
        return not self.beyond and self.spread <= until


def _boxes(
    session: Session, plan: RefinementPlan, trials: pd.DataFrame, sizes: list[int]
) -> dict[int, _Box]:
    """Where batch sizes are searched next, by what their trials have found so far."""
    known = pd.concat([trials, session.folder.tables()[1]]) if sizes else trials
    boxes = {}
    for size in sizes:
        own = known.loc[known.index.get_level_values("batch_size") == size]
        try:
            boxes[size] = _box(session.plan.definition.spaces[size], own, plan, size)
        except ValueError as error:
            raise ValueError(f"batch size {size}: {error}") from None
    return boxes


def _box(space: SearchSpace, trials: pd.DataFrame, plan: RefinementPlan, batch_size: int) -> _Box:
    trials = refining.looked_at(space, trials)
    for part in plan.rounds:
        if part.get(batch_size, {}).get("origin") == Origin.EXPAND:
            space = refining.united(space, SearchSpace.from_json(part[batch_size]["space"]))
    expanded = tuner.expand(space, trials)
    return _Box(
        expanded or tuner.refine(space, trials), expanded is not None, tuner.spread(space, trials)
    )


def refined_values(folder: Path | None, batch_size: int, number: int) -> dict[str, float]:
    """The hyperparameters of a refined trial.

    Raises:
      ValueError: there is none of this number.
    """
    rows: list[tuple[dict[str, float], str]] = []
    if folder is not None:
        with StudyFolder.open(folder, write=False) as stored:
            plan = opening.plan(stored)
            found = None if plan is None else opening.refinement(stored, plan)
        rows = [] if found is None else found.plan.trials(batch_size)
    if number - FIRST_REFINED >= len(rows):
        raise ValueError(
            f"trial: got {number}, the number of a refined trial, wanted one of the "
            f"{len(rows)} at batch size {batch_size}, and the folder of their study."
        )
    return rows[number - FIRST_REFINED][0]
