"""Shapes and types of arrays are checked while the tests run; the rest is the code's to refuse.

Of a function's annotations those of arrays are kept. The others say what a caller should give; what
is refused with a message of its own, being otherwise, would be refused here before it.
"""

import re
from collections.abc import Callable
from typing import Any

from beartype import BeartypeConf, beartype

_ARRAYS = re.compile(r"\b(Bool|Complex|Float|Inexact|Int|Key|Num|Shaped|UInt)\d*\[")
_check = beartype(conf=BeartypeConf(is_pep484_tower=True))


def checked(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function whose arrays are checked, as `--jaxtyping-packages` takes it."""
    if function.__name__ == "__init__":
        return function  # a record of arrays is one of their shapes, or of places, too
    annotations = function.__annotations__
    kept = {
        name: of
        for name, of in annotations.items()
        if _ARRAYS.search(str(of)) and "Callable" not in str(of)  # no array, or one that gives it
    }
    if not kept:
        return function
    function.__annotations__ = kept
    return _check(function)
