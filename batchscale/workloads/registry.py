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
from batchscale.workloads import classifier
from batchscale.workloads.workload import Splits, Workload


@dataclasses.dataclass(frozen=True)
class _Images:
    shape: tuple[int, ...]
    train_examples: int
    scale: float


_DATASETS = {
    "digits": _Images((8, 8, 1), 1_100, 16.0),
    "mnist": _Images((28, 28, 1), 55_000, 255.0),
    "fashion_mnist": _Images((28, 28, 1), 55_000, 255.0),
}
_CLASSES = 10
_COLUMNS = columns.declare("workloads", "workload", "train_examples", "parameters", "flops")


@functools.cache
def get(name: str) -> Workload:
    """A workload by name: `data set/model`.

    Data sets: `digits`, `mnist`, `fashion_mnist` (see `datasets.load`; loaded when first needed).
    Models: `fc_128_128_128` and other widths, `simple_cnn_base`, `simple_cnn_narrow`,
    `simple_cnn_wide` (see `models.get`). Pixels are divided by their largest value, not centred.
    Where the data that are found are not the published ones in their order, tables say so:
    `mnist (other order)/fc_128_128_128` (see `datasets.title`).

    Raises:
      ValueError: the data set or the model is not known.

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
    images = _DATASETS[dataset]
    fields = classifier.fields(
        models.get(model, _CLASSES),
        example=jax.ShapeDtypeStruct(images.shape, jnp.uint8),
        labels="label",
        scale=images.scale,
    )
    return Workload(
        name=name,
        data=functools.partial(datasets.load, dataset),
        train_examples=images.train_examples,
        titled=functools.partial(_titled, dataset),
        **fields,
    )


def _titled(dataset: str, name: str, splits: Splits) -> str:
    """The name with the data set's as the splits are called, if it begins with the data set's."""
    start, slash, model = name.partition("/")
    return datasets.title(dataset, splits) + slash + model if start == dataset else name


# The paper's models of these data sets.
_MODELS = (
    *("fc_1024", "fc_1024_1024", "fc_1024_1024_1024"),
    *(f"fc_{width}_{width}_{width}" for width in (64, 128, 256, 512, 2048)),
    *("simple_cnn_narrow", "simple_cnn_base", "simple_cnn_wide"),
)


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
    for dataset, images in _DATASETS.items():
        for model in ("fc_64", *_MODELS) if dataset == "digits" else _MODELS:
            workload = get(f"{dataset}/{model}")
            params, _ = jax.eval_shape(workload.init, keys.shape())
            one = {
                "image": jax.ShapeDtypeStruct((1, *images.shape), np.uint8),
                "label": jax.ShapeDtypeStruct((1,), np.int32),
            }
            size = models.parameter_count(params)
            same = model, tuple(images.shape), size
            if same not in flops:  # compiled once for all sets of such images
                flops[same] = workload.flops(one)
            rows.append((workload.name, images.train_examples, size, flops[same]))
    return pd.DataFrame(rows, columns=list(_COLUMNS))
