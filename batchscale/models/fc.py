"""The fully connected networks FC-a-b-c of Shallue et al. (2019)."""

from collections.abc import Sequence

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from batchscale.models import layers


class Perceptron(nn.Module):
    """A multilayer perceptron: hidden layers of ReLU units, then one logit a class.

    Weights are LeCun-normal and biases zero, Flax's defaults: a normal distribution truncated at
    two standard deviations, of variance 1/fan-in after the truncation. Parameters are float32, or
    float64 in x64 mode.

    Args:
      widths: the units of each hidden layer.
      classes: the number of classes.

    >>> import jax
    >>> module = Perceptron(widths=(128, 128, 128), classes=10)
    >>> images = jnp.zeros((5, 28, 28, 1))
    >>> jax.eval_shape(lambda: module.init_with_output(jax.random.key(0), images))[0].shape
    (5, 10)
    """

    widths: Sequence[int]
    classes: int

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch ..."], *, train: bool = False
    ) -> Float[Array, "batch classes"]:
        """Maps examples to logits.

        Args:
          x: the examples, flattened here.
          train: makes no difference; taken so that all models are called alike.

        Returns:
          The logits.
        """
        del train
        dtype = jnp.result_type(float)
        x = x.reshape(x.shape[0], -1)
        for width in self.widths:
            x = nn.relu(nn.Dense(width, param_dtype=dtype, dot_general=layers.fast_dot_general)(x))
        return nn.Dense(self.classes, param_dtype=dtype, dot_general=layers.fast_dot_general)(x)
