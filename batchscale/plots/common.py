"""What all figures share: what they read, their axes, their titles and legends, their words."""

from __future__ import annotations

import re
import weakref
from collections.abc import Collection, Sequence, Sized
from typing import Any, Protocol, runtime_checkable

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.legend import Legend

from batchscale import numeric
from batchscale.given import switch
from batchscale.plots.asked import RESULT, check_reads
from batchscale.plots.marks import sized
from batchscale.plots.room import axes_below, axes_room, small_text, text_size, wrapped
from batchscale.plots.scales import hold_ticks
from batchscale.tuner import SearchSpace

_NEW = weakref.WeakSet[Figure]()  # figures that are ours, and not a user's


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


def new_axes() -> Axes:
    """Axes of a new figure, of the size that rcParams say, and taller under a long legend."""
    figure, ax = plt.subplots(layout="constrained")
    _NEW.add(figure)
    return ax


def frame(ax: Axes) -> None:
    """A pale grid behind what is drawn, and ticks as rcParams say now."""
    ax.grid(color="0.92", **sized({"linewidth": 0.6}))
    ax.set_axisbelow(True)
    hold_ticks(ax)


def head(
    ax: Axes,
    words: str,
    handles: Sequence[Any],
    *,
    title: str | None = None,
    above: float = 0,
) -> float:
    """A title and, between it and the axes, a legend: points fill the axes themselves.

    Both are as wide as the axes at most.

    Args:
      ax: what to head.
      words: the title, if there is no other.
      handles: the legend's; none for none.
      title: a user's title, which is drawn instead; an empty one is none.
      above: room to leave for labels at the top edge, in points.

    Returns:
      The height that is left to the axes, about, in points.
    """
    width, size = axes_room(ax)[0], text_size()
    pad = 0.6 * size + above
    if handles:
        place = {"loc": "lower center", "bbox_to_anchor": (0.5, 1.0)}
        space = 0.2 + above / small_text()
        pad += _measured(legend(ax, handles, width, borderaxespad=space, **place))[1]
    if title is not None and not isinstance(title, str):
        raise TypeError(f"title: got {title!r}, wanted text, or None for the figure's own.")
    shown = wrapped(plain(words if title is None else title), size, width)
    ax.set_title(shown, fontsize=size, pad=pad)
    return _make_room(ax, pad + 1.3 * size * (shown.count("\n") + 1 if shown else 0))


def _make_room(ax: Axes, taken: float) -> float:
    """Under a head so tall, makes a figure that is ours taller, and wraps the label at the left."""
    figure = ax.get_figure(root=True)
    assert figure is not None
    if figure in _NEW:
        width, usual = mpl.rcParams["figure.figsize"]
        least = taken + axes_below() + 72 * usual / 3  # a third is left to the axes
        figure.set_size_inches(width, max(usual, least / 72))
    below = 2.4 * text_size() + 9  # at least
    room = axes_room(ax)[1] - taken + 2 * min(below, taken)
    ax.set_ylabel(wrapped(ax.get_ylabel(), text_size(), room))
    return axes_room(ax)[1] - taken


def head_curve(ax: Axes, words: str, handles: Sequence[Any], *, title: str | None = None) -> float:
    """A title, and a legend where a falling curve leaves most room; a large one is above the axes.

    Args:
      ax: what to head; what is drawn is in it.
      words: the title, if there is no other.
      handles: the legend's.
      title: as for `head`.

    Returns:
      As `head`.
    """
    room, height = axes_room(ax)
    left = head(ax, words, [], title=title)
    taken = _measured(legend(ax, handles, room, loc="best"))
    if taken[0] > 0.6 * room or taken[1] > 0.4 * height:
        left = head(ax, words, handles, title=title)
    return left


def legend(parent: Axes | Figure, handles: Sequence[Any], room: float, **place: Any) -> Legend:
    """A legend in as many columns as there is room for, up to four, its entries in lines.

    Args:
      parent: the axes or the figure that it is of.
      handles: its entries.
      room: its largest width, in points.
      place: where, as of Matplotlib's `legend`.
    """
    size = small_text()
    # Besides its letters an entry has a line and a space, and the legend a border.
    labels = [wrapped(str(one.get_label()), size, room - 4 * size) for one in handles]
    within = place.get("loc") == "best"
    style = {"fontsize": size, "frameon": within, "columnspacing": 1.6}
    for columns in range(1 if within else min(len(handles), 4), 1, -1):
        drawn = parent.legend(handles, labels, ncols=columns, **style, **place)
        if _measured(drawn)[0] <= room:
            return drawn
        drawn.remove()
    return parent.legend(handles, labels, **style, **place)


def _measured(drawn: Legend) -> tuple[float, float]:
    """Width and height, in points."""
    figure = drawn.get_figure(root=True)
    assert figure is not None
    box = drawn.get_window_extent()
    return box.width * 72 / figure.dpi, box.height * 72 / figure.dpi


def axis_label(name: str) -> str:
    """A metric or hyperparameter as an axis says it: "Validation error"."""
    text = "1 \N{MINUS SIGN} momentum" if name == "one_minus_momentum" else in_words(name)
    return text[0].upper() + text[1:]


def goal_words(goal: Goal) -> str:
    """A goal as an axis says it: "validation error < 0.03"."""
    return f"{in_words(goal.metric)} {'>' if goal.mode == 'max' else '<'} {goal.value:g}"


def in_words(name: str) -> str:
    """Of a name, as an axis says them: "validation error"."""
    return plain(name.replace("/", " ").replace("_", " "))


def plain(text: str) -> str:
    """A text in which no dollar begins a formula of Matplotlib's.

    >>> print(plain(plain("US$")).replace(chr(92), "backslash "))
    USbackslash $
    """
    return re.sub(r"(?<!\\)\$", r"\\$", text)


def medians(results: Sequence[Any], confirmed: bool | None) -> list[Any] | None:
    """The confirmations that are drawn in place of the best of N trials; None for the latter.

    Args:
      results: what is drawn.
      confirmed: whether medians are asked for; None where they are wanted if all have them.

    Raises:
      FileNotFoundError: medians are asked for, and there are none.
    """
    if confirmed is not None:
        switch("confirmed", confirmed)
        for result in results if confirmed else ():
            check_reads("confirmed=True", result, RESULT, "confirmation")
        return [result.confirmation() for result in results] if confirmed else None
    # Tables made elsewhere have no confirmation.
    found = [one.confirmed() if hasattr(one, "confirmed") else None for one in results]
    return None if any(one is None for one in found) else found


def steps_table(result: Result, table: pd.DataFrame | None = None) -> pd.DataFrame:
    """The result's steps to target in order of batch size; refuses 0, which no log axis shows.

    Args:
      result: of a study.
      table: of its confirmation, instead of the best of N trials.
    """
    if table is None:
        table = result.steps_to_target()
    else:  # NaN where it is not run again, inf where the goal was missed
        table = table.loc[table["steps"].notna(), ["batch_size", "steps", "low", "high"]]
    table = table.sort_values("batch_size")
    passed = table.loc[table["steps"] == 0, "batch_size"].tolist()
    if passed:
        raise ValueError(
            f"{result.name!r}: at batch size {listed(passed)} the goal {goal_words(result.goal)} "
            "is reached at step 0, before any training. Choose a harder goal."
        )
    return table


def check_any(trials: Sized, caller: str) -> None:
    """Refuses, in the name of `caller`, what has no trials of a search to draw.

    >>> check_any([], "sensitivity")
    Traceback (most recent call last):
    ValueError: sensitivity: there is no trial of a search to draw yet. Trials of one design across
    batch sizes are drawn by plots.measured_trials(result.measurement()).
    """
    if not len(trials):
        raise ValueError(
            f"{caller}: there is no trial of a search to draw yet. Trials of one design across "
            "batch sizes are drawn by plots.measured_trials(result.measurement())."
        )


def check_batch_size(result: Result, batch_size: int, *, caller: str) -> None:
    """Refuses, in the name of `caller`, a batch size that the result does not have."""
    measured = result.trials.index.unique("batch_size").sort_values().tolist()
    if numeric.plain(batch_size) not in measured:
        raise ValueError(
            f"{caller}: {result.name!r} has no batch size {batch_size!r}; "
            f"it has {listed(measured)}."
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
