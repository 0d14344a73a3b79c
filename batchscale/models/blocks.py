"""A convolution with max pooling, in the order that takes the least work."""

from __future__ import annotations

import jax.numpy as jnp
from flax import linen as nn
from flax.linen.dtypes import promote_dtype
from flax.typing import Initializer
from jaxtyping import Array, Float

from batchscale.models import layers


class PooledConvolution(nn.Module):
    """A convolution of stride 1, a bias, ReLU, and max pooling of 2x2 with stride 2.

    The maximum is taken first: bias and ReLU never lower a larger number below a smaller one, so
    that values are the same, to the bit, for a quarter of the work on them and on their gradients.

    Args:
      filters: the output channels.
      size: the height and width of the kernel, in pixels; the image is padded to stay the same.
      kernel_init: draws the kernel.

    >>> import jax
    >>> call = PooledConvolution(8, 3).init_with_output
    >>> jax.eval_shape(call, jax.random.key(0), jnp.zeros((5, 28, 28, 1)))[0].shape
    (5, 14, 14, 8)
    """

    filters: int
    size: int
    kernel_init: Initializer = nn.initializers.lecun_normal()

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"]
    ) -> Float[Array, "batch half_height half_width filters"]:
        """Maps images to half their height and width.

        Args:
          x: the images.
        """
        dtype = jnp.result_type(float)
        shape = (self.size, self.size, x.shape[-1], self.filters)
        kernel = self.param("kernel", self.kernel_init, shape, dtype)
        bias = self.param("bias", nn.initializers.zeros, (self.filters,), dtype)
        x, kernel, bias = promote_dtype(x, kernel, bias)
        x = layers.fast_conv_general_dilated(
            x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return nn.relu(layers.max_pool(x, (2, 2), (2, 2)) + bias[None, None, None])
