"""When trials are evaluated and when they stop: the same rules at every batch size."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from fractions import Fraction
from typing import Literal

from batchscale.numeric import plain
from batchscale.records import StopReason

Stop = Literal["first", "all", "budget"] | float
Curves = Literal["bounds", "exact"]


def evaluation_grid(max_steps: int, spacing: float, *, budgets: Iterable[int] = ()) -> list[int]:
    """The steps at which trials are evaluated: 0, 1, then each about `spacing` later.

    After step s comes max(s + 1, ceil((1 + spacing) s)), and always the last step of the budget:
    the resolution is the same share of the steps at every batch size.

    Args:
      max_steps: the budget, in steps.
      spacing: the relative distance of evaluations, for example 0.05.
      budgets: earlier, smaller budgets of the same study, whose last steps were evaluated too.

    >>> evaluation_grid(30, 0.1)
    [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 13, 15, 17, 19, 21, 24, 27, 30]
    """
    growth = 1 + Fraction(str(spacing))  # exact: ceil(1.05 * 60) must be 63 on every machine
    steps = [0]
    following = 1
    while following < max_steps:
        steps.append(following)
        following = max(following + 1, math.ceil(growth * following))
    return sorted({*steps, max_steps, *(budget for budget in budgets if budget < max_steps)})


def part_of_grid(grid: list[int], *, ratio: float, first: int = 0) -> set[int]:
    """The part of the grid about each power of a ratio, from a first step on, and its last step.

    >>> sorted(part_of_grid(evaluation_grid(30, 0.1), ratio=2))
    [0, 1, 2, 4, 8, 17, 30]
    >>> sorted(part_of_grid(evaluation_grid(1000, 0.1), ratio=8, first=64))
    [70, 541, 1000]
    """
    part = {grid[-1], *(step for step in grid if step == 0 == first)}
    mark: float = max(first, 1)
    for step in grid:
        if step >= mark:
            part.add(step)
            while mark <= step:
                mark *= ratio
    return part


def whole_steps(grid: list[int]) -> set[int]:
    """The steps at which the goal's split is evaluated whole, also where bounds would do."""
    return part_of_grid(grid, ratio=8, first=64)


@dataclasses.dataclass(frozen=True)
class StopRule:
    """How long the trials of a batch size are trained.

    Attributes:
      kind: `first`: until the first trial reaches the goal; `all`: each trial until it reaches the
        goal itself; `factor`: all for `factor` times the steps of the first crossing; `budget`: all
        for the whole budget.
      factor: above 1 for `factor`.
    """

    kind: Literal["first", "all", "factor", "budget"]
    factor: float = 1.0

    @classmethod
    def of(cls, stop: Stop) -> StopRule:
        """A rule from how a user writes it.

        >>> StopRule.of("first"), StopRule.of(3.0)
        (StopRule(kind='first', factor=1.0), StopRule(kind='factor', factor=3.0))

        Raises:
          ValueError: it is none of the rules.
        """
        if isinstance(stop, str) and stop in ("first", "all", "budget"):
            return cls(stop)
        number = plain(stop)
        if number is not None and 1 <= number < math.inf:
            return cls("first") if number == 1 else cls("factor", float(number))
        raise ValueError(
            f"stop: got {stop!r}, wanted 'first', 'all', 'budget', or a factor of at least 1: "
            "how many times the steps of the first crossing every trial is trained."
        )

    def covers(self, other: StopRule) -> bool:
        """Whether trials stopped by this rule are trained at least as long as by the other.

        >>> StopRule.of("budget").covers(StopRule.of(3.0)), StopRule.of("all").covers(
        ...     StopRule.of(3.0))
        (True, False)
        """
        if self == other or other.kind == "first" or self.kind == "budget":
            return True
        return self.kind == other.kind == "factor" and self.factor >= other.factor

    @property
    def reason(self) -> StopReason:
        """Why a trial stops where this rule ends it.

        >>> str(StopRule.of("all").reason)
        'own crossing'
        """
        return {
            "first": StopReason.FIRST_CROSSING,
            "all": StopReason.OWN_CROSSING,
            "factor": StopReason.FACTOR,
            "budget": StopReason.BUDGET,
        }[self.kind]

    @property
    def counts_survivors(self) -> bool:
        """Whether steps to target are those of trials that never diverge.

        That is known only where all are trained for their whole budget; by the other rules a
        trial counts up to the step at which it diverges.
        """
        return self.kind == "budget"

    def wants(self, crossing: float, step: int) -> bool:
        """Whether a trial is trained to a step, given its own first crossing (inf for none).

        >>> StopRule.of("all").wants(10, 11), StopRule.of("first").wants(10, 11)
        (False, True)
        """
        return self.kind != "all" or crossing >= step

    def is_satisfied(
        self, step: int, first_crossing: float, crossings: Iterable[float], grid: list[int]
    ) -> bool:
        """Whether a batch size ends at a step at which all of its trials have been measured.

        Args:
          step: of the grid.
          first_crossing: of the batch size by this step; inf for none.
          crossings: of each trial that counts at the step, its own.
          grid: of evaluations.

        >>> StopRule.of(2.0).is_satisfied(20, 10, [10.0], [0, 10, 20, 30])
        True
        """
        if self.kind == "all":
            return not any(self.wants(crossing, step + 1) for crossing in crossings)
        return math.isfinite(first_crossing) and step >= self.horizon(int(first_crossing), grid)

    def horizon(self, first_crossing: int, grid: list[int]) -> int:
        """The step at which a batch size ends whose first crossing is known.

        >>> StopRule.of(3.0).horizon(10, [0, 10, 25, 35, 50])
        35
        """
        if self.kind == "first":
            return first_crossing
        if self.kind == "factor":
            wanted = Fraction(str(self.factor)) * first_crossing
            return next((step for step in grid if step >= wanted), grid[-1])
        return grid[-1]
