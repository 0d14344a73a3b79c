"""The leading settings of each batch size, and which of them is best in the middle of its runs."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd

from batchscale import columns, given, numeric
from batchscale.records import TRIAL_INDEX, Origin, Status, StopReason, check_index

_SHORT = 2.0  # a choice: times the fewest steps, short of which no trial shows how it would do

_COLUMNS = columns.declare("settings compared", "trial", "seeds", "median", "missed", "upper")


def leading(trials: pd.DataFrame, count: int) -> pd.DataFrame:
    """The trials of each batch size that reached the goal first.

    Args:
      trials: of a study, also those of origin `refine` and `expand`; reruns are not looked at.
      count: how many a batch size; fewer where fewer reached the goal though all were given the
        time for it, none where none did.

    Returns:
      The rows of `trials`, of each batch size those with the fewest steps first.

    Raises:
      ValueError: trials were stopped too early to tell which the others are.

    >>> index = pd.MultiIndex.from_product(
    ...     [[64], range(3), [0]], names=["batch_size", "trial", "replicate"]
    ... )
    >>> trials = pd.DataFrame(
    ...     {
    ...         "learning_rate": [0.1, 0.2, 0.4],
    ...         "origin": "plan",
    ...         "status": "complete",
    ...         "steps_trained": 90,
    ...         "stop_reason": "factor",
    ...         "first_crossing": [80.0, 30.0, np.inf],
    ...     },
    ...     index,
    ... )
    >>> leading(trials, 2)["learning_rate"].tolist()
    [0.2, 0.1]
    """
    check_index(trials, TRIAL_INDEX, "trials")
    kinds = ["origin", "status", "stop_reason", "steps_trained", "first_crossing"]
    given.frame("trials", trials, "the table Result.trials", kinds)
    count = numeric.integer("settings", count, 1)
    plain = trials.loc[
        (trials.index.get_level_values("replicate") == 0)
        & (trials["origin"] != Origin.CONFIRM).to_numpy()
        & (trials["status"] != Status.INFEASIBLE).to_numpy()
    ].sort_values(["batch_size", "first_crossing", "trial"])
    reached = plain.loc[np.isfinite(plain["first_crossing"])].groupby(level="batch_size")
    found = reached.head(count)
    for batch_size, some in plain.groupby(level="batch_size"):
        have = int(np.isfinite(some["first_crossing"]).sum())
        # Of the search: it ends by its first crossing, also of a trial that diverged later.
        searched = some.loc[some["origin"].isin([Origin.PLAN, Origin.TOPUP]).to_numpy()]
        every = trials.loc[trials.index.get_level_values("batch_size") == batch_size]
        first = every["first_crossing"].to_numpy(float).min(initial=np.inf)
        stopped = searched["stop_reason"].isin([StopReason.FIRST_CROSSING, StopReason.FACTOR])
        stopped &= np.isinf(searched["first_crossing"])
        stopped &= searched["steps_trained"] < _SHORT * first
        if 0 < have < count and stopped.any():
            raise ValueError(
                f"settings: at batch size {batch_size}, {have} of the wanted {count} trials "
                f"reached the goal before all were stopped, at less than {_SHORT:g} times the "
                "steps of the first crossing. Go on with study.extend(folder, stop=3.0), or ask "
                f"for {have}."
            )
    return found


def steps_of(trials: pd.DataFrame) -> pd.Series:
    """The steps to the goal of each trial itself; inf if it missed, or diverged."""
    return trials["first_crossing"].mask((trials["status"] == Status.INFEASIBLE), math.inf)


def within(trials: pd.DataFrame, limit: float) -> pd.DataFrame:
    """The trials, as if they had been given so many steps: a later crossing is a miss."""
    return trials.assign(
        first_crossing=trials["first_crossing"].where(trials["first_crossing"] <= limit, math.inf)
    )


def by_median(runs: pd.DataFrame) -> pd.DataFrame:
    """Settings of one batch size, the fewest steps in the middle of their runs first.

    Args:
      runs: rows of a table of trials, of each setting (`trial`) under several seeds (`replicate`).

    Returns:
      One row a setting: `trial`, `seeds`, `median`, inf if half of them missed, and `missed`, the
      share. Among those whose median is inf, the one that missed least comes first; ties go to the
      better upper quartile, then to the lower number.
    """
    rows = []
    for trial, steps in steps_of(runs).groupby(level="trial"):
        values = np.sort(steps.to_numpy())
        rows.append(
            {
                "trial": trial,
                "seeds": len(values),
                "median": middle(values),
                "missed": float(np.isinf(values).mean()),
                "upper": values[(3 * len(values)) // 4],
            }
        )
    table = pd.DataFrame(rows, columns=list(_COLUMNS))
    table = table.sort_values(["median", "missed", "upper", "trial"], ignore_index=True)
    return table.drop(columns="upper")


def middle(values: np.ndarray) -> float:
    """The median of sorted values; of an even number the geometric mean of the middle two.

    >>> middle(np.array([1.0, 4.0])), middle(np.array([3.0, 5.0, np.inf]))
    (2.0, 5.0)
    """
    low, high = values[(len(values) - 1) // 2], values[len(values) // 2]
    return float(low if low == high else math.sqrt(low * high))
