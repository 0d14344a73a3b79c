"""Steps to target against batch size: the figure that the library exists for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from batchscale import numeric
from batchscale.given import instance, several, switch
from batchscale.plots.asked import RESULT, check_place, check_reads
from batchscale.plots.common import (
    Result,
    frame,
    goal_words,
    head_curve,
    listed,
    medians,
    new_axes,
    plain,
    steps_table,
)
from batchscale.plots.marks import (
    COLORS,
    MISS,
    PERFECT,
    label_ends,
    looks,
    mark_misses,
    open_intervals,
    perfect_scaling_line,
    sized,
)
from batchscale.plots.scales import log2_axis, mark_full_batches

_READ = "name", "goal", "train_examples", "steps_to_target"


def steps_to_target(
    result_or_results: Result | Sequence[Result] | Mapping[str, Result],
    *,
    ax: Axes | None = None,
    normalize_at: int | None = None,
    labels: Sequence[str] | None = None,
    confirmed: bool | None = None,
    perfect_scaling: bool = True,
    title: str | None = None,
) -> Axes:
    """Steps to the goal against batch size, on log2 axes, for one result or several.

    The dashed line is perfect scaling, `steps(B0) * B0 / B`, from the smallest batch size that
    reached the goal (Shallue et al. 2019). A batch size at which no trial reached it is an open
    marker at the top edge, and interrupts the line. A full batch that is not a power of two is
    marked "full". Where a table has `low` and `high`, as of medians, they are drawn as bars, with
    an arrow to the edge where one has no end. More than six curves are shades in their order,
    numbered at their ends.

    Args:
      result_or_results: a result, several, or several by label.
      ax: where to draw; a new figure if not given.
      normalize_at: a batch size. Steps are divided by those at it, so that different goals and
        models compare, and perfect scaling is one line from there.
      labels: what the legend calls the results, in order. If not given, their names, with their
        goals where these differ, and numbered where they do not.
      confirmed: whether steps are the medians of `Result.confirmation`, with their intervals, or
        the best of N trials; by default the medians where all of the results have them. The axis
        says so.
      perfect_scaling: whether its lines are drawn.
      title: of the figure; none if not given.

    Returns:
      The axes.

    Raises:
      FileNotFoundError: medians are asked for, and nothing is confirmed.
      ValueError: there is no result; labels and results differ in number; a result did not reach
        its goal at `normalize_at`, or reached it at step 0.

    A result is anything with these attributes, such as tables made elsewhere:

    >>> from types import SimpleNamespace
    >>> result = SimpleNamespace(
    ...     name="mnist/fc_128_128_128, sgd",
    ...     goal=SimpleNamespace(metric="validation/error", value=0.03, mode="min"),
    ...     train_examples=55_000,
    ...     steps_to_target=lambda: pd.DataFrame(
    ...         {"batch_size": [16, 64, 256], "steps": [3000.0, 932.0, float("inf")]}
    ...     ),
    ... )
    >>> ax = steps_to_target(result)
    >>> ax.get_ylabel()
    'Steps to validation error < 0.03'
    >>> import matplotlib.pyplot as plt
    >>> plt.close(ax.figure)
    """
    switch("perfect_scaling", perfect_scaling)
    check_place(ax, title)
    named = _named(result_or_results, labels)
    if normalize_at is not None:
        normalize_at = numeric.integer("normalize_at", normalize_at, 1)
    found = medians([result for _, result in named], confirmed)
    tables = [
        steps_table(result, None if found is None else found[place].table)
        for place, (_, result) in enumerate(named)
    ]
    if normalize_at is not None:
        tables = [
            _normalized(label, table, normalize_at)
            for (label, _), table in zip(named, tables, strict=True)
        ]
    ax = new_axes() if ax is None else ax
    log2_axis(ax, "x")
    log2_axis(ax, "y")
    if normalize_at is not None and perfect_scaling:
        batch_sizes = np.unique(np.concatenate([table["batch_size"] for table in tables]))
        perfect_scaling_line(ax, batch_sizes, start=normalize_at, steps=1)
    curves: list[Line2D] = []
    styles = looks(len(tables))
    _intervals(ax, tables, [look["color"] for look in styles])
    for (label, _), table, look in zip(named, tables, styles, strict=True):
        finite = np.isfinite(table["steps"])
        if normalize_at is None and perfect_scaling and finite.any():
            first = table[finite].iloc[0]
            perfect_scaling_line(
                ax,
                table["batch_size"].to_numpy(),
                start=first["batch_size"],
                steps=first["steps"],
            )
        curves += ax.plot(
            table["batch_size"],
            table["steps"].where(finite),
            label=label,
            zorder=3,
            **sized({"markersize": 5.5}),
            **look,
        )
        if not finite.all():
            missed = table.loc[~finite, "batch_size"]
            mark_misses(ax, missed, color=look["color"], marker=look["marker"])
    mark_full_batches(
        ax,
        {
            result.train_examples
            for (_, result), table in zip(named, tables, strict=True)
            if result.train_examples in table["batch_size"].tolist()
        },
    )
    goals = {goal_words(result.goal) for _, result in named}
    ax.set_xlabel("Batch size (examples)")
    if normalize_at is None:
        steps = "Steps" if found is None else "Median steps"
        ax.set_ylabel(f"{steps} to {goals.pop() if len(goals) == 1 else 'goal'}")
    elif found is None:
        ax.set_ylabel(f"Steps / (steps at B={normalize_at})")
    else:
        ax.set_ylabel(f"Median steps / (median steps at B={normalize_at})")
    frame(ax)
    handles = list(curves)
    if len(curves) > len(COLORS):
        handles = [_copy(line, f"{n}: {line.get_label()}") for n, line in enumerate(curves, 1)]
    if perfect_scaling and any(np.isfinite(table["steps"]).any() for table in tables):
        handles.append(Line2D([], [], **sized(PERFECT)))
    if any(np.isinf(table["steps"]).any() for table in tables):
        handles.append(Line2D([], [], color="black", marker="o", **sized(MISS)))
    height = head_curve(ax, "", handles, title=title)
    if len(curves) > len(COLORS):
        ax.autoscale_view()
        numbers = [str(n) for n in range(1, len(curves) + 1)]
        label_ends(ax, curves, numbers, height=height)
    return ax


def _copy(line: Line2D, label: str) -> Line2D:
    """For the legend, which calls it otherwise."""
    copied = Line2D([], [])
    copied.update_from(line)
    copied.set_label(label)
    return copied


def _named(
    results: Result | Sequence[Result] | Mapping[str, Result], labels: Sequence[str] | None
) -> list[tuple[str, Result]]:
    """The results, each with what the legend calls it."""
    if isinstance(results, Mapping):
        names, members = list(results), list(results.values())
        for name, member in results.items():
            check_reads(f"result_or_results[{name!r}]", member, RESULT, *_READ)
    else:
        several_: Any = [results]
        if isinstance(results, Sequence) and not isinstance(results, str):
            several_ = results
        members = list(several_)
        for member in members:
            check_reads("result_or_results", member, RESULT, *_READ)
        goals = [goal_words(result.goal) for result in members]
        names = [
            plain(result.name) if len(set(goals)) == 1 else f"{plain(result.name)}: {goal}"
            for result, goal in zip(members, goals, strict=True)
        ]
        if len(set(names)) < len(names):  # in the order they were given
            names = [f"{name} ({number})" for number, name in enumerate(names, 1)]
    if not members:
        raise ValueError("steps_to_target: there is no result to draw.")
    if labels is not None:
        names = list(several("labels", labels, "a list of words, one a result"))
        for label in names:
            instance("labels", label, str, "words, one a result")
    if len(names) != len(members):
        raise ValueError(
            f"steps_to_target: {len(names)} labels for {len(members)} results; "
            "give one a result, in the same order."
        )
    return list(zip(names, members, strict=True))


def _normalized(label: str, table: pd.DataFrame, anchor: int) -> pd.DataFrame:
    finite = table[np.isfinite(table["steps"])]
    at_anchor = finite.loc[finite["batch_size"] == anchor, "steps"]
    if at_anchor.empty:
        raise ValueError(
            f"steps_to_target: {label!r} has no steps to divide by at normalize_at={anchor}; "
            f"it reached its goal at batch size {listed(finite['batch_size'])}."
        )
    columns = ["steps", *(name for name in ("low", "high") if name in table)]
    return table.assign(**{name: table[name] / at_anchor.iloc[0] for name in columns})


def _intervals(ax: Axes, tables: Sequence[pd.DataFrame], colors: Sequence[Any]) -> None:
    """The intervals of those tables that have any, each in its colour."""
    for table, color in zip(tables, colors, strict=True):
        if not {"low", "high"} <= set(table.columns):
            continue
        finite = table[np.isfinite(table["steps"])]
        size, steps, low, high = (finite[name] for name in ("batch_size", "steps", "low", "high"))
        ax.vlines(
            size,
            low.where(low > 0, steps),
            high.where(np.isfinite(high), steps),
            color=color,
            alpha=0.3,
            zorder=2,
            **sized({"linewidth": 5}),
        )
        # What has no end must not move the edge.
        open_intervals(ax, size, steps, low, high, color=color)
