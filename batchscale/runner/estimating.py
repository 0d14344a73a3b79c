"""What a call of a study will cost, given what is on disk: in operations, and in seconds here."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from batchscale import arguments, columns, numeric
from batchscale.engine.bounded import is_bounded
from batchscale.engine.engine import Training
from batchscale.engine.layout import Layout, LayoutOf
from batchscale.plan import Definition, Plan
from batchscale.records import Status, StudyFolder
from batchscale.runner import costs, demands, foreseeing, rates, session
from batchscale.runner.counting import Counts
from batchscale.runner.demands import NOTHING, Call, Known, Tables
from batchscale.stored import opening
from batchscale.tuner import medians

Steps = Literal["likely"] | Mapping[int, float] | pd.DataFrame | pd.Series
_SECONDS = columns.declare(
    "estimate in seconds",
    *("batch_size", "trials", "training_seconds", "goal_seconds", "other_seconds"),
    *("compilation_seconds", "host_seconds", "seconds"),
)
_CALLS: dict[Call, dict[str, float]] = {
    "run": {},
    "refine": {"rounds": 3, "trials": 8, "patience": 3.0},
    "confirm": {"settings": 6, "selection_seeds": 7, "seeds": 21, "patience": 4.0},
}


@dataclasses.dataclass(frozen=True)
class Question:
    """Which call is estimated, and what is assumed.

    Attributes:
      call: `run`, `refine` or `confirm`.
      numbers: its arguments that decide what it costs.
      steps: to the goal, by batch size; `"likely"` as the folder's tables say; None for at most.
      folder: of the study; None where there is none.
    """

    call: Call
    numbers: Mapping[str, float]
    steps: Literal["likely"] | Mapping[int, float] | None
    folder: Path | None


def question(folder: Path | None, call: Any, steps: Any, numbers: Mapping[str, Any]) -> Question:
    """The arguments of an estimate, checked.

    >>> question(None, "confirm", None, {"seeds": 5}).numbers
    {'settings': 6, 'selection_seeds': 7, 'seeds': 5, 'patience': 4.0}
    >>> question(None, "confirm", None, {"rounds": 5})
    Traceback (most recent call last):
    TypeError: estimate: got 'rounds', wanted of confirm any of settings, selection_seeds, seeds,
    patience.
    """
    if not isinstance(call, str) or call not in _CALLS:
        raise ValueError(f"call: got {call!r}, wanted 'run', 'refine' or 'confirm'.")
    known = _CALLS[call]
    if unknown := sorted(set(numbers) - set(known)):
        wanted = ", ".join(known) or "no more arguments"
        raise TypeError(f"estimate: got {unknown[0]!r}, wanted of {call} any of {wanted}.")
    taken = {
        name: arguments.patience(value) if name == "patience" else numeric.integer(name, value, 1)
        for name, value in (known | dict(numbers)).items()
    }
    if isinstance(steps, str) and steps == "likely" and folder is None:
        raise ValueError(
            "steps: got 'likely', and no folder that says what is likely. Give the study's, or "
            "steps by batch size, such as those that pilot.expected has."
        )
    return Question(call, taken, _steps(steps), folder)


def _steps(steps: Any) -> Literal["likely"] | dict[int, float] | None:
    """Steps by batch size, from a mapping, a series or a table."""
    if steps is None or (isinstance(steps, str) and steps == "likely"):
        return steps
    if isinstance(steps, pd.DataFrame) and {"batch_size", "steps"} <= {*steps}:
        steps = steps.set_index("batch_size")["steps"]
    if isinstance(steps, pd.Series):
        steps = steps.to_dict()
    wanted = (
        "steps: got {!r}, wanted None, 'likely', or steps to the goal by batch size, such as "
        "{{8: 900, 64: 150}} or pilot.expected."
    )
    if not isinstance(steps, Mapping) or not steps:
        raise TypeError(wanted.format(steps))
    found = {}
    for size, many in steps.items():
        number = numeric.plain(many)
        if number is None or not number > 0:
            raise ValueError(wanted.format(steps))
        found[int(size)] = float(number)
    return found


def operations(training: Training, definition: Definition, asked: Question) -> pd.DataFrame:
    """The table of `Study.estimate`."""
    if asked.folder is None and asked.steps is None and asked.call == "run":
        return costs.cost(training, definition)
    known = _known(training, definition, asked, {})
    measured, goal = known.plan.measured, known.plan.definition.goal.split
    work = costs.work_of(training.workload, training.names)
    rows = []
    for size, counts in _counted(known, asked).items():
        of_goal = counts.whole.get(goal, 0) * measured[goal]
        of_goal += round(rates.BOUNDED * counts.bounded * measured[goal])
        others = sum(many * measured[s] for s, many in counts.whole.items() if s != goal)
        examples = counts.steps * size
        rows.append(
            (
                *(size, known.plan.definition.max_steps[size], counts.trials, examples),
                *(examples * work.training, of_goal, others),
                (of_goal + others) * work.evaluation,
            )
        )
    return pd.DataFrame(rows, columns=list(costs.COST))


def seconds(
    training: Training,
    definition: Definition,
    layout_of: LayoutOf,
    asked: Question,
    chosen: Sequence[Any] | None,
) -> pd.DataFrame:
    """The table of `Study.estimate_seconds`."""
    mesh = session.mesh_of(chosen)
    known = _known(training, definition, asked, {})
    stored = known.plan.layouts

    def layouts(size: int, mesh: Any) -> Layout:
        return stored.get(size) or layout_of(size, mesh)

    definition = known.plan.definition
    widths = {size: mesh.size * layouts(size, mesh).lanes for size in definition.batch_sizes}
    counted = _counted(dataclasses.replace(known, widths=widths), asked)
    sizes = [size for size, counts in counted.items() if counts.trials]
    found = rates.measured(training, definition, layouts, sizes, chosen) if sizes else None
    goal, rows = definition.goal.split, []
    for size, counts in counted.items():
        parts = [0.0] * 5
        if found is not None and counts.trials:
            parts = _parts(found, counts, size, goal, first=size == sizes[0], share=1 / len(sizes))
        rows.append((size, counts.trials, *parts, sum(parts)))
    return pd.DataFrame(rows, columns=list(_SECONDS))


def _parts(
    found: rates.Rates, counts: Counts, size: int, goal: str, *, first: bool, share: float
) -> list[float]:
    """Seconds of a batch size, by part."""
    evaluated = {split: found.evaluations(split, counts, goal) for split in found.whole}
    of_goal = evaluated.pop(goal)
    return [
        found.training(size, counts),
        of_goal,
        sum(evaluated.values()),
        found.compilation[size] + (found.first if first else 0.0),
        found.opening * share + found.closing + found.evaluation * counts.evaluations,
    ]


def _counted(known: Known, asked: Question) -> dict[int, Counts]:
    count = demands.counter(asked.call, asked.numbers)
    return {size: count(known, size) for size in known.plan.definition.batch_sizes}


def _known(
    training: Training, definition: Definition, asked: Question, widths: Mapping[int, int]
) -> Known:
    """What is on disk, and what is assumed of the rest."""
    workload, split = training.workload, definition.goal.split
    splits = workload.splits()
    plan, search, refined, confirmed = Plan(definition, {}), NOTHING, NOTHING, NOTHING
    if asked.folder is not None:
        with StudyFolder.open(asked.folder, write=False) as held:
            stored = opening.study(held)
            if stored is not None:
                plan, search = stored.plan, Tables(stored.measurements, stored.trials)
                beside = opening.refinement(held, plan), opening.confirmed(held, plan)
                refined, confirmed = (
                    NOTHING if one is None else Tables(one.measurements, one.trials)
                    for one in beside
                )
        if differ := plan.definition.differences(definition):
            raise ValueError(
                f"{asked.folder}: holds another study ({'; '.join(differ)}). Give its own folder."
            )
        plan.definition = plan.definition.extended(definition)
    definition = plan.definition
    if not plan.measured:
        plan.measured = definition.evaluate.counts(splits, split)
    work = costs.work_of(workload, training.names)
    for size in definition.batch_sizes:
        if size not in plan.measured_from:
            plan.measured_from[size] = definition.evaluate.first_steps(
                plan.measured, split, size, work
            )
    return Known(
        plan=plan,
        bounded=is_bounded(workload, definition.goal, splits[split]),
        search=search,
        refined=refined,
        confirmed=confirmed,
        first=_first(asked, definition, search),
        widths=widths or dict.fromkeys(definition.batch_sizes, 1),
    )


def _first(asked: Question, definition: Definition, search: Tables) -> dict[int, float] | None:
    """The steps of the first crossing at every batch size, as far as they are assumed or known."""
    if asked.steps is None:
        return None
    sizes = definition.batch_sizes
    if isinstance(asked.steps, Mapping):
        found = foreseeing.first_crossings(asked.steps, sizes)
        return {size: asked.steps.get(size, found.get(size, math.inf)) for size in sizes}
    known = {}
    for size in sizes:
        trials = search.at(size).trials
        if not len(trials):
            continue
        first = float(medians.steps_of(trials).min())
        # Of one that is not done, a miss may become a crossing yet.
        if math.isfinite(first) or not (trials["status"] == Status.INCOMPLETE).any():
            known[size] = first
    found = foreseeing.first_crossings(known, sizes)
    if not found:
        raise ValueError(
            f"{asked.folder}: no batch size has reached the goal yet, so that nothing is likely. "
            "Give steps by batch size, or none for what the call costs at most."
        )
    return {size: known.get(size, found[size]) for size in sizes}
