"""Whether a device has room for a trial, and a disk for training states."""

from __future__ import annotations

import contextlib
import shutil
import warnings
from pathlib import Path

# A choice: tables and other programs want room too.
_SHARE = 0.5


def check(workload: str, needed: int, there: int | None) -> None:
    """Refuses a trial that fits on no device, before anything is compiled.

    Args:
      workload: its name.
      needed: bytes of its parameters and its states, which it needs at least.
      there: bytes of a device; None if that is not known.

    Raises:
      MemoryError: it needs more than there are.

    >>> check("lm/large", 28_000_000_000, 16_000_000_000)
    Traceback (most recent call last):
    MemoryError: workload 'lm/large': the parameters and states of a trial take 28 GB, and a device
    has 16 GB. A trial is trained on one device: take a smaller model, an optimizer with less state,
    or devices with more memory.
    """
    if there is not None and needed > there:
        raise MemoryError(
            f"workload {workload!r}: the parameters and states of a trial take "
            f"{needed / 1e9:.3g} GB, and a device has {there / 1e9:.3g} GB. A trial is trained on "
            "one device: take a smaller model, an optimizer with less state, or devices with more "
            "memory."
        )


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
