"""What steps to target and budgets ask of the two tables alike."""

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from batchscale import columns, given
from batchscale.metrics.goal import BOUNDS, Goal, Mode, check_goal
from batchscale.records import (
    MEASUREMENT_INDEX,
    TRIAL_COLUMNS,
    TRIAL_INDEX,
    Status,
    StopReason,
    check_index,
)

columns.declare("curves", "value", "previous", "bound", "needed")


def example_measurements() -> pd.DataFrame:
    """The measurements of a small study, for examples.

    >>> example_measurements()
                                      validation/error
    batch_size trial replicate step
    8          0     0         0                   0.9
                               10                  0.4
                               20                  0.3
               1     0         0                   0.9
                               10                  0.5
                               20                  0.2
    16         0     0         0                   0.9
                               10                  0.1
    """
    steps = [(8, 0, step) for step in (0, 10, 20)] + [(8, 1, step) for step in (0, 10, 20)]
    steps += [(16, 0, step) for step in (0, 10)]
    index = pd.MultiIndex.from_tuples(
        [(batch_size, trial, 0, step) for batch_size, trial, step in steps],
        names=MEASUREMENT_INDEX,
    )
    return pd.DataFrame({"validation/error": [0.9, 0.4, 0.3, 0.9, 0.5, 0.2, 0.9, 0.1]}, index)


def with_goal(measurements: pd.DataFrame, goal: Goal) -> pd.DataFrame:
    """The measurements with a column for the goal's metric, NaN where it was not measured.

    A study has no such column before its first whole evaluation, only bounds, and no column at all
    before its first evaluation.

    >>> goal = Goal("validation/error", 0.3)
    >>> table = example_measurements().rename(columns={goal.metric: goal.bound})
    >>> with_goal(table, goal).columns.tolist()
    ['validation/error', 'validation/error_at_least']
    """
    check_goal("goal", goal)
    given.frame("measurements", measurements, "one row an evaluation")
    if goal.metric in measurements.columns:
        return measurements
    column = np.full(len(measurements), np.nan)
    return measurements.assign(**{goal.metric: column}).sort_index(axis=1)


def curves_of(measurements: pd.DataFrame, metric: str, mode: Mode) -> pd.DataFrame:
    """The evaluations of one metric, in order.

    Returns:
      Columns batch_size, trial, replicate, step, `value`, `previous`, the step of that trial's
      evaluation before, NaN for its first, and `bound`: whether the evaluation was cut short, so
      that `value` is only the best it can be, infinite where nothing is known of it.

    Raises:
      KeyError: the metric is no column, though its split was evaluated whole.
    """
    check_index(measurements, MEASUREMENT_INDEX, "measurements")
    given.instance("metric", metric, str, 'the name of a column, "split/metric"')
    if metric not in measurements.columns and not _only_bounds(measurements, metric):
        raise KeyError(
            f"measurements: no column {metric!r}; it has {', '.join(sorted(measurements.columns))}."
            f"{not_measured(metric, measurements)}"
        )
    curves = measurements.index.to_frame(index=False).astype(np.int64)
    values, bound = np.full(len(curves), np.nan), np.zeros(len(curves), bool)
    if metric in measurements.columns:
        values = measurements[metric].to_numpy(np.float64, na_value=np.nan)
    best = -np.inf if mode == "min" else np.inf
    for column in measurements.columns:
        if column.startswith(metric.partition("/")[0] + "/") and column.endswith(BOUNDS):
            bounds = measurements[column].to_numpy(np.float64, na_value=np.nan)
            cut = np.isnan(values) & ~np.isnan(bounds)
            own = column == Goal(metric, 0.0, mode).bound
            values = np.where(cut, bounds if own else best, values)
            bound |= cut
    curves = curves.assign(value=values, bound=bound)
    curves = curves.dropna().sort_values(list(MEASUREMENT_INDEX), ignore_index=True)
    curves["previous"] = curves.groupby(list(TRIAL_INDEX))["step"].shift()
    return curves


def _only_bounds(measurements: pd.DataFrame, metric: str) -> bool:
    """Whether all evaluations of a split were cut short, so that none names its metrics."""
    own = [c for c in measurements.columns if c.startswith(metric.partition("/")[0] + "/")]
    whole = [column for column in own if not column.endswith(BOUNDS)]
    return len(measurements) == 0 or (
        len(own) > len(whole) and not measurements[whole].notna().to_numpy().any()
    )


def not_measured(metric: str, measurements: pd.DataFrame) -> str:
    """What to do where nothing of a metric's split was measured; empty where something was.

    >>> not_measured("test/error", example_measurements())
    " Nothing of 'test' was measured: the study's evaluate=Evaluate(...) says of which splits."
    """
    split = metric.partition("/")[0]
    if any(str(column).startswith(f"{split}/") for column in measurements.columns):
        return ""
    return (
        f" Nothing of {split!r} was measured: the study's evaluate=Evaluate(...) says of which "
        "splits."
    )


def trials_of(measurements: pd.DataFrame) -> pd.MultiIndex:
    """The trial of each row."""
    index = measurements.index
    assert isinstance(index, pd.MultiIndex)  # it was checked
    return index.droplevel("step")  # pyright: ignore[reportReturnType]


def plain_curves_of(measurements: pd.DataFrame, metric: str, mode: Mode) -> pd.DataFrame:
    """Those of `curves_of` that are not of reruns."""
    curves = curves_of(measurements, metric, mode)
    return select(curves, curves["replicate"] == 0)


def select(frame: pd.DataFrame, rows: ArrayLike) -> pd.DataFrame:
    """The rows of a table at which `rows` is true."""
    return frame.take(np.flatnonzero(rows))


def plain_batch_sizes(table: pd.DataFrame) -> pd.Index:
    """The batch sizes of a table's plain trials, in order."""
    plain = table.index.get_level_values("replicate") == 0
    batch_sizes = table.index.get_level_values("batch_size").to_numpy(np.int64)
    return pd.Index(np.unique(batch_sizes[plain]), name="batch_size")


def plain_trials(trials: pd.DataFrame) -> pd.DataFrame:
    """The trials that are not reruns, in order: columns batch_size, trial and the table's."""
    check_index(trials, TRIAL_INDEX, "trials")
    missing = {"status", "steps_trained", "stop_reason"} - set(trials.columns)
    if missing:
        raise ValueError(f"trials: lacks the columns {', '.join(sorted(missing))}.")
    for column, words in (("status", Status), ("stop_reason", StopReason)):
        known = [str(word) for word in words]
        other = trials.loc[~trials[column].isin(known).to_numpy(), column]
        if len(other):
            raise ValueError(
                f"trials: {column} is {other.iloc[0]!r} of trial {other.index[0]}; wanted one of "
                f"{', '.join(map(repr, known))}."
            )
    trained = pd.to_numeric(trials["steps_trained"], errors="coerce").to_numpy(np.float64)
    if not (trained >= 0).all():
        place = int(np.flatnonzero(~(trained >= 0))[0])
        size, trial, _ = trials.index[place]
        raise ValueError(
            f"trials: steps_trained is {trials['steps_trained'].iloc[place]} of trial {trial} at "
            f"batch size {size}; wanted the step up to which it was trained."
        )
    plain = trials.reset_index().astype({"batch_size": np.int64, "trial": np.int64})
    plain = select(plain, plain["replicate"] == 0).drop(columns="replicate")
    return plain.sort_values(["batch_size", "trial"], ignore_index=True)


def feasible(plain: pd.DataFrame) -> pd.DataFrame:
    """Those of `plain_trials` that did not diverge."""
    return select(plain, plain["status"] != Status.INFEASIBLE)


def with_hyperparameters(result: pd.DataFrame, plain: pd.DataFrame) -> pd.DataFrame:
    """`result` with the hyperparameters of the trial in each of its rows, if any."""
    hyperparameters = plain.drop(columns=list(TRIAL_COLUMNS), errors="ignore")
    hyperparameters = hyperparameters.astype({"trial": "Int64"})
    return result.merge(hyperparameters, on=["batch_size", "trial"], how="left")


def check_long_enough(question: str, counting: pd.DataFrame, train_on: str) -> None:
    """Refuses a question to which the untrained part of some trial might hold the answer.

    Args:
      question: what an error says was asked.
      counting: the trials that matter, with the number of steps `needed` of each.
      train_on: the call that trains further what its study's stop rule had stopped.
    """
    short = select(counting, counting["steps_trained"] < counting["needed"])
    if len(short) == 0:
        return
    unfinished = (short["status"] == Status.INCOMPLETE).to_numpy()
    whole = (short["stop_reason"] == StopReason.BUDGET).to_numpy() & ~unfinished
    own = (short["stop_reason"] == StopReason.OWN_BUDGET).to_numpy() & ~unfinished
    remedies = []
    if unfinished.any():
        remedies.append("finish the interrupted trials with study.run(folder)")
    if (~unfinished & ~whole & ~own).any():
        remedies.append(f"train on with {train_on}")
    if whole.any():
        remedies.append("raise the budget with study.extend(folder, max_steps=...)")
    if own.any():
        remedies.append("ask for no more than trials with budgets of their own were trained")
    shortest = short.sort_values(["batch_size", "steps_trained", "trial"])
    shortest = shortest.drop_duplicates("batch_size")
    cases = [
        f"at batch size {row['batch_size']}, trial {row['trial']} was trained for "
        f"{row['steps_trained']} steps ({row['stop_reason']}) of "
        + (f"{row['needed']:.0f}" if np.isfinite(row["needed"]) else "a whole budget")
        for row in shortest.head(3).to_dict("records")
    ]
    if len(shortest) > 3:
        cases.append(f"and so on at {len(shortest) - 3} more")
    raise ValueError(
        f"{question}: the curves are too short to tell: {'; '.join(cases)}. "
        f"To know, {', and '.join(remedies)}."
    )
