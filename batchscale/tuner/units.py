"""Ranges in other units: half-lives in examples, and shares of the budget of steps."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from batchscale.tuner.distributions import (
    Distribution,
    LogHalfLife,
    LogUniform,
    Uniform,
    number,
)

_LEAST = 1e-12  # of what a moving average keeps a step: no more than rounding


def half_life(low: float, high: float | None = None) -> Callable[[int], Distribution | float]:
    """What a moving average keeps a step, so that it halves after so many examples.

    With momentum m a gradient's weight halves after log(1/2) / log(m) steps, which are more
    examples the larger the batch is. `momentum=half_life(100, 10_000)` searches the same range of
    examples at every batch size: m = (1/2)^(batch size / half-life); likewise `b1` and `b2` of
    Adam.

    Args:
      low: the shortest half-life, in examples; the only one, if there is no `high`.
      high: the longest. Half-lives are drawn log-uniformly between the two.

    Returns:
      A function of batch size, for a `SearchSpace`.

    Raises:
      TypeError: a bound is no number.
      ValueError: the bounds are not above 0, finite and in order.

    >>> half_life(640)(64)
    0.9330329915368074
    >>> half_life(64, 640)(64)
    LogHalfLife(low=0.5, high=0.9330329915368074)
    """
    bounds = [number("half_life: low", low)]
    if high is not None:
        bounds.append(number("half_life: high", high))
    if bounds[0] <= 0 or bounds != sorted({*bounds}):
        raise ValueError(
            f"half_life: got {', '.join(f'{bound:g}' for bound in bounds)}, wanted examples above "
            "0, the shorter half-life first; one number for a fixed half-life."
        )

    def kept(batch_size: int) -> Distribution | float:
        kept = [max(0.5 ** (batch_size / bound), _LEAST) for bound in bounds]
        return kept[0] if kept[0] == kept[-1] else LogHalfLife(*kept)

    return kept


@dataclasses.dataclass(frozen=True)
class ShareOfBudget:
    """A number of steps as a share of a trial's budget, `max_steps` at its batch size.

    `warmup_steps=ShareOfBudget(0.05)` warms up for a twentieth of the budget at every batch size.
    The budget is the study's, however early trials stop; and as another budget makes other ranges,
    `extend` with more steps is another study, and refused as such.

    Args:
      of: the share, above 0 and at most 1: a number, `Uniform` or `LogUniform`.

    Raises:
      TypeError: it is none of these.
      ValueError: it does not lie above 0 and at most at 1.

    >>> ShareOfBudget(0.05).steps(2000)
    100.0
    >>> ShareOfBudget(Uniform(0.5, 1)).steps(2000)
    Uniform(low=1000.0, high=2000.0)
    """

    of: float | Uniform | LogUniform

    def __post_init__(self):
        if isinstance(self.of, Uniform | LogUniform):
            low, high = self.of.low, self.of.high
        elif isinstance(self.of, Distribution):
            raise TypeError(
                f"ShareOfBudget: got {self.of!r}, wanted a number, Uniform or LogUniform."
            )
        else:
            low = high = number("ShareOfBudget: the share", self.of)
            object.__setattr__(self, "of", low)
        if not 0 < low <= high <= 1:
            raise ValueError(
                f"ShareOfBudget: got {self.of!r}, wanted shares above 0 and at most 1, as 0.05."
            )

    def steps(self, budget: int) -> Distribution | float:
        """What so many steps are the budget of."""
        if isinstance(self.of, Distribution):
            return dataclasses.replace(
                self.of, low=self.of.low * budget, high=self.of.high * budget
            )
        return self.of * budget
