"""Average precision of several classes, from sums that are exact over any batching."""

from __future__ import annotations

from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int


def average_precision(
    scores: Float[np.ndarray, " labels"], positive: Bool[np.ndarray, " labels"]
) -> float:
    """The average precision of one ranking: the sum of precisions, each times its gain in recall.

    AP = sum over n of (R_n - R_(n-1)) P_n, where P_n and R_n are the precision and the recall of
    all that scores no less than the n-th largest score. Equal scores enter together, so that the
    number does not hang on the order of the labels; without equal scores it is the mean over the
    positives of the precision at their rank.

    Args:
      scores: the higher, the more likely positive.
      positive: which are.

    Returns:
      The number, in [0, 1]; NaN where there is no positive, or a score is NaN.

    >>> average_precision(np.array([3.0, 2.0, 1.0]), np.array([True, False, True]))
    0.8333333333333333
    >>> average_precision(np.array([2.0, 2.0, 1.0]), np.array([True, False, True]))
    0.5833333333333333
    """
    return float(of_classes(scores, np.zeros(len(scores), np.int64), positive, 1)[0])


def of_classes(
    scores: Float[np.ndarray, " labels"],
    classes: Int[np.ndarray, " labels"],
    positive: Bool[np.ndarray, " labels"],
    count: int,
) -> Float[np.ndarray, " count"]:
    """The average precision of every class, each over its own labels; see `average_precision`.

    Args:
      scores: of labels of all classes, in any order.
      classes: the class of each label, from 0.
      positive: whether the label is positive, or else negative.
      count: of classes.

    Returns:
      One number a class; NaN for one without a positive label, or with a score that is NaN.

    >>> of_classes(np.array([0.1, 0.9]), np.array([1, 1]), np.array([True, True]), 2)
    array([nan,  1.])
    """
    found = np.full(count, np.nan)
    if not len(scores):
        return found
    order = np.lexsort((-scores, classes))
    scores, classes, positive = scores[order], classes[order], positive[order]
    new_class = np.r_[True, classes[1:] != classes[:-1]]
    first = np.flatnonzero(new_class)
    of = np.cumsum(new_class) - 1  # the place of each label's class in `first`
    hits = np.cumsum(positive)
    before = np.r_[0, hits][first]  # of the classes before
    ends = np.r_[new_class[1:] | (scores[1:] != scores[:-1]), True]  # the last of equal scores
    last = np.flatnonzero(ends)
    true = hits[last] - before[of[last]]
    gained = np.diff(true, prepend=0)
    opens = np.r_[True, of[last][1:] != of[last][:-1]]
    gained[opens] = true[opens]
    precision = true / (last - first[of[last]] + 1)
    total = np.bincount(of, positive)
    with np.errstate(invalid="ignore"):
        values = np.bincount(of[last], gained * precision, len(first)) / total
    values[np.bincount(of, np.isnan(scores)) > 0] = np.nan
    found[classes[first]] = values
    return found


def kept(
    scores: Float[Array, "batch labels"],
    classes: Int[Array, "batch labels"],
    positive: Bool[Array, "batch labels"],
    places: Int[Array, " batch"],
    *,
    capacity: int,
) -> dict[str, Array]:
    """The labels of a batch and their scores, as vectors that add over batches.

    Every label of a split has a place of its own in a vector: there a batch has its score, and
    everywhere else zeros, which change nothing that they are added to. So the sum over whatever
    batches is all scores, exactly, each once; and the memory is that of the labels that there are,
    8 bytes each, not that of all classes of all examples.

    Args:
      scores: of each label.
      classes: of each label, from 0; -1 where there is none, after those that there are.
      positive: whether it is positive.
      places: how many labels the examples before this one have in its split; -1 for an example
        whose labels are left out.
      capacity: of the vectors; static.

    Returns:
      `score`, float32 [capacity]; `label`, int32 [capacity], of which 0 is none; and `count`, how
      many labels were kept.
    """
    real = (classes >= 0) & (places >= 0)[:, None]
    at = places[:, None] + jnp.arange(classes.shape[1], dtype=places.dtype)[None]
    at = jnp.where(real, at, capacity).ravel()  # beyond the end: dropped
    # Not 0, which stands for no label.
    label = 2 * classes.astype(jnp.int32) + positive.astype(jnp.int32) + 1

    def placed(values: Array) -> Array:
        return jnp.zeros(capacity, values.dtype).at[at].add(values.ravel(), mode="drop")

    return {
        "score": placed(scores.astype(jnp.float32)),
        "label": placed(label),
        "count": real.sum(dtype=jnp.int32),
    }


def mean_average_precision(sums: Mapping[str, np.ndarray], *, classes: int) -> float:
    """The mean over classes of their average precision, from the added sums of `kept`.

    Args:
      sums: over a split.
      classes: how many there are.

    Returns:
      The mean over all classes that have a positive label; NaN where none has, or no label has a
      place, as in a split that is too large for that.

    Raises:
      ValueError: two labels have had the same place, or one none.

    >>> import jax
    >>> sums = kept(
    ...     jnp.array([[0.5, 2.0], [1.0, 0.0]]),
    ...     jnp.array([[0, 1], [0, -1]]),
    ...     jnp.array([[True, True], [False, False]]),
    ...     jnp.array([0, 2]),
    ...     capacity=4,
    ... )
    >>> mean_average_precision(jax.tree.map(np.asarray, sums), classes=2)
    0.75
    """
    label = np.asarray(sums["label"]).astype(np.int64)
    there = np.flatnonzero(label)
    # What was added twice may pass for another label, but the numbers tell.
    if len(there) != int(sums["count"]) or (label[there] > 2 * classes).any():
        raise ValueError(
            f"average precision: {int(sums['count']):,} labels have come to {len(there):,} places; "
            "wanted one place each. Give every example of a split as its place the number of "
            "labels of those before it, and evaluate each once."
        )
    scores = np.asarray(sums["score"])[there].astype(np.float64)
    code = label[there] - 1
    found = of_classes(scores, code // 2, code % 2 == 1, classes)
    positive = np.bincount(code // 2, code % 2, classes) > 0
    return float(found[positive].mean()) if positive.any() else float("nan")
