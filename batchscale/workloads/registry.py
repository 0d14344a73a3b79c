"""The named workloads: data sets and models that go together."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from batchscale import datasets, models
from batchscale.datasets.large import SETS, streams, title
from batchscale.datasets.stream import StreamedField
from batchscale.workloads import classifier, language, large
from batchscale.workloads.workload import Splits, Workload, _from_arrays


@dataclasses.dataclass(frozen=True)
class _Images:
    shape: tuple[int, ...]
    train_examples: int
    scale: float = 255.0
    classes: int = 10


@dataclasses.dataclass(frozen=True)
class _Text:
    length: int
    train_examples: int
    vocabulary: int = 256


_DATASETS = {
    "digits": _Images((8, 8, 1), 1_100, 16.0),
    "mnist": _Images((28, 28, 1), 55_000),
    "mnist_27500": _Images((28, 28, 1), 27_500),
    "mnist_13750": _Images((28, 28, 1), 13_750),
    "mnist_6875": _Images((28, 28, 1), 6_875),
    "fashion_mnist": _Images((28, 28, 1), 55_000),
    "cifar10": _Images((32, 32, 3), 45_000),
    "tiny_shakespeare": _Text(64, 15_686),
}


def get(name: str, *, data: Mapping[str, Any] | None = None) -> Workload:
    """A workload by name: `data set/model`.

    Data sets: `digits`, `mnist` and its subsets `mnist_27500`, `mnist_13750` and `mnist_6875`,
    `fashion_mnist`, `cifar10`, `tiny_shakespeare` (see `datasets.load`); `imagenet`,
    `imagenet_half_images`, `imagenet_half_classes`, `open_images_v4`, `lm1b` and `common_crawl`,
    which are streamed (see `datasets.sources`). They are loaded when first needed. Models of
    images: `fc_128_128_128` and other widths, `simple_cnn_base`, `simple_cnn_narrow`,
    `simple_cnn_wide`, `resnet_8`, `resnet_50`, `vgg_11`; of text: `transformer_base`, `lstm` and
    the others of `models.get`. Pixels are divided by their largest value, not centred. Large images
    are trained on random parts of them, with label smoothing as a hyperparameter. The loss of text
    is in nats a token (of tiny Shakespeare a byte), and batch sizes count sentences (of tiny
    Shakespeare sequences of 64 bytes). `common_crawl` is C4, which stands in for it. Where the data
    that are found are not the published ones in their order, tables say so: `mnist (other
    order)/fc_128_128_128` (see `datasets.title`).

    Args:
      name: of the workload.
      data: splits of one's own in the format of that data set, arrays or streams by name, instead
        of the published ones: of MNIST `{"train": {"image": ..., "label": ...}, ...}`.

    Raises:
      ValueError: the data set or the model is not known, the model takes other data, or `data` are
        not in that format.

    >>> get("mnist/fc_128_128_128").train_examples
    55000
    >>> sentences = np.ones((6, 16), np.uint16)
    >>> get("lm1b/transformer_base", data={"train": {"tokens": sentences}})
    Workload('lm1b (own data)/transformer_base', train: 6 examples; tokens uint16 (16,))
    """
    if data is None:
        return _named(name)
    dataset, model = _parted(name)
    if dataset in _DATASETS:
        splits = _in_format(dataset, _from_arrays(data))
        return dataclasses.replace(_named(name), data=splits, train_examples=None)
    splits = large.in_format(dataset, _from_arrays(data))
    fields = large.fields(dataset, model, splits)
    return Workload(name=f"{dataset} (own data)/{model}", data=splits, **fields)


@functools.cache
def _named(name: str) -> Workload:
    dataset, model = _parted(name)
    if dataset in SETS:
        return Workload(
            name=name,
            data=functools.partial(streams, dataset),
            train_examples=SETS[dataset].train,
            titled=functools.partial(_titled, dataset),
            **large.fields(dataset, model),
        )
    kind = _DATASETS[dataset]
    text = isinstance(kind, _Text)
    module = models.get(model, kind.vocabulary if text else kind.classes)
    if models.is_language_model(model) != text:
        wanted = "text" if models.is_language_model(model) else "images"
        raise ValueError(
            f"workload: got {name!r}, and {model!r} is a model of {wanted}, which {dataset!r} is "
            "not. workloads.table() lists what goes together."
        )
    if text:
        fields = language.fields(module, length=kind.length, vocabulary=kind.vocabulary)
    else:
        example = jax.ShapeDtypeStruct(kind.shape, jnp.uint8)
        fields = classifier.fields(module, example=example, labels="label", scale=kind.scale)
    return Workload(
        name=name,
        data=functools.partial(datasets.load, dataset),
        train_examples=kind.train_examples,
        titled=functools.partial(_titled, dataset),
        **fields,
    )


def _parted(name: str) -> tuple[str, str]:
    dataset, _, model = name.partition("/") if isinstance(name, str) else ("", "", "")
    if dataset not in {*_DATASETS, *SETS} or not model:
        raise ValueError(
            f"workload: got {name!r}, wanted 'data set/model' with a data set of "
            f"{', '.join([*_DATASETS, *SETS])}; for example 'mnist/fc_128_128_128'. "
            "workloads.table() lists them; write a Workload for data of your own."
        )
    return dataset, model


def _in_format(dataset: str, splits: Splits) -> Splits:
    """Splits of one's own as those of a small data set, if they have its fields and its range."""
    kind = _DATASETS[dataset]
    scale = int(kind.scale) if isinstance(kind, _Images) else None
    wanted, kept = _example(kind), {}
    for split, fields in splits.items():
        where = f"data: split {split!r} of {dataset!r}"
        if set(fields) != set(wanted):
            raise ValueError(
                f"{where} has the fields {', '.join(sorted(fields))}, wanted {', '.join(wanted)}."
            )
        for field, like in wanted.items():
            shape, dtype = fields[field].shape[1:], np.dtype(fields[field].dtype)
            if shape != like.shape[1:] or dtype.kind not in "ui":
                raise ValueError(
                    f"{where}: {field!r} holds examples of the shape {shape} and the type {dtype}, "
                    f"wanted {like.shape[1:]} and whole numbers, as published. Reshape or round "
                    "them; or make a workload of them with Workload.from_flax."
                )
        kept[split] = {
            field: _bytes(where, field, x, scale) if wanted[field].dtype == np.uint8 else x
            for field, x in fields.items()
        }
    return kept


def _bytes(where: str, field: str, values: Any, scale: int | None) -> Any:
    """Whole numbers as unsigned 8-bit ones, which alone are scaled as published ones are.

    Args:
      where: the split, for errors.
      field: its name.
      values: the whole numbers.
      scale: what pixels are divided by, the largest one; None of tokens, which are not scaled.
    """
    if isinstance(values, StreamedField):
        if scale is not None and values.dtype != np.uint8:
            raise ValueError(
                f"{where}: {field!r} is a stream of {values.dtype}, wanted uint8, as published. "
                "Give the stream a transform that makes them."
            )
        return values
    array, most = np.asarray(values), 255 if scale is None else scale
    low, high = int(array.min()), int(array.max())
    if low < 0 or high > most:
        raise ValueError(
            f"{where}: {field!r} reaches from {low:,} to {high:,}, wanted 0 to {most}, as "
            "published. Scale them; or make a workload of them with Workload.from_flax."
        )
    return array.astype(np.uint8, copy=False)


def _titled(dataset: str, name: str, splits: Splits) -> str:
    """The name with the data set's as the splits are called, if it begins with the data set's."""
    start, slash, model = name.partition("/")
    if start != dataset:
        return name
    called = (
        title(name=dataset, splits=splits) if dataset in SETS else datasets.title(dataset, splits)
    )
    return called + slash + model


def small() -> Mapping[str, tuple[int, dict[str, jax.ShapeDtypeStruct]]]:
    """Of every small data set the training examples, and the shapes and types of a batch of one."""
    return {name: (kind.train_examples, _example(kind)) for name, kind in _DATASETS.items()}


def _example(kind: _Images | _Text) -> dict[str, jax.ShapeDtypeStruct]:
    if isinstance(kind, _Text):
        return {"tokens": jax.ShapeDtypeStruct((1, kind.length), np.uint8)}
    return {
        "image": jax.ShapeDtypeStruct((1, *kind.shape), np.uint8),
        "label": jax.ShapeDtypeStruct((1,), np.int32),
    }
