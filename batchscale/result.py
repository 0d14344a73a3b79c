"""The result of a study: its tables, and the analyses of them."""

from __future__ import annotations

import dataclasses
import importlib
import os
import warnings
from collections.abc import Callable, Collection, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from batchscale import archive, audit, display, metrics, records, scaling, tuner
from batchscale.confirmation import Confirmation, at_goal, confirmation
from batchscale.files import local_path, replacing
from batchscale.given import switch
from batchscale.measurement import Measurement, measurement
from batchscale.metrics import Goal
from batchscale.metrics.goal import check_goal
from batchscale.plan import Definition, Plan
from batchscale.records import TRIAL_COLUMNS, Origin, Status
from batchscale.scaling.minima import of_search
from batchscale.stored import opening
from batchscale.tuner import SearchSpace


@dataclasses.dataclass(frozen=True)
class Result:
    """Tables of a study, complete or not; nothing here trains.

    Attributes:
      folder: where the tables are.
      definition: what was measured.
      trials: one row a trial, indexed by (batch_size, trial, replicate): its hyperparameters, and
        `origin`, `status`, `steps_trained`, `stop_reason`, `first_crossing`.
      measurements: one row an evaluation, indexed by (batch_size, trial, replicate, step), with a
        column a `split/metric`; NaN where it was not evaluated.
      paces: between which steps the schedule decides when a goal is reached, by batch size, where
        it does; None if it is not known.
      accepted: the files whose hand edits were accepted; see `load`.
      study: what the folder calls the study, so that another in its place is told.
    """

    folder: Path
    definition: Definition
    trials: pd.DataFrame
    measurements: pd.DataFrame
    paces: Mapping[int, scaling.Pace] | None = None
    accepted: frozenset[str] = frozenset()
    study: str | None = None

    def __str__(self) -> str:
        head = f"{self.name}, {self.goal}, {self.definition.trials} trials a batch size"
        if len(table := self.steps_to_target()):
            return f"{head}\n{table.to_string(index=False)}"
        return f"{head}\nno batch size is finished yet"

    def __repr__(self) -> str:
        sizes = len(self.definition.batch_sizes)
        return (
            f"Result({self.name!r}, {self.goal}: {sizes} batch sizes, {len(self.trials):,} trials, "
            f"in {str(self.folder)!r})"
        )

    def _repr_html_(self) -> str:
        return display.page(f"{self.name}: steps to {self.goal}", self.steps_to_target())

    @property
    def name(self) -> str:
        """The workload and the optimizer."""
        return f"{self.definition.workload}, {self.definition.optimizer}"

    @property
    def goal(self) -> Goal:
        """The goal of the study."""
        return self.definition.goal

    @property
    def train_examples(self) -> int:
        """The size of the training set."""
        return self.definition.train_examples

    @property
    def space(self) -> SearchSpace:
        """The search space; a function of batch size where it differs between them."""
        spaces = self.definition.spaces
        first = next(iter(spaces.values()))

        def by_size(name: str) -> Callable[[int], tuner.Distribution | float]:
            return lambda batch_size: spaces[batch_size].at(batch_size)[name]  # pyright: ignore

        same = {name: all(s[name] == first[name] for s in spaces.values()) for name in first}
        return SearchSpace(**{n: first[n] if same[n] else by_size(n) for n in first})

    def steps_to_target(self, goal: Goal | None = None) -> pd.DataFrame:
        """The steps to the goal at every batch size; see `metrics.steps_to_target`.

        With `stop="budget"` by the paper's rule: a trial that diverges at any time does not count.
        With any other stop rule, by the one under which a study can stop: a trial counts until it
        diverges. Batch sizes that are not finished are left out, with a warning.

        Args:
          goal: another goal than the study's, to be read off the same curves.

        Raises:
          ValueError: the curves were cut too early for that goal; says how to extend them.
        """
        trials = self._finished()
        return metrics.steps_to_target(
            self.measurements.loc[
                self.measurements.index.get_level_values("batch_size").isin(
                    trials.index.get_level_values("batch_size")
                )
            ],
            self._goal(goal),
            trials=trials,
            feasible_trials=self._feasible_trials,
        )

    def _finished(self) -> pd.DataFrame:
        """The trials of the batch sizes that are done; says which are not."""
        sizes = self.trials.index.get_level_values("batch_size")
        open_ = set(sizes[(self.trials["status"] == Status.INCOMPLETE).to_numpy()])
        waiting = sorted(open_ | set(self.definition.batch_sizes) - set(sizes))
        if waiting:
            words = "not finished, and left out; study.run(folder) goes on"
            if not len(self.trials) and (self.folder / records.MEASURED).is_dir():
                words = "not searched; what was measured by one design is result.measurement()"
            warnings.warn(
                f"{self.folder}: batch size {', '.join(map(str, waiting))} {words}.",
                stacklevel=4,
            )
        return self.trials.loc[~sizes.isin(open_)]

    def optima(self) -> pd.DataFrame:
        """The best trial of each batch size, and the edges it lies at; see `tuner.optima`."""
        return tuner.optima(self.steps_to_target(), self.trials, self.space)

    def scaling(self, goal: Goal | None = None, *, form: scaling.Form = "averaged") -> scaling.Fit:
        """The critical batch size, with an interval, or why it is not quoted; see `scaling.fit`.

        The steps are minima over trials. Their luck makes all steps too few, more so where curves
        are noisier, mostly at small batch sizes, and that moves B_crit; so the interval allows for
        it (`scaling.LUCK`), the fit says so, and `confirmation().scaling()` is free of it. It is
        refused where the plateau is the schedule's doing (see `scaling.paced`), and where the
        leading trials crowd an edge of the search space.

        Args:
          goal: another goal than the study's, to be read off the same curves.
          form: `averaged` over the sharpness of the bend, or one that is assumed, `hyperbolic` or
            `generalised`: its interval holds the luck as scatter alone.
        """
        found = of_search(
            self.steps_to_target(goal),
            self._searched(goal),
            self.definition.spaces,
            form=form,
            paces=self.paces,
        )
        return found if goal is None else found.cautioned(self._seldom(goal))

    def _searched(self, goal: Goal | None = None) -> pd.DataFrame:
        """The trials of the search, with the first crossings of a goal."""
        trials = self._finished()
        if goal is not None:
            crossings = metrics.first_crossings(self.measurements, goal)["first_crossing"]
            trials = trials.assign(first_crossing=crossings.reindex(trials.index).fillna(np.inf))
        trials = trials.reset_index()
        return trials.loc[(trials["replicate"] == 0).to_numpy()]

    def _crowded(self, goal: Goal | None = None) -> str:
        """Which edges of the search space those trials crowd that lead to a goal; empty if none."""
        return str(tuner.crowded_edges(self._searched(goal), self.definition.spaces))

    def refined(self) -> pd.DataFrame:
        """The trials of `Study.refine`, as in `trials`; empty if there are none."""
        with self._opened() as stored:
            found = opening.refinement(stored, self._plan())
        if found is None:
            return self.trials.iloc[:0]
        return _with_hyperparameters(found.trials, self.definition)

    def confirmation(self, goal: Goal | None = None, *, confidence: float = 0.9) -> Confirmation:
        """The tuned settings under fresh seeds, as far as `Study.confirm` has run.

        A batch size whose steps to target have changed since, in an extension, is not done.

        Args:
          goal: another, easier goal than the study's, to be read off the same runs, whose settings
            were chosen for the study's.
          confidence: of the intervals of medians.

        Raises:
          FileNotFoundError: `Study.confirm` has not been called.
          ValueError: runs ended at the study's goal, short of this one; or their evaluations were
            cut short, far from it.
        """
        with self._opened() as stored:
            found = opening.confirmed(stored, self._plan())
        if found is None:
            raise FileNotFoundError(
                f"{self.folder}: nothing is confirmed yet. Call study.confirm(folder), which runs "
                "the leading settings under fresh seeds."
            )
        plan, measurements, trials = found
        trials = _with_hyperparameters(trials, self.definition)
        steps = self.steps_to_target()
        now = dict(zip(steps["batch_size"].tolist(), steps["steps"].tolist(), strict=True))
        medians = confirmation(
            trials,
            metrics.first_crossings(measurements, self.goal),
            steps,
            # What led before an extension of the study may no longer lead.
            asked={
                size: numbers if now.get(size) == plan.best[size] else ()
                for size, numbers in plan.settings.items()
            },
            selection_seeds=plan.selection_seeds,
            seeds=plan.seeds,
            limits=plan.limits,
            confidence=confidence,
        )
        # Beyond an edge that was crowded `Study.refine` has looked.
        beyond = (self.refined()["origin"] == Origin.EXPAND).any()
        crowded = "" if beyond else self._crowded()
        medians = dataclasses.replace(
            medians, paces=self.paces or {}, crowded=crowded, goal=self._goal(goal), name=self.name
        )
        if goal is None:
            return medians
        crossings = metrics.first_crossings(measurements, goal)
        return at_goal(medians, trials, crossings, self.steps_to_target(goal))

    def confirmed(self) -> Confirmation | None:
        """The confirmation, of which all that draws or recommends goes; None where it is not whole.

        Whole it is once every batch size that reached the goal has its median; before, and where
        nothing was confirmed, the best of N trials is shown.
        """
        if not len(self.steps_to_target()):
            return None
        try:
            found = self.confirmation()
        except FileNotFoundError:
            return None
        return found if found.whole(self.trials) else None

    def measurement(self) -> Measurement:
        """What `Study.measure` has found out, as far as it has come; nothing trains.

        Raises:
          FileNotFoundError: `Study.measure` has not been called.
          ValueError: none of its trials has reached the goal.
        """
        plan = self._plan()
        with self._opened() as stored:
            found = opening.measured(stored, plan)
        if found is None:
            raise FileNotFoundError(
                f"{self.folder}: nothing is measured by one design yet. Call study.measure(folder)."
            )
        # As it is now: what was loaded may have grown.
        trials = _with_hyperparameters(found.trials, plan.definition)
        audited = {
            "measurements": found.measurements,
            "batch_dependent": plan.batch_dependent,
            "evaluation_examples": plan.measured.get(self.goal.split),
            "counted": plan.counted,
        }
        made = measurement(found.plan, plan.definition, trials, paces=plan.paces, audited=audited)
        return dataclasses.replace(made, runs=tuple(self.runs()), folder=self.folder)

    def audit(self) -> audit.Audit:
        """Whether the study is careful enough to be believed: named checks; see `batchscale.audit`.

        What `Study.confirm` has found out is looked at too.
        """
        plan = self._plan()
        with self._opened() as stored:
            confirmed = opening.confirmed(stored, plan) is not None
        return self._audit(
            batch_dependent=plan.batch_dependent,
            confirmation=self.confirmation() if confirmed else None,
            evaluation_examples=plan.measured.get(self.goal.split),
            counted=plan.counted,
        )

    def _audit(
        self,
        *,
        batch_dependent: bool | None = None,
        confirmation: Confirmation | None = None,
        evaluation_examples: int | None = None,
        counted: int | None = None,
    ) -> audit.Audit:
        return audit.audit(
            self.measurements,
            self.trials,
            self.steps_to_target(),
            self.goal,
            spaces=self.definition.spaces,
            max_steps=self.definition.max_steps,
            batch_dependent=batch_dependent,
            confirmation=confirmation,
            evaluation_examples=evaluation_examples,
            counted=counted,
            refined=self.refined(),
            paces=self.paces,
        )

    def _opened(self) -> records.StudyFolder:
        opened = records.StudyFolder.open(self.folder, write=False, accept=self.accepted)
        if opened.study != self.study:
            raise ValueError(
                f"{self.folder}: it holds another study now than this result is of. Load it again, "
                "and give each study a folder of its own."
            )
        return opened

    def _plan(self) -> Plan:
        with self._opened() as stored:
            plan = opening.plan(stored)
        if plan is None:
            raise FileNotFoundError(f"{self.folder}: no plan.json. Load the study again.")
        return plan

    def learning_rates(self, goal: Goal | None = None) -> pd.DataFrame:
        """The best learning rate of each batch size; see `scaling.learning_rates`.

        Args:
          goal: another goal than the study's, to be read off the same curves.

        Raises:
          ValueError: the curves were cut too early; says how to extend them.
        """
        trials = self._finished()
        return scaling.learning_rates(
            self.measurements,
            self._goal(goal),
            trials=trials,
            feasible_trials=self._feasible_trials,
        )

    def frontier(
        self, goal: Goal | None = None, *, seconds_per_step: scaling.StepTimes | None = None
    ) -> pd.DataFrame:
        """Steps, examples and time at every batch size; see `scaling.frontier`."""
        return scaling.frontier(self.steps_to_target(goal), seconds_per_step=seconds_per_step)

    def recommend(
        self,
        goal: Goal | None = None,
        *,
        confirmed: bool | None = None,
        seconds_per_step: scaling.StepTimes | None = None,
        tolerance: float = 0.2,
    ) -> scaling.Recommendation:
        """Which batch size to train with, in words and numbers; see `scaling.recommend`.

        Args:
          goal: another than the study's, by the best of N trials.
          confirmed: whether it goes by the medians of tuned settings, which `Study.confirm` finds,
            or by the best of N trials; by default the medians where there are any.
          seconds_per_step: as in `scaling.recommend`.
          tolerance: likewise.

        Raises:
          FileNotFoundError: medians are asked for, and nothing is confirmed.
        """
        if confirmed is not None:
            switch("confirmed", confirmed)
        found = self.confirmation(goal) if confirmed else None
        if confirmed is None and goal is None:
            found = self.confirmed()
        if found is not None:
            return found.recommend(seconds_per_step=seconds_per_step, tolerance=tolerance)
        made = scaling.recommend(
            self.steps_to_target(goal),
            self.scaling(goal),
            paces=self.paces,
            seconds_per_step=seconds_per_step,
            tolerance=tolerance,
        )
        of = f"Steps are those of the best of {self.definition.trials} trials, some of it luck."
        return dataclasses.replace(made, sentences=(*made.sentences, of))

    def sensitivity(
        self,
        goal: Goal | None = None,
        *,
        within: float = 2.0,
        max_steps: float | None = None,
        max_epochs: float | Fraction | None = None,
    ) -> pd.DataFrame:
        """Which share of the trials reaches the goal, or nearly as fast; see `tuner.sensitivity`.

        Args:
          goal: another goal than the study's, to be read off the same curves.
          within: a factor on the fewest steps.
          max_steps: a budget in steps; none if not given.
          max_epochs: a budget in passes over the training set.

        Raises:
          ValueError: the curves were cut too early; says how to extend them.
        """
        trials = self._finished()
        return tuner.sensitivity(
            self.measurements,
            self._goal(goal),
            trials=trials,
            space=self.space,
            feasible_trials=self._feasible_trials,
            within=within,
            max_steps=max_steps,
            max_epochs=max_epochs,
            train_examples=self.train_examples,
        )

    def _goal(self, other: Goal | None) -> Goal:
        """Another goal, checked, or the study's own; tells where it was seldom measured."""
        if other is None:
            return self.goal
        check_goal("goal", other)
        if words := self._seldom(other):
            warnings.warn(f"{self.folder}: {words}", stacklevel=3)
        return other

    def _seldom(self, goal: Goal) -> str:
        """That curves of a goal have gaps that the study's do not have, in words; or nothing."""
        found = self.measurements
        if goal.split == self.goal.split or goal.metric not in found or not len(found):
            return ""
        share = float(found[goal.metric].notna().mean())
        if share == 1:
            return ""
        return (
            f"{goal.split!r} was measured at {share:.0%} of the evaluations alone, among them where"
            f" a trial passed {self.goal}: steps to {goal} follow those, and may be far off. Make a"
            " study with this goal."
        )

    @property
    def _feasible_trials(self) -> int | None:
        """By which rule trials that diverged count; see `steps_to_target`."""
        return None if self.definition.stop == "budget" else self.definition.trials

    def tuning_curve(self, goal: Goal | None = None, *, confidence: float = 0.9) -> pd.DataFrame:
        """What searches with fewer trials would report; see `metrics.tuning_curve`.

        Args:
          goal: another goal than the study's, to be read off the same curves.
          confidence: of the intervals.

        Raises:
          ValueError: trials were cut too early; says how to extend them.
        """
        return metrics.tuning_curve(
            self.measurements, self._goal(goal), trials=self._finished(), confidence=confidence
        )

    def variants(self) -> pd.DataFrame:
        """Steps to target under other definitions, side by side; see `metrics.variants`.

        `scaling.transitions` says of this table how far the transition points move.
        """
        return metrics.variants(
            self.measurements,
            self.goal,
            trials=self._finished(),
            feasible_trials=self._feasible_trials,
        )

    def layouts(self) -> pd.DataFrame:
        """How trials were packed, one row a batch size.

        Returns:
          `batch_size`; `lanes`, trials vmapped together on a device; `microbatch`, examples whose
          gradient was taken at once; `evaluation_lanes`, trials vmapped together where they are
          evaluated; `shared`, whether batches of one microbatch have the program of several;
          `why`, what was found out about them before the first step: timings, or what did not fit
          into memory.
        """
        plan = self._plan()
        rows = [
            {"batch_size": size, **layout._asdict(), "why": plan.findings.get(size, "")}
            for size, layout in plan.layouts.items()
        ]
        return pd.DataFrame(rows).sort_values("batch_size", ignore_index=True)

    def runs(self) -> list[dict[str, Any]]:
        """With what and when the study was run, one entry a run: versions, devices, command."""
        with self._opened() as stored:
            return stored.runs()

    def report(self, path: str | os.PathLike[str]) -> Path:
        """Writes one self-contained page of HTML: the answer, its evidence, and how it was made.

        It shows the medians of confirmed settings where there are any, else the best of N trials,
        and says which.

        Args:
          path: of the page; one that is there is replaced.

        Returns:
          The path, absolute.
        """
        # Pages are made of figures and of all that results know; this is only the way to them.
        return importlib.import_module("batchscale.report").write(self, path)

    def save_tables(self, folder: str | os.PathLike[str]) -> list[Path]:
        """Writes the steps to target and the optima as CSV; returns the files."""
        folder = local_path(folder)
        files = []
        for name, table in (("steps_to_target", self.steps_to_target()), ("optima", self.optima())):
            path = folder / f"{name}.csv"
            with replacing(path) as file:
                file.write(table.to_csv(index=False).encode())
            files.append(path)
        return files

    def to_archive(self, folder: str | os.PathLike[str]) -> Path:
        """Writes the trials in the layout in which Shallue et al. (2019) published theirs.

        `batchscale.load_archive(folder)` gives the same hyperparameters, curves, bounds and steps
        to target again, to the bit; the official loader reads it too. It does not hold reruns
        (replicates above 0), what `Study.refine` and `Study.confirm` found, layouts, provenance,
        batch sizes that are not finished, and how evaluations were placed; and it cannot be gone on
        with, so keep the study's folder.

        Args:
          folder: of this workload and optimizer; in an archive of several, name it
            `dataset/model/optimizer`. It is written beside its place, and appears whole.

        Returns:
          The folder, absolute.

        Raises:
          FileExistsError: there is something in it that this study did not write, or the archive
            has a batch size that this result has not.
          ValueError: no batch size is finished; or the archive has no place for a metric's name.
        """
        return archive.write(
            folder, self.definition, self._finished(), self.measurements, paces=self.paces
        )


def load(folder: str | os.PathLike[str], *, accept: Collection[str] = ()) -> Result:
    """A study's result from its folder: tables alone, nothing trains.

    Every file is compared with the digest that it was written with, and the files with one another:
    trials with the plan, the plan with the space and the seed, measurements with the steps at which
    they are due, crossings with the measurements. Training states, and what `Study.confirm` and
    `Study.refine` wrote, are compared when they are read.

    Args:
      folder: the one that `Study.run` was given.
      accept: files whose hand edits are accepted, by their names in the folder, such as
        `plan.json`: neither their digests nor what they hold is compared. `index.json` takes the
        files as they are, if it was lost, and still compares what they hold.

    Raises:
      FileNotFoundError: the folder holds no study.
      DamagedError: a file was changed since it was written, or does not fit the others, or a name
        in `accept` is none of its files; nothing is overwritten. `batchscale.repair` sets aside
        what is damaged.
    """
    with records.StudyFolder.open(folder, write=False, accept=accept) as opened:
        opened.check_accepted()
        opened.check_provenance()
        stored = opening.study(opened)
        if stored is None:
            raise FileNotFoundError(
                f"{opened.folder}: no plan.json. Give the folder that study.run was given."
            )
    plan, measurements, trials = stored
    definition, paces = plan.definition, plan.paces
    return Result(
        opened.folder,
        definition,
        _with_hyperparameters(trials, definition),
        metrics.with_goal(measurements, definition.goal),
        paces,
        frozenset(accept),
        opened.study,
    )


def _with_hyperparameters(trials: pd.DataFrame, definition: Definition) -> pd.DataFrame:
    """The trials with a column a hyperparameter, which a table without rows lacks."""
    names = {name for space in definition.spaces.values() for name in space}
    lacking = sorted(names.difference(trials.columns))
    columns = [*sorted({*names, *trials.columns} - set(TRIAL_COLUMNS)), *TRIAL_COLUMNS]
    return trials.assign(**dict.fromkeys(lacking, np.nan))[columns] if lacking else trials
