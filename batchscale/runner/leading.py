"""A call of a study in several processes: process 0 makes it, the others lend their devices."""

from __future__ import annotations

import atexit
import contextlib
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from batchscale import faults
from batchscale.engine import compilation_cache, hosts, led
from batchscale.engine.engine import Training
from batchscale.records import StudyFolder
from batchscale.runner import session

_STATES = "state/"  # files of which nothing is read once the call is done


def follow(
    training: Callable[[], Training], devices: Sequence[Any] | None, executor: Any = None
) -> Path | None:
    """Lends the devices of this process to process 0, until the call that it makes is done.

    Args:
      training: what is trained.
      devices: as in `Study.run`.
      executor: as in `Study.run`: none, for these processes are the workers.

    Returns:
      A copy of the folder of process 0, kept until this process ends; None in process 0, and where
      there is no other.

    Raises:
      RuntimeError: there is an executor.
      Exception: process 0 has failed.
    """
    if not hosts.several():
        return None
    if executor is not None:
        hosts.refuse(
            "executor", "Make the call in one that has not called jax.distributed.initialize."
        )
    mesh = session.mesh_of(devices)  # refused in all of them, or in none
    if hosts.is_first():
        return None
    with compilation_cache.cached():
        led.follow(training(), mesh)
    copy = Path(tempfile.mkdtemp(prefix="batchscale-"))
    atexit.register(shutil.rmtree, copy, ignore_errors=True)
    for name in hosts.say():
        path = copy / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(hosts.broadcast())
    return copy


@contextlib.contextmanager
def lead(folder: Path) -> Iterator[None]:
    """What is inside is done here; at its end the others have a copy of the folder, or its error.

    Args:
      folder: of the study.
    """
    if not hosts.several():
        yield
        return
    try:
        yield
        files = _files(folder)
        contents = [(folder / name).read_bytes() for name in files]
    except hosts.LostError as error:
        error.add_note(
            f"The same call goes on from what is in {folder}, in any number of processes."
        )
        raise
    except Exception as error:
        with contextlib.suppress(hosts.LostError):
            hosts.say({"do": "failed", "failed": faults.plain(error)})
        raise
    hosts.say({"do": "done"})
    hosts.say(files)
    for content in contents:
        hosts.broadcast(content)


def timed(table: pd.DataFrame) -> pd.DataFrame:
    """What process 0 has timed, in every process.

    >>> timed(pd.DataFrame({"batch_size": [8], "seconds_per_step": [0.5]})).to_dict("list")
    {'batch_size': [8], 'seconds_per_step': [0.5]}
    """
    if not hosts.several():
        return table
    return pd.DataFrame(hosts.agreed(lambda: table.to_dict("list")))


def _files(folder: Path) -> list[str]:
    """What a result is read from, by name in the folder."""
    names = []
    with StudyFolder.open(folder, write=False) as opened:
        index = opened.files.index()
    for part in ("", *(() if index is None else index.beside)):
        with StudyFolder.open(folder / part, write=False) as opened:
            index = opened.files.index()
        own = [] if index is None else ["index.json", *index.files]
        names += [f"{part}/{name}" if part else name for name in own if _STATES not in name]
    return names
