"""Residual networks: ResNet-8 for small images, ResNet-50 for large ones, pre-activation blocks."""

from __future__ import annotations

import functools

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from batchscale.models import layers
from batchscale.models.norm import GhostBatchNorm

_Images = Float[Array, "batch height width channels"]
_HE = nn.initializers.he_normal()  # a choice, of both


def _convolution(filters: int, size: int, stride: int = 1, *, bias: bool, name: str) -> nn.Conv:
    return nn.Conv(
        filters,
        (size, size),
        (stride, stride),
        use_bias=bias,
        kernel_init=_HE,
        param_dtype=jnp.result_type(float),
        conv_general_dilated=layers.fast_conv_general_dilated,
        name=name,
    )


class ResNet8(nn.Module):
    """The CIFAR network of He et al. (2016, section 4.2) with n = 1, and no normalisation.

    A 3x3 convolution of 16 filters, three blocks of two 3x3 convolutions with 16, 32 and 64
    filters, the mean over all pixels, and one logit a class: eight layers with weights, counted
    without the shortcuts. Shallue et al. (2019) took the batch norm out of it. Choices, where their
    account is not known: activations come before the convolutions (He et al. 2016b); a block that
    changes the shape has a 1x1 convolution for its shortcut; convolutions have biases, which batch
    norm would give; weights are He-normal.

    Args:
      classes: the number of classes.
      filters: of the three blocks, each of which but the first halves the image.

    >>> import functools, jax
    >>> call = functools.partial(ResNet8(10).init_with_output, train=False)
    >>> jax.eval_shape(call, jax.random.key(0), jnp.zeros((2, 32, 32, 3)))[0].shape
    (2, 10)
    """

    classes: int
    filters: tuple[int, ...] = (16, 32, 64)

    @nn.compact
    def __call__(self, x: _Images, *, train: bool = False) -> Float[Array, "batch classes"]:
        """Maps images to logits.

        Args:
          x: the images.
          train: makes no difference; taken so that all models are called alike.
        """
        del train
        x = _convolution(self.filters[0], 3, bias=True, name="stem")(x)
        for block, filters in enumerate(self.filters):
            stride = 1 if block == 0 else 2
            active = nn.relu(x)
            if (stride, x.shape[-1]) != (1, filters):
                x = _convolution(filters, 1, stride, bias=False, name=f"shortcut_{block}")(active)
            active = _convolution(filters, 3, stride, bias=True, name=f"first_{block}")(active)
            x = x + _convolution(filters, 3, bias=True, name=f"second_{block}")(nn.relu(active))
        x = nn.relu(x).mean((1, 2))
        return nn.Dense(self.classes, param_dtype=jnp.result_type(float), name="logits")(x)


class ResNet50(nn.Module):
    """ResNet-50 with pre-activation bottleneck blocks (He et al. 2016b) and ghost batch norm.

    A 7x7 convolution of stride 2, max pooling of 3x3 with stride 2, then 3, 4, 6 and 3 bottlenecks
    of 64, 128, 256 and 512 filters (four times as many out), a last normalisation, the mean over
    all pixels, and one logit a class. Choices: the stride is in the 3x3 convolution of a block;
    weights are He-normal, and no scale begins at zero.

    Args:
      classes: the number of classes.
      ghost_batch_size: the examples that are normalised together; see `GhostBatchNorm`.
      blocks: the bottlenecks of each stage.
      filters: of the first stage; every other has twice those of the one before.

    >>> import functools, jax
    >>> call = functools.partial(ResNet50(1000).init_with_output, train=False)
    >>> jax.eval_shape(call, jax.random.key(0), jnp.zeros((2, 224, 224, 3)))[0].shape
    (2, 1000)
    """

    classes: int
    ghost_batch_size: int = 32
    blocks: tuple[int, ...] = (3, 4, 6, 3)
    filters: int = 64

    @nn.compact
    def __call__(self, x: _Images, *, train: bool) -> Float[Array, "batch classes"]:
        """Maps images to logits.

        Args:
          x: the images.
          train: whether batches are normalised by their own statistics.
        """
        norm = functools.partial(GhostBatchNorm, self.ghost_batch_size)
        convolution = functools.partial(_convolution, bias=False)
        x = convolution(self.filters, 7, 2, name="stem")(x)
        x = layers.max_pool(x, (3, 3), (2, 2), "SAME")
        for stage, blocks in enumerate(self.blocks):
            filters = self.filters * 2**stage
            for block in range(blocks):
                at = f"{stage}_{block}"
                stride = 2 if stage and not block else 1
                active = nn.relu(norm(name=f"norm_{at}_0")(x, train=train))
                if not block:
                    x = convolution(4 * filters, 1, stride, name=f"shortcut_{at}")(active)
                active = convolution(filters, 1, name=f"narrow_{at}")(active)
                active = nn.relu(norm(name=f"norm_{at}_1")(active, train=train))
                active = convolution(filters, 3, stride, name=f"middle_{at}")(active)
                active = nn.relu(norm(name=f"norm_{at}_2")(active, train=train))
                x = x + convolution(4 * filters, 1, name=f"wide_{at}")(active)
        x = nn.relu(norm(name="norm")(x, train=train)).mean((1, 2))
        return nn.Dense(self.classes, param_dtype=jnp.result_type(float), name="logits")(x)
