"""What the operating system refuses, said with the folder and what to do about it."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

_GOES_ON = "What was written before counts, and the same call goes on from there."
_FULL = f"Make room there. {_GOES_ON}"
_READ_ONLY = f"Make it writable, or give another folder. {_GOES_ON}"
_REMEDIES = {
    "ENOSPC": _FULL,
    "EDQUOT": _FULL,
    "EFBIG": _FULL,
    "EROFS": _READ_ONLY,
    "EACCES": _READ_ONLY,
    "EPERM": _READ_ONLY,
    "EIO": f"Look after the disk. {_GOES_ON}",
    "ESTALE": f"Mount it again. {_GOES_ON}",
    "ENOTCONN": f"Mount it again. {_GOES_ON}",
    "EMFILE": f"Allow this process more open files, such as `ulimit -n 1024`. {_GOES_ON}",
    "ENFILE": f"Let the machine have more open files. {_GOES_ON}",
}
_KNOWN = {getattr(errno, name): words for name, words in _REMEDIES.items() if hasattr(errno, name)}


@contextlib.contextmanager
def told(folder: Path) -> Iterator[None]:
    """An error of the operating system inside names the folder of a study, and what to do.

    >>> with told(Path("runs/mine")):
    ...     raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "runs/mine/plan.json")
    Traceback (most recent call last):
    OSError: [Errno 28] runs/mine: No space left on device. Make room there. What was written before
    counts, and the same call goes on from there.
    """
    try:
        yield
    except OSError as error:
        number, where = error.errno, str(folder)
        if number is None or number not in _KNOWN or (error.strerror or "").startswith(where):
            raise
        raise OSError(number, f"{where}: {os.strerror(number)}. {_KNOWN[number]}") from error
