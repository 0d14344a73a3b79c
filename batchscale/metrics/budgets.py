"""Budgets: what training got to within so many steps, or so many examples."""

import math
from collections.abc import Callable
from fractions import Fraction

import numpy as np
import pandas as pd

from batchscale import numeric
from batchscale.metrics import _tables
from batchscale.metrics.goal import Mode, check_mode
from batchscale.records import MEASUREMENT_INDEX, TRIAL_INDEX, check_index


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
    numeric.above("steps", steps, 0, "a number above 0")
    last_step = math.floor(steps)
    return _within(
        measurements,
        lambda batch_size: np.full_like(batch_size, last_step),
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
    numeric.above("epochs", epochs, 0, "a number above 0")
    numeric.above("train_examples", train_examples, 0, "a number above 0")
    examples = math.floor(Fraction(str(epochs)) * int(train_examples))
    return _within(
        measurements,
        lambda batch_size: examples // batch_size,
        f"a budget of {epochs} epochs",
        trials,
    )


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
