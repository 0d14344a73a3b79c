"""Sharpness against NumPy's eigenvalues, and batch sizes compared at the same training loss."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.flatten_util import ravel_pytree

import batchscale as bs
from batchscale.models import layers
from batchscale.theory import generalisation, sharpness


def hessian(workload, params):
    """Of the mean training loss, by JAX, one column after another."""
    batch = workload.splits()["train"]
    flat, unravel = ravel_pytree(params)

    def mean(flat):
        (total, count), _ = workload.loss(unravel(flat), {}, batch, None, {})
        return total / count.astype(total.dtype)

    return np.asarray(jax.hessian(mean)(flat), np.float64)


def quadratic(spectrum):
    """A loss with this spectrum, in a random basis."""
    size = len(spectrum)
    basis = np.linalg.qr(np.random.default_rng(1).normal(size=(size, size)))[0]
    matrix = (basis * np.asarray(spectrum)) @ basis.T
    return bs.Workload.from_functions(
        init=lambda key: jnp.zeros(size),
        loss=lambda params, batch: 0.5 * params @ jnp.asarray(matrix, jnp.float32) @ params,
        data={"train": (np.zeros((10, 1)), np.zeros(10))},
    )


@pytest.fixture(scope="module")
def trained(square):
    """Parameters of the small network after some training."""
    study = bs.Study(
        workload=square,
        optimizer="sgd",
        space=bs.SearchSpace(learning_rate=0.5),
        batch_sizes=[16],
        goal=bs.Goal("validation/error", 0.1),
        trials=1,
        max_steps=200,
    )
    return study.run_trial(batch_size=16, trial=0, steps=200).params


@pytest.mark.slow
def test_the_largest_eigenvalues_are_those_of_the_whole_hessian(square, trained):
    wanted = np.linalg.eigvalsh(hessian(square, trained))[::-1]
    found = sharpness(square, trained, top=4, iterations=80, tolerance=1e-5)
    np.testing.assert_allclose(found.eigenvalues, wanted[:4], rtol=1e-4)
    assert (found.errors < 1e-3 * wanted[0]).all()
    assert found.examples == 100
    assert found.iterations <= 84


@pytest.mark.parametrize("iterations", [4, 8, 20])
def test_an_eigenvalue_lies_within_the_error(square, trained, iterations):
    wanted = np.linalg.eigvalsh(hessian(square, trained))
    found = sharpness(square, trained, top=3, iterations=iterations, tolerance=0)
    for value, error in zip(found.eigenvalues, found.errors, strict=True):
        assert np.abs(wanted - value).min() <= error + 1e-5 * wanted[-1]


def test_few_iterations_say_how_far_off_they_may_be(square, trained):
    few = sharpness(square, trained, iterations=2)
    more = sharpness(square, trained, iterations=40)
    assert few.errors[0] > 100 * more.errors[0]
    assert few.eigenvalues[0] < more.eigenvalues[0]


@pytest.mark.parametrize(
    ("spectrum", "top"),
    [
        (np.arange(1.0, 31.0), 3),
        ([7.0, 7.0, 3.0, 1.0, 1.0, -9.0], 3),
        ([-1.0, -2.0, -5.0], 2),
        ([4.0], 1),
        (np.geomspace(1e-4, 1e4, 50), 2),
    ],
    ids=["even", "repeated", "negative", "one", "wide"],
)
def test_known_spectra_are_found(spectrum, top):
    found = sharpness(quadratic(spectrum), np.zeros(len(spectrum), np.float32), top=top)
    wanted = np.unique(spectrum)[::-1][:top]  # one that stands twice is found once
    np.testing.assert_allclose(found.eigenvalues, wanted, rtol=1e-4)


@pytest.mark.parametrize("microbatch", [1, 33, 100])
def test_microbatches_change_nothing(square, trained, microbatch):
    found = sharpness(square, trained, microbatch=microbatch)
    np.testing.assert_allclose(found.eigenvalues, sharpness(square, trained).eigenvalues, rtol=1e-4)


def test_some_examples_have_the_hessian_of_their_own_mean_loss():
    points = np.random.default_rng(3).normal(size=(50, 2)).astype(np.float32)
    workload = bs.Workload.from_functions(
        init=lambda key: jnp.zeros(2),
        loss=lambda params, batch: 0.5 * (batch["input"] @ params - batch["label"]) ** 2,
        data={"train": (points, np.zeros(50))},
    )
    some = [
        sharpness(workload, np.zeros(2, np.float32), examples=40, seed=seed) for seed in range(30)
    ]
    values = [one.eigenvalues[0] for one in some]
    assert some[0].examples == 40
    assert len(set(values)) == 30
    whole = np.linalg.eigvalsh(points.T @ points / 50)[-1]
    # What is left out could only have added.
    assert max(values) <= whole * 50 / 40 * (1 + 1e-5)
    assert min(values) < whole < max(values)


class Dropped(nn.Module):
    """A convolution that is fast in loops, whose gradients are rules of its own, and dropout."""

    @nn.compact
    def __call__(self, x, *, train, dropout_rate=0.5):
        layer = nn.Conv(2, (3, 3), conv_general_dilated=layers.fast_conv_general_dilated)
        x = nn.relu(layer(x)).reshape(len(x), -1)
        if train:
            x = layers.dropout(x, dropout_rate, self.make_rng("dropout"))
        return nn.Dense(3)(x)


def test_dropout_and_convolutions_have_sharpness_that_the_seed_decides():
    images = np.random.default_rng(0).normal(size=(6, 4, 4, 1)).astype(np.float32)
    workload = bs.Workload.from_flax(Dropped(), {"train": (images, np.arange(6) % 3)})
    params, state = workload.init(jax.random.key(0))
    one, again, other = (
        sharpness(workload, params, state, seed=seed).eigenvalues for seed in (3, 3, 4)
    )
    assert one == again != other
    none = sharpness(workload, params, state, hyperparameters={"dropout_rate": 0.0})
    off = {"dropout_rate": 0.0}

    def mean(flat):
        batch = workload.splits()["train"]
        unravel = ravel_pytree(params)[1]
        total, count = workload.loss(unravel(flat), state, batch, jax.random.key(0), off)[0]
        return total / count.astype(total.dtype)

    wanted = np.linalg.eigvalsh(jax.jit(jax.hessian(mean))(ravel_pytree(params)[0]))[-1]
    np.testing.assert_allclose(none.eigenvalues, [wanted], rtol=1e-3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"top": 4}, "top: got 4, wanted an integer, 1 to 3"),
        ({"top": 2, "iterations": 1}, "iterations: got 1, wanted an integer, 2 or more"),
        ({"examples": 11}, "examples: got 11, wanted an integer, 1 to 10"),
    ],
)
def test_arguments_are_checked(changes, message):
    with pytest.raises(ValueError, match=message):
        sharpness(quadratic([1.0, 2.0, 3.0]), np.zeros(3, np.float32), **changes)


def test_diverged_parameters_are_refused(square, trained):
    broken = jax.tree.map(lambda x: np.full_like(x, np.nan), trained)
    with pytest.raises(ValueError, match="no finite second derivatives"):
        sharpness(square, broken)


@pytest.fixture(scope="module")
def swept(square, tmp_path_factory):
    """A small study over batch sizes, and its result."""
    study = bs.Study(
        workload=square,
        optimizer="sgd",
        space=bs.SearchSpace(learning_rate=bs.LogUniform(0.1, 2)),
        batch_sizes=[8, 64],
        goal=bs.Goal("validation/error", 0.2),
        trials=4,
        max_steps=400,
        stop=3.0,
    )
    return study, study.run(tmp_path_factory.mktemp("swept"), progress=False)


@pytest.mark.long
def test_batch_sizes_are_compared_at_the_same_training_loss(swept, square):
    study, result = swept
    table = generalisation(study, result, train_loss=0.5, trials=2, tolerance=1e-4)
    assert table["batch_size"].tolist() == [8, 8, 64, 64]
    winners = result.optima().set_index("batch_size")["trial"]
    assert table["trial"].tolist()[::2] == winners[[8, 64]].tolist()
    assert (table["train_loss"] < 0.5).all()
    np.testing.assert_allclose(table["train_loss"], 0.5, rtol=0.15)
    for name, gap in (("loss", "gap"), ("error", "error_gap")):
        np.testing.assert_allclose(table[gap], table[f"test_{name}"] - table[f"train_{name}"])
    row = table.iloc[3]
    run = study.run_trial(batch_size=64, trial=int(row["trial"]), steps=int(row["step"]))
    assert run.curve["train/loss"].iloc[-1] == row["train_loss"] < run.curve["train/loss"].iloc[-2]
    assert run.curve["test/error"].iloc[-1] == row["test_error"]
    wanted = np.linalg.eigvalsh(hessian(square, run.params))[-1]
    assert row["sharpness"] == pytest.approx(wanted, rel=1e-3)


def test_a_loss_that_is_not_reached_is_a_miss_that_stays_in_the_table(swept):
    study, result = swept
    table = generalisation(study, result, train_loss=1e-6, max_steps=20)
    assert table["step"].tolist() == [np.inf, np.inf]
    assert table["trial"].notna().all()
    assert table[["train_loss", "gap", "sharpness"]].isna().all(axis=None)


def test_a_batch_size_whose_goal_was_not_reached_has_a_row_without_a_trial(swept):
    study, result = swept
    trials = result.trials.copy()
    trials.loc[8, "first_crossing"] = np.inf
    table = generalisation(study, dataclasses.replace(result, trials=trials), train_loss=0.5)
    assert table["batch_size"].tolist() == [8, 64]
    assert table["trial"].isna().tolist() == [True, False]
    assert table["step"].iloc[0] == np.inf


def test_what_cannot_be_compared_is_refused(swept):
    study, result = swept
    definition = dataclasses.replace(result.definition, stop="first")
    early = dataclasses.replace(result, definition=definition)
    with pytest.raises(ValueError, match=r"Call study.extend\(folder, stop=3.0\)"):
        generalisation(study, early, train_loss=0.5, trials=2)
    with pytest.raises(ValueError, match="has no metric 'holdout/loss'"):
        generalisation(study, result, train_loss=0.5, split="holdout")
    averaged = dataclasses.replace(
        study.workload, evaluated_parameters=lambda params, state: params
    )
    with pytest.raises(ValueError, match="evaluates other parameters than it trains"):
        generalisation(dataclasses.replace(study, workload=averaged), result, train_loss=0.5)
