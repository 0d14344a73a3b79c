"""The search space: what each hyperparameter is drawn from, at every batch size."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from batchscale import columns, given, numeric
from batchscale.tuner.distributions import Distribution, number
from batchscale.tuner.units import ShareOfBudget

Resolved = float | Distribution
"""A fixed value, or what to draw from."""

Dimension = Resolved | ShareOfBudget | Callable[[int], Resolved | ShareOfBudget]
"""A fixed value, a distribution, a share of the budget, or a function of batch size."""


class SearchSpace(Mapping[str, Dimension]):
    """The hyperparameters of a study, each with what its values are drawn from.

    An immutable mapping from name to dimension. The order counts: it is the order of a plan's
    columns and of the quasi-random dimensions, so spaces in another order are not equal.

    Args:
      **dimensions: for each hyperparameter a distribution, a plain number (a fixed value), a
        `ShareOfBudget` (for numbers of steps), or a function of batch size that returns any of
        them, such as `half_life(100, 10_000)`.

    Raises:
      TypeError: a dimension is none of these.
      ValueError: there are no hyperparameters, a fixed value is not finite, or a name is that of
        another column of the result tables.

    >>> from batchscale.tuner import LogUniform
    >>> space = SearchSpace(
    ...     learning_rate=lambda batch_size: LogUniform(1e-3 * batch_size, 1.0), momentum=0.9
    ... )
    >>> space
    SearchSpace(learning_rate=<function of batch size>, momentum=0.9)
    >>> space.at(64)
    SearchSpace(learning_rate=LogUniform(low=0.064, high=1.0), momentum=0.9)
    """

    def __init__(self, /, **dimensions: Dimension):
        if not dimensions:
            raise ValueError(
                "SearchSpace: no hyperparameters. Give at least one, such as "
                "SearchSpace(learning_rate=LogUniform(0.001, 10))."
            )
        columns.check_hyperparameters(dimensions)
        self._dimensions = {
            name: dimension if _of_batch_size(dimension) else _checked(name, dimension)
            for name, dimension in dimensions.items()
        }

    @property
    def names(self) -> tuple[str, ...]:
        """All hyperparameters, in order.

        >>> SearchSpace(learning_rate=0.1, momentum=0.9).names
        ('learning_rate', 'momentum')
        """
        return tuple(self._dimensions)

    @property
    def searched(self) -> tuple[str, ...]:
        """The hyperparameters that are not fixed; a function of batch size counts as searched.

        >>> from batchscale.tuner import LogUniform
        >>> SearchSpace(learning_rate=LogUniform(0.1, 10), momentum=0.9).searched
        ('learning_rate',)
        """
        return tuple(name for name, d in self._dimensions.items() if not isinstance(d, float))

    def at(self, batch_size: int, budget: int | None = None) -> SearchSpace:
        """The space at one batch size, without functions and shares of a budget.

        Args:
          batch_size: examples; what the functions are called with.
          budget: steps; what shares are of. Needed if there are any.

        Raises:
          TypeError: a function returned none of what a dimension may be, or there is no budget.
          ValueError: the batch size or the budget is no whole number, 1 or more.

        >>> SearchSpace(learning_rate=lambda batch_size: batch_size / 256).at(64)
        SearchSpace(learning_rate=0.25)
        """
        size = numeric.plain(batch_size)
        if size is None or not 1 <= size < math.inf or size % 1:
            raise ValueError(
                f"SearchSpace.at: got batch size {batch_size!r}, wanted a whole number, 1 or more."
            )
        if budget is not None:
            budget = numeric.integer("SearchSpace.at: budget", budget, 1)
        dimensions: dict[str, Dimension] = {}
        for name, dimension in self._dimensions.items():
            found = dimension
            if callable(found):
                what = f"{name} at batch size {batch_size}"
                found = _checked(what, _called(what, found, batch_size))
            if isinstance(found, ShareOfBudget):
                if budget is None:
                    raise TypeError(
                        f"SearchSpace: {name} is a share of the budget. Say how many steps that "
                        "is: space.at(batch_size, budget)."
                    )
                found = found.steps(budget)
            dimensions[name] = found
        return SearchSpace(**dimensions)

    def typical(self) -> dict[str, float]:
        """The middle of every dimension.

        Raises:
          TypeError: a dimension is a function of batch size or a share; call `at` first.

        >>> from batchscale.tuner import LogUniform
        >>> SearchSpace(learning_rate=LogUniform(0.1, 10), momentum=0.9).typical()
        {'learning_rate': 1.0, 'momentum': 0.9}
        """
        return {
            name: float(of.value(np.array([0.5]))[0]) if isinstance(of, Distribution) else float(of)  # pyright: ignore[reportArgumentType]
            for name, of in self._dimensions.items()
        }

    def to_json(self) -> list[dict[str, Any]]:
        """A list of plain records in the space's order, for `from_json`.

        Raises:
          ValueError: a dimension is a function of batch size; call `at` first.

        >>> SearchSpace(momentum=0.9).to_json()
        [{'name': 'momentum', 'value': 0.9}]
        """
        records = []
        for name, dimension in self._dimensions.items():
            if isinstance(dimension, Distribution):
                records.append({"name": name, **dimension.to_json()})
            elif isinstance(dimension, float):
                records.append({"name": name, "value": dimension})
            else:
                raise ValueError(
                    f"SearchSpace.to_json: {name} is a function of batch size or a share of the "
                    "budget, which JSON cannot hold. Write space.at(batch_size, budget).to_json() "
                    "for each batch size."
                )
        return records

    @staticmethod
    def from_json(records: Sequence[Mapping[str, Any]]) -> SearchSpace:
        """The space that `to_json` wrote.

        >>> SearchSpace.from_json([{"name": "momentum", "value": 0.9}])
        SearchSpace(momentum=0.9)
        """
        dimensions: dict[str, Dimension] = {}
        for record in records:
            fields = dict(record)
            name = fields.pop("name")
            dimensions[name] = (
                fields["value"] if "value" in fields else Distribution.from_json(fields)
            )
        return SearchSpace(**dimensions)

    def __getitem__(self, name: str) -> Dimension:
        return self._dimensions[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._dimensions)

    def __len__(self) -> int:
        return len(self._dimensions)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, SearchSpace):
            return NotImplemented
        return list(self.items()) == list(other.items())

    def __hash__(self) -> int:
        return hash(tuple(self.items()))

    def __repr__(self) -> str:
        dimensions = (
            f"{name}={'<function of batch size>' if callable(dimension) else repr(dimension)}"
            for name, dimension in self.items()
        )
        return f"SearchSpace({', '.join(dimensions)})"


def _called(what: str, function: Callable[[int], Any], batch_size: int) -> Any:
    """What a function of the user's returns; what it raises is told with what it was given."""
    try:
        return function(batch_size)
    except Exception as error:
        raise ValueError(
            f"SearchSpace: {what}: its function raises {type(error).__name__}: {error}. It is "
            "called with the batch size alone, and returns a number or a distribution."
        ) from error


def _of_batch_size(dimension: object) -> bool:
    """Whether it is a function of batch size; a class of distributions is none."""
    return callable(dimension) and not (
        isinstance(dimension, type) and issubclass(dimension, Distribution | ShareOfBudget)
    )


def _checked(what: str, dimension: object) -> Resolved | ShareOfBudget:
    if isinstance(dimension, Distribution | ShareOfBudget):
        return dimension
    try:
        return number(f"SearchSpace: {what}", dimension)
    except TypeError:
        raise TypeError(
            f"SearchSpace: {what} is {dimension!r}, but must be a number, a distribution (such as "
            "LogUniform(0.001, 10)) or a function of batch size that returns either."
        ) from None


def check_space(space: object) -> None:
    """Refuses an argument `space` that is none.

    >>> check_space({"learning_rate": 0.1})
    Traceback (most recent call last):
    TypeError: space: got {'learning_rate': 0.1}, wanted a SearchSpace, such as
    SearchSpace(learning_rate=LogUniform(0.001, 10)).
    """
    wanted = "a SearchSpace, such as SearchSpace(learning_rate=LogUniform(0.001, 10))"
    given.instance("space", space, SearchSpace, wanted)
