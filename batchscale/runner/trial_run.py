"""One trial, run by itself: its curve and its parameters."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import pandas as pd
from jax.sharding import Mesh
from jaxtyping import PyTree

from batchscale import records
from batchscale.engine.engine import Engine, Training
from batchscale.engine.layout import Layout
from batchscale.engine.packs import TrialId, stacked, unpack
from batchscale.metrics import Goal
from batchscale.plan import Definition, Plan
from batchscale.records import Origin, StudyFolder
from batchscale.runner import planning
from batchscale.stopping import evaluation_grid, whole_steps
from batchscale.stored import opening


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A trial at one of its steps.

    Attributes:
      step: after so many.
      params: the parameters, host arrays.
      model_state: what the model keeps besides.
    """

    step: int
    params: PyTree = dataclasses.field(repr=False)  # which may be millions of numbers
    model_state: PyTree = dataclasses.field(repr=False)


@dataclasses.dataclass(frozen=True)
class TrialRun:
    """One trial, run by itself.

    Attributes:
      curve: the measurements, as in `Result.measurements`.
      params: the parameters after the last step, host arrays.
      model_state: what the model keeps besides.
      hyperparameters: of the trial, by name.
      diverged: whether the parameters, the optimizer's state or the loss stopped being finite.
      checkpoints: one for each of the steps that were asked for, up to where it diverged.
    """

    curve: pd.DataFrame
    params: PyTree = dataclasses.field(repr=False)
    model_state: PyTree = dataclasses.field(repr=False)
    hyperparameters: Mapping[str, float]
    diverged: bool
    checkpoints: Sequence[Checkpoint] = ()


class PlannedTrial(NamedTuple):
    """A trial of a study that is to be run again.

    Attributes:
      training: what is trained.
      definition: of the study.
      mesh: where.
      batch_size: of the trial.
      id: which.
      layout: how it was packed.
      hyperparameters: by name.
      measured: how many examples of every split are measured.
    """

    training: Training
    definition: Definition
    mesh: Mesh
    batch_size: int
    id: TrialId
    layout: Layout
    hyperparameters: Mapping[str, float]
    measured: Mapping[str, int]


class StoredTrial(NamedTuple):
    """What the folder of a study says of a trial that is run again.

    Attributes:
      layout: how it was packed.
      hyperparameters: as they were drawn there; None where it was not planned.
      measured: how many examples of every split were measured; None where that is asked otherwise.
      budgets: of its batch size, the earlier ones first.
      mixes_examples: whether the loss of an example depends on the others of its batch.
    """

    layout: Layout
    hyperparameters: Mapping[str, float] | None
    measured: Mapping[str, int] | None
    budgets: tuple[int, ...]
    mixes_examples: bool | None


def stored(
    folder: Path,
    training: Training,
    definition: Definition,
    mesh: Mesh,
    batch_size: int,
    trial: TrialId,
) -> StoredTrial:
    """Looks a trial up in the folder of its study.

    Args:
      folder: of the study.
      training: what is trained.
      definition: of the study.
      mesh: where the trial is run.
      batch_size: of the trial.
      trial: which.

    Raises:
      FileNotFoundError: there is no study.
      ValueError: it is another study, or one of another type of floats, or without the batch size.
      DamagedError: its plan was changed since it was written.
    """
    with StudyFolder.open(folder, write=False) as held:
        plan = opening.plan(held)
    if plan is None:
        raise FileNotFoundError(f"{folder}: no plan.json. Give the folder of the study.")
    # What is measured besides the goal's split changes no trial.
    alike = dataclasses.replace(
        definition,
        workload=training.workload.title(),
        evaluate=plan.definition.evaluate,
    )
    planning.same_study(plan, training, alike, mesh, folder)
    if batch_size not in plan.layouts:
        raise ValueError(
            f"{folder}: its study has no batch size {batch_size}; wanted one of "
            f"{', '.join(map(str, sorted(plan.layouts)))}."
        )
    rows = plan.rows[batch_size]
    return StoredTrial(
        plan.layouts[batch_size],
        rows[trial.number]["hyperparameters"] if trial.number < len(rows) else None,
        plan.measured if plan.definition.evaluate == definition.evaluate else None,
        (
            *plan.definition.earlier_budgets.get(batch_size, ()),
            plan.definition.max_steps[batch_size],
        ),
        plan.mixes_examples,
    )


def drawn(definition: Definition, batch_size: int, number: int) -> Mapping[str, float]:
    """The hyperparameters that the search of a study draws for a trial."""
    plan = Plan(definition, {})
    plan.extend(batch_size, number + 1, Origin.PLAN)
    return plan.rows[batch_size][number]["hyperparameters"]


def run_trial(
    engine: Engine,
    definition: Definition,
    batch_size: int,
    trial: TrialId,
    *,
    layout: Layout,
    values: Mapping[str, float],
    steps: int | Sequence[int] | None = None,
    until: Goal | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> TrialRun:
    """Runs one trial of a study.

    Args:
      engine: trains and measures.
      definition: the study.
      batch_size: one of the study's.
      trial: which.
      layout: how it was packed.
      values: its hyperparameters.
      steps: how many, or several at which its parameters are wanted, in increasing order; by
        default until it is past the goal, or its budget is spent.
      until: it ends as soon as it is past this, at the latest after `steps`.
      say: told how far it is.
    """
    wanted = list(steps) if isinstance(steps, Sequence) else []
    if steps is None:
        budget, until = definition.max_steps[batch_size], until or definition.goal
    else:
        budget = wanted[-1] if isinstance(steps, Sequence) else steps
    packs = engine.start([trial], stacked([values]), batch_size=batch_size, layout=layout)
    rows: dict[tuple[int, ...], dict[str, float]] = {}
    checkpoints = []
    diverged = False
    goal = definition.goal
    whole = whole_steps(definition.grid(batch_size))
    at, crossed = 0, False
    ends = {*wanted, *definition.earlier_budgets.get(batch_size, ())}
    ends = sorted(end for end in ends if end < budget)
    for step in evaluation_grid(budget, definition.evaluation_spacing, budgets=ends):
        engine.advance(packs, batch_size=batch_size, layout=layout, step=at, to=step)
        at = step
        found = engine.measure(packs, engine.splits, layout=layout)
        crossed |= bool(goal.reached(found.rows[trial][goal.metric]))
        diverged = trial in found.diverged
        if trial in found.not_finite:  # and heard by the study, which might have had bounds
            diverged |= crossed or not engine.bounded or step in whole
        if diverged:
            break
        rows[batch_size, *trial, step] = found.rows[trial]
        say(f"trial {trial.number} of batch size {batch_size:,}: step {step:,} of {budget:,}")
        if step in wanted:
            checkpoints.append(Checkpoint(step, *engine.params(unpack(packs), trial)))
        if until is not None and until.reached(found.rows[trial][until.metric]):
            break
    params, model_state = engine.params(unpack(packs), trial)
    index = pd.MultiIndex.from_tuples(list(rows), names=records.MEASUREMENT_INDEX)
    curve = records.measurement_table(pd.DataFrame(list(rows.values()), index=index))
    return TrialRun(curve, params, model_state, values, diverged, checkpoints)
