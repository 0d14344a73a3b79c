"""Whether the files of a study fit one another: the plan, the trials and their measurements.

Digests tell what was changed since it was written. These checks tell what was written wrongly, or
was changed and signed again: whatever the plan and the measurements imply is computed once more.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from batchscale import tuner
from batchscale.plan import DRAWN_WITH, Plan
from batchscale.records import (
    TRIAL_COLUMNS,
    TRIAL_INDEX,
    DamagedError,
    Origin,
    Status,
    StopReason,
)
from batchscale.stored.followups import FIRST_REFINED, RefinementPlan
from batchscale.stored.measured import FIRST_MEASURED, MeasurePlan
from batchscale.tuner import SearchSpace

# By number: what it was planned with, and the words that may say why it was run.
_Table = dict[str, np.ndarray]
_Planned = Mapping[int, tuple[Mapping[str, Any], tuple[str, ...]]]


def check(
    folder: Path,
    plan: Plan,
    measurements: pd.DataFrame,
    trials: pd.DataFrame,
    *,
    accept: Iterable[str] = (),
) -> None:
    """Refuses a study whose files do not fit one another.

    Args:
      folder: of the study.
      plan: of the study.
      measurements: of the study.
      trials: of the study.
      accept: files whose hand edits are accepted: nothing is compared with them.

    Raises:
      DamagedError: says what does not fit, where, what was found and what was wanted.
    """
    accept = set(accept)
    if "plan.json" in accept:
        return
    for batch_size in plan.rows:
        if found := plan_problem(plan, batch_size):
            raise DamagedError(folder / "plan.json", found, name="plan.json")
    if any(name.endswith(".parquet") for name in accept):
        return
    for found in problems(plan, measurements, trials).values():
        raise DamagedError(folder, found)


def check_confirmation(
    folder: Path,
    plan: Plan,
    refined: RefinementPlan | None,
    measurements: pd.DataFrame,
    trials: pd.DataFrame,
) -> None:
    """Refuses a confirmation whose runs do not fit the plans, or their measurements.

    Args:
      folder: of the confirmation.
      plan: of the study.
      refined: of its refinement, if it has one.
      measurements: of the confirmation.
      trials: of the confirmation.

    Raises:
      DamagedError: says what does not fit.
    """
    words = (str(Origin.CONFIRM),)
    for batch_size, rows, runs in _by_size(measurements, trials):
        settings = enumerate(plan.rows.get(batch_size, ()))
        planned = {number: (row["hyperparameters"], words) for number, row in settings}
        more = refined.trials(batch_size) if refined is not None else []
        planned |= {FIRST_REFINED + i: (values, words) for i, (values, _) in enumerate(more)}
        _refuse(folder, _problem(plan, batch_size, planned, rows, runs))


def check_refinement(
    folder: Path,
    plan: Plan,
    refined: RefinementPlan,
    measurements: pd.DataFrame,
    trials: pd.DataFrame,
) -> None:
    """Refuses a refinement whose trials do not fit the plans, or their measurements.

    Args:
      folder: of the refinement.
      plan: of the study.
      refined: of the refinement.
      measurements: of the refinement.
      trials: of the refinement.

    Raises:
      DamagedError: says what does not fit.
    """
    for number, some in enumerate(refined.rounds):
        for batch_size, part in some.items():
            space = SearchSpace.from_json(part["space"])
            seed = plan.definition.seed + 1 + number
            found = _drawn(space, batch_size, part["trials"], seed, plan.drawn_with)
            _refuse(folder, found)
    for batch_size, rows, runs in _by_size(measurements, trials):
        settings = enumerate(refined.trials(batch_size), FIRST_REFINED)
        planned = {number: (values, (origin,)) for number, (values, origin) in settings}
        _refuse(folder, _problem(plan, batch_size, planned, rows, runs))


def check_measured(
    folder: Path,
    plan: Plan,
    measured: MeasurePlan,
    measurements: pd.DataFrame,
    trials: pd.DataFrame,
) -> None:
    """Refuses a measurement whose trials do not fit the plans, or their evaluations.

    Args:
      folder: of the measurement.
      plan: of the study.
      measured: the rounds that were asked.
      measurements: their evaluations.
      trials: of the rounds.

    Raises:
      DamagedError: says what does not fit.
    """
    words = (str(Origin.MEASURE),)
    for batch_size, rows, runs in _by_size(measurements, trials):
        asked = enumerate(measured.trials(batch_size), FIRST_MEASURED)
        planned = {number: (trial.hyperparameters, words) for number, trial in asked}
        _refuse(folder, _problem(plan, batch_size, planned, rows, runs))


def plan_problem(plan: Plan, batch_size: int) -> str | None:
    """What of a plan is not what the space and the seed give at a batch size, in words, or None."""
    definition, rows = plan.definition, plan.rows[batch_size]
    if batch_size not in definition.spaces:
        return f"batch size {batch_size}: it has trials, and no search space."
    for number, row in enumerate(rows):
        if row["origin"] not in (Origin.PLAN, Origin.TOPUP):
            return (
                f"batch size {batch_size}, trial {number}: got origin {row['origin']!r}, wanted "
                f"{Origin.PLAN} or {Origin.TOPUP}."
            )
    planned = sum(row["origin"] == Origin.PLAN for row in rows)
    if planned > definition.trials:
        return (
            f"batch size {batch_size}: {planned} trials are planned, and the study is of "
            f"{definition.trials}."
        )
    values = [row["hyperparameters"] for row in rows]
    space = definition.spaces[batch_size]
    return _drawn(space, batch_size, values, definition.seed, plan.drawn_with)


def problems(plan: Plan, measurements: pd.DataFrame, trials: pd.DataFrame) -> dict[int, str]:
    """What does not fit, in words, by batch size; empty where everything does.

    Args:
      plan: of the study.
      measurements: of the study.
      trials: of the study.
    """
    found = {}
    for batch_size, rows, runs in _by_size(measurements, trials):
        planned = {
            number: (row["hyperparameters"], (row["origin"],))
            for number, row in enumerate(plan.rows.get(batch_size, ()))
        }
        problem = _problem(plan, batch_size, planned, rows, runs)
        if problem is not None:
            found[batch_size] = problem
    return found


def _refuse(folder: Path, problem: str | None) -> None:
    if problem is not None:
        raise DamagedError(folder, problem)


def _by_size(
    measurements: pd.DataFrame, trials: pd.DataFrame
) -> Iterator[tuple[int, _Table, _Table]]:
    """The columns and the index levels of both tables, in order, at every batch size of either."""
    tables = [_columns(measurements), _columns(trials)]
    sizes = np.unique(np.concatenate([table["batch_size"] for table in tables]))
    for size in sizes.tolist():
        parts = []
        for table in tables:
            start, end = np.searchsorted(table["batch_size"], [size, size + 1])
            parts.append({name: values[start:end] for name, values in table.items()})
        yield size, *parts


def _columns(table: pd.DataFrame) -> _Table:
    index = table.index
    names = map(str, index.names)
    levels = {name: index.get_level_values(name).to_numpy() for name in names}
    return levels | {str(name): table[name].to_numpy() for name in table}


def _drawn(
    space: SearchSpace,
    batch_size: int,
    rows: list[Mapping[str, Any]],
    seed: int,
    drawn_with: str,
) -> str | None:
    """The first of the trials that is not what is drawn from a space, in words, or None.

    Another processor may round a logarithm otherwise, so the last digits are not compared; and
    another version of SciPy may draw otherwise, so its plans are left to their digests.
    """
    if not rows or drawn_with != DRAWN_WITH:
        return None
    drawn = tuner.plan(space, batch_size=batch_size, trials=len(rows), seed=seed)
    table: list[dict[str, float]] = drawn.to_dict("records")  # pyright: ignore
    for number, (wanted, got) in enumerate(zip(table, rows, strict=True)):
        alike = got.keys() == wanted.keys() and all(
            math.isclose(got[name], wanted[name], rel_tol=1e-9) for name in wanted
        )
        if not alike:
            return (
                f"batch size {batch_size}, trial {number}: got {got}, wanted {wanted}, which the "
                f"space and the seed {seed} give."
            )
    return None


def _problem(
    plan: Plan, batch_size: int, planned: _Planned, rows: _Table, trials: _Table
) -> str | None:
    found = next(_problems(plan, batch_size, planned, rows, trials), None)
    return None if found is None else f"batch size {batch_size}, {found}."


def _problems(
    plan: Plan, batch_size: int, planned: _Planned, rows: _Table, trials: _Table
) -> Iterator[str]:
    definition = plan.definition
    if batch_size not in definition.spaces:
        yield "all trials: it is not one of the plan's"
        return
    yield from _as_planned(trials, planned)
    yield from _words(trials)
    budgets = definition.earlier_budgets.get(batch_size, ())
    last = definition.max_steps[batch_size]
    grid = np.asarray(definition.grid(batch_size))
    yield from _measured(rows, trials, grid)
    ends = sorted({last, *budgets})
    whole = trials["stop_reason"] == StopReason.BUDGET
    for at in np.flatnonzero(whole & ~np.isin(trials["steps_trained"], ends)):
        yield (
            f"{_name(trials, at)}: its whole budget was trained, and steps_trained is "
            f"{trials['steps_trained'][at]}; wanted {' or '.join(map(str, ends))}"
        )
    yield from _crossings(rows, trials, plan)


def _as_planned(trials: _Table, planned: _Planned) -> Iterator[str]:
    names = [name for name in trials if name not in {*TRIAL_COLUMNS, *TRIAL_INDEX}]
    numbers = trials["trial"].tolist()
    for at, number in enumerate(numbers):
        where, origin = _name(trials, at), trials["origin"][at]
        if number not in planned:
            yield f"{where}: it is in the tables, and not in the plan"
            return
        wanted, origins = planned[number]
        got = {name: float(trials[name][at]) for name in names}
        if got != wanted:
            yield f"{where}: its hyperparameters are {got}, and the plan's {dict(wanted)}"
        if origin not in origins:
            yield f"{where}: its origin is {origin!r}, and the plan's {' or '.join(origins)}"
        if (origin == Origin.CONFIRM) != (trials["replicate"][at] > 0):
            yield f"{where}: it is of origin {origin!r}, of which there is no such replicate"
    # Trials of the search and refined ones are run in order; any may be run again.
    if numbers and (trials["origin"] != Origin.CONFIRM).any():
        missing = set(range(min(planned), max(numbers))).difference(numbers)
        if missing:
            yield f"trial {min(missing)}: it is missing, and trial {max(numbers)} is there"


def _words(trials: _Table) -> Iterator[str]:
    for status, reason in (
        (Status.INFEASIBLE, StopReason.DIVERGED),
        (Status.INCOMPLETE, StopReason.INTERRUPTED),
    ):
        differ = (trials["status"] == status) != (trials["stop_reason"] == reason)
        for at in np.flatnonzero(differ):
            status, reason = trials["status"][at], trials["stop_reason"][at]
            yield f"{_name(trials, at)}: its status is {status!r}, and its stop_reason {reason!r}"
    own = trials["stop_reason"] == StopReason.OWN_CROSSING
    for at in np.flatnonzero(own & np.isinf(trials["first_crossing"])):
        yield f"{_name(trials, at)}: it stopped at its own crossing, and never crossed"


def _measured(rows: _Table, trials: _Table, grid: np.ndarray) -> Iterator[str]:
    """That each trial was measured on the grid, up to where it was trained, and nowhere else."""
    of, own = _codes(rows), _codes(trials)
    for at in np.flatnonzero(~np.isin(of, own))[:1]:
        yield f"{_name(rows, at)}: it was measured, and is not in the table of trials"
        return
    trained = trials["steps_trained"]
    off = ~np.isin(trained, grid)
    for at in np.flatnonzero(off):
        yield f"{_name(trials, at)}: steps_trained is {trained[at]}, where nothing is evaluated"
    # Where a trial diverged nothing of it is kept.
    infeasible = trials["status"] == Status.INFEASIBLE
    wanted = np.searchsorted(grid, trained, side="right") - infeasible
    starts = np.searchsorted(of, own)
    got = np.searchsorted(of, own, side="right") - starts
    for at in np.flatnonzero(got != wanted)[:1]:
        yield (
            f"{_name(trials, at)}: it has {got[at]} measurements, wanted {wanted[at]} up to step "
            f"{trained[at]}"
        )
        return
    due = grid[np.arange(len(of)) - np.repeat(starts, got)]
    for at in np.flatnonzero(due != rows["step"])[:1]:
        yield f"{_name(rows, at)}: it was measured at step {rows['step'][at]}, wanted {due[at]}"


def _crossings(rows: _Table, trials: _Table, plan: Plan) -> Iterator[str]:
    goal = plan.definition.goal
    if goal.bound in rows:
        for at in np.flatnonzero(goal.reached(rows[goal.bound]))[:1]:
            yield f"{_name(rows, at)}: a bound at step {rows['step'][at]} is past the goal"
    first = np.full(len(trials["trial"]), np.inf)
    if goal.metric in rows:  # else there are bounds alone, before a first whole evaluation
        past = np.flatnonzero(goal.reached(rows[goal.metric]))[::-1]
        first[np.searchsorted(_codes(trials), _codes(rows)[past])] = rows["step"][past]
    for at in np.flatnonzero(first != trials["first_crossing"]):
        yield (
            f"{_name(trials, at)}: first_crossing is {trials['first_crossing'][at]:.0f}, and its "
            f"measurements say {first[at]:.0f} for {goal}"
        )


def _codes(table: _Table) -> np.ndarray:
    """A number for every trial, in the order of the tables."""
    return (table["trial"].astype(np.int64) << 32) + table["replicate"]


def _name(table: _Table, at: int | np.intp) -> str:
    replicate = table["replicate"][at]
    return f"trial {table['trial'][at]}" + (f", replicate {replicate}" if replicate else "")
