"""The kinds of file of a study: JSON, tables and arrays."""

import json
import math
from collections.abc import Mapping
from typing import IO, Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq


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


def to_json(value: Any) -> bytes:
    """What `json_value` returned, as the content of a file."""
    return (json.dumps(value, indent=1, allow_nan=False) + "\n").encode()


def from_json(content: bytes) -> Any:
    """What `to_json` wrote.

    Raises:
      ValueError: it is not JSON.
    """
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not JSON ({error}).") from error


def write_table(file: IO[bytes], frame: pd.DataFrame) -> None:
    """Writes a table with its index as columns."""
    table = pa.Table.from_pandas(frame.reset_index(), preserve_index=False)
    pq.write_table(table, file, write_page_checksum=True)


def read_table(file: IO[bytes]) -> pd.DataFrame:
    """What `write_table` wrote, its index still columns.

    Raises:
      ValueError: it is no table, or damaged.
    """
    try:
        # An open file, for pq takes a path for an address, and a folder named "a=b" for a column.
        with pq.ParquetFile(file, page_checksum_verification=True) as table:
            return table.read().to_pandas()
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:
        raise ValueError(f"not a readable table ({error}).") from error


def write_arrays(file: IO[bytes], arrays: Mapping[str, np.ndarray], about: Any) -> None:
    """Writes arrays, and what they mean, as an archive of NumPy.

    Raises:
      TypeError: an array holds Python objects.
    """
    names, stored = [], {}
    for number, (name, array) in enumerate(arrays.items()):
        array = np.asarray(array)
        if array.dtype.hasobject:
            raise TypeError(f"state: array {name!r} holds Python objects; wanted numbers.")
        # NumPy's format forgets the dtypes of ml_dtypes: their bits go in as integers.
        extension = array.dtype.name if array.dtype.isbuiltin == 2 else None
        names.append([name, extension])
        stored[f"array_{number}"] = array.view(f"u{array.dtype.itemsize}") if extension else array
    np.savez(file, header=np.array(json.dumps({"arrays": names, "about": about})), **stored)


def read_arrays(file: IO[bytes]) -> tuple[dict[str, np.ndarray], Any]:
    """What `write_arrays` wrote.

    Raises:
      ValueError: it is no such archive, or damaged.
    """
    import ml_dtypes  # noqa: F401  (from here on NumPy knows bfloat16 by name)

    try:
        with np.load(file, allow_pickle=False) as stored:
            header = json.loads(str(stored["header"]))
            arrays = {}
            for number, (name, extension) in enumerate(header["arrays"]):
                array = stored[f"array_{number}"]
                arrays[name] = array.view(np.dtype(extension)) if extension else array
            return arrays, header["about"]
    except Exception as error:  # a damaged archive fails in too many ways to list
        raise ValueError(
            f"not a whole training state ({type(error).__name__}: {error})."
        ) from error
