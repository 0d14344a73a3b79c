"""What one design has measured: steps with their intervals, the curve, and what checked them."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes

from batchscale.measurement import Measurement
from batchscale.plots import common


def measurement(found: Measurement, ax: Axes | None = None) -> Axes:
    """Steps to target of the best settings, the fitted curve, and the medians of fresh seeds.

    The bars are 90% intervals. Open squares are the medians under fresh seeds, which took no part
    in the prediction; where half of them missed there is none. Where no critical batch size is
    quoted there is no curve.

    Args:
      found: of `Study.measure`, or `Result.measurement`.
      ax: to draw into; a new figure if None.
    """
    ax = common.new_axes() if ax is None else ax
    table, fit = found.table, found.scaling()
    sizes, steps, low, high = table[["batch_size", "steps", "low", "high"]].to_numpy(float).T
    handles: list[Any] = [
        ax.errorbar(
            sizes, steps, [steps - low, high - steps], fmt="o", color=common.BLUE, capsize=2,
            label="best setting, median with 90% interval",
        )
    ]  # fmt: skip
    seen = found.calibration.loc[np.isfinite(found.calibration["seen"])]
    handles += ax.plot(
        seen["batch_size"], seen["seen"], "s", color=common.VERMILION, markerfacecolor="none",
        label="median of fresh seeds",
    )  # fmt: skip
    if not fit.refused:
        at = np.geomspace(sizes[0], sizes[-1], 200)
        label = f"fitted curve, critical batch size {fit.b_crit:.3g}"
        handles += ax.plot(at, fit.steps(at), "-", color="0.4", lw=1, label=label)
    common.log2_axis(ax, "x")
    common.log2_axis(ax, "y")
    ax.set_xlabel("Batch size (examples)")
    ax.set_ylabel(f"Steps to {common.goal_words(found.goal)}")
    ax.grid(color="0.92", linewidth=0.6)
    ax.set_axisbelow(True)
    common.head(ax, f"{found.name}: measured by one design", handles)
    return ax
