"""A workload whose split is a fixed random part of what it was."""

from __future__ import annotations

import dataclasses
import weakref

import numpy as np

from batchscale import arrays
from batchscale.workloads.workload import Workload

_WHOLES: weakref.WeakKeyDictionary[Workload, Workload] = weakref.WeakKeyDictionary()


def part_of(workload: Workload, split: str, examples: int) -> Workload:
    """The workload with so many of a split's examples, the same whatever the seed of a study.

    A goal on that split is another goal then, so that the workload has another name, too.

    Args:
      workload: the whole.
      split: one of its splits.
      examples: how many are kept; where there are no more, the workload stays as it is.

    >>> x = np.zeros((100, 2), np.float32)
    >>> workload = Workload.from_functions(
    ...     lambda key: np.zeros(2, np.float32),
    ...     lambda params, batch: batch["input"] @ params,
    ...     data={"train": (x, x[:, 0]), "validation": (x, x[:, 0])},
    ...     name="zeros",
    ... )
    >>> part = part_of(workload, "validation", 30)
    >>> part.name, len(part.splits()["validation"]["input"])
    ('zeros (30 of validation)', 30)
    >>> whole_of(part) is workload
    True
    """
    splits = dict(workload.splits())
    whole = arrays.examples(splits[split])
    if examples >= whole:
        return workload
    chosen = np.sort(np.random.default_rng(0).permutation(whole)[:examples])
    splits[split] = workload.read(split, chosen)
    name = f"{workload.title()} ({examples:,} of {split})"
    part = dataclasses.replace(workload, name=name, data=splits, titled=None)
    _WHOLES[part] = whole_of(workload)
    return part


def whole_of(workload: Workload) -> Workload:
    """The workload that a part was taken of, in this process; itself where it is none."""
    return _WHOLES.get(workload, workload)
