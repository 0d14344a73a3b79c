"""A pilot: short runs that find what a study has to be told, and what it will cost."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
import pandas as pd

from batchscale import arguments, arrays, columns, keys, numeric, optimizers, schedules
from batchscale.evaluate import Evaluate
from batchscale.files import local_path, replacing
from batchscale.metrics import Goal
from batchscale.metrics.goal import Mode, check_mode
from batchscale.optimizers import Factory
from batchscale.records import Status
from batchscale.result import Result, load
from batchscale.runner.progress import Progress
from batchscale.schedules import Schedule
from batchscale.stopping import evaluation_grid
from batchscale.study import Study, powers_of_two
from batchscale.tuner import Distribution, LogUniform, SearchSpace, ShareOfBudget
from batchscale.workloads import Workload

# Choices.
_WIDE = {"adam": (1e-5, 1.0), "adamw": (1e-5, 1.0)}  # learning rates that are tried
_WIDE_OTHERS = (1e-4, 10.0)
_FIXED = {"momentum": 0.9, "weight_decay": 0.01}
_OF_SCHEDULES = {
    "warmup_steps": ShareOfBudget(0.02),
    "learning_rate_decay_steps": ShareOfBudget(1.0),
    "end_learning_rate_factor": 0.1,
}
_SMALLEST, _LARGEST = 8, 512  # batch sizes that are tried
_RATES = 8  # learning rates that are tried at each of them
_SEEDS = 5  # under which the best setting is run again
_RUNS = 30  # of a trial's steps to target that a measurement costs a batch size, about
_OVERHEAD = 1.3  # what a round takes beside its steps
_DESIGNING = 1.5  # seconds that the design takes a batch size
_EPOCHS, _STEPS = 100, 20_000  # of the best setting, at most
_SHARES = {"scan": 0.45, "rerun": 0.4}  # of the pilot's time
_EARLY = 0.6  # of the rerun's steps, at which the goal is set: it can be reached well before
_EVALUATION = 0.3  # of the time of training that evaluations of the goal's split may take
_FEWEST = 512  # elements of a split on which a goal is decided
_SPACINGS = (0.05, 0.1, 0.2)
_PATIENCE = {False: 6.0, True: 2.0}  # budgets, in expected steps; with a schedule that ends
_DECADES = 10.0  # the range of the learning rate goes so far beyond the best ones
_AWAY = 16  # batch sizes go so far from the rough critical one
_FILE = "pilot.json"
_VERSION = 1

_TIMED = columns.declare(
    "timings",
    *("batch_size", "seconds_per_step", "seconds_per_evaluation", "starting_seconds"),
)
_TABLE = columns.declare(
    "pilot",
    *("batch_size", "seconds_per_step", "seconds_per_evaluation", "best_learning_rate"),
    *("diverges_from", "best", "steps"),
)
_EXPECTED = columns.declare(
    "expected cost of a measurement", *("batch_size", "steps", "max_steps", "minutes")
)


@dataclasses.dataclass(frozen=True)
class Pilot:
    """What short runs have found, and the study that follows from it.

    Attributes:
      study: to be printed, edited with `dataclasses.replace`, measured or run.
      table: one row a batch size that was tried: `seconds_per_step` of a trial in a full pack;
        `seconds_per_evaluation` of the goal's split; the `best_learning_rate` of those that were
        tried; `diverges_from`, the smallest one above it that diverged, inf if none did; `best`,
        the metric of its trial at the end; and `steps`, after which the first of its trials was as
        good as the worst of these bests.
      rerun: the best setting of the middle batch size under fresh seeds: `step`, and the metric's
        `median`, `low` and `high` of what each seed's best was until then.
      expected: one row a batch size of the study: the `steps` to the goal as the pilot expects
        them, `max_steps`, and the `minutes` that their measurement is likely to take.
      reasons: why the goal, the learning rates, the batch sizes, the budget and the evaluation are
        what they are, in words.
      seconds: that the pilot took.
    """

    study: Study
    table: pd.DataFrame
    rerun: pd.DataFrame
    expected: pd.DataFrame
    reasons: Mapping[str, str]
    seconds: float

    @property
    def minutes(self) -> float:
        """That the measurement is likely to take."""
        return float(self.expected["minutes"].sum())

    def __str__(self) -> str:
        study = self.study
        return "\n".join(
            [
                f"{study.workload.name}, {optimizers.get(study.optimizer).name}: a pilot of "
                f"{self.seconds / 60:.1f} minutes",
                self.table.to_string(index=False, float_format="{:.3g}".format),
                *(f"{name}: {words}" for name, words in self.reasons.items()),
                f"A measurement is likely to take {self.minutes:.0f} minutes here.",
            ]
        )


@dataclasses.dataclass(frozen=True)
class _Asked:
    """The arguments of a pilot, checked."""

    workload: Workload
    optimizer: str | Factory
    space: SearchSpace
    rate: Distribution
    rate_given: bool
    schedule: str | Schedule
    metric: str
    mode: Mode
    goal: Goal | None
    batch_sizes: Sequence[int | Literal["full"]] | None
    seconds: float
    answer_seconds: float
    seed: int
    progress: bool | Callable[[Progress], None]
    devices: Sequence[Any] | None

    @property
    def never(self) -> Goal:
        """A goal that nothing reaches, for trials that are trained to their ends."""
        return Goal(self.metric, -1e30 if self.mode == "min" else 1e30, self.mode)

    def worse(self, values: Any) -> np.ndarray:
        """Values as something to be made small."""
        values = np.asarray(values, np.float64)
        return values if self.mode == "min" else -values

    def study(self, workload: Workload, **others: Any) -> Study:
        """A study of the workload whose trials run to their ends, unless it is said otherwise."""
        return Study(
            **{
                "workload": workload,
                "optimizer": self.optimizer,
                "space": self.space_with(self.rate),
                "goal": self.never,
                "schedule": self.schedule,
                "stop": "budget",
                "curves": "exact",
                "trials": _RATES,
                "max_infeasible": 0,
                "evaluate": Evaluate(splits=[]),
                "seed": self.seed,
                **others,
            }
        )

    def space_with(self, rate: Any) -> SearchSpace:
        """The space, with another range of learning rates."""
        return SearchSpace(**{**dict(self.space.items()), "learning_rate": rate})


def pilot(
    workload: Workload,
    optimizer: str | Factory = "sgd",
    *,
    minutes: float = 3.0,
    folder: str | os.PathLike[str] | None = None,
    answer_minutes: float = 30.0,
    metric: str | None = None,
    mode: Mode = "min",
    goal: Goal | None = None,
    space: SearchSpace | None = None,
    batch_sizes: Sequence[int | Literal["full"]] | None = None,
    schedule: str | Schedule = "constant",
    seed: int = 0,
    progress: bool | Callable[[Progress], None] = True,
    devices: Sequence[Any] | None = None,
) -> Pilot:
    """Finds out by short runs what a study of a model has to be told.

    Times steps and evaluations at three batch sizes; tries learning rates over a wide range at
    each; runs the best of the middle one again under fresh seeds, and takes for the goal what
    their median reaches well before the end (AlgoPerf sets its targets by the median of the
    winner's reruns: Dahl et al. 2023, arXiv:2306.07179). Whatever is given is left as it is.

    Args:
      workload: what is trained.
      optimizer: as for `Study`. `momentum` is 0.9 and `weight_decay` 0.01 where `space` says
        nothing else.
      minutes: that it takes, about; compilation comes on top.
      folder: where everything is written, so that the same call goes on after an interruption and
        returns at once when it is done. A temporary one by default.
      answer_minutes: that measuring may take afterwards: goals that cost more are not chosen.
      metric: `split/name` of the goal; by default `validation/error` where that is measured and
        labels are single, else `validation/loss`.
      mode: `"max"` if more is better.
      goal: to be taken as it is.
      space: of hyperparameters; a range of `learning_rate` in it is taken as it is.
      batch_sizes: of the study, to be taken as they are.
      schedule: as for `Study`. Its lengths are shares of the budget, where `space` says nothing
        else: a warm-up of 2%, and a decay to a tenth over all of it.
      seed: of all trials.
      progress: as in `Study.run`.
      devices: as in `Study.run`.

    Raises:
      ValueError: nothing that was tried got better, all of it diverged, or an argument is not as
        above; it says what to change.

    >>> from batchscale import workloads
    >>> found = pilot(  # doctest: +SKIP
    ...     workloads.get("digits/fc_64"), "sgd", minutes=0.3, answer_minutes=1, progress=False)
    """
    asked = _asked(
        workload, optimizer, minutes, answer_minutes, metric, mode, goal, space, batch_sizes,
        schedule, seed, progress, devices,
    )  # fmt: skip
    if folder is None:
        with tempfile.TemporaryDirectory(prefix="batchscale-pilot-") as temporary:
            return _pilot(asked, Path(temporary))
    return _pilot(asked, local_path(folder))


def _asked(
    workload: Workload,
    optimizer: str | Factory,
    minutes: float,
    answer_minutes: float,
    metric: str | None,
    mode: Mode,
    goal: Goal | None,
    space: SearchSpace | None,
    batch_sizes: Sequence[int | Literal["full"]] | None,
    schedule: str | Schedule,
    seed: int,
    progress: bool | Callable[[Progress], None],
    devices: Sequence[Any] | None,
) -> _Asked:
    if not isinstance(workload, Workload):
        raise TypeError(
            f"workload: got {workload!r}, wanted a Workload: Workload.from_model(model, data), "
            "workloads.get(name), or one of your own."
        )
    check_mode(mode, "pilot")
    wanted = "minutes above 0, such as 3"
    seconds = 60 * float(numeric.above("minutes", minutes, 0, wanted))
    answer = 60 * float(numeric.above("answer_minutes", answer_minutes, 0, wanted))
    found = optimizers.get(optimizer)
    given = {} if space is None else dict(space.items())
    rate = given.get("learning_rate", LogUniform(*_WIDE.get(found.name, _WIDE_OTHERS)))
    if not isinstance(rate, Distribution):
        raise ValueError(
            f"space: got learning_rate={rate!r}, wanted a range of it to search, or none, which a "
            "pilot finds."
        )
    needed = [*found.required, *schedules.get(schedule)[1]]
    fixed = {name: value for name, value in (_FIXED | _OF_SCHEDULES).items() if name in needed}
    values: dict[str, Any] = {**fixed, **given, "learning_rate": rate}
    if goal is not None:
        metric, mode = goal.metric, goal.mode
    metric = metric or _metric(workload)
    splits = workload.splits()
    if metric.partition("/")[0] not in splits:
        raise ValueError(
            f"metric: got {metric!r}, and the workload has the splits {', '.join(splits)}."
        )
    return _Asked(
        workload,
        optimizer,
        SearchSpace(**values),
        rate,
        "learning_rate" in given,
        schedule,
        metric,
        mode,
        goal,
        batch_sizes,
        seconds,
        answer,
        numeric.integer("seed", seed, 0),
        progress,
        devices,
    )


def _metric(workload: Workload) -> str:
    """What a goal is of, where nothing is said."""
    splits = workload.splits()
    split = "validation" if "validation" in splits else "train"
    batch = arrays.like_examples(splits[split], 2)
    params, model_state = jax.eval_shape(workload.init, keys.shape())
    measured = jax.eval_shape(
        lambda *given: workload.metrics(*given[:2], workload.prepare(given[2], None)),
        params, model_state, batch,
    )  # fmt: skip
    single = workload.labels in batch and batch[workload.labels].ndim == 1
    return f"{split}/{'error' if 'error' in measured and single else 'loss'}"


class _State:
    """What a pilot has decided by the clock, on disk: all else follows from it and its runs."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._began = time.monotonic()
        self.known: dict[str, Any] = {"version": _VERSION, "seconds": 0.0}
        if path.exists():
            self.known = _read(path)

    def write(self, **values: Any) -> None:
        """Adds values, and the time since the last writing."""
        now = time.monotonic()
        self.known |= values
        self.known["seconds"] += now - self._began
        self._began = now
        with replacing(self._path) as file:
            file.write(json.dumps(self.known, indent=1).encode() + b"\n")


def _read(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text())
        if values["version"] != _VERSION:
            raise ValueError(f"its version is {values['version']}")
        pd.DataFrame(values.get("timed", []), columns=_TIMED).astype(float)
        return {**values, "seconds": float(values["seconds"])}
    except (ValueError, KeyError, TypeError, UnicodeDecodeError) as error:
        raise ValueError(
            f"{path}: not the file of a pilot ({error}). Give another folder, or remove this file: "
            "what it holds is timed again."
        ) from None


def _pilot(asked: _Asked, folder: Path) -> Pilot:
    state = _State(folder / _FILE)
    known = state.known
    if "timed" not in known:
        began, timed = time.monotonic(), _timed(asked)
        # Nearly all of it is compilation.
        starting = (time.monotonic() - began) / len(timed)
        state.write(timed=timed.assign(starting_seconds=starting).to_dict("records"))
    effort = _effort(asked, pd.DataFrame(known["timed"]))
    if "scanned" not in known:
        _run(asked, _scan(asked, effort), folder / "scan")
        state.write(scanned=True)
    table = _table(asked, effort, load(folder / "scan"))
    again = _again(asked, effort, table)
    if "rerun" not in known:
        _run(asked, again, folder / "rerun")
        state.write(rerun=True)
    rerun = _medians(asked, load(folder / "rerun"))
    study, expected, reasons = _study(asked, effort, table, rerun)
    return Pilot(study, table, rerun, expected, reasons, known["seconds"])


def _run(asked: _Asked, study: Study, folder: Path) -> None:
    with warnings.catch_warnings():
        # That nothing reaches a goal that nothing can reach is no news.
        warnings.filterwarnings("ignore", message=".*no trial")
        study.run(folder, progress=asked.progress, devices=asked.devices)


def _timed(asked: _Asked) -> pd.DataFrame:
    """Seconds of a step and of an evaluation, of a trial in a full pack, at three batch sizes."""
    examples = arrays.examples(asked.workload.splits()["train"])
    largest = max(min(_LARGEST, examples // 8), 1)
    smallest = min(_SMALLEST, largest)
    sizes = sorted(
        {smallest, 2 ** round(math.log2(math.sqrt(smallest * largest))), _power(largest)}
    )
    study = asked.study(asked.workload, batch_sizes=sizes, max_steps=_STEPS)
    return study.speeds(devices=asked.devices)


def _power(size: float) -> int:
    """The power of two at or below a number."""
    return 1 << max(int(math.log2(max(size, 1))), 0)


@dataclasses.dataclass(frozen=True)
class _Effort:
    """How far trials are trained, by how fast the machine is.

    Attributes:
      timed: seconds of a step and of an evaluation, by batch size.
      workload: whose goal's split is no larger than the time of the answer allows.
      spacing: of evaluations.
      share: of the goal's split that is measured.
      scan: steps of each trial of the scan, by batch size.
      rerun: steps of the best setting again.
    """

    timed: pd.DataFrame
    workload: Workload
    spacing: float
    share: float
    scan: Mapping[int, int]
    rerun: int

    @property
    def sizes(self) -> list[int]:
        """The batch sizes that are tried."""
        return self.timed["batch_size"].astype(int).tolist()

    @property
    def middle(self) -> int:
        """The batch size at which the goal is found."""
        return self.sizes[len(self.sizes) // 2]

    def seconds_per_step(self, sizes: Any) -> np.ndarray:
        """Of a trial, between the batch sizes that were timed by power, beyond them by the last."""
        logs = np.log(self.timed[["batch_size", "seconds_per_step"]].to_numpy(float)).T
        sizes = np.log(np.asarray(sizes, np.float64))
        found = np.interp(sizes, *logs)
        # More examples than were timed take longer in proportion.
        return np.exp(found + np.maximum(sizes - logs[0, -1], 0))

    def seconds_per_evaluation(self) -> float:
        """Of the goal's split, as far as it is measured."""
        return float(self.timed["seconds_per_evaluation"].median()) * self.share


def _evaluations(steps: float, spacing: float) -> float:
    """How many there are in so many steps."""
    return len(evaluation_grid(max(int(steps), 1), spacing)) if steps < 1e7 else 500.0


def _effort(asked: _Asked, timed: pd.DataFrame) -> _Effort:
    splits = asked.workload.splits()
    split = asked.metric.partition("/")[0]
    rough = _Effort(timed, asked.workload, _SPACINGS[0], 1.0, {}, 0)
    middle, sizes = rough.middle, np.array(rough.sizes, np.float64)
    step, whole = float(rough.seconds_per_step(middle)), rough.seconds_per_evaluation()
    many = np.geomspace(sizes[0], sizes[-1], 7)
    # As if scaling were perfect below the middle, and there were none above it.
    price = _RUNS * (rough.seconds_per_step(many) * np.maximum(1, middle / many)).sum()
    examples = arrays.examples(splits["train"])
    most = min(_STEPS, max(_EPOCHS * examples / middle, 100))
    affordable = asked.answer_seconds / (price * _OVERHEAD * (1 + _EVALUATION))
    affordable = min(affordable, _SHARES["rerun"] * asked.seconds / (_SEEDS * step * 1.3))
    steps = int(max(min(affordable, most), 50))
    spacing, share = _SPACINGS[-1], 1.0
    for spacing in _SPACINGS:
        evaluations = _evaluations(steps, spacing) * whole
        affordable = 7 * _RUNS * _OVERHEAD * (steps * step + evaluations) < asked.answer_seconds / 4
        if affordable or evaluations <= _EVALUATION * steps * step:
            break
    else:
        allowed = _EVALUATION * steps * step / (_evaluations(steps, spacing) * whole)
        share = min(max(allowed, _fewest(splits[split], asked.workload)), 1.0)
    workload = asked.workload if share == 1.0 else _part(asked.workload, split, share, asked.seed)
    scan = {}
    for size in rough.sizes:
        seconds = _SHARES["scan"] * asked.seconds / len(sizes) / _RATES
        seconds -= _evaluations(100, 0.2) * whole * share
        a_step = float(rough.seconds_per_step(size))
        scan[size] = int(min(max(seconds / a_step, 30), steps * max(1.0, middle / size)))
    return _Effort(timed, workload, spacing, share, scan, steps)


def _fewest(split: Mapping[str, np.ndarray], workload: Workload) -> float:
    """The share of a split that a goal is decided on at least."""
    labels = split.get(workload.labels)
    elements = math.prod(labels.shape[1:]) if labels is not None else 1
    return min(_FEWEST / (arrays.examples(split) * max(elements, 1)), 1.0)


def _part(workload: Workload, split: str, share: float, seed: int) -> Workload:
    """The workload, with a fixed random part of a split."""
    splits = dict(workload.splits())
    examples = arrays.examples(splits[split])
    count = max(round(share * examples), 1)
    chosen = np.sort(np.random.default_rng(seed).permutation(examples)[:count])
    splits[split] = workload.read(split, chosen)
    return dataclasses.replace(workload, data=splits, titled=None)


def _scan(asked: _Asked, effort: _Effort) -> Study:
    return asked.study(
        effort.workload,
        batch_sizes=effort.sizes,
        max_steps=dict(effort.scan),
        evaluation_spacing=0.2,
    )


def _table(asked: _Asked, effort: _Effort, scan: Result) -> pd.DataFrame:
    """What the scan has found, by batch size."""
    curves, trials = scan.measurements[asked.metric], scan.trials
    rows, reached = [], []
    for size in effort.sizes:
        here = trials.xs(size, level="batch_size")
        rates = here["learning_rate"].to_numpy(float)
        diverged = (here["status"] == Status.INFEASIBLE).to_numpy()
        ends = [
            asked.worse(curves.xs((size, *trial), level=(0, 1, 2)).tail(3)).mean()
            for trial in here.index
        ]
        ends = np.where(diverged, np.inf, np.nan_to_num(ends, nan=np.inf, posinf=np.inf))
        best = int(np.argmin(ends))
        if not math.isfinite(ends[best]):
            low, high = rates.min(), rates.max()
            raise ValueError(
                f"pilot: at batch size {size} all {len(here)} trials diverged, with learning rates "
                f"from {low:.1g} to {high:.1g}. Give a range of lower ones, "
                "space=SearchSpace(learning_rate=LogUniform(low, high)), and make sure that the "
                "data and the loss are finite."
            )
        started = asked.worse(curves.xs((size, *here.index[best], 0), level=(0, 1, 2, 3)))[0]
        above = rates[diverged & (rates > rates[best])]
        reached.append((started, ends[best]))
        rows.append([size, rates[best], above.min() if len(above) else np.inf, ends[best]])
    found = pd.DataFrame(
        rows, columns=["batch_size", "best_learning_rate", "diverges_from", "best"]
    )
    common = max(best for _, best in reached)
    started = min(start for start, _ in reached)
    if not common < started:
        size = int(found["batch_size"].iloc[int(np.argmax([best for _, best in reached]))])
        raise ValueError(
            f"pilot: at batch size {size} no trial got better than it began ({asked.metric} "
            f"{abs(started):.4g}) in {effort.scan[size]:,} steps. Give it more minutes, or other "
            "ranges of hyperparameters."
        )
    if common > started - 0.1 * (started - min(best for _, best in reached)):
        common = started - 0.1 * (started - min(best for _, best in reached))
    steps = []
    for size in effort.sizes:
        values = curves.xs(size, level="batch_size")
        past = values.index.get_level_values("step")[asked.worse(values) <= common]
        steps.append(float(past.min()) if len(past) else math.inf)
    found = found.merge(effort.timed, on="batch_size").assign(
        steps=steps, best=np.where(asked.mode == "min", 1, -1) * found["best"]
    )
    return found[list(_TABLE)]


def _again(asked: _Asked, effort: _Effort, table: pd.DataFrame) -> Study:
    """The best setting of the middle batch size under fresh seeds."""
    middle = table.loc[table["batch_size"] == effort.middle].iloc[0]
    return asked.study(
        effort.workload,
        space=asked.space_with(float(middle["best_learning_rate"])),
        batch_sizes=[effort.middle],
        trials=_SEEDS,
        max_steps=effort.rerun,
        evaluation_spacing=effort.spacing,
        seed=asked.seed + 1,
    )


def _medians(asked: _Asked, result: Result) -> pd.DataFrame:
    """The best until each step: its median over seeds, and its extremes."""
    curves = result.measurements[asked.metric].droplevel("batch_size")
    wide = curves.unstack(["trial", "replicate"]).sort_index()  # noqa: PD010
    least = np.minimum.accumulate(np.nan_to_num(asked.worse(wide), nan=np.inf), axis=0)
    sign = 1 if asked.mode == "min" else -1
    quantiles = np.quantile(least, [0.5, 0.0, 1.0], axis=0 + 1, method="median_unbiased")
    return pd.DataFrame(
        {"step": wide.index.to_numpy(), "median": sign * quantiles[0]}
        | {"low": sign * quantiles[1], "high": sign * quantiles[2]}
    )


def _noise(asked: _Asked, effort: _Effort, value: float) -> float:
    """The standard error of a share on the goal's split; of others nothing is known beforehand."""
    split, _, name = asked.metric.partition("/")
    if name not in ("error", "accuracy") or not 0 < value < 1:
        return 0.0
    return math.sqrt(value * (1 - value) / arrays.examples(effort.workload.splits()[split]))


def _goal(asked: _Asked, effort: _Effort, rerun: pd.DataFrame) -> tuple[Goal, int, str]:
    """The goal, the steps after which the median of the reruns is there, and why."""
    steps, median = rerun["step"].to_numpy(int), rerun["median"].to_numpy(float)
    least = asked.worse(median)
    if asked.goal is not None:
        there = np.flatnonzero(asked.goal.reached(median))
        if len(there):
            return asked.goal, int(max(steps[there[0]], 1)), f"{asked.goal}, as it was given"
        return (
            asked.goal,
            2 * int(steps[-1]),
            (
                f"{asked.goal}, as it was given; the best setting of the pilot has not reached it "
                f"in {steps[-1]:,} steps, so that its steps are a guess"
            ),
        )
    noise = _noise(asked, effort, float(median[-1]))
    # Well before the end, and where the curve still falls by more than the split's noise.
    early = (steps <= _EARLY * steps[-1]) & (least >= least[-1] + noise) & (least < least[0])
    place = int(np.flatnonzero(early)[-1]) if early.any() else int(np.argmin(least))
    value = _rounded(float(least[place]), float(least[0]))
    goal = Goal(asked.metric, value if asked.mode == "min" else -value, asked.mode)
    there = np.flatnonzero(goal.reached(median))
    at = int(steps[there[0]]) if len(there) else int(steps[-1])
    words = (
        f"{goal}: the median of {_SEEDS} reruns of batch size {effort.middle} is past it after "
        f"{at:,} of {steps[-1]:,} steps, and is at {median[-1]:.4g} in the end"
    )
    if noise:
        words += f"; the standard error of the split is {noise:.2g}"
    return goal, max(at, 1), words


def _rounded(value: float, started: float) -> float:
    """A round number that is no harder than a value, to a hundredth of the way to it."""
    way = started - value
    if not way > 0:
        return value
    unit = 10.0 ** math.floor(math.log10(way / 50))
    return round(math.ceil(value / unit) * unit, 12)


def _rough(table: pd.DataFrame) -> float:
    """The critical batch size by the scan's steps: a hint of where to measure, and nothing else."""
    sizes, steps = table[["batch_size", "steps"]].to_numpy(float).T
    known = np.isfinite(steps) & (steps > 0)
    if known.sum() < 2:
        return float(np.sqrt(sizes[0] * sizes[-1]))
    grid = np.geomspace(sizes[0], 4 * sizes[-1], 100)
    away = np.log(steps[known]) - np.log1p(grid[:, None] / sizes[known])
    return float(grid[np.argmin(away.var(axis=1))])


def _study(
    asked: _Asked, effort: _Effort, table: pd.DataFrame, rerun: pd.DataFrame
) -> tuple[Study, pd.DataFrame, dict[str, str]]:
    """The study, what it is likely to cost, and why it is what it is."""
    goal, steps, of_goal = _goal(asked, effort, rerun)
    critical = _rough(table)
    examples = arrays.examples(asked.workload.splits()["train"])
    if asked.batch_sizes is None:
        sizes = _sizes(effort, critical, steps, examples, asked.answer_seconds)
        of_sizes = (
            f"{sizes[0]} to {sizes[-1]}, about the rough critical batch size of the short runs, "
            f"{critical:.2g}"
        )
    else:
        sizes = arguments.batch_sizes(asked.batch_sizes, examples, asked.workload.name)
        of_sizes = "as they were given"
    rate, of_rate = _rates(asked, table, sizes)
    likely = _likely(effort, critical, steps, sizes)
    ends = schedules.get(asked.schedule)[1]
    patience = _PATIENCE["learning_rate_decay_steps" in ends]
    budget = {size: math.ceil(patience * likely[size]) for size in sizes}
    study = asked.study(
        effort.workload,
        space=asked.space_with(rate),
        batch_sizes=sizes,
        goal=goal,
        stop=3.0,
        curves="bounds",
        trials=32,
        max_infeasible=None,
        max_steps=budget,
        evaluation_spacing=effort.spacing,
        evaluate=Evaluate(),
    )
    starting = float(effort.timed["starting_seconds"].iloc[0]) + _DESIGNING
    minutes = [(_price(effort, size, likely[size]) + starting) / 60 for size in sizes]
    expected = pd.DataFrame(
        {
            "batch_size": sizes,
            "steps": [likely[size] for size in sizes],
            "max_steps": [budget[size] for size in sizes],
            "minutes": minutes,
        }
    )
    split = asked.metric.partition("/")[0]
    of_evaluation = f"each {effort.spacing:.0%} of the steps, on all of {split}"
    if effort.share < 1:
        count = arrays.examples(effort.workload.splits()[split])
        of_evaluation = (
            f"each {effort.spacing:.0%} of the steps, on a fixed random part of {split}, {count:,} "
            f"examples: all of it would take more than {_EVALUATION:.0%} of the training"
        )
    return (
        study,
        expected[list(_EXPECTED)],
        {
            "goal": of_goal,
            "learning_rate": of_rate,
            "batch_sizes": of_sizes,
            "max_steps": f"{patience:g} times the steps that are expected",
            "evaluation": of_evaluation,
        },
    )


def _likely(effort: _Effort, critical: float, steps: int, sizes: Sequence[int]) -> dict[int, float]:
    """Steps to the goal by the rough curve, through those of the middle batch size."""
    through = steps / (1 + critical / effort.middle)
    return {size: max(through * (1 + critical / size), 1.0) for size in sizes}


def _price(effort: _Effort, size: int, steps: float) -> float:
    """Seconds that a batch size is likely to take."""
    evaluations = _evaluations(steps, effort.spacing) * effort.seconds_per_evaluation()
    training = float(effort.seconds_per_step(size)) * steps
    return _RUNS * _OVERHEAD * (training + evaluations)


def _sizes(
    effort: _Effort, critical: float, steps: int, examples: int, seconds: float
) -> list[int]:
    """Powers of two about a rough critical batch size, no more than are likely to be affordable."""
    low = max(critical / _AWAY, 1)
    high = min(critical * _AWAY, max(examples // 2, 1))
    while len(sizes := powers_of_two(1, max(_power(high), 1))) < 4 and high < examples:
        high *= 2
    sizes = [size for size in sizes if size >= _power(low)]
    if len(sizes) < 4:
        sizes = powers_of_two(1, _power(high))[-4:]
    likely = _likely(effort, critical, steps, sizes)
    cost = {size: _price(effort, size, likely[size]) for size in sizes}
    if len(sizes) > 8 and sum(cost[size] for size in sizes) > seconds / 2:
        sizes = sizes[::2] if len(sizes) % 2 else sizes[1::2]
    while len(sizes) > 5 and sum(cost[size] for size in sizes) > seconds:
        dearest = max(sizes[0], sizes[-1], key=lambda size: cost[size])
        sizes.remove(dearest)
    return sizes


def _rates(asked: _Asked, table: pd.DataFrame, sizes: Sequence[int]) -> tuple[Distribution, str]:
    """The range of learning rates, and why."""
    if asked.rate_given:
        return asked.rate, "as it was given"
    tried = table["batch_size"].to_numpy(float)
    best = table["best_learning_rate"].to_numpy(float)
    low = best.min() / _DECADES * min(1.0, math.sqrt(sizes[0] / tried[0]))
    high = best.max() * _DECADES * max(1.0, math.sqrt(sizes[-1] / tried[-1]))
    low, high = _one_digit(low, math.floor), _one_digit(high, math.ceil)
    diverged = table["diverges_from"].min()
    words = (
        f"{low:g} to {high:g}, a factor of {_DECADES:g} beyond the best of the short runs, "
        f"{best.min():.2g} to {best.max():.2g}"
    )
    if math.isfinite(diverged):
        words += f"; training diverged from {diverged:.2g} on"
    return LogUniform(low, high), words


def _one_digit(value: float, way: Callable[[float], int]) -> float:
    unit = 10.0 ** math.floor(math.log10(value))
    return float(f"{way(value / unit) * unit:.1g}")
