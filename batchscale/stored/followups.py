"""The plans of what is run after a search: its confirmation and its refinement, as JSON."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from batchscale.records import Origin, conditions_from_json
from batchscale.tuner import SearchSpace
from batchscale.tuner.distributions import number

_FORMAT = 1
FIRST_REFINED = 1_000_000
"""Numbers of refined trials begin here: no search of the space itself gets so far."""
_T = TypeVar("_T")


@dataclasses.dataclass(frozen=True)
class ConfirmationPlan:
    """Which settings are run again, under how many seeds.

    Attributes:
      settings: the numbers of the trials that are compared, by batch size.
      selection_seeds: under which they are compared.
      seeds: under which the chosen one is reported.
      best: steps to target of the study when the settings were chosen, by batch size.
      limits: the steps after which a run is a miss, by batch size.
      conditions: what each batch size was run under, as in `Plan`.
    """

    settings: Mapping[int, list[int]]
    selection_seeds: int
    seeds: int
    best: Mapping[int, float]
    limits: Mapping[int, float]
    conditions: dict[int, list[dict[str, Any]]] = dataclasses.field(default_factory=dict)

    def only(self, batch_size: int) -> ConfirmationPlan:
        """The plan of one of its batch sizes alone; what is changed in it is not changed here."""
        return dataclasses.replace(
            self,
            settings={batch_size: [*self.settings[batch_size]]},
            best={batch_size: self.best[batch_size]},
            limits={batch_size: self.limits[batch_size]},
            conditions={b: [*found] for b, found in self.conditions.items() if b == batch_size},
        )

    def to_json(self) -> dict[str, Any]:
        """The plan as plain values."""
        fields = dataclasses.asdict(self)
        sizes = {
            name: {str(size): value for size, value in fields[name].items()}
            for name in ("settings", "best", "limits", "conditions")
        }
        return {"format": _FORMAT, **fields, **sizes}

    @classmethod
    def from_json(cls, plan: Any, where: str) -> ConfirmationPlan:
        """The plan again.

        Args:
          plan: what `to_json` gave.
          where: the file that it was in, for errors.

        Raises:
          ValueError: it is no such plan.
        """
        return _read(plan, where, "a confirmation", cls._from_json)

    @classmethod
    def _from_json(cls, plan: Mapping[str, Any]) -> ConfirmationPlan:
        made = cls(
            settings=_by_size(plan["settings"], lambda found: [_whole(n) for n in found]),
            selection_seeds=_whole(plan["selection_seeds"]),
            seeds=_whole(plan["seeds"]),
            best=_by_size(plan["best"], lambda steps: number("best", steps)),
            limits=_by_size(plan["limits"], lambda steps: number("limits", steps)),
            conditions=conditions_from_json(plan["conditions"]),
        )
        if not set(made.settings) == set(made.best) == set(made.limits):
            raise ValueError("settings, best and limits are not of the same batch sizes")
        return made


@dataclasses.dataclass
class RefinementPlan:
    """The boxes that were searched, round by round, and the trials in them.

    Attributes:
      rounds: each a mapping from batch size to `origin`, `space` and `trials`, the hyperparameters.
      conditions: what each batch size was run under, as in `Plan`.
    """

    rounds: list[dict[int, dict[str, Any]]] = dataclasses.field(default_factory=list)
    conditions: dict[int, list[dict[str, Any]]] = dataclasses.field(default_factory=dict)

    def trials(self, batch_size: int) -> list[tuple[dict[str, float], str]]:
        """The hyperparameters and the origin of every refined trial of a batch size."""
        parts = [part[batch_size] for part in self.rounds if batch_size in part]
        return [(values, part["origin"]) for part in parts for values in part["trials"]]

    def to_json(self) -> dict[str, Any]:
        """The plan as plain values."""
        rounds = [{str(size): part for size, part in some.items()} for some in self.rounds]
        conditions = {str(size): found for size, found in self.conditions.items()}
        return {"format": _FORMAT, "rounds": rounds, "conditions": conditions}

    @classmethod
    def from_json(cls, plan: Any, where: str) -> RefinementPlan:
        """The plan again; see `ConfirmationPlan.from_json`."""
        return _read(plan, where, "a refinement", cls._from_json)

    @classmethod
    def _from_json(cls, plan: Mapping[str, Any]) -> RefinementPlan:
        rounds = [_by_size(some, dict) for some in plan["rounds"]]
        made = cls(rounds, conditions_from_json(plan["conditions"]))
        for part in (part for some in made.rounds for part in some.values()):
            Origin(part["origin"])
            SearchSpace.from_json(part["space"])
            for values in part["trials"]:
                for name, value in values.items():
                    number(name, value)
        return made


def _read(plan: Any, where: str, what: str, make: Callable[[Any], _T]) -> _T:
    try:
        if plan["format"] != _FORMAT:
            raise ValueError(f"got format {plan['format']!r}, wanted {_FORMAT}")
        return make(plan)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise ValueError(
            f"{where}: not the plan of {what} ({type(error).__name__}: {error}). "
            "Restore it from a copy, or call batchscale.repair(folder), which sets it aside."
        ) from error


def _whole(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise TypeError(f"got {value!r}, wanted a whole number")
    return value


def _by_size(table: Mapping[str, Any], make: Callable[[Any], Any]) -> dict[int, Any]:
    return {int(batch_size): make(value) for batch_size, value in table.items()}
