"""An archive as the tables of a study: `trials` and `measurements`, and what they are of."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from batchscale import columns, given, metrics, numeric, records
from batchscale.archive import files, names, paper, seals, spaces, studies
from batchscale.archive.studies import Study, Trial
from batchscale.files import local_path
from batchscale.metrics import Goal
from batchscale.metrics.goal import check_goal
from batchscale.plan import Definition
from batchscale.records import TRIAL_COLUMNS, Status, StopReason
from batchscale.scaling import Pace

_ABSENT = {"label_smoothing": 0.0}
"""What a hyperparameter is where a trial does not have it; of any other it is not known (NaN)."""


class Contents(NamedTuple):
    """What an archive holds of a workload and an optimizer.

    Attributes:
      folder: where it is.
      definition: what was measured.
      trials: as `records.trial_table` has them.
      measurements: as `records.measurement_table` has them.
      paces: where the schedule decides, by batch size; None if it is not known.
      studies: one row a batch size: `train_steps`, `early_stopping`, and how many trials there are,
        `complete`, `incomplete` and `infeasible`, read or not.
    """

    folder: Path
    definition: Definition
    trials: pd.DataFrame
    measurements: pd.DataFrame
    paces: Mapping[int, Pace] | None
    studies: pd.DataFrame


def read(
    folder: str | os.PathLike[str],
    *,
    trials: int | None = None,
    goal: Goal | None = None,
    train_examples: int | None = None,
    accept: Collection[str] = (),
) -> Contents:
    """Reads a workload and an optimizer; see `batchscale.load_archive`.

    Args:
      folder: the one of the optimizer.
      trials: the first so many complete trials of every batch size, and no others; all complete and
        infeasible ones if not given.
      goal: that of the paper, or of the study that wrote the archive, if not given.
      train_examples: the size of the training set; that of the paper's if not given.
      accept: files that may be others than this library wrote.

    Raises:
      FileNotFoundError, ValueError, TypeError, DamagedError: as `load_archive` does.
    """
    if trials is not None:
        trials = numeric.integer("trials", trials, 1)
    if goal is not None:
        check_goal("goal", goal)
    accept = given.names_of_files(accept)
    path = local_path(folder)
    found = studies.studies(path)
    written = [one.seal for one in found if one.seal is not None]
    if written:
        for one in found:
            if one.seal is None:
                raise files.damaged(one.path, "it has no digests, and others beside it have.")
        seals.check(path, written, accept)
    elif found[0].own is not None and not accept:
        warnings.warn(
            f"{path}: it was written without digests, so that it is not known whether it was "
            "changed. Write it again: batchscale.load(folder of the study).to_archive(...).",
            stacklevel=3,
        )
    elif accept:
        raise ValueError(
            f"accept: got {sorted(accept)}, and {path} has no digests, for another program wrote "
            "it, or an earlier version: leave `accept` out."
        )
    workload = _workload(found)
    goal = _goal(path, found, workload, goal)
    train_examples = _train_examples(path, found, workload, train_examples)
    every = {one.batch_size: studies.trials(one) for one in found}
    chosen = {one.batch_size: _chosen(one, every[one.batch_size], trials) for one in found}
    curves = _curves(chosen)
    measurements = _measurements(path, curves, goal)
    table = _trials(path, found, chosen, curves, measurements, goal)
    own = found[0].own
    if own is None or not own.pace_known:
        paces = None
    else:
        paces = {o.batch_size: o.own.pace for o in found if o.own is not None and o.own.pace}
    definition = _definition(path, found, workload, goal, train_examples, trials, table)
    return Contents(path, definition, table, measurements, paces, _overview(found, every))


def _workload(found: list[Study]) -> str:
    """The workload's name; of a subset by its folder, which `study.json` need not say."""
    first = found[0]
    named = first.folder.parent.parent.parent.name
    if first.own is None and named in paper.SUBSETS and named.startswith(f"{first.dataset}_"):
        return f"{named}/{first.workload.partition('/')[2]}"
    return first.workload


def _goal(path: Path, found: list[Study], workload: str, goal: Goal | None) -> Goal:
    own = found[0].own
    goal = goal or (paper.goal(workload) if own is None else own.goal)
    if goal is None:
        raise ValueError(
            f"goal: the paper has none for {workload!r} ({path}). Give one, such as "
            'goal=batchscale.Goal("validation/error", 0.03).'
        )
    return goal


def _train_examples(path: Path, found: list[Study], workload: str, given: int | None) -> int:
    dataset = workload.partition("/")[0]
    largest = found[-1].batch_size
    own = found[0].own
    if given is None:
        given = paper.TRAIN_EXAMPLES.get(dataset) if own is None else own.train_examples
    if given is None:
        raise ValueError(
            f"train_examples: it is not known how many examples the training set of {dataset!r} "
            f"has ({path}). Give their number; budgets in epochs depend on it, and nothing else "
            "but the mark of a full batch in figures."
        )
    given = numeric.integer("train_examples", given, 1)
    if largest > given:
        raise ValueError(
            f"train_examples: got {given:,}, and {found[-1].path} is of batch size {largest:,}. "
            "Give the size of the training set."
        )
    return given


def _chosen(of: Study, every: list[Trial], count: int | None) -> list[Trial]:
    """The trials of a batch size that are read."""
    every = sorted(every, key=lambda trial: trial.number)  # which their folders need not be by
    complete = [trial for trial in every if trial.status == Status.COMPLETE]
    if count is not None:
        if len(complete) < count:
            raise ValueError(
                f"trials: got {count}, and batch size {of.batch_size} has {len(complete)} complete "
                f"ones ({of.folder}). Ask for {len(complete)} or fewer."
                if complete
                else f"trials: batch size {of.batch_size} has no complete one ({of.folder})."
            )
        return complete[:count]
    chosen = [trial for trial in every if trial.status != Status.INCOMPLETE]
    if not chosen:
        raise files.damaged(
            of.folder, f"batch size {of.batch_size} has no complete and no infeasible trial."
        )
    return chosen


_Curves = dict[tuple[int, int, int], pd.DataFrame]


def _curves(chosen: Mapping[int, list[Trial]]) -> _Curves:
    """The evaluations of every trial that is read, by batch size, trial and replicate."""
    curves: _Curves = {}
    left_out: dict[Path, int] = {}
    cut: list[Path] = []
    for size, some in chosen.items():
        for trial in some:
            path = trial.folder / names.MEASUREMENTS
            curves[size, trial.number, 0], twice, within = files.measurements(path)
            if twice:
                left_out[path] = twice
            if within:
                cut.append(path)
    if left_out:
        warnings.warn(
            f"{next(iter(left_out))}: {sum(left_out.values())} evaluations, in {len(left_out)} "
            "files, are of a step that a later row is of too; the last of them is taken.",
            stacklevel=4,
        )
    if cut:
        warnings.warn(
            f"{cut[0]}: it ends within a line, so that its last number may have been cut"
            f"{f'; and {len(cut) - 1} files likewise' if len(cut) > 1 else ''}. Unpack the archive "
            "again.",
            stacklevel=4,
        )
    return curves


def _measurements(path: Path, curves: _Curves, goal: Goal) -> pd.DataFrame:
    measured = {trial: curve for trial, curve in curves.items() if len(curve)}
    if not measured:
        raise files.damaged(path, "nothing is measured of any trial that is read.")
    frame = pd.concat(measured, names=list(records.TRIAL_INDEX))
    table = records.measurement_table(frame)
    if goal.metric not in table and goal.bound not in table:
        raise ValueError(
            f"goal: got {goal}, and {goal.metric!r} is not measured in {path}, but "
            f"{', '.join(table.columns)}. Give a goal of one of these: goal=batchscale.Goal(...)."
        )
    return metrics.with_goal(table, goal)


def _trials(
    path: Path,
    found: list[Study],
    chosen: Mapping[int, list[Trial]],
    curves: _Curves,
    measurements: pd.DataFrame,
    goal: Goal,
) -> pd.DataFrame:
    hyperparameters = {name for one in found for name in one.dimensions}
    hyperparameters |= {n for some in chosen.values() for t in some for n in t.hyperparameters}
    try:
        columns.check_hyperparameters(sorted(hyperparameters))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    missing = {name: _ABSENT.get(name, math.nan) for name in hyperparameters}
    rows: dict[tuple[int, int, int], dict[str, Any]] = {}
    for size, some in chosen.items():
        steps = {t.number: _steps_trained(t, curves[size, t.number, 0]) for t in some}
        whole = {steps[t.number] for t in some if t.status == Status.COMPLETE}
        for trial in some:
            # Trials that ran as long as each other had one budget; others had their own.
            reason = StopReason.BUDGET if len(whole) == 1 else StopReason.OWN_BUDGET
            if trial.status == Status.INFEASIBLE:
                reason = StopReason.DIVERGED
            rows[size, trial.number, 0] = {
                **missing,
                **trial.hyperparameters,
                "origin": trial.origin,
                "status": trial.status,
                "steps_trained": steps[trial.number],
                "stop_reason": trial.stop_reason or reason,
            }
    index = pd.MultiIndex.from_tuples(list(rows), names=list(records.TRIAL_INDEX))
    frame = pd.DataFrame(list(rows.values()), index=index)
    crossings = metrics.first_crossings(measurements, goal)["first_crossing"]
    crossings = crossings.reindex(index).fillna(np.inf)
    return records.trial_table(frame.assign(first_crossing=crossings))


def _steps_trained(trial: Trial, curve: pd.DataFrame) -> int:
    """The steps that a trial says it was trained, and not fewer than were evaluated."""
    return max(trial.steps or 0, int(curve.index.max()) if len(curve) else 0)


def _definition(
    path: Path,
    found: list[Study],
    workload: str,
    goal: Goal,
    train_examples: int,
    count: int | None,
    trials: pd.DataFrame,
) -> Definition:
    own = found[0].own
    sizes = trials.index.get_level_values("batch_size")
    complete = (trials["status"] == Status.COMPLETE).groupby(sizes).sum()
    infeasible = (trials["status"] == Status.INFEASIBLE).groupby(sizes).sum()
    longest = trials["steps_trained"].groupby(sizes).max()
    budgets = {
        one.batch_size: one.own.max_steps
        if one.own is not None
        else one.train_steps or int(longest[one.batch_size])
        for one in found
    }
    hyperparameters = trials.drop(columns=list(TRIAL_COLUMNS))
    try:
        space = spaces.everywhere(
            {one.batch_size: one.dimensions for one in found},
            {size: _constants(rows) for size, rows in _groups(hyperparameters)},
        )
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return Definition(
        workload=workload,
        optimizer=found[0].optimizer,
        schedule="not recorded" if own is None else own.schedule,
        goal=goal,
        spaces=space,
        trials=count or (max(int(complete.min()), 1) if own is None else own.trials),
        max_infeasible=int(infeasible.max()) if own is None else own.max_infeasible,
        max_steps=budgets,
        earlier_budgets={},
        stop="budget" if own is None else own.stop,
        curves="exact" if own is None else own.curves,
        evaluation_spacing=math.nan if own is None else own.evaluation_spacing,
        seed=0 if own is None else own.seed,
        train_examples=train_examples,
    )


def _groups(table: pd.DataFrame) -> Iterable[tuple[int, pd.DataFrame]]:
    for size, rows in table.groupby(level="batch_size"):
        yield int(size), rows  # pyright: ignore[reportArgumentType]


def _constants(rows: pd.DataFrame) -> dict[str, float]:
    """The hyperparameters that all trials share, with their values."""
    same = {str(name): rows[name].unique() for name in rows}
    return {name: float(v[0]) for name, v in same.items() if len(v) == 1 and np.isfinite(v[0])}


def _overview(found: list[Study], every: Mapping[int, list[Trial]]) -> pd.DataFrame:
    rows = []
    for one in found:
        statuses = [trial.status for trial in every[one.batch_size]]
        counts = {str(status): statuses.count(status) for status in Status}
        rows.append(
            {
                "batch_size": one.batch_size,
                "train_steps": one.train_steps,
                "early_stopping": one.early_stopping,
                **counts,
            }
        )
    return pd.DataFrame(rows)
