"""The fewest steps to a target where the risk swings: with momentum, all steps of many rates."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Protocol

import numpy as np
from jaxtyping import Float

from batchscale.theory._moments import Leap, begun

_RATES = 480, 20_000  # how many are followed, at least and at most
_WORK = 4e6  # of coordinates and steps, over all rates
_BEST, _CLOSE = 8, 21  # how many are looked at closer, and how many rates about each
_LOWEST, _NEAREST = math.log(1e5), 1e-4  # below the largest stable rate, in logs


class Quadratic(Protocol):
    """What is read of a noisy quadratic model."""

    @property
    def curvature(self) -> Float[np.ndarray, " coordinates"]:
        """The curvature h of every coordinate."""
        ...

    @property
    def noise(self) -> Float[np.ndarray, " coordinates"]:
        """The variance of the gradient of one example."""
        ...

    @property
    def start(self) -> Float[np.ndarray, " coordinates"]:
        """theta^2 before the first step."""
        ...


def fewest(
    model: Quadratic,
    target: float,
    limit: float,
    batch_size: int,
    last: int,
    options: Mapping[str, float],
) -> tuple[float, float]:
    """The fewest steps up to the last, each of which is looked at, and their rate.

    Args:
      model: whose risk it is.
      target: the risk to come below.
      limit: the log of the largest stable rate.
      batch_size: examples a step.
      last: the last step that is looked at.
      options: momentum, averaging and preconditioning.

    Returns:
      Steps and rate; (inf, nan) if no rate comes below the target.
    """
    if last < 1:
        return math.inf, math.nan
    many = int(np.clip(_WORK / (len(model.start) * last), *_RATES)) // 2
    decade = limit - math.log(10)  # where fewest steps are taken: half of the rates
    ends = limit - _LOWEST, limit - _NEAREST
    grid = [np.linspace(ends[0], decade, many, endpoint=False), np.linspace(decade, ends[1], many)]
    logs = np.concatenate(grid)
    steps = _followed(model, target, np.exp(logs), batch_size, last, options)
    if np.isinf(steps).all():
        return math.inf, math.nan
    apart = (ends[1] - decade) / many
    for scale in (1.0, 0.1):  # about the best, ever closer
        near = logs[np.argsort(steps, kind="stable")[:_BEST]]
        some = (near[:, None] + scale * apart * np.linspace(-1, 1, _CLOSE)).ravel()
        some = some[some < limit]
        more = _followed(model, target, np.exp(some), batch_size, last, options)
        logs, steps = np.concatenate([logs, some]), np.concatenate([steps, more])
    best = int(np.argmin(steps))
    return float(steps[best]), float(np.exp(logs[best]))


def _followed(
    model: Quadratic,
    target: float,
    rates: Float[np.ndarray, " rates"],
    batch_size: int,
    last: int,
    options: Mapping[str, float],
) -> Float[np.ndarray, " rates"]:
    """The first step of each rate below a target, up to the first of any; inf of the others."""
    beta, averaging = (options.get(name, 0.0) for name in ("momentum", "averaging"))
    many, coordinates = len(rates), len(model.start)
    leap = Leap(
        np.tile(model.curvature, many),
        np.tile(model.noise, many),
        np.repeat(rates, coordinates),
        batch_size,
        beta,
        averaging,
        options.get("preconditioning", 0.0),
    )
    moments = begun(model.start, beta, averaging, many)
    watched = -1 if averaging else 0
    found = np.full(many, np.inf)
    with np.errstate(over="ignore", invalid="ignore"):
        for step in range(1, last + 1):
            moments = leap.take(moments, 1)
            squares = moments[:, watched, watched].reshape(many, coordinates)
            below = 0.5 * squares @ model.curvature < target
            found[below] = step
            if below.any():
                break  # the others need more
    return found
