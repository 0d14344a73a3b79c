"""The tuned settings under fresh seeds, beside the best of N trials."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes

from batchscale.confirmation import Confirmation
from batchscale.plots import common


def confirmation(found: Confirmation, ax: Axes | None = None) -> Axes:
    """Both curves of steps to target: of the tuned setting, and of the luckiest trial.

    The dark band is the interval of the median, the pale one holds four fifths of single runs.

    Args:
      found: of `Study.confirm` or `Result.confirmation`.
      ax: to draw into; a new figure if None.

    Raises:
      ValueError: nothing reached the goal.
    """
    table = found.table.loc[np.isfinite(found.table["steps"])].sort_values("batch_size")
    if not len(table):
        raise ValueError("confirmation: no setting reached the goal; there is nothing to draw.")
    ax = ax or common.new_axes()
    sizes = table["batch_size"].to_numpy(float)

    def band(low: str, high: str, alpha: float, label: str) -> None:
        top = table[high].where(np.isfinite(table[high]), table["steps"].max() * 4)
        ax.fill_between(
            sizes, np.maximum(table[low], 1), top, color=common.BLUE, alpha=alpha, lw=0, label=label
        )

    band("quantile_10", "quantile_90", 0.15, "10% to 90% of seeds")
    band("low", "high", 0.3, f"{found.confidence:.0%} interval of the median")
    ax.plot(sizes, table["steps"], "o-", color=common.BLUE, label="tuned setting, median")
    best = found.table.loc[np.isfinite(found.table["best_of_n"])]
    ax.plot(
        best["batch_size"], best["best_of_n"], "s--", color=common.VERMILION, label="best of N",
        markerfacecolor="white",
    )  # fmt: skip
    common.log2_axis(ax, "x")
    common.log2_axis(ax, "y")
    ax.set_xlabel("Batch size")
    ax.set_ylabel("Steps to target")
    ax.legend(frameon=False, fontsize=common.FONT_SIZE)
    return ax
