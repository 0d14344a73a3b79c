"""The share of a search space that works: how hard a batch size is to tune."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pandas as pd
import scipy

from batchscale import columns, numeric
from batchscale.metrics import Goal, _tables
from batchscale.metrics._crossings import check_trained, search_crossings
from batchscale.metrics.goal import check_goal
from batchscale.records import (
    MEASUREMENT_INDEX,
    TRIAL_INDEX,
    WHOLE_BUDGETS,
    Status,
    StopReason,
    check_index,
)
from batchscale.tuner.distributions import Choice, Distribution
from batchscale.tuner.search_space import SearchSpace, check_space

_SHARES = ("reached", "near", "infeasible")
columns.declare(
    "sensitivity",
    *("batch_size", "trials", "steps", "*_width", "known"),
    *(share + end for share in _SHARES for end in ("", "_low", "_high")),
)


def sensitivity(
    measurements: pd.DataFrame,
    goal: Goal,
    *,
    trials: pd.DataFrame,
    space: SearchSpace,
    feasible_trials: int | None = None,
    within: float = 2.0,
    max_steps: float | None = None,
    max_epochs: float | Fraction | None = None,
    train_examples: int | None = None,
    confidence: float = 0.9,
) -> pd.DataFrame:
    """Which share of the trials reaches the goal, or does so nearly as fast as the best.

    The counts behind figures 9 and 10 of Shallue et al. (2019), in which the region that works
    shrinks with batch size under a budget of epochs, and grows under one of steps. All trials of
    the search count, those that diverged included. Shares are of the search space as it was chosen:
    compare batch sizes that share it.

    Args:
      measurements: one row an evaluation.
      goal: the metric, its value and its direction.
      trials: hyperparameters and statuses.
      space: what they were drawn from.
      feasible_trials: as for `metrics.steps_to_target`: without it a trial that diverged within the
        budget has not reached the goal (the paper's rule), with it one that did so before has.
      within: a factor of at least 1 on the fewest steps.
      max_steps: a budget in steps, in which the goal has to be reached; none if not given.
      max_epochs: a budget in passes over the training set.
      train_examples: the size of the training set; needed with `max_epochs`.
      confidence: of the intervals.

    Returns:
      One row a batch size: `batch_size`; `trials`, how many; `steps`, the fewest, inf where the
      goal is not reached in the budget; then three shares of the trials, each with its Wilson
      interval, `<share>_low` and `<share>_high`: `reached` the goal within the budget; did so
      `near` the best, in at most `within` times the fewest steps; and `infeasible`, diverged within
      the budget, as far as it was trained. `reached` is NaN where a stop rule ended trials before
      the budget, and `near` where the goal is not reached. Last, for each searched hyperparameter
      but a `Choice`, `<name>_width`: the range of the trials near the best over the searched
      range, on the scale that it was drawn on. A range grows with the number of trials.

    Raises:
      KeyError: a hyperparameter is not in `trials`, or the metric not in `measurements`.
      ValueError: an argument is not as above; or trials were stopped before `within` times the
        fewest steps, so that no share is known.

    >>> from batchscale.metrics import example_measurements
    >>> from batchscale.tuner import LogUniform
    >>> index = pd.MultiIndex.from_tuples(
    ...     [(8, 0, 0), (8, 1, 0), (16, 0, 0)], names=["batch_size", "trial", "replicate"]
    ... )
    >>> trials = pd.DataFrame({"learning_rate": [0.1, 1.0, 1.0], "status": "complete"}, index)
    >>> trials = trials.assign(steps_trained=[20, 20, 10], stop_reason="budget")
    >>> table = sensitivity(
    ...     example_measurements(),
    ...     Goal("validation/error", 0.35),
    ...     trials=trials,
    ...     space=SearchSpace(learning_rate=LogUniform(0.01, 10)),
    ... )
    >>> table[["batch_size", "trials", "reached", "near", "learning_rate_width"]].round(3)
       batch_size  trials  reached  near  learning_rate_width
    0           8       2      1.0   1.0                0.333
    1          16       1      1.0   1.0                0.000
    """
    check_goal("goal", goal)
    check_space(space)
    _tables.plain_trials(trials)
    budget = _budget(max_steps, max_epochs, train_examples)
    numeric.at_least("within", within, 1, "a factor of at least 1, such as 2.0")
    confidence = numeric.confidence(confidence)
    missing = [name for name in space.searched if name not in trials]
    if missing:
        raise KeyError(
            f"sensitivity: no column {', '.join(map(repr, missing))} in the trials. Give the space "
            "that they were drawn from."
        )
    measurements, trials = _within_budget(measurements, trials, budget)
    plain, _ = search_crossings(measurements, goal, trials, feasible_trials)
    last = plain["batch_size"].map(budget).astype(float)
    limit = np.minimum(within * plain["fewest"].to_numpy(float), last.to_numpy(float))
    ended = plain["stop_reason"].isin(WHOLE_BUDGETS) & (plain["status"] != Status.INCOMPLETE)
    ended &= np.isinf(last) | (plain["steps_trained"] >= last)
    check_trained(
        f"sensitivity: trials within {within:g} times the fewest steps to {goal}",
        plain,
        np.where(ended | np.isinf(plain["fewest"]), 0.0, limit),
        f"study.extend(folder, stop={float(within)})",
    )
    infeasible = plain["status"] == Status.INFEASIBLE
    crossed = np.isfinite(plain["crossing"])
    plain = plain.assign(
        known=crossed | infeasible | ended,
        reached=crossed,
        near=crossed & (plain["crossing"] <= limit),
        infeasible=infeasible,
    )
    rows = []
    for batch_size, group in plain.groupby("batch_size"):
        row: dict[str, Any] = {
            "batch_size": batch_size,
            "trials": len(group),
            "steps": group["fewest"].iloc[0],
        }
        for share in _SHARES:
            hits = float(np.count_nonzero(group[share]))
            if share == "reached" and not np.all(group["known"]):
                hits = math.nan
            if share == "near" and math.isinf(row["steps"]):
                hits = math.nan
            row |= _share(share, hits, len(group), confidence)
        resolved = space.at(int(batch_size))  # pyright: ignore[reportArgumentType]
        for name in space.searched:
            dimension = resolved[name]
            if isinstance(dimension, Distribution) and not isinstance(dimension, Choice):
                places = dimension.unit(group.loc[group["near"], name].to_numpy(float))
                row[f"{name}_width"] = float(np.ptp(places)) if len(places) else math.nan
        rows.append(row)
    return pd.DataFrame(rows)


def _budget(
    max_steps: float | None, max_epochs: float | Fraction | None, train_examples: int | None
) -> Callable[[int], float]:
    """The last step that counts, as a function of batch size."""
    if max_steps is not None and max_epochs is not None:
        raise ValueError("max_steps, max_epochs: give one budget, or none.")
    if max_epochs is not None and train_examples is None:
        raise ValueError("max_epochs: needs train_examples, the size of the training set.")
    given = {"max_steps": max_steps, "max_epochs": max_epochs, "train_examples": train_examples}
    for name, value in given.items():
        if value is not None:
            numeric.above(name, value, 0, "a number above 0")
    if max_epochs is not None:
        examples = math.floor(Fraction(str(max_epochs)) * int(train_examples or 0))
        return lambda batch_size: examples // batch_size
    last = math.inf if max_steps is None else math.floor(max_steps)
    return lambda batch_size: last


def _within_budget(
    measurements: pd.DataFrame, trials: pd.DataFrame, budget: Callable[[int], float]
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The tables as they would be had the budget been no larger."""
    check_index(measurements, MEASUREMENT_INDEX, "measurements")
    check_index(trials, TRIAL_INDEX, "trials")
    last = measurements.index.get_level_values("batch_size").map(budget).to_numpy(float)
    steps = measurements.index.get_level_values("step").to_numpy(float)
    measurements = _tables.select(measurements, steps <= last)
    last = trials.index.get_level_values("batch_size").map(budget).to_numpy(float)
    whole = (trials["steps_trained"] > last) | (
        (trials["steps_trained"] == last) & (trials["status"] != Status.INFEASIBLE)
    )
    return measurements, trials.assign(
        status=trials["status"].mask(whole, Status.COMPLETE),
        stop_reason=trials["stop_reason"].mask(whole, StopReason.BUDGET),
        steps_trained=np.minimum(trials["steps_trained"], last).astype(np.int64),
    )


def _share(name: str, hits: float, count: int, confidence: float) -> dict[str, float]:
    """A share with its Wilson (1927) score interval; NaN if the hits are."""
    if math.isnan(hits):
        return dict.fromkeys((name, f"{name}_low", f"{name}_high"), math.nan)
    interval = scipy.stats.binomtest(int(hits), count).proportion_ci(confidence, "wilson")
    return {name: hits / count, f"{name}_low": interval.low, f"{name}_high": interval.high}
