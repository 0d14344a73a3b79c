"""What a study costs: in steps, examples and operations, and in seconds here."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
from jax.sharding import Mesh

from batchscale import columns, tuner
from batchscale.engine import autotune
from batchscale.engine.autotune import Rehearsal
from batchscale.engine.bounded import is_bounded
from batchscale.engine.engine import Engine, Training
from batchscale.engine.layout import LayoutOf
from batchscale.engine.packs import TrialId, Values, stacked
from batchscale.evaluate import Work
from batchscale.plan import Definition
from batchscale.workloads import Workload

COST = columns.declare(
    "estimate",
    *("batch_size", "max_steps", "trials", "examples", "flops"),
    *("goal_examples", "other_examples", "evaluation_flops"),
)
_SPEEDS = columns.declare("speeds", "batch_size", "seconds_per_step", "seconds_per_evaluation")


def cost(training: Training, definition: Definition) -> pd.DataFrame:
    """The table of `Study.estimate`."""
    goal, evaluate = definition.goal, definition.evaluate
    splits = training.workload.splits()
    work = work_of(training.workload, training.names)
    measured = evaluate.counts(splits, goal.split)
    bounds = definition.curves == "bounds" and is_bounded(
        training.workload, goal, splits[goal.split]
    )
    rows = []
    for batch_size in definition.batch_sizes:
        steps = definition.max_steps[batch_size]
        first = evaluate.first_steps(measured, goal.split, batch_size, work)
        grid = definition.grid(batch_size)
        times = {  # and once more at the crossing
            split: len(evaluate.steps(split, grid, first=first[split], bounds=bounds)) + 1
            for split in first
        }
        examples = steps * batch_size
        of_goal = len(grid) * measured[goal.split]
        others = sum(count * measured[split] for split, count in times.items())
        totals = np.array([examples, of_goal, others]) * definition.trials
        rows.append((batch_size, steps, definition.trials, *totals.tolist()))
    sizes = ["batch_size", "max_steps", "trials", "examples", "goal_examples", "other_examples"]
    table = pd.DataFrame(rows, columns=sizes)
    evaluated = table["goal_examples"] + table["other_examples"]
    table = table.assign(
        flops=table["examples"] * work.training, evaluation_flops=evaluated * work.evaluation
    )
    return table[list(COST)]


def speeds(
    training: Training,
    definition: Definition,
    layout_of: LayoutOf,
    mesh: Mesh,
    say: Callable[[str], None],
) -> pd.DataFrame:
    """The table of `Study.speeds`."""
    split, rows = definition.goal.split, []
    measured = definition.evaluate.counts(training.workload.splits(), split)
    with Engine(training, mesh=mesh, examples={split: measured[split]}) as engine:
        for batch_size in definition.batch_sizes:
            say(f"batch size {batch_size:,} is compiled and timed")
            some, layout = rehearsal(engine, definition, batch_size), layout_of(batch_size, mesh)
            step = autotune.seconds_per_step(some, layout)
            evaluation = autotune.seconds_per_evaluation(some, layout, split)
            rows.append((batch_size, step, evaluation))
    return pd.DataFrame(rows, columns=list(_SPEEDS))


def seconds_per_step(
    training: Training, definition: Definition, layout_of: LayoutOf, mesh: Mesh
) -> pd.DataFrame:
    """The table of `Study.seconds_per_step`."""
    rows = []
    with Engine(training, mesh=mesh) as engine:
        for batch_size in definition.batch_sizes:
            alone = dataclasses.replace(rehearsal(engine, definition, batch_size), trials=1)
            layout = layout_of(batch_size, mesh).with_lanes(1)
            rows.append((batch_size, autotune.seconds_per_step(alone, layout)))
    return pd.DataFrame(rows, columns=["batch_size", "seconds_per_step"])


def rehearsal(engine: Engine, definition: Definition, batch_size: int) -> Rehearsal:
    """What is timed before there is a plan: the first setting of the search, in every lane."""
    plan = tuner.plan(
        definition.spaces[batch_size], batch_size=batch_size, trials=1, seed=definition.seed
    )
    first = plan.to_dict("records")[0]

    def values(trials: Sequence[TrialId]) -> Values:
        return stacked([first] * len(trials))  # pyright: ignore[reportArgumentType]

    group = engine.group
    return Rehearsal(engine, batch_size, values, definition.trials, group)


@functools.lru_cache(maxsize=8)
def work_of(workload: Workload, names: tuple[str, ...]) -> Work:
    """The operations of an example; starts JAX, and compiles nothing."""
    return Work(workload.flops(names=names), workload.evaluation_flops())
