"""What all figures share: what they read, axes and colours, and how they are saved."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import (
    FixedFormatter,
    FixedLocator,
    FuncFormatter,
    LogLocator,
    NullLocator,
)
from numpy.typing import ArrayLike

from batchscale.files import local_path
from batchscale.tuner import SearchSpace

# Okabe and Ito's colour-blind safe colours, without the yellow, which is too pale for lines.
BLUE, VERMILION, ORANGE = "#0072B2", "#D55E00", "#E69F00"
GREEN = "#009E73"
COLORS = (BLUE, VERMILION, GREEN, "#CC79A7", ORANGE, "#56B4E9")
GREY = "#707070"
_FORMATS: dict[str, dict[str, Any]] = {"png": {"dpi": 200}, "svg": {"metadata": {"Date": None}}}
MISS: dict[str, Any] = {
    "label": "goal not reached",
    "linestyle": "none",
    "markerfacecolor": "white",
    "markersize": 6.5,
}
FIGURE_SIZE = (6.4, 4.4)
FONT_SIZE = 9


@runtime_checkable
class Goal(Protocol):
    """A metric, a value and a direction."""

    @property
    def metric(self) -> str:
        """The column of the measurements."""
        ...

    @property
    def value(self) -> float:
        """What the metric has to pass."""
        ...

    @property
    def mode(self) -> str:
        """Either "min" or "max"."""
        ...


@runtime_checkable
class Result(Protocol):
    """What figures read of the result of a study."""

    @property
    def name(self) -> str:
        """Workload and optimizer."""
        ...

    @property
    def goal(self) -> Goal:
        """What a trial has to reach."""
        ...

    @property
    def train_examples(self) -> int:
        """The size of a full batch."""
        ...

    @property
    def space(self) -> SearchSpace:
        """What the hyperparameters were drawn from."""
        ...

    @property
    def trials(self) -> pd.DataFrame:
        """Hyperparameters and statuses by (batch_size, trial, replicate)."""
        ...

    @property
    def measurements(self) -> pd.DataFrame:
        """Metrics by (batch_size, trial, replicate, step)."""
        ...

    def steps_to_target(self) -> pd.DataFrame:
        """`batch_size`, `steps` and the winning `trial`, one row a batch size."""
        ...


def save(
    figure: Axes | Figure | np.ndarray,
    stem: str | Path,
    formats: Sequence[Literal["png", "svg"]] = ("png", "svg"),
) -> tuple[Path, ...]:
    """Writes a figure as PNG and as SVG.

    The same figure gives the same SVG, byte for byte.

    Args:
      figure: a figure, one of its axes, or an array of them.
      stem: where, without a suffix; folders are made as needed.
      formats: of these two, in order.

    Returns:
      The paths, `<stem>.png` and `<stem>.svg`.

    >>> import tempfile
    >>> figure, ax = plt.subplots()
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     [path.name for path in save(ax, f"{folder}/curves/mnist")]
    ['mnist.png', 'mnist.svg']
    >>> plt.close(figure)

    Raises:
      ValueError: a format is none of these.
    """
    drawn: Any = figure.flat[0] if isinstance(figure, np.ndarray) else figure
    if not isinstance(drawn, Figure):
        drawn = drawn.get_figure(root=True)
    stem = local_path(stem, "stem")
    unknown = [name for name in formats if name not in _FORMATS]
    if isinstance(formats, str) or unknown:
        raise ValueError(f"formats: got {formats!r}, wanted some of {', '.join(_FORMATS)}.")
    stem.parent.mkdir(parents=True, exist_ok=True)
    paths = tuple(stem.with_name(f"{stem.name}.{name}") for name in formats)
    for path, name in zip(paths, formats, strict=True):
        with open(path, "wb") as file, mpl.rc_context({"svg.hashsalt": "batchscale"}):
            drawn.savefig(file, format=name, **_FORMATS[name])
    return paths


def new_axes() -> Axes:
    """Axes of a new figure, as wide as a README."""
    return plt.subplots(figsize=FIGURE_SIZE, layout="constrained")[1]


def shades(number: int) -> list[Any]:
    """Colours in an order that shows, from pale to dark."""
    return [mpl.colormaps["viridis_r"](0.12 + 0.88 * i / max(number - 1, 1)) for i in range(number)]


def mark_misses(ax: Axes, x: ArrayLike, **style: Any) -> None:
    """Open markers at the top edge, wherever the y axis ends."""
    ax.plot(
        x,
        np.ones(len(np.asarray(x))),
        transform=ax.get_xaxis_transform(),
        clip_on=False,
        zorder=4,
        **MISS | style,
    )


def mark_full_batches(ax: Axes, sizes: Collection[int]) -> None:
    """Says "full" below batches of all training examples, where no power of two is labelled."""
    at = sorted(size for size in sizes if size & (size - 1))
    labels = [f"\nfull: {size:,}" if len(at) == 1 else "\nfull" for size in at]
    ax.xaxis.set_minor_locator(FixedLocator(at))
    ax.xaxis.set_minor_formatter(FixedFormatter(labels))
    ax.tick_params(axis="x", which="minor", length=6)


def head(ax: Axes, title: str, handles: Sequence[Artist], *, above: float = 0) -> None:
    """A title and, between it and the axes, a legend: points fill the axes themselves.

    Args:
      ax: what to head.
      title: the title.
      handles: the legend's.
      above: room to leave for labels at the top edge, in points.
    """
    columns = legend_columns(handles)
    rows = math.ceil(len(handles) / columns)
    ax.set_title(title.replace("$", r"\$"), fontsize=FONT_SIZE + 1, pad=8 + 15 * rows + above)
    ax.legend(
        handles=handles,
        loc="lower center",
        bbox_to_anchor=(0.5, 1.0),
        borderaxespad=0.2 + above / FONT_SIZE,
        ncols=columns,
        fontsize=FONT_SIZE,
        frameon=False,
    )


def legend_columns(handles: Sequence[Artist]) -> int:
    """How many columns of entries fit beside each other, at the width of a README."""
    # In font sizes: a marker, and letters as wide as they are on average.
    widths = np.array([2.8 + 0.53 * len(str(handle.get_label())) for handle in handles])
    room = 72 * FIGURE_SIZE[0] / FONT_SIZE
    for columns in range(min(len(handles), 4), 1, -1):
        # The first columns are the longer ones, as matplotlib fills them; between them are 2.
        parts = np.array_split(widths, columns)
        if sum(part.max() for part in parts) + 2 * (columns - 1) < room:
            return columns
    return 1


def axis_label(name: str) -> str:
    """A metric or hyperparameter as an axis says it: "Validation error"."""
    text = "1 \N{MINUS SIGN} momentum" if name == "one_minus_momentum" else _words(name)
    return text[0].upper() + text[1:]


def goal_words(goal: Goal) -> str:
    """A goal as an axis says it: "validation error < 0.03"."""
    return f"{_words(goal.metric)} {'>' if goal.mode == 'max' else '<'} {goal.value:g}"


def _words(name: str) -> str:
    return name.replace("/", " ").replace("_", " ")


def steps_table(result: Result) -> pd.DataFrame:
    """The result's steps to target in order of batch size; refuses 0, which no log axis shows."""
    table = result.steps_to_target().sort_values("batch_size")
    passed = table.loc[table["steps"] == 0, "batch_size"].tolist()
    if passed:
        raise ValueError(
            f"{result.name!r}: at batch size {listed(passed)} the goal {goal_words(result.goal)} "
            "is reached at step 0, before any training. Choose a harder goal."
        )
    return table


def check_batch_size(result: Result, batch_size: int, *, caller: str) -> None:
    """Refuses, in the name of `caller`, a batch size that the result does not have."""
    measured = result.trials.index.unique("batch_size").sort_values().tolist()
    if batch_size not in measured:
        raise ValueError(
            f"{caller}: {result.name!r} has no batch size {batch_size}; it has {listed(measured)}."
        )


def plain_rows(table: pd.DataFrame, batch_size: int) -> pd.DataFrame:
    """The rows of one batch size, of trials and not of their replicates."""
    rows = table.index.get_level_values("batch_size") == batch_size
    rows &= table.index.get_level_values("replicate") == 0
    return table.take(np.flatnonzero(rows)).droplevel(["batch_size", "replicate"])


def winners(result: Result) -> dict[int, int]:
    """The trial that reached the goal first at each batch size where one did."""
    table = steps_table(result).dropna(subset=["trial"])
    return dict(zip(table["batch_size"].tolist(), table["trial"].tolist(), strict=True))


def listed(items: Collection[object]) -> str:
    """Items in words, or none."""
    return ", ".join(map(str, items)) or "none"


def log_axis(ax: Axes, name: Literal["x", "y"], *, base: float = 10) -> Axis:
    """Gives an axis a logarithmic scale."""
    if name == "x":
        ax.set_xscale("log", base=base)
        return ax.xaxis
    ax.set_yscale("log", base=base)
    return ax.yaxis


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
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_locator(NullLocator())


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
    exponent = round(math.log2(value))
    if exponent % math.ceil(math.log2(high / low) / max(axis.get_tick_space(), 1)):
        return ""
    return f"{2**exponent:,}" if low > 0.5 and high < 2**11 else f"$2^{{{exponent}}}$"
