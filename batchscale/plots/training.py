"""Training curves: a metric against steps, one line a trial."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from batchscale.given import instance, several
from batchscale.metrics._tables import not_measured
from batchscale.plots.asked import RESULT, check_place, check_reads
from batchscale.plots.common import (
    Result,
    axis_label,
    check_batch_size,
    goal_words,
    head,
    listed,
    new_axes,
    plain_rows,
    winners,
)
from batchscale.plots.marks import BLUE, GREY, VERMILION, beyond, sized
from batchscale.plots.scales import hold_ticks, log2_axis, log_axis, seconds_axis

_BEST: dict[str, Any] = {"color": BLUE, "linewidth": 2, "zorder": 4}
_TRIAL: dict[str, Any] = {
    "label": "trial",
    "color": GREY,
    "linewidth": 0.7,
    "alpha": 0.6,
    "zorder": 2,
}
_DIVERGED: dict[str, Any] = {"color": VERMILION, "linewidth": 0.7, "alpha": 0.6, "zorder": 2}
_CROSS: dict[str, Any] = {
    "label": "diverged",
    "color": VERMILION,
    "marker": "x",
    "markersize": 5,
    "zorder": 5,
}
_GOAL: dict[str, Any] = {"color": "black", "linewidth": 1, "linestyle": (0, (4, 3)), "zorder": 3}


def training_curves(
    result: Result,
    *,
    batch_size: int,
    metric: str | None = None,
    ax: Axes | None = None,
    trials: Collection[int] | None = None,
    title: str | None = None,
) -> Axes:
    """A metric against steps on a log2 axis, one thin line a trial of one batch size.

    The trial that reached the goal first is the thick line, the goal the dashed one. A trial that
    diverged ends in a cross. The other trials set the range of the y axis; the cross is at its
    edge, with an arrowhead, where the last value lies beyond. Step 0 has no place on a log axis and
    is left out.

    Args:
      result: of a study.
      batch_size: examples.
      metric: a column of the measurements; the goal's if not given.
      ax: where to draw; a new figure if not given.
      trials: the numbers of the trials to draw; all if not given.
      title: instead of the figure's own words; an empty one is none.

    Returns:
      The axes.

    Raises:
      ValueError: the result has no such batch size, metric or trial.

    >>> from types import SimpleNamespace
    >>> names = ["batch_size", "trial", "replicate", "step"]
    >>> index = pd.MultiIndex.from_product([[64], [0], [0], [0, 1, 2]], names=names)
    >>> result = SimpleNamespace(
    ...     name="mnist/fc_128_128_128, sgd",
    ...     goal=SimpleNamespace(metric="validation/error", value=0.2, mode="min"),
    ...     trials=pd.DataFrame({"status": "complete"}, index.droplevel("step").unique()),
    ...     measurements=pd.DataFrame({"validation/error": [0.9, 0.3, 0.1]}, index),
    ...     steps_to_target=lambda: pd.DataFrame(
    ...         {"batch_size": [64], "steps": [2.0], "trial": [0]}
    ...     ),
    ... )
    >>> ax = training_curves(result, batch_size=64)
    >>> [text.get_text() for text in ax.get_legend().get_texts()]
    ['best: trial 0', 'validation error < 0.2']
    >>> import matplotlib.pyplot as plt
    >>> plt.close(ax.figure)
    """
    check_reads("result", result, RESULT, "goal", "measurements", "trials")
    check_place(ax, title)
    goal = result.goal
    metric = goal.metric if metric is None else metric
    instance("metric", metric, str, 'the name of a column, "split/metric"')
    if metric not in result.measurements:
        raise ValueError(
            f"training_curves: {result.name!r} has no metric {metric!r}; "
            f"it has {listed(result.measurements.columns)}."
            f"{not_measured(metric, result.measurements)}"
        )
    check_batch_size(result, batch_size, caller="training_curves")
    status: dict[Any, str] = plain_rows(result.trials, batch_size)["status"].to_dict()
    chosen = list(status)
    if trials is not None:
        chosen = list(several("trials", trials, "numbers of trials, in a list"))
    if not chosen:
        raise ValueError("trials: got none, wanted at least one.")
    unknown = sorted(set(chosen) - set(status), key=str)
    if unknown:
        raise ValueError(
            f"training_curves: {result.name!r} has no trial {listed(unknown)} at batch size "
            f"{batch_size}; it has {listed(status)}."
        )
    values = plain_rows(result.measurements, batch_size)[metric]
    shown = values.loc[np.isfinite(values) & (values.index.get_level_values("step") > 0)]
    curves = {
        trial: curve.droplevel("trial")
        for trial, curve in shown.groupby(level="trial")
        if trial in chosen
    }
    diverged = [trial for trial in curves if status[trial] == "infeasible"]
    best = winners(result).get(batch_size)

    ax = new_axes() if ax is None else ax
    log2_axis(ax, "x")
    for trial, curve in curves.items():
        style = _BEST if trial == best else _DIVERGED if trial in diverged else _TRIAL
        ax.plot(curve.index, curve, **sized({**style, "label": f"trial {trial}"}))
    handles = []
    if set(curves) - {*diverged, best}:
        handles.append(Line2D([], [], **sized(_TRIAL)))
    if best in curves:
        handles.append(Line2D([], [], **sized({**_BEST, "label": f"best: trial {best}"})))
    in_view = [curve for trial, curve in curves.items() if trial not in diverged]
    in_view = in_view or list(curves.values())
    if metric == goal.metric:
        in_view.append(pd.Series([goal.value]))
        ax.axhline(goal.value, **sized(_GOAL))
        handles.append(Line2D([], [], **sized({**_GOAL, "label": goal_words(goal)})))
    if in_view:
        _fit_y(ax, np.concatenate(in_view), rising=metric == goal.metric and goal.mode == "max")
    for trial in diverged:
        end = curves[trial].iloc[[-1]]
        low, high = ax.get_ylim()
        ax.plot(end.index, end.clip(low, high), clip_on=False, **sized(_CROSS))
        value, cross = float(end.iloc[0]), sized(_CROSS)
        if not low <= value <= high:
            edge = "top" if value > high else "bottom"
            beyond(ax, end.index, color=VERMILION, edge=edge, inside=0.6 * cross["markersize"])
    if diverged:
        handles.append(Line2D([], [], **sized({**_DIVERGED, **_CROSS, "alpha": 1})))
    hold_ticks(ax)
    ax.set(xlabel="Steps", ylabel=axis_label(metric))
    head(ax, f"{result.name}, batch size {batch_size:,}", handles, title=title)
    return ax


def _fit_y(ax: Axes, values: np.ndarray, *, rising: bool) -> None:
    """Fits the y axis to values, on a log scale where they fall by more than a decade."""
    low, high = values.min(), values.max()
    positive = values[values > 0]
    if rising or low < 0 or high <= 10 * positive.min(initial=high):
        margin = 0.05 * (high - low) or 0.5
        ax.set_ylim(low - margin, high + margin)
        return
    low = positive.min()
    margin = (high / low) ** 0.05
    if high < 1e3 * low:
        seconds_axis(ax, "y")
    else:
        log_axis(ax, "y")
    ax.set_ylim(low / margin, high * margin)
