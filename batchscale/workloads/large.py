"""The fields of workloads of the large data sets: ImageNet, Open Images, and sub-word text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from batchscale import models
from batchscale.datasets import large, open_images, pictures
from batchscale.workloads import classifier, crops, language, multilabel

_CROP = 224  # of 256 pixels
_SCALE = 255.0  # pixels are divided by it, and not centred: a choice


def fields(name: str, model: str, splits: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The fields of a `Workload` of a large data set, all but its name and its data.

    Args:
      name: of the data set, one of `large.SETS`.
      model: its name.
      splits: data of one's own in its format, by which images have another size, or sentences
        another length.

    Raises:
      ValueError: the model takes other data; or labels are not those of the data set.
    """
    kind = large.SETS[name]
    text = isinstance(kind, large.Text)
    size = kind.vocabulary if text else kind.classes
    module = models.get(model, size)
    if models.is_language_model(model) != text:
        wanted = "text" if models.is_language_model(model) else "images"
        raise ValueError(
            f"workload: got '{name}/{model}', and {model!r} is a model of {wanted}, which {name!r} "
            "is not. workloads.table() lists what goes together."
        )
    if isinstance(kind, large.Text):
        length = kind.length if splits is None else splits["train"]["tokens"].shape[1]
        return language.fields(module, length=length, vocabulary=size)
    stored = pictures.SIDE if splits is None else splits["train"]["image"].shape[1]
    crop = stored * _CROP // pictures.SIDE
    preprocess = crops.preprocess(crop, _SCALE)
    if isinstance(kind, large.Images):
        image = jax.ShapeDtypeStruct((crop, crop, 3), jnp.uint8)
        of = classifier.fields(module, example=image, labels="label", scale=_SCALE)
        return {**of, "preprocess": preprocess}
    image = jax.ShapeDtypeStruct((crop, crop, 3), jnp.float32)
    return multilabel.fields(
        module,
        example=image,
        classes=size,
        capacity=open_images.CAPACITY if splits is None else _labels(splits),
        preprocess=preprocess,
    )


def in_format(name: str, splits: Mapping[str, Any]) -> Mapping[str, Any]:
    """Data of one's own for a large data set, checked; of images with labels also their places.

    Args:
      name: of the data set.
      splits: mappings of arrays, or of the fields of streams.

    Raises:
      ValueError: a field is missing, or of another shape or range than the set has.
    """
    kind = large.SETS[name]
    wanted = {"tokens"} if isinstance(kind, large.Text) else {"image", "label"}
    if isinstance(kind, large.LabelledImages):
        wanted |= {"positive"}
    for split, of in splits.items():
        if set(of) - {"place"} != wanted:
            raise ValueError(
                f"data: split {split!r} has the fields {', '.join(sorted(of))}, wanted "
                f"{', '.join(sorted(wanted))} for {name!r}. Name them so."
            )
        image = of.get("image")
        if image is not None and (
            image.ndim != 4
            or image.shape[1] != image.shape[2]
            or image.shape[3] != 3
            or image.dtype != np.uint8
        ):
            raise ValueError(
                f"data: an image of split {split!r} is {image.dtype} of shape {image.shape[1:]}, "
                "wanted uint8 of (side, side, 3), a little larger than what is cut from it: "
                f"{pictures.SIDE} for crops of {_CROP}. datasets.pictures.decoded makes them."
            )
    if isinstance(kind, large.LabelledImages) and any("place" not in x for x in splits.values()):
        multilabel.check(splits, kind.classes)
        return multilabel.with_places(splits, capacity=open_images.CAPACITY)
    return splits


def _labels(splits: Mapping[str, Any]) -> int:
    """As many labels as the largest split has places for, at most."""
    of = (int(np.prod(fields["label"].shape)) for fields in splits.values())
    return min(max(of), open_images.CAPACITY)


def example(name: str) -> dict[str, jax.ShapeDtypeStruct]:
    """The shapes and types of a batch of one; of Open Images with one label."""
    kind = large.SETS[name]
    if isinstance(kind, large.Text):
        return {"tokens": jax.ShapeDtypeStruct((1, kind.length), np.uint16)}
    image = jax.ShapeDtypeStruct((1, pictures.SIDE, pictures.SIDE, 3), np.uint8)
    if isinstance(kind, large.Images):
        return {"image": image, "label": jax.ShapeDtypeStruct((1,), np.int32)}
    return {
        "image": image,
        "label": jax.ShapeDtypeStruct((1, 1), np.int32),
        "positive": jax.ShapeDtypeStruct((1, 1), np.bool_),
        "place": jax.ShapeDtypeStruct((1,), np.int32),
    }
