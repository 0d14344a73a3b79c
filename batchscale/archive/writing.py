"""A study's tables in the layout of the archive, whole or not at all."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import uuid
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from batchscale.archive import names, seals, spaces
from batchscale.archive.own import Own
from batchscale.files import local_path, sync_folder, told
from batchscale.plan import Definition
from batchscale.records import TRIAL_COLUMNS, Status
from batchscale.scaling import Pace
from batchscale.stopping import StopRule

_ORDER = ("train", "val", "test")


def write(
    folder: str | os.PathLike[str],
    definition: Definition,
    trials: pd.DataFrame,
    measurements: pd.DataFrame,
    *,
    paces: Mapping[int, Pace] | None = None,
) -> Path:
    """Writes a study as a workload and an optimizer of the archive; see `Result.to_archive`.

    Args:
      folder: of the optimizer.
      definition: what was measured.
      trials: those to be written; reruns among them are not.
      measurements: one row an evaluation.
      paces: where the schedule decides, by batch size; None if it is not known.

    Returns:
      The folder, absolute.

    Raises:
      FileExistsError: there is something else in the folder.
      ValueError: there are no trials, or the archive has no place for something.
    """
    path = local_path(folder)
    plain = trials.loc[trials.index.get_level_values("replicate") == 0]
    sizes = set(plain.index.get_level_values("batch_size").tolist())
    _check_replaceable(path, definition, sizes)
    if plain.empty:
        raise ValueError("to_archive: no batch size is finished; study.run(folder) goes on.")
    columns = names.archived_columns(map(str, measurements.columns))
    with told(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_name(f".unfinished-{uuid.uuid4().hex}-{path.name}")
        try:
            curves = dict(iter(measurements.groupby(level=["batch_size", "trial", "replicate"])))
            of_size = {int(size): rows for size, rows in plain.groupby(level="batch_size")}  # pyright: ignore[reportArgumentType]
            digests = {size: dict[str, str]() for size in of_size}
            for size, rows in of_size.items():
                for key, row in zip(rows.index, rows.to_dict("records"), strict=True):
                    curve = curves.get(key, measurements.iloc[:0])
                    for name, text in (
                        (names.METADATA, _json(_metadata(key[1], row))),
                        (names.MEASUREMENTS, _table(curve, columns)),
                    ):
                        place = f"{key[1]}/{name}"
                        digests[size][place] = _write(unfinished / str(size) / place, text)
            written = seals.digest(json.dumps(digests).encode())
            for size, rows in of_size.items():
                study = _study(definition, size, rows, paces)
                content = seals.sealed(study, of_size, digests[size], written)
                _write(unfinished / str(size) / names.STUDY, _json(content))
                sync_folder(unfinished / str(size))
            _replace(path, unfinished)
        except BaseException:
            shutil.rmtree(unfinished, ignore_errors=True)
            raise
        sync_folder(path.parent)
    return path


def _study(
    definition: Definition, size: int, rows: pd.DataFrame, paces: Mapping[int, Pace] | None
) -> dict[str, Any]:
    dataset, _, model = definition.workload.partition("/")
    complete = rows.loc[(rows["status"] == Status.COMPLETE).to_numpy(), "steps_trained"]
    return {
        "batch_size": size,
        "dataset": dataset,
        "early_stopping": definition.stop != "budget",
        "model": model or dataset,
        "optimizer": names.archived_optimizer(definition.optimizer),
        "parameter_configs": spaces.configs(definition.spaces[size]),
        "train_steps": int(complete.min()) if len(complete) else definition.max_steps[size],
        names.OWN: Own.of(definition, size, paces).to_json(),
    }


def _metadata(number: int, row: Mapping[Any, Any]) -> dict[str, Any]:
    parameters = {
        str(name): value
        for name, value in row.items()
        if name not in TRIAL_COLUMNS and np.isfinite(value)
    }
    return {
        "trial_id": int(number),
        "status": str(row["status"]).upper(),
        "steps": int(row["steps_trained"]),
        "parameters": parameters,
        names.OWN: {"origin": str(row["origin"]), "stop_reason": str(row["stop_reason"])},
    }


def _json(value: Mapping[str, Any]) -> str:
    return json.dumps(value, indent=2, allow_nan=False) + "\n"


def _table(curve: pd.DataFrame, columns: Mapping[str, str]) -> str:
    """Numbers as Python writes them, which come back to the bit; NaN is an empty cell."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    order = sorted(columns, key=lambda name: _place(columns[name]))
    writer.writerow(["step", *(columns[name] for name in order)])
    steps = curve.index.get_level_values("step").tolist()
    for step, values in zip(steps, curve[order].to_numpy(np.float64).tolist(), strict=True):
        writer.writerow([step, *("" if value != value else repr(value) for value in values)])
    return text.getvalue()


def _place(column: str) -> tuple[int, str]:
    split = column.partition("/")[0]
    return (_ORDER.index(split) if split in _ORDER else len(_ORDER), column)


def _write(path: Path, text: str) -> str:
    """Writes a new file, and returns its digest."""
    content = text.encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    return seals.digest(content)


_SAME = ("workload", "schedule", "goal", "seed", "train_examples", "evaluation_spacing")
"""What makes another study, whose archive is not replaced."""


def _check_replaceable(path: Path, definition: Definition, sizes: Collection[int]) -> None:
    """Refuses a place where there is anything but an archive that this study wrote before.

    Nor is one replaced that has other batch sizes than these, which would be lost.
    """
    if not path.is_symlink() and (not path.exists() or _is_of(path, definition, sizes)):
        return
    raise FileExistsError(
        f"{path}: there is something else, which is not overwritten. Give a folder that does not "
        "exist yet, or one to which the same study, with no other batch sizes than now, was "
        "written before."
    )


def _is_of(path: Path, definition: Definition, sizes: Collection[int]) -> bool:
    if not path.is_dir():
        return False
    known = {1: {names.STUDY}, 2: {names.METADATA, names.MEASUREMENTS}}
    for folder, _, files in os.walk(path):
        depth = len(Path(folder).relative_to(path).parts)
        if not known.get(depth, set()).issuperset(files):
            return False
        if depth == 1 and not _study_is_of(Path(folder) / names.STUDY, definition, sizes):
            return False
    return True


def _study_is_of(path: Path, definition: Definition, sizes: Collection[int]) -> bool:
    own = Own.of(definition, definition.batch_sizes[0], None).to_json()
    try:
        found = json.loads(path.read_bytes())
        size, there = found["batch_size"], found[names.OWN]
        return (
            names.optimizer(found["optimizer"]) == definition.optimizer
            and size in sizes
            and found["parameter_configs"] == spaces.configs(definition.spaces[size])
            and all(there[name] == own[name] for name in _SAME)
            # Nor is one that is more than this study is now.
            and there["trials"] <= definition.trials
            and there["max_steps"] <= definition.max_steps[size]
            and StopRule.of(definition.stop).covers(StopRule.of(there["stop"]))
        )
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return False


def _replace(path: Path, unfinished: Path) -> None:
    """Puts a whole folder in its place; what was there before goes only then."""
    if not path.exists():
        os.rename(unfinished, path)
        return
    former = path.with_name(f".unfinished-{uuid.uuid4().hex}-{path.name}")
    os.rename(path, former)
    try:
        os.rename(unfinished, path)
    except BaseException:
        os.rename(former, path)
        raise
    shutil.rmtree(former)
