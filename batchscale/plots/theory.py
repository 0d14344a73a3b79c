"""Noise scale along a run, and sharpness against batch size."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from batchscale import given
from batchscale.numeric import short
from batchscale.plots.asked import check_place, check_reads
from batchscale.plots.common import (
    frame,
    head,
    listed,
    new_axes,
)
from batchscale.plots.marks import (
    BLUE,
    GREEN,
    GREY,
    VERMILION,
    band,
    bars,
    beyond,
    mark_misses,
    sized,
)
from batchscale.plots.room import text_size
from batchscale.plots.scales import log2_axis

_NOISE: dict[str, Any] = {"color": BLUE, "marker": "o", "markersize": 5, "zorder": 3}
_CURVED: dict[str, Any] = {"color": GREY, "marker": "s", "markersize": 4, "linewidth": 1}
_HIDDEN: dict[str, Any] = {
    "label": "gradient hidden by noise",
    "color": BLUE,
    "linestyle": "none",
    "marker": "o",
    "markersize": 6,
    "markerfacecolor": "white",
}
_CRITICAL: dict[str, Any] = {"color": VERMILION, "linewidth": 1.4, "linestyle": (0, (4, 3))}
_LOCAL: dict[str, Any] = {"color": GREEN, "fmt": "D", "markersize": 5, "zorder": 3}
_TRIAL: dict[str, Any] = {
    "label": "trial",
    "color": GREY,
    "linestyle": "none",
    "marker": "o",
    "markersize": 4,
}


@runtime_checkable
class Fit(Protocol):
    """What the figure reads of a fitted critical batch size."""

    @property
    def b_crit(self) -> float:
        """The critical batch size; NaN where it is refused."""
        ...

    @property
    def b_crit_interval(self) -> tuple[float, float]:
        """From, to; 0 or inf where one end is open, NaN where nothing is known."""
        ...


def noise_scale(
    table: pd.DataFrame | None = None,
    *,
    fit: Fit | None = None,
    local: pd.DataFrame | None = None,
    ax: Axes | None = None,
    title: str | None = None,
) -> Axes:
    """The noise scale along a run, on log2 axes, beside the critical batch size.

    The band about the line is the interval of B_simple; a step at which the noise hides the
    gradient is an open marker at the top edge. The dashed line and its band are the critical batch
    size that was measured and its interval, one-sided where the fit is refused. Step 0 has no place
    on a log axis and is left out.

    Args:
      table: of `theory.noise_scales`: `step`, `b_simple`, `low` and `high`; and `b_noise`, which is
        drawn where it was computed. None for branches alone.
      fit: from `Result.scaling` or `scaling.fit`.
      local: the table of `theory.branches`: diamonds with bars from the largest batch size that
        recovers to the next one; an arrow where an end is open.
      ax: where to draw; a new figure if not given.
      title: of the figure; none if not given.

    Returns:
      The axes.

    Raises:
      ValueError: the table has no step above 0, or lacks a column; there is nothing to draw.

    >>> table = pd.DataFrame(
    ...     {"step": [1, 16], "b_simple": [20.0, 90.0], "low": [15.0, 70.0], "high": [26.0, 130.0]}
    ... )
    >>> ax = noise_scale(table)
    >>> ax.get_xlabel(), ax.get_ylabel()
    ('Steps', 'Batch size (examples)')
    >>> plt.close(ax.figure)
    """
    check_place(ax, title)
    if table is None and local is None:
        raise ValueError(
            "noise_scale: got neither a table of noise scales nor one of branches. Give that of "
            "theory.noise_scales, or local=theory.branches(...).table."
        )
    if table is not None:
        _check(table, ("step", "b_simple", "low", "high"), "noise_scale", "noise_scales")
    if fit is not None:
        check_reads("fit", fit, "a fit: result.scaling()", "b_crit", "b_crit_interval")
    if local is not None:
        columns = ["step", "recovers", "b_local", "low", "high"]
        given.frame("local", local, "the table theory.branches(...).table", columns)
    if table is None:
        table = pd.DataFrame({key: [] for key in ("step", "b_simple", "low", "high")}, dtype=float)
    else:
        table = table[table["step"] > 0].sort_values("step")
    if table.empty and (local is None or not (local["step"] > 0).any()):
        raise ValueError("noise_scale: the table has no step above 0; a log axis shows no other.")
    ax = new_axes() if ax is None else ax
    log2_axis(ax, "x")
    log2_axis(ax, "y")
    step, value = table["step"].to_numpy(float), table["b_simple"].to_numpy(float)
    low, high = table["low"].to_numpy(float), table["high"].to_numpy(float)
    seen = np.isfinite(value)
    handles: list[Any] = (
        []
        if table.empty
        else ax.plot(
            step,
            np.where(seen, value, np.nan),
            label="gradient noise scale, $B_{simple}$",
            **sized(_NOISE),
        )
    )
    curved = table["b_noise"].to_numpy(float) if "b_noise" in table else np.array([])
    curved = np.where(np.isfinite(curved) & (curved > 0), curved, np.nan)
    if np.isfinite(curved).any():
        handles += ax.plot(step, curved, label="with the Hessian, $B_{noise}$", **sized(_CURVED))
    ends = [
        *value[seen],
        *curved[np.isfinite(curved)],
        *low[np.isfinite(low) & (low > 0)],
        *high[np.isfinite(high)],
    ]
    if fit is not None:
        ends += [x for x in (fit.b_crit, *fit.b_crit_interval) if np.isfinite(x) and x > 0]
    if local is not None:
        _check(local, ("step", "recovers", "b_local", "low", "high"), "noise_scale", "branches")
        local = local[local["step"] > 0]
        among = local[["recovers", "low", "high"]].to_numpy(float).ravel()
        ends += [x for x in among if np.isfinite(x) and x > 0]
    if ends:
        ax.set_ylim(min(ends) / 2**0.5, max(ends) * 2**0.5)
    bottom, top = ax.get_ylim()
    if (high > low).any():
        inside = np.clip(low, bottom, top), np.clip(high, bottom, top)
        band(ax, step, *inside, color=BLUE, zorder=1)
        open_ends = step[np.isposinf(high) & seen]
        if len(open_ends):
            beyond(ax, open_ends, color=BLUE)
    if not seen.all():
        mark_misses(ax, step[~seen], **_HIDDEN)
        handles.append(Line2D([], [], **sized(_HIDDEN)))
    if fit is not None:
        handles += _critical(ax, fit)
    if local is not None:
        handles += _branches(ax, local)
    ax.set(xlabel="Steps", ylabel="Batch size (examples)")
    frame(ax)
    head(ax, "", handles, title=title)
    return ax


def _branches(ax: Axes, local: pd.DataFrame) -> list[Any]:
    """Draws local critical batch sizes and their intervals; returns the legend's entries."""
    handles = []
    for known, label, look in (
        (True, "local critical batch size, by branching", {}),
        (False, "its bound", {"markerfacecolor": "white"}),
    ):
        part = local[np.isfinite(local["b_local"]) == known]
        if len(part):
            value = part["b_local"] if known else part["recovers"]
            ends = part["low"], part["high"]
            handles.append(bars(ax, part["step"], value, *ends, label=label, **_LOCAL, **look))
    return handles


def _critical(ax: Axes, fit: Fit) -> list[Any]:
    """Draws the critical batch size and its interval; returns the legend's entries."""
    low, high = fit.b_crit_interval
    handles = []
    if np.isfinite(fit.b_crit):
        label = "critical batch size, $B_{crit}$"
        handles.append(ax.axhline(fit.b_crit, label=label, zorder=2, **sized(_CRITICAL)))
    if not np.isnan([low, high]).any() and (low > 0 or high < np.inf):
        bottom, top = ax.get_ylim()
        ax.axhspan(max(low, bottom), min(high, top), color=VERMILION, alpha=0.12, linewidth=0)
        if not handles:
            bound = f"at least {short(low)}" if high == np.inf else f"at most {short(high)}"
            label = f"critical batch size, $B_{{crit}}$: {bound}"
            handles.append(Patch(color=VERMILION, alpha=0.2, linewidth=0, label=label))
    return handles


def sharpness(
    table: pd.DataFrame, *, axes: np.ndarray | None = None, title: str | None = None
) -> np.ndarray:
    """Sharpness, and the gap between test and training, against batch size: two panels.

    One point a trial; its bar is the error of the eigenvalue. The line joins the medians of the
    batch sizes. Trials that did not get down to the training loss are left out.

    Args:
      table: of `theory.generalisation`.
      axes: two axes to draw in; a new figure if not given, where they are below each other if it
        is narrow.
      title: of the first panel, instead of the training losses; an empty one is none.

    Returns:
      The two axes, of sharpness and of the gap.

    Raises:
      ValueError: no trial got down to the training loss, or the table lacks a column.

    >>> table = pd.DataFrame(
    ...     {
    ...         "batch_size": [8, 64],
    ...         "train_loss": [0.098, 0.094],
    ...         "gap": [0.02, 0.03],
    ...         "sharpness": [1.5, 1.7],
    ...         "sharpness_error": [0.001, 0.001],
    ...     }
    ... )
    >>> axes = sharpness(table)
    >>> [ax.get_ylabel() for ax in axes]
    ['Largest eigenvalue of the Hessian', 'Test loss \N{MINUS SIGN} training loss']
    >>> plt.close(axes[0].figure)
    """
    wanted = ("batch_size", "train_loss", "gap", "sharpness", "sharpness_error")
    _check(table, wanted, "sharpness", "generalisation")
    table = table.dropna(subset=["sharpness"]).sort_values("batch_size")
    if table.empty:
        raise ValueError(
            "sharpness: no trial got down to the training loss; give theory.generalisation a "
            "higher train_loss."
        )
    if axes is None:
        width, height = mpl.rcParams["figure.figsize"]
        if width < 0.5 * text_size():  # inches, of 36 letters
            axes = plt.subplots(2, 1, figsize=(width, 1.6 * height), layout="constrained")[1]
        else:
            axes = plt.subplots(1, 2, figsize=(width, 0.8 * height), layout="constrained")[1]
    assert axes is not None
    labels = ("Largest eigenvalue of the Hessian", "Test loss \N{MINUS SIGN} training loss")
    batch_sizes = table["batch_size"].to_numpy(float)
    for ax, name, label in zip(axes, ("sharpness", "gap"), labels, strict=True):
        log2_axis(ax, "x")
        ax.errorbar(
            batch_sizes,
            table[name],
            yerr=table["sharpness_error"] if name == "sharpness" else None,
            alpha=0.7,
            **sized(_TRIAL),
        )
        medians = table.groupby("batch_size")[name].median()
        line = sized({"color": BLUE, "linewidth": 2})
        ax.plot(medians.index, medians, label="median", zorder=1.5, **line)
        ax.set(xlabel="Batch size (examples)", ylabel=label)
        ax.grid(color="0.92", linewidth=0.6)
        ax.set_axisbelow(True)
    axes[0].set_ylim(bottom=0)
    axes[1].axhline(0, color="0.3", zorder=1, **sized({"linewidth": 0.8}))
    low, high = table["train_loss"].min(), table["train_loss"].max()
    words, handles = (
        f"training loss {short(low)} to {short(high)}",
        axes[0].get_legend_handles_labels()[0],
    )
    head(axes[0], words, handles, title=title)
    return axes


def _check(table: pd.DataFrame, wanted: tuple[str, ...], caller: str, maker: str) -> None:
    given.instance("table", table, pd.DataFrame, f"the table of theory.{maker}, a pandas.DataFrame")
    missing = [name for name in wanted if name not in table]
    if missing:
        raise ValueError(
            f"{caller}: the table has no column {listed(missing)}; wanted that of theory.{maker}."
        )
