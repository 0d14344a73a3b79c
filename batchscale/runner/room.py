"""Whether a disk has room for training states."""

from __future__ import annotations

import contextlib
import shutil
import warnings
from pathlib import Path

# A choice: tables and other programs want room too.
_SHARE = 0.5


def warn(folder: Path, states: int) -> None:
    """Warns where training states may fill a disk, before anything is trained.

    Args:
      folder: they are written into; those of one batch size at a time, and the former ones stay
        until the next are written.
      states: bytes of those of a batch size.

    >>> warn(Path(), states=100)
    """
    free = None
    with contextlib.suppress(OSError):
        free = shutil.disk_usage(folder).free
    if free is not None and 2 * states > _SHARE * free:
        warnings.warn(
            f"{folder}: the training states of a batch size take {states / 1e9:.3g} GB, twice that "
            f"while they are written, and {free / 1e9:.3g} GB are free. Make room, give a folder "
            "on another disk, or train fewer trials; a run that finds the disk full ends, and the "
            "same call goes on from what was written.",
            stacklevel=6,
        )
