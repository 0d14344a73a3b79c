"""Which framework a model is of, and its network."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
from jaxtyping import PyTree

from batchscale import keys
from batchscale.workloads import modes, tracing
from batchscale.workloads.networks import linen, pairs
from batchscale.workloads.networks.network import Network

_WANTED = (
    "wanted a Flax (Linen) module; a function of a key that makes a Flax NNX or an Equinox module, "
    "such as lambda key: Net(rngs=nnx.Rngs(key)) or lambda key: Net(key=key); what haiku.transform "
    "returns; or a pair of functions, init(key) and apply(params, inputs)"
)


def network(model: Any, example: Callable[[], PyTree], mode: Any) -> Network:
    """The network of a model.

    Args:
      model: a Flax (Linen) module; a function of a key that makes a Flax NNX or Equinox module;
        what `haiku.transform` returns; or a pair `(init, apply)`.
      example: makes a batch of one, as the model takes it; called inside jit, so that its types are
        those of JAX's settings then.
      mode: switches of the model, with their values in training and in evaluation.

    Raises:
      TypeError: the model is none of these.
      ValueError: a switch of the model is neither known nor in `mode`.

    >>> network(lambda key: 3, dict, None)
    Traceback (most recent call last):
    TypeError: model: got a function of a key that returns a int, wanted a Flax (Linen) module; ...
    """
    switches = modes.checked(mode)
    if isinstance(model, nn.Module):
        return linen.of(model, example, switches)
    if type(model).__module__.split(".")[0] == "haiku":
        return pairs.of_haiku(model, example, switches)
    if isinstance(model, tuple | list) and len(model) == 2 and all(map(callable, model)):
        return pairs.of_functions((model[0], model[1]), example, switches)
    if _framework(model) is not None:
        raise TypeError(
            f"model: got a {type(model).__name__} whose parameters are there already, so that all "
            "trials would begin with the same ones; wanted a function of a key that makes it, such "
            f"as lambda key: {type(model).__name__}(...), with the key where it takes one."
        )
    if not callable(model):
        raise TypeError(f"model: got a {type(model).__name__}, {_WANTED}.")
    made: list[Any] = []

    def look(key: Any) -> None:
        made[:] = [model(key)]

    with tracing.told("model", lookup="", remedy=f"It is called with a key; {_WANTED}."):
        jax.eval_shape(look, keys.shape())
    framework = _framework(made[0][0] if isinstance(made[0], tuple) and made[0] else made[0])
    if framework == "flax":
        from batchscale.workloads.networks import nnx

        _check_key(model)
        return nnx.of(model, example, switches)  # pyright: ignore[reportArgumentType]
    if framework == "equinox":
        from batchscale.workloads.networks import equinox

        _check_key(model)
        return equinox.of(model, example, switches)
    raise TypeError(
        f"model: got a function of a key that returns a {type(made[0]).__name__}, {_WANTED}."
    )


def _check_key(make: Callable[[Any], Any]) -> None:
    """Refuses a function that makes the same parameters of every key."""

    def leaves(key: Any) -> list[Any]:
        return [x for x in jax.tree.leaves(make(key)) if isinstance(x, jax.Array)]

    traced = jax.make_jaxpr(leaves)(keys.shape()).jaxpr
    used = {id(of) for equation in traced.eqns for of in equation.invars}
    used |= {id(of) for of in traced.outvars}
    if id(traced.invars[0]) not in used:
        raise ValueError(
            "model: the function does not use its key, so that all trials would begin with the "
            "same parameters. Hand it on: nnx.Rngs(key), or key=key."
        )


def _framework(model: Any) -> str | None:
    """The framework of a module: `flax` for NNX, or `equinox`; None for anything else."""
    for kind in type(model).__mro__:
        name = f"{kind.__module__}.{kind.__qualname__}"
        if kind.__name__ == "Module" and name.startswith("flax.nnx"):
            return "flax"
        if kind.__name__ == "Module" and name.startswith("equinox"):
            return "equinox"
    return None
