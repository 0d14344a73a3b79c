"""Sums over the examples of a batch."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree


def total(values: Array) -> Array:
    """A sum that counts booleans in integers."""
    return values.sum(dtype=jnp.int32 if values.dtype == bool else None)


def examples_in(batch: PyTree) -> int:
    """The number of examples of a batch or split: the length of its arrays."""
    return len(jax.tree.leaves(batch)[0])
