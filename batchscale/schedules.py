"""Learning rates as plain functions of the step and the hyperparameters, both of them traced."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from typing import Any, cast

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Float, Int, Num

Schedule = Callable[[Int[ArrayLike, ""], Mapping[str, Float[ArrayLike, ""]]], Float[ArrayLike, ""]]
OfSteps = Callable[[Any], Any]
"""A function of the step alone, such as optax's schedules, in units of the trial's rate."""


def constant(
    step: Int[ArrayLike, ""], hyperparameters: Mapping[str, Float[ArrayLike, ""]]
) -> Float[ArrayLike, ""]:
    """The learning rate itself, at every step.

    >>> constant(100, {"learning_rate": 0.5})
    0.5
    """
    del step
    return hyperparameters["learning_rate"]


def linear_decay(
    step: Int[ArrayLike, ""], hyperparameters: Mapping[str, Float[ArrayLike, ""]]
) -> Float[ArrayLike, ""]:
    """Linear decay, then constant (Shallue et al. 2019, section 2.2).

    From `learning_rate` at step 0 the rate falls in a straight line to `end_learning_rate_factor`
    times that at step `learning_rate_decay_steps`, and stays there:
    eta(t) = eta0 - (1 - alpha) eta0 min(t, T) / T; with T = 0 it is there from the beginning.

    >>> rates = {"learning_rate": 1.0, "learning_rate_decay_steps": 10.0,
    ...          "end_learning_rate_factor": 0.1}
    >>> [round(float(linear_decay(step, rates)), 3) for step in (0, 5, 10, 99)]
    [1.0, 0.55, 0.1, 0.1]
    """
    start = hyperparameters["learning_rate"]
    decay_steps = hyperparameters["learning_rate_decay_steps"]
    drop = (1 - hyperparameters["end_learning_rate_factor"]) * start
    with jax.numpy_dtype_promotion("standard"):  # an integer over what gives way to other types
        return start - drop * _share(step, decay_steps)


def warmup_constant(
    step: Int[ArrayLike, ""], hyperparameters: Mapping[str, Float[ArrayLike, ""]]
) -> Float[ArrayLike, ""]:
    """Linear warm-up over `warmup_steps` steps, then `learning_rate`.

    eta(t) = eta0 min((t + 1) / W, 1): the first step has a rate above 0, and step W - 1 the whole.

    >>> rates = {"learning_rate": 1.0, "warmup_steps": 4.0}
    >>> [float(warmup_constant(step, rates)) for step in (0, 1, 3, 99)]
    [0.25, 0.5, 1.0, 1.0]
    """
    start = hyperparameters["learning_rate"]
    with jax.numpy_dtype_promotion("standard"):  # an integer over what gives way to other types
        return start * jnp.minimum((step + 1) / hyperparameters["warmup_steps"], 1.0)


def cosine(
    step: Int[ArrayLike, ""], hyperparameters: Mapping[str, Float[ArrayLike, ""]]
) -> Float[ArrayLike, ""]:
    """Half a cosine down, then constant (Loshchilov and Hutter 2017, without restarts).

    From `learning_rate` at step 0 to `end_learning_rate_factor` times that at step
    `learning_rate_decay_steps`: eta(t) = eta0 (alpha + (1 - alpha) (1 + cos(pi min(t, T) / T)) / 2)

    >>> rates = {"learning_rate": 1.0, "learning_rate_decay_steps": 10.0,
    ...          "end_learning_rate_factor": 0.0}
    >>> [round(float(cosine(step, rates)), 3) for step in (0, 5, 10, 99)]
    [1.0, 0.5, 0.0, 0.0]
    """
    return _cosine(step, hyperparameters["learning_rate_decay_steps"], hyperparameters)


def warmup_cosine(
    step: Int[ArrayLike, ""], hyperparameters: Mapping[str, Float[ArrayLike, ""]]
) -> Float[ArrayLike, ""]:
    """Linear warm-up as in `warmup_constant`, then `cosine` in the steps that are left.

    The whole takes `learning_rate_decay_steps`, of which `warmup_steps` are the warm-up. Where the
    warm-up takes as long or longer, the rate after it is at its end at once.

    >>> rates = {"learning_rate": 1.0, "warmup_steps": 4.0, "learning_rate_decay_steps": 14.0,
    ...          "end_learning_rate_factor": 0.0}
    >>> [round(float(warmup_cosine(step, rates)), 3) for step in (0, 3, 4, 9, 14)]
    [0.25, 1.0, 1.0, 0.5, 0.0]
    """
    warmup = hyperparameters["warmup_steps"]
    with jax.numpy_dtype_promotion("standard"):
        left = jnp.subtract(hyperparameters["learning_rate_decay_steps"], warmup)
        past = jnp.subtract(step, warmup)
        after = _cosine(jnp.maximum(past, 0.0), left, hyperparameters)
        return jnp.where(past < 0, warmup_constant(step, hyperparameters), after)


def inverse_square_root(
    step: Int[ArrayLike, ""], hyperparameters: Mapping[str, Float[ArrayLike, ""]]
) -> Float[ArrayLike, ""]:
    """Linear warm-up, then decay with the root of the step (Vaswani et al. 2017).

    eta(t) = eta0 min((t + 1) / W, sqrt(W / (t + 1))), with W = `warmup_steps`: `learning_rate` is
    the largest rate, that of step W - 1.

    >>> rates = {"learning_rate": 1.0, "warmup_steps": 4.0}
    >>> [float(inverse_square_root(step, rates)) for step in (0, 3, 15)]
    [0.25, 1.0, 0.5]
    """
    with jax.numpy_dtype_promotion("standard"):
        turns = (step + 1) / hyperparameters["warmup_steps"]
        return hyperparameters["learning_rate"] * jnp.minimum(turns, 1 / jnp.sqrt(turns))


def _cosine(
    step: Num[ArrayLike, ""],
    steps: Float[ArrayLike, ""],
    hyperparameters: Mapping[str, Float[ArrayLike, ""]],
) -> Float[ArrayLike, ""]:
    end = hyperparameters["end_learning_rate_factor"]
    with jax.numpy_dtype_promotion("standard"):
        turned = (1 + jnp.cos(jnp.pi * _share(step, steps))) / 2
        return hyperparameters["learning_rate"] * (end + (1 - end) * turned)


def _share(step: Num[ArrayLike, ""], steps: Float[ArrayLike, ""]) -> Float[ArrayLike, ""]:
    """How much of a decay is over; all of it where it takes no steps, or fewer than none."""
    return jnp.where(jnp.greater(steps, 0), jnp.minimum(jnp.divide(step, steps), 1.0), 1.0)


_DECAY = "learning_rate_decay_steps", "end_learning_rate_factor"
_SCHEDULES: dict[str, tuple[Schedule, tuple[str, ...]]] = {
    "constant": (constant, ("learning_rate",)),
    "linear_decay": (linear_decay, ("learning_rate", *_DECAY)),
    "warmup_constant": (warmup_constant, ("learning_rate", "warmup_steps")),
    "cosine": (cosine, ("learning_rate", *_DECAY)),
    "warmup_cosine": (warmup_cosine, ("learning_rate", "warmup_steps", *_DECAY)),
    "inverse_square_root": (inverse_square_root, ("learning_rate", "warmup_steps")),
}

NAMES = tuple(_SCHEDULES)


@dataclasses.dataclass(frozen=True)
class Multiplied:
    """A function of the step alone, times the trial's learning rate.

    Attributes:
      shape: the function.

    >>> Multiplied(lambda step: step / 100)(50, {"learning_rate": 0.2})
    0.1
    """

    shape: OfSteps

    def __call__(
        self, step: Int[ArrayLike, ""], hyperparameters: Mapping[str, Float[ArrayLike, ""]]
    ) -> Any:
        """The learning rate at a step; of a shape that is the user's, and checked elsewhere."""
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            return hyperparameters["learning_rate"] * self.shape(step)


def get(schedule: str | Schedule | OfSteps) -> tuple[Schedule, tuple[str, ...]]:
    """A schedule and the hyperparameters it must find.

    The named ones: `constant`, `linear_decay`, `warmup_constant`, `cosine`, `warmup_cosine` and
    `inverse_square_root`. Their lengths are hyperparameters, in steps; a `ShareOfBudget` in the
    space makes them shares of the budget.

    Args:
      schedule: a name; a function of (step, hyperparameters) that returns the learning rate, of
        which nothing is known to be required; or a function of the step alone, by which the
        trial's `learning_rate` is multiplied, such as optax's schedules with a peak of 1.

    Raises:
      ValueError: the name is not known.

    >>> get("linear_decay")[1]
    ('learning_rate', 'learning_rate_decay_steps', 'end_learning_rate_factor')
    >>> import optax
    >>> warmed, needed = get(optax.warmup_constant_schedule(0.0, 1.0, warmup_steps=10))
    >>> needed, round(float(warmed(5, {"learning_rate": 0.2})), 6)
    (('learning_rate',), 0.1)
    """
    if callable(schedule):
        if _of_steps(schedule):
            return Multiplied(cast(OfSteps, schedule)), ("learning_rate",)
        return cast(Schedule, schedule), ()
    if not isinstance(schedule, str) or schedule not in _SCHEDULES:
        raise ValueError(
            f"schedule: got {schedule!r}, wanted one of {', '.join(_SCHEDULES)}, "
            "a function of (step, hyperparameters) that returns the learning rate, or one of the "
            "step alone that it is multiplied by."
        )
    return _SCHEDULES[schedule]


def _of_steps(schedule: Callable[..., Any]) -> bool:
    """Whether a function takes one argument, and no more than one."""
    try:
        parameters = inspect.signature(schedule).parameters.values()
    except (TypeError, ValueError):
        return False
    places = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    return len(places) == 1 and not any(p.kind == p.VAR_POSITIONAL for p in parameters)


def name(schedule: str | Schedule | OfSteps) -> str:
    """What plans call a schedule.

    >>> name("constant"), name(lambda step, hyperparameters: 0.1)
    ('constant', '<lambda>')
    """
    return schedule if isinstance(schedule, str) else getattr(schedule, "__name__", "own")
