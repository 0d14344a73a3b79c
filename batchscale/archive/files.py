"""The files of the archive, each read whole and checked; an error names the file."""

from __future__ import annotations

import csv
import json
import math
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from batchscale.archive import names
from batchscale.files import is_inside
from batchscale.numeric import plain
from batchscale.records import DamagedError

_LISTED = 10
_MOST_STEPS = 2.0**53  # above which floats are no longer every whole number


def damaged(path: Path, found: str) -> DamagedError:
    """The error that says what is wrong with a file of the archive.

    >>> print(damaged(Path("8/study.json"), "no JSON."))
    8/study.json: no JSON. Unpack the archive again, or restore the file from a copy.
    """
    remedy = "Unpack the archive again, or restore the file from a copy."
    return DamagedError(path, found, remedy=remedy)


def studies(folder: Path) -> list[Path]:
    """The folders of the batch sizes of one workload and optimizer, found by their `study.json`.

    Args:
      folder: the one of the optimizer, or any above or below that holds no other workload.

    Raises:
      FileNotFoundError: there is no such folder, or no study in it.
      ValueError: there are several workloads or optimizers in it; lists them.
    """
    if not folder.is_dir():
        raise FileNotFoundError(
            f"{folder}: no such folder. Give the one of an optimizer in an unpacked archive, "
            "dataset/model/optimizer."
        )
    found = []
    for path, below, files in os.walk(folder):
        if names.STUDY in files:
            found.append(Path(path))
            below.clear()  # its trials, which are many
    if not found:
        raise FileNotFoundError(
            f"{folder}: there is no {names.STUDY} in it, nor below. Give the folder of an "
            "optimizer in an unpacked archive, dataset/model/optimizer."
        )
    parents = sorted({path.parent for path in found})
    if len(parents) > 1:
        listed = [str(parent.relative_to(folder)) for parent in parents[:_LISTED]]
        more = f", and {len(parents) - _LISTED} more" if len(parents) > _LISTED else ""
        raise ValueError(
            f"{folder}: got a folder of {len(parents)} workloads and optimizers, wanted one. "
            f"Give one of those in it: {', '.join(listed)}{more}."
        )
    return found


def trials(study: Path) -> list[tuple[int, Path]]:
    """The folders of the trials of a batch size, with the numbers that they are named by, in order.

    Raises:
      DamagedError: a folder with a trial in it is not named by a number.
    """
    found = []
    for path in study.iterdir():
        _check_inside(path)
        if re.fullmatch("[0-9]{1,18}", path.name) and path.is_dir():
            found.append((int(path.name), path))
        elif (path / names.METADATA).is_file():
            raise damaged(path, f"got a trial in a folder named {path.name!r}, wanted its number.")
    return sorted(found)


def record(path: Path) -> dict[str, Any]:
    """A file of JSON that holds a record.

    Raises:
      DamagedError: it is missing, or no such file.
    """
    try:
        found = json.loads(_text(path), parse_constant=_no_constant)
    except DamagedError:
        raise
    except (ValueError, RecursionError) as error:
        raise damaged(path, f"not JSON ({error}).") from error
    if not isinstance(found, dict):
        raise damaged(path, f"got {type(found).__name__}, wanted a record.")
    return found


def _check_inside(path: Path) -> None:
    """Refuses a link that leads out of the folder it is in."""
    if not is_inside(path, path.parent):
        raise damaged(path, f"a link that leads out of {path.parent}.")


def _no_constant(word: str) -> float:
    raise ValueError(f"got {word}, wanted a number")


def content(path: Path) -> bytes:
    """The bytes of a file.

    Raises:
      DamagedError: it cannot be read, or is a link that leads out of its folder.
    """
    _check_inside(path)
    try:
        return path.read_bytes()
    except OSError as error:
        raise damaged(path, f"cannot be read ({error.strerror}).") from error


def _text(path: Path) -> str:
    try:
        return content(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise damaged(path, f"not text ({error}).") from error


def word(path: Path, of: dict[str, Any], key: str) -> str:
    """A word in a record.

    Raises:
      DamagedError: it is none, or missing.
    """
    value = of.get(key)
    if not isinstance(value, str) or not value:
        raise damaged(path, f"{key}: got {value!r}, wanted a word.")
    return value


def whole(path: Path, of: dict[str, Any], key: str, least: int = 0) -> int:
    """A whole number in a record, 1000.0 among them.

    Raises:
      DamagedError: it is none, or missing, or less than the least.
    """
    value = plain(of.get(key))
    if value is None or not math.isfinite(value) or value != int(value) or value < least:
        raise damaged(path, f"{key}: got {of.get(key)!r}, wanted a whole number, {least} or more.")
    return int(value)


def measurements(path: Path) -> tuple[pd.DataFrame, int, bool]:
    """The evaluations of a trial.

    Returns:
      One row an evaluation, indexed by `step`, with a column a "split/metric", by its name here;
      NaN where a cell is empty. How many rows were left out, because a later one is of the
      same step: the last one counts. And whether the file ends within a line, so that its last
      number may have been cut.

    Raises:
      DamagedError: it is missing, or no such table.
    """
    try:
        text = _text(path)
        rows = list(csv.reader(text.splitlines(), strict=True))
    except csv.Error as error:
        raise damaged(path, f"not a table ({error}).") from error
    head = rows[0] if rows else []
    if head.count("step") != 1:
        raise damaged(
            path, f"got the columns {', '.join(head) or 'none'}, wanted one named 'step'."
        )
    rows = [(line, row) for line, row in enumerate(rows[1:], 2) if row]
    for line, row in rows:
        if len(row) != len(head):
            raise damaged(path, f"line {line}: got {len(row)} cells, wanted {len(head)}.")
    table = np.array([_numbers(path, line, row) for line, row in rows], float)
    table = table.reshape(len(rows), len(head))
    steps = table[:, head.index("step")]
    whole = (steps >= 0) & (steps < _MOST_STEPS) & (steps == np.floor(steps))
    wrong = np.flatnonzero(~whole)
    if len(wrong):
        line, row = rows[wrong[0]]
        got = row[head.index("step")]
        raise damaged(path, f"line {line}: got step {got!r}, wanted a whole number.")
    columns: dict[str, np.ndarray] = {}
    for place, name in enumerate(head):
        here = names.column(name)
        if here in columns:
            raise damaged(path, f"two of its columns are {here}: {', '.join(head)}.")
        if here is not None:
            columns[here] = table[:, place]
    frame = pd.DataFrame(columns, index=pd.Index(steps.astype(np.int64), name="step"))
    kept = frame.loc[~frame.index.duplicated(keep="last")]
    return kept, len(frame) - len(kept), not text.endswith(("\n", "\r"))


def _numbers(path: Path, line: int, row: list[str]) -> list[float]:
    """Cells as Python reads them, to the nearest float: 0.01 is not past a goal of 0.01."""
    if not any("_" in cell for cell in row):  # which Python allows between digits
        try:
            return [float(cell) if cell else math.nan for cell in row]
        except ValueError:
            pass
    wrong = next(cell for cell in row if not _is_number(cell))
    raise damaged(path, f"line {line}: got {wrong!r}, wanted a number.")


def _is_number(cell: str) -> bool:
    try:
        float(cell or "nan")
    except ValueError:
        return False
    return "_" not in cell
