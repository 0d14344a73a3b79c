"""JSON, tables and the lock of a study's folder."""

import json
import math
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from batchscale.files import replacing

if sys.platform != "win32":
    import fcntl


def lock(folder: Path) -> IO[bytes]:
    """Holds `folder` against other processes until the returned file is closed.

    The operating system closes the files of a process that dies.

    Raises:
      RuntimeError: another process holds it.
    """
    file = open(folder / ".lock", "ab")  # noqa: SIM115  (open as long as it holds the folder)
    if sys.platform == "win32":
        return file
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise RuntimeError(
            f"{folder}: another process is writing this study. Wait until it has ended, "
            "or give another folder; its tables can be loaded meanwhile."
        ) from None
    except OSError as error:
        warnings.warn(
            f"{folder}: its file system has no locks ({error}). "
            "Make sure that only one process writes this study.",
            stacklevel=3,
        )
    return file


def json_value(value: Any, where: str) -> Any:
    """`value` as JSON holds it: NumPy scalars become numbers, tuples lists.

    Raises:
      ValueError: a number in it is infinite or NaN.
      TypeError: a value or a key in it has no place in JSON.
    """
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise TypeError(f"{where}: key {key!r} must be a string to be kept in JSON.")
        return {str(key): json_value(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [json_value(item, f"{where}[{number}]") for number, item in enumerate(value)]
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{where}: JSON has no {value}. Use None for what is absent or endless.")
    if value is None or isinstance(value, str | bool | int | float):
        return value
    raise TypeError(f"{where}: {type(value).__name__} cannot be kept in JSON.")


def write_json(path: Path, value: Any) -> None:
    """Writes what `json_value` returned."""
    with replacing(path) as file:
        file.write((json.dumps(value, indent=1, allow_nan=False) + "\n").encode())


def read_json(path: Path) -> Any:
    """What `write_json` wrote, or None where there is no such file."""
    if not path.exists():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: not JSON ({error}). Restore the file.") from error


def write_table(path: Path, frame: pd.DataFrame) -> None:
    """Writes a table with its index as columns."""
    with replacing(path) as file:
        pq.write_table(pa.Table.from_pandas(frame.reset_index(), preserve_index=False), file)


def read_table(path: Path) -> pd.DataFrame:
    """What `write_table` wrote, its index still columns.

    Raises:
      ValueError: the file is damaged.
      FileNotFoundError: there is none.
    """
    try:
        # pq.read_table would take a folder named "a=b" for a column.
        with pq.ParquetFile(path) as file:
            return file.read().to_pandas()
    except pa.ArrowInvalid as error:
        raise ValueError(
            f"{path}: not a readable table ({error}). It was written whole, so it was changed "
            "since: restore it, or remove it and run the study again."
        ) from error
