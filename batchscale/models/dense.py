"""Dense layers' products that stay fast with few examples."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from batchscale.models import varying

_FEWEST, _FEW = 3, 8  # examples of which a sum of outer products is the faster gradient
_SOME = 48  # examples up to which large weights are multiplied in blocks
_LARGE = 8_000_000  # bytes of weights: more than a core's cache
_BLOCKS = 16


def fast_dot_general(
    lhs: Float[Array, "..."],
    rhs: Float[Array, "..."],
    dimension_numbers: Any,
    precision: Any = None,
    preferred_element_type: Any = None,
    **options: Any,
) -> Float[Array, "..."]:
    """`jax.lax.dot_general`, without a detour that XLA for the CPU takes with few examples.

    The gradient of a dense layer's weights is a sum of outer products, one an example. Of 3 to 8
    examples XLA makes a matrix product, writes it to memory, and reads it again to update the
    weights; spelled out as a sum, it is computed inside the update. Where weights do not fit the
    cache, that takes up to 30% off the training step. And XLA lays weights out anew for each
    product: with 9 to 48 examples and weights of more than 8 MB, they are multiplied in 16 blocks
    that stay in the cache, in half the time. Sequences of inputs are laid out as rows of one
    matrix, without which XLA copies them for the gradient of the weights. All other products, and
    all platforms but the CPU, get JAX's own. Values and gradients are the same up to rounding.

    The gradients are a `jax.custom_vjp`: see `fast_conv_general_dilated`.

    Args:
      lhs: the inputs, "examples in" or "examples length in" on the fast path.
      rhs: the weights, "in out" on the fast path.
      dimension_numbers: those of a matrix product on the fast path.
      precision: of the product and of its gradients, as JAX takes it.
      preferred_element_type: None on the fast path.
      **options: none on the fast path.

    Returns:
      The product.

    >>> from flax import linen as nn
    >>> layer = nn.Dense(8, dot_general=fast_dot_general)
    >>> layer.init_with_output(jax.random.key(0), jnp.ones((4, 3)))[0].shape
    (4, 8)
    """
    native = functools.partial(
        lax.dot_general,
        dimension_numbers=dimension_numbers,
        precision=precision,
        preferred_element_type=preferred_element_type,
        **options,
    )
    contracted, batched = dimension_numbers
    plain = preferred_element_type is None and all(x is None for x in options.values())
    last_with_first = [tuple(axes) for axes in contracted] == [(lhs.ndim - 1,), (0,)]
    if lhs.ndim > 2 and rhs.ndim == 2 and last_with_first and not any(map(len, batched)) and plain:
        rows = lhs.reshape(math.prod(lhs.shape[:-1]), lhs.shape[-1])
        flat = fast_dot_general(rows, rhs, (((1,), (0,)), ((), ())), precision)
        return flat.reshape(*lhs.shape[:-1], rhs.shape[1])
    if (
        (lhs.ndim, rhs.ndim) != (2, 2)
        or not last_with_first
        or any(map(len, batched))
        or lhs.dtype != rhs.dtype
        or not plain
    ):
        return native(lhs, rhs)
    examples, inputs = lhs.shape
    if rhs.dtype.itemsize < 4:
        return native(lhs, rhs)  # sums of products or of blocks would be rounded to 16 bits
    if _FEWEST <= examples <= _FEW:
        fast = _few_rows
    elif (
        _FEW < examples <= _SOME
        and rhs.size * rhs.dtype.itemsize > _LARGE
        and inputs % _BLOCKS == 0
    ):
        fast = _in_blocks
    else:
        return native(lhs, rhs)
    return lax.platform_dependent(
        *varying.alike(lhs, rhs),
        cpu=lambda lhs, rhs: fast(lhs, rhs, precision),
        default=native,
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _few_rows(
    lhs: Float[Array, "examples in"], rhs: Float[Array, "in out"], precision: Any
) -> Float[Array, "examples out"]:
    return jnp.dot(lhs, rhs, precision=precision)


def _few_rows_forward(
    lhs: Float[Array, "examples in"], rhs: Float[Array, "in out"], precision: Any
) -> tuple[Float[Array, "examples out"], tuple[Array, Array]]:
    return jnp.dot(lhs, rhs, precision=precision), (lhs, rhs)


def _few_rows_backward(
    precision: Any, operands: tuple[Array, Array], cotangent: Float[Array, "examples out"]
) -> tuple[Float[Array, "examples in"], Float[Array, "in out"]]:
    lhs, rhs = operands
    # Without a barrier XLA computes what the operands come from anew for every weight.
    rows, columns = lax.optimization_barrier((lhs, cotangent))
    outer = [row[:, None] * column[None] for row, column in zip(rows, columns, strict=True)]
    lhs_gradient = jnp.dot(cotangent, rhs.T, precision=precision)
    return lhs_gradient, functools.reduce(jnp.add, outer)


_few_rows.defvjp(_few_rows_forward, _few_rows_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _in_blocks(
    lhs: Float[Array, "examples in"], rhs: Float[Array, "in out"], precision: Any
) -> Float[Array, "examples out"]:
    examples, outputs = len(lhs), rhs.shape[1]
    columns = lhs.reshape(examples, _BLOCKS, -1).swapaxes(0, 1)
    rows = rhs.reshape(_BLOCKS, -1, outputs)

    def add(total: Array, block: tuple[Array, Array]) -> tuple[Array, None]:
        return total + jnp.dot(*block, precision=precision), None

    return lax.scan(add, jnp.zeros((examples, outputs), lhs.dtype), (columns, rows))[0]


def _in_blocks_forward(
    lhs: Float[Array, "examples in"], rhs: Float[Array, "in out"], precision: Any
) -> tuple[Float[Array, "examples out"], tuple[Array, Array]]:
    return _in_blocks(lhs, rhs, precision), (lhs, rhs)


def _in_blocks_backward(
    precision: Any, operands: tuple[Array, Array], cotangent: Float[Array, "examples out"]
) -> tuple[Float[Array, "examples in"], Float[Array, "in out"]]:
    lhs, rhs = operands
    lhs_gradient = jnp.dot(cotangent, rhs.T, precision=precision)
    return lhs_gradient, jnp.dot(lhs.T, cotangent, precision=precision)


_in_blocks.defvjp(_in_blocks_forward, _in_blocks_backward)
