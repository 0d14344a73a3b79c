"""Marks that figures share: colours, looks of lines, intervals, misses, arrows at edges."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import FillBetweenPolyCollection
from matplotlib.colors import to_rgba
from matplotlib.container import ErrorbarContainer
from matplotlib.lines import Line2D
from matplotlib.markers import CARETDOWN, CARETUP
from matplotlib.transforms import ScaledTranslation
from numpy.typing import ArrayLike

from batchscale.plots.room import axes_room, small_text

# Okabe and Ito's colour-blind safe colours, without the yellow, which is too pale for lines.
BLUE, VERMILION, ORANGE = "#0072B2", "#D55E00", "#E69F00"
GREEN = "#009E73"
COLORS = (BLUE, VERMILION, GREEN, "#CC79A7", ORANGE, "#56B4E9")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
GREY = "#707070"
DASHES = ("-", (0, (5, 1.5)), (0, (1, 1)))
MISS: dict[str, Any] = {
    "label": "goal not reached",
    "linestyle": "none",
    "markerfacecolor": "white",
    "markersize": 6.5,
}
PERFECT: dict[str, Any] = {
    "label": "perfect scaling",
    "linestyle": (0, (4, 3)),
    "linewidth": 1,
    "color": "0.3",
}
# What a style's points are in proportion to.
_USUAL: dict[str, tuple[Any, float]] = {
    "linewidth": ("lines.linewidth", 1.5),
    "markersize": ("lines.markersize", 6.0),
    "markeredgewidth": ("lines.linewidth", 1.5),
    "capsize": ("lines.markersize", 6.0),
}


def sized(style: Mapping[str, Any]) -> dict[str, Any]:
    """A style whose lines and points are in proportion to what rcParams say now.

    >>> with mpl.rc_context({"lines.linewidth": 3}):
    ...     sized({"linewidth": 1.0, "color": "black"})
    {'linewidth': 2.0, 'color': 'black'}
    """

    def scaled(key: str, value: Any) -> Any:
        if key not in _USUAL or value is None:
            return value
        name, usual = _USUAL[key]
        return value * mpl.rcParams[name] / usual

    return {key: scaled(key, value) for key, value in style.items()}


def shades(number: int) -> list[Any]:
    """Colours in an order that shows, from pale to dark."""
    return [mpl.colormaps["viridis_r"](0.12 + 0.88 * i / max(number - 1, 1)) for i in range(number)]


def looks(number: int) -> list[dict[str, Any]]:
    """Colour and marker of each of several lines; of more than six also dashes.

    Up to six have colours of their own. More are shades in their order, whose neighbours differ in
    marker and dashes.

    >>> [look["marker"] for look in looks(2)], len({look["color"] for look in looks(12)})
    (['o', 's'], 12)
    """
    if number <= len(COLORS):
        return [
            {"color": color, "marker": marker, "linestyle": "-"}
            for color, marker in zip(COLORS[:number], MARKERS, strict=False)
        ]
    return [
        {"color": color, "marker": marker, "linestyle": dashes}
        for color, marker, dashes in zip(
            shades(number), itertools.cycle(MARKERS), itertools.cycle(DASHES), strict=False
        )
    ]


def label_ends(ax: Axes, lines: Sequence[Line2D], labels: Sequence[str], *, height: float) -> None:
    """Says what lines are, right of the axes, in the order of their ends and apart.

    The limits of the axes have to be set; of a line that is nowhere finite nothing is said.

    Args:
      ax: where they are.
      lines: in any order.
      labels: one of each.
      height: of the axes, in points.
    """
    size = small_text()
    ends = []
    for line, label in zip(lines, labels, strict=True):
        points = np.asarray(line.get_xydata(), float)
        points = points[np.isfinite(points).all(1)]
        if len(points):
            end = points[np.argmax(points[:, 0])]
            at = ax.transAxes.inverted().transform(ax.transData.transform(end))
            ends.append((float(np.clip(at[1], 0, 1)), tuple(end), label, line.get_color()))
    ends.sort(key=lambda end: end[0])
    apart = min(1.25 * size / height, 1 / max(len(ends) - 1, 1))
    heights = np.array([end[0] for end in ends])
    for place in range(1, len(ends)):
        heights[place] = max(heights[place], heights[place - 1] + apart)
    heights = np.minimum(heights, 1 - apart * np.arange(len(ends))[::-1])
    for at, (_, end, label, color) in zip(heights, ends, strict=True):
        ax.annotate(
            label,
            end,
            xytext=(1 + 1.2 * size / axes_room(ax)[0], at),
            textcoords="axes fraction",
            ha="left",
            va="center",
            fontsize=size,
            annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": color, "linewidth": 0.06 * size, "shrinkB": 0},
        )


def band(
    ax: Axes,
    x: ArrayLike,
    low: ArrayLike,
    high: ArrayLike,
    *,
    color: str,
    alpha: float = 0.12,
    **style: Any,
) -> FillBetweenPolyCollection:
    """An interval about a line: pale, with edges, so that bands that overlap are told apart."""
    look = sized({"linewidth": 0.8, **style})
    return ax.fill_between(
        x, low, high, facecolor=to_rgba(color, alpha), edgecolor=to_rgba(color, 0.6), **look
    )


def bars(
    ax: Axes,
    x: ArrayLike,
    y: ArrayLike,
    low: ArrayLike,
    high: ArrayLike,
    *,
    color: str,
    **style: Any,
) -> ErrorbarContainer:
    """Points with their intervals; an end that is open, at 0 or infinity, is an arrow to the edge.

    Args:
      ax: whose axes are logarithmic.
      x: of the points.
      y: of the points.
      low: the lower ends.
      high: the upper ends.
      color: of all.
      style: of `errorbar`.
    """
    x, y, low, high = (np.asarray(part, float) for part in (x, y, low, high))
    # A bar of which one end is not a number is not drawn at all.
    ends = [np.where(low > 0, y - low, 0), np.where(np.isfinite(high), high - y, 0)]
    look = sized({"capsize": 2, "linestyle": "none", "markersize": 5.5, **style})
    drawn = ax.errorbar(x, y, np.maximum(ends, 0), color=color, **look)
    open_intervals(ax, x, y, low, high, color=color)
    return drawn


def open_intervals(
    ax: Axes, x: ArrayLike, y: ArrayLike, low: ArrayLike, high: ArrayLike, *, color: str
) -> None:
    """An arrow from a point to the edge of the axes where its interval has no end."""
    parts = (np.asarray(part, float) for part in (x, y, low, high))
    for at, value, bottom, top in zip(*parts, strict=True):
        if not np.isfinite(value):
            continue
        for edge in ([0] if bottom <= 0 else []) + ([1] if np.isposinf(top) else []):
            ax.annotate(
                "",
                (at, edge),
                xycoords=ax.get_xaxis_transform(),
                xytext=(at, value),
                textcoords="data",
                zorder=2.5,
                arrowprops={
                    "arrowstyle": "-|>,head_width=0.25,head_length=0.5",
                    "color": color,
                    "linewidth": mpl.rcParams["lines.linewidth"],
                    "mutation_scale": small_text(),
                    "shrinkA": 0,
                    "shrinkB": 0,
                },
            )


def perfect_scaling_line(ax: Axes, batch_sizes: ArrayLike, *, start: float, steps: float) -> Line2D:
    """Draws steps * start / B, over the batch sizes from `start` on."""
    x = np.asarray(batch_sizes, float)
    x = x[x >= start]
    return ax.plot(x, steps * start / x, zorder=2, **sized(PERFECT))[0]


def mark_misses(ax: Axes, x: ArrayLike, **style: Any) -> None:
    """Open markers at the top edge, wherever the y axis ends, below them an arrowhead."""
    look = sized({"markersize": MISS["markersize"]} | style)
    ax.plot(
        x,
        np.ones(len(np.asarray(x))),
        transform=ax.get_xaxis_transform(),
        clip_on=False,
        zorder=4,
        **MISS | look,
    )
    beyond(ax, x, color=look.get("color", "black"), inside=0.6 * look["markersize"])


def beyond(
    ax: Axes,
    x: ArrayLike,
    *,
    color: str,
    edge: Literal["top", "bottom"] = "top",
    inside: float = 0,
) -> None:
    """Arrowheads at an edge of the axes: what is there lies beyond it.

    Args:
      ax: where to draw.
      x: of what lies beyond.
      color: of the arrowheads.
      edge: which.
      inside: how far their tips are from it, in points.
    """
    top = edge == "top"
    figure = ax.get_figure(root=True)
    assert figure is not None
    shift = ScaledTranslation(0, (-inside if top else inside) / 72, figure.dpi_scale_trans)
    ax.plot(
        x,
        np.full(len(np.asarray(x)), float(top)),
        transform=ax.get_xaxis_transform() + shift,
        color=color,
        marker=CARETUP if top else CARETDOWN,
        linestyle="none",
        label="_beyond",
        zorder=3.9,
        **sized({"markersize": 4.5, "markeredgewidth": 0.0}),
    )
