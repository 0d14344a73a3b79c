"""Optimizers from optax whose hyperparameters are traced values, one set a trial."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax
import optax
from jax.typing import ArrayLike
from jaxtyping import Float

from batchscale import keys

Hyperparameters = Mapping[str, Float[ArrayLike, ""]]
Factory = Callable[..., optax.GradientTransformation]
"""Of one's own: `factory(hyperparameters)`, or `factory(hyperparameters, key)`."""


def as_usual(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function under JAX's usual promotion of types and ranks, which optax relies on.

    A user who has made either stricter, for functions of their own, can still use optax.

    >>> with jax.numpy_dtype_promotion("strict"):
    ...     as_usual(lambda x: x * jax.numpy.arange(2))(jax.numpy.float32(0.5)).tolist()
    [0.0, 0.5]
    """

    @functools.wraps(function, updated=())
    def usual(*arguments: Any, **named: Any) -> Any:
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            return function(*arguments, **named)

    return usual


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """An optimizer, and the hyperparameters that belong to it.

    Attributes:
      name: what plans and tables call it.
      factory: makes the optax transformation from traced scalars; called inside jit, at every
        step, so a schedule's learning rate is just another value.
      required: hyperparameters that a search space must give.
      defaults: those that it may give.
      takes_all: whether the factory sees every hyperparameter (one's own) or only its own.
      takes_key: whether the factory takes the trial's key besides.
    """

    name: str
    factory: Factory
    required: tuple[str, ...]
    defaults: Mapping[str, float] = dataclasses.field(default_factory=dict)
    takes_all: bool = False
    takes_key: bool = False

    def transformation(
        self,
        hyperparameters: Hyperparameters,
        learning_rate: Float[ArrayLike, ""] | None,
        key: Any = None,
    ) -> optax.GradientTransformation:
        """The optax transformation at one step of one trial.

        Args:
          hyperparameters: every hyperparameter of the trial; the optimizer takes its own.
          learning_rate: the schedule's value at this step, in place of the initial one.
          key: the trial's, for a factory that takes one; the same at every step.
        """
        own: dict[str, Any] = dict(self.defaults)
        own |= {
            name: value
            for name, value in hyperparameters.items()
            if self.takes_all or name in self.required or name in self.defaults
        }
        if learning_rate is not None:
            own["learning_rate"] = learning_rate
        try:
            if self.takes_key:
                made = self.factory(own, keys.key(0) if key is None else key)
            else:
                made = self.factory(own)
        except KeyError as error:
            raise ValueError(
                f"optimizer: {self.name!r} reads the hyperparameter {error}, and the space has "
                f"{', '.join(own)}. Add it to the SearchSpace; a plain number is a fixed value."
            ) from error
        if not (hasattr(made, "init") and hasattr(made, "update")):
            raise ValueError(
                f"optimizer: {self.name!r} made {type(made).__name__}, wanted a function of a "
                "mapping of hyperparameters that makes an optax transformation, such as "
                'lambda h: optax.adam(h["learning_rate"]).'
            )
        return optax.GradientTransformation(as_usual(made.init), as_usual(made.update))


_ADAM = {"b1": 0.9, "b2": 0.999, "eps": 1e-8}

_OPTIMIZERS = {
    optimizer.name: optimizer
    for optimizer in (
        Optimizer("sgd", lambda h: optax.sgd(h["learning_rate"]), ("learning_rate",)),
        Optimizer(
            "momentum",
            lambda h: optax.sgd(h["learning_rate"], momentum=h["momentum"]),
            ("learning_rate", "momentum"),
        ),
        Optimizer(
            "nesterov",
            lambda h: optax.sgd(h["learning_rate"], momentum=h["momentum"], nesterov=True),
            ("learning_rate", "momentum"),
        ),
        Optimizer(
            "adam",
            lambda h: optax.adam(h["learning_rate"], b1=h["b1"], b2=h["b2"], eps=h["eps"]),
            ("learning_rate",),
            _ADAM,
        ),
        Optimizer(
            "adamw",
            lambda h: optax.adamw(
                h["learning_rate"],
                b1=h["b1"],
                b2=h["b2"],
                eps=h["eps"],
                weight_decay=h["weight_decay"],
            ),
            ("learning_rate", "weight_decay"),
            _ADAM,
        ),
    )
}

NAMES = tuple(_OPTIMIZERS)


def get(optimizer: str | Factory) -> Optimizer:
    """An optimizer by name, or from one's own function of the hyperparameters.

    The named ones are `sgd`: w -= lr g; `momentum` (heavy ball): v = m v + g, w -= lr v;
    `nesterov`: v = m v + g, w -= lr (g + m v); `adam` and `adamw` as in optax, with `b1`, `b2` and
    `eps` searched where the space names them. One's own function gets every hyperparameter, with
    `learning_rate` as the schedule gives it at the step; and the trial's typed key, if it takes a
    second argument: `lambda h, key: optax.noisy_sgd(h["learning_rate"], key=key)`. Keys in the
    state of one that does not are changed by the trial's, so that trials differ in their noise.

    Raises:
      TypeError: it is neither, but an optax transformation, for example.
      ValueError: the name is not known.

    >>> get("nesterov").required
    ('learning_rate', 'momentum')
    >>> get(lambda h: optax.lion(h["learning_rate"], b1=h["b1"])).takes_all
    True
    >>> get(optax.adam(1e-3))
    Traceback (most recent call last):
    TypeError: optimizer: got an optax transformation, whose hyperparameters are fixed, wanted one
    of sgd, momentum, nesterov, adam, adamw, or a function of a mapping of hyperparameters that
    makes one. Write lambda h: optax.adam(h["learning_rate"]), for example, and give the numbers in
    the SearchSpace; a plain number is a fixed value.
    """
    if callable(optimizer):
        name = getattr(optimizer, "__name__", type(optimizer).__name__)
        return Optimizer(name, optimizer, (), takes_all=True, takes_key=_takes_key(optimizer))
    if not isinstance(optimizer, str):
        made = hasattr(optimizer, "init") and hasattr(optimizer, "update")
        got = f"a value of type {type(optimizer).__name__}"
        if made:
            got = "an optax transformation, whose hyperparameters are fixed"
        raise TypeError(
            f"optimizer: got {got}, wanted one of {', '.join(_OPTIMIZERS)}, or a function of a "
            "mapping of hyperparameters that makes one. Write "
            'lambda h: optax.adam(h["learning_rate"]), for example, and give the numbers in the '
            "SearchSpace; a plain number is a fixed value."
        )
    if optimizer not in _OPTIMIZERS:
        raise ValueError(
            f"optimizer: got {optimizer!r}, wanted one of {', '.join(_OPTIMIZERS)}, "
            "or a function that makes an optax transformation from a mapping of hyperparameters."
        )
    return _OPTIMIZERS[optimizer]


def _takes_key(factory: Factory) -> bool:
    """Whether a factory has a second argument that it must be given."""
    try:
        parameters = list(inspect.signature(factory).parameters.values())
    except ValueError:  # not every callable tells
        return False
    second = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)][1:2]
    return any(p.default is p.empty for p in second)
