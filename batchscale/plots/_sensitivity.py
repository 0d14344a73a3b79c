"""The share of a search space that works, against batch size."""

from __future__ import annotations

from fractions import Fraction
from typing import Any, Protocol

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import PercentFormatter

from batchscale.plots.asked import RESULT, check_place, check_reads
from batchscale.plots.common import Result, check_any, frame, goal_words, head, new_axes
from batchscale.plots.marks import BLUE, GREEN, VERMILION, band, sized
from batchscale.plots.scales import log2_axis

_LINES: dict[str, dict[str, Any]] = {
    "reached": {"color": BLUE, "marker": "o", "linestyle": "-"},
    "near": {"color": GREEN, "marker": "s", "linestyle": (0, (5, 2))},
    "infeasible": {"color": VERMILION, "marker": "x", "linestyle": (0, (1, 1.5))},
}


class _Searched(Result, Protocol):
    """A result that knows which share of its trials works."""

    def sensitivity(
        self, *, within: float, max_steps: float | None, max_epochs: float | Fraction | None
    ) -> pd.DataFrame:
        """The table of `tuner.sensitivity`."""
        ...


def sensitivity(
    result: _Searched,
    *,
    within: float = 2.0,
    max_steps: float | None = None,
    max_epochs: float | Fraction | None = None,
    ax: Axes | None = None,
    title: str | None = None,
) -> Axes:
    """Which share of the trials reaches the goal, nearly as fast as the best, or diverges.

    With Wilson intervals of 90% as bands. Where a trial lies is in `hyperparameters`. The share
    that reaches the goal is left out where trials were stopped before their budget. A share that is
    zero at every batch size is said, and not drawn.

    Args:
      result: of a study.
      within: how many times the fewest steps are nearly as fast.
      max_steps: a budget in steps; none if not given.
      max_epochs: a budget in passes over the training set.
      ax: where to draw; a new figure if not given.
      title: instead of the figure's own words; an empty one is none.

    Returns:
      The axes.

    Raises:
      ValueError: the study was cut too early to tell.

    >>> from types import SimpleNamespace
    >>> shares = {"reached": 0.5, "near": 0.25, "infeasible": 0.1}
    >>> shares |= {f"{share}_low": 0.0 for share in shares}
    >>> shares |= {f"{share}_high": 0.9 for share in ("reached", "near", "infeasible")}
    >>> result = SimpleNamespace(
    ...     name="digits/fc_64, sgd",
    ...     goal=SimpleNamespace(metric="validation/error", value=0.05, mode="min"),
    ...     sensitivity=lambda **budget: pd.DataFrame({"batch_size": [1, 4]}).assign(**shares),
    ... )
    >>> ax = sensitivity(result, max_steps=100)
    >>> ax.get_ylabel()
    'Share of the trials'
    >>> import matplotlib.pyplot as plt
    >>> plt.close(ax.figure)
    """
    check_reads("result", result, RESULT, "sensitivity")
    check_place(ax, title)
    table = result.sensitivity(within=within, max_steps=max_steps, max_epochs=max_epochs)
    check_any(table, "sensitivity")
    table = table.sort_values("batch_size")
    words = {
        "reached": "reaches the goal",
        "near": f"within {within:g} times the fewest steps",
        "infeasible": "diverged",
    }
    ax = new_axes() if ax is None else ax
    log2_axis(ax, "x")
    handles, most = [], 0.0
    for share, style in _LINES.items():
        known = table[table[share].notna()]
        if known.empty:
            continue
        if not known[share].any():
            handles.append(Line2D([], [], color="none", label=f"({words[share]}: none)"))
            continue
        handles += ax.plot(
            table["batch_size"],
            table[share],
            label=words[share],
            zorder=3,
            clip_on=False,
            **sized({"markersize": 5.5} | style),
        )
        low, high = table[f"{share}_low"], table[f"{share}_high"]
        look = {"color": style["color"], "linestyle": style["linestyle"], "zorder": 2}
        band(ax, table["batch_size"], low, high, **look)
        most = max(most, float(known[f"{share}_high"].max()))
    ax.set_ylim(0, min(1.0, 1.1 * most) or 1.0)
    ax.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    ax.set_xlabel("Batch size (examples)")
    ax.set_ylabel("Share of the trials")
    frame(ax)
    goal = goal_words(result.goal)
    if max_steps is not None:
        goal += f" in {max_steps:,} steps"
    if max_epochs is not None:
        goal += f" in {max_epochs} epochs"
    head(ax, f"{result.name}, {goal}", handles, title=title)
    return ax
