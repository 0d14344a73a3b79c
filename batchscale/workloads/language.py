"""Language models: the cross-entropy of each token given those before it, in nats a token."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PyTree

from batchscale.optimizers import Hyperparameters
from batchscale.workloads import _regularised
from batchscale.workloads._sums import total, wide

PADDING = 0  # no token; models take it for the beginning


def fields(module: nn.Module, *, length: int, vocabulary: int) -> dict[str, Any]:
    """The fields of a `Workload` that models language, all but its name and its data.

    Examples are sequences, `tokens` of shape (length,), padded with zeros at the end. Batch sizes
    count sequences; the loss and the metrics are means over tokens that are no padding, so that
    the last token of a text weighs as much as any other.

    Args:
      module: maps tokens to logits, those at a place by what is before it: of `models.get`.
      length: tokens a sequence.
      vocabulary: the number of tokens, padding included.
    """

    def preprocess(batch: PyTree, key: Any) -> PyTree:
        del key
        return {"tokens": jnp.asarray(batch["tokens"]).astype(jnp.int32)}

    def init(key: Any) -> tuple[PyTree, PyTree]:
        variables = dict(module.init(key, jnp.zeros((1, length), jnp.int32), train=False))
        return variables.pop("params"), variables

    def loss(
        params: PyTree,
        model_state: PyTree,
        batch: PyTree,
        key: Any,
        hyperparameters: Hyperparameters,
    ) -> tuple[tuple[Array, Array], PyTree]:
        tokens = batch["tokens"]
        rates: dict[str, Any] = {}
        if "dropout_rate" in hyperparameters:
            rates["dropout_rate"] = hyperparameters["dropout_rate"]
        logits: Any = module.apply(
            {"params": params}, tokens, train=True, rngs={"dropout": key}, **rates
        )
        logits = wide(logits)
        losses = _cross_entropy(logits, tokens)
        losses = _regularised.smoothed(losses, logits, hyperparameters)
        real = tokens != PADDING
        summed, count = total(jnp.where(real, losses, 0)), real.sum()
        return (_regularised.with_l2(summed, count, params, hyperparameters), count), model_state

    def metrics(params: PyTree, model_state: PyTree, batch: PyTree) -> Mapping[str, PyTree]:
        del model_state
        tokens = batch["tokens"]
        logits: Any = module.apply({"params": params}, tokens, train=False)
        real = tokens != PADDING
        wrong = (logits.argmax(-1).astype(tokens.dtype) != tokens) & real
        losses = jnp.where(real, _cross_entropy(wide(logits), tokens), 0)
        return {"error": (total(wrong), real.sum()), "loss": (total(losses), real.sum())}

    return {
        "init": init,
        "loss": loss,
        "metrics": metrics,
        "preprocess": preprocess,
        "hyperparameters": ("dropout_rate", "label_smoothing", "l2"),
        "classes": vocabulary,
        "labels": "tokens",
    }


def _cross_entropy(
    logits: Float[Array, "batch length vocabulary"], tokens: Int[Array, "batch length"]
) -> Float[Array, "batch length"]:
    return optax.softmax_cross_entropy_with_integer_labels(logits, tokens)
