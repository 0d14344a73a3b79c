"""A goal: a value that a metric is to get past."""

import bisect
import dataclasses
import math
import re
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool
from numpy.typing import ArrayLike

from batchscale.numeric import integer, plain

Mode = Literal["min", "max"]
BOUNDS = ("_at_least", "_at_most")  # how columns of bounds end


@dataclasses.dataclass(frozen=True)
class Goal:
    """A value that a metric is to get strictly past.

    Counts come as integers from the device, and the metric is their ratio in float64: in
    float32, 150 errors in 5,000 examples would be below 0.03.

    Attributes:
      metric: the column of the measurements, "split/name".
      value: what to get past; reaching it exactly is not enough.
      mode: "min" to get below it, "max" to get above.

    Raises:
      ValueError: a field is not as above.

    >>> goal = Goal("validation/error", 0.03)
    >>> print(goal)
    validation/error < 0.03
    >>> goal.reached([149 / 5000, 150 / 5000, np.float32(150 / 5000), np.nan])
    array([ True, False,  True, False])
    """

    metric: str
    value: float
    mode: Mode = "min"

    def __post_init__(self):
        if not isinstance(self.metric, str) or not re.fullmatch("[^/]+/[^/]+", self.metric):
            raise ValueError(
                'Goal: metric must be "split/name", such as "validation/error"; '
                f"got {self.metric!r}."
            )
        value = plain(self.value)
        if value is None or not math.isfinite(value):
            raise ValueError(f"Goal: value must be a finite number, got {self.value!r}.")
        object.__setattr__(self, "value", float(value))
        check_mode(self.mode, "Goal")

    def __str__(self) -> str:
        return f"{self.metric} {'<' if self.mode == 'min' else '>'} {self.value}"

    def reached(self, values: ArrayLike) -> Bool[np.ndarray, "..."]:
        """Which values are strictly past the goal, in float64; NaN never is."""
        values = np.asarray(values, np.float64)
        past = values < self.value if self.mode == "min" else values > self.value
        return np.asarray(past)  # of one number, too, where NumPy's own would be no array

    def limit(self, count: int) -> int:
        """The count nearest to the goal, of `count` examples, that is not past it.

        With mode "min" the smallest such count, `count` + 1 if there is none; with mode "max" the
        largest, -1 if there is none.

        >>> Goal("validation/error", 0.03).limit(5000)
        150
        >>> Goal("validation/accuracy", 0.97, "max").limit(5000)
        4850
        """
        count = integer("count", count, 1)
        counts = range(count + 1)
        if self.mode == "min":
            return bisect.bisect_left(counts, True, key=lambda n: not self.reached(n / count))
        return bisect.bisect_left(counts, True, key=lambda n: bool(self.reached(n / count))) - 1

    @property
    def split(self) -> str:
        """Where the metric is measured.

        >>> Goal("validation/error", 0.03).split
        'validation'
        """
        return self.metric.partition("/")[0]

    @property
    def name(self) -> str:
        """The metric's name, without its split.

        >>> Goal("validation/error", 0.03).name
        'error'
        """
        return self.metric.partition("/")[2]

    @property
    def bound(self) -> str:
        """The column of the bounds of evaluations that were cut short: no value lies beyond.

        >>> Goal("validation/error", 0.03).bound
        'validation/error_at_least'
        """
        return self.metric + BOUNDS[self.mode == "max"]


def check_goal(name: str, goal: Any) -> None:
    """Refuses an argument `name` that is not a goal.

    >>> check_goal("goal", ("validation/loss", 0.4))
    Traceback (most recent call last):
    TypeError: goal: got ('validation/loss', 0.4), wanted a Goal, such as Goal("validation/error",
    0.03).
    """
    if not isinstance(goal, Goal):
        raise TypeError(
            f'{name}: got {goal!r}, wanted a Goal, such as Goal("validation/error", 0.03).'
        )


def check_mode(mode: str, where: str) -> None:
    """Refuses, in the name of `where`, what is not a `Mode`."""
    if not isinstance(mode, str) or mode not in ("min", "max"):
        raise ValueError(f'{where}: mode must be "min" or "max", got {mode!r}.')
