"""What the metrics of a workload count in a split, where that hangs on the data alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from batchscale import arrays, datasets, keys
from batchscale.metrics import Goal
from batchscale.workloads import Workload
from batchscale.workloads.tracing import Traced

_READ_AT_ONCE = 1024  # examples of a stream


def is_count(workload: Workload, goal: Goal, split: PyTree) -> bool:
    """Whether the goal's metric counts, in integers, of how many examples something is so.

    Of how many must be the same for all trials: that of a precision is of the predictions.
    """
    name = goal.name
    if name in workload.finalize:
        return False
    whole = arrays.like_examples(split, arrays.examples(split))
    given = _state(workload), _prepared(workload, whole)
    shapes = jax.eval_shape(lambda state, batch: workload.metrics(*state, batch), *given)[name]
    if not all(jnp.issubdtype(x.dtype, jnp.integer) and x.shape == () for x in shapes):
        return False
    return not _hangs(lambda state, batch: workload.metrics(*state, batch)[name][1], given, 0)


def of_goal(workload: Workload, goal: Goal, split: PyTree) -> int:
    """Of how many examples of a split, or parts of examples, the goal's metric counts some.

    Raises:
      ValueError: it counts nothing.
    """
    where, name = goal.split, goal.name
    count = int(_counted(workload, [name], split)[name])
    _refuse_nothing(workload, {name: count}, where)
    return count


def refuse_empty(workload: Workload, splits: Mapping[str, PyTree]) -> None:
    """Refuses splits in which a metric counts nothing, because all of it is masked.

    A count that hangs on the parameters (of the examples that are taken for positive) may well be
    nothing for some trial, and one that hangs on shapes alone needs no look.

    Raises:
      ValueError: a count is 0.
    """
    masked = _masked(workload, next(iter(splits.values())))
    for split, data in splits.items():
        if masked:
            _refuse_nothing(workload, _counted(workload, masked, data), split)


def _refuse_nothing(workload: Workload, counts: Mapping[str, Any], split: str) -> None:
    empty = [name for name, count in counts.items() if count == 0]
    if empty:
        raise ValueError(
            f"metrics: {', '.join(map(repr, empty))} of workload {workload.name!r} counts nothing "
            f"in split {split!r}: the count is 0, of sum and count, as if every example were "
            "masked, so that it would be NaN. Look at the mask and the data of this split, or "
            "leave it out with evaluate=Evaluate(splits=[...])."
        )


def _masked(workload: Workload, split: PyTree) -> list[str]:
    """The metrics whose count hangs on the data, and not on the parameters."""
    data = arrays.like_examples(split, 2)
    prepared, state = _prepared(workload, data), _state(workload)
    pairs = [
        name
        for name, value in jax.eval_shape(workload.metrics, *state, prepared).items()
        if name not in workload.finalize and isinstance(value, tuple) and len(value) == 2
    ]

    def counts(state: Any, prepared: PyTree, names: Sequence[str]) -> list[Any]:
        found = workload.metrics(*state, prepared)
        return [found[name][1] for name in names]

    def hangs(on: int, names: Sequence[str]) -> bool:
        return _hangs(lambda s, batch: counts(s, batch, names), (state, prepared), on)

    if not hangs(1, pairs):
        return []
    return [name for name in pairs if hangs(1, [name]) and not hangs(0, [name])]


def _hangs(function: Callable[..., Any], arguments: tuple[Any, ...], on: int) -> bool:
    """Whether what a function returns hangs on one of its arguments: found by tracing alone."""
    return any(jax.tree.leaves(Traced(function, *arguments).reads()[on]))


def _counted(workload: Workload, names: Sequence[str], split: PyTree) -> dict[str, Any]:
    """Counts over a split, computed for nothing else, so that the compiler leaves out the rest."""
    shapes = _state(workload)

    def counts(data: PyTree) -> dict[str, Any]:
        zeros = jax.tree.map(
            lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(keys.raw, shapes)
        )
        state = keys.typed(zeros, shapes)
        found = workload.metrics(*state, workload.prepare(data, None))
        return {name: found[name][1] for name in names}

    counted = jax.jit(counts)
    if not datasets.is_streamed(split):
        return jax.tree.map(np.asarray, counted(split))
    parts = np.array_split(np.arange(size := arrays.examples(split)), -(-size // _READ_AT_ONCE))
    found = [counted(datasets.take(split, part)) for part in parts]
    return {name: sum(np.asarray(part[name]) for part in found) for name in names}


def _state(workload: Workload) -> tuple[PyTree, PyTree]:
    return jax.eval_shape(workload.init, keys.shape())


def _prepared(workload: Workload, data: PyTree) -> PyTree:
    return jax.eval_shape(lambda batch: workload.prepare(batch, None), data)
