"""Time against cost: what a larger batch size buys, and for how many examples."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.patheffects import withStroke

from batchscale import scaling
from batchscale.confirmation import Confirmation
from batchscale.numeric import short
from batchscale.plots.asked import RESULT, check_place, check_reads
from batchscale.plots.common import Result, frame, goal_words, head, medians, new_axes
from batchscale.plots.marks import BLUE, GREY, sized
from batchscale.plots.room import axes_room, small_text, text_width
from batchscale.plots.scales import log2_axis, seconds_axis
from batchscale.scaling import Fit, StepTimes

_CURVE: dict[str, Any] = {"color": "0.3", "linewidth": 1, "zorder": 2}
_POINTS: dict[str, dict[str, Any]] = {
    "on the frontier": {"color": BLUE, "marker": "o", "markersize": 5.5},
    "beaten by another": {
        "color": GREY, "marker": "o", "markersize": 5.5, "markerfacecolor": "white",
    },
}  # fmt: skip


class _Measured(Result, Protocol):
    """A result that knows its frontier and its fit."""

    def frontier(self, *, seconds_per_step: StepTimes | None = None) -> pd.DataFrame:
        """The table of `scaling.frontier`."""
        ...

    def scaling(self) -> Fit:
        """The curve through steps to target."""
        ...

    def confirmation(self) -> Confirmation:
        """The tuned settings under fresh seeds."""
        ...


def frontier(
    result: _Measured,
    *,
    confirmed: bool | None = None,
    seconds_per_step: StepTimes | None = None,
    ax: Axes | None = None,
    title: str | None = None,
) -> Axes:
    """Steps, or seconds, against examples to the goal, one point a batch size.

    To the left is cheap, below is fast. Filled points are not beaten in both by another batch size.
    The line is the curve fitted to steps to target, on ideal hardware the hyperbola
    (S / S_min - 1)(E / E_min - 1) = 1 of McCandlish et al. (2018, arXiv:1812.06162); with measured
    step times, or where no critical batch size is quoted, there is none. Batch sizes that miss the
    goal are left out.

    Args:
      result: of a study.
      confirmed: whether steps are the medians of `Result.confirmation`, or the best of N; by
        default the medians where there are any.
      seconds_per_step: as for `scaling.frontier`.
      ax: where to draw; a new figure if not given.
      title: instead of the figure's own words; an empty one is none.

    Returns:
      The axes.

    Raises:
      FileNotFoundError: nothing is confirmed.
      ValueError: no batch size reaches the goal, or a batch size has no step time.

    >>> from types import SimpleNamespace
    >>> steps = pd.DataFrame({"batch_size": [1, 4, 16, 64, 256], "steps": [1710, 435, 116, 37, 16]})
    >>> result = SimpleNamespace(
    ...     name="digits/fc_64, sgd",
    ...     goal=SimpleNamespace(metric="validation/error", value=0.05, mode="min"),
    ...     frontier=lambda seconds_per_step: scaling.frontier(steps),
    ...     scaling=lambda: scaling.fit(steps),
    ... )
    >>> ax = frontier(result)
    >>> ax.get_xlabel()
    'Examples to validation error < 0.05'
    >>> import matplotlib.pyplot as plt
    >>> plt.close(ax.figure)
    """
    check_reads("result", result, RESULT, "frontier", "scaling")
    check_place(ax, title)
    found = medians([result], confirmed)
    if found is not None:
        (found,) = found
        table = scaling.frontier(found.steps_to_target(), seconds_per_step=seconds_per_step)
        fit = found.scaling()
    else:
        table, fit = result.frontier(seconds_per_step=seconds_per_step), result.scaling()
    table = table.take(np.flatnonzero(np.isfinite(table["steps"])))
    if table.empty:
        raise ValueError(f"frontier: {result.name!r} reaches its goal at no batch size.")
    time = "steps" if seconds_per_step is None else "seconds"
    ax = new_axes() if ax is None else ax
    log2_axis(ax, "x")
    if time == "steps":
        log2_axis(ax, "y")
    else:
        seconds_axis(ax, "y")
    handles = []
    for kind, chosen in zip(
        _POINTS, (table[table["pareto"]], table[~table["pareto"]]), strict=True
    ):
        if len(chosen):
            handles += ax.plot(
                chosen["examples"], chosen[time], linestyle="none", label=kind, zorder=3,
                **sized(_POINTS[kind]),
            )  # fmt: skip
    if seconds_per_step is None and not fit.refused:
        sizes = np.geomspace(table["batch_size"].min(), table["batch_size"].max(), 200)
        label = f"fitted curve, critical batch size {short(fit.b_crit)}"
        handles += ax.plot(sizes * fit.steps(sizes), fit.steps(sizes), label=label, **sized(_CURVE))
    goal = goal_words(result.goal)
    ax.set_xlabel(f"Examples to {goal}")
    ax.set_ylabel(f"{time.capitalize()} to {goal}")
    frame(ax)
    which = "tuned settings' medians" if found is not None else "best of N"
    head(ax, f"{result.name}: time against cost, {which}", handles, title=title)
    _label(ax, table, time)
    return ax


def _label(ax: Axes, table: pd.DataFrame, time: str) -> None:
    """Batch sizes beside their points; where two would meet, the second goes below."""
    ax.autoscale_view()
    size, (width, height) = small_text(), axes_room(ax)
    widest = max(text_width(f"{batch_size:,}", size) for batch_size in table["batch_size"])
    ax.margins(x=min((widest + 8) / width, 0.3), y=min(2 * size / height, 0.2))
    above: list[np.ndarray] = []
    for row in table.to_dict("records"):
        at = (row["examples"], row[time])
        pixels = ax.transData.transform(at) * 72 / ax.get_figure(root=True).dpi  # pyright: ignore
        label = f"{row['batch_size']:,}"
        taken = (text_width(label, size) + 5, size)
        crowded = any((np.abs(pixels - other) < taken).all() for other in above)
        if not crowded:
            above.append(pixels)
        ax.annotate(
            label,
            at,
            xytext=(5, -size - 4 if crowded else 4),
            textcoords="offset points",
            fontsize=size,
            path_effects=[withStroke(linewidth=2, foreground="white")],  # over the curve
            zorder=4,
        )
