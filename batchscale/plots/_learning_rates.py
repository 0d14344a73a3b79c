"""The best learning rate against batch size, and the rules that it might follow."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from batchscale import numeric
from batchscale.plots.asked import RESULT, check_place, check_reads
from batchscale.plots.common import Result, frame, goal_words, head, new_axes
from batchscale.plots.marks import BLUE, GREY, ORANGE, bars, sized
from batchscale.plots.scales import log2_axis, log_axis

_STYLES: dict[str, dict[str, Any]] = {
    "linear rule": {"color": "0.3", "linewidth": 1, "linestyle": (0, (4, 3))},
    "square-root rule": {"color": "0.3", "linewidth": 1.2, "linestyle": (0, (1, 2))},
    "best, by the fitted curve": {
        "color": BLUE, "marker": "o", "markersize": 5.5, "capsize": 3, "linestyle": "none",
    },
    "too few trials for a curve": {
        "color": GREY, "marker": "s", "markersize": 5, "markerfacecolor": "white", "capsize": 3,
        "linestyle": "none",
    },
    "best, by all trials together": {
        "color": BLUE, "marker": "o", "markersize": 5.5, "capsize": 3, "linestyle": "none",
    },
    "fewest steps": {
        "color": ORANGE, "marker": "*", "markersize": 8, "markeredgecolor": "black",
        "markeredgewidth": 0.6, "linestyle": "none",
    },
}  # fmt: skip


class _Tuned(Result, Protocol):
    """A result that knows its learning rates."""

    def learning_rates(self) -> pd.DataFrame:
        """The table of `scaling.learning_rates`, or that of `Measurement.learning_rates`."""
        ...


def learning_rates(
    result: _Tuned,
    *,
    reference: int | None = None,
    ax: Axes | None = None,
    title: str | None = None,
) -> Axes:
    """The best effective learning rate of each batch size, between the rules that it might follow.

    After figure 8 of Shallue et al. (2019), with intervals: bars are the rates that are as good
    within 20%, and the uncertainty of the fit (`scaling.learning_rates`). Open squares come of too
    few trials for a curve. Stars are the single best trials. The rules begin from a reference batch
    size; a batch size that misses the goal is left out. Of a measurement by one design the bars are
    90% intervals of the best rate, and there are no stars.

    Args:
      result: of a study whose trials went on to three times the fewest steps; or a measurement.
      reference: a batch size; if not given, the smallest that reaches the goal.
      ax: where to draw; a new figure if not given.
      title: instead of the figure's own words; an empty one is none.

    Returns:
      The axes.

    Raises:
      ValueError: the study was cut too early, the reference has no learning rate, or no batch size
        reaches the goal.

    >>> from types import SimpleNamespace
    >>> result = SimpleNamespace(
    ...     name="digits/fc_64, sgd",
    ...     goal=SimpleNamespace(metric="validation/error", value=0.05, mode="min"),
    ...     learning_rates=lambda: pd.DataFrame(
    ...         {"batch_size": [4, 64], "centre": [0.2, 0.9], "low": [0.1, 0.5], "high": [0.3, 1.2],
    ...          "interval": "fitted curve", "effective_learning_rate": [0.21, 0.93]}
    ...     ),
    ... )
    >>> ax = learning_rates(result)
    >>> ax.get_ylabel()
    'Best effective learning rate'
    >>> import matplotlib.pyplot as plt
    >>> plt.close(ax.figure)
    """
    check_reads("result", result, RESULT, "learning_rates")
    check_place(ax, title)
    table = result.learning_rates().sort_values("batch_size")
    table = table.take(np.flatnonzero(table["centre"].notna()))
    sizes = table["batch_size"].to_numpy(float)
    if len(sizes) == 0:
        raise ValueError(f"learning_rates: {result.name!r} reaches its goal at no batch size.")
    reference = int(sizes[0]) if reference is None else reference
    if numeric.plain(reference) not in sizes.tolist():
        raise ValueError(
            f"learning_rates: {result.name!r} has no learning rate at reference={reference!r}; it "
            f"has those of {', '.join(str(int(size)) for size in sizes)}."
        )
    ax = new_axes() if ax is None else ax
    log2_axis(ax, "x")
    log_axis(ax, "y")
    handles = []
    kinds = [("best, by all trials together", table)]
    if "interval" in table:
        fitted = table["interval"].to_numpy() == "fitted curve"
        kinds = [
            ("best, by the fitted curve", table[fitted]),
            ("too few trials for a curve", table[~fitted]),
        ]
    for kind, chosen in kinds:
        if len(chosen):
            columns = (chosen[name] for name in ("batch_size", "centre", "low", "high"))
            handles.append(bars(ax, *columns, label=kind, zorder=3, **_STYLES[kind]))
    if "effective_learning_rate" in table:
        handles += ax.plot(
            sizes, table["effective_learning_rate"], label="fewest steps", zorder=4,
            **sized(_STYLES["fewest steps"]),
        )  # fmt: skip
    bottom, top = ax.get_ylim()
    begin = table.loc[table["batch_size"] == reference, "centre"].item()
    for kind, power in (("linear rule", 1.0), ("square-root rule", 0.5)):
        rates = begin * (sizes / reference) ** power
        handles += ax.plot(sizes, rates, label=kind, zorder=2, **sized(_STYLES[kind]))
    # The rules may lead far out of the view, which is that of the measured rates.
    ax.set_ylim(bottom, top * 2)
    ax.set_xlabel("Batch size (examples)")
    ax.set_ylabel("Best effective learning rate")
    frame(ax)
    head(ax, f"{result.name}, {goal_words(result.goal)}", handles, title=title)
    return ax
