"""How fast the machine is, and how far trials are trained for it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from batchscale import arrays
from batchscale.piloting.asked import LARGEST, RATES, Asked
from batchscale.stopping import evaluation_grid
from batchscale.workloads import Workload
from batchscale.workloads.parts import part_of

# Choices.
_SMALLEST = 8  # of the batch sizes that are tried
SEEDS = 5  # under which the best setting is run again
RUNS = 30  # of a trial's steps to target that a measurement costs a batch size, about
OVERHEAD = 1.3  # what a round takes beside its steps
_EPOCHS, _STEPS = 100, 20_000  # of the best setting, at most
_SHARES = {"scan": 0.45, "rerun": 0.4}  # of the pilot's time
EVALUATION = 0.3  # of the time of training that evaluations of the goal's split may take
_FEWEST_STEPS = 60  # that a trial of the scan has at every batch size
_FEWEST = 512  # elements of a split on which a goal is decided
_SPACINGS = (0.05, 0.1, 0.2)
TIMED = ("batch_size", "seconds_per_step", "seconds_per_evaluation", "starting_seconds")


def timed(asked: Asked) -> pd.DataFrame:
    """Seconds of a step and of an evaluation, of a trial in a full pack, at three batch sizes.

    The largest of them is no larger than the time of the scan allows.
    """
    examples = arrays.examples(asked.workload.splits()["train"])
    largest = power(min(LARGEST, examples // 8))
    smallest = min(_SMALLEST, largest)
    first = _speeds(asked, sorted({smallest, min(4 * smallest, largest)}))
    size, step = first[["batch_size", "seconds_per_step"]].to_numpy(float)[-1]
    allowed = _SHARES["scan"] * asked.seconds / 3 / RATES / _FEWEST_STEPS
    largest = max(min(largest, power(allowed / step * size)), int(size))
    middle = 2 ** round(math.log2(math.sqrt(smallest * largest)))
    left = sorted({middle, largest} - set(first["batch_size"]))
    known = pd.concat([first, _speeds(asked, left)]) if left else first
    return known.loc[known["batch_size"].isin([smallest, middle, largest])].sort_values(
        "batch_size", ignore_index=True
    )


def _speeds(asked: Asked, sizes: list[int]) -> pd.DataFrame:
    study = asked.study(asked.workload, batch_sizes=sizes, max_steps=_STEPS)
    return study.speeds(progress=asked.progress is True, devices=asked.devices)


def power(size: float) -> int:
    """The power of two at or below a number."""
    return 1 << max(int(math.log2(max(size, 1))), 0)


@dataclasses.dataclass(frozen=True)
class Effort:
    """How far trials are trained, by how fast the machine is.

    Attributes:
      timed: seconds of a step and of an evaluation, by batch size.
      workload: whose goal's split is no larger than the time of the answer allows.
      spacing: of evaluations.
      share: of the goal's split that is measured.
      scan: steps of each trial of the scan, by batch size.
      rerun: steps of the best setting again.
    """

    timed: pd.DataFrame
    workload: Workload
    spacing: float
    share: float
    scan: Mapping[int, int]
    rerun: int

    @classmethod
    def of(cls, asked: Asked, timed: pd.DataFrame, values: Mapping[str, Any]) -> Effort:
        """What was written down by `to_json`."""
        split, share = asked.metric.partition("/")[0], float(values["share"])
        workload = asked.workload
        if share < 1:
            workload = _part(workload, split, share)
        scan, rerun = dict(values["scan"]), int(values["rerun"])
        return cls(timed, workload, float(values["spacing"]), share, scan, rerun)

    def to_json(self) -> dict[str, Any]:
        """As plain values, without the timings and the data."""
        return {
            "spacing": self.spacing,
            "share": self.share,
            "scan": dict(self.scan),
            "rerun": self.rerun,
        }

    @property
    def sizes(self) -> list[int]:
        """The batch sizes that are tried."""
        return self.timed["batch_size"].astype(int).tolist()

    @property
    def middle(self) -> int:
        """The batch size at which the goal is found."""
        return self.sizes[len(self.sizes) // 2]

    def seconds_per_step(self, sizes: Any) -> np.ndarray:
        """Of a trial, between the batch sizes that were timed by power, beyond them by the ends."""
        logs = np.log(self.timed[["batch_size", "seconds_per_step"]].to_numpy(float)).T
        sizes = np.log(np.asarray(sizes, np.float64))
        found = np.interp(sizes, *logs)
        # Of fewer examples than were timed a step gets shorter, but not as it did before.
        rise = np.diff(logs[1])[0] / np.diff(logs[0])[0] if logs.shape[1] > 1 else 0.0
        found += 0.5 * min(max(rise, 0.0), 1.0) * np.minimum(sizes - logs[0, 0], 0)
        # More examples than were timed take longer in proportion.
        return np.exp(found + np.maximum(sizes - logs[0, -1], 0))

    def seconds_per_evaluation(self) -> float:
        """Of the goal's split, as far as it is measured."""
        return float(self.timed["seconds_per_evaluation"].median()) * self.share


def evaluations(steps: float, spacing: float) -> float:
    """How many there are in so many steps."""
    return len(evaluation_grid(max(int(steps), 1), spacing)) if steps < 1e7 else 500.0


def longest(size: int, examples: int) -> float:
    """Steps that the best setting is trained for at most.

    Args:
      size: the batch size.
      examples: of the training set.
    """
    return min(_STEPS, max(_EPOCHS * examples / size, 100))


def effort_of(asked: Asked, timed: pd.DataFrame) -> Effort:
    """How far trials can be trained in the time that there is.

    Args:
      asked: of the pilot.
      timed: seconds of a step and of an evaluation, by batch size.
    """
    splits = asked.workload.splits()
    split = asked.metric.partition("/")[0]
    spacings = _SPACINGS if asked.evaluation_spacing is None else (asked.evaluation_spacing,)
    rough = Effort(timed, asked.workload, spacings[0], 1.0, {}, 0)
    middle, sizes = rough.middle, np.array(rough.sizes, np.float64)
    step, whole = float(rough.seconds_per_step(middle)), rough.seconds_per_evaluation()
    many = np.geomspace(sizes[0], sizes[-1], 7)
    # As if scaling were perfect below the middle, and there were none above it.
    price = RUNS * (rough.seconds_per_step(many) * np.maximum(1, middle / many)).sum()
    most = longest(middle, arrays.examples(splits["train"]))
    affordable = asked.answer_seconds / (price * OVERHEAD * (1 + EVALUATION))
    affordable = min(affordable, _SHARES["rerun"] * asked.seconds / (SEEDS * step * 1.3))
    steps = int(max(min(affordable, most), 50))
    spacing, share = spacings[-1], 1.0
    fewest = _fewest(splits[split], asked.workload)
    if split == "train" or asked.goal is not None or asked.evaluate_given:
        fewest = 1.0  # what is trained on is not cut, and a goal that is given is of the whole
    for spacing in spacings:
        evaluating, training = evaluations(steps, spacing) * whole, steps * step
        cheap = 7 * RUNS * OVERHEAD * (training + evaluating) < asked.answer_seconds / 4
        if cheap or evaluating <= EVALUATION * training:
            break
    else:
        allowed = EVALUATION * steps * step / (evaluations(steps, spacing) * whole)
        share = min(max(allowed, fewest), 1.0)
    workload = asked.workload if share == 1.0 else _part(asked.workload, split, share)
    scan = {}
    for size in rough.sizes:
        seconds = _SHARES["scan"] * asked.seconds / len(sizes) / RATES
        seconds -= evaluations(100, 0.2) * whole * share
        a_step = float(rough.seconds_per_step(size))
        scan[size] = int(min(max(seconds / a_step, 30), steps * max(1.0, middle / size)))
    return Effort(timed, workload, spacing, share, scan, steps)


def _fewest(split: Mapping[str, np.ndarray], workload: Workload) -> float:
    """The share of a split that a goal is decided on at least."""
    labels = split.get(workload.labels)
    elements = math.prod(labels.shape[1:]) if labels is not None else 1
    return min(_FEWEST / (arrays.examples(split) * max(elements, 1)), 1.0)


def _part(workload: Workload, split: str, share: float) -> Workload:
    return part_of(
        workload, split, max(round(share * arrays.examples(workload.splits()[split])), 1)
    )
