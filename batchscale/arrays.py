"""What all arrays here have in common: the type of floats, and examples along axis 0."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree


def float_type() -> np.dtype:
    """JAX's default type of floats.

    >>> float_type().name
    'float32'
    """
    return jax.dtypes.canonicalize_dtype(float)


def wide_type(dtype: Any) -> Any:
    """The type in which floats of a type are summed: of 32 bits or more.

    >>> wide_type(jnp.bfloat16).name
    'float32'
    """
    # Not by promotion, which a user may have switched off.
    return jnp.dtype(dtype) if jnp.finfo(dtype).bits >= 32 else jnp.dtype(jnp.float32)


def keeps_kind(found: Any, begun: Any) -> bool:
    """Whether a value of a type can be kept in that in which it began: no float in an integer.

    >>> keeps_kind(jnp.bfloat16, jnp.float32), keeps_kind(jnp.float32, jnp.int32)
    (True, False)
    """
    kinds = jnp.bool_, jnp.integer, jnp.inexact
    found, begun = (
        max(place for place, kind in enumerate(kinds) if jnp.issubdtype(dtype, kind))
        for dtype in (found, begun)
    )
    return found <= begun


def examples(split: PyTree) -> int:
    """How many examples a split or a batch has, from its shapes.

    >>> examples({"input": np.zeros((5, 2)), "label": np.zeros(5)})
    5
    """
    return jax.tree.leaves(split)[0].shape[0]


def like_examples(split: PyTree, count: int) -> PyTree:
    """The shapes of so many examples of a split.

    >>> like_examples({"input": np.zeros((5, 2), np.uint8)}, 3)["input"]
    ShapeDtypeStruct(shape=(3, 2), dtype=uint8)
    """
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct((count, *x.shape[1:]), x.dtype), split)


def elements(split: PyTree) -> int:
    """How much there is to predict in an example: the size of its smallest field, at least 1.

    Of an image with a label it is 1; of a sequence, as many as it is long.

    >>> elements({"input": np.zeros((5, 28, 28)), "label": np.zeros(5)})
    1
    >>> elements({"tokens": np.zeros((5, 64))})
    64
    """
    return max(min(math.prod(x.shape[1:]) for x in jax.tree.leaves(split)), 1)


def nbytes(tree: PyTree) -> int:
    """The bytes of all arrays of a tree, from their shapes.

    >>> nbytes({"input": np.zeros((5, 2), np.uint8), "label": jax.ShapeDtypeStruct((5,), np.int32)})
    30
    """
    return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(tree))
