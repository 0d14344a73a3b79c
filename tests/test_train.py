"""The training step of one trial, against plain NumPy and against itself taken apart."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import perceptron

from batchscale import optimizers, sampling, schedules, train
from batchscale.train import Recipe

EXAMPLES = 100
VALUES = {"learning_rate": 0.1, "momentum": 0.8}


@pytest.fixture(autouse=True)
def double_precision():
    with jax.enable_x64(True):
        yield


def recipe(workload, *, batch_size, microbatch=None, optimizer="nesterov"):
    return Recipe.of(
        workload,
        optimizers.get(optimizer),
        schedules.constant,
        batch_size=batch_size,
        microbatch=microbatch or batch_size,
    )


def double(tree):
    return jax.tree.map(lambda x: x.astype(jnp.float64) if x.dtype == np.float32 else x, tree)


def state_of(some, key=3):
    state = train.init(some, train.trial_key(0, 8, key, 0), VALUES)
    return jax.tree.map(jnp.asarray, state)


def run(some, data, steps, *, batch_size, first=0, state=None):
    state = state_of(some) if state is None else state
    place = sampling.position(first, batch_size=batch_size, examples=EXAMPLES)
    drawn = train.draw(state.key, place, size=steps * batch_size, examples=EXAMPLES)
    batch = train.Batch(drawn, 0, batch_size)
    segment = jax.jit(lambda s, d, b, n, m: train.segment(some, s, VALUES, d, b, n, m))
    return segment(state, data, batch, first, steps)


def numpy_loop(params, x, y, batches, optimizer):
    """Training by hand: forward, backward and update in plain NumPy."""
    params = {name: np.asarray(value) for name, value in params.items()}
    velocity = {name: np.zeros_like(value) for name, value in params.items()}
    lr, m = VALUES["learning_rate"], VALUES["momentum"]
    for batch in batches:
        inputs, labels = x[batch], y[batch]
        before = inputs @ params["w1"] + params["b1"]
        hidden = np.maximum(before, 0)
        logits = hidden @ params["w2"] + params["b2"]
        p = np.exp(logits - logits.max(1, keepdims=True))
        p /= p.sum(1, keepdims=True)
        p[np.arange(len(labels)), labels] -= 1
        p /= len(labels)
        back = (p @ params["w2"].T) * (before > 0)
        gradient = {"w1": inputs.T @ back, "b1": back.sum(0), "w2": hidden.T @ p, "b2": p.sum(0)}
        for name, g in gradient.items():
            if optimizer == "sgd":
                params[name] = params[name] - lr * g
                continue
            velocity[name] = m * velocity[name] + g
            step = g + m * velocity[name] if optimizer == "nesterov" else velocity[name]
            params[name] = params[name] - lr * step
    return params


@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "nesterov"])
@pytest.mark.parametrize("batch_size", [1, 16, 100])
def test_fifty_steps_are_those_of_a_plain_numpy_loop(optimizer, batch_size):
    workload = perceptron()
    data = double(workload.splits()["train"])
    some = recipe(workload, batch_size=batch_size, optimizer=optimizer)
    state = state_of(some)
    shuffle = jax.random.fold_in(jax.random.wrap_key_data(state.key, impl="threefry2x32"), 1)
    batches = [
        np.asarray(
            sampling.indices(
                jax.random.key_data(shuffle),
                sampling.position(step, batch_size=batch_size, examples=EXAMPLES),
                jnp.arange(batch_size),
                examples=EXAMPLES,
            )
        )
        for step in range(50)
    ]
    expected = numpy_loop(state.params, data["input"], data["label"], batches, optimizer)
    got = run(some, data, 50, batch_size=batch_size).params
    for name, value in expected.items():
        np.testing.assert_allclose(got[name], value, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("batch_size", "microbatch"), [(16, 4), (50, 16), (100, 33), (8, 1)])
def test_microbatches_take_the_step_of_the_whole_batch(batch_size, microbatch):
    workload = perceptron()
    data = double(workload.splits()["train"])
    whole = run(recipe(workload, batch_size=batch_size), data, 20, batch_size=batch_size)
    parts = recipe(workload, batch_size=batch_size, microbatch=microbatch)
    assert parts.rest == batch_size % microbatch
    taken_apart = run(parts, data, 20, batch_size=batch_size)
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(taken_apart), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)


def test_a_segment_can_start_at_any_step_without_replaying():
    workload = perceptron()
    data = double(workload.splits()["train"])
    some = recipe(workload, batch_size=24)
    whole = run(some, data, 30, batch_size=24)
    state = run(some, data, 13, batch_size=24)
    state = run(some, data, 17, batch_size=24, first=13, state=state)
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(state), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("batch", [1, 7, 50, 70, 1000])
def test_evaluation_is_exact_whatever_its_batch(batch):
    workload = perceptron()
    split = double(workload.splits()["validation"])
    params = state_of(recipe(workload, batch_size=1)).params
    parts = train.evaluate(workload, params, {}, split, batch=batch)
    assert len(parts["error"][0]) == -(-70 // batch)
    wrong, count = jax.tree.map(lambda x: np.asarray(x).sum(), parts["error"])
    params = jax.device_get(params)
    hidden = np.maximum(split["input"] @ params["w1"] + params["b1"], 0)
    expected = (np.argmax(hidden @ params["w2"] + params["b2"], 1) != split["label"]).sum()
    assert parts["error"][0].dtype == np.int32
    assert (wrong, count) == (expected, 70)


@pytest.mark.usefixtures("usual_promotion")
@pytest.mark.parametrize("batch", [1, 7, 50, 1000])
def test_a_tally_ends_with_the_batch_that_decides(batch):
    workload = perceptron()
    split = double(workload.splits()["validation"])
    params = state_of(recipe(workload, batch_size=1)).params

    def mistakes(sums):
        return sums["error"][0]

    wrong = np.asarray(train.each(workload, params, {}, split, mistakes, batch=batch))
    sums = train.evaluate(workload, params, {}, split, batch=70)
    assert wrong.sum() == sums["error"][0].sum() > 20
    ends = np.cumsum(wrong)[[*range((70 % batch or batch) - 1, 69, batch), 69]]
    for enough in (-1, 0, 1, 20, int(wrong.sum()), int(wrong.sum()) + 1):
        found, batches = train.tally(
            workload, params, {}, split, mistakes, batch=batch, enough=jnp.asarray(enough)
        )
        assert (found >= enough) == (wrong.sum() >= enough)
        decided = np.flatnonzero(ends >= enough)
        assert batches <= (decided[0] + 1 if len(decided) else len(ends))


def test_trial_keys_depend_on_every_part_of_the_name():
    names = [(0, 8, 3, 0), (1, 8, 3, 0), (0, 9, 3, 0), (0, 8, 4, 0), (0, 8, 3, 1), (0, 3, 8, 0)]
    keys = {tuple(np.asarray(train.trial_key(*name)).tolist()) for name in names}
    assert len(keys) == len(names)


def test_a_value_that_is_not_finite_is_noticed_anywhere_in_the_tree():
    tree = {"a": jnp.ones(3), "b": [jnp.ones((2, 2)), jnp.arange(3)]}
    assert bool(train.finite(tree))
    for bad in (jnp.inf, -jnp.inf, jnp.nan):
        assert not bool(train.finite(tree | {"a": jnp.array([1.0, bad, 1.0])}))
