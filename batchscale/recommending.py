"""The answer in one call: which batch size, which settings, and how sure that is."""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from batchscale import arguments, arrays, display, numeric, report, scaling
from batchscale.audit import Audit, Verdict
from batchscale.files import local_path, numbered, replacing
from batchscale.measurement import Measurement, NotReachedError
from batchscale.metrics import Goal
from batchscale.optimizers import Factory
from batchscale.piloting import Pilot, pilot
from batchscale.runner.progress import Progress, tell
from batchscale.scaling import Refusal
from batchscale.study import Study
from batchscale.workloads import Workload

_PILOT = 0.2  # of the minutes, at most
_MOST = 5.0  # minutes of a pilot
_LENGTHENED, _LONGER = 2, 4  # how often budgets that were guessed are made longer, and how much
_FILE = "answer.json"
_COARSE, _FIRST = 0.5, 0.6  # the precision that shows the ends of the curve, in so much of the time
_WIDENED = 2  # how often batch sizes are added
_RUNS = 35  # that a batch size costs, about
_SMALL_STEP = 0.2  # a step of few examples takes no less than so much of one that was timed


@dataclasses.dataclass(frozen=True)
class Answer:
    """Which batch size to train with and which settings go with it; `str` gives the words.

    Attributes:
      batch_size: the measured one nearest to the critical batch size, up to which larger batches
        are nearly free; where that is not quoted, the one with the least product of steps and
        examples.
      hyperparameters: the best setting there.
      measurement: all batch sizes, with intervals.
      pilot: what was found out beforehand, and the study that followed from it.
    """

    batch_size: int
    hyperparameters: dict[str, float]
    measurement: Measurement
    pilot: Pilot

    @property
    def goal(self) -> Goal:
        """What was to be reached."""
        return self.measurement.goal

    @property
    def learning_rate(self) -> float:
        """Of the setting."""
        return self.hyperparameters["learning_rate"]

    def __str__(self) -> str:
        return "\n".join([self.sentence(), "", str(self.measurement), "", str(self.pilot)])

    def __repr__(self) -> str:
        return f"Answer({self.sentence()!r})"

    def _repr_html_(self) -> str:
        return display.page(self.sentence(), self.measurement.table)

    def sentence(self) -> str:
        """The answer in a few words."""
        others = ", ".join(
            f"{name.replace('_', ' ')} {_value(name, value)}"
            for name, value in self.hyperparameters.items()
        )
        words = f"To reach {self.goal} use batch size {self.batch_size:,}, {others}."
        table = self.measurement.table
        here = table.loc[table["batch_size"] == self.batch_size]
        seeds, missed = here[["checked_seeds", "missed_seeds"]].to_numpy(int)[0].tolist()
        if missed:
            words += f" {missed} of {seeds} fresh seeds missed it there."
        return f"{words} {self.sure()} {audited(self.audit())}"

    def sure(self) -> str:
        """What the critical batch size is, and how sure that is."""
        fit = self.scaling()
        if fit.refused:
            return f"No critical batch size is quoted: {fit.refused}."
        low, high = fit.b_crit_interval
        sizes = self.measurement.table["batch_size"]
        ends = fit.unseen(sizes.min(), sizes.max())
        but = f", but {ends}" if ends else ""
        return f"Critical batch size {fit.b_crit:.3g} ({low:.3g} to {high:.3g}){but}."

    def scaling(self) -> scaling.Fit:
        """The critical batch size."""
        return self.measurement.scaling()

    def audit(self) -> Audit:
        """Whether it can be believed."""
        return self.measurement.audit()

    def report(self, path: str | os.PathLike[str]) -> Path:
        """Writes the answer as one page of HTML, to be read anywhere; see `Result.report`."""
        return report.write(self, path)

    def recommend(
        self, *, seconds_per_step: scaling.StepTimes | None = None
    ) -> scaling.Recommendation:
        """In words, for other step times too; see `scaling.recommend`."""
        return self.measurement.recommend(seconds_per_step=seconds_per_step)


def _value(name: str, value: float) -> str:
    """A hyperparameter as it is shown; steps are whole.

    >>> _value("warmup_steps", 5.6), _value("learning_rate", 0.00321)
    ('6', '0.00321')
    """
    return f"{value:,.0f}" if name.endswith("_steps") and value >= 1 else f"{value:.3g}"


def audited(audit: Audit) -> str:
    """An audit in a few words.

    >>> audited(Audit(()))
    'Audit: passes.'
    """
    failed = [check.name for check in audit if check.verdict == Verdict.FAIL]
    if failed:
        return f"Audit: fails ({', '.join(failed)})."
    warned = sum(check.verdict == Verdict.WARN for check in audit)
    words = ("", ", with one warning") if warned < 2 else ("", f", with {warned} warnings")
    return f"Audit: passes{words[warned > 0]}."


def recommend(
    workload: Workload,
    optimizer: str | Factory = "sgd",
    *,
    folder: str | os.PathLike[str],
    minutes: float = 30.0,
    precision: float = 0.15,
    progress: bool | Callable[[Progress], None] = True,
    devices: Sequence[Any] | None = None,
    **of_pilot: Any,
) -> Answer:
    """Which batch size to train a model with, which learning rate goes with it, and how sure it is.

    A pilot finds a goal, ranges, budgets and batch sizes; then all batch sizes are measured by one
    design (`Study.measure`) until the precision is reached or the minutes are spent. Where an end
    of the curve is not seen by then, smaller or larger batch sizes are added, unless they were
    given. The same call goes on after an interruption, and returns at once when it is done; with
    more minutes, or a finer precision, it goes on from there with the same study.

    Args:
      workload: what is trained: `Workload.from_model(model, data)`, or any other.
      optimizer: as for `Study`.
      folder: where everything is written: `pilot`, `measured`, and what was decided. Where no trial
        reaches a goal that was given, in budgets that the pilot has guessed, they are made longer
        while there are minutes, in `measured-2` and `measured-3`.
      minutes: that it takes, about, of all calls together, everything included.
      precision: the half width of the 90% intervals of B_crit and of the steps at every batch
        size, as a share.
      progress: as in `Study.run`.
      devices: as in `Study.run`.
      **of_pilot: arguments of `pilot`: a goal, budgets (`max_steps`), a space, batch sizes, a
        schedule, a metric, a seed, and what is measured (`evaluate`).

    Raises:
      ValueError: what is missing for an answer, and what to change: nothing got better in the time
        that there was, or no trial reached the goal; the folder holds another study.
    """
    where = local_path(folder)
    _of_pilot(of_pilot)
    precision = arguments.precision(precision)
    given = of_pilot.get("batch_sizes")
    if given is not None:
        arguments.check_several(given)
    if given is not None and len(given) < 4:
        raise ValueError(
            f"batch_sizes: got {len(given)}, wanted at least 4 for a measurement across them, "
            "or none, which the pilot finds. Use study.run and study.confirm for fewer."
        )
    minutes = float(numeric.above("minutes", minutes, 0, "minutes above 0, such as 30"))
    short = min(_PILOT * minutes, _MOST)
    found = pilot(
        workload,
        optimizer,
        minutes=short,
        folder=where / "pilot",
        answer_minutes=minutes - short,
        progress=progress,
        devices=devices,
        **of_pilot,
    )
    left = max(minutes - found.seconds / 60, minutes / 4)
    call = _Call(where, precision, progress, devices)
    free = of_pilot.get("batch_sizes") is None
    study, place = _settled(where / _FILE, found.study)
    if study is None:
        guessed = of_pilot.get("max_steps") is None
        study, place, measured, left = _begun(call, found.study, left, guessed=guessed, coarse=free)
        if free:
            study = _widened(call, study, place, measured, found, left)
        _settle(where / _FILE, study, place)
    measured = call.measure(study, place, precision, left)
    return answer(measured, dataclasses.replace(found, study=study))


def _of_pilot(given: Mapping[str, Any]) -> None:
    """Refuses what is no argument of a pilot, in the name of the call that was made."""
    if "executor" in given:
        raise TypeError(
            "recommend: takes no executor, for what it decides follows from how fast this machine "
            "is. Call bs.pilot here, and found.study.measure(folder, executor=...)."
        )
    known = set(inspect.signature(pilot).parameters) - {"answer_minutes"}
    if unknown := sorted(set(given) - known):
        close = difflib.get_close_matches(unknown[0], known, 1)
        meant = f" Did you mean {close[0]!r}?" if close else ""
        raise TypeError(
            f"recommend: got {unknown[0]!r}, wanted of a pilot any of {', '.join(sorted(known))}."
            f"{meant}"
        )


@dataclasses.dataclass(frozen=True)
class _Call:
    """How measurements of an answer are made."""

    where: Path
    precision: float
    progress: bool | Callable[[Progress], None]
    devices: Sequence[Any] | None

    def measure(
        self, study: Study, place: int, precision: float, minutes: float, *, extend: bool = False
    ) -> Measurement:
        return study.measure(
            self.where / numbered("measured", place), precision, minutes=max(minutes, 1e-3),
            progress=self.progress, devices=self.devices, extend=extend,
        )  # fmt: skip

    def tell(self, words: str) -> None:
        if self.progress is True:
            tell(words)


def _begun(
    call: _Call, study: Study, left: float, *, guessed: bool, coarse: bool
) -> tuple[Study, int, Measurement, float]:
    """The study that reaches its goal, where it is measured, what that says, and the minutes left.

    Budgets that were guessed are made longer where no trial reaches the goal.
    """
    precision = max(call.precision, _COARSE) if coarse else call.precision
    given, place, first = study, 0, left
    while True:
        try:
            minutes = _FIRST * left if coarse else left
            return study, place, call.measure(study, place, precision, minutes), left
        except NotReachedError as missed:
            left -= missed.seconds / 60
            there = (call.where / numbered("measured", place + 1) / "plan.json").is_file()
            paid = left >= max(first / 4, _LONGER * missed.seconds / 60)
            words = str(missed).partition(". Choose")[0]
            if not guessed or place == _LENGTHENED:
                raise ValueError(
                    f"{words}. Give an easier goal, or max_steps, in another folder."
                ) from None
            if not (there or paid):
                raise ValueError(
                    f"{words}, which was guessed, and the minutes are too few for {_LONGER} times "
                    "as many. The same call with more minutes goes on; or give an easier goal in "
                    "another folder."
                ) from None
            place += 1
            budgets = given.definition().max_steps.items()
            study = dataclasses.replace(
                given, max_steps={size: _LONGER**place * steps for size, steps in budgets}
            )
            call.tell(
                f"{study.goal} is not reached in budgets that were guessed: they are made "
                f"{_LONGER} times as long; {left:.1f} minutes are left"
            )


def _widened(
    call: _Call, study: Study, place: int, measured: Measurement, found: Pilot, left: float
) -> Study:
    """With batch sizes where an end of the curve is not seen yet, as far as minutes pay for them.

    Args:
      call: how it is measured.
      study: of the measurement.
      place: of its folder.
      measured: as precise as it takes to see whether there are ends.
      found: the pilot.
      left: minutes of all measuring.
    """
    for _ in range(_WIDENED):
        spare = left - measured.cost["seconds"] / 60
        more = beyond(measured, found.table, study.workload, spare)
        if not more:
            break
        budgets = study.definition().max_steps
        first, last = min(budgets), max(budgets)
        grown = {size: math.ceil(budgets[first] * first / size) for size in more if size < first}
        grown |= {size: budgets[last] for size in more if size > last}
        call.tell(
            f"an end of the curve is not seen yet: batch sizes {', '.join(map(str, more))} are "
            "measured too"
        )
        sizes = sorted([*budgets, *more])
        study = dataclasses.replace(study, batch_sizes=sizes, max_steps={**budgets, **grown})
        precision = max(call.precision, _COARSE)
        measured = call.measure(study, place, precision, left, extend=True)
    return study


def beyond(
    measured: Measurement, speeds: pd.DataFrame, workload: Workload, minutes: float
) -> list[int]:
    """Batch sizes beyond those that were measured, where an end of the curve is not seen.

    Args:
      measured: so far.
      speeds: `Pilot.table`: seconds of a step at some batch sizes.
      workload: of the study.
      minutes: that are left; half of them may be likely to be taken.
    """
    fit, table = measured.scaling(), measured.table
    sizes = table["batch_size"].to_numpy(int)
    steps = dict(zip(sizes.tolist(), table["steps"].to_numpy(float).tolist(), strict=True))
    first, last = int(sizes[0]), int(sizes[-1])
    unseen = fit.unseen(first, last)
    larger = Refusal.NO_PLATEAU in fit.refusals or "plateau" in unseen
    smaller = Refusal.NO_PERFECT_SCALING in fit.refusals or "perfect scaling" in unseen
    both = Refusal.NEITHER_END in fit.refusals
    size, second = speeds[["batch_size", "seconds_per_step"]].to_numpy(float)[-1]
    wanted: dict[int, float] = {}
    if larger or both:
        examples = arrays.examples(workload.splits()["train"])
        wanted |= {last * k: steps[last] for k in (2, 4) if last * k <= examples}
    if smaller or both:
        wanted |= {first // k: k * steps[first] for k in (2, 4) if first % k == 0}
    chosen, cost = [], 0.0
    for new, count in wanted.items():
        cost += _RUNS * count * second * max(new / size, _SMALL_STEP)
        if cost > 30 * minutes:  # seconds, of which there are 60 in each
            break
        chosen.append(new)
    return sorted(chosen)


def _settled(path: Path, study: Study) -> tuple[Study | None, int]:
    """What was decided of the study that is measured, if it was, and in which folder that is."""
    if not path.exists():
        return None, 0
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        budgets = {int(size): int(steps) for size, steps in kept["max_steps"].items()}
        place = int(kept["place"])
        if kept["version"] != 1 or not budgets or not 0 <= place <= _LENGTHENED:
            raise ValueError("its version or its place is another")
        return dataclasses.replace(study, batch_sizes=sorted(budgets), max_steps=budgets), place
    except (ValueError, LookupError, TypeError, AttributeError, OSError) as error:
        raise ValueError(
            f"{path}: not the file of an answer ({error}). Remove it: what it says is decided "
            "again by what has been measured."
        ) from None


def _settle(path: Path, study: Study, place: int) -> None:
    budgets = {str(size): steps for size, steps in study.definition().max_steps.items()}
    with replacing(path) as file:
        kept = {"version": 1, "place": place, "max_steps": budgets}
        file.write(json.dumps(kept, indent=1).encode() + b"\n")


def answer(measured: Measurement, found: Pilot) -> Answer:
    """The answer that a measurement gives.

    Raises:
      ValueError: no batch size reached the goal.
    """
    knee = measured.recommend().knee
    if not math.isfinite(knee):
        raise ValueError(
            f"recommend: no batch size reached {measured.goal}. Give an easier goal, or more "
            "minutes, in another folder."
        )
    row = measured.table.set_index("batch_size").loc[int(knee)]
    names = sorted(found.study.space.names, key=lambda name: name != "learning_rate")
    values = {name: float(row[name]) for name in names}  # pyright: ignore[reportArgumentType]
    return Answer(int(knee), values, measured, found)
