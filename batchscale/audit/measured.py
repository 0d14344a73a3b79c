"""Checks of a measurement by one design: equal precision takes the place of equal effort."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

import numpy as np
import pandas as pd

from batchscale import given, numeric, records
from batchscale.audit.checks import Audit, Check, Verdict, sizes
from batchscale.metrics import Goal
from batchscale.metrics.goal import check_goal
from batchscale.records import Status
from batchscale.scaling import Fit
from batchscale.tuner import Choice, Distribution, SearchSpace

# Choices.
_FEW_SEEDS = 5
_TOLERATED = 1.1  # widths may be so many times what was asked for: they are random themselves
_EASY = 10  # steps
_NEAR = 0.02  # of a range: as near an edge as that is at it

_TABLE = ["batch_size", "steps", "low", "high", "by"]
_CALIBRATION = ["batch_size", "seeds", "deviations", "agrees", "seen"]


@dataclasses.dataclass(frozen=True)
class _Measured:
    table: pd.DataFrame
    calibration: pd.DataFrame
    trials: pd.DataFrame
    fit: Fit
    goal: Goal
    spaces: Mapping[int, SearchSpace]
    precision: float
    ended: str


def measured(
    table: pd.DataFrame,
    calibration: pd.DataFrame,
    trials: pd.DataFrame,
    fit: Fit,
    *,
    goal: Goal,
    spaces: Mapping[int, SearchSpace],
    precision: float,
    ended: str,
) -> Audit:
    """Checks whether a measurement by one design can be believed.

    Args:
      table: `Measurement.table`.
      calibration: `Measurement.calibration`.
      trials: all trials.
      fit: of the critical batch size.
      goal: of the study.
      spaces: what was searched, by batch size.
      precision: that was asked for.
      ended: why it ended.

    Returns:
      The checks, each with its verdict, the evidence and the remedy.

    Raises:
      TypeError, ValueError: an argument is not as above.
    """
    check_goal("goal", goal)
    given.frame("table", table, "the table Measurement.table", _TABLE)
    given.frame("calibration", calibration, "the table Measurement.calibration", _CALIBRATION)
    records.check_index(trials, records.TRIAL_INDEX, "trials")
    given.frame("trials", trials, "the table Measurement.trials", ["status"])
    given.instance("fit", fit, Fit, "a fit, as Measurement.scaling returns it")
    given.by_batch_size("spaces", spaces, SearchSpace, "a SearchSpace")
    numeric.above("precision", precision, 0, "a share above 0, such as 0.15")
    given.instance("ended", ended, str, "a word, as Measurement.ended")
    all_of = _Measured(table, calibration, trials, fit, goal, spaces, precision, ended)
    checks: tuple[Callable[[_Measured], Check], ...] = (
        _finished, _precise, _calibrated, _believed, _inside, _misses, _easy, _test_set, _within,
    )  # fmt: skip
    return Audit(
        tuple(
            dataclasses.replace(check(all_of), key=check.__name__.removeprefix("_"))
            for check in checks
        )
    )


def _finished(of: _Measured) -> Check:
    name = "measurement finished"
    if not of.ended:
        return Check(name, Verdict.WARN, "it was interrupted", "study.measure(folder) goes on.")
    return Check(name, Verdict.PASS, f"ended by {of.ended}, after {len(of.trials)} trials")


def _precise(of: _Measured) -> Check:
    name = "equal precision at every batch size"
    low, high = of.table[["low", "high"]].to_numpy(float).T
    widths = 0.5 * np.log(high / low)
    wide = of.table["batch_size"].to_numpy()[widths > _TOLERATED * of.precision].tolist()
    found = f"half widths of 90% from {widths.min():.0%} to {widths.max():.0%}"
    if wide:
        return Check(
            name,
            Verdict.WARN,
            f"{found}, where {of.precision:.0%} was asked for: wider at {sizes(wide)}",
            "study.measure(folder) with more minutes goes on from here.",
        )
    return Check(name, Verdict.PASS, found)


def _calibrated(of: _Measured) -> Check:
    name = "predictions agree with fresh seeds"
    seeds = int(of.calibration["seeds"].min())
    if seeds < _FEW_SEEDS:
        return Check(
            name,
            Verdict.UNKNOWN,
            f"{seeds} fresh seeds at the least",
            "study.measure(folder) goes on, and checks what it quotes.",
        )
    off = of.calibration["deviations"].to_numpy(float)
    wrong = of.calibration.loc[~of.calibration["agrees"], "batch_size"].tolist()
    scale = float(np.sqrt(np.mean(np.where(np.isfinite(off), off, 3.0) ** 2)))
    found = f"medians of {seeds} seeds or more differ by {scale:.1f} standard deviations"
    if wrong:
        return Check(
            name,
            Verdict.WARN,
            f"{found}; not at {sizes(wrong)}, where the model is not believed",
            "study.run and study.confirm at these batch sizes search without a model.",
        )
    return Check(name, Verdict.PASS, found)


def _believed(of: _Measured) -> Check:
    name = "one model describes all batch sizes"
    by = of.table.set_index("batch_size")["by"]
    doubted, searched = by.index[by == "doubted"], by.index[by == "search"]
    if len(doubted):
        return Check(
            name,
            Verdict.WARN,
            f"it is doubted at {sizes(doubted)}, and there was no price left for a search there",
            "study.measure(folder) with more minutes searches there.",
        )
    if len(searched):
        return Check(name, Verdict.PASS, f"a search took its place at {sizes(searched)}")
    return Check(name, Verdict.PASS, "nothing speaks against it")


def _inside(of: _Measured) -> Check:
    name = "optimum inside the search space"
    found: dict[str, list[int]] = {}
    for row in of.table.to_dict("records"):
        for hyperparameter, dimension in of.spaces[int(row["batch_size"])].items():
            if not isinstance(dimension, Distribution) or isinstance(dimension, Choice):
                continue
            low, high = dimension.value(np.array([0.0, 1.0])).tolist()
            value = float(row[hyperparameter])
            if hyperparameter != "learning_rate":
                (place,) = dimension.unit(np.array([value], np.float64)).tolist()
                edge = "low" if place < _NEAR else "high" if place > 1 - _NEAR else ""
            else:  # it is looked for beyond its range, too
                edge = "low" if value < low else "high" if value > high else ""
            if edge:
                where = f"the {edge} edge of {hyperparameter}"
                found.setdefault(where, []).append(int(row["batch_size"]))
    if not found:
        return Check(name, Verdict.PASS, "every best setting lies within the ranges")
    beyond = "; ".join(f"{edge} at {sizes(where)}" for edge, where in found.items())
    return Check(
        name,
        Verdict.WARN,
        f"the best setting is at or beyond {beyond}",
        "A wider range there, in another folder, says whether the scout has missed something.",
    )


def _misses(of: _Measured) -> Check:
    name = "quoted settings reach the goal"
    missed = of.calibration.loc[np.isinf(of.calibration["seen"]), "batch_size"].tolist()
    if missed:
        return Check(
            name,
            Verdict.FAIL,
            f"half or more of the fresh seeds missed it at {sizes(missed)}",
            "Choose an easier goal, or a longer budget, in another folder.",
        )
    feasible = of.trials["status"] != Status.INFEASIBLE
    share = 1 - float(feasible.mean())
    return Check(name, Verdict.PASS, f"at every batch size; {share:.0%} of all trials diverged")


def _easy(of: _Measured) -> Check:
    name = "goal hard enough"
    few = of.table.loc[of.table["steps"] < _EASY, "batch_size"].tolist()
    if few:
        return Check(
            name,
            Verdict.WARN,
            f"reached within {_EASY} steps at {sizes(few)}",
            "Choose a harder goal: so few steps tell nothing of batch sizes.",
        )
    return Check(name, Verdict.PASS, f"at least {of.table['steps'].min():.0f} steps")


def _test_set(of: _Measured) -> Check:
    name = "not tuned on the test set"
    if of.goal.split == "test":
        return Check(
            name,
            Verdict.WARN,
            f"the goal is {of.goal.metric}",
            "Choose a goal on a validation split.",
        )
    return Check(name, Verdict.PASS, f"the goal is of the split {of.goal.split!r}")


def _within(of: _Measured) -> Check:
    name = "critical batch size within the data"
    if of.fit.refused:
        return Check(
            name,
            Verdict.WARN,
            f"no critical batch size can be quoted: {of.fit.refused}",
            "Measure smaller batch sizes where perfect scaling is missing, larger ones where the "
            "plateau is.",
        )
    low, high = of.fit.b_crit_interval
    return Check(name, Verdict.PASS, f"{of.fit.b_crit:.3g}, {low:.3g} to {high:.3g}")
