"""Studies beside each other: ratios of critical batch sizes and of steps, with intervals."""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from batchscale import columns, display, scaling
from batchscale.confirmation import Confirmation
from batchscale.measurement import Measurement
from batchscale.numeric import short
from batchscale.recommending import Answer, audited
from batchscale.result import Result

_SHOWN = {
    "measured": "medians of the best settings, measured by one design",
    "confirmed": "medians of the tuned settings under fresh seeds",
    "best of N": "the best of N trials, which is luckier the more trials there are",
}
_TABLE = (
    *("name", "shows", "b_crit", "b_crit_low", "b_crit_high"),
    *("fewest_steps", "fewest_steps_low", "fewest_steps_high", "why", "audit"),
)
_CONFIDENCE = 0.9  # of the intervals of curves, and of all that results and measurements say
_RATIOS = ("of", "first", "second", "ratio", "ratio_low", "ratio_high", "differ")


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Studies of one goal beside each other.

    Attributes:
      table: one row a study: `name`; what it `shows`: `measured`, `confirmed` or `best of N`; its
        critical batch size `b_crit` from `b_crit_low` to `b_crit_high`, and the `fewest_steps` of
        its curve likewise; `why` no critical batch size is quoted, if none is; and what its `audit`
        says, in a few words, empty of a confirmation alone.
      ratios: one row a pair and quantity: `of`, `b_crit`, `fewest_steps`, or `steps at` a batch
        size that both have; `first` over `second`, names; the `ratio` with its ends `ratio_low` and
        `ratio_high`; and whether they `differ`: whether the interval is without 1.
      steps: by name, the steps to target of each batch size, with `low` and `high` where they are
        known.
      fits: by name, the curves.
      goal: of all of them, in words.
      confidence: of the intervals.
    """

    table: pd.DataFrame
    ratios: pd.DataFrame
    steps: Mapping[str, pd.DataFrame]
    fits: Mapping[str, scaling.Fit]
    goal: str
    confidence: float

    def __str__(self) -> str:
        shown = dict(zip(self.table["name"], self.table["shows"], strict=True))
        return "\n".join(
            [
                f"Steps to {self.goal}",
                *(f"{name}: {_SHOWN[kind]}" for name, kind in shown.items()),
                self.table.drop(columns=["shows", "why", "audit"]).to_string(
                    index=False, float_format=display.cell
                ),
                *(
                    f"{name}: {words}"
                    for column in ("why", "audit")
                    for name, words in self.table[["name", column]].to_numpy()
                    if words
                ),
                *(self._sentence(row) for row in self.ratios.to_dict("records")),
            ]
        )

    def __repr__(self) -> str:
        return f"Comparison({', '.join(self.table['name'])}; {self.goal})"

    def _repr_html_(self) -> str:
        return display.page(f"Steps to {self.goal}", self.table) + display.page("", self.ratios)

    def _sentence(self, row: Mapping[Any, Any]) -> str:
        if not math.isfinite(row["ratio"]):
            return f"{row['of']}: {row['first']} over {row['second']} is not known"
        ends = f"{short(row['ratio_low'])} to {short(row['ratio_high'])}"
        verdict = "they differ" if row["differ"] else "no difference is shown"
        return (
            f"{row['of']}: {row['first']} over {row['second']} is {short(row['ratio'])} ({ends}); "
            f"{verdict}"
        )


def compare(studies: Mapping[str, Any]) -> Comparison:
    """Compares studies of one goal: critical batch sizes, fewest steps, and steps.

    Of a result the confirmed medians are used where there are any; each says what it shows.
    Intervals of ratios are those of two independent estimates, by their own intervals in logs,
    each end from the nearer ends of the two (Zou and Donner 2008, Statistics in Medicine 27).

    Args:
      studies: by name: results, confirmations, measurements, answers, or results of an archive.

    Raises:
      TypeError: something else is among them.
      ValueError: there are fewer than two, or their goals differ.

    >>> import pandas as pd
    >>> compare({"one": None})
    Traceback (most recent call last):
    ValueError: compare: got 1 study, wanted two or more by name: {"momentum": found, "adamw": ...}.
    """
    if not isinstance(studies, Mapping) or len(studies) < 2:
        got = f"{len(studies)} study" if isinstance(studies, Mapping) else type(studies).__name__
        raise ValueError(
            f'compare: got {got}, wanted two or more by name: {{"momentum": found, "adamw": ...}}.'
        )
    for name in studies:
        columns.check_label("compare: a study", name)
    goals = {name: str(_goal(name, found)) for name, found in studies.items()}
    if len(set(goals.values())) > 1:
        listed = "; ".join(f"{name}: {goal}" for name, goal in goals.items())
        raise ValueError(
            f"compare: the goals differ ({listed}), and steps and critical batch sizes belong to a "
            "goal. Compare results at one goal: result.confirmation(goal), or measure again."
        )
    parts = {name: _part(found) for name, found in studies.items()}
    if len(set(parts.values())) > 1:
        listed = "; ".join(f"{name}: {part or 'all of it'}" for name, part in parts.items())
        raise ValueError(
            f"compare: goals are decided on other examples ({listed}), which makes other goals. "
            "Answer both with the same goal=Goal(...), which is decided on the whole split."
        )
    for name, found in studies.items():
        if isinstance(found, Confirmation) and found.confidence != _CONFIDENCE:
            raise ValueError(
                f"compare: the intervals of the confirmation {name!r} are at "
                f"{found.confidence:.4g}, and those of curves at {_CONFIDENCE}. Take "
                "result.confirmation(goal) as it is."
            )
    kinds, steps, fits = {}, {}, {}
    for name, found in studies.items():
        kinds[name], steps[name], fits[name] = _of(name, found)
    audits = {
        name: audited(found.audit()) if hasattr(found, "audit") else ""
        for name, found in studies.items()
    }
    rows = [
        (
            name, kinds[name], fit.b_crit, *fit.b_crit_interval, fit.s_min, *fit.s_min_interval,
            fit.refused, audits[name],
        )
        for name, fit in fits.items()
    ]  # fmt: skip
    ratios = [
        row
        for first, second in itertools.combinations(studies, 2)
        for row in _ratios(first, second, steps, fits)
    ]
    return Comparison(
        pd.DataFrame(rows, columns=list(_TABLE)),
        pd.DataFrame(ratios, columns=list(_RATIOS)),
        steps,
        fits,
        next(iter(goals.values())),
        _CONFIDENCE,
    )


def _goal(name: str, found: Any) -> Any:
    """The goal of a study; refuses what has none."""
    if (goal := getattr(found, "goal", None)) is not None:
        return goal
    if isinstance(found, Confirmation):
        raise ValueError(
            f"compare: the goal of the confirmation {name!r} is not known. Take "
            "result.confirmation(goal), or replace its field `goal`."
        )
    raise TypeError(
        f"compare: {name!r} is a {type(found).__name__}, wanted a result, a confirmation, a "
        "measurement or an answer."
    )


def _part(found: Any) -> str:
    """On which part of its split the goal of an answer is decided; empty where on all of it."""
    named = getattr(found, "measurement", found) if isinstance(found, Answer) else found
    part = re.search(r"\((\d[\d,]* of \w+)\)", str(getattr(named, "name", "")))
    return "" if part is None else part[1]


def _of(name: str, found: Any) -> tuple[str, pd.DataFrame, scaling.Fit]:
    """What is shown of a study: its kind, its steps and its curve."""
    if isinstance(found, Answer):
        found = found.measurement
    if isinstance(found, Measurement):
        return "measured", found.table[["batch_size", "steps", "low", "high"]], found.scaling()
    if isinstance(found, Result):
        confirmed = found.confirmed()
        if confirmed is None:
            return "best of N", found.steps_to_target()[["batch_size", "steps"]], found.scaling()
        found = confirmed
    if isinstance(found, Confirmation):
        table = found.table.loc[found.table["steps"].notna()]
        return "confirmed", table[["batch_size", "steps", "low", "high"]], found.scaling()
    raise TypeError(
        f"compare: {name!r} is a {type(found).__name__}, wanted a result, a confirmation, a "
        "measurement or an answer."
    )


def _ratios(
    first: str, second: str, steps: Mapping[str, pd.DataFrame], fits: Mapping[str, scaling.Fit]
) -> list[tuple[Any, ...]]:
    one, other = fits[first], fits[second]
    rows: list[tuple[Any, ...]] = [
        ("b_crit", first, second, *_ratio(_b_crit(one), _b_crit(other))),
        ("fewest_steps", first, second, *_ratio(_fewest(one), _fewest(other))),
    ]
    both = steps[first].merge(steps[second], on="batch_size", suffixes=("", "_second"))
    if "low" in both and "low_second" in both:
        for row in both.to_dict("records"):
            ends = [
                (row[f"steps{end}"], row[f"low{end}"], row[f"high{end}"]) for end in ("", "_second")
            ]
            rows.append((f"steps at {row['batch_size']}", first, second, *_ratio(*ends)))
    return rows


def _b_crit(fit: scaling.Fit) -> tuple[float, float, float]:
    low, high = fit.b_crit_interval
    return fit.b_crit, low, high


def _fewest(fit: scaling.Fit) -> tuple[float, float, float]:
    low, high = fit.s_min_interval
    return fit.s_min, low, high


def _ratio(
    first: tuple[float, float, float], second: tuple[float, float, float]
) -> tuple[float, float, float, bool]:
    """A ratio of two estimates with intervals, its interval, and whether that is without 1.

    >>> [round(float(end), 3) for end in _ratio((20, 10, 40), (10, 10, 10))]
    [2.0, 1.0, 4.0, 0.0]
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        (one, low, high), (two, low_two, high_two) = np.log([first, second])
        away = one - two
        below = away - math.hypot(one - low, high_two - two)
        above = away + math.hypot(high - one, two - low_two)
    if not math.isfinite(away):
        return math.nan, 0.0, math.inf, False
    with np.errstate(over="ignore"):
        ends = float(np.exp(below)), float(np.exp(above))
    return math.exp(away), *ends, bool(below > 0 or above < 0)
