"""Paths as a user gives them; files that are whole or absent, whenever a kill comes; the cache."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import IO

# Python's paths make one slash of two: of a `Path` these are known by their names.
_REMOTE = "abfss?|azure?|adl|dbfs|file|ftp|gcs|gs|hdfs|https?|memory|oci|s3a?|s3n|sftp|ssh|webhdfs"

_ROOM = "Make room there."
_WRITABLE = "Make it writable, or give another place."
_REMEDIES = {
    "ENOSPC": _ROOM,
    "EDQUOT": _ROOM,
    "EFBIG": _ROOM,
    "EROFS": _WRITABLE,
    "EACCES": _WRITABLE,
    "EPERM": _WRITABLE,
    "EIO": "Look after the disk.",
    "ESTALE": "Mount it again.",
    "ENOTCONN": "Mount it again.",
    "EMFILE": "Allow this process more open files, such as `ulimit -n 1024`.",
    "ENFILE": "Let the machine have more open files.",
    "ENOTDIR": "A part of this path is a file: give another.",
    "EISDIR": "It is a folder: give the path of a file.",
    "EEXIST": "There is a file in the place of a folder: give another.",
    "ENAMETOOLONG": "Give a shorter one.",
}
_KNOWN = {getattr(errno, name): words for name, words in _REMEDIES.items() if hasattr(errno, name)}


def local_path(given: str | os.PathLike[str], what: str = "folder") -> Path:
    """The one way from what a user gives to a path: absolute, with `~` expanded.

    Whatever the operating system allows in a name is allowed; it is never taken for a pattern, a
    column or an address. A later `os.chdir` does not move it.

    Args:
      given: a path.
      what: what an error calls it.

    Raises:
      TypeError: it is no path.
      ValueError: it is an address such as `gs://bucket/a`, or no name at all.

    >>> local_path("~/runs").is_absolute(), local_path("/runs/lr:0.1/a=b").as_posix()
    (True, '/runs/lr:0.1/a=b')
    >>> local_path("gs://bucket/runs")
    Traceback (most recent call last):
    ValueError: folder: got 'gs://bucket/runs', an address; wanted a path on a disk of this machine.
    Write there, and copy the folder; or mount the other place.
    """
    if not isinstance(given, str | os.PathLike):
        raise TypeError(f"{what}: got {given!r}, wanted a path.")
    text = os.fsdecode(given)
    if not text or "\0" in text:
        raise ValueError(f"{what}: got {text!r}, wanted a path.")
    slashes = "//" if isinstance(given, str) else "//?"
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", text) or re.match(f"({_REMOTE}):{slashes}", text):
        raise ValueError(
            f"{what}: got {text!r}, an address; wanted a path on a disk of this machine. "
            "Write there, and copy the folder; or mount the other place."
        )
    # The expansion of `Path` itself refuses a name such as "~x".
    return Path(os.path.expanduser(text)).absolute()


@contextlib.contextmanager
def told(place: Path, more: str = "") -> Iterator[None]:
    """An error of the operating system inside names a place, and says what to do.

    Args:
      place: the file or folder that is written.
      more: what else is to be known.

    >>> with told(Path("runs/mine"), "The same call goes on."):
    ...     raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "runs/mine/plan.json")
    Traceback (most recent call last):
    OSError: [Errno 28] runs/mine: No space left on device. Make room there. The same call goes on.
    """
    try:
        yield
    except OSError as error:
        number, cause = error.errno, error
        if number is None or number not in _KNOWN or not _is_of(error, place):
            raise
        if isinstance(error.__cause__, OSError) and error.__cause__.errno == number:
            cause = error.__cause__  # told of a file inside: the place around it says more
        words = f"{place}: {os.strerror(number)}. {_KNOWN[number]} {more}".rstrip()
        raise OSError(number, words) from cause


def _is_of(error: OSError, place: Path) -> bool:
    """Whether an error is of the system's files, and of none that lies elsewhere."""
    if type(error) is not type(OSError(error.errno, "")):
        return False  # such as those of sockets, whose numbers mean other things
    if not isinstance(error.filename, str | os.PathLike):
        return True
    where, place = (Path(os.path.abspath(path)) for path in (error.filename, place))
    return where.is_relative_to(place.parent) or place.is_relative_to(where)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """A file that takes the place of `path` once it is written whole, and vanishes on an error.

    Raises:
      OSError: it cannot be written; says where, and what to do.
    """
    if path.is_symlink():  # which stays
        path = Path(os.path.realpath(path))
    unfinished = path.with_name(f".unfinished-{uuid.uuid4().hex}")  # a long name may be the longest
    with told(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(unfinished, "xb") as file:
                with contextlib.suppress(OSError):  # as it was
                    os.chmod(unfinished, stat.S_IMODE(path.stat().st_mode))
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(unfinished, path)
        except BaseException:
            with contextlib.suppress(OSError):
                unfinished.unlink(missing_ok=True)
            raise
        # The new name must be on disk before whatever relies on it is removed.
        sync_folder(path.parent)


def is_inside(path: Path, folder: Path) -> bool:
    """Whether a path lies in a folder, all links followed; never one whose links lead in a circle.

    >>> is_inside(Path("runs/plan.json"), Path("runs")), is_inside(Path("runs/.."), Path("runs"))
    (True, False)
    """
    try:
        if not path.resolve().is_relative_to(folder.resolve()):
            return False
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            path.stat()  # which finds circles, whatever the version of Python
    except (OSError, RuntimeError):
        return False
    return True


def sync_folder(folder: Path) -> None:
    """Waits until the names in a folder are on disk."""
    if sys.platform == "win32":
        return
    opened = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # not every network file system can
            os.fsync(opened)
    finally:
        os.close(opened)


def cache_folder() -> Path:
    """Where what can be made or downloaded again is kept.

    `BATCHSCALE_CACHE`, else `batchscale` in `XDG_CACHE_HOME`, else in `~/.cache`.

    Raises:
      OSError: there is no home folder, and no other was chosen.
    """
    if folder := os.environ.get("BATCHSCALE_CACHE"):
        return local_path(folder, "BATCHSCALE_CACHE")
    folder = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    if os.path.expanduser(folder).startswith("~"):
        raise OSError("no home folder to keep files in: set BATCHSCALE_CACHE to a folder.")
    return local_path(folder, "XDG_CACHE_HOME") / "batchscale"


def remove_unfinished(folder: Path) -> None:
    """Removes what a killed process left of the files it was writing in `folder`."""
    for path in folder.glob(".unfinished-*"):
        path.unlink()


def numbered(name: str, place: int) -> str:
    """The name of a folder of which there can be several, the first without a number.

    >>> numbered("rerun", 0), numbered("rerun", 1)
    ('rerun', 'rerun-2')
    """
    return name if place == 0 else f"{name}-{place + 1}"
