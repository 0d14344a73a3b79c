"""The answer in one call: which batch size, which settings, and how sure that is."""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from batchscale import arguments, display, growing, numeric, report, scaling
from batchscale.audit import Audit, Verdict
from batchscale.files import local_path
from batchscale.measurement import Measurement
from batchscale.metrics import Goal
from batchscale.numeric import short
from batchscale.optimizers import Factory
from batchscale.piloting import Pilot, pilot
from batchscale.runner.progress import Progress
from batchscale.workloads import Workload

_PILOT = 0.2  # of the minutes, at most
_MOST = 5.0  # minutes of a pilot


@dataclasses.dataclass(frozen=True)
class Answer:
    """Which batch size to train with and which settings go with it; `str` gives the words.

    Attributes:
      batch_size: the measured one nearest to the critical batch size, where steps and examples are
        both about twice the fewest; where that is not quoted, the one with the least product of
        steps and examples.
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
        return f"Critical batch size {short(fit.b_crit)} ({short(low)} to {short(high)}){but}."

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
    return f"{value:,.0f}" if name.endswith("_steps") and value >= 1 else f"{short(value)}"


def audited(audit: Audit) -> str:
    """An audit in a few words, with the names of the checks that warn, or that fail.

    >>> from batchscale.audit import Check
    >>> audited(Audit(()))
    'Audit: passes.'
    >>> audited(Audit((Check("goal hard enough", Verdict.WARN, "early"),)))
    'Audit: passes, with one warning (goal hard enough).'
    """
    failed = [check.name for check in audit if check.verdict == Verdict.FAIL]
    if failed:
        return f"Audit: fails ({', '.join(failed)})."
    warned = [check.name for check in audit if check.verdict == Verdict.WARN]
    if not warned:
        return "Audit: passes."
    many = "one warning" if len(warned) == 1 else f"{len(warned)} warnings"
    return f"Audit: passes, with {many} ({', '.join(warned)})."


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
    if (where / "index.json").is_file():
        raise ValueError(
            f"folder: {where} holds a study. Give the answer a folder of its own; "
            "study.measure(folder) goes on with that study."
        )
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
    call = growing.Call(where, precision, progress, devices)
    guessed, coarse = of_pilot.get("max_steps") is None, given is None
    study, place, left = growing.grown(call, found, left, guessed=guessed, coarse=coarse)
    measured = call.measure(study, place, precision, left)
    return answer(measured, growing.carried(found, study))


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
