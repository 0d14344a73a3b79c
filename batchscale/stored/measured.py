"""The plan of a measurement: its rounds as they were asked, and what each of them cost."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

from batchscale.design.trials import Purpose
from batchscale.records import conditions_from_json
from batchscale.tuner.distributions import number

_FORMAT = 1
FIRST_MEASURED = 2_000_000
"""Numbers of the trials of a measurement begin here."""


class MeasuredTrial(NamedTuple):
    """A trial of a measurement, as it was asked for.

    Attributes:
      hyperparameters: by name.
      purpose: why.
      round: in which.
    """

    hyperparameters: dict[str, float]
    purpose: Purpose
    round: int


@dataclasses.dataclass
class MeasuredRound:
    """Trials that were asked for together.

    Attributes:
      asked: by batch size: the hyperparameters and the purpose of each trial.
      limits: the steps after which they are cut, by batch size.
      lockstep: all trials of a batch size end at so many times its first crossing; None where each
        ends at its own.
      seconds: that each batch size took, by batch size; of those that are done.
    """

    asked: dict[int, list[tuple[dict[str, float], int]]]
    limits: dict[int, float]
    lockstep: float | None
    seconds: dict[int, float] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass
class MeasurePlan:
    """All rounds of a measurement.

    Attributes:
      seconds_per_step: of a trial, by batch size, as the design was told.
      rounds: in order.
      parameters: of the model after the last round: where the next fit begins.
      ended: why the measurement ended; empty while it goes on.
      precision: that was asked for last.
      conditions: what each batch size was run under, as in `Plan`.
      opening: seconds of all calls until their first round, of timing steps among others.
      asking: seconds between rounds.
      width: trials of a full pack where the measurement began, by which rounds are filled; None
        of earlier versions.
    """

    seconds_per_step: dict[int, float] = dataclasses.field(default_factory=dict)
    rounds: list[MeasuredRound] = dataclasses.field(default_factory=list)
    parameters: list[float] = dataclasses.field(default_factory=list)
    ended: str = ""
    precision: float = 0.15
    conditions: dict[int, list[dict[str, Any]]] = dataclasses.field(default_factory=dict)
    opening: float = 0.0
    asking: float = 0.0
    width: int | None = None

    @property
    def training(self) -> float:
        """Seconds of all rounds; of those of workers together."""
        return sum(sum(part.seconds.values()) for part in self.rounds)

    @property
    def seconds(self) -> float:
        """That all calls have taken."""
        return self.opening + self.training + self.asking

    def trials(self, batch_size: int) -> list[MeasuredTrial]:
        """The trials of a batch size, in the order of their numbers from `FIRST_MEASURED` on."""
        return [
            MeasuredTrial(values, Purpose(purpose), place)
            for place, part in enumerate(self.rounds)
            for values, purpose in part.asked.get(batch_size, ())
        ]

    def to_json(self) -> dict[str, Any]:
        """The plan as plain values."""

        def by_name(table: Mapping[int, Any]) -> dict[str, Any]:
            return {str(size): value for size, value in table.items()}

        rounds = [
            {
                "asked": by_name(part.asked),
                "limits": by_name(part.limits),
                "lockstep": part.lockstep,
                "seconds": by_name(part.seconds),
            }
            for part in self.rounds
        ]
        return {
            "format": _FORMAT,
            "seconds_per_step": by_name(self.seconds_per_step),
            "rounds": rounds,
            "parameters": self.parameters,
            "ended": self.ended,
            "precision": self.precision,
            "conditions": by_name(self.conditions),
            "opening": self.opening,
            "asking": self.asking,
            "width": self.width,
        }

    @classmethod
    def from_json(cls, plan: Any, where: str) -> MeasurePlan:
        """The plan again.

        Args:
          plan: what `to_json` gave.
          where: the file that it was in, for errors.

        Raises:
          ValueError: it is no such plan.
        """
        try:
            if plan["format"] != _FORMAT:
                raise ValueError(f"got format {plan['format']!r}, wanted {_FORMAT}")
            return cls._from_json(plan)
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            raise ValueError(
                f"{where}: not the plan of a measurement ({type(error).__name__}: {error}). "
                "Restore it from a copy, or call batchscale.repair(folder), which sets it aside."
            ) from error

    @classmethod
    def _from_json(cls, plan: Mapping[str, Any]) -> MeasurePlan:
        rounds = []
        for part in plan["rounds"]:
            asked = {
                int(size): [
                    ({str(n): number(n, v) for n, v in values.items()}, int(Purpose(purpose)))
                    for values, purpose in trials
                ]
                for size, trials in part["asked"].items()
            }
            limits = {int(size): number("limits", v) for size, v in part["limits"].items()}
            seconds = {int(size): _seconds("seconds", v) for size, v in part["seconds"].items()}
            lockstep = part["lockstep"]
            if set(asked) != set(limits) or not set(seconds) <= set(asked):
                raise ValueError("a round's asked, limits and seconds are not of the same sizes")
            rounds.append(
                MeasuredRound(
                    asked,
                    limits,
                    None if lockstep is None else number("lockstep", lockstep),
                    seconds,
                )
            )
        return cls(
            {int(s): number("seconds_per_step", v) for s, v in plan["seconds_per_step"].items()},
            rounds,
            [number("parameters", value) for value in plan["parameters"]],
            str(plan["ended"]),
            number("precision", plan["precision"]),
            conditions_from_json(plan["conditions"]),
            *(_seconds(name, plan.get(name, 0.0)) for name in ("opening", "asking")),  # new ones
            width=None if plan.get("width") is None else _width(plan["width"]),
        )


def _width(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value < 2**31:
        raise ValueError(f"width is {value!r}, but must be trials")
    return value


def _seconds(name: str, value: Any) -> float:
    found = number(name, value)
    if not 0 <= found < 1e9:
        raise ValueError(f"{name} is {found}, but must be seconds")
    return found
