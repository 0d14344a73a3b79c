"""Lanes and devices change nothing about a trial."""

import warnings

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import GOAL

from batchscale import optimizers, sampling, schedules, train
from batchscale.engine import parallel
from batchscale.engine.engine import Engine, Training
from batchscale.engine.layout import Layout
from batchscale.engine.packs import TrialId, Values, stacked, unpack

TRIALS = [TrialId(number) for number in range(8)]


def values(trial: TrialId) -> dict[str, float]:
    return {"learning_rate": 0.02 * 1.5**trial.number, "momentum": 0.1 * trial.number}


def of(trials) -> Values:
    return stacked([values(trial) for trial in trials])


def engine(workload, devices: int) -> Engine:
    training = Training(
        workload,
        optimizers.get("nesterov"),
        schedules.constant,
        names=("learning_rate", "momentum"),
        seed=0,
        goal=GOAL,
    )
    return Engine(training, mesh=parallel.mesh(jax.devices()[:devices]))


def trained(workload, trials, *, lanes, devices=1, steps=50, microbatch=8):
    """The states of trials after some steps at batch size 8, by trial."""
    layout = Layout(lanes, microbatch)
    with engine(workload, devices) as some:
        packs = some.start(trials, of(trials), batch_size=8, layout=layout)
        some.advance(packs, batch_size=8, layout=layout, step=0, to=steps)
        states = unpack(packs)
    return {trial: [leaf[i] for leaf in states.leaves] for i, trial in enumerate(states.ids)}


def assert_same_bits(some, others):
    for trial in some.keys() & others.keys():
        chex.assert_trees_all_equal(some[trial], others[trial], strict=True)


def test_the_bits_of_a_trial_are_the_same_on_one_and_on_two_devices(square):
    for trials in (TRIALS, TRIALS[:5], TRIALS[:1]):  # also when they do not divide evenly
        one = trained(square, trials, lanes=4)
        two = trained(square, trials, lanes=4, devices=2)
        assert list(two) == trials
        assert_same_bits(one, two)


def test_the_bits_of_a_trial_do_not_depend_on_its_neighbours_or_their_order(square):
    together = trained(square, TRIALS, lanes=4)
    assert_same_bits(together, trained(square, TRIALS[::-1], lanes=4))
    for trial in TRIALS[::3]:
        assert_same_bits(together, trained(square, [trial], lanes=4))


@pytest.mark.parametrize("lanes", [3, 8, 32])
def test_parameters_agree_across_lane_counts_in_single_precision(square, lanes):
    alone = trained(square, TRIALS, lanes=1)
    packed = trained(square, TRIALS, lanes=lanes)
    for trial in TRIALS:
        chex.assert_trees_all_close(alone[trial], packed[trial], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("at_once", [1, 2, 4])
def test_lanes_can_run_all_at_once_some_at_a_time_or_one_at_a_time(at_once):
    program = parallel.packed(
        lambda state, shared, trial, local: {"sum": state * shared + trial["x"] + local},
        parallel.mesh(),
        per=["trial", "all", "trial", "device"],
        lanes=4,
        at_once=at_once,
    )
    state, x = np.arange(8.0, dtype=np.float32), np.linspace(0, 1, 8, dtype=np.float32)
    got = program(state, np.float32(3), {"x": x}, np.array([10, 20], np.float32))["sum"]
    np.testing.assert_allclose(got, 3 * state + x + np.repeat([10, 20], 4), rtol=1e-6)


def test_at_once_must_divide_the_lanes():
    with pytest.raises(ValueError, match="at_once: got 3, wanted a divisor of the 4 lanes"):
        parallel.packed(lambda *_: None, parallel.mesh(), per=["trial"], lanes=4, at_once=3)


@pytest.mark.slow
def test_shard_map_over_vmap_agrees_with_pmap(square):
    recipe = train.Recipe.of(
        square, optimizers.get("nesterov"), schedules.constant, batch_size=8, microbatch=8
    )
    data = jax.tree.map(jnp.asarray, square.splits()["train"])

    def step(state, hyperparameters):
        drawn = train.draw(state.key, sampling.Position(0, 0), size=8, examples=100)
        return train.step(recipe, state, hyperparameters, data, train.Batch(drawn, 0, 8), 0)

    keys = np.stack([np.asarray(train.trial_key(0, 8, n, 0)) for n in range(8)])
    table = jax.tree.map(jnp.asarray, of(TRIALS))
    states = jax.vmap(lambda key, h: train.init(recipe, key, h))(keys, table)
    program = parallel.packed(step, parallel.mesh(), per=["trial", "trial"], lanes=4)
    mapped = program(states, table)
    split = jax.tree.map(lambda x: x.reshape(2, 4, *x.shape[1:]), (states, table))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        pmapped = jax.pmap(jax.vmap(step))(*split)
    for a, b in zip(jax.tree.leaves(mapped), jax.tree.leaves(pmapped), strict=True):
        np.testing.assert_array_equal(a, np.asarray(b).reshape(a.shape))


def test_states_survive_the_way_to_the_host_and_back(square):
    layout = Layout(4, 8)
    with engine(square, 2) as some:
        packs = some.start(TRIALS, of(TRIALS), batch_size=8, layout=layout)
        some.advance(packs, batch_size=8, layout=layout, step=0, to=20)
        left = TRIALS[5:2:-1]
        packs = some.pack(unpack(packs).only(left), of(left), layout=layout)
        some.advance(packs, batch_size=8, layout=layout, step=20, to=50)
        states = unpack(packs)
    moved = {trial: [leaf[i] for leaf in states.leaves] for i, trial in enumerate(states.ids)}
    assert_same_bits(moved, trained(square, TRIALS, lanes=4))


def test_a_shared_program_trains_as_one_of_its_own(square):
    whole, loop = Layout(4, 8), Layout(4, 8).sharing(8)
    assert loop == Layout(4, 4, shared=True)
    states = {}
    with engine(square, 1) as some:
        for layout in (whole, loop):
            packs = some.start(TRIALS[:4], of(TRIALS[:4]), batch_size=8, layout=layout)
            some.advance(packs, batch_size=8, layout=layout, step=0, to=50)
            states[layout.shared] = unpack(packs).leaves
        chex.assert_trees_all_close(states[False], states[True], rtol=1e-4, atol=1e-5)
        shared = [some._segment(size, Layout(4, size).sharing(size)) for size in (4, 8, 4)]
        own = [some._segment(size, Layout(4, size)) for size in (4, 8)]
    assert shared[0] is shared[1] is shared[2]
    assert own[0] is not own[1]
