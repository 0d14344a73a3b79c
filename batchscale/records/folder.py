"""The folder of a study, written by one process and read by any number.

index.json                     every file with its digest; see `_store`
plan.json                      the study and every planned trial, before anything runs
provenance.json                an entry for every run: versions, devices, command
parts/*.parquet                rows of the tables, as they come
measurements.parquet           the tables, once compacted
trials.parquet
state/<batch_size>.npz         training states of an unfinished batch size
confirm/, refine/              the same again, of what is run after the search
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from batchscale import given
from batchscale.files import local_path, told
from batchscale.records import _files, _reading
from batchscale.records._holding import Hold
from batchscale.records._index import INDEX, PLAN, DamagedError, Snapshot, check_inside
from batchscale.records._store import BESIDE, GOES_ON, Store
from batchscale.records.environment import is_provenance
from batchscale.records.tables import measurement_table, trial_table

_PROVENANCE = "provenance.json"


class Contents(NamedTuple):
    """What a study's folder held at one moment.

    Attributes:
      plan: as it was written; None where there is none.
      measurements: as `load_tables` returns them.
      trials: one row a trial, as `load_tables` returns them.
    """

    plan: Any
    measurements: pd.DataFrame
    trials: pd.DataFrame


class StudyFolder:
    """The folder of one study.

    Every file in it is written whole, counts from one moment on together with what was written
    with it, and is compared with its digest when it is read: a kill at any moment leaves complete
    files only, and a file that was changed is told.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder, StudyFolder.open(folder) as records:
    ...     records.write_plan({"seed": 0, "batch_sizes": [1, 2, 4]})
    ...     records.read_plan()
    {'seed': 0, 'batch_sizes': [1, 2, 4]}

    Attributes:
      folder: where it is, absolute.
      identity: what a training state must have been written under, by name, to be taken up.
      files: the files, and what they were when they were written.
    """

    folder: Path
    identity: Mapping[str, Any]
    files: Store

    def __init__(self, store: Store, lock: Hold | None):
        self.folder, self.identity = store.folder, {}
        self.files, self._lock = store, lock
        if lock is not None:
            store.check = lock.check

    @classmethod
    def open(
        cls,
        folder: str | os.PathLike[str],
        *,
        write: bool = True,
        accept: Collection[str] = (),
    ) -> StudyFolder:
        """Opens a study's folder, to write it or only to read it.

        Args:
          folder: the study's folder; created if it is to be written.
          write: hold the folder against other writers until `close`, or until the process
            dies; compare all files with their digests; then end what a killed writer left
            unfinished. Reading holds nothing and may go on beside a writer.
          accept: files whose digests are not compared, by their names in the folder.

        Raises:
          RuntimeError: another process is writing this study.
          FileNotFoundError: there is no study in `folder`, and it is only to be read.
          DamagedError: a file in it was changed since it was written, and it is to be written.
        """
        folder = local_path(folder)
        return cls._opened(Store(folder, given.names_of_files(accept)), write=write)

    @classmethod
    def _opened(cls, store: Store, *, write: bool) -> StudyFolder:
        if not write:
            _check_is_study(store)
            return cls(store, None)
        with told(store.folder, GOES_ON):
            try:
                store.folder.mkdir(parents=True, exist_ok=True)
            except (FileExistsError, NotADirectoryError) as error:
                where = store.folder
                raise FileExistsError(
                    f"{where}: not a folder, but a file is there. Give another folder."
                ) from error
            check_inside(store.folder / ".lock", store.folder)
            lock = Hold(store.folder)
        try:
            store.verify()
            store.settle()
        except BaseException:
            lock.close()
            raise
        return cls(store, lock)

    def beside(self, name: str) -> StudyFolder:
        """Opens a folder in this one that belongs to the same study, to write it.

        Args:
          name: `CONFIRMED`, `REFINED` or `MEASURED`.

        Raises:
          DamagedError: a file in it was changed, or it is of another study.
        """
        self._check_writable()
        self.files.commit()  # so that the study has a name
        index = self.files.index()
        assert index is not None
        opened = self._opened(self._beside(name), write=True)
        try:
            if name in index.beside:
                opened._check_of(index.study)
            else:
                opened.files.commit(study=index.study)
                self.files.commit(beside=(*index.beside, name))
        except BaseException:
            opened.close()
            raise
        opened.identity = self.identity
        return opened

    def reading_beside(self, name: str) -> StudyFolder | None:
        """A folder that `beside` has made, to be read; None where it has not.

        Raises:
          DamagedError: it is gone, or of another study.
        """
        index = self.files.index()
        if index is None or name not in index.beside:
            return None
        opened = type(self)(self._beside(name), None)
        opened._check_of(index.study)
        return opened

    @classmethod
    def repairing(
        cls, folder: str | os.PathLike[str], *, accept: Collection[str] = ()
    ) -> StudyFolder:
        """Opens a study's folder that may be damaged, to write it.

        Args:
          folder: the study's folder.
          accept: files whose hand edits are taken over for good, by their names in the folder.

        Raises:
          RuntimeError: another process is writing this study.
          FileNotFoundError: there is no study in `folder`.
          DamagedError: the index is damaged, and not accepted.
        """
        store = Store(local_path(folder), given.names_of_files(accept))
        _check_is_study(store)
        with told(store.folder, GOES_ON):
            opened = cls(store, Hold(store.folder))
        try:
            opened.check_accepted()  # all names, before any file is taken over
            besides = [opened._beside(n) for n in BESIDE]
            prefixes = tuple(beside.prefix for beside in besides)
            store.accept = frozenset(n for n in store.accept if not n.startswith(prefixes))
            store.adopt()
            index = store.index()
            for beside in besides:
                if beside.accept and index is not None:
                    beside.adopt(study=index.study)
            store.settle()
        except BaseException:
            opened.close()
            raise
        return opened

    @property
    def study(self) -> str | None:
        """What names the study; None where nothing is written yet."""
        index = self.files.index()
        return None if index is None else index.study

    @property
    def accepted(self) -> frozenset[str]:
        """The files whose hand edits are accepted, now or for good."""
        index = self.files.index()
        return self.files.accept | set(() if index is None else index.accepted)

    def check_accepted(self) -> None:
        """Refuses accepted names that are no files of the study, nor of what is beside it.

        Raises:
          DamagedError: there is such a name.
        """
        own = Store(self.folder, self.files.accept)
        for beside in (self._beside(name) for name in BESIDE):
            if beside.accept:  # else it is not looked at, and may be damaged
                beside.check_accepted()
                own.accept -= {f"{beside.prefix}{name}" for name in beside.accept}
        own.check_accepted()

    def check_provenance(self) -> None:
        """Compares `provenance.json` with its digest, though nothing of it is read.

        Raises:
          DamagedError: it was changed since it was written.
        """

        def look(snapshot: Snapshot) -> None:
            if _PROVENANCE in snapshot:
                with snapshot.open(_PROVENANCE):
                    pass

        self.files.reading(look)

    def damaged(self) -> list[str]:
        """The files that were changed since they were written, by their names in the folder."""
        return self.files.damaged()

    def set_aside(self, name: str) -> str:
        """Moves a file out of the study, and says where to, within the folder."""
        self._check_writable()
        return self.files.set_aside(name)

    def set_aside_beside(self, name: str) -> str:
        """Moves a folder that `beside` has made out of the study, and says where to."""
        self._check_writable()
        index = self.files.index()
        assert index is not None
        aside = self.files.aside(name)
        self.files.commit(beside=tuple(other for other in index.beside if other != name))
        return aside

    def _beside(self, name: str) -> Store:
        check_inside(self.folder / name, self.folder)
        prefix = f"{name}/"
        accept = {n.removeprefix(prefix) for n in self.files.accept if n.startswith(prefix)}
        return Store(self.folder / name, frozenset(accept), prefix)

    def _check_of(self, study: str) -> None:
        index = self.files.index()
        if index is None:
            raise DamagedError(self.folder / INDEX, "missing; its study says that it is there.")
        if index.study != study and INDEX not in self.files.accept:
            raise DamagedError(self.folder / INDEX, "of another study than the folder it is in.")

    def close(self) -> None:
        """Lets other processes write the folder."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def __enter__(self) -> StudyFolder:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def together(self) -> AbstractContextManager[None]:
        """What is written inside counts all at once, at the end; after an error, nothing of it."""
        self._check_writable()
        return self.files.together()

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
        self._write_json(PLAN, _files.json_value(plan, "plan"))

    def read_plan(self) -> Any:
        """The plan, or None where none was written yet.

        Raises:
          DamagedError: it was changed since it was written.
        """
        return self.files.reading(lambda snapshot: _reading.json_of(snapshot, PLAN))

    def write_provenance(self, entry: Mapping[str, Any]) -> None:
        """Appends what `provenance` says of a run to the `runs` of `provenance.json`."""
        self._check_writable()
        runs = [*self.runs(), _files.json_value(entry, "provenance")]
        self._write_json(_PROVENANCE, {"runs": runs})

    def write_seconds(
        self, seconds: Mapping[str, float], workers: Sequence[Mapping[str, Any]] = ()
    ) -> None:
        """Adds how long it took, and how long what took, to the last of the runs.

        Args:
          seconds: by what they were spent on.
          workers: those that trained for the run, as anything JSON holds; none where it did itself.
        """
        self._check_writable()
        runs = self.runs()
        if runs:
            rounded = {name: round(value, 1) for name, value in seconds.items()}
            runs[-1]["seconds"] = _files.json_value(rounded, "seconds")
            if workers:
                runs[-1]["workers"] = _files.json_value(workers, "workers")
            self._write_json(_PROVENANCE, {"runs": runs})

    def runs(self) -> list[Any]:
        """The provenance of every run.

        Raises:
          DamagedError: the file was changed since it was written.
        """

        def read(snapshot: Snapshot) -> list[Any]:
            stored = _reading.json_of(snapshot, _PROVENANCE)
            runs = stored.get("runs") if isinstance(stored, dict) else [] if stored is None else 0
            if not isinstance(runs, list) or not all(map(is_provenance, runs)):
                raise snapshot.damaged(_PROVENANCE, "not the provenance of a study.")
            return runs

        return self.files.reading(read)

    def _write_json(self, name: str, value: Any) -> None:
        content = _files.to_json(value)
        self.files.write(name, lambda file: file.write(content))

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
            known = self.files.reading(_reading.names)
            number = _reading.next_part([*known, *self.files.pending])
            self._write_table(f"parts/measurements-{number:08d}.parquet", frame)

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
        self._write_table(f"parts/trials-{batch_size}.parquet", frame)

    def _write_table(self, name: str, frame: pd.DataFrame) -> None:
        self.files.write(name, lambda file: _files.write_table(file, frame))

    def tables(self) -> tuple[pd.DataFrame, pd.DataFrame]:
        """The measurements and the trials written so far, as `load_tables` returns them."""
        return self.files.reading(_reading.tables_of)

    def contents(self) -> Contents:
        """The plan and the tables, of one moment."""

        def read(snapshot: Snapshot) -> Contents:
            return Contents(_reading.json_of(snapshot, PLAN), *_reading.tables_of(snapshot))

        return self.files.reading(read)

    def compact(self) -> None:
        """Puts all parts into `measurements.parquet` and `trials.parquet`."""
        self._check_writable()
        self.replace_tables(*self.tables())

    def drop(self, batch_sizes: Collection[int]) -> None:
        """Removes what was measured at batch sizes, for them to be measured again."""
        self._check_writable()
        kept = [
            table.loc[~table.index.get_level_values("batch_size").isin(list(batch_sizes))]
            for table in self.tables()
        ]
        with self.together():
            self.replace_tables(*kept)
            for batch_size in batch_sizes:
                self.drop_state(batch_size)

    def replace_tables(self, measurements: pd.DataFrame, trials: pd.DataFrame) -> None:
        """Writes both tables whole, in place of all that was written before."""
        parts = self.files.reading(_reading.parts)
        with self.together():
            self._write_table(_reading.MEASUREMENTS, measurements)
            self._write_table(_reading.TRIALS, trials)
            for part in parts:
                self.files.remove(part)

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
        header = {"of": self._of(batch_size), "about": _files.json_value(about, "about")}
        self.files.write(
            f"state/{batch_size}.npz", lambda file: _files.write_arrays(file, arrays, header)
        )

    def read_state(self, batch_size: int) -> tuple[dict[str, np.ndarray], dict[str, Any]] | None:
        """The arrays given to `write_state`, and what they mean; None where there is no state.

        Raises:
          DamagedError: the file is damaged, no state, or that of another study, batch size or
            type of floats. `batchscale.repair` sets it aside; the batch size is then trained from
            its beginning, up to where it was.
        """
        name = f"state/{batch_size}.npz"

        def read(snapshot: Snapshot) -> tuple[dict[str, np.ndarray], dict[str, Any]] | None:
            if name not in snapshot:
                return None
            try:
                with snapshot.open(name) as file:
                    arrays, header = _files.read_arrays(file)
                got, about = header["of"], header["about"]
            except DamagedError:
                raise
            except (ValueError, KeyError, TypeError) as error:
                raise snapshot.damaged(name, str(error)) from error
            wanted = self._of(batch_size)
            for what in wanted:
                if got.get(what) != wanted[what]:
                    raise snapshot.damaged(
                        name,
                        f"the training state of another {what}: got {got.get(what)!r}, "
                        f"wanted {wanted[what]!r}.",
                    )
            return arrays, about

        return self.files.reading(read)

    def _of(self, batch_size: int) -> dict[str, Any]:
        return _files.json_value({"batch size": batch_size, **self.identity}, "identity")

    def drop_state(self, batch_size: int) -> None:
        """Removes the state of a batch size that is finished, if there is one."""
        self._check_writable()
        self.files.remove(f"state/{batch_size}.npz")

    def _check_writable(self) -> None:
        if self._lock is None or not self._lock.is_own:
            raise RuntimeError(
                f"{self.folder}: not open for writing. Open it with StudyFolder.open(folder)."
            )


def load_tables(
    folder: str | os.PathLike[str], *, accept: Collection[str] = ()
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Reads the tables of a study, finished or not, also while it runs.

    Args:
      folder: the study's folder.
      accept: files whose hand edits are accepted, by their names in the folder.

    Returns:
      `measurements` and `trials`, in the form of `measurement_table` and `trial_table`.

    Raises:
      FileNotFoundError: `folder` holds no study.
      DamagedError: a file in it was changed since it was written, or a name in `accept` is none
        of its files.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with StudyFolder.open(folder) as records:
    ...         records.write_plan({"seed": 0})
    ...     measurements, trials = load_tables(folder)
    >>> len(measurements), list(trials.index.names)
    (0, ['batch_size', 'trial', 'replicate'])
    """
    records = StudyFolder.open(folder, write=False, accept=accept)
    records.check_accepted()
    return records.tables()


def _check_is_study(store: Store) -> None:
    folder = store.folder
    if not folder.is_dir():
        what = "a file, and no folder" if folder.exists() else "no such folder"
        raise FileNotFoundError(f"{folder}: {what}. Give the one that study.run was given.")
    if store.index() is not None:
        return
    inside = sorted(path.name for path in folder.iterdir() if (path / INDEX).is_file())
    hint = f" There are studies in it: {', '.join(inside[:5])}." if inside else ""
    if (folder / "pilot" / "pilot.json").is_file() and "measured" in inside:
        hint = (
            " It is of bs.recommend: bs.load(folder / 'measured').measurement() is what was "
            "measured, and the same call of bs.recommend gives the answer again."
        )
    raise FileNotFoundError(
        f"{folder}: not a study, it holds neither {INDEX} nor tables. "
        f"Give the folder that study.run was given.{hint}"
    )
