"""What Shallue et al. (2019) say of their workloads that is in no file of the archive.

What is not known for certain is not here, and is asked for.
"""

from __future__ import annotations

from batchscale.metrics import Goal
from batchscale.workloads.paper import ALL

TRAIN_EXAMPLES = {p.data_set: p.train_examples for p in ALL if p.train_examples is not None}
"""Examples of the training set, by the name of the data set; that of CIFAR-10 is a choice."""

SUBSETS = tuple(p.data_set for p in ALL if p.data_set.startswith(("mnist_", "imagenet_half")))
"""Data sets that are parts of another, and may bear that one's name in `study.json`."""


def goal(workload: str) -> Goal | None:
    """The goal of the paper's main figures for a workload; None where there is none.

    Of a model that the paper did not measure, that of the others of its family, if it is one.

    >>> print(goal("mnist/simple_cnn_wide"), goal("mnist_6875/simple_cnn_base"), goal("c4/lstm"))
    validation/error < 0.01 validation/error < 0.02 None
    """
    data_set, _, model = workload.partition("/")
    same = [p for p in ALL if p.data_set == data_set and p.model == model]
    family = model.partition("_")[0]
    same = same or [p for p in ALL if (p.data_set, p.model.partition("_")[0]) == (data_set, family)]
    goals = {p.goal for p in same}
    return goals.pop() if len(goals) == 1 else None
