"""The host loop of one batch size: which trials run, how far, and what is written down."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable

import numpy as np

from batchscale.engine.engine import Engine
from batchscale.engine.layout import Layout
from batchscale.engine.packs import HostStates, HyperparametersOf, Pack, TrialId, unpack
from batchscale.records import Origin, Records
from batchscale.runner.ledger import Ledger

# Tables and states are written when this many seconds, and this many times the duration of the
# last write, have passed: a kill costs seconds, and writing no more than a twentieth of the time.
_WRITE_SECONDS = 5.0
_WRITE_SHARE = 20.0


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
        return [trial for pack in self.packs for trial in pack.trials]


class BatchSizeRun:
    """The run in progress at one batch size.

    Args:
      ledger: what is asked, and what is known before.
      layout: how trials are packed.
      engine: trains and measures.
      records: where it is written down.
      hyperparameters: those of a trial; writes it into the plan first, if it is not there.
      origin: why a trial is run.
      report: told of the progress.
      begins: called before anything is trained or measured; not where nothing is left to do.
    """

    def __init__(
        self,
        ledger: Ledger,
        layout: Layout,
        engine: Engine,
        records: Records,
        *,
        hyperparameters: HyperparametersOf,
        origin: Callable[[TrialId], Origin],
        report: Callable[[Progress], None],
        begins: Callable[[], None] = lambda: None,
    ) -> None:
        self._ledger = ledger
        self._batch_size = ledger.question.batch_size
        self._layout = layout
        self._engine = engine
        self._records = records
        self._hyperparameters = hyperparameters
        self._origin = origin
        self._report = report
        self._begins: Callable[[], None] | None = begins
        self._cohorts: list[_Cohort] = []
        self._moving = False  # states and tables do not say the same: no time to write states
        self._began = self._written = time.monotonic()
        self._write_seconds = 0.0

    @property
    def batch_size(self) -> int:
        """Examples a step."""
        return self._batch_size

    @property
    def has_begun(self) -> bool:
        """Whether anything was measured: its layout is settled then."""
        return self._ledger.has_begun

    def settle(self, settle: Callable[[Layout, HyperparametersOf], Layout]) -> Layout:
        """Settles the layout, before the first step."""
        self._layout = settle(self._layout, self._hyperparameters)
        return self._layout

    def run(self, following: BatchSizeRun | None = None) -> None:
        """Trains until the stop rule is satisfied; what was done before is not done again.

        Args:
          following: the run after this one, whose programs are compiled meanwhile.
        """
        self._began = self._written = time.monotonic()
        for run in (self, following):
            if run is not None and run._ledger.behind(0, -1):
                self._engine.compile_ahead(run._batch_size, run._layout)
        self._take_up()
        grid, ledger = self._ledger.question.grid, self._ledger
        step = settled = -1
        try:
            for index, step in enumerate(grid):
                while behind := ledger.behind(step, grid[max(index - 1, 0)]):
                    self._bring(behind, step)
                if not ledger.must_settle(step):
                    continue
                while behind := ledger.behind(step, -1):
                    self._bring(behind, step)
                ledger.settle(s for s in grid[: index + 1] if s > settled)
                settled = step
                if ledger.finished(step):
                    break
        except BaseException:
            with contextlib.suppress(RuntimeError):  # what stopped us may have taken the states
                self._write()
            raise
        ledger.conclude()
        self._write(final=True)
        self._tell(step, finished=True)

    def _take_up(self) -> None:
        """Takes up the training states of an unfinished run."""
        stored = self._records.read_state(self._batch_size)
        if stored is None:
            return
        arrays, about = stored
        for name, cohort in about["cohorts"].items():
            ids = [TrialId(*trial) for trial in cohort["trials"]]
            leaves = [arrays[f"{name}/{leaf}"] for leaf in range(cohort["leaves"])]
            self._cohorts.append(_Cohort(cohort["step"], self._packed(HostStates(ids, leaves))))

    def _bring(self, behind: list[TrialId], step: int) -> None:
        """Advances, by one evaluation, those of the trials that are furthest behind."""
        if self._begins is not None:
            self._begins()
            self._begins = None
        self._moving = True
        at = {trial: cohort.step for cohort in self._cohorts for trial in cohort.ids}
        lowest = min(at.get(trial, -1) for trial in behind)
        group = [trial for trial in behind if at.get(trial, -1) == lowest]
        cohort = self._cohort(group, lowest)
        to = self._ledger.next_step(group, cohort.step)
        self._ledger.go_on(group)
        if to > cohort.step:
            self._engine.advance(
                cohort.packs,
                batch_size=self._batch_size,
                layout=self._layout,
                step=cohort.step,
                to=to,
            )
            cohort.step = to
        fresh = [trial for trial in group if self._ledger.measured(trial) < to]
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
        if step < 0:
            packs = self._engine.start(
                group, self._hyperparameters, batch_size=self._batch_size, layout=self._layout
            )
            self._cohorts.append(_Cohort(0, packs))
            return self._cohorts[-1]
        (cohort,) = [cohort for cohort in self._cohorts if cohort.step == step]
        if -(-len(group) // (self._engine.mesh.size * self._layout.lanes)) < len(cohort.packs):
            cohort.packs = self._packed(unpack(cohort.packs).only(group))
        return cohort

    def _measure(self, cohort: _Cohort, trials: list[TrialId]) -> None:
        """Evaluates a cohort's trials: the goal's split always, the others now and then."""
        ledger, question = self._ledger, self._ledger.question
        goal = question.goal
        split = goal.metric.partition("/")[0]
        others = [name for name in self._engine.splits if name != split]
        now = [name for name in others if cohort.step in question.others.get(name, ())]
        # Who was past the goal before is likely to be so again: it is not worth a try.
        short = {trial for trial in trials if math.isinf(ledger.crossing(trial))}
        if not self._engine.bounded or cohort.step in ledger.rare:
            short = set()
        found = self._engine.measure(
            cohort.packs,
            [split, *now],
            layout=self._layout,
            trials=trials,
            bounded=() if question.exact else short,
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
            self._refuse_metrics(split, {name for t in heard for name in found.not_finite[t]})
            found.diverged.update(heard)
        crossing = [
            trial
            for trial in found.rows
            if trial in past - found.diverged and math.isinf(ledger.crossing(trial))
        ]
        if crossing and now != others:
            left = [name for name in others if name not in now]
            more = self._engine.measure(cohort.packs, left, layout=self._layout, trials=crossing)
            for trial in crossing:
                found.rows[trial] |= more.rows[trial]
        # Only now, and all at once: an interruption before leaves the step unmeasured.
        ledger.record(cohort.step, found.rows, found.diverged)

    def _refuse_metrics(self, split: str, names: set[str]) -> None:
        """Refuses metrics that are not finite before the first step: that is no divergence.

        Raises:
          ValueError: there is one that is so of every trial of a pack.
        """
        width = self._engine.mesh.size * self._layout.lanes
        packs = self._engine.start(
            self._ledger.members(-1)[:width],
            self._hyperparameters,
            batch_size=self._batch_size,
            layout=self._layout,
        )
        found = self._engine.measure(packs[:1], [split], layout=self._layout)
        always = names.intersection(*(found.not_finite.get(trial, ()) for trial in packs[0].trials))
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
                states = HostStates.join([unpack(part.packs) for part in same])
                alive = [trial for trial in states.ids if trial not in gone(step)]
                same[0].packs = self._packed(states.only(alive))
                self._cohorts = [c for c in self._cohorts if c is same[0] or c.step != step]

    def _packed(self, states: HostStates) -> list[Pack]:
        return self._engine.pack(states, self._hyperparameters, layout=self._layout)

    def _write(self, *, final: bool = False) -> None:
        """Writes down what is new: rows, who is where, and states, which count all at once."""
        began = time.monotonic()
        trials = self._ledger.trials(self._hyperparameters, self._origin)
        with self._records.together():
            self._records.append_measurements(self._ledger.unwritten())
            if len(trials):
                self._records.write_trials(self._batch_size, trials)
            if final:
                self._records.drop_state(self._batch_size)
            elif self._cohorts and not self._moving:
                self._records.write_state(self._batch_size, *self._stored())
        self._ledger.written()
        self._written = time.monotonic()
        self._write_seconds = self._written - began

    def _stored(self) -> tuple[dict[str, np.ndarray], dict[str, object]]:
        """The states of the trials that go on, as `Records.write_state` takes them."""
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
                leaves = unpack(cohort.packs).only(alive).leaves
                arrays |= {f"{number}/{i}": leaf for i, leaf in enumerate(leaves)}
                cohorts[str(number)] = {
                    "step": cohort.step,
                    "trials": [list(trial) for trial in alive],
                    "leaves": len(leaves),
                }
        return arrays, {"cohorts": cohorts}

    def _tell(self, step: int, *, finished: bool = False) -> None:
        ledger, steps = self._ledger, math.nan
        if finished:
            steps = ledger.steps_to_target()
        elif math.isfinite(ledger.first_crossing) and ledger.question.rule.kind != "budget":
            steps = ledger.first_crossing
        self._report(
            Progress(
                batch_size=self._batch_size,
                step=step,
                max_steps=ledger.question.grid[-1],
                best=ledger.best,
                steps=steps,
                trials=len(ledger.members(step)),
                infeasible=len(ledger.diverged()),
                seconds=time.monotonic() - self._began,
                finished=finished,
            )
        )
