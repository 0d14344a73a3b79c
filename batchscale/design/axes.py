"""Hyperparameters as the design sees them: a log effective learning rate, and perhaps one more."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

import numpy as np

from batchscale.tuner import Choice, Distribution, Integer, SearchSpace

_RATE, _MOMENTUM = "learning_rate", "momentum"
_SPAN = 2.0  # the second hyperparameter goes from -2 to 2 over its range


@dataclasses.dataclass(frozen=True)
class Axes:
    """The search space of one batch size, as axes.

    Attributes:
      space: without functions of batch size; `learning_rate` is searched, and at most one more.
      second: the name of the other that is searched; None if there is none.

    >>> from batchscale.tuner import LogUniform
    >>> axes = Axes.of(SearchSpace(learning_rate=LogUniform(0.01, 1.0), momentum=0.9))
    >>> values = axes.values(0.0, 0.0)
    >>> round(values["learning_rate"], 3), values["momentum"]
    (0.1, 0.9)
    """

    space: SearchSpace
    second: str | None

    @classmethod
    def of(cls, space: SearchSpace) -> Axes:
        """The axes of a space.

        Raises:
          ValueError: it is not of a learning rate and at most one more, on continuous scales.
        """
        searched = {
            name: dimension
            for name, dimension in space.items()
            if isinstance(dimension, Distribution)
        }
        others = [name for name in searched if name != _RATE]
        discrete = [n for n, found in searched.items() if isinstance(found, Choice | Integer)]
        if _RATE not in searched or len(others) > 1 or discrete:
            raise ValueError(
                f"measure: the space searches {', '.join(searched) or 'nothing'}"
                f"{', of which ' + ', '.join(discrete) + ' in steps' if discrete else ''}; wanted "
                "a range of learning_rate, and of at most one more hyperparameter, both "
                "continuous. Fix the others, or search with study.run and study.confirm."
            )
        low, _ = _ends(searched[_RATE])
        if low <= 0:
            raise ValueError(
                f"measure: learning_rate is searched from {low:g}, wanted above 0, for logarithms "
                "are taken; such as LogUniform(1e-3, 10)."
            )
        return cls(space, others[0] if others else None)

    def range(self) -> tuple[float, float]:
        """The ends of the log effective learning rate, in the middle of the other range."""
        low, high = _ends(self.space[_RATE])
        extra = -math.log(1 - self._momentum(0.0))
        return math.log(low) + extra, math.log(high) + extra

    def values(self, rate: float, second: float) -> dict[str, float]:
        """The hyperparameters of a setting.

        Args:
          rate: the log of the effective learning rate.
          second: from -2 to 2.
        """
        found: dict[str, float] = {}
        for name, dimension in self.space.items():
            if name == self.second:
                found[name] = self._other(second)
            elif name == _RATE:
                found[name] = math.exp(rate) * (1 - self._momentum(second))
            else:
                found[name] = float(dimension)  # pyright: ignore[reportArgumentType]
        return found

    def setting(self, values: Mapping[str, float]) -> tuple[float, float]:
        """The log effective learning rate and the second hyperparameter of a trial."""
        rate = math.log(values[_RATE]) - math.log(1 - values.get(_MOMENTUM, 0.0))
        if self.second is None:
            return rate, 0.0
        dimension = self.space[self.second]
        assert isinstance(dimension, Distribution)
        unit = float(dimension.unit(np.array([values[self.second]], np.float64))[0])
        return rate, 2 * _SPAN * unit - _SPAN

    def _other(self, second: float) -> float:
        dimension = self.space[self.second] if self.second is not None else None
        assert isinstance(dimension, Distribution)
        unit = min(max((second + _SPAN) / (2 * _SPAN), 0.0), 1.0)
        return float(dimension.value(np.array([unit], np.float64))[0])

    def _momentum(self, second: float) -> float:
        if self.second == _MOMENTUM:
            return self._other(second)
        fixed = dict(self.space.items()).get(_MOMENTUM, 0.0)
        return float(fixed) if isinstance(fixed, int | float) else 0.0


def _ends(dimension: object) -> tuple[float, float]:
    assert isinstance(dimension, Distribution)
    low, high = dimension.value(np.array([0.0, 1.0])).tolist()
    return low, high
