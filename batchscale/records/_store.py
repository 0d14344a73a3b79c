"""The files of a folder as one: changed together, and each of them checked when it is read.

`index.json` names every file with the digest of its bytes. A change writes its files beside their
places, then the index, whose renaming is the moment from which all of the change counts, and only
then moves the files to their places and removes what is gone. A kill therefore leaves the folder
of before or of after; a file that the index names is in its place, or still beside it. What the
index does not name is not of the study: it is neither read nor touched.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import uuid
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, TypeVar

from batchscale.files import remove_unfinished, replacing, sync_folder, told
from batchscale.records._index import (
    INDEX,
    DamagedError,
    Index,
    Snapshot,
    beside,
    check_inside,
    digest_of,
)

CONFIRMED = "confirm"
REFINED = "refine"
MEASURED = "measure"
BESIDE = (CONFIRMED, REFINED, MEASURED)
GOES_ON = "What was written before counts, and the same call goes on from there."
_NAMES = re.compile(
    r"(plan|provenance)\.json|(measurements|trials)\.parquet|state/[1-9][0-9]*\.npz"
    r"|parts/(measurements-[0-9]{8,}|trials-[1-9][0-9]*)\.parquet"
)
# What is so named beside them is a copy of one; other files in the folder are their owner's.
_COPIES = re.compile(
    r"(index|plan|provenance)\W.*\.json|(measurements|trials)\W.*\.parquet"
    r"|(parts|state)([^\w/].*|/[^.].*)"
)
_FOLDERS = ("parts", "state")
_READS = 20  # of a folder that is written meanwhile
_T = TypeVar("_T")


class Store:
    """A folder that is read and changed as one.

    Args:
      folder: where.
      accept: names of files whose digests are not compared; `index.json` means all of them, and
        that the files are those that are there.
      prefix: what comes before the names of its files in `accept`.
    """

    def __init__(self, folder: Path, accept: frozenset[str] = frozenset(), prefix: str = ""):
        self.folder, self.accept, self.prefix = folder, accept, prefix
        self._changes: dict[str, str | None] | None = None
        self._unsettled = False
        self.check: Callable[[], None] = lambda: None  # whether the folder is ours to write

    def index(self) -> Index | None:
        """What the folder holds; None where nothing was written yet.

        Raises:
          DamagedError: the file is not what was written, or is gone while others are there.
        """
        path = self.folder / INDEX
        for name in (INDEX, *_FOLDERS):
            check_inside(self.folder / name, self.folder)
        if INDEX in self.accept:
            return self._found()
        try:
            content = path.read_bytes()
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
            if not path.is_dir() and not self._names():
                return None
            raise DamagedError(
                path,
                "missing, though the folder holds files of a study. It says which these are and "
                "what they held.",
                name=self.prefix + INDEX,
                remedy=f"Restore it, or take the files as they are, by batchscale.load(folder, "
                f"accept=[{self.prefix + INDEX!r}]). Studies of batchscale before format 2 have "
                "none: read them with the version that wrote them, or run them again elsewhere.",
            ) from None
        try:
            return Index.from_bytes(content)
        except ValueError as error:
            raise DamagedError(
                path, f"changed since it was written: {error}.", name=self.prefix + INDEX
            ) from None

    def reading(self, read: Callable[[Snapshot], _T]) -> _T:
        """What a function makes of the files of one moment, while a writer may go on.

        Raises:
          DamagedError: a file is not what was written.
        """
        index, believed = self.index(), 0
        for _ in range(_READS):
            try:
                return read(self._snapshot(index))
            except DamagedError:
                now = self.index()
                # A file may be on its way to its place: what the same index says is read again.
                believed = believed + 1 if now == index else 0
                if believed == 2:
                    raise
                index = now
        return read(self._snapshot(index))

    def _snapshot(self, index: Index | None) -> Snapshot:
        return Snapshot(self.folder, index or Index(""), self.accept, self.prefix)

    def verify(self) -> None:
        """Compares every file with its digest, and looks for files that are not of the study.

        Raises:
          DamagedError: a file is not what was written, or is in the way of one that will be.
        """

        def look(snapshot: Snapshot) -> None:
            for name in snapshot.index.files:
                with snapshot.open(name):
                    pass
            for name in self._names():
                if name not in snapshot and not self._is_left(snapshot.index, name):
                    raise DamagedError(
                        self.folder / name,
                        f"not of this study: {INDEX} does not name it.",
                        remedy="Move it elsewhere; a study writes files of that name itself.",
                    )

        self.reading(look)
        others = [name for name in self._inside() if not _NAMES.fullmatch(name)]
        if copies := [name for name in others if _COPIES.fullmatch(name)]:
            warnings.warn(
                f"{self.folder}: passed over, for it is no file of the study: {', '.join(copies)}. "
                "A program that synchronises folders, or a copy by hand, may have left it; of the "
                "study nothing is missing.",
                stacklevel=2,
            )

    def damaged(self) -> list[str]:
        """The files that are not what was written."""

        def look(snapshot: Snapshot) -> list[str]:
            found = []
            for name in sorted(snapshot.index.files):
                try:
                    with snapshot.open(name):
                        pass
                except DamagedError:
                    found.append(name)
            return found

        return self.reading(look)

    def check_accepted(self) -> None:
        """Refuses names in `accept` that the study has no file of.

        Raises:
          DamagedError: there is one.
        """
        index = self.index() or Index("")
        for name in sorted(self.accept):
            if name not in index.files and (name != INDEX or not self.folder.is_dir()):
                raise self._no_file(name, index)

    def _no_file(self, name: str, index: Index) -> DamagedError:
        return DamagedError(
            self.folder / name,
            "accepted, but it is no file of the study.",
            remedy=f"Its files are {', '.join(self.prefix + n for n in index.files) or 'none'}.",
        )

    def adopt(self, **fields: Any) -> None:
        """Takes the files of `accept` as they are, for good, and other fields of the index.

        Raises:
          DamagedError: one of them is not there.
        """
        self._finish()
        index = self.index() or Index("")
        names = self.accept - {INDEX}
        files = dict(index.files)
        for name in names:
            if name not in files or not (self.folder / name).is_file():
                raise self._no_file(name, index)
            with open(self.folder / name, "rb") as file:
                files[name] = digest_of(file)
        self.commit(files=files, accepted=tuple(sorted({*index.accepted, *names})), **fields)
        self.accept = frozenset()

    def set_aside(self, name: str) -> str:
        """Moves a file, if it is there, out of the study; returns where to, within the folder."""
        aside = self.aside(name)
        self.remove(name)
        return aside

    def aside(self, name: str) -> str:
        """Moves what bears a name, if it is there, into a folder of what is damaged."""
        number = 1
        while (self.folder / f"damaged-{number}" / name).exists():
            number += 1
        to = self.folder / f"damaged-{number}" / name
        if (self.folder / name).exists():
            to.parent.mkdir(parents=True, exist_ok=True)
            os.replace(self.folder / name, to)
        return f"damaged-{number}/{name}"

    def settle(self) -> None:
        """Ends what a killed writer had begun, and drops what it had not."""
        with told(self.folder, GOES_ON):
            self._finish()
            for folder in (self.folder, self.folder / "parts", self.folder / "state"):
                remove_unfinished(folder)

    def _finish(self) -> None:
        """Moves what counts to its place, and removes what is gone."""
        index = self.index() or Index("")
        for name, digest in index.files.items():
            with contextlib.suppress(FileNotFoundError):
                os.replace(beside(self.folder / name, digest), self.folder / name)
        for name in set(index.gone) - set(index.files):
            if self._is_left(index, name):
                (self.folder / name).unlink()
        self._unsettled = False

    def _is_left(self, index: Index, name: str) -> bool:
        """Whether a file is one that a killed writer was about to remove."""
        with contextlib.suppress(OSError), open(self.folder / name, "rb") as file:
            return digest_of(file) == index.gone.get(name)
        return False

    def write(self, name: str, write: Callable[[IO[bytes]], Any]) -> None:
        """Puts a file into the place of the former one, when the change of `together` ends."""
        path = self.folder / name
        with self.together():
            assert self._changes is not None
            unfinished = beside(path, uuid.uuid4().hex)
            try:
                path.parent.mkdir(exist_ok=True)
                with open(unfinished, "xb+") as file:
                    write(file)
                    file.flush()
                    os.fsync(file.fileno())
                    file.seek(0)
                    digest = digest_of(file)
                os.replace(unfinished, beside(path, digest))
            except BaseException:
                unfinished.unlink(missing_ok=True)
                raise
            self._changes[name] = digest

    @property
    def pending(self) -> list[str]:
        """The files that are written when the change of `together` ends."""
        return list(self._changes or {})

    def remove(self, name: str) -> None:
        """Removes a file, if the study has it, when the change of `together` ends."""
        with self.together():
            assert self._changes is not None
            self._changes[name] = None

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """What is written and removed inside counts all at once, at its end; or not at all.

        What is read inside is what was there before.
        """
        if self._changes is not None:
            yield
            return
        self.check()
        with told(self.folder, GOES_ON):
            if self._unsettled:
                self._finish()  # before files are put beside those that were left there
            self._changes = {}
            try:
                yield
                self.commit()
            except OSError:
                self._discard()  # of a disk that is full, they may be most
                raise
            finally:
                self._changes = None

    def commit(self, **fields: Any) -> None:
        """Makes the changes count, and other fields of the index with them."""
        if self._unsettled:
            self._finish()
        self.check()
        former = self.index() or Index("")
        fields = {"study": former.study or uuid.uuid4().hex} | fields
        changes = {
            name: digest
            for name, digest in (self._changes or {}).items()
            if digest is not None or name in former.files
        }
        same = fields.items() <= dataclasses.asdict(former).items()
        if not changes and same and INDEX not in self.accept:
            return
        files = {n: d for n, d in {**former.files, **changes}.items() if d is not None}
        gone = {name: former.files[name] for name, digest in changes.items() if digest is None}
        index = dataclasses.replace(former, **({"files": files, "gone": gone} | fields))
        for folder in {(self.folder / name).parent for name, digest in changes.items() if digest}:
            sync_folder(folder)
        self._unsettled = True  # an interruption from here on leaves something to be finished
        with replacing(self.folder / INDEX) as file:
            file.write(index.to_bytes())
        for name, digest in changes.items():
            path = self.folder / name
            if digest is None:
                path.unlink(missing_ok=True)
            else:
                os.replace(beside(path, digest), path)
        self._unsettled = False

    def _discard(self) -> None:
        """Removes what was put beside its place, unless it counts."""
        if not self._unsettled:
            for name, digest in (self._changes or {}).items():
                if digest is not None:
                    with contextlib.suppress(OSError):
                        beside(self.folder / name, digest).unlink(missing_ok=True)

    def _names(self) -> list[str]:
        """The files in the folder that have the names of a study's files."""
        return [name for name in self._inside() if _NAMES.fullmatch(name)]

    def _inside(self) -> list[str]:
        """Whatever is in the folder where a study has its files."""
        places = [(self.folder, ""), *((self.folder / n, f"{n}/") for n in ("parts", "state"))]
        names = [
            prefix + path.name
            for folder, prefix in places
            if folder.is_dir()
            for path in folder.iterdir()
        ]
        return sorted(names)

    def _found(self) -> Index:
        """The index of what is there, whatever it is."""
        folders = [name for name in BESIDE if (self.folder / name).is_dir()]
        ids = []
        for name in folders:
            with contextlib.suppress(OSError, ValueError):
                ids.append(Index.from_bytes((self.folder / name / INDEX).read_bytes()).study)
        files = {}
        for name in self._names():
            check_inside(self.folder / name, self.folder)
            with open(self.folder / name, "rb") as file:
                files[name] = digest_of(file)
        return Index(ids[0] if ids else "", files, beside=tuple(folders))
