"""Branches of one run, each on at a larger batch size, and runs whose batch size changes."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal

import pandas as pd

from batchscale import checks, columns, numeric
from batchscale.metrics import Goal
from batchscale.runner.branching import Branching, Stage
from batchscale.runner.progress import lines
from batchscale.runner.trial_run import PlannedTrial
from batchscale.theory._asked import check_study
from batchscale.theory._local import Branches, Change
from batchscale.workloads import tracing

if TYPE_CHECKING:
    from batchscale.study import Study

Rule = Literal["linear", "square_root"] | Callable[[float], float]

# Choices.
_LOOKS = 8  # at a branch, evenly apart
_FEWEST_STEPS = 8  # of the largest branch
_USUAL_STEPS = 16  # likewise, where nothing else is asked for
_FARTHEST = 2**30  # examples: what counts them are 32 bits
# As Merrill et al. (2025) have them, of language models' loss in nats.
_SMOOTHING, _TOLERANCE = 0.5, 0.01
_RULES: dict[str, Callable[[float], float]] = {"linear": lambda k: k, "square_root": math.sqrt}
_USUAL: dict[str, Literal["linear", "square_root"]] = {
    "sgd": "linear",
    "momentum": "linear",
    "nesterov": "linear",
    "adam": "square_root",
    "adamw": "square_root",
}


def branches(
    study: Study,
    *,
    batch_size: int,
    trial: int,
    steps: Sequence[int],
    batch_sizes: Sequence[int],
    examples: int | None = None,
    rule: Rule | None = None,
    metric: str | None = None,
    tolerance: float = _TOLERANCE,
    copies: int = 8,
    folder: str | os.PathLike[str] | None = None,
    progress: bool = True,
    devices: Sequence[Any] | None = None,
) -> Branches:
    """The local critical batch size along one run, by branching (Merrill et al. 2025).

    From the state of a trial at each step, copies go on at each batch size k times the trial's,
    with f(k) times its learning rate, on as many examples. The largest batch size whose loss
    recovers is the local critical one. It supposes, as the paper does, that a larger learning rate
    shows its effect within the branch. Schedules go on by examples.

    What is measured is the metric of a whole split after eighths of the branch, smoothed
    exponentially with weight 0.5, where the paper has single batches of training. All copies of a
    branch are packed, and branches see the same examples, which begin at the next multiple of all
    their batch sizes in the trial's own order.

    Where the loss of an example depends on others, as with batch norm, branches at larger batch
    sizes keep the trial's objective, by microbatches as large as the trial's batch; a study of
    those batch sizes has another.

    Args:
      study: of the trial.
      batch_size: of the trial.
      trial: its number; best one whose learning rate is tuned.
      steps: of the trial, at which it branches, in increasing order.
      batch_sizes: of the branches, in increasing order; the smallest is what the others are
        compared with.
      examples: that each branch is trained on; by default 16 steps of the largest.
      rule: f: "linear", "square_root", or a function of k; by default linear for SGD and
        momentum, the square root for Adam.
      metric: of which less is better, as `split/metric`; by default the loss of the goal's split.
      tolerance: in its unit.
      copies: of a branch, each on examples of its own; their scatter makes the intervals.
      folder: as in `Study.run_trial`.
      progress: a line for each branch before it is trained, or none.
      devices: as in `Study.run`.

    Raises:
      ValueError: an argument is not as above, or the trial diverges before the first step.

    >>> import batchscale as bs
    >>> study = bs.Study(
    ...     workload=bs.theory.NoisyQuadratic.power_law(30).workload(),
    ...     optimizer="sgd",
    ...     space=bs.SearchSpace(learning_rate=0.05),
    ...     batch_sizes=[4],
    ...     goal=bs.Goal("validation/risk", 0.1),
    ...     trials=1,
    ...     max_steps=1000,
    ... )
    >>> found = branches(
    ...     study, batch_size=4, trial=0, steps=[100], batch_sizes=[4, 16, 64, 256], copies=4,
    ...     metric="validation/risk",
    ... )
    >>> found.table["recovers"].tolist()
    [64.0]
    """
    check_study(study)
    say = lines(progress)
    steps = numeric.increasing("steps", _listed("steps", steps))
    sizes = numeric.increasing("batch_sizes", _listed("batch_sizes", batch_sizes))
    if len(sizes) < 2 or sizes[0] < 1:
        raise ValueError(f"batch_sizes: got {sizes}, wanted two or more of at least 1.")
    numeric.integer("copies", copies, 2)
    numeric.above("tolerance", tolerance, 0, "a number above 0, in the unit of the metric")
    scale, measured = _scale(study, rule), _goal(study, metric)
    planned = study.planned_trial(
        batch_size=batch_size, trial=trial, folder=folder, devices=devices
    )
    _check_sizes(sizes, planned)
    if examples is None:
        examples = _USUAL_STEPS * sizes[-1]
    numeric.integer("examples", examples, _FEWEST_STEPS * sizes[-1])
    rows = []
    with Branching(planned, copies=copies, split=measured.split) as branching:
        for reached in branching.along(steps):
            step = reached.examples // planned.batch_size
            together = math.lcm(*sizes)
            place = -(-reached.place // together) * together
            # Of sizes that have little in common each begins at its own next multiple.
            start = reached._replace(place=place) if place <= _FARTHEST else reached
            for size in sizes:
                factor = scale(size / planned.batch_size)
                stage = Stage(size, round(examples / size), factor)
                say(
                    f"step {step:,} of {steps[-1]:,}: branches "
                    f"at batch size {size:,}, {copies} copies of {stage.steps:,} steps"
                )
                looks = _looks(stage.steps)
                _, seen = branching.train(start, stage, looks)
                for copy, own in seen.groupby("copy"):
                    loss = _smoothed(own[measured.metric])
                    rows.append((step, reached.examples, size, factor, copy, loss))
    if not rows:
        raise ValueError(
            f"trial: {trial} of batch size {batch_size} has diverged by step {steps[0]}; wanted "
            "one that has not, or an earlier step."
        )
    losses = pd.DataFrame(rows, columns=list(columns.BRANCHES))
    return Branches(losses, measured.metric, planned.batch_size, float(tolerance))


def train_in_stages(
    study: Study,
    batch_sizes: Sequence[tuple[int, int]],
    *,
    batch_size: int,
    trial: int,
    examples: int,
    looks: int = 20,
    rule: Rule | None = None,
    metric: str | None = None,
    copies: int = 8,
    folder: str | os.PathLike[str] | None = None,
    progress: bool = True,
    devices: Sequence[Any] | None = None,
) -> pd.DataFrame:
    """Trains with a batch size that changes, as `Branches.warm_up` proposes.

    Args:
      study: of the trial whose hyperparameters are used.
      batch_sizes: pairs of examples trained on, from 0, and the batch size from there on.
      batch_size: of the trial.
      trial: its number.
      examples: to train on in all; the last step may be one that goes beyond them.
      looks: how often the metric is measured in every stage, evenly apart.
      rule: as in `branches`, of the ratio to the trial's batch size.
      metric: as in `branches`.
      copies: how many runs. All begin at the trial's parameters, and the first has its key.
      folder: as in `Study.run_trial`.
      progress: a line for each stage before it is trained, or none.
      devices: as in `Study.run`.

    Returns:
      One row a look and copy: `copy`, `examples`, `steps` (in all), `batch_size`, `loss`.

    Raises:
      ValueError: an argument is not as above.

    >>> import batchscale as bs
    >>> study = bs.Study(
    ...     workload=bs.theory.NoisyQuadratic.power_law(30).workload(),
    ...     optimizer="sgd",
    ...     space=bs.SearchSpace(learning_rate=0.05),
    ...     batch_sizes=[4],
    ...     goal=bs.Goal("validation/risk", 0.1),
    ...     trials=1,
    ...     max_steps=1000,
    ... )
    >>> options = dict(batch_size=4, trial=0, examples=4000, metric="validation/risk", looks=1)
    >>> train_in_stages(study, [(0, 4), (400, 16)], **options)["steps"].unique().tolist()
    [100, 325]
    """
    check_study(study)
    say = lines(progress)
    changes = [_change(change) for change in _listed("batch_sizes", batch_sizes)]
    numeric.increasing("batch_sizes: examples", [change.examples for change in changes])
    if not changes or changes[0].examples != 0:
        raise ValueError(f"batch_sizes: got {batch_sizes}, wanted pairs whose first begins at 0.")
    numeric.integer("copies", copies, 1)
    numeric.integer("looks", looks, 1)
    numeric.integer("examples", examples, changes[-1].examples + changes[-1].batch_size)
    scale, measured = _scale(study, rule), _goal(study, metric)
    planned = study.planned_trial(
        batch_size=batch_size, trial=trial, folder=folder, devices=devices
    )
    _check_sizes([change.batch_size for change in changes], planned)
    ends = [*(change.examples for change in changes[1:]), examples]
    tables, steps = [], 0
    with Branching(planned, copies=copies, split=measured.split) as branching:
        reached = branching.start()
        for change, end in zip(changes, ends, strict=True):
            count = math.ceil((end - reached.examples) / change.batch_size)
            if count < 1:
                continue
            factor = scale(change.batch_size / planned.batch_size)
            stage = Stage(change.batch_size, count, factor)
            say(
                f"example {reached.examples:,} of {examples:,}: {count:,} steps at batch size "
                f"{change.batch_size:,}"
            )
            reached, seen = branching.train(reached, stage, _looks(count, looks))
            tables.append(
                pd.DataFrame(
                    {
                        "copy": seen["copy"],
                        "examples": seen["examples"],
                        "steps": steps + seen["step"],
                        "batch_size": change.batch_size,
                        "loss": seen[measured.metric].fillna(math.inf),
                    }
                )
            )
            steps += count
    return pd.concat(tables, ignore_index=True)[list(columns.STAGES)]


def _scale(study: Study, rule: Rule | None) -> Callable[[float], float]:
    if rule is None:
        optimizer = study.training().optimizer
        # One's own may be called like another.
        usual = None if optimizer.takes_all else _USUAL.get(optimizer.name)
        if usual is None:
            raise ValueError(
                f"rule: none is usual for optimizer {optimizer.name!r}; give "
                '"linear", "square_root", or a function of k.'
            )
        rule = usual
    if callable(rule):
        with tracing.told(
            "rule",
            lookup="",
            remedy="It is called as rule(k), k being how many times as large a "
            "batch is, and returns the factor of the learning rate.",
        ):
            numeric.above("rule", rule(1.0), 0, "a factor above 0")
        return lambda k: float(numeric.above("rule", rule(k), 0, "a factor above 0"))
    if not isinstance(rule, str) or rule not in _RULES:
        raise ValueError(
            f'rule: got {rule!r}, wanted "linear", "square_root", or a function of how many times '
            "the batch size is the trial's."
        )
    return _RULES[rule]


def _goal(study: Study, metric: str | None) -> Goal:
    """What is measured, as a goal whose value nobody asks for."""
    metric = f"{study.goal.split}/loss" if metric is None else metric
    if metric == study.goal.metric and study.goal.mode == "max":
        raise ValueError(
            f"metric: of {metric!r} more is better, and branches are compared by one of which less "
            f"is, such as {study.goal.split}/loss."
        )
    goal = Goal(metric, 0.0)
    checks.metric(goal, study.workload, study.space.names)
    return goal


def _listed(name: str, values: Any) -> list[Any]:
    several = isinstance(values, Sequence) or getattr(values, "ndim", 0) == 1
    if not several or isinstance(values, str):
        raise TypeError(f"{name}: got {values!r}, wanted a list.")
    return list(values)


def _change(pair: Any) -> Change:
    if not isinstance(pair, Sequence) or isinstance(pair, str) or len(pair) != 2:
        raise ValueError(
            f"batch_sizes: got {pair!r}, wanted pairs of examples and a batch size: (0, 16)."
        )
    return Change(
        numeric.integer("batch_sizes: examples", pair[0], 0),
        numeric.integer("batch_sizes: a batch size", pair[1], 1),
    )


def _smoothed(values: pd.Series) -> float:
    """The exponential average at the last of them; infinite if one is missing."""
    if values.isna().any():
        return math.inf
    return float(values.ewm(alpha=_SMOOTHING, adjust=False).mean().iloc[-1])


def _check_sizes(sizes: Sequence[int], planned: PlannedTrial) -> None:
    most = planned.definition.train_examples
    if not 1 <= min(sizes) <= max(sizes) <= most:
        raise ValueError(
            f"batch_sizes: got {', '.join(map(str, sizes))}, wanted 1 to {most}, the examples of "
            "the training set."
        )


def _looks(steps: int, count: int = _LOOKS) -> list[int]:
    """Steps of a branch evenly apart, the last of them among them."""
    return sorted({max(1, round(steps * k / count)) for k in range(1, count + 1)})
