"""The plan: the hyperparameters of every trial, written down before anything runs."""

from __future__ import annotations

import numpy as np
import pandas as pd
import scipy

from batchscale.numeric import plain
from batchscale.tuner.distributions import Distribution
from batchscale.tuner.search_space import SearchSpace, check_space


def plan(space: SearchSpace, *, batch_size: int, trials: int, seed: int) -> pd.DataFrame:
    """Quasi-random hyperparameters for the trials of one batch size.

    A scrambled Sobol sequence, because it covers a space more evenly than independent draws
    (Bousquet et al. 2017, arXiv:1706.03200) and any first part of it is a search in its own right.
    The first rows do not depend on `trials`: to top a plan up, ask for more and take the rest.
    Plans of different batch sizes or seeds are independent; the same arguments give the same bits
    on every machine.

    Args:
      space: what to draw from; functions of batch size are called with `batch_size`.
      batch_size: examples.
      trials: how many rows.
      seed: of the study.

    Returns:
      One row a trial, indexed by `trial` from 0; one float64 column a hyperparameter, in the
      order of `space`, fixed values included.

    Raises:
      TypeError, ValueError: a count is not a whole number in its range.

    >>> from batchscale.tuner import LogUniform
    >>> space = SearchSpace(learning_rate=LogUniform(1e-3, 10), momentum=0.9)
    >>> plan(space, batch_size=64, trials=3, seed=0).round(4)
           learning_rate  momentum
    trial
    0             0.0625       0.9
    1             0.2198       0.9
    2             1.6508       0.9
    """
    check_space(space)
    batch_size = _whole("batch_size", batch_size, least=1)
    trials, seed = _whole("trials", trials, least=1), _whole("seed", seed, least=0)
    resolved = space.at(batch_size)
    units = iter(_sobol(len(resolved.searched), trials, seed=seed, batch_size=batch_size).T)
    columns = {
        name: dimension.value(next(units))
        if isinstance(dimension, Distribution)
        else np.full(trials, dimension)
        for name, dimension in resolved.items()
    }
    return pd.DataFrame(columns, index=pd.RangeIndex(trials, name="trial"), dtype=np.float64)


def _sobol(dimensions: int, points: int, *, seed: int, batch_size: int) -> np.ndarray:
    """The first points of a scrambled Sobol sequence; shape (points, dimensions), in [0, 1)."""
    if dimensions == 0:
        return np.empty((points, 0))
    bits = np.random.PCG64(np.random.SeedSequence([seed, batch_size]))
    sequence = scipy.stats.qmc.Sobol(dimensions, scramble=True, rng=np.random.Generator(bits))
    # SciPy warns of draws that are not a power of two.
    return sequence.random_base2((points - 1).bit_length())[:points]


def _whole(name: str, value: object, *, least: int) -> int:
    number = plain(value)
    if not isinstance(number, int):
        raise TypeError(f"plan: {name} is {value!r}, but must be a whole number.")
    if number < least:
        raise ValueError(f"plan: {name} is {value}, but must be at least {least}.")
    return number
