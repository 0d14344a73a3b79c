"""What Shallue et al. (2019) say of their workloads that is in no file of the archive.

The goals are those of the official notebook, `reproduce_paper_plots.ipynb`; the sizes of training
sets too, but for CIFAR-10 (see there). What is not known for certain is not here, and is asked for.
"""

from __future__ import annotations

from batchscale.metrics import Goal

_MNIST_SUBSETS = {f"mnist_{examples}": examples for examples in (6875, 13750, 27500, 55000)}

TRAIN_EXAMPLES = {
    "mnist": 55_000,
    "fashion_mnist": 55_000,
    "lm1b": 30_301_028,  # sentences, which batches count
    # A choice: the usual 5,000 of the 50,000 training images are held out for validation.
    "cifar_10": 45_000,
    **_MNIST_SUBSETS,
}
"""Examples of the training set, by the name of the data set."""

SUBSETS = (*_MNIST_SUBSETS, "imagenet_half_classes", "imagenet_half_images")
"""Data sets that are parts of another, and may bear that one's name in `study.json`."""

_ERROR, _LOSS = "validation/error", "validation/loss"
_GOALS = {
    "mnist/simple_cnn_": Goal(_ERROR, 0.01),
    "mnist/fc_": Goal(_ERROR, 0.03),
    "fashion_mnist/simple_cnn_base": Goal(_ERROR, 0.1),
    "cifar_10/resnet_8": Goal(_ERROR, 0.3),
    "imagenet/resnet_50": Goal(_ERROR, 0.25),
    "imagenet/vgg_11": Goal(_ERROR, 0.35),
    "imagenet_half_classes/resnet_50": Goal(_ERROR, 0.3),
    "imagenet_half_images/resnet_50": Goal(_ERROR, 0.3),
    "open_images_v4/resnet_50": Goal("validation/average_precision", 0.31, "max"),
    "lm1b/lstm": Goal(_LOSS, 3.9),
    "lm1b/transformer_base": Goal(_LOSS, 3.9),
    "lm1b/transformer_shallow": Goal(_LOSS, 3.9),
    "lm1b/transformer_narrow_and_shallow": Goal(_LOSS, 4.2),
    "lm1b/transformer_wide": Goal(_LOSS, 4.2),
    "common_crawl/transformer_base": Goal(_LOSS, 3.9),
    **{f"{name}/simple_cnn_base": Goal(_ERROR, 0.02) for name in _MNIST_SUBSETS},
}


def goal(workload: str) -> Goal | None:
    """The goal of the paper's main figures for a workload; None where there is none.

    >>> print(goal("mnist/simple_cnn_wide"), goal("mnist_6875/simple_cnn_base"), goal("c4/lstm"))
    validation/error < 0.01 validation/error < 0.02 None
    """
    families = (g for name, g in _GOALS.items() if name[-1] == "_" and workload.startswith(name))
    return _GOALS.get(workload) or next(families, None)
