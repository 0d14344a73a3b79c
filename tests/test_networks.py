"""Models of every framework: the same curve from the same parameters, and no switch left alone."""

import dataclasses
import functools
import math
import sys
import warnings

import cloudpickle
import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import sklearn.metrics
from flax import nnx
from helpers import points

import batchscale as bs
from batchscale.runner import sending

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import haiku as hk

pytestmark = pytest.mark.usefixtures("usual_promotion")
WIDTH, CLASSES = 8, 3
DATA = {
    "train": tuple(np.float32(x) if x.ndim > 1 else np.int32(x) for x in points(200)),
    "validation": tuple(np.float32(x) if x.ndim > 1 else np.int32(x) for x in points(50, seed=1)),
}
_NORM = {"momentum": 0.9, "epsilon": 1e-5}


class Linen(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        x = nn.Dense(WIDTH, name="a")(x)
        x = nn.BatchNorm(use_running_average=not train, name="norm", **_NORM)(x)
        return nn.Dense(CLASSES, name="b")(nn.relu(x))


class Nnx(nnx.Module):
    def __init__(self, rngs):
        self.a = nnx.Linear(2, WIDTH, rngs=rngs)
        self.norm = nnx.BatchNorm(WIDTH, rngs=rngs, **_NORM)
        self.b = nnx.Linear(WIDTH, CLASSES, rngs=rngs)

    def __call__(self, x):
        return self.b(nnx.relu(self.norm(self.a(x))))


class Equinox(eqx.Module):
    a: eqx.nn.Linear
    norm: eqx.nn.BatchNorm
    b: eqx.nn.Linear

    def __init__(self, key):
        first, second = jax.random.split(key)
        self.a = eqx.nn.Linear(2, WIDTH, key=first)
        self.norm = eqx.nn.BatchNorm(WIDTH, "batch", eps=1e-5, momentum=0.9, mode="batch")
        self.b = eqx.nn.Linear(WIDTH, CLASSES, key=second)

    def __call__(self, x, state):
        x, state = self.norm(self.a(x), state)
        return self.b(jax.nn.relu(x)), state


def haiku(x, train):
    x = hk.Linear(WIDTH, name="a")(x)
    x = hk.BatchNorm(True, True, 0.9, name="norm")(x, train)
    return hk.Linear(CLASSES, name="b")(jax.nn.relu(x))


def workload(model, **others):
    return bs.Workload.from_model(model, DATA, **others)


def parameters(framework, params, linen):
    """The parameters of the Linen model, in the places of a framework."""
    a, norm, b = linen["a"], linen["norm"], linen["b"]
    if framework == "nnx":
        return {"a": dict(a), "norm": dict(norm), "b": dict(b)}
    if framework == "equinox":
        return eqx.tree_at(
            lambda m: (m.a.weight, m.a.bias, m.norm.weight, m.norm.bias, m.b.weight, m.b.bias),
            params,
            (a["kernel"].T, a["bias"], norm["scale"], norm["bias"], b["kernel"].T, b["bias"]),
        )
    return {
        "a": {"w": a["kernel"], "b": a["bias"]},
        "norm": {"scale": norm["scale"][None], "offset": norm["bias"][None]},
        "b": {"w": b["kernel"], "b": b["bias"]},
    }


def curve(found, params, model_state, steps=30):
    """Losses of plain gradient descent, and the error of an evaluation after it."""
    batch = {name: jnp.asarray(x) for name, x in found.splits()["train"].items()}
    tested = {name: jnp.asarray(x) for name, x in found.splits()["validation"].items()}
    key = jax.random.key(1)

    @jax.jit
    def step(params, model_state):
        def loss(params):
            (total, count), state = found.loss(params, model_state, batch, key, {})
            return total / count, state

        (value, state), gradient = jax.value_and_grad(loss, has_aux=True)(params)
        return jax.tree.map(lambda p, g: p - 0.3 * g, params, gradient), state, value

    losses = []
    for _ in range(steps):
        params, model_state, value = step(params, model_state)
        losses.append(float(value))
    sums = found.metrics(params, model_state, tested)
    return np.array(losses), float(sums["loss"][0] / sums["loss"][1])


MODELS = {
    "nnx": (lambda key: Nnx(nnx.Rngs(key)), None),
    "equinox": (lambda key: eqx.nn.make_with_state(Equinox)(key), None),
    "haiku": (hk.transform_with_state(haiku), {"train": (True, False)}),
}


@pytest.mark.parametrize("framework", MODELS)
def test_the_same_parameters_give_the_same_curve_in_every_framework(framework):
    linen = workload(Linen())
    params, model_state = linen.init(jax.random.key(0))
    expected, expected_end = curve(linen, params, model_state)
    model, mode = MODELS[framework]
    found = workload(model, mode=mode)
    own, own_state = found.init(jax.random.key(0))
    losses, end = curve(found, parameters(framework, own, params), own_state)
    assert expected[-1] < 0.7 * expected[0]
    np.testing.assert_allclose(losses, expected, rtol=2e-4)
    # Batch statistics are kept, and used in evaluation. Haiku corrects its averages for their
    # beginning, and so does Equinox, so that after few steps they are others than Flax's.
    if framework == "nnx":
        np.testing.assert_allclose(end, expected_end, rtol=2e-4)
    after = curve(found, parameters(framework, own, params), own_state, steps=0)[1]
    assert abs(end - after) > 0.01
    assert np.isfinite(end)


@pytest.mark.parametrize("framework", ["linen", *MODELS])
def test_a_model_that_was_sent_to_a_worker_is_the_same(framework):
    """With batch statistics, a switch and a seed, in every framework."""
    model, mode = {"linen": (Linen(), None), **MODELS}[framework]
    found = workload(model, mode=mode)
    # Its classes go by value, as those of a script do, and nothing has been traced there before.
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    try:
        sent = sending.pack({"workload": found}, {"workload": found})
    finally:
        cloudpickle.unregister_pickle_by_value(sys.modules[__name__])
    there = sending.unpack(sent)["workload"]
    expected, end = curve(found, *found.init(jax.random.key(3)), steps=5)
    losses, its_end = curve(there, *there.init(jax.random.key(3)), steps=5)
    assert losses.tolist() == expected.tolist()
    assert its_end == end
    assert there.name == found.name


@pytest.mark.parametrize("framework", ["nnx", "equinox"])
@pytest.mark.slow
def test_a_model_of_another_framework_is_trained_by_a_study(framework, tmp_path):
    model, mode = MODELS[framework]
    study = bs.Study(
        workload=workload(model, mode=mode),
        optimizer="adam",
        space=bs.SearchSpace(learning_rate=bs.LogUniform(1e-2, 1e-1)),
        batch_sizes=[16, 32],
        goal=bs.Goal("validation/error", 0.2),
        trials=2,
        max_steps=300,
    )
    with pytest.warns(UserWarning, match="depends on the others of its batch"):
        result = study.run(tmp_path, progress=False)
    assert np.isfinite(result.steps_to_target()["steps"]).all()


class Noisy(nnx.Module):
    def __init__(self, rngs):
        self.linear = nnx.Linear(2, CLASSES, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.calls = nnx.Variable(jnp.zeros((), jnp.int32))

    def __call__(self, x):
        self.calls[...] += 1
        return self.linear(self.dropout(x))


class NoisyEquinox(eqx.Module):
    linear: eqx.nn.Linear
    dropout: eqx.nn.Dropout

    def __init__(self, key):
        self.linear, self.dropout = eqx.nn.Linear(2, CLASSES, key=key), eqx.nn.Dropout(0.5)

    def __call__(self, x, key):
        return self.linear(self.dropout(x, key=key))


def noisy_haiku(x, train):
    x = hk.dropout(hk.next_rng_key(), 0.5, x) if train else x
    return hk.Linear(CLASSES)(x)


def noisy_apply(params, x, key):
    kept = 1.0 if key is None else 2.0 * jax.random.bernoulli(key, 0.5, x.shape)
    return (kept * x) @ params


NOISY = {
    "nnx": (lambda key: Noisy(nnx.Rngs(key)), None),
    "equinox": (lambda key: NoisyEquinox(key), None),
    "haiku": (hk.transform(noisy_haiku), {"train": (True, False)}),
    "functions": ((lambda key: jax.random.normal(key, (2, CLASSES)), noisy_apply), None),
}


@pytest.mark.parametrize("framework", NOISY)
def test_dropout_gets_the_key_of_the_step_and_none_in_evaluation(framework):
    model, mode = NOISY[framework]
    found = workload(model, mode=mode)
    params, model_state = found.init(jax.random.key(0))
    batch = {name: jnp.asarray(x) for name, x in found.splits()["train"].items()}

    def loss(seed):
        (total, _), state = found.loss(params, model_state, batch, jax.random.key(seed), {})
        return float(total), state

    assert loss(1)[0] == loss(1)[0] != loss(2)[0]
    plain = [float(found.metrics(params, model_state, batch)["loss"][0]) for _ in range(2)]
    assert plain[0] == plain[1] != loss(1)[0]
    if framework == "nnx":  # other state of the user's is kept in training
        assert int(loss(1)[1]["calls"]) == 1
    others = jax.tree.leaves(found.init(jax.random.key(1))[0])
    own = jax.tree.leaves(params)
    assert any(not np.array_equal(*pair) for pair in zip(own, others, strict=True))


class Switched(nnx.Module):
    def __init__(self, rngs):
        self.linear, self.training = nnx.Linear(2, CLASSES, rngs=rngs), False

    def __call__(self, x):
        return self.linear(x) * (2.0 if self.training else 1.0)


class SwitchedCall(eqx.Module):
    linear: eqx.nn.Linear

    def __call__(self, x, is_train=False):
        return self.linear(x) * (2.0 if is_train else 1.0)


def switched_apply(params, x, is_train=False):
    return x @ params * (2.0 if is_train else 1.0)


SWITCHED = {
    "nnx": (lambda key: Switched(nnx.Rngs(key)), "training"),
    "equinox": (lambda key: SwitchedCall(eqx.nn.Linear(2, CLASSES, key=key)), "is_train"),
    "functions": ((lambda key: jax.random.normal(key, (2, CLASSES)), switched_apply), "is_train"),
}


@pytest.mark.parametrize("framework", SWITCHED)
def test_a_switch_is_used_or_refused_and_never_left_to_its_default(framework):
    model, name = SWITCHED[framework]
    with pytest.raises(ValueError, match=f"mode={{'{name}': \\(True, False\\)}}"):
        workload(model)
    found = workload(model, mode={name: (True, False)})
    params, model_state = found.init(jax.random.key(0))
    batch = {name: jnp.asarray(x) for name, x in found.splits()["train"].items()}
    (trained, _), _ = found.loss(params, model_state, batch, jax.random.key(1), {})
    measured = found.metrics(params, model_state, batch)["loss"][0]
    same = workload(model, mode={name: (False, False)})
    (plain, _), _ = same.loss(params, model_state, batch, jax.random.key(1), {})
    assert float(plain) == pytest.approx(float(measured), rel=1e-6)
    assert float(trained) != pytest.approx(float(measured), rel=1e-3)


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (Nnx(nnx.Rngs(0)), "all trials would begin with the same ones"),
        (NoisyEquinox(jax.random.key(0)), "all trials would begin with the same ones"),
        (lambda key: {"w": key}, "a function of a key that returns a dict"),
        ("resnet", "model: got a str"),
        ((1, 2), "model: got a tuple"),
    ],
)
def test_what_is_no_model_is_told_what_would_be_one(model, words):
    with pytest.raises(TypeError, match=words):
        workload(model)


class Inner(eqx.Module):
    linear: eqx.nn.Linear
    training: bool = False

    def __call__(self, x):
        return self.linear(x)


class Outer(eqx.Module):
    parts: list

    def __call__(self, x):
        return self.parts[0](x)


class WithArray(nnx.Module):
    def __init__(self, rngs):
        self.linear, self.scale = nnx.Linear(2, CLASSES, rngs=rngs), jnp.ones(2)

    def __call__(self, x):
        return self.linear(x * self.scale)


class InnerField(nn.Module):
    train: bool = False

    @nn.compact
    def __call__(self, x):
        return nn.Dense(CLASSES)(x)


class OuterField(nn.Module):
    @nn.compact
    def __call__(self, x):
        return InnerField()(x)


class DeepNnx(nnx.Module):
    def __init__(self, rngs):
        self.linear = nnx.Linear(2, CLASSES, rngs=rngs)

    def __call__(self, x, is_train=False):
        return self.linear(x) * (2.0 if is_train else 1.0)


class HandingNnx(nnx.Module):
    def __init__(self, rngs, told):
        self.parts, self.told = nnx.List([DeepNnx(rngs)]), told

    def __call__(self, x, is_train):
        return self.parts[0](x, is_train) if self.told else self.parts[0](x)


class HandingEquinox(eqx.Module):
    parts: list
    told: bool

    def __call__(self, x, is_train):
        return self.parts[0](x, is_train=is_train) if self.told else self.parts[0](x)


class DeepHaiku(hk.Module):
    def __call__(self, x, is_train=False):
        return hk.Linear(CLASSES)(x) * (2.0 if is_train else 1.0)


def handing_haiku(told):
    def model(x, is_train):
        return DeepHaiku()(x, is_train) if told else DeepHaiku()(x)

    return hk.transform(model)


HANDING = {
    "nnx": lambda told: lambda key: HandingNnx(nnx.Rngs(key), told),
    "equinox": lambda told: (
        lambda key: HandingEquinox([SwitchedCall(eqx.nn.Linear(2, CLASSES, key=key))], told)
    ),
    "haiku": handing_haiku,
}


@pytest.mark.parametrize("framework", HANDING)
def test_a_module_within_another_is_told_or_the_model_is_refused(framework):
    make, mode = HANDING[framework], {"is_train": (True, False)}
    for _ in range(2):  # and what looked at the calls has left
        with pytest.raises(ValueError, match="without 'is_train', which then is False"):
            workload(make(False), mode=mode)
        found = workload(make(True), mode=mode)
    params, model_state = found.init(jax.random.key(0))
    batch = {name: jnp.asarray(x) for name, x in found.splits()["train"].items()}
    (trained, _), _ = found.loss(params, model_state, batch, jax.random.key(1), {})
    measured = found.metrics(params, model_state, batch)["loss"][0]
    assert float(trained) != pytest.approx(float(measured), rel=1e-3)


class FieldTold(nn.Module):
    same: bool = False

    @nn.compact
    def __call__(self, x, train):
        # Built anew in every call, with what it is told.
        return InnerField(train=train and not self.same)(x)


def test_a_module_that_is_built_with_the_switch_is_told():
    workload(FieldTold())
    with pytest.raises(ValueError, match="'train' is a constant of InnerField"):
        workload(FieldTold(same=True))


class Compiled(nnx.Module):
    def __init__(self, rngs):
        self.linear = nnx.Linear(2, CLASSES, rngs=rngs)

    @nnx.jit
    def __call__(self, x, train=False):
        return self.linear(x) * (2.0 if train else 1.0)

    def padded(self, x, mode=True):
        return x if mode else 0 * x


class Holding(nnx.Module):
    def __init__(self, rngs, told):
        self.part, self.told = Compiled(rngs), told

    def __call__(self, x, train):
        x = self.part.padded(x)  # of which the default is no switch
        return self.part(x, train=train) if self.told else self.part(x)


def test_a_call_that_is_compiled_by_itself_is_looked_at_too():
    with pytest.raises(ValueError, match="calls its Compiled without 'train'"):
        workload(lambda key: Holding(nnx.Rngs(key), False))


class Unset(nn.Module):
    train: bool | None = None

    @nn.compact
    def __call__(self, x, train=None):
        told = nn.merge_param("train", self.train, train) if self.train is not None else train
        return nn.Dense(CLASSES)(x) * (2.0 if told else 1.0)


class Unsaid(nn.Module):
    how: str

    @nn.compact
    def __call__(self, x, train=None):
        if self.how == "handed on":
            return Unset()(x, train=train)
        if self.how == "set":
            return Unset(train=train)(x)
        return Unset()(x, train=None) if self.how == "written" else Unset()(x)


class HaikuUnset(hk.Module):
    def __call__(self, x, is_training=None):
        return hk.Linear(CLASSES)(x) * (2.0 if is_training else 1.0)


def test_a_switch_that_stays_none_is_no_answer():
    """Of Linen and Haiku, in which None is the same in training and in evaluation."""
    for how in ("handed on", "set"):
        found = workload(Unsaid(how))
        params, state = found.init(jax.random.key(0))
        batch = {name: jnp.asarray(x) for name, x in found.splits()["train"].items()}
        (trained, _), _ = found.loss(params, state, batch, jax.random.key(1), {})
        evaluated = float(found.metrics(params, state, batch)["loss"][0])
        assert float(trained) != pytest.approx(evaluated, rel=1e-3)
    for how in ("left out", "written"):
        with pytest.raises(
            ValueError, match=r"calls its Unset without 'train', which then is None"
        ):
            workload(Unsaid(how))
    with pytest.raises(ValueError, match=r"calls its HaikuUnset without 'is_training'"):
        workload(hk.transform(lambda x: HaikuUnset()(x)))
    told = hk.transform(lambda x, is_training: HaikuUnset()(x, is_training=is_training))
    workload(told, mode={"is_training": (True, False)})


def test_none_is_what_a_layer_of_nnx_or_equinox_was_set_to():
    class Dropped(nnx.Module):
        def __init__(self, rngs):
            self.linear = nnx.Linear(2, CLASSES, rngs=rngs)
            self.drop = nnx.Dropout(0.5, rngs=rngs)

        def __call__(self, x, deterministic=None):
            return self.drop(self.linear(x), deterministic=deterministic)

    class Whole(nnx.Module):
        def __init__(self, rngs):
            self.inner = Dropped(rngs)

        def __call__(self, x):
            return self.inner(x)

    found = workload(lambda key: Whole(nnx.Rngs(key)))
    params, state = found.init(jax.random.key(0))
    batch = {name: jnp.asarray(x) for name, x in found.splits()["train"].items()}
    one, other = (
        float(found.loss(params, state, batch, jax.random.key(seed), {})[0][0]) for seed in (1, 2)
    )
    assert one != other


def test_what_haiku_transforms_may_take_no_key():
    found = workload(hk.without_apply_rng(hk.transform(lambda x: hk.Linear(CLASSES)(x))))
    params, model_state = found.init(jax.random.key(0))
    batch = {name: jnp.asarray(x) for name, x in found.splits()["train"].items()}
    (trained, _), _ = found.loss(params, model_state, batch, jax.random.key(1), {})
    assert float(trained) == pytest.approx(
        float(found.metrics(params, model_state, batch)["loss"][0]), rel=1e-6
    )


def test_a_switch_that_haiku_hides_is_found():
    def model(x, is_training=False):
        return hk.Linear(CLASSES)(x) * (2.0 if is_training else 1.0)

    for transform in (hk.transform, hk.transform_with_state):
        with pytest.raises(ValueError, match="the function model takes 'is_training'"):
            workload(transform(model))
    with pytest.raises(ValueError, match="takes 'is_training'"):
        workload(hk.transform(functools.partial(lambda scale, x, is_training=False: x, 1.0)))


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (lambda key: Outer([Inner(eqx.nn.Linear(2, CLASSES, key=key))]), "constant of Inner"),
        (lambda key: WithArray(nnx.Rngs(key)), "'scale' of WithArray is an array"),
        (OuterField(), "'train' is a constant of InnerField"),
        (lambda key: nnx.Linear(2, CLASSES, rngs=nnx.Rngs(0)), "does not use its key"),
        (lambda key: eqx.nn.Linear(2, 3, key=jax.random.key(0)), "does not use its key"),
    ],
)
def test_what_would_be_wrong_silently_is_refused(model, words):
    with pytest.raises(ValueError, match=words):
        workload(model)


def test_a_frozen_norm_of_nnx_stays_as_it_is():
    found = workload(lambda key: Nnx(nnx.Rngs(key)), mode={"use_running_average": (True, True)})
    params, model_state = found.init(jax.random.key(0))
    batch = {name: jnp.asarray(x) for name, x in found.splits()["train"].items()}
    _, after = found.loss(params, model_state, batch, jax.random.key(1), {})
    np.testing.assert_array_equal(after["norm"]["mean"], model_state["norm"]["mean"])


def test_narrow_labels_are_compared_with_all_classes():
    logits = jnp.zeros((4, 300)).at[:, 259].set(9.0)
    labels = np.full(4, 3, np.uint8)  # 259 - 256
    found = bs.Workload.from_model(
        (lambda key: jnp.zeros(()), lambda w, x: w + logits[: len(x)]),
        {"train": {"x": np.zeros((4, 1), np.float32), "y": labels}},
        labels="y",
    )
    sums = found.metrics(*found.init(jax.random.key(0)), found.splits()["train"])
    assert int(sums["error"][0]) == 4


TOKENS = np.random.default_rng(0).integers(1, 7, (40, 12)).astype(np.int32)


def bigrams():
    """Logits of the next token by the last one."""
    return (lambda key: 0.3 * jax.random.normal(key, (7, 7)), lambda w, x: w[x])


def log_softmax(x):
    x = np.asarray(x, np.float64)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def test_next_tokens_are_counted_exactly_and_padding_is_none():
    tokens = np.where(np.arange(12) < np.arange(1, 41)[:, None] % 12 + 1, TOKENS, 0)
    found = bs.Workload.from_model(bigrams(), {"train": tokens}, "next_token", ignore_label=0)
    w, state = found.init(jax.random.key(0))
    batch = found.prepare({"tokens": jnp.asarray(tokens)}, None)
    sums = found.metrics(w, state, batch)
    inputs, labels = tokens[:, :-1], tokens[:, 1:]
    each = -np.take_along_axis(log_softmax(np.asarray(w)[inputs]), labels[..., None], -1)[..., 0]
    real = labels != 0
    assert int(sums["loss"][1]) == real.sum() < labels.size
    assert float(sums["loss"][0]) == pytest.approx(each[real].sum(), rel=1e-5)
    wrong = (np.asarray(w)[inputs].argmax(-1) != labels) & real
    assert int(sums["error"][0]) == wrong.sum()
    assert sums["error"][0].dtype == jnp.int32
    added = jax.tree.map(np.asarray, sums["perplexity"])
    assert found.finalized("perplexity", added) == pytest.approx(
        np.exp(each[real].mean()), rel=1e-5
    )
    (trained, count), _ = found.loss(w, state, batch, jax.random.key(0), {})
    assert (float(trained), int(count)) == (float(sums["loss"][0]), int(sums["loss"][1]))


@pytest.mark.parametrize("ignored", [-100, 7, 255])
def test_a_model_sees_the_first_token_in_the_place_of_what_is_ignored(ignored):
    tokens = np.where(np.arange(12) < np.arange(1, 41)[:, None] % 12 + 1, TOKENS, ignored)
    found = bs.Workload.from_model(bigrams(), {"train": tokens}, "next_token", ignore_label=ignored)
    batch = found.prepare({"tokens": jnp.asarray(tokens)}, None)
    seen = np.where(tokens == ignored, 0, tokens)[:, :-1]
    np.testing.assert_array_equal(batch["input"], seen)
    np.testing.assert_array_equal(batch["label"], tokens[:, 1:])


def test_unsigned_8_bit_inputs_are_pixels_only_where_that_is_sure():
    flat = np.random.default_rng(0).integers(0, 256, (6, 4), np.uint8)
    labels = np.arange(6, dtype=np.uint8) % 3

    def seen(inputs, **others):
        model = lambda key: jnp.zeros(()), lambda w, x: jnp.zeros((len(x), 3)) + w
        found = bs.Workload.from_model(model, {"train": (inputs, labels)}, **others)
        return found, np.asarray(found.prepare(dict(found.splits()["train"]), None)["input"])

    with pytest.raises(ValueError, match=r"'input' is unsigned 8-bit, .* shape \(4,\)"):
        seen(flat)
    with pytest.raises(ValueError, match=r"it may be pixels, tokens or a mask"):
        seen(flat[:, 0])
    np.testing.assert_allclose(seen(flat, scale=255)[1], flat / 255.0, rtol=1e-6)
    np.testing.assert_allclose(
        seen(flat.reshape(6, 2, 2))[1].reshape(6, 4), flat / 255.0, rtol=1e-6
    )
    np.testing.assert_array_equal(seen(flat.astype(np.int32))[1], flat)
    mask = np.tril(np.ones((6, 3, 3), np.uint8))  # of attention, say
    with pytest.raises(ValueError, match=r"with nothing above 1: it may be pixels"):
        seen(mask)
    np.testing.assert_array_equal(seen(mask, scale=1)[1], mask)
    wide = flat.reshape(6, 2, 2)
    other = {"train": (wide, labels), "validation": (wide.astype(np.uint16), labels)}
    with pytest.raises(ValueError, match="'input' is uint8 in 'train', uint16 in 'validation'"):
        bs.Workload.from_model(nn.Dense(3), other, scale=255)
    np.testing.assert_array_equal(seen(flat, preprocess=lambda batch, key: batch)[1], flat)


def test_labels_of_several_classes_are_judged_as_scikit_learn_does():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(60, 4)).astype(np.float32), rng.integers(0, 2, (60, 3)).astype(np.int32)
    y[::5, 1] = -1
    found = bs.Workload.from_model(
        (lambda key: jax.random.normal(key, (4, 3)), lambda w, x: x @ w),
        {"train": (x, y)},
        "sigmoid_cross_entropy",
        ignore_label=-1,
    )
    w, state = found.init(jax.random.key(0))
    sums = found.metrics(w, state, {"input": jnp.asarray(x), "label": jnp.asarray(y)})
    real = y >= 0
    scores = (x.astype(np.float64) @ np.asarray(w, np.float64))[real]
    expected = sklearn.metrics.log_loss(y[real], 1 / (1 + np.exp(-scores)), labels=[0, 1])
    assert int(sums["loss"][1]) == real.sum()
    assert float(sums["loss"][0]) / real.sum() == pytest.approx(expected, rel=1e-5)
    assert int(sums["error"][0]) == ((scores > 0) != y[real]).sum()


def test_r2_is_known_of_labels_far_from_zero_that_are_streamed():
    rng = np.random.default_rng(0)
    years = rng.normal(2000, 5, 400).astype(np.float32)
    model = lambda key: jnp.full((), 2000.0), lambda w, x: x * 0 + w
    for streamed in (True, False):
        data = {"input": years, "label": years}
        train = bs.datasets.Stream(data) if streamed else data
        found = bs.Workload.from_model(model, {"train": train}, "squared_error")
        sums = found.metrics(jnp.full((), 2000.0), {}, jax.tree.map(jnp.asarray, data))
        assert found.finalized("r2", jax.tree.map(np.asarray, sums["r2"])) == pytest.approx(
            sklearn.metrics.r2_score(years, np.full(400, 2000.0)), abs=1e-4
        )


@pytest.mark.parametrize("labels", [[5.0], [5.0] * 100, [0.3] * 100, [0.0] * 7])
def test_r2_of_labels_that_are_all_the_same_is_not_known(labels):
    train = np.linspace(-3, 1, 50, dtype=np.float32)
    model = lambda key: jnp.zeros(()), lambda w, x: x + w
    found = bs.Workload.from_model(model, {"train": (train, train)}, "squared_error")
    x = jnp.arange(len(labels), dtype=jnp.float32)
    sums = found.metrics(jnp.zeros(()), {}, {"input": x, "label": jnp.asarray(labels)})
    assert math.isnan(found.finalized("r2", jax.tree.map(np.asarray, sums["r2"])))


def test_labels_of_a_regression_that_are_not_finite_are_named_with_their_split():
    x = np.linspace(-3, 1, 50, dtype=np.float32)
    bad = np.where(np.arange(50) > 47, np.nan, x)
    model = lambda key: jnp.zeros(()), lambda w, x: x + w
    for split in ("train", "validation"):
        data = {"train": (x, x), "validation": (x, x), split: (x, bad)}
        with pytest.raises(ValueError, match=f"'{split}/label' has 2 .* the first of example 48"):
            bs.Workload.from_model(model, data, "squared_error")


def test_r2_is_that_of_scikit_learn_also_far_from_zero():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(3000, 4)).astype(np.float32)
    y = (x @ [1, 2, 3, 4] + rng.normal(size=3000) + 1000).astype(np.float32)
    found = bs.Workload.from_model(
        (
            lambda key: {"w": jax.random.normal(key, (4,)), "b": jnp.full((), 1000.0)},
            lambda p, x: x @ p["w"] + p["b"],
        ),
        {"train": (x, y)},
        "squared_error",
        metrics={"far": lambda outputs, labels: jnp.abs(outputs - labels) > 1},
    )
    params, state = found.init(jax.random.key(0))
    sums = found.metrics(params, state, {"input": jnp.asarray(x), "label": jnp.asarray(y)})
    outputs = x.astype(np.float64) @ np.asarray(params["w"], np.float64) + 1000
    added = jax.tree.map(np.asarray, sums["r2"])
    assert found.finalized("r2", added) == pytest.approx(
        sklearn.metrics.r2_score(y, outputs), rel=1e-4
    )
    mse = sklearn.metrics.mean_squared_error(y, outputs)
    assert float(sums["loss"][0] / sums["loss"][1]) == pytest.approx(mse, rel=1e-4)
    assert abs(int(sums["far"][0]) - (np.abs(outputs - y) > 1).sum()) <= 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"loss": "huber"}, "loss: got 'huber', wanted one of cross_entropy"),
        ({"loss": 3}, "loss: got a int"),
        ({"loss": "squared_error"}, r"the shape \(\), and the model's output \(3,\)"),
        ({"loss": "sigmoid_cross_entropy"}, r"the shape \(\), and the model's output \(3,\)"),
        ({"loss": "squared_error", "ignore_label": 0}, "this loss has labels that are no classes"),
        ({"ignore_label": 0.5}, "ignore_label: got 0.5"),
        ({"labels": "digit"}, "wanted the labels as 'digit'"),
        ({"loss": lambda outputs, labels: outputs.mean()}, "Of a mean, leave the mean out"),
        ({"metrics": {"error": lambda o, y: y}}, "'error' is measured already"),
        ({"finalize": {"f1": len}}, "there is no metric 'f1'"),
        ({"loss": "next_token"}, "wanted one, the tokens"),
        ({"scale": 0}, "scale: got 0"),
        ({"scale": 2.0, "preprocess": lambda batch, key: batch}, "inputs are not divided"),
    ],
)
def test_what_does_not_fit_is_told_before_anything_compiles(arguments, words):
    def measured():
        found = workload(Linen(), **arguments)
        found.metrics(*found.init(jax.random.key(0)), found.splits()["train"])

    with pytest.raises((ValueError, TypeError), match=words):
        jax.eval_shape(measured)


def test_labels_of_several_classes_are_0_or_1():
    data = {"train": (np.zeros((4, 2), np.float32), np.array([[-1], [1], [1], [-1]]))}
    with pytest.raises(ValueError, match="wanted 0 and 1"):
        bs.Workload.from_model(nn.Dense(1), data, "sigmoid_cross_entropy")
    bs.Workload.from_model(nn.Dense(1), data, "sigmoid_cross_entropy", ignore_label=-1)
    with pytest.raises(ValueError, match="of at least two tokens"):
        bs.Workload.from_model(bigrams(), {"train": np.ones((4, 1), np.int32)}, "next_token")


def test_labels_out_of_range_are_refused_but_the_ignored_one():
    data = {"train": (DATA["train"][0], np.where(DATA["train"][1] == 2, -100, DATA["train"][1]))}
    with pytest.raises(ValueError, match="outside 0 to 2"):
        bs.Workload.from_model(Linen(), data)
    found = bs.Workload.from_model(Linen(), data, ignore_label=-100)
    assert (found.classes, found.ignored_label) == (3, -100)
    with pytest.raises(ValueError, match="outside 0 to 2"):
        dataclasses.replace(found, ignored_label=-1)


def test_a_loss_of_ones_own_gets_outputs_and_labels():
    found = workload(
        Linen(), loss=lambda o, y: optax.softmax_cross_entropy_with_integer_labels(o, y) * 2
    )
    plain = workload(Linen())
    params, state = plain.init(jax.random.key(0))
    batch = {name: jnp.asarray(x) for name, x in plain.splits()["train"].items()}
    twice = found.metrics(params, state, batch)["loss"][0]
    once = plain.metrics(params, state, batch)["loss"][0]
    assert float(twice) == pytest.approx(2 * float(once), rel=1e-6)
