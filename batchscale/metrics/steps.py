"""Steps to target: when training first got past a goal."""

import heapq
from collections.abc import Iterable

import numpy as np
import pandas as pd

from batchscale import columns, given, numeric
from batchscale.metrics import _tables
from batchscale.metrics.goal import Goal, check_goal
from batchscale.records import TRIAL_INDEX, Status, StopReason

columns.declare("steps to target", "goal", "batch_size", "steps", "previous_evaluation", "trial")
columns.declare("first crossings", "first_crossing", "previous_evaluation")
columns.declare("members", "first_step", "end_step")


def first_crossings(measurements: pd.DataFrame, goal: Goal) -> pd.DataFrame:
    """The first evaluated step of every trial that is past the goal.

    Args:
      measurements: one row an evaluation.
      goal: the metric, its value and its direction.

    Returns:
      One row a (batch_size, trial, replicate): `first_crossing`, inf where there is none,
      and `previous_evaluation`, the last step before it at which the metric was evaluated,
      NaN where there is none. The trial got past the goal somewhere between the two.

    Raises:
      KeyError: the metric is not a column of `measurements`.
      ValueError: `measurements` has another index.

    >>> from batchscale.metrics import example_measurements
    >>> first_crossings(example_measurements(), Goal("validation/error", 0.3))
                                first_crossing  previous_evaluation
    batch_size trial replicate
    8          0     0                     inf                 20.0
               1     0                    20.0                 10.0
    16         0     0                    10.0                  0.0
    """
    check_goal("goal", goal)
    curves = _tables.curves_of(measurements, goal.metric, goal.mode)
    trials = _tables.trials_of(measurements).unique().sort_values()
    first = _first_past(curves, goal, list(TRIAL_INDEX), trials)
    return first.drop(columns="trial").rename(columns={"steps": "first_crossing"})


def members(trials: pd.DataFrame, feasible_trials: int) -> pd.DataFrame:
    """When each trial is one of the first N that have not diverged.

    A trial counts at step s if it has not diverged by s and fewer than N trials with lower
    numbers have not diverged by s. Which those are is known at step s, so a study can stop
    when one of them reaches the goal. A trial that diverges counts until then, and the one
    that takes its place counts from then on.

    Args:
      trials: the status of every trial and its `steps_trained`, for an infeasible one the
        step at which it was found diverged.
      feasible_trials: N, at every batch size.

    Returns:
      One row a plain trial, which counts at the steps s with `first_step` <= s < `end_step`.
      An infinite `first_step` is that of a trial that never counts, an infinite `end_step`
      that of one that did not diverge.

    Raises:
      ValueError: `trials` is not as above, or `feasible_trials` is not positive.

    >>> index = pd.MultiIndex.from_tuples([(8, t, 0) for t in range(3)], names=TRIAL_INDEX)
    >>> trials = pd.DataFrame(
    ...     {
    ...         "status": ["infeasible", "complete", "complete"],
    ...         "steps_trained": [40, 90, 90],
    ...         "stop_reason": ["diverged", "budget", "budget"],
    ...     },
    ...     index,
    ... )
    >>> members(trials, 1)
                                first_step  end_step
    batch_size trial replicate
    8          0     0                 0.0      40.0
               1     0                40.0       inf
               2     0                 inf       inf
    """
    plain = _membership(_tables.plain_trials(trials), feasible_trials).assign(replicate=0)
    return plain.set_index(list(TRIAL_INDEX)).filter(["first_step", "end_step"])


def steps_to_target(
    measurements: pd.DataFrame,
    goal: Goal,
    *,
    trials: pd.DataFrame | None = None,
    feasible_trials: int | None = None,
) -> pd.DataFrame:
    """First evaluated step strictly past the goal, minimised over trials.

    The definition of Shallue et al. (2019): no interpolation and no smoothing, and of
    trials that get there at the same step the lowest number wins. A batch size at which
    none gets there has a row with inf, where the paper has none.

    Which trials count:

    - Without `trials`, all do.
    - With `trials`, those that are not infeasible. This is the paper's rule, by which a
      trial that diverges never counts, even if it reached the goal long before. Which
      those are is only known after `stop="budget"`; of trials that were stopped earlier,
      the ones that would have diverged later still count. Trials whose stop reason is "own
      budget" count as far as they were trained.
    - With `feasible_trials` too, at each step the first N trials that have not diverged by
      that step (`members`). This is the rule by which a study stops at its first crossing:
      no divergence after that can change the answer.

    Args:
      measurements: one row an evaluation.
      goal: the metric, its value and its direction.
      trials: the trials that may count; a batch size that is only here gets its row too.
      feasible_trials: N, the number of feasible trials at each batch size.

    Returns:
      One row a batch size: `batch_size`; `steps`, inf for a miss; `previous_evaluation`,
      the last evaluated step of that trial before it (of all trials, for a miss); `trial`,
      NA for a miss; and with `trials` the hyperparameters of that trial.

    Raises:
      KeyError: the metric is not a column of `measurements`.
      ValueError: a table is not as it should be; an evaluation that matters was cut short,
        being far from a harder goal; or, with `trials`, one that counts was not trained far
        enough to know that it would not have got there first.

    >>> from batchscale.metrics import example_measurements
    >>> steps_to_target(example_measurements(), Goal("validation/error", 0.3))
       batch_size  steps  previous_evaluation  trial
    0           8   20.0                 10.0      1
    1          16   10.0                  0.0      0
    """
    check_goal("goal", goal)
    curves = _tables.plain_curves_of(measurements, goal.metric, goal.mode)
    if trials is not None:
        return steps_of_curves(curves, goal, trials=trials, feasible_trials=feasible_trials)
    if feasible_trials is not None:
        raise ValueError("feasible_trials: needs `trials`, which say when each diverged.")
    batch_sizes = _tables.plain_batch_sizes(measurements)
    return _first_past(curves, goal, ["batch_size"], batch_sizes).reset_index()


def steps_of_curves(
    curves: pd.DataFrame, goal: Goal, *, trials: pd.DataFrame, feasible_trials: int | None
) -> pd.DataFrame:
    """`steps_to_target` of curves in the form of `_tables.plain_curves_of`, however they were read.

    >>> from batchscale.metrics import example_measurements
    >>> curves = _tables.plain_curves_of(example_measurements(), "validation/error", "min")
    >>> index = pd.MultiIndex.from_tuples([(8, 0, 0), (8, 1, 0)], names=TRIAL_INDEX)
    >>> trials = {"status": "complete", "steps_trained": 20, "stop_reason": "budget"}
    >>> goal = Goal("validation/error", 0.3)
    >>> halved = curves.assign(value=curves["value"] / 2)
    >>> steps_of_curves(halved, goal, trials=pd.DataFrame(trials, index), feasible_trials=None)
       batch_size  steps  previous_evaluation  trial
    0           8   10.0                  0.0      0
    """
    plain = _tables.plain_trials(trials)
    if feasible_trials is None:
        counting = _tables.feasible(plain).assign(first_step=0.0, end_step=np.inf)
    else:
        counting = _membership(plain, feasible_trials)
    spans = counting[["batch_size", "trial", "first_step", "end_step"]]
    curves = curves.merge(spans, on=["batch_size", "trial"])
    counts = (curves["first_step"] <= curves["step"]) & (curves["step"] < curves["end_step"])
    curves = _tables.select(curves, counts)
    first = _first_past(curves, goal, ["batch_size"], _tables.plain_batch_sizes(trials))
    _check_certain(goal, counting.join(first["steps"], on="batch_size"))
    return _tables.with_hyperparameters(first.reset_index(), plain)


def steps_to_targets(
    measurements: pd.DataFrame,
    goals: Iterable[Goal],
    *,
    trials: pd.DataFrame | None = None,
    feasible_trials: int | None = None,
) -> pd.DataFrame:
    """The steps to several goals.

    Args:
      measurements: one row an evaluation.
      goals: one or more.
      trials: as for `steps_to_target`.
      feasible_trials: as for `steps_to_target`.

    Returns:
      The rows of `steps_to_target` for each goal in turn, after a column `goal`, its words.

    Raises:
      KeyError, ValueError: as `steps_to_target` does, of any of the goals; or there are none.

    >>> from batchscale.metrics import example_measurements
    >>> goals = [Goal("validation/error", value) for value in (0.5, 0.3)]
    >>> steps_to_targets(example_measurements(), goals)
                         goal  batch_size  steps  previous_evaluation  trial
    0  validation/error < 0.5           8   10.0                  0.0      0
    1  validation/error < 0.5          16   10.0                  0.0      0
    2  validation/error < 0.3           8   20.0                 10.0      1
    3  validation/error < 0.3          16   10.0                  0.0      0
    """
    results = []
    for goal in given.several("goals", goals, "several goals: [Goal(...), Goal(...)]"):
        result = steps_to_target(measurements, goal, trials=trials, feasible_trials=feasible_trials)
        result.insert(0, "goal", str(goal))
        results.append(result)
    if not results:
        raise ValueError("goals: wanted at least one, got none.")
    return pd.concat(results, ignore_index=True)


def _first_past(
    curves: pd.DataFrame, goal: Goal, group: list[str], groups: pd.Index
) -> pd.DataFrame:
    """The first evaluation past the goal in each group of curves; inf where there is none."""
    past = _tables.select(curves, goal.reached(curves["value"]))
    first = past.sort_values(["step", "trial"]).drop_duplicates(group)
    first = first.set_index(group, drop=False).reindex(groups)
    _check_whole(goal, first)
    last = curves.sort_values("step").drop_duplicates(group, keep="last")
    last = last.set_index(group, drop=False).reindex(groups)
    missed = first["step"].isna()
    return pd.DataFrame(
        {
            "steps": first["step"].astype(float).fillna(np.inf),
            "previous_evaluation": first["previous"].where(~missed, last["step"]).astype(float),
            "trial": first["trial"].astype("Int64"),
        },
        index=groups,
    )


def _check_whole(goal: Goal, first: pd.DataFrame) -> None:
    """Refuses an answer that comes of an evaluation that was cut short."""
    short = _tables.select(first, first["bound"].fillna(False).astype(bool))
    if len(short):
        row = short.iloc[0]
        known = f"it is only known that {goal.metric} is "
        known += f"{'at least' if goal.mode == 'min' else 'at most'} {row['value']:.6g}"
        if np.isinf(row["value"]):
            known = f"{goal.metric} is not known"
        raise ValueError(
            f"{goal}: at batch size {row['batch_size']:.0f}, trial {row['trial']:.0f}, step "
            f"{row['step']:.0f}, {known}: the evaluation was cut short, being far from the goal of "
            "the study. To know, call "
            'study.extend(folder, curves="exact"), and study.confirm again where it has been, or '
            "make a study with this goal."
        )


def _membership(plain: pd.DataFrame, feasible_trials: int) -> pd.DataFrame:
    """`plain_trials` with the columns of `members`."""
    feasible_trials = numeric.integer("feasible_trials", feasible_trials, 1)
    infeasible = plain["status"] == Status.INFEASIBLE
    diverged = plain["steps_trained"].astype(float).where(infeasible, np.inf)
    first_step = []
    for _, steps in diverged.groupby(plain["batch_size"]):
        longest: list[float] = []  # when the N longest-lived of the trials so far diverged
        for step in steps:
            if len(longest) < feasible_trials:
                first_step.append(0.0)
                heapq.heappush(longest, step)
            else:
                # From here on fewer than N of the trials with lower numbers are left.
                first_step.append(longest[0])
                heapq.heappushpop(longest, step)
    return plain.assign(first_step=np.array(first_step, float), end_step=diverged)


def _check_certain(goal: Goal, counting: pd.DataFrame) -> None:
    """Refuses an answer that a longer curve of some trial could change.

    A hit needs every trial that counts up to that step. A miss needs them to the end of the
    budget, which is known only where some trial was trained that far.
    """
    whole = counting["stop_reason"] == StopReason.BUDGET
    budget = counting["steps_trained"].where(whole).groupby(counting["batch_size"]).transform("max")
    needed = counting["steps"].where(np.isfinite(counting["steps"]), budget.fillna(np.inf))
    # A trial that diverged, or ended by a budget of its own, has no longer curve, and one that
    # never counts needs none.
    matters = (
        (counting["end_step"] == np.inf)
        & (counting["stop_reason"] != StopReason.OWN_BUDGET)
        & (counting["first_step"] <= needed)
        & (counting["first_step"] < np.inf)
    )
    counting = _tables.select(counting.assign(needed=needed), matters)
    _tables.check_long_enough(
        str(goal),
        counting,
        'study.extend(folder, stop="budget"), or a larger factor than before, such as stop=3.0',
    )
