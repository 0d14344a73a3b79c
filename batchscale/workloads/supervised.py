"""Supervised workloads: a network's outputs, judged by labels."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from batchscale.datasets.splits import some
from batchscale.optimizers import Hyperparameters
from batchscale.workloads import _regularised, losses
from batchscale.workloads.losses import Loss
from batchscale.workloads.networks import Network

Metrics = Mapping[str, Callable[[Any, Any], Any]]


def fields(
    network: Network,
    loss: Loss,
    *,
    labels: str,
    preprocess: Callable[[PyTree, Any], PyTree] | None = None,
    metrics: Metrics | None = None,
    finalize: Mapping[str, Callable[[PyTree], float]] | None = None,
) -> dict[str, Any]:
    """The fields of a `Workload` that is trained on labels, all but its name and its data.

    A batch has the field of the labels, and the inputs: the one other field, or all others as a
    mapping. `l2` adds l2 / 2 times the sum of squared parameters.

    Args:
      network: maps inputs to outputs.
      loss: of outputs and labels.
      labels: the field of the labels.
      preprocess: of a batch.
      metrics: more of them, by name: functions of (outputs, labels).
      finalize: of those that are no mean.

    Raises:
      ValueError: a metric has a name that there is already, or `finalize` names none.
    """
    more, made = dict(metrics or {}), dict(finalize or {})

    unknown = [name for name in made if name not in more]
    if unknown:
        raise ValueError(
            f"finalize: there is no metric {unknown[0]!r}; wanted some of "
            f"{', '.join(more) or 'none'}."
        )

    def trained(
        params: PyTree,
        model_state: PyTree,
        batch: PyTree,
        key: Any,
        hyperparameters: Hyperparameters,
    ) -> tuple[tuple[Array, Array], PyTree]:
        outputs, model_state = network.apply(
            params, model_state, inputs(batch, labels), key, hyperparameters
        )
        summed, count = loss.trained(outputs, batch[labels], hyperparameters)
        return (_regularised.with_l2(summed, count, params, hyperparameters), count), model_state

    def measured(params: PyTree, model_state: PyTree, batch: PyTree) -> Mapping[str, PyTree]:
        outputs, _ = network.apply(params, model_state, inputs(batch, labels), None, {})
        found = loss.measured(outputs, batch[labels])
        twice = sorted(set(found) & set(more))
        if twice:
            raise ValueError(
                f"metrics: {twice[0]!r} is measured already, with the loss. Give it another name."
            )
        for name, metric in more.items():
            value = metric(outputs, batch[labels])
            found[name] = value if name in made else losses.sums(name, value, batch[labels])
        return found

    return {
        "init": network.init,
        "loss": trained,
        "metrics": measured,
        "preprocess": preprocess,
        "finalize": {**loss.finalize, **made},
        "hyperparameters": (*loss.hyperparameters, "l2", *network.hyperparameters),
        "labels": labels,
        "ghost_batch_size": network.ghost_batch_size,
    }


def inputs(batch: PyTree, labels: str) -> PyTree:
    """The inputs of a batch: what is not the labels.

    >>> inputs({"image": 1, "label": 2}, "label"), inputs({"a": 1, "b": 2, "label": 3}, "label")
    (1, {'a': 1, 'b': 2})
    """
    others = {name: value for name, value in batch.items() if name != labels}
    return next(iter(others.values())) if len(others) == 1 else others


def batch_of_one(split: Mapping[str, np.ndarray]) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes and types of a batch of one example."""
    return {
        name: jax.ShapeDtypeStruct((1, *values.shape[1:]), values.dtype)
        for name, values in split.items()
    }


def only_field(split: Mapping[str, np.ndarray]) -> str:
    """The name of the field of sequences of tokens."""
    if len(split) != 1:
        raise ValueError(
            f"data: got the fields {sorted(split)}, wanted one, the tokens, of which each is the "
            'label of those before it; such as {"train": tokens}, of shape (sequences, length).'
        )
    name, tokens = next(iter(split.items()))
    if len(tokens.shape) != 2 or tokens.shape[1] < 2:
        raise ValueError(
            f"data: {name!r} has the shape {tokens.shape}, wanted (sequences, length), of at least "
            "two tokens each."
        )
    return name


def scaled(labels: str, scale: float) -> Callable[[PyTree, Any], PyTree]:
    """A `preprocess` that divides unsigned 8-bit inputs by a number, and leaves all else."""

    def preprocess(batch: PyTree, key: Any) -> PyTree:
        del key
        return {k: _scaled(v, scale) if k != labels else v for k, v in batch.items()}

    return preprocess


def check_unsigned(splits: Mapping[str, Mapping[str, Any]], labels: str, *, scaled: bool) -> None:
    """Refuses unsigned 8-bit inputs that are not sure to be pixels, or are so in some splits alone.

    Args:
      splits: arrays by split and field.
      labels: the field of the labels, which may be of any type.
      scaled: whether it was said by what they are divided.

    Raises:
      ValueError: an example of such an input has fewer than two dimensions, or is of 0 and 1 alone,
        and nothing was said; or the input is of another type in another split.
    """
    for name, x in splits["train"].items():
        types = {split: fields[name].dtype for split, fields in splits.items()}
        if name == labels or np.uint8 not in types.values():
            continue
        if len(set(types.values())) > 1:
            got = ", ".join(f"{dtype} in {split!r}" for split, dtype in types.items())
            raise ValueError(
                f"data: {name!r} is {got}, and unsigned 8-bit inputs alone are divided. Give every "
                "split the same type."
            )
        flat, shape = len(x.shape) < 3, x.shape[1:]
        if not scaled and (flat or some(x).max() == 1):
            raise ValueError(
                f"data: {name!r} is unsigned 8-bit, an example of shape {shape}"
                f"{'' if flat else ' with nothing above 1'}: it may be pixels, tokens or a mask. "
                "Of pixels say what they are divided by, scale=255, as earlier versions did; give "
                "the others as 32-bit integers or floats, which are taken as they are."
            )


def shifted(field: str, ignored: int | None) -> Callable[[PyTree, Any], PyTree]:
    """A `preprocess` of sequences of tokens: all but the last as `input`, the next as `label`."""

    def preprocess(batch: PyTree, key: Any) -> PyTree:
        del key
        tokens = jnp.asarray(batch[field]).astype(jnp.int32)
        # What is ignored may be no token, and no index: the model sees the first one in its place.
        seen = tokens if ignored is None else jnp.where(tokens == ignored, 0, tokens)
        return {"input": jnp.maximum(seen[:, :-1], 0), "label": tokens[:, 1:]}

    return preprocess


def _scaled(x: Array, scale: float) -> Array:
    return x.astype(float) / scale if x.dtype == jnp.uint8 else x
