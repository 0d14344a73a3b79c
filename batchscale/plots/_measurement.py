"""What one design has measured: steps with their intervals, the curve, and what checked them."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes

from batchscale.measurement import Measurement
from batchscale.numeric import short
from batchscale.plots import common, marks, scales
from batchscale.plots.asked import MEASUREMENT, check_place, check_reads


def measurement(found: Measurement, ax: Axes | None = None, *, title: str | None = None) -> Axes:
    """Steps to target of the best settings, the fitted curve, and the medians of fresh seeds.

    The bars are 90% intervals, with an arrow where they have no end; the dashed line is perfect
    scaling, from the smallest batch size that reached the goal. Open squares are the medians
    under fresh seeds, which took no part in the prediction; at the upper edge where half of them
    missed the goal. Where no critical batch size is quoted there is no curve.

    Args:
      found: of `Study.measure`, or `Result.measurement`.
      ax: to draw into; a new figure if None.
      title: instead of the figure's own words; an empty one is none.
    """
    check_reads("found", found, MEASUREMENT, "table", "scaling")
    check_place(ax, title)
    ax = common.new_axes() if ax is None else ax
    table, fit = found.table, found.scaling()
    sizes = table["batch_size"].to_numpy(float)
    reached = table.loc[np.isfinite(table["steps"])]
    handles: list[Any] = [
        marks.bars(
            ax, *(reached[name] for name in ("batch_size", "steps", "low", "high")),
            color=marks.BLUE, marker="o",
            label="best setting, median with 90% interval",
        )
    ]  # fmt: skip
    if len(reached):
        first = reached.iloc[0]
        start, steps = float(first["batch_size"]), float(first["steps"])
        handles.append(marks.perfect_scaling_line(ax, sizes, start=start, steps=steps))
    seen = found.calibration.loc[np.isfinite(found.calibration["seen"])]
    handles += ax.plot(
        seen["batch_size"], seen["seen"], "s", color=marks.VERMILION, markerfacecolor="none",
        label="median of fresh seeds", zorder=3, **marks.sized({"markersize": 8}),
    )  # fmt: skip
    missed = found.calibration.loc[np.isinf(found.calibration["seen"]), "batch_size"]
    if len(missed):
        marks.mark_misses(ax, missed, color=marks.VERMILION, marker="s")
    if not fit.refused:
        at = np.geomspace(sizes[0], sizes[-1], 200)
        label = f"fitted curve, critical batch size {short(fit.b_crit)}"
        line = marks.sized({"linewidth": 1})
        handles += ax.plot(at, fit.steps(at), "-", color="0.4", label=label, **line)
    scales.log2_axis(ax, "x")
    scales.log2_axis(ax, "y")
    ax.set_xlabel("Batch size (examples)")
    ax.set_ylabel(f"Steps to {common.goal_words(found.goal)}")
    common.frame(ax)
    common.head(ax, f"{found.name}: measured by one design", handles, title=title)
    return ax
