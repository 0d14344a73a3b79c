"""Operands of a custom gradient inside `shard_map`."""

from __future__ import annotations

import jax
from jax import lax
from jaxtyping import Array, Float


def alike(
    lhs: Float[Array, "..."], rhs: Float[Array, "..."]
) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    """Both operands, marked as varying over the devices where either is.

    Inside `shard_map` an operand may be the same on all devices while the other is not. JAX's own
    operations mark both as varying, so that the gradient of the shared one is summed over the
    devices; a `custom_vjp` has to do so itself.

    Args:
      lhs: of a product or a convolution.
      rhs: the other.

    >>> import jax.numpy as jnp
    >>> alike(jnp.ones(2), jnp.zeros(1))[1]
    Array([0.], dtype=float32)
    """
    of_lhs, of_rhs = (jax.typeof(x).manual_axis_type.varying for x in (lhs, rhs))
    return (
        lax.pcast(lhs, tuple(of_rhs - of_lhs), to="varying"),
        lax.pcast(rhs, tuple(of_lhs - of_rhs), to="varying"),
    )
