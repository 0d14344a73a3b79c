"""Steps, examples and time: what a batch size buys, and which to train with."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

import numpy as np
import pandas as pd

from batchscale import columns, numeric
from batchscale.given import instance
from batchscale.metrics import _tables
from batchscale.numeric import short
from batchscale.scaling._regimes import Regimes, overhead, regimes
from batchscale.scaling.averaging import LUCK, lucky
from batchscale.scaling.curve import Interval
from batchscale.scaling.fitted import Fit
from batchscale.scaling.fitting import fit as fit_steps
from batchscale.scaling.pace import Pace

StepTimes = float | Mapping[int, float] | pd.DataFrame
"""Seconds a step takes: at every batch size, by batch size, or a table of both."""

_STEP_TIMES = columns.declare("step times", "batch_size", "seconds_per_step")
columns.declare("frontier", "seconds", "speedup", "efficiency", "pareto")


def frontier(steps: pd.DataFrame, *, seconds_per_step: StepTimes | None = None) -> pd.DataFrame:
    """Time against cost at every batch size.

    Cost is the number of examples. Time is the number of steps: on ideal hardware a step takes the
    same time whatever the batch size (the assumption of Shallue et al. 2019). With
    `seconds_per_step` time is steps times that.

    Args:
      steps: the table of `metrics.steps_to_target`.
      seconds_per_step: measured, above 0: a number, `{batch_size: seconds}`, or a table with the
        columns `batch_size` and `seconds_per_step`.

    Returns:
      One row a batch size: `batch_size`; `steps`; `seconds`, if step times were given; `examples`;
      `speedup`, the time of the smallest batch size over this one's; `efficiency`, the examples of
      the smallest over this one's, 1 for perfect scaling, a little above it by luck; `pareto`,
      whether no other batch size takes at most the same time and examples and less of one. A miss
      has inf, and 0 for speedup and efficiency; if the smallest batch size misses, both are NaN.

    Raises:
      ValueError: a table is not as above, or a batch size has no step time.

    >>> table = pd.DataFrame({"batch_size": [1, 4, 16, 64], "steps": [1000, 250, 100, 125]})
    >>> frontier(table)
       batch_size   steps  examples  speedup  efficiency  pareto
    0           1  1000.0    1000.0      1.0       1.000   False
    1           4   250.0    1000.0      4.0       1.000    True
    2          16   100.0    1600.0     10.0       0.625    True
    3          64   125.0    8000.0      8.0       0.125   False
    >>> frontier(table, seconds_per_step={1: 0.01, 4: 0.01, 16: 0.03, 64: 0.1})["seconds"].tolist()
    [10.0, 2.5, 3.0, 12.5]
    """
    table = overhead(steps).drop(columns="overhead")
    time, cost = table["steps"].to_numpy(float), table["examples"].to_numpy(float)
    if seconds_per_step is not None:
        time = time * _step_times(seconds_per_step, table["batch_size"].tolist())
        table.insert(2, "seconds", time)
    return table.assign(
        speedup=_of_first(time), efficiency=_of_first(cost), pareto=_pareto(time, cost)
    )


def _of_first(values: np.ndarray) -> np.ndarray:
    """The first value over each; NaN where the first is no number to compare with."""
    first = values[0] if len(values) else math.nan
    return (first if math.isfinite(first) else math.nan) / values


def _step_times(given: StepTimes, batch_sizes: list[int]) -> np.ndarray:
    """The seconds of a step at each batch size."""
    if isinstance(given, pd.DataFrame):
        missing = {"batch_size", "seconds_per_step"} - set(given)
        if missing:
            raise ValueError(
                f"seconds_per_step: no column {', '.join(map(repr, sorted(missing)))}; wanted "
                "'batch_size' and 'seconds_per_step'."
            )
        if (twice := given["batch_size"].duplicated()).any():
            raise ValueError(
                f"seconds_per_step: batch size {given['batch_size'][twice].iloc[0]} stands twice; "
                "wanted one row a batch size."
            )
        given = dict(zip(given["batch_size"], given["seconds_per_step"], strict=True))
    if not isinstance(given, Mapping):
        given = dict.fromkeys(batch_sizes, given)
    lacking = [str(size) for size in batch_sizes if size not in given]
    if lacking:
        raise ValueError(
            f"seconds_per_step: no time for batch size {', '.join(lacking)}; "
            f"got those of {', '.join(map(str, given)) or 'none'}."
        )
    for size in batch_sizes:
        try:
            seconds = float(given[size]) if not isinstance(given[size], str | bool) else math.nan
        except TypeError:
            seconds = math.nan
        if not 0 < seconds < math.inf:
            raise ValueError(
                f"seconds_per_step: got {given[size]!r} at batch size {size}, wanted seconds "
                "above 0."
            )
    return np.array([float(given[size]) for size in batch_sizes], np.float64)


def _pareto(time: np.ndarray, cost: np.ndarray) -> np.ndarray:
    """Which points no other one beats in one and equals in the other; never a miss."""
    no_worse = (time[None] <= time[:, None]) & (cost[None] <= cost[:, None])
    better = (time[None] < time[:, None]) | (cost[None] < cost[:, None])
    return np.isfinite(time) & ~(no_worse & better).any(axis=1)


@dataclasses.dataclass(frozen=True)
class Recommendation:
    """Which batch size to train with, in words and numbers; `str` gives the words.

    Attributes:
      table: of `frontier`.
      regimes: perfect scaling and plateau among the batch sizes.
      fit: the fitted curve, or why no critical batch size is quoted.
      knee: the batch size nearest to B_crit, where the hyperbola needs twice the fewest steps and
        twice the fewest examples. Where B_crit is refused, that with the least product of steps and
        examples, which of the hyperbola is B_crit too; with measured step times, that with the
        least product of seconds and examples. NaN if none reaches the goal.
      fastest: the batch size that takes the least time: in seconds with measured step times, else
        in steps; the smallest of several; NaN if none reaches the goal.
      sentences: the words.
    """

    table: pd.DataFrame
    regimes: Regimes
    fit: Fit
    knee: float
    fastest: float
    sentences: tuple[str, ...]

    def __str__(self) -> str:
        return "\n".join(self.sentences)


def recommend(
    steps: pd.DataFrame,
    fit: Fit | None = None,
    *,
    seconds_per_step: StepTimes | None = None,
    tolerance: float = 0.2,
    paces: Mapping[int, Pace] | None = None,
    luck: float = LUCK,
) -> Recommendation:
    """Below which batch size doubling it is free, where returns diminish, and where they end.

    Args:
      steps: the table of `metrics.steps_to_target`, or of medians.
      fit: of `scaling.fit`; made here if not given.
      seconds_per_step: as for `frontier`.
      tolerance: the share by which steps, examples or seconds may be off and count as the same.
      paces: as for `fit`.
      luck: as for `fit`, of the fit that is made here; none of medians whose `log_deviation` is
        known.

    Raises:
      ValueError: an argument is not as above.

    >>> table = pd.DataFrame(
    ...     {"batch_size": [1, 4, 16, 64, 256, 1024], "steps": [2500, 650, 178, 63, 33, 26]}
    ... )
    >>> print(recommend(table, luck=0))
    Steps stand for time: on ideal hardware a step takes as long at every batch size.
    Up to 2... (90% interval ...): doubling the batch halves the steps, at no more than 20% over the
    fewest examples.
    64 is the knee: ... critical batch size is 10... (90% interval ...).
    Above ... (90% interval ...): no gain beyond 20% of the fewest steps.
    """
    numeric.above("tolerance", tolerance, 0, "a share above 0, such as 0.2")
    if fit is not None:
        instance("fit", fit, Fit, "what scaling.fit returns")
    table = frontier(steps, seconds_per_step=seconds_per_step)
    if fit is None:
        luck = lucky(steps, luck)
        fit = fit_steps(steps, form="averaged", paces=paces, luck=luck)
    found = regimes(steps, tolerance=tolerance, paces=paces, fit=fit)
    reached = _tables.select(table, np.isfinite(table["steps"]))
    unit = "steps" if seconds_per_step is None else "seconds"
    knee = fastest = math.nan
    if len(reached):
        sizes, time = reached["batch_size"].to_numpy(float), reached[unit].to_numpy(float)
        if fit.refused or unit == "seconds":
            far = (reached[unit] * reached["examples"]).to_numpy(float)
        else:
            far = np.abs(np.log(sizes / fit.b_crit))
        knee, fastest = float(sizes[np.argmin(far)]), float(sizes[np.argmin(time)])
    words = [_time(seconds_per_step), *_misses(table)]
    if len(reached):
        words += [_perfect(table, found, fit.confidence), *_knee(reached, knee, fit, unit)]
        words += [f"Mind that {caution}." for caution in fit.cautions]
        if seconds_per_step is None:
            words.append(_gain(reached, found, fit.confidence))
        else:
            words.append(_fastest(reached, fastest, tolerance))
    return Recommendation(table, found, fit, knee, fastest, tuple(words))


def _time(seconds_per_step: StepTimes | None) -> str:
    if seconds_per_step is None:
        return "Steps stand for time: on ideal hardware a step takes as long at every batch size."
    return "Seconds are steps times the given seconds a step; cost is the number of examples."


def _misses(table: pd.DataFrame) -> list[str]:
    missed = table.loc[np.isinf(table["steps"]), "batch_size"].tolist()
    if not missed:
        return []
    if len(missed) == len(table):
        return ["No batch size reached the goal, so nothing can be recommended."]
    sizes = ", ".join(f"{size:,}" for size in missed)
    return [f"Not reached in the steps that were trained: the goal at {sizes}."]


def _perfect(table: pd.DataFrame, found: Regimes, confidence: float) -> str:
    share = f"{found.tolerance:.0%}"
    if found.by == "fit" and math.isnan(found.perfect_until):
        return (
            f"No perfect scaling is seen: {table['batch_size'].iloc[0]:,}, the smallest batch "
            f"size, needs over {share} more than the fewest examples of the fitted curve."
        )
    if found.by == "fit":
        return (
            f"Up to {_about(found.perfect_until)}{_between(found.perfect_interval, confidence)}: "
            f"doubling the batch halves the steps, at no more than {share} over the fewest "
            "examples."
        )
    smallest, largest = table["batch_size"].iloc[0], table["batch_size"].iloc[-1]
    until = found.perfect_until
    if len(table) == 1:
        return f"{smallest:,} is the only batch size: where perfect scaling ends is not known."
    if math.isnan(until):
        return (
            f"Where perfect scaling ends is not known: {smallest:,}, the smallest batch size, did "
            "not reach the goal."
        )
    following = table.loc[table["batch_size"] > until, "steps"]
    if len(following) and math.isinf(following.iloc[0]):
        return (
            f"Perfect scaling holds at least up to {until:,.0f}; the next batch size did not reach "
            "the goal."
        )
    if until == smallest:
        return (
            f"No perfect scaling from {smallest:,}, the smallest batch size, on: the next needs "
            f"over {share} more examples."
        )
    words = (
        f"Up to {until:,.0f}: doubling the batch halves the steps at the same number of examples "
        f"(within {share})."
    )
    if until == largest:
        words += " That is the largest batch size: larger ones may scale on."
    return words


def _knee(reached: pd.DataFrame, knee: float, fit: Fit, unit: str) -> list[str]:
    low, high = fit.b_crit_interval
    if not fit.refused and unit == "steps":
        steps = float(fit.steps([knee])[0]) / fit.s_min
        examples = steps * knee / fit.b_crit
        return [
            f"{knee:,.0f} is the knee: {steps:.1f} times the fewest steps and {examples:.1f} times "
            "the fewest examples of the fitted curve, whose critical batch size is "
            f"{short(fit.b_crit)} ({fit.confidence:.0%} interval {short(low)} to {short(high)})."
        ]
    row = reached[reached["batch_size"] == knee].iloc[0]
    time = row[unit] / reached[unit].min()
    examples = row["examples"] / reached["examples"].min()
    sizes = reached["batch_size"].tolist()
    if len(sizes) == 1:
        words = f"Only {knee:,.0f} reached the goal: where the knee lies is not known."
    else:
        words = (
            f"{knee:,.0f} is the knee among the batch sizes: {time:.1f} times the fewest {unit} "
            f"and {examples:.1f} times the fewest examples."
        )
        if knee in (sizes[0], sizes[-1]):
            which, beyond = ("smallest", "below") if knee == sizes[0] else ("largest", "above")
            words += f" It is the {which} that reached the goal: the true one may lie {beyond}."
    if fit.refused:
        return [words, f"No critical batch size is quoted: {fit.refused}."]
    return [
        words,
        f"In steps the critical batch size is {short(fit.b_crit)} ({fit.confidence:.0%} interval "
        f"{short(low)} to {short(high)}).",
    ]


def _gain(reached: pd.DataFrame, found: Regimes, confidence: float) -> str:
    share, largest = f"{found.tolerance:.0%}", reached["batch_size"].iloc[-1]
    if found.by == "fit" and math.isnan(found.plateau_from):
        return (
            f"No plateau is seen: {largest:,}, the largest batch size, needs over {share} more "
            "than the fewest steps of the fitted curve."
        )
    if found.by == "fit":
        return (
            f"Above {_about(found.plateau_from)}{_between(found.plateau_interval, confidence)}: "
            f"no gain beyond {share} of the fewest steps."
        )
    if len(reached) == 1:
        return f"Only {largest:,} reached the goal: where the gain ends is not known."
    if math.isnan(found.useful_until):
        return "Where the gain ends is not known: the fewest steps may be the schedule's doing."
    if found.useful_until == largest:
        return (
            f"No end of the gain within the batch sizes: {largest:,}, the largest that reached the "
            f"goal; every smaller one needs over {share} more steps."
        )
    return f"Above {found.useful_until:,.0f}: no gain beyond {share} of the fewest steps."


def _about(size: float) -> str:
    """A batch size of the fitted curve, to two digits, which is more than is known.

    >>> _about(1234.5), _about(18.4), _about(2.4)
    ('1,200', '18', '2.4')
    """
    return f"{float(f'{size:.2g}'):,.0f}" if size >= 10 else f"{size:.2g}"


def _between(interval: Interval, confidence: float) -> str:
    if math.isnan(interval.low):
        return ""
    return f" ({confidence:.0%} interval {_about(interval.low)} to {_about(interval.high)})"


def _fastest(reached: pd.DataFrame, fastest: float, tolerance: float) -> str:
    seconds = reached["seconds"]
    enough = reached.loc[seconds <= (1 + tolerance) * seconds.min(), "batch_size"].iloc[0]
    words = f"{fastest:,.0f} is fastest, in {short(seconds.min())} seconds"
    if enough < fastest:
        words += f"; {enough:,} is within {tolerance:.0%} of it, with fewer examples a step"
    return words + "."
