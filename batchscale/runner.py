"""The host loop of one batch size: which trials run, how far, and what is written down.

Everything that is decided follows from the tables alone: who has been measured at which step, who
was past the goal, who has diverged. A run that was killed, one that is extended and one that was
never touched therefore take the same path; the training states are only a way not to start anew.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable

import numpy as np
import pandas as pd

from batchscale.engine import (
    Engine,
    HostStates,
    HyperparametersOf,
    Pack,
    TrialId,
)
from batchscale.layout import Layout
from batchscale.metrics import Goal
from batchscale.records import (
    MEASUREMENT_INDEX,
    TRIAL_INDEX,
    Origin,
    Records,
    Status,
    StopReason,
)
from batchscale.stopping import StopRule, sparse_grid

# Tables and states are written when this many seconds, and this many times the duration of the
# last write, have passed: a kill costs seconds, and writing no more than a twentieth of the time.
_WRITE_SECONDS = 5.0
_WRITE_SHARE = 20.0


@dataclasses.dataclass(frozen=True)
class Task:
    """What is asked of one batch size.

    Attributes:
      batch_size: examples a step.
      trials: N, the feasible trials wanted.
      max_infeasible: how many diverged trials are replaced at most.
      grid: the steps of evaluation, from 0 to the budget.
      goal: what is looked for.
      rule: when trials stop.
      layout: how trials are packed.
    """

    batch_size: int
    trials: int
    max_infeasible: int
    grid: list[int]
    goal: Goal
    rule: StopRule
    layout: Layout


@dataclasses.dataclass(frozen=True)
class Progress:
    """What a progress callback is told after every evaluation.

    Attributes:
      batch_size: the batch size that is running.
      step: the step that was evaluated.
      max_steps: the last step that may have to be.
      best: the best value of the goal's metric there, NaN if nothing is finite.
      steps: the steps to target, once they are known; inf if the goal was not reached.
      trials: feasible trials at this step.
      infeasible: trials that have diverged.
      seconds: since this batch size began, in this process.
      finished: whether the batch size is done.
    """

    batch_size: int
    step: int
    max_steps: int
    best: float
    steps: float
    trials: int
    infeasible: int
    seconds: float
    finished: bool


@dataclasses.dataclass
class _Cohort:
    """Packs that are at the same step."""

    step: int
    packs: list[Pack]

    @property
    def ids(self) -> list[TrialId]:
        return [trial for pack in self.packs for trial in pack.ids if trial is not None]


class BatchSizeRun:
    """The run in progress at one batch size.

    Args:
      task: what is asked.
      engine: trains and measures.
      records: where it is written down.
      measurements: the rows of this batch size that were written before.
      trials: likewise.
      hyperparameters: those of a trial; writes it into the plan first, if it is not there.
      origin: why a trial is run.
      report: told of the progress.
    """

    def __init__(
        self,
        task: Task,
        engine: Engine,
        records: Records,
        *,
        measurements: pd.DataFrame,
        trials: pd.DataFrame,
        hyperparameters: HyperparametersOf,
        origin: Callable[[TrialId], Origin],
        report: Callable[[Progress], None],
    ) -> None:
        self._task = task
        self._engine = engine
        self._records = records
        self._hyperparameters = hyperparameters
        self._origin = origin
        self._report = report
        self._sparse = sparse_grid(task.grid)
        self._split = task.goal.metric.partition("/")[0]
        self._cohorts: list[_Cohort] = []
        # What the tables say of each trial: the last step at which it was measured, the steps at
        # which it was past the goal, the step at which it was found diverged, why it stopped.
        self._measured: dict[TrialId, int] = {}
        self._past: dict[TrialId, set[int]] = {}
        self._diverged: dict[TrialId, int] = {}
        self._reasons: dict[TrialId, StopReason] = {}
        self._moving = False  # states and tables do not say the same: no time to write states
        self._first_crossing = math.inf
        self._best = math.nan
        self._unwritten: list[tuple[TrialId, int, dict[str, float]]] = []
        self._began = self._written = time.monotonic()
        self._write_seconds = 0.0
        self._read(measurements, trials)

    def run(self, following: BatchSizeRun | None = None) -> None:
        """Trains until the stop rule is satisfied; what was done before is not done again.

        Args:
          following: the run after this one, whose programs are compiled meanwhile.
        """
        self._began = self._written = time.monotonic()
        for run in (self, following):
            if run is not None and run._behind(0, -1):
                self._engine.compile_ahead(run._task.batch_size, run._task.layout)
        step = settled = -1
        try:
            for index, step in enumerate(self._task.grid):
                while behind := self._behind(step, self._task.grid[max(index - 1, 0)]):
                    self._bring(behind, step)
                if not self._must_settle(step):
                    continue
                while behind := self._behind(step, -1):
                    self._bring(behind, step)
                since = [s for s in self._task.grid[: index + 1] if s > settled]
                self._first_crossing = min(self._first_crossing, self._crossing_of_members(since))
                settled = step
                if self._finished(step):
                    break
        except BaseException:
            with contextlib.suppress(RuntimeError):  # what stopped us may have taken the states
                self._write()
            raise
        self._conclude()
        self._write(final=True)
        self._tell(step, finished=True)

    def _read(self, measurements: pd.DataFrame, trials: pd.DataFrame) -> None:
        """Takes up what the tables say, and the training states of an unfinished run."""
        if len(measurements):
            past = self._task.goal.reached(measurements[self._task.goal.metric].to_numpy())
            for (_, number, replicate, step), reached in zip(measurements.index, past, strict=True):
                self._note(TrialId(number, replicate), step, bool(reached))
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
        stored = self._records.read_state(self._task.batch_size)
        if stored is not None:
            arrays, about = stored
            for name, cohort in about["cohorts"].items():
                ids = [TrialId(*trial) for trial in cohort["trials"]]
                leaves = [arrays[f"{name}/{leaf}"] for leaf in range(cohort["leaves"])]
                packs = self._engine.pack(
                    HostStates(ids, leaves), self._hyperparameters, layout=self._task.layout
                )
                self._cohorts.append(_Cohort(cohort["step"], packs))

    def _note(self, trial: TrialId, step: int, reached: bool) -> None:
        self._measured[trial] = max(step, self._measured.get(trial, -1))
        if reached:
            self._past.setdefault(trial, set()).add(step)

    def _crossing(self, trial: TrialId) -> float:
        """The first step at which the trial itself was past the goal."""
        return min(self._past.get(trial, ()), default=math.inf)

    def _members(self, step: int) -> list[TrialId]:
        """F(step): the first N trials that have not diverged by the step."""
        members: list[TrialId] = []
        for number in range(self._task.trials + self._task.max_infeasible):
            trial = TrialId(number)
            if self._diverged.get(trial, math.inf) > step:
                members.append(trial)
                if len(members) == self._task.trials:
                    break
        return members

    def _behind(self, step: int, pace: int) -> list[TrialId]:
        """The trials that have to be measured at the step, were not, and were at step `pace`."""
        return [
            trial
            for trial in self._members(step)
            if (step == 0 or pace <= self._measured.get(trial, -1))
            and self._measured.get(trial, -1) < step
            and self._wanted(trial, step)
        ]

    def _must_settle(self, step: int) -> bool:
        """Whether replacements have to catch up now.

        Each of them would pay for a whole pack, so they wait for one another until the next step
        of the sparse grid, or until it depends on them whether the batch size is done.
        """
        if step in self._sparse or step == self._task.grid[-1]:
            return True
        if math.isinf(self._first_crossing):
            return any(step in self._past.get(trial, ()) for trial in self._members(step))
        return self._finished(step)

    def _crossing_of_members(self, steps: list[int]) -> float:
        """The first of the steps at which a trial that counted then was past the goal."""
        past = {step for steps_past in self._past.values() for step in steps_past}
        return min(
            (
                step
                for step in steps
                if step in past
                and any(step in self._past.get(trial, ()) for trial in self._members(step))
            ),
            default=math.inf,
        )

    def _wanted(self, trial: TrialId, step: int) -> bool:
        """Under the rule `all`, a trial that has reached the goal is done."""
        return self._task.rule.kind != "all" or self._crossing(trial) >= step

    def _finished(self, step: int) -> bool:
        rule = self._task.rule
        if rule.kind == "all":
            return not any(self._wanted(trial, step + 1) for trial in self._members(step))
        if math.isinf(self._first_crossing):
            return False
        return step >= rule.horizon(int(self._first_crossing), self._task.grid)

    def _bring(self, behind: list[TrialId], step: int) -> None:
        """Advances, by one evaluation, those of the trials that are furthest behind."""
        self._moving = True
        at = {trial: cohort.step for cohort in self._cohorts for trial in cohort.ids}
        lowest = min(at.get(trial, -1) for trial in behind)
        group = [trial for trial in behind if at.get(trial, -1) == lowest]
        cohort = self._cohort(group, lowest)
        known = min(self._measured.get(trial, -1) for trial in group)
        # What was measured before is passed over in one go.
        to = known if known > cohort.step else next(s for s in self._task.grid if s > known)
        for trial in group:
            self._reasons[trial] = StopReason.INTERRUPTED
        if to > cohort.step:
            self._engine.advance(
                cohort.packs,
                batch_size=self._task.batch_size,
                layout=self._task.layout,
                step=cohort.step,
                to=to,
            )
            cohort.step = to
        fresh = [trial for trial in group if self._measured.get(trial, -1) < to]
        if fresh:
            self._measure(cohort, fresh)
        self._merge()
        self._moving = False
        self._tell(step)
        pause = max(_WRITE_SECONDS, _WRITE_SHARE * self._write_seconds)
        if time.monotonic() - self._written > pause:
            self._write()

    def _cohort(self, group: list[TrialId], step: int) -> _Cohort:
        """The cohort of these trials, without the lanes of others where that saves a pack."""
        layout = self._task.layout
        if step < 0:
            packs = self._engine.start(
                group, self._hyperparameters, batch_size=self._task.batch_size, layout=layout
            )
            self._cohorts.append(_Cohort(0, packs))
            return self._cohorts[-1]
        (cohort,) = [cohort for cohort in self._cohorts if cohort.step == step]
        if -(-len(group) // (self._engine.mesh.size * layout.lanes)) < len(cohort.packs):
            self._repack(cohort, self._engine.unpack(cohort.packs).only(group))
        return cohort

    def _measure(self, cohort: _Cohort, trials: list[TrialId]) -> None:
        """Evaluates a cohort's trials: the goal's split always, the others now and then."""
        goal, layout, step = self._task.goal, self._task.layout, cohort.step
        others = [split for split in self._engine.splits if split != self._split]
        everything = step in self._sparse
        splits = [self._split, *others] if everything else [self._split]
        values, diverged = self._engine.measure(cohort.packs, splits, layout=layout)
        alive = [trial for trial in trials if trial not in diverged]
        best = np.array([values[trial][goal.metric] for trial in alive])
        reached = dict(zip(alive, goal.reached(best).tolist(), strict=True))
        crossing = [t for t in alive if reached[t] and math.isinf(self._crossing(t))]
        if crossing and others and not everything:
            packs = [pack for pack in cohort.packs if set(pack.ids) & set(crossing)]
            more, _ = self._engine.measure(packs, others, layout=layout)
            for trial in crossing:
                values[trial] |= more[trial]
        # Only now, and all at once: an interruption before leaves the step unmeasured.
        self._diverged |= {trial: step for trial in trials if trial in diverged}
        for trial in alive:
            self._note(trial, step, reached[trial])
            self._unwritten.append((trial, step, values[trial]))
        if step == max(self._measured.values(), default=0) and np.isfinite(best).any():
            self._best = float(np.nanmin(best) if goal.mode == "min" else np.nanmax(best))

    def _merge(self) -> None:
        """Puts cohorts that have come to the same step together, and drops those that diverged."""
        self._cohorts = [c for c in self._cohorts if not self._diverged.keys() >= set(c.ids)]
        for step in {cohort.step for cohort in self._cohorts}:
            same = [cohort for cohort in self._cohorts if cohort.step == step]
            if len(same) > 1:
                states = HostStates.join([self._engine.unpack(part.packs) for part in same])
                alive = [trial for trial in states.ids if trial not in self._diverged]
                self._repack(same[0], states.only(alive))
                self._cohorts = [c for c in self._cohorts if c is same[0] or c.step != step]

    def _repack(self, cohort: _Cohort, states: HostStates) -> None:
        cohort.packs = self._engine.pack(states, self._hyperparameters, layout=self._task.layout)

    def _conclude(self) -> None:
        """Says of every trial that was not concluded before why it stopped where it did."""
        ended = {
            "first": StopReason.FIRST_CROSSING,
            "all": StopReason.OWN_CROSSING,
            "factor": StopReason.FACTOR,
            "budget": StopReason.BUDGET,
        }[self._task.rule.kind]
        for trial in self._measured.keys() - self._diverged.keys():
            if self._reasons.get(trial, StopReason.INTERRUPTED) == StopReason.INTERRUPTED:
                whole = self._measured[trial] == self._task.grid[-1]
                self._reasons[trial] = StopReason.BUDGET if whole else ended

    def _write(self, *, final: bool = False) -> None:
        """Writes down what is new: first the rows, then who is where, then the states."""
        began = time.monotonic()
        batch_size = self._task.batch_size
        if self._unwritten:
            keys = [(batch_size, *trial, step) for trial, step, _ in self._unwritten]
            index = pd.MultiIndex.from_tuples(keys, names=MEASUREMENT_INDEX)
            frame = pd.DataFrame([values for _, _, values in self._unwritten], index=index)
            self._records.append_measurements(frame)
            self._unwritten = []
        if self._measured or self._diverged:
            self._records.write_trials(batch_size, self._trials())
        if final:
            self._records.drop_state(batch_size)
        elif self._cohorts and not self._moving:
            self._records.write_state(batch_size, *self._stored())
        self._written = time.monotonic()
        self._write_seconds = self._written - began

    def _trials(self) -> pd.DataFrame:
        rows = {}
        for trial in sorted({*self._measured, *self._diverged}):
            infeasible = trial in self._diverged
            reason = self._reasons.get(trial, StopReason.INTERRUPTED)
            done = Status.INCOMPLETE if reason == StopReason.INTERRUPTED else Status.COMPLETE
            rows[self._task.batch_size, *trial] = {
                **self._hyperparameters(trial),
                "origin": self._origin(trial),
                "status": Status.INFEASIBLE if infeasible else done,
                "steps_trained": (self._diverged if infeasible else self._measured)[trial],
                "stop_reason": StopReason.DIVERGED if infeasible else reason,
                "first_crossing": self._crossing(trial),
            }
        index = pd.MultiIndex.from_tuples(list(rows), names=TRIAL_INDEX)
        return pd.DataFrame(list(rows.values()), index=index)

    def _stored(self) -> tuple[dict[str, np.ndarray], dict[str, object]]:
        """The states of the trials that go on, as `Records.write_state` takes them."""
        arrays: dict[str, np.ndarray] = {}
        cohorts = {}
        for number, cohort in enumerate(self._cohorts):
            alive = [
                trial
                for trial in cohort.ids
                # A trial that was done rode along unmeasured: its state is ahead of its rows.
                if trial not in self._diverged and self._measured.get(trial, -1) >= cohort.step
            ]
            if alive:
                leaves = self._engine.unpack(cohort.packs).only(alive).leaves
                arrays |= {f"{number}/{i}": leaf for i, leaf in enumerate(leaves)}
                cohorts[str(number)] = {
                    "step": cohort.step,
                    "trials": [list(trial) for trial in alive],
                    "leaves": len(leaves),
                }
        return arrays, {"cohorts": cohorts}

    def _tell(self, step: int, *, finished: bool = False) -> None:
        known = finished or math.isfinite(self._first_crossing)
        self._report(
            Progress(
                batch_size=self._task.batch_size,
                step=step,
                max_steps=self._task.grid[-1],
                best=self._best,
                steps=self._first_crossing if known else math.nan,
                trials=len(self._members(step)),
                infeasible=len(self._diverged),
                seconds=time.monotonic() - self._began,
                finished=finished,
            )
        )
