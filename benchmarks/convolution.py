"""What a training step of the Simple CNN costs with each way to convolve and to pool.

Run it from the root of the repository:

    python -m benchmarks.convolution --batch-sizes 1 16 64 --lanes 1 4
    python -m benchmarks.convolution --strided --batch-sizes 16 64

Every step runs inside a `fori_loop`, as it does in a study. The ways take turns, so that a busy
machine slows all of them, and each cell of the table is a median: milliseconds a step of one lane.

ours: the layers of `batchscale`, lanes under `vmap`. ours, mapped: lanes one by one, `lax.map`.
reduce_window: our convolution, Flax's max pooling. reshape-max: our convolution, pooling by
reshape and max, which splits the gradient of ties. grouped: our gradients without our batching
rule. patches: the convolution as one matrix product over all patches of the images. jax, mapped:
JAX's convolution and Flax's pooling, lanes one by one.

With `--strided` the gradients of the strided convolutions of ResNet-8 and of ResNet-50's first
(on images of 64) are timed instead, ours against JAX's own.
"""

import argparse
import functools
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from jaxtyping import Array, Float, Int, PyTree

from batchscale import models
from batchscale.models import layers

_LAYOUT = ("NHWC", "HWIO", "NHWC")
_SAME = ((2, 2), (2, 2))

_Images = Float[Array, "batch height width channels"]
_Kernel = Float[Array, "5 5 in_channels out_channels"]


class Way(NamedTuple):
    """A way to run the layers of the Simple CNN, and its lanes."""

    convolve: Callable[[_Images, _Kernel], _Images]
    pool: Callable[[_Images], _Images]
    lanes: Callable[[Callable[..., Any]], Callable[..., Any]]


def _native(lhs: _Images, rhs: _Kernel) -> _Images:
    return lax.conv_general_dilated(lhs, rhs, (1, 1), _SAME, dimension_numbers=_LAYOUT)


def _fast(lhs: _Images, rhs: _Kernel) -> _Images:
    return layers.fast_conv_general_dilated(lhs, rhs, (1, 1), _SAME, dimension_numbers=_LAYOUT)


@jax.custom_vjp
def _grouped(lhs: _Images, rhs: _Kernel) -> _Images:
    """The plain gradients of `layers`, left to JAX's own batching: a grouped convolution."""
    return _native(lhs, rhs)


def _grouped_backward(
    operands: tuple[_Images, _Kernel], cotangent: _Images
) -> tuple[_Images, _Kernel]:
    lhs, rhs = operands
    lhs_gradient = _native(cotangent, lax.rev(rhs, (0, 1)).swapaxes(2, 3))
    rhs_gradient = _native(lhs.transpose(3, 1, 2, 0), cotangent.transpose(1, 2, 0, 3))
    return lhs_gradient, rhs_gradient.transpose(1, 2, 0, 3)


_grouped.defvjp(lambda lhs, rhs: (_native(lhs, rhs), (lhs, rhs)), _grouped_backward)


def _patches(lhs: _Images, rhs: _Kernel) -> _Images:
    """Every patch of the images laid out, times the kernel: one matrix product."""
    padded = jnp.pad(lhs, ((0, 0), *_SAME, (0, 0)))
    height, width = lhs.shape[1:3]
    patches = [padded[:, i : i + height, j : j + width] for i in range(5) for j in range(5)]
    return jnp.concatenate(patches, -1) @ rhs.reshape(-1, rhs.shape[-1])


def _reduce_window(x: _Images) -> _Images:
    return nn.max_pool(x, (2, 2), (2, 2))


def _reshape_and_max(x: _Images) -> _Images:
    batch, height, width, channels = x.shape
    return x.reshape(batch, height // 2, 2, width // 2, 2, channels).max((2, 4))


def _max_pool(x: _Images) -> _Images:
    return layers.max_pool(x, (2, 2), (2, 2))


def _map(step: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *operands: lax.map(lambda lane: step(*lane), operands)


WAYS = {
    "ours": Way(_fast, _max_pool, jax.vmap),
    "ours, mapped": Way(_fast, _max_pool, _map),
    "reduce_window": Way(_fast, _reduce_window, jax.vmap),
    "reshape-max": Way(_fast, _reshape_and_max, jax.vmap),
    "grouped": Way(_grouped, _max_pool, jax.vmap),
    "patches": Way(_patches, _max_pool, jax.vmap),
    "jax, mapped": Way(_native, _reduce_window, _map),
}


def loss(
    params: PyTree[Array], images: _Images, labels: Int[Array, " batch"], way: Way
) -> Float[Array, ""]:
    """The mean cross entropy of the Simple CNN, dropout off, computed that way."""
    x = images
    for name in ("Conv_0", "Conv_1"):
        x = way.pool(nn.relu(way.convolve(x, params[name]["kernel"]) + params[name]["bias"]))
    x = x.reshape(x.shape[0], -1)
    x = nn.relu(x @ params["Dense_0"]["kernel"] + params["Dense_0"]["bias"])
    logits = x @ params["Dense_1"]["kernel"] + params["Dense_1"]["bias"]
    return -jnp.take_along_axis(nn.log_softmax(logits), labels[:, None], 1).mean()


def training(way: Way) -> Callable[..., PyTree[Array]]:
    """A compiled loop of gradient descent over all lanes, for a traced number of steps."""

    def step(params: PyTree[Array], images: Array, labels: Array) -> PyTree[Array]:
        gradient = jax.grad(loss)(params, images, labels, way)
        return jax.tree.map(lambda w, g: w - 0.01 * g, params, gradient)

    @jax.jit
    def run(params: PyTree[Array], images: Array, labels: Array, steps: int) -> PyTree[Array]:
        return lax.fori_loop(
            0, steps, lambda _, params: way.lanes(step)(params, images, labels), params
        )

    return run


def milliseconds(
    batch_size: int, lanes: int, *, steps: int, repeats: int, ways: dict[str, Way]
) -> dict[str, float]:
    """The median time a step of one lane, in milliseconds, by way."""
    keys = jax.random.split(jax.random.key(0), lanes)
    images = jax.random.uniform(keys[0], (lanes, batch_size, 28, 28, 1))
    labels = jax.random.randint(keys[0], (lanes, batch_size), 0, 10)
    module = models.get("simple_cnn_base", 10)
    init = functools.partial(module.init, train=False)
    params = jax.jit(jax.vmap(init))(keys, images)["params"]
    runs = {name: training(way) for name, way in ways.items()}
    times = {name: [] for name in ways}
    for repeat in range(repeats + 1):
        for name, run in runs.items():
            start = time.perf_counter()
            jax.block_until_ready(run(params, images, labels, steps))
            if repeat:  # the first call compiles
                times[name].append(1e3 * (time.perf_counter() - start) / (steps * lanes))
    return {name: statistics.median(values) for name, values in times.items()}


# Of strided convolutions: side and channels of the images, side of the kernel, its outputs.
STRIDED = {
    "resnet_8, 3x3, 16 to 32": (32, 16, 3, 32),
    "resnet_8, 3x3, 32 to 64": (16, 32, 3, 64),
    "resnet_8, 1x1, 16 to 32": (32, 16, 1, 32),
    "resnet_8, 1x1, 32 to 64": (16, 32, 1, 64),
    "resnet_50, 7x7, 3 to 64": (64, 3, 7, 64),
}


def strided(name: str, batch_size: int, *, steps: int, repeats: int) -> dict[str, float]:
    """Milliseconds of both gradients of a strided convolution, in a loop, by way."""
    side, inputs, kernel_side, outputs = STRIDED[name]
    images = jax.random.uniform(jax.random.key(0), (batch_size, side, side, inputs))
    kernel = jax.random.uniform(jax.random.key(1), (kernel_side, kernel_side, inputs, outputs))
    ways = {"ours": layers.fast_conv_general_dilated, "jax": lax.conv_general_dilated}

    def loop(convolve: Callable[..., Any]) -> Callable[..., Any]:
        def loss(operands: tuple[Array, Array]) -> Float[Array, ""]:
            found = convolve(*operands, (2, 2), "SAME", dimension_numbers=_LAYOUT)
            return 0.5 * (found**2).sum()

        @jax.jit
        def run(operands: tuple[Array, Array], steps: int) -> tuple[Array, Array]:
            def step(_: int, operands: tuple[Array, Array]) -> tuple[Array, Array]:
                return jax.tree.map(lambda x, g: x - 1e-9 * g, operands, jax.grad(loss)(operands))

            return lax.fori_loop(0, steps, step, operands)

        return run

    runs = {way: loop(convolve) for way, convolve in ways.items()}
    times: dict[str, list[float]] = {way: [] for way in ways}
    for repeat in range(repeats + 1):
        for way, run in runs.items():
            start = time.perf_counter()
            jax.block_until_ready(run((images, kernel), steps))
            if repeat:  # the first call compiles
                times[way].append(1e3 * (time.perf_counter() - start) / steps)
    return {way: statistics.median(values) for way, values in times.items()}


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 16, 64])
    parser.add_argument("--lanes", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--images", type=int, default=128, help="a lane, in each timed loop")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--strided", action="store_true", help="gradients of strided ones")
    arguments = parser.parse_args()
    if arguments.strided:
        print("ms of a convolution and its gradients, ours and JAX's, and the ratio")
        for name in STRIDED:
            for batch_size in arguments.batch_sizes:
                found = strided(name, batch_size, steps=8, repeats=arguments.repeats)
                ratio = found["jax"] / found["ours"]
                cells = f"{found['ours']:>8.2f} {found['jax']:>8.2f} {ratio:>6.1f}x"
                print(f"{name:>26} {batch_size:>5} {cells}", flush=True)
        return

    ways = {name: WAYS[name] for name in arguments.ways}
    print(f"jax {jax.__version__}, {jax.devices()[0].device_kind}: ms a step of one lane")
    print(f"{'batch size':>10} {'lanes':>5}", *(f"{name:>13}" for name in ways))
    for batch_size in arguments.batch_sizes:
        steps = max(1, min(20, arguments.images // batch_size))
        for lanes in arguments.lanes:
            medians = milliseconds(
                batch_size, lanes, steps=steps, repeats=arguments.repeats, ways=ways
            )
            cells = (f"{medians[name]:>13.1f}" for name in ways)
            print(f"{batch_size:>10} {lanes:>5}", *cells, flush=True)


if __name__ == "__main__":
    main()
