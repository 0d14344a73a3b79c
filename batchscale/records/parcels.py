"""What a folder holds of one batch size, as bytes: sent to another machine, and written there.

A parcel is a mapping of `measurements` and `trials`, tables as Parquet, and `state`, arrays as
NumPy keeps them; what is not there is left out. Nothing in it is pickled.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from batchscale.records import _files
from batchscale.records.folder import StudyFolder
from batchscale.records.tables import (
    MEASUREMENT_INDEX,
    TRIAL_COLUMNS,
    TRIAL_INDEX,
    measurement_table,
    trial_table,
)

Parcel = Mapping[str, bytes]
State = tuple[dict[str, np.ndarray], dict[str, Any]]


def packed(
    measurements: pd.DataFrame, trials: pd.DataFrame, state: State | None = None
) -> dict[str, bytes]:
    """The parcel of rows and a training state.

    Args:
      measurements: of one batch size, as `measurement_table` takes them.
      trials: of the same, as `trial_table` takes them.
      state: as `StudyFolder.read_state` returns it.

    >>> index = pd.MultiIndex.from_tuples([(8, 0, 0, 1)], names=MEASUREMENT_INDEX)
    >>> parcel = packed(pd.DataFrame({"validation/error": [0.5]}, index), pd.DataFrame())
    >>> list(parcel), len(tables(parcel, 8)[0]), len(tables(parcel, 8)[1])
    (['measurements'], 1, 0)
    """
    parcel: dict[str, bytes] = {}
    if len(measurements):
        parcel["measurements"] = _table_bytes(measurement_table(measurements))
    if len(trials):
        parcel["trials"] = _table_bytes(trial_table(trials))
    if state is not None:
        buffer = io.BytesIO()
        _files.write_arrays(buffer, state[0], _files.json_value(state[1], "state"))
        parcel["state"] = buffer.getvalue()
    return parcel


def tables(parcel: Parcel, batch_size: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The measurements and the trials in a parcel, in their exact form.

    Args:
      parcel: from `packed`.
      batch_size: whose rows they must be.

    Raises:
      ValueError: it holds no such tables, damaged ones, or rows of another batch size.

    >>> tables({"trials": b"no table"}, 8)
    Traceback (most recent call last):
    ValueError: batch size 8, trials: not a readable table ...
    """
    columns = {"measurements": [*MEASUREMENT_INDEX], "trials": [*TRIAL_INDEX, *TRIAL_COLUMNS]}
    found = {}
    for name, index in (("measurements", MEASUREMENT_INDEX), ("trials", TRIAL_INDEX)):
        frame = pd.DataFrame(columns=columns[name])
        if name in parcel:
            try:
                frame = _files.read_table(io.BytesIO(parcel[name]))
                if set(frame["batch_size"]) != {batch_size}:
                    raise ValueError("rows of another batch size.")
            except (ValueError, KeyError) as error:
                raise ValueError(f"batch size {batch_size}, {name}: {error}") from error
        found[name] = frame.set_index(list(index))
    return measurement_table(found["measurements"]), trial_table(found["trials"])


def state(parcel: Parcel) -> State | None:
    """The training state in a parcel; None where there is none.

    Raises:
      ValueError: it is no whole training state.

    >>> about = {"cohorts": {}}
    >>> arrays, found = state(packed(pd.DataFrame(), pd.DataFrame(), ({"0/0": np.ones(3)}, about)))
    >>> arrays["0/0"].sum().item(), found
    (3.0, {'cohorts': {}})
    """
    return _files.read_arrays(io.BytesIO(parcel["state"])) if "state" in parcel else None


def write(parcel: Parcel, batch_size: int, folder: StudyFolder) -> None:
    """Writes a parcel into a folder that has nothing of its batch size yet.

    Args:
      parcel: from `packed`.
      batch_size: whose parcel it is.
      folder: open for writing.

    Raises:
      ValueError: it is not as `packed` makes it.
    """
    measurements, trials = tables(parcel, batch_size)
    found = state(parcel)
    with folder.together():
        folder.append_measurements(measurements)
        if len(trials):
            folder.write_trials(batch_size, trials)
        if found is not None:
            folder.write_state(batch_size, *found)


def _table_bytes(frame: pd.DataFrame) -> bytes:
    buffer = io.BytesIO()
    _files.write_table(buffer, frame)
    return buffer.getvalue()
