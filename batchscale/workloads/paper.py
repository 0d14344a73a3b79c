"""What Shallue et al. (2019) measured: 35 workloads with their optimizers, batch sizes and goals.

Data sets, models, optimizers, batch sizes and trials are those of the official archive's
description, goals those of the official notebook. Search spaces are choices, but for the two that
are known: that of ResNet-50 on ImageNet, and the extents of a figure of the Transformer on LM1B.
Which workloads had a decaying learning rate is a choice as well.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import pandas as pd

from batchscale import columns
from batchscale.metrics import Goal
from batchscale.tuner import (
    Choice,
    LogUniform,
    ReverseLogUniform,
    SearchSpace,
    ShareOfBudget,
    Uniform,
)
from batchscale.tuner.search_space import Dimension
from batchscale.workloads import registry

_ERROR, _LOSS = "validation/error", "validation/loss"
# Data sets by the archive's names, where they are called otherwise here.
_CALLED = {
    **{f"solution_quality/{name}": name for name in ("mnist", "fashion_mnist")},
    "mnist_55000": "mnist",
    "cifar_10": "cifar10",
}


@dataclasses.dataclass(frozen=True)
class Protocol:
    """What the paper measured of a workload and an optimizer.

    Attributes:
      data_set: as the archive calls it.
      model: likewise.
      optimizer: `sgd`, `momentum` or `nesterov`.
      batch_sizes: examples; sentences of text.
      goal: of its main figures.
      trials: complete ones at every batch size.
      train_examples: of the training set; None where it is not known.
    """

    data_set: str
    model: str
    optimizer: str
    batch_sizes: tuple[int, ...]
    goal: Goal
    trials: int = 100
    train_examples: int | None = None

    @property
    def workload(self) -> str:
        """The workload's name, as `workloads.get` takes it."""
        return f"{_CALLED.get(self.data_set, self.data_set)}/{self.model}"

    @property
    def schedule(self) -> str:
        """The schedule: a choice."""
        return "linear_decay" if self.model in ("resnet_8", "resnet_50", "vgg_11") else "constant"

    @property
    def space(self) -> SearchSpace:
        """The search space: a choice, but for ResNet-50 and the Transformers.

        >>> protocol("mnist/fc_1024", "sgd").space
        SearchSpace(learning_rate=LogUniform(low=0.001, high=10.0))
        """
        text = self.model.startswith(("transformer", "lstm"))
        rate = LogUniform(1e-3, 10)
        if self.optimizer != "sgd":
            rate = LogUniform(1e-4, 0.1 if text else 10)
        dimensions: dict[str, Dimension] = {"learning_rate": rate}
        if self.optimizer != "sgd":
            known = self.model == "resnet_50"
            dimensions["momentum"] = ReverseLogUniform(0.9 if known else 0.0, 0.9999)
        if self.schedule == "linear_decay":
            dimensions["learning_rate_decay_steps"] = ShareOfBudget(Uniform(0.5, 1))
            dimensions["end_learning_rate_factor"] = LogUniform(1e-4, 0.1)
        if self.model == "resnet_50":
            dimensions["label_smoothing"] = Choice([0, 0.01, 0.1])
        return SearchSpace(**dimensions)

    def arguments(self) -> dict[str, Any]:
        """The arguments of a `Study`, but for its budget, which is not known of the paper.

        The data of its workload are loaded when it is trained; `workloads.table()` says whether
        they are here.
        """
        return {
            "workload": registry.get(self.workload),
            "optimizer": self.optimizer,
            "space": self.space,
            "batch_sizes": list(self.batch_sizes),
            "goal": self.goal,
            "trials": self.trials,
            "schedule": self.schedule,
        }


def _powers(low: int, high: int, *more: int, by: int = 2) -> tuple[int, ...]:
    sizes = [low]
    while sizes[-1] * by <= high:
        sizes.append(sizes[-1] * by)
    return (*sizes, *more)


_MNIST = _powers(1, 32_768, 55_000)
_FEW = (2, 8, 32, 128, 512, 2048, 8192, 32_768, 55_000)
_TEXT = _powers(16, 32_768)
_WORDS = 30_301_028  # sentences of LM1B


def _all() -> tuple[Protocol, ...]:
    def mnist(model: str, optimizer: str = "sgd", sizes: tuple[int, ...] = _MNIST) -> Protocol:
        goal = Goal(_ERROR, 0.03 if model.startswith("fc") else 0.01)
        return Protocol("mnist", model, optimizer, sizes, goal, train_examples=55_000)

    def lm1b(model: str, optimizer: str, sizes: tuple[int, ...], trials: int = 100) -> Protocol:
        wide = model in ("transformer_narrow_and_shallow", "transformer_wide")
        goal = Goal(_LOSS, 4.2 if wide else 3.9)
        return Protocol("lm1b", model, optimizer, sizes, goal, trials, _WORDS)

    def nesterov(
        data: str, model: str, sizes: tuple[int, ...], goal: float, examples: int | None = None
    ) -> Protocol:
        return Protocol(data, model, "nesterov", sizes, Goal(_ERROR, goal), 100, examples)

    fc = ("1024", "1024_1024", "1024_1024_1024")
    fc += tuple(f"{width}_{width}_{width}" for width in (128, 2048, 256, 512, 64))
    vgg = (32, 64, *_powers(256, 65_536))
    shallow = "transformer_shallow"
    return (
        nesterov("cifar_10", "resnet_8", _powers(2, 8192), 0.3, 45_000),
        Protocol(
            *("cifar_10", "resnet_8", "sgd"), _powers(2, 8192), Goal(_ERROR, 0.3), 100, 45_000
        ),
        Protocol(
            *("common_crawl", "transformer_base", "nesterov"),
            (32, *_powers(64, 16_384, by=4)),
            Goal(_LOSS, 3.9),
            50,
        ),
        nesterov("fashion_mnist", "simple_cnn_base", _FEW, 0.1, 55_000),
        nesterov("imagenet", "resnet_50", _powers(64, 65_536), 0.25),
        nesterov("imagenet", "vgg_11", vgg, 0.35),
        nesterov("imagenet_half_classes", "resnet_50", _powers(64, 32_768), 0.3),
        nesterov("imagenet_half_images", "resnet_50", _powers(64, 32_768), 0.3),
        lm1b("lstm", "nesterov", (*_powers(16, 16_384, by=4), 32_768), 50),
        lm1b("transformer_base", "nesterov", _TEXT),
        lm1b("transformer_narrow_and_shallow", "nesterov", _TEXT),
        lm1b(shallow, "momentum", _powers(32, 32_768, by=4)),
        lm1b(shallow, "nesterov", _TEXT),
        lm1b(shallow, "sgd", _powers(32, 8192, by=4), 50),
        lm1b("transformer_wide", "nesterov", _TEXT),
        *(mnist(f"fc_{widths}") for widths in fc),
        mnist("simple_cnn_base", "momentum"),
        mnist("simple_cnn_base", "nesterov", (1, *_FEW)),
        mnist("simple_cnn_base"),
        mnist("simple_cnn_narrow"),
        mnist("simple_cnn_wide", sizes=_powers(1, 32_768)),
        *(
            nesterov(
                f"mnist_{n}",
                "simple_cnn_base",
                (*(size for size in _powers(1, 32_768) if size < n), n),
                0.02,
                n,
            )
            for n in (13_750, 27_500, 55_000, 6_875)
        ),
        Protocol(
            *("open_images_v4", "resnet_50", "nesterov"),
            _powers(64, 32_768),
            Goal("validation/average_precision", 0.31, "max"),
        ),
        nesterov("solution_quality/fashion_mnist", "simple_cnn_base", (1, *_FEW), 0.1, 55_000),
        nesterov("solution_quality/mnist", "simple_cnn_base", (1, *_FEW), 0.01, 55_000),
    )


ALL = _all()
_COLUMNS = columns.declare(
    "protocols", "workload", "optimizer", "batch_sizes", "trials", "goal", "train_examples"
)


def protocol(workload: str, optimizer: str) -> Protocol:
    """What the paper measured of a workload with an optimizer.

    Args:
      workload: as `workloads.get` has it, or with the archive's name of the data set.
      optimizer: `sgd`, `momentum` or `nesterov`.

    Raises:
      ValueError: the paper did not measure it; says with which optimizers it did.

    >>> found = protocol("mnist/simple_cnn_base", "nesterov")
    >>> found.batch_sizes
    (1, 2, 8, 32, 128, 512, 2048, 8192, 32768, 55000)

    `Study.of_paper` makes a study of it, each part of which can be replaced.
    """
    same = [p for p in ALL if workload in (p.workload, f"{p.data_set}/{p.model}")]
    for one in same:
        if one.optimizer == optimizer:
            return one
    if same:
        known = ", ".join(dict.fromkeys(one.optimizer for one in same))
        raise ValueError(
            f"optimizer: got {optimizer!r}, and the paper measured {workload!r} with {known}."
        )
    raise ValueError(
        f"workload: got {workload!r}, which is none of the paper's. "
        "workloads.protocols() lists them."
    )


def protocols() -> pd.DataFrame:
    """The paper's 35 workloads, in the order of its archive.

    Returns:
      One row each: `workload`, `optimizer`, `batch_sizes` (how many), `trials` at each, `goal` and
      `train_examples` (NaN where they are not known). `workloads.table()` says which of them can
      be trained here.

    >>> len(protocols())
    35
    """
    rows = [
        (
            *(p.workload, p.optimizer, len(p.batch_sizes), p.trials, str(p.goal)),
            p.train_examples,
        )
        for p in ALL
    ]
    return pd.DataFrame(rows, columns=list(_COLUMNS))
