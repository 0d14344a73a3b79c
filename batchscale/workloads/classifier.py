"""Classifiers: softmax cross-entropy of a Flax module's logits."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, PyTree

from batchscale import keys
from batchscale.optimizers import Hyperparameters
from batchscale.workloads import modes
from batchscale.workloads._sums import total


def fields(
    module: nn.Module,
    *,
    example: jax.ShapeDtypeStruct,
    labels: str,
    scale: float,
    mode: Mapping[str, tuple[Any, Any]] | None = None,
    label_shape: tuple[int, ...] = (),
) -> dict[str, Any]:
    """The fields of a `Workload` that classifies, all but its name and its data.

    A module that has a `ghost_batch_size` is taken at its word; see `Workload`.

    Args:
      module: maps inputs to logits.
      example: the shape and type of one input.
      labels: the field of the labels.
      scale: unsigned 8-bit inputs are divided by it.
      mode: arguments of the module's call, with their values in training and in evaluation.
      label_shape: of one label.
    """
    switches = modes.switches(module, mode or {})
    takes = inspect.signature(type(module).__call__).parameters

    def inputs(batch: PyTree) -> Array:
        (field,) = [name for name in batch if name != labels]
        return batch[field]

    def preprocess(batch: PyTree, key: Any) -> PyTree:
        del key
        return {k: _scaled(v, scale) if k != labels else v for k, v in batch.items()}

    def arguments(train: bool, hyperparameters: Hyperparameters) -> dict[str, Any]:
        chosen = {name: values[not train] for name, values in switches.items()}
        if "dropout_rate" in takes and "dropout_rate" in hyperparameters:
            chosen["dropout_rate"] = hyperparameters["dropout_rate"]
        return chosen

    def init(key: Any) -> tuple[PyTree, PyTree]:
        x = _scaled(jnp.zeros((1, *example.shape), example.dtype), scale)
        variables = dict(module.init(key, x, **arguments(False, {})))
        return variables.pop("params", {}), variables

    def loss(
        params: PyTree,
        model_state: PyTree,
        batch: PyTree,
        key: Any,
        hyperparameters: Hyperparameters,
    ) -> tuple[tuple[Array, Array], PyTree]:
        logits, model_state = module.apply(
            {"params": params, **model_state},
            inputs(batch),
            **arguments(True, hyperparameters),
            rngs={"dropout": key},
            mutable=list(model_state),
        )
        targets = batch[labels]
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
        if "label_smoothing" in hyperparameters:
            uniform = -jax.nn.log_softmax(logits).mean(-1)
            amount: Any = hyperparameters["label_smoothing"]
            losses = (1 - amount) * losses + amount * uniform
        return (total(losses), jnp.asarray(targets.size)), model_state

    def metrics(params: PyTree, model_state: PyTree, batch: PyTree) -> Mapping[str, PyTree]:
        logits: Any = module.apply(
            {"params": params, **model_state}, inputs(batch), **arguments(False, {})
        )
        targets = batch[labels]
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
        count = jnp.asarray(targets.size)
        return {
            "error": (total(logits.argmax(-1).astype(targets.dtype) != targets), count),
            "loss": (total(losses), count),
        }

    def logits_shape() -> tuple[int, ...]:
        x = jax.ShapeDtypeStruct((1, *example.shape), example.dtype)
        key = keys.shape()

        def forward(key: Any, x: Array) -> Array:
            x = _scaled(x, scale)
            with modes.nested(module):
                variables = module.init(key, x, **arguments(False, {}))
            logits: Any = module.apply(variables, x, **arguments(False, {}))
            return logits

        return jax.eval_shape(forward, key, x).shape

    *of_labels, classes = logits_shape()[1:] or (None,)
    if tuple(of_labels) != tuple(label_shape) or classes is None:
        _refuse_labels(labels, label_shape, tuple(of_labels), classes)
    known = ["label_smoothing"] + ["dropout_rate"] * ("dropout_rate" in takes)
    return {
        "init": init,
        "loss": loss,
        "metrics": metrics,
        "preprocess": preprocess,
        "hyperparameters": tuple(known),
        "classes": classes,
        "labels": labels,
        "ghost_batch_size": getattr(module, "ghost_batch_size", None),
    }


def _refuse_labels(
    name: str, got: tuple[int, ...], wanted: tuple[int, ...], classes: int | None
) -> None:
    if classes is None:
        raise ValueError(
            "module: it returns one number an example, wanted its logits, one for each class."
        )
    remedy = "Give each label the shape that its logits have, without the classes."
    if got == (*wanted, 1):
        remedy = f"Give {name}[..., 0]."
    elif got == (*wanted, classes):
        remedy = f"If they are one-hot, give {name}.argmax(-1), the integers."
    raise ValueError(
        f"labels: one of {name!r} has the shape {got}, wanted {wanted}, an integer for the "
        f"{classes} logits. {remedy}"
    )


def example(split: Mapping[str, np.ndarray], labels: str) -> jax.ShapeDtypeStruct:
    """The shape and type of one input of a split that holds inputs and labels."""
    others = [name for name in split if name != labels]
    if labels not in split or len(others) != 1:
        raise ValueError(
            f"data: got the fields {sorted(split)}, wanted the labels as {labels!r} and one more, "
            "the inputs. Name the field of the labels with labels=..., or write a Workload."
        )
    values = split[others[0]]
    return jax.ShapeDtypeStruct(values.shape[1:], values.dtype)


def _scaled(x: Array, scale: float) -> Array:
    return x.astype(float) / scale if x.dtype == jnp.uint8 else x
