"""The curves that steps to target follow against batch size, and the table they are fitted to."""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
import pandas as pd
import scipy
from jaxtyping import Float
from numpy.typing import ArrayLike

from batchscale import columns, numeric

columns.declare(
    "steps to target, checked", "batch_size", "steps", "after", "deviation", "log_deviation"
)

Form = Literal["hyperbolic", "generalised", "averaged"]


class Interval(NamedTuple):
    """From `low` to `high`; NaN where nothing is said, 0 or inf where one end is open."""

    low: float
    high: float


def log_steps(
    log_batch_size: ArrayLike, log_s_min: float, log_b_crit: float, sharpness: float
) -> Float[np.ndarray, " batch_sizes"]:
    """The log of S = S_min (1 + (B_crit / B)^a)^(1/a), a the sharpness of the bend.

    With a = 1 the hyperbola S = S_min (1 + B_crit / B) of McCandlish et al. (2018,
    arXiv:1812.06162). Whatever a, S is S_min B_crit / B for small B, and S_min for large B.
    """
    beyond = sharpness * (log_b_crit - np.asarray(log_batch_size, np.float64))
    return log_s_min + np.logaddexp(0, beyond) / sharpness


def check_begun(table: pd.DataFrame) -> None:
    """Refuses steps of 0, which are no multiple of any other.

    >>> check_begun(pd.DataFrame({"batch_size": [8], "steps": [0]}))
    Traceback (most recent call last):
    ValueError: steps: the goal held before the first step; choose a harder one.
    """
    if 0 in table["steps"].to_numpy():
        raise ValueError("steps: the goal held before the first step; choose a harder one.")


def check_table(name: str, table: object, wanted: str) -> None:
    """Refuses an argument `name` that is no table, or in which a column stands twice.

    >>> check_table("steps", pd.Series([8, 4]), "the table of metrics.steps_to_target")
    Traceback (most recent call last):
    TypeError: steps: got a Series, wanted the table of metrics.steps_to_target, a pandas.DataFrame.
    """
    if not isinstance(table, pd.DataFrame):
        raise TypeError(
            f"{name}: got a {type(table).__name__}, wanted {wanted}, a pandas.DataFrame."
        )
    if not table.columns.is_unique:
        twice = table.columns[table.columns.duplicated()][0]
        raise ValueError(
            f"{name}: the column {twice!r} stands twice; wanted {wanted}, each column once. Drop "
            "or rename one of them."
        )


def points(steps: pd.DataFrame) -> pd.DataFrame:
    """A table of steps to target, checked, in the order of batch sizes.

    Args:
      steps: `batch_size` and `steps`; a miss is inf. With `previous_evaluation` the crossing is
        known to lie after that step, of a miss after the last that was evaluated. With
        `log_deviation` the standard deviation of the log of the steps is known.

    Returns:
      One row a batch size: `batch_size`, `steps`; `after`, NaN where it is not known; `deviation`
      of the log of steps, 0 where it is not known.

    Raises:
      TypeError: it is no table.
      ValueError: what is wrong with the table.

    >>> points(pd.DataFrame({"batch_size": [8, 4], "steps": [60, 100]}))
       batch_size  steps  after  deviation
    0         4.0  100.0    NaN        0.0
    1         8.0   60.0    NaN        0.0
    """
    check_table("steps", steps, "the table of metrics.steps_to_target")
    missing = [name for name in ("batch_size", "steps") if name not in steps]
    if missing:
        raise ValueError(
            f"steps: no column {missing[0]!r}; wanted the table of metrics.steps_to_target, with "
            f"'batch_size' and 'steps'; got {list(steps)}."
        )
    table = pd.DataFrame(
        {
            "batch_size": batch_sizes("steps", steps["batch_size"]),
            "steps": _numbers(steps["steps"]),
            "after": _numbers(steps["previous_evaluation"])
            if "previous_evaluation" in steps
            else np.nan,
            "deviation": np.nan_to_num(_numbers(steps["log_deviation"]))
            if "log_deviation" in steps
            else 0.0,
        }
    ).sort_values("batch_size", ignore_index=True)
    _, count, after, deviation = table.to_numpy().T
    if not (count >= 0).all():
        raise ValueError("steps: wanted steps of at least 0, inf for a miss.")
    if not (np.isnan(after) | ((after >= 0) & (after < count))).all():
        raise ValueError(
            "steps: a previous_evaluation is not from 0 on and before its steps; wanted the step "
            "of the evaluation before, or NaN where it is not known."
        )
    if not ((deviation >= 0) & (deviation < np.inf)).all():
        raise ValueError(
            "steps: wanted finite log_deviation of at least 0, or NaN where it is not known."
        )
    return table


def deviations(
    log_batch_size: Float[np.ndarray, " batch_sizes"],
    low: Float[np.ndarray, " batch_sizes"],
    high: Float[np.ndarray, " batch_sizes"],
    confidence: float,
    medians: Float[np.ndarray, " batch_sizes"] | None = None,
) -> Float[np.ndarray, " batch_sizes"]:
    """The standard deviations of log medians, from the ends of their intervals.

    An interval of order statistics of a few seeds is itself uncertain by a quarter of its width.
    Scatter changes slowly with batch size, so that each is taken together with the trend of all:
    the mean of both, in logs. Where an end is open, there is the trend alone, or, if it is wider,
    the other half of the interval. NaN for all where fewer than 3 are closed.

    Args:
      log_batch_size: of each.
      low: ends of the intervals, in steps; 0 where open.
      high: likewise; inf where open.
      confidence: of the intervals.
      medians: in steps; inf where half of the runs missed. Without them an interval with an open
        end has no other half.

    >>> sizes = np.log([1.0, 2.0, 4.0, 8.0])
    >>> low, high = np.full(4, 90.0), np.array([110.0, 110.0, 110.0, np.inf])
    >>> deviations(sizes, low, high, 0.9, np.array([100.0, 100.0, 100.0, 150.0])).round(3)
    array([0.061, 0.061, 0.061, 0.311])
    """
    confidence = numeric.confidence(confidence)
    for name, array in (("log_batch_size", log_batch_size), ("low", low), ("high", high)):
        found = np.asarray(array)
        if found.ndim != 1 or found.shape != np.shape(low) or found.dtype.kind not in "iuf":
            raise ValueError(f"{name}: got {array!r}, wanted one number a batch size.")
    closed = (low > 0) & np.isfinite(high) & (high > low)
    found = np.full(len(low), np.nan)
    if closed.sum() < 3:
        return found
    z = -float(scipy.special.ndtri((1 - confidence) / 2))
    own = np.log(np.log(high[closed] / low[closed]) / (2 * z))
    slope, height = np.polyfit(log_batch_size[closed], own, 1)
    found[:] = np.exp(height + slope * log_batch_size)
    found[closed] = np.exp((own + np.log(found[closed])) / 2)
    if medians is not None:
        with np.errstate(divide="ignore", invalid="ignore"):  # of ends that are open
            halves = np.log([medians / low, high / medians]) / z
        seen = np.where(np.isfinite(halves), halves, 0.0).max(0)
        found[~closed] = np.maximum(found, seen)[~closed]
    return found


def batch_sizes(table: str, column: pd.Series) -> np.ndarray:
    """The batch sizes of a table, one a row, in float64.

    Args:
      table: what an error calls the table.
      column: of the table.

    Raises:
      ValueError: they are not finite numbers above 0, or one stands twice.
    """
    sizes = _numbers(column, table)
    if not ((sizes > 0) & (sizes < np.inf)).all():
        raise ValueError(f"{table}: wanted finite batch sizes above 0.")
    if len(np.unique(sizes)) < len(sizes):
        raise ValueError(f"{table}: a batch size stands twice; wanted one row a batch size.")
    return sizes


def whole(sizes: pd.Series) -> pd.Series:
    """Batch sizes as integers, where all are whole; they may be in millions of tokens, say.

    >>> whole(pd.Series([1.0, 2.0])).tolist(), whole(pd.Series([0.5, 2.0])).tolist()
    ([1, 2], [0.5, 2.0])
    """
    return sizes.astype(int) if ((sizes % 1 == 0) & (sizes < 2**53)).all() else sizes


def _numbers(column: pd.Series, table: str = "steps") -> np.ndarray:
    """A column of a table in float64; what is missing is NaN."""
    wanted = "wanted real numbers, such as pandas.to_numeric makes of words"
    kinds = pd.api.types
    if column.dtype == object:
        values = [np.nan if kinds.is_scalar(x) and pd.isna(x) else x for x in column]
        other = next((x for x in values if numeric.plain(x) is None), None)
        if other is not None:
            raise ValueError(f"{table}: the column {column.name!r} holds {other!r}; {wanted}.")
        return np.array(values, np.float64)
    real = kinds.is_numeric_dtype(column.dtype) and not kinds.is_complex_dtype(column.dtype)
    if not real or kinds.is_bool_dtype(column.dtype):
        raise ValueError(f"{table}: the column {column.name!r} is {column.dtype}; {wanted}.")
    return column.to_numpy(np.float64, na_value=np.nan)
