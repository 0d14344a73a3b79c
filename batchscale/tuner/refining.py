"""Where to search further: around the leading trials, and beyond an edge that they crowd."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float

from batchscale import given, numeric
from batchscale.records import Status
from batchscale.tuner.distributions import (
    Choice,
    Distribution,
    Integer,
    LogHalfLife,
    LogUniform,
    ReverseLogUniform,
    Uniform,
)
from batchscale.tuner.search_space import Dimension, SearchSpace, check_space

# Choices.
_MARGIN = 0.25  # of the box's width, on each side
_NARROWEST = 0.02  # of the range
_FURTHER, _FURTHEST = 2.0, 0.5  # beyond an edge: spreads of the leading trials, shares of the range
_OUTERMOST = 2  # trials: one of them leads where the optimum may be beyond the edge
_CONTINUOUS = LogUniform, ReverseLogUniform, LogHalfLife, Uniform
CROWDED = 0.05  # the chance, of all edges together, below which one is crowded


def refine(space: SearchSpace, trials: pd.DataFrame, *, leading: int = 5) -> SearchSpace:
    """The box around the leading trials of one batch size, within the space.

    Args:
      space: what they were drawn from, without functions of batch size.
      trials: their hyperparameters, and `first_crossing`, inf for those that diverged.
      leading: how many of them span the box; those that crossed first.

    Returns:
      A space with the same names: the box on the scale that each hyperparameter is drawn on, a
      quarter of its width wider on each side. A `Choice` keeps the values that lead.

    Raises:
      ValueError: fewer than two trials reached the goal.

    >>> space = SearchSpace(learning_rate=LogUniform(0.001, 10.0))
    >>> trials = pd.DataFrame(
    ...     {"learning_rate": [0.01, 0.1, 1.0, 8.0], "first_crossing": [90.0, 20, 50, np.inf]}
    ... )
    >>> found = refine(space, trials, leading=2)["learning_rate"]
    >>> round(found.low, 3), round(found.high, 3)
    (0.056, 1.778)
    """
    _check(space, trials, leading)
    return SearchSpace(
        **{
            name: _inside(dimension, name, trials, leading)
            if isinstance(dimension, Distribution)
            else dimension
            for name, dimension in space.items()
        }
    )


def expand(space: SearchSpace, trials: pd.DataFrame, *, leading: int = 5) -> SearchSpace | None:
    """The box around the leading trials, and beyond the edges of the space that they crowd.

    An edge is crowded where that is no chance: by `crowding`, corrected for the number of edges.
    Beyond it the box is twice as wide as the leading trials are spread, and at most half the range.

    Args:
      space: as for `refine`.
      trials: as for `refine`.
      leading: as for `refine`.

    Returns:
      The space, or None where no edge is crowded that has a beyond: a `Choice` and an `Integer`
      have none, and shares (a `Uniform` within [0, 1], a momentum) are not taken out of [0, 1].

    >>> space = SearchSpace(learning_rate=LogUniform(0.001, 1.0))
    >>> trials = pd.DataFrame(
    ...     {"learning_rate": [0.01, 0.1, 0.4, 0.9], "first_crossing": [90.0, 60, 30, 20]}
    ... )
    >>> expand(space, trials, leading=2)["learning_rate"].high > 1
    True
    """
    _check(space, trials, leading)
    box = dict(refine(space, trials, leading=leading).items())
    beyond = False
    edges = 2 * sum(isinstance(dimension, Distribution) for dimension in dict(space).values())
    for name, dimension in space.items():
        if not isinstance(dimension, _CONTINUOUS):
            continue
        low, high, width = _box(dimension, name, trials, leading)
        leads = trials.index.isin(_lead(trials, leading).index)
        chances = crowding(dimension, trials[name].to_numpy(np.float64), leads)
        crowded = {edge: edges * chance < CROWDED for edge, chance in chances.items()}
        if crowded["low"] or crowded["high"]:
            further = min(_FURTHER * width, _FURTHEST)
            wider = _between(
                dimension,
                -further if crowded["low"] else max(low, 0.0),
                1 + further if crowded["high"] else min(high, 1.0),
            )
            if wider.low < dimension.low or wider.high > dimension.high:
                beyond, box[name] = True, wider
    return SearchSpace(**box) if beyond else None


def looked_at(space: SearchSpace, trials: pd.DataFrame) -> pd.DataFrame:
    """The trials by which an edge is judged: with one hyperparameter also those that diverged.

    Where one hyperparameter is searched, trials that diverged beyond the leading ones say that the
    edge was looked at; they count as without a crossing. Where several are, another of them may be
    to blame.

    Args:
      space: what they were drawn from, without functions of batch size.
      trials: with `status` and `first_crossing`.

    >>> trials = pd.DataFrame({"status": ["complete", "infeasible"], "first_crossing": [9.0, 5.0]})
    >>> looked_at(SearchSpace(learning_rate=LogUniform(0.1, 1)), trials)["first_crossing"].tolist()
    [9.0, inf]
    """
    diverged = (trials["status"] == Status.INFEASIBLE).to_numpy()
    if sum(isinstance(dimension, Distribution) for dimension in dict(space).values()) > 1:
        return trials.loc[~diverged]
    return trials.assign(first_crossing=trials["first_crossing"].mask(diverged, np.inf))


def crowding(
    dimension: Distribution,
    values: Float[np.ndarray, " trials"],
    leads: Bool[np.ndarray, " trials"],
) -> dict[str, float]:
    """How likely it is by chance that the leading trials lie so near an edge of their range.

    Trials that lead for no reason of their place are spread over the range: the chance that all k
    of them lie within a share w of one edge is w^k. A narrow basin near an edge is told from one
    that goes beyond it by the two outermost trials, of which one leads only in the latter; where
    none does, the chance is 1.

    Args:
      dimension: what the values were drawn from; no `Choice`.
      values: of all trials, also those that diverged.
      leads: which of them lead; at least one.

    Returns:
      The chance, by edge: `low` and `high`.

    Raises:
      ValueError: a value is NaN, or none leads.

    >>> values = np.array([0.02, 0.3, 0.5, 0.7, 0.8, 0.9, 0.99])
    >>> found = crowding(Uniform(0.0, 1.0), values, values > 0.65)
    >>> round(found["high"], 4), found["low"]
    (0.0081, 1.0)
    """
    given.instance("dimension", dimension, Distribution, "a range, such as LogUniform(0.001, 10)")
    for name, array in (("values", values), ("leads", leads)):
        if np.ndim(array) != 1 or len(array) != len(values):
            raise ValueError(
                f"crowding: {name} has the shape {np.shape(array)}, wanted one a trial, as values."
            )
    place = dimension.unit(values)
    if np.isnan(place).any() or not leads.any():
        raise ValueError("crowding: wanted values without NaN, of which at least one leads.")
    chances = {}
    for edge, distance in (("low", place), ("high", 1 - place)):
        far = float(distance[leads].max())
        if isinstance(dimension, Integer):  # the share of its values that are no further
            steps = dimension.high - dimension.low
            far = (far * steps + 1) / (steps + 1)
        outermost = leads[np.argsort(distance)[:_OUTERMOST]].any()
        chances[edge] = min(far, 1.0) ** int(leads.sum()) if outermost else 1.0
    return chances


def spread(space: SearchSpace, trials: pd.DataFrame, *, leading: int = 5) -> float:
    """How far the leading trials are apart: the largest share of a range that they span.

    >>> space = SearchSpace(learning_rate=LogUniform(0.001, 10.0))
    >>> trials = pd.DataFrame({"learning_rate": [0.1, 1.0], "first_crossing": [20.0, 50.0]})
    >>> round(spread(space, trials), 3)
    0.25
    """
    _check(space, trials, leading)
    widths = [
        _box(dimension, name, trials, leading)[2]
        for name, dimension in space.items()
        if isinstance(dimension, Distribution) and not isinstance(dimension, Choice)
    ]
    return max(widths, default=0.0)


def united(space: SearchSpace, other: SearchSpace) -> SearchSpace:
    """The space that holds both; of what has no bounds the first.

    >>> a, b = SearchSpace(x=Uniform(0.0, 1.0)), SearchSpace(x=Uniform(0.5, 2.0))
    >>> united(a, b)["x"]
    Uniform(low=0.0, high=2.0)
    """
    dimensions: dict[str, Dimension] = {}
    for name, dimension in space.items():
        beside = other[name]
        dimensions[name] = dimension
        for kind in _CONTINUOUS:
            if isinstance(dimension, kind) and isinstance(beside, kind):
                low, high = min(dimension.low, beside.low), max(dimension.high, beside.high)
                dimensions[name] = kind(low, high)
    return SearchSpace(**dimensions)


def _check(space: SearchSpace, trials: pd.DataFrame, leading: int) -> None:
    """Refuses what is no space, no table of its trials, or no number of them."""
    check_space(space)
    given.frame("trials", trials, "a table of trials", ["first_crossing", *space.searched])
    numeric.integer("leading", leading, 1)


def _lead(trials: pd.DataFrame, leading: int) -> pd.DataFrame:
    reached = trials.loc[np.isfinite(trials["first_crossing"])]
    if len(reached) < 2:
        raise ValueError(
            f"refine: {len(reached)} trials reached the goal, wanted at least 2 of a batch size. "
            "Train past the first crossing with study.extend(folder, stop=3.0), or search more."
        )
    return reached.sort_values("first_crossing", kind="stable").head(leading)


def _box(
    dimension: Distribution, name: str, trials: pd.DataFrame, leading: int
) -> tuple[float, float, float]:
    """Where the leading trials are, as shares of the range, with the margin; and their spread."""
    places = dimension.unit(_lead(trials, leading)[name].to_numpy(np.float64))
    width = max(float(places.max() - places.min()), _NARROWEST)
    return float(places.min()) - _MARGIN * width, float(places.max()) + _MARGIN * width, width


def _inside(dimension: Distribution, name: str, trials: pd.DataFrame, leading: int) -> Dimension:
    if isinstance(dimension, Choice):
        lead = set(_lead(trials, leading)[name])
        kept = [v for v in dimension.to_json()["values"] if v in lead]
        return Choice(kept) if len(kept) > 1 else kept[0]
    low, high, _ = _box(dimension, name, trials, leading)
    return _between(dimension, max(low, 0.0), min(high, 1.0))


def _between(dimension: Distribution, low: float, high: float) -> Any:
    """The same kind of distribution between two places, which may be beyond 0 and 1."""
    if isinstance(dimension, LogUniform):
        ratio = dimension.high / dimension.low
        return LogUniform(dimension.low * ratio**low, dimension.low * ratio**high)
    if isinstance(dimension, ReverseLogUniform):
        start, ratio = 1 - dimension.low, (1 - dimension.high) / (1 - dimension.low)
        return ReverseLogUniform(max(1 - start * ratio**low, 0.0), 1 - start * ratio**high)
    if isinstance(dimension, LogHalfLife):
        start, end = -math.log(dimension.low), -math.log(dimension.high)
        rates = (start * (end / start) ** place for place in (low, high))
        return LogHalfLife(*(math.exp(-rate) for rate in rates))
    assert isinstance(dimension, Integer | Uniform)
    span = dimension.high - dimension.low
    ends = dimension.low + low * span, dimension.low + high * span
    if isinstance(dimension, Uniform):
        share = dimension.low >= 0 and dimension.high <= 1
        least = 0.0 if dimension.low >= 0 else -np.inf
        return Uniform(max(ends[0], least), min(ends[1], 1.0 if share else np.inf))
    first, last = round(ends[0]), round(ends[1])
    return Integer(first, last) if first < last else first
