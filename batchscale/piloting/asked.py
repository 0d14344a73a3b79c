"""What a pilot is asked, checked."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import jax
import numpy as np

from batchscale import arguments, arrays, keys, numeric, optimizers, schedules
from batchscale.arguments import PerBatchSize
from batchscale.evaluate import Evaluate
from batchscale.metrics import Goal
from batchscale.metrics.goal import Mode, check_goal, check_mode
from batchscale.optimizers import Factory
from batchscale.runner import session
from batchscale.runner.progress import Progress
from batchscale.schedules import OfSteps, Schedule
from batchscale.study import Study, powers_of_two
from batchscale.tuner import Distribution, LogUniform, SearchSpace, ShareOfBudget
from batchscale.workloads import Workload

# Choices.
_WIDE = {"adam": (1e-5, 1.0), "adamw": (1e-5, 1.0)}  # learning rates that are tried
_WIDE_OTHERS = (1e-4, 10.0)
_FIXED = {"momentum": 0.9, "weight_decay": 0.01}
_OF_SCHEDULES = {
    "warmup_steps": ShareOfBudget(0.02),
    "learning_rate_decay_steps": ShareOfBudget(1.0),
    "end_learning_rate_factor": 0.1,
}
_WITHIN = 1.5  # times the steps that are likely, a budget is enough
RATES = 8  # learning rates that are tried at each of them
LARGEST = 512  # of the batch sizes


@dataclasses.dataclass(frozen=True)
class Asked:
    """The arguments of a pilot, checked.

    `evaluate_given` says that so many examples of the goal's split were asked for.
    """

    workload: Workload
    optimizer: str | Factory
    space: SearchSpace
    rate: Distribution
    rate_given: bool
    schedule: str | Schedule | OfSteps
    metric: str
    mode: Mode
    goal: Goal | None
    batch_sizes: Sequence[int | Literal["full"]] | None
    seconds: float
    answer_seconds: float
    seed: int
    progress: bool | Callable[[Progress], None]
    devices: Sequence[Any] | None
    evaluate: Evaluate = dataclasses.field(default_factory=Evaluate)
    evaluate_given: bool = False
    max_steps: PerBatchSize | None = None
    evaluation_spacing: float | None = None

    def allows(self, likely: Mapping[int, float]) -> bool:
        """Whether steps that are likely lie well within the budgets that were given."""
        if self.max_steps is None:
            return True
        budget = self.budget(list(likely))
        return all(_WITHIN * steps <= budget[size] for size, steps in likely.items())

    def budget(self, sizes: Sequence[int]) -> dict[int, int]:
        """The budgets that were given, at batch sizes."""
        examples = arrays.examples(self.workload.splits()["train"])
        return {
            size: arguments.budget(self.max_steps, None, batch_size=size, train_examples=examples)
            for size in sizes
        }

    @property
    def never(self) -> Goal:
        """A goal that nothing reaches, for trials that are trained to their ends."""
        return Goal(self.metric, -1e30 if self.mode == "min" else 1e30, self.mode)

    def worse(self, values: Any) -> np.ndarray:
        """Values as something to be made small."""
        values = np.asarray(values, np.float64)
        return values if self.mode == "min" else -values

    def study(self, workload: Workload, **others: Any) -> Study:
        """A study of the workload whose trials run to their ends, unless it is said otherwise."""
        return Study(
            **{
                "workload": workload,
                "optimizer": self.optimizer,
                "space": self.space_with(self.rate),
                "goal": self.never,
                "schedule": self.schedule,
                "stop": "budget",
                "curves": "exact",
                "trials": RATES,
                "max_infeasible": 0,
                "evaluate": Evaluate(splits=[]),
                "seed": self.seed,
                **others,
            }
        )

    def space_with(self, rate: Any) -> SearchSpace:
        """The space, with another range of learning rates."""
        return SearchSpace(**{**dict(self.space.items()), "learning_rate": rate})


def checked(
    workload: Workload,
    optimizer: str | Factory,
    minutes: float,
    answer_minutes: float,
    metric: str | None,
    mode: Mode,
    goal: Goal | None,
    space: SearchSpace | None,
    batch_sizes: Sequence[int | Literal["full"]] | None,
    schedule: str | Schedule | OfSteps,
    seed: int,
    progress: bool | Callable[[Progress], None],
    devices: Sequence[Any] | None,
    evaluate: Evaluate | Mapping[str, int | None] | None = None,
    max_steps: PerBatchSize | None = None,
    spacing: float | None = None,
) -> Asked:
    """The arguments of a pilot, checked; what is not said of a space is chosen."""
    if not isinstance(workload, Workload):
        raise TypeError(
            f"workload: got {workload!r}, wanted a Workload: Workload.from_model(model, data), "
            "workloads.get(name), or one of your own."
        )
    check_mode(mode, "pilot")
    wanted = "minutes above 0, such as 3"
    seconds = 60 * float(numeric.above("minutes", minutes, 0, wanted))
    answer = 60 * float(numeric.above("answer_minutes", answer_minutes, 0, wanted))
    seed = numeric.integer("seed", seed, 0, keys.LARGEST)
    session.check_progress(progress)
    session.check_devices(devices)
    found = optimizers.get(optimizer)
    if space is not None and not isinstance(space, SearchSpace):
        raise TypeError(f"space: got {space!r}, wanted a SearchSpace, or None.")
    if metric is not None and not isinstance(metric, str):
        raise TypeError(f'metric: got {metric!r}, wanted "split/name", or None.')
    if goal is not None:
        check_goal("goal", goal)
        if metric is not None and metric != goal.metric:
            raise ValueError(
                f"metric: got {metric!r} beside a goal of {goal.metric!r}. Leave one of them out."
            )
    given = {} if space is None else dict(space.items())
    rate = given.get("learning_rate", LogUniform(*_WIDE.get(found.name, _WIDE_OTHERS)))
    if not isinstance(rate, Distribution):
        raise ValueError(
            f"space: got learning_rate={rate!r}, wanted a range of it to search, or none, which a "
            "pilot finds."
        )
    needed = [*found.required, *schedules.get(schedule)[1]]
    fixed = {name: value for name, value in (_FIXED | _OF_SCHEDULES).items() if name in needed}
    values: dict[str, Any] = {**fixed, **given, "learning_rate": rate}
    if goal is not None:
        metric, mode = goal.metric, goal.mode
    if batch_sizes is not None:
        examples = arrays.examples(workload.splits()["train"])
        arguments.batch_sizes(batch_sizes, examples, workload.name)
    if isinstance(max_steps, Mapping) and batch_sizes is None:
        raise ValueError(
            "max_steps: got a mapping, and batch sizes that the pilot finds. Give batch_sizes, "
            "too; or a number, or a function of the batch size."
        )
    metric = _metric(workload) if metric is None else metric
    split, _, name = metric.partition("/")
    splits = workload.splits()
    if split not in splits:
        raise ValueError(
            f"metric: got {metric!r}, and the workload has the splits {', '.join(splits)}."
        )
    names = _measured(workload, split)
    if name not in names:
        raise ValueError(f"metric: got {metric!r}, and the workload measures {', '.join(names)}.")
    asked = Asked(
        workload,
        optimizer,
        SearchSpace(**values),
        rate,
        "learning_rate" in given,
        schedule,
        metric,
        mode,
        goal,
        batch_sizes,
        seconds,
        answer,
        seed,
        progress,
        devices,
        max_steps=max_steps,
        evaluation_spacing=None if spacing is None else numeric.plain(spacing),
    )
    if max_steps is not None:
        examples = arrays.examples(splits["train"])
        # A function may fail at a size that is found when minutes are spent.
        tried = powers_of_two(1, max(min(LARGEST, examples // 8), 1))
        sizes = tried if batch_sizes is None else batch_sizes
        asked.budget(arguments.batch_sizes(sizes, examples, workload.name))
    if evaluate is not None:
        asked = _evaluated(asked, evaluate)
    # What a study refuses is refused before anything is timed.
    other = {} if spacing is None else {"evaluation_spacing": spacing}
    training = asked.study(asked.workload, batch_sizes=[1], max_steps=1, **other).training()
    session.check(training, session.mesh_of(devices))
    return asked


def _evaluated(asked: Asked, evaluate: Evaluate | Mapping[str, int | None]) -> Asked:
    """With what is measured; of the goal's split, in a workload of its own."""
    study = asked.study(asked.workload, batch_sizes=[1], max_steps=1, evaluate=evaluate)
    split = asked.metric.partition("/")[0]
    return dataclasses.replace(
        asked,
        workload=study.workload,
        evaluate=study.evaluation,
        evaluate_given=isinstance(evaluate, Mapping) and evaluate.get(split) is not None,
    )


def _metric(workload: Workload) -> str:
    """What a goal is of, where nothing is said."""
    splits = workload.splits()
    split = "validation" if "validation" in splits else "train"
    labels = splits[split].get(workload.labels)
    single = labels is not None and len(labels.shape) == 1
    return f"{split}/{'error' if single and 'error' in _measured(workload, split) else 'loss'}"


def _measured(workload: Workload, split: str) -> list[str]:
    """The names of the metrics; nothing is compiled."""
    batch = arrays.like_examples(workload.splits()[split], 2)
    state = jax.eval_shape(workload.init, keys.shape())
    found = jax.eval_shape(
        lambda *given: workload.metrics(*given[:2], workload.prepare(given[2], None)), *state, batch
    )
    return list(found)
