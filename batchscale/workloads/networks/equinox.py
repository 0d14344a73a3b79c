"""Models of Equinox, which is imported only where there is one."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
from jaxtyping import PyTree

from batchscale import keys
from batchscale.workloads import modes, tracing
from batchscale.workloads.networks.network import Network


def of(
    make: Callable[[Any], Any], example: Callable[[], PyTree], mode: Mapping[str, tuple[Any, Any]]
) -> Network:
    """An Equinox module as a network: it is called on one example, and mapped over batches.

    Inexact arrays are trained; other arrays, and the state of `equinox.nn.make_with_state`, are
    model state. A call that takes `key` gets one for each example in training, and None in
    evaluation, for which `equinox.nn.inference_mode` prepares the module. The axis of the examples
    is called "batch", as `equinox.nn.BatchNorm` asks for.

    Args:
      make: `make(key)`, the module with new parameters, or that and its state.
      example: makes a batch of one.
      mode: switches of the module's call, with their values in training and in evaluation.

    Raises:
      ValueError: a switch is neither known nor in `mode`, or a module within is not told it.
    """
    import equinox as eqx

    def parts(key: Any) -> tuple[Any, Any]:
        made = make(key)
        return made if isinstance(made, tuple) else (made, None)

    shapes, state_shapes = eqx.filter_eval_shape(parts, keys.shape())
    stateful = state_shapes is not None
    title = type(shapes).__name__
    call = type(shapes).__call__
    takes = inspect.signature(call).parameters
    switches = modes.of_call(type(shapes), mode, but=("state", "key"))
    _refuse_fields(shapes)
    static = eqx.partition(shapes, _is_array)[1]
    static_state = eqx.partition(state_shapes, _is_array)[1]

    def init(key: Any) -> tuple[PyTree, PyTree]:
        module, state = parts(key)
        trained, others = eqx.partition(module, eqx.is_inexact_array)
        return trained, {
            "buffers": eqx.filter(others, eqx.is_array),
            "state": eqx.filter(state, eqx.is_array),
        }

    def apply(
        params: PyTree, model_state: PyTree, inputs: PyTree, key: Any, hyperparameters: Any
    ) -> tuple[Any, PyTree]:
        del hyperparameters
        module = eqx.combine(params, model_state["buffers"], static)
        module = eqx.nn.inference_mode(module, value=key is None)
        arguments = {name: values[key is None] for name, values in switches.items()}
        state = eqx.combine(model_state["state"], static_state)
        examples = jax.tree.leaves(inputs)[0].shape[0]
        of_each = None if key is None else jax.random.split(key, examples)

        def one(x: PyTree, state: Any, key: Any) -> Any:
            given = {"key": key} if "key" in takes else {}
            positional = (x, state) if stateful else (x,)
            return module(*positional, **given, **arguments)

        axes = (0, None, None if of_each is None else 0)
        if not stateful:
            return jax.vmap(one, in_axes=axes, axis_name="batch")(inputs, state, of_each), (
                model_state
            )
        mapped = jax.vmap(one, in_axes=axes, out_axes=(0, None), axis_name="batch")
        outputs, state = mapped(inputs, state, of_each)
        if key is None:
            return outputs, model_state
        return outputs, {**model_state, "state": eqx.filter(state, eqx.is_array)}

    kinds = {type(part) for part in _modules(shapes)}

    def forward(key: Any) -> Any:
        with modes.handed_on(title, kinds, but="equinox"):
            return apply(*init(key), example(), None, {})[0]

    return Network(title, init, apply, tracing.outputs(forward))


def _modules(module: Any) -> Iterator[Any]:
    """A module and those within it, in its fields and in lists of them."""
    import equinox as eqx

    if isinstance(module, eqx.Module):
        yield module
        fields = dataclasses.fields(module)  # pyright: ignore[reportArgumentType]
        children = [getattr(module, field.name, None) for field in fields]
    elif isinstance(module, dict):
        children = list(module.values())
    else:
        children = module if isinstance(module, list | tuple) else []
    for part in children:
        yield from _modules(part)


def _refuse_fields(module: Any) -> None:
    """Refuses fields that say whether a module is trained: they are constants of it."""
    for part in _modules(module):
        for field in dataclasses.fields(part):
            value = getattr(part, field.name, None)
            # `inference` is what equinox.nn.inference_mode sets.
            constant = isinstance(value, bool) and modes.is_switch(field.name)
            if constant and field.name != "inference":
                raise ValueError(
                    f"model: {field.name!r} is a constant of {type(part).__name__}, and so the "
                    "same in training and in evaluation. Call it `inference`, which is set, or "
                    "make it an argument of the call."
                )


def _is_array(x: Any) -> bool:
    return isinstance(x, jax.ShapeDtypeStruct)
