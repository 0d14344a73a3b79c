"""Scales of axes, with as many labels as there is room for."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any, Literal, cast

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.font_manager import FontProperties
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

from batchscale.plots.room import text_width


def log_axis(ax: Axes, name: Literal["x", "y"], *, base: float = 10) -> Axis:
    """Gives an axis a logarithmic scale; below two decades, between them are plain numbers."""
    if name == "x":
        ax.set_xscale("log", base=base)
    else:
        ax.set_yscale("log", base=base)
    axis = ax.xaxis if name == "x" else ax.yaxis
    if base == 10:
        axis.set_major_formatter(FuncFormatter(lambda value, _: _decade_label(axis, value)))
        axis.set_minor_formatter(FuncFormatter(lambda value, _: _between_decades(axis, value)))
    return axis


def log2_axis(ax: Axes, name: Literal["x", "y"]) -> None:
    """Gives an axis a log2 scale with the powers of two as labels."""
    axis = log_axis(ax, name, base=2)
    axis.set_major_locator(_PowersOfTwo(base=2, numticks=64))
    axis.set_major_formatter(FuncFormatter(lambda value, _: _power_label(axis, value)))
    axis.set_minor_locator(NullLocator())


def seconds_axis(ax: Axes, name: Literal["x", "y"]) -> None:
    """Gives an axis a logarithmic scale with plain decimal numbers as labels."""
    axis = log_axis(ax, name)
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: _plain_label(axis, value)))
    axis.set_minor_locator(NullLocator())


def mark_full_batches(ax: Axes, sizes: Collection[int]) -> None:
    """Says "full" below batches of all training examples, where no power of two is labelled."""
    at = sorted(size for size in sizes if size & (size - 1))

    def label(value: float, _: object) -> str:
        size = min(at, key=lambda one: abs(one - value))
        # Of several that are close, only the first is named.
        apart = _length(ax.xaxis) / _decades(ax.xaxis, base=2)
        close = math.ceil(_width(ax.xaxis, "full ") / max(apart, 1e-9))
        before = [one for one in at if one < size and size < one * 2**close]
        if before:
            return ""
        return f"\nfull: {size:,}" if len(at) == 1 else "\nfull"

    ax.xaxis.set_minor_locator(FixedLocator(at))
    ax.xaxis.set_minor_formatter(FuncFormatter(label))
    ax.tick_params(axis="x", which="minor", length=0.6 * _letters(ax.xaxis))


def hold_ticks(ax: Axes) -> None:
    """Ticks are made when a figure is drawn: keeps what rcParams say now for then."""
    rc = cast(Mapping[Any, Any], mpl.rcParams)
    for name in ("x", "y"):
        for which in ("major", "minor"):
            letters, width = rc[f"{name}tick.labelsize"], rc[f"{name}tick.{which}.width"]
            ax.tick_params(axis=name, which=which, labelsize=letters, width=width)
        ax.tick_params(axis=name, which="major", length=rc[f"{name}tick.major.size"])


class _PowersOfTwo(LogLocator):
    """A tick at every power of two, and at least two of them in view."""

    def nonsingular(self, v0: float, v1: float) -> tuple[float, float]:
        low, high = super().nonsingular(v0, v1)
        if math.floor(math.log2(high)) <= math.ceil(math.log2(low)):
            return 2.0 ** math.floor(math.log2(low)), 2.0 ** math.ceil(math.log2(high))
        return low, high


def _power_label(axis: Axis, value: float) -> str:
    """A plain number where all are small and whole, else a power; empty where there is no room."""
    low, high = sorted(axis.get_view_interval())
    plain = low > 0.5 and high < 2**11

    def label(exponent: int) -> str:
        return f"{2**exponent:,}" if plain else f"$2^{{{exponent}}}$"

    exponent = round(math.log2(value))
    ends = [label(math.floor(math.log2(end))) for end in (low, high) if plain or end > 0]
    every = math.ceil(_decades(axis, base=2) * _taken(axis, *ends) / max(_length(axis), 1))
    return "" if exponent % max(every, 1) else label(exponent)


def _decade_label(axis: Axis, value: float) -> str:
    """A power of ten; a plain number beside plain numbers."""
    return f"{value:g}" if _few_decades(axis) else f"$10^{{{round(math.log10(value))}}}$"


def _between_decades(axis: Axis, value: float) -> str:
    return _plain_label(axis, value) if _few_decades(axis) else ""


def _plain_label(axis: Axis, value: float) -> str:
    """1, 2 and 5 of each decade; 1 and 3, or 1 alone, where there is no room for these."""
    leading = round(value / 10 ** math.floor(math.log10(value) + 1e-9))
    decade = _length(axis) / _decades(axis)
    taken = _taken(axis, f"{value:g}")
    chosen = (1, 2, 5) if 0.3 * decade >= taken else (1, 3) if 0.47 * decade >= taken else (1,)
    return f"{value:g}" if leading in chosen else ""


def _few_decades(axis: Axis) -> bool:
    """Whether there are fewer than two powers of ten in view."""
    low, high = sorted(axis.get_view_interval())
    return math.floor(math.log10(high)) - math.ceil(math.log10(low)) < 1


def _decades(axis: Axis, base: float = 10) -> float:
    low, high = sorted(axis.get_view_interval())
    return math.log(high / low, base) or 1.0


def _letters(axis: Axis) -> float:
    """The size of the labels, in points."""
    given = axis.get_tick_params().get("labelsize", mpl.rcParams["xtick.labelsize"])
    return FontProperties(size=given).get_size_in_points()


def _length(axis: Axis) -> float:
    """Of the axis as it is laid out, in points."""
    figure = axis.axes.get_figure(root=True)
    assert figure is not None
    box = axis.axes.bbox
    return (box.width if _across(axis) else box.height) * 72 / figure.dpi


def _across(axis: Axis) -> bool:
    return axis is axis.axes.xaxis


def _width(axis: Axis, text: str) -> float:
    return text_width(text, _letters(axis))


def _taken(axis: Axis, *labels: str) -> float:
    """How much of the axis the longest label takes, with the space beside it, in points."""
    if not _across(axis):
        return 1.4 * _letters(axis)
    return max(_width(axis, label) for label in labels) + 0.7 * _letters(axis)
