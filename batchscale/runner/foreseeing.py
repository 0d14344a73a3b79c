"""When trials that have not run are likely to reach the goal, by what is known of others."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

# Choices.
LUCK = 1.25
"""The steps of a setting under a fresh seed, over those of the search, of whose trials it led."""
_REACHING, _LATEST = 0.5, 3.0  # of trials of which nothing is known: so many cross, by so far


def first_crossings(known: Mapping[int, float], sizes: Sequence[int]) -> dict[int, float]:
    """Steps to the goal at batch sizes, by those of others: `steps = s (1 + b / batch_size)`.

    Where one alone is known, its batch size is taken for the critical one.

    Args:
      known: steps by batch size; those that are not finite, or 0, say nothing.
      sizes: of which steps are wanted; those that are known stay as they are.

    Returns:
      Steps by batch size; nothing where nothing is known.

    >>> first_crossings({1: 330.0, 10: 60.0, 100: 33.0}, [10, 30])
    {10: 60.0, 30: 40.0}
    >>> first_crossings({8: 100.0}, [4])
    {4: 150.0}
    """
    some = {size: steps for size, steps in known.items() if 0 < steps < math.inf}
    if not some:
        return {}
    at, steps = np.array([*some], float), np.array([*some.values()], float)
    critical = float(at[0])
    if len(some) > 1:
        grid = np.geomspace(at.min() / 8, 8 * at.max(), 1_000)
        critical = float(grid[np.log(steps / (1 + grid[:, None] / at)).var(axis=1).argmin()])
    plateau = math.exp(np.log(steps / (1 + critical / at)).mean())
    return {size: some.get(size, float(f"{plateau * (1 + critical / size):.3g}")) for size in sizes}


def of_search(
    first: float, trials: int, pattern: Sequence[float] | None = None
) -> dict[int, float]:
    """When the trials of a search cross, whose first is known to.

    Args:
      first: the steps of that.
      trials: how many there are.
      pattern: the crossings of the trials of another batch size over its first, by number: the
        settings of trials of one number are alike. Without it, half of the trials are assumed to
        cross, evenly until three times the first.

    >>> of_search(100, 4)
    {0: 100.0, 1: 300.0}
    >>> of_search(100, 3, [2.0, math.inf, 1.0])
    {0: 200.0, 2: 100.0}
    """
    if pattern is None:
        many = max(round(_REACHING * trials), 1)
        return {n: float(first * x) for n, x in enumerate(np.linspace(1.0, _LATEST, many))}
    found = {n: first * ratio for n, ratio in enumerate(pattern[:trials])}
    return {n: steps for n, steps in found.items() if math.isfinite(steps)}


def pattern_of(trials: pd.DataFrame, first: float, count: int) -> list[float]:
    """The crossings of the trials of a batch size over its first, by number, as far as they ran.

    Args:
      trials: of the search of the batch size.
      first: steps of its first crossing.
      count: of trials.
    """
    crossings = trials["first_crossing"].droplevel(["batch_size", "replicate"])
    return (crossings.reindex(range(count)).fillna(math.inf) / first).tolist()
