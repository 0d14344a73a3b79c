"""Max pooling with a gradient that is fast on the CPU."""

import functools
import itertools
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from jaxtyping import Array, Float, Int, Num, UInt8

_Sizes = tuple[int, ...]
_Pads = tuple[tuple[int, int], ...]


def max_pool(
    x: Num[Array, "..."],
    window_shape: Sequence[int],
    strides: Sequence[int] | None = None,
    padding: str | Sequence[tuple[int, int]] = "VALID",
) -> Num[Array, "..."]:
    """`flax.linen.max_pool`, with a fast gradient.

    Floats are pooled by a chain of comparisons that notes which place of a window is the first
    maximum, and the gradient goes there: several times faster on the CPU than the gradient of
    `reduce_window`, which is what whole numbers, and windows of more than 255 places, get. Values
    and gradients are Flax's, also at ties: all of the gradient goes to the first of equal maxima,
    in row-major order. A NaN in a window is its maximum; of several, another than Flax's may get
    the gradient.

    The gradient is a `jax.custom_vjp`, so forward-mode differentiation (`jax.jvp`) of the pooling
    itself raises; second derivatives work, forward over reverse and reverse over reverse.

    Args:
      x: "... height width channels", or any other number of spatial dimensions.
      window_shape: the window in pixels, one number a spatial dimension.
      strides: the step of the window in pixels; None is one.
      padding: "SAME", "VALID", or the pixels to add before and after in each spatial dimension.

    Returns:
      The maximum of each window.

    >>> max_pool(jnp.arange(16.0).reshape(1, 4, 4, 1), (2, 2), (2, 2)).ravel()
    Array([ 5.,  7., 13., 15.], dtype=float32)
    """
    window = tuple(window_shape)
    steps = (1,) * len(window) if strides is None else tuple(strides)
    places = functools.reduce(lambda a, b: a * b, window, 1)
    if not jnp.isdtype(x.dtype, "real floating") or not 1 <= places <= 255:
        return nn.max_pool(x, window, steps, padding)  # pyright: ignore[reportArgumentType]
    sizes = x.shape[x.ndim - len(window) - 1 : -1]
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(sizes, window, steps, padding)
    pads = tuple((low, high) for low, high in padding)
    if any(low + n + high < w for n, w, (low, high) in zip(sizes, window, pads, strict=True)):
        return nn.max_pool(x, window, steps, list(pads))  # pyright: ignore[reportArgumentType]
    return _max_pool(x, window, steps, pads)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def _max_pool(
    x: Float[Array, "..."], window: _Sizes, strides: _Sizes, pads: _Pads
) -> Float[Array, "..."]:
    return _first_maxima(x, window, strides, pads)[0]


def _forward(
    x: Float[Array, "..."], window: _Sizes, strides: _Sizes, pads: _Pads
) -> tuple[Float[Array, "..."], tuple[UInt8[Array, "..."], Int[Array, "0 ..."]]]:
    largest, place = _first_maxima(x, window, strides, pads)
    return largest, (place, jnp.zeros((0, *x.shape[x.ndim - len(window) - 1 : -1]), jnp.int8))


def _backward(
    window: _Sizes,
    strides: _Sizes,
    pads: _Pads,
    kept: tuple[UInt8[Array, "..."], Int[Array, "0 ..."]],
    cotangent: Float[Array, "..."],
) -> tuple[Float[Array, "..."]]:
    place, sizes = kept[0], kept[1].shape[1:]
    spread = _side_by_side if strides == window else _overlapping
    gradient = spread(place, cotangent, window, strides)
    # What was padded is cropped, and what no window reached gets zeros.
    reached = gradient.shape[gradient.ndim - len(window) - 1 : -1]
    edges = [
        (-low, low + size - covered, 0)
        for size, covered, (low, _) in zip(sizes, reached, pads, strict=True)
    ]
    none = [(0, 0, 0)]
    batch = gradient.ndim - len(window) - 1
    zero = jnp.zeros((), gradient.dtype)
    return (lax.pad(gradient, zero, none * batch + edges + none),)


_max_pool.defvjp(_forward, _backward)


def _first_maxima(
    x: Float[Array, "..."], window: _Sizes, strides: _Sizes, pads: _Pads
) -> tuple[Float[Array, "..."], UInt8[Array, "..."]]:
    """The maximum of each window, and its place, counted in row-major order."""
    held, place = None, None
    for number, new in enumerate(_shifted(x, window, strides, pads)):
        if held is None or place is None:
            held, place = new, jnp.zeros(new.shape, jnp.uint8)
            continue
        larger = (new > held) | jnp.isnan(new)
        held = jnp.where(larger, new, held)
        place = jnp.where(larger, jnp.uint8(number), place)
    assert held is not None
    assert place is not None
    return held, place


def _shifted(
    x: Float[Array, "..."], window: _Sizes, strides: _Sizes, pads: _Pads
) -> Iterator[Float[Array, "..."]]:
    """The pixels at each place of all windows."""
    batch = x.ndim - len(window) - 1
    edges = [(0, 0, 0)] * batch + [(low, high, 0) for low, high in pads] + [(0, 0, 0)]
    x = lax.pad(x, jnp.array(-jnp.inf, x.dtype), edges)
    sizes = x.shape[batch:-1]
    counts = [(n - w) // s + 1 for n, w, s in zip(sizes, window, strides, strict=True)]
    if strides == window:  # a view, which XLA reads faster than strided slices
        cropped = x[
            (..., *(slice(n * w) for n, w in zip(counts, window, strict=True)), slice(None))
        ]
        split = itertools.chain.from_iterable(zip(counts, window, strict=True))
        x = cropped.reshape(*x.shape[:batch], *split, x.shape[-1])
        for offsets in itertools.product(*map(range, window)):
            yield x[(..., *(i for o in offsets for i in (slice(None), o)), slice(None))]
        return
    for offsets in itertools.product(*map(range, window)):
        pixels = [
            slice(offset, offset + (count - 1) * stride + 1, stride)
            for offset, count, stride in zip(offsets, counts, strides, strict=True)
        ]
        yield x[(..., *pixels, slice(None))]


def _side_by_side(
    place: UInt8[Array, "..."], cotangent: Float[Array, "..."], window: _Sizes, strides: _Sizes
) -> Float[Array, "..."]:
    """The gradient of windows that do not overlap: one comparison a pixel."""
    del strides
    batch = cotangent.ndim - len(window) - 1
    counts = cotangent.shape[batch:-1]
    places = functools.reduce(lambda a, b: a * b, window, 1)
    inside = [n for w in window for n in (1, w)]
    number = jnp.arange(places, dtype=jnp.uint8).reshape((1,) * batch + (*inside, 1))
    wide = (*cotangent.shape[:batch], *(n for c in counts for n in (c, 1)), cotangent.shape[-1])
    chosen = place.reshape(wide) == number
    zero = jnp.zeros((1,) * len(wide), cotangent.dtype)
    spread = jnp.where(chosen, cotangent.reshape(wide), zero)
    sizes = [c * w for c, w in zip(counts, window, strict=True)]
    return spread.reshape(*cotangent.shape[:batch], *sizes, cotangent.shape[-1])


def _overlapping(
    place: UInt8[Array, "..."], cotangent: Float[Array, "..."], window: _Sizes, strides: _Sizes
) -> Float[Array, "..."]:
    """The gradient of windows that overlap, or leave gaps: a sum over the places of a window."""
    batch = cotangent.ndim - len(window) - 1
    zero, none = jnp.zeros((), cotangent.dtype), [(0, 0, 0)]
    parts = []
    for number, offsets in enumerate(itertools.product(*map(range, window))):
        part = jnp.where(place == number, cotangent, jnp.zeros_like(cotangent))
        edges = [
            (offset, width - 1 - offset, stride - 1)
            for offset, width, stride in zip(offsets, window, strides, strict=True)
        ]
        parts.append(lax.pad(part, zero, none * batch + edges + none))
    return functools.reduce(jnp.add, parts)
