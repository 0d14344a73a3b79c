"""The trials of a measurement, as the model of them takes them: arrays, no tables."""

from __future__ import annotations

import dataclasses
import enum
import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int


class Outcome(enum.IntEnum):
    """What became of a trial."""

    CROSSED = 0  # it reached the goal
    CUT = 1  # it was stopped before
    DIVERGED = 2


class Purpose(enum.IntEnum):
    """Why a trial was asked for."""

    SCOUT = 0  # spread over the whole range
    ASK = 1  # where it tells most
    CHECK = 2  # the quoted setting under a fresh seed
    SEARCH = 3  # spread over the whole range, where the model is doubted
    SELECT = 4  # the leading settings of such a search under fresh seeds
    FINAL = 5  # the best of them under others


@dataclasses.dataclass(frozen=True)
class Trials:
    """One entry a trial.

    Attributes:
      size: the place of its batch size among those of the study.
      rate: the log of its effective learning rate.
      second: its second hyperparameter, from -2 to 2 over the range; 0 where there is none.
      log_steps: of the crossing, in the middle between two evaluations; of a trial that was cut,
        of where it was.
      outcome: `Outcome`.
      purpose: `Purpose`.
      round: in which it was asked for.
    """

    size: Int[np.ndarray, " trials"]
    rate: Float[np.ndarray, " trials"]
    second: Float[np.ndarray, " trials"]
    log_steps: Float[np.ndarray, " trials"]
    outcome: Int[np.ndarray, " trials"]
    purpose: Int[np.ndarray, " trials"]
    round: Int[np.ndarray, " trials"]

    def __len__(self) -> int:
        return len(self.size)

    @classmethod
    def of(cls, rows: Sequence[tuple[int, float, float, float, int, int, int]]) -> Trials:
        """The trials of rows in the order of the attributes.

        >>> len(Trials.of([(0, -2.0, 0.0, 5.1, Outcome.CROSSED, Purpose.SCOUT, 0)]))
        1
        """
        table = np.array(rows, np.float64).reshape(len(rows), 7).T
        size, rate, second, log_steps, outcome, purpose, round_ = table
        whole = (column.astype(np.int64) for column in (size, outcome, purpose, round_))
        size, outcome, purpose, round_ = whole
        return cls(size, rate, second, log_steps, outcome, purpose, round_)

    def where(self, chosen: np.ndarray) -> Trials:
        """Those that are chosen, by a mask or by their places."""
        return Trials(*(getattr(self, field.name)[chosen] for field in dataclasses.fields(self)))

    @property
    def crossed(self) -> np.ndarray:
        """A mask: which reached the goal."""
        return self.outcome == Outcome.CROSSED


def middle(steps: float, previous: float) -> float:
    """The log of a crossing that lies between two evaluations.

    >>> round(math.exp(middle(100, 95)), 1)
    97.5
    """
    return 0.5 * (math.log(max(steps, 1.0)) + math.log(max(previous, 0.5 * steps, 0.7)))
