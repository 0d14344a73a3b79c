"""When each trial of a search first got past a goal: what tuning curves and shares are made of."""

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from batchscale import columns
from batchscale.metrics import _tables
from batchscale.metrics.goal import Goal
from batchscale.metrics.steps import first_crossings, steps_to_target
from batchscale.records import MEASUREMENT_INDEX, TRIAL_INDEX, Origin, Status, check_index

columns.declare("crossings of a search", "crossing", "fewest")


def search_crossings(
    measurements: pd.DataFrame,
    goal: Goal,
    trials: pd.DataFrame,
    feasible_trials: int | None,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The first crossing of every trial of the search, and the steps to target.

    Reruns, and trials that were placed near the best or confirm it, are left out: a share or a
    spread over them would say nothing of the search space.

    Args:
      measurements: one row an evaluation.
      goal: the metric, its value and its direction.
      trials: one row a trial.
      feasible_trials: as for `steps_to_target`: without it a trial that diverged never counts, with
        it a trial counts until it diverges.

    Returns:
      The trials, with columns batch_size, trial, those of `trials`, `crossing`, inf where the trial
      never got past the goal or does not count, and `fewest`, the steps to target of its batch
      size; and the table of `steps_to_target`.

    Raises:
      KeyError, ValueError: as `steps_to_target` does.
    """
    check_index(measurements, MEASUREMENT_INDEX, "measurements")
    check_index(trials, TRIAL_INDEX, "trials")
    if "origin" in trials:
        trials = _tables.select(trials, trials["origin"].isin([Origin.PLAN, Origin.TOPUP]))
    plain = _tables.plain_trials(trials)
    trials = _tables.select(trials, trials.index.get_level_values("replicate") == 0)
    known = _tables.trials_of(measurements).isin(trials.index)
    measurements = _tables.select(measurements, known)
    steps = steps_to_target(measurements, goal, trials=trials, feasible_trials=feasible_trials)
    crossing = first_crossings(measurements, goal)["first_crossing"].droplevel("replicate")
    keys = pd.MultiIndex.from_arrays([plain["batch_size"], plain["trial"]])
    fewest = steps.set_index("batch_size")["steps"].reindex(plain["batch_size"])
    plain = plain.assign(
        crossing=crossing.reindex(keys).fillna(np.inf).to_numpy(float),
        fewest=fewest.to_numpy(float),
    )
    if feasible_trials is None:
        plain.loc[plain["status"] == Status.INFEASIBLE, "crossing"] = np.inf
    return plain, steps


def check_trained(question: str, plain: pd.DataFrame, needed: ArrayLike, train_on: str) -> None:
    """Refuses trials that a stop rule cut before it is known whether they cross by `needed`.

    A trial that crossed, that diverged, or that was trained for its whole budget is as known as it
    can be. See `_tables.check_long_enough` for the other arguments.
    """
    known = np.isfinite(plain["crossing"]) | (plain["status"] == Status.INFEASIBLE)
    _tables.check_long_enough(
        question, _tables.select(plain.assign(needed=np.asarray(needed, float)), ~known), train_on
    )
