"""Whether the loss of an example depends on the others of its batch."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from batchscale.tuner import Distribution, SearchSpace
from batchscale.workloads import Workload

# Choices.
_SAME = 2e-3  # of a ratio
_APART = 1e-3  # of the loss: far above rounding, far below what a norm of batches does


def mixes_examples(workload: Workload, space: SearchSpace) -> bool | None:
    """Whether the loss of an example depends on the others of its batch.

    A loss that sees each example by itself is a sum over them: with the same randomness, what it
    changes by when one of two examples is exchanged does not depend on the other. Norms of batches,
    with running statistics or without, and losses of pairs do not have that property.

    Args:
      workload: its loss, and its training examples, of which four are taken.
      space: of the hyperparameters that the loss is given, without functions of batch size.

    Returns:
      Whether it does; None where the loss is not finite, or there are fewer than four examples.

    Raises:
      ValueError: the loss of a batch grows otherwise than with its examples.

    >>> x = np.linspace(-1, 1, 8, dtype=np.float32)
    >>> def workload(loss):
    ...     return Workload.from_functions(
    ...         lambda key: {"w": jnp.ones(())}, loss, data={"train": (x, x)}
    ...     )
    >>> space = SearchSpace(learning_rate=0.1)
    >>> mixes_examples(workload(lambda p, batch: (p["w"] * batch["input"] - 1) ** 2), space)
    False
    >>> mixes_examples(workload(lambda p, batch: (p["w"] * batch["input"]).mean() ** 2), space)
    True
    """
    train = workload.splits()["train"]
    size = len(jax.tree.leaves(train)[0])
    if size < 4:
        return None
    # A batch of examples of one class would say less.
    some = np.linspace(0, size - 1, 4).astype(int)
    pairs = np.array([(a, b) for a in some[:2] for b in some[2:]])
    batches = jax.tree.map(lambda x: np.asarray(x)[pairs], train)
    values = {name: np.float32(_middle(dimension)) for name, dimension in space.items()}
    key = jax.ShapeDtypeStruct((2,), np.uint32)
    params, model_state = jax.tree.map(_some, jax.eval_shape(workload.init, key))

    @jax.jit
    def sums(params: PyTree, model_state: PyTree) -> Float[Array, "2 2 pairs"]:
        def of(batch: PyTree) -> tuple[Array, Array]:
            prepare_key, key = jax.random.split(jax.random.key(0))
            prepared = workload.prepare(batch, prepare_key)
            return workload.loss(params, model_state, prepared, key, values)[0]

        twice = jax.tree.map(lambda x: np.concatenate([x, x], 1), batches)
        return jnp.array([jax.lax.map(of, batches), jax.lax.map(of, twice)], float)

    found = np.asarray(sums(params, model_state), np.float64)
    losses = found[0, 0]
    if not np.isfinite(found).all() or not found[:, 1].all():
        return None
    _check_scale(workload, *(total / count for total, count in found))
    apart = losses[0] - losses[1] - losses[2] + losses[3]
    return bool(abs(apart) > _APART * np.abs(losses).max())


def _check_scale(
    workload: Workload, once: Float[np.ndarray, " pairs"], twice: Float[np.ndarray, " pairs"]
) -> None:
    """Refuses a loss whose mean over a batch is not that over the batch and a copy of it."""
    for factor, words in (
        (2.0, "a sum over the batch where its mean, or one value an example, is wanted"),
        (0.5, "a mean over the batch where its sum is wanted, with what it counts"),
    ):
        if once.all() and (np.abs(twice / once / factor - 1) < _SAME).all():
            raise ValueError(
                f"loss: of workload {workload.name!r} it is {factor:g} times as large for a batch "
                f"that holds every example twice: it looks like {words}. The learning rate would "
                "grow or shrink with the batch size."
            )


def _some(x: jax.ShapeDtypeStruct) -> np.ndarray:
    """Parameters as a usual initialisation has them: a last layer of zeros would tell nothing.

    Not those of the workload's init, which takes longer to compile than the loss.
    """
    if not jnp.issubdtype(x.dtype, jnp.floating):
        return np.zeros(x.shape, x.dtype)
    values = np.random.default_rng(0).normal(size=x.shape) / np.sqrt(max(np.prod(x.shape[:-1]), 1))
    return np.asarray(values, x.dtype)


def _middle(dimension: Any) -> float:
    if isinstance(dimension, Distribution):
        return float(dimension.value(np.array([0.5]))[0])
    return float(dimension)
