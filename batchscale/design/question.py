"""What a measurement is asked: where, how precisely, and at what price."""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from batchscale.design.model import Model
from batchscale.design.trials import Purpose


@dataclasses.dataclass(frozen=True)
class Question:
    """What is to be measured.

    Attributes:
      batch_sizes: in increasing order.
      low: the smallest log effective learning rate of the search space, the same at all of them.
      high: the largest.
      second: whether there is a second hyperparameter.
      seconds: that a step of a trial takes, by batch size; in any unit.
      lanes: trials that are trained together, by batch size.
      max_steps: the budget of a trial, by batch size.
      precision: the half width of 90% intervals that is asked for, in log B_crit and log steps.
      price: of all trials that may be spent, in the unit of `seconds`; inf for any.
      examples: that may be spent; inf for any.
      spacing: of evaluations, as a share of the steps.
      seed: of places that are drawn.
    """

    batch_sizes: Float[np.ndarray, " batch_sizes"]
    low: float
    high: float
    second: bool
    seconds: Float[np.ndarray, " batch_sizes"]
    lanes: Int[np.ndarray, " batch_sizes"]
    max_steps: Float[np.ndarray, " batch_sizes"]
    precision: float = 0.15
    price: float = math.inf
    examples: float = math.inf
    spacing: float = 0.05
    seed: int = 0

    def model(self) -> Model:
        """Of this question."""
        return Model(self.batch_sizes, self.low, self.high, second=self.second)

    @property
    def sizes(self) -> int:
        """How many batch sizes there are."""
        return len(self.batch_sizes)


class Spent(NamedTuple):
    """What trials have cost.

    Attributes:
      price: in the unit of `Question.seconds`.
      examples: that they were trained on.
    """

    price: float
    examples: float

    def share(self, question: Question) -> float:
        """Of what may be spent; 1 when it is."""
        return max(self.price / question.price, self.examples / question.examples)


class Asked(NamedTuple):
    """A trial that is asked for.

    Attributes:
      size: the place of its batch size.
      rate: its log effective learning rate.
      second: its second hyperparameter, from -2 to 2.
      limit: the steps after which it is cut.
      purpose: why.
    """

    size: int
    rate: float
    second: float
    limit: float
    purpose: Purpose


class Round(NamedTuple):
    """Trials that are asked for together.

    Attributes:
      asked: the trials; empty where nothing is left to ask.
      lockstep: a factor: all trials of a batch size stop at so many times its first crossing; None
        where each stops at its own.
      why: it ended, where nothing is asked.
    """

    asked: list[Asked]
    lockstep: float | None = None
    why: str = ""
