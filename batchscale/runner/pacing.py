"""Where a schedule decides when goals are reached, found by evaluating it on the plan's trials."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, PyTree

from batchscale import arrays, schedules
from batchscale.optimizers import Optimizer
from batchscale.scaling import Pace
from batchscale.schedules import Schedule
from batchscale.stopping import evaluation_grid

# Choices.
_LOST = 1 / 8  # of the steps: by as much B_crit would be too small, which is half its interval
_FALL = 2 / 3  # of the rate, within a factor of two of the steps: faster than 1 / sqrt(step)
_TRIALS = 0.9  # of the plan: what a hyperparameter of the schedule could mend is not its doing
_SPACING = 0.02
_SETTINGS, _UPDATES = 4, 2**11  # of one's own optimizer: how many are looked at, for how long
_ROUGH = 0.01

_Rates = Float[np.ndarray, "trials steps"]


def paces(
    schedule: Schedule,
    optimizer: Optimizer,
    params: PyTree,
    plans: Mapping[int, Sequence[Mapping[str, float]]],
    max_steps: Mapping[int, int],
) -> dict[int, Pace]:
    """Between which steps the schedule decides, at every batch size where it does.

    Of a rising rate: where it has cost over an eighth of the steps up to there. Of a falling one:
    where it has fallen by over a third within a factor of two of the steps, which a horizon does,
    and a decay with the root of the step does not. Both hold of nine in ten of the plan's trials,
    so that a length that is searched is the schedule's doing only if all of its range is.

    A warm-up inside one's own optimizer is looked for too: in the sizes of its updates to a
    gradient that never changes, and to one that comes after nothing but zeros. Momentum builds up
    in the first alone, and Adam's second moment in the second. Where updates go up and down, and
    beyond the first 2,048 where they still change then, it is not known.

    Args:
      schedule: of the study.
      optimizer: of the study.
      params: shapes of the parameters.
      plans: the hyperparameters of the planned trials, by batch size.
      max_steps: the budget, by batch size.

    >>> from batchscale import arrays, optimizers
    >>> def warm_up(step, hyperparameters):
    ...     return hyperparameters["learning_rate"] * jnp.minimum((jnp.float32(step) + 1) / 10, 1.0)
    >>> params = {"w": jax.ShapeDtypeStruct((3,), float)}
    >>> plans = {8: [{"learning_rate": 0.1}, {"learning_rate": 0.2}]}
    >>> paces(warm_up, optimizers.get("sgd"), params, plans, {8: 500})
    {8: Pace(rises_until=35, falls=None, known_until=None)}
    """
    looks_constant = schedule is schedules.constant
    if looks_constant and not optimizer.takes_all:
        return {}
    found = {}
    rates_of = jax.jit(jax.vmap(jax.vmap(schedule, (0, None)), (None, 0)))
    sizes_of = jax.jit(
        jax.vmap(
            lambda values, steps: _updates(schedule, optimizer, params, values, steps), (0, None)
        )
    )
    for batch_size, plan in plans.items():
        values = {
            name: np.asarray([trial[name] for trial in plan], arrays.float_type())
            for name in plan[0]
        }
        pictures: list[tuple[np.ndarray, list[_Rates]]] = []
        known = None
        if not looks_constant:
            grid = np.asarray(evaluation_grid(max_steps[batch_size], _SPACING), np.int32)
            rates = np.asarray(rates_of(grid, values), np.float64)
            if (np.isfinite(rates) & (rates >= 0)).all():
                pictures.append((grid, [np.broadcast_to(rates, (len(plan), len(grid)))]))
            else:
                known = 0
        if optimizer.takes_all:
            some = {name: column[:_SETTINGS] for name, column in values.items()}
            count = min(max_steps[batch_size], _UPDATES)
            sizes = [np.full((1, count), np.nan)]
            # What it makes of a small tree is not known of every transformation.
            with contextlib.suppress(Exception):
                updates = sizes_of(some, np.arange(count, dtype=np.int32))
                sizes = [*np.asarray(updates, np.float64).swapaxes(0, 1)]
            shown = [r for r in sizes if np.isfinite(r).all() and _smooth(r)]
            picture, changes = (np.arange(count), shown), all(map(_changes, shown))
            if len(shown) == len(sizes):
                pictures.append(picture)
                if count < max_steps[batch_size] and changes:
                    known = count if known is None else known
            elif not shown or changes or _decided(*picture) != (0, []):
                known = 0  # one of them can tell alone that there is nothing, and no more
        decided = [_decided(*picture) for picture in pictures]
        rises = max((rise for rise, _ in decided), default=0)
        falls = [step for _, fallen in decided for step in fallen]
        if rises or falls or known is not None:
            found[batch_size] = Pace(rises, (min(falls), max(falls)) if falls else None, known)
    return found


def _decided(grid: np.ndarray, rates: Sequence[_Rates]) -> tuple[int, list[int]]:
    """Up to which step all of these show a rise, and the steps at which all show a fall."""
    ends = grid[1:]
    late = np.all([_late(r, grid) for r in rates], 0).mean(0) >= _TRIALS
    fallen = np.all([_fallen(r, grid) for r in rates], 0).mean(0) >= _TRIALS
    return int(ends[late].max(initial=0)), ends[fallen].tolist()


def _late(rates: _Rates, grid: np.ndarray) -> Bool[np.ndarray, "trials crossings"]:
    """Whether over an eighth of the steps was lost to the rise, by each later step of the grid."""
    peak = rates.max(1, keepdims=True)
    before = np.cumsum(rates >= 0.99 * peak, 1) == 0
    with np.errstate(invalid="ignore"):
        lost = np.where(before & (peak > 0), 1 - rates / peak, 0.0)[:, :-1]
    return np.cumsum(lost * np.diff(grid), 1) > _LOST * grid[1:]


def _fallen(rates: _Rates, grid: np.ndarray) -> Bool[np.ndarray, "trials crossings"]:
    """Whether the rate of the last update was over a third below that of one since half as many."""
    fallen = np.zeros((len(rates), len(grid) - 1), bool)
    for place, step in enumerate(grid[1:]):
        since = int(np.searchsorted(grid, step // 2))
        recent = rates[:, since : place + 1]
        fallen[:, place] = recent[:, -1] < _FALL * recent.max(1) if recent.size else False
    return fallen


def _smooth(rates: _Rates) -> bool:
    """Whether sizes of updates rise, then fall: of others, a rate cannot be read off."""
    peak = rates.max(1, keepdims=True)
    before = np.cumsum(rates >= 0.99 * peak, 1) == 0
    change = np.diff(rates, axis=1)
    return not ((before[:, :-1] & (change < -_ROUGH * peak)).any()
                or (~before[:, :-1] & (change > _ROUGH * peak)).any())  # fmt: skip


def _changes(rates: _Rates) -> bool:
    """Whether sizes of updates are others in the second half of the steps than at their end."""
    late = rates[:, rates.shape[1] // 2 :]
    with np.errstate(invalid="ignore", divide="ignore"):
        moved = np.abs(late / late[:, -1:] - 1).max(1) > _ROUGH
    return bool(moved.mean() > 1 - _TRIALS)


def _updates(
    schedule: Schedule,
    optimizer: Optimizer,
    params: PyTree,
    values: Mapping[str, Any],
    steps: Any,
) -> Any:
    """The norms of updates, to a gradient of ones, and to the first one of them after zeros."""
    # As many axes as the parameters have, for some transformations tell matrices apart.
    zeros = jax.tree.map(lambda x: jnp.zeros([min(n, 2) for n in x.shape], x.dtype), params)
    ones = jax.tree.map(jnp.ones_like, zeros)

    def norm(tree: PyTree) -> Any:
        return jnp.sqrt(sum(jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(tree)))

    def step(states: Any, number: Any) -> Any:
        steady, quiet = states
        transformation = optimizer.transformation(values, schedule(number, values))
        update, steady = transformation.update(ones, steady, zeros)
        sudden, _ = transformation.update(ones, quiet, zeros)
        _, quiet = transformation.update(zeros, quiet, zeros)
        return (steady, quiet), jnp.stack([norm(update), norm(sudden)])

    start = optimizer.transformation(values, None).init(zeros)
    return jax.lax.scan(step, (start, start), steps)[1].T
