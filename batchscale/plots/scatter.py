"""The trials of a batch size by their hyperparameters, and which of them reached the goal."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from fractions import Fraction
from typing import Any, Literal

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.font_manager import FontProperties
from matplotlib.lines import Line2D

from batchscale import records
from batchscale.metrics import last_steps
from batchscale.plots.asked import RESULT, check_place, check_reads
from batchscale.plots.common import (
    Goal,
    Result,
    axis_label,
    check_any,
    check_batch_size,
    goal_words,
    head,
    legend,
    listed,
    new_axes,
    plain,
    plain_rows,
    winners,
)
from batchscale.plots.marks import BLUE, GREEN, GREY, ORANGE, VERMILION, beyond, sized
from batchscale.plots.room import small_text, text_size, wrapped
from batchscale.plots.scales import hold_ticks, log2_axis, log_axis
from batchscale.records import Status
from batchscale.tuner import LogUniform, SearchSpace, derived

_POINTS: dict[str, dict[str, Any]] = {
    "diverged": {"color": VERMILION, "marker": "x", "markersize": 5},
    "not reached when stopped": {
        "color": GREY,
        "marker": "o",
        "markersize": 5,
        "markerfacecolor": "white",
    },
    "goal reached": {"color": BLUE, "marker": "o", "markersize": 5},
    "refined, goal reached": {"color": GREEN, "marker": "D", "markersize": 4},
    "refined, not reached or diverged": {
        "color": GREEN,
        "marker": "D",
        "markersize": 4,
        "markerfacecolor": "white",
    },
    "best": {"color": ORANGE, "marker": "*", "markersize": 12, "markeredgecolor": "black"},
}
_UNREACHED = ("diverged", "not reached when stopped", "refined, not reached or diverged")
_EQUAL = "equal effective learning rate"
_EQUAL_STYLE: dict[str, Any] = {"color": "0.7", "linewidth": 0.8}


def hyperparameters(
    result: Result,
    *,
    batch_size: int | None = None,
    x: str = "learning_rate",
    y: str | None = None,
    refined: pd.DataFrame | None = None,
    max_steps: float | None = None,
    max_epochs: float | Fraction | None = None,
    ax: Axes | None = None,
    title: str | None = None,
) -> Axes | np.ndarray:
    """The trials of a batch size by their hyperparameters, and which of them reached the goal.

    Filled: reached the goal. Open: did not, in the steps that it was trained. Cross: diverged.
    Star: the fewest steps. Where learning rate meets 1 - momentum, grey lines join equal
    effective learning rates, as in figures 9 and 10 of Shallue et al. (2019). Within a budget of
    steps or of epochs, if there is one: what was reached later was not reached, and a trial that
    was stopped before the budget is refused.

    Args:
      result: of a study.
      batch_size: examples; if neither this nor `ax` is given, a grid of every batch size.
      x: a hyperparameter, `effective_learning_rate` or `one_minus_momentum`.
      y: the same, or `first_crossing`: the steps that a trial took to the goal, with trials that
        did not reach it at the top edge. If not given, `one_minus_momentum` where momentum is
        searched, else `first_crossing`.
      refined: the table of `Result.refined`, whose trials are drawn beside those of the search.
      max_steps: a budget in steps; none if not given.
      max_epochs: a budget in passes over the training set.
      ax: where to draw; a new figure if not given.
      title: instead of the figure's own words, of which a grid has none; an empty one is none.

    Returns:
      The axes; of a grid, an array of them, one a batch size in ascending order.

    Raises:
      ValueError: the result has no such batch size or hyperparameter, `ax` is given without a
        batch size, both budgets are given, or a trial was stopped before the budget.

    >>> import pandas as pd
    >>> from types import SimpleNamespace
    >>> index = pd.MultiIndex.from_tuples(
    ...     [(64, 0, 0), (64, 1, 0)], names=["batch_size", "trial", "replicate"]
    ... )
    >>> result = SimpleNamespace(
    ...     name="mnist/fc_128_128_128, sgd",
    ...     goal=SimpleNamespace(metric="validation/error", value=0.03, mode="min"),
    ...     space=SearchSpace(learning_rate=LogUniform(0.01, 10)),
    ...     trials=pd.DataFrame(
    ...         {"learning_rate": [0.1, 0.5], "status": "complete", "first_crossing": [3e3, 932]},
    ...         index,
    ...     ),
    ...     steps_to_target=lambda: pd.DataFrame(
    ...         {"batch_size": [64], "steps": [932.0], "trial": [1]}
    ...     ),
    ... )
    >>> ax = hyperparameters(result, batch_size=64)
    >>> ax.get_xlabel(), ax.get_ylabel()
    ('Learning rate', 'Steps to validation error < 0.03')
    >>> plt.close(ax.figure)
    """
    if refined is not None:
        records.check_index(refined, records.TRIAL_INDEX, "refined")
    check_reads("result", result, RESULT, "goal", "space", "trials")
    check_place(ax, title)
    _check_axes(result, x, y)
    budgeted = max_steps is not None or max_epochs is not None
    check_any(result.trials, "hyperparameters")
    result = _within(result, batch_size, max_steps, max_epochs)
    if batch_size is None:
        if ax is not None:
            raise ValueError("hyperparameters: ax holds one batch size; give batch_size with it.")
        return _grid(result, x, y, refined, budgeted, title or "")
    check_batch_size(result, batch_size, caller="hyperparameters")
    y = _default_y(result, [batch_size]) if y is None else y
    ax = new_axes() if ax is None else ax
    best = winners(result).get(batch_size)
    drawn = _draw(ax, result, batch_size, best, x, y, refined) | _equal_rates(
        ax, x, y, labelled=True
    )
    ax.set(xlabel=_label(result, x), ylabel=_label(result, y))
    words = f"{result.name}, batch size {batch_size:,}"
    above = small_text() + 2 if _EQUAL in drawn else 0
    head(ax, words, _handles(drawn, budgeted), title=title, above=above)
    return ax


@dataclasses.dataclass(frozen=True)
class _Budgeted:
    """A result of which what was reached after a budget was not reached."""

    name: str
    goal: Goal
    train_examples: int
    space: SearchSpace
    trials: pd.DataFrame
    measurements: pd.DataFrame

    def steps_to_target(self) -> pd.DataFrame:
        """By the rule that infeasible trials never count."""
        feasible = (self.trials["status"] != Status.INFEASIBLE).to_numpy()
        counts = feasible & (self.trials.index.get_level_values("replicate") == 0)
        reached = self.trials["first_crossing"].where(counts, np.inf).rename("steps")
        table = reached.reset_index().sort_values(["batch_size", "steps", "trial"])
        table = table.drop_duplicates("batch_size")[["batch_size", "steps", "trial"]]
        return table.assign(trial=table["trial"].where(np.isfinite(table["steps"])))


def _within(
    result: Result,
    batch_size: int | None,
    max_steps: float | None,
    max_epochs: float | Fraction | None,
) -> Result:
    if max_steps is None and max_epochs is None:
        return result
    if max_steps is not None and max_epochs is not None:
        raise ValueError("hyperparameters: got max_steps and max_epochs, wanted one budget.")
    trials = result.trials
    if batch_size is not None:
        trials = trials.loc[trials.index.get_level_values("batch_size") == batch_size]
    sizes = trials.index.get_level_values("batch_size").to_numpy()
    last = last_steps(sizes, steps=max_steps, epochs=max_epochs, examples=result.train_examples)
    crossing = trials["first_crossing"].to_numpy(float)
    known = (trials["steps_trained"].to_numpy() >= last) | (crossing <= last)
    short = trials.loc[~known & (trials["status"] != Status.INFEASIBLE).to_numpy()]
    if len(short):
        size, number, _ = short.index[0]
        raise ValueError(
            f"hyperparameters: of {result.name!r} trial {number} at batch size {size} was trained "
            f"for {short['steps_trained'].iloc[0]} steps, less than the budget, and did not reach "
            'the goal by then. To know, call study.extend(folder, stop="budget").'
        )
    within = trials.assign(first_crossing=np.where(crossing <= last, crossing, np.inf))
    return _Budgeted(
        result.name,
        result.goal,
        result.train_examples,
        result.space,
        within,
        result.measurements,
    )


def _grid(
    result: Result,
    x: str,
    y: str | None,
    refined: pd.DataFrame | None,
    budgeted: bool,
    title: str,
) -> np.ndarray:
    batch_sizes = result.trials.index.unique("batch_size").sort_values().tolist()
    y = _default_y(result, batch_sizes) if y is None else y
    width, letters = mpl.rcParams["figure.figsize"][0], text_size() / 72
    columns = min(len(batch_sizes), 4, max(int(width / (10 * letters)), 1))
    rows = math.ceil(len(batch_sizes) / columns)
    figure, axes = plt.subplots(
        rows,
        columns,
        figsize=(width, max(23, 8 + 10.8 * rows) * letters),
        sharex=True,
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    drawn = set()
    best = winners(result)
    used = axes.flat[: len(batch_sizes)]
    for panel, batch_size in zip(used, batch_sizes, strict=True):
        drawn |= _draw(panel, result, batch_size, best.get(batch_size), x, y, refined)
        panel.set_title(f"B = {batch_size:,}", fontsize=small_text())
    for panel in used:
        drawn |= _equal_rates(panel, x, y, labelled=False)
    for panel in axes.flat[len(batch_sizes) :]:
        panel.remove()
    for panel in used[-columns:]:
        panel.tick_params(labelbottom=True)
    figure.supxlabel(_label(result, x), fontsize=text_size())
    figure.supylabel(_label(result, y), fontsize=text_size())
    room = 72 * (width - letters)
    shown = legend(figure, _handles(drawn, budgeted), room, loc="outside upper center")
    if title:
        words = wrapped(plain(title), text_size(), room)
        shown.set_title(words, prop=FontProperties(size=text_size()))
    return used


def _default_y(result: Result, batch_sizes: Iterable[int]) -> str:
    momentum = any("momentum" in result.space.at(size).searched for size in batch_sizes)
    return "one_minus_momentum" if momentum else "first_crossing"


def _check_axes(result: Result, x: str, y: str | None) -> None:
    names = [*result.space.names, *derived(result.trials)]
    for axis, name, allowed in (("x", x, names), ("y", y, [*names, "first_crossing"])):
        if (name is not None or axis == "x") and name not in allowed:
            raise ValueError(
                f"hyperparameters: {axis} is {name!r}, which {result.name!r} does not have; "
                f"it has {listed(allowed)}."
            )


def _draw(
    ax: Axes,
    result: Result,
    batch_size: int,
    best: int | None,
    x: str,
    y: str,
    refined: pd.DataFrame | None,
) -> set[str]:
    """Draws the trials, and returns which kinds of points there are."""
    trials = plain_rows(result.trials, batch_size).assign(refined=False)
    if refined is not None and len(refined):
        trials = pd.concat([trials, plain_rows(refined, batch_size).assign(refined=True)])
    table = trials.join(derived(trials))
    later = table["refined"].to_numpy(bool)
    space = result.space.at(batch_size)
    _scale(ax, "x", x, space)
    _scale(ax, "y", y, space)
    infeasible = table["status"] == "infeasible"
    reached = ~infeasible & np.isfinite(table["first_crossing"])
    kinds = {
        "diverged": infeasible & ~later,
        "not reached when stopped": ~infeasible & ~reached & ~later,
        "goal reached": reached & ~later,
        "refined, goal reached": reached & later,
        "refined, not reached or diverged": ~reached & later,
        "best": table.index == best,
    }
    kinds = {kind: chosen for kind, chosen in kinds.items() if np.any(chosen)}
    for kind, chosen in kinds.items():
        points = table[chosen]
        top = y == "first_crossing" and kind in _UNREACHED
        ax.plot(
            points[x],
            np.ones(len(points)) if top else points[y],
            transform=ax.get_xaxis_transform() if top else ax.transData,
            clip_on=not top,
            linestyle="none",
            label=kind,
            zorder=3,
            **sized(_POINTS[kind]),
        )
        if top:
            beyond(ax, points[x], color=_POINTS[kind]["color"], inside=0.5 * small_text())
    hold_ticks(ax)
    return set(kinds)


def _scale(ax: Axes, axis: Literal["x", "y"], name: str, space: SearchSpace) -> None:
    if name == "first_crossing":
        log2_axis(ax, axis)
    elif name not in space or isinstance(space[name], LogUniform):
        log_axis(ax, axis)  # derived quantities are positive and span decades


def _equal_rates(ax: Axes, x: str, y: str, *, labelled: bool) -> set[str]:
    """Lines of equal effective learning rate, a decade apart, across log axes as they are."""
    named = (x, y) == ("learning_rate", "one_minus_momentum")
    if not named or ax.get_xscale() != "log" or ax.get_yscale() != "log":
        return set()
    (left, right), (bottom, top) = ax.get_xlim(), ax.get_ylim()
    low, high = math.log10(left / top), math.log10(right / bottom)
    for rate in 10.0 ** np.arange(math.ceil(low), math.floor(high) + 1):
        ax.plot([rate * bottom, rate * top], [bottom, top], zorder=1, **sized(_EQUAL_STYLE))
        if labelled:
            # Beyond the edge where the line leaves the axes, clear of the points.
            at_top = rate * top <= right
            ax.annotate(
                f"{rate:g}",
                (rate * top, top) if at_top else (right, right / rate),
                xytext=(0, 2) if at_top else (3, 0),
                textcoords="offset points",
                ha="center" if at_top else "left",
                va="bottom" if at_top else "center",
                color=GREY,
                fontsize=small_text(),
                annotation_clip=False,
            )
    ax.set(xlim=(left, right), ylim=(bottom, top))
    return {_EQUAL}


def _label(result: Result, name: str) -> str:
    if name == "first_crossing":
        return f"Steps to {goal_words(result.goal)}"
    return axis_label(name)


def _handles(drawn: set[str], budgeted: bool) -> list[Line2D]:
    styles = {kind: {"linestyle": "none", **style} for kind, style in _POINTS.items()}
    styles[_EQUAL] = _EQUAL_STYLE
    names = {"best": "best of the search"} if any("refined" in kind for kind in drawn) else {}
    if budgeted:
        names["not reached when stopped"] = "not reached in the budget"
    return [
        Line2D([], [], label=names.get(kind, kind), **sized(styles[kind]))
        for kind in styles
        if kind in drawn
    ]
