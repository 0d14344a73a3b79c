"""How good solutions become within budgets of steps or of epochs, against batch size."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from batchscale import metrics
from batchscale.plots.asked import RESULT, check_place, check_reads
from batchscale.plots.common import Result, axis_label, frame, head, new_axes
from batchscale.plots.marks import COLORS, DASHES, MARKERS, label_ends, shades, sized
from batchscale.plots.scales import log2_axis, log_axis, mark_full_batches
from batchscale.records import Status


def best_by_budget(
    result: Result,
    *,
    steps: Sequence[float] | None = None,
    epochs: Sequence[float | Fraction] | None = None,
    ax: Axes | None = None,
    title: str | None = None,
) -> Axes:
    """The best value of the goal's metric within each budget, over all trials and evaluations.

    After figure 11 of Shallue et al. (2019): the smallest budget is the palest line. A batch size
    enters a line only if its trials were trained as long as the budget. More than six lines are
    named at their ends.

    Args:
      result: of a study whose trials were trained to the end of their budget (`stop="budget"`).
      steps: budgets in steps; by default, if there are none in epochs, four up to what all trials
        of some batch size were trained for.
      epochs: or budgets in passes over the training set.
      ax: where to draw; a new figure if not given.
      title: instead of the figure's own words; an empty one is none.

    Raises:
      ValueError: not one kind of budget is given, or at no batch size trials were trained for it.

    >>> import matplotlib.pyplot as plt, pandas as pd
    >>> from types import SimpleNamespace
    >>> from batchscale.records import TRIAL_INDEX
    >>> index = pd.MultiIndex.from_tuples([(8, 0, 0), (8, 1, 0), (16, 0, 0)], names=TRIAL_INDEX)
    >>> columns = {"status": "complete", "steps_trained": [20, 20, 10], "stop_reason": "budget"}
    >>> result = SimpleNamespace(
    ...     name="mine, sgd",
    ...     goal=metrics.Goal("validation/error", 0.3),
    ...     train_examples=100,
    ...     trials=pd.DataFrame(columns, index),
    ...     measurements=metrics.example_measurements(),
    ... )
    >>> ax = best_by_budget(result, steps=[10, 20])
    >>> ax.get_ylabel(), [line.get_label() for line in ax.lines]
    ('Best validation error', ['10 steps', '20 steps'])
    >>> plt.close(ax.figure)
    """
    check_reads("result", result, RESULT, "goal", "measurements", "trials")
    check_place(ax, title)
    mode = "max" if result.goal.mode == "max" else "min"
    if steps is None and epochs is None:
        steps = _steps(result)
    table = metrics.best_by_budget(
        result.measurements,
        result.goal.metric,
        trials=result.trials,
        steps=steps,
        epochs=epochs,
        train_examples=result.train_examples,
        mode=mode,
    )
    ax = new_axes() if ax is None else ax
    log2_axis(ax, "x")
    unit = "steps" if steps is not None else "epochs"
    lines: list[Line2D] = []
    budgets = table["budget"].unique().tolist()
    for place, (budget, color) in enumerate(zip(budgets, shades(len(budgets)), strict=True)):
        line = table.loc[(table["budget"] == budget).to_numpy()]
        lines += ax.plot(
            line["batch_size"],
            line["value"],
            marker=MARKERS[place % len(MARKERS)],
            linestyle=DASHES[place % len(DASHES)] if len(budgets) > len(COLORS) else "-",
            color=color,
            label=f"{budget:,g} {unit if budget != 1 else unit[:-1]}",
            **sized({"markersize": 5.5}),
        )
    if mode == "min" and table["value"].min() > 0:
        log_axis(ax, "y")
    mark_full_batches(ax, {result.train_examples} & {*table["batch_size"].tolist()})
    ax.set_xlabel("Batch size (examples)")
    ax.set_ylabel(f"Best {axis_label(result.goal.metric).lower()}")
    frame(ax)
    handles = lines
    if len(lines) > len(COLORS):
        handles = [
            Line2D([], [], color="none", label=f"at the ends of lines: {unit} of the budget")
        ]
    height = head(ax, f"{result.name}: the best within a budget", handles, title=title)
    if len(lines) > len(COLORS):
        label_ends(ax, lines, [f"{budget:,g}" for budget in budgets], height=height)
    return ax


def _steps(result: Result) -> list[float]:
    """Four budgets, a factor of about three apart."""
    feasible = result.trials.loc[(result.trials["status"] != Status.INFEASIBLE).to_numpy()]
    longest = feasible["steps_trained"].groupby(level="batch_size").min().max()
    return sorted({max(round(longest / 10 ** (n / 2)), 1) for n in range(4)})
