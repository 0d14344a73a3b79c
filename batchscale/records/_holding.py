"""One writer to a folder: held by a lock of the operating system, and by a claim that is renewed.

A lock (`flock`) ends with the process that holds it, and settles the matter between the processes
of one machine. Some network file systems have none, or have it for each machine by itself. So the
writer also says in the file who it is, and counts up there every few seconds. Who finds the claim
of another machine, or has no locks, waits whether it still counts. And before anything that a
writer has written counts, it looks whether the claim is still its own: a folder that was taken
over, removed or unmounted is written no further.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import platform
import sys
import threading
import time
import uuid
import warnings
import weakref
from pathlib import Path
from typing import IO, Any

if sys.platform != "win32":
    import fcntl

_NAME = ".lock"
_RENEWED = 5.0  # seconds between two counts
_SILENT = 30.0  # seconds after which a writer that does not count is dead


class Hold:
    """A folder that this process alone writes, until it is closed or the process ends.

    Args:
      folder: that is there.

    Raises:
      RuntimeError: another process writes it.
      OSError: it cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self._path, self._process = folder, folder / _NAME, os.getpid()
        self._claim = {"writer": uuid.uuid4().hex, "machine": _machine()} | {
            "host": platform.node(),
            "process": self._process,
        }
        self._file = open(self._path, "ab")  # noqa: SIM115  (open as long as it holds the folder)
        self._ended = threading.Event()
        try:
            locked = _locked(self._file, folder)
            former = _read(self._path)
            if former and not (locked and _parsed(former).get("machine") == _machine()):
                _wait_for_silence(folder, self._path, former)
            _write(self._path, self._claim, 0)
        except BaseException:
            self._file.close()
            raise
        weakref.finalize(self, self._ended.set)
        renew = functools.partial(_renew, self._path, self._claim, self._ended)
        threading.Thread(target=renew, name="hold", daemon=True).start()

    @property
    def is_own(self) -> bool:
        """Whether this process took it: one that was forked from it did not."""
        return os.getpid() == self._process

    def check(self) -> None:
        """Refuses to go on where the folder is no longer this process's to write.

        Raises:
          FileNotFoundError: it was removed, or its disk is gone.
          RuntimeError: another process has taken it over.
        """
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            found = _parsed(self._path.read_bytes()).get("writer")
            if found == self._claim["writer"]:
                return
            raise RuntimeError(
                f"{self._folder}: another process has begun to write this study, since this one "
                f"had not been heard of for {_SILENT:.0f} s; this one writes no further. The same "
                "call goes on once the other has ended."
            )
        raise FileNotFoundError(
            f"{self._folder}: the folder, or {_NAME} in it, has gone while its study was run: "
            "removed, moved, or its disk unmounted. Nothing is written in its place. Bring it "
            "back, and the same call goes on from what is in it."
        )

    def close(self) -> None:
        """Lets other processes write the folder."""
        self._ended.set()
        # In a forked process the lock is that of its parent, whose it stays.
        if self.is_own and not self._file.closed:
            with contextlib.suppress(OSError):
                if _parsed(self._path.read_bytes()).get("writer") == self._claim["writer"]:
                    os.truncate(self._path, 0)
            if sys.platform != "win32":
                # Closing would leave the lock to a forked process that lives on.
                with contextlib.suppress(OSError):
                    fcntl.flock(self._file, fcntl.LOCK_UN)
        self._file.close()


def _locked(file: IO[bytes], folder: Path) -> bool:
    """Whether the operating system holds the file; not where there are no locks.

    Raises:
      RuntimeError: another process holds it.
    """
    if sys.platform == "win32":
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise _refusal(folder, _read(Path(file.name))) from None
    except OSError:
        return False
    return True


def _wait_for_silence(folder: Path, path: Path, former: bytes) -> None:
    """Returns once the writer of a claim has been silent for so long that it must be dead.

    Raises:
      RuntimeError: it is not.
    """
    warnings.warn(
        f"{folder}: {_who(former)} has not ended its run of this study as usual, and no lock says "
        f"whether it lives. Waiting {_SILENT:.0f} s whether it is heard of.",
        stacklevel=2,
    )
    until = time.monotonic() + _SILENT
    while time.monotonic() < until:
        time.sleep(_RENEWED / 5)
        found = _read(path)
        if found != former and found:
            raise _refusal(folder, found)


def _refusal(folder: Path, claim: bytes) -> RuntimeError:
    return RuntimeError(
        f"{folder}: another process is writing this study ({_who(claim)}). Wait until it has "
        "ended, or give another folder; its tables can be loaded meanwhile."
    )


def _who(claim: bytes) -> str:
    found = _parsed(claim)
    return f"process {found.get('process', '?')} on {found.get('host', '?')}"


def _renew(path: Path, claim: dict[str, Any], ended: threading.Event) -> None:
    """Counts up, until it ends, or the claim is another's."""
    count = 0
    while not ended.wait(_RENEWED):
        # A full disk, a folder that is gone: the writer itself finds out.
        with contextlib.suppress(OSError):
            if _parsed(path.read_bytes()).get("writer") == claim["writer"]:
                _write(path, claim, count := count + 1)


def _write(path: Path, claim: dict[str, Any], count: int) -> None:
    """Writes a claim in its place; of always the same length, so that no disk is too full for it.

    The file is opened anew: a network file system shows others what was written when it is closed.
    """
    with open(path, "r+b", buffering=0) as file:
        file.write(json.dumps(claim | {"count": f"{count:012d}"}).encode())
        file.truncate()


def _read(path: Path) -> bytes:
    with contextlib.suppress(OSError):
        return path.read_bytes()
    return b""


def _parsed(claim: bytes) -> dict[str, Any]:
    with contextlib.suppress(ValueError):
        found = json.loads(claim)
        return found if isinstance(found, dict) else {}
    return {}


@functools.cache
def _machine() -> str:
    """The kernel that runs here: its locks bind all of its processes, in all of its containers."""
    with contextlib.suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return platform.node()
