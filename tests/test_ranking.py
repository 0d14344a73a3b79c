"""Average precision: against plain NumPy and scikit-learn, over batchings, ties and gaps."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from batchscale.workloads import ranking

RANDOM = np.random.default_rng(0)


def by_hand(scores, positive):
    """Precision and recall at every threshold, one after the other."""
    total, before, found = positive.sum(), 0, 0.0
    for threshold in sorted(set(scores), reverse=True):
        above = scores >= threshold
        true = (positive & above).sum()
        found += (true - before) / total * true / above.sum()
        before = true
    return found


def labels(count=400, classes=7, distinct=None):
    scores = RANDOM.normal(size=count).astype(np.float32)
    if distinct is not None:
        scores = np.round(scores * distinct).astype(np.float32)
    of = RANDOM.integers(0, classes, count)
    return scores, of, RANDOM.random(count) < 0.3


@pytest.mark.parametrize("distinct", [None, 2, 0.0])
def test_average_precision_is_that_of_plain_numpy_and_of_scikit_learn(distinct):
    metrics = pytest.importorskip("sklearn.metrics")
    scores, of, positive = labels(distinct=distinct)
    found = ranking.of_classes(scores, of, positive, 9)
    for name in range(7):
        mine = of == name
        expected = by_hand(scores[mine], positive[mine])
        np.testing.assert_allclose(found[name], expected, rtol=1e-12)
        theirs = metrics.average_precision_score(positive[mine], scores[mine])
        np.testing.assert_allclose(found[name], theirs, rtol=1e-12)
        np.testing.assert_allclose(
            ranking.average_precision(scores[mine], positive[mine]), expected, rtol=1e-12
        )
    assert np.isnan(found[7:]).all()


def test_all_negative_all_positive_one_and_none():
    yes, no = np.array([True, True]), np.array([False, False])
    scores = np.array([0.5, 0.5])
    assert np.isnan(ranking.average_precision(scores, no))
    assert ranking.average_precision(scores, yes) == 1
    assert np.isnan(ranking.average_precision(scores[:0], no[:0]))
    assert np.isnan(ranking.average_precision(np.array([np.nan, 1.0]), yes))
    # Infinite scores are ranked like others; those of the same infinity are equal.
    infinite = np.array([np.inf, np.inf, -np.inf])
    assert ranking.average_precision(infinite, np.array([True, False, False])) == 0.5
    assert ranking.average_precision(np.array([0.0, -0.0]), np.array([True, False])) == 0.5


EXAMPLES, LABELS, CLASSES = 37, 5, 6
KEPT = jax.jit(ranking.kept, static_argnames="capacity")


def split(examples=EXAMPLES, seed=1):
    random = np.random.default_rng(seed)
    counts = random.integers(0, LABELS + 1, examples)
    label = np.full((examples, LABELS), -1, np.int32)
    for row, count in zip(label, counts, strict=True):
        row[:count] = random.permutation(CLASSES)[:count]
    return {
        "score": random.normal(size=(examples, LABELS)).astype(np.float32),
        "label": label,
        "positive": random.random((examples, LABELS)) < 0.4,
        "place": (np.cumsum(counts) - counts).astype(np.int32),
    }


def added(of, sizes, capacity=EXAMPLES * LABELS):
    """Sums over batches of these sizes, added on the host."""
    parts, start = [], 0
    for size in sizes:
        part = {k: jnp.asarray(v[start : start + size]) for k, v in of.items()}
        start += size
        one = KEPT(part["score"], part["label"], part["positive"], part["place"], capacity=capacity)
        parts.append(jax.tree.map(np.asarray, one))
    assert start == len(of["label"])
    return functools.reduce(lambda x, y: jax.tree.map(np.add, x, y), parts)


def test_any_batching_gives_the_average_precision_of_all_scores_to_the_bit():
    of = split()
    real = of["label"] >= 0
    found = ranking.of_classes(
        of["score"][real].astype(np.float64), of["label"][real], of["positive"][real], CLASSES
    )
    expected = np.nanmean(found)
    batchings = [[37], [1] * 37, [20, 17], [5, 30, 2]]
    values = {
        ranking.mean_average_precision(added(of, sizes), classes=CLASSES) for sizes in batchings
    }
    assert values == {expected}


def test_the_order_of_examples_does_not_matter():
    of = split()
    order = RANDOM.permutation(EXAMPLES)
    shuffled = {k: v[order] for k, v in of.items()}
    one, other = (
        ranking.mean_average_precision(added(x, [37]), classes=CLASSES) for x in (of, shuffled)
    )
    assert one == other


def test_extreme_scores_come_back_as_they_were():
    scores = np.array([[3e38, -3e38, 2e-38, -0.0, np.inf]], np.float32)
    of = {"label": np.arange(5, dtype=np.int32)[None], "positive": np.ones((1, 5), bool)}
    of |= {"score": scores, "place": np.zeros(1, np.int32)}
    sums = added(of, [1], capacity=8)
    np.testing.assert_array_equal(sums["score"][:5], scores[0])
    assert ranking.mean_average_precision(sums, classes=5) == 1


def test_labels_without_a_place_are_left_out_and_none_at_all_is_nan():
    of = split()
    nowhere = of | {"place": np.full(EXAMPLES, -1, np.int32)}
    sums = added(nowhere, [37])
    assert sums["count"] == 0
    assert not sums["label"].any()
    assert np.isnan(ranking.mean_average_precision(sums, classes=CLASSES))
    negative = of | {"positive": np.zeros((EXAMPLES, LABELS), bool)}
    assert np.isnan(ranking.mean_average_precision(added(negative, [37]), classes=CLASSES))


def test_a_class_without_positives_is_left_out_of_the_mean():
    of = split()
    of["positive"] = of["positive"] & (of["label"] != 2)
    real = of["label"] >= 0
    classes = [c for c in range(CLASSES) if c != 2]
    each = [
        by_hand(of["score"][real & (of["label"] == c)], of["positive"][real & (of["label"] == c)])
        for c in classes
    ]
    found = ranking.mean_average_precision(added(of, [37]), classes=CLASSES)
    np.testing.assert_allclose(found, np.mean(each), rtol=1e-12)


def test_examples_that_count_twice_or_share_a_place_are_refused():
    of = split()
    twice = jax.tree.map(np.add, added(of, [37]), added(of, [37]))
    with pytest.raises(ValueError, match="wanted one place each"):
        ranking.mean_average_precision(twice, classes=CLASSES)
    same = of | {"place": np.zeros(EXAMPLES, np.int32)}
    with pytest.raises(ValueError, match="wanted one place each"):
        ranking.mean_average_precision(added(same, [37]), classes=CLASSES)
    # And labels beyond the vectors.
    with pytest.raises(ValueError, match="wanted one place each"):
        ranking.mean_average_precision(added(of, [37], capacity=3), classes=CLASSES)
