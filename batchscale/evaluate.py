"""What is measured besides the goal's split: of which splits, on how many examples, how often.

The goal's split is what steps to target are read off: it is evaluated on the whole grid, always.
All else is for curves and for generalisation, and is not to cost more than it is worth.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from jaxtyping import PyTree

from batchscale import arrays, numeric
from batchscale.stopping import part_of_grid

# Choices.
_TRAIN_EXAMPLES = 5_000  # of the training set, at most
_TRAIN_ELEMENTS = 5_000  # of what an example has at least many of: the tokens of a sequence
_TRAIN_FEWEST = 64
STEP_OPERATIONS = 2.5e6  # operations that a step costs at least: its overhead on a core of a CPU
QUICK_STEPS = 10  # an evaluation that costs no more than so many such steps is always made


class Work(NamedTuple):
    """The operations of one example.

    Attributes:
      training: of its gradient.
      evaluation: of its metrics.
    """

    training: float
    evaluation: float


@dataclasses.dataclass(frozen=True)
class Evaluate:
    """What is measured besides the goal's split, and at what price.

    None of it changes a trial, a crossing or an optimum. The goal's split is always evaluated
    whole and on the whole grid of evaluations; of a goal of `train`, on a fixed subset.

    Attributes:
      splits: that are measured besides the goal's; all that the workload has by default.
      examples: of a split, by name, at most so many: a fixed random subset. By default the others
        are measured whole, and `train` on 5,000 examples, or as many as have 5,000 elements, where
        every field of an example has several (64 sequences of 256 tokens; no fewer than 64).
      every: they are measured about each time that the steps have grown by this factor. By default
        2; where evaluations of the goal's split are bounds, 8 for `train`, from step 64 on, and
        the others at the end of the budget alone. And once at each trial's first crossing,
        whatever it costs.
      share: of the operations of training, what these evaluations may cost at most: they begin at
        the step from which on that is so, or at once where they are quick in any case (one more
        at the end of the budget is not counted). None for no such limit.

    Raises:
      ValueError: a field is not as above.

    >>> Evaluate(splits=["test"], examples={"test": 1000})
    Evaluate(splits=('test',), examples={'test': 1000}, every=None, share=0.2)
    """

    splits: Collection[str] | None = None
    examples: Mapping[str, int] = dataclasses.field(default_factory=dict)
    every: float | None = None
    share: float | None = 0.2

    def __post_init__(self) -> None:
        if self.splits is not None:
            several = isinstance(self.splits, Collection) and not isinstance(self.splits, str)
            if not several or not all(isinstance(split, str) for split in self.splits):
                raise ValueError(
                    f"evaluate: got splits={self.splits!r}, wanted names of splits, several: "
                    '["test"].'
                )
            object.__setattr__(self, "splits", tuple(sorted(set(self.splits))))
        named = isinstance(self.examples, Mapping)
        if not named or not all(isinstance(split, str) for split in self.examples):
            raise ValueError(
                f"evaluate: got examples={self.examples!r}, wanted numbers of examples by split: "
                '{"train": 1000}.'
            )
        examples = {
            split: numeric.integer(f"evaluate: examples of {split!r}", self.examples[split], 1)
            for split in sorted(self.examples)
        }
        object.__setattr__(self, "examples", examples)
        for name, least in (("every", 1), ("share", 0)):
            value = getattr(self, name)
            if value is None:
                continue
            wanted = f"a number above {least}, or None"
            found = numeric.above(f"evaluate: {name}", value, least, wanted)
            object.__setattr__(self, name, float(found))

    @classmethod
    def of_counts(
        cls, counts: Mapping[str, Any], splits: Collection[str], goal_split: str
    ) -> Evaluate:
        """What `{"validation": 2048, "train": None}` says: examples by split, None for no split.

        Args:
          counts: examples of a split at most, by name; a split that is None is not measured, and
            one that is not named as it is by default.
          splits: of the workload.
          goal_split: the name of the goal's, whose number is left out: part of it makes another
            goal, and another workload.

        Raises:
          ValueError: the goal's split is not to be measured, or a number is not one.

        >>> splits = ["train", "test", "validation"]
        >>> Evaluate.of_counts({"test": 100, "train": None}, splits, "validation")
        Evaluate(splits=('test', 'validation'), examples={'test': 100}, every=None, share=0.2)
        """
        if goal_split in counts and counts[goal_split] is None:
            raise ValueError(
                f"evaluate: got None for {goal_split!r}, the goal's split, which is always "
                "measured."
            )
        without = [split for split, count in counts.items() if count is None]
        named = {
            split: count
            for split, count in counts.items()
            if count is not None and (split != goal_split or split == "train")
        }
        left = None if not without else [split for split in splits if split not in without]
        return cls(splits=left, examples=named)

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        splits = None if self.splits is None else list(self.splits)
        return dataclasses.asdict(self) | {"splits": splits}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Evaluate:
        """From plain values."""
        return cls(**values)

    def counts(self, splits: Mapping[str, PyTree], goal_split: str | None) -> dict[str, int]:
        """How many examples are measured of every split that is.

        Args:
          splits: of the workload.
          goal_split: the name of the goal's; None if there is no goal.

        Raises:
          ValueError: a split is named that the workload does not have, or the goal's is not to be
            measured whole.

        >>> import numpy as np
        >>> images = {"image": np.zeros((60_000, 28, 28)), "label": np.zeros(60_000)}
        >>> texts = {"text": np.zeros((60_000, 256), np.uint8)}
        >>> for fields in (images, texts):
        ...     Evaluate().counts({"train": fields, "validation": fields}, "validation")
        {'train': 5000, 'validation': 60000}
        {'train': 64, 'validation': 60000}
        """
        for split in {*(self.splits or ()), *self.examples}:
            if split not in splits:
                raise ValueError(
                    f"evaluate: the workload has no split {split!r}; wanted any of "
                    f"{', '.join(splits)}."
                )
        if goal_split != "train" and goal_split in self.examples:
            raise ValueError(
                f"evaluate: got examples of {goal_split!r}, the goal's split, which is always "
                "measured whole: steps to target are read off it. Leave it out; a smaller split "
                "in the workload's data makes another goal."
            )
        counts = {}
        for split, fields in splits.items():
            if split == goal_split or self.splits is None or split in self.splits:
                whole = arrays.examples(fields)
                most = self.examples.get(split, whole)
                if split == "train" and split not in self.examples:
                    most = _TRAIN_EXAMPLES if split == goal_split else _of_elements(fields)
                counts[split] = min(most, whole)
        return counts

    def first_steps(
        self, counts: Mapping[str, int], goal_split: str, batch_size: int, work: Work
    ) -> dict[str, int]:
        """The step from which on each split besides the goal's is measured, a power of two or 0.

        From there on each measurement costs no more than its part of the share of the training
        before it. All of it follows from shapes, so that it does not depend on the machine.

        >>> counts = {"train": 64, "validation": 1000, "test": 1000}
        >>> Evaluate().first_steps(counts, "validation", 4, Work(3e8, 1e8))
        {'train': 64, 'test': 1024}
        """
        others = {split: count for split, count in counts.items() if split != goal_split}
        step = STEP_OPERATIONS + batch_size * work.training
        found = {}
        for split, count in others.items():
            cost = count * work.evaluation
            if (
                self.share is None
                or cost <= QUICK_STEPS * STEP_OPERATIONS
                or math.isnan(cost / step)
            ):
                found[split] = 0
                continue
            needed = cost * len(others) / (self.share * step)
            # Coarse, so that it does not hang on how a version of XLA counts.
            found[split] = 1 << max(math.ceil(math.log2(needed)), 0)
        return found

    def steps(self, split: str, grid: list[int], *, first: int, bounds: bool) -> set[int]:
        """The steps at which a split besides the goal's is measured.

        Args:
          split: its name.
          grid: of evaluations.
          first: none before this step.
          bounds: whether evaluations of the goal's split are bounds.
        """
        if self.every is not None:
            steps = part_of_grid(grid, ratio=self.every)
        elif not bounds:
            steps = part_of_grid(grid, ratio=2)
        elif split == "train":
            steps = part_of_grid(grid, ratio=8, first=64)
        else:
            steps = {grid[-1]}
        return {step for step in steps if step >= first}


def _of_elements(fields: PyTree) -> int:
    """The examples of the training set that are measured, by how much there is in one."""
    return min(_TRAIN_EXAMPLES, max(_TRAIN_FEWEST, _TRAIN_ELEMENTS // arrays.elements(fields)))
