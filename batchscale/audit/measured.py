"""Checks of a measurement by one design: equal precision takes the place of equal effort."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping

import numpy as np
import pandas as pd

from batchscale import given, metrics, numeric, records
from batchscale.audit import measurement
from batchscale.audit.checks import Audit, Check, Evidence, Verdict, sizes
from batchscale.metrics import Goal
from batchscale.metrics.goal import check_goal
from batchscale.numeric import short
from batchscale.records import Status
from batchscale.scaling import Fit, Pace
from batchscale.tuner import Choice, Distribution, SearchSpace

# Choices.
_FEW_SEEDS = 5
_TOLERATED = 1.1  # widths may be so many times what was asked for: they are random themselves
_EASY = 10  # steps
_EARLY = 0.25  # epochs, of the median batch size
_SPACING = 0.2  # up to which simulated studies hold what they should
_HARDLY = 1 / 3  # of its decay the rate has fallen by a quarter or less
_NEAR = 0.02  # of a range: as near an edge as that is at it

_ADD = (
    "study.with_batch_sizes([...]).measure(folder, extend=True) adds batch sizes to what is "
    "measured; of an answer the study is answer.pilot.study, the folder answer.measurement.folder."
)
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
    evidence: Evidence
    train_examples: int | None
    evaluation_spacing: float | None


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
    measurements: pd.DataFrame | None = None,
    paces: Mapping[int, Pace] | None = None,
    batch_dependent: bool | None = None,
    evaluation_examples: int | None = None,
    counted: int | None = None,
    train_examples: int | None = None,
    evaluation_spacing: float | None = None,
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
      measurements: one row an evaluation, if they are known.
      paces: as for `audit.audit`.
      batch_dependent: as for `audit.audit`.
      evaluation_examples: as for `audit.audit`.
      counted: as for `audit.audit`.
      train_examples: of the training set, if it is known.
      evaluation_spacing: between evaluations, as a share of the steps, if it is known.

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
    if measurements is None:
        measurements = pd.DataFrame({goal.metric: []})
    else:
        records.check_index(measurements, records.MEASUREMENT_INDEX, "measurements")
        measurements = metrics.with_goal(measurements, goal)
        given.frame("measurements", measurements, "a table with the goal's metric", [goal.metric])
    given.by_batch_size("paces", {} if paces is None else paces, Pace, "a Pace")
    for name, count in (
        ("evaluation_examples", evaluation_examples),
        ("counted", counted),
        ("train_examples", train_examples),
    ):
        if count is not None:
            numeric.integer(name, count, 1)
    if evaluation_spacing is not None:
        numeric.above("evaluation_spacing", evaluation_spacing, 0, "a share, such as 0.05")
    evidence = Evidence(
        measurements, trials, table, goal, spaces, {}, batch_dependent, None,
        evaluation_examples, counted, None, paces,
    )  # fmt: skip
    all_of = _Measured(
        table, calibration, trials, fit, goal, spaces, precision, ended, evidence, train_examples,
        evaluation_spacing,
    )  # fmt: skip
    checks: tuple[Callable[[_Measured], Check], ...] = (
        _finished, _precise, _calibrated, _believed, _inside, _misses, _easy, _far, _noise_floor,
        _resolution, _schedule, _test_set, _batch_dependent, _within,
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
    known, open_ = widths[np.isfinite(widths)], ~np.isfinite(widths)
    found = "no interval is bounded"
    if len(known):
        found = f"half widths of 90% from {known.min():.0%} to {known.max():.0%}"
        if open_.any():
            found += f", unbounded at {sizes(of.table['batch_size'].to_numpy()[open_].tolist())}"
    if wide:
        return Check(
            name,
            Verdict.WARN,
            f"{found}, where {of.precision:.0%} was asked for: wider at {sizes(wide)}",
            _finer(of),
        )
    return Check(name, Verdict.PASS, found)


def _finer(of: _Measured) -> str:
    """What makes a measurement more precise."""
    # One that ended precise, and is not, is of an earlier version with other intervals.
    if of.ended in ("price", "precision", ""):
        return "study.measure(folder) with more minutes goes on from here."
    return (
        "More trials say no more there: a smaller evaluation_spacing, or batch sizes between those "
        "that were measured, in another folder; or study.run and study.confirm."
    )


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


def _far(of: _Measured) -> Check:
    name = "goal far into training"
    if of.train_examples is None:
        return Check(name, Verdict.UNKNOWN, "it is not known how large the training set is")
    examples = of.table["batch_size"] * of.table["steps"] / of.train_examples
    examples = examples[np.isfinite(examples)]
    if not len(examples):
        return Check(name, Verdict.UNKNOWN, "the goal was not reached")
    found = f"it takes {short(examples.min(), 2)} to {short(examples.max(), 2)} epochs"
    if examples.median() < _EARLY:
        return Check(
            name,
            Verdict.WARN,
            found,
            "The critical batch size grows as the loss falls (McCandlish et al. 2018), and the "
            "best learning rate changes: this one is of the beginning of training. For more of it "
            "a harder goal (goal=...), and more minutes, in another folder.",
        )
    return Check(name, Verdict.PASS, found)


def _noise_floor(of: _Measured) -> Check:
    return measurement.noise_floor(of.evidence)


def _resolution(of: _Measured) -> Check:
    name = "evaluations close together"
    if of.evaluation_spacing is None:
        return Check(name, Verdict.UNKNOWN, "it is not known how far they are apart")
    found = f"{of.evaluation_spacing:.0%} of the steps apart"
    if of.evaluation_spacing > _SPACING:
        return Check(
            name,
            Verdict.WARN,
            f"{found}; trials of other settings even that out up to {_SPACING:.0%}, by simulation",
            "Evaluate more often, evaluation_spacing=0.1, in another folder.",
        )
    return Check(
        name,
        Verdict.PASS,
        f"{found}, which trials of other settings even out; a noisy curve that is looked at more "
        "often passes a goal earlier, so that steps belong to their spacing",
    )


def _schedule(of: _Measured) -> Check:
    found = measurement.schedule(of.evidence)
    if found.verdict != Verdict.PASS:
        return found
    steps = of.table.set_index("batch_size")["steps"]
    shares = pd.Series(dtype=float)
    if "learning_rate_decay_steps" in of.table:  # of the quoted settings
        shares = steps / of.table.set_index("batch_size")["learning_rate_decay_steps"]
        shares = shares[np.isfinite(shares)]
    if len(shares) and shares.median() < _HARDLY:
        low, high = shares.min(), shares.max()
        return dataclasses.replace(
            found,
            verdict=Verdict.WARN,
            evidence=f"the goal is reached after {low:.0%} to {high:.0%} of the learning rate's "
            "decay, which has hardly begun: this is nearly the answer of a constant rate",
            remedy="A harder goal, or a shorter decay, learning_rate_decay_steps=... in the space, "
            "in another folder.",
        )
    return found


def _batch_dependent(of: _Measured) -> Check:
    return measurement.batch_dependent(of.evidence)


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
            f"Where perfect scaling is missing smaller batch sizes show it, larger ones where the "
            f"plateau is. {_ADD}",
        )
    low, high = of.fit.b_crit_interval
    found = f"{short(of.fit.b_crit)}, {short(low)} to {short(high)}"
    half = 0.5 * math.log(high / low)
    ends = of.fit.unseen(of.table["batch_size"].min(), of.table["batch_size"].max())
    wide = half > _TOLERATED * of.precision
    if wide:
        found += f": a half width of {half:.0%}, where {of.precision:.0%} was asked for"
    if ends:
        return Check(
            name,
            Verdict.WARN,
            f"{found}; but {ends}",
            "It rests on the form of the curve beyond what was measured"
            f"{', and is known the better for an end that is seen' if wide else ''}. {_ADD} Below "
            "1 there is none, but a harder goal has a larger critical batch size.",
        )
    if wide:
        return Check(name, Verdict.WARN, found, f"{_finer(of)} {_ADD}")
    return Check(name, Verdict.PASS, found)
