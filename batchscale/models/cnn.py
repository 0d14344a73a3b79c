"""The Simple CNN of Shallue et al. (2019), in its three sizes."""

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from batchscale.models import layers
from batchscale.models.blocks import PooledConvolution


class SimpleCNN(nn.Module):
    """Two convolutions with max pooling, one dense layer with dropout, then one logit a class.

    Each convolution is 5x5, stride 1, padded to the same size, with ReLU, and is followed by 2x2
    max pooling with stride 2. Weights are LeCun-normal and biases zero, as in `fc.Perceptron`;
    parameters are float32, or float64 in x64 mode.

    Args:
      filters: the output channels of the two convolutions.
      units: the ReLU units of the dense layer.
      classes: the number of classes.

    >>> import functools, jax
    >>> module = SimpleCNN(filters=(32, 64), units=1024, classes=10)
    >>> images = jnp.zeros((5, 28, 28, 1))
    >>> call = functools.partial(module.init_with_output, train=False)
    >>> jax.eval_shape(call, jax.random.key(0), images)[0].shape
    (5, 10)
    """

    filters: tuple[int, int]
    units: int
    classes: int

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch height width channels"],
        *,
        train: bool,
        dropout_rate: float | Float[Array, ""] = 0.4,
    ) -> Float[Array, "batch classes"]:
        """Maps images to logits.

        Args:
          x: the images.
          train: whether dropout is on; if so, the "dropout" randomness is needed.
          dropout_rate: the probability of dropping a unit of the dense layer, in [0, 1); may be
            a traced value, as tuned hyperparameters are.

        Returns:
          The logits.
        """
        dtype = jnp.result_type(float)
        for number, filters in enumerate(self.filters):
            x = PooledConvolution(filters, 5, name=f"Conv_{number}")(x)
        x = x.reshape(x.shape[0], -1)
        x = nn.relu(nn.Dense(self.units, param_dtype=dtype, dot_general=layers.fast_dot_general)(x))
        if train:
            x = layers.dropout(x, dropout_rate, self.make_rng("dropout"))
        return nn.Dense(self.classes, param_dtype=dtype, dot_general=layers.fast_dot_general)(x)
