"""The paper's models, by name."""

import functools
import re
from collections.abc import Callable

import jax
from flax import linen as nn
from jaxtyping import Array, PyTree

from batchscale import numeric
from batchscale.given import described
from batchscale.models.cnn import SimpleCNN as SimpleCNN
from batchscale.models.fc import Perceptron as Perceptron
from batchscale.models.lstm import LSTM as LSTM
from batchscale.models.norm import GhostBatchNorm as GhostBatchNorm
from batchscale.models.resnet import ResNet8 as ResNet8
from batchscale.models.resnet import ResNet50 as ResNet50
from batchscale.models.transformer import Transformer as Transformer
from batchscale.models.vgg import VGG11 as VGG11

# Of Shallue et al. (2019), and the tiny ones, which are choices for a laptop.
_IMAGES: dict[str, Callable[[int], nn.Module]] = {
    "simple_cnn_base": functools.partial(SimpleCNN, (32, 64), 1024),
    "simple_cnn_narrow": functools.partial(SimpleCNN, (16, 32), 512),
    "simple_cnn_wide": functools.partial(SimpleCNN, (64, 128), 2048),
    "resnet_8": ResNet8,
    "resnet_50": ResNet50,
    "vgg_11": VGG11,
}
_LANGUAGE: dict[str, Callable[[int], nn.Module]] = {
    "lstm": functools.partial(LSTM, embedding=1024, units=2048, projection=512),
    "lstm_tiny": functools.partial(LSTM, embedding=64, units=128, projection=64),
    "transformer_base": functools.partial(Transformer, layers=6, width=512, heads=8, hidden=2048),
    "transformer_shallow": functools.partial(
        Transformer, layers=2, width=512, heads=8, hidden=2048
    ),
    "transformer_narrow_and_shallow": functools.partial(
        Transformer, layers=2, width=256, heads=4, hidden=1024
    ),
    "transformer_wide": functools.partial(Transformer, layers=6, width=1024, heads=16, hidden=4096),
    "transformer_tiny": functools.partial(Transformer, layers=2, width=64, heads=4, hidden=256),
}


def names() -> tuple[str, ...]:
    """The forms of name that `get` knows.

    Returns:
      The names; `<width>` stands for a positive number of units, once for each hidden layer.

    >>> names()[:4]
    ('fc_<width>[_<width>...]', 'simple_cnn_base', 'simple_cnn_narrow', 'simple_cnn_wide')
    >>> names()[4:9]
    ('resnet_8', 'resnet_50', 'vgg_11', 'lstm', 'lstm_tiny')
    """
    return ("fc_<width>[_<width>...]", *_IMAGES, *_LANGUAGE)


def is_language_model(name: str) -> bool:
    """Whether a model takes tokens, and gives logits for each; the others take images.

    >>> is_language_model("lstm"), is_language_model("fc_64")
    (True, False)
    """
    return name in _LANGUAGE


def get(name: str, classes: int) -> nn.Module:
    """The model of that name, as a Flax module; its parameters come from `module.init`.

    Names and sizes are those of Shallue et al. (2019). Images go in as floats in [0, 1], "batch
    height width channels"; `module.apply(variables, images, train=...)` gives one logit a class.
    Language models take tokens, "batch length", and give one logit a token of the vocabulary, at
    each place by those before it. `lstm_tiny` (embeddings of 64, 128 cells, a projection of 64) and
    `transformer_tiny` (2 layers of width 64, 4 heads, 256 hidden units) are for a laptop.

    Args:
      name: one of the forms in `names()`.
      classes: the number of classes; of a language model the size of its vocabulary.

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
    if name in _IMAGES:
        return _IMAGES[name](classes)
    if name in _LANGUAGE:
        return _LANGUAGE[name](classes)
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
    leaves = jax.tree.leaves(params)
    if not all(hasattr(leaf, "size") for leaf in leaves):
        raise TypeError(f"params: got {described(params)}, wanted arrays, or their shapes.")
    return sum(leaf.size for leaf in leaves)
