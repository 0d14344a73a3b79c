"""Random keys: typed, of one implementation whatever JAX's default is, and as plain numbers.

Keys that a model or an optimizer keeps in its state are typed wherever its functions run. On the
way to the host and back, where states are gathered and stored as arrays, they are their key data.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree, UInt32

LARGEST = 2**32 - 1  # of the integers that keys are made of, and folded into keys
_IMPLEMENTATION = "threefry2x32"  # the same bits on every machine, alone and vmapped


def key(seed: Any) -> Any:
    """A typed key from an integer.

    >>> jax.random.key_impl(key(0))
    'threefry2x32'
    """
    return jax.random.key(seed, impl=_IMPLEMENTATION)


def wrap(data: UInt32[Array, " 2"]) -> Any:
    """The typed key whose data these two words are; `jax.random.key_data` gives them again."""
    return jax.random.wrap_key_data(data, impl=_IMPLEMENTATION)


def shape() -> Any:
    """The shape and type of a key, for tracing; starts no backend."""
    return jax.eval_shape(lambda: key(0))


def is_key(leaf: Any) -> bool:
    """Whether an array, or a shape, is one of typed keys.

    >>> is_key(key(0)), is_key(jnp.zeros(2, jnp.uint32))
    (True, False)
    """
    return jnp.issubdtype(getattr(leaf, "dtype", float), jax.dtypes.prng_key)


def raw(tree: PyTree) -> PyTree:
    """The tree with the data of its keys in their place.

    >>> raw({"key": key(0), "mean": 1.0})["key"].dtype.name
    'uint32'
    """
    return jax.tree.map(lambda x: jax.random.key_data(x) if is_key(x) else x, tree)


def typed(tree: PyTree, like: PyTree) -> PyTree:
    """What `raw` made a tree of, again.

    Args:
      tree: from `raw`.
      like: the tree, or its shapes.

    >>> state = {"key": key(3), "mean": 1.0}
    >>> bool(typed(raw(state), state)["key"] == state["key"])
    True
    """

    def of(x: Any, like: Any) -> Any:
        if not is_key(like):
            return x
        return jax.random.wrap_key_data(jnp.asarray(x), impl=_implementation(like))

    return jax.tree.map(of, tree, like)


def mixed(tree: PyTree, by: Any) -> PyTree:
    """The tree with its keys changed by another key, each of them in a way of its own.

    >>> state = {"key": key(0)}
    >>> bool(mixed(state, key(1))["key"] == mixed(state, key(2))["key"])
    False
    """
    leaves, structure = jax.tree.flatten(tree)
    for number, leaf in enumerate(leaves):
        if is_key(leaf):
            data = jax.random.key_data(leaf)
            # Any words are a key; so are those of a key, exchanged by random bits.
            data ^= jax.random.bits(jax.random.fold_in(by, number), data.shape, data.dtype)
            leaves[number] = jax.random.wrap_key_data(data, impl=_implementation(leaf))
    return jax.tree.unflatten(structure, leaves)


def _implementation(like: Any) -> Any:
    """Of keys, or of their shape: JAX tells it of arrays alone."""
    found = []
    jax.eval_shape(
        lambda x: found.append(jax.random.key_impl(x)),
        jax.ShapeDtypeStruct(like.shape, like.dtype),
    )
    return found[0]
