"""Learning rates as plain functions of the step and the hyperparameters, both of them traced."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Float, Int

Schedule = Callable[[Int[ArrayLike, ""], Mapping[str, Float[ArrayLike, ""]]], Float[ArrayLike, ""]]


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
    eta(t) = eta0 - (1 - alpha) eta0 min(t, T) / T.

    >>> rates = {"learning_rate": 1.0, "learning_rate_decay_steps": 10.0,
    ...          "end_learning_rate_factor": 0.1}
    >>> [round(float(linear_decay(step, rates)), 3) for step in (0, 5, 10, 99)]
    [1.0, 0.55, 0.1, 0.1]
    """
    start = hyperparameters["learning_rate"]
    decay_steps = hyperparameters["learning_rate_decay_steps"]
    drop = (1 - hyperparameters["end_learning_rate_factor"]) * start
    with jax.numpy_dtype_promotion("standard"):  # an integer over what gives way to other types
        return start - drop * jnp.minimum(step / decay_steps, 1.0)


_SCHEDULES: dict[str, tuple[Schedule, tuple[str, ...]]] = {
    "constant": (constant, ("learning_rate",)),
    "linear_decay": (
        linear_decay,
        ("learning_rate", "learning_rate_decay_steps", "end_learning_rate_factor"),
    ),
}


def get(schedule: str | Schedule) -> tuple[Schedule, tuple[str, ...]]:
    """A schedule and the hyperparameters it must find.

    Args:
      schedule: a name, or a function of (step, hyperparameters) that returns the learning rate;
        of one's own function nothing is known to be required.

    Raises:
      ValueError: the name is not known.

    >>> get("linear_decay")[1]
    ('learning_rate', 'learning_rate_decay_steps', 'end_learning_rate_factor')
    """
    if callable(schedule):
        return schedule, ()
    if not isinstance(schedule, str) or schedule not in _SCHEDULES:
        raise ValueError(
            f"schedule: got {schedule!r}, wanted one of {', '.join(_SCHEDULES)}, "
            "or a function of (step, hyperparameters) that returns the learning rate."
        )
    return _SCHEDULES[schedule]


def name(schedule: str | Schedule) -> str:
    """What plans call a schedule.

    >>> name("constant"), name(lambda step, hyperparameters: 0.1)
    ('constant', '<lambda>')
    """
    return schedule if isinstance(schedule, str) else getattr(schedule, "__name__", "own")
