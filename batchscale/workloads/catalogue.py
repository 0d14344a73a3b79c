"""The table of all named workloads, those of Shallue et al. (2019) among them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import pandas as pd

from batchscale import columns, keys, models
from batchscale.datasets import large as sets
from batchscale.datasets import named
from batchscale.workloads import paper, registry

_FC = (
    *("fc_1024", "fc_1024_1024", "fc_1024_1024_1024"),
    *(f"fc_{width}_{width}_{width}" for width in (64, 128, 256, 512, 2048)),
)
_CNN = ("simple_cnn_narrow", "simple_cnn_base", "simple_cnn_wide")
# The paper's models of these data sets, and small ones.
SMALL = {
    "digits": ("fc_64", *_FC, *_CNN),
    "mnist": (*_FC, *_CNN),
    **dict.fromkeys(("mnist_27500", "mnist_13750", "mnist_6875"), ("simple_cnn_base",)),
    "fashion_mnist": (*_FC, *_CNN),
    "cifar10": ("resnet_8",),
    "tiny_shakespeare": ("transformer_tiny", "lstm_tiny"),
}
# Parameters, and operations of one example's gradient as `Workload.flops` counts them, which takes
# seconds of tracing each.
LARGE = {
    "imagenet/resnet_50": (25_549_352, 2.391e10),
    "imagenet/vgg_11": (132_863_336, 4.397e10),
    "imagenet_half_images/resnet_50": (25_549_352, 2.391e10),
    "imagenet_half_classes/resnet_50": (24_524_852, 2.391e10),
    "open_images_v4/resnet_50": (38_224_466, 2.399e10),
    "lm1b/lstm": (62_791_680, 2.376e10),
    "lm1b/transformer_base": (35_287_040, 2.776e10),
    "lm1b/transformer_shallow": (22_685_696, 1.767e10),
    "lm1b/transformer_narrow_and_shallow": (9_769_984, 7.636e9),
    "lm1b/transformer_wide": (108_322_816, 8.449e10),
    "common_crawl/transformer_base": (35_287_040, 2.776e10),
}
_COLUMNS = columns.declare(
    "workloads",
    *("workload", "data_set", "model", "optimizers", "studies", "train_examples", "parameters"),
    *("flops", "here", "note"),
)


def table() -> pd.DataFrame:
    """Every named workload; other widths go by `fc_...` as well.

    Returns:
      One row a workload: `workload`, its `data_set` and its `model`; the `optimizers` with which
      Shallue et al. (2019) measured it, and how many of their 35 `studies` it is (0 for others: two
      of theirs are of the same workload more than once); `train_examples` (missing where that hangs
      on what is prepared); `parameters`; `flops`, the operations of one example's gradient; whether
      it can be trained `here` now, its data being on this machine or small; and a `note` on its
      data. Nothing is downloaded.

    >>> rows = table().set_index("workload")
    >>> rows.loc["mnist/fc_128_128_128", "parameters"].item()
    134794
    >>> rows["studies"].sum().item()
    35
    >>> rows.loc["cifar10/resnet_8", "optimizers"]
    'nesterov, sgd'
    """
    rows = [
        (
            *(f"{data_set}/{model}", data_set, model),
            *_measured(f"{data_set}/{model}"),
            *(examples, parameters, flops),
            *_here(data_set),
        )
        for data_set, model, examples, parameters, flops in _sizes()
    ]
    made = pd.DataFrame(rows, columns=list(_COLUMNS))
    return made.astype({"train_examples": "Int64"})


def _sizes() -> Iterator[tuple[str, str, int | None, int, float]]:
    flops: dict[Any, float] = {}
    for data_set, (examples, one) in registry.small().items():
        for model in SMALL[data_set]:
            workload = registry.get(f"{data_set}/{model}")
            params, _ = jax.eval_shape(workload.init, keys.shape())
            size = models.parameter_count(params)
            same = model, str(one), size
            if same not in flops:  # counted once for all sets of such examples
                flops[same] = workload.flops(one)
            yield data_set, model, examples, size, flops[same]
    for name, counted in LARGE.items():
        data_set, model = name.split("/")
        yield data_set, model, sets.SETS[data_set].train, *counted


def _measured(name: str) -> tuple[str, int]:
    of = [one.optimizer for one in paper.ALL if one.workload == name]
    return ", ".join(sorted(set(of))), len(of)


def _here(data_set: str) -> tuple[bool, str]:
    if data_set in sets.SETS:
        folder = sets.find(data_set)
        if folder is None:
            return False, f"No data here. {sets.remedy(data_set)}"
        return True, f"read from {folder}"
    folder = named.find(data_set)
    if folder is None:
        return True, "downloaded when it is first needed"
    return True, f"read from {folder}"
