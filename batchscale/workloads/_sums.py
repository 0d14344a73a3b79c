"""Sums over the examples of a batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from batchscale import arrays, numeric


def total(values: Array) -> Array:
    """A sum that counts booleans in integers; of anything else a float, of 32 bits or more."""
    if values.dtype == bool:
        return values.sum(dtype=jnp.int32)
    return wide(values).sum()


def wide(values: Array) -> Array:
    """Values in a float type that sums of them can be taken in.

    >>> wide(jnp.ones(2, jnp.bfloat16)).dtype.name
    'float32'
    """
    floats = jnp.issubdtype(values.dtype, jnp.inexact)
    return values.astype(arrays.wide_type(values.dtype) if floats else float)


def is_sum_and_count(value: Any) -> bool:
    """Whether a value is (sum, count), two scalars.

    >>> is_sum_and_count((jnp.ones(()), 3)), is_sum_and_count(jnp.ones(2))
    (True, False)
    """
    return isinstance(value, tuple) and len(value) == 2 and all(jnp.ndim(x) == 0 for x in value)


def loss_sums(loss: Any, batch: PyTree) -> tuple[Array, Array]:
    """The sum and the count of a loss that is one value an example, their mean, or just these two.

    Raises:
      ValueError: it is none of them.
    """
    count = arrays.examples(batch)
    if is_sum_and_count(loss):
        return wide(jnp.asarray(loss[0])), jnp.asarray(loss[1])
    loss = jax.tree.map(jnp.asarray, loss)
    if not isinstance(loss, jax.Array) or loss.shape not in ((), (count,)):
        shapes = jax.tree.map(jnp.shape, loss)
        one = isinstance(loss, jax.Array)
        got = f"an array of shape {shapes}" if one else f"{shapes} (shapes)"
        raise ValueError(
            f"loss: got {got} for a batch of {count}, wanted ({count},), one value an example, "
            f"their mean, or (sum, count), two scalars. {_PAIRS}"
        )
    if loss.ndim == 0:
        return wide(loss) * count, jnp.asarray(count)
    return total(loss), jnp.asarray(loss.size)


def sums(metric: Any, batch: PyTree, name: str) -> tuple[Array, Array]:
    """The sum and the count of a metric that is one value an example, or just these two.

    Raises:
      ValueError: it is neither.
    """
    if is_sum_and_count(metric):
        return jnp.asarray(metric[0]), jnp.asarray(metric[1])
    metric, count = jax.tree.map(jnp.asarray, metric), arrays.examples(batch)
    if not isinstance(metric, jax.Array):
        raise ValueError(
            f"metric {name!r}: got {jax.tree.map(jnp.shape, metric)} (shapes), wanted ({count},), "
            f"one value an example, or (sum, count). {_SUMS.format(name=name)}"
        )
    if metric.ndim == 0:
        raise ValueError(
            f"metric {name!r}: got one number for a batch of {count}, wanted ({count},), one "
            "value an example, or (sum, count). A split is evaluated in batches, and what is no "
            "mean over examples, such as R^2, is not the mean of its values on batches. "
            f"{_SUMS.format(name=name)}"
        )
    if metric.shape != (count,):
        raise ValueError(
            f"metric {name!r}: got an array of shape {metric.shape} for a batch of {count}, wanted "
            f"({count},), one value an example, or (sum, count). {_PAIRS}"
        )
    return total(metric), jnp.asarray(metric.size)


def finalized(function: Callable[[PyTree], Any], added: PyTree, what: str) -> float:
    """What a function of the user's makes of added sums.

    Args:
      function: on the host.
      added: over a split.
      what: begins a message: whose function it is.

    Raises:
      ValueError: it raises, or returns what is not one real number.

    >>> finalized(lambda s: s["a"] / s["n"], {"a": np.float64(3), "n": np.int64(4)}, "finalize")
    0.75
    >>> finalized(lambda s: None, np.float64(3), "finalize")
    Traceback (most recent call last):
    ValueError: finalize: it returns None, wanted one real number, NaN where there is none.
    """
    given = jax.tree.map(np.shape, added)
    try:
        with np.errstate(invalid="ignore", divide="ignore"):  # as where sums are divided here
            made = function(added)
    except Exception as error:
        words = str(error).strip().splitlines()
        raise ValueError(
            f"{what}: it raises {type(error).__name__}: {words[0] if words else 'nothing more'}. "
            f"It is given the sums over a split, on the host: {given} (shapes); wanted one real "
            "number, NaN where there is none."
        ) from error
    number = numeric.plain(made)
    if number is None:
        shape = getattr(made, "shape", ())
        got = f"an array of shape {shape}" if shape else f"{made!r}"
        raise ValueError(
            f"{what}: it returns {got}, wanted one real number, NaN where there is none."
        )
    return float(number)


_PAIRS = (
    "Labels of shape (N, 1) beside predictions of shape (N,), or the other way round, give every "
    "pair of both: make the shapes the same, with labels[:, 0]. Of several values an example, such "
    "as the tokens of a sequence, return (sum, count) over those that count."
)
_SUMS = (
    "Of a mean over examples, leave the mean out; of anything else, return sums over the batch, "
    "and give finalize={{{name!r}: function of the added sums}}."
)
