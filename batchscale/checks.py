"""The arguments of a study, checked before anything is compiled."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from fractions import Fraction
from typing import Any, Literal

import jax
import numpy as np
from jaxtyping import PyTree

from batchscale import keys, schedules
from batchscale.metrics import Goal
from batchscale.optimizers import Optimizer
from batchscale.programs import float_type
from batchscale.schedules import Schedule
from batchscale.tuner import SearchSpace
from batchscale.workloads import Workload
from batchscale.workloads.workload import check_sums

PerBatchSize = int | Mapping[int, int] | Callable[[int], int]


def integer(
    name: str, value: Any, smallest: int, largest: int | None = None, *, others: str = ""
) -> int:
    """The argument `name` as a Python integer in a range.

    >>> integer("trials", 0, 1)
    Traceback (most recent call last):
    ValueError: trials: got 0, wanted an integer, 1 or more.
    """
    whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if not (whole and smallest <= int(value) <= (value if largest is None else largest)):
        wanted = f"{smallest} or more" if largest is None else f"{smallest} to {largest:,}"
        raise ValueError(f"{name}: got {value!r}, wanted an integer, {wanted}{others}.")
    return int(value)


def patience(value: float) -> None:
    """Refuses a factor that would end runs before the steps they are compared with.

    >>> patience(1)
    Traceback (most recent call last):
    ValueError: patience: got 1, wanted a factor above 1, such as 4.0.
    """
    if not value > 1:
        raise ValueError(f"patience: got {value!r}, wanted a factor above 1, such as 4.0.")


def increasing(name: str, values: Sequence[Any]) -> list[int]:
    """The argument `name` as Python integers of at least 0, each above the one before.

    >>> increasing("steps", [4, 2])
    Traceback (most recent call last):
    ValueError: steps: got [4, 2], wanted at least one integer, each above the one before.
    """
    numbers = [integer(name, value, 0) for value in values]
    if not numbers or any(b <= a for a, b in itertools.pairwise(numbers)):
        raise ValueError(
            f"{name}: got {list(values)}, wanted at least one integer, each above the one before."
        )
    return numbers


def batch_sizes(
    given: Sequence[int | Literal["full"]], train_examples: int, workload: str
) -> list[int]:
    """The batch sizes as integers, in increasing order.

    >>> batch_sizes(["full", 1, 2], 50, "mine")
    [1, 2, 50]
    """
    sizes = []
    for batch_size in given:
        size = train_examples if batch_size == "full" else batch_size
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
        if not (isinstance(max_epochs, int | float) and 0 < max_epochs < math.inf):
            raise ValueError(f"max_epochs: got {max_epochs!r}, wanted a number above 0.")
        steps: Any = math.ceil(Fraction(str(max_epochs)) * train_examples / batch_size)
    elif callable(max_steps):
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


def names(
    space: SearchSpace, optimizer: Optimizer, schedule: str | Schedule, workload: Workload
) -> None:
    """Checks that every hyperparameter that is needed is in the space, and every one is read."""
    title = schedules.name(schedule)
    needed = dict.fromkeys(schedules.get(schedule)[1], f"schedule {title!r}")
    needed |= dict.fromkeys(optimizer.required, f"optimizer {optimizer.name!r}")
    for name, by in needed.items():
        if name not in space:
            raise ValueError(
                f"space: {by} needs {name!r}, and the space has {', '.join(space)}. "
                f"Add {name}=... to the SearchSpace; a plain number is a fixed value."
            )
    if optimizer.takes_all:

        def make(values: dict[str, Any]) -> int:
            optimizer.transformation(values, None)
            return 0

        # Traced, so that no backend starts.
        jax.eval_shape(make, dict.fromkeys(space, jax.ShapeDtypeStruct((), np.float32)))
    if optimizer.takes_all or callable(schedule) or workload.hyperparameters is None:
        return
    read = {*needed, *optimizer.defaults, *workload.hyperparameters}
    unread = [name for name in space if name not in read]
    if unread:
        raise ValueError(
            f"space: nothing reads {', '.join(map(repr, unread))}; optimizer "
            f"{optimizer.name!r}, schedule {title!r} and workload "
            f"{workload.name!r} read {', '.join(sorted(read))}."
        )


def metric(goal: Goal, workload: Workload, names: Iterable[str]) -> None:
    """Checks that a workload's functions fit its data and the goal; loads its data.

    Args:
      goal: whose metric it should have.
      workload: whose loss and metrics are traced, and not compiled.
      names: the hyperparameters that the loss is given.
    """
    splits = workload.splits()
    # Two examples, so that what is of one shape by chance with one is told apart.
    some = jax.tree.map(lambda x: jax.ShapeDtypeStruct((2, *x.shape[1:]), x.dtype), splits["train"])
    values = dict.fromkeys(names, jax.ShapeDtypeStruct((), float_type()))

    key = keys.shape()
    params, model_state = jax.eval_shape(workload.init, key)

    def trace(what: str, function: Callable[..., PyTree], *arguments: PyTree) -> PyTree:
        try:
            return jax.eval_shape(function, *arguments)
        except KeyError as error:
            fields = params if isinstance(params, Mapping) else ()
            raise ValueError(
                f"workload {workload.name!r}: {error} is looked up in its {what}. The fields of "
                f"its examples are {', '.join(splits['train'])}; those of its parameters "
                f"{', '.join(map(str, fields)) or 'none'}; and the hyperparameters are "
                f"{', '.join(values)}."
            ) from error

    prepared = trace("preprocess", workload.prepare, some, key)
    loss = trace("loss", workload.loss, params, model_state, prepared, key, values)
    prepared = trace("preprocess", lambda batch: workload.prepare(batch, None), some)
    metrics = trace("metrics", workload.metrics, params, model_state, prepared)
    match loss:
        case ((total, count), _) if all(getattr(x, "shape", None) == () for x in (total, count)):
            pass
        case _:
            raise ValueError(
                f"workload {workload.name!r}: its loss returns {loss}, wanted "
                "((sum, count), model_state), where the sum over the batch and the count are "
                "scalars. Workload.from_functions takes a loss that returns one value an example."
            )
    check_sums("loss", loss[0])
    check_sums("metrics", metrics)
    known = [f"{split}/{name}" for split in splits for name in metrics]
    if goal.metric not in known:
        raise ValueError(
            f"goal: workload {workload.name!r} has no metric {goal.metric!r}; "
            f"wanted one of {', '.join(known)}."
        )
