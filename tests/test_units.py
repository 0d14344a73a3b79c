"""Half-lives in examples, shares of the budget, and the schedules whose lengths they are."""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import perceptron

import batchscale as bs
from batchscale import schedules


def test_half_lives_mean_the_same_examples_at_every_batch_size():
    momentum = bs.half_life(100, 10_000)
    for batch_size in (1, 8, 64, 512):
        space = bs.SearchSpace(momentum=momentum).at(batch_size)
        kept = space["momentum"].value(np.array([0, 0.5, 1 - 1e-12]))
        steps = np.log(0.5) / np.log(kept)
        np.testing.assert_allclose(steps * batch_size, [100, 1000, 10_000], rtol=1e-6)
        np.testing.assert_allclose(space["momentum"].unit(kept), [0, 0.5, 1], atol=1e-6)
    assert bs.half_life(64)(128) == 0.25
    assert bs.half_life(1, 2)(1 << 16) == 1e-12  # nothing is kept, in either


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: bs.half_life(10, 5), "half_life: got 10, 5, wanted examples above 0"),
        (lambda: bs.half_life(0), "half_life: got 0, wanted"),
        (lambda: bs.LogHalfLife(0, 0.5), "LogHalfLife: the bounds are 0.0 and 0.5"),
        (lambda: bs.LogHalfLife(0.5, 1), "LogHalfLife: the bounds are 0.5 and 1.0"),
        (lambda: bs.ShareOfBudget(1.5), "ShareOfBudget: got 1.5, wanted shares above 0"),
        (lambda: bs.ShareOfBudget(bs.Uniform(0, 1)), "wanted shares above 0"),
        (lambda: bs.ShareOfBudget(bs.Integer(1, 2)), "wanted a number, Uniform or LogUniform"),
        (lambda: bs.ShareOfBudget("all"), "but must be a number"),
        (lambda: bs.SearchSpace(w=bs.ShareOfBudget(0.1)).at(8), "w is a share of the budget"),
    ],
)
def test_what_is_no_range_is_refused(make, words):
    with pytest.raises((TypeError, ValueError), match=re.escape(words)):
        make()


def test_spaces_with_half_lives_are_stored_and_refined():
    space = bs.SearchSpace(b1=bs.half_life(100, 10_000)).at(10)
    assert bs.SearchSpace.from_json(space.to_json()) == space
    import pandas as pd

    values = space["b1"].value(np.linspace(0.4, 0.6, 9))
    trials = pd.DataFrame({"b1": values, "first_crossing": np.arange(9) + 10.0})
    refined = bs.tuner.refine(space, trials, leading=5)["b1"]
    # Places 0.4 to 0.5 lead, and a quarter of that beyond, of a range of two decades.
    lives = [10 * math.log(0.5) / math.log(kept) for kept in (refined.low, refined.high)]
    np.testing.assert_allclose(lives, [100 * 10 ** (2 * x) for x in (0.375, 0.525)], rtol=1e-6)


def study(**changes):
    options = {
        "workload": perceptron(),
        "optimizer": "sgd",
        "space": bs.SearchSpace(
            learning_rate=bs.LogUniform(0.1, 1), warmup_steps=bs.ShareOfBudget(bs.Uniform(0.1, 0.2))
        ),
        "schedule": "warmup_constant",
        "batch_sizes": [8, 16],
        "goal": bs.Goal("validation/error", 0.0),
        "trials": 2,
        "max_steps": {8: 40, 16: 20},
        "stop": "budget",
    }
    return bs.Study(**{**options, **changes})


def test_shares_are_of_the_budget_of_their_batch_size(tmp_path):
    definition = study().definition()
    assert definition.spaces[8]["warmup_steps"] == bs.Uniform(4.0, 8.0)
    assert definition.spaces[16]["warmup_steps"] == bs.Uniform(2.0, 4.0)
    with pytest.warns(UserWarning, match="no trial reached"):
        result = study().run(tmp_path, progress=False)
    drawn = result.trials["warmup_steps"].groupby("batch_size").agg(["min", "max"])
    assert (drawn.loc[8].between(4, 8) & drawn.loc[16].between(2, 4)).all()
    # Of another budget they would be other numbers of steps.
    with pytest.raises(ValueError, match="warmup_steps=Uniform"):
        study(max_steps={8: 80, 16: 40}).run(tmp_path, progress=False)


def in_steps(rates):
    return {name: jnp.float32(value) for name, value in rates.items()}


LENGTHS = {"learning_rate": 0.3, "warmup_steps": 7.0, "learning_rate_decay_steps": 40.0,
           "end_learning_rate_factor": 0.1}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("cosine", lambda t: float(optax.cosine_decay_schedule(0.3, 40, 0.1)(t))),
        ("warmup_constant", lambda t: 0.3 * min(t + 1, 7) / 7),
        (
            "warmup_cosine",
            lambda t: (
                0.3 * (t + 1) / 7
                if t < 7
                else float(optax.cosine_decay_schedule(0.3, 33, 0.1)(t - 7))
            ),
        ),
        ("inverse_square_root", lambda t: 0.3 * min((t + 1) / 7, (7 / (t + 1)) ** 0.5)),
        ("linear_decay", lambda t: float(optax.linear_schedule(0.3, 0.03, 40)(t))),
    ],
)
def test_schedules_follow_their_formulas_with_traced_lengths(name, expected):
    schedule, needed = schedules.get(name)
    assert set(needed) <= set(LENGTHS)
    steps = jnp.arange(100)
    rates = in_steps({name: LENGTHS[name] for name in needed})
    with jax.numpy_dtype_promotion("strict"):
        found = jax.jit(jax.vmap(schedule, in_axes=(0, None)))(steps, rates)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, [expected(t) for t in range(100)], rtol=2e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("name", "warmup", "decay", "step", "factor"),
    [
        ("warmup_cosine", 100, 50, 99, 1.0),
        ("warmup_cosine", 100, 50, 100, 0.1),
        ("warmup_cosine", 100, 50, 150, 0.1),
        ("warmup_cosine", 100, 50, 12_345, 0.1),
        ("warmup_cosine", 100, 100, 50, 0.51),
        ("warmup_cosine", 100, 100, 100, 0.1),
        ("warmup_cosine", 0, 100, 0, 1.0),
        ("linear_decay", 0, 0, 0, 0.1),
        ("linear_decay", 0, 0, 7, 0.1),
        ("cosine", 0, 0, 0, 0.1),
        ("warmup_constant", 0, 0, 0, 1.0),
    ],
)
def test_schedules_whose_parts_take_no_steps_are_at_the_end_of_them(
    name, warmup, decay, step, factor
):
    values = {
        "learning_rate": 2.0,
        "warmup_steps": float(warmup),
        "learning_rate_decay_steps": float(decay),
        "end_learning_rate_factor": 0.1,
    }
    traced = jax.tree.map(jnp.asarray, values)
    found = jax.jit(schedules.get(name)[0])(jnp.asarray(step), traced)
    assert float(found) == pytest.approx(2.0 * factor)
