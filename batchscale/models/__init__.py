"""The paper's models, by name."""

import re

import jax
from flax import linen as nn
from jaxtyping import Array, PyTree

from batchscale import numeric
from batchscale.models.cnn import SimpleCNN as SimpleCNN
from batchscale.models.fc import Perceptron as Perceptron

_SIMPLE_CNN = {
    "simple_cnn_base": {"filters": (32, 64), "units": 1024},
    "simple_cnn_narrow": {"filters": (16, 32), "units": 512},
    "simple_cnn_wide": {"filters": (64, 128), "units": 2048},
}


def names() -> tuple[str, ...]:
    """The forms of name that `get` knows.

    Returns:
      The names; `<width>` stands for a positive number of units, once for each hidden layer.

    >>> names()
    ('fc_<width>[_<width>...]', 'simple_cnn_base', 'simple_cnn_narrow', 'simple_cnn_wide')
    """
    return ("fc_<width>[_<width>...]", *_SIMPLE_CNN)


def get(name: str, classes: int) -> nn.Module:
    """The model of that name, as a Flax module; its parameters come from `module.init`.

    Names and sizes are those of Shallue et al. (2019). Images go in as floats in [0, 1], "batch
    height width channels"; `module.apply(variables, images, train=...)` gives one logit a class.

    Args:
      name: one of the forms in `names()`.
      classes: the number of classes.

    Returns:
      The module.

    Raises:
      ValueError: no model has that name, or there are fewer than two classes.

    >>> get("fc_128_128_128", classes=10).widths
    (128, 128, 128)
    """
    classes = numeric.integer("classes", classes, 2)
    if not isinstance(name, str):
        name = repr(name)
    if re.fullmatch(r"fc(_[1-9][0-9]*)+", name):
        return Perceptron(tuple(int(width) for width in name.split("_")[1:]), classes)
    if name in _SIMPLE_CNN:
        return SimpleCNN(**_SIMPLE_CNN[name], classes=classes)
    raise ValueError(
        f"name: {name!r} is not a model. Use one of {', '.join(names())}, "
        'such as "fc_128_128_128"; widths are positive whole numbers.'
    )


def parameter_count(params: PyTree[Array]) -> int:
    """The number of parameters, over all arrays.

    Args:
      params: arrays, or their shapes from `jax.eval_shape`.

    Returns:
      The count.

    >>> import jax.numpy as jnp
    >>> parameter_count({"kernel": jnp.zeros((784, 10)), "bias": jnp.zeros(10)})
    7850
    """
    return sum(leaf.size for leaf in jax.tree.leaves(params))
