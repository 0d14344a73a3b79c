"""Models that are pairs of functions: Haiku's transformed ones, and one's own."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from jaxtyping import PyTree

from batchscale.workloads import modes, tracing
from batchscale.workloads.networks.network import Network


def of_haiku(
    pair: Any, example: Callable[[], PyTree], mode: Mapping[str, tuple[Any, Any]]
) -> Network:
    """What `haiku.transform` or `transform_with_state` returns, as a network.

    Switches are arguments of the function that was transformed; Haiku gives every module that it
    calls to be looked at.

    Args:
      pair: `init(key, inputs)` and `apply(params, key, inputs)`, or the same with a state.
      example: makes a batch of one.
      mode: switches, with their values in training and in evaluation.

    Raises:
      ValueError: a switch is neither known nor in `mode`, or a module within is not told it.
    """
    import haiku as hk

    function = _transformed(pair.apply)
    title = getattr(function, "__name__", "haiku")
    if function is not None:
        mode = modes.of_function(function, mode, inputs=1)
    stateful = type(pair).__name__ == "TransformedWithState"

    def arguments(train: bool) -> dict[str, Any]:
        return {name: values[not train] for name, values in mode.items()}

    def init(key: Any) -> tuple[PyTree, PyTree]:
        made = pair.init(key, example(), **arguments(True))
        return made if stateful else (made, {})

    # haiku.without_apply_rng leaves it out.
    takes_key = "rng" in inspect.signature(pair.apply).parameters

    def apply(
        params: PyTree, model_state: PyTree, inputs: PyTree, key: Any, hyperparameters: Any
    ) -> tuple[Any, PyTree]:
        del hyperparameters
        given, random = arguments(key is not None), (key,) if takes_key else ()
        if not stateful:
            return pair.apply(params, *random, inputs, **given), model_state
        outputs, state = pair.apply(params, model_state, *random, inputs, **given)
        return outputs, model_state if key is None else state

    def check(following: Any, args: Any, kwargs: Any, context: Any) -> Any:
        kind = type(context.module)
        if not kind.__module__.startswith("haiku"):  # whose own are told by what they need
            method = getattr(kind, context.method_name)
            modes.refuse_default(title, kind, method, context.module, *args, **kwargs)
            modes.refuse_none(title, kind, method, context.module, *args, **kwargs)
        return following(*args, **kwargs)

    with hk.intercept_methods(check):
        return _network("haiku", init, apply, example)


def _transformed(apply: Callable[..., Any]) -> Callable[..., Any] | None:
    """The function that was transformed, from a closure of Haiku's; None if it is not found."""
    left: list[Any] = [apply]
    while left:
        found = left.pop(0)
        if isinstance(found, tuple):
            left += found
        elif isinstance(found, functools.partial) and not _of_haiku(found.func):
            return found
        elif inspect.isfunction(found):
            if not _of_haiku(found):
                return found
            left += [cell.cell_contents for cell in found.__closure__ or ()]
    return None


def _of_haiku(function: Any) -> bool:
    return str(getattr(function, "__module__", "")).startswith("haiku")


def of_functions(
    pair: tuple[Callable[..., Any], Callable[..., Any]],
    example: Callable[[], PyTree],
    mode: Mapping[str, tuple[Any, Any]],
) -> Network:
    """A pair of one's own, `init(key) -> params` and `apply(params, inputs) -> outputs`.

    An `apply` that takes `key` gets one in training, and None in evaluation.

    Args:
      pair: the functions.
      example: makes a batch of one.
      mode: switches of `apply`, with their values in training and in evaluation.

    Raises:
      ValueError: a switch is neither known nor in `mode`.
    """
    make, function = pair
    takes = inspect.signature(function).parameters
    switches = modes.of_function(function, mode, but=("key",))

    def init(key: Any) -> tuple[PyTree, PyTree]:
        return make(key), {}

    def apply(
        params: PyTree, model_state: PyTree, inputs: PyTree, key: Any, hyperparameters: Any
    ) -> tuple[Any, PyTree]:
        del hyperparameters
        given = {name: values[key is None] for name, values in switches.items()}
        if "key" in takes:
            given["key"] = key
        return function(params, inputs, **given), model_state

    return _network(getattr(function, "__name__", "own"), init, apply, example)


def _network(
    title: str, init: Callable[..., Any], apply: Callable[..., Any], example: Callable[[], PyTree]
) -> Network:
    def forward(key: Any) -> Any:
        return apply(*init(key), example(), None, {})[0]

    return Network(title, init, apply, tracing.outputs(forward))
