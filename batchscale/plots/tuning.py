"""Tuning curves: steps to target against the number of trials."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Protocol, runtime_checkable

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from batchscale.given import several
from batchscale.plots.asked import RESULT, check_place, check_reads
from batchscale.plots.common import Goal, check_any, frame, goal_words, head, listed, new_axes
from batchscale.plots.marks import (
    COLORS,
    GREY,
    MISS,
    band,
    beyond,
    label_ends,
    looks,
    mark_misses,
    sized,
)
from batchscale.plots.scales import log2_axis

_SHOWN = 4  # batch sizes, if not chosen: more bands hide one another
_EDGES = ("-", (0, (5, 2)), (0, (1, 1)), (0, (5, 1.5, 1, 1.5)), (0, (2, 3)), (0, (8, 1.5)))


@runtime_checkable
class Result(Protocol):
    """What the figure reads of the result of a study."""

    @property
    def name(self) -> str:
        """Workload and optimizer."""
        ...

    @property
    def goal(self) -> Goal:
        """What a trial has to reach."""
        ...

    def tuning_curve(self) -> pd.DataFrame:
        """`batch_size`, `n`, `median`, `low` and `high`, one row a batch size and n."""
        ...


def tuning_curve(
    result: Result,
    *,
    ax: Axes | None = None,
    batch_sizes: Collection[int] | None = None,
    title: str | None = None,
) -> Axes:
    """Steps to the goal against the number of trials, on log2 axes, one line a batch size.

    The line is the median of the best of n trials, the band the interval of what a new search
    with n trials reports. A band that leaves through the top, at an arrowhead, says that such a
    search may miss the goal, or that the trials are too few to tell; a median that is a miss is an
    open marker there. More than six lines are shades in their order, named at their ends, and have
    no bands.

    Args:
      result: of a study.
      ax: where to draw; a new figure if not given.
      batch_sizes: which to draw; if not given, up to 4 from the smallest to the largest.
      title: instead of the figure's own words; an empty one is none.

    Returns:
      The axes.

    Raises:
      ValueError: the result has no such batch size.

    >>> from types import SimpleNamespace
    >>> table = {"batch_size": 8, "n": [1, 2], "median": [90.0, 70.0], "low": [50.0, 40.0]}
    >>> result = SimpleNamespace(
    ...     name="mnist/fc_128_128_128, sgd",
    ...     goal=SimpleNamespace(metric="validation/error", value=0.03, mode="min"),
    ...     tuning_curve=lambda: pd.DataFrame({**table, "high": [float("inf"), 99.0]}),
    ... )
    >>> ax = tuning_curve(result)
    >>> [text.get_text() for text in ax.get_legend().get_texts()]
    ['batch size 8', 'interval of a new search']
    >>> import matplotlib.pyplot as plt
    >>> plt.close(ax.figure)
    """
    check_reads("result", result, RESULT, "tuning_curve")
    check_place(ax, title)
    table = result.tuning_curve()
    check_any(table, "tuning_curve")
    chosen = _chosen(table, batch_sizes, result.name)
    ax = new_axes() if ax is None else ax
    log2_axis(ax, "x")
    log2_axis(ax, "y")
    table = table[table["batch_size"].isin(chosen)].sort_values("n")
    bottom, top = _range(table)
    lines: list[Line2D] = []
    for place, (size, look) in enumerate(zip(chosen, looks(len(chosen)), strict=True)):
        own = table[table["batch_size"] == size]
        if len(chosen) <= len(COLORS):
            _interval(ax, own, look["color"], _EDGES[place], bottom, top)
        finite = np.isfinite(own["median"])
        lines += ax.plot(
            own["n"],
            own["median"].where(finite),
            label=f"batch size {size:,}",
            zorder=3,
            **sized({"markersize": 5.5}),
            **look,
        )
        missed = own.loc[~finite, "n"]
        if len(missed):
            mark_misses(ax, missed, color=look["color"], marker=look["marker"])
    ax.set_ylim(bottom, top)
    handles: list[Any] = list(lines)
    if len(lines) > len(COLORS):
        handles = [Line2D([], [], color="none", label="at the ends of lines: batch sizes")]
    if np.isinf(table["median"]).any():
        handles.append(Line2D([], [], color="black", marker="o", **sized(MISS)))
    if len(lines) <= len(COLORS):
        look = sized({"linewidth": 8})
        handles.append(
            Line2D([], [], color=GREY, label="interval of a new search", alpha=0.4, **look)
        )
    ax.set(xlabel="Trials of the search", ylabel=f"Steps to {goal_words(result.goal)}")
    frame(ax)
    height = head(ax, result.name, handles, title=title)
    if len(lines) > len(COLORS):
        label_ends(ax, lines, [f"{size:,}" for size in chosen], height=height)
    return ax


def _interval(
    ax: Axes, own: pd.DataFrame, color: Any, edges: Any, bottom: float, top: float
) -> None:
    """A band, or of a single n a bar; its edges have dashes of their own."""
    low, high = own["low"].clip(bottom, top), own["high"].clip(bottom, top)
    if len(own) > 1:
        band(ax, own["n"], low, high, color=color, alpha=0.07, linestyle=edges, zorder=2)
    else:
        look = sized({"linewidth": 8})
        ax.vlines(own["n"], low, high, color=color, zorder=2, alpha=0.18, **look)
    open_ends = own.loc[np.isposinf(own["high"]) & np.isfinite(own["median"]), "n"]
    if len(open_ends):
        beyond(ax, open_ends, color=color)


def _chosen(table: pd.DataFrame, batch_sizes: Collection[int] | None, name: str) -> list[int]:
    """The batch sizes to draw, in order."""
    measured = sorted(table["batch_size"].unique().tolist())
    if batch_sizes is None:
        places = np.linspace(0, len(measured) - 1, min(_SHOWN, len(measured))).round()
        return [measured[int(place)] for place in places]
    batch_sizes = several("batch_sizes", batch_sizes, "batch sizes, in a list")
    if not batch_sizes:
        raise ValueError("batch_sizes: got none, wanted at least one.")
    unknown = sorted(set(batch_sizes) - set(measured), key=str)
    if unknown:
        raise ValueError(
            f"tuning_curve: {name!r} has no batch size {listed(unknown)}; it has "
            f"{listed(measured)}."
        )
    return sorted(set(batch_sizes))


def _range(table: pd.DataFrame) -> tuple[float, float]:
    """The steps in view: all that a log axis can show."""
    shown = table[["median", "low", "high"]].to_numpy(np.float64)
    shown = shown[np.isfinite(shown) & (shown > 0)]
    if len(shown) == 0:
        return 0.5, 2.0
    return shown.min() / 2**0.25, shown.max() * 2**0.25
