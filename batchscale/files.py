"""Paths as a user gives them; files that are whole or absent, whenever a kill comes; the cache."""

from __future__ import annotations

import contextlib
import os
import re
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import IO

# Python's paths make one slash of two: of a `Path` these are known by their names.
_REMOTE = "abfss?|azure?|adl|dbfs|file|ftp|gcs|gs|hdfs|https?|memory|oci|s3a?|s3n|sftp|ssh|webhdfs"


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
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """A file that takes the place of `path` once it is written whole, and vanishes on an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".unfinished-{uuid.uuid4().hex}-{path.name}")
    try:
        with open(unfinished, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise
    # The new name must be on disk before whatever relies on it is removed.
    sync_folder(path.parent)


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
