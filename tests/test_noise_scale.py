"""The gradient noise scale against plain NumPy, brute force and closed forms."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from flax import linen as nn
from jax.flatten_util import ravel_pytree

import batchscale as bs
from batchscale.models import layers
from batchscale.theory import NoisyQuadratic, noise_scale, noise_scale_of_batches, noise_scales
from batchscale.theory.ratio import Moments, fieller

EXAMPLES, DIMENSION = 60, 4
RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(EXAMPLES, DIMENSION)) * [2.0, 1.0, 0.5, 0.1]
Y = X @ [1.0, -1.0, 2.0, 0.5] + 0.3 * RANDOM.normal(size=EXAMPLES)
WEIGHTS = np.array([0.7, -0.8, 1.5, 0.0])


REGRESSION = bs.Workload.from_functions(
    init=lambda key: jnp.zeros(DIMENSION),
    loss=lambda params, batch: 0.5 * (batch["input"] @ params - batch["label"]) ** 2,
    data={"train": (X.astype(np.float32), Y.astype(np.float32))},
)


def gradients(weights=WEIGHTS):
    return (X @ weights - Y)[:, None] * X


def exact(rows):
    """|G|^2 and tr(Sigma) of a finite population of gradients."""
    return (rows.mean(0) ** 2).sum(), rows.var(0, ddof=1).sum()


def of_rows(rows):
    return Moments((rows.mean(0) ** 2).sum(), (rows**2).sum(1))


# At the optimum of the loss the gradient is 0.
NEARLY = np.linalg.lstsq(X, Y, rcond=None)[0] + [0.0, 0.003, 0.0, 0.0]


@pytest.mark.parametrize("weights", [WEIGHTS, NEARLY], ids=["far", "near"])
def test_all_examples_give_the_training_sets_own_noise_scale(weights):
    found = noise_scale(REGRESSION, weights.astype(np.float32), with_hessian=True)
    rows = gradients(weights)
    squared, trace = exact(rows)
    hessian, gradient = X.T @ X / EXAMPLES, rows.mean(0)
    b_noise = np.trace(hessian @ np.cov(rows.T)) / (gradient @ hessian @ gradient)
    np.testing.assert_allclose(found.squared_gradient, squared, rtol=2e-3)
    np.testing.assert_allclose(found.trace, trace, rtol=1e-5)
    np.testing.assert_allclose(found.b_simple, trace / squared, rtol=2e-3)
    np.testing.assert_allclose(found.interval, found.b_simple, rtol=1e-12)
    np.testing.assert_allclose(found.b_noise, b_noise, rtol=2e-3)
    np.testing.assert_allclose(found.b_noise_interval, found.b_noise, rtol=1e-12)
    np.testing.assert_allclose(found.loss, 0.5 * np.mean((X @ weights - Y) ** 2), rtol=1e-5)
    assert found.examples == EXAMPLES


@pytest.mark.parametrize("examples", [3, 4, 6])
def test_the_mean_over_every_possible_sample_is_the_population(examples):
    rows = gradients()[:7]
    squared, trace = exact(rows)
    samples = [of_rows(rows[list(some)]) for some in itertools.combinations(range(7), examples)]
    np.testing.assert_allclose(np.mean([some.trace for some in samples]), trace)
    found = np.mean([some.squared_gradient(7) for some in samples])
    np.testing.assert_allclose(found, squared)


def test_samples_are_unbiased_and_their_interval_covers():
    workload, params = REGRESSION, WEIGHTS.astype(np.float32)
    found = [noise_scale(workload, params, examples=40, seed=seed) for seed in range(150)]
    squared, trace = exact(gradients())
    for name, wanted in (("squared_gradient", squared), ("trace", trace)):
        values = np.array([getattr(one, name) for one in found])
        assert abs(values.mean() - wanted) < 3.5 * values.std(ddof=1) / len(values) ** 0.5
    covers = [one.interval.low <= trace / squared <= one.interval.high for one in found]
    # Small samples of gradients with heavy tails: somewhat below the nominal 0.9.
    assert 0.78 < np.mean(covers) <= 0.97
    assert np.mean([one.interval.high < 4 * one.interval.low for one in found]) > 0.5


@pytest.mark.parametrize("strength", [0.0, 0.1, 1.0])
def test_the_interval_covers_as_often_as_it_says_however_weak_the_gradient(strength):
    random = np.random.default_rng(1)
    rows = random.normal(size=(1000, 20))
    rows += strength * np.ones(20) / 20**0.5 - rows.mean(0)
    squared, trace = exact(rows)
    covered, open_ = [], []
    for _ in range(500):
        some = rows[random.choice(1000, 100, replace=False)]
        moments = of_rows(some)
        covariance = moments.covariance(some @ some.mean(0), 1000)
        estimates = moments.trace, moments.squared_gradient(1000)
        interval = fieller(*estimates, covariance, freedom=99)
        truth = trace / squared if strength else np.inf
        covered.append(interval.low <= truth * (1 + 1e-9) and truth <= interval.high)
        open_.append(np.isinf(interval.high))
    # Where noise hides the gradient the interval errs on the safe side.
    assert 0.85 < np.mean(covered) < (0.96 if strength == 1 else 1.01)
    assert np.mean(open_) > 0.8 if strength == 0 else strength < 1 or not any(open_)


def test_the_jackknife_is_that_of_leaving_out_each_example():
    rows = gradients()[:9]
    left_out = [of_rows(np.delete(rows, i, 0)) for i in range(9)]
    pairs = np.array([(one.trace, one.squared_gradient(20)) for one in left_out])
    apart = pairs - pairs.mean(0)
    wanted = 8 / 9 * apart.T @ apart * (1 - 9 / 20)
    found = of_rows(rows).covariance(rows @ rows.mean(0), 20)
    np.testing.assert_allclose(found, wanted, rtol=1e-10)


def test_the_interval_of_b_noise_is_that_of_b_simple_in_the_inner_product_of_the_hessian():
    found = noise_scale(REGRESSION, WEIGHTS.astype(np.float32), examples=40, with_hessian=True)
    chosen = np.sort(np.random.default_rng(0).choice(EXAMPLES, 40, replace=False))
    hessian = X[chosen].T @ X[chosen] / 40
    root = np.linalg.cholesky(hessian)
    rows = gradients()[chosen] @ root  # plain products of these are those with the Hessian
    moments = of_rows(rows)
    covariance = moments.covariance(rows @ rows.mean(0), EXAMPLES)
    wanted = fieller(moments.trace, moments.squared_gradient(EXAMPLES), covariance, freedom=39)
    np.testing.assert_allclose(found.b_noise_interval, wanted, rtol=1e-3)
    assert wanted.low < found.b_noise < wanted.high
    missing = noise_scale(REGRESSION, WEIGHTS.astype(np.float32), examples=40).b_noise_interval
    assert np.isnan(missing).all()


def test_pairs_of_batches_find_the_same_noise_scale():
    params = WEIGHTS.astype(np.float32)
    found = [
        noise_scale_of_batches(REGRESSION, params, small=3, big=15, batches=60, seed=seed)
        for seed in range(12)
    ]
    squared, trace = exact(gradients())
    for name, wanted in (("squared_gradient", squared), ("trace", trace)):
        values = np.array([getattr(one, name) for one in found])
        assert abs(values.mean() - wanted) < 3.5 * values.std(ddof=1) / len(values) ** 0.5
        assert values.mean() == pytest.approx(wanted, rel=0.1)
    covers = [one.interval.low < trace / squared < one.interval.high for one in found]
    assert sum(covers) >= 9
    assert all(one.interval.high < 2 * one.interval.low for one in found)
    assert all(np.isnan(one.b_noise) for one in found)


def test_a_big_batch_of_the_whole_set_has_the_gradient_itself():
    found = noise_scale_of_batches(
        REGRESSION, WEIGHTS.astype(np.float32), small=1, big=EXAMPLES, batches=2
    )
    squared, trace = exact(gradients())
    np.testing.assert_allclose([found.squared_gradient, found.trace], [squared, trace], rtol=1e-4)


@pytest.mark.slow
def test_a_random_loss_has_the_noise_of_its_draws():
    model = NoisyQuadratic([2.0, 1.0, 0.5], [3.0, 1.0, 4.0], [1.0, 1.0, 1.0])
    theta = np.array([0.5, -1.0, 1.5])
    found = noise_scale(
        model.workload(), {"theta": theta.astype(np.float32)}, examples=600, with_hessian=True
    )
    h, c = model.curvature, model.noise
    squared = ((h * theta) ** 2).sum()
    assert found.trace == pytest.approx(c.sum(), rel=0.15)
    assert found.interval.low < c.sum() / squared < found.interval.high
    assert found.b_noise == pytest.approx((h * c).sum() / (h**3 * theta**2).sum(), rel=0.15)


def _pure_noise(params, model_state, batch, key, hyperparameters):
    """The gradient of a |w|^2 / 2, and noise of a fresh draw for every example."""
    count = len(batch["input"])
    drawn = jax.random.normal(key, params.shape) * count**0.5
    strength = hyperparameters.get("strength", 1.0)
    total = strength * count * 0.5 * params @ params + params @ drawn
    return (total, jnp.asarray(count)), model_state


NOISE = bs.Workload(
    name="noise",
    init=lambda key: (jnp.zeros(30), {}),
    loss=_pure_noise,
    metrics=lambda params, model_state, batch: {"loss": (params @ params, jnp.asarray(1))},
    data={"train": {"input": np.zeros((40, 1), np.float32)}},
)


@pytest.mark.parametrize("batches", [False, True])
def test_the_draws_of_a_random_loss_do_not_end_with_the_training_set(batches):
    workload, params = NOISE, np.full(30, 0.05, np.float32)
    if batches:
        found = [
            noise_scale_of_batches(workload, params, small=10, big=40, batches=8, seed=seed)
            for seed in range(12)
        ]
    else:
        found = [noise_scale(workload, params, seed=seed) for seed in range(60)]
    squared = np.array([one.squared_gradient for one in found])
    # The squared norm of the mean of all gradients is larger by 30 / 40.
    assert abs(squared.mean() - 30 * 0.05**2) < 3.5 * squared.std(ddof=1) / len(squared) ** 0.5
    assert squared.std(ddof=1) / len(squared) ** 0.5 < 0.05
    assert np.mean([one.trace for one in found]) == pytest.approx(30, rel=0.1)
    assert all(one.interval.high > one.interval.low for one in found)


@pytest.mark.slow
def test_microbatches_change_nothing():
    params = np.linspace(0, 1, 30, dtype=np.float32)
    some = noise_scale(NOISE, params, microbatch=30)
    whole = noise_scale(NOISE, params)
    for name in ("b_simple", "interval", "trace", "loss"):
        np.testing.assert_allclose(getattr(some, name), getattr(whole, name), rtol=1e-4)


def test_the_seed_decides_which_draws_are_taken():
    params = np.ones(30, np.float32)
    one, again, other = (noise_scale(NOISE, params, seed=seed).interval for seed in (1, 1, 2))
    assert one == again != other


def test_hyperparameters_reach_the_loss():
    params = np.ones(30, np.float32)
    strong = noise_scale(NOISE, params, hyperparameters={"strength": 10.0})
    weak = noise_scale(NOISE, params, hyperparameters={"strength": 1.0})
    assert strong.squared_gradient == pytest.approx(3000, rel=0.1)
    assert weak.squared_gradient == pytest.approx(30, rel=0.3)


class Convolution(nn.Module):
    """A convolution that is fast in loops, whose gradients are rules of its own."""

    @nn.compact
    def __call__(self, x, *, train):
        layer = nn.Conv(2, (3, 3), conv_general_dilated=layers.fast_conv_general_dilated)
        x = nn.relu(layer(x)).reshape(len(x), -1)
        return nn.Dense(3)(x)


@pytest.mark.slow
def test_convolutions_have_gradients_of_single_examples():
    images, labels = RANDOM.normal(size=(6, 4, 4, 1)).astype(np.float32), np.arange(6) % 3
    workload = bs.Workload.from_flax(Convolution(), {"train": (images, labels)})
    params, state = workload.init(jax.random.key(0))

    @jax.jit
    @jax.grad
    def gradient(params, image, label):
        alone = {"input": image[None], "label": label[None]}
        return workload.loss(params, state, alone, jax.random.key(0), {})[0][0]

    rows = [
        ravel_pytree(gradient(params, image, label))[0]
        for image, label in zip(images, labels, strict=True)
    ]
    squared, trace = exact(np.array(rows, np.float64))
    found = noise_scale(workload, params, state)
    np.testing.assert_allclose([found.squared_gradient, found.trace], [squared, trace], rtol=1e-4)


def small_study(square, **changes):
    fields = {
        "workload": square,
        "optimizer": "sgd",
        "space": bs.SearchSpace(learning_rate=0.3),
        "batch_sizes": [16],
        "goal": bs.Goal("validation/error", 0.2),
        "trials": 1,
        "max_steps": 300,
    }
    return bs.Study(**fields | changes)


@pytest.mark.slow
def test_the_noise_scale_along_a_run_is_that_at_its_checkpoints(square):
    study = small_study(square)
    table = noise_scales(study, batch_size=16, trial=0, steps=[0, 7, 150], examples=60, seed=3)
    assert table["step"].tolist() == [0, 7, 150]
    row = table.iloc[1]
    run = study.run_trial(batch_size=16, trial=0, steps=7)
    found = noise_scale(square, run.params, examples=60, seed=3)
    assert row[["b_simple", "low", "high"]].tolist() == [found.b_simple, *found.interval]
    assert row["loss"] == found.loss
    assert table["loss"].is_monotonic_decreasing


def test_checkpoints_are_the_parameters_of_shorter_runs(square):
    study = small_study(square)
    run = study.run_trial(batch_size=16, trial=0, steps=[0, 3, 17, 100])
    assert [point.step for point in run.checkpoints] == [0, 3, 17, 100]
    alone = study.run_trial(batch_size=16, trial=0, steps=17)
    jax.tree.map(np.testing.assert_array_equal, run.checkpoints[2].params, alone.params)
    jax.tree.map(np.testing.assert_array_equal, run.checkpoints[-1].params, run.params)
    with pytest.raises(ValueError, match=r"steps: got \[3, 3\], wanted at least one integer"):
        study.run_trial(batch_size=16, trial=0, steps=[3, 3])


def test_a_run_ends_past_another_goal(square):
    study = small_study(square)
    goal = bs.Goal("train/loss", 0.9)
    run = study.run_trial(batch_size=16, trial=0, until=goal)
    losses = run.curve["train/loss"]
    assert losses.iloc[-1] < 0.9 <= losses.iloc[:-1].min()
    short = study.run_trial(batch_size=16, trial=0, until=bs.Goal("train/loss", -1.0), steps=9)
    assert short.curve.index.get_level_values("step")[-1] == 9
    with pytest.raises(ValueError, match="has no metric 'train/nothing'"):
        study.run_trial(batch_size=16, trial=0, until=bs.Goal("train/nothing", 0.9))


def _weighed(params, model_state, batch, key, hyperparameters):
    losses = (batch["input"] @ params) ** 2 * batch["weight"]
    return (losses.sum(), batch["weight"].sum()), model_state


UNEVEN = bs.Workload(
    name="uneven",
    init=lambda key: (jnp.zeros(DIMENSION), {}),
    loss=_weighed,
    metrics=lambda params, model_state, batch: {},
    data={"train": {"input": X.astype(np.float32), "weight": np.arange(1.0, 61.0)}},
)


def _normalised(params, batch):
    """A norm of the batch that keeps no state."""
    features = batch["input"] @ params
    features = (features - features.mean()) / jnp.sqrt(features.var() + 1e-3)
    return (features - batch["label"]) ** 2


NORMALISED = bs.Workload.from_functions(
    init=lambda key: jnp.zeros(DIMENSION),
    loss=_normalised,
    data={"train": (X.astype(np.float32), X[:, 0].astype(np.float32))},
    name="normalised",
)


def test_a_loss_that_mixes_examples_has_a_noise_scale_by_batches_alone(monkeypatch):
    with pytest.raises(ValueError, match=r"loss: that of an example of 'normalised' depends.*Use"):
        noise_scale(NORMALISED, WEIGHTS.astype(np.float32))
    found = noise_scale_of_batches(NORMALISED, WEIGHTS.astype(np.float32), small=10, big=60)
    assert found.b_simple > 0
    study = small_study(NORMALISED, goal=bs.Goal("train/loss", 0.1))
    monkeypatch.setattr(bs.Study, "run_trial", None)  # it is told before anything trains
    with pytest.raises(ValueError, match="Use noise_scale_of_batches"):
        noise_scales(study, batch_size=16, trial=0, steps=[0, 5])


@pytest.mark.parametrize(
    ("workload", "changes", "message"),
    [
        (REGRESSION, {"examples": 61}, "examples: got 61, wanted an integer, 3 to 60"),
        (REGRESSION, {"examples": 2}, "examples: got 2, wanted an integer, 3 to 60"),
        (REGRESSION, {"split": "test"}, "split: workload 'own' has no 'test'; wanted one of train"),
        (REGRESSION, {"params": np.zeros(3)}, r"params: got arrays of shapes \[\(3,\)\], wanted"),
        (REGRESSION, {"model_state": {"mean": np.zeros(2)}}, "an example has no gradient of its"),
        (REGRESSION, {"microbatch": 0}, "microbatch: got 0"),
        (UNEVEN, {}, r"loss: it counts .* an example, .* Use noise_scale_of_batches"),
    ],
)
def test_what_has_no_answer_is_refused(workload, changes, message):
    arguments = {"params": np.ones(DIMENSION, np.float32)} | changes
    with pytest.raises(ValueError, match=message):
        noise_scale(workload, **arguments)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"small": 0}, "small: got 0"),
        ({"big": 61}, "big: got 61, wanted an integer, 8 to 60"),
        ({"big": 10}, "big: got 10, wanted a multiple of the 4 examples"),
        ({"batches": 1}, "batches: got 1, wanted an integer, 2 or more"),
    ],
)
def test_batches_that_cannot_be_are_refused(changes, message):
    sizes = {"small": 4, "big": 12} | changes
    with pytest.raises(ValueError, match=message):
        noise_scale_of_batches(REGRESSION, WEIGHTS.astype(np.float32), **sizes)


def test_losses_that_weigh_examples_have_a_noise_scale_by_batches():
    found = noise_scale_of_batches(UNEVEN, np.ones(DIMENSION, np.float32), small=5, big=60)
    weights = np.arange(1.0, 61.0)
    mean = (2 * (X.sum(1) * weights)[:, None] * X).sum(0) / weights.sum()
    np.testing.assert_allclose(found.squared_gradient, mean @ mean, rtol=1e-4)


def test_nothing_but_noise_has_no_noise_scale():
    workload = bs.Workload.from_functions(
        init=lambda key: jnp.zeros(1),
        loss=lambda params, batch: params[0] * batch["input"],
        data={"train": (np.repeat([-1.0, 1.0], 8), np.zeros(16))},
    )
    found = noise_scale(workload, np.zeros(1, np.float32))
    assert found.b_simple == found.interval.high == np.inf
    assert found.trace == pytest.approx(16 / 15)


def test_the_table_says_where_a_run_diverged(square):
    study = small_study(square, space=bs.SearchSpace(learning_rate=1e30))
    table = noise_scales(study, batch_size=16, trial=0, steps=[0, 50])
    assert table["step"].tolist() == [0]
    assert isinstance(table, pd.DataFrame)


def test_along_a_run_batches_are_taken_where_they_are_given(square, monkeypatch):
    one = small_study(square, batch_sizes=[8], trials=1, max_steps=200)
    run = {"batch_size": 8, "trial": 0, "steps": [0, 5], "progress": False}
    table = noise_scales(one, **run, small=4, big=16, batches=6)
    at = one.run_trial(batch_size=8, trial=0, steps=[0, 5]).checkpoints
    alone = [
        noise_scale_of_batches(square, x.params, x.model_state, small=4, big=16, batches=6)
        for x in at
    ]
    assert table["b_simple"].tolist() == [found.b_simple for found in alone]
    assert table["low"].tolist() == [found.interval.low for found in alone]
    with pytest.raises(ValueError, match="got batches and small alone"):
        noise_scales(one, **run, small=4, batches=6)
    monkeypatch.setattr(bs.Study, "run_trial", None)  # all this is told before anything trains
    with pytest.raises(ValueError, match="big: got 18, wanted a multiple of the 4"):
        noise_scales(one, **run, small=4, big=18)
    with pytest.raises(ValueError, match="big: got 128, wanted an integer, 8 to 100"):
        noise_scales(one, **run, small=4, big=128)
    with pytest.raises(TypeError, match="has no option 'examples'"):
        noise_scales(one, **run, small=4, big=16, examples=50)
