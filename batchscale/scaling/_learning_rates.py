"""How the best learning rate moves with batch size, and what a rule costs instead of tuning."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from batchscale import columns, given, numeric
from batchscale.metrics import Goal, _tables
from batchscale.metrics._crossings import check_trained, search_crossings
from batchscale.metrics.goal import check_goal
from batchscale.records import WHOLE_BUDGETS, Status
from batchscale.scaling.curve import Interval, batch_sizes, whole
from batchscale.scaling.knee import FEWEST as KNEE_FEWEST
from batchscale.scaling.knee import Knee, knee
from batchscale.scaling.response import FEWEST, Parabola, Shape, Wall, fit_curve
from batchscale.tuner import derived

_FOUND = ("centre", "low", "high", "usable_low", "usable_high", "sharpness", "scatter")
_OF_MOMENTUM = ("centre", "low", "high", "interval")
_MOMENTUM = "one_minus_momentum"
_COLUMNS = columns.declare(
    "learning rates",
    *("batch_size", "steps", "trial", "effective_learning_rate"),
    *(*_FOUND, "leading", "interval", "searched_low", "searched_high"),
)
columns.declare("momenta", _MOMENTUM, *(f"{_MOMENTUM}_{name}" for name in _OF_MOMENTUM))
_LOST = ["searched_low", "searched_high", "usable_low", "usable_high", "centre", "sharpness"]
_RULES = ("linear", "square_root")
columns.declare(
    "learning-rate rules", *(name + end for name in _RULES for end in ("", "_lost", "_why"))
)


def learning_rates(
    measurements: pd.DataFrame,
    goal: Goal,
    *,
    trials: pd.DataFrame,
    feasible_trials: int | None = None,
    within: float = 3.0,
    tolerance: float = 0.2,
    confidence: float = 0.9,
) -> pd.DataFrame:
    """The best effective learning rate of each batch size, and how sharply it is known.

    The learning rate of the winner alone (figure 8 of Shallue et al. 2019) is partly luck. Here a
    curve is fitted to log first crossings over log effective learning rate:

        log S = log S_best + (e^(a z) - 1) / a - z,    z = log(rate / centre).

    Its form is a choice: steps grow as 1 / rate where the rate is small, as they must, and without
    end where it is too large; the sharpness a says how suddenly. Of trials that need more than
    `within` times the fewest steps, or never get there, nothing else is used. For 1 - momentum,
    where it is searched, the curve is a parabola, log S = log S_best + a z^2. Each looks at one
    hyperparameter: what the others do is scatter, and widens the interval.

    Args:
      measurements: one row an evaluation.
      goal: the metric, its value and its direction.
      trials: hyperparameters and statuses; a column `learning_rate` and perhaps `momentum`.
      feasible_trials: as for `metrics.steps_to_target`.
      within: trials that reach the goal in so many times the fewest steps lead; above 1.
      tolerance: a share: rates with so many more steps than the fewest count as as good.
      confidence: of the intervals.

    Returns:
      One row a batch size, NaN where no trial reaches the goal:

      - `batch_size`, `steps`, `trial` and its `effective_learning_rate` (`learning_rate` where
        there is no momentum);
      - `leading`, how many trials lead;
      - `centre`, the minimum of the curve, and `low` to `high`, the rates whose steps are within
        the tolerance of it, widened by the uncertainty of the fit (see `tuning_curve.fit_curve`);
      - `usable_low` to `usable_high`, where the curve is within `within` times its minimum;
      - `sharpness` and `scatter` of the curve;
      - `interval`, what the interval is: "fitted curve", or, with fewer than 4 leading trials,
        "between trials": `centre` is then their geometric mean, and both ranges reach to the
        nearest trials on either side that do not lead;
      - `searched_low` to `searched_high`, the rates of all trials. Nothing is said beyond: an
        interval that ends there is open;
      - where momentum differs between trials, `one_minus_momentum` of the winner and
        `one_minus_momentum_centre`, `..._low`, `..._high` and `..._interval`, likewise.

    Raises:
      KeyError: no `learning_rate`, or the metric is not a column of `measurements`.
      ValueError: an argument is not as above, or a learning rate not above 0; or a stop rule ended
        trials before `within` times the fewest steps, which hides how wide the optimum is. Trials
        that ended with their budget are known to need more than it.

    >>> from batchscale.metrics import example_measurements
    >>> index = pd.MultiIndex.from_tuples(
    ...     [(8, 0, 0), (8, 1, 0), (16, 0, 0)], names=["batch_size", "trial", "replicate"]
    ... )
    >>> trials = pd.DataFrame(
    ...     {"learning_rate": [0.1, 0.4, 0.3], "status": "complete"}, index
    ... ).assign(steps_trained=[20, 20, 10], stop_reason="budget")
    >>> table = learning_rates(example_measurements(), Goal("validation/error", 0.5), trials=trials)
    >>> table[["batch_size", "steps", "centre", "low", "high", "interval"]].round(2)
       batch_size  steps  centre  low  high        interval
    0           8   10.0     0.2  0.1   0.4  between trials
    1          16   10.0     0.3  0.3   0.3  between trials
    """
    check_goal("goal", goal)
    criteria = _Criteria(within, tolerance, confidence)
    criteria.check()
    plain, steps = search_crossings(measurements, goal, trials, feasible_trials)
    # A budget is all that there is, and where no trial reaches the goal nothing is looked for.
    ended = plain["stop_reason"].isin(WHOLE_BUDGETS) & (plain["status"] != Status.INCOMPLETE)
    check_trained(
        f"learning_rates: trials within {within:g} times the fewest steps to {goal}",
        plain,
        np.where(ended | np.isinf(plain["fewest"]), 0.0, within * plain["fewest"]),
        f"study.extend(folder, stop={float(within)})",
    )
    axes = derived(plain)
    if "effective_learning_rate" not in axes:
        raise KeyError("learning_rates: no column 'learning_rate' in the trials.")
    rates = axes["effective_learning_rate"].to_numpy(float)
    if not ((rates > 0) & (rates < np.inf)).all():
        raise ValueError(
            f"trials: an effective learning rate is {rates[~((rates > 0) & (rates < np.inf))][0]}; "
            "wanted learning rates above 0 and momenta below 1, for logarithms are taken."
        )
    momentum = _MOMENTUM
    searched_momentum = momentum in axes and len(np.unique(axes[momentum].to_numpy())) > 1
    rows = []
    for batch_size, fewest, trial in zip(
        steps["batch_size"], steps["steps"], steps["trial"], strict=True
    ):
        here = plain["batch_size"] == batch_size
        group, values = _tables.select(plain, here), _tables.select(axes, here)
        wins = (group["trial"] == trial).fillna(False).to_numpy(bool)
        rates = values["effective_learning_rate"].to_numpy(float)
        rate = _optimum(rates, group, Wall, criteria)
        row: dict[str, Any] = {"batch_size": batch_size, "steps": fewest, "trial": trial}
        row |= {"effective_learning_rate": _only(rates[wins])} | rate
        if searched_momentum:
            momenta = values[momentum].to_numpy(float)
            found = _optimum(momenta, group, Parabola, criteria)
            row[momentum] = _only(momenta[wins])
            row |= {f"{momentum}_{name}": found[name] for name in _OF_MOMENTUM}
        rows.append(row)
    if not rows:
        rows = pd.DataFrame(columns=list(_COLUMNS))
    return pd.DataFrame(rows).astype({"trial": "Int64"})


def _only(values: np.ndarray) -> float:
    """The winner's; NaN where none won."""
    return float(values[0]) if len(values) else math.nan


@dataclasses.dataclass(frozen=True)
class Rules:
    """What rules for the learning rate give, against tuning.

    Attributes:
      reference: the batch size whose tuned learning rate the rules begin from.
      table: one row a batch size: `batch_size`; `centre`, tuned; `linear` and `square_root`, the
        learning rates of the rules; `linear_lost` and `square_root_lost`, the steps at those over
        the fewest, by the fitted curve: 1 where nothing is lost, inf where the rate lies beyond the
        usable ones, NaN where it cannot be said; `linear_why` and `square_root_why`, the reason for
        inf or NaN, else empty.
      exponent: p of centre = constant * B^p below the knee; 1 is the linear rule, 0.5 the square
        root; NaN with fewer than 4 batch sizes. See `knee.knee`, which averages over where the knee
        is and how soft.
      exponent_interval: of it, at `confidence`.
      knee: the batch size where the rate stops to grow; inf where it is likelier beyond the largest
        batch size, NaN with fewer than 4.
      knee_interval: of it; inf where it may lie beyond the largest.
      confidence: for example 0.9.
    """

    reference: float
    table: pd.DataFrame
    exponent: float
    exponent_interval: Interval
    knee: float
    knee_interval: Interval
    confidence: float


def rules(
    table: pd.DataFrame,
    *,
    reference: float | None = None,
    confidence: float = 0.9,
) -> Rules:
    """The linear and the square-root rule against tuned learning rates, and the steps they lose.

    From a reference batch size B0, the linear rule (Goyal et al. 2017, arXiv:1706.02677) takes
    B / B0 times its learning rate, and the square-root rule (Krizhevsky 2014, arXiv:1404.5997)
    the root of B / B0 times it. Shallue et al. (2019, section 4.7) found that neither holds
    reliably.

    Args:
      table: of `learning_rates`.
      reference: a batch size; if not given, the smallest that reaches the goal. Its own error
        moves both rules at all batch sizes.
      confidence: of the intervals of exponent and knee.

    Raises:
      ValueError: the table is not as above; the reference has no tuned learning rate, or no batch
        size has.

    >>> table = pd.DataFrame({"batch_size": [1, 2, 4], "steps": [400, 200, 110]})
    >>> table = table.assign(centre=[0.1, 0.2, 0.2], sharpness=2.0, usable_low=[0.04, 0.08, 0.08])
    >>> table = table.assign(usable_high=[0.18, 0.36, 0.36], searched_low=0.01, searched_high=1.0)
    >>> found = rules(table)
    >>> found.table[["linear", "linear_lost", "square_root_lost"]].round(2)
       linear  linear_lost  square_root_lost
    0     0.1          1.0               1.0
    1     0.2          1.0               1.1
    2     0.4          inf               1.0
    """
    confidence = numeric.confidence(confidence)
    given.frame("table", table, "the table of learning_rates", ["batch_size", *_LOST])
    if reference is not None:
        reference = numeric.above("reference", reference, 0, "a batch size of the table")
    table = table.assign(batch_size=batch_sizes("table", table["batch_size"]))
    table = table.assign(batch_size=whole(table["batch_size"]))
    if not (table["centre"].isna() | ((table["centre"] > 0) & (table["centre"] < np.inf))).all():
        raise ValueError("table: wanted a finite centre above 0, or NaN where the goal is missed.")
    table = table.sort_values("batch_size", ignore_index=True)
    answered = _tables.select(table, table["centre"].notna())
    sizes = answered["batch_size"].tolist()
    if not sizes:
        raise ValueError(
            "rules: no batch size reaches the goal, so there is nothing to begin from."
        )
    begins = float(sizes[0] if reference is None else reference)
    if begins not in sizes:
        raise ValueError(
            f"rules: reference is {reference}, which has no tuned learning rate; "
            f"those that have: {', '.join(map(str, sizes))}."
        )
    begin = answered.set_index("batch_size")["centre"].loc[begins]
    ratio = table["batch_size"] / begins
    found: dict[str, Any] = {"batch_size": table["batch_size"], "centre": table["centre"]}
    for name, rates in zip(_RULES, (begin * ratio, begin * np.sqrt(ratio)), strict=True):
        found[name] = rates
        found[f"{name}_lost"], found[f"{name}_why"] = _lost(table, rates)
    return Rules(
        sizes[sizes.index(begins)],
        pd.DataFrame(found),
        *_exponent(answered, confidence),
        confidence,
    )


def _lost(table: pd.DataFrame, rates: pd.Series) -> tuple[np.ndarray, np.ndarray]:
    """The steps at these rates over the fewest, and why some are inf or NaN."""
    bottom, top, low, high, centre, sharpness = table[_LOST].to_numpy(float).T
    rate = rates.to_numpy(float)
    outside, unusable = (rate < bottom) | (rate > top), (rate < low) | (rate > high)
    lost = np.exp(
        Wall.height(np.log(np.where(outside | unusable, centre, rate) / centre), sharpness)
    )
    cases = [
        (np.isnan(centre), math.nan, "the goal was not reached"),
        (outside, math.nan, "outside the searched range"),
        (unusable, math.inf, "beyond the usable learning rates"),
        (np.isnan(sharpness), math.nan, "too few leading trials for a curve"),
    ]
    chosen = [case for case, _, _ in cases]
    return (
        np.select(chosen, [value for _, value, _ in cases], lost),
        np.select(chosen, [why for _, _, why in cases], ""),
    )


def _exponent(answered: pd.DataFrame, confidence: float) -> Knee:
    if len(answered) < KNEE_FEWEST:
        nothing = Interval(math.nan, math.nan)
        return Knee(math.nan, nothing, math.nan, nothing)
    sizes, centres = answered[["batch_size", "centre"]].to_numpy(float).T
    return knee(sizes, centres, confidence)


class _Criteria(NamedTuple):
    """The arguments of `learning_rates` that say what is near enough to the best."""

    within: float
    tolerance: float
    confidence: float

    def check(self) -> None:
        numeric.above("within", self.within, 1, "a factor above 1, such as 3.0")
        share = numeric.plain(self.tolerance)
        if share is None or not 0 < share <= self.within - 1:
            raise ValueError(
                f"tolerance: got {self.tolerance!r}, wanted a share above 0 and at most within - 1 "
                f"= {self.within - 1:g}, such as 0.2."
            )
        numeric.confidence(self.confidence)


def _optimum(
    values: np.ndarray, group: pd.DataFrame, shape: type[Shape], criteria: _Criteria
) -> dict[str, Any]:
    """The optimum of one hyperparameter at one batch size, as columns of `learning_rates`.

    Args:
      values: of the hyperparameter, one a trial.
      group: the trials, of `search_crossings`.
      shape: of the curve.
      criteria: what is near enough.
    """
    x, crossing = np.log(values), group["crossing"].to_numpy(float)
    fewest = group["fewest"].to_numpy(float)
    limit = criteria.within * fewest[0]
    leads = np.isfinite(crossing) & (crossing <= limit)
    found: dict[str, Any] = dict.fromkeys(_FOUND, math.nan) | {
        "leading": int(leads.sum()),
        "interval": "",
        "searched_low": math.exp(x.min()),
        "searched_high": math.exp(x.max()),
    }
    if not leads.any():
        return found
    if len(np.unique(x[leads])) < FEWEST:
        low = x[~leads & (x < x[leads].min())].max(initial=x.min())
        high = x[~leads & (x > x[leads].max())].min(initial=x.max())
        found["interval"] = "between trials"
        logs = (x[leads].mean(), low, high, low, high)
    else:
        # A trial that diverged never gets there; one whose budget ended only needs more than that.
        trained = group["steps_trained"].to_numpy(float)
        trained = np.where(group["status"] == Status.INFEASIBLE, limit, trained)
        log_steps = np.log(np.where(leads, crossing, np.clip(trained, 1, limit)))
        height = math.log1p(criteria.tolerance)
        curve = fit_curve(x, log_steps, leads, shape, height=height, confidence=criteria.confidence)
        reach = curve.centre + np.array(shape.reach(math.log(criteria.within), curve.sharpness))
        found["interval"] = "fitted curve"
        found["sharpness"], found["scatter"] = curve.sharpness, curve.scatter
        logs = (curve.centre, *curve.interval, *np.clip(reach, x.min(), x.max()))
    return found | dict(zip(_FOUND[:5], np.exp(logs).tolist(), strict=True))
