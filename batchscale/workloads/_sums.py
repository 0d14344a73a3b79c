"""Sums over the examples of a batch."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree


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
    return values.astype(jnp.promote_types(values.dtype, jnp.float32) if floats else float)


def examples_in(batch: PyTree) -> int:
    """The number of examples of a batch or split: the length of its arrays."""
    return len(jax.tree.leaves(batch)[0])
