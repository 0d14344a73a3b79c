"""Steps to target under other definitions, as good as the one that is used."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pandas as pd

from batchscale import columns, given, numeric
from batchscale.metrics import _tables
from batchscale.metrics.goal import Goal, check_goal
from batchscale.metrics.steps import steps_of_curves

_COLUMNS = ["batch_size", "steps", "previous_evaluation", "trial"]
columns.declare("variants", "variant", *_COLUMNS, "why", "began", "before")

_Steps = Callable[[pd.DataFrame, Goal], pd.DataFrame]  # of curves and a goal, as in `variants`


def variants(
    measurements: pd.DataFrame,
    goal: Goal,
    *,
    trials: pd.DataFrame,
    feasible_trials: int | None = None,
    factors: Sequence[float] = (0.8, 0.9, 1.1, 1.25),
    smoothing: int = 3,
    consecutive: Sequence[int] = (2, 3),
) -> pd.DataFrame:
    """Steps to target under other, equally defensible definitions, side by side.

    What is concluded from steps to target should not hang on how they are read off the curves.
    Shallue et al. (2019, figure 2) vary the goal; here too:

    - the goal times each of `factors`; of a share that is to be exceeded, an accuracy, what is left
      to 1 times each;
    - the same metric and value on every other split that was measured; those are evaluated more
      seldom, so that `previous_evaluation` is further away;
    - the loss of the goal's split, with the median over batch sizes of the winner's loss at its
      crossing for a goal;
    - the crossing interpolated between two evaluations, linearly in the log of the step (not from
      step 0, where the evaluation is taken); its `previous_evaluation` is NaN;
    - the mean of the last `smoothing` evaluations past the goal;
    - the first of k evaluations in a row that are all past the goal, for each k of `consecutive`.

    An evaluation whose metric is NaN counts as none: the last three are of those on either side.

    Args:
      measurements: one row an evaluation.
      goal: the metric, its value and its direction.
      trials: as for `steps_to_target`.
      feasible_trials: as for `steps_to_target`.
      factors: of the goal's value.
      smoothing: evaluations.
      consecutive: evaluations.

    Returns:
      One row a variant and batch size: `variant`, in words, that of the definition itself first;
      `batch_size`, `steps`, `previous_evaluation` and `trial` as of `steps_to_target`; and `why`,
      the reason why the tables do not answer a variant, whose steps are NaN then; else empty.

    Raises:
      KeyError, ValueError: as `steps_to_target` does, of the definition itself; or an argument is
        not as above.

    >>> from batchscale.metrics import example_measurements
    >>> from batchscale.records import TRIAL_INDEX
    >>> index = pd.MultiIndex.from_tuples([(8, 0, 0), (8, 1, 0)], names=TRIAL_INDEX)
    >>> trials = {"status": "complete", "steps_trained": 20, "stop_reason": "budget"}
    >>> goal = Goal("validation/error", 0.42)
    >>> table = variants(
    ...     example_measurements(), goal, trials=pd.DataFrame(trials, index), factors=[0.5]
    ... )
    >>> table[["variant", "steps"]].set_index("variant")["steps"].round(1).to_dict()
    {'validation/error < 0.42': 10.0, 'validation/error < 0.21': 20.0, 'interpolated': 10.0,
     'mean of 3 evaluations': inf, '2 evaluations in a row': 10.0, '3 evaluations in a row': inf}
    """
    check_goal("goal", goal)
    for name, counts in (("smoothing", [smoothing]), ("consecutive", consecutive)):
        for count in given.several(name, counts, "numbers of evaluations, in a list"):
            numeric.integer(name, count, 2)
    for factor in given.several("factors", factors, "numbers above 0, in a list"):
        numeric.above("factors", factor, 0, "numbers above 0, in a list")

    def read(goal: Goal) -> pd.DataFrame:
        return _tables.plain_curves_of(measurements, goal.metric, goal.mode)

    def steps(curves: pd.DataFrame, goal: Goal) -> pd.DataFrame:
        table = steps_of_curves(curves, goal, trials=trials, feasible_trials=feasible_trials)
        return table[_COLUMNS]

    curves = read(goal)
    definition = steps(curves, goal)
    tables = [definition.assign(variant=str(goal), why="")]

    def add(variant: str, answer: Callable[[], pd.DataFrame]) -> None:
        try:
            table = answer().assign(why="")
        except (KeyError, ValueError) as error:
            table = definition.assign(steps=np.nan, previous_evaluation=np.nan, trial=np.nan)
            table = table.astype({"trial": "Int64"}).assign(why=error.args[0])
        tables.append(table.assign(variant=variant))

    for other in _other_goals(goal, factors, measurements):
        add(str(other), lambda other=other: steps(read(other), other))
    name = f"{goal.metric.partition('/')[0]}/loss"
    if name in measurements and name != goal.metric:
        value = _loss_at_crossing(measurements[name], definition)
        if np.isfinite(value):
            loss = Goal(name, float(f"{value:.4g}"))
            add(str(loss), lambda: steps(read(loss), loss))
    add("interpolated", lambda: _interpolated(curves, goal, steps))
    add(f"mean of {smoothing} evaluations", lambda: steps(_mean(curves, smoothing), goal))
    for count in consecutive:
        add(
            f"{count} evaluations in a row",
            lambda count=count: _in_a_row(curves, goal, count, steps),
        )
    return pd.concat(tables, ignore_index=True)[["variant", *_COLUMNS, "why"]]


def _other_goals(
    goal: Goal, factors: Sequence[float], measurements: pd.DataFrame
) -> Iterator[Goal]:
    """Easier and harder goals, and the same on other splits."""
    for factor in factors:
        value = factor * goal.value
        if goal.mode == "max" and 0 < goal.value < 1:
            value = 1 - factor * (1 - goal.value)
        # 0.05 * 1.1 is 0.055, not 0.05500000000000001: a count may be just that.
        yield Goal(goal.metric, float(f"{value:.12g}"), goal.mode)
    split, name = goal.split, goal.name
    for column in measurements.columns:
        other, _, metric = column.partition("/")
        if metric == name and other != split:
            yield Goal(column, goal.value, goal.mode)


def _loss_at_crossing(losses: pd.Series, definition: pd.DataFrame) -> float:
    """The median over batch sizes of the winner's loss at its crossing; NaN if not measured."""
    reached = _tables.select(definition, np.isfinite(definition["steps"]))
    rows = zip(reached["batch_size"], reached["trial"], reached["steps"], strict=True)
    values = losses.reindex([(size, trial, 0, int(step)) for size, trial, step in rows]).dropna()
    return float(values.median()) if len(values) else np.nan


def _interpolated(curves: pd.DataFrame, goal: Goal, steps: _Steps) -> pd.DataFrame:
    """With the step of every crossing moved to where a line between evaluations crosses."""
    (value, before), (bound, before_bound) = (_last(curves, name, 2) for name in ("value", "bound"))
    crosses = goal.reached(value) & ~goal.reached(before) & (curves["previous"] > 0).to_numpy()
    step, previous = (curves[name].to_numpy(np.float64) for name in ("step", "previous"))
    with np.errstate(all="ignore"):
        share = (before - goal.value) / (before - value)
        between = np.exp(np.log(previous) + share * (np.log(step) - np.log(previous)))
    # From an evaluation that was cut short the line may start anywhere: even right behind it.
    unknown = crosses & (before_bound == 1)
    best = -np.inf if goal.mode == "min" else np.inf
    curves = curves.assign(
        step=np.where(unknown, previous, np.where(crosses, between, step)),
        value=np.where(unknown, best, value),
        bound=(bound == 1) | unknown,
    )
    table = steps(curves, goal)
    return table.assign(
        previous_evaluation=table["previous_evaluation"].where(np.isinf(table["steps"]))
    )


def _mean(curves: pd.DataFrame, count: int) -> pd.DataFrame:
    """Curves of the mean of the last `count` evaluations; a mean of bounds is a bound."""
    value, bound = (sum(_last(curves, name, count)) for name in ("value", "bound"))
    smooth = curves.assign(value=value / count, bound=bound > 0)  # pyright: ignore
    return _tables.select(smooth, ~np.isnan(bound))  # pyright: ignore


def _in_a_row(curves: pd.DataFrame, goal: Goal, count: int, steps: _Steps) -> pd.DataFrame:
    """The worst of the last `count` evaluations is past the goal; the first of them is meant."""
    worst = np.maximum if goal.mode == "min" else np.minimum
    bound = sum(_last(curves, "bound", count))
    stays = curves.assign(
        value=worst.reduce(_last(curves, "value", count)),
        bound=bound > 0,  # pyright: ignore
        began=_last(curves, "step", count)[-1],
        before=_last(curves, "previous", count)[-1],
    )
    stays = _tables.select(stays, ~np.isnan(bound))  # pyright: ignore
    # A run is known when it is whole: up to there other trials must have been trained.
    table = steps(stays, goal)
    runs = stays[["batch_size", "trial", "step", "began", "before"]].astype(
        {"step": float, "trial": "Int64"}
    )
    table = table.merge(runs.rename(columns={"step": "steps"}), how="left")
    reached = np.isfinite(table["steps"])
    return table.assign(
        steps=table["began"].where(reached, table["steps"]),
        previous_evaluation=table["before"].where(reached, table["previous_evaluation"]),
    )[_COLUMNS]


def _last(curves: pd.DataFrame, name: str, count: int) -> list[np.ndarray]:
    """A column at each evaluation, at the one before, and so on; NaN before a trial's first."""
    column = curves[name].astype(np.float64).groupby([curves["batch_size"], curves["trial"]])
    return [column.shift(back).to_numpy() for back in range(count)]
