"""Sums over the examples of a batch."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree


def total(values: Array) -> Array:
    """A sum that counts booleans in integers; of anything else, a float."""
    if values.dtype == bool:
        return values.sum(dtype=jnp.int32)
    return values.sum(dtype=values.dtype if jnp.issubdtype(values.dtype, jnp.inexact) else float)


def examples_in(batch: PyTree) -> int:
    """The number of examples of a batch or split: the length of its arrays."""
    return len(jax.tree.leaves(batch)[0])
