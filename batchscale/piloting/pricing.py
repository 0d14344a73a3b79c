"""What measuring a batch size is likely to take: its training, and all of its evaluations."""

from __future__ import annotations

import math

import pandas as pd

from batchscale.engine.bounded import is_bounded
from batchscale.metrics import Goal
from batchscale.piloting.asked import Asked
from batchscale.piloting.effort import OVERHEAD, RUNS, Effort, evaluations
from batchscale.runner import costs
from batchscale.stopping import evaluation_grid

# By simulated measurements, within a factor of 1.5 of their medians (`python -m validation.price`);
# no more where trials say no more.
_FEWEST_RUNS, _MOST_RUNS = 17, 85
_RUNS_BY_VARIANCE, _OCTAVES, _BY_OCTAVES = 600, 8, 3.3
_OF_FIVE = 2.33  # standard deviations between the ends of five normal numbers
# Five seeds say little of their scatter: it counts as if two more had been as far apart as usual.
_USUAL_VARIANCE, _USUAL_SEEDS, _SEEDS = 0.01, 2, 4


def runs_of(rerun: pd.DataFrame, goal: Goal, octaves: float = _OCTAVES) -> float:
    """How many times the steps to the goal a measurement costs a batch size, as seeds differ.

    Trials whose crossings differ from seed to seed have to be many for a precise middle; and of a
    few batch sizes each has to be known better, for the same B_crit.

    Args:
      rerun: of the pilot: `step`, and `low` and `high`, the best and the worst of its seeds.
      goal: whose crossings are looked at; a seed that does not get there does so at the end.
      octaves: from the smallest batch size to the largest.

    >>> step = [0, 100, 200, 400]
    >>> rerun = pd.DataFrame({"step": step, "low": [9, 1, 1, 1], "high": [9, 9, 1, 1]})
    >>> round(runs_of(rerun, Goal("validation/loss", 2.0)), 1)  # 100 to 200 steps
    54.4
    """
    steps = rerun["step"].to_numpy(float)
    first, last = (
        max(steps[past.argmax()] if past.any() else steps[-1], 1.0)
        for past in (goal.reached(rerun[end].to_numpy(float)) for end in ("low", "high"))
    )
    seen = (math.log(last / first) / _OF_FIVE) ** 2
    variance = (_SEEDS * seen + _USUAL_SEEDS * _USUAL_VARIANCE) / (_SEEDS + _USUAL_SEEDS)
    each = _RUNS_BY_VARIANCE * (_OCTAVES / max(octaves, 4.0)) ** _BY_OCTAVES
    return min(_FEWEST_RUNS + each * variance, _MOST_RUNS)


def price(asked: Asked, effort: Effort, size: int, steps: float, *, runs: float = RUNS) -> float:
    """Seconds that a batch size is likely to take.

    Args:
      asked: of the pilot.
      effort: how fast the machine is.
      size: the batch size.
      steps: of a trial to the goal.
      runs: of so many steps.
    """
    evaluating = evaluations(steps, effort.spacing) * effort.seconds_per_evaluation()
    split = asked.metric.partition("/")[0]
    counts = asked.evaluate.counts(effort.workload.splits(), split)
    # Of a split of a few examples an evaluation takes what calling it does, and in large batches an
    # example is not evaluated longer than it is trained on.
    timed = effort.timed.iloc[-1]
    an_example = min(
        effort.seconds_per_evaluation() / counts[split],
        float(timed["seconds_per_step"] / timed["batch_size"]),
    )
    evaluating += an_example * other_examples(asked, effort, size, steps)
    training = float(effort.seconds_per_step(size)) * steps
    return runs * OVERHEAD * (training + evaluating)


def other_examples(asked: Asked, effort: Effort, size: int, steps: float) -> int:
    """On how many examples of other splits than the goal's a trial is measured.

    Each trial is at its own crossing of the goal, besides what `evaluate` asks for before it; of a
    model whose evaluation is not much cheaper than its training, that may cost more than both.

    Args:
      asked: of the pilot.
      effort: how fast the machine is.
      size: the batch size.
      steps: of a trial to the goal.
    """
    evaluate, split = asked.evaluate, asked.metric.partition("/")[0]
    counts = evaluate.counts(effort.workload.splits(), split)
    work = costs.work_of(effort.workload, tuple(asked.space.names))
    first = evaluate.first_steps(counts, split, size, work)
    # The budget is a multiple of the steps: its last evaluation is not one of them.
    grid = evaluation_grid(2 * max(int(steps), 1), effort.spacing)
    bounds = is_bounded(effort.workload, asked.never, effort.workload.splits()[split])
    times = {
        name: 1 + sum(at < steps for at in evaluate.steps(name, grid, first=since, bounds=bounds))
        for name, since in first.items()
    }
    return sum(counts[name] * many for name, many in times.items())
