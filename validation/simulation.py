"""Studies without training: tables as the library writes them, of which the truth is known.

Log steps to target of a trial are those of a known curve at its batch size, plus a quadratic in the
distance of its log learning rate from the optimum, plus scatter. The optimum grows with the batch
size up to the critical one and is flat beyond; learning rates far above it diverge.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pandas as pd

from batchscale import tuner
from batchscale.confirmation import Confirmation, confirmation
from batchscale.metrics import Goal, steps_to_target
from batchscale.records import MEASUREMENT_INDEX, TRIAL_INDEX, measurement_table, trial_table
from batchscale.scaling.curve import log_steps
from batchscale.scaling.response import Parabola, Shape, Wall
from batchscale.stopping import evaluation_grid
from batchscale.tuner import LogUniform, SearchSpace

SETTINGS, SELECTION_SEEDS, SEEDS, PATIENCE = 6, 7, 21, 4.0  # of `Study.confirm`
SIZES = tuple(2**k for k in range(13))


@dataclasses.dataclass(frozen=True)
class Careful:
    """How a simulated study is made; its defaults are those of a careful one.

    Attributes:
      batch_sizes: measured.
      space: what learning rates are drawn from; may be a function of the batch size.
      trials: feasible ones, by batch size where they differ.
      max_steps: the budget, of a batch size.
      stop: how many times the first crossing trials are trained.
      spacing: of evaluations, by batch size where they differ.
      metric: that the goal is about.
      examples: of the evaluation set.
      s_min, b_crit: of the curve of the optimum.
      rate: the optimal learning rate at batch size 1.
      curvature: of log steps in the log of the learning rate, or the sharpness of another shape.
      shape: of log steps against the log of the learning rate.
      scatter: of log steps, standard deviation.
      diverges: at so many times the optimal learning rate.
    """

    batch_sizes: tuple[int, ...] = SIZES
    space: SearchSpace = SearchSpace(learning_rate=LogUniform(1e-4, 1e2))  # noqa: RUF009
    trials: int | Mapping[int, int] = 32
    max_steps: Callable[[int], int] = lambda _: 100_000
    stop: float = 3.0
    spacing: float | Mapping[int, float] = 0.05
    metric: str = "validation/error"
    examples: int = 1000
    s_min: float = 50.0
    b_crit: float = 32.0
    rate: float = 0.02
    curvature: float = 0.25
    shape: type[Shape] = Parabola
    scatter: float = 0.2
    diverges: float = 20.0

    @property
    def goal(self) -> Goal:
        """Of the study."""
        return Goal(self.metric, 0.05)

    def optimal_rate(self, batch_size: int) -> float:
        """The optimal learning rate."""
        return self.rate * batch_size / (1 + batch_size / self.b_crit)

    def steps(self, batch_size: int, rates: np.ndarray, random: np.random.Generator) -> np.ndarray:
        """When trials cross; inf for those that diverge."""
        away = np.log(rates / self.optimal_rate(batch_size))
        log_b = np.log([batch_size])
        mean = log_steps(log_b, math.log(self.s_min), math.log(self.b_crit), 1.0)
        mean = mean + self.shape.height(away, self.curvature)
        found = np.exp(np.minimum(mean + self.scatter * random.normal(size=len(away)), 100.0))
        return np.where(away < math.log(self.diverges), found, math.inf)


@dataclasses.dataclass(frozen=True)
class Tables:
    """The tables of a study, and what they were made with."""

    measurements: pd.DataFrame
    trials: pd.DataFrame
    steps: pd.DataFrame
    goal: Goal
    spaces: dict[int, SearchSpace]
    max_steps: dict[int, int]


def simulate(study: Careful, seed: int) -> Tables:
    """A study of a seed: all trials up to `stop` times the first crossing."""
    trials: dict[tuple[int, int, int], dict] = {}
    index: list[np.ndarray] = []
    values: list[np.ndarray] = []
    for batch_size in study.batch_sizes:
        random = np.random.default_rng([seed, batch_size])
        wanted = _at(study.trials, batch_size)
        spacing = _at(study.spacing, batch_size)
        budget = study.max_steps(batch_size)
        grid = np.array(evaluation_grid(budget, spacing))
        space = study.space.at(batch_size)
        plan = tuner.plan(space, batch_size=batch_size, trials=8 * wanted, seed=seed)
        rates = plan["learning_rate"].to_numpy()
        exact = study.steps(batch_size, rates, random)
        diverged = np.isinf(exact)
        last = int(np.searchsorted(np.cumsum(~diverged), wanted))
        crossings = np.append(grid, math.inf)[np.searchsorted(grid, exact[: last + 1])]
        first = crossings.min()
        end = grid[min(np.searchsorted(grid, study.stop * first), len(grid) - 1)]
        for number, crossing in enumerate(crossings):
            trained = 2 if diverged[number] else int(end)
            own = grid[grid <= trained]
            shown = crossing if crossing <= trained else math.inf
            ended = "budget" if end == grid[-1] else "factor"
            trials[batch_size, number, 0] = {
                "learning_rate": rates[number],
                "origin": "plan" if number < wanted else "topup",
                "status": "infeasible" if diverged[number] else "complete",
                "steps_trained": trained,
                "stop_reason": "diverged" if diverged[number] else ended,
                "first_crossing": shown,
            }
            # Mistakes fall as a power of the steps, and pass the goal where they are to.
            goal = study.goal.value * study.examples
            power = np.sqrt(min(exact[number], 1e9) / np.maximum(own, 0.5))
            mistakes = np.where(own < shown, np.ceil(goal * power), np.floor(goal * power))
            mistakes = np.where(own < shown, np.maximum(mistakes, goal), mistakes)
            mistakes = np.where(own >= shown, np.minimum(mistakes, math.ceil(goal) - 1), mistakes)
            values.append(np.minimum(mistakes, study.examples) / study.examples)
            key = np.array([batch_size, number, 0])
            index.append(np.column_stack([np.tile(key, (len(own), 1)), own]))
    rows = pd.MultiIndex.from_arrays(list(np.concatenate(index).T), names=MEASUREMENT_INDEX)
    measurements = measurement_table(pd.DataFrame({study.metric: np.concatenate(values)}, rows))
    table = trial_table(
        pd.DataFrame(
            list(trials.values()), pd.MultiIndex.from_tuples(list(trials), names=TRIAL_INDEX)
        )
    )
    most = max(_at(study.trials, size) for size in study.batch_sizes)
    return Tables(
        measurements,
        table,
        steps_to_target(measurements, study.goal, trials=table, feasible_trials=most),
        study.goal,
        {size: study.space.at(size) for size in study.batch_sizes},
        {size: study.max_steps(size) for size in study.batch_sizes},
    )


def _at(value: Any, batch_size: int) -> Any:
    """A number, or that of a batch size."""
    return value[batch_size] if isinstance(value, Mapping) else value


def confirm(study: Careful, tables: Tables, seed: int) -> Confirmation:
    """The leading settings of a simulated study under fresh seeds, as `Study.confirm` runs them."""
    best = dict(zip(tables.steps["batch_size"].tolist(), tables.steps["steps"], strict=True))
    rows = []
    for setting in tuner.leading(tables.trials, SETTINGS).reset_index().to_dict("records"):
        batch_size, trial = int(setting["batch_size"]), int(setting["trial"])
        if not math.isfinite(best[batch_size]):
            continue
        random = np.random.default_rng([seed, batch_size, trial])
        grid = np.array(
            evaluation_grid(study.max_steps(batch_size), _at(study.spacing, batch_size))
        )
        runs = SELECTION_SEEDS + SEEDS
        exact = study.steps(batch_size, np.full(runs, setting["learning_rate"]), random)
        places = np.searchsorted(grid, exact)
        rows += [
            {
                "batch_size": batch_size,
                "trial": trial,
                "replicate": replicate,
                "learning_rate": setting["learning_rate"],
                "origin": "confirm",
                "status": "infeasible" if math.isinf(steps) else "complete",
                "steps_trained": grid[-1],
                "stop_reason": "crossing",
                "first_crossing": np.append(grid, math.inf)[place],
                "previous_evaluation": grid[place - 1],
            }
            for replicate, (place, steps) in enumerate(zip(places, exact, strict=True), 1)
        ]
    runs = pd.DataFrame(rows).set_index(list(TRIAL_INDEX))
    return confirmation(
        runs.drop(columns="previous_evaluation"),
        runs[["first_crossing", "previous_evaluation"]],
        tables.steps,
        selection_seeds=SELECTION_SEEDS,
        seeds=SEEDS,
        limits={size: PATIENCE * steps for size, steps in best.items() if math.isfinite(steps)},
    )


KINDS = {
    "as it is": Careful(),
    "more scatter": Careful(scatter=0.35),
    "16 trials": Careful(trials=16),
    "64 trials": Careful(trials=64),
    "a flat optimum": Careful(curvature=0.08),
    "a sharp optimum": Careful(curvature=0.8),
    "every second batch size": Careful(batch_sizes=tuple(4**k for k in range(7))),
    "a wall above the optimum": Careful(shape=Wall, curvature=1.0),
    "an optimum near what diverges": Careful(
        space=SearchSpace(learning_rate=LogUniform(1e-4, 3.0)), curvature=0.8, diverges=2.0
    ),
    "a narrow range": Careful(
        space=SearchSpace(learning_rate=lambda b: LogUniform(2e-3 * min(b, 32), 2e-1 * min(b, 32)))
    ),
}
