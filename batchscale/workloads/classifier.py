"""Classifiers of Flax (Linen): softmax cross-entropy of a module's logits."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array

from batchscale.workloads import supervised
from batchscale.workloads.losses import CrossEntropy
from batchscale.workloads.networks import network


def fields(
    module: nn.Module, *, example: jax.ShapeDtypeStruct, labels: str, scale: float
) -> dict[str, Any]:
    """The fields of a `Workload` that classifies, all but its name and its data.

    Args:
      module: maps inputs to logits.
      example: the shape and type of one input.
      labels: the field of the labels, one integer an example.
      scale: unsigned 8-bit inputs are divided by it.
    """
    loss, preprocess = CrossEntropy(), supervised.scaled(labels, scale)

    def one() -> Array:
        image = jnp.zeros((1, *example.shape), example.dtype)
        return preprocess({"input": image}, None)["input"]

    made = network(module, one, None)
    label = jax.ShapeDtypeStruct((1,), "int32")
    classes = loss.check(made.outputs, label, labels)
    found = supervised.fields(made, loss, labels=labels, preprocess=preprocess)
    return {**found, "classes": classes}
