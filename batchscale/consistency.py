"""Whether the files of a study fit one another: the plan, the trials and their measurements.

Digests tell what was changed since it was written. These checks tell what was written wrongly, or
was changed and signed again: whatever the plan and the measurements imply is computed once more.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from batchscale import tuner
from batchscale.plan import Plan
from batchscale.records import (
    TRIAL_COLUMNS,
    DamagedError,
    Origin,
    Status,
    StopReason,
)
from batchscale.sides import FIRST_REFINED, RefinementPlan
from batchscale.stopping import evaluation_grid
from batchscale.tuner import SearchSpace

# By number: what it was planned with, and the words that may say why it was run.
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
    for batch_size in _sizes(measurements, trials):
        rows = enumerate(plan.rows.get(batch_size, ()))
        planned = {number: (row["hyperparameters"], words) for number, row in rows}
        more = refined.trials(batch_size) if refined is not None else []
        planned |= {FIRST_REFINED + i: (values, words) for i, (values, _) in enumerate(more)}
        _refuse(folder, _problem(plan, batch_size, planned, measurements, trials, side=True))


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
            _refuse(folder, _drawn(space, batch_size, part["trials"], seed))
    for batch_size in _sizes(measurements, trials):
        rows = enumerate(refined.trials(batch_size), FIRST_REFINED)
        planned = {number: (values, (origin,)) for number, (values, origin) in rows}
        _refuse(folder, _problem(plan, batch_size, planned, measurements, trials, side=True))


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
    values = [row["hyperparameters"] for row in rows]
    return _drawn(definition.spaces[batch_size], batch_size, values, definition.seed)


def problems(plan: Plan, measurements: pd.DataFrame, trials: pd.DataFrame) -> dict[int, str]:
    """What does not fit, in words, by batch size; empty where everything does.

    Args:
      plan: of the study.
      measurements: of the study.
      trials: of the study.
    """
    found = {}
    for batch_size in _sizes(measurements, trials):
        planned = {
            number: (row["hyperparameters"], (row["origin"],))
            for number, row in enumerate(plan.rows.get(batch_size, ()))
        }
        problem = _problem(plan, batch_size, planned, measurements, trials)
        if problem is not None:
            found[batch_size] = problem
    return found


def _refuse(folder: Path, problem: str | None) -> None:
    if problem is not None:
        raise DamagedError(folder, problem)


def _sizes(*tables: pd.DataFrame) -> list[int]:
    found: set[int] = set()
    for table in tables:
        found.update(table.index.get_level_values("batch_size").unique().tolist())
    return sorted(found)


def _drawn(
    space: SearchSpace, batch_size: int, rows: list[Mapping[str, Any]], seed: int
) -> str | None:
    """The first of the trials that is not what is drawn from a space, in words, or None."""
    if not rows:
        return None
    drawn = tuner.plan(space, batch_size=batch_size, trials=len(rows), seed=seed)
    for number, (wanted, got) in enumerate(zip(drawn.to_dict("records"), rows, strict=True)):
        if got != wanted:
            return (
                f"batch size {batch_size}, trial {number}: got {got}, wanted {wanted}, which the "
                f"space and the seed {seed} give (with this version of SciPy)."
            )
    return None


def _problem(
    plan: Plan,
    batch_size: int,
    planned: _Planned,
    measurements: pd.DataFrame,
    trials: pd.DataFrame,
    *,
    side: bool = False,
) -> str | None:
    found = next(_problems(plan, batch_size, planned, measurements, trials, side), None)
    return None if found is None else f"batch size {batch_size}, {found}."


def _problems(
    plan: Plan,
    batch_size: int,
    planned: _Planned,
    measurements: pd.DataFrame,
    trials: pd.DataFrame,
    side: bool,
) -> Iterator[str]:
    definition = plan.definition
    if batch_size not in definition.spaces:
        yield "all trials: it is not one of the plan's"
        return
    rows, trials = (
        table.loc[table.index.get_level_values("batch_size") == batch_size].droplevel("batch_size")
        for table in (measurements, trials)
    )
    yield from _as_planned(trials, planned, side)
    yield from _words(trials)
    budgets = definition.earlier_budgets.get(batch_size, ())
    grid = np.asarray(
        evaluation_grid(
            definition.max_steps[batch_size], definition.evaluation_spacing, budgets=budgets
        )
    )
    yield from _measured(rows, trials, grid)
    ends = {definition.max_steps[batch_size], *budgets}
    for trial, steps in _where(trials, trials["stop_reason"] == StopReason.BUDGET):
        if steps["steps_trained"] not in ends:
            yield (
                f"{_name(trial)}: its whole budget was trained, and steps_trained is "
                f"{steps['steps_trained']}; wanted {' or '.join(map(str, sorted(ends)))}"
            )
    yield from _crossings(rows, trials, plan)


def _as_planned(trials: pd.DataFrame, planned: _Planned, side: bool) -> Iterator[str]:
    names = [name for name in trials if name not in TRIAL_COLUMNS]
    values = trials[names].to_dict("records")
    for key, origin, got in zip(trials.index, trials["origin"], values, strict=True):
        where, (number, replicate) = _name(key), key
        if number not in planned:
            yield f"{where}: it is in the tables, and not in the plan"
            return
        wanted, origins = planned[number]
        if got != wanted:
            yield f"{where}: its hyperparameters are {got}, and the plan's {dict(wanted)}"
        if origin not in origins:
            yield f"{where}: its origin is {origin!r}, and the plan's {' or '.join(origins)}"
        if (origin == Origin.CONFIRM) != (replicate > 0):
            yield f"{where}: it is of origin {origin!r}, of which there is no such replicate"
    if not side and len(trials):
        numbers = trials.index.get_level_values("trial")
        if numbers.max() >= len(numbers):
            missing = min(set(range(len(numbers))) - set(numbers))
            yield f"trial {missing}: it is missing, and trial {numbers.max()} is there"


def _words(trials: pd.DataFrame) -> Iterator[str]:
    for status, reason in (
        (Status.INFEASIBLE, StopReason.DIVERGED),
        (Status.INCOMPLETE, StopReason.INTERRUPTED),
    ):
        differ = (trials["status"] == status) != (trials["stop_reason"] == reason)
        for trial, row in _where(trials, differ):
            yield f"{_name(trial)}: status {row['status']!r} with reason {row['stop_reason']!r}"
    own = trials["stop_reason"] == StopReason.OWN_CROSSING
    for trial, _ in _where(trials, own & np.isinf(trials["first_crossing"])):
        yield f"{_name(trial)}: it stopped at its own crossing, and never crossed"


def _measured(rows: pd.DataFrame, trials: pd.DataFrame, grid: np.ndarray) -> Iterator[str]:
    """That each trial was measured on the grid, up to where it was trained, and nowhere else."""
    keys, steps = rows.index.droplevel("step"), rows.index.get_level_values("step").to_numpy()
    for trial in keys.unique().difference(trials.index)[:1]:
        yield f"{_name(trial)}: it was measured, and is not in the table of trials"
        return
    trained = trials["steps_trained"].to_numpy()
    infeasible = (trials["status"] == Status.INFEASIBLE).to_numpy()
    off = ~np.isin(trained, grid)
    for trial, row in _where(trials, off):
        yield f"{_name(trial)}: steps_trained is {row['steps_trained']}, where nothing is evaluated"
    # Where a trial diverged nothing of it is kept.
    wanted = np.searchsorted(grid, trained, side="right") - (infeasible & ~off)
    got = pd.Series(1, keys).groupby(level=[0, 1]).sum().reindex(trials.index, fill_value=0)
    for trial, number, count in zip(trials.index, got, wanted, strict=True):
        if number != count:
            yield (
                f"{_name(trial)}: it has {number} measurements, wanted {count} up to step "
                f"{trials.loc[trial, 'steps_trained']}"
            )
            return
    place = pd.Series(0, keys).groupby(level=[0, 1]).cumcount().to_numpy()
    wrong = np.flatnonzero(grid[place] != steps)
    if len(wrong):
        first = wrong[0]
        due = grid[place[first]]
        yield f"{_name(keys[first])}: it was measured at step {steps[first]}, wanted {due}"


def _crossings(rows: pd.DataFrame, trials: pd.DataFrame, plan: Plan) -> Iterator[str]:
    goal = plan.definition.goal
    if goal.bound in rows:
        beyond = goal.reached(rows[goal.bound].to_numpy())
        for key in rows.index[beyond][:1]:
            yield f"{_name(key)}: a bound at step {key[-1]} is past the goal"
    # Before a first whole evaluation there may be bounds alone.
    past = rows.index[
        goal.reached(rows[goal.metric].to_numpy()) if goal.metric in rows else [False] * len(rows)
    ]
    steps = pd.Series(past.get_level_values("step"), past.droplevel("step"), dtype=float)
    first = steps.groupby(level=[0, 1]).min().reindex(trials.index, fill_value=np.inf)
    for trial, row in _where(trials, first.to_numpy() != trials["first_crossing"].to_numpy()):
        yield (
            f"{_name(trial)}: first_crossing is {row['first_crossing']:.0f}, and its measurements "
            f"say {first[trial]:.0f} for {goal}"
        )


def _where(trials: pd.DataFrame, those: Any) -> Iterator[tuple[Any, Any]]:
    return trials.loc[np.asarray(those)].iterrows()


def _name(key: Any) -> str:
    number, replicate, *_ = key
    return f"trial {number}" + (f", replicate {replicate}" if replicate else "")
