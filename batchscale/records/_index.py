"""What a folder holds at one moment: every file with the digest of its bytes."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from batchscale.files import is_inside

INDEX = "index.json"
_FORMAT = 1


PLAN = "plan.json"
_COPY = "Nothing was overwritten. Restore it from a copy"
_ELSEWHERE = "run the study again in another folder"


class DamagedError(ValueError):
    """A file of a study is not what was written, or does not fit the others.

    Args:
      path: the file, or the folder of a study whose files do not fit.
      found: what is wrong with it.
      name: the file in the folder of its study, as `accept` takes it; none if that does not help.
      remedy: what to do; a copy, a repair or acceptance if not given. Of a study's plan no repair,
        since nothing can be measured without it.

    >>> print(DamagedError(Path("plan.json"), "changed.", name="plan.json"))
    plan.json: changed. Nothing was overwritten. Restore it from a copy; or, if the change is meant,
    accept it by name, batchscale.load(folder, accept=['plan.json']), and for good by
    batchscale.repair(folder, accept=['plan.json']); else run the study again in another folder.
    """

    def __init__(
        self, path: Path, found: str, *, name: str | None = None, remedy: str | None = None
    ):
        self.path, self.found, self.name, self._other_remedy = path, found, name, remedy
        super().__init__(f"{path}: {found} {remedy or _remedy(name)}")

    def __reduce__(self) -> tuple[Any, ...]:
        """As an exception is copied, and comes back from another process."""
        make = functools.partial(type(self), name=self.name, remedy=self._other_remedy)
        return make, (self.path, self.found)


def _remedy(name: str | None) -> str:
    """What to do about a damaged file."""
    if name == PLAN:
        return (
            f"{_COPY}; or, if the change is meant, accept it by name, "
            f"batchscale.load(folder, accept=[{name!r}]), and for good by "
            f"batchscale.repair(folder, accept=[{name!r}]); else {_ELSEWHERE}."
        )
    accepted = ""
    if name is not None:
        accepted = (
            ", or, if the change is meant, accept it by name: "
            f"batchscale.load(folder, accept=[{name!r}])"
        )
    return (
        f"{_COPY}, or have it measured again: batchscale.repair(folder) sets aside what is "
        f"damaged, and study.run(folder) measures that again{accepted}."
    )


@dataclasses.dataclass(frozen=True)
class Index:
    """What a folder holds.

    Attributes:
      study: names the study; its confirmation and its refinement bear the same name.
      files: the digest of every file, by its name in the folder.
      gone: the digests of files that an interrupted change may not have removed yet.
      beside: folders in this one that belong to it.
      accepted: files of which hand edits were accepted for good.
    """

    study: str
    files: dict[str, str] = dataclasses.field(default_factory=dict)
    gone: dict[str, str] = dataclasses.field(default_factory=dict)
    beside: tuple[str, ...] = ()
    accepted: tuple[str, ...] = ()

    def to_bytes(self) -> bytes:
        """The content of the file, which holds its own digest."""
        fields = {"format": _FORMAT} | dataclasses.asdict(self)
        digest = hashlib.sha256(_json(fields)).hexdigest()
        return _json(fields | {"digest": digest})

    @classmethod
    def from_bytes(cls, content: bytes) -> Index:
        """The index again.

        Raises:
          ValueError: the content is not what `to_bytes` wrote, byte for byte.
        """
        fields = json.loads(content)
        if not isinstance(fields, dict):
            raise ValueError("it is no index")
        if fields.get("format") != _FORMAT:
            raise ValueError(f"got format {fields.get('format')!r}, wanted {_FORMAT}")
        try:
            index = cls(
                fields["study"],
                dict(fields["files"]),
                dict(fields["gone"]),
                tuple(fields["beside"]),
                tuple(fields["accepted"]),
            )
            written = index.to_bytes()
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"it is no index: {error!r}") from None
        if written != content:
            raise ValueError("its digest is not that of its content")
        _check_names(index)
        return index


class Snapshot:
    """The files of a folder at one moment; each is compared with its digest when it is opened."""

    def __init__(self, folder: Path, index: Index, accept: frozenset[str], prefix: str):
        self.index = index
        self._folder, self._prefix = folder, prefix
        self._accept = accept | set(index.accepted)

    def __contains__(self, name: str) -> bool:
        return name in self.index.files

    @contextlib.contextmanager
    def open(self, name: str) -> Iterator[IO[bytes]]:
        """A file of the folder.

        Raises:
          DamagedError: it is missing, or its bytes are not those that were written.
        """
        wanted, path = self.index.files[name], self._folder / name
        got = None
        for place in (path, beside(path, wanted)):
            check_inside(place, self._folder)
            # What is no file is as good as none.
            with contextlib.suppress(FileNotFoundError, IsADirectoryError, NotADirectoryError):
                file = open(place, "rb")  # noqa: SIM115  (closed below; the suppression ends here)
                with file:
                    got = digest_of(file)
                    if got == wanted or name in self._accept:
                        file.seek(0)
                        yield file
                        return
        if got is None:
            raise self._unusable(name, f"missing; {INDEX} says that the study has it.")
        raise self.damaged(
            name, f"changed since it was written: got digest {got[:12]}, wanted {wanted[:12]}."
        )

    def read(self, name: str) -> bytes:
        """The content of a file; see `open`."""
        with self.open(name) as file:
            return file.read()

    def accepts(self, name: str) -> bool:
        """Whether a file may be another than the one that was written."""
        return name in self._accept or INDEX in self._accept

    def damaged(self, name: str, found: str) -> DamagedError:
        """The error that says what is wrong with a file."""
        if self.accepts(name):  # which did not help
            return self._unusable(name, found)
        return DamagedError(self._folder / name, found, name=self._prefix + name)

    def _unusable(self, name: str, found: str) -> DamagedError:
        """The error of a file that cannot be accepted either."""
        remedy = f"{_COPY}, or {_ELSEWHERE}." if self._prefix + name == PLAN else None
        return DamagedError(self._folder / name, found, remedy=remedy)


def check_inside(path: Path, folder: Path) -> None:
    """Refuses a link that leads out of a folder: what is there may be anybody's.

    Args:
      path: of a file or a folder in it, whether it is there or not.
      folder: of a study; it may be reached by a link itself.

    Raises:
      DamagedError: it leads elsewhere.
    """
    if not is_inside(path, folder):
        raise DamagedError(
            path,
            f"a link that leads out of {folder}.",
            remedy="Nothing was read or overwritten. Put the file itself in its place.",
        )


def _check_names(index: Index) -> None:
    """Refuses an index whose files would lie outside of its folder.

    >>> _check_names(Index("a", {"../plan.json": 64 * "0"}))
    Traceback (most recent call last):
    ValueError: it names '../plan.json', and files of a study lie within its folder
    """
    for name in (*index.files, *index.gone, *index.beside, *index.accepted):
        parts = name.split("/") if isinstance(name, str) else [""]
        if any(not re.fullmatch(r"\w[\w.-]*", part) for part in parts):
            raise ValueError(f"it names {name!r}, and files of a study lie within its folder")
    for digest in (*index.files.values(), *index.gone.values()):
        if not isinstance(digest, str) or not re.fullmatch("[0-9a-f]{64}", digest):
            raise ValueError(f"it has the digest {digest!r}, wanted 64 hexadecimal digits")
    if not isinstance(index.study, str):
        raise ValueError(f"it names the study {index.study!r}, wanted a word")


def beside(path: Path, mark: str) -> Path:
    """Where a file is before it comes to its place."""
    return path.with_name(f".unfinished-{mark[:32]}-{path.name}")


def digest_of(file: IO[bytes]) -> str:
    """The digest of a file's bytes."""
    return hashlib.file_digest(file, "sha256").hexdigest()  # pyright: ignore[reportArgumentType]


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=1) + "\n").encode()
