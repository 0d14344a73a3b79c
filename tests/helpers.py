"""Small workloads and studies, and what stands for the end of a process."""

import contextlib
import functools
import os
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pandas as pd

import batchscale as bs
from batchscale import sampling, train
from batchscale.runner import batch_size
from batchscale.runner.batch_size import Pauses


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
    return drawn(name, steps * name[1], examples).reshape(steps, name[1])


@functools.cache
def drawn(name: tuple[int, int, int, int], size: int, examples: int) -> np.ndarray:
    place = sampling.position(0, batch_size=name[1], examples=examples)
    draw = jax.jit(functools.partial(train.draw, position=place, size=size, examples=examples))
    return np.asarray(draw(train.trial_key(*name)))


_COMPILED = "/jax/core/compile/backend_compile_duration"
GOAL = bs.Goal("validation/error", 0.15)


def study(workload, **changes):
    fields = {
        "workload": workload,
        "optimizer": "sgd",
        "space": bs.SearchSpace(learning_rate=bs.LogUniform(1e-2, 3)),
        "batch_sizes": [4, 32, "full"],
        "goal": GOAL,
        "trials": 6,
        "max_steps": 300,
        "lanes": 2,
    }
    return bs.Study(**fields | changes)


def diverging(workload, **changes):
    space = bs.SearchSpace(learning_rate=bs.LogUniform(1e-1, 1e30))
    return study(workload, space=space, batch_sizes=[16], **changes)


def assert_same_tables(some: bs.Result, other: bs.Result) -> None:
    """To the bit."""
    pd.testing.assert_frame_equal(some.trials, other.trials, check_exact=True)
    pd.testing.assert_frame_equal(some.measurements, other.measurements, check_exact=True)


def writing_after_every_evaluation(monkeypatch) -> None:
    """Tables and states are written as often as they can be."""
    monkeypatch.setattr(batch_size, "PAUSES", Pauses(seconds=0.0, times=0.0))


class KilledError(BaseException):
    """Stands for the end of the process."""


def operations_before_a_kill(monkeypatch, alive: int):
    """Lets `alive` operations on the disk through; from then on all of them fail."""
    left = [alive]

    def guard(function):
        def guarded(*arguments, **keywords):
            if left[0] == 0:
                raise KilledError
            left[0] -= 1
            return function(*arguments, **keywords)

        return guarded

    monkeypatch.setattr(os, "fsync", guard(os.fsync))
    monkeypatch.setattr(os, "replace", guard(os.replace))
    monkeypatch.setattr(Path, "unlink", guard(Path.unlink))


@contextlib.contextmanager
def compiled() -> Iterator[list[float]]:
    """Counts programs that are compiled, or fetched from the compilation cache."""
    times: list[float] = []

    def listen(event: str, seconds: float, **_: object) -> None:
        if event == _COMPILED:
            times.append(seconds)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield times
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
