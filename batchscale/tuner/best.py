"""The best trial of each batch size, and whether it crowds an edge of the search space."""

from __future__ import annotations

import numpy as np
import pandas as pd

from batchscale import columns, given, numeric
from batchscale.records import TRIAL_INDEX, check_index
from batchscale.tuner.distributions import Choice, Distribution
from batchscale.tuner.search_space import Dimension, SearchSpace, check_space

columns.declare("axes", "effective_learning_rate", "one_minus_momentum")
columns.declare("optima", "batch_size", "steps", "trial", "*_edge")
_STEPS = ["batch_size", "steps", "trial"]
columns.declare("pandas", "_merge", "_left_indicator", "_right_indicator")


def effective_learning_rate(table: pd.DataFrame) -> pd.Series:
    """learning_rate / (1 - momentum), the step length once momentum has built up.

    The effective learning rate of Shallue et al. (2019), for heavy-ball and Nesterov momentum.

    Args:
      table: a column `learning_rate` and perhaps `momentum`, which is 0 where absent.

    Returns:
      A series named `effective_learning_rate` with the index of `table`.

    Raises:
      KeyError: there is no column `learning_rate`.
      ValueError: a momentum is above 1.

    >>> table = pd.DataFrame({"learning_rate": [0.1, 0.1], "momentum": [0.0, 0.75]})
    >>> effective_learning_rate(table).tolist()
    [0.1, 0.4]
    """
    given.frame("table", table, "a column a hyperparameter")
    if "learning_rate" not in table:
        raise KeyError(
            "effective_learning_rate: no column 'learning_rate'; "
            f"the table has {', '.join(map(repr, table.columns)) or 'none'}."
        )
    rate = table["learning_rate"]
    if "momentum" in table:
        if (table["momentum"] > 1).any():
            raise ValueError(
                f"effective_learning_rate: a momentum is {table['momentum'].max()}, wanted below 1."
            )
        rate = rate / (1 - table["momentum"])
    return pd.Series(rate, name="effective_learning_rate")


def derived(table: pd.DataFrame) -> pd.DataFrame:
    """What is computed from hyperparameters and useful as an axis.

    Args:
      table: a column a hyperparameter.

    Returns:
      `effective_learning_rate` where there is a `learning_rate`, and `one_minus_momentum` where
      there is a `momentum`; the index of `table`.

    >>> derived(pd.DataFrame({"learning_rate": [0.1], "momentum": [0.75]}))
       effective_learning_rate  one_minus_momentum
    0                      0.4                0.25
    """
    given.frame("table", table, "a column a hyperparameter")
    axes = {}
    if "learning_rate" in table:
        axes["effective_learning_rate"] = effective_learning_rate(table)
    if "momentum" in table:
        axes["one_minus_momentum"] = 1 - table["momentum"]
    return pd.DataFrame(axes, index=table.index)


def optima(
    steps: pd.DataFrame, trials: pd.DataFrame, space: SearchSpace, *, edge: float = 0.05
) -> pd.DataFrame:
    """The best trial of each batch size, and the edges of the space that it lies at.

    A best trial at an edge says that a better one may lie outside: move or widen the range and
    search again. This looks at the single best trial, which is partly luck; whether the leading
    trials crowd an edge is a stronger question, and another function's.

    Args:
      steps: one row a batch size: `batch_size`, `steps` (inf where no trial reached the goal),
        `trial` (NA there).
      trials: hyperparameters of the trials, indexed by (batch_size, trial, replicate).
      space: what they were drawn from; functions of batch size are called with each.
      edge: how near an end of a range counts as at the edge, as a fraction of the range on the
        scale it was drawn on.

    Returns:
      One row a batch size, in the order of `steps`: `batch_size`, `steps`, `trial`; the winner's
      hyperparameters; `effective_learning_rate` where there are a `learning_rate` and a
      `momentum`; and for each searched hyperparameter `<name>_edge`, which is "low", "high" or
      "". A `Choice` has no edges; an `Integer` at a bound is always at the edge. Where no trial
      reached the goal, hyperparameters are NaN and edges "".

    Raises:
      KeyError: a hyperparameter or a winner is not in `trials`.
      ValueError: `edge` is not in [0, 0.5).

    >>> from batchscale.tuner import LogUniform
    >>> space = SearchSpace(learning_rate=LogUniform(1e-3, 10))
    >>> index = pd.MultiIndex.from_product(
    ...     [[64], [0, 1], [0]], names=["batch_size", "trial", "replicate"]
    ... )
    >>> trials = pd.DataFrame({"learning_rate": [0.1, 9.0]}, index=index)
    >>> steps = pd.DataFrame({"batch_size": [64], "steps": [932.0], "trial": [1]})
    >>> optima(steps, trials, space)[["batch_size", "trial", "learning_rate_edge"]]
       batch_size  trial learning_rate_edge
    0          64      1               high
    """
    given.frame("steps", steps, "the table of metrics.steps_to_target", _STEPS)
    check_index(trials, TRIAL_INDEX, "trials")
    check_space(space)
    share = numeric.plain(edge)
    if share is None or not 0 <= share < 0.5:
        raise ValueError(
            f"optima: edge is {edge!r}, but must be a fraction of the range in [0, 0.5)."
        )
    names = list(space.names)
    missing = [name for name in names if name not in trials]
    if missing:
        raise KeyError(
            f"optima: no column {', '.join(map(repr, missing))} in the trials, which have "
            f"{', '.join(map(repr, trials.columns))}. Give the space that they were drawn from."
        )
    # Replicates of a trial share its hyperparameters.
    plans = trials[names].groupby(level=["batch_size", "trial"]).first().reset_index()
    table = steps[["batch_size", "steps", "trial"]].astype({"trial": "Int64"})
    table = table.merge(
        plans.astype({"trial": "Int64"}), how="left", on=["batch_size", "trial"], indicator=True
    )
    unknown = np.asarray(table["trial"].notna() & table.pop("_merge").ne("both"))
    if unknown.any():
        batch_size, trial = table.loc[unknown, ["batch_size", "trial"]].to_numpy()[0]
        raise KeyError(f"optima: trial {trial} of batch size {batch_size} is not in the trials.")
    if {"learning_rate", "momentum"} <= set(names):
        table["effective_learning_rate"] = effective_learning_rate(table)
    spaces = {batch_size: space.at(batch_size) for batch_size in table["batch_size"].tolist()}
    for name in space.searched:
        table[f"{name}_edge"] = [
            _edge(spaces[batch_size][name], value, edge)
            for batch_size, value in zip(table["batch_size"], table[name], strict=True)
        ]
    return table


def _edge(dimension: Dimension, value: float, edge: float) -> str:
    if not isinstance(dimension, Distribution) or isinstance(dimension, Choice):
        return ""
    (position,) = dimension.unit(np.array([value], np.float64))
    if position <= edge:
        return "low"
    return "high" if position >= 1 - edge else ""
