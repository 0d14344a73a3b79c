"""The tuned settings under fresh seeds, beside the best of N trials."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.lines import Line2D

from batchscale.confirmation import Confirmation
from batchscale.plots import common, marks, scales
from batchscale.plots.asked import RESULT, check_place, check_reads


class _Confirmed(common.Result, Protocol):
    """A result whose settings were run again."""

    def confirmation(self) -> Confirmation:
        """What was found out under fresh seeds."""
        ...


def confirmation(result: _Confirmed, ax: Axes | None = None, *, title: str | None = None) -> Axes:
    """Both curves of steps to target: of the tuned setting, and of the luckiest trial.

    The dark band is the interval of the median, the pale one, with dotted edges, holds four fifths
    of single runs. Where one has no end, for seeds miss or are too few, a bar goes to the edge,
    with an arrowhead. A batch size whose median is a miss is an open marker at the top edge.

    Args:
      result: of a study after `Study.confirm`.
      ax: to draw into; a new figure if None.
      title: instead of the figure's own words; an empty one is none.

    Raises:
      FileNotFoundError: `Study.confirm` has not been called.
      ValueError: nothing reached the goal.
    """
    check_reads("result", result, RESULT, "confirmation")
    check_place(ax, title)
    found = result.confirmation()
    table = found.table.loc[found.table["steps"].notna()].sort_values("batch_size")
    missed = table.loc[np.isinf(table["steps"]), "batch_size"]
    if len(missed) == len(table):
        raise ValueError("confirmation: no setting reached the goal; there is nothing to draw.")
    ax = ax or common.new_axes()
    sizes = table["batch_size"].to_numpy(float)
    median = table["steps"].where(np.isfinite(table["steps"]))
    handles: list[Artist] = []

    columns = ["steps", "low", "high", "quantile_10", "quantile_90", "best_of_n"]
    values = table[columns].to_numpy(float)
    # What has no end goes to the edge, and does not move it.
    known = values[np.isfinite(values) & (values > 0)]
    bottom_edge, edge = float(known.min()) / 1.3, 1.3 * float(known.max())
    open_ends: dict[str, set[float]] = {"top": set(), "bottom": set()}

    def band(low: str, high: str, alpha: float, edges: Any, label: str) -> None:
        bottom = table[low].where(median.notna()).to_numpy(float)
        top = table[high].to_numpy(float)
        open_ends["top"].update(sizes[np.isinf(top) & np.isfinite(bottom)])
        open_ends["bottom"].update(sizes[bottom <= 0])
        # An open end is that of one batch size, and says nothing of those between it and others.
        bars = np.isinf(top) | (bottom <= 0) if len(table) > 1 else np.array([True])
        begin = np.where(bottom > 0, bottom, bottom_edge / 2)[bars]
        look = marks.sized({"linewidth": 8})
        drawn: Artist = ax.vlines(
            sizes[bars],
            np.where(np.isnan(bottom[bars]), np.nan, begin),
            np.minimum(top[bars], 2 * edge),
            color=to_rgba(marks.BLUE, alpha),
            label=label,
            **look,
        )
        if not bars.all():
            inner = [_between(sizes, end, bars & np.isfinite(bottom)) for end in (bottom, top)]
            style = {"color": marks.BLUE, "alpha": alpha, "linestyle": edges, "label": label}
            drawn = marks.band(ax, sizes, *inner, **style)
        handles.append(drawn)

    band("quantile_10", "quantile_90", 0.1, (0, (1, 1)), "10% to 90% of seeds")
    band("low", "high", 0.28, "-", f"{found.confidence:.0%} interval of the median")
    points = marks.sized({"markersize": 5.5})
    handles += ax.plot(
        sizes, median, "o-", color=marks.BLUE, label="tuned setting, median", **points
    )
    best = found.table.loc[np.isfinite(found.table["best_of_n"])]
    handles += ax.plot(
        best["batch_size"], best["best_of_n"], "s--", color=marks.VERMILION, label="best of N",
        markerfacecolor="white", **points,
    )  # fmt: skip
    if len(missed):
        marks.mark_misses(ax, missed, color=marks.BLUE, marker="o")
        handles.append(Line2D([], [], color=marks.BLUE, marker="o", **marks.sized(marks.MISS)))
    if open_ends["top"]:
        marks.beyond(ax, sorted(open_ends["top"]), color=marks.BLUE)
    if open_ends["bottom"]:
        marks.beyond(ax, sorted(open_ends["bottom"]), color=marks.BLUE, edge="bottom")
        ax.set_ylim(bottom=bottom_edge)
    scales.log2_axis(ax, "x")
    scales.log2_axis(ax, "y")
    ax.set_ylim(top=edge)
    scales.mark_full_batches(ax, {result.train_examples} & set(found.table["batch_size"]))
    ax.set_xlabel("Batch size (examples)")
    ax.set_ylabel(f"Steps to {common.goal_words(result.goal)}")
    common.frame(ax)
    common.head(
        ax, f"{result.name}: the tuned setting, and the luckiest trial", handles, title=title
    )
    return ax


def _between(sizes: np.ndarray, ends: np.ndarray, left_out: np.ndarray) -> np.ndarray:
    """Ends of intervals, and on the line between their neighbours where they are left out."""
    kept = ~left_out & np.isfinite(ends)
    logs = np.interp(np.log(sizes), np.log(sizes[kept]), np.log(ends[kept]))
    return np.where(left_out, np.exp(logs), ends)
