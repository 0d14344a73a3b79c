"""The arguments of a study, checked before anything is compiled."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from fractions import Fraction
from typing import Any, Literal

from batchscale import numeric
from batchscale.metrics.goal import check_goal
from batchscale.numeric import integer
from batchscale.tuner import SearchSpace
from batchscale.workloads import Workload, tracing

PerBatchSize = int | Mapping[int, int] | Callable[[int], int]


def kinds(workload: Any, space: Any, goal: Any) -> None:
    """Refuses what is not a workload, a space and a goal.

    >>> kinds(None, None, None)
    Traceback (most recent call last):
    TypeError: workload: got None, wanted a Workload: workloads.get(name), or one of your own.
    """
    if not isinstance(workload, Workload):
        raise TypeError(
            f"workload: got {workload!r}, wanted a Workload: workloads.get(name), or one of your "
            "own."
        )
    if not isinstance(space, SearchSpace):
        raise TypeError(
            f"space: got {space!r}, wanted a SearchSpace, such as "
            "SearchSpace(learning_rate=LogUniform(0.001, 10))."
        )
    check_goal("goal", goal)


def patience(value: float) -> float:
    """A factor that does not end runs before the steps they are compared with.

    >>> patience(1)
    Traceback (most recent call last):
    ValueError: patience: got 1, wanted a factor above 1, such as 4.0.
    """
    return float(numeric.above("patience", value, 1, "a factor above 1, such as 4.0"))


def check_several(batch_sizes: Any) -> None:
    """Refuses what is no list of batch sizes.

    >>> check_several(32)
    Traceback (most recent call last):
    TypeError: batch_sizes: got 32, wanted a list of integers, such as powers_of_two(1, 1024); one
    alone is [32].
    """
    # It is gone through more than once, which a generator does not outlive.
    several = isinstance(batch_sizes, Collection) and not isinstance(batch_sizes, str | Mapping)
    if not several or getattr(batch_sizes, "ndim", 1) != 1:
        alone = batch_sizes if isinstance(batch_sizes, str) else numeric.plain(batch_sizes)
        got = f"a value of type {type(batch_sizes).__name__}" if alone is None else repr(alone)
        raise TypeError(
            f"batch_sizes: got {got}, wanted a list of integers, such as powers_of_two(1, 1024)"
            + ("." if alone is None else f"; one alone is [{alone!r}].")
        )


def batch_sizes(
    given: Sequence[int | Literal["full"]], train_examples: int, workload: str
) -> list[int]:
    """The batch sizes as integers, in increasing order.

    >>> batch_sizes(["full", 1, 2], 50, "mine")
    [1, 2, 50]
    """
    check_several(given)
    sizes = []
    for batch_size in given:
        full = isinstance(batch_size, str) and batch_size == "full"
        size = train_examples if full else batch_size
        size = integer("batch_sizes", size, 1, others=", or 'full'")
        if size > train_examples:
            raise ValueError(
                f"batch_sizes: {size} is larger than the {train_examples:,} training examples of "
                f"{workload!r}. Batches are drawn without replacement; use at most "
                f'{train_examples} ("full").'
            )
        sizes.append(size)
    if not sizes:
        raise ValueError("batch_sizes: got none, wanted at least one.")
    if len(set(sizes)) < len(sizes):
        twice = next(size for size in sizes if sizes.count(size) > 1)
        raise ValueError(f"batch_sizes: {twice} is given twice; wanted each once.")
    return sorted(sizes)


def budget(
    max_steps: PerBatchSize | None,
    max_epochs: float | None,
    *,
    batch_size: int,
    train_examples: int,
) -> int:
    """The budget of a trial in steps.

    >>> budget(None, 1.5, batch_size=10, train_examples=45)
    7
    """
    if max_epochs is not None:
        epochs = numeric.above("max_epochs", max_epochs, 0, "a number above 0")
        steps: Any = math.ceil(Fraction(str(epochs)) * train_examples / batch_size)
    elif callable(max_steps):
        with tracing.told(
            f"max_steps at batch size {batch_size}",
            lookup="",
            remedy="It is called with the batch size alone, and returns a number of steps.",
        ):
            steps = max_steps(batch_size)
    elif isinstance(max_steps, Mapping):
        if batch_size not in max_steps:
            raise ValueError(
                f"max_steps: has no entry for batch size {batch_size}; wanted one for each."
            )
        steps = max_steps[batch_size]
    else:
        steps = max_steps
    return integer(f"max_steps at batch size {batch_size}", steps, 1, 2**31 - 1)


def continued(steps: Mapping[int, float], batch_size: int) -> float:
    """Steps at a batch size that may be none of those known: below them by perfect scaling.

    >>> continued({8: 100, 16: 60}, 4), continued({8: 100, 16: 60}, 32)
    (200.0, 60)
    """
    known = [size for size in steps if size <= batch_size]
    if known:
        return steps[max(known)]
    return steps[min(steps)] * min(steps) / batch_size


def precision(given: Any) -> float:
    """The half width of intervals that is asked for, as a share.

    >>> precision(0.15)
    0.15
    """
    found = numeric.plain(given)
    if found is None or not 0.01 <= found <= 1:
        raise ValueError(
            f"precision: got {given!r}, wanted a share from 0.01 to 1, such as 0.15: the half "
            "width of 90% intervals."
        )
    return float(found)


def price(name: str, given: Any) -> float | None:
    """What may be spent, or None for any.

    >>> price("minutes", 5)
    5.0
    """
    if given is None:
        return None
    return float(numeric.above(name, given, 0, "a number above 0, or None for any"))
