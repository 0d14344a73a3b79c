"""A study: one workload and optimizer, swept over batch sizes, each of them tuned by itself."""

from __future__ import annotations

import dataclasses
import functools
import math
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Literal

import pandas as pd
from jax.sharding import Mesh

from batchscale import arguments, arrays, checks, keys, numeric, optimizers, records, schedules
from batchscale.arguments import PerBatchSize
from batchscale.confirmation import Confirmation
from batchscale.design.answering import finest
from batchscale.design.axes import Axes
from batchscale.engine import compilation_cache, devices, hosts, layout, parallel
from batchscale.engine.engine import Engine, Training
from batchscale.engine.layout import Layout
from batchscale.engine.packs import TrialId
from batchscale.evaluate import Evaluate
from batchscale.files import local_path
from batchscale.measurement import Measurement
from batchscale.metrics import Goal
from batchscale.metrics.goal import check_goal
from batchscale.optimizers import Factory
from batchscale.plan import Definition
from batchscale.records import Status
from batchscale.result import Result, load
from batchscale.runner import costs, estimating, leading, session, spread, sweep, trial_run
from batchscale.runner.confirm import confirm
from batchscale.runner.confirm import planned as confirm_plan
from batchscale.runner.demands import Call
from batchscale.runner.estimating import Steps
from batchscale.runner.measure import Elsewhere, measure, opening_words
from batchscale.runner.pool import Executor
from batchscale.runner.progress import Progress, Seldom, lines
from batchscale.runner.refine import refine, refined_values
from batchscale.runner.trial_run import PlannedTrial, TrialRun
from batchscale.schedules import OfSteps, Schedule
from batchscale.stopping import Curves, Stop, StopRule
from batchscale.stored.followups import FIRST_REFINED
from batchscale.tuner import SearchSpace
from batchscale.workloads import Workload, protocol
from batchscale.workloads.coupling import mixes_examples
from batchscale.workloads.parts import part_of, whole_of

_MEASURED_TOGETHER = 16  # trials, by which `Study.measure` chooses lanes


def powers_of_two(first: int, last: int) -> list[int]:
    """The powers of two from `first` to `last`, both included.

    >>> powers_of_two(1, 16)
    [1, 2, 4, 8, 16]

    Raises:
      ValueError: an end is no number, or the range is reversed, or holds no power of two.
    """
    low, high = numeric.plain(first), numeric.plain(last)
    if low is None or high is None or not math.isfinite(low + high):
        raise ValueError(f"powers_of_two: got {first!r} and {last!r}, wanted two numbers.")
    powers = [1 << n for n in range(int(max(high, 0)).bit_length()) if low <= 1 << n <= high]
    if not powers:
        raise ValueError(
            f"powers_of_two: there is none from {first} to {last}. Give the smaller number first."
        )
    return powers


@dataclasses.dataclass(frozen=True, kw_only=True)
class Study:
    """What to measure: steps to a goal against batch size, with tuned hyperparameters at each.

    Attributes:
      workload: from `workloads.get`, or a `Workload` of one's own.
      optimizer: `sgd`, `momentum`, `nesterov`, `adam`, `adamw`, or a function that makes an optax
        transformation from a mapping of hyperparameters.
      space: what the hyperparameters are drawn from.
      batch_sizes: integers; `"full"` is the size of the training set.
      goal: the metric, its value and its direction.
      trials: feasible trials (that do not diverge) at each batch size.
      max_steps: the budget of a trial in steps: a number, a mapping, or a function of batch size.
      max_epochs: the budget in passes over the training set instead.
      stop: how long trials run. `"first"`: until the first of the batch size reaches the goal;
        `"all"`: each until it does itself; a factor such as 3.0: that many times the steps of the
        first crossing; `"budget"`: the whole budget, the rule of Shallue et al. (2019).
      curves: `"bounds"`: a trial's evaluation ends as soon as it is certain that it is not past the
        goal, and is recorded as a bound; the steps to target are the same, at a fraction of the
        cost. Whole evaluations are made at each doubling of the steps. `"exact"`: all are whole,
        for easier goals, for curves and budgets.
      schedule: one of `schedules.NAMES`, a function of (step, hyperparameters), or one of the step
        alone that the learning rate is multiplied by, such as optax's schedules with a peak of 1.
      evaluation_spacing: evaluations are this share of the steps apart.
      evaluate: which splits are measured besides the goal's, on how many examples of them and how
        often; by default at most for a fifth of the operations of training. It changes no trial
        and no crossing, but is part of what a folder holds. Or examples by split, such as
        `{"validation": 2048, "train": None}`: None is not measured, and a number for the goal's
        split makes the goal one of a fixed random part of it, which the workload's name then says;
        without one it is of the whole. An `Evaluate` leaves the goal's split as it is.
      max_infeasible: diverged trials that are replaced at most; ten times `trials` by default.
      lanes: trials vmapped together on a device; `"auto"` chooses by the size of the model, and
        `"probe"` by timing, before the first step of a batch size: a few programs more to compile,
        and another time it may choose otherwise, which changes the last bits of every trial.
      microbatch: examples whose gradient is taken at once; `"auto"` chooses, and cuts no batch
        where the loss of an example depends on others.
      seed: of the plan and of every trial.

    Raises:
      ValueError, TypeError: an argument is not as above; nothing has been compiled or loaded.

    >>> import batchscale as bs
    >>> study = bs.Study(
    ...     workload=bs.workloads.get("mnist/fc_128_128_128"),
    ...     optimizer="sgd",
    ...     space=bs.SearchSpace(learning_rate=bs.LogUniform(1e-2, 3)),
    ...     batch_sizes=[*bs.powers_of_two(1, 32), "full"],
    ...     goal=bs.Goal("validation/error", 0.03),
    ...     trials=32,
    ...     max_steps=20_000,
    ... )
    >>> study.resolved_batch_sizes()
    [1, 2, 4, 8, 16, 32, 55000]
    """

    workload: Workload
    optimizer: str | Factory
    space: SearchSpace
    batch_sizes: Sequence[int | Literal["full"]]
    goal: Goal
    trials: int
    max_steps: PerBatchSize | None = None
    max_epochs: float | None = None
    stop: Stop = "first"
    curves: Curves = "bounds"
    schedule: str | Schedule | OfSteps = "constant"
    evaluation_spacing: float = 0.05
    evaluate: Evaluate | Mapping[str, int | None] = dataclasses.field(default_factory=Evaluate)
    max_infeasible: int | None = None
    lanes: int | Literal["auto", "probe"] = "auto"
    microbatch: int | Literal["auto"] = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        arguments.kinds(self.workload, self.space, self.goal)
        self._set("trials", numeric.integer("trials", self.trials, 1))
        self._set("seed", numeric.integer("seed", self.seed, 0, keys.LARGEST))
        if self.max_infeasible is not None:
            infeasible = numeric.integer(
                "max_infeasible", self.max_infeasible, 0, others=", or None"
            )
            self._set("max_infeasible", infeasible)
        for name, words in (("lanes", ("auto", "probe")), ("microbatch", ("auto",))):
            value = getattr(self, name)
            if not (isinstance(value, str) and value in words):
                others = "".join(f", or {word!r}" for word in words)
                self._set(name, numeric.integer(name, value, 1, others=others))
        spacing = numeric.plain(self.evaluation_spacing)
        if spacing is None or not 0 < spacing <= 1:
            raise ValueError(
                f"evaluation_spacing: got {self.evaluation_spacing!r}, wanted a share of the steps "
                "above 0 and at most 1; 0.05 evaluates every 5% of the steps."
            )
        self._set("evaluation_spacing", spacing)
        if (self.max_steps is None) == (self.max_epochs is None):
            raise ValueError(
                f"max_steps, max_epochs: got {self.max_steps!r} and {self.max_epochs!r}, wanted "
                "one of them: the budget of a trial in steps, or in epochs."
            )
        arguments.check_several(self.batch_sizes)
        StopRule.of(self.stop)
        if not isinstance(self.stop, str):
            self._set("stop", numeric.plain(self.stop))
        if not isinstance(self.curves, str) or self.curves not in ("bounds", "exact"):
            raise ValueError(f"curves: got {self.curves!r}, wanted 'bounds' or 'exact'.")
        if isinstance(self.evaluate, Mapping):
            self._take_counts(self.evaluate)
        if not isinstance(self.evaluate, Evaluate):
            raise TypeError(
                f"evaluate: got {self.evaluate!r}, wanted bs.Evaluate(...), or examples by split: "
                '{"validation": 2048, "train": None}.'
            )
        if not callable(self.workload.data):  # else that is found when it is loaded
            self._measured()
        checks.names(self.space, optimizers.get(self.optimizer), self.schedule, self.workload)
        if self.workload.train_examples is not None:
            self.definition()

    @property
    def evaluation(self) -> Evaluate:
        """What is measured besides the goal's split, however it was given."""
        assert isinstance(self.evaluate, Evaluate)  # since the study was made
        return self.evaluate

    def _take_counts(self, counts: Mapping[str, int | None]) -> None:
        """What is measured, by examples of every split; of the goal's, in a workload of its own."""
        self._set("workload", whole_of(self.workload))  # whatever another study measured of it
        split, splits = self.goal.split, self.workload.splits()
        if unknown := sorted(map(str, set(counts) - set(splits))):
            raise ValueError(
                f"evaluate: the workload has no split {unknown[0]!r}; wanted any of "
                f"{', '.join(splits)}."
            )
        count = counts.get(split)
        if count is not None and split != "train":
            count = numeric.integer(f"evaluate: examples of {split!r}", count, 1)
            self._set("workload", part_of(self.workload, split, count))
        self._set("evaluate", Evaluate.of_counts(counts, list(splits), split))

    def __repr__(self) -> str:
        return (
            f"Study({self.workload!r}, {optimizers.get(self.optimizer).name}, {self.goal}, "
            f"batch_sizes={list(self.batch_sizes)}, trials={self.trials}, {self.space})"
        )

    def _set(self, name: str, value: Any) -> None:
        """An argument as it is kept: a number of Python's own."""
        object.__setattr__(self, name, value)

    @classmethod
    def of_paper(cls, workload: str, optimizer: str, **others: Any) -> Study:
        """The study that Shallue et al. (2019) made of a workload, with what is replaced of it.

        Args:
          workload: as `workloads.get` has it, or with the archive's name of the data set.
          optimizer: `sgd`, `momentum` or `nesterov`.
          **others: of the arguments of `Study`: a budget, which is not known of the paper, and
            those that are to be other than the paper's.

        Raises:
          ValueError: the paper did not measure it, says with which optimizers it did; or an
            argument is not as `Study` takes it.
          TypeError: an argument is none of `Study`'s, or not of its kind.

        >>> study = Study.of_paper("mnist/simple_cnn_base", "nesterov", max_steps=20_000, trials=16)
        >>> study.goal, study.trials, study.resolved_batch_sizes()[-1]
        (Goal(metric='validation/error', value=0.01, mode='min'), 16, 55000)
        """
        return cls(**{**protocol(workload, optimizer).arguments(), **others})

    def with_batch_sizes(self, more: Sequence[int | Literal["full"]]) -> Study:
        """The same study with more batch sizes, for `extend=True` of `measure`, or for `run`.

        Budgets that are a mapping go on beyond it: below the smallest batch size as perfect scaling
        has them, so that steps times batch size stays, elsewhere as at the next smaller one.

        Args:
          more: the batch sizes to be added; those that are there stay as they are.

        Raises:
          ValueError, TypeError: they are no batch sizes.

        >>> import batchscale as bs
        >>> study = bs.Study(
        ...     workload=bs.workloads.get("digits/fc_64"),
        ...     optimizer="sgd",
        ...     space=bs.SearchSpace(learning_rate=bs.LogUniform(0.01, 10)),
        ...     batch_sizes=[16, 64],
        ...     goal=bs.Goal("validation/error", 0.05),
        ...     trials=16,
        ...     max_steps={16: 1000, 64: 400},
        ... )
        >>> study.with_batch_sizes([4, 128]).max_steps
        {4: 4000, 16: 1000, 64: 400, 128: 400}
        """
        examples = self._train_examples()
        added = arguments.batch_sizes(more, examples, self.workload.name)
        sizes = sorted({*self.resolved_batch_sizes(), *added})
        budgets = self.max_steps
        if isinstance(budgets, Mapping):
            known = budgets
            budgets = {size: math.ceil(arguments.continued(known, size)) for size in sizes}
        return dataclasses.replace(self, batch_sizes=sizes, max_steps=budgets)

    def resolved_batch_sizes(self) -> list[int]:
        """The batch sizes as integers, in increasing order."""
        return arguments.batch_sizes(self.batch_sizes, self._train_examples(), self.workload.name)

    def estimate(
        self,
        folder: str | os.PathLike[str] | None = None,
        *,
        call: Call = "run",
        steps: Steps | None = None,
        **numbers: float,
    ) -> pd.DataFrame:
        """What a call costs, in examples and operations, before it is made; nothing is trained.

        By default *at most*: every trial is trained for its whole budget, or for as long as the
        call lets it. With steps to the goal, what is *likely* if it is reached there. The calls are
        counted by what will carry them out, so that what is on disk is not counted again; trials
        that diverge and are replaced are not foreseen.

        Args:
          folder: the study's, for what is left to do there; it need not be.
          call: `run` (also for `extend`), `refine` or `confirm`.
          steps: to the goal, by batch size, such as `pilot.expected`; of some batch sizes, those of
            others follow by a curve through them. `"likely"`: of batch sizes that are done as the
            folder's tables have them. None: at most.
          **numbers: arguments of that call: `settings`, `selection_seeds`, `seeds`, `rounds`,
            `trials`, `patience`.

        Returns:
          One row a batch size: `max_steps` of a trial; `trials` that anything is done for;
          `examples`, how many are trained on; `flops`, the floating-point operations of that;
          `goal_examples`, how many the goal's split is evaluated on, whose evaluations are part of
          what steps to target are, so that they may cost more than the training; `other_examples`,
          on how many the other splits are, which `evaluate` says; and `evaluation_flops` of both.

        Raises:
          ValueError: the folder holds another study, or says nothing of what is likely; an argument
            is not as above.

        >>> import batchscale as bs
        >>> study = bs.Study(
        ...     workload=bs.workloads.get("digits/fc_64"),
        ...     optimizer="sgd",
        ...     space=bs.SearchSpace(learning_rate=bs.LogUniform(1e-2, 10)),
        ...     batch_sizes=[4, 64],
        ...     goal=bs.Goal("validation/error", 0.05),
        ...     trials=10,
        ...     max_steps=1_000,
        ... )
        >>> study.estimate()["examples"].tolist()  # at most: 10 trials, 1,000 steps
        [40000, 640000]
        >>> study.estimate(steps={4: 500, 64: 100})["examples"].tolist()  # evaluated at 523, 102
        [20920, 65280]
        """
        devices.ask_for_cores()  # for counting operations starts JAX
        where = None if folder is None else local_path(folder)
        asked = estimating.question(where, call, steps, numbers)
        return estimating.operations(self.training(), self._titled(), asked)

    def estimate_seconds(
        self,
        folder: str | os.PathLike[str] | None = None,
        *,
        call: Call = "run",
        steps: Steps | None = None,
        devices: Sequence[Any] | None = None,
        **numbers: float,
    ) -> pd.DataFrame:
        """How long a call takes here, before it is made, after a look at how fast the machine is.

        Opens the study in a temporary folder, compiles, trains and evaluates there for some
        seconds, at no more than three batch sizes, and counts as `estimate` does; batch sizes
        between them are interpolated. It is the time of a call from this process; what it has
        compiled stays in the compilation cache.

        Args:
          folder: as in `estimate`.
          call: as in `estimate`.
          steps: as in `estimate`.
          devices: as in `run`.
          **numbers: as in `estimate`.

        Returns:
          One row a batch size: `trials` that anything is done for; `training_seconds`;
          `goal_seconds` and `other_seconds`, of evaluations of the goal's split and of the others;
          `compilation_seconds`; `host_seconds`, for opening the study and for what is noted and
          written; and `seconds`, the sum. At most, all evaluations are whole: of goals that are
          counts, most end early, and take a fraction of that.

        Raises:
          ValueError: as in `estimate`.
        """
        hosts.refuse("Study.estimate_seconds", "Call it in one; Study.estimate is for all.")
        training = self.training()
        where = None if folder is None else local_path(folder)
        asked = estimating.question(where, call, steps, numbers)
        with compilation_cache.cached():
            session.check(training, session.mesh_of(devices))
            return estimating.seconds(training, self._titled(), self._layout, asked, devices)

    def speeds(
        self, *, progress: bool = True, devices: Sequence[Any] | None = None
    ) -> pd.DataFrame:
        """How long a step and an evaluation of a trial take here, in a full pack of them.

        Args:
          progress: a line for each batch size before it is timed, or none.
          devices: as in `run`.

        Returns:
          One row a batch size: `batch_size`; `seconds_per_step` of a trial; and
          `seconds_per_evaluation`, of one on the whole of the goal's split.
        """
        say = lines(progress)
        training, mesh = self.training(), session.mesh_of(devices)
        session.check(training, mesh)
        with compilation_cache.cached():
            return leading.timed(costs.speeds(training, self.definition(), self._layout, mesh, say))

    def seconds_per_step(self, *, devices: Sequence[Any] | None = None) -> pd.DataFrame:
        """How long a step of one trial takes here, alone on one device, at every batch size.

        For `Result.frontier` and `Result.recommend`: steps cost other times on other machines. The
        median of three timings; of nothing else that the machine does at the same time is known.

        Args:
          devices: of which the first is timed; by default of all. On a CPU that is one core, if
            JAX has not started yet.

        Returns:
          One row a batch size: `batch_size` and `seconds_per_step`.
        """
        training = self.training()
        mesh = parallel.mesh(hosts.own_devices(session.mesh_of(devices))[:1])
        session.check(training, mesh)
        with compilation_cache.cached():
            return leading.timed(
                costs.seconds_per_step(training, self.definition(), self._layout, mesh)
            )

    def run(
        self,
        folder: str | os.PathLike[str],
        *,
        progress: bool | Callable[[Progress], None] = True,
        devices: Sequence[Any] | None = None,
        executor: Executor | None = None,
    ) -> Result:
        """Runs the study, or what is left of it, and writes everything into a folder.

        The plan is written first. A run that is interrupted, by whatever means, goes on where it
        was when the same study is run in the same folder, and ends with the same tables.

        Args:
          folder: one for each study.
          progress: a bar; False for silence; or a function that is told of every evaluation,
            by a `Progress` whose `evaluations` have values and hyperparameters of each trial.
          devices: JAX devices; all of them by default. On a CPU one virtual device a core is asked
            for first, if JAX has not started yet.
          executor: trains on workers, each batch size on one of them at a time: any
            `concurrent.futures.Executor`, such as Dask's `Client().get_executor()`, or a function
            that makes one. This process alone writes the folder, and the tables are the same
            (docs/scaling_out.md).

        Returns:
          The tables; of all that the folder holds, if that is a larger study of the same kind.

        Raises:
          ValueError: the folder holds another study, or the data or the model have changed, or
            batch sizes were begun under another type of floats.
          TypeError: what is to be sent to workers cannot be; nothing has been submitted.
          RuntimeError: a batch size has lost its worker each of three times.
          DamagedError: a file in it was changed since it was written, or does not fit the others;
            nothing is overwritten. `batchscale.repair` sets aside what is damaged.
        """
        return self._run(local_path(folder), progress, devices, executor, extend=False)

    def extend(
        self,
        folder: str | os.PathLike[str],
        *,
        stop: Stop | None = None,
        trials: int | None = None,
        batch_sizes: Sequence[int | Literal["full"]] | None = None,
        max_steps: PerBatchSize | None = None,
        max_epochs: float | None = None,
        max_infeasible: int | None = None,
        curves: Curves | None = None,
        progress: bool | Callable[[Progress], None] = True,
        devices: Sequence[Any] | None = None,
        executor: Executor | None = None,
    ) -> Result:
        """Goes on with a study that is in a folder: more steps, trials or batch sizes.

        What has been measured stays and is not measured again; fewer trials, steps or batch sizes
        than the folder holds take nothing away. Trials whose training states are
        gone are trained once more up to where they were, with the same results, and then further.

        Args:
          folder: the study's.
          stop: another rule by which trials stop; None leaves this, and each of the following, as
            it is. Anything else makes another study, for another folder.
          trials: at each batch size.
          batch_sizes: those that are not there are added.
          max_steps: a larger budget, in steps.
          max_epochs: a larger budget, in passes over the training set.
          max_infeasible: diverged trials that are replaced at most.
          curves: `"exact"` measures batch sizes of which there are only bounds once more, from
            their beginning.
          progress: as in `run`.
          devices: as in `run`.
          executor: as in `run`.

        Raises:
          ValueError: as in `run`.
        """
        folder = local_path(folder)
        if max_steps is not None and max_epochs is not None:
            raise ValueError(
                f"max_steps, max_epochs: got {max_steps!r} and {max_epochs!r}, wanted one of them."
            )
        given = {
            "stop": stop,
            "trials": trials,
            "batch_sizes": batch_sizes,
            "max_infeasible": max_infeasible,
            "curves": curves,
        }
        changes = {name: value for name, value in given.items() if value is not None}
        if max_steps is not None or max_epochs is not None:
            changes |= {"max_steps": max_steps, "max_epochs": max_epochs}
        study = dataclasses.replace(self, **changes)
        return study._run(folder, progress, devices, executor, extend=True)

    def confirm(
        self,
        folder: str | os.PathLike[str],
        *,
        settings: int = 6,
        selection_seeds: int = 7,
        seeds: int = 21,
        patience: float = 4.0,
        progress: bool | Callable[[Progress], None] = True,
        devices: Sequence[Any] | None = None,
        executor: Executor | None = None,
    ) -> Confirmation:
        """Runs the leading settings of every batch size again, under fresh seeds.

        The best of N trials is partly luck. So the leading settings are run under fresh seeds, the
        one with the least median is chosen, and it is run under seeds that took no part in the
        choice: their median is what a reader who uses that setting can expect. Everything is
        written down beside the study's tables, goes on if it is interrupted, and is read again by
        `Result.confirmation`.

        Args:
          folder: of a finished study, whose trials were trained past the first crossing
            (`stop=3.0` is enough), so that it is known which the leading settings are.
          settings: how many are compared at each batch size.
          selection_seeds: under which they are compared.
          seeds: under which the chosen one is reported.
          patience: a run ends at its own crossing, or after so many times the study's steps to
            target, at most at the end of its budget; then it counts as a miss.
          progress: as in `run`.
          devices: as in `run`.
          executor: as in `run`.

        Raises:
          ValueError: trials were stopped too early to tell which lead; the folder holds another
            study, or an unfinished one.
        """
        folder = local_path(folder)
        settings = numeric.integer("settings", settings, 1)
        selection_seeds = numeric.integer("selection_seeds", selection_seeds, 1)
        seeds, patience = numeric.integer("seeds", seeds, 1), arguments.patience(patience)
        if (copy := leading.follow(self.training, devices, executor)) is not None:
            return load(copy).confirmation()
        with leading.lead(folder):
            result = _finished(folder)
            asked = {
                "trials": pd.concat([result.trials, result.refined()]),
                "best": _best(result),
                "settings": settings,
                "selection_seeds": selection_seeds,
                "seeds": seeds,
                "patience": patience,
            }
            away = self._away(executor, devices)
            beside = records.CONFIRMED
            with self._opened(folder, progress, devices, beside=beside, away=away) as opened:
                plan, values = confirm_plan(opened, **asked)
                if away is None:
                    confirm(opened, plan, values)
                else:
                    spread.run_confirmation(opened, away, plan, values)
            return result.confirmation()

    def measure(
        self,
        folder: str | os.PathLike[str],
        precision: float = 0.15,
        *,
        minutes: float | None = None,
        examples: float | None = None,
        progress: bool | Callable[[Progress], None] = True,
        devices: Sequence[Any] | None = None,
        executor: Executor | None = None,
        extend: bool = False,
    ) -> Measurement:
        """Measures all batch sizes by one design: each trial where it tells most for its price.

        Search and confirmation tune every batch size as if nothing were known of its neighbours.
        Here a joint model of log steps over batch size and hyperparameters says, round by round,
        where the next trials tell most a second of training; what it predicts is checked under
        fresh seeds before anything is quoted, and where it is wrong a search takes its place. The
        space must be of a learning rate and at most one more hyperparameter; `trials` and `stop`
        play no part.

        It is new: simulated intervals hold what they should in most worlds, not in all
        (docs/analysis.md has the table, and what came of real training). With a second
        hyperparameter, B_crit was a tenth too low there. Where much hangs on a number, confirm it:
        `run` and `confirm` assume less.

        Everything is written down beside the study's tables (origin `measure`), and read again by
        `Result.measurement`; what is interrupted goes on. Call it again with a finer precision, or
        more minutes, and it goes on from what is there. Its trials never count towards best-of-N.

        Args:
          folder: the study's; `run` need not have been called.
          precision: the half width of the 90% intervals of B_crit and of the steps at every batch
            size, as a share: 0.15 is about 15%.
          minutes: that it takes here, of all calls together, compilation and all else included; by
            default until it is precise. The scout and the check of what is quoted are made in any
            case, and may exceed a small price.
          examples: that may be trained on, likewise.
          progress: as in `run`.
          devices: as in `run`.
          executor: as in `run`; a round ends when all of its batch sizes have come back, and
            `minutes` are those of all workers together.
          extend: whether batch sizes that a measurement in this folder does not have may be added
            to it.

        Raises:
          ValueError: the space has other dimensions, or no trial reached the goal; the folder
            holds another study.
        """
        folder = local_path(folder)
        precision = arguments.precision(precision)
        minutes = arguments.price("minutes", minutes)
        examples = arguments.price("examples", examples)
        definition = self.definition()
        if precision < (least := finest(self.evaluation_spacing)):
            warnings.warn(
                f"precision: got {precision:g}; this design knows steps to about {least:.1%} at "
                f"best (evaluation_spacing={self.evaluation_spacing:g}): it goes on until more "
                "trials say no more.",
                stacklevel=2,
            )
        for size in definition.batch_sizes:
            Axes.of(definition.spaces[size])
        if len(definition.batch_sizes) < 4:
            raise ValueError(
                f"batch_sizes: got {len(definition.batch_sizes)}, wanted at least 4 for a design "
                "across them. Use study.run and study.confirm for fewer."
            )
        if (copy := leading.follow(self.training, devices, executor)) is not None:
            return load(copy).measurement()
        # Rounds are small: fewer lanes than a search has, so that they are full.
        few = dataclasses.replace(self, trials=min(self.trials, _MEASURED_TOGETHER))
        away = self._away(executor, devices)
        with (
            leading.lead(folder),
            session.opened(
                self.training(),
                dataclasses.replace(definition, workload=self.workload.title()),
                few._layout,
                folder,
                progress,
                devices,
                share=self.microbatch == "auto",
                beside=records.MEASURED,
                workers=None if away is None else away.words,
                opening_words=functools.partial(
                    opening_words, definition.batch_sizes, precision, minutes
                ),
                extend=extend,
                quiet=True,
            ) as opened,
        ):
            elsewhere = None
            if away is not None:
                look = functools.partial(spread.look, opened, away)
                elsewhere = Elsewhere(look, functools.partial(spread.run_jobs, opened, away))
            measure(
                opened,
                precision=precision,
                minutes=minutes,
                examples=examples,
                elsewhere=elsewhere,
            )
        return load(folder).measurement()

    def refine(
        self,
        folder: str | os.PathLike[str],
        *,
        rounds: int = 3,
        trials: int = 8,
        until: float = 0.1,
        patience: float = 3.0,
        progress: bool | Callable[[Progress], None] = True,
        devices: Sequence[Any] | None = None,
        executor: Executor | None = None,
    ) -> Result:
        """Searches on around the leading trials of every batch size, and beyond a crowded edge.

        Adaptive trials make a minimum that does not compare with that of a search, so they never
        count towards steps to target: `Study.confirm` takes them up, and reports what they are
        worth. Every batch size has the same number of them.

        Args:
          folder: of a finished study, whose trials were trained past the first crossing
            (`stop=3.0` is enough).
          rounds: at most; each searches the box around the trials that lead after the one before.
          trials: of a round, at each batch size.
          until: no more rounds once no edge is crowded, and the leading trials of every batch size
            spread over no more than this share of each range.
          patience: a trial ends at its own crossing, or after so many times the study's steps, at
            most at the end of its budget.
          progress: as in `run`.
          devices: as in `run`.
          executor: as in `run`; a round ends when all of its batch sizes have come back.

        Returns:
          The study's result, unchanged but for `Result.refined`.

        Raises:
          ValueError: fewer than two trials of a batch size reached the goal; the folder holds
            another study, or an unfinished one.
        """
        folder = local_path(folder)
        rounds, trials = numeric.integer("rounds", rounds, 1), numeric.integer("trials", trials, 1)
        until = float(
            numeric.at_least("until", until, 0, "a share of a range, 0 or more, such as 0.1")
        )
        patience = arguments.patience(patience)
        if (copy := leading.follow(self.training, devices, executor)) is not None:
            return load(copy)
        with leading.lead(folder):
            result = _finished(folder)
            away, beside = self._away(executor, devices), records.REFINED
            with self._opened(folder, progress, devices, beside=beside, away=away) as opened:
                refine(
                    opened,
                    trials=result.trials,
                    best=_best(result),
                    rounds=rounds,
                    trials_a_round=trials,
                    until=until,
                    patience=patience,
                    elsewhere=away and functools.partial(spread.run_jobs, opened, away),
                )
            return load(folder)

    def run_trial(
        self,
        *,
        batch_size: int,
        trial: int,
        folder: str | os.PathLike[str] | None = None,
        replicate: int = 0,
        steps: int | Sequence[int] | None = None,
        until: Goal | None = None,
        progress: bool = True,
        devices: Sequence[Any] | None = None,
    ) -> TrialRun:
        """Runs one trial again, bit for bit as in the study, and keeps its parameters.

        Args:
          batch_size: one of the study's.
          trial: its number.
          folder: the study's, whose plan says how trials were packed; needed for the same bits
            only where that was chosen otherwise than now (other trials, another kind of device).
          replicate: 0, or another number for a fresh seed.
          steps: how many; by default until the trial is past the goal, or its budget is spent, that
            of the folder if one is given. Several, in increasing order: its parameters at each are
            kept as `checkpoints`.
          until: another goal, past which it ends instead, at the latest after `steps`.
          progress: a line each half minute of how far it is, or none.
          devices: as in `run`.

        Raises:
          ValueError: the folder holds another study, or one of another type of floats.
          DamagedError: its plan was changed since it was written.
        """
        if isinstance(steps, Sequence) or getattr(steps, "ndim", 0):
            steps = numeric.increasing("steps", list(steps))  # pyright: ignore
        elif steps is not None:
            steps = numeric.integer("steps", steps, 1)
        say = Seldom(lines(progress))
        one = self.planned_trial(
            batch_size=batch_size, trial=trial, folder=folder, replicate=replicate, devices=devices
        )
        measured = one.measured
        if until is not None:
            check_goal("until", until)
            checks.metric(until, self.workload, self.space.names)
            if until.split not in measured:
                whole = dataclasses.replace(self, evaluate=Evaluate())._measured()
                measured = {**measured, until.split: whole[until.split]}
        with (
            compilation_cache.cached(),
            Engine(one.training, mesh=one.mesh, examples=measured) as engine,
        ):
            return trial_run.run_trial(
                engine,
                one.definition,
                one.batch_size,
                one.id,
                layout=one.layout,
                values=one.hyperparameters,
                steps=steps,
                until=until,
                say=say,
            )

    def planned_trial(
        self,
        *,
        batch_size: int,
        trial: int,
        folder: str | os.PathLike[str] | None = None,
        replicate: int = 0,
        devices: Sequence[Any] | None = None,
    ) -> PlannedTrial:
        """What it takes to run one trial again: its key, its hyperparameters and how it is packed.

        Args:
          batch_size: as in `run_trial`.
          trial: as in `run_trial`.
          folder: as in `run_trial`.
          replicate: as in `run_trial`.
          devices: as in `run`.

        Raises:
          ValueError: as in `run_trial`.
          DamagedError: as in `run_trial`.
        """
        folder = None if folder is None else local_path(folder)
        definition, training = self.definition(), self.training()
        size = numeric.plain(batch_size)
        if size is None or size not in definition.spaces:
            raise ValueError(
                f"batch_size: got {batch_size!r}, wanted one of the study's: "
                f"{', '.join(map(str, definition.batch_sizes))}."
            )
        batch_size, trial = int(size), numeric.integer("trial", trial, 0, keys.LARGEST)
        name = TrialId(trial, numeric.integer("replicate", replicate, 0, keys.LARGEST))
        mesh = session.mesh_of(devices)
        session.check(training, mesh)

        def found() -> tuple[
            Layout, Mapping[str, float], Mapping[str, int], bool | None, tuple[int, ...]
        ]:
            """What process 0 finds, which may be the only one that sees the folder."""
            values: Mapping[str, float] | None = None
            if trial >= FIRST_REFINED:
                values = refined_values(folder, batch_size, trial)
            mixes = training.mixes_examples
            if batch_size == self._train_examples():  # whether its order matters
                mixes = self._mixes()
            packing, measured = self._layout(batch_size, mesh), self._measured()
            budgets = (definition.max_steps[batch_size],)
            if folder is not None:
                stored = trial_run.stored(folder, training, definition, mesh, batch_size, name)
                packing, values = stored.layout, values or stored.hyperparameters
                budgets, mixes = stored.budgets, stored.mixes_examples
                measured = stored.measured or measured
            if values is None:
                values = trial_run.drawn(definition, batch_size, trial)
            return packing, values, measured, mixes, budgets

        packing, values, measured, mixes, (*earlier, last) = hosts.agreed(found)
        definition = dataclasses.replace(
            definition,
            max_steps={**definition.max_steps, batch_size: last},
            earlier_budgets={batch_size: tuple(earlier)},
        )
        training, packing = dataclasses.replace(training, mixes_examples=mixes), Layout(*packing)
        return PlannedTrial(
            training, definition, mesh, batch_size, name, packing, values, dict(measured)
        )

    def _run(
        self,
        folder: Path,
        progress: bool | Callable[[Progress], None],
        devices: Sequence[Any] | None,
        executor: Executor | None,
        *,
        extend: bool,
    ) -> Result:
        if (copy := leading.follow(self.training, devices, executor)) is not None:
            return load(copy)
        away, probe = self._away(executor, devices), self.lanes == "probe"
        with (
            leading.lead(folder),
            self._opened(folder, progress, devices, extend=extend, away=away) as opened,
        ):
            if away is None:
                sweep.run(opened, probe=probe)
            else:
                spread.run(opened, away, probe=probe)
        result = load(folder)
        sweep.warn_of_misses(
            result.steps_to_target(), result.measurements, result.trials, result.goal
        )
        return result

    def _opened(
        self,
        folder: Path,
        progress: bool | Callable[[Progress], None],
        devices: Sequence[Any] | None,
        *,
        extend: bool = False,
        beside: str | None = None,
        away: spread.Away | None = None,
    ) -> AbstractContextManager[session.Session]:
        return session.opened(
            self.training(),
            self._titled(),
            self._layout,
            folder,
            progress,
            devices,
            extend=extend,
            beside=beside,
            workers=None if away is None else away.words,
        )

    def _away(self, executor: Executor | None, devices: Sequence[Any] | None) -> spread.Away | None:
        """The workers, and what they are sent; None where this process trains."""
        if executor is None:
            return None
        parts = {"workload": self.workload, "study": self}
        names = {
            f"{of}.{field.name}": getattr(part, field.name)
            for of, part in parts.items()
            for field in dataclasses.fields(part)
        }
        return spread.away(executor, devices, self.training, self._layout, names)

    def training(self) -> Training:
        """What is trained, and how, as an engine takes it."""
        return Training(
            workload=self.workload,
            optimizer=optimizers.get(self.optimizer),
            schedule=schedules.get(self.schedule)[0],
            names=tuple(self.space.names),
            seed=self.seed,
            goal=self.goal,
        )

    def _layout(self, batch_size: int, mesh: Mesh) -> Layout:
        """How the trials of a batch size are packed, unless its plan says otherwise."""
        chosen = layout.choose(
            self.workload,
            cpu=mesh.devices.flat[0].platform == "cpu",
            batch_size=batch_size,
            trials=self.trials,
            lanes=None if isinstance(self.lanes, str) else self.lanes,
            microbatch=None if self.microbatch == "auto" else self.microbatch,
        )
        cut = self.microbatch == "auto" and chosen.microbatch < batch_size
        if cut and self.workload.ghost_batch_size is None and self._mixes() is not False:
            return chosen.uncut(batch_size)
        return chosen

    def _mixes(self) -> bool | None:
        """Whether the loss of an example depends on the others of its batch."""
        definition = self.definition()
        typical = definition.spaces[definition.batch_sizes[0]].typical()
        return mixes_examples(self.workload, typical)

    def _measured(self) -> dict[str, int]:
        """How many examples are measured of every split that is."""
        return self.evaluation.counts(self.workload.splits(), self.goal.split)

    def definition(self) -> Definition:
        """The study in plain values, checked against the size of the training set."""
        sizes = self.resolved_batch_sizes()
        infeasible = 10 * self.trials if self.max_infeasible is None else self.max_infeasible
        max_steps = {
            size: arguments.budget(
                self.max_steps,
                self.max_epochs,
                batch_size=size,
                train_examples=self._train_examples(),
            )
            for size in sizes
        }
        return Definition(
            workload=self.workload.name,
            optimizer=optimizers.get(self.optimizer).name,
            schedule=schedules.name(self.schedule),
            goal=self.goal,
            spaces={size: self.space.at(size, max_steps[size]) for size in sizes},
            trials=self.trials,
            max_infeasible=infeasible,
            max_steps=max_steps,
            earlier_budgets={},
            stop=self.stop,
            curves=self.curves,
            evaluation_spacing=self.evaluation_spacing,
            evaluate=self.evaluation,
            seed=self.seed,
            train_examples=self._train_examples(),
        )

    def _titled(self) -> Definition:
        """The study in plain values, its workload as folders name it."""
        return dataclasses.replace(self.definition(), workload=self.workload.title())

    def _train_examples(self) -> int:
        if self.workload.train_examples is not None:
            return self.workload.train_examples
        return arrays.examples(self.workload.splits()["train"])


def _finished(folder: Path) -> Result:
    result = load(folder)
    incomplete = (result.trials["status"] == Status.INCOMPLETE).any()
    done = set(result.trials.index.get_level_values("batch_size"))
    if incomplete or set(result.definition.batch_sizes) - done:
        raise ValueError(f"{folder}: the study is not finished; study.run(folder) goes on.")
    return result


def _best(result: Result) -> dict[int, float]:
    steps = result.steps_to_target()
    return dict(zip(steps["batch_size"].tolist(), steps["steps"].tolist(), strict=True))
