"""Which trials have diverged: by parameters, the optimizer's state, or the measured loss."""

import dataclasses
import functools
import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pandas as pd
import pytest

import batchscale as bs
from batchscale import optimizers, sampling, schedules, train
from batchscale.sampling import Position
from batchscale.stopping import evaluation_grid
from batchscale.train import Recipe, TrainState

GOAL = bs.Goal("validation/off", 0.3)


def data(examples, seed):
    x = np.random.default_rng(seed).uniform(-1, 1, (examples, 4)).astype(np.float32)
    return {"input": x, "label": x @ np.array([1, -2, 0.5, 1], np.float32)}


def predicted(params, x):
    return (x @ params["a"]) @ params["b"]


def deep_linear(validation, **metrics):
    """A linear network of two layers: at a high rate its prediction is NaN before its weights are.

    Its metric is one that NaN passes: `NaN > 0.1` is False.
    """

    def init(key):
        a, b = jax.random.split(key)
        return {"a": jax.random.normal(a, (4, 8)) / 2, "b": jax.random.normal(b, (8,)) / 8**0.5}

    def off(params, batch):
        return jnp.abs(predicted(params, batch["input"]) - batch["label"]) > 0.1

    return bs.Workload.from_functions(
        init,
        lambda params, batch: (predicted(params, batch["input"]) - batch["label"]) ** 2,
        metrics={"off": off, **metrics},
        data={"train": data(200, 0), "validation": data(validation, 1)},
    )


def zero_nans(values):
    return optax.chain(optax.zero_nans(), optax.sgd(values["learning_rate"]))


def study(workload, **changes):
    fields = {
        "workload": workload,
        "optimizer": "sgd",
        "space": bs.SearchSpace(learning_rate=bs.LogUniform(1e-2, 1e2)),
        "batch_sizes": [8],
        "goal": GOAL,
        "trials": 12,
        "max_steps": 40,
    }
    return bs.Study(**fields | changes)


@pytest.fixture(scope="module")
def run_of(tmp_path_factory):
    """A study and its result, run once."""

    @functools.cache
    def run(validation, stop, optimizer):
        some = study(deep_linear(validation), optimizer=optimizer, stop=stop)
        return some, some.run(tmp_path_factory.mktemp("study"), progress=False)

    return run


def plain_curve(result, batch_size, trial, *, zeroed):
    """A trial by hand, in NumPy: after each step the share that is off, and whether it diverged."""
    rate = np.float32(result.trials.loc[(batch_size, trial, 0), "learning_rate"])
    key = train.trial_key(0, batch_size, trial, 0)
    wrapped = jax.random.wrap_key_data(key, impl="threefry2x32")
    a, b = jax.random.split(jax.random.fold_in(wrapped, 0))
    a, b = np.asarray(jax.random.normal(a, (4, 8)) / 2), jax.random.normal(b, (8,)) / 8**0.5
    b = np.asarray(b)
    shuffle = jax.random.key_data(jax.random.fold_in(wrapped, 1))
    places = jnp.arange(40 * batch_size)
    order = np.asarray(sampling.indices(shuffle, Position(0, 0), places, examples=200))
    some = data(200, 0)
    with np.errstate(all="ignore"):
        for step in range(41):
            yield step, a, b
            batch = order[step * batch_size : (step + 1) * batch_size]
            x, y = some["input"][batch], some["label"][batch]
            error = 2 * ((x @ a) @ b - y) / np.float32(batch_size)
            gradient = np.outer(x.T @ error, b), (x @ a).T @ error
            if zeroed:
                gradient = [np.where(np.isnan(g), 0, g).astype(np.float32) for g in gradient]
            a, b = a - rate * gradient[0], b - rate * gradient[1]


def plain_steps(result, batch_size, validation, *, stop, zeroed):
    """The definition by hand: the first step at which one of F is past the goal, and is finite."""
    bounded = len(validation["input"]) >= 1000
    grid = evaluation_grid(40, 0.05)
    past, diverged = {}, {}
    for trial in result.trials.loc[batch_size].index.get_level_values("trial"):
        for step, a, b in plain_curve(result, batch_size, trial, zeroed=zeroed):
            with np.errstate(all="ignore"):
                found = (validation["input"] @ a) @ b
                loss = ((found - validation["label"]) ** 2).sum(dtype=np.float32)
                off = np.mean(np.abs(found - validation["label"]) > np.float32(0.1))
            heard = not bounded or off < GOAL.value or trial in past or step == grid[-1]
            if not (np.isfinite(a).all() and np.isfinite(b).all()):
                heard, loss = True, np.nan
            if step in grid and heard and not np.isfinite(loss):
                diverged[trial] = step
                break
            if step in grid and off < GOAL.value:
                past.setdefault(trial, step)
    for step in grid:
        at = step if stop == "first" else grid[-1]
        members = [n for n in sorted(result.trials.loc[batch_size].index.get_level_values(0))
                   if diverged.get(n, np.inf) > at][:12]  # fmt: skip
        if any(past.get(trial, np.inf) <= step for trial in members):
            return step
    return np.inf


@pytest.mark.parametrize(
    ("validation", "stop", "optimizer"),
    [
        pytest.param(200, "first", "sgd", marks=pytest.mark.long),
        (200, "budget", zero_nans),
        (1200, "first", "sgd"),
        (1200, "budget", zero_nans),
    ],
)
@pytest.mark.slow
def test_a_loss_that_is_nan_is_no_crossing(validation, stop, optimizer, run_of):
    _, result = run_of(validation, stop, optimizer)
    table = result.steps_to_target()
    for batch_size, steps in table[["batch_size", "steps"]].itertuples(index=False):
        assert steps == plain_steps(
            result, batch_size, data(validation, 1), stop=stop, zeroed=optimizer is zero_nans
        )
    assert (table["learning_rate"] < 1).all()  # those whose loss is NaN have 37 and 58
    kept = result.measurements["validation/loss"].dropna()
    assert np.isfinite(kept[result.measurements["validation/off"] < GOAL.value]).all()


def test_bounds_change_no_trial_where_losses_are_not_finite(run_of, tmp_path):
    some, bounds = run_of(1200, "budget", zero_nans)
    exact = dataclasses.replace(some, curves="exact").run(tmp_path, progress=False)
    assert (bounds.trials["status"] == "infeasible").any()
    pd.testing.assert_frame_equal(bounds.trials, exact.trials, check_exact=True)
    pd.testing.assert_frame_equal(
        bounds.steps_to_target(), exact.steps_to_target(), check_exact=True
    )


@pytest.mark.parametrize("status", ["complete", "infeasible"])
def test_one_trial_run_alone_ends_as_beside_others_that_diverge(status, run_of):
    some, result = run_of(200, "budget", zero_nans)
    number = result.trials.index[result.trials["status"] == status][0][1]
    alone = some.run_trial(batch_size=8, trial=number, folder=result.folder, steps=40)
    assert alone.diverged == (status == "infeasible")
    there = result.measurements.query("trial == @number")["validation/loss"]
    pd.testing.assert_series_equal(alone.curve["validation/loss"], there)


class Least(NamedTuple):
    """The state of an optimizer that remembers the least it has seen; infinite at first."""

    least: Any
    moment: Any


def frozen_from(step, value):
    """Plain descent whose second state turns to a value from a step on, parameters being fine."""

    def factory(values):
        def init(params):
            return Least(jnp.full((), jnp.inf), {"step": jnp.zeros(()), "moment": jnp.zeros(())})

        def update(updates, state, params=None):
            del params
            at = state.moment["step"] + 1
            # As where a second moment has overflowed: nothing is trained any more.
            alive = jnp.where(at < step, 1.0, 0.0)
            moment = jnp.where(at < step, 0.0, value)
            updates = jax.tree.map(lambda g: -alive * values["learning_rate"] * g, updates)
            return updates, Least(state.least, {"step": at, "moment": moment})

        return optax.GradientTransformation(init, update)

    return factory


@pytest.mark.filterwarnings("ignore:no trial reached", "ignore:all of the")
@pytest.mark.parametrize(
    ("value", "status"), [(np.nan, "infeasible"), (np.inf, "infeasible"), (3.0, "complete")]
)
def test_an_optimizers_state_that_is_not_finite_is_divergence(value, status, tmp_path):
    """What begins as infinite, and stays so, is none."""
    some = study(
        deep_linear(200),
        optimizer=frozen_from(6, value),
        space=bs.SearchSpace(learning_rate=0.01),
        goal=bs.Goal("validation/off", 1e-6),
        trials=2,
        max_infeasible=0,
        max_steps=12,
    )
    result = some.run(tmp_path, progress=False)
    assert set(result.trials["status"]) == {status}
    assert set(result.trials["steps_trained"]) == {6 if status == "infeasible" else 12}


@pytest.mark.parametrize(
    ("transformation", "sound"),
    [
        (lambda h: optax.apply_if_finite(optax.sgd(h["learning_rate"]), 3), True),
        (lambda h: optax.adam(h["learning_rate"]), False),
        (lambda h: optax.sgd(h["learning_rate"], momentum=0.9), False),
        (lambda h: optax.sgd(h["learning_rate"]), True),
        (
            lambda h: optax.chain(
                optax.sgd(h["learning_rate"]), optax.contrib.reduce_on_plateau(patience=3)
            ),
            True,
        ),
    ],
)
def test_states_of_optax_are_sound_at_first_and_after_a_bad_gradient_as_they_say(
    transformation, sound
):
    """`apply_if_finite` skips it, and the best value of `reduce_on_plateau` begins as infinity."""
    optimizer, schedule = optimizers.get(transformation), schedules.get("constant")[0]
    recipe = Recipe.of(deep_linear(200), optimizer, schedule, batch_size=8, microbatch=8)
    values = {"learning_rate": jnp.asarray(0.1)}
    params = {"a": jnp.ones((4, 8)), "b": jnp.ones(8)}
    made = transformation(values)
    state = TrainState(params, {}, made.init(params), jnp.zeros(2, jnp.uint32))
    assert train.sound(recipe, state, values)
    bad = jax.tree.map(lambda x: jnp.full_like(x, jnp.nan), params)
    update = optimizers.as_usual(optax.with_extra_args_support(made).update)
    _, after = update(bad, state.opt_state, params, value=1.0)
    assert bool(train.sound(recipe, dataclasses.replace(state, opt_state=after), values)) is sound


def test_a_metric_that_is_never_finite_is_told_and_no_divergence(tmp_path):
    def relative(params, batch):
        return jnp.abs(predicted(params, batch["input"]) / (0 * batch["label"]))

    message = re.escape("metrics: the sum of 'relative' over the split 'validation'")
    for validation in (200, 1200):
        with pytest.raises(ValueError, match=message):
            study(deep_linear(validation, relative=relative)).run(
                tmp_path / str(validation), progress=False
            )


def with_metrics(workload, finalize, more):
    def metrics(params, model_state, batch):
        return dict(workload.metrics(params, model_state, batch)) | more(params, batch)

    return dataclasses.replace(workload, metrics=metrics, finalize=finalize)


@pytest.mark.filterwarnings("ignore:.*not a number in any evaluation")
@pytest.mark.slow
def test_nan_of_finite_sums_is_no_divergence(run_of, tmp_path):
    """A ratio of which the count is 0 for a trial, and a function that returns NaN."""
    workload = with_metrics(
        deep_linear(200),
        {"strange": lambda sums: float("nan")},
        lambda params, batch: {
            "precision": (jnp.zeros((), int), (predicted(params, batch["input"]) > 1e9).sum()),
            "strange": batch["label"].sum(),
        },
    )
    _, plain = run_of(200, "first", "sgd")
    result = study(workload).run(tmp_path, progress=False)
    pd.testing.assert_frame_equal(result.trials, plain.trials, check_exact=True)
    assert result.measurements["validation/precision"].isna().any()


@pytest.mark.parametrize("kind", [int, float])
@pytest.mark.parametrize("validation", [200, 1200])
def test_a_count_of_nothing_is_refused_before_anything_is_trained(kind, validation, tmp_path):
    """All of the validation split is masked; of what hangs on the parameters nothing is said."""
    workload = deep_linear(validation)
    splits = {
        name: dict(fields) | {"mask": np.full(len(fields["label"]), name == "train")}
        for name, fields in workload.splits().items()
    }

    def masked(params, batch):
        wrong = jnp.abs(predicted(params, batch["input"]) - batch["label"]) > 0.1
        return {"masked": ((wrong & batch["mask"]).sum(), batch["mask"].astype(kind).sum())}

    workload = dataclasses.replace(with_metrics(workload, {}, masked), data=splits)
    for goal in (GOAL, bs.Goal("validation/masked", 0.3)):
        with pytest.raises(ValueError, match="'masked' of workload 'own' counts nothing in split"):
            study(workload, goal=goal).run(tmp_path / goal.metric, progress=False)
        assert not list(tmp_path.rglob("*.parquet"))
