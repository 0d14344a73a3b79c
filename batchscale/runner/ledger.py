"""What is known of the trials of one batch size, and what follows from it: what is done next.

Everything that is decided follows from the tables alone: who has been measured at which step, who
was past the goal, who has diverged. A run that was killed, one that is extended and one that was
never touched therefore take the same path.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float

from batchscale.engine.packs import TrialId
from batchscale.metrics import Goal, with_goal
from batchscale.records import MEASUREMENT_INDEX, TRIAL_INDEX, Origin, Status, StopReason
from batchscale.stopping import StopRule, part_of_grid, whole_steps

_UNMEASURED = -1  # the step of a trial before any evaluation, and before it has a state


@dataclasses.dataclass(frozen=True)
class BatchSizeSpec:
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


class Advance(NamedTuple):
    """What is done next: trials are trained to a step, and measured there.

    Attributes:
      trials: all at the same step.
      since: this step; before the first, -1.
      to: where they go; the same step, where only an evaluation is missing.
      unmeasured: those that were not measured there before.
    """

    trials: list[TrialId]
    since: int
    to: int
    unmeasured: list[TrialId]


class Ledger:
    """The trials of one batch size: measured where, past the goal where, diverged, stopped why.

    Args:
      spec: what is asked.
      measurements: the rows of this batch size that were written before.
      trials: the rows of its trials that were written before.

    Attributes:
      spec: what is asked.
      doublings: the steps of evaluation about each doubling of the steps.
      whole: the steps at which the goal's split is evaluated whole, also where bounds would do.
      first_crossing: the first step at which a trial that counted there was past the goal, as far
        as all trials were compared; inf for none.
      best: the best value of the goal's metric at the last step that was measured.
    """

    def __init__(
        self, spec: BatchSizeSpec, measurements: pd.DataFrame, trials: pd.DataFrame
    ) -> None:
        self.spec = spec
        self.doublings = part_of_grid(spec.grid, ratio=2)
        self.whole = whole_steps(spec.grid)
        self.first_crossing = math.inf
        self.best = math.nan
        self._place = 0  # in the grid: of the step that is to be measured
        self._catching_up = False  # whether replacements are brought there, too
        self._compared = 0  # at so many steps of the grid all trials were compared with the goal
        self._measured: dict[TrialId, int] = {}  # the last step
        self._past: dict[TrialId, set[int]] = {}  # the steps
        self._diverged: dict[TrialId, int] = {}  # the step at which it was found
        self._reasons: dict[TrialId, StopReason] = {}
        self._unwritten: list[tuple[TrialId, int, Mapping[str, float]]] = []
        goal = spec.goal
        if len(measurements):
            values = with_goal(measurements, goal)[goal.metric].to_numpy()
            past = goal.reached(values)
            for (_, number, replicate, step), reached in zip(measurements.index, past, strict=True):
                self._note(TrialId(number, replicate), step, bool(reached))
            steps = measurements.index.get_level_values("step")
            self._note_best(values[steps == steps.max()])
        for (_, number, replicate), status, steps, reason, crossing in zip(
            trials.index,
            trials["status"],
            trials["steps_trained"],
            trials["stop_reason"],
            trials["first_crossing"],
            strict=True,
        ):
            trial = TrialId(number, replicate)
            if status == Status.INFEASIBLE:
                self._diverged[trial] = steps
            elif trial not in self._measured:  # whose measurements were not read
                self._note(trial, steps, past=False)
                if math.isfinite(crossing):
                    self._note(trial, int(crossing), past=True)
            self._reasons[trial] = StopReason(reason)

    @property
    def step(self) -> int:
        """The step of the grid that is being measured, or the last one that was."""
        return self.spec.grid[min(self._place, len(self.spec.grid) - 1)]

    @property
    def has_begun(self) -> bool:
        """Whether anything was measured."""
        return bool(self._measured or self._diverged)

    @property
    def steps(self) -> float:
        """The steps to target, once no trial can change them; NaN before."""
        known = math.isfinite(self.first_crossing) and not self.spec.rule.counts_survivors
        return self.first_crossing if known else math.nan

    def next(self, at: Mapping[TrialId, int]) -> Advance | None:
        """What is done next, until the stop rule is satisfied.

        Step by step of the grid, all trials that count there are measured. One that takes the place
        of a diverged one catches up from its beginning; each would pay for a whole pack, so they
        wait for one another until the next doubling of the steps, or until it depends on them
        whether the batch size is done.

        Args:
          at: the steps of the training states that are at hand, by trial.

        Returns:
          What is done; None where nothing is left to do.
        """
        grid = self.spec.grid
        while self._place < len(grid):
            step = grid[self._place]
            if not self._catching_up:
                if due := self._due(step, since=grid[max(self._place - 1, 0)]):
                    return self._advance(due, at)
                self._catching_up = self._must_compare(step)
            if self._catching_up:
                if due := self._due(step, since=_UNMEASURED):
                    return self._advance(due, at)
                self._compare()
                if self._is_finished(step):
                    return None
                self._catching_up = False
            self._place += 1
        return None

    def diverged(self, step: float = math.inf) -> set[TrialId]:
        """The trials that have diverged by the step."""
        return {trial for trial, found in self._diverged.items() if found <= step}

    def measured(self, trial: TrialId) -> int:
        """The last step at which a trial was measured; -1 before any."""
        return self._measured.get(trial, _UNMEASURED)

    def members(self, step: int) -> list[TrialId]:
        """F(step): the first N trials that have not diverged by the step."""
        members: list[TrialId] = []
        numbers = range(self.spec.trials + self.spec.max_infeasible)
        for trial in self.spec.candidates or map(TrialId, numbers):
            if self._diverged.get(trial, math.inf) > step:
                members.append(trial)
                if len(members) == self.spec.trials:
                    break
        return members

    def steps_to_target(self) -> float:
        """The steps to target of a finished batch size, by the rule that its stop rule goes by."""
        if not self.spec.rule.counts_survivors:
            return self.first_crossing
        return min(map(self.crossing, self.members(self.spec.grid[-1])), default=math.inf)

    def crossing(self, trial: TrialId) -> float:
        """The first step at which the trial itself was past the goal; inf for none."""
        return min(self._past.get(trial, ()), default=math.inf)

    def go_on(self, trials: Iterable[TrialId]) -> None:
        """Trials are at work: until they are concluded, they count as interrupted."""
        for trial in trials:
            self._reasons[trial] = StopReason.INTERRUPTED

    def record(
        self, step: int, values: Mapping[TrialId, Mapping[str, float]], diverged: Iterable[TrialId]
    ) -> dict[TrialId, Mapping[str, float]]:
        """Takes down the evaluations of trials at a step, and which of them have diverged there.

        Returns:
          What is kept: nothing of those that diverged.
        """
        goal = self.spec.goal
        found = np.array([row.get(goal.metric, math.nan) for row in values.values()])
        diverged = set(diverged)
        self._diverged |= dict.fromkeys(diverged, step)
        # An interruption in between must leave no trial measured whose row is not to be written.
        kept = {trial: row for trial, row in values.items() if trial not in diverged}
        self._unwritten += [(trial, step, row) for trial, row in kept.items()]
        for trial, past in zip(values, goal.reached(found), strict=True):
            if trial in kept:
                self._note(trial, step, bool(past))
        if step == max(self._measured.values(), default=0):
            self._note_best(found)
        return kept

    def conclude(self) -> None:
        """Says of every trial that was not concluded before why it stopped where it did."""
        enough = StopReason.FACTOR if self.spec.candidates else StopReason.BUDGET
        asked = set(self.spec.candidates) or self._measured.keys()
        for trial in (self._measured.keys() & asked) - self._diverged.keys():
            whole = self._measured[trial] == self.spec.grid[-1]
            reason = self._reasons.get(trial, StopReason.INTERRUPTED)
            # A budget that has grown since was not the whole one.
            if reason == StopReason.INTERRUPTED or (reason == StopReason.BUDGET and not whole):
                self._reasons[trial] = enough if whole else self.spec.rule.reason

    def unwritten(self) -> pd.DataFrame:
        """The measurements that `written` was not told of yet."""
        keys = [(self.spec.batch_size, *trial, step) for trial, step, _ in self._unwritten]
        rows = [values for _, _, values in self._unwritten]
        if not rows:
            return pd.DataFrame()
        return pd.DataFrame(rows, pd.MultiIndex.from_tuples(keys, names=MEASUREMENT_INDEX))

    def written(self) -> None:
        """All that `unwritten` has handed out is on disk."""
        self._unwritten = []

    def trials(
        self,
        hyperparameters: Callable[[TrialId], Mapping[str, float]],
        origin: Callable[[TrialId], Origin],
    ) -> pd.DataFrame:
        """The table of the trials that have been at work; empty where there are none."""
        rows = {}
        for trial in sorted({*self._measured, *self._diverged}):
            infeasible = trial in self._diverged
            reason = self._reasons.get(trial, StopReason.INTERRUPTED)
            done = Status.INCOMPLETE if reason == StopReason.INTERRUPTED else Status.COMPLETE
            rows[self.spec.batch_size, *trial] = {
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

    def _due(self, step: int, *, since: int) -> list[TrialId]:
        """The trials that have to be measured at the step, were not, and were at step `since`."""
        return [
            trial
            for trial in self.members(step)
            if (step == 0 or since <= self.measured(trial))
            and self.measured(trial) < step
            and self.spec.rule.wants(self._counted_crossing(trial), step)
        ]

    def _advance(self, due: list[TrialId], at: Mapping[TrialId, int]) -> Advance:
        """The next evaluation of those that are furthest behind.

        What was measured before is passed over in one go.
        """
        since = min(at.get(trial, _UNMEASURED) for trial in due)
        group = [trial for trial in due if at.get(trial, _UNMEASURED) == since]
        known = min(map(self.measured, group))
        to = known if known > max(since, 0) else next(s for s in self.spec.grid if s > known)
        return Advance(group, since, to, [trial for trial in group if self.measured(trial) < to])

    def _must_compare(self, step: int) -> bool:
        """Whether replacements have to catch up now."""
        if step in self.doublings or step == self.spec.grid[-1]:
            return True
        if math.isinf(self.first_crossing):
            return any(step in self._past.get(trial, ()) for trial in self.members(step))
        return self._is_finished(step)

    def _compare(self) -> None:
        """Looks for the first crossing, now that every trial has been measured up to here."""
        steps = set(self.spec.grid[self._compared : self._place + 1])
        self._compared = self._place + 1
        past = {step for steps_past in self._past.values() for step in steps_past}
        for step in sorted(past & steps):
            if step < self.first_crossing and any(
                step in self._past.get(trial, ()) for trial in self.members(step)
            ):
                self.first_crossing = step

    def _is_finished(self, step: int) -> bool:
        crossings = map(self._counted_crossing, self.members(step))
        return self.spec.rule.is_satisfied(step, self.first_crossing, crossings, self.spec.grid)

    def _counted_crossing(self, trial: TrialId) -> float:
        """The first step at which the trial was past the goal, of those at which it counts.

        One that takes the place of a trial that diverges later counts only from then on: were it
        stopped at an earlier crossing of its own, it would not be known whether it is past there.
        """
        past = self._past.get(trial, set())
        if trial.number >= self.spec.trials and not self.spec.candidates:
            past = {step for step in past if trial in self.members(step)}
        return min(past, default=math.inf)

    def _note(self, trial: TrialId, step: int, past: bool) -> None:
        self._measured[trial] = max(step, self.measured(trial))
        if past:
            self._past.setdefault(trial, set()).add(step)

    def _note_best(self, values: Float[np.ndarray, " trials"]) -> None:
        if np.isfinite(values).any():
            smaller = self.spec.goal.mode == "min"
            self.best = float(np.nanmin(values) if smaller else np.nanmax(values))
