"""One trial, run by itself: its curve and its parameters."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np
import pandas as pd
from jaxtyping import PyTree

from batchscale import records
from batchscale.engine import Engine
from batchscale.layout import Layout
from batchscale.packs import TrialId, unpack
from batchscale.plan import Definition, Plan
from batchscale.records import Origin
from batchscale.stopping import evaluation_grid


@dataclasses.dataclass(frozen=True)
class TrialRun:
    """One trial, run by itself.

    Attributes:
      curve: the measurements, as in `Result.measurements`.
      params: the parameters after the last step, host arrays.
      model_state: what the model keeps besides.
      hyperparameters: of the trial, by name.
      diverged: whether the parameters stopped being finite.
    """

    curve: pd.DataFrame
    params: PyTree
    model_state: PyTree
    hyperparameters: Mapping[str, float]
    diverged: bool


def run_trial(
    engine: Engine,
    definition: Definition,
    batch_size: int,
    trial: TrialId,
    *,
    layout: Layout,
    steps: int | None = None,
) -> TrialRun:
    """Runs one trial of a study.

    Args:
      engine: trains and measures.
      definition: the study.
      batch_size: one of the study's.
      trial: which.
      layout: how it was packed.
      steps: how many; by default until it is past the goal, or its budget is spent.
    """
    plan = Plan(definition, {})
    plan.extend(batch_size, trial.number + 1, Origin.PLAN)
    values = plan.rows[batch_size][trial.number]["hyperparameters"]
    budget = definition.max_steps[batch_size] if steps is None else steps
    packs = engine.start([trial], lambda _: values, batch_size=batch_size, layout=layout)
    rows: dict[tuple[int, ...], dict[str, float]] = {}
    diverged = False
    at = 0
    for step in evaluation_grid(budget, definition.evaluation_spacing):
        engine.advance(packs, batch_size=batch_size, layout=layout, step=at, to=step)
        at = step
        found = engine.measure(packs, engine.splits, layout=layout)
        diverged = trial in found.diverged
        if diverged:
            break
        rows[batch_size, *trial, step] = found.rows[trial]
        past = definition.goal.reached(np.asarray(found.rows[trial][definition.goal.metric]))
        if steps is None and past:
            break
    params, model_state = engine.params(unpack(packs), trial)
    index = pd.MultiIndex.from_tuples(list(rows), names=records.MEASUREMENT_INDEX)
    curve = records.measurement_table(pd.DataFrame(list(rows.values()), index=index))
    return TrialRun(curve, params, model_state, values, diverged)
