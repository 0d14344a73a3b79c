"""All trials of a measurement by one design: what the learning rate does at each batch size."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from batchscale.measurement import Measurement
from batchscale.plots import common, marks, scales
from batchscale.plots.asked import MEASUREMENT, check_place, check_reads
from batchscale.plots.room import axes_room, small_text
from batchscale.records import Status


def measured_trials(
    found: Measurement, ax: Axes | None = None, *, title: str | None = None
) -> Axes:
    """Steps to target of every trial against its learning rate, and the quoted settings.

    A shade is a batch size, the darker the larger, and the quoted setting is a star. Trials that
    diverged are crosses at the upper edge; those that were cut before they reached the goal, as no
    more could be learned of them, are left out.

    Args:
      found: of `Study.measure`, or `Result.measurement`.
      ax: to draw into; a new figure if None.
      title: instead of the figure's own words; an empty one is none.

    Raises:
      ValueError: the learning rate is not searched.
    """
    check_reads("found", found, MEASUREMENT, "table", "trials")
    check_place(ax, title)
    if "learning_rate" not in found.table:
        raise ValueError(
            f"measured_trials: {found.name!r} searches {', '.join(found.space_names)}, and no "
            "learning_rate."
        )
    ax = common.new_axes() if ax is None else ax
    scales.log_axis(ax, "x")
    scales.log2_axis(ax, "y")
    sizes = found.table["batch_size"].tolist()
    quoted = found.table.set_index("batch_size")
    all_sizes = found.trials.index.get_level_values("batch_size").to_numpy()
    rates, steps = found.trials[["learning_rate", "first_crossing"]].to_numpy(float).T
    gone = (found.trials["status"] == Status.INFEASIBLE).to_numpy()
    lost: set[float] = set()
    for size, shade in zip(sizes, marks.shades(len(sizes)), strict=True):
        here = all_sizes == size
        reached = here & np.isfinite(steps)
        ax.plot(
            rates[reached], steps[reached], linestyle="none", marker="o", color=shade, alpha=0.55,
            markeredgewidth=0, zorder=2, **marks.sized({"markersize": 4.5}),
        )  # fmt: skip
        lost.update(rates[here & gone].tolist())
    for size, shade in zip(sizes, marks.shades(len(sizes)), strict=True):
        at = quoted.loc[size]
        ax.plot(
            [at["learning_rate"]], [at["steps"]], linestyle="none", marker="*", color=shade,
            markeredgecolor="black", zorder=4,
            **marks.sized({"markersize": 11, "markeredgewidth": 0.7}),
        )  # fmt: skip
    if lost:
        ax.plot(
            sorted(lost), np.full(len(lost), 0.985), transform=ax.get_xaxis_transform(),
            linestyle="none", marker="x", color=marks.VERMILION, zorder=3,
            **marks.sized({"markersize": 4.5, "markeredgewidth": 1.0}),
        )  # fmt: skip
    ax.set_xlabel("Learning rate")
    ax.set_ylabel(f"Steps to {common.goal_words(found.goal)}")
    common.frame(ax)
    handles = [
        _handle("o", "0.4", "trial", markeredgewidth=0, markersize=4.5),
        _handle("*", "0.7", "quoted setting", markeredgecolor="black", markersize=10),
    ]
    if lost:
        handles.append(_handle("x", marks.VERMILION, "diverged", markersize=4.5))
    common.head(ax, f"{found.name}, all trials, by batch size", handles, title=title)
    _key(ax, sizes)
    return ax


def _key(ax: Axes, sizes: list[int]) -> None:
    """Which shade is which batch size, right of the axes: the smallest, of most steps, on top."""
    text = small_text()
    wide, high = axes_room(ax)
    apart = min(1.5 * text / high, 0.9 / max(len(sizes), 1))
    places = 0.5 + apart * (len(sizes) / 2 - np.arange(len(sizes)))
    style = {"transform": ax.transAxes, "clip_on": False}
    left = 1 + 1.2 * text / wide
    ax.text(left, places[0] + 1.2 * apart, "batch size", fontsize=text, va="center", **style)
    for size, shade, place in zip(sizes, marks.shades(len(sizes)), places, strict=True):
        ax.plot(
            [left + 0.4 * text / wide], [place], marker="o", color=shade, **style,
            **marks.sized({"markersize": 5}),
        )  # fmt: skip
        ax.text(left + 1.2 * text / wide, place, f"{size:,}", fontsize=text, va="center", **style)


def _handle(marker: str, color: str, label: str, **style: Any) -> Line2D:
    look = marks.sized(style)
    return Line2D([], [], linestyle="none", marker=marker, color=color, label=label, **look)
