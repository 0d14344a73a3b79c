"""Studies of one goal in one figure, with their intervals and curves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from batchscale.plots import common
from batchscale.scaling import Fit

_MARKERS = "osD^vP"


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


def comparison(found: _Comparison, ax: Axes | None = None) -> Axes:
    """Steps to target of each study with their intervals, and its curve, where one is quoted.

    Studies are told apart by colour and by marker. A batch size that does not reach the goal has no
    point.

    Args:
      found: of `compare`.
      ax: to draw into; a new figure if None.

    Raises:
      ValueError: nothing reached the goal.
    """
    reached = {name: table.loc[np.isfinite(table["steps"])] for name, table in found.steps.items()}
    if not any(len(table) for table in reached.values()):
        raise ValueError("comparison: no study reached the goal; there is nothing to draw.")
    ax = common.new_axes() if ax is None else ax
    handles: list[Any] = []
    for place, (name, table) in enumerate(reached.items()):
        color = common.COLORS[place % len(common.COLORS)]
        sizes, steps = table[["batch_size", "steps"]].to_numpy(float).T
        bars = None
        if "low" in table:
            low, high = table[["low", "high"]].to_numpy(float).T
            bars = [steps - low, np.where(np.isfinite(high), high - steps, 0)]
        fit = found.fits[name]
        curve = not fit.refused
        label = f"{name}, critical batch size {fit.b_crit:.3g}" if curve else name
        handles.append(
            ax.errorbar(
                sizes, steps, bars, fmt=_MARKERS[place % len(_MARKERS)], color=color, capsize=2,
                label=label,
            )
        )  # fmt: skip
        if curve and len(sizes):
            at = np.geomspace(sizes[0], sizes[-1], 200)
            ax.plot(at, fit.steps(at), "-", color=color, lw=1)
    common.log2_axis(ax, "x")
    common.log2_axis(ax, "y")
    ax.set_xlabel("Batch size (examples)")
    ax.set_ylabel(f"Steps to {found.goal}")
    ax.grid(color="0.92", linewidth=0.6)
    ax.set_axisbelow(True)
    common.head(ax, f"Studies compared; bars are {found.confidence:.0%} intervals", handles)
    return ax
