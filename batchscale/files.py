"""Files that are whole or absent, whatever moment the process is killed at; the cache folder."""

from __future__ import annotations

import contextlib
import os
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import IO


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
    if sys.platform != "win32":
        # The new name must be on disk before whatever relies on it is removed.
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            with contextlib.suppress(OSError):  # not every network file system can
                os.fsync(folder)
        finally:
            os.close(folder)


def cache_folder() -> Path:
    """Where what can be made or downloaded again is kept.

    `BATCHSCALE_CACHE`, else `batchscale` in `XDG_CACHE_HOME`, else in `~/.cache`.
    """
    if folder := os.environ.get("BATCHSCALE_CACHE"):
        return Path(folder).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "batchscale"


def remove_unfinished(folder: Path) -> None:
    """Removes what a killed process left of the files it was writing in `folder`."""
    for path in folder.glob(".unfinished-*"):
        path.unlink()
