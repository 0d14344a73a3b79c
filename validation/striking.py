"""A process that dies, or whose disk fails, at a chosen moment of a study's run."""

from __future__ import annotations

import builtins
import contextlib
import errno
import os
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from batchscale.engine.engine import Engine
from batchscale.records import StudyFolder

PLACES = ("operation", "plan", "compaction", "segment", "repacking")
"""Where a process can be struck: at an operation on the disk, of any file, of a plan, or of
compaction; within a segment of training; when trials are packed anew."""

KILLS = ("SIGKILL", "half a file, SIGKILL", "SIGTERM", "SIGTERM twice", "SIGINT")
FAULTS = ("full disk", "read-only disk", "folder gone")

_ERRORS = {"full disk": errno.ENOSPC, "read-only disk": errno.EROFS}
_OPERATIONS = ("replace", "fsync", "unlink", "mkdir")


class Moment(NamedTuple):
    """When a process is struck, and how.

    Attributes:
      place: one of `PLACES`.
      number: at which passing of it, from 1; before and after an operation are two.
      how: one of `KILLS` or `FAULTS`.
    """

    place: str
    number: int
    how: str


@contextlib.contextmanager
def struck(folder: Path, moment: Moment | None) -> Iterator[Counter[str]]:
    """Strikes this process at a moment; counts how often it passes each place.

    Args:
      folder: of the study; only operations on files in it count.
      moment: when; never if None.
    """
    passed: Counter[str] = Counter()
    failing: list[int] = []
    compacting: list[bool] = []

    def passes(place: str, fails: bool = False, file: int | None = None) -> None:
        passed[place] += 1
        if moment is not None and (place, passed[place]) == moment[:2]:
            _strike(moment, folder, failing, file)
        if fails and failing:
            raise OSError(failing[0], os.strerror(failing[0]))

    def operation(function: Callable[..., Any], path: Any, file: int | None = None) -> Any:
        inside = isinstance(path, str | os.PathLike) and Path(path).is_relative_to(folder)
        if not inside or Path(path).name == ".lock":
            return function()
        places = ["operation"]
        places += ["plan"] if str(path).endswith("plan.json") else []
        places += ["compaction"] if compacting else []
        for place in places:
            passes(place, fails=True, file=file)
        found = function()
        for place in places:
            passes(place)
        return found

    former = {name: getattr(os, name) for name in _OPERATIONS}
    opens, compact = builtins.open, StudyFolder.compact
    methods = {"advance": Engine.advance, "pack": Engine.pack}
    files: dict[int, Any] = {}

    def opened(file: Any, mode: str = "r", *arguments: Any, **options: Any) -> Any:
        def do() -> Any:
            return opens(file, mode, *arguments, **options)

        if not set(mode) & set("wxa+"):
            return do()
        result = operation(do, file)
        files[result.fileno()] = file
        return result

    def changing(name: str) -> Callable[..., Any]:
        def changed(*arguments: Any, **options: Any) -> Any:
            path = files.get(arguments[0]) if name == "fsync" else arguments[-1]
            number = arguments[0] if name == "fsync" else None
            return operation(lambda: former[name](*arguments, **options), path, number)

        return changed

    def compacted(self: StudyFolder) -> None:
        compacting.append(True)
        compact(self)
        compacting.clear()

    def entered(name: str, place: str) -> Callable[..., Any]:
        def method(*arguments: Any, **options: Any) -> Any:
            passes(place)
            return methods[name](*arguments, **options)

        return method

    for name in _OPERATIONS:
        setattr(os, name, changing(name))
    builtins.open = opened
    StudyFolder.compact = compacted
    Engine.advance, Engine.pack = entered("advance", "segment"), entered("pack", "repacking")
    try:
        yield passed
    finally:
        for name, function in former.items():
            setattr(os, name, function)
        builtins.open, StudyFolder.compact = opens, compact
        Engine.advance, Engine.pack = methods["advance"], methods["pack"]


def _strike(moment: Moment, folder: Path, failing: list[int], file: int | None) -> None:
    process = os.getpid()
    if moment.how in _ERRORS:
        failing.append(_ERRORS[moment.how])
    elif moment.how == "folder gone":
        os.rename(folder, f"{folder}.gone")
    elif moment.how.endswith("SIGKILL"):
        if file is not None and moment.how.startswith("half"):
            os.ftruncate(file, os.fstat(file).st_size // 2)
        if moment.place == "segment":  # somewhere within it
            threading.Timer(0.002, os.kill, (process, signal.SIGKILL)).start()
        else:
            os.kill(process, signal.SIGKILL)
    else:
        name, *twice = moment.how.split()
        for _ in range(2 if twice else 1):
            os.kill(process, signal.Signals[name])
