"""Models of Flax (Linen)."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
from jaxtyping import PyTree

from batchscale.optimizers import Hyperparameters
from batchscale.workloads import modes, tracing
from batchscale.workloads.networks.network import Network


def of(
    module: nn.Module, example: Callable[[], PyTree], mode: Mapping[str, tuple[Any, Any]]
) -> Network:
    """A Flax (Linen) module as a network.

    It gets dropout keys, keeps batch statistics and any other collection, and its switches have
    their values of training and of evaluation. A module that has a `ghost_batch_size` is taken at
    its word; see `Workload`.

    Args:
      module: called as `module(inputs)`.
      example: makes a batch of one.
      mode: switches of the module's call, with their values in training and in evaluation.

    Raises:
      ValueError: a switch is neither known nor in `mode`, or a module within leaves one out.
    """
    switches = modes.switches(module, mode)
    takes = inspect.signature(type(module).__call__).parameters

    def arguments(train: bool, hyperparameters: Hyperparameters) -> dict[str, Any]:
        chosen = {name: values[not train] for name, values in switches.items()}
        if "dropout_rate" in takes and "dropout_rate" in hyperparameters:
            chosen["dropout_rate"] = hyperparameters["dropout_rate"]
        return chosen

    def init(key: Any) -> tuple[PyTree, PyTree]:
        variables = dict(module.init(key, example(), **arguments(False, {})))
        return variables.pop("params", {}), variables

    def apply(
        params: PyTree, model_state: PyTree, inputs: PyTree, key: Any, hyperparameters: Any
    ) -> tuple[Any, PyTree]:
        variables = {"params": params, **model_state}
        if key is None:
            return module.apply(variables, inputs, **arguments(False, {})), model_state
        return module.apply(
            variables,
            inputs,
            **arguments(True, hyperparameters),
            rngs={"dropout": key},
            mutable=list(model_state),
        )

    constants: modes.Constants = {}

    def forward(key: Any) -> Any:
        x = example()
        with modes.nested(module, constants):
            variables = module.init(key, x, **arguments(False, {}))
            rngs, everything = {"dropout": key}, True
            module.apply(variables, x, **arguments(True, {}), rngs=rngs, mutable=everything)
        return module.apply(variables, x, **arguments(False, {}))

    outputs = tracing.outputs(forward)
    modes.refuse_constants(constants)
    return Network(
        type(module).__name__,
        init,
        apply,
        outputs,
        ("dropout_rate",) if "dropout_rate" in takes else (),
        getattr(module, "ghost_batch_size", None),
    )
