"""ResNets, VGG-11 and ghost batch norm: sizes counted by hand, and values of plain NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import batchscale as bs
from batchscale import models
from batchscale.models.norm import GhostBatchNorm

RANDOM = np.random.default_rng(0)


def shapes(module, size, channels=3):
    image = jax.ShapeDtypeStruct((2, size, size, channels), jnp.float32)
    return jax.eval_shape(lambda key, x: module.init(key, x, train=False), jax.random.key(0), image)


def bottlenecks():
    """Of ResNet-50: convolutions without biases; of each norm two numbers a channel."""
    total, into = 49 * 3 * 64, 64
    for blocks, filters in zip((3, 4, 6, 3), (64, 128, 256, 512), strict=True):
        total += into * 4 * filters  # the shortcut of the first
        for _ in range(blocks):
            total += into * filters + 9 * filters**2 + filters * 4 * filters
            total += 2 * (into + 2 * filters)
            into = 4 * filters
    return total + 2 * 2048


@pytest.mark.parametrize(
    ("name", "size", "classes", "count"),
    [
        (
            "resnet_8",
            32,
            10,
            (27 * 16 + 16)
            + 2 * (144 * 16 + 16)
            + (144 * 32 + 32 + 288 * 32 + 32 + 16 * 32)
            + (288 * 64 + 64 + 576 * 64 + 64 + 32 * 64)
            + 64 * 10 + 10,
        ),
        ("resnet_50", 224, 1000, bottlenecks() + 2048 * 1000 + 1000),
        ("vgg_11", 224, 1000, 132_863_336),  # as widely published
    ],
)  # fmt: skip
def test_image_models_have_the_parameters_that_were_counted_by_hand(name, size, classes, count):
    found = shapes(models.get(name, classes), size)
    assert models.parameter_count(found["params"]) == count


def convolved(x, kernel, stride=1):
    """Of 3x3 or 1x1 kernels, padded to the same size as JAX does."""
    size, out = len(kernel), -(-x.shape[1] // stride)
    pad = max((out - 1) * stride + size - x.shape[1], 0)
    x = np.pad(x, ((0, 0), (pad // 2, pad - pad // 2), (pad // 2, pad - pad // 2), (0, 0)))
    made = np.zeros((len(x), out, out, kernel.shape[-1]))
    for i in range(out):
        for j in range(out):
            window = x[:, i * stride : i * stride + size, j * stride : j * stride + size]
            made[:, i, j] = np.tensordot(window, kernel, 3)
    return made


def test_resnet_8_is_that_of_plain_numpy():
    module = models.get("resnet_8", 10)
    x = RANDOM.normal(size=(2, 9, 9, 3)).astype(np.float32)
    params = jax.jit(lambda key: module.init(key, jnp.asarray(x), train=False))(jax.random.key(1))
    p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params["params"])

    def layer(name, x, stride=1):
        return convolved(x, p[name]["kernel"], stride) + p[name].get("bias", 0)

    y = layer("stem", x.astype(np.float64))
    for block, stride in enumerate((1, 2, 2)):
        active = np.maximum(y, 0)
        short = layer(f"shortcut_{block}", active, stride) if block else y
        inner = np.maximum(layer(f"first_{block}", active, stride), 0)
        y = short + layer(f"second_{block}", inner)
    y = np.maximum(y, 0).mean((1, 2)) @ p["logits"]["kernel"] + p["logits"]["bias"]
    np.testing.assert_allclose(jax.jit(module.apply)(params, jnp.asarray(x)), y, atol=1e-4)


def ghosts(x, size, momentum=0.9):
    """Groups normalised, and the running statistics after each of them, by NumPy."""
    mean, var, parts = np.zeros(x.shape[-1]), np.ones(x.shape[-1]), []
    for start in range(0, len(x), size):
        group = x[start : start + size]
        axes = tuple(range(group.ndim - 1))
        m, v = group.mean(axes), group.var(axes)
        parts.append((group - m) / np.sqrt(v + 1e-5))
        mean, var = momentum * mean + (1 - momentum) * m, momentum * var + (1 - momentum) * v
    return np.concatenate(parts), mean, var


@pytest.mark.parametrize("shape", [(12, 5), (10, 3, 3, 2), (3, 2)])
def test_ghost_batch_norm_is_batch_norm_of_groups_in_their_order(shape):
    x = RANDOM.normal(1, 2, shape)
    norm = GhostBatchNorm(4)
    with jax.enable_x64(True):
        variables = norm.init(jax.random.key(0), jnp.asarray(x), train=False)
        found, state = norm.apply(variables, jnp.asarray(x), train=True, mutable=["batch_stats"])
        running = norm.apply({**variables, **state}, jnp.asarray(x), train=False)
    normal, mean, var = ghosts(x, 4)
    np.testing.assert_allclose(found, normal, atol=1e-9)
    np.testing.assert_allclose(state["batch_stats"]["mean"], mean, atol=1e-9)
    np.testing.assert_allclose(state["batch_stats"]["var"], var, atol=1e-9)
    np.testing.assert_allclose(running, (x - mean) / np.sqrt(var + 1e-5), atol=1e-9)


def test_pieces_of_whole_groups_make_the_sum_and_the_statistics_of_the_batch():
    norm, x = GhostBatchNorm(4), jnp.asarray(RANDOM.normal(size=(16, 3)))
    weights = jnp.asarray(RANDOM.normal(size=(16, 3)))
    first = norm.init(jax.random.key(0), x, train=False)

    def loss(params, state, x, weights):
        y, state = norm.apply({"params": params, **state}, x, train=True, mutable=["batch_stats"])
        return (jnp.tanh(y) * weights).sum(), state

    gradient = jax.grad(loss, has_aux=True)
    params, stats = first["params"], {"batch_stats": first["batch_stats"]}
    whole, after = gradient(params, stats, x, weights)
    pieces, state = jax.tree.map(jnp.zeros_like, params), stats
    for start, stop in ((0, 4), (4, 12), (12, 16)):
        some, state = gradient(params, state, x[start:stop], weights[start:stop])
        pieces = jax.tree.map(jnp.add, pieces, some)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), whole, pieces)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), after, state)


@pytest.mark.slow
def test_resnet_50_takes_two_steps_and_moves_its_statistics():
    module = models.ResNet50(5, ghost_batch_size=2, blocks=(1, 1), filters=4)
    images = RANDOM.integers(0, 256, (8, 16, 16, 3)).astype(np.uint8)
    data = {"train": (images, np.arange(8) % 5)}
    workload = bs.Workload.from_flax(module, data, name="small resnet")
    params, state = jax.jit(workload.init)(jax.random.key(0))
    batch = workload.prepare(jax.tree.map(jnp.asarray, dict(workload.splits()["train"])), None)

    @jax.jit
    def step(params, state):
        def mean(params):
            (total, count), after = workload.loss(
                params, state, batch, jax.random.key(0), {"label_smoothing": jnp.float32(0.1)}
            )
            return total / count.astype(total.dtype), after

        (loss, after), gradient = jax.value_and_grad(mean, has_aux=True)(params)
        return jax.tree.map(lambda p, g: p - 0.05 * g, params, gradient), after, loss

    losses = []
    for _ in range(3):
        params, state, loss = step(params, state)
        losses.append(float(loss))
    assert losses[2] < losses[0]
    means = jax.tree.leaves(jax.tree.map(lambda x: np.abs(x).max(), state["batch_stats"]))
    assert min(means) > 0
