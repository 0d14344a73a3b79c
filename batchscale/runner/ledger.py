"""What is known of the trials of one batch size, and what follows from it: who has to do what next.

Everything that is decided follows from the tables alone: who has been measured at which step, who
was past the goal, who has diverged. A run that was killed, one that is extended and one that was
never touched therefore take the same path.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Collection, Iterable, Mapping

import numpy as np
import pandas as pd

from batchscale.engine.packs import HyperparametersOf, TrialId
from batchscale.metrics import Goal, with_goal
from batchscale.records import (
    MEASUREMENT_INDEX,
    TRIAL_INDEX,
    Origin,
    Status,
    StopReason,
)
from batchscale.stopping import StopRule, part_of_grid, whole_steps

_ENDED = {
    "first": StopReason.FIRST_CROSSING,
    "all": StopReason.OWN_CROSSING,
    "factor": StopReason.FACTOR,
    "budget": StopReason.BUDGET,
}


@dataclasses.dataclass(frozen=True)
class Question:
    """What is asked of one batch size.

    Attributes:
      batch_size: examples a step.
      trials: N, the feasible trials wanted.
      max_infeasible: how many diverged trials are replaced at most.
      grid: the steps of evaluation, from 0 to the budget.
      goal: what is looked for.
      rule: when trials stop.
      exact: whether every evaluation is wanted whole.
      others: the steps at which splits besides the goal's are measured, by name.
      candidates: the trials that are asked about, whatever becomes of others; where there are none,
        at each step the first N that have not diverged.
    """

    batch_size: int
    trials: int
    max_infeasible: int
    grid: list[int]
    goal: Goal
    rule: StopRule
    exact: bool
    others: Mapping[str, Collection[int]] = dataclasses.field(default_factory=dict)
    candidates: tuple[TrialId, ...] = ()


class Ledger:
    """The trials of one batch size: measured where, past the goal where, diverged, stopped why.

    Args:
      question: what is asked.
      measurements: the rows of this batch size that were written before.
      trials: likewise.
    """

    def __init__(
        self, question: Question, measurements: pd.DataFrame, trials: pd.DataFrame
    ) -> None:
        self.question = question
        self.sparse = part_of_grid(question.grid, ratio=2)
        self.rare = whole_steps(question.grid)
        self.first_crossing = math.inf
        self.best = math.nan
        self._measured: dict[TrialId, int] = {}  # the last step
        self._past: dict[TrialId, set[int]] = {}  # the steps
        self._diverged: dict[TrialId, int] = {}  # the step at which it was found
        self._reasons: dict[TrialId, StopReason] = {}
        self._unwritten: list[tuple[TrialId, int, Mapping[str, float]]] = []
        goal = question.goal
        if len(measurements):
            values = with_goal(measurements, goal)[goal.metric].to_numpy()
            past = goal.reached(values)
            for (_, number, replicate, step), reached in zip(measurements.index, past, strict=True):
                self._note(TrialId(number, replicate), step, bool(reached))
            steps = measurements.index.get_level_values("step")
            self._note_best(values[steps == steps.max()])
        for (_, number, replicate), status, steps, reason in zip(
            trials.index,
            trials["status"],
            trials["steps_trained"],
            trials["stop_reason"],
            strict=True,
        ):
            trial = TrialId(number, replicate)
            if status == Status.INFEASIBLE:
                self._diverged[trial] = steps
            self._reasons[trial] = StopReason(reason)

    @property
    def has_begun(self) -> bool:
        """Whether anything was measured."""
        return bool(self._measured or self._diverged)

    def diverged(self, step: float = math.inf) -> set[TrialId]:
        """The trials that have diverged by the step."""
        return {trial for trial, found in self._diverged.items() if found <= step}

    def measured(self, trial: TrialId) -> int:
        """The last step at which a trial was measured; -1 before any."""
        return self._measured.get(trial, -1)

    def members(self, step: int) -> list[TrialId]:
        """F(step): the first N trials that have not diverged by the step."""
        members: list[TrialId] = []
        numbers = range(self.question.trials + self.question.max_infeasible)
        for trial in self.question.candidates or map(TrialId, numbers):
            if self._diverged.get(trial, math.inf) > step:
                members.append(trial)
                if len(members) == self.question.trials:
                    break
        return members

    def behind(self, step: int, pace: int) -> list[TrialId]:
        """The trials that have to be measured at the step, were not, and were at step `pace`."""
        return [
            trial
            for trial in self.members(step)
            if (step == 0 or pace <= self.measured(trial))
            and self.measured(trial) < step
            and self._wanted(trial, step)
        ]

    def next_step(self, trials: Iterable[TrialId], at: int) -> int:
        """How far trials that are at a step go until the next evaluation.

        What was measured before is passed over in one go.
        """
        known = min(self.measured(trial) for trial in trials)
        return known if known > at else next(s for s in self.question.grid if s > known)

    def must_settle(self, step: int) -> bool:
        """Whether replacements have to catch up now.

        Each of them would pay for a whole pack, so they wait for one another until the next step
        of the sparse grid, or until it depends on them whether the batch size is done.
        """
        if step in self.sparse or step == self.question.grid[-1]:
            return True
        if math.isinf(self.first_crossing):
            return any(step in self._past.get(trial, ()) for trial in self.members(step))
        return self.finished(step)

    def settle(self, steps: Iterable[int]) -> None:
        """Looks for the first crossing among steps at which every trial has been measured."""
        past = {step for steps_past in self._past.values() for step in steps_past}
        for step in sorted(past.intersection(steps)):
            if step < self.first_crossing and any(
                step in self._past.get(trial, ()) for trial in self.members(step)
            ):
                self.first_crossing = step

    def finished(self, step: int) -> bool:
        """Whether the stop rule is satisfied once all trials have been measured at the step."""
        rule = self.question.rule
        if rule.kind == "all":
            return not any(self._wanted(trial, step + 1) for trial in self.members(step))
        if math.isinf(self.first_crossing):
            return False
        return step >= rule.horizon(int(self.first_crossing), self.question.grid)

    def steps_to_target(self) -> float:
        """The steps to target of a finished batch size, by the rule that its stop rule goes by."""
        if self.question.rule.kind != "budget":
            return self.first_crossing
        members = self.members(self.question.grid[-1])
        return min(map(self.crossing, members), default=math.inf)

    def crossing(self, trial: TrialId) -> float:
        """The first step at which the trial itself was past the goal."""
        return min(self._past.get(trial, ()), default=math.inf)

    def go_on(self, trials: Iterable[TrialId]) -> None:
        """Trials are at work: until they are concluded, they count as interrupted."""
        for trial in trials:
            self._reasons[trial] = StopReason.INTERRUPTED

    def record(
        self, step: int, values: Mapping[TrialId, Mapping[str, float]], diverged: Iterable[TrialId]
    ) -> None:
        """Takes down the evaluations of trials at a step, and which of them have diverged there.

        What was measured of those that diverged is not kept.
        """
        goal = self.question.goal
        found = np.array([row.get(goal.metric, math.nan) for row in values.values()])
        diverged = set(diverged)
        self._diverged |= dict.fromkeys(diverged, step)
        # An interruption in between must leave no trial measured whose row is not to be written.
        self._unwritten += [(t, step, row) for t, row in values.items() if t not in diverged]
        for trial, past in zip(values, goal.reached(found), strict=True):
            if trial not in diverged:
                self._note(trial, step, bool(past))
        if step == max(self._measured.values(), default=0):
            self._note_best(found)

    def conclude(self) -> None:
        """Says of every trial that was not concluded before why it stopped where it did."""
        ended = _ENDED[self.question.rule.kind]
        enough = StopReason.FACTOR if self.question.candidates else StopReason.BUDGET
        asked = set(self.question.candidates) or self._measured.keys()
        for trial in (self._measured.keys() & asked) - self._diverged.keys():
            if self._reasons.get(trial, StopReason.INTERRUPTED) == StopReason.INTERRUPTED:
                whole = self._measured[trial] == self.question.grid[-1]
                self._reasons[trial] = enough if whole else ended

    def unwritten(self) -> pd.DataFrame:
        """The measurements that `written` was not told of yet."""
        keys = [(self.question.batch_size, *trial, step) for trial, step, _ in self._unwritten]
        rows = [values for _, _, values in self._unwritten]
        if not rows:
            return pd.DataFrame()
        return pd.DataFrame(rows, pd.MultiIndex.from_tuples(keys, names=MEASUREMENT_INDEX))

    def written(self) -> None:
        """All that `unwritten` has handed out is on disk."""
        self._unwritten = []

    def trials(
        self, hyperparameters: HyperparametersOf, origin: Callable[[TrialId], Origin]
    ) -> pd.DataFrame:
        """The table of the trials that have been at work; empty where there are none."""
        rows = {}
        for trial in sorted({*self._measured, *self._diverged}):
            infeasible = trial in self._diverged
            reason = self._reasons.get(trial, StopReason.INTERRUPTED)
            done = Status.INCOMPLETE if reason == StopReason.INTERRUPTED else Status.COMPLETE
            rows[self.question.batch_size, *trial] = {
                **hyperparameters(trial),
                "origin": origin(trial),
                "status": Status.INFEASIBLE if infeasible else done,
                "steps_trained": (self._diverged if infeasible else self._measured)[trial],
                "stop_reason": StopReason.DIVERGED if infeasible else reason,
                "first_crossing": self.crossing(trial),
            }
        if not rows:
            return pd.DataFrame()
        index = pd.MultiIndex.from_tuples(list(rows), names=TRIAL_INDEX)
        return pd.DataFrame(list(rows.values()), index=index)

    def _wanted(self, trial: TrialId, step: int) -> bool:
        """Under the rule `all`, a trial that has reached the goal is done."""
        return self.question.rule.kind != "all" or self.crossing(trial) >= step

    def _note(self, trial: TrialId, step: int, past: bool) -> None:
        self._measured[trial] = max(step, self.measured(trial))
        if past:
            self._past.setdefault(trial, set()).add(step)

    def _note_best(self, values: np.ndarray) -> None:
        if np.isfinite(values).any():
            smaller = self.question.goal.mode == "min"
            self.best = float(np.nanmin(values) if smaller else np.nanmax(values))
