"""Multi-label classifiers: sigmoid cross-entropy of the labels that were verified."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int, PyTree

from batchscale.optimizers import Hyperparameters
from batchscale.workloads import _regularised, ranking
from batchscale.workloads._sums import total, wide


def fields(
    module: nn.Module,
    *,
    example: jax.ShapeDtypeStruct,
    classes: int,
    capacity: int,
    preprocess: Callable[[PyTree, Any], PyTree],
) -> dict[str, Any]:
    """The fields of a `Workload` of images with several labels, all but its name and its data.

    An example has an `image`; `label`, the classes that were verified of it, filled up with -1;
    `positive`, whether the class is in the image; and `place`, how many verified labels the
    examples of its split before it have, or -1 if its labels are to be left out of the average
    precision. Whatever was not verified counts for nothing.

    The loss of an example is the sum over its verified labels, that of a batch the mean over its
    examples: a choice, by which the objective is the same at every batch size (a mean over labels
    would divide by what happens to be in the batch). `label_smoothing` a moves targets from y to
    (1 - a) y + a / 2, and `l2` adds l2 / 2 times the sum of squared parameters.

    The metrics are `average_precision`, `error`, the share of verified labels on the wrong side of
    one half, and `loss`. The average precision is that of Open Images' image-level labels (Veit et
    al. 2017, arXiv:1701.01619, section 4: MAP; the object detection challenge leaves classes that
    were not verified in an image out in the same way): of every class over the images in which it
    was verified, positive or negative, then the mean over classes. Choices: classes without a
    positive label are left out of the mean; equal scores enter a ranking together. That this is the
    number that Shallue et al. (2019) report is not known.

    Args:
      module: maps images to one logit a class.
      example: the shape and type of one image, as the module takes it.
      classes: how many there are.
      capacity: as many labels as the largest split has whose average precision is measured.
      preprocess: of a batch; makes images as the module takes them.
    """

    def init(key: Any) -> tuple[PyTree, PyTree]:
        x = jnp.zeros((1, *example.shape), float)
        variables = dict(module.init(key, x, train=False))
        return variables.pop("params"), variables

    def loss(
        params: PyTree,
        model_state: PyTree,
        batch: PyTree,
        key: Any,
        hyperparameters: Hyperparameters,
    ) -> tuple[tuple[Array, Array], PyTree]:
        logits, model_state = module.apply(
            {"params": params, **model_state},
            batch["image"],
            train=True,
            rngs={"dropout": key},
            mutable=list(model_state),
        )
        losses = _losses(logits, batch, hyperparameters.get("label_smoothing"))
        summed, count = total(losses), jnp.asarray(len(batch["label"]))
        return (_regularised.with_l2(summed, count, params, hyperparameters), count), model_state

    def metrics(params: PyTree, model_state: PyTree, batch: PyTree) -> Mapping[str, PyTree]:
        logits: Any = module.apply({"params": params, **model_state}, batch["image"], train=False)
        label, positive = batch["label"], batch["positive"]
        scores, real = _of_labels(logits, label), label >= 0
        ranked = ranking.kept(scores, label, positive, batch["place"], capacity=capacity)
        wrong = ((scores > 0) != positive) & real
        losses = _losses(logits, batch, None)
        return {
            "average_precision": ranked,
            "error": (total(wrong), real.sum(dtype=jnp.int32)),
            "loss": (total(losses), jnp.asarray(len(label))),
        }

    return {
        "init": init,
        "loss": loss,
        "metrics": metrics,
        "preprocess": preprocess,
        "finalize": {
            "average_precision": functools.partial(ranking.mean_average_precision, classes=classes)
        },
        "hyperparameters": ("label_smoothing", "l2"),
        "ghost_batch_size": getattr(module, "ghost_batch_size", None),
    }


def with_places(
    splits: Mapping[str, Mapping[str, np.ndarray]], *, capacity: int
) -> dict[str, dict[str, np.ndarray]]:
    """Splits with the field `place`, as `fields` wants it, where they have none.

    Args:
      splits: arrays by split and field, each with `label` of shape (examples, labels).
      capacity: splits with more labels have places of -1.

    >>> label = np.array([[4, -1], [0, 2]])
    >>> with_places({"train": {"label": label}}, capacity=9)["train"]["place"]
    array([0, 1], dtype=int32)
    """
    return {
        split: {"place": places((of["label"] >= 0).sum(1), capacity=capacity), **of}
        for split, of in splits.items()
    }


def places(counts: Int[np.ndarray, " examples"], *, capacity: int) -> Int[np.ndarray, " examples"]:
    """The place of every example, from the number of labels of each."""
    ends = np.cumsum(counts)
    if ends[-1] > capacity:
        return np.full(len(counts), -1, np.int32)
    return (ends - counts).astype(np.int32)


def check(splits: Mapping[str, Mapping[str, np.ndarray]], classes: int) -> None:
    """Refuses labels that are not as `fields` wants them.

    >>> check({"train": {"label": np.array([[0, 7]])}}, classes=5)
    Traceback (most recent call last):
    ValueError: labels: split 'train' has classes from 0 to 7, wanted 0 to 4, and -1 to fill up with
    at the end. Number the classes from 0, or state how many there are.
    """
    for split, of in splits.items():
        label = np.asarray(of["label"])
        gaps = bool(((label[:, :-1] < 0) & (label[:, 1:] >= 0)).any())
        if label.min() < -1 or label.max() >= classes or gaps:
            raise ValueError(
                f"labels: split {split!r} has classes from {label.min()} to {label.max()}"
                f"{', with gaps' * gaps}, wanted 0 to {classes - 1}, and -1 to fill up with at the "
                "end. Number the classes from 0, or state how many there are."
            )


def _of_labels(
    logits: Float[Array, "batch classes"], label: Int[Array, "batch labels"]
) -> Float[Array, "batch labels"]:
    return jnp.take_along_axis(logits, jnp.maximum(label, 0), axis=1)


def _losses(
    logits: Float[Array, "batch classes"], batch: PyTree, smoothing: Any
) -> Float[Array, "batch labels"]:
    label = batch["label"]
    positive: Bool[Array, "batch labels"] = batch["positive"]
    scores = wide(_of_labels(logits, label))
    targets = positive.astype(scores.dtype)
    if smoothing is not None:
        targets = (1 - smoothing) * targets + smoothing / 2
    losses = optax.sigmoid_binary_cross_entropy(scores, targets)
    return jnp.where(label >= 0, losses, 0)
