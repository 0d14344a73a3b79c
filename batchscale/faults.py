"""Errors in plain words, to be sent to another process; no code travels with them."""

from __future__ import annotations

import builtins
import contextlib
import sys
from collections.abc import Mapping
from typing import Any

_PLAIN = (str, int, float, bool, type(None))


def plain(error: BaseException) -> dict[str, Any]:
    """An error as values that JSON holds: its type's name, its arguments and its words.

    >>> plain(ValueError("no such file", 3))["arguments"]
    ['no such file', 3]
    """
    kind = type(error)
    simple = all(isinstance(value, _PLAIN) for value in error.args)
    return {
        "module": kind.__module__,
        "name": kind.__qualname__,
        "arguments": list(error.args) if simple else [str(error)],
        "words": str(error),
    }


def rebuilt(said: Mapping[str, Any]) -> Exception:
    """The error again: of its own type where that is known here already, else a RuntimeError.

    Args:
      said: from `plain`.

    >>> rebuilt(plain(ValueError("steps: got 0.")))
    ValueError('steps: got 0.')
    >>> rebuilt({"module": "theirs", "name": "TheirError", "arguments": [], "words": "no"})
    RuntimeError('theirs.TheirError: no')
    """
    module, name = str(said["module"]), str(said["name"])
    found = getattr(builtins if module == "builtins" else sys.modules.get(module), name, None)
    if isinstance(found, type) and issubclass(found, Exception):
        with contextlib.suppress(Exception):  # of those that are made otherwise than they say
            made = found(*said["arguments"])
            if str(made) == said["words"]:
                return made
        with contextlib.suppress(Exception):
            bare = found.__new__(found)
            bare.args = (said["words"],)
            if str(bare) == said["words"]:
                return bare
    return RuntimeError(f"{module}.{name}: {said['words']}")
