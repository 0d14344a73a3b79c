"""Models of Flax NNX."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax
from flax import nnx
from jaxtyping import PyTree

from batchscale import keys
from batchscale.workloads import modes, tracing
from batchscale.workloads.networks.network import Network

_TOLD = ("deterministic", "use_running_average")  # by nnx.Module.train and nnx.Module.eval


def of(
    make: Callable[[Any], nnx.Module],
    example: Callable[[], PyTree],
    mode: Mapping[str, tuple[Any, Any]],
) -> Network:
    """A Flax NNX module as a network.

    What is an `nnx.Param` is trained; every other variable (batch statistics, counters) is model
    state, but random streams, which are seeded by the key of every step. Modules are put into
    training and evaluation by `nnx.Module.train` and `eval`.

    Args:
      make: `make(key)`, the module with new parameters.
      example: makes a batch of one.
      mode: switches of the module's call, or attributes of modules within it, with their values in
        training and in evaluation.

    Raises:
      ValueError: a switch is neither known nor in `mode`, or a module within is not told it.
    """
    graphs: list[Any] = []
    seen: list[Any] = []  # types alone: a module that was traced could not be sent to workers

    def split(key: Any) -> tuple[PyTree, PyTree, PyTree]:
        module = make(key)
        seen[:] = [type(module), {type(part) for _, part in nnx.iter_modules(module)}]
        called, attributes = _switches(module, mode)
        nnx.Module.eval(module)  # one of the user's own may be hidden by an attribute
        _set(module, {name: values[1] for name, values in attributes.items()})
        evaluated = nnx.graphdef(module)
        nnx.Module.train(module)
        _set(module, {name: values[0] for name, values in attributes.items()})
        graph, params, noise, others = nnx.split(module, nnx.Param, nnx.RngState, ...)
        graphs[:] = [graph, evaluated, called]
        return tuple(nnx.to_pure_dict(part) for part in (params, noise, others))  # pyright: ignore

    shapes = jax.eval_shape(split, keys.shape())
    _, noises, _ = shapes

    def init(key: Any) -> tuple[PyTree, PyTree]:
        params, _, others = split(key)
        return params, others

    def apply(
        params: PyTree, model_state: PyTree, inputs: PyTree, key: Any, hyperparameters: Any
    ) -> tuple[Any, PyTree]:
        del hyperparameters
        train, evaluate, called = graphs
        arguments = {name: values[key is None] for name, values in called.items()}
        noise = _streams(noises, keys.key(0) if key is None else key)
        graph = evaluate if key is None else train
        module = nnx.merge(graph, params, noise, model_state)
        outputs = module(inputs, **arguments)  # pyright: ignore[reportCallIssue]
        if key is None:
            return outputs, model_state
        _, _, _, after = nnx.split(module, nnx.Param, nnx.RngState, ...)
        changed = nnx.to_pure_dict(after)  # pyright: ignore[reportArgumentType]
        return outputs, _as_before(model_state, changed)

    title, kinds = seen[0].__name__, seen[1]

    def forward(key: Any) -> Any:
        with modes.handed_on(title, kinds, but="flax"):
            return apply(*init(key), example(), None, {})[0]

    return Network(title, init, apply, tracing.outputs(forward))


def _switches(
    module: nnx.Module, mode: Mapping[str, tuple[Any, Any]]
) -> tuple[dict[str, tuple[Any, Any]], dict[str, tuple[Any, Any]]]:
    """The switches of the module's call, and those that are attributes of modules within it.

    Raises:
      ValueError: an attribute is a switch that is not known, or an array, which would be neither
        trained nor kept.
    """
    attributes: dict[str, tuple[Any, Any]] = {}
    for _, part in nnx.iter_modules(module):
        for name, value in vars(part).items():
            title = type(part).__name__
            if isinstance(value, jax.Array):
                raise ValueError(
                    f"model: {name!r} of {title} is an array. Make it an nnx.Param if it is "
                    "trained, an nnx.Variable if it is not, or an array of NumPy if it is constant."
                )
            if not isinstance(value, bool):
                continue
            if name in mode:
                attributes[name] = mode[name]
            elif modes.is_switch(name) and name not in _TOLD:
                raise ValueError(
                    f"model: {name!r} is an attribute of {title}, and it is not "
                    "known what that is in training and in evaluation. Say so: "
                    f"mode={{{name!r}: (True, False)}}."
                )
    takes = inspect.signature(type(module).__call__).parameters
    of_call = {k: values for k, values in mode.items() if k not in attributes or k in takes}
    return modes.of_call(type(module), of_call), attributes


def _set(module: nnx.Module, values: Mapping[str, Any]) -> None:
    """Gives attributes of these names another value, wherever there are any."""
    for _, part in nnx.iter_modules(module):
        for name in vars(part).keys() & values.keys():
            if isinstance(getattr(part, name), bool):
                setattr(part, name, values[name])


def _streams(noises: PyTree, key: Any) -> PyTree:
    """Random streams of a module, seeded by a key: each its own, and from the start."""
    leaves, structure = jax.tree.flatten(noises)
    seeded = [
        jax.random.fold_in(key, place)
        if keys.is_key(leaf)
        else jax.numpy.zeros(leaf.shape, leaf.dtype)
        for place, leaf in enumerate(leaves)
    ]
    return jax.tree.unflatten(structure, seeded)


def _as_before(before: Any, after: Any) -> Any:
    """Of what a call has left behind, what was there before it; sown values are not kept."""
    if isinstance(before, Mapping):
        return {name: _as_before(value, after[name]) for name, value in before.items()}
    return after
