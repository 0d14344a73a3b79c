"""Steps to target under several definitions."""

from __future__ import annotations

import collections
from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedFormatter, FixedLocator

from batchscale.plots.asked import RESULT, check_place, check_reads
from batchscale.plots.common import Goal, frame, head, new_axes
from batchscale.plots.marks import BLUE, GREEN, ORANGE, sized
from batchscale.plots.scales import log2_axis
from batchscale.scaling import Pace, transitions

_REFERENCE: dict[str, Any] = {"color": "black", "linewidth": 2, "zorder": 5}
_OTHER: dict[str, Any] = {"linewidth": 1.2, "zorder": 3}
_MARKERS = (None, "o", "s", "^", "v")
_STYLES = ("-", (0, (5, 2)), (0, (1, 1.5)), (0, (5, 1.5, 1, 1.5)), (0, (8, 2, 1, 1, 1, 1)))
_POINTS, _POINT = "osv^PX<>*", {"linestyle": "none", "markersize": 7}
_ASIDE = 2**0.12  # a factor between two points of one batch size
_CRITICAL: dict[str, Any] = {"marker": "D", "markersize": 7, "markeredgecolor": "white"}


@runtime_checkable
class Result(Protocol):
    """What the figure reads of the result of a study."""

    @property
    def name(self) -> str:
        """Workload and optimizer."""
        ...

    @property
    def goal(self) -> Goal:
        """What a trial has to reach."""
        ...

    @property
    def paces(self) -> Mapping[int, Pace] | None:
        """Where the schedule decides when a goal is reached."""
        ...

    def variants(self) -> pd.DataFrame:
        """`variant`, `batch_size`, `steps` and `why`, the definition itself first."""
        ...


def variants(result: Result, *, ax: Axes | None = None, title: str | None = None) -> Axes:
    """Steps to target against batch size under several definitions, on log2 axes.

    The thick line is the definition itself. A diamond on a line is its critical batch size, where
    that is quoted: they lie above one another if the definition does not matter to it. Lines end
    where the goal is not reached.

    Args:
      result: of a study.
      ax: where to draw; a new figure if not given.
      title: instead of the figure's own words; an empty one is none.

    Returns:
      The axes.

    >>> from types import SimpleNamespace
    >>> sizes = 2.0 ** np.arange(12)
    >>> table = pd.DataFrame({"batch_size": sizes, "steps": 16 * (1 + 60 / sizes), "why": ""})
    >>> table = table.assign(variant="validation/error < 0.03")
    >>> result = SimpleNamespace(
    ...     name="mnist/fc_128_128_128, sgd",
    ...     goal=SimpleNamespace(metric="validation/error", value=0.03, mode="min"),
    ...     paces={},
    ...     variants=lambda: table,
    ... )
    >>> ax = variants(result)
    >>> [text.get_text() for text in ax.get_legend().get_texts()]
    ['validation error < 0.03', 'critical batch size']
    >>> import matplotlib.pyplot as plt
    >>> plt.close(ax.figure)
    """
    check_reads("result", result, RESULT, "variants")
    check_place(ax, title)
    table = result.variants()
    critical = transitions(table, paces=result.paces).set_index("variant")["b_crit"]
    ax = new_axes() if ax is None else ax
    log2_axis(ax, "x")
    log2_axis(ax, "y")
    alone = len(set(table["batch_size"])) == 1
    if alone:
        size = float(table["batch_size"].iloc[0])
        ax.xaxis.set_major_locator(FixedLocator([size]))
        ax.xaxis.set_major_formatter(FixedFormatter([f"{size:,.0f}"]))
        ax.set_xlim(size / 2, size * 2)
    handles = []
    used = collections.Counter[str]()
    for variant, own in table.groupby("variant", sort=False):
        color = _color(str(variant), result.goal.metric)
        style = {**_OTHER, "color": color, **_look(used[color])}
        used[color] += 1
        if not handles:
            style = _REFERENCE
            used[color] = 0
        label = str(variant).replace("/", " ")
        if own["why"].any():
            handles.append(Line2D([], [], color="none", label=f"({label}: not known)"))
            continue
        own = own.sort_values("batch_size")
        steps = own["steps"].where(np.isfinite(own["steps"]))
        sizes = own["batch_size"].to_numpy(float)
        if alone:  # of which there are no lines
            style = {**style, **_POINT, "marker": _POINTS[used[color] % len(_POINTS)]}
            sizes = sizes * _ASIDE ** (len(handles) - (table["variant"].nunique() - 1) / 2)
        handles += ax.plot(sizes, steps, label=label, **sized(style))
        at = critical[variant]
        if np.isfinite(at):
            shown = steps.notna()
            log_steps = np.interp(
                np.log(at), np.log(own["batch_size"][shown]), np.log(steps[shown])
            )
            ax.plot(
                [at],
                np.exp(log_steps),
                color=style["color"],
                zorder=style["zorder"],
                **sized(_CRITICAL),
            )
    if np.isfinite(critical).any():
        handles.append(
            Line2D(
                [],
                [],
                color="0.3",
                linestyle="none",
                label="critical batch size",
                **sized(_CRITICAL),
            )
        )
    ax.set(xlabel="Batch size (examples)", ylabel="Steps to target")
    frame(ax)
    head(ax, result.name, handles, title=title)
    return ax


def _look(place: int) -> dict[str, Any]:
    """Dashes of the members of a kind; where these are used up, markers too."""
    markers, dashes = divmod(place, len(_STYLES))
    marker = _MARKERS[markers % len(_MARKERS)]
    return {"linestyle": _STYLES[dashes], "marker": marker, "markersize": 4}


def _color(variant: str, metric: str) -> str:
    """One for other values of the goal, one for other metrics, one for other ways to read it."""
    if variant.startswith(f"{metric} "):
        return BLUE
    return ORANGE if "/" in variant else GREEN
