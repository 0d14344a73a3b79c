"""Whether crossings are the schedule's doing: what looks like a plateau may be a warm-up's end."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np
import pandas as pd

from batchscale.given import by_batch_size
from batchscale.metrics import _tables
from batchscale.scaling.curve import points

_FLOOR = 1.5  # a choice: of the fewest steps; batch sizes within it make up the plateau


@dataclasses.dataclass(frozen=True)
class Pace:
    """Between which steps the schedule of a batch size decides when a goal is reached.

    Attributes:
      rises_until: up to this step over an eighth of the steps is lost to the rise of the learning
        rate (a warm-up), whatever the hyperparameters of the plan; 0 if it does not rise.
      falls: the steps, from the first to the last, before which the learning rate has fallen by
        over a third within a factor of two of the steps (a horizon), whatever the
        hyperparameters of the plan; None if it does not fall like that.
      known_until: nothing is known of later steps; None if all are known.
    """

    rises_until: int = 0
    falls: tuple[int, int] | None = None
    known_until: int | None = None

    def __post_init__(self) -> None:
        steps = [self.rises_until, *(self.falls or ()), self.known_until or 0]
        wrong = not all(isinstance(step, int) and step >= 0 for step in steps)
        if wrong or (self.falls is not None and list(self.falls) != sorted(self.falls)[:2]):
            raise ValueError(f"Pace: got {self}, wanted whole numbers of steps, 0 or more.")

    def rising(self, steps: float) -> bool:
        """Whether a crossing is late for the rate had to rise.

        >>> Pace(rises_until=40).rising(17), Pace().rising(17)
        (True, False)
        """
        return 0 < steps <= self.rises_until

    def falling(self, steps: float) -> bool:
        """Whether a crossing lies where the rate falls.

        >>> Pace(falls=(250, 1000)).falling(400), Pace(falls=(250, 1000)).falling(40)
        (True, False)
        """
        return self.falls is not None and self.falls[0] <= steps <= self.falls[1]

    def knows(self, steps: float) -> bool:
        """Whether it is known what the rate does up to a crossing.

        >>> Pace(known_until=2048).knows(2000), Pace(known_until=0).knows(8), Pace().knows(8)
        (True, False, True)
        """
        return self.known_until is None or steps <= self.known_until


@dataclasses.dataclass(frozen=True)
class Paced:
    """Which crossings are the schedule's doing, and whether those of the plateau are.

    Attributes:
      rising: batch sizes that cross while the rate rises, or soon after.
      falling: batch sizes that cross as it falls, or soon after.
      plateau: whether half or more of the batch sizes with the fewest steps are among them.
      why: in words; empty if there are none.
      unknown: batch sizes that cross where it is not known what the rate does.
    """

    rising: tuple[int, ...]
    falling: tuple[int, ...]
    plateau: bool
    why: str
    unknown: tuple[int, ...]

    @property
    def refusal(self) -> str:
        """Why no critical batch size can be quoted; empty if the schedule is no reason."""
        return f"the plateau may be the schedule's: {self.why}" if self.plateau else ""


def paced(steps: pd.DataFrame, paces: Mapping[int, Pace]) -> Paced:
    """Which crossings lie where the schedule decides when the goal is reached.

    Args:
      steps: the table of `metrics.steps_to_target`.
      paces: by batch size; one that is not there has a constant rate.

    Raises:
      TypeError: `paces` is no mapping from integers to `Pace`.

    >>> table = pd.DataFrame({"batch_size": [1, 8, 64, 512], "steps": [900, 110, 18, 17]})
    >>> paced(table, dict.fromkeys([1, 8, 64, 512], Pace(rises_until=40))).rising
    (64, 512)
    """
    by_batch_size("paces", paces, Pace, "a Pace")
    table = points(steps)
    table = _tables.select(table, np.isfinite(table["steps"]))
    crossings = dict(zip(table["batch_size"].astype(int), table["steps"], strict=True))
    of = {size: paces.get(size, Pace()) for size in crossings}
    rising = tuple(size for size, count in crossings.items() if of[size].rising(count))
    falling = tuple(size for size, count in crossings.items() if of[size].falling(count))
    floor = [s for s, count in crossings.items() if count <= _FLOOR * min(crossings.values())]
    both = {*rising, *falling}
    words = []
    if rising:
        until = max(of[size].rises_until for size in rising)
        words.append(
            f"the learning rate rises too long for the {_range(crossings, rising)} steps at "
            f"{_sizes(rising)}: of goals reached before step {until:,} its rise has cost over an "
            "eighth of the steps, so that it decides when they are reached"
        )
    if falling:
        words.append(
            f"the {_range(crossings, falling)} steps at {_sizes(falling)} end as the learning rate "
            f"falls, or soon after: {_horizons(of, falling)}"
        )
    return Paced(
        rising,
        falling,
        bool(floor) and 2 * len(both.intersection(floor)) >= len(floor),
        "; ".join(words),
        tuple(size for size, count in crossings.items() if not of[size].knows(count)),
    )


def _range(crossings: Mapping[int, float], sizes: tuple[int, ...]) -> str:
    low, high = (f(crossings[size] for size in sizes) for f in (min, max))
    return f"{low:,.0f}" if low == high else f"{low:,.0f} to {high:,.0f}"


def _sizes(sizes: tuple[int, ...]) -> str:
    return f"batch size{'s' if len(sizes) > 1 else ''} {', '.join(map(str, sizes))}"


def _horizons(of: Mapping[int, Pace], sizes: tuple[int, ...]) -> str:
    found = dict.fromkeys(of[size].falls for size in sizes)
    return ", ".join(f"between steps {pair[0]:,} and {pair[1]:,}" for pair in found if pair)
