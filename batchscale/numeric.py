"""Numbers as users write them, Python's or NumPy's, taken as Python's own."""

from __future__ import annotations

import itertools
import math
import numbers
from collections.abc import Sequence
from typing import Any


def plain(value: Any) -> int | float | None:
    """A real number as Python's own; None where it is none. Booleans are no numbers here.

    Only Python's own numbers go through JSON, and equal those that come back from there.

    >>> import numpy as np
    >>> plain(np.int64(3)), plain(np.float64(0.5)), plain(np.array(2)), plain(True), plain("3")
    (3, 0.5, 2, None, None)
    """
    if getattr(value, "ndim", None) == 0 and hasattr(value, "item"):
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        return None
    try:
        number = float(value)
    except OverflowError:  # more than a float can be
        return None
    return int(value) if isinstance(value, numbers.Integral) else number


def short(value: float, digits: int = 3) -> str:
    """A number in words: to so many digits, and without a power of ten where it is large.

    Args:
      value: any.
      digits: that are shown, at most.

    >>> short(5763.2), short(0.00321), short(134_567, 2), short(1.25e15), short(math.inf)
    ('5,760', '0.00321', '130,000', '1.25e+15', 'inf')
    """
    rounded = float(f"{value:.{digits}g}")
    whole = 10 ** (digits - 1) <= abs(rounded) < 1e15
    return f"{rounded:,.0f}" if whole else f"{rounded:.{digits}g}"


def integer(
    name: str, value: Any, smallest: int, largest: int | None = None, *, others: str = ""
) -> int:
    """The argument `name` as a Python integer in a range.

    >>> integer("trials", 0, 1)
    Traceback (most recent call last):
    ValueError: trials: got 0, wanted an integer, 1 or more.
    """
    number = plain(value)
    whole = isinstance(number, int)
    if not whole or number < smallest or (largest is not None and number > largest):
        wanted = f"{smallest} or more" if largest is None else f"{smallest} to {largest:,}"
        raise ValueError(f"{name}: got {value!r}, wanted an integer, {wanted}{others}.")
    return number


def increasing(name: str, values: Sequence[Any]) -> list[int]:
    """The argument `name` as Python integers of at least 0, each above the one before.

    >>> increasing("steps", [4, 2])
    Traceback (most recent call last):
    ValueError: steps: got [4, 2], wanted at least one integer, each above the one before.
    """
    found = [integer(name, value, 0) for value in values]
    if not found or any(b <= a for a, b in itertools.pairwise(found)):
        raise ValueError(
            f"{name}: got {list(values)}, wanted at least one integer, each above the one before."
        )
    return found


def above(name: str, value: Any, bound: float, wanted: str) -> int | float:
    """The argument `name` as a finite Python number above a bound.

    >>> above("patience", 1, 1, "a factor above 1, such as 4.0")
    Traceback (most recent call last):
    ValueError: patience: got 1, wanted a factor above 1, such as 4.0.
    """
    number = plain(value)
    if number is None or not bound < number < math.inf:
        raise ValueError(f"{name}: got {value!r}, wanted {wanted}.")
    return number


def at_least(name: str, value: Any, bound: float, wanted: str) -> int | float:
    """The argument `name` as a finite Python number, a bound or above it.

    >>> at_least("until", -1, 0, "a share of a range, 0 or more")
    Traceback (most recent call last):
    ValueError: until: got -1, wanted a share of a range, 0 or more.
    """
    number = plain(value)
    if number is None or not bound <= number < math.inf:
        raise ValueError(f"{name}: got {value!r}, wanted {wanted}.")
    return number


def confidence(value: Any) -> float:
    """A confidence, strictly between 0 and 1.

    >>> confidence(90)
    Traceback (most recent call last):
    ValueError: confidence: got 90, wanted a number between 0 and 1.
    """
    number = plain(value)
    if number is None or not 0 < number < 1:
        raise ValueError(f"confidence: got {value!r}, wanted a number between 0 and 1.")
    return float(number)
