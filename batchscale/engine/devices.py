"""The devices a study runs on."""

from __future__ import annotations

import contextlib
import os
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from batchscale.engine import hosts

_MOST = 8  # a choice: more virtual devices than this leave each of them too few trials


def ask_for_cores() -> None:
    """Asks JAX for one virtual CPU device a core, if its backend has not started yet.

    Half of the trials on each of two devices run up to 1.8 times as fast as all of them on one
    device with two threads. Where a GPU or TPU is used this changes nothing.
    """
    if getattr(
        jax.config, "jax_num_cpu_devices", -1
    ) > 0 or "host_platform_device_count" in os.environ.get("XLA_FLAGS", ""):
        return  # the user has chosen
    try:
        jax.config.update("jax_num_cpu_devices", min(_cores(), _MOST))
    except RuntimeError:
        return  # the backend has started, with the devices it has


def describe() -> str:
    """The devices in words.

    >>> describe().endswith("jax " + jax.__version__)
    True
    """
    kinds = Counter(device.device_kind for device in jax.devices())
    words = ", ".join(f"{count} x {kind}" for kind, count in kinds.items())
    if hosts.several():
        words += f" of {jax.process_count()} processes"
    elif jax.default_backend() == "cpu":
        words += f" on {_cores()} cores"
    return f"{words}, jax {jax.__version__}"


def memory(device: Any) -> int | None:
    """The bytes of memory of a device: of a CPU its share of what this process may use.

    Where neither the device nor the operating system tells, None.
    """
    if device.platform != "cpu":
        return (device.memory_stats() or {}).get("bytes_limit")
    try:
        limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    except (AttributeError, OSError, ValueError):
        return None
    with contextlib.suppress(OSError, ValueError):  # a container may have less
        limits.append(int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return min(limits) // len(jax.local_devices(backend="cpu"))


def most_memory(some: Sequence[Any]) -> int | None:
    """The bytes that one of some devices can have at most, where it is known.

    Args:
      some: of this process, all that are used. On a CPU the others take nothing, so that each has
        its part of the whole.
    """
    there = memory(some[0])
    if there is None or some[0].platform != "cpu":
        return there
    return there * len(jax.local_devices(backend="cpu")) // len(some)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
