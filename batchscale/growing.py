"""The study of an answer: longer budgets, more batch sizes, where a measurement asks for them."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from batchscale import arrays
from batchscale.arguments import continued
from batchscale.files import numbered, replacing
from batchscale.measurement import Measurement, NotReachedError
from batchscale.piloting import Pilot
from batchscale.runner.progress import Progress, tell
from batchscale.scaling import Refusal
from batchscale.study import Study
from batchscale.workloads import Workload

_LENGTHENED, _LONGER = 2, 4  # how often budgets that were guessed are made longer, and how much
_COARSE, _FIRST = 0.5, 0.6  # the precision that shows the ends of the curve, in so much of the time
_WIDENED = 2  # how often batch sizes are added
_RUNS = 35  # that a batch size costs, about
_SMALL_STEP = 0.2  # a step of few examples takes no less than so much of one that was timed
_FILE = "answer.json"


@dataclasses.dataclass(frozen=True)
class Call:
    """How measurements of an answer are made.

    Attributes:
      where: the folder of the answer.
      precision: that is asked for.
      progress: as in `Study.run`.
      devices: as in `Study.run`.
    """

    where: Path
    precision: float
    progress: bool | Callable[[Progress], None]
    devices: Sequence[Any] | None

    def measure(
        self, study: Study, place: int, precision: float, minutes: float, *, extend: bool = False
    ) -> Measurement:
        """Measures, or goes on, in the folder of this place."""
        return study.measure(
            self.where / numbered("measured", place), precision, minutes=max(minutes, 1e-3),
            progress=self.progress, devices=self.devices, extend=extend,
        )  # fmt: skip

    def tell(self, words: str) -> None:
        """Shows a line, where progress is shown as lines or a bar."""
        if self.progress is True:
            tell(words)


class State(NamedTuple):
    """What has been decided of the study that is measured.

    Attributes:
      study: with the batch sizes and budgets that it has by now.
      place: of the folder in which it is measured.
      widened: how often batch sizes were added.
      settled: whether nothing more is added.
    """

    study: Study
    place: int
    widened: int = 0
    settled: bool = False


def grown(
    call: Call, found: Pilot, left: float, *, guessed: bool, coarse: bool
) -> tuple[Study, int, float]:
    """The study that reaches its goal, in which folder it is measured, and the minutes left.

    What is decided is on disk before it is measured, so that the same call goes on with it.

    Args:
      call: how it is measured.
      found: the pilot.
      left: minutes of all measuring.
      guessed: whether budgets are the pilot's, and are made longer where no trial reaches the goal.
      coarse: whether batch sizes are the pilot's, so that a first measurement needs to be no more
        precise than shows whether both ends of the curve are seen; where not, some are added.

    Raises:
      ValueError: no trial reached the goal, and what to change.
    """
    known = settled(call.where / _FILE, found.study)
    if known is not None and known.settled:
        return known.study, known.place, left
    if known is None:
        began = _begun(call, found.study, left, guessed=guessed, coarse=coarse)
        study, place, measured, left = began
        known = State(study, place)
    else:
        precision = max(call.precision, _COARSE)
        measured = call.measure(known.study, known.place, precision, left, extend=True)
    if coarse:
        known = _widened(call, known, measured, found, left)
    settle(call.where / _FILE, known._replace(settled=True))
    return known.study, known.place, left


def _begun(
    call: Call, study: Study, left: float, *, guessed: bool, coarse: bool
) -> tuple[Study, int, Measurement, float]:
    precision = max(call.precision, _COARSE) if coarse else call.precision
    given, place, first = study, 0, left
    while True:
        try:
            minutes = _FIRST * left if coarse else left
            if coarse:
                call.tell("first a coarse measurement, of whether the batch sizes hold both ends")
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


def _widened(call: Call, known: State, measured: Measurement, found: Pilot, left: float) -> State:
    """With batch sizes where an end of the curve is not seen, as far as minutes pay for them."""
    while known.widened < _WIDENED:
        study = known.study
        spare = left - measured.cost["seconds"] / 60
        more = beyond(measured, found.table, study.workload, spare)
        if not more:
            break
        budgets = study.definition().max_steps
        call.tell(
            f"an end of the curve is not seen yet: batch sizes {', '.join(map(str, more))} are "
            "measured too"
        )
        study = dataclasses.replace(study, max_steps=budgets).with_batch_sizes(more)
        known = known._replace(study=study, widened=known.widened + 1)
        settle(call.where / _FILE, known)
        precision = max(call.precision, _COARSE)
        measured = call.measure(study, known.place, precision, left, extend=True)
    return known


def _seconds(speeds: pd.DataFrame, size: int, steps: float) -> float:
    """That a batch size is likely to cost, by the largest one that was timed."""
    timed, second = speeds[["batch_size", "seconds_per_step"]].to_numpy(float)[-1]
    return _RUNS * steps * second * max(size / timed, _SMALL_STEP)


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
    sizes = table["batch_size"].to_numpy(int).tolist()
    steps = dict(zip(sizes, table["steps"].to_numpy(float).tolist(), strict=True))
    first, last = sizes[0], sizes[-1]
    unseen = fit.unseen(first, last)
    larger = Refusal.NO_PLATEAU in fit.refusals or "plateau" in unseen
    smaller = Refusal.NO_PERFECT_SCALING in fit.refusals or "perfect scaling" in unseen
    both = Refusal.NEITHER_END in fit.refusals
    wanted: list[int] = []
    if larger or both:
        examples = arrays.examples(workload.splits()["train"])
        wanted += [last * k for k in (2, 4) if last * k <= examples]
    if smaller or both:
        wanted += [first // k for k in (2, 4) if first % k == 0]
    chosen, cost = [], 0.0
    for size in wanted:
        cost += _seconds(speeds, size, continued(steps, size))
        if cost > 30 * minutes:  # seconds, of which there are 60 in each
            break
        chosen.append(size)
    return sorted(chosen)


def carried(found: Pilot, study: Study) -> Pilot:
    """The pilot with the study as it has become, and what that is expected to take.

    Of batch sizes that were added the steps are those of perfect scaling, or of the plateau, beyond
    what the pilot expected, and the minutes follow from them.
    """
    budgets = study.definition().max_steps
    kept = found.expected.set_index("batch_size")
    steps = {int(size): float(count) for size, count in kept["steps"].items()}  # pyright: ignore
    rows = []
    for size, budget in budgets.items():
        if size in steps:
            rows.append((size, steps[size], budget, float(kept["minutes"][size])))
        else:
            likely = continued(steps, size)
            rows.append((size, likely, budget, _seconds(found.table, size, likely) / 60))
    expected = pd.DataFrame(rows, columns=list(found.expected.columns))
    return dataclasses.replace(found, study=study, expected=expected)


def settled(path: Path, study: Study) -> State | None:
    """What was decided of the study that is measured; None where nothing was.

    Raises:
      ValueError: the file is none of an answer.
    """
    if not path.exists():
        return None
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        budgets = {int(size): int(steps) for size, steps in kept["max_steps"].items()}
        place = int(kept["place"])
        # Earlier versions wrote what was settled alone.
        widened, done = int(kept.get("widened", 0)), kept.get("settled", True)
        if kept["version"] != 1 or not budgets or not 0 <= place <= _LENGTHENED:
            raise ValueError("its version or its place is another")
        if not 0 <= widened <= _WIDENED or not isinstance(done, bool):
            raise ValueError("how far it has come is not known")
        grown = dataclasses.replace(study, batch_sizes=sorted(budgets), max_steps=budgets)
        return State(grown, place, widened, done)
    except (ValueError, LookupError, TypeError, AttributeError, OSError) as error:
        raise ValueError(
            f"{path}: not the file of an answer ({error}). Remove it: what it says is decided "
            "again by what has been measured."
        ) from None


def settle(path: Path, known: State) -> None:
    """Writes down which study is measured, and in which folder."""
    kept = {
        "version": 1,
        "place": known.place,
        "widened": known.widened,
        "settled": known.settled,
        "max_steps": {str(n): steps for n, steps in known.study.definition().max_steps.items()},
    }
    with replacing(path) as file:
        file.write(json.dumps(kept, indent=1).encode() + b"\n")
