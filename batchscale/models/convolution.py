"""Convolutions that stay fast inside training loops and under `vmap`."""

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from batchscale import arrays
from batchscale.models import varying

_Pads = tuple[tuple[int, int], ...]
# Batch, height, width and channels: other ones in and out, so that they have no names.
_Images = Float[Array, "_ _ _ _"]
_Kernel = Float[Array, "height width inputs outputs"]

Way = Literal["examples", "mapped", "grouped", "patches"]
"""How a convolution is computed.

`examples`: gradients that are plain convolutions, kernels' a few examples at a time, lanes one by
one. `mapped`: JAX's own gradients, lanes one by one. `grouped`: all of it JAX's own, which makes
one convolution in groups of a `vmap` over kernels. `patches`: a matrix product.
"""

# The one place where the choice is made; a platform that is not named gets JAX's own.
_WAYS: dict[str, Way] = {"cpu": "examples"}

_NHWC = ("NHWC", "HWIO", "NHWC")

# Choices, measured: below, several pixels at once are faster.
_FEW_FILTERS, _FEW_CHANNELS = 16, 4
_AT_ONCE = 8  # examples of a kernel's gradient: more do not fit a core's cache


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
    ways: dict[Way, Callable[..., Array]] = {
        "examples": lambda lhs, rhs: _convolution(lhs, rhs, strides, pads, precision),
        "mapped": _one_by_one(native),
        "grouped": native,
        "patches": lambda lhs, rhs: _of_patches(lhs, rhs, strides, pads, precision),
    }
    chosen = {platform: ways[way] for platform, way in _WAYS.items()}
    return lax.platform_dependent(*varying.alike(lhs, rhs), **chosen, default=native)


@contextlib.contextmanager
def ways(**by_platform: Way) -> Iterator[None]:
    """Other ways to convolve than the usual ones, for what is traced meanwhile; to measure them.

    Args:
      **by_platform: the way on a platform, `cpu`, `cuda`, `rocm` or `tpu`.

    >>> with ways(cuda="patches"):
    ...     jaxpr = jax.make_jaxpr(fast_conv_general_dilated, static_argnums=(2, 3))
    """
    before = dict(_WAYS)
    _WAYS.update(by_platform)
    try:
        yield
    finally:
        _WAYS.clear()
        _WAYS.update(before)


def _one_by_one(native: Callable[..., Array]) -> Callable[..., Array]:
    """JAX's own convolution and gradients, its lanes one after another under `vmap`."""

    @jax.custom_vjp
    def convolve(lhs: _Images, rhs: _Kernel) -> _Images:
        return jax.custom_batching.sequential_vmap(native)(lhs, rhs)

    @jax.custom_batching.sequential_vmap
    def gradients(lhs: _Images, rhs: _Kernel, cotangent: _Images) -> tuple[_Images, _Kernel]:
        return jax.vjp(native, lhs, rhs)[1](cotangent)

    convolve.defvjp(
        lambda lhs, rhs: (convolve(lhs, rhs), (lhs, rhs)),
        lambda operands, cotangent: gradients(*operands, cotangent),
    )
    return convolve


def _of_patches(
    lhs: _Images, rhs: _Kernel, strides: tuple[int, ...], pads: _Pads, precision: Any
) -> _Images:
    """Every patch of the images laid out, times the kernel: one matrix product."""
    zero = jnp.zeros((), lhs.dtype)
    padded = lax.pad(lhs, zero, [(0, 0, 0), *((low, high, 0) for low, high in pads), (0, 0, 0)])
    height, width = rhs.shape[:2]
    rows, columns = (
        (size - kernel) // stride + 1
        for size, kernel, stride in zip(padded.shape[1:3], (height, width), strides, strict=True)
    )
    patches = [
        padded[:, i :: strides[0], j :: strides[1]][:, :rows, :columns]
        for i in range(height)
        for j in range(width)
    ]
    kernel = rhs.reshape(-1, rhs.shape[-1])
    return jnp.dot(jnp.concatenate(patches, -1), kernel, precision=precision)


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
    if strides != (1, 1):
        # The primal value is not used: XLA leaves it out.
        return jax.vjp(
            lambda lhs, rhs: _of_phases(lhs, rhs, cotangent.shape[1:3], strides, pads, precision),
            lhs,
            rhs,
        )[1](cotangent)
    # Each image pixel meets the kernel in reverse; padding beyond kernel - 1 becomes a crop.
    complement = tuple(
        (kernel - 1 - low, kernel - 1 - high)
        for kernel, (low, high) in zip(rhs.shape[:2], pads, strict=True)
    )
    reverse = lax.rev(rhs, (0, 1)).swapaxes(2, 3)
    lhs_gradient = _convolve(cotangent, reverse, (1, 1), complement, precision)
    return lhs_gradient, _kernel_gradient(lhs, cotangent, pads, precision)


def _of_phases(
    lhs: _Images,
    rhs: _Kernel,
    out: tuple[int, ...],
    strides: tuple[int, ...],
    pads: _Pads,
    precision: Any,
) -> _Images:
    """A strided convolution as one of stride 1, whose gradients skip no pixels.

    Pixels that are as many strides apart become a channel each, and so do those of the kernel.

    Args:
      lhs: the images.
      rhs: the kernel.
      out: the height and width of the result.
      strides: of the convolution.
      pads: likewise.
      precision: likewise.
    """
    images, kernel = lhs, rhs
    for axis, (stride, (low, _), size) in enumerate(zip(strides, pads, out, strict=True)):
        taps = -(-rhs.shape[axis] // stride)
        used = min(stride, rhs.shape[axis])
        length = stride * (size + taps - 1)
        images = _padded(images, axis + 1, low, length - low - lhs.shape[axis + 1])
        kernel = _padded(kernel, axis, 0, stride * taps - rhs.shape[axis])
        images = _split(images, axis + 1, 3, stride, used)
        kernel = _split(kernel, axis, 2, stride, used)
    return _convolution(images, kernel, (1, 1), ((0, 0), (0, 0)), precision)


def _padded(x: Array, axis: int, low: int, high: int) -> Array:
    """Zeros before and after along an axis; a crop where fewer than none are wanted."""
    config = [(0, 0, 0)] * x.ndim
    config[axis] = (low, high, 0)
    return lax.pad(x, jnp.zeros((), x.dtype), config)


def _split(x: Array, axis: int, channels: int, stride: int, used: int) -> Array:
    """The first phases of an axis, those of the other places left out, joined to the channels."""
    shape = x.shape
    x = x.reshape(*shape[:axis], shape[axis] // stride, stride, *shape[axis + 1 :])
    x = jnp.moveaxis(lax.slice_in_dim(x, 0, used, axis=axis + 1), axis + 1, channels)
    return x.reshape(*x.shape[:channels], -1, *x.shape[channels + 2 :])


def _kernel_gradient(lhs: _Images, cotangent: _Images, pads: _Pads, precision: Any) -> _Kernel:
    """The gradient of a kernel of stride 1, summed over the batch a few examples at a time."""

    def of(lhs: _Images, cotangent: _Images) -> Float[Array, "inputs height width outputs"]:
        # The cotangent slides over the images: channels play batch, and batch plays channels.
        return _convolve(
            lhs.transpose(3, 1, 2, 0), cotangent.transpose(1, 2, 0, 3), (1, 1), pads, precision
        )

    chunks, rest = divmod(len(lhs), _AT_ONCE)
    if chunks + (rest > 0) == 1:
        return of(lhs, cotangent).transpose(1, 2, 0, 3)
    parts = [x[rest:].reshape(chunks, _AT_ONCE, *x.shape[1:]) for x in (lhs, cotangent)]
    shape = jax.eval_shape(of, *(x[0] for x in parts)).shape
    # Sums of 16-bit numbers are kept in 32 bits, as a single product keeps them.
    wide = arrays.wide_type(lhs.dtype)
    total = of(lhs[:rest], cotangent[:rest]).astype(wide) if rest else jnp.zeros(shape, wide)
    total = lax.fori_loop(
        0, chunks, lambda i, total: total + of(parts[0][i], parts[1][i]).astype(wide), total
    )
    return total.astype(lhs.dtype).transpose(1, 2, 0, 3)


_convolution.defvjp(_forward, _backward)


@functools.partial(jax.custom_jvp, nondiff_argnums=(2, 3, 4))
def _convolve(
    lhs: _Images, rhs: _Kernel, strides: tuple[int, ...], pads: _Pads, precision: Any
) -> _Images:
    @jax.custom_batching.custom_vmap
    def one_lane(lhs: _Images, rhs: _Kernel) -> _Images:
        return _abreast(lhs, rhs, strides, pads, precision)

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


def _abreast(
    lhs: _Images, rhs: _Kernel, strides: tuple[int, ...], pads: _Pads, precision: Any
) -> _Images:
    """A convolution of few filters, some pixels of a row at once, each with filters of its own.

    A product with few columns spends its time in the laying out of patches. Here the kernel is
    moved along by a pixel, and another, so that there are so many times the columns, and all steps
    are as many times longer.
    """
    width = lhs.shape[2] + sum(pads[1]) - rhs.shape[1] + 1
    together = _together(rhs.shape, strides)
    if together == 1 or width % together:
        return _native(lhs, rhs, strides, pads, precision)
    moved = [_padded(rhs, 1, at, together - 1 - at) for at in range(together)]
    found = _native(lhs, jnp.concatenate(moved, 3), (1, together), pads, precision)
    return found.reshape(*found.shape[:2], width, rhs.shape[3])


def _together(kernel: tuple[int, ...], strides: tuple[int, ...]) -> int:
    """Pixels whose filters stand side by side."""
    _, width, inputs, outputs = kernel
    # Of a narrow kernel most of what is multiplied would be zeros.
    if strides != (1, 1) or width < 3 or outputs > _FEW_FILTERS:
        return 1
    return 4 if inputs <= _FEW_CHANNELS else 2


def _native(
    lhs: _Images, rhs: _Kernel, strides: tuple[int, ...], pads: _Pads, precision: Any
) -> _Images:
    return lax.conv_general_dilated(
        lhs, rhs, strides, pads, dimension_numbers=_NHWC, precision=precision
    )
