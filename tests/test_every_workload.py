"""Each of the paper's 35 workloads begins and trains two steps, on data of its format made here."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import batchscale as bs
from batchscale import models, optimizers, sampling, schedules, train, workloads
from batchscale.datasets import large
from batchscale.train import Recipe
from batchscale.workloads import catalogue, paper
from batchscale.workloads.large import example as one_of_large

EXAMPLES, BATCH = 5, 2
SIDE, LENGTH = 64, 6  # crops of 56 pixels; the parameters of ResNets do not hang on it
# The longest; of each family one is not left out.
SLOW = {
    ("common_crawl/transformer_base", "nesterov"),
    ("imagenet/resnet_50", "nesterov"),  # two steps of it are in test_images
    ("imagenet_half_classes/resnet_50", "nesterov"),
    ("imagenet_half_images/resnet_50", "nesterov"),
    ("lm1b/transformer_base", "nesterov"),
    ("lm1b/transformer_shallow", "momentum"),
    ("lm1b/transformer_shallow", "nesterov"),
    ("lm1b/transformer_wide", "nesterov"),
    ("mnist/fc_2048_2048_2048", "sgd"),
    ("open_images_v4/resnet_50", "nesterov"),
}
QUICK = {"xla_backend_optimization_level": 0}  # to compile


def images(shape, classes, seed=0):
    random = np.random.default_rng(seed)
    return {
        "image": random.integers(0, 256, (EXAMPLES, *shape), np.uint8),
        "label": random.integers(0, classes, EXAMPLES).astype(np.int32),
    }


def made(data_set):
    """Training examples in the format of a data set."""
    kind = large.SETS.get(data_set)
    if isinstance(kind, large.Images):
        return images((SIDE, SIDE, 3), kind.classes)
    if data_set == "open_images_v4":
        several = np.array([[5, 7000, -1], [0, -1, -1], [-1, -1, -1], [1, 2, 3], [9, -1, -1]])
        positive = np.array([[1, 0, 0], [1, 0, 0], [0, 0, 0], [0, 1, 1], [0, 0, 0]], bool)
        return {
            "image": images((SIDE, SIDE, 3), 2)["image"],
            "label": several.astype(np.int32),
            "positive": positive,
        }
    if data_set in large.SETS:
        tokens = np.random.default_rng(0).integers(1, 32_000, (EXAMPLES, LENGTH))
        tokens[1, 3:] = 0
        return {"tokens": tokens.astype(np.uint16)}
    shape = (32, 32, 3) if data_set == "cifar10" else (28, 28, 1)
    return images(shape, 10)


@functools.cache
def workload(name):
    return workloads.get(name, data={"train": made(name.split("/")[0])})


@pytest.mark.parametrize(
    "one",
    [
        pytest.param(
            p,
            id=f"{p.data_set}/{p.model} {p.optimizer}",
            marks=[pytest.mark.long] * ((p.workload, p.optimizer) in SLOW),
        )
        for p in paper.ALL
    ],
)
def test_it_begins_and_trains_two_steps(one):
    recipe = Recipe.of(
        workload(one.workload),
        optimizers.get(one.optimizer),
        schedules.get(one.schedule)[0],
        batch_size=BATCH,
        microbatch=BATCH,
    )
    values = one.space.at(BATCH, budget=10).typical() | {"learning_rate": 1e-3}
    values = {name: np.float32(value) for name, value in values.items()}
    key = train.trial_key(0, BATCH, 0, 0)
    # Tens of millions of random numbers take longer than what is saved in compiling them.
    text = models.is_language_model(one.model)
    init = jax.jit(
        lambda key: train.init(recipe, key, values), compiler_options=None if text else QUICK
    )
    state = init(key)
    place = sampling.position(0, batch_size=BATCH, examples=EXAMPLES)
    drawn = train.draw(key, place, size=2 * BATCH, examples=EXAMPLES)

    def step(state, values, data, number):
        batch = train.Batch(drawn, number * BATCH, BATCH)
        return train.step(recipe, state, values, data, batch, number)

    data = dict(recipe.workload.splits()["train"])
    stepped = jax.jit(step, compiler_options=QUICK)
    before = jax.tree.map(np.asarray, state.params)
    for number in range(2):
        state = stepped(state, values, data, jnp.asarray(number))
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(state.params))
    moved = jax.tree.map(lambda a, b: bool((np.asarray(a) != b).any()), state.params, before)
    still = [path for path, m in jax.tree_util.tree_leaves_with_path(moved) if not m]
    assert not still


def test_slow_ones_are_some_of_them():
    measured = {(p.workload, p.optimizer) for p in paper.ALL}
    assert measured >= SLOW
    families = {name.split("/")[1].split("_")[0] for name, _ in measured}
    assert families == {name.split("/")[1].split("_")[0] for name, _ in measured - SLOW}


@pytest.mark.parametrize("name", catalogue.LARGE)
def test_parameters_are_those_of_the_table_at_the_real_size(name):
    model, data_set = name.split("/")[1], name.split("/")[0]
    kind = large.SETS[data_set]
    classes = kind.vocabulary if isinstance(kind, large.Text) else kind.classes
    module = models.get(model, classes)
    if isinstance(kind, large.Text):
        example = jax.ShapeDtypeStruct((1, LENGTH), jnp.int32)
    else:
        example = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    shapes = jax.eval_shape(
        lambda key, x: module.init(key, x, train=False), jax.random.key(0), example
    )
    assert models.parameter_count(shapes["params"]) == catalogue.LARGE[name][0]


# ResNet-50 with 1,000 logits has 25,549,352 parameters, counted in the tests of images; a class is
# a column of 2,048 and a bias.
def test_parameters_follow_from_the_number_of_classes():
    counts = {name: count for name, (count, _) in catalogue.LARGE.items()}
    whole = counts["imagenet/resnet_50"]
    assert counts["imagenet_half_images/resnet_50"] == whole
    assert counts["imagenet_half_classes/resnet_50"] == whole - 500 * 2049
    assert counts["open_images_v4/resnet_50"] == whole + 6186 * 2049
    assert counts["imagenet/vgg_11"] == 132_863_336  # as widely published
    base = 32_000 * 512 + 6 * (4 * 512**2 + 2 * 512 * 2048 + 2560 + 2048) + 1024
    assert counts["lm1b/transformer_base"] == counts["common_crawl/transformer_base"] == base


@pytest.mark.long
@pytest.mark.parametrize("name", catalogue.LARGE)
def test_operations_are_those_of_the_table(name):
    found = workloads.get(name).flops(one_of_large(name.split("/")[0]))
    np.testing.assert_allclose(catalogue.LARGE[name][1], found, rtol=0.01)


def test_the_table_has_all_35_and_says_why_some_cannot_be_trained(monkeypatch, tmp_path):
    monkeypatch.setenv("BATCHSCALE_CACHE", str(tmp_path))
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    names = {f"{data}/{model}" for data, of in catalogue.SMALL.items() for model in of}
    monkeypatch.setattr(catalogue, "SMALL", dict.fromkeys(catalogue.SMALL, ()))
    (tmp_path / "imagenet" / "train").mkdir(parents=True)
    table = workloads.table().set_index("workload")
    assert list(table.index) == list(catalogue.LARGE)
    assert table.loc["imagenet/vgg_11", "here"]
    assert table.loc["imagenet/vgg_11", "note"] == f"read from {tmp_path / 'imagenet'}"
    assert not table.loc["lm1b/lstm", "here"]
    assert str(table.loc["lm1b/lstm", "note"]).startswith("No data here. Unpack http")
    assert table.loc["lm1b/transformer_shallow", "optimizers"] == "momentum, nesterov, sgd"
    assert {p.workload for p in paper.ALL} <= names | {*catalogue.LARGE}


@pytest.mark.parametrize("dtype", [np.int8, np.uint16, np.int32, np.int64])
def test_whole_numbers_of_any_type_are_the_same_pixels(dtype):
    """Those of 8 bits alone used to be scaled."""
    published = bs.datasets.load("digits")
    mine = {k: {**x, "image": x["image"].astype(dtype)} for k, x in published.items()}
    found = workloads.get("digits/fc_16", data=mine)
    batch = found.prepare(dict(found.splits()["validation"]), None)
    np.testing.assert_allclose(batch["image"], published["validation"]["image"] / 16, rtol=1e-6)
    assert found.title() == "digits/fc_16"


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        (
            "mnist/fc_64",
            {"image": np.full((2, 28, 28, 1), 256), "label": np.zeros(2, np.int32)},
            "'image' reaches from 256 to 256, wanted 0 to 255, as published",
        ),
        (
            "digits/fc_16",
            {"image": np.full((2, 8, 8, 1), 17), "label": np.zeros(2, np.int32)},
            "'image' reaches from 17 to 17, wanted 0 to 16, as published",
        ),
        (
            "mnist/fc_64",
            bs.datasets.Stream({"image": np.full((2, 28, 28, 1), 2), "label": np.zeros(2, int)}),
            "'image' is a stream of int32, wanted uint8",
        ),
        ("imagenet/resnet_50", {"image": np.zeros((2, 9, 9, 3), np.uint8)}, "has the fields image"),
        ("lm1b/lstm", {"tokens": np.full((2, 4), 32_000)}, "labels: .* outside 0 to 31999"),
        (
            "cifar10/resnet_8",
            {"image": np.zeros((2, 3072), np.uint8), "label": np.zeros(2, np.int32)},
            r"'image' holds examples of the shape \(3072,\) .* wanted \(32, 32, 3\)",
        ),
        (
            "mnist/fc_64",
            {"image": np.zeros((2, 28, 28, 1), np.float32), "label": np.zeros(2, np.int32)},
            "the type float32, wanted .* and whole numbers",
        ),
        ("mnist/fc_64", {"x": np.zeros((2, 3), np.uint8)}, "has the fields x, wanted image, label"),
        (
            "imagenet/vgg_11",
            {"image": np.zeros((2, 9, 8, 3), np.uint8), "label": np.zeros(2, int)},
            r"is uint8 of shape \(9, 8, 3\), wanted uint8",
        ),
        (
            "imagenet_half_classes/resnet_50",
            {"image": np.zeros((2, 64, 64, 3), np.uint8), "label": np.array([0, 500])},
            "outside 0 to 499",
        ),
        (
            "open_images_v4/resnet_50",
            {
                "image": np.zeros((2, 64, 64, 3), np.uint8),
                "label": np.array([[-1, 2], [3, 4]]),
                "positive": np.zeros((2, 2), bool),
            },
            "with gaps",
        ),
    ],
)
def test_data_in_another_format_are_refused(name, data, message):
    with pytest.raises(ValueError, match=message):
        workloads.get(name, data={"train": data})


def test_own_data_of_a_small_set_are_called_so():
    found = workloads.get("mnist/fc_64", data={"train": made("mnist")})
    assert found.train_examples == EXAMPLES
    assert found.title() == "mnist (other images)/fc_64"


def test_streams_are_data_of_ones_own_too():
    of = made("lm1b")
    stream = bs.datasets.Stream([{"tokens": row} for row in of["tokens"]])
    found = workloads.get("lm1b/transformer_narrow_and_shallow", data={"train": stream})
    assert found.train_examples == EXAMPLES
    np.testing.assert_array_equal(found.read("train", [1])["tokens"], of["tokens"][1:2])
