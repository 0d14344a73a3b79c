"""VGG-11, the network A of Simonyan and Zisserman (2015)."""

from __future__ import annotations

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from batchscale.models import layers
from batchscale.models.blocks import PooledConvolution


class VGG11(nn.Module):
    """Eight 3x3 convolutions with max pooling, then two dense layers with dropout and the logits.

    Convolutions of 64, 128, 256, 256, 512, 512, 512 and 512 filters, padded to the same size, with
    ReLU; 2x2 max pooling after the first, second, fourth, sixth and eighth. Choices, where the
    account of Shallue et al. (2019) is not known: no batch norm; dropout 0.5 after both dense
    layers, as published; weights are He-normal.

    Args:
      classes: the number of classes.
      filters: of the convolutions, a tuple for each size of image.
      units: of both dense layers.

    >>> import functools, jax
    >>> call = functools.partial(VGG11(1000).init_with_output, train=False)
    >>> jax.eval_shape(call, jax.random.key(0), jnp.zeros((2, 224, 224, 3)))[0].shape
    (2, 1000)
    """

    classes: int
    filters: tuple[tuple[int, ...], ...] = ((64,), (128,), (256, 256), (512, 512), (512, 512))
    units: int = 4096

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch height width channels"],
        *,
        train: bool,
        dropout_rate: float | Float[Array, ""] = 0.5,
    ) -> Float[Array, "batch classes"]:
        """Maps images to logits.

        Args:
          x: the images.
          train: whether dropout is on; if so, the "dropout" randomness is needed.
          dropout_rate: the probability of dropping a unit of the dense layers, in [0, 1).
        """
        dtype, he = jnp.result_type(float), nn.initializers.he_normal()
        number = 0
        for *stage, last in self.filters:
            for filters in stage:
                convolution = nn.Conv(
                    filters,
                    (3, 3),
                    kernel_init=he,
                    param_dtype=dtype,
                    conv_general_dilated=layers.fast_conv_general_dilated,
                    name=f"Conv_{number}",
                )
                x = nn.relu(convolution(x))
                number += 1
            x = PooledConvolution(last, 3, he, name=f"Conv_{number}")(x)
            number += 1
        x = x.reshape(x.shape[0], -1)
        for _ in range(2):
            x = nn.relu(nn.Dense(self.units, kernel_init=he, param_dtype=dtype)(x))
            if train:
                x = layers.dropout(x, dropout_rate, self.make_rng("dropout"))
        return nn.Dense(self.classes, param_dtype=dtype)(x)
