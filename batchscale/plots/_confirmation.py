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


class _Confirmed(common.Result, Protocol):
    """A result whose settings were run again."""

    def confirmation(self) -> Confirmation:
        """What was found out under fresh seeds."""
        ...


def confirmation(result: _Confirmed, ax: Axes | None = None, *, title: str | None = None) -> Axes:
    """Both curves of steps to target: of the tuned setting, and of the luckiest trial.

    The dark band is the interval of the median, the pale one, with dotted edges, holds four fifths
    of single runs. Where one has no upper end, for seeds miss or are too few, a bar goes to the top
    edge, with an arrowhead. A batch size whose median is a miss is an open marker there.

    Args:
      result: of a study after `Study.confirm`.
      ax: to draw into; a new figure if None.
      title: instead of the figure's own words; an empty one is none.

    Raises:
      FileNotFoundError: `Study.confirm` has not been called.
      ValueError: nothing reached the goal.
    """
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
    # What has no upper end goes to the edge, and does not move it.
    edge = 1.3 * float(values[np.isfinite(values)].max())

    def band(low: str, high: str, alpha: float, edges: Any, label: str) -> None:
        bottom = table[low].clip(lower=1).where(median.notna()).to_numpy(float)
        top = table[high].to_numpy(float)
        # An open end is that of one batch size, and says nothing of those between it and others.
        bars = np.isinf(top) if len(table) > 1 else np.array([True])
        ends = np.minimum(top[bars], 2 * edge)
        look = marks.sized({"linewidth": 8})
        drawn: Artist = ax.vlines(
            sizes[bars], bottom[bars], ends, color=to_rgba(marks.BLUE, alpha), label=label, **look
        )
        open_ends.update(sizes[np.isinf(top) & np.isfinite(bottom)])
        if not bars.all():
            logs = np.interp(np.log(sizes), np.log(sizes[~bars]), np.log(top[~bars]))
            style = {"color": marks.BLUE, "alpha": alpha, "linestyle": edges, "label": label}
            drawn = marks.band(ax, sizes, bottom, np.exp(logs), **style)
        handles.append(drawn)

    open_ends = set[float]()
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
    if open_ends:
        marks.beyond(ax, sorted(open_ends), color=marks.BLUE)
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
