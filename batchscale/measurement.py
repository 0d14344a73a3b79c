"""What one design across batch sizes has measured: steps, settings, the critical batch size."""

from __future__ import annotations

import dataclasses
import importlib
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from batchscale import audit, columns, display, numeric, scaling
from batchscale.design.answering import Answer
from batchscale.design.axes import Axes
from batchscale.design.design import Design
from batchscale.design.question import Question, Spent
from batchscale.design.trials import Outcome, Trials, middle
from batchscale.metrics import Goal
from batchscale.numeric import short
from batchscale.plan import Definition
from batchscale.records import Status
from batchscale.scaling.averaging import quoted
from batchscale.scaling.posterior import smooth
from batchscale.stored.measured import FIRST_MEASURED, MeasurePlan

_Z = 1.6449  # of 90%
_TABLE = columns.declare(
    "measurement",
    *("batch_size", "steps", "low", "high", "log_deviation"),
    *("effective_learning_rate", "effective_low", "effective_high"),
    *("crossings", "checked_seeds", "missed_seeds", "by"),
)
_CALIBRATION = columns.declare(
    "calibration",
    *("batch_size", "predicted", "predicted_low", "predicted_high"),
    *("seen", "seeds", "deviations", "agrees"),
)


@dataclasses.dataclass(frozen=True)
class Measurement:
    """Steps to target, settings and B_crit, from trials that were asked where they tell most.

    The steps are medians over seeds of the best setting of each batch size, by a joint model of
    all trials, checked under fresh seeds. They are no minima over trials, and the number of trials
    differs between batch sizes: equal precision takes the place of equal effort.

    Attributes:
      name: of the workload and the optimizer.
      goal: of the study.
      table: one row a batch size: `batch_size`; `steps` with the ends `low` and `high` of their
        90% interval, inf where half of the fresh seeds missed the goal; their `log_deviation`; the
        hyperparameters of the best setting; its
        `effective_learning_rate`, with the ends `effective_low` and `effective_high` of the 90%
        interval of the best one; `crossings`, how many trials reached the goal; `checked_seeds`,
        fresh ones under which the setting was run, and `missed_seeds`, how many of them did not
        reach the goal within four times the steps, or the budget; and `by`: `model`, `search`
        where a search has taken its place, `doubted` where something speaks against the model and
        there was no price left.
      calibration: predictions beside what came: one row a batch size: `predicted` steps of the
        quoted setting; `predicted_low` to `predicted_high`, where the median of so many seeds is
        expected then, at 90%: by the error of the prediction, their own scatter, and what the
        model has been off by at all batch sizes; `seen`, the median under `seeds` fresh seeds, inf
        if half of them missed; how many standard `deviations` it is off; and whether it `agrees`:
        what all batch sizes share aside, they are less than 3.
      trials: all trials, with origin `measure`, as in `Result.trials`.
      cost: `trials`, `steps`, `examples`, `rounds`, and `seconds` of all calls.
      ended: why it ended: `precision`; `price`; `trials`, of which no more are worth it; `search`,
        after one took the model's place; `precision of the model`, whose intervals are as narrow as
        asked, while those that 40 fresh seeds leave are not; or empty if it was interrupted.
      precision: that was asked for.
      paces: between which steps the schedule decides when the goal is reached, by batch size.
      runs: with what and when it was made, as `Result.runs`.
      folder: in which `Study.measure` goes on with it.
    """

    name: str
    goal: Goal
    table: pd.DataFrame
    calibration: pd.DataFrame
    trials: pd.DataFrame
    cost: Mapping[str, float]
    ended: str
    precision: float
    paces: Mapping[int, scaling.Pace]
    _answer: Answer = dataclasses.field(repr=False)
    _spaces: Mapping[int, Any] = dataclasses.field(repr=False)
    runs: Sequence[Mapping[str, Any]] = dataclasses.field(default=(), repr=False)
    _audited: Mapping[str, Any] = dataclasses.field(default_factory=dict, repr=False)
    folder: Path | None = dataclasses.field(default=None, repr=False)

    def __str__(self) -> str:
        shown = ["batch_size", "steps", "low", "high", "effective_learning_rate", "by"]
        return "\n".join(
            [
                f"{self.name}, {self.goal}: {self.scaling()}",
                self.table[shown].to_string(index=False, float_format=display.cell),
                f"{self.cost['trials']:,} trials, {short(self.cost['examples'], 2)} examples, "
                f"{short(self.cost['seconds'])} seconds; "
                f"ended by {self.ended or 'an interruption'}",
            ]
        )

    def __repr__(self) -> str:
        return (
            f"Measurement({self.name!r}, {self.goal}: {len(self.table)} batch sizes, "
            f"{self.cost['trials']:,} trials, {self.scaling()})"
        )

    def _repr_html_(self) -> str:
        return display.page(f"{self.name}, {self.goal}: {self.scaling()}", self.table)

    @property
    def train_examples(self) -> int:
        """The size of a full batch."""
        return self._audited["train_examples"]

    @property
    def space_names(self) -> list[str]:
        """The hyperparameters, by name."""
        return list(next(iter(self._spaces.values())).names)

    def report(self, path: str | os.PathLike[str]) -> Path:
        """Writes one self-contained page of HTML; see `Result.report`."""
        # Pages are made of figures and of all that results know; this is only the way to them.
        return importlib.import_module("batchscale.report").write(self, path)

    def steps_to_target(self) -> pd.DataFrame:
        """The medians, as a table for `scaling.frontier` and the figures."""
        return self.table[["batch_size", "steps", "low", "high", "log_deviation"]].copy()

    def learning_rates(self) -> pd.DataFrame:
        """The best effective learning rate of each batch size, with its 90% interval.

        Returns:
          One row a batch size: `batch_size`, `centre`, `low`, `high`.
        """
        found = self.table[
            ["batch_size", "effective_learning_rate", "effective_low", "effective_high"]
        ]
        return found.set_axis(["batch_size", "centre", "low", "high"], axis=1)

    def scaling(self, *, confidence: float = 0.9) -> scaling.Fit:
        """The critical batch size, by the levels of all batch sizes and their covariance.

        Averaged over the sharpness of the bend, and over how far the steps lie off any such curve.

        Args:
          confidence: of the intervals.
        """
        confidence = numeric.confidence(confidence)
        answer = self._answer
        logs = answer.fitted.model.log_batch
        found = quoted(logs, answer.mean, answer.covariance, smooth(logs), confidence=confidence)
        doubted = self.table.loc[self.table["by"] == "doubted", "batch_size"].tolist()
        words = ", ".join(map(str, doubted))
        found = found.cautioned(
            f"the model is doubted at batch size {words}, whose intervals are wider for it"
            if doubted
            else ""
        )
        found = found.cautioned(
            "the best settings of some batch sizes lie in another range of learning rates than "
            "those of others, so that steps lie on no one curve"
            if answer.mixed
            else ""
        )
        unchecked = not self.calibration["seeds"].any()
        found = found.cautioned(
            "no quoted setting has been checked under fresh seeds yet" if unchecked else ""
        )
        refusal = scaling.paced(self.steps_to_target(), self.paces).refusal
        return found.refuse(scaling.Refusal.SCHEDULE, refusal)

    def recommend(
        self, *, seconds_per_step: scaling.StepTimes | None = None
    ) -> scaling.Recommendation:
        """Which batch size to train with; see `scaling.recommend`.

        Args:
          seconds_per_step: as for `scaling.frontier`.
        """
        return scaling.recommend(
            self.steps_to_target(),
            self.scaling(),
            paces=self.paces,
            seconds_per_step=seconds_per_step,
        )

    def audit(self) -> audit.Audit:
        """Whether the measurement can be believed; see `audit.measured`."""
        return audit.measured(
            self.table,
            self.calibration,
            self.trials,
            self.scaling(),
            goal=self.goal,
            spaces=self._spaces,
            precision=self.precision,
            ended=self.ended,
            paces=self.paces,
            **self._audited,
        )


class NotYetError(ValueError):
    """A measurement is under way, and no trial has reached the goal so far."""


class NotReachedError(ValueError):
    """No trial of a measurement has reached the goal.

    Attributes:
      seconds: that the measurement has taken.
    """

    def __init__(self, words: str, seconds: float = 0.0) -> None:
        super().__init__(words, seconds)  # both, so that it can be sent between processes
        self.seconds = seconds

    def __str__(self) -> str:
        return str(self.args[0])


def trials_of(plan: MeasurePlan, definition: Definition, table: pd.DataFrame) -> Trials:
    """The trials of a measurement as its design takes them, in the order of their rounds.

    Args:
      plan: of the measurement.
      definition: of the study.
      table: of the trials; those that are not concluded are left out.
    """
    rows = []
    for place, size in enumerate(definition.batch_sizes):
        axes = Axes.of(definition.spaces[size])
        grid = np.array(definition.grid(size))
        here = table.loc[table.index.get_level_values("batch_size") == size]
        here = here.loc[(here["status"] != Status.INCOMPLETE).to_numpy()]
        known = dict(
            zip(
                here.index.get_level_values("trial").tolist(),
                here[["status", "first_crossing", "steps_trained"]].itertuples(index=False),
                strict=True,
            )
        )
        for number, trial in enumerate(plan.trials(size), FIRST_MEASURED):
            if number not in known:
                continue
            status, crossing, trained = known[number]
            rate, second = axes.setting(trial.hyperparameters)
            if status == Status.INFEASIBLE:
                outcome, log_steps = Outcome.DIVERGED, 0.0
            elif math.isfinite(crossing):
                before = grid[max(int(np.searchsorted(grid, crossing)) - 1, 0)]
                outcome, log_steps = Outcome.CROSSED, middle(float(crossing), float(before))
            else:
                outcome, log_steps = Outcome.CUT, math.log(max(trained, 1))
            rows.append((place, rate, second, log_steps, outcome, trial.purpose, trial.round))
    return Trials.of(sorted(rows, key=lambda row: row[-1]))


def spent(plan: MeasurePlan, table: pd.DataFrame) -> Spent:
    """What the trials have cost: in seconds of steps, and in examples."""
    sizes = table.index.get_level_values("batch_size").to_numpy(float)
    steps = table["steps_trained"].to_numpy(float) if len(table) else np.zeros(0)
    seconds = np.array([plan.seconds_per_step[int(size)] for size in sizes])
    return Spent(float((steps * seconds).sum()), float((steps * sizes).sum()))


def question_of(definition: Definition, plan: MeasurePlan, lanes: int) -> Question:
    """What a study asks of its design.

    Args:
      definition: of the study.
      plan: of the measurement.
      lanes: trials that are trained together.
    """
    sizes = definition.batch_sizes
    axes = [Axes.of(definition.spaces[size]) for size in sizes]
    if len({one.second for one in axes}) > 1:
        raise ValueError(
            "measure: batch sizes search different hyperparameters; wanted the same at all."
        )
    ends = np.array([one.range() for one in axes])
    return Question(
        np.array(sizes, np.float64),
        float(ends[:, 0].min()),
        float(ends[:, 1].max()),
        axes[0].second is not None,
        np.array([plan.seconds_per_step[size] for size in sizes]),
        np.full(len(sizes), lanes),
        np.array([definition.max_steps[size] for size in sizes], np.float64),
        plan.precision,
        spacing=definition.evaluation_spacing,
        seed=definition.seed,
    )


def measurement(
    plan: MeasurePlan,
    definition: Definition,
    table: pd.DataFrame,
    *,
    paces: Mapping[int, scaling.Pace] | None = None,
    audited: Mapping[str, Any] | None = None,
) -> Measurement:
    """The measurement from its tables alone: nothing trains.

    Args:
      plan: of the measurement.
      definition: of the study.
      table: of the trials.
      paces: between which steps the schedule decides, by batch size.
      audited: what `audit.measured` looks at besides.

    Raises:
      NotReachedError: no trial of the scout reached the goal.
      NotYetError: none has done so far.
    """
    # Of batch sizes that are being added nothing is known before they have been timed.
    definition = definition.of_sizes(plan.seconds_per_step)
    trials = trials_of(plan, definition, table)
    crossed = len(trials) > 0 and bool(trials.crossed.any())
    if not crossed and not plan.ended:
        raise NotYetError(
            f"measure: it has only begun: none of {len(trials)} trials so far has reached "
            f"{definition.goal}. The same call goes on."
        )
    if not crossed:
        raise NotReachedError(
            f"measure: none of {len(trials)} trials reached {definition.goal}, of which the "
            f"longest was trained for {table['steps_trained'].max():,} steps. Choose an easier "
            "goal, a longer budget (max_steps), or other ranges, in another folder.",
            plan.seconds,
        )
    warm = np.array(plan.parameters) if plan.parameters else None
    answer = Design(question_of(definition, plan, 1), trials, warm).answer
    return Measurement(
        f"{definition.workload}, {definition.optimizer}",
        definition.goal,
        _table(answer, definition, trials),
        _calibration(answer, definition),
        table,
        {
            "trials": len(table),
            "steps": float(table["steps_trained"].sum()),
            "examples": spent(plan, table).examples,
            "rounds": len(plan.rounds),
            "seconds": plan.seconds,
        },
        plan.ended,
        plan.precision,
        dict(paces or {}),
        answer,
        definition.spaces,
        _audited={
            "train_examples": definition.train_examples,
            "evaluation_spacing": definition.evaluation_spacing,
            **(audited or {}),
        },
    )


def _table(answer: Answer, definition: Definition, trials: Trials) -> pd.DataFrame:
    low, high = answer.steps_interval()
    rows = []
    for place, size in enumerate(definition.batch_sizes):
        rate, second = float(answer.rate[place]), float(answer.second[place])
        values = Axes.of(definition.spaces[size]).values(rate, second)
        away = _Z * float(answer.rate_sd[place])
        here = trials.size == place
        by = "search" if answer.searched[place] else "model"
        # Half of the fresh seeds missed, so that the median has no end.
        missed = by == "model" and bool(np.isinf(answer.levels.seen[place]))
        rows.append(
            {
                "batch_size": size,
                "steps": math.inf if missed else math.exp(answer.log_steps[place]),
                "low": float(low[place]),
                "high": math.inf if missed else float(high[place]),
                "log_deviation": float(answer.log_steps_sd[place]),
                **values,
                "effective_learning_rate": math.exp(rate),
                "effective_low": math.exp(rate - away),
                "effective_high": math.exp(rate + away),
                "crossings": int((here & trials.crossed).sum()),
                "checked_seeds": int(answer.seeds[place]),
                "missed_seeds": int(answer.missed[place]),
                "by": "doubted" if answer.doubted[place] and by == "model" else by,
            }
        )
    names = [name for name in rows[0] if name not in _TABLE]
    return pd.DataFrame(rows)[[*_TABLE[:5], *names, *_TABLE[5:]]]


def _calibration(answer: Answer, definition: Definition) -> pd.DataFrame:
    found = answer.levels
    both = np.where(found.seeds > 0, found.expected_sd, np.nan)
    return pd.DataFrame(
        {
            "batch_size": definition.batch_sizes,
            "predicted": np.exp(found.predicted),
            "predicted_low": np.exp(found.predicted - _Z * both),
            "predicted_high": np.exp(found.predicted + _Z * both),
            "seen": np.exp(found.seen),
            "seeds": found.seeds,
            "deviations": (found.seen - found.predicted) / both,
            "agrees": ~found.rejected & (found.seeds > 0),
        }
    )[list(_CALIBRATION)]
