"""Two virtual CPU devices for every test, and small workloads that several tests share."""

import functools
import os
import tempfile

import jax

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 2)
# Many tests run the same programs: compile each of them once, also in the processes they start.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", tempfile.mkdtemp(prefix="batchscale-tests-"))
jax.config.update("jax_compilation_cache_dir", os.environ["JAX_COMPILATION_CACHE_DIR"])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import settings

import batchscale as bs
from batchscale import sampling, train

# The same examples in every run: a property that fails, fails for everyone.
settings.register_profile("reproducible", derandomize=True, deadline=None)
settings.load_profile("reproducible")


def points(examples: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Points of a square in three classes: the middle, two opposite corners, and the others."""
    random = np.random.default_rng(seed)
    x = random.uniform(-1, 1, (examples, 2))
    corners = np.where(x[:, 0] * x[:, 1] > 0, 1, 2)
    return x, np.where(np.abs(x).sum(1) < 0.6, 0, corners)


def perceptron(width: int = 16, validation: int = 70) -> bs.Workload:
    """A small network on the square, written as a user would, in plain functions."""

    def init(key: jax.Array) -> dict[str, jax.Array]:
        first, second = jax.random.split(key)
        return {
            "w1": jax.random.normal(first, (2, width)) / 2**0.5,
            "b1": jnp.zeros(width),
            "w2": jax.random.normal(second, (width, 3)) / width**0.5,
            "b2": jnp.zeros(3),
        }

    def logits(params: dict[str, jax.Array], x: jax.Array) -> jax.Array:
        hidden = jax.nn.relu(x @ params["w1"] + params["b1"][None])
        return hidden @ params["w2"] + params["b2"][None]

    def loss(params: dict[str, jax.Array], batch: dict[str, jax.Array]) -> jax.Array:
        return optax.softmax_cross_entropy_with_integer_labels(
            logits(params, batch["input"]), batch["label"]
        )

    def accuracy(params: dict[str, jax.Array], batch: dict[str, jax.Array]) -> jax.Array:
        return ~error(params, batch)

    def error(params: dict[str, jax.Array], batch: dict[str, jax.Array]) -> jax.Array:
        label = batch["label"]
        return logits(params, batch["input"]).argmax(-1).astype(label.dtype) != label

    return bs.Workload.from_functions(
        init,
        loss,
        metrics={"error": error, "accuracy": accuracy},
        data={"train": points(100), "validation": points(validation, 1), "test": points(50, 2)},
        name="square",
    )


def batches(name: tuple[int, int, int, int], steps: int, examples: int) -> np.ndarray:
    """The examples of each step of a trial: of a seed, a batch size, a number and a replicate."""
    return _drawn(name, steps * name[1], examples).reshape(steps, name[1])


@pytest.fixture
def usual_promotion():
    """JAX's promotion of shapes and types, for what is not ours: the suite runs without it too."""
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        yield


@functools.cache
def _drawn(name: tuple[int, int, int, int], size: int, examples: int) -> np.ndarray:
    place = sampling.position(0, batch_size=name[1], examples=examples)
    draw = jax.jit(functools.partial(train.draw, position=place, size=size, examples=examples))
    return np.asarray(draw(train.trial_key(*name)))


@pytest.fixture(scope="session")
def square() -> bs.Workload:
    """The small network on the square."""
    return perceptron()
