"""Optimizers and schedules against plain NumPy."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from batchscale import optimizers, schedules


def gradient(w: np.ndarray) -> np.ndarray:
    """Of a badly scaled bowl that is not quite quadratic."""
    return np.array([1.0, 10.0, 0.1]) * w + 0.1 * np.sin(w)


def numpy_sgd(w, h):
    while True:
        w = w - h["learning_rate"] * gradient(w)
        yield w


def numpy_momentum(w, h):
    v = np.zeros_like(w)
    while True:
        v = h["momentum"] * v + gradient(w)
        w = w - h["learning_rate"] * v
        yield w


def numpy_nesterov(w, h):
    v = np.zeros_like(w)
    while True:
        g = gradient(w)
        v = h["momentum"] * v + g
        w = w - h["learning_rate"] * (g + h["momentum"] * v)
        yield w


def numpy_adam(w, h, decay=0.0):
    b1, b2, eps = h.get("b1", 0.9), h.get("b2", 0.999), h.get("eps", 1e-8)
    m, v, t = np.zeros_like(w), np.zeros_like(w), 0
    while True:
        t += 1
        g = gradient(w)
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * g**2
        update = m / (1 - b1**t) / (np.sqrt(v / (1 - b2**t)) + eps)
        w = w - h["learning_rate"] * (update + decay * w)
        yield w


def numpy_adamw(w, h):
    return numpy_adam(w, h, h["weight_decay"])


CASES = [
    ("sgd", numpy_sgd, [{"learning_rate": 0.01}, {"learning_rate": 0.05}]),
    ("momentum", numpy_momentum, [{"learning_rate": 0.01, "momentum": m} for m in (0.0, 0.9)]),
    ("nesterov", numpy_nesterov, [{"learning_rate": 0.01, "momentum": m} for m in (0.5, 0.9)]),
    ("adam", numpy_adam, [{"learning_rate": 0.1, "b1": b} for b in (0.5, 0.9)]),
    ("adamw", numpy_adamw, [{"learning_rate": r, "weight_decay": 0.1} for r in (0.01, 0.1)]),
]


@pytest.mark.parametrize(("name", "loop", "trials"), CASES, ids=[case[0] for case in CASES])
def test_traced_hyperparameters_take_the_steps_of_a_numpy_loop(name, loop, trials):
    optimizer = optimizers.get(name)
    start = np.array([1.0, -2.0, 3.0])

    def steps(hyperparameters):
        def body(carry, _):
            w, state = carry
            g = jnp.array([1.0, 10.0, 0.1]) * w + 0.1 * jnp.sin(w)
            tx = optimizer.transformation(hyperparameters, hyperparameters["learning_rate"])
            updates, state = tx.update(g, state, w)
            w = optax.apply_updates(w, updates)
            return (w, state), w

        state = optimizer.transformation(hyperparameters, None).init(jnp.asarray(start))
        return jax.lax.scan(body, (jnp.asarray(start), state), None, length=50)[1]

    with jax.enable_x64(True):
        table = {key: jnp.array([trial[key] for trial in trials]) for key in trials[0]}
        paths = jax.jit(jax.vmap(steps))(table)
        for path, trial in zip(paths, trials, strict=True):
            expected = [w for w, _ in zip(loop(start, trial), range(50), strict=False)]
            np.testing.assert_allclose(path, expected, rtol=1e-10)


def test_linear_decay_follows_its_formula_with_traced_lengths():
    rates = {
        "learning_rate": jnp.array([1.0, 0.5]),
        "learning_rate_decay_steps": jnp.array([10.0, 4.0]),
        "end_learning_rate_factor": jnp.array([0.1, 0.5]),
    }
    over_trials = jax.vmap(schedules.linear_decay, in_axes=(None, 0))
    got = jax.jit(jax.vmap(over_trials, in_axes=(0, None)))(jnp.arange(15), rates)
    for trial, (start, length, factor) in enumerate([(1.0, 10, 0.1), (0.5, 4, 0.5)]):
        expected = [
            start - (1 - factor) * start * t / length if t <= length else factor * start
            for t in range(15)
        ]
        np.testing.assert_allclose(got[:, trial], expected, rtol=1e-6)


def test_an_optimizer_of_ones_own_gets_the_schedules_learning_rate_and_everything_else():
    seen = {}

    def lion(hyperparameters):
        seen.update(hyperparameters)
        return optax.lion(hyperparameters["learning_rate"], b1=hyperparameters["beta"])

    optimizer = optimizers.get(lion)
    optimizer.transformation({"learning_rate": 1.0, "beta": 0.9}, 0.25)
    assert optimizer.name == "lion"
    assert seen == {"learning_rate": 0.25, "beta": 0.9}


def test_unknown_names_list_the_known_ones():
    with pytest.raises(ValueError, match=re.escape("wanted one of sgd, momentum, nesterov, adam")):
        optimizers.get("sdg")
    with pytest.raises(ValueError, match=re.escape("wanted one of constant, linear_decay")):
        schedules.get("cubic")
