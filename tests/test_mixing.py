"""Which losses are found to depend on more than their own example."""

import contextlib
import dataclasses
import warnings

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from helpers import batches, points

import batchscale as bs
from batchscale import optimizers, schedules, train
from batchscale.engine import autotune, layout, parallel
from batchscale.engine.engine import Engine
from batchscale.models import GhostBatchNorm, layers
from batchscale.workloads.coupling import metrics_of_batches, mixes_examples, mixes_groups

SPACE = bs.SearchSpace(learning_rate=bs.LogUniform(0.01, 1.0))
RANDOM = np.random.default_rng(0)
IMAGES = RANDOM.integers(0, 255, (16, 6, 6, 1)).astype(np.uint8), np.arange(16) % 4


class Net(nn.Module):
    """A perceptron with some norm."""

    norm: str = ""
    ghost_batch_size: int | None = None

    @nn.compact
    def __call__(self, x, train=False, dropout_rate=0.0):
        x = nn.Dense(8)(x.reshape(len(x), -1))
        if self.norm == "batch":
            x = nn.BatchNorm(use_running_average=not train)(x)
        if self.norm == "batch, nothing kept":
            x = (x - x.mean(0, keepdims=True)) / (x.std(0, keepdims=True) + 1e-3)
        if self.norm == "ghost":
            x = GhostBatchNorm(4)(x, train=train)
        if self.norm == "layer":
            x = nn.LayerNorm()(x)
        if train:
            x = layers.dropout(x, dropout_rate, self.make_rng("dropout"))
        return nn.Dense(4, kernel_init=nn.initializers.zeros)(nn.relu(x))


@pytest.mark.parametrize(
    ("norm", "mixes"),
    [("", False), ("layer", False), ("batch", True), ("batch, nothing kept", True)],
)
def test_norms_of_batches_are_found_with_running_statistics_and_without(norm, mixes):
    workload = bs.Workload.from_flax(Net(norm), {"train": IMAGES})
    dropout = bs.SearchSpace(learning_rate=0.1, dropout_rate=bs.Uniform(0.2, 0.6))
    assert mixes_examples(workload, dropout.typical()) is mixes


def own(loss, *, examples=16, state=None):
    x = RANDOM.normal(size=(examples, 3)).astype(np.float32)
    return bs.Workload(
        name="own",
        init=lambda key: (jnp.zeros((3, 2)), {} if state is None else state),
        loss=loss,
        metrics=lambda params, state, batch: {"loss": (optax.tree.sum(params), jnp.ones(()))},
        data={"train": {"input": x}},
    )


def test_a_loss_of_pairs_is_found():
    def contrastive(params, state, batch, key, hyperparameters):
        seen = batch["input"] @ params
        scores = jax.nn.log_softmax(seen @ seen.T)
        return (-jnp.trace(scores), jnp.asarray(len(seen))), state

    assert mixes_examples(own(contrastive), SPACE.typical())


def test_what_hides_in_symmetry_constants_and_saturation_is_found():
    def standard(x):
        return (x - x.mean(0, keepdims=True)) / (x.std(0, keepdims=True) + 1e-3)

    def towers(params, state, batch, key, hyperparameters):
        x = batch["input"]
        seen = x @ params["a"] - x @ params["b"]
        seen = standard(seen)
        return ((seen**3).sum(), jnp.asarray(len(x))), state

    def shifted(params, state, batch, key, hyperparameters):
        seen = batch["input"] @ params["a"]
        losses = 1e4 + standard(seen).sum(1) ** 2
        return (losses.sum(), jnp.asarray(len(losses))), state

    def saturated(params, state, batch, key, hyperparameters):
        seen = 5 * batch["input"] @ params["a"]
        return (-jnp.trace(jax.nn.log_softmax(seen @ seen.T)), jnp.asarray(len(seen))), state

    two = {"a": jnp.zeros((3, 2)), "b": jnp.zeros((3, 2))}
    for loss in (towers, shifted, saturated):
        workload = dataclasses.replace(own(loss), init=lambda key: (two, {}))
        assert mixes_examples(workload, SPACE.typical()) is True

    def flat(params, state, batch, key, hyperparameters):
        return (0.0 * params["a"].sum(), jnp.asarray(2)), state

    workload = dataclasses.replace(own(flat), init=lambda key: (two, {}))
    assert mixes_examples(workload, SPACE.typical()) is None


@pytest.mark.parametrize("seed", range(5))
def test_rounding_mixes_nothing(seed):
    x = np.random.default_rng(seed).normal(size=(64, 10)).astype(np.float32)

    def loss(params, state, batch, key, hyperparameters):
        seen = jax.nn.relu(batch["input"].astype(jnp.bfloat16) @ params["a"]) @ params["b"]
        return (jnp.sum(seen**2), jnp.asarray(len(seen))), state

    init = {"a": jnp.zeros((10, 32), jnp.bfloat16), "b": jnp.zeros((32, 3), jnp.bfloat16)}
    workload = dataclasses.replace(
        own(loss), init=lambda key: (init, {}), data={"train": {"input": x}}
    )
    assert mixes_examples(workload, SPACE.typical()) is False


def test_a_state_that_is_not_of_the_batch_is_none():
    def counting(params, state, batch, key, hyperparameters):
        noise = jax.random.normal(key, (len(batch["input"]), 2))
        losses = (batch["input"] @ params + noise) ** 2
        return (losses.sum(), jnp.asarray(len(losses))), {"steps": state["steps"] + 1}

    assert mixes_examples(own(counting, state={"steps": jnp.zeros(())}), SPACE.typical()) is False
    assert (
        mixes_examples(own(counting, state={"steps": jnp.zeros(())}, examples=3), SPACE.typical())
        is None
    )


@pytest.mark.parametrize(
    ("loss", "words"),
    [
        (lambda p, batch: ((batch["input"] @ p).mean(1) ** 2).sum(), "like a sum over the batch"),
        (lambda p, batch: ((batch["input"] @ p).mean(1) ** 2).mean(), None),
        (lambda p, batch: (batch["input"] @ p).mean(1) ** 2, None),
    ],
)
def test_a_sum_over_the_batch_is_told_from_its_mean(loss, words):
    x = RANDOM.normal(size=(16, 3)).astype(np.float32)
    workload = bs.Workload.from_functions(
        lambda key: jnp.zeros((3, 2)), loss, data={"train": {"input": x}}
    )
    if words is None:
        assert mixes_examples(workload, SPACE.typical()) is False
    else:
        with pytest.raises(ValueError, match=words):
            mixes_examples(workload, SPACE.typical())


def test_a_mean_that_is_given_for_a_sum_is_refused():
    def mean(params, state, batch, key, hyperparameters):
        losses = jnp.sum((batch["input"] @ params) ** 2, 1)
        return (losses.mean(), jnp.asarray(len(losses))), state

    with pytest.raises(ValueError, match="like a mean over the batch where its sum is wanted"):
        mixes_examples(own(mean), SPACE.typical())


def test_a_state_of_keys_and_variances_is_that_of_the_workload():
    def loss(params, state, batch, key, hyperparameters):
        noise = jax.random.normal(state["key"], (2,))
        seen = (batch["input"] @ params + noise[None]) / jnp.sqrt(state["variance"])
        return ((seen**2).sum(), jnp.asarray(len(seen))), state

    state = {"key": jax.random.key(3), "variance": jnp.asarray(0.5)}
    assert mixes_examples(own(loss, state=state), SPACE.typical()) is False


def test_a_loss_that_is_no_number_tells_nothing():
    def lost(params, state, batch, key, hyperparameters):
        return (jnp.sum(params) * jnp.nan, jnp.ones(())), state

    assert mixes_examples(own(lost), SPACE.typical()) is None


def test_a_metric_that_is_never_a_number_is_told(tmp_path):
    def lost(params, batch):
        return jnp.where(batch["label"] > 2, jnp.nan, 1.0) * (params - 1) ** 2

    study = bs.Study(
        workload=bs.Workload.from_functions(
            lambda key: jnp.zeros(()),
            lost,
            metrics={"error": lambda params, batch: jnp.float32(batch["label"]) > params},
            data={"train": IMAGES, "validation": IMAGES},
        ),
        optimizer="sgd",
        space=SPACE,
        batch_sizes=[4],
        goal=bs.Goal("validation/error", 0.1),
        trials=1,
        max_steps=3,
    )
    with pytest.raises(ValueError, match="the sum of 'loss' over the split 'validation' is not"):
        study.run(tmp_path, progress=False)


def of_images(norm, microbatch="auto", batch_sizes=(4, 16), ghosts=None):
    data = {"train": IMAGES, "validation": IMAGES}
    return bs.Study(
        workload=bs.Workload.from_flax(Net(norm, ghosts), data),
        optimizer="sgd",
        space=SPACE,
        batch_sizes=batch_sizes,
        goal=bs.Goal("validation/error", 2.0),
        trials=2,
        max_steps=3,
        microbatch=microbatch,
    )


@pytest.mark.parametrize(("norm", "verdict"), [("", "pass"), ("batch", "warn")])
@pytest.mark.slow
def test_the_audit_of_a_study_says_so_and_the_run_whatever_its_progress(norm, verdict, tmp_path):
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        found = of_images(norm).run(tmp_path / "study", progress=False).audit()
    words = " ".join(str(warning.message) for warning in told)
    assert found.of("model independent of the batch size").verdict == verdict
    assert ("depends on the others of its batch, as with batch norm" in words) == (
        verdict == "warn"
    )


@pytest.mark.parametrize(
    ("arguments", "dependent"),
    [
        ({"norm": "batch"}, True),
        ({"norm": "batch", "microbatch": 4}, False),
        ({"norm": "ghost", "ghosts": 4}, False),
        ({"norm": "ghost", "ghosts": 4, "microbatch": 8}, False),
        ({"norm": "ghost", "ghosts": 4, "batch_sizes": [4, 6]}, True),  # a rest
        ({"norm": "ghost", "ghosts": 4, "microbatch": 6}, True),  # groups are cut
    ],
    ids=str,
)
def test_a_plan_knows_whether_batch_sizes_have_one_objective(arguments, dependent, tmp_path):
    study = of_images(**arguments)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with study._opened(tmp_path / "study", False, None) as session:
            assert bool(session.plan.batch_dependent) == dependent


@pytest.mark.parametrize(("norm", "shared"), [("", True), ("batch", False), ("ghost", False)])
@pytest.mark.slow
def test_batches_that_mix_are_not_cut_to_share_a_program(norm, shared, tmp_path):
    sizes = [1, 2, 4, 8]
    study = bs.Study(
        workload=bs.Workload.from_flax(Net(norm), {"train": IMAGES, "validation": IMAGES}),
        optimizer="sgd",
        space=SPACE,
        batch_sizes=sizes,
        goal=bs.Goal("validation/error", 0.5),
        trials=2,
        max_steps=4,
    )
    with (
        warnings.catch_warnings(),
        contextlib.suppress(ValueError),  # that nothing reached the goal
    ):
        warnings.simplefilter("ignore")
        # A price that ends it after what is run in any case.
        study.measure(tmp_path / "study", examples=1, progress=False)
    packed = bs.load(tmp_path / "study").layouts()
    assert packed["shared"].tolist() == [shared] * 4
    assert packed["microbatch"].tolist() == ([1, 1, 4, 4] if shared else sizes)


def test_groups_are_found_to_be_as_large_as_a_model_says():
    def mixed(norm, size):
        workload = bs.Workload.from_flax(Net(norm, size), {"train": IMAGES})
        return mixes_groups(workload, SPACE.typical())

    assert mixed("ghost", 4) is False
    assert mixed("ghost", None) is True
    assert mixed("ghost", 8) is True  # fewer than two of them, and two examples more
    for norm, size in (("ghost", 2), ("ghost", 3), ("batch", 4)):
        with pytest.raises(ValueError, match="other groups of"):
            mixed(norm, size)


class Wide(nn.Module):
    """Many groups of 16, in which one example changes little of another's loss."""

    ghost_batch_size: int

    @nn.compact
    def __call__(self, x, train=False):
        for _ in range(2):
            x = nn.relu(GhostBatchNorm(16)(nn.Conv(8, (3, 3))(x), train=train))
        return nn.Dense(4)(x.mean((1, 2)))


@pytest.mark.parametrize(
    ("size", "right"), [(8, False), (16, True), (20, False), (24, False), (32, True), (40, False)]
)
def test_large_groups_are_found_where_a_model_says_otherwise(size, right):
    random = np.random.default_rng(101)  # of one draw of parameters 24 and 40 were not found
    images = random.integers(0, 255, (200, 8, 8, 1)).astype(np.uint8), np.arange(200) % 4
    workload = bs.Workload.from_flax(Wide(size), {"train": images})
    if right:  # two groups of 16 are a group of 32
        assert mixes_groups(workload, SPACE.typical()) is False
    else:
        with pytest.raises(ValueError, match=f"says {size}, and the loss"):
            mixes_groups(workload, SPACE.typical())


@pytest.mark.parametrize("microbatch", [4, 8, 12, 16])
@pytest.mark.slow
def test_the_gradient_of_ghost_batches_is_the_same_in_every_microbatch(microbatch):
    workload = bs.Workload.from_flax(Net("ghost", 4), {"train": IMAGES})
    found = []
    for size in (16, microbatch):
        recipe = train.Recipe.of(
            workload, optimizers.get("sgd"), schedules.constant, batch_size=16, microbatch=size
        )
        # In one order: the whole batch is taken as it lies in the data.
        values = {"learning_rate": jnp.asarray(1.0)}
        state = train.init(recipe, train.trial_key(0, 16, 0, 0), values)
        data = jax.tree.map(jnp.asarray, dict(workload.splits()["train"]))
        batch = train.Batch(jnp.arange(16), 0, 16)
        after = train.step(recipe, state, values, data, batch, 0)
        found.append((after.params, after.model_state))
    chex.assert_trees_all_close(*found, rtol=1e-4, atol=1e-6)


def test_microbatches_are_cut_between_groups():
    images = np.zeros((4096, 6, 6, 1), np.uint8), np.arange(4096) % 4
    workload = bs.Workload.from_flax(Net("ghost", 12), {"train": images})
    for batch_size in (12, 48, 240, 256, 1000, 4096):
        for cpu in (True, False):
            chosen = layout.choose(workload, cpu=cpu, batch_size=batch_size, trials=4)
            assert chosen.microbatch == batch_size or chosen.microbatch % 12 == 0


def sequences():
    """Eight-word sentences, of which one to eight count."""
    x = RANDOM.normal(size=(64, 8)).astype(np.float32)
    weight = (np.arange(8) < RANDOM.integers(1, 9, (64, 1))).astype(np.float32)
    return {"input": x, "label": np.where(x > 0, 1.0, -1.0).astype(np.float32), "weight": weight}


def tokens(metrics, finalize=None):
    """A line through words, some of which are masked; the metrics are made of both sums."""

    def parts(params, batch):
        off = params["w"] * batch["input"] + params["b"] - batch["label"]
        return (off**2 * batch["weight"]).sum(), batch["weight"].sum()

    split = sequences()
    return bs.Workload(
        name="tokens",
        init=lambda key: ({"w": jnp.zeros(()), "b": jnp.zeros(())}, {}),
        loss=lambda params, state, batch, key, h: (parts(params, batch), state),
        metrics=lambda params, state, batch: metrics(*parts(params, batch)),
        data={"train": split, "validation": split},
        finalize=finalize or {},
    )


def test_a_metric_that_is_a_mean_over_a_batch_is_refused():
    for mean in (
        lambda total, count: {"off": (total / count, 1)},
        lambda total, count: {"off": (total / count, jnp.ones(()))},
    ):
        with pytest.raises(ValueError, match="metrics: 'off' of workload 'tokens' is"):
            mixes_examples(tokens(mean), SPACE.typical())
    rooted = tokens(lambda total, count: {"off": (total, count)}, {"off": lambda s: s[0] ** 0.5})
    assert mixes_examples(rooted, SPACE.typical()) is False
    means = tokens(lambda total, count: {"off": total / count}, {"off": lambda mean: mean})
    with pytest.raises(ValueError, match="sums that add, with finalize"):
        mixes_examples(means, SPACE.typical())
    for right in (lambda t, n: {"off": (t, n)}, lambda t, n: {"same": (3.0, 1)}):
        assert mixes_examples(tokens(right), SPACE.typical()) is False


def test_what_a_loss_counts_may_not_depend_on_the_parameters():
    def weighted(stop):
        def loss(params, state, batch, key, hyperparameters):
            seen = batch["input"] @ params
            weight = jax.nn.sigmoid(seen.sum(1)) + 0.1
            count = weight.sum()
            return ((weight * (seen**2).sum(1)).sum(), stop(count)), state

        return loss

    with pytest.raises(ValueError, match="counts depends on the parameters"):
        mixes_examples(own(weighted(lambda count: count)), SPACE.typical())
    mixes_examples(own(weighted(jax.lax.stop_gradient)), SPACE.typical())


def masked(of, *, even=False):
    """The squares of words that count, in the short form."""

    def parts(params, batch):
        off = params["w"] * batch["input"] + params["b"] - batch["label"]
        return (off**2 * batch["weight"]).sum(), batch["weight"].sum()

    split = sequences()
    if even:
        split["weight"] = np.ones_like(split["weight"])
    return bs.Workload.from_functions(
        lambda key: {"w": jnp.zeros(()), "b": jnp.zeros(())},
        lambda params, batch: of(*parts(params, batch)),
        metrics={"off": parts},
        data={"train": split, "validation": split},
    )


def of_the_batch(total, count):
    return total / count


def test_a_mean_in_which_examples_weigh_otherwise_than_they_are_counted_is_refused():
    with pytest.raises(ValueError, match=r"loss: that of workload 'own' is a mean .* Return \(sum"):
        mixes_examples(masked(of_the_batch), SPACE.typical())
    # Of the full form, too, counted as one.
    right = tokens(lambda total, count: {"off": (total, count)})

    def counted_as_one(*given):
        (total, count), state = right.loss(*given)
        return (total / count, jnp.ones(())), state

    wrong = dataclasses.replace(right, loss=counted_as_one)
    with pytest.raises(ValueError, match="is a mean"):
        mixes_examples(wrong, SPACE.typical())
    # Of as many words in each the mean of means is the mean.
    assert mixes_examples(masked(of_the_batch, even=True), SPACE.typical()) is False


def labelled_in_part(of, share, seed):
    """A linear classifier of examples of which only a share has a weight, one or some other."""
    random = np.random.default_rng(seed)
    x = random.normal(size=(300, 4)).astype(np.float32)
    weight = (random.uniform(size=300) < share) * random.choice([1.0, 0.5], 300)

    def loss(params, batch):
        off = optax.softmax_cross_entropy_with_integer_labels(
            batch["input"] @ params, batch["label"]
        )
        return of(off * batch["weight"], batch["weight"])

    split = {"input": x, "label": (x[:, 0] > 0).astype(np.int32), "weight": weight.astype("f4")}
    return bs.Workload.from_functions(
        lambda key: jnp.zeros((4, 2)),
        loss,
        metrics={"weights": lambda params, batch: (batch["weight"].sum(), len(batch["weight"]))},
        data={"train": split},
    )


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("share", [0.05, 0.3, 0.9])
def test_examples_of_no_weight_are_found_in_a_mean_and_counted_in_a_sum(share, seed):
    means = [
        lambda off, weight: off.sum() / weight.sum(),
        lambda off, weight: off.sum() / jnp.maximum(weight.sum(), 1e-6),
    ]
    for mean in means:
        with pytest.raises(ValueError, match="some examples do not count"):
            mixes_examples(labelled_in_part(mean, share, seed), SPACE.typical())
    sums = labelled_in_part(lambda off, weight: (off.sum(), weight.sum()), share, seed)
    assert mixes_examples(sums, SPACE.typical()) is False
    each = labelled_in_part(lambda off, weight: off, share, seed)
    assert mixes_examples(each, SPACE.typical()) is False


def hinge(params, batch):
    """The hinge loss of each example, by a linear model of two columns, of which one is taken."""
    sign = 2 * batch["label"].astype(jnp.float32) - 1
    return jax.nn.relu(1 - sign * (batch["input"] @ params)[:, 0])


def test_what_counts_for_little_or_nothing_where_it_is_so_counted_is_right():
    split = labelled_in_part(lambda off, weight: off, 0.3, 0).splits()["train"]
    random = np.random.default_rng(0)
    others = {**split, "weight": random.lognormal(sigma=2, size=300).astype(np.float32)}

    def right(split, of):
        workload = bs.Workload.from_functions(
            lambda key: jnp.zeros((4, 2)),
            lambda params, batch: of(hinge(params, batch), batch["weight"]),
            metrics={"one": lambda params, batch: batch["weight"] > 0},
            data={"train": split},
        )
        assert mixes_examples(workload, SPACE.typical()) is False

    # No example of no weight grows the count; one of no loss grows it, and lowers the mean.
    right(split, lambda off, weight: ((off * weight).sum(), jnp.maximum(weight.sum(), 1e-3)))
    right(split, lambda off, weight: ((off * weight).sum(), weight.sum() + 1e-8))
    right(others, lambda off, weight: ((off * weight).sum(), weight.sum()))
    right(others, lambda off, weight: off)


def test_a_mean_over_those_examples_that_lose_something_mixes():
    split = labelled_in_part(lambda off, weight: off, 0.3, 0).splits()["train"]

    def loss(params, batch):
        off = hinge(params, batch)
        return off.sum() / jnp.maximum((off > 0).sum().astype(off.dtype), 1)

    workload = bs.Workload.from_functions(
        lambda key: jnp.zeros((4, 2)),
        loss,
        metrics={"one": lambda params, batch: batch["weight"] > 0},
        data={"train": split},
    )
    assert mixes_examples(workload, SPACE.typical()) is True


def test_what_a_loss_counts_is_not_negative():
    negative = labelled_in_part(lambda off, weight: (-off.sum(), -weight.sum()), 1.0, 0)
    with pytest.raises(ValueError, match=r"the count of 6 examples is -[3-6][0-9.]*\. What is"):
        mixes_examples(negative, SPACE.typical())


@pytest.mark.parametrize("scale", [1.0, 300.0, 5e4])
def test_labels_of_any_size_are_learned(scale):
    x = RANDOM.normal(size=(300, 3)).astype(np.float32)
    y = (x @ [1.0, 2.0, -1.0] * scale + 4 * scale).astype(np.float32)[:, None]
    workload = bs.Workload.from_model(
        (lambda key: jnp.zeros((3, 1)), lambda w, x: x @ w),
        {"train": (x, y), "validation": (x, y)},
        loss="squared_error",
    )
    assert mixes_examples(workload, SPACE.typical()) is False


def test_labels_that_are_nearly_all_the_same_belong_to_their_examples():
    labels = np.zeros(16, np.int32)
    labels[2] = 1  # an example that takes the place of another, where all others are the same
    images = RANDOM.integers(0, 255, (16, 6, 6, 1)).astype(np.uint8)
    workload = bs.Workload.from_flax(Net("batch"), {"train": (images, labels)})
    assert mixes_examples(workload, SPACE.typical()) is True


def test_the_sum_and_the_count_of_a_loss_are_taken_as_they_are():
    workload = masked(lambda total, count: (total, count))
    assert mixes_examples(workload, SPACE.typical()) is False
    params, split = {"w": jnp.asarray(0.5), "b": jnp.asarray(0.25)}, workload.splits()["train"]
    (total, count), _ = workload.loss(params, {}, split, None, {})
    off = 0.5 * split["input"].astype(float) + 0.25 - split["label"]
    np.testing.assert_allclose(total, (off**2 * split["weight"]).sum(), rtol=1e-5)
    assert count == split["weight"].sum()
    measured = workload.metrics(params, {}, split)
    assert measured["loss"] == measured["off"]


def test_what_is_measured_of_masked_words_is_their_mean_over_the_split(tmp_path):
    study = bs.Study(
        workload=masked(lambda total, count: (total, count)),
        optimizer="sgd",
        space=bs.SearchSpace(learning_rate=0.1),
        batch_sizes=[8],
        goal=bs.Goal("validation/loss", 0.5),
        trials=1,
        max_steps=20,
        stop="budget",
        curves="exact",
    )
    study.run(tmp_path / "study", progress=False)
    run = study.run_trial(batch_size=8, trial=0, folder=tmp_path / "study")
    split = {name: x.astype(float) for name, x in study.workload.splits()["validation"].items()}
    off = float(run.params["w"]) * split["input"] + float(run.params["b"]) - split["label"]
    right = (off**2 * split["weight"]).sum() / split["weight"].sum()
    np.testing.assert_allclose(run.curve["validation/loss"].iloc[-1], right, rtol=1e-5)


def test_a_contrastive_loss_is_no_weighted_mean():
    x = RANDOM.normal(size=(64, 3)).astype(np.float32)

    def loss(params, batch):
        scores = (batch["input"] @ params["w"]) @ batch["label"].T
        right = jnp.arange(len(scores))
        return optax.softmax_cross_entropy_with_integer_labels(scores, right).mean()

    workload = bs.Workload.from_functions(
        lambda key: {"w": jnp.eye(3)}, loss, data={"train": (x, x + 0.1)}
    )
    assert mixes_examples(workload, SPACE.typical()) is True


def contrasts(params, batch):
    """Of each pair of rows among all of its batch (InfoNCE)."""
    scores = 3 * (batch["input"] @ params["w"]) @ (batch["label"] @ params["w"]).T
    return -jnp.diagonal(jax.nn.log_softmax(scores, -1))


def contrastive(validation, *, goal="loss", **others):
    random = np.random.default_rng(0)
    x = random.normal(size=(700 + validation, 4)).astype(np.float32)
    x, y = (x + 0.3 * random.normal(size=x.shape).astype(np.float32) for _ in range(2))
    workload = bs.Workload.from_functions(
        lambda key: {"w": jnp.eye(4) / 3},
        contrasts,
        metrics={"size": lambda params, batch: jnp.abs(batch["input"] @ params["w"]).sum(1)},
        data={"train": (x[:700], y[:700]), "validation": (x[700:], y[700:])},
    )
    arguments = {
        **{"optimizer": "sgd", "space": bs.SearchSpace(learning_rate=0.5), "trials": 1},
        **{"batch_sizes": ["full"], "goal": bs.Goal(f"validation/{goal}", 0.0), "max_steps": 1},
    }
    return bs.Study(workload=workload, **(arguments | others)), (x, y)


@pytest.mark.filterwarnings("ignore")
def test_a_batch_whose_examples_mix_is_not_cut(tmp_path):
    study, (x, y) = contrastive(300)
    result = study.run(tmp_path, progress=False)
    assert result.layouts()["microbatch"].tolist() == [700]
    batch = {"input": jnp.asarray(x[:700]), "label": jnp.asarray(y[:700])}
    w = jnp.eye(4) / 3
    right = w - 0.5 * jax.grad(lambda w: contrasts({"w": w}, batch).mean())(w)
    run = study.run_trial(batch_size=700, trial=0, folder=tmp_path, steps=1)
    np.testing.assert_allclose(run.params["w"], right, rtol=1e-5, atol=1e-6)
    # Its loss is of the split taken together, on any device.
    batch = {"input": jnp.asarray(x[700:]), "label": jnp.asarray(y[700:])}
    right = contrasts({"w": right}, batch).mean()
    assert result.measurements["validation/loss"].iloc[-1] == pytest.approx(float(right), rel=1e-5)


@pytest.mark.filterwarnings("ignore")
def test_a_batch_that_does_not_fit_is_cut_where_its_examples_do_not_mix_alone():
    def fitted(workload, layout_, mixes):
        class Engine:
            memory_limit = 100
            group = None if mixes else 1

            def memory(self, batch_size, layout, trials):
                return layout.lanes * layout.microbatch

            def start(self, *args, **kwargs):
                return []

            advance = start

        some = autotune.Rehearsal(Engine(), 256, lambda ids: {}, 4, Engine.group)
        return autotune.final_layout(some, layout_, probe=False)[0]

    study, _ = contrastive(300)
    assert fitted(study.workload, layout.Layout(4, 64), True) == layout.Layout(1, 64)
    assert fitted(study.workload, layout.Layout(4, 64), False) == layout.Layout(4, 16)
    with pytest.raises(MemoryError, match="no batch is cut: another microbatch= is another obj"):
        fitted(study.workload, layout.Layout(4, 256), True)


@pytest.mark.filterwarnings("ignore")
def test_a_goal_that_depends_on_how_many_are_evaluated_at_once_is_refused(tmp_path):
    study, _ = contrastive(600)
    with pytest.raises(ValueError, match=r"goal: 'loss' .* evaluate=\{'validation': 500\}"):
        study.run(tmp_path / "loss", progress=False)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        contrastive(600, goal="size")[0].run(tmp_path / "size", progress=False)
    assert any("'loss' of workload" in str(x.message) for x in told)
    study, _ = contrastive(600, evaluate={"validation": 500})
    assert study.run(tmp_path / "part", progress=False).measurements["validation/loss"].all()


@pytest.mark.long
def test_the_whole_training_set_is_shuffled_where_its_order_matters(tmp_path):
    """Sorted by class, groups of examples in their order would be of one class each."""
    x, y = points(96)
    order = np.argsort(y, kind="stable")
    data = {"train": (x[order], y[order]), "validation": points(30, 1)}
    some = bs.Study(
        workload=bs.Workload.from_flax(Net("ghost", 4), data),
        optimizer="sgd",
        space=bs.SearchSpace(learning_rate=0.1),
        batch_sizes=["full"],
        goal=bs.Goal("validation/error", 0.9),
        trials=1,
        max_steps=2,
        stop="budget",
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        some.run(tmp_path, progress=False)
        run = some.run_trial(batch_size=96, trial=0, steps=2, folder=tmp_path)
    workload, sgd = some.workload, optimizers.get("sgd")
    recipe = train.Recipe.of(workload, sgd, schedules.constant, batch_size=96, microbatch=96)
    values = {"learning_rate": jnp.asarray(0.1)}
    data = jax.tree.map(jnp.asarray, dict(workload.splits()["train"]))

    def off(orders):
        """How far the study's parameters are from those of two steps in given orders."""
        state = train.init(recipe, train.trial_key(0, 96, 0, 0), values)
        for step, seen in enumerate(orders):
            batch = train.Batch(jnp.asarray(seen, jnp.int32), 0, 96)
            state = train.step(recipe, state, values, data, batch, step)
        apart = jax.tree.map(lambda a, b: np.abs(a - b).max(), run.params, state.params)
        return max(jax.tree.leaves(apart))

    drawn, stored = off(batches((0, 96, 0, 0), 2, 96)), off([np.arange(96)] * 2)
    assert drawn < 1e-3  # norms of four examples enlarge what is rounded
    assert drawn < stored / 10


@pytest.mark.parametrize(
    ("norm", "told"), [("batch, nothing kept", {"error", "loss"}), ("batch", set())]
)
def test_metrics_of_batches_are_found_and_counts_are_counted_exactly(norm, told):
    random = np.random.default_rng(5)
    data = random.normal(size=(400, 6, 6, 1)).astype(np.float32), random.integers(0, 4, 400)
    workload = bs.Workload.from_flax(Net(norm), {"train": data})
    assert mixes_examples(workload, SPACE.typical()) is True
    assert set(metrics_of_batches(workload, SPACE.typical())) == told


@pytest.mark.parametrize(("mixes", "bounded"), [(True, False), (False, True), (None, True)])
def test_evaluations_look_for_mistakes_where_examples_are_apart_alone(mixes, bounded):
    """Batches of mistakes have other statistics than those of a split."""
    data = {"train": points(64), "validation": points(1200, 1)}
    some = bs.Study(
        workload=bs.Workload.from_flax(Net(), data), optimizer="sgd", space=SPACE, batch_sizes=[8],
        goal=bs.Goal("validation/error", 0.3), trials=1, max_steps=10,
    )  # fmt: skip
    training = dataclasses.replace(some.training(), mixes_examples=mixes)
    with Engine(training, mesh=parallel.mesh(jax.devices()[:1])) as engine:
        assert engine.bounded is bounded
        assert engine.group == (1 if mixes is False else None)
