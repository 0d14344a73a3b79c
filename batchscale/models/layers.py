"""Layers' operations that stay fast inside training loops and under `vmap`."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from batchscale.models.convolution import fast_conv_general_dilated as fast_conv_general_dilated
from batchscale.models.dense import fast_dot_general as fast_dot_general
from batchscale.models.pooling import max_pool as max_pool


def dropout(
    x: Float[Array, "..."], rate: float | Float[Array, ""], key: Key[Array, ""]
) -> Float[Array, "..."]:
    """Zeroes each element with probability `rate`, and divides the others by `1 - rate`.

    Dropout (Srivastava et al. 2014) in its inverted form: the mean is kept in training, so that
    evaluation needs no scaling. Unlike `flax.linen.Dropout`, the rate may be a traced value.

    Args:
      x: any shape.
      rate: the probability of a zero, in [0, 1).
      key: the randomness.

    Returns:
      An array like `x`.

    >>> sorted(set(dropout(jnp.ones(100), 0.5, jax.random.key(0)).tolist()))
    [0.0, 2.0]
    """
    kept = 1 - jnp.asarray(rate, jnp.result_type(float))
    keep = jax.random.bernoulli(key, kept, x.shape)
    return x * jnp.where(keep, 1 / kept, 0).astype(x.dtype)
