"""Distributions that a hyperparameter is drawn from; bounds are of the value itself."""

from __future__ import annotations

import abc
import dataclasses
import decimal
import math
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

import numpy as np
from jaxtyping import Float, Real

from batchscale.numeric import plain


@dataclasses.dataclass(frozen=True)
class Distribution(abc.ABC):
    """A distribution of one hyperparameter: a map between positions in [0, 1] and values.

    Drawing is `value` of uniform (or quasi-random) positions; `unit` is the way back, and says
    where in its range a value lies, on the scale it was drawn on.
    """

    @abc.abstractmethod
    def value(self, unit: Float[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape"]:
        """The values at positions in [0, 1): the inverse of the cumulative distribution."""

    @abc.abstractmethod
    def unit(self, value: Real[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape"]:
        """The positions in [0, 1] of values: 0 and 1 at the bounds and beyond, NaN for NaN."""

    def to_json(self) -> dict[str, Any]:
        """A record of plain numbers and strings, for `from_json`.

        >>> LogUniform(1e-3, 10).to_json()
        {'distribution': 'LogUniform', 'low': 0.001, 'high': 10.0}
        """
        return {"distribution": type(self).__name__, **dataclasses.asdict(self)}

    @staticmethod
    def from_json(record: Mapping[str, Any]) -> Distribution:
        """The distribution that `to_json` wrote.

        Raises:
          ValueError: the record names no distribution of this module.

        >>> Distribution.from_json({"distribution": "Uniform", "low": 0.0, "high": 0.5})
        Uniform(low=0.0, high=0.5)
        """
        fields = dict(record)
        name = fields.pop("distribution", None)
        if name not in _BY_NAME:
            raise ValueError(
                f"Distribution.from_json: {name!r} is not a distribution; "
                f"expected one of {', '.join(_BY_NAME)}."
            )
        return _BY_NAME[name](**fields)


@dataclasses.dataclass(frozen=True)
class _Interval(Distribution):
    """What the continuous distributions share: two finite bounds, the lower one first."""

    low: float
    high: float

    def __post_init__(self):
        kind = type(self).__name__
        low, high = number(f"{kind}: low", self.low), number(f"{kind}: high", self.high)
        _check_order(kind, low, high)
        object.__setattr__(self, "low", low)
        object.__setattr__(self, "high", high)


@dataclasses.dataclass(frozen=True)
class Uniform(_Interval):
    """Uniform between two bounds.

    Args:
      low: the smallest value.
      high: the largest value.

    Raises:
      ValueError: the bounds are equal, reversed or not finite.

    >>> Uniform(0.0, 0.5).value(np.array([0.0, 0.5]))
    array([0.  , 0.25])
    """

    def value(self, unit: Float[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape"]:
        """The values at positions in [0, 1)."""
        unit = _real("unit", unit)
        return np.clip(self.low + unit * (self.high - self.low), self.low, self.high)

    def unit(self, value: Real[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape"]:
        """The positions in [0, 1] of values."""
        value = _real("value", value)
        return (np.clip(value, self.low, self.high) - self.low) / (self.high - self.low)


@dataclasses.dataclass(frozen=True)
class LogUniform(_Interval):
    """The logarithm of the value is uniform: the scale of learning rates.

    Args:
      low: the smallest value, above 0.
      high: the largest value.

    Raises:
      ValueError: the bounds are equal, reversed, not finite or not above 0.

    >>> LogUniform(1e-3, 10).value(np.array([0.0, 0.25, 0.5]))
    array([0.001, 0.01 , 0.1  ])
    """

    def __post_init__(self):
        super().__post_init__()
        if self.low <= 0:
            raise ValueError(
                f"LogUniform: low is {self.low}, but a logarithmic scale needs bounds above 0. "
                "Use a small positive number, or Uniform."
            )

    def value(self, unit: Float[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape"]:
        """The values at positions in [0, 1)."""
        unit = _real("unit", unit)
        return np.clip(_geometric(self.low, self.high, unit), self.low, self.high)

    def unit(self, value: Real[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape"]:
        """The positions in [0, 1] of values."""
        value = _real("value", value)
        return _log_position(self.low, self.high, np.clip(value, self.low, self.high))


@dataclasses.dataclass(frozen=True)
class ReverseLogUniform(_Interval):
    """The logarithm of 1 - value is uniform: the scale of momentum.

    The reverse logarithmic scale of Shallue et al. (2019). The bounds are of the value itself:
    `ReverseLogUniform(0.9, 0.999)` draws 1 - momentum between 0.001 and 0.1.

    Args:
      low: the smallest value.
      high: the largest value, below 1.

    Raises:
      ValueError: the bounds are equal, reversed, not finite or not below 1.

    >>> ReverseLogUniform(0.9, 0.999).value(np.array([0.0, 0.5]))
    array([0.9 , 0.99])
    """

    def __post_init__(self):
        super().__post_init__()
        if self.high >= 1:
            raise ValueError(
                f"ReverseLogUniform: high is {self.high}, but 1 - x is drawn on a logarithmic "
                "scale, which needs bounds below 1. The bounds are of the value itself, such as "
                "ReverseLogUniform(0.9, 0.999)."
            )

    def value(self, unit: Float[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape"]:
        """The values at positions in [0, 1)."""
        unit = _real("unit", unit)
        return np.clip(1 - _geometric(1 - self.low, 1 - self.high, unit), self.low, self.high)

    def unit(self, value: Real[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape"]:
        """The positions in [0, 1] of values."""
        value = _real("value", value)
        inside = np.clip(value, self.low, self.high)
        return _log_position(1 - self.low, 1 - self.high, 1 - inside)


@dataclasses.dataclass(frozen=True)
class Integer(Distribution):
    """Every whole number from `low` to `high`, both included, equally likely.

    Args:
      low: the smallest value.
      high: the largest value.

    Raises:
      ValueError: the bounds are equal, reversed or not whole numbers.

    >>> Integer(1, 4).value(np.array([0.0, 0.3, 0.99]))
    array([1., 2., 4.])
    """

    low: int
    high: int

    def __post_init__(self):
        for name in ("low", "high"):
            bound = number(f"Integer: {name}", getattr(self, name))
            if not bound.is_integer():
                raise ValueError(f"Integer: {name} is {bound}, but must be a whole number.")
            object.__setattr__(self, name, int(bound))
        _check_order("Integer", self.low, self.high)

    def value(self, unit: Float[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape"]:
        """The values at positions in [0, 1); whole numbers held as floats."""
        unit = _real("unit", unit)
        return np.clip(
            self.low + np.floor(unit * (self.high - self.low + 1)), float(self.low), self.high
        )

    def unit(self, value: Real[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape"]:
        """The positions in [0, 1] of values; exactly 0 and 1 for the bounds."""
        value = _real("value", value)
        return (np.clip(value, self.low, self.high) - self.low) / (self.high - self.low)


@dataclasses.dataclass(frozen=True)
class LogHalfLife(_Interval):
    """The logarithm of a moving average's half-life is uniform; the value is what it keeps a step.

    A moving average that keeps m a step has halved after log(1/2) / log(m) steps. The bounds are of
    the value itself; `half_life` makes them of half-lives in examples.

    Args:
      low: the smallest value, above 0.
      high: the largest value, below 1.

    Raises:
      ValueError: the bounds are equal, reversed, or not between 0 and 1.

    >>> LogHalfLife(0.5, 0.5**0.01).value(np.array([0.0, 0.5])).round(4)  # 1, 10 of 100 steps
    array([0.5  , 0.933])
    """

    def __post_init__(self):
        super().__post_init__()
        if self.low <= 0 or self.high >= 1:
            raise ValueError(
                f"LogHalfLife: the bounds are {self.low} and {self.high}, but what a moving "
                "average keeps lies above 0 and below 1. Use Uniform where it may keep nothing."
            )

    def value(self, unit: Float[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape"]:
        """The values at positions in [0, 1)."""
        unit = _real("unit", unit)
        start, end = (-float(_DIGITS.ln(Decimal(bound))) for bound in (self.low, self.high))
        rates = _geometric(start, end, unit)
        kept = np.vectorize(lambda rate: float(_DIGITS.exp(Decimal(-rate))), otypes=[np.float64])
        return np.clip(kept(rates), self.low, self.high)

    def unit(self, value: Real[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape"]:
        """The positions in [0, 1] of values."""
        value = _real("value", value)
        rates = -np.log(np.clip(value, self.low, self.high))
        return _log_position(-math.log(self.low), -math.log(self.high), rates)


@dataclasses.dataclass(frozen=True)
class Choice(Distribution):
    """One of a few numbers, equally likely; their order is kept and means nothing.

    Args:
      values: at least two different finite numbers, as one sequence: `Choice([0, 0.01, 0.1])`.

    Raises:
      TypeError: `values` is not a sequence of numbers.
      ValueError: fewer than two values, a repeated one, or one that is not finite.

    >>> Choice([0, 0.01, 0.1]).value(np.array([0.0, 0.5, 0.9]))
    array([0.  , 0.01, 0.1 ])
    """

    values: Sequence[float]

    def __post_init__(self):
        if isinstance(self.values, str) or not isinstance(self.values, Sequence | np.ndarray):
            raise TypeError(
                f"Choice: values is {self.values!r}, but must be a sequence of numbers, such as "
                "Choice([0, 0.01, 0.1])."
            )
        values = tuple(number(f"Choice: values[{i}]", v) for i, v in enumerate(self.values))
        if len(values) < 2:
            raise ValueError(
                f"Choice: needs at least two values, got {list(values)}. "
                "Give a plain number for a fixed value."
            )
        if len(set(values)) < len(values):
            raise ValueError(f"Choice: a value is listed twice in {list(values)}.")
        object.__setattr__(self, "values", values)

    def value(self, unit: Float[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape"]:
        """The values at positions in [0, 1)."""
        unit = _real("unit", unit)
        last = len(self.values) - 1
        return np.asarray(self.values)[np.clip(unit * (last + 1), 0, last).astype(np.int64)]

    def unit(self, value: Real[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape"]:
        """The positions of values in the list, from 0 to 1; NaN for what is not in the list."""
        equal = np.asarray(value)[..., np.newaxis] == np.asarray(self.values)
        position = equal.argmax(axis=-1) / (len(self.values) - 1)
        return np.where(equal.any(axis=-1), position, np.nan)


_BY_NAME: dict[str, type[Distribution]] = {
    kind.__name__: kind
    for kind in (Uniform, LogUniform, ReverseLogUniform, LogHalfLife, Integer, Choice)
}


def number(where: str, value: object) -> float:
    """`value` as a finite float, or an error that begins with `where`.

    Raises:
      TypeError: it is not a number.
      ValueError: it is not finite.

    >>> number("Uniform: low", 1)
    1.0
    """
    found = plain(value)
    if found is None:
        raise TypeError(f"{where} is {value!r}, but must be a number.")
    if not math.isfinite(found):
        raise ValueError(f"{where} is {float(found)}, but must be finite.")
    return float(found)


def _check_order(kind: str, low: float, high: float) -> None:
    if low > high:
        raise ValueError(
            f"{kind}: low is {low} and high is {high}. "
            f"Give the lower bound first: {kind}({high}, {low})."
        )
    if low == high:
        raise ValueError(
            f"{kind}: low and high are both {low}. Give the plain number {low} for a fixed value."
        )


def _real(name: str, values: Any) -> np.ndarray:
    """Refuses what are no real numbers, in an array."""
    array = np.asarray(values)
    if array.dtype.kind not in "iuf":
        raise TypeError(f"{name}: got {values!r}, wanted real numbers in an array.")
    return array


_DIGITS = decimal.Context(prec=30)


def _geometric(start: float, end: float, unit: np.ndarray) -> np.ndarray:
    """The geometric mean start * (end / start) ** unit, to the nearest float.

    The last bit of the C library's exp depends on the machine; decimal's does not, and so a plan
    has the same bits everywhere.
    """
    log_ratio = _DIGITS.ln(_DIGITS.divide(Decimal(end), Decimal(start)))

    def at(position: float) -> float:
        power = _DIGITS.exp(_DIGITS.multiply(log_ratio, Decimal(position)))
        return float(_DIGITS.multiply(Decimal(start), power))

    return np.vectorize(at, otypes=[np.float64])(unit)


def _log_position(start: float, end: float, value: np.ndarray) -> np.ndarray:
    return np.log(value / start) / np.log(end / start)
