"""The plan of a study: what is measured, and every trial's hyperparameters, as JSON.

It is on disk before anything runs, and what is on disk is the truth: a study that goes on later
reads its hyperparameters and layouts from there.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from fractions import Fraction
from typing import Any

import scipy

from batchscale import records, tuner
from batchscale.engine.layout import Layout
from batchscale.evaluate import Evaluate
from batchscale.metrics import Goal
from batchscale.records import Origin
from batchscale.scaling import Pace
from batchscale.stopping import Curves, Stop, StopRule, evaluation_grid
from batchscale.tuner import SearchSpace
from batchscale.tuner.distributions import number

_FORMAT = 3
DRAWN_WITH = f"scipy {scipy.__version__}"
"""What trials are drawn with here."""


@dataclasses.dataclass(frozen=True)
class Definition:
    """What a study measures, in plain values.

    Attributes:
      workload: its name.
      optimizer: its name.
      schedule: its name.
      goal: the metric, its value and its direction.
      spaces: the search space of every batch size.
      trials: feasible trials a batch size.
      max_infeasible: diverged trials that are replaced at most, a batch size.
      max_steps: the budget of every batch size.
      earlier_budgets: smaller budgets of the same study before it was extended.
      stop: when trials stop.
      curves: whether evaluations are whole, or end when they are decided.
      evaluation_spacing: the relative distance of evaluations.
      seed: of plans and trials.
      train_examples: the size of the training set.
      evaluate: what is measured besides the goal's split.
    """

    workload: str
    optimizer: str
    schedule: str
    goal: Goal
    spaces: Mapping[int, SearchSpace]
    trials: int
    max_infeasible: int
    max_steps: Mapping[int, int]
    earlier_budgets: Mapping[int, tuple[int, ...]]
    stop: Stop
    curves: Curves
    evaluation_spacing: float
    seed: int
    train_examples: int
    evaluate: Evaluate = dataclasses.field(default_factory=Evaluate)

    @property
    def batch_sizes(self) -> list[int]:
        """The batch sizes, in order."""
        return sorted(self.spaces)

    def of_sizes(self, batch_sizes: Collection[int]) -> Definition:
        """The same study of some of its batch sizes."""

        def kept(table: Mapping[int, Any]) -> dict[int, Any]:
            return {size: value for size, value in table.items() if size in batch_sizes}

        return dataclasses.replace(
            self,
            spaces=kept(self.spaces),
            max_steps=kept(self.max_steps),
            earlier_budgets=kept(self.earlier_budgets),
        )

    def grid(self, batch_size: int) -> list[int]:
        """The steps at which trials are evaluated, the ends of earlier budgets among them."""
        return evaluation_grid(
            self.max_steps[batch_size],
            self.evaluation_spacing,
            budgets=self.earlier_budgets.get(batch_size, ()),
        )

    def differences(self, other: Definition) -> list[str]:
        """What makes two definitions different studies, in words; not what an extension changes."""
        names = ("workload", "optimizer", "schedule", "goal", "evaluation_spacing", "seed")
        found = [
            f"{name}: {getattr(self, name)} there, {getattr(other, name)} here"
            for name in (*names, "train_examples", "evaluate")
            if getattr(self, name) != getattr(other, name)
        ]
        spaces = [
            batch_size
            for batch_size in self.batch_sizes
            if batch_size in other.spaces and self.spaces[batch_size] != other.spaces[batch_size]
        ]
        if spaces:
            found.append(
                f"space at batch size {', '.join(map(str, spaces))}: "
                f"{self.spaces[spaces[0]]} there, {other.spaces[spaces[0]]} here"
                f"{' at the first of them' if len(spaces) > 1 else ''}"
            )
        return found

    def lacks(self, other: Definition) -> list[str]:
        """What the other study has more of, in words: what an extension would add."""
        found = []
        missing = sorted(set(other.spaces) - set(self.spaces))
        if missing:
            found.append(f"batch_sizes: {', '.join(map(str, missing))} are not there")
        if other.trials > self.trials:
            found.append(f"trials: {self.trials} there, {other.trials} here")
        elif other.max_infeasible > self.max_infeasible:  # its default grows with the trials
            found.append(
                f"max_infeasible: {self.max_infeasible} there, {other.max_infeasible} here"
            )
        if not StopRule.of(self.stop).covers(StopRule.of(other.stop)):
            found.append(f"stop: {self.stop!r} there, {other.stop!r} here")
        if other.curves == "exact" != self.curves:
            found.append("curves: 'bounds' there, 'exact' here")
        for batch_size in self.batch_sizes:
            there, here = self.max_steps[batch_size], other.max_steps.get(batch_size, 0)
            if here > there:
                found.append(f"max_steps at batch size {batch_size}: {there} there, {here} here")
        return found

    def extended(self, other: Definition) -> Definition:
        """The study that has what both have; of stop rules the longer, else the other's."""
        budgets = dict(self.earlier_budgets)
        max_steps = {**other.max_steps, **self.max_steps}
        for batch_size, former in self.max_steps.items():
            if other.max_steps.get(batch_size, 0) > former:
                budgets[batch_size] = (*budgets.get(batch_size, ()), former)
                max_steps[batch_size] = other.max_steps[batch_size]
        return dataclasses.replace(
            self,
            spaces={**self.spaces, **other.spaces},
            trials=max(self.trials, other.trials),
            max_infeasible=max(self.max_infeasible, other.max_infeasible),
            max_steps=max_steps,
            earlier_budgets=budgets,
            stop=self.stop
            if StopRule.of(self.stop).covers(StopRule.of(other.stop))
            else other.stop,
            curves="exact" if "exact" in (self.curves, other.curves) else "bounds",
        )


@dataclasses.dataclass
class Plan:
    """A definition, how its trials are packed, and every trial that may run.

    Attributes:
      definition: what is measured.
      layouts: how trials are packed, by batch size.
      fingerprint: what the data and the program hash to.
      rows: by batch size, a mapping for every trial: its hyperparameters, and why it is there.
      examples: of every split.
      paces: between which steps the schedule decides when a goal is reached, by batch size, where
        it does; None if it is not known.
      mixes_examples: whether the loss of an example depends on the others of its batch; None if it
        is not known.
      ghost_batch_size: where it depends on those of its group alone, the examples of a group.
      measured: how many examples are measured of every split that is.
      counted: of how many the goal's metric counts some where it is measured: examples, or words
        or pixels of them; None if it is no count.
      measured_from: by batch size, the step from which on each split besides the goal's is.
      conditions: what each batch size was run under, as `records.conditions` says it: where it
        began, and where it went on otherwise.
      drawn_with: the versions of SciPy that drew the trials.
      findings: by batch size, what was found out about its layout before the first step, if
        anything was.
    """

    definition: Definition
    fingerprint: Mapping[str, str]
    layouts: dict[int, Layout] = dataclasses.field(default_factory=dict)
    rows: dict[int, list[dict[str, Any]]] = dataclasses.field(default_factory=dict)
    mixes_examples: bool | None = None
    examples: dict[str, int] = dataclasses.field(default_factory=dict)
    paces: dict[int, Pace] | None = None
    measured: dict[str, int] = dataclasses.field(default_factory=dict)
    counted: int | None = None
    measured_from: dict[int, dict[str, int]] = dataclasses.field(default_factory=dict)
    conditions: dict[int, list[dict[str, Any]]] = dataclasses.field(default_factory=dict)
    drawn_with: str = DRAWN_WITH
    findings: dict[int, str] = dataclasses.field(default_factory=dict)
    ghost_batch_size: int | None = None

    @property
    def batch_dependent(self) -> bool | None:
        """Whether batch sizes have other objectives: examples seen with more or fewer others."""
        if not self.mixes_examples:
            return self.mixes_examples
        seen = {
            tuple(_seen_with(size, (layout.microbatch, self.ghost_batch_size or size)).items())
            for size, layout in self.layouts.items()
        }
        return len(seen) > 1

    def planned(self, batch_size: int) -> list[Mapping[str, float]]:
        """The hyperparameters of the trials of the search itself, without replacements."""
        return [
            row["hyperparameters"] for row in self.rows[batch_size] if row["origin"] == Origin.PLAN
        ]

    def others(self, batch_size: int, grid: list[int], *, bounds: bool) -> dict[str, set[int]]:
        """The steps at which splits besides the goal's are measured, by name."""
        return {
            split: self.definition.evaluate.steps(split, grid, first=first, bounds=bounds)
            for split, first in self.measured_from[batch_size].items()
        }

    def begun_under_other(self, here: Mapping[str, Any], name: str) -> list[int]:
        """The batch sizes that were last run under another condition of a name than here."""
        return [size for size, found in self.conditions.items() if found[-1][name] != here[name]]

    def extend(self, batch_size: int, count: int, origin: Origin) -> bool:
        """Makes sure that a batch size has `count` trials; says whether it had fewer."""
        rows = self.rows.setdefault(batch_size, [])
        if len(rows) >= count:
            return False
        if DRAWN_WITH not in self.drawn_with.split(", "):
            self.drawn_with += f", {DRAWN_WITH}"
        table = tuner.plan(
            self.definition.spaces[batch_size],
            batch_size=batch_size,
            trials=count,
            seed=self.definition.seed,
        )
        for values in table.iloc[len(rows) :].to_dict("records"):
            rows.append({"origin": str(origin), "hyperparameters": values})
        return True

    def only(self, batch_size: int) -> Plan:
        """The plan of one of its batch sizes alone; what is changed in it is not changed here."""
        return dataclasses.replace(
            self,
            definition=self.definition.of_sizes([batch_size]),
            layouts={b: layout for b, layout in self.layouts.items() if b == batch_size},
            rows={b: [*rows] for b, rows in self.rows.items() if b == batch_size},
            examples=dict(self.examples),
            paces=None
            if self.paces is None
            else {b: pace for b, pace in self.paces.items() if b == batch_size},
            measured=dict(self.measured),
            measured_from={b: dict(of) for b, of in self.measured_from.items() if b == batch_size},
            conditions={b: [*found] for b, found in self.conditions.items() if b == batch_size},
            findings={b: found for b, found in self.findings.items() if b == batch_size},
        )

    def to_json(self) -> dict[str, Any]:
        """The plan as plain values."""
        definition = self.definition
        fields = {f.name: getattr(definition, f.name) for f in dataclasses.fields(definition)}
        return {
            "format": _FORMAT,
            "study": fields
            | {
                "goal": dataclasses.asdict(definition.goal),
                "spaces": {str(b): space.to_json() for b, space in definition.spaces.items()},
                "max_steps": {str(b): steps for b, steps in definition.max_steps.items()},
                "earlier_budgets": {
                    str(b): list(steps) for b, steps in definition.earlier_budgets.items()
                },
                "evaluate": definition.evaluate.to_json(),
            },
            "fingerprint": dict(self.fingerprint),
            "mixes_examples": self.mixes_examples,
            "ghost_batch_size": self.ghost_batch_size,
            "examples": self.examples,
            "paces": None
            if self.paces is None
            else {str(b): dataclasses.asdict(pace) for b, pace in self.paces.items()},
            "measured": self.measured,
            "counted": self.counted,
            "measured_from": {str(b): first for b, first in self.measured_from.items()},
            "conditions": {str(b): found for b, found in self.conditions.items()},
            "drawn_with": self.drawn_with,
            "findings": {str(b): found for b, found in self.findings.items()},
            "layouts": {str(b): layout._asdict() for b, layout in self.layouts.items()},
            "trials": {str(b): rows for b, rows in self.rows.items()},
        }

    @classmethod
    def from_json(cls, plan: Any, where: str = "plan.json") -> Plan:
        """The plan again.

        Args:
          plan: what `to_json` gave.
          where: the file that it was in, for errors.

        Raises:
          ValueError: it is no plan, or was written by a version that this one does not understand.
        """
        if not isinstance(plan, dict):
            raise ValueError(f"{where}: not the plan of a study, but {type(plan).__name__}.")
        if plan.get("format") != _FORMAT:
            raise ValueError(
                f"{where}: got format {plan.get('format')!r}, wanted {_FORMAT}. "
                "It was written by another version of batchscale: open it with that one, or run "
                "the study again in another folder."
            )
        try:
            return cls._from_json(plan)
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            raise ValueError(
                f"{where}: not the plan of a study ({type(error).__name__}: {error}). "
                "Restore it from a copy."
            ) from error

    @classmethod
    def _from_json(cls, plan: dict[str, Any]) -> Plan:
        study = plan["study"]
        definition = Definition(
            **study
            | {
                "goal": Goal(**study["goal"]),
                "spaces": _by_size(study["spaces"], SearchSpace.from_json),
                "max_steps": _by_size(study["max_steps"], _whole),
                "earlier_budgets": _by_size(
                    study["earlier_budgets"], lambda steps: tuple(map(_whole, steps))
                ),
                "evaluation_spacing": number("evaluation_spacing", study["evaluation_spacing"]),
                "evaluate": Evaluate.from_json(study["evaluate"]),
            }
        )
        for name in ("trials", "max_infeasible", "seed", "train_examples"):
            _whole(getattr(definition, name))
        for name in ("workload", "optimizer", "schedule"):
            if not isinstance(getattr(definition, name), str):
                raise TypeError(f"{name}: got {getattr(definition, name)!r}, wanted a name")
        StopRule.of(definition.stop)
        if definition.curves not in ("bounds", "exact"):
            raise ValueError(f"curves: got {definition.curves!r}")
        if set(definition.max_steps) != set(definition.spaces) or not definition.spaces:
            raise ValueError("max_steps and spaces: not of the same batch sizes")
        fingerprint = {name: str(plan["fingerprint"][name]) for name in plan["fingerprint"]}
        rows = _by_size(plan["trials"], list)
        for row in (row for some in rows.values() for row in some):
            Origin(row["origin"])
            for name, value in row["hyperparameters"].items():
                number(name, value)
        return cls(
            definition,
            fingerprint,
            _by_size(plan["layouts"], lambda layout: Layout(**layout)),
            rows,
            plan["mixes_examples"],
            {str(split): _whole(size) for split, size in plan["examples"].items()},
            None if plan["paces"] is None else _by_size(plan["paces"], pace_from_json),
            {str(split): _whole(size) for split, size in plan["measured"].items()},
            None if plan["counted"] is None else _whole(plan["counted"]),
            _by_size(
                plan["measured_from"],
                lambda first: {str(split): _whole(step) for split, step in first.items()},
            ),
            records.conditions_from_json(plan["conditions"]),
            str(plan["drawn_with"]),
            _by_size(plan["findings"], str),
            # A choice of the same format: older plans have none.
            None if plan.get("ghost_batch_size") is None else _whole(plan["ghost_batch_size"]),
        )


def _seen_with(batch_size: int, parts: Sequence[int]) -> dict[int, Fraction]:
    """The share of the examples of a batch that are seen with how many, themselves among them.

    Args:
      batch_size: examples a step.
      parts: the batch is cut into parts of the first size, these into parts of the next, and so on;
        what remains is a smaller part.

    >>> _seen_with(100, (64, 32))
    {4: Fraction(1, 25), 32: Fraction(24, 25)}
    """
    if not parts:
        return {batch_size: Fraction(1)}
    shares: dict[int, Fraction] = {}
    part = min(parts[0], batch_size)
    for size, times in ((part, batch_size // part), (batch_size % part, 1)):
        if size:
            for seen, share in _seen_with(size, parts[1:]).items():
                of_all = share * size * times / batch_size
                shares[seen] = shares.get(seen, Fraction(0)) + of_all
    return dict(sorted(shares.items()))


def pace_from_json(fields: Mapping[str, Any]) -> Pace:
    """A pace from its fields as plain values.

    Raises:
      KeyError, TypeError, ValueError: they are none.

    >>> pace_from_json({"rises_until": 0, "falls": [250, 1000], "known_until": None})
    Pace(rises_until=0, falls=(250, 1000), known_until=None)
    """
    falls = fields["falls"]
    known = fields["known_until"]
    return Pace(
        _whole(fields["rises_until"]),
        None if falls is None else (_whole(falls[0]), _whole(falls[1])),
        None if known is None else _whole(known),
    )


def _whole(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise TypeError(f"got {value!r}, wanted a whole number")
    return value


def _by_size(table: Mapping[str, Any], make: Any) -> dict[int, Any]:
    return {int(batch_size): make(value) for batch_size, value in table.items()}
