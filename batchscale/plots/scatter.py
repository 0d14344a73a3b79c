"""The trials of a batch size by their hyperparameters, and which of them reached the goal."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, Literal

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from batchscale.plots.common import (
    BLUE,
    FIGURE_SIZE,
    FONT_SIZE,
    GREY,
    ORANGE,
    VERMILION,
    Result,
    axis_label,
    goal_words,
    head,
    listed,
    log2_axis,
    log_axis,
    new_axes,
    only,
    winner,
)
from batchscale.tuner import LogUniform, derived

_POINTS: dict[str, dict[str, Any]] = {
    "diverged": {"color": VERMILION, "marker": "x", "markersize": 5},
    "did not reach the goal": {
        "color": GREY,
        "marker": "o",
        "markersize": 5,
        "markerfacecolor": "white",
    },
    "reached it": {"color": BLUE, "marker": "o", "markersize": 5},
    "best": {"color": ORANGE, "marker": "*", "markersize": 14, "markeredgecolor": "black"},
}
_EQUAL = "equal effective learning rate"
_EQUAL_STYLE: dict[str, Any] = {"color": "0.7", "linewidth": 0.8}


def hyperparameters(
    result: Result,
    *,
    batch_size: int | None = None,
    x: str = "learning_rate",
    y: str | None = None,
    ax: Axes | None = None,
) -> Axes | np.ndarray:
    """The trials of a batch size by their hyperparameters, and which of them reached the goal.

    Filled: reached the goal. Open: did not, in the steps that it was trained. Cross: diverged.
    Star: the fewest steps. Where learning rate meets 1 - momentum, grey lines join equal
    effective learning rates, as in figures 9 and 10 of Shallue et al. (2019).

    Args:
      result: of a study.
      batch_size: examples; if neither this nor `ax` is given, a grid of every batch size.
      x: a hyperparameter, `effective_learning_rate` or `one_minus_momentum`.
      y: the same, or `first_crossing`: the steps that a trial took to the goal, with trials that
        did not reach it at the top edge. If not given, `one_minus_momentum` where momentum is
        searched, else `first_crossing`.
      ax: where to draw; a new figure if not given.

    Returns:
      The axes; of a grid, an array of them, one a batch size in ascending order.

    Raises:
      ValueError: the result has no such batch size or hyperparameter, or `ax` is given without a
        batch size.

    >>> ax = hyperparameters(result, batch_size=64)  # doctest: +SKIP
    """
    if batch_size is not None:
        ax = new_axes() if ax is None else ax
        y = _default_y(result, [batch_size]) if y is None else y
        drawn = _draw(ax, result, batch_size, x, y) | _contours(ax, x, y, labelled=True)
        ax.set(xlabel=_label(result, x), ylabel=_label(result, y))
        head(ax, f"{result.name}, batch size {batch_size:,}", _handles(drawn))
        return ax
    if ax is not None:
        raise ValueError("hyperparameters: ax holds one batch size; give batch_size with it.")
    return _grid(result, x, y)


def _grid(result: Result, x: str, y: str | None) -> np.ndarray:
    batch_sizes = result.trials.index.unique("batch_size").sort_values().tolist()
    y = _default_y(result, batch_sizes) if y is None else y
    columns = min(len(batch_sizes), 4)
    rows = math.ceil(len(batch_sizes) / columns)
    figure, axes = plt.subplots(
        rows,
        columns,
        figsize=(FIGURE_SIZE[0], 1.1 + 1.5 * rows),
        sharex=True,
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    drawn = set()
    used = axes.flat[: len(batch_sizes)]
    for panel, batch_size in zip(used, batch_sizes, strict=True):
        drawn |= _draw(panel, result, batch_size, x, y)
        panel.set_title(f"B = {batch_size:,}", fontsize=FONT_SIZE)
    for panel in used:
        drawn |= _contours(panel, x, y, labelled=False)
    for panel in axes.flat[len(batch_sizes) :]:
        panel.remove()
    figure.supxlabel(_label(result, x), fontsize=FONT_SIZE + 1)
    figure.supylabel(_label(result, y), fontsize=FONT_SIZE + 1)
    figure.legend(
        handles=_handles(drawn),
        loc="outside upper center",
        ncols=3,
        fontsize=FONT_SIZE,
        frameon=False,
    )
    return used


def _default_y(result: Result, batch_sizes: Iterable[int]) -> str:
    momentum = any("momentum" in result.space.at(size).searched for size in batch_sizes)
    return "one_minus_momentum" if momentum else "first_crossing"


def _draw(ax: Axes, result: Result, batch_size: int, x: str, y: str) -> set[str]:
    """Draws the trials, and returns which kinds of points there are."""
    trials = only(result, result.trials, batch_size, caller="hyperparameters")
    table = trials.join(derived(trials))
    names = [*result.space.names, *derived(trials)]
    for name, allowed in ((x, names), (y, [*names, "first_crossing"])):
        if name not in allowed:
            raise ValueError(
                f"hyperparameters: {name!r} is no axis of {result.name!r}; use {listed(allowed)}."
            )
    _scale(ax, "x", result, batch_size, x)
    _scale(ax, "y", result, batch_size, y)
    infeasible = table["status"] == "infeasible"
    reached = ~infeasible & np.isfinite(table["first_crossing"])
    kinds = {
        "diverged": infeasible,
        "did not reach the goal": ~infeasible & ~reached,
        "reached it": reached,
        "best": table.index == winner(result, batch_size),
    }
    for kind, chosen in kinds.items():
        points = table[chosen]
        top = y == "first_crossing" and kind in ("diverged", "did not reach the goal")
        ax.plot(
            points[x],
            np.ones(len(points)) if top else points[y],
            transform=ax.get_xaxis_transform() if top else ax.transData,
            clip_on=not top,
            linestyle="none",
            label=kind,
            zorder=3,
            **_POINTS[kind],
        )
    return {kind for kind, chosen in kinds.items() if np.any(chosen)}


def _scale(ax: Axes, axis: Literal["x", "y"], result: Result, batch_size: int, name: str) -> None:
    if name == "first_crossing":
        log2_axis(ax, axis)
    elif name in derived(result.trials) or isinstance(
        result.space.at(batch_size)[name], LogUniform
    ):
        log_axis(ax, axis)


def _contours(ax: Axes, x: str, y: str, *, labelled: bool) -> set[str]:
    """Lines of equal effective learning rate, a decade apart, across the axes as they are."""
    if (x, y) != ("learning_rate", "one_minus_momentum"):
        return set()
    (left, right), (bottom, top) = ax.get_xlim(), ax.get_ylim()
    rate, rest = np.geomspace(left, right, 50), np.geomspace(bottom, top, 50)
    decades = range(math.ceil(math.log10(left / top)), math.floor(math.log10(right / bottom)) + 1)
    lines = ax.contour(
        rate,
        rest,
        rate / rest[:, np.newaxis],
        levels=[10.0**decade for decade in decades],
        colors=_EQUAL_STYLE["color"],
        linewidths=_EQUAL_STYLE["linewidth"],
        zorder=1,
    )
    if labelled:
        ax.clabel(lines, fmt="%g", fontsize=FONT_SIZE, colors=GREY)
    ax.set(xlim=(left, right), ylim=(bottom, top))
    return {_EQUAL}


def _label(result: Result, name: str) -> str:
    if name == "first_crossing":
        return f"Steps to {goal_words(result.goal)}"
    return axis_label(name)


def _handles(drawn: set[str]) -> list[Line2D]:
    styles = {kind: {"linestyle": "none", **style} for kind, style in _POINTS.items()}
    styles[_EQUAL] = _EQUAL_STYLE
    return [Line2D([], [], label=kind, **styles[kind]) for kind in styles if kind in drawn]
