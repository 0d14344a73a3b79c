"""Studies of one goal in one figure, with their intervals and curves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from batchscale.numeric import short
from batchscale.plots import common, marks, scales
from batchscale.plots.asked import check_place, check_reads
from batchscale.scaling import Fit


class _Comparison(Protocol):
    """What is read of a comparison."""

    @property
    def steps(self) -> Mapping[str, pd.DataFrame]:
        """By name."""
        ...

    @property
    def fits(self) -> Mapping[str, Fit]:
        """By name."""
        ...

    @property
    def goal(self) -> str:
        """In words."""
        ...

    @property
    def confidence(self) -> float:
        """Of the intervals."""
        ...


def comparison(found: _Comparison, ax: Axes | None = None, *, title: str | None = None) -> Axes:
    """Steps to target of each study with their intervals, and its curve, where one is quoted.

    Studies are told apart by colour, marker and, more than six, dashes; every other one has open
    markers. An interval without an end is an arrow to the edge. A batch size that does not reach
    the goal is an open marker at the top edge.

    Args:
      found: of `compare`.
      ax: to draw into; a new figure if None.
      title: instead of the figure's own words; an empty one is none.

    Raises:
      ValueError: nothing reached the goal.
    """
    check_reads("found", found, "what batchscale.compare returns", "steps", "fits", "goal")
    check_place(ax, title)
    reached = {name: table.loc[np.isfinite(table["steps"])] for name, table in found.steps.items()}
    if not any(len(table) for table in reached.values()):
        raise ValueError("comparison: no study reached the goal; there is nothing to draw.")
    ax = common.new_axes() if ax is None else ax
    scales.log2_axis(ax, "x")
    scales.log2_axis(ax, "y")
    handles: list[Any] = []
    bounded = missed = False
    for place, (name, look) in enumerate(zip(reached, marks.looks(len(reached)), strict=True)):
        table, fit = reached[name], found.fits[name]
        sizes, steps = table[["batch_size", "steps"]].to_numpy(float).T
        curve, shown = not fit.refused, common.plain(name)
        style = {
            "label": f"{shown}, critical batch size {short(fit.b_crit)}" if curve else shown,
            "color": look["color"],
            "marker": look["marker"],
            "markerfacecolor": "white" if place % 2 else look["color"],
            "zorder": 3,
        }
        if "low" in table:
            bounded = True
            low, high = table[["low", "high"]].to_numpy(float).T
            handles.append(marks.bars(ax, sizes, steps, low, high, **style))
        else:
            points = marks.sized({"markersize": 5.5, "linestyle": "none"})
            handles += ax.plot(sizes, steps, **style, **points)
        if curve and len(sizes):
            at = np.geomspace(sizes[0], sizes[-1], 200)
            line = {"color": look["color"], "linestyle": look["linestyle"], "linewidth": 1.2}
            ax.plot(at, fit.steps(at), **marks.sized(line))
        whole = found.steps[name]
        misses = whole.loc[np.isposinf(whole["steps"]), "batch_size"]
        if len(misses):
            missed = True
            marks.mark_misses(ax, misses, color=look["color"], marker=look["marker"])
    if missed:
        handles.append(Line2D([], [], color="black", marker="o", **marks.sized(marks.MISS)))
    ax.set_xlabel("Batch size (examples)")
    ax.set_ylabel(f"Steps to {common.in_words(found.goal)}")
    common.frame(ax)
    words = "Studies compared"
    if bounded:
        words += f"; bars are {found.confidence:.0%} intervals"
    common.head(ax, words, handles, title=title)
    return ax
