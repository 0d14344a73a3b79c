"""What regularises a loss, with amounts that are tuned like a learning rate."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from batchscale.workloads._sums import wide

Hyperparameters = Mapping[str, Any]


def smoothed(
    losses: Float[Array, "*examples"],
    logits: Float[Array, "*examples classes"],
    hyperparameters: Hyperparameters,
) -> Float[Array, "*examples"]:
    """Cross-entropies with `label_smoothing` a, where that is a hyperparameter.

    Targets are 1 - a for the label and a spread evenly over all classes (Szegedy et al. 2016).
    """
    if "label_smoothing" not in hyperparameters:
        return losses
    amount = hyperparameters["label_smoothing"]
    uniform = -jax.nn.log_softmax(logits).mean(-1)
    return (1 - amount) * losses + amount * uniform


def with_l2(
    summed: Float[Array, ""], count: Array, params: PyTree, hyperparameters: Hyperparameters
) -> Float[Array, ""]:
    """The sum of losses with `l2` / 2 times the sum of all squared parameters for each.

    So the mean over what is counted has the penalty once, whatever the microbatches. That all
    parameters are penalised, biases and scales too, is a choice.

    >>> params = {"w": jnp.array([3.0]), "b": jnp.array([1.0])}
    >>> float(with_l2(jnp.array(8.0), jnp.array(4), params, {"l2": 0.2}))
    12.0
    """
    if "l2" not in hyperparameters:
        return summed
    squares = sum(jnp.square(wide(x)).sum() for x in jax.tree.leaves(params))
    penalty = hyperparameters["l2"] / 2 * jnp.asarray(squares)
    return summed + (count.astype(penalty.dtype) * penalty).astype(summed.dtype)
