"""Multi-label workloads and crops: by hand, and over batchings of an evaluation."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import batchscale as bs
from batchscale import train
from batchscale.workloads import crops, multilabel, ranking

EXAMPLES, CLASSES, SIDE = 23, 5, 4
RANDOM = np.random.default_rng(0)


class Linear(nn.Module):
    """Logits that are linear in the pixels."""

    @nn.compact
    def __call__(self, x, *, train):
        del train
        return nn.Dense(CLASSES)(x.reshape(len(x), -1))


def made():
    counts = RANDOM.integers(0, 4, EXAMPLES)
    label = np.full((EXAMPLES, 3), -1, np.int32)
    for row, count in zip(label, counts, strict=True):
        row[:count] = RANDOM.permutation(CLASSES)[:count]
    return {
        "image": RANDOM.integers(0, 256, (EXAMPLES, SIDE, SIDE, 3), np.uint8),
        "label": label,
        "positive": RANDOM.random((EXAMPLES, 3)) < 0.5,
    }


@pytest.fixture(scope="module")
def workload():
    splits = multilabel.with_places({"train": made(), "validation": made()}, capacity=80)
    fields = multilabel.fields(
        Linear(),
        example=jax.ShapeDtypeStruct((SIDE, SIDE, 3), jnp.float32),
        classes=CLASSES,
        capacity=80,
        preprocess=lambda batch, key: {**batch, "image": batch["image"].astype(float) / 255},
    )
    return bs.Workload(name="several labels", data=splits, **fields)


@pytest.fixture(scope="module")
def logits(workload):
    params, _ = workload.init(jax.random.key(0))
    dense = jax.tree.map(np.asarray, params["Dense_0"])
    pixels = workload.splits()["validation"]["image"].reshape(EXAMPLES, -1) / 255
    return params, pixels @ dense["kernel"] + dense["bias"]


def test_the_loss_is_that_of_verified_labels_alone(workload, logits):
    params, scores = logits
    split = workload.splits()["validation"]
    batch = workload.prepare(jax.tree.map(jnp.asarray, dict(split)), None)

    @jax.jit
    def loss(values):
        return workload.loss(params, {}, batch, jax.random.key(0), values)[0]

    for smoothing in (0.0, 0.1):
        expected = 0.0
        for row, label, positive in zip(scores, split["label"], split["positive"], strict=True):
            for name, yes in zip(label, positive, strict=True):
                if name >= 0:
                    target = (1 - smoothing) * yes + smoothing / 2
                    p = 1 / (1 + np.exp(-row[name]))
                    expected -= target * np.log(p) + (1 - target) * np.log(1 - p)
        found, count = loss({"label_smoothing": jnp.float32(smoothing)})
        assert count == EXAMPLES
        np.testing.assert_allclose(found, expected, rtol=1e-5)
    squares = sum(float((np.asarray(x) ** 2).sum()) for x in jax.tree.leaves(params))
    more = loss({"label_smoothing": jnp.float32(0.1), "l2": jnp.float32(0.3)})[0]
    np.testing.assert_allclose(more, found + 0.15 * EXAMPLES * squares, rtol=1e-5)


@pytest.mark.parametrize("batch", [1, 4, 10, EXAMPLES])
def test_an_evaluation_in_any_batches_ranks_all_labels(workload, logits, batch):
    params, scores = logits
    split = workload.splits()["validation"]
    rows, places = np.nonzero(split["label"] >= 0)
    of = split["label"][rows, places]
    positive = split["positive"][rows, places]
    evaluated = jax.jit(functools.partial(train.evaluate, workload, batch=batch))
    parts = evaluated(params, {}, jax.tree.map(jnp.asarray, dict(split)))
    sums = jax.tree.map(lambda x: np.asarray(x).sum(0), dict(parts))
    found = workload.finalized("average_precision", sums["average_precision"])
    each = ranking.of_classes(scores[rows, of], of, positive, CLASSES)
    np.testing.assert_allclose(found, np.nanmean(each), rtol=1e-9)
    wrong = ((scores[rows, of] > 0) != positive).sum()
    assert sums["error"] == (wrong, len(of))


def test_an_example_without_labels_counts_in_the_mean_and_adds_nothing(workload, logits):
    params, _ = logits
    nothing = {
        "image": jnp.ones((2, SIDE, SIDE, 3)),
        "label": jnp.full((2, 3), -1),
        "positive": jnp.zeros((2, 3), bool),
    }

    def loss(params):
        (total, count), _ = workload.loss(params, {}, nothing, jax.random.key(0), {})
        return total, (total, count)

    gradient, (total, count) = jax.grad(loss, has_aux=True)(params)
    assert (float(total), int(count)) == (0, 2)
    assert not any(np.asarray(x).any() for x in jax.tree.leaves(gradient))


@pytest.mark.slow
def test_a_study_of_average_precision_maximises_it(workload, tmp_path):
    study = bs.Study(
        workload=workload,
        optimizer="sgd",
        space=bs.SearchSpace(learning_rate=bs.LogUniform(0.1, 0.3)),
        batch_sizes=[8],
        goal=bs.Goal("train/average_precision", 0.8, "max"),
        trials=2,
        max_steps=100,
    )
    found = study.run(tmp_path, progress=False)
    assert found.measurements["train/average_precision"].between(0, 1).all()
    assert np.isfinite(found.steps_to_target()["steps"]).all()


def test_the_central_crop_is_the_middle():
    images = jnp.asarray(RANDOM.integers(0, 256, (2, 8, 8, 3)))
    np.testing.assert_array_equal(crops.central(images, 6), images[:, 1:7, 1:7])
    prepared = crops.preprocess(6, 255.0)({"image": images, "label": jnp.zeros(2)}, None)
    expected = np.asarray(images)[:, 1:7, 1:7] / 255
    np.testing.assert_allclose(prepared["image"], expected, rtol=1e-6)


def test_random_crops_hang_on_the_key_and_stay_within_what_is_there():
    ramp = jnp.broadcast_to(jnp.arange(32.0)[None, None, :, None], (64, 32, 32, 3))
    crop = jax.jit(functools.partial(crops.random_resized, size=28))
    one, again, other = (np.asarray(crop(ramp, jax.random.key(k))) for k in (0, 0, 1))
    np.testing.assert_array_equal(one, again)
    assert (one != other).any()
    assert -1e-4 < one.min() < one.max() < 31 + 1e-4
    # Each is linear along its width, in either direction, and covers 8% of the area or more.
    steps = one[:, 14, 24, 0] - one[:, 14, 4, 0]
    assert 16 < (steps > 0).sum() < 48
    widths = np.abs(steps) / 20 * 28 / 32
    assert np.sqrt(0.08 * 3 / 4) * 0.99 < widths.min() < 0.45
    assert 0.9 < widths.max() < 1.01
    constant = crop(jnp.full((3, 32, 32, 3), 7.0), jax.random.key(2))
    np.testing.assert_allclose(constant, 7, rtol=1e-5)
