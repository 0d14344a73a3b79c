"""Shapes and types of arrays are checked while the tests run; the rest is the code's to refuse.

Of a function's annotations those of arrays are kept. The others say what a caller should give; what
is refused with a message of its own, being otherwise, would be refused here before it.
"""

import importlib.util
import pkgutil
import re
from collections.abc import Callable, Collection
from typing import Any

import jaxtyping
from beartype import BeartypeConf, beartype

_ARRAYS = re.compile(r"\b(Bool|Complex|Float|Inexact|Int|Key|Num|Shaped|UInt)\d*\[")
_check = beartype(conf=BeartypeConf(is_pep484_tower=True))


_jaxtyped = jaxtyping.jaxtyped


def _where_there_are_arrays(**given: Any) -> Callable[..., Any]:
    """The decorator of the import hook, for functions of a module that say shapes of arrays.

    On all others, on classes, and on each function anew that is defined within one, it would cost
    half of the time of the tests, and check nothing.
    """

    def decorate(function: Any) -> Any:
        inner = "<locals>" in function.__qualname__
        if isinstance(function, type) or inner or not _arrays_of(function):
            return function
        return _jaxtyped(**given)(function)

    return decorate


def _arrays_of(function: Any) -> dict[str, Any]:
    """The annotations of a function that are of arrays."""
    return {
        name: of
        for name, of in getattr(function, "__annotations__", {}).items()
        if _ARRAYS.search(str(of)) and "Callable" not in str(of)  # no array, or one that gives it
    }


def checked(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function whose arrays are checked; what the import hook of jaxtyping decorates with."""
    if function.__name__ == "__init__":
        return function  # a record of arrays is one of their shapes, or of places, too
    kept = _arrays_of(function)
    if not kept:
        return function
    function.__annotations__ = kept
    return _check(function)


def check_imports(package: str, but: Collection[str]) -> None:
    """Has the arrays of a package checked in all that is imported of it from here on.

    Args:
      package: its name; it has not been imported yet.
      but: modules that are left out. Warnings that point at a caller's line count the frames in
        between, and each function that is checked is one more.
    """
    spec = importlib.util.find_spec(package)
    assert spec is not None
    modules = pkgutil.iter_modules(spec.submodule_search_locations)
    names = [f"{package}.{module.name}" for module in modules if module.name not in but]
    jaxtyping.jaxtyped = _where_there_are_arrays  # pyright: ignore
    jaxtyping.install_import_hook(names, "shapes.checked")
