"""The fields of a workload, each refused where it is written if it is of another kind."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any


def function(name: str, value: Any, call: str) -> None:
    """Refuses an argument `name` that cannot be called.

    >>> function("init", None, "init(key)")
    Traceback (most recent call last):
    TypeError: init: got a NoneType, wanted a function, called as init(key).
    """
    if not callable(value):
        raise TypeError(f"{name}: got {_kind(value)}, wanted a function, called as {call}.")


def functions(name: str, value: Any, call: str) -> dict[str, Callable[..., Any]]:
    """The argument `name`, functions by the names of metrics, as a dictionary; nothing is none.

    >>> functions("metrics", [len], "f(params, batch)")
    Traceback (most recent call last):
    TypeError: metrics: got a list, wanted functions by the name of their metric, such as
    metrics={'error': f}, each called as f(params, batch).
    """
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise TypeError(
            f"{name}: got {_kind(value)}, wanted functions by the name of their metric, such as "
            f"{name}={{'error': f}}, each called as {call}."
        )
    for key, found in value.items():
        function(f"{name}[{key!r}]", found, call)
    return dict(value)


def word(name: str, value: Any) -> None:
    """Refuses an argument `name` that is no word.

    >>> word("labels", None)
    Traceback (most recent call last):
    TypeError: labels: got a NoneType, wanted a word, the name of a field.
    """
    if not isinstance(value, str):
        raise TypeError(f"{name}: got {_kind(value)}, wanted a word, the name of a field.")


def names(name: str, value: Any) -> tuple[str, ...]:
    """The argument `name`, a collection of names, as a tuple.

    A string is a collection too, of its letters, which is never what is meant.

    >>> names("unpaired", "label")
    Traceback (most recent call last):
    TypeError: unpaired: got 'label', wanted several names, such as unpaired=('label',).
    """
    if isinstance(value, str):
        raise TypeError(
            f"{name}: got {value!r}, wanted several names, such as {name}=({value!r},)."
        )
    if not isinstance(value, Iterable) or not all(isinstance(x, str) for x in (*value,)):
        raise TypeError(
            f"{name}: got {_kind(value)}, wanted names, words in a tuple; () where there are none."
        )
    return tuple(value)


def _kind(value: Any) -> str:
    kind = type(value).__name__
    return f"{'an' if kind[0] in 'aeiou' else 'a'} {kind}"
