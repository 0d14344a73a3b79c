"""A pilot: short runs that find what a study has to be told, and what it will cost."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import json
import math
import os
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from batchscale import arguments, arrays, optimizers
from batchscale.arguments import PerBatchSize
from batchscale.engine import hosts
from batchscale.evaluate import Evaluate
from batchscale.files import local_path, numbered, replacing
from batchscale.metrics import Goal
from batchscale.metrics.goal import Mode
from batchscale.numeric import short
from batchscale.optimizers import Factory
from batchscale.piloting.asked import Asked, checked
from batchscale.piloting.deciding import decided, longer
from batchscale.piloting.effort import TIMED, Effort, effort_of, timed
from batchscale.piloting.scanning import again, medians, reaching, scan, table_of
from batchscale.result import load
from batchscale.runner.progress import Progress, tell, took
from batchscale.schedules import OfSteps, Schedule
from batchscale.study import Study
from batchscale.tuner import SearchSpace
from batchscale.workloads import Workload

# Choices.
_FILE = "pilot.json"
_VERSION = 1
_UNREADABLE = OverflowError, RecursionError, OSError


@dataclasses.dataclass(frozen=True)
class Pilot:
    """What short runs have found, and the study that follows from it.

    Attributes:
      study: to be printed, edited with `dataclasses.replace`, measured or run.
      table: of the short runs over many learning rates, one row a batch size that was tried:
        `seconds_per_step` of a trial in a full pack; `seconds_per_evaluation` of the goal's split;
        the `best_learning_rate` of those that were tried, the first to get about as far as every
        batch size has got; the `steps` that took; `diverges_from`, the smallest rate above it that
        diverged, inf if none did; and `best`, the metric of its trial at the end.
      rerun: the best setting of the middle batch size under fresh seeds: `step`, and the metric's
        `median`, `low` and `high` of what each seed's best was until then.
      expected: one row a batch size of the study: the `steps` to the goal as the pilot expects
        them, `max_steps`, and the `minutes` that their measurement is likely to take.
      reasons: why the goal, the learning rates, the batch sizes, the budget and the evaluation are
        what they are, in words.
      seconds: that the pilot took.
      answer_minutes: that measuring may take, as it was asked for.
    """

    study: Study
    table: pd.DataFrame
    rerun: pd.DataFrame
    expected: pd.DataFrame
    reasons: Mapping[str, str]
    seconds: float
    answer_minutes: float = math.inf

    @property
    def minutes(self) -> float:
        """That the measurement is likely to take, until intervals of 90% are 15% wide."""
        return float(self.expected["minutes"].sum())

    def __str__(self) -> str:
        study = self.study
        return "\n".join(
            [
                f"{study.workload.name}, {optimizers.get(study.optimizer).name}: a pilot of "
                f"{self.seconds / 60:.1f} minutes",
                self.table.to_string(index=False, float_format=short),
                *(f"{name}: {words}" for name, words in self.reasons.items()),
                self._price(),
            ]
        )

    def _price(self) -> str:
        likely, given = short(max(self.minutes, 0.1), 2), short(self.answer_minutes, 2)
        words = f"A measurement to 15% is likely to take {likely} minutes here"
        if self.minutes > self.answer_minutes:
            return f"{words}; in {given}, which it is given, it is less precise."
        return f"{words}."


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
    max_steps: PerBatchSize | None = None,
    space: SearchSpace | None = None,
    batch_sizes: Sequence[int | Literal["full"]] | None = None,
    schedule: str | Schedule | OfSteps = "constant",
    evaluate: Evaluate | Mapping[str, int | None] | None = None,
    evaluation_spacing: float | None = None,
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
      goal: to be taken as it is. Where the short runs do not reach it, they are made longer, up to
        two and a half times the minutes.
      max_steps: the budget of the study's trials, as `Study` takes it; by default a multiple of the
        steps that are expected.
      space: of hyperparameters; a range of `learning_rate` in it is taken as it is.
      batch_sizes: of the study, to be taken as they are.
      schedule: as for `Study`. Its lengths are shares of the budget, where `space` says nothing
        else: a warm-up of 2%, and a decay to a tenth over all of it.
      evaluate: of the study, as `Study` takes it: which splits are measured, and on how many
        examples. A number for the goal's split is taken as it is.
      evaluation_spacing: of the study, as `Study` takes it; by default as fine as evaluations are
        cheap beside training, 0.05 to 0.2. A finer one narrows the intervals that it limits.
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
    hosts.refuse(
        "bs.pilot, bs.recommend",
        "Call bs.pilot in one, and measure the study that it finds, found.study, in all of them.",
    )
    asked = checked(
        workload, optimizer, minutes, answer_minutes, metric, mode, goal, space, batch_sizes,
        schedule, seed, progress, devices, evaluate, max_steps, evaluation_spacing,
    )  # fmt: skip
    if folder is None:
        with tempfile.TemporaryDirectory(prefix="batchscale-pilot-") as temporary:
            return _pilot(asked, Path(temporary), stays=False)
    return _pilot(asked, local_path(folder))


class _State:
    """What a pilot has decided by the clock, on disk: all else follows from it and its runs."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._began = time.monotonic()
        self.known: dict[str, Any] = {"version": _VERSION, "seconds": 0.0}
        if path.exists():
            self.known = _read(path)

    @property
    def seconds(self) -> float:
        """That the pilot has taken."""
        return self.known["seconds"] + time.monotonic() - self._began

    def write(self, **values: Any) -> None:
        """Adds values, and the time since the last writing."""
        now = time.monotonic()
        self.known |= values
        self.known["seconds"] += now - self._began
        self._began = now
        with replacing(self._path) as file:
            signed = {**self.known, "digest": _digest(self.known)}
            file.write(json.dumps(signed, indent=1).encode() + b"\n")


def _digest(values: dict[str, Any]) -> str:
    """Of what a pilot has decided, as JSON has it."""
    plain = json.loads(json.dumps(values))
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def _read(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        # Those of earlier versions have none.
        if (signed := values.pop("digest", None)) is not None and signed != _digest(values):
            raise ValueError("changed since it was written: its digest is another")
        if values["version"] != _VERSION:
            raise ValueError(f"its version is {values['version']}")
        seconds = float(values["seconds"])
        if not seconds >= 0:
            raise ValueError(f"its seconds are {seconds}")
        if "timed" in values:
            times = pd.DataFrame(values["timed"])[list(TIMED)].astype(float)
            if not len(times) or not (times > 0).all(axis=None):
                raise ValueError("it holds no timings")
        if "effort" in values:
            scan = {int(size): int(steps) for size, steps in values["effort"]["scan"].items()}
            values["effort"] = {**values["effort"], "scan": scan}
        for name in ("reruns", "sizes"):
            if name in values:
                values[name] = _whole(name, values[name])
        if (limit := values.get("limit")) is not None and not (
            isinstance(limit, int | float) and not isinstance(limit, bool) and 0 <= limit < 1e12
        ):
            raise ValueError(f"its limit is {limit!r}")
        return {**values, "seconds": seconds}
    except (ValueError, LookupError, TypeError, AttributeError, *_UNREADABLE) as error:
        raise ValueError(
            f"{path}: not the file of a pilot ({error}). Give another folder, or remove this file: "
            "what it holds is timed again."
        ) from None


def _whole(name: str, values: Any) -> list[int]:
    """Numbers of steps, or batch sizes."""
    fine = isinstance(values, list) and all(
        isinstance(value, int) and not isinstance(value, bool) and 1 <= value < 2**31
        for value in values
    )
    if not fine or not values:
        raise ValueError(f"its {name} are {values!r}")
    return values


def _pilot(asked: Asked, folder: Path, *, stays: bool = True) -> Pilot:
    state = _State(folder / _FILE)
    if "timed" not in state.known:
        state.write()  # a folder that cannot be written is told before anything is timed
    try:
        return _found(asked, folder, state)
    except BaseException as error:
        with contextlib.suppress(OSError):  # what ended it is to be told
            state.write()  # the time that it took is a part of the pilot's
        if isinstance(error, KeyboardInterrupt) and asked.progress is True and stays:
            tell(f"pilot: interrupted. The same call goes on from what is in {folder}.")
        raise


def _found(asked: Asked, folder: Path, state: _State) -> Pilot:
    known = state.known
    say = tell if asked.progress is True else lambda _: None
    if "timed" not in known:
        say(
            f"pilot: {asked.workload.name}: steps are compiled and timed, then learning rates are "
            f"tried, then a goal is looked for; about {short(asked.seconds / 60, 2)} minutes"
        )
        began, times = time.monotonic(), timed(asked)
        # Nearly all of it is compilation.
        starting = (time.monotonic() - began) / len(times)
        state.write(timed=times.assign(starting_seconds=starting).to_dict("records"))
        say(f"pilot: {_speeds(times)}")
    elif "sizes" not in known:
        say(f"pilot: goes on from {folder}, after {known['seconds'] / 60:.1f} minutes")
    _same(asked, folder, known)
    times = pd.DataFrame(known["timed"])
    if "effort" not in known:  # of the minutes of the first call, whatever those of another are
        state.write(
            effort=effort_of(asked, times).to_json(), spacing_given=asked.evaluation_spacing
        )
    effort = Effort.of(asked, times, known["effort"])
    # Runs that are there are not run again, but compared with what is asked.
    _run(asked, scan(asked, effort), folder / "scan")
    scanned = load(folder / "scan")
    table, reached = table_of(asked, effort, scanned), reaching(asked, effort, scanned)
    reruns = known.get("reruns", [effort.rerun])
    while True:
        where = folder / numbered("rerun", len(reruns) - 1)
        _run(asked, again(asked, effort, table, reruns[-1]), where)
        rerun = medians(asked, load(where))
        # Earlier versions looked at no price of a goal.
        limit = None
        if "sizes" in known:
            limit = math.inf if known.get("limit") is None else known["limit"]
        found = decided(asked, effort, table, rerun, known.get("sizes"), limit, reached)
        if "sizes" in known:
            break
        more = longer(asked, effort, reruns[-1], found, state.seconds)
        if more is None:
            limit = found.goal.limit
            sizes = found.study.resolved_batch_sizes()
            state.write(
                sizes=sizes,
                sizes_given=asked.batch_sizes is not None,
                goal_given=None if asked.goal is None else str(asked.goal),
                budgets=_budgets(asked, sizes),
                reruns=reruns,
                limit=limit if math.isfinite(limit) else None,
            )
            for name, words in found.reasons.items():
                say(f"pilot: {name.replace('_', ' ')}: {words}")
            break
        missed = (
            "the goal is not reached" if not found.goal.reached else "a harder goal is paid for"
        )
        say(f"pilot: {missed}: the best setting is run again for {more:,} steps")
        reruns = [*reruns, more]
        state.write(reruns=reruns)
    return Pilot(
        found.study, table, rerun, found.expected, found.reasons, known["seconds"],
        asked.answer_seconds / 60,
    )  # fmt: skip


def _budgets(asked: Asked, sizes: Sequence[int]) -> dict[str, int] | None:
    """Those that were given, as JSON has them."""
    if asked.max_steps is None:
        return None
    return {str(size): steps for size, steps in asked.budget(sizes).items()}


def _same(asked: Asked, folder: Path, known: Mapping[str, Any]) -> None:
    """Refuses other batch sizes and budgets than those that the folder was begun with.

    Those are not in the runs of a pilot, which are compared with what is asked by themselves.
    """
    differ = []
    its = "one that it finds"
    spacing = asked.evaluation_spacing
    if "effort" in known and (there := known.get("spacing_given")) != spacing:
        differ.append(f"evaluation_spacing: {there or its} there, {spacing or its} here")
    if "sizes" in known:
        differ += _other_sizes(asked, known, its)
    if differ:
        raise ValueError(
            f"{folder}: holds another pilot ({'; '.join(differ)}). Give this one a folder of its "
            "own, or the same values. Batch sizes are added to a measurement that is made by "
            "study.with_batch_sizes([...]).measure(its folder, extend=True)."
        )


def _other_sizes(asked: Asked, known: Mapping[str, Any], its: str) -> list[str]:
    """What differs of batch sizes, budgets and the goal, in words."""
    sizes, differ = known["sizes"], []
    examples = arrays.examples(asked.workload.splits()["train"])
    now = None
    if asked.batch_sizes is not None:
        now = arguments.batch_sizes(asked.batch_sizes, examples, asked.workload.name)
    there = known.get("sizes_given")
    if (now is not None and now != sizes) or (now is None and there):
        found = "those that it found" if now is None else now
        differ.append(f"batch_sizes: {sizes} there, {found} here")
    elif known.get("budgets", _budgets(asked, sizes)) != _budgets(asked, sizes):
        differ.append("max_steps: others there than here")
    goal = None if asked.goal is None else str(asked.goal)
    if (there := known.get("goal_given", goal)) != goal:
        differ.append(f"goal: {there or its} there, {goal or its} here")
    return differ


def _speeds(times: pd.DataFrame) -> str:
    """How long a step takes at each batch size, in words.

    >>> _speeds(pd.DataFrame({"batch_size": [8, 512], "seconds_per_step": [0.002, 0.11]}))
    'a step takes 2 ms at batch size 8, 110 ms at 512'
    """
    each = times[["batch_size", "seconds_per_step"]].itertuples(index=False)
    words = [f"{float(f'{1000 * seconds:.2g}'):g} ms at {int(size):,}" for size, seconds in each]
    words[0] = words[0].replace(" at ", " at batch size ")
    return f"a step takes {', '.join(words)}"


def _run(asked: Asked, study: Study, folder: Path) -> None:
    with warnings.catch_warnings():
        # That nothing reaches a goal that nothing can reach is no news.
        warnings.filterwarnings("ignore", message=".*no trial")
        progress = asked.progress
        if progress is True:
            progress = functools.partial(_say, asked.metric)
        study.run(folder, progress=progress, devices=asked.devices)


def _say(metric: str, progress: Progress) -> None:
    """A line for each batch size of a pilot: its goal is one that nothing reaches."""
    if progress.finished:
        words = f"best {metric} {progress.best:.4g} after {progress.step:,} steps"
        tell(
            f"pilot: batch size {progress.batch_size:,}: {words} "
            f"({progress.trials} trials{took(progress)})"
        )
