"""Layers' operations that stay fast inside training loops and under `vmap`."""

import functools
import itertools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from jaxtyping import Array, Float, Key, Num

_Pads = tuple[tuple[int, int], ...]
# Batch, height, width and channels: other ones in and out, so that they have no names.
_Images = Float[Array, "_ _ _ _"]
_Kernel = Float[Array, "height width inputs outputs"]

_FEWEST, _FEW = 3, 8  # examples of which a sum of outer products is the faster gradient

_NHWC = ("NHWC", "HWIO", "NHWC")


def fast_conv_general_dilated(
    lhs: Float[Array, "..."],
    rhs: Float[Array, "..."],
    window_strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    lhs_dilation: Sequence[int] | None = None,
    rhs_dilation: Sequence[int] | None = None,
    dimension_numbers: Any = None,
    feature_group_count: int = 1,
    batch_group_count: int = 1,
    precision: Any = None,
    preferred_element_type: Any = None,
) -> Float[Array, "..."]:
    """`jax.lax.conv_general_dilated`, without its two slow paths on the CPU.

    XLA for the CPU is 10 to 30 times slower at the gradients of a convolution inside a loop
    (`scan`, `fori_loop`, `map`) than outside, and it turns a `vmap` over kernels into a grouped
    convolution, which is slow as well. Here a two-dimensional convolution of one group, without
    dilation and in the NHWC/HWIO layout, has gradients that are plain convolutions themselves,
    and under a `vmap` over kernels its lanes run one after another: the fast path. All other
    convolutions, and all platforms but the CPU, get JAX's own. Values and gradients are the same
    everywhere.

    The gradients are a `jax.custom_vjp`, so forward-mode differentiation (`jax.jvp`, `jax.jacfwd`)
    of the convolution itself raises. Second derivatives work, forward over reverse
    (`jax.jvp(jax.grad(f), ...)`, `jax.hessian`) and reverse over reverse; what they add to the
    gradient runs at JAX's own speed.

    Args:
      lhs: the images, "batch height width in_channels" on the fast path.
      rhs: the kernel, "height width in_channels out_channels" on the fast path.
      window_strides: the step of the kernel in each spatial dimension, in pixels.
      padding: "SAME", "VALID", or the pixels to add (below zero: to crop) before and after in
        each spatial dimension.
      lhs_dilation: None or ones on the fast path.
      rhs_dilation: None or ones on the fast path.
      dimension_numbers: NHWC/HWIO/NHWC on the fast path; otherwise as JAX takes them.
      feature_group_count: 1 on the fast path.
      batch_group_count: 1 on the fast path.
      precision: of the convolution and of its gradients, as JAX takes it.
      preferred_element_type: None on the fast path.

    Returns:
      The convolution.

    >>> from flax import linen as nn
    >>> layer = nn.Conv(8, (5, 5), conv_general_dilated=fast_conv_general_dilated)
    >>> layer.init_with_output(jax.random.key(0), jnp.ones((2, 28, 28, 1)))[0].shape
    (2, 28, 28, 8)
    """
    native = functools.partial(
        lax.conv_general_dilated,
        window_strides=window_strides,
        padding=padding,
        lhs_dilation=lhs_dilation,
        rhs_dilation=rhs_dilation,
        dimension_numbers=dimension_numbers,
        feature_group_count=feature_group_count,
        batch_group_count=batch_group_count,
        precision=precision,
        preferred_element_type=preferred_element_type,
    )
    layout = lax.conv_dimension_numbers(lhs.shape, rhs.shape, dimension_numbers)
    if (
        lhs.ndim != 4
        or layout != lax.conv_dimension_numbers(lhs.shape, rhs.shape, _NHWC)
        or {*(lhs_dilation or ()), *(rhs_dilation or ())} - {1}
        or (feature_group_count, batch_group_count) != (1, 1)
        or preferred_element_type is not None
        or 0 in jax.eval_shape(native, lhs, rhs).shape
    ):
        return native(lhs, rhs)

    strides = tuple(window_strides)
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(lhs.shape[1:3], rhs.shape[:2], strides, padding)
    pads = tuple((low, high) for low, high in padding)
    return lax.platform_dependent(
        *_varying_alike(lhs, rhs),
        cpu=lambda lhs, rhs: _convolution(lhs, rhs, strides, pads, precision),
        default=native,
    )


def _varying_alike(
    lhs: Float[Array, "..."], rhs: Float[Array, "..."]
) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    # Inside shard_map an operand may be the same on all devices while the other is not. JAX's own
    # operations mark both as varying, so that the gradient of the shared one is summed over the
    # devices; a custom_vjp has to do so itself.
    of_lhs, of_rhs = (jax.typeof(x).manual_axis_type.varying for x in (lhs, rhs))
    return (
        lax.pcast(lhs, tuple(of_rhs - of_lhs), to="varying"),
        lax.pcast(rhs, tuple(of_lhs - of_rhs), to="varying"),
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _convolution(
    lhs: _Images, rhs: _Kernel, strides: tuple[int, ...], pads: _Pads, precision: Any
) -> _Images:
    return _convolve(lhs, rhs, strides, pads, precision)


def _forward(
    lhs: _Images, rhs: _Kernel, strides: tuple[int, ...], pads: _Pads, precision: Any
) -> tuple[_Images, tuple[_Images, _Kernel]]:
    return _convolve(lhs, rhs, strides, pads, precision), (lhs, rhs)


def _backward(
    strides: tuple[int, ...],
    pads: _Pads,
    precision: Any,
    operands: tuple[_Images, _Kernel],
    cotangent: _Images,
) -> tuple[_Images, _Kernel]:
    lhs, rhs = operands
    spatial = list(
        zip(lhs.shape[1:3], rhs.shape[:2], cotangent.shape[1:3], strides, pads, strict=True)
    )
    # The pixels that the strides skipped are zeros in the cotangent of the stride-1 convolution.
    gaps = [
        (0, low + size + high - kernel - (out - 1) * stride, stride - 1)
        for size, kernel, out, stride, (low, high) in spatial
    ]
    zero = jnp.zeros((), cotangent.dtype)
    cotangent = lax.pad(cotangent, zero, [(0, 0, 0), *gaps, (0, 0, 0)])
    # Each image pixel meets the kernel in reverse; padding beyond kernel - 1 becomes a crop.
    complement = tuple(
        (kernel - 1 - low, kernel - 1 - high) for _, kernel, _, _, (low, high) in spatial
    )
    reverse = lax.rev(rhs, (0, 1)).swapaxes(2, 3)
    lhs_gradient = _convolve(cotangent, reverse, (1, 1), complement, precision)
    # The kernel's gradient slides the cotangent over the images, summed over the batch: channels
    # play batch, and batch plays channels.
    rhs_gradient = _convolve(
        lhs.transpose(3, 1, 2, 0), cotangent.transpose(1, 2, 0, 3), (1, 1), pads, precision
    )
    return lhs_gradient, rhs_gradient.transpose(1, 2, 0, 3)


_convolution.defvjp(_forward, _backward)


@functools.partial(jax.custom_jvp, nondiff_argnums=(2, 3, 4))
def _convolve(
    lhs: _Images, rhs: _Kernel, strides: tuple[int, ...], pads: _Pads, precision: Any
) -> _Images:
    @jax.custom_batching.custom_vmap
    def one_lane(lhs: _Images, rhs: _Kernel) -> _Images:
        return _native(lhs, rhs, strides, pads, precision)

    @one_lane.def_vmap
    def lanes(count: int, batched: list[bool], lhs: Array, rhs: Array) -> tuple[Array, bool]:
        lhs_batched, rhs_batched = batched
        if lhs_batched and rhs_batched:
            return lax.map(lambda operands: one_lane(*operands), (lhs, rhs)), True
        if rhs_batched:
            return lax.map(lambda kernel: one_lane(lhs, kernel), rhs), True
        out = one_lane(lhs.reshape(-1, *lhs.shape[2:]), rhs)
        return out.reshape(count, -1, *out.shape[1:]), True

    return one_lane(lhs, rhs)


@_convolve.defjvp
def _second_derivatives(
    strides: tuple[int, ...],
    pads: _Pads,
    precision: Any,
    primals: tuple[_Images, _Kernel],
    tangents: tuple[_Images, _Kernel],
) -> tuple[_Images, _Images]:
    # JAX cannot transpose a custom_vmap, so the tangents are its own convolutions.
    (lhs, rhs), (lhs_tangent, rhs_tangent) = primals, tangents
    tangent = _native(lhs_tangent, rhs, strides, pads, precision)
    tangent += _native(lhs, rhs_tangent, strides, pads, precision)
    return _convolve(lhs, rhs, strides, pads, precision), tangent


def _native(
    lhs: _Images, rhs: _Kernel, strides: tuple[int, ...], pads: _Pads, precision: Any
) -> _Images:
    return lax.conv_general_dilated(
        lhs, rhs, strides, pads, dimension_numbers=_NHWC, precision=precision
    )


def fast_dot_general(
    lhs: Float[Array, "..."],
    rhs: Float[Array, "..."],
    dimension_numbers: Any,
    precision: Any = None,
    preferred_element_type: Any = None,
    **options: Any,
) -> Float[Array, "..."]:
    """`jax.lax.dot_general`, without a detour that XLA for the CPU takes with few examples.

    The gradient of a dense layer's weights is a sum of outer products, one an example. Of 3 to 8
    examples XLA makes a matrix product, writes it to memory, and reads it again to update the
    weights; spelled out as a sum, it is computed inside the update. Where weights do not fit the
    cache, that takes up to 30% off the training step. All other products, and all platforms but
    the CPU, get JAX's own. Values are the same everywhere, gradients up to rounding.

    The gradients are a `jax.custom_vjp`: see `fast_conv_general_dilated`.

    Args:
      lhs: the inputs, "examples in" on the fast path.
      rhs: the weights, "in out" on the fast path.
      dimension_numbers: those of a matrix product on the fast path.
      precision: of the product and of its gradients, as JAX takes it.
      preferred_element_type: None on the fast path.
      **options: none on the fast path.

    Returns:
      The product.

    >>> from flax import linen as nn
    >>> layer = nn.Dense(8, dot_general=fast_dot_general)
    >>> layer.init_with_output(jax.random.key(0), jnp.ones((4, 3)))[0].shape
    (4, 8)
    """
    native = functools.partial(
        lax.dot_general,
        dimension_numbers=dimension_numbers,
        precision=precision,
        preferred_element_type=preferred_element_type,
        **options,
    )
    contracted, batched = dimension_numbers
    if (
        (lhs.ndim, rhs.ndim) != (2, 2)
        or [tuple(axes) for axes in contracted] != [(1,), (0,)]
        or any(map(len, batched))
        or lhs.dtype != rhs.dtype
        or preferred_element_type is not None
        or any(option is not None for option in options.values())
        or not _FEWEST <= lhs.shape[0] <= _FEW
    ):
        return native(lhs, rhs)
    return lax.platform_dependent(
        *_varying_alike(lhs, rhs),
        cpu=lambda lhs, rhs: _few_rows(lhs, rhs, precision),
        default=native,
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _few_rows(
    lhs: Float[Array, "examples in"], rhs: Float[Array, "in out"], precision: Any
) -> Float[Array, "examples out"]:
    return jnp.dot(lhs, rhs, precision=precision)


def _few_rows_forward(
    lhs: Float[Array, "examples in"], rhs: Float[Array, "in out"], precision: Any
) -> tuple[Float[Array, "examples out"], tuple[Array, Array]]:
    return jnp.dot(lhs, rhs, precision=precision), (lhs, rhs)


def _few_rows_backward(
    precision: Any, operands: tuple[Array, Array], cotangent: Float[Array, "examples out"]
) -> tuple[Float[Array, "examples in"], Float[Array, "in out"]]:
    lhs, rhs = operands
    # Without a barrier XLA computes what the operands come from anew for every weight.
    rows, columns = lax.optimization_barrier((lhs, cotangent))
    outer = [row[:, None] * column[None] for row, column in zip(rows, columns, strict=True)]
    lhs_gradient = jnp.dot(cotangent, rhs.T, precision=precision)
    return lhs_gradient, functools.reduce(jnp.add, outer)


_few_rows.defvjp(_few_rows_forward, _few_rows_backward)


def max_pool(
    x: Num[Array, "..."],
    window_shape: Sequence[int],
    strides: Sequence[int] | None = None,
    padding: str | Sequence[tuple[int, int]] = "VALID",
) -> Num[Array, "..."]:
    """`flax.linen.max_pool`, with a fast gradient where windows do not overlap.

    Where floats are pooled with strides equal to the window, this is a chain of comparisons,
    whose gradient is several times faster on the CPU than that of `reduce_window`; elsewhere it is
    Flax's own. Values and gradients are Flax's, also at ties: all of the gradient goes to the
    first of equal maxima, in row-major order. A NaN in a window is its maximum.

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
    if not jnp.isdtype(x.dtype, "real floating") or strides is None or tuple(strides) != window:
        steps = None if strides is None else tuple(strides)
        return nn.max_pool(x, window, steps, padding)  # pyright: ignore[reportArgumentType]

    batch = x.shape[: x.ndim - len(window) - 1]
    sizes = x.shape[len(batch) : -1]
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(sizes, window, window, padding)
    spatial = list(zip(sizes, window, padding, strict=True))
    counts = [(low + size + high) // width for size, width, (low, high) in spatial]
    # The upper padding is negative where it crops the pixels that fill no window.
    widths = [
        (low, count * width - size - low, 0)
        for count, (size, width, (low, _)) in zip(counts, spatial, strict=True)
    ]
    none = [(0, 0, 0)]
    x = lax.pad(x, jnp.array(-jnp.inf, x.dtype), none * len(batch) + widths + none)
    split = itertools.chain.from_iterable(zip(counts, window, strict=True))
    x = x.reshape(*batch, *split, x.shape[-1])
    offsets = itertools.product(*map(range, window))
    every = slice(None)
    return functools.reduce(
        _first_maximum,
        (x[(..., *(i for offset in place for i in (every, offset)), every)] for place in offsets),
    )


def _first_maximum(held: Float[Array, "..."], new: Float[Array, "..."]) -> Float[Array, "..."]:
    return jnp.where((new > held) | jnp.isnan(new), new, held)


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
