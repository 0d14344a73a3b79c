"""A measurement carried out: rounds of trials, each where it tells most of all batch sizes."""

from __future__ import annotations

import dataclasses
import functools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from batchscale import measurement
from batchscale.design.axes import Axes
from batchscale.design.design import Design
from batchscale.design.question import Round
from batchscale.engine import autotune
from batchscale.engine.engine import Engine
from batchscale.engine.packs import TrialId
from batchscale.numeric import short
from batchscale.plan import Plan
from batchscale.records import Origin
from batchscale.runner import candidates, costs
from batchscale.runner.candidates import Candidate, Job
from batchscale.runner.session import Session
from batchscale.stored.measured import FIRST_MEASURED, MeasuredRound, MeasurePlan

_TIMED_FOR = 0.03  # seconds, of each of the timings of a step


class Elsewhere(NamedTuple):
    """Where trials are timed and run, if the engine does neither.

    Attributes:
      look: seconds a step at every batch size, if that is asked for, and trials of a full pack.
      run: runs trials, and says how many seconds each batch size took.
    """

    look: Callable[[bool], tuple[dict[int, float], int]]
    run: Callable[[MeasurePlan, Sequence[Job]], dict[int, float]]


def measure(
    session: Session,
    *,
    precision: float,
    minutes: float | None,
    examples: float | None,
    elsewhere: Elsewhere | None = None,
) -> None:
    """Asks and trains rounds until the precision or the price is reached.

    Every round is in the plan on disk before its first step; what follows it is computed from the
    trials on disk. So a run that was killed goes on with the same rounds.

    Args:
      session: of the folder of the measurement.
      precision: the half width of 90% intervals that is asked for, in logs.
      minutes: of all calls together, everything included; None for any.
      examples: that may be trained on, all rounds together; None for any.
      elsewhere: who times and runs trials, where the engine does not.
    """
    side = session.folder
    found = side.read_plan()
    where = str(side.folder / "plan.json")
    plan = MeasurePlan() if found is None else MeasurePlan.from_json(found, where)
    as_before = plan.precision == precision
    plan.precision = precision
    new = bool(set(session.plan.definition.batch_sizes) - set(plan.seconds_per_step))
    if elsewhere is not None:
        seconds, here = elsewhere.look(new)
    else:
        seconds = seconds_per_step(session.plan, session.engine, session.say) if new else {}
        here = width(session.plan, session.engine)
    # Rounds are filled as where it began, whatever devices it goes on with.
    plan.width = together = here if plan.width is None else plan.width
    if new:
        plan.seconds_per_step = seconds | plan.seconds_per_step
        side.write_plan(plan.to_json())
    clock = _Clock(plan, session.began)
    if plan.rounds:
        session.say(f"goes on after {_spent(plan, minutes)}, {len(plan.rounds)} rounds")
    for place in range(len(plan.rounds)):
        _train(session, plan, place, elsewhere)
    known = side.tables()[1]
    done = as_before and bool(plan.ended)
    if not done:  # a call that has nothing to do takes nothing
        plan.opening += clock.since()
    while True:
        trials = measurement.trials_of(plan, session.plan.definition, known)
        spent = measurement.spent(plan, known)
        question = dataclasses.replace(
            measurement.question_of(session.plan.definition, plan, together),
            price=_price(plan, spent.price, minutes),
            examples=math.inf if examples is None else float(examples),
        )
        warm = np.array(plan.parameters) if plan.parameters else None
        design = Design(question, trials, warm)
        asked = design.next(spent)
        if not (as_before and plan.ended) and len(trials):
            session.say(f"{_spent(plan, minutes)}: {_known(design, precision)}")
        if done and plan.ended == asked.why:
            break  # the same call again changes nothing, to the bit
        if done:
            plan.opening, done = plan.opening + clock.since(), False
        else:
            plan.asking += clock.since()
        if len(trials) and trials.crossed.any():
            plan.parameters = design.fitted.parameters.tolist()
            if not asked.asked:  # what is read, and the same call again, begin from these
                asked = Design(question, trials, np.array(plan.parameters)).next(spent)
        if not asked.asked:
            plan.ended = asked.why
            side.write_plan(plan.to_json())
            break
        plan.ended = ""
        plan.rounds.append(_written(session, asked))
        side.write_plan(plan.to_json())
        known = _train(session, plan, len(plan.rounds) - 1, elsewhere, known)
        plan.asking += clock.since()
    side.compact()


class _Clock:
    """The seconds of a call that its rounds have not noted.

    Args:
      plan: of the measurement.
      began: when the call began, by `time.monotonic`.
    """

    def __init__(self, plan: MeasurePlan, began: float) -> None:
        self._plan, self._last, self._training = plan, began, plan.training

    def since(self) -> float:
        """Since it was asked before; none where workers have noted more together."""
        now, training = time.monotonic(), self._plan.training
        passed = now - self._last - (training - self._training)
        self._last, self._training = now, training
        return max(passed, 0.0)


def opening_words(sizes: Sequence[int], precision: float, minutes: float | None, where: str) -> str:
    """What begins.

    >>> opening_words([4, 8, 16], 0.15, 7.5, "1 x cpu")
    'measures batch sizes 4 to 16 together, to 15% or for 7.5 minutes, on 1 x cpu'
    """
    until = f"to {precision:.0%}" + ("" if minutes is None else f" or for {short(minutes)} minutes")
    return f"measures batch sizes {sizes[0]:,} to {sizes[-1]:,} together, {until}, on {where}"


def _spent(plan: MeasurePlan, minutes: float | None) -> str:
    """How long all rounds have taken, of what they may."""
    taken = plan.seconds / 60
    return f"{taken:.1f} minutes" if minutes is None else f"{taken:.1f} of {minutes:.1f} minutes"


def _known(design: Design, precision: float) -> str:
    """How precise the measurement is so far, in words; nothing is computed for them."""
    trials = f"{len(design.trials)} trials"
    widths = design.widths
    if widths is None:
        return trials
    steps, b_crit = widths
    of = f"B_crit {b_crit:.0%}" if math.isfinite(b_crit) else "B_crit is not within them yet"
    return (
        f"{trials}; half widths of 90%: steps {steps:.0%} at the widest batch size, {of} "
        f"({precision:.0%} is asked for)"
    )


def width(plan: Plan, engine: Engine) -> int:
    """Trials of a full pack; the same at every batch size but where memory is short."""
    return engine.mesh.size * min(layout.lanes for layout in plan.layouts.values())


def _price(plan: MeasurePlan, spent: float, minutes: float | None) -> float:
    """What may be spent in all, in seconds of steps, whose rounds take somewhat longer."""
    if minutes is None:
        return math.inf
    ratio = max((plan.training + plan.asking) / spent, 1.0) if spent else 1.0
    return max(spent + (60 * minutes - plan.seconds) / ratio, 1e-9)


def _written(session: Session, asked: Round) -> MeasuredRound:
    """A round as hyperparameters."""
    sizes = session.plan.definition.batch_sizes
    part = MeasuredRound({}, {}, asked.lockstep)
    for one in asked.asked:
        size = sizes[one.size]
        axes = Axes.of(session.plan.definition.spaces[size])
        values = axes.values(one.rate, one.second)
        part.asked.setdefault(size, []).append((values, int(one.purpose)))
        part.limits[size] = max(part.limits.get(size, 0.0), float(one.limit))
    return part


def _train(
    session: Session,
    plan: MeasurePlan,
    place: int,
    elsewhere: Elsewhere | None,
    known: pd.DataFrame | None = None,
) -> pd.DataFrame:
    """Trains what is left of a round.

    Args:
      session: of the folder of the measurement.
      plan: of the measurement.
      place: of the round.
      elsewhere: who runs trials, where the engine does not.
      known: the rows of all trials of the rounds before, of which nothing is read then; None where
        some of the round may have been run.

    Returns:
      The rows of all trials that are known, where those of the rounds before were given.
    """
    part, tables = plan.rounds[place], [] if known is None else [known]
    jobs = [_job(plan, place, size) for size in sorted(part.asked) if size not in part.seconds]
    if elsewhere is not None:
        part.seconds |= elsewhere.run(plan, jobs) if jobs else {}
        session.folder.write_plan(plan.to_json())
        return session.folder.tables()[1]
    for size, ids, of, limit, stop in jobs:
        began, others = time.monotonic(), None
        if known is not None:
            others = known.loc[known.index.get_level_values("batch_size") == size]
        report = session.report
        tables.append(
            candidates.run(session, plan, size, ids, of, limit, report, stop, others=others)
        )
        part.seconds[size] = time.monotonic() - began
    session.folder.write_plan(plan.to_json())
    tables = [table for table in tables if len(table)]
    if not tables:  # all of it had been done before
        return session.folder.tables()[1]
    joined = pd.concat(tables)
    return joined.loc[~joined.index.duplicated(keep="last")].sort_index()


def _job(plan: MeasurePlan, place: int, size: int) -> Job:
    """The trials of a round at a batch size."""
    part, planned = plan.rounds[place], plan.trials(size)
    ids = [
        TrialId(FIRST_MEASURED + number)
        for number, trial in enumerate(planned)
        if trial.round == place
    ]
    of = functools.partial(_candidate, [trial.hyperparameters for trial in planned])
    stop = "all" if part.lockstep is None else part.lockstep
    return Job(size, ids, of, part.limits[size], stop)


def _candidate(planned: Sequence[Mapping[str, float]], trial: TrialId) -> Candidate:
    return Candidate(planned[trial.number - FIRST_MEASURED], Origin.MEASURE)


def seconds_per_step(plan: Plan, engine: Engine, say: Callable[[str], None]) -> dict[int, float]:
    """Of a trial in a full pack: timed at the ends and in the middle, and between them by power."""
    definition = plan.definition
    sizes = np.array(definition.batch_sizes)
    timed = sorted({0, len(sizes) // 2, len(sizes) - 1})
    seconds = []
    for place in timed:
        size = int(sizes[place])
        say(f"batch size {size:,} is compiled and timed")
        rehearsal = costs.rehearsal(engine, definition, size)
        layout = plan.layouts[size]
        seconds.append(autotune.seconds_per_step(rehearsal, layout, at_least=_TIMED_FOR))
    logs = np.interp(np.log(sizes), np.log(sizes[timed]), np.log(seconds))
    return dict(zip(sizes.tolist(), np.exp(logs).tolist(), strict=True))
