"""Two virtual CPU devices for every test, and small workloads that several tests share."""

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

import batchscale as bs


def blobs(examples: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Three overlapping clouds of points in the plane, and which cloud each belongs to."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, 3, examples)
    centres = np.array([[0.0, 1.0], [1.0, -1.0], [-1.0, -1.0]])
    return centres[labels] + 0.5 * random.normal(size=(examples, 2)), labels


def perceptron(width: int = 8) -> bs.Workload:
    """A small network on the clouds, written as a user would, in plain functions."""

    def init(key: jax.Array) -> dict[str, jax.Array]:
        first, second = jax.random.split(key)
        return {
            "w1": jax.random.normal(first, (2, width)) / 2**0.5,
            "b1": jnp.zeros(width),
            "w2": jax.random.normal(second, (width, 3)) / width**0.5,
            "b2": jnp.zeros(3),
        }

    def logits(params: dict[str, jax.Array], x: jax.Array) -> jax.Array:
        hidden = jax.nn.relu(x @ params["w1"] + params["b1"])
        return hidden @ params["w2"] + params["b2"]

    def loss(params: dict[str, jax.Array], batch: dict[str, jax.Array]) -> jax.Array:
        return optax.softmax_cross_entropy_with_integer_labels(
            logits(params, batch["input"]), batch["label"]
        )

    def error(params: dict[str, jax.Array], batch: dict[str, jax.Array]) -> jax.Array:
        return logits(params, batch["input"]).argmax(-1) != batch["label"]

    return bs.Workload.from_functions(
        init,
        loss,
        metrics={"error": error},
        data={"train": blobs(100), "validation": blobs(70, 1), "test": blobs(50, 2)},
        name="clouds",
    )


@pytest.fixture(scope="session")
def clouds() -> bs.Workload:
    """The small network on the clouds."""
    return perceptron()
