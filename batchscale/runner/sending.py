"""What goes to a worker and comes back: a study as bytes; an error as words.

A study goes out as a pickle, made here and read by the user's own workers. Nothing that comes back
is one: an error too is rebuilt from its type's name and its words.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import pickle
import platform
import socket
import traceback
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

from batchscale import faults

_LARGE = 100e6  # bytes


def pack(parts: Mapping[str, Any], names: Mapping[str, Any]) -> bytes:
    """Parts of a study as bytes, with cloudpickle where it is installed.

    Args:
      parts: what a worker needs, by name.
      names: all that it is made of, by what an error calls it.

    Raises:
      TypeError: something cannot be sent; says what.

    >>> unpack(pack({"double": len}, {}))["double"]("ab")
    2
    >>> import threading
    >>> pack({"study": threading.Lock()}, {"workload.data": threading.Lock()})
    Traceback (most recent call last):
    TypeError: executor: workload.data cannot be sent to workers (TypeError: cannot pickle
    '_thread.lock' object)...
    """
    dumps = _dumps()
    try:
        packed = dumps(dict(parts))
    except Exception as error:
        what, why = next(_refused(names, dumps), ("the study", error))
        remedy = (
            "What holds a lock, an open file or a device has to be made on the worker: make it "
            "inside the function that uses it."
        )
        if dumps is pickle.dumps:
            remedy = "Install cloudpickle, which sends lambdas and closures. " + remedy
        raise TypeError(
            f"executor: {what} cannot be sent to workers ({type(why).__name__}: {why}). {remedy}"
        ) from why
    if len(packed) > _LARGE:
        sizes = {name: len(dumps(value)) for name, value in names.items()}
        # The first that holds most of it: a study holds its workload, and that its parts.
        most = 0.9 * max(sizes.values(), default=0)
        largest = next((name for name in sizes if sizes[name] >= most), "the study")
        warnings.warn(
            f"executor: {len(packed) / 1e6:,.0f} MB go out with every task, most of them of "
            f"{largest}. Load large arrays in a function that workers call: "
            "Workload.from_functions(..., data=load).",
            stacklevel=4,
        )
    return packed


def unpack(sent: bytes) -> dict[str, Any]:
    """What `pack` was given, on the worker."""
    return pickle.loads(sent)


def versions() -> dict[str, str]:
    """What must be the same where a study is packed and where it is unpacked.

    >>> sorted(versions())
    ['batchscale', 'python']
    """
    python = ".".join(platform.python_version_tuple()[:2])
    return {"python": python, "batchscale": importlib.metadata.version("batchscale")}


def fault(error: Exception, where: str) -> dict[str, Any]:
    """An error in plain words, to be sent.

    Args:
      error: that was raised on a worker.
      where: what was done, in words.

    >>> fault(ValueError("no such file", 3), "batch size 8")["arguments"]
    ['no such file', 3]
    """
    told = "".join(traceback.format_exception(error)).rstrip()
    return {
        **faults.plain(error),
        "note": f"On a worker ({socket.gethostname()}, process {os.getpid()}), {where}:\n{told}",
        # A full disk, or a device that is gone, may be that machine's alone.
        "of_machine": isinstance(error, OSError) or type(error).__name__ == "JaxRuntimeError",
    }


def rebuilt(fault: Mapping[str, Any]) -> Exception:
    """The error again, with what its worker said of it; see `faults.rebuilt`.

    Args:
      fault: from the function of that name.

    >>> found = rebuilt(fault(ValueError("no"), "batch size 8"))
    >>> found, found.__notes__[0].startswith("On a worker")
    (ValueError('no'), True)
    """
    error = faults.rebuilt(fault)
    error.add_note(str(fault["note"]))
    return error


def _dumps() -> Any:
    if importlib.util.find_spec("cloudpickle") is None:
        return pickle.dumps
    import cloudpickle

    return cloudpickle.dumps


def _refused(names: Mapping[str, Any], dumps: Any) -> Iterator[tuple[str, Exception]]:
    """The names of what cannot be packed, and why."""
    for name, value in names.items():
        try:
            dumps(value)
        except Exception as error:
            yield name, error
