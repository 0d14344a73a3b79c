"""The folder of a study, written by one process and read by any number.

plan.json                      the study and every planned trial, before anything runs
provenance.json                an entry for every run: versions, devices, command
parts/*.parquet                rows of the tables, as they come
measurements.parquet           the tables, once compacted
trials.parquet
state/<batch_size>.npz         training states of an unfinished batch size
confirm/, refine/              the same again, of what is run after the search
"""

import contextlib
import json
import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Self

import numpy as np
import pandas as pd

from batchscale.files import remove_unfinished, replacing
from batchscale.records import _files
from batchscale.records.tables import (
    MEASUREMENT_INDEX,
    TRIAL_COLUMNS,
    TRIAL_INDEX,
    measurement_table,
    trial_table,
)

CONFIRMED, REFINED = "confirm", "refine"
"""Where, in the folder of a study, its confirmation and its refinement are."""


class Records:
    """The folder of one study.

    Every file in it is written whole under a temporary name, synced and renamed: a kill at
    any moment leaves complete files only.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder, Records.open(folder) as records:
    ...     records.write_plan({"seed": 0, "batch_sizes": [1, 2, 4]})
    ...     records.read_plan()
    {'seed': 0, 'batch_sizes': [1, 2, 4]}
    """

    folder: Path

    def __init__(self, folder: Path, lock: IO[bytes] | None):
        self.folder = folder
        self._lock = lock
        self._next_part = 1 + max(map(_part_number, _measurement_parts(folder)), default=0)

    @classmethod
    def open(cls, folder: str | os.PathLike[str], *, write: bool = True) -> Self:
        """Opens a study's folder, to write it or only to read it.

        Args:
          folder: the study's folder; created if it is to be written.
          write: hold the folder against other writers until `close`, or until the process
            dies, and remove what a killed writer left unfinished. Reading holds nothing
            and may go on beside a writer.

        Raises:
          RuntimeError: another process is writing this study.
          FileNotFoundError: there is no study in `folder`, and it is only to be read.
        """
        folder = Path(folder)
        if not write:
            _check_is_study(folder)
            return cls(folder, None)
        folders = (folder, folder / "parts", folder / "state")
        for path in folders:
            path.mkdir(parents=True, exist_ok=True)
        lock = _files.lock(folder)
        for path in folders:
            remove_unfinished(path)
        return cls(folder, lock)

    def close(self) -> None:
        """Lets other processes write the folder."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def write_plan(self, plan: Mapping[str, Any]) -> None:
        """Writes `plan.json` in place of the former one.

        Args:
          plan: anything JSON holds; NumPy scalars become numbers and tuples lists. Floats
            come back exactly.

        Raises:
          ValueError: a number in it is infinite or NaN.
          TypeError: a value or a key in it has no place in JSON.
        """
        self._check_writable()
        _files.write_json(self.folder / "plan.json", _files.json_value(plan, "plan"))

    def read_plan(self) -> dict[str, Any] | None:
        """The plan, or None where none was written yet."""
        return _files.read_json(self.folder / "plan.json")

    def write_provenance(self, entry: Mapping[str, Any]) -> None:
        """Appends what `provenance` says of a run to the `runs` of `provenance.json`."""
        self._check_writable()
        path = self.folder / "provenance.json"
        runs = (_files.read_json(path) or {"runs": []})["runs"]
        _files.write_json(path, {"runs": [*runs, _files.json_value(entry, "provenance")]})

    def write_seconds(self, seconds: Mapping[str, float]) -> None:
        """Adds how long it took, and how long what took, to the last of the runs."""
        self._check_writable()
        path = self.folder / "provenance.json"
        runs = (_files.read_json(path) or {"runs": []})["runs"]
        if runs:
            rounded = {name: round(value, 1) for name, value in seconds.items()}
            runs[-1]["seconds"] = _files.json_value(rounded, "seconds")
            _files.write_json(path, {"runs": runs})

    def append_measurements(self, frame: pd.DataFrame) -> None:
        """Adds rows; a row that is written again replaces the former one, whole.

        Args:
          frame: as `measurement_table` takes it. An empty one writes nothing.

        Raises:
          ValueError: the frame is not as asked.
        """
        self._check_writable()
        if len(frame):
            frame = measurement_table(frame)
            path = self.folder / f"parts/measurements-{self._next_part:08d}.parquet"
            _files.write_table(path, frame)
            self._next_part += 1

    def write_trials(self, batch_size: int, frame: pd.DataFrame) -> None:
        """Writes all trials of one batch size in place of its former ones.

        Args:
          batch_size: whose trials these are.
          frame: as `trial_table` takes it.

        Raises:
          ValueError: the frame is not as asked, or holds other batch sizes.
        """
        self._check_writable()
        frame = trial_table(frame)
        others = sorted(set(frame.index.get_level_values("batch_size")) - {batch_size})
        if others:
            raise ValueError(
                f"trials: batch size {batch_size} was given rows of batch size {others[0]}. "
                "Write each batch size by itself."
            )
        _files.write_table(self.folder / f"parts/trials-{batch_size}.parquet", frame)

    def tables(self) -> tuple[pd.DataFrame, pd.DataFrame]:
        """The measurements and the trials written so far, as `load_tables` returns them."""
        return _read_tables(self.folder)

    def compact(self) -> None:
        """Puts all parts into `measurements.parquet` and `trials.parquet`.

        A kill between any two of its steps changes no table: the parts that are left only
        repeat what the compacted tables hold.
        """
        self._check_writable()
        parts = [*_measurement_parts(self.folder), *_trial_parts(self.folder).values()]
        measurements, trials = self.tables()
        _files.write_table(self.folder / "measurements.parquet", measurements)
        _files.write_table(self.folder / "trials.parquet", trials)
        # Oldest first: a row that is in two parts must not outlive its newer version.
        for part in parts:
            part.unlink()

    def drop_tables(self, batch_size: int) -> None:
        """Removes what was measured at a batch size, for it to be measured again."""
        self.compact()
        measurements, trials = self.tables()
        # The trials first: rows without their trials are dropped again after a kill.
        for name, table in (("trials", trials), ("measurements", measurements)):
            kept = table.index.get_level_values("batch_size") != batch_size
            _files.write_table(self.folder / f"{name}.parquet", table.loc[kept])

    def write_state(
        self, batch_size: int, arrays: Mapping[str, np.ndarray], about: Mapping[str, Any]
    ) -> None:
        """Writes where the training of a batch size stands, in place of the former state.

        Args:
          batch_size: whose state this is.
          arrays: of any shapes; of any dtypes but Python objects, bfloat16 and its like too.
          about: what the arrays mean; anything JSON holds.

        Raises:
          TypeError: an array holds Python objects.
          TypeError, ValueError: `about` has no place in JSON.
        """
        self._check_writable()
        names, stored = [], {}
        for number, (name, array) in enumerate(arrays.items()):
            array = np.asarray(array)
            if array.dtype.hasobject:
                raise TypeError(f"state: array {name!r} holds Python objects; wanted numbers.")
            # NumPy's format forgets the dtypes of ml_dtypes: their bits go in as integers.
            extension = array.dtype.name if array.dtype.isbuiltin == 2 else None
            names.append([name, extension])
            stored[f"array_{number}"] = (
                array.view(f"u{array.dtype.itemsize}") if extension else array
            )
        header = json.dumps({"arrays": names, "about": _files.json_value(about, "about")})
        with replacing(self.folder / f"state/{batch_size}.npz") as file:
            np.savez(file, header=np.array(header), **stored)

    def read_state(self, batch_size: int) -> tuple[dict[str, np.ndarray], dict[str, Any]] | None:
        """The arrays given to `write_state`, and what they mean.

        None where there is no state or, with a warning, where its file is damaged or is no
        state: the batch size is then trained from its beginning.
        """
        import ml_dtypes  # noqa: F401  (from here on NumPy knows bfloat16 by name)

        path = self.folder / f"state/{batch_size}.npz"
        if not path.exists():
            return None
        try:
            # Opened here, for np.load leaves a damaged file open.
            with open(path, "rb") as file, np.load(file, allow_pickle=False) as stored:
                header = json.loads(str(stored["header"]))
                arrays = {}
                for number, (name, extension) in enumerate(header["arrays"]):
                    array = stored[f"array_{number}"]
                    arrays[name] = array.view(np.dtype(extension)) if extension else array
                return arrays, header["about"]
        except Exception as error:  # a damaged archive fails in too many ways to list
            warnings.warn(
                f"{path}: not a whole training state ({type(error).__name__}: {error}). "
                f"It is ignored, and batch size {batch_size} is trained from its beginning.",
                stacklevel=2,
            )
            return None

    def drop_state(self, batch_size: int) -> None:
        """Removes the state of a batch size that is finished, if there is one."""
        self._check_writable()
        (self.folder / f"state/{batch_size}.npz").unlink(missing_ok=True)

    def _check_writable(self) -> None:
        if self._lock is None:
            raise RuntimeError(
                f"{self.folder}: not open for writing. Open it with Records.open(folder)."
            )


def load_tables(folder: str | os.PathLike[str]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Reads the tables of a study, finished or not, also while it runs.

    Args:
      folder: the study's folder.

    Returns:
      `measurements` and `trials`, in the form of `measurement_table` and `trial_table`.

    Raises:
      FileNotFoundError: `folder` holds no study.
      ValueError: a file in it was damaged.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with Records.open(folder) as records:
    ...         records.write_plan({"seed": 0})
    ...     measurements, trials = load_tables(folder)
    >>> len(measurements), list(trials.index.names)
    (0, ['batch_size', 'trial', 'replicate'])
    """
    return Records.open(folder, write=False).tables()


def _check_is_study(folder: Path) -> None:
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder. Give the one that study.run was given.")
    if _holds_study(folder):
        return
    inside = sorted(path.name for path in folder.iterdir() if _holds_study(path))
    hint = f" There are studies in it: {', '.join(inside[:5])}." if inside else ""
    raise FileNotFoundError(
        f"{folder}: not a study, it holds neither plan.json nor tables. "
        f"Give the folder that study.run was given.{hint}"
    )


def _holds_study(folder: Path) -> bool:
    names = ("plan.json", "measurements.parquet", "trials.parquet")
    return any((folder / name).exists() for name in names) or any(folder.glob("parts/*.parquet"))


def _measurement_parts(folder: Path) -> list[Path]:
    return sorted(folder.glob("parts/measurements-*.parquet"), key=_part_number)


def _trial_parts(folder: Path) -> dict[int, Path]:
    return {_part_number(path): path for path in folder.glob("parts/trials-*.parquet")}


def _part_number(path: Path) -> int:
    return int(path.stem.split("-")[1])


def _read_tables(folder: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    # A part that vanishes while we read was compacted by the writer: start over, for its
    # rows are now in the compacted tables.
    for _ in range(10):
        with contextlib.suppress(FileNotFoundError):
            return _read_tables_once(folder)
    return _read_tables_once(folder)


def _read_tables_once(folder: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    # The parts are listed before the compacted tables are read, never after.
    parts, trial_parts = _measurement_parts(folder), _trial_parts(folder)
    measurements, trials = [], []
    if (folder / "measurements.parquet").exists():
        measurements.append(_files.read_table(folder / "measurements.parquet"))
    if (folder / "trials.parquet").exists():
        compacted = _files.read_table(folder / "trials.parquet")
        trials.append(compacted[~compacted["batch_size"].isin(list(trial_parts))])
    measurements += map(_files.read_table, parts)
    trials += map(_files.read_table, trial_parts.values())
    return (
        measurement_table(_latest(measurements, MEASUREMENT_INDEX)),
        trial_table(_latest(trials, TRIAL_INDEX, tuple(TRIAL_COLUMNS))),
    )


def _latest(
    frames: Sequence[pd.DataFrame], index: Sequence[str], columns: Sequence[str] = ()
) -> pd.DataFrame:
    frames = [frame for frame in frames if len(frame)]
    if not frames:
        return pd.DataFrame(columns=[*index, *columns]).set_index(list(index))
    joined = pd.concat(frames, ignore_index=True)
    return joined.drop_duplicates(list(index), keep="last").set_index(list(index))
