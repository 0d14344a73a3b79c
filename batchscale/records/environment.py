"""Where and with what a study was run."""

import contextlib
import importlib.metadata
import os
import platform
import re
import shlex
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

_SETTINGS = ("jax_default_matmul_precision", "jax_enable_x64")
PACKAGES = (
    *("batchscale", "jax", "jaxlib", "flax", "optax"),
    *("numpy", "scipy", "pandas", "pyarrow"),
)


def provenance() -> dict[str, Any]:
    """What a run's results may depend on besides its plan. Starts the JAX backend.

    Returns:
      `date` (UTC), `command` as it was given, `versions`, `platform`, `processor` and how
      many `processors` this process may use, `devices`, JAX's precision settings, and
      `git`: the revision of the checkout that tracks this package and whether it is dirty:
      whether files of Python or TOML in it were changed since. None where there is none. Of
      several processes also how many: `processes`.

    >>> provenance()["versions"]["python"] == platform.python_version()
    True
    """
    import jax

    devices = Counter((device.platform, device.device_kind) for device in jax.devices())
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join(["python", *sys.orig_argv[1:]]),
        "versions": {"python": platform.python_version()}
        | {package: _version(package) for package in PACKAGES},
        "platform": platform.platform(),
        "processor": processor(),
        "processors": len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count(),
        "devices": [
            {"platform": name, "kind": kind, "count": count}
            for (name, kind), count in devices.items()
        ],
        "git": git_state(Path(__file__)),
        **({"processes": jax.process_count()} if jax.process_count() > 1 else {}),
    } | {name: getattr(jax.config, name) for name in _SETTINGS}


_RECORDS = "versions", "git", "seconds"
_LISTS = "devices", "workers"


def is_provenance(run: Any) -> bool:
    """Whether a value has the form of `provenance`, as JSON holds it; what it says may be missing.

    >>> is_provenance({"versions": {"jax": "0.10"}}), is_provenance({"versions": 3})
    (True, False)
    """
    return (
        isinstance(run, dict)
        and all(isinstance(run.get(name) or {}, dict) for name in _RECORDS)
        and all(isinstance(run.get(name) or [], list) for name in _LISTS)
        and all(isinstance(one, dict) for name in _LISTS for one in run.get(name) or [])
    )


CONDITIONS = ("float_type", "matmul_precision", "jax", "jaxlib", "backend", "device", "devices")
"""What `conditions` says of a run, by name."""


def conditions(devices: Sequence[Any], float_type: str) -> dict[str, Any]:
    """What the bits of a trial may depend on besides the plan, to be compared when it goes on.

    Args:
      devices: those that trials run on.
      float_type: JAX's default type of floats.

    Returns:
      `float_type` and `matmul_precision`, without which trials are others; and `jax`, `jaxlib`,
      `backend`, `device` and `devices`, without which their last bits may be. Of several devices
      the number does not matter; for one XLA orders its passes otherwise, which rounds the
      divisions in an update like that of Adam otherwise.
    """
    return {
        "float_type": float_type,
        "matmul_precision": _matmul_precision(),
        "jax": _version("jax"),
        "jaxlib": _version("jaxlib"),
        "backend": devices[0].platform,
        "device": devices[0].device_kind,
        "devices": "one" if len(devices) == 1 else "several",
    }


def runs_under(
    conditions: dict[int, list[dict[str, Any]]], batch_size: int, here: Mapping[str, Any]
) -> bool:
    """Takes down what a batch size is run under; says whether that is new.

    >>> noted = {}
    >>> [runs_under(noted, 8, {"jax": version}) for version in ("0.10", "0.10", "0.11")]
    [True, False, True]
    >>> noted
    {8: [{'jax': '0.10'}, {'jax': '0.11'}]}
    """
    found = conditions.setdefault(batch_size, [])
    if found and found[-1] == here:
        return False
    found.append(dict(here))
    return True


def conditions_from_json(found: Mapping[str, Any]) -> dict[int, list[dict[str, Any]]]:
    """What each batch size was run under, as a plan holds it.

    Raises:
      ValueError: a batch size has none, or others than `CONDITIONS`.
    """
    for under in (under for own in found.values() for under in own):
        if set(under) != set(CONDITIONS):
            raise ValueError(f"conditions: got {under}, wanted {', '.join(CONDITIONS)}")
    if not all(found.values()):
        raise ValueError("conditions: a batch size has none")
    return {int(size): [dict(under) for under in own] for size, own in found.items()}


def _matmul_precision() -> str:
    import jax

    config: Any = jax.config
    return config.jax_default_matmul_precision or "default"


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def processor() -> str:
    """The model of the processor, as far as the operating system tells.

    >>> isinstance(processor(), str)
    True
    """
    with contextlib.suppress(OSError):
        name = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.M)
        if name:
            return name[1]
    return platform.processor() or platform.machine()


def git_state(file: Path) -> dict[str, Any] | None:
    """The revision that a file of the package is in, and whether it was changed since, if any."""

    def git(*arguments: str) -> str:
        command = ["git", "--no-optional-locks", *arguments]
        run = subprocess.run(command, cwd=file.parent, capture_output=True, text=True, check=True)
        return run.stdout.strip()

    try:
        # An installed package may lie, untracked, inside somebody else's checkout.
        git("ls-files", "--error-unmatch", file.name)
        # Code alone makes results: those that are written into the checkout change nothing.
        changed = git("status", "--porcelain", "--", *(f":(top)*.{of}" for of in ("py", "toml")))
        return {"revision": git("rev-parse", "HEAD"), "dirty": bool(changed)}
    except (OSError, subprocess.CalledProcessError):
        return None
