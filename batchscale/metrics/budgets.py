"""Budgets: what training got to within so many steps, or so many examples."""

import math
from collections.abc import Callable, Iterable
from fractions import Fraction

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from batchscale import columns, given, numeric
from batchscale.metrics import _tables
from batchscale.metrics.goal import Mode, check_mode
from batchscale.records import MEASUREMENT_INDEX, TRIAL_INDEX, Status, check_index

columns.declare("best by budget", "budget")


def step_budget(
    measurements: pd.DataFrame, steps: float, *, trials: pd.DataFrame | None = None
) -> pd.DataFrame:
    """The measurements within a budget of training steps, the same at every batch size.

    Args:
      measurements: one row an evaluation.
      steps: the last step that counts.
      trials: the trials to keep; of these, infeasible ones and reruns are left out.

    Returns:
      The rows with step <= `steps`.

    Raises:
      ValueError: a table or the budget is not as it should be; or a trial to keep was
        trained for less than the budget.

    >>> from batchscale.metrics import example_measurements
    >>> step_budget(example_measurements(), 10).index.tolist()
    [(8, 0, 0, 0), (8, 0, 0, 10), (8, 1, 0, 0), (8, 1, 0, 10), (16, 0, 0, 0), (16, 0, 0, 10)]
    """
    return _within(
        measurements,
        lambda batch_size: last_steps(batch_size, steps=steps),
        f"a budget of {steps} steps",
        trials,
    )


def epoch_budget(
    measurements: pd.DataFrame,
    epochs: float | Fraction,
    train_examples: int,
    *,
    trials: pd.DataFrame | None = None,
) -> pd.DataFrame:
    """The measurements within a budget of training examples, the same at every batch size.

    Args:
      measurements: one row an evaluation.
      epochs: passes over the training set; a float is the decimal number it is written as.
      train_examples: the size of the training set.
      trials: the trials to keep; of these, infeasible ones and reruns are left out.

    Returns:
      The rows with batch_size * step <= `epochs` * `train_examples`, compared exactly.

    Raises:
      ValueError: a table or the budget is not as it should be; or a trial to keep was
        trained for less than the budget.

    >>> from batchscale.metrics import example_measurements
    >>> epoch_budget(example_measurements(), 0.8, 100).index.tolist()
    [(8, 0, 0, 0), (8, 0, 0, 10), (8, 1, 0, 0), (8, 1, 0, 10), (16, 0, 0, 0)]
    """
    return _within(
        measurements,
        lambda batch_size: last_steps(batch_size, epochs=epochs, examples=train_examples),
        f"a budget of {epochs} epochs",
        trials,
    )


def last_steps(
    batch_sizes: ArrayLike,
    *,
    steps: float | None = None,
    epochs: float | Fraction | None = None,
    examples: int | None = None,
) -> np.ndarray:
    """The last step that a budget of steps or of epochs allows at each batch size.

    Args:
      batch_sizes: integers.
      steps: the budget, if it is in steps.
      epochs: the budget, if it is in passes over the training set; a float is the decimal number
        it is written as.
      examples: of the training set, for a budget in epochs.

    Raises:
      ValueError: a number is not above 0.

    >>> last_steps([8, 64], steps=100.5), last_steps([8, 64], epochs=0.3, examples=1000)
    (array([100, 100]), array([37,  4]))
    """
    sizes = np.asarray(batch_sizes)
    if not np.issubdtype(sizes.dtype, np.integer) or (sizes < 1).any():
        raise ValueError(
            f"batch_sizes: got {given.described(batch_sizes)}, wanted integers, 1 or more."
        )
    sizes = sizes.astype(np.int64)
    if steps is not None:
        numeric.above("steps", steps, 0, "a number above 0")
        return np.full_like(sizes, math.floor(steps))
    numeric.above("epochs", epochs, 0, "a number above 0")
    whole = int(numeric.above("train_examples", examples, 0, "a number above 0"))
    return math.floor(Fraction(str(epochs)) * whole) // sizes


def best_by_budget(
    measurements: pd.DataFrame,
    metric: str,
    *,
    trials: pd.DataFrame,
    steps: Iterable[float] | None = None,
    epochs: Iterable[float | Fraction] | None = None,
    train_examples: int | None = None,
    mode: Mode = "min",
) -> pd.DataFrame:
    """The best value of a metric within several budgets, over all trials and all evaluations.

    As in figure 11 of Shallue et al. (2019): a batch size is left out of a budget that some of its
    trials were not trained for, or that does not allow a single step.

    Args:
      measurements: one row an evaluation.
      metric: the column, "split/name".
      trials: the trials that may count; of these, infeasible ones do not.
      steps: budgets in steps.
      epochs: or budgets in passes over the training set.
      train_examples: the size of the training set, for budgets in epochs.
      mode: "min" if lower is better, "max" if higher is.

    Returns:
      One row a budget and batch size: `budget`, and the columns of `best_measurement`.

    Raises:
      KeyError: the metric is not a column of `measurements`.
      ValueError: not one kind of budget is given; a table is not as it should be; or the best may
        be an evaluation that was cut short.

    >>> from batchscale.metrics import example_measurements
    >>> index = pd.MultiIndex.from_tuples([(8, 0, 0), (8, 1, 0), (16, 0, 0)], names=TRIAL_INDEX)
    >>> columns = {"status": "complete", "steps_trained": [20, 20, 10], "stop_reason": "budget"}
    >>> trials = pd.DataFrame(columns, index)
    >>> best_by_budget(
    ...     example_measurements(), "validation/error", trials=trials, steps=[10, 20]
    ... )
       budget  batch_size  value  step  trial
    0    10.0           8    0.4    10      0
    1    10.0          16    0.1    10      0
    2    20.0           8    0.2    20      1
    """
    if (steps is None) == (epochs is None):
        raise ValueError("best_by_budget: wanted budgets in steps or in epochs, and not both.")
    name = "steps" if steps is not None else "epochs"
    budgets = given.several(
        name, steps if steps is not None else epochs, f"budgets in {name}, several: [10, 100]"
    )
    for budget in budgets:
        numeric.above(name, budget, 0, "numbers above 0")
    if not budgets:
        raise ValueError("best_by_budget: wanted at least one budget, got none.")
    feasible = _tables.feasible(_tables.plain_trials(trials))
    rows = trials.index.get_level_values("batch_size").to_numpy(np.int64)
    found = []
    for budget in budgets:

        def last(sizes: ArrayLike, budget: float | Fraction = budget) -> np.ndarray:
            if steps is not None:
                return last_steps(sizes, steps=float(budget))
            return last_steps(sizes, epochs=budget, examples=train_examples)

        needed = last(feasible["batch_size"].to_numpy())
        short = feasible["steps_trained"].to_numpy() < np.maximum(needed, 1)
        left_out = {*feasible["batch_size"].to_numpy()[short | (needed < 1)].tolist()}
        kept = trials.loc[~np.isin(rows, list(left_out))]
        if not (kept["status"] != Status.INFEASIBLE).any():
            continue
        within = _within(measurements, last, f"a budget of {budget}", kept)
        best = best_measurement(within, metric, mode=mode, trials=kept)
        best.insert(0, "budget", float(budget))
        found.append(best.loc[best["trial"].notna()])
    if not found:
        raise ValueError(
            f"best_by_budget: at no batch size all trials were trained for {budgets[0]} or more. "
            'Train on with study.extend(folder, stop="budget").'
        )
    return pd.concat(found, ignore_index=True)


def best_measurement(
    measurements: pd.DataFrame,
    metric: str,
    *,
    mode: Mode = "min",
    trials: pd.DataFrame | None = None,
) -> pd.DataFrame:
    """The best value of a metric over all trials and all evaluations.

    This is how Shallue et al. (2019) measure the quality of a solution: chosen in
    hindsight. The earliest step wins a tie, then the lowest trial.

    Args:
      measurements: one row an evaluation, perhaps of `step_budget` or `epoch_budget`.
      metric: the column, "split/name".
      mode: "min" if lower is better, "max" if higher is.
      trials: the trials that may count; of these, infeasible ones do not.

    Returns:
      One row a batch size: `batch_size`, `value`, `step` and `trial`, NaN or NA where the
      metric was not evaluated; and with `trials` the hyperparameters of that trial.

    Raises:
      KeyError: the metric is not a column of `measurements`.
      ValueError: a table or the mode is not as it should be; or the best may be an evaluation
        that was cut short.

    >>> from batchscale.metrics import example_measurements
    >>> best_measurement(example_measurements(), "validation/error")
       batch_size  value  step  trial
    0           8    0.2    20      1
    1          16    0.1    10      0
    """
    check_mode(mode, "best_measurement")
    curves = _tables.plain_curves_of(measurements, metric, mode)
    if trials is None:
        return _best(curves, metric, mode, _tables.plain_batch_sizes(measurements))
    plain = _tables.plain_trials(trials)
    curves = curves.merge(_tables.feasible(plain)[["batch_size", "trial"]])
    best = _best(curves, metric, mode, _tables.plain_batch_sizes(trials))
    return _tables.with_hyperparameters(best, plain)


def _best(curves: pd.DataFrame, metric: str, mode: Mode, batch_sizes: pd.Index) -> pd.DataFrame:
    order = curves.sort_values(
        ["value", "bound", "step", "trial"], ascending=[mode == "min", True, True, True]
    )
    best = order.drop_duplicates("batch_size").set_index("batch_size").reindex(batch_sizes)
    short = _tables.select(best, best["bound"].fillna(False).astype(bool)).index.tolist()
    if short:
        raise ValueError(
            f"best_measurement: at batch size {', '.join(map(str, short))} the best {metric} may "
            "be one whose evaluation was cut short, being far from the study's goal. To know, call "
            'study.extend(folder, curves="exact").'
        )
    columns = best[["value", "step", "trial"]].astype({"step": "Int64", "trial": "Int64"})
    return columns.reset_index()


def _within(
    measurements: pd.DataFrame,
    last_step: Callable[[np.ndarray], np.ndarray],
    budget: str,
    trials: pd.DataFrame | None,
) -> pd.DataFrame:
    """The measurements up to the `last_step` of each batch size."""
    check_index(measurements, MEASUREMENT_INDEX, "measurements")
    rows = measurements.index.to_frame(index=False).astype(np.int64)
    within = rows["step"].to_numpy() <= last_step(rows["batch_size"].to_numpy())
    if trials is not None:
        kept = _tables.feasible(_tables.plain_trials(trials)).assign(replicate=0)
        kept = kept.assign(needed=last_step(kept["batch_size"].to_numpy()))
        _tables.check_long_enough(budget, kept, 'study.extend(folder, stop="budget")')
        within &= _tables.trials_of(measurements).isin(kept.set_index(list(TRIAL_INDEX)).index)
    return _tables.select(measurements, within)
