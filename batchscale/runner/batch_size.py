"""The host loop of one batch size: what the ledger says is next is done, and written down."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Protocol, runtime_checkable

import numpy as np

from batchscale.engine.engine import Engine
from batchscale.engine.layout import Layout
from batchscale.engine.packs import HostStates, Pack, TrialId, Values, stacked
from batchscale.records import Origin, StudyFolder
from batchscale.runner import room
from batchscale.runner.ledger import Advance, Ledger
from batchscale.runner.progress import Progress, TrialEvaluation


@dataclasses.dataclass(frozen=True)
class Pauses:
    """How long passes between two writes of tables and states.

    Attributes:
      seconds: at least so long: a kill costs no more.
      times: at least so many times the duration of the last write, so that writing takes no more
        than a twentieth of the time.
    """

    seconds: float = 5.0
    times: float = 20.0


PAUSES = Pauses()
"""Of every study."""


@runtime_checkable
class PlannedTrials(Protocol):
    """The trials of a batch size: in a plan on disk before they are run."""

    def plan(self, trials: Sequence[TrialId]) -> None:
        """Makes sure that the plan on disk has these trials."""
        ...

    def hyperparameters(self, trial: TrialId) -> Mapping[str, float]:
        """Those of a trial that is planned."""
        ...

    def origin(self, trial: TrialId) -> Origin:
        """Why a trial that is planned is run."""
        ...


@dataclasses.dataclass
class _Cohort:
    """Packs that are at the same step."""

    step: int
    packs: list[Pack]

    @property
    def ids(self) -> list[TrialId]:
        return [trial for pack in self.packs for trial in pack.trials]


class BatchSizeRun:
    """The run in progress at one batch size.

    Args:
      ledger: what is asked, what is known, and what follows.
      layout: how trials are packed.
      engine: trains and measures.
      folder: where it is written down.
      trials: that may be run.
      report: told of the progress.
      begins: called before anything is trained or measured; not where nothing is left to do.
      pauses: between two writes; `PAUSES` by default.
      held: entered for each action, which is finished before a signal ends the run.
      anew: whether what is in the folder is measured again; it stays until something was.
    """

    def __init__(
        self,
        ledger: Ledger,
        layout: Layout,
        engine: Engine,
        folder: StudyFolder,
        *,
        trials: PlannedTrials,
        report: Callable[[Progress], None],
        begins: Callable[[], None] = lambda: None,
        pauses: Pauses | None = None,
        held: Callable[[], AbstractContextManager[None]] = contextlib.nullcontext,
        anew: bool = False,
    ) -> None:
        self.layout = layout
        self._ledger = ledger
        self._engine = engine
        self._folder = folder
        self._trials = trials
        self._report = report
        self._begins: Callable[[], None] | None = begins
        self._pauses = pauses or PAUSES
        self._held = held
        self._anew = anew
        self._cohorts: list[_Cohort] = []
        self._moving = False  # states and tables do not say the same: no time to write states
        self._began = self._written = time.monotonic()
        self._write_seconds = 0.0

    @property
    def batch_size(self) -> int:
        """Examples a step."""
        return self._ledger.spec.batch_size

    @property
    def has_begun(self) -> bool:
        """Whether anything was measured: its layout is kept then."""
        return self._ledger.has_begun

    def values(self, trials: Sequence[TrialId]) -> Values:
        """The hyperparameters of trials, which are planned if they are not."""
        self._trials.plan(trials)
        return stacked([self._trials.hyperparameters(trial) for trial in trials])

    def run(self, following: BatchSizeRun | None = None) -> None:
        """Trains until the stop rule is satisfied; what was done before is not done again.

        Args:
          following: the run after this one, whose programs are compiled meanwhile.
        """
        self._began = self._written = time.monotonic()
        room.warn(self._folder.folder, self._ledger.spec.trials * self._engine.state_bytes)
        for run in (self, following):
            if run is not None and not run.has_begun:
                self._engine.compile_ahead(run.batch_size, run.layout)
        self._take_up()
        try:
            while (action := self._ledger.next(self._places())) is not None:
                with self._held():
                    self._carry_out(action)
        except BaseException as error:
            lost = (RuntimeError, OSError) if isinstance(error, OSError) else (RuntimeError,)
            with contextlib.suppress(*lost):  # what stopped us may have taken the states, or a disk
                self._write()
            raise
        self._ledger.conclude()
        self._write(final=True)
        self._tell(self._ledger.step, finished=True)

    def _places(self) -> dict[TrialId, int]:
        """The steps of the training states."""
        return {trial: cohort.step for cohort in self._cohorts for trial in cohort.ids}

    def _take_up(self) -> None:
        """Takes up the training states of an unfinished run."""
        stored = None if self._anew else self._folder.read_state(self.batch_size)
        if stored is None:
            return
        arrays, about = stored
        for name, cohort in about["cohorts"].items():
            ids = [TrialId(*trial) for trial in cohort["trials"]]
            leaves = [arrays[f"{name}/{leaf}"] for leaf in range(cohort["leaves"])]
            self._cohorts.append(_Cohort(cohort["step"], self._packed(HostStates(ids, leaves))))

    def _carry_out(self, action: Advance) -> None:
        """Advances trials by one evaluation."""
        if self._begins is not None:
            self._begins()
            self._begins = None
        self._moving = True
        cohort = self._cohort(action)
        self._ledger.go_on(action.trials)
        if action.to > cohort.step:
            self._engine.advance(
                cohort.packs,
                batch_size=self.batch_size,
                layout=self.layout,
                step=cohort.step,
                to=action.to,
            )
            cohort.step = action.to
        measured = self._measure(cohort, action.unmeasured) if action.unmeasured else {}
        self._merge()
        self._moving = False
        self._tell(self._ledger.step, functools.partial(self._told, action.to, measured))
        pause = max(self._pauses.seconds, self._pauses.times * self._write_seconds)
        if time.monotonic() - self._written > pause:
            self._write()

    def _cohort(self, action: Advance) -> _Cohort:
        """The cohort of these trials, without the lanes of others where that saves a pack."""
        if action.since < 0:
            packs = self._start(action.trials)
            self._cohorts.append(_Cohort(0, packs))
            return self._cohorts[-1]
        (cohort,) = [cohort for cohort in self._cohorts if cohort.step == action.since]
        if -(-len(action.trials) // self._width) < len(cohort.packs):
            cohort.packs = self._packed(self._engine.unpack(cohort.packs).only(action.trials))
        return cohort

    @property
    def _width(self) -> int:
        """The trials of a full pack."""
        return self._engine.mesh.size * self.layout.lanes

    def _start(self, trials: Sequence[TrialId]) -> list[Pack]:
        values = self.values(trials)
        return self._engine.start(trials, values, batch_size=self.batch_size, layout=self.layout)

    def _measure(
        self, cohort: _Cohort, trials: list[TrialId]
    ) -> dict[TrialId, Mapping[str, float]]:
        """Evaluates a cohort's trials: the goal's split always, the others now and then."""
        ledger, spec = self._ledger, self._ledger.spec
        goal = spec.goal
        others = [name for name in self._engine.splits if name != goal.split]
        now = [name for name in others if cohort.step in spec.others.get(name, ())]
        # Who was past the goal before is likely to be so again: it is not worth a try.
        short = {trial for trial in trials if math.isinf(ledger.crossing(trial))}
        if not self._engine.bounded or cohort.step in ledger.whole:
            short = set()
        found = self._engine.measure(
            cohort.packs,
            [goal.split, *now],
            layout=self.layout,
            trials=trials,
            bounded=() if spec.exact else short,
        )
        past = {
            trial
            for trial, row in found.rows.items()
            if goal.reached(np.asarray(row.get(goal.metric, math.nan)))
        }
        # Where bounds would have done, nothing else is heard: so they change no trial.
        heard = [trial for trial in found.not_finite if trial in past or trial not in short]
        heard = [trial for trial in heard if trial not in found.diverged]
        if heard:
            self._refuse_metrics({name for t in heard for name in found.not_finite[t]})
            found.diverged.update(heard)
        crossing = [
            trial
            for trial in found.rows
            if trial in past - found.diverged and math.isinf(ledger.crossing(trial))
        ]
        if crossing and now != others:
            left = [name for name in others if name not in now]
            more = self._engine.measure(cohort.packs, left, layout=self.layout, trials=crossing)
            for trial in crossing:
                found.rows[trial] |= more.rows[trial]
        # Only now, and all at once: an interruption before leaves the step unmeasured.
        return ledger.record(cohort.step, found.rows, found.diverged)

    def _refuse_metrics(self, names: set[str]) -> None:
        """Refuses metrics that are not finite before the first step: that is no divergence.

        Raises:
          ValueError: there is one that is so of every trial of a pack.
        """
        split = self._ledger.spec.goal.split
        pack, *_ = self._start(self._ledger.members(-1)[: self._width])
        found = self._engine.measure([pack], [split], layout=self.layout)
        always = names.intersection(*(found.not_finite.get(trial, ()) for trial in pack.trials))
        if always:
            raise ValueError(
                f"metrics: the sum of {', '.join(map(repr, sorted(always)))} over the split "
                f"{split!r} is not finite, already with the parameters of `init`, so that it does "
                "not tell which trials diverge. Look for values in the data that are not finite, "
                "for a division by 0 or a logarithm of it in the metric; mask such examples, or "
                "leave the metric out."
            )

    def _merge(self) -> None:
        """Puts cohorts that have come to the same step together, and drops those that diverged."""
        gone = self._ledger.diverged
        self._cohorts = [c for c in self._cohorts if not gone(c.step).issuperset(c.ids)]
        for step in {cohort.step for cohort in self._cohorts}:
            same = [cohort for cohort in self._cohorts if cohort.step == step]
            if len(same) > 1:
                states = HostStates.join([self._engine.unpack(part.packs) for part in same])
                alive = [trial for trial in states.ids if trial not in gone(step)]
                same[0].packs = self._packed(states.only(alive))
                self._cohorts = [c for c in self._cohorts if c is same[0] or c.step != step]

    def _packed(self, states: HostStates) -> list[Pack]:
        return self._engine.pack(states, self.values(states.ids), layout=self.layout)

    def _write(self, *, final: bool = False) -> None:
        """Writes down what is new: rows, who is where, and states, which count all at once."""
        began = time.monotonic()
        trials = self._ledger.trials(self._trials.hyperparameters, self._trials.origin)
        rows = self._ledger.unwritten()
        if self._anew and not len(rows):
            return  # what was measured stays until there is something in its place
        with self._folder.together():
            if self._anew:
                self._folder.drop([self.batch_size])
                self._anew = False
            self._folder.append_measurements(rows)
            if len(trials):
                self._folder.write_trials(self.batch_size, trials)
            if final:
                self._folder.drop_state(self.batch_size)
            elif self._cohorts and not self._moving:
                self._folder.write_state(self.batch_size, *self._stored())
        self._ledger.written()
        self._written = time.monotonic()
        self._write_seconds = self._written - began

    def _stored(self) -> tuple[dict[str, np.ndarray], dict[str, object]]:
        """The states of the trials that go on, as `StudyFolder.write_state` takes them."""
        arrays: dict[str, np.ndarray] = {}
        cohorts = {}
        for number, cohort in enumerate(self._cohorts):
            gone = self._ledger.diverged(cohort.step)
            alive = [
                trial
                for trial in cohort.ids
                # A trial that was done rode along unmeasured: its state is ahead of its rows.
                if trial not in gone and self._ledger.measured(trial) >= cohort.step
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

    def _told(
        self, step: int, measured: Mapping[TrialId, Mapping[str, float]]
    ) -> tuple[TrialEvaluation, ...]:
        return tuple(
            TrialEvaluation(
                folder=self._folder.folder,
                batch_size=self.batch_size,
                trial=trial.number,
                replicate=trial.replicate,
                step=step,
                values={name: float(value) for name, value in values.items()},
                hyperparameters={
                    name: float(value)
                    for name, value in self._trials.hyperparameters(trial).items()
                },
            )
            for trial, values in measured.items()
        )

    def _tell(
        self,
        step: int,
        measured: Callable[[], tuple[TrialEvaluation, ...]] = tuple,
        *,
        finished: bool = False,
    ) -> None:
        ledger = self._ledger
        self._report(
            Progress(
                batch_size=self.batch_size,
                step=step,
                max_steps=ledger.spec.grid[-1],
                best=ledger.best,
                steps=ledger.steps_to_target() if finished else ledger.steps,
                trials=len(ledger.members(step)),
                infeasible=len(ledger.diverged()),
                seconds=time.monotonic() - self._began,
                finished=finished,
                measured=measured,
            )
        )
