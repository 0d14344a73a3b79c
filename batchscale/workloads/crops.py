"""Crops of images inside jit: random ones to train with, the central one to evaluate."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Num, PyTree

_AREA = 0.08, 1.0  # of the image
_RATIO = 3 / 4, 4 / 3  # width to height


def central(
    images: Num[Array, "batch height width channels"], size: int
) -> Num[Array, "batch size size channels"]:
    """The middle of each image.

    >>> central(jnp.zeros((2, 256, 256, 3)), 224).shape
    (2, 224, 224, 3)
    """
    top, left = ((side - size) // 2 for side in images.shape[1:3])
    return images[:, top : top + size, left : left + size]


def random_resized(
    images: Num[Array, "batch height width channels"], key: Any, size: int
) -> Float[Array, "batch size size channels"]:
    """A random part of each image, resized, and turned left to right every other time.

    The part has a share of the area that is uniform between 8% and 100%, and a ratio of width to
    height that is log-uniform between 3/4 and 4/3 (Szegedy et al. 2015); what would reach beyond
    the image is cut to it, a choice. It is resized bilinearly, with as wide a kernel as is needed
    to make it smaller. The same key gives the same parts.

    Args:
      images: of equal height and width.
      key: of the batch; each image takes one of its own from it.
      size: pixels of a side of what is returned; static.

    >>> random_resized(jnp.ones((2, 32, 32, 3)), jax.random.key(0), 28).shape
    (2, 28, 28, 3)
    """
    keys = jax.random.split(key, len(images))
    return jax.vmap(functools.partial(_random_part, size=size))(images, keys)


def preprocess(size: int, scale: float) -> Callable[[PyTree, Any], PyTree]:
    """A `Workload.preprocess` of the field `image`: crops of so many pixels, divided by a number.

    Stored images are somewhat larger than crops, and all alike. That training crops are taken from
    what is stored (the middle of an image, its shorter side 256 pixels), and not from the whole
    file, is a choice: all examples then have one shape, and crops are a function of the trial's
    key alone.
    """

    def crop(batch: PyTree, key: Any) -> PyTree:
        images = batch["image"]
        made = central(images, size) if key is None else random_resized(images, key, size)
        return {**batch, "image": made.astype(float) / scale}

    return crop


def _random_part(
    image: Num[Array, "height width channels"], key: Any, *, size: int
) -> Float[Array, "size size channels"]:
    height, width, _ = image.shape
    area, ratio, top, left, turn = jax.random.uniform(key, (5,))
    area = _AREA[0] + (_AREA[1] - _AREA[0]) * area
    low, high = map(math.log, _RATIO)
    ratio = jnp.exp(low + (high - low) * ratio)
    tall = jnp.minimum(jnp.sqrt(area / ratio), 1)
    broad = jnp.minimum(jnp.sqrt(area * ratio), 1)
    rows = _weights(top * (1 - tall) * height, tall * height, height, size)
    columns = _weights(left * (1 - broad) * width, broad * width, width, size)
    columns = jnp.where(turn < 0.5, columns, columns[::-1])
    return jnp.einsum("yh,xw,hwc->yxc", rows, columns, image.astype(rows.dtype))


def _weights(
    start: Float[Array, ""], length: Float[Array, ""], pixels: int, size: int
) -> Float[Array, "size pixels"]:
    """How much of each pixel goes into each of what is resized, along one axis."""
    step = length / size
    centre = start + (jnp.arange(size, dtype=start.dtype) + 0.5) * step - 0.5
    apart = jnp.abs(jnp.arange(pixels, dtype=start.dtype)[None] - centre[:, None])
    weights = jnp.maximum(1 - apart / jnp.maximum(step, 1), 0)
    return weights / weights.sum(1, keepdims=True)
