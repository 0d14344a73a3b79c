"""The named workloads: data sets and models that go together."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd

from batchscale import columns, datasets, keys, models
from batchscale.workloads import classifier, language
from batchscale.workloads.workload import Splits, Workload


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
_COLUMNS = columns.declare("workloads", "workload", "train_examples", "parameters", "flops")


@functools.cache
def get(name: str) -> Workload:
    """A workload by name: `data set/model`.

    Data sets: `digits`, `mnist` and its subsets `mnist_27500`, `mnist_13750` and `mnist_6875`,
    `fashion_mnist`, `cifar10`, `tiny_shakespeare` (see `datasets.load`; loaded when first needed).
    Models of images: `fc_128_128_128` and other widths, `simple_cnn_base`, `simple_cnn_narrow`,
    `simple_cnn_wide`, `resnet_8`; of text: `transformer_tiny`, `lstm_tiny` and the large ones (see
    `models.get`). Pixels are divided by their largest value, not centred. The loss of text is in
    nats a byte, and batch sizes count sequences of 64 bytes. Where the data that are found are not
    the published ones in their order, tables say so: `mnist (other order)/fc_128_128_128` (see
    `datasets.title`).

    Raises:
      ValueError: the data set or the model is not known, or the model takes other data.

    >>> get("mnist/fc_128_128_128").train_examples
    55000
    """
    dataset, _, model = name.partition("/") if isinstance(name, str) else ("", "", "")
    if dataset not in _DATASETS or not model:
        raise ValueError(
            f"workload: got {name!r}, wanted 'data set/model' with a data set of "
            f"{', '.join(_DATASETS)}; for example 'mnist/fc_128_128_128'. "
            "workloads.table() lists them; write a Workload for data of your own."
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


def _titled(dataset: str, name: str, splits: Splits) -> str:
    """The name with the data set's as the splits are called, if it begins with the data set's."""
    start, slash, model = name.partition("/")
    return datasets.title(dataset, splits) + slash + model if start == dataset else name


# The paper's models of these data sets, and small ones.
_FC = (
    *("fc_1024", "fc_1024_1024", "fc_1024_1024_1024"),
    *(f"fc_{width}_{width}_{width}" for width in (64, 128, 256, 512, 2048)),
)
_CNN = ("simple_cnn_narrow", "simple_cnn_base", "simple_cnn_wide")
_MODELS = {
    "digits": ("fc_64", *_FC, *_CNN),
    "mnist": (*_FC, *_CNN),
    **dict.fromkeys(("mnist_27500", "mnist_13750", "mnist_6875"), ("simple_cnn_base",)),
    "fashion_mnist": (*_FC, *_CNN),
    "cifar10": ("resnet_8",),
    "tiny_shakespeare": ("transformer_tiny", "lstm_tiny"),
}


def table() -> pd.DataFrame:
    """Every named workload, with its size and rough cost; other widths go by `fc_...` as well.

    Returns:
      One row a workload: `workload`, `train_examples`, `parameters`, and `flops`, the operations
      of one example's gradient.

    >>> table().set_index("workload").loc["mnist/fc_128_128_128", "parameters"].item()
    134794
    """
    rows = []
    flops: dict[Any, float] = {}
    for dataset, kind in _DATASETS.items():
        one = _example(kind)
        for model in _MODELS[dataset]:
            workload = get(f"{dataset}/{model}")
            params, _ = jax.eval_shape(workload.init, keys.shape())
            size = models.parameter_count(params)
            same = model, str(one), size
            if same not in flops:  # compiled once for all sets of such images
                flops[same] = workload.flops(one)
            rows.append((workload.name, kind.train_examples, size, flops[same]))
    return pd.DataFrame(rows, columns=list(_COLUMNS))


def _example(kind: _Images | _Text) -> dict[str, jax.ShapeDtypeStruct]:
    """The shapes and types of a batch of one."""
    if isinstance(kind, _Text):
        return {"tokens": jax.ShapeDtypeStruct((1, kind.length), np.uint8)}
    return {
        "image": jax.ShapeDtypeStruct((1, *kind.shape), np.uint8),
        "label": jax.ShapeDtypeStruct((1,), np.int32),
    }
