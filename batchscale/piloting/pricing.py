"""What measuring a batch size is likely to take: its training, and all of its evaluations."""

from __future__ import annotations

from batchscale.engine.bounded import is_bounded
from batchscale.piloting.asked import Asked
from batchscale.piloting.effort import OVERHEAD, RUNS, Effort, evaluations
from batchscale.runner import costs
from batchscale.stopping import evaluation_grid


def price(asked: Asked, effort: Effort, size: int, steps: float) -> float:
    """Seconds that a batch size is likely to take.

    Args:
      asked: of the pilot.
      effort: how fast the machine is.
      size: the batch size.
      steps: of a trial to the goal.
    """
    evaluating = evaluations(steps, effort.spacing) * effort.seconds_per_evaluation()
    split = asked.metric.partition("/")[0]
    counts = asked.evaluate.counts(effort.workload.splits(), split)
    an_example = effort.seconds_per_evaluation() / counts[split]
    evaluating += an_example * other_examples(asked, effort, size, steps)
    training = float(effort.seconds_per_step(size)) * steps
    return RUNS * OVERHEAD * (training + evaluating)


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
