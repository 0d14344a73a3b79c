"""What a study of this library says of itself in the archive, beside the archive's own keys."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from batchscale.metrics import Goal
from batchscale.numeric import integer
from batchscale.plan import Definition, pace_from_json
from batchscale.scaling import Pace
from batchscale.stopping import Curves, Stop, StopRule


@dataclasses.dataclass(frozen=True)
class Own:
    """What `study.json` has no key for, of one batch size.

    Attributes:
      workload: its name.
      schedule: its name.
      goal: of the study.
      trials: feasible trials a batch size.
      max_infeasible: diverged trials that were replaced at most.
      max_steps: the budget.
      stop: when trials stopped.
      curves: whether evaluations are whole.
      evaluation_spacing: the relative distance of evaluations; NaN where there is no rule.
      seed: of plans and trials.
      train_examples: the size of the training set.
      pace: between which steps the schedule decides; None if nowhere.
      pace_known: whether that is known.
    """

    workload: str
    schedule: str
    goal: Goal
    trials: int
    max_infeasible: int
    max_steps: int
    stop: Stop
    curves: Curves
    evaluation_spacing: float
    seed: int
    train_examples: int
    pace: Pace | None
    pace_known: bool

    @classmethod
    def of(cls, definition: Definition, batch_size: int, paces: Mapping[int, Pace] | None) -> Own:
        """What a study says of itself at a batch size."""
        names = [field.name for field in dataclasses.fields(cls)]
        same = {name: getattr(definition, name) for name in names if hasattr(definition, name)}
        same |= {"max_steps": definition.max_steps[batch_size]}
        return cls(**same, pace=(paces or {}).get(batch_size), pace_known=paces is not None)

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        plain = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        spacing = self.evaluation_spacing
        pace = None if self.pace is None else dataclasses.asdict(self.pace)
        return plain | {
            "goal": dataclasses.asdict(self.goal),
            "evaluation_spacing": None if math.isnan(spacing) else spacing,
            "pace": pace,
        }

    @classmethod
    def from_json(cls, values: Any) -> Own:
        """From plain values.

        Raises:
          ValueError: they are not what `to_json` gives.
        """
        try:
            spacing = values["evaluation_spacing"]
            own = cls(
                **values
                | {
                    "goal": Goal(**values["goal"]),
                    "evaluation_spacing": math.nan if spacing is None else float(spacing),
                    "pace": None if values["pace"] is None else pace_from_json(values["pace"]),
                }
            )
            StopRule.of(own.stop)
            for name in ("workload", "schedule"):
                if not isinstance(getattr(own, name), str):
                    raise TypeError(f"{name}: got {getattr(own, name)!r}, wanted a name")
            for name in ("trials", "max_steps", "train_examples"):
                integer(name, getattr(own, name), 1)
            for name in ("max_infeasible", "seed"):
                integer(name, getattr(own, name), 0)
            if own.curves not in ("bounds", "exact") or not isinstance(own.pace_known, bool):
                raise ValueError(f"got curves {own.curves!r} and pace_known {own.pace_known!r}")
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ValueError(
                f"not what batchscale wrote ({type(error).__name__}: {error})."
            ) from error
        return own
