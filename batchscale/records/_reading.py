"""The tables and the JSON of a study's folder, read at one moment."""

import re
from collections.abc import Iterable, Sequence
from typing import Any

import pandas as pd

from batchscale.records import _files
from batchscale.records._index import DamagedError, Snapshot
from batchscale.records.tables import (
    MEASUREMENT_INDEX,
    TRIAL_COLUMNS,
    TRIAL_INDEX,
    measurement_table,
    trial_table,
)

MEASUREMENTS, TRIALS = "measurements.parquet", "trials.parquet"


def json_of(snapshot: Snapshot, name: str) -> Any:
    """What a JSON file of the folder holds; None where there is none."""
    if name not in snapshot:
        return None
    try:
        return _files.from_json(snapshot.read(name))
    except DamagedError:
        raise
    except ValueError as error:
        raise snapshot.damaged(name, str(error)) from error


def _table_of(snapshot: Snapshot, name: str) -> pd.DataFrame:
    """A table as the form of its kind, its index columns again."""
    known = measurement_table if "measurements" in name else trial_table
    index = MEASUREMENT_INDEX if "measurements" in name else TRIAL_INDEX
    try:
        with snapshot.open(name) as file:
            frame = _files.read_table(file)
        if missing := [level for level in index if level not in frame.columns]:
            raise ValueError(f"no column {missing[0]!r}; it has {', '.join(map(str, frame))}.")
        if len(frame) and snapshot.accepts(name):  # what we wrote has its form
            known(frame.set_index(list(index)))
        return frame
    except DamagedError:
        raise
    except (ValueError, KeyError, TypeError) as error:
        raise snapshot.damaged(name, str(error)) from error


def parts(snapshot: Snapshot) -> list[str]:
    """The parts of both tables; of measurements in the order in which they were written."""
    parts = [name for name in snapshot.index.files if name.startswith("parts/")]
    return sorted(parts, key=lambda name: (len(name), name))


def names(snapshot: Snapshot) -> list[str]:
    """The files of the folder, and those that are just gone from it."""
    return [*snapshot.index.files, *snapshot.index.gone]


def next_part(names: Iterable[str]) -> int:
    """The number of the next part of measurements, after those of these names."""
    found = (re.fullmatch(r"parts/measurements-(\d+)\.parquet", name) for name in names)
    return 1 + max((int(number[1]) for number in found if number), default=0)


def tables_of(snapshot: Snapshot) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The measurements and the trials, each row in its last version."""
    found = parts(snapshot)
    rows = [name for name in found if "measurements-" in name]
    own = {int(name[13:-8]): name for name in found if "trials-" in name}
    measurements = [_table_of(snapshot, name) for name in (MEASUREMENTS, *rows) if name in snapshot]
    trials = [_table_of(snapshot, name) for name in own.values()]
    if TRIALS in snapshot:
        compacted = _table_of(snapshot, TRIALS)
        trials.insert(0, compacted[~compacted["batch_size"].isin(list(own))])
    return (
        _formed(snapshot, MEASUREMENTS, measurements),
        _formed(snapshot, TRIALS, trials),
    )


def _formed(snapshot: Snapshot, name: str, frames: list[pd.DataFrame]) -> pd.DataFrame:
    """The rows of several files as one table, in its exact form."""
    try:
        if name == MEASUREMENTS:
            return measurement_table(_latest(frames, MEASUREMENT_INDEX))
        return trial_table(_latest(frames, TRIAL_INDEX, tuple(TRIAL_COLUMNS)))
    except (ValueError, KeyError, TypeError) as error:  # though the digests agree
        raise snapshot.damaged(name, str(error)) from error


def _latest(
    frames: Sequence[pd.DataFrame], index: Sequence[str], columns: Sequence[str] = ()
) -> pd.DataFrame:
    frames = [frame for frame in frames if len(frame)]
    if not frames:
        return pd.DataFrame(columns=[*index, *columns]).set_index(list(index))
    joined = pd.concat(frames, ignore_index=True)
    return joined.drop_duplicates(list(index), keep="last").set_index(list(index))
