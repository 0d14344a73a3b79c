"""What a user gives, refused by its name where it is of another kind: objects and tables."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd

from batchscale import numeric

_LONG = 60  # characters of what is shown of a value


def instance(name: str, value: Any, kind: type | tuple[type, ...], wanted: str) -> None:
    """Refuses an argument `name` that is no instance of a class.

    Args:
      name: of the argument.
      value: what was given.
      kind: a class, or several.
      wanted: what an error asks for.

    Raises:
      TypeError: it is none; a class in place of its instance neither.

    >>> instance("space", dict, dict, "a space")
    Traceback (most recent call last):
    TypeError: space: got the class dict, wanted a space.
    """
    if not isinstance(value, kind):
        raise TypeError(f"{name}: got {described(value)}, wanted {wanted}.")


def frame(name: str, value: Any, wanted: str, columns: Iterable[str] = ()) -> None:
    """Refuses an argument `name` that is no table, or lacks a column.

    Args:
      name: of the argument.
      value: what was given.
      wanted: which table an error asks for.
      columns: that it is to have.

    Raises:
      TypeError: it is no table.
      ValueError: it lacks a column, or has one twice.

    >>> frame("trials", pd.DataFrame({"a": [1]}), "the table Result.trials", ["status"])
    Traceback (most recent call last):
    ValueError: trials: no column 'status'; wanted the table Result.trials; got the columns a.
    """
    if not isinstance(value, pd.DataFrame):
        raise TypeError(
            f"{name}: got {described(value)}, wanted {wanted}, which is a pandas.DataFrame."
        )
    for column in columns:
        found = sum(other == column for other in value.columns)
        if found != 1:
            raise ValueError(
                f"{name}: {'no column' if not found else 'more than one column'} {column!r}; "
                f"wanted {wanted}; got the columns {', '.join(map(str, value.columns)) or 'none'}."
            )


def by_batch_size(name: str, value: Any, kind: type, wanted: str) -> None:
    """Refuses an argument `name` that is no mapping from batch sizes to instances of a class.

    Args:
      name: of the argument.
      value: what was given.
      kind: the class.
      wanted: what an error asks for at each batch size.

    Raises:
      TypeError: it is no such mapping.

    >>> by_batch_size("spaces", {8: 0.1}, dict, "a SearchSpace")
    Traceback (most recent call last):
    TypeError: spaces: got 0.1 at 8, wanted a mapping from batch sizes to a SearchSpace each.
    """
    found = described(value)
    if isinstance(value, Mapping):
        wrong = (
            (size, one)
            for size, one in value.items()
            if not isinstance(numeric.plain(size), int) or not isinstance(one, kind)
        )
        size, one = next(wrong, (None, None))
        if size is None:
            return
        found = f"{described(one)} at {size!r}"
    raise TypeError(f"{name}: got {found}, wanted a mapping from batch sizes to {wanted} each.")


def switch(name: str, value: Any) -> None:
    """Refuses an argument `name` that is neither True nor False.

    >>> switch("confirmed", "yes")
    Traceback (most recent call last):
    TypeError: confirmed: got 'yes', wanted True or False.
    """
    if not isinstance(value, bool | np.bool_):
        raise TypeError(f"{name}: got {described(value)}, wanted True or False.")


def called(name: str, function: Callable[..., Any], call: str, arguments: int) -> None:
    """Refuses a function of the user's that does not take so many arguments.

    Args:
      name: of the argument.
      function: what was given.
      call: how it is called, for an error.
      arguments: how many, by position.

    Raises:
      TypeError: it takes others. Of some functions in C that is not known; they pass.

    >>> called("progress", lambda: None, "progress(told)", 1)
    Traceback (most recent call last):
    TypeError: progress: got a function of (), wanted one that is called as progress(told).
    """
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return
    try:
        signature.bind(*range(arguments))
    except TypeError:
        raise TypeError(
            f"{name}: got a function of {signature}, wanted one that is called as {call}."
        ) from None


def several(name: str, value: Any, wanted: str) -> list[Any]:
    """The argument `name`, which is to be several values, as a list; a word or a mapping is none.

    >>> several("steps", 5, "a list of numbers of steps")
    Traceback (most recent call last):
    TypeError: steps: got 5, wanted a list of numbers of steps.
    """
    if isinstance(value, str | bytes | Mapping) or not isinstance(value, Iterable):
        raise TypeError(f"{name}: got {described(value)}, wanted {wanted}.")
    return list(value)


def described(value: Any) -> str:
    """A value in an error: itself where it is short, else of which type it is.

    >>> described(0.1), described("x"), described(pd.DataFrame), described(pd.DataFrame({"a": [1]}))
    ('0.1', "'x'", 'the class DataFrame', 'a value of type DataFrame')
    """
    if isinstance(value, type):
        return f"the class {value.__name__}"
    words = repr(value)
    if len(words) > _LONG or not words.isprintable() or hasattr(value, "ndim"):
        return f"a value of type {type(value).__name__}"
    return words


def names_of_files(accept: Collection[str]) -> frozenset[str]:
    """What a user gave as `accept`.

    Raises:
      TypeError: it is no list of names.

    >>> sorted(names_of_files(["plan.json"]))
    ['plan.json']
    """
    if isinstance(accept, str):
        raise TypeError(f"accept: got {accept!r}, wanted a list of names of files: [{accept!r}].")
    if not isinstance(accept, Collection) or not all(isinstance(name, str) for name in accept):
        raise TypeError(f"accept: got {accept!r}, wanted a list of names of files: ['plan.json'].")
    return frozenset(accept)
