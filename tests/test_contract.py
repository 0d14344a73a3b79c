"""What a user writes, and what is refused before anything is trained."""

import dataclasses
import json
import re
import warnings

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest

import batchscale as bs
from batchscale import checks, datasets, optimizers

# Most studies here are of a few steps, which do not reach their goal.
pytestmark = pytest.mark.filterwarnings("ignore:no trial reached")

X = np.linspace(-1, 1, 64, dtype=np.float32)
DATA = {"train": (X, 2 * X), "validation": (X[::4], 2 * X[::4])}
RATE = {"learning_rate": 0.1}
DECAY = RATE | {"learning_rate_decay_steps": 1.0, "end_learning_rate_factor": 0.1}


def init(key):
    return {"w": jnp.zeros((3, 2)), "b": jnp.zeros(())}


def predicted(params, batch):
    return params["w"].sum() * batch["input"] + params["b"]


def squares(params, batch):
    return (predicted(params, batch) - batch["label"]) ** 2


def slope(loss=squares, init=init, data=DATA, **others):
    return bs.Workload.from_functions(init, loss, data=data, name="slope", **others)


def study(workload=None, space=None, **changes):
    fields = {
        "workload": workload or slope(),
        "optimizer": "sgd",
        "space": bs.SearchSpace(**(space or RATE)),
        "batch_sizes": [8],
        "goal": bs.Goal("validation/loss", 0.1),
        "trials": 1,
        "max_steps": 4,
    }
    return bs.Study(**fields | changes)


def refused(message, folder, make, kind=ValueError):
    """What a study of that is refused with, before anything is written."""
    with pytest.raises(kind, match=re.escape(message)):
        make().run(folder / "study", progress=False)
    assert not (folder / "study").exists()


def injected(h):
    return optax.inject_hyperparams(optax.sgd)(h["learning_rate"])


# Names.


@pytest.mark.parametrize(
    "name",
    ["low", "seeds", "crossing", "steps", "batch_size", "trial", "needed", "value", "loss", "luck"],
)
def test_a_hyperparameter_of_the_name_of_a_column_is_refused(name):
    message = f"SearchSpace: '{name}' is already a column of the result tables"
    with pytest.raises(ValueError, match=re.escape(message)):
        bs.SearchSpace(learning_rate=0.1, **{name: 0.5})


def test_a_hyperparameter_of_the_name_of_another_ones_column_is_refused():
    with pytest.raises(ValueError, match=r"'learning_rate_edge' is already a column .* \(optima\)"):
        bs.SearchSpace(learning_rate=0.1, learning_rate_edge=0.5)


@pytest.mark.parametrize(
    ("metrics", "message"),
    [
        ({"acc/top5": squares}, "a metric: got the name 'acc/top5', wanted one without '/'"),
        ({"": squares}, "a metric: got the name '', wanted a word that can be printed"),
        ({"error_at_least": squares}, "a metric is called 'error_at_least', and columns that end"),
        ({"score_at_most": squares}, "a metric is called 'score_at_most', and columns that end"),
        ({"loss": squares}, "metrics: got 'loss', which is measured already"),
    ],
)
def test_names_of_metrics_are_checked_before_anything_is_trained(metrics, message, tmp_path):
    refused(message, tmp_path, lambda: study(slope(metrics=metrics)))


def test_names_of_splits_workloads_and_optimizers_are_checked():
    fields = {"input": X}
    with pytest.raises(ValueError, match="a split: got the name 'test/1', wanted one without '/'"):
        bs.Workload("own", init, squares, dict, {"train": fields, "test/1": fields})
    with pytest.raises(
        ValueError, match=re.escape(r"workload: got the name 'a\nb', wanted a word")
    ):
        bs.Workload("a\nb", init, squares, dict, {"train": fields})


# What updates depend on.


def lookahead(h):
    """optax's, whose parameters are pairs of which only the fast ones have a gradient."""
    return optax.lookahead(optax.sgd(h["learning_rate"]), 5, h["slow"])


def averaged(h):
    """Adam, and an average of the parameters that only evaluations see."""
    adam, ema = optax.adam(h["learning_rate"]), optax.ema(h["decay"])

    def update(gradient, state, params):
        updates, inner = adam.update(gradient, state[0], params)
        return updates, (inner, ema.update(params, state[1])[1])

    return optax.GradientTransformation(
        lambda params: (adam.init(params), ema.init(params)), update
    )


@pytest.mark.parametrize(
    ("optimizer", "space", "changes"),
    [
        ("momentum", {"momentum": 0.9}, {}),
        ("adamw", {"weight_decay": 0.0, "b2": 0.99, "eps": 1e-8}, {}),
        (injected, {}, {}),
        (injected, {}, {"schedule": lambda step, h: h["learning_rate"]}),
        ("sgd", {"slow": 1.0}, {"schedule": lambda step, h: h["learning_rate"] / (1 + h["slow"])}),
        (lambda h: optax.sgd(0 * h["learning_rate"]), {}, {}),  # it is read, whatever comes of it
        (
            lambda h: optax.MultiSteps(optax.adam(h["learning_rate"], b2=h["b2"]), 4),
            {"b2": 0.9},
            {},
        ),
        (
            lambda h: optax.apply_if_finite(optax.lion(h["learning_rate"], b2=h["b2"]), 4),
            {"b2": 0.9},
            {},
        ),
        (
            lambda h: optax.contrib.schedule_free(
                optax.sgd(h["learning_rate"]), h["learning_rate"], h["b1"]
            ),
            {"b1": 0.9},
            {},
        ),
        (
            lambda h: optax.chain(
                optax.zero_nans(), optax.clip(h["clip"]), optax.lamb(h["learning_rate"])
            ),
            {"clip": 1.0},
            {},
        ),
        (lambda h: optax.contrib.muon(h["learning_rate"], beta=h["beta"]), {"beta": 0.9}, {}),
        (lambda h: optax.adafactor(h["learning_rate"], decay_rate=h["decay"]), {"decay": 0.8}, {}),
        (
            lookahead,
            {"slow": 0.5},
            {
                "workload": slope(
                    lambda params, batch: squares(params.fast, batch),
                    lambda key: optax.LookaheadParams.init_synced(init(key)),
                )
            },
        ),
        (
            averaged,
            {"decay": 0.9},
            {"workload": slope(evaluated_parameters=lambda params, state: state[1].ema)},
        ),
    ],
)
def test_what_is_read_is_not_refused(optimizer, space, changes):
    made = study(optimizer=optimizer, space=RATE | space, **changes)
    checks.updates(made.workload, optimizers.get(optimizer), made.schedule, made.space.names)


def test_a_hyperparameter_that_only_the_loss_reads_is_fine(tmp_path):
    def loss(params, model_state, batch, key, h):
        each = squares(params, batch) + h["decay"] * params["b"] ** 2
        return (each.sum(), jnp.asarray(len(each))), model_state

    def workload(loss):
        return bs.Workload(
            "full",
            lambda key: (init(key), {}),
            loss,
            lambda params, state, batch: {
                "loss": loss(params, state, batch, None, {"decay": 0})[0]
            },
            datasets.from_arrays(**DATA),
        )

    space = RATE | {"decay": 0.1}
    checks.updates(workload(loss), optimizers.get("sgd"), "constant", tuple(space))
    plain = workload(
        lambda params, state, batch, key, h: loss(params, state, batch, key, {"decay": 0})
    )
    refused(
        "space: nothing reads 'decay': neither the updates of optimizer 'sgd' and schedule",
        tmp_path,
        lambda: study(plain, space),
    )


@pytest.mark.parametrize(
    ("optimizer", "message"),
    [
        (lambda h: optax.sgd(0.1), "space: nothing reads 'learning_rate'"),
        (lambda h: optax.sgd(h.get("learning_rat", 0.1)), "space: nothing reads 'learning_rate'"),
        (
            lambda h: optax.lbfgs(h["learning_rate"]),
            "its update: it raises TypeError: scale_by_zoom_linesearch",
        ),
    ],
)
def test_an_optimizer_that_does_not_fit_is_refused(optimizer, message, tmp_path):
    refused(message, tmp_path, lambda: study(optimizer=optimizer))


@pytest.mark.parametrize(
    "schedule", ["linear_decay", lambda step, h: h["learning_rate"] * jnp.exp2(-jnp.float32(step))]
)
def test_a_schedule_that_the_optimizer_does_not_hear_is_refused(schedule, tmp_path):
    space = DECAY if schedule == "linear_decay" else RATE
    message = f"schedule: optimizer 'injected' does not hear schedule '{schedule}"
    message = message if schedule == "linear_decay" else "optimizer 'injected' does not hear"
    refused(message, tmp_path, lambda: study(optimizer=injected, space=space, schedule=schedule))


def test_the_schedule_that_is_heard_is_followed():
    def constant_gradient(params, batch):
        return params["b"] + 0 * batch["input"]

    workload = slope(constant_gradient)
    changes = {"space": DECAY, "schedule": "linear_decay", "max_steps": 10}
    changes["space"] = {
        "learning_rate": 1.0, "learning_rate_decay_steps": 2.0, "end_learning_rate_factor": 0.1
    }  # fmt: skip
    run = study(workload, **changes).run_trial(batch_size=8, trial=0, steps=2)
    np.testing.assert_allclose(run.params["b"], -(1 + 0.55), rtol=1e-6)
    fixed = {"optimizer": injected, "space": {"learning_rate": 1.0}}
    run = study(workload, **fixed).run_trial(batch_size=8, trial=0, steps=2)
    np.testing.assert_allclose(run.params["b"], -2.0, rtol=1e-6)


@pytest.mark.parametrize(
    "shape",
    [
        optax.warmup_cosine_decay_schedule(0.0, 1.0, warmup_steps=3, decay_steps=8, end_value=0.1),
        optax.piecewise_constant_schedule(1.0, {2: 0.5, 4: 0.1}),
        lambda step: 1 / (1 + step),
    ],
    ids=["warm-up and cosine", "pieces", "own"],
)
@pytest.mark.usefixtures("usual_promotion")
def test_a_function_of_the_step_multiplies_the_learning_rate(shape):
    workload = slope(lambda params, batch: params["b"] + 0 * batch["input"])  # whose gradient is 1
    some = study(workload, space={"learning_rate": 0.3}, schedule=shape, max_steps=10)
    run = some.run_trial(batch_size=8, trial=0, steps=7)
    walked = -0.3 * sum(float(shape(step)) for step in range(7))
    np.testing.assert_allclose(run.params["b"], walked, rtol=1e-5)


def cosine(h):
    return optax.cosine_decay_schedule(h["learning_rate"], h["horizon"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"optimizer": lambda h: optax.sgd(cosine(h))},
            "optimizer '<lambda>': it asks for the value of a number that is traced",
        ),
        (
            {"schedule": lambda step, h: cosine(h)(step)},
            "schedule '<lambda>': it asks for the value of a number that is traced",
        ),
        (
            {"schedule": lambda step, h: h["learning_rte"]},
            "schedule '<lambda>': 'learning_rte' is looked up in it. The space has",
        ),
        ({"schedule": lambda a, b, c: 0.1}, "it raises TypeError"),
        ({"schedule": lambda step: jnp.ones(2)}, "wanted one number, the learning rate"),
    ],
)
def test_a_schedule_that_cannot_be_traced_is_refused_where_it_is_written(changes, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        study(**{"space": RATE | {"horizon": 10.0}, **changes})


@pytest.mark.usefixtures("usual_promotion")
def test_a_state_that_begins_as_an_integer_and_becomes_a_float_is_refused(tmp_path):
    def make(start):
        def factory(h):
            def update(gradient, state, params=None):
                mean = 0.9 * state["mean"] + 0.1 * optax.tree.norm(gradient)
                step = jax.tree.map(lambda x: -h["learning_rate"] * x / (mean + 0.1), gradient)
                return step, {"mean": mean}

            return optax.GradientTransformation(lambda params: {"mean": start}, update)

        return factory

    message = "a value begins as int32, and a step makes float32 of it"
    refused(message, tmp_path, lambda: study(optimizer=make(0)))

    def loss(params, state, batch, key, h):
        losses = squares(params, batch)
        return (losses.sum(), losses.size), {"ema": 0.9 * state["ema"] + 0.1 * losses.mean()}

    def kept(start):
        plain = slope()
        return dataclasses.replace(
            plain, loss=loss, init=lambda key: (plain.init(key)[0], {"ema": start})
        )

    message = "makes floats (ema float32 ()) of integers in the model's state"
    refused(message, tmp_path, lambda: study(kept(0)))
    # Begun as floats, they are what a plain loop makes of them.
    trial = study(kept(0.0), optimizer=make(0.0), batch_sizes=["full"]).run_trial(
        batch_size=64, trial=0, steps=3
    )
    x, y = (np.float64(part) for part in DATA["train"])
    w = np.zeros(7)  # six that add up to the slope, and the intercept
    mean = ema = 0.0
    for _ in range(3):
        off = w[:6].sum() * x + w[6] - y
        gradient = 2 * np.array([(off * x).mean()] * 6 + [off.mean()])
        ema = 0.9 * ema + 0.1 * (off**2).mean()
        mean = 0.9 * mean + 0.1 * np.linalg.norm(gradient)
        w -= 0.1 * gradient / (mean + 0.1)
    np.testing.assert_allclose(trial.model_state["ema"], ema, rtol=1e-5)
    np.testing.assert_allclose(trial.params["w"], w[:6].reshape(3, 2), rtol=1e-5)


def test_numbers_that_are_missing_from_the_data_are_told_before_anything_is_trained(tmp_path):
    x = X.copy()
    x[5] = np.nan
    workload = slope(data=DATA | {"train": (x, 2 * X)})
    words = "field 'input' of split 'train', in 1 of 64 examples (the first is example 5)"
    with pytest.warns(UserWarning, match=re.escape(words)):
        study(workload, batch_sizes=[2], max_steps=1).run(tmp_path, progress=False)


def test_evaluated_parameters_of_another_structure_are_refused(tmp_path):
    refused(
        "its evaluated_parameters return w float32 (3, 2), wanted parameters as those of init",
        tmp_path,
        lambda: study(slope(evaluated_parameters=lambda params, state: {"w": params["w"]})),
    )


# The loss and the metrics.


@pytest.mark.parametrize(
    ("loss", "start", "message"),
    [
        (lambda p, b: jax.lax.stop_gradient(squares(p, b)), init, "its loss has no gradient"),
        (lambda p, b: (predicted(p, b) > b["label"]).astype(int), init, "its loss has no gradient"),
        (lambda p, b: predicted(p, b) > b["label"], init, "its loss is int32, and integers and"),
        (lambda p, b: b["input"] ** 2, lambda key: {}, "its init makes no parameters (got {})"),
        (
            squares,
            lambda key: {**init(key), "step": jnp.zeros((), int)},
            "its parameters hold integers or keys, which have no gradient (b float32 (), step int",
        ),
    ],
)
def test_what_would_train_nothing_is_refused(loss, start, message, tmp_path):
    refused(message, tmp_path, lambda: study(slope(loss, start)))


def test_a_parameter_that_is_not_used_is_fine():
    workload = slope(init=lambda key: init(key) | {"unused": jnp.zeros(2)})
    checks.updates(workload, optimizers.get("sgd"), "constant", tuple(RATE))


def r2_sums(params, batch):
    y, error = batch["label"], batch["label"] - batch["input"] * 1.5
    return {"n": y.size, "y": y.sum(), "yy": (y**2).sum(), "ee": (error**2).sum()}


def r2_of(sums):
    return 1 - sums["ee"] / (sums["yy"] - sums["y"] ** 2 / sums["n"])


def noisy(examples, seed):
    """Labels that grow along the split, so that chunks of it differ."""
    random = np.random.default_rng(seed)
    x = np.sort(random.uniform(0, 4, examples)).astype(np.float32)
    return x, (1.5 * x + 2 * random.normal(size=examples)).astype(np.float32)


def test_r2_of_sums_is_that_of_the_whole_split(tmp_path):
    data = {"train": noisy(64, 0), "validation": noisy(1_300, 1)}  # evaluated in several batches
    workload = slope(data=data, metrics={"r2": r2_sums}, finalize={"r2": r2_of})
    result = study(workload, goal=bs.Goal("validation/r2", 1.0, "max"), max_steps=1).run(
        tmp_path, progress=False
    )
    x, y = (np.asarray(part, np.float64) for part in data["validation"])
    right = 1 - ((y - 1.5 * x) ** 2).sum() / ((y - y.mean()) ** 2).sum()
    np.testing.assert_allclose(result.measurements["validation/r2"], right, rtol=1e-5)
    chunks = [slice(i, i + 100) for i in range(0, 1_300, 100)]
    per_chunk = [1 - ((y[c] - 1.5 * x[c]) ** 2).sum() / y[c].var() / 100 for c in chunks]
    assert abs(np.mean(per_chunk) - right) > 0.05  # which the mean of its values would not be


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        (lambda p, b: squares(p, b).mean(), "metric 'own': got one number for a batch of 2"),
        (lambda p, b: {"a": squares(p, b).sum()}, "metric 'own': got {'a': ()} (shapes), wanted"),
        (lambda p, b: squares(p, b)[:, None], "metric 'own': got an array of shape (2, 1)"),
    ],
)
def test_a_metric_that_does_not_add_is_refused(metric, message, tmp_path):
    refused(message, tmp_path, lambda: study(slope(metrics={"own": metric})))


def test_a_metric_may_be_its_sum_and_its_count(tmp_path):
    def weighted(params, batch):
        weight = jnp.abs(batch["input"])
        return (weight * batch["label"]).sum(), weight.sum()

    data = {"train": DATA["train"], "validation": noisy(700, 0)}
    workload = slope(data=data, metrics={"weighted": weighted})
    result = study(workload, max_steps=1).run(tmp_path, progress=False)
    x, y = data["validation"]
    np.testing.assert_allclose(
        result.measurements["validation/weighted"], np.average(y, weights=x), rtol=1e-5
    )


def test_finalize_of_no_metric_is_refused():
    with pytest.raises(ValueError, match="finalize: there is no metric 'r3'; wanted some of r2"):
        slope(metrics={"r2": r2_sums}, finalize={"r3": r2_of})


COLUMN = {split: (x, y[:, None]) for split, (x, y) in DATA.items()}


@pytest.mark.usefixtures("usual_promotion")
@pytest.mark.parametrize("progress", [False, True])
def test_the_mean_over_all_pairs_of_examples_is_refused(progress, tmp_path):
    workload = slope(lambda params, batch: squares(params, batch).mean(), data=COLUMN)
    with pytest.raises(ValueError, match="stays the same when the field 'label' is dealt out"):
        study(workload).run(tmp_path, progress=progress)


@pytest.mark.usefixtures("usual_promotion")
def test_pairs_that_are_meant_are_not_refused(tmp_path):
    workload = slope(
        lambda params, batch: squares(params, batch).mean(), data=COLUMN, unpaired=("label",)
    )
    with pytest.warns(UserWarning, match="depends on the others of its batch"):
        study(workload, batch_sizes=[4, 8]).run(tmp_path, progress=False)


# Modules.


class Switched(nn.Module):
    """A classifier of many switches."""

    @nn.compact
    def __call__(self, x, is_train=False, features=False):
        x = nn.Dropout(0.9, deterministic=not is_train)(x.reshape(x.shape[0], -1))
        return x if features else nn.Dense(3)(x)


def images(examples=30):
    random = np.random.default_rng(0)
    return random.normal(size=(examples, 4)).astype(np.float32), np.arange(examples) % 3


def test_a_switch_that_is_named_is_on_in_training_and_off_in_evaluation():
    mode = {"is_train": (True, False), "features": (False, False)}
    workload = bs.Workload.from_flax(Switched(), {"train": images()}, mode=mode)
    params, state = workload.init(jax.random.key(0))
    batch = workload.splits()["train"]
    loss = jax.jit(lambda key: workload.loss(params, state, batch, key, {})[0][0])
    assert loss(jax.random.key(1)) != loss(jax.random.key(2))
    logits = Switched().apply({"params": params}, batch["input"], is_train=False)
    right = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"]).sum()
    np.testing.assert_allclose(workload.metrics(params, state, batch)["loss"][0], right, rtol=1e-6)


class Needing(nn.Module):
    """Its call cannot do without a mask."""

    @nn.compact
    def __call__(self, x, mask):
        return nn.Dense(3)(x * mask)


class Constant(nn.Module):
    """Its switch is a field."""

    training: bool = False

    @nn.compact
    def __call__(self, x):
        return nn.Dense(3)(nn.Dropout(0.5, deterministic=not self.training)(x))


class Forgetful(nn.Module):
    """It does not hand its switch on."""

    @nn.compact
    def __call__(self, x, train):
        return Switched()(x)


class Norm(nn.Module):
    """It is told by the name that Flax uses."""

    @nn.compact
    def __call__(self, x, use_running_average=True):
        return nn.Dense(3)(nn.BatchNorm(use_running_average)(x))


@pytest.mark.parametrize(
    ("module", "mode", "message"),
    [
        (Switched(), {}, "the call of Switched takes 'is_train', and it is not known what that is"),
        (Switched(), {"is_train": (True, False)}, "the call of Switched takes 'features'"),
        (Switched(), {"is_train": True}, "wanted its value in training and in evaluation"),
        (Switched(), {"trian": (True, False)}, "mode: the call of Switched takes no 'trian'"),
        (Needing(), {}, "the call of Needing needs 'mask'"),
        (Constant(), {}, "'training' is a constant of Constant"),
        (Forgetful(), {}, "Forgetful calls its Switched without 'is_train', which then is False"),
    ],
)
def test_a_switch_that_is_left_to_its_default_is_refused(module, mode, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        bs.Workload.from_flax(module, {"train": images()}, mode=mode)


def test_use_running_average_is_off_in_training():
    workload = bs.Workload.from_flax(Norm(), {"train": images()})
    params, state = workload.init(jax.random.key(0))
    batch = workload.splits()["train"]
    _, after = workload.loss(params, state, batch, jax.random.key(0), {})
    mean = after["batch_stats"]["BatchNorm_0"]["mean"]
    np.testing.assert_allclose(mean, 0.01 * batch["input"].mean(0), rtol=1e-3, atol=1e-6)


# Data.


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (lambda y: y[:, None], "labels: one of 'label' has the shape (1,), wanted (), an integer"),
        (lambda y: np.eye(3, dtype=int)[y], "If they are one-hot, give label.argmax(-1)"),
    ],
)
def test_labels_of_another_shape_are_told_by_name(labels, message):
    x, y = images()
    with pytest.raises(ValueError, match=re.escape(message)):
        bs.Workload.from_flax(nn.Dense(3), {"train": (x, labels(y))})


def test_one_hot_labels_in_a_loss_of_ones_own_are_told_by_name(tmp_path):
    def loss(params, batch):
        logits = batch["input"] @ params["w"]
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])

    x, y = images()
    data = {"train": (x, np.eye(3, dtype=int)[y]), "validation": (x, np.eye(3, dtype=int)[y])}
    workload = slope(loss, lambda key: {"w": jnp.zeros((4, 3))}, data=data)
    message = "The labels 'label' have the shape (N, 3); if they are one-hot, give labels.argmax"
    refused(message, tmp_path, lambda: study(workload))


def test_a_function_of_pairs_is_data_as_the_pairs_are(tmp_path):
    loaded = []

    def load():
        loaded.append(True)
        return DATA

    made = study(slope(data=load), batch_sizes=[8])
    assert not loaded
    result = made.run(tmp_path / "function", progress=False)
    given = study().run(tmp_path / "given", progress=False)
    assert result.measurements.equals(given.measurements)
    assert bs.Workload.from_flax(nn.Dense(3), lambda: {"train": images()}).train_examples == 30


def test_pairs_in_the_full_contract_are_refused():
    with pytest.raises(
        TypeError, match="'validation': a tuple, wanted splits by name, each a mapping"
    ):
        bs.Workload("own", init, squares, dict, DATA)


def test_a_stated_size_that_is_not_that_of_the_data_is_refused(tmp_path):
    workload = slope(data=lambda: DATA, train_examples=1000)
    made = study(workload, batch_sizes=["full"])  # nothing is loaded yet
    with pytest.raises(ValueError, match="states train_examples=1000, and 64 were loaded"):
        made.run(tmp_path / "study", progress=False)
    assert not (tmp_path / "study").exists()


@pytest.mark.usefixtures("usual_promotion")
def test_bfloat16_data_keep_their_type_and_train(tmp_path):
    narrow = {
        split: {"input": x.astype(ml_dtypes.bfloat16), "label": y} for split, (x, y) in DATA.items()
    }
    made = study(slope(data=narrow), batch_sizes=[64], max_steps=1)
    assert made.workload.splits()["train"]["input"].dtype == ml_dtypes.bfloat16
    result = made.run(tmp_path, progress=False)
    # One step of full-batch gradient descent on the mean of (s x + b - y)^2, from 0.
    x, y = np.float64(narrow["train"]["input"]), np.float64(narrow["train"]["label"])
    b, s = 0.1 * 2 * y.mean(), 6 * 0.1 * 2 * (x * y).mean()
    right = ((s * x + b - y) ** 2).mean()
    found = result.measurements["train/loss"].to_numpy()[-1]
    np.testing.assert_allclose(found, right, rtol=1e-2)
    other = {"train": narrow["train"] | {"input": narrow["train"]["input"][::-1]}}
    assert datasets.fingerprint({"train": narrow["train"]}) != datasets.fingerprint(other)
    with pytest.raises(ValueError, match=r"'input' is bfloat16, which an \.npz file cannot hold"):
        datasets.to_npz(narrow, tmp_path / "narrow.npz")


# Numbers and goals.

NUMBERS = {
    "trials": (np.int64(2), 2),
    "max_infeasible": (np.int16(5), 5),
    "lanes": (np.int32(1), 1),
    "microbatch": (np.uint8(4), 4),
    "seed": (np.uint32(3), 3),
    "evaluation_spacing": (np.float64(0.5), 0.5),
    "max_epochs": (np.int64(3), 3),
    "stop": (np.float32(3.0), 3.0),
    "batch_sizes": ([np.int64(8), np.array(16)], [8, 16]),
    "goal": (bs.Goal("validation/loss", np.float32(0.5)), bs.Goal("validation/loss", 0.5)),
    "space": (
        bs.SearchSpace(learning_rate=bs.LogUniform(np.float32(0.25), np.int64(1))),
        bs.SearchSpace(learning_rate=bs.LogUniform(0.25, 1.0)),
    ),
}


def test_numbers_of_numpy_are_those_of_python(tmp_path):
    plain = {name: value for name, (_, value) in NUMBERS.items()} | {"max_steps": None}
    own = {name: value for name, (value, _) in NUMBERS.items()} | {"max_steps": None}
    result = study(**own).run(tmp_path / "own", progress=False)
    assert study(**plain).run(tmp_path / "own", progress=False).definition == result.definition
    study(**plain).run(tmp_path / "plain", progress=False)
    plans = [json.loads((tmp_path / name / "plan.json").read_text()) for name in ("own", "plain")]
    assert plans[0] == plans[1]
    fixed = study(max_steps={np.int64(8): np.int64(4)}).run(tmp_path / "steps", progress=False)
    assert fixed.definition.max_steps == {8: 4}


@pytest.mark.parametrize("name", ["max_epochs", "stop", "evaluation_spacing", "trials", "seed"])
def test_a_boolean_is_no_number(name):
    more = {"max_steps": None} if name == "max_epochs" else {}
    with pytest.raises(ValueError, match=f"{name}: got True, wanted"):
        study(**more | {name: True})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"goal": ("validation/loss", 0.4)}, "goal: got ('validation/loss', 0.4), wanted a Goal"),
        ({"goal": "validation/error"}, "goal: got 'validation/error', wanted a Goal, such as"),
        ({"workload": "mnist/fc_64"}, "workload: got 'mnist/fc_64', wanted a Workload"),
    ],
)
def test_what_is_no_goal_and_no_workload_is_refused_where_it_is_written(changes, message):
    with pytest.raises(TypeError, match=re.escape(message)):
        study(**changes)


def test_a_space_that_is_a_dictionary_is_refused():
    fields = {name: getattr(study(), name) for name in ("workload", "optimizer", "goal", "trials")}
    with pytest.raises(TypeError, match="wanted a SearchSpace, such as"):
        bs.Study(**fields, batch_sizes=[8], max_steps=4, space={"learning_rate": 0.1})


@pytest.mark.parametrize("arguments", [("loss", 0.4), ("validation/loss", "0.4"), ("a/b", True)])
def test_a_goal_that_is_none_is_refused_where_it_is_written(arguments):
    with pytest.raises(ValueError, match=r"^Goal: "):
        bs.Goal(*arguments)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"batch_sizes": 32},
            "got 32, wanted a list of integers, such as powers_of_two(1, 1024); o",
        ),
        ({"batch_sizes": np.int64(32)}, "got 32, wanted a list of integers, such as powers_of_two"),
        ({"batch_sizes": "full"}, "such as powers_of_two(1, 1024); one alone is ['full']."),
        (
            {"batch_sizes": np.ones((1, 2), int)},
            "got a value of type ndarray, wanted a list of int",
        ),
        ({"batch_sizes": (n for n in [8])}, "got a value of type generator, wanted a list of int"),
        ({"batch_sizes": {8: 4}}, "got a value of type dict, wanted a list of integers, such as"),
        ({"batch_sizes": None}, "got a value of type NoneType, wanted a list of integers, such as"),
        (
            {"optimizer": optax.adam(1e-3)},
            'Write lambda h: optax.adam(h["learning_rate"]), for exa',
        ),
        ({"optimizer": ["sgd"]}, "optimizer: got a value of type list, wanted one of sgd, moment"),
    ],
)
def test_what_is_no_list_of_sizes_and_no_optimizer_is_refused_where_it_is_written(changes, message):
    with pytest.raises(TypeError, match=re.escape(message)) as error:
        study(**changes)
    assert " at 0x" not in str(error.value)


def test_batch_sizes_may_come_in_any_collection():
    for given in ((8, "full"), np.array([8, 64]), range(8, 65, 56), {8, 64}):
        assert study(batch_sizes=given).resolved_batch_sizes() == [8, 64]


def test_a_schedule_in_a_list_is_refused():
    with pytest.raises(ValueError, match=re.escape("schedule: got ['constant'], wanted one of")):
        study(schedule=["constant"])


def test_another_finalize_is_another_workload(tmp_path):
    """It runs on the host, and is no part of the program."""

    def of(function):
        return study(
            slope(metrics={"r2": r2_sums}, finalize={"r2": function}),
            goal=bs.Goal("validation/r2", 2.0, "max"),
            stop="budget",
        )

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        of(r2_of).run(tmp_path, progress=False)
        of(lambda sums: r2_of(sums)).run(tmp_path, progress=False)  # the same by another name
    with pytest.raises(ValueError, match="what finalize makes of sums changed"):
        of(lambda sums: r2_of(sums) ** 3).extend(tmp_path, max_steps=50, progress=False)


def test_a_finalize_that_draws_does_not_refuse_its_own_folder(tmp_path):
    random = np.random.default_rng()

    def about(sums):
        return r2_of(sums) + 1e-3 * random.normal()

    one = study(
        slope(metrics={"r2": r2_sums}, finalize={"r2": about}),
        goal=bs.Goal("validation/r2", 2.0, "max"),
        stop="budget",
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        one.run(tmp_path, progress=False)
        one.run(tmp_path, progress=False)
