"""The two tables of a study, measurements and trials, in their one exact form."""

import enum
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from batchscale import columns

MEASUREMENT_INDEX = columns.declare("measurements", "batch_size", "trial", "replicate", "step")
TRIAL_INDEX = MEASUREMENT_INDEX[:3]


class Status(enum.StrEnum):
    """How a trial ended.

    >>> print(Status.INFEASIBLE)
    infeasible
    """

    COMPLETE = "complete"  # it ran as far as the study's stop rule asks
    INCOMPLETE = "incomplete"
    INFEASIBLE = "infeasible"  # it diverged


class Origin(enum.StrEnum):
    """Why a trial was run.

    >>> print(Origin.TOPUP)
    topup
    """

    PLAN = "plan"
    TOPUP = "topup"  # in place of one that diverged
    REFINE = "refine"  # in a narrower space, around the best
    EXPAND = "expand"  # in a wider one, for a best too near its edge
    CONFIRM = "confirm"  # the best again, under other seeds
    MEASURE = "measure"  # where it tells most of all batch sizes


class StopReason(enum.StrEnum):
    """What ended a trial.

    >>> print(StopReason.FIRST_CROSSING)
    first crossing
    """

    FIRST_CROSSING = "first crossing"  # some trial of its batch size reached the goal
    OWN_CROSSING = "own crossing"  # the trial itself did
    FACTOR = "factor"  # it was trained the asked multiple of the first crossing
    BUDGET = "budget"  # it was trained the whole budget
    OWN_BUDGET = "own budget"  # a whole budget that others need not share: one of time, say
    DIVERGED = "diverged"
    INTERRUPTED = "interrupted"


WHOLE_BUDGETS = (StopReason.BUDGET, StopReason.OWN_BUDGET)
"""The stop reasons of trials of which there is no more to be had: they count as they are."""

TRIAL_COLUMNS: Mapping[str, type] = {
    "origin": Origin,
    "status": Status,
    "steps_trained": np.int64,
    "stop_reason": StopReason,
    "first_crossing": np.float64,
}
"""The columns of `trials` that are not hyperparameters, in order, with their types.

`steps_trained` of an infeasible trial is the step at which it was found diverged;
`first_crossing` is inf where the trial never was past the study's goal.
"""
columns.declare("trials", *TRIAL_COLUMNS)


def measurement_table(frame: pd.DataFrame) -> pd.DataFrame:
    """Measurements in their exact form.

    Args:
      frame: one row an evaluation, indexed by (batch_size, trial, replicate, step); a column
        of numbers a "split/metric".

    Returns:
      The same, sorted, with an int64 index and float64 columns in order of name, NaN where
      a metric was not evaluated at that step.

    Raises:
      ValueError: the frame is not as above, or a row is in it twice.

    >>> index = pd.MultiIndex.from_tuples([(8, 0, 0, 1), (8, 0, 0, 0)], names=MEASUREMENT_INDEX)
    >>> measurement_table(pd.DataFrame({"validation/error": [1, 0.5]}, index))
                                      validation/error
    batch_size trial replicate step
    8          0     0         0                   0.5
                               1                   1.0
    """
    check_index(frame, MEASUREMENT_INDEX, "measurements")
    for column in frame.columns:
        if not re.fullmatch(r"[^/]+/[^/]+", str(column)):
            raise ValueError(f'measurements: column {column!r} must be named "split/metric".')
    values = {name: _floats(frame, name, "measurements") for name in sorted(frame.columns)}
    return _table(values, frame.index)


def trial_table(frame: pd.DataFrame) -> pd.DataFrame:
    """Trials in their exact form.

    Args:
      frame: one row a trial, indexed by (batch_size, trial, replicate); a column of numbers
        a hyperparameter, and the columns of `TRIAL_COLUMNS`.

    Returns:
      The same, sorted, with an int64 index: the hyperparameters as float64 in order of
      name, then `TRIAL_COLUMNS`, their words as strings.

    Raises:
      ValueError: the frame is not as above, or a trial is in it twice.

    >>> index = pd.MultiIndex.from_tuples([(8, 0, 0)], names=TRIAL_INDEX)
    >>> trial = {"learning_rate": 1, "origin": "plan", "status": "complete"}
    >>> trial |= {"steps_trained": 90, "stop_reason": "budget", "first_crossing": np.inf}
    >>> trial_table(pd.DataFrame(trial, index)).learning_rate.item()
    1.0
    """
    check_index(frame, TRIAL_INDEX, "trials")
    missing = [name for name in TRIAL_COLUMNS if name not in frame.columns]
    if missing:
        raise ValueError(f"trials: lacks the columns {', '.join(missing)}.")
    values: dict[str, Any] = {
        name: _floats(frame, name, "trials")
        for name in sorted(set(frame.columns) - set(TRIAL_COLUMNS))
    }
    for name, kind in TRIAL_COLUMNS.items():
        if issubclass(kind, enum.StrEnum):
            values[name] = _words(frame, name, kind)
        else:
            values[name] = _floats(frame, name, "trials").astype(kind)
    return _table(values, frame.index)


def check_index(frame: pd.DataFrame, names: Sequence[str], table: str) -> None:
    """Checks that a table is indexed by integers of these names, each row once.

    Args:
      frame: the table.
      names: `MEASUREMENT_INDEX` or `TRIAL_INDEX`.
      table: what an error calls the table.

    Raises:
      TypeError: it is no table.
      ValueError: it is not indexed so.

    >>> check_index(pd.DataFrame({"trial": [0]}), TRIAL_INDEX, "trials")
    Traceback (most recent call last):
    ValueError: trials: the index must be (batch_size, trial, replicate), got (None). Set it with
    trials.set_index(['batch_size', 'trial', 'replicate']); replicate is 0 for a plain trial.
    """
    if not isinstance(frame, pd.DataFrame):
        raise TypeError(f"{table}: got a {type(frame).__name__}, wanted a pandas.DataFrame.")
    if tuple(frame.index.names) != tuple(names):
        raise ValueError(
            f"{table}: the index must be ({', '.join(names)}), "
            f"got ({', '.join(map(str, frame.index.names))}). Set it with "
            f"{table}.set_index({list(names)}); replicate is 0 for a plain trial."
        )
    for name in names if len(frame) else ():
        dtype = frame.index.get_level_values(name).dtype
        if not pd.api.types.is_integer_dtype(dtype):
            raise ValueError(f"{table}: index level {name!r} must be integers, got {dtype}.")
        values, least = frame.index.get_level_values(name), int(name == "batch_size")
        if (low := values.min()) < least:
            raise ValueError(f"{table}: got {name} {low}, wanted {least} or more.")
    if not frame.index.is_unique:
        twice = frame.index[frame.index.duplicated()][0]
        row = ", ".join(f"{name} {value}" for name, value in zip(names, twice, strict=True))
        raise ValueError(f"{table}: {row} has more than one row; wanted one.")


def _floats(frame: pd.DataFrame, name: str, table: str) -> np.ndarray:
    try:
        return frame[name].to_numpy(np.float64, na_value=np.nan)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{table}: column {name!r} must be numbers: {error}.") from None


def _words(frame: pd.DataFrame, name: str, kind: type[enum.StrEnum]) -> Any:
    known = [str(word) for word in kind]
    for word in frame[name]:
        if word not in known:
            raise ValueError(f"trials: {name} {word!r} is not one of {', '.join(known)}.")
    return pd.Series([str(word) for word in frame[name]], dtype=str).array


def _table(values: Mapping[str, Any], index: pd.Index) -> pd.DataFrame:
    levels = [index.get_level_values(i).to_numpy(np.int64) for i in range(index.nlevels)]
    return pd.DataFrame(
        values,
        index=pd.MultiIndex.from_arrays(levels, names=index.names),
        columns=pd.Index(list(values), dtype=str),
    ).sort_index()
