"""The training loss at one point: gradients, single or of batches, and Hessian-vector products."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Int, Integer, PyTree

from batchscale import arrays, datasets, given, keys, numeric
from batchscale.engine import devices
from batchscale.engine.layout import evaluation_batch
from batchscale.theory._asked import check_workload
from batchscale.workloads import Workload
from batchscale.workloads.coupling import mixes_examples

_FLOATS = 2**22  # a choice: of the gradients of single examples at once, as a CPU's cache holds

_Vector = Float[np.ndarray, " parameters"]


class _Point(NamedTuple):
    """Where the loss is taken: everything traced, so that many points share a program."""

    params: PyTree[Array]
    model_state: PyTree[Array]
    hyperparameters: Mapping[str, Float[Array, ""]]


class Sums(NamedTuple):
    """Of some examples: the gradient of the sum of their losses, that sum, and its count."""

    gradient: _Vector
    loss: float
    weight: float


def check_single(
    workload: Workload, model_state: PyTree, hyperparameters: Mapping[str, float]
) -> None:
    """Refuses what has no gradient of single examples.

    Args:
      workload: its loss.
      model_state: of its model, or the shapes of that.
      hyperparameters: that the loss is given, by name.

    Raises:
      ValueError: the loss of an example depends on the other examples of its batch.
    """
    if jax.tree.leaves(model_state):
        raise ValueError(
            f"model_state: {workload.name!r} keeps some, as models do that normalise by "
            "the statistics of a batch: an example has no gradient of its own there. Use "
            "noise_scale_of_batches."
        )
    if mixes_examples(workload, hyperparameters):
        raise ValueError(
            f"loss: that of an example of {workload.name!r} depends on the others of its batch, as "
            "norms of batches and losses of pairs have it: an example has no gradient of its own. "
            "Use noise_scale_of_batches."
        )


class TrainingLoss:
    """The loss that training takes gradients of, at one point, over examples of a split.

    The loss is that of training, not the one that is evaluated: dropout and augmentation are on,
    and so is label smoothing. Their randomness is of the seed, the draw and the example; in
    batches, of the seed, the draw and the first example. The model's state is used and left as it
    is. Sums over examples are made on the host, in float64.

    Args:
      workload: loss and data.
      params: where.
      model_state: what the model keeps besides; None is none.
      hyperparameters: those that the loss reads, by name; None is none.
      split: of the workload.
      seed: of the randomness.
    """

    def __init__(
        self,
        workload: Workload,
        params: PyTree,
        model_state: PyTree,
        hyperparameters: Mapping[str, float] | None,
        *,
        split: str,
        seed: int,
    ) -> None:
        check_workload(workload)
        values = {} if hyperparameters is None else hyperparameters
        given.instance("hyperparameters", values, Mapping, "numbers by name")
        for name, value in values.items():
            number = numeric.plain(value)
            if not isinstance(name, str) or number is None or not math.isfinite(number):
                raise ValueError(f"hyperparameters: got {name!r}: {value!r}, wanted numbers.")
        numeric.integer("seed", seed, 0, keys.LARGEST)
        devices.ask_for_cores()
        splits = workload.splits()
        if not isinstance(split, str) or split not in splits:
            raise ValueError(
                f"split: workload {workload.name!r} has no {split!r}; wanted one of "
                f"{', '.join(splits)}."
            )
        self.workload = workload
        self._data = splits[split]
        self.size = arrays.examples(self._data)
        self._check(params)
        self._point = _Point(
            jax.tree.map(jnp.asarray, params),
            {} if model_state is None else jax.tree.map(jnp.asarray, model_state),
            {name: jnp.asarray(value, float) for name, value in values.items()},
        )
        self._seed = int(seed)
        self.parameters = sum(x.size for x in jax.tree.leaves(self._point.params))
        self.dtype = jnp.result_type(*jax.tree.leaves(self._point.params))

    def _check(self, params: PyTree) -> None:
        wanted, _ = jax.eval_shape(self.workload.init, keys.shape())
        shapes = [
            (jax.tree.structure(tree), [np.shape(x) for x in jax.tree.leaves(tree)])
            for tree in (params, wanted)
        ]
        if shapes[0] != shapes[1]:
            raise ValueError(
                f"params: got arrays of shapes {shapes[0][1]}, wanted those of workload "
                f"{self.workload.name!r}: {shapes[1][1]}, in the structure that its init returns."
            )

    def sample(self, examples: int | None, *, fewest: int) -> Int[np.ndarray, " examples"]:
        """So many examples, drawn without replacement; all of them by default."""
        if examples is None:
            return np.arange(self.size)
        numeric.integer("examples", examples, fewest, self.size)
        chosen = self.random().choice(self.size, examples, replace=False)
        return np.sort(chosen)

    def random(self) -> np.random.Generator:
        """The randomness of choices on the host."""
        return np.random.default_rng(self._seed)

    def microbatch(
        self, asked: int | Literal["auto"], examples: int, *, single: bool = False
    ) -> int:
        """Examples at once; where their gradients are held one by one, as many as fit."""
        if asked != "auto":
            return min(numeric.integer("microbatch", asked, 1), examples)
        most = max(1, _FLOATS // self.parameters) if single else examples
        return min(evaluation_batch(examples), most)

    def sums(self, examples: Int[np.ndarray, " examples"], *, draw: int = 0) -> Sums:
        """The gradient of the sum of the losses of examples, as one batch."""
        out = _sums(self.workload, self._point, self._batch(examples), self._key(draw, examples[0]))
        gradient, loss, count = jax.device_get(out)
        return Sums(gradient.astype(np.float64), float(loss), float(count))

    def curvature(
        self,
        examples: Int[np.ndarray, " examples"],
        directions: Float[Any, "directions parameters"],
    ) -> tuple[Float[np.ndarray, "directions parameters"], float]:
        """Products with the Hessian of the sum of the losses of one batch, and what it counts."""
        out = _curvature(
            self.workload,
            self._point,
            self._batch(examples),
            self._key(0, examples[0]),
            jnp.asarray(directions, self.dtype),
        )
        products, count = jax.device_get(out)
        return products.astype(np.float64), float(count)

    def squares_of_curvature(
        self, examples: Int[np.ndarray, " examples"], directions: Float[Array, "v parameters"]
    ) -> tuple[Float[np.ndarray, " v"], float]:
        """v^T H v of directions v, H as in `curvature`."""
        out = _squares_of_curvature(
            self.workload,
            self._point,
            self._batch(examples),
            self._key(0, examples[0]),
            directions,
        )
        squares, count = jax.device_get(out)
        return squares.astype(np.float64), float(count)

    def moments(
        self, examples: Int[np.ndarray, " examples"]
    ) -> tuple[_Vector, Float[np.ndarray, " examples"], Float[np.ndarray, " examples"]]:
        """Of the gradients of single examples the sum and the squared norms, and their losses.

        Raises:
          ValueError: the losses of examples are means over unequal counts.
        """
        out = _moments(self.workload, self._point, *self._singly(examples))
        total, squares, losses, counts = jax.device_get(out)
        if (counts != counts[0]).any():
            raise ValueError(
                f"loss: it counts {counts.min():g} to {counts.max():g} an example, so that "
                "examples weigh differently in a batch. Use noise_scale_of_batches, or give "
                "noise_scales small and big."
            )
        return (
            total.astype(np.float64) / counts[0],
            squares.astype(np.float64) / float(counts[0]) ** 2,
            losses.astype(np.float64) / counts[0],
        )

    def redrawn(self, examples: Int[np.ndarray, " examples"]) -> Float[np.ndarray, " examples"]:
        """The variance of the gradient of single examples over the randomness of the loss."""
        batch, keys = self._singly(examples)
        _, others = self._singly(examples, draw=1)
        return np.asarray(_redrawn(self.workload, self._point, batch, (keys, others)), np.float64)

    def along(
        self, examples: Int[np.ndarray, " examples"], direction: _Vector
    ) -> Float[np.ndarray, " examples"]:
        """The products of the gradients of single examples with a direction."""
        vector = jnp.asarray(direction, self.dtype)
        out = _along(self.workload, self._point, *self._singly(examples), vector)
        return np.asarray(out, np.float64)

    def single(self, examples: Int[np.ndarray, " examples"]) -> Float[Array, "examples parameters"]:
        """The gradients of the mean losses of single examples, on the device."""
        return _single(self.workload, self._point, *self._singly(examples))

    def _singly(
        self, examples: Int[np.ndarray, " examples"], *, draw: int = 0
    ) -> tuple[PyTree[Array], Any]:
        return self._batch(examples), self._key(draw, examples)

    def _batch(self, examples: Int[np.ndarray, " examples"]) -> PyTree[Array]:
        return jax.tree.map(jnp.asarray, datasets.take(self._data, examples))

    def _key(self, draw: int, examples: Int[Any, "..."]) -> Any:
        return _keys(*np.array([self._seed, draw], np.uint32), np.asarray(examples, np.uint32))


def microbatches(
    examples: Int[np.ndarray, " examples"], size: int
) -> Iterator[Int[np.ndarray, " microbatch"]]:
    """Examples in parts of a size; the last may be smaller.

    >>> [part.tolist() for part in microbatches(np.arange(5), 2)]
    [[0, 1], [2, 3], [4]]
    """
    for first in range(0, len(examples), size):
        yield examples[first : first + size]


@jax.jit
def _keys(
    seed: Integer[Array, ""], draw: Integer[Array, ""], examples: Integer[Array, "..."]
) -> Any:
    key = jax.random.fold_in(keys.key(seed), draw)
    fold = functools.partial(jax.random.fold_in, key)
    return fold(examples) if examples.ndim == 0 else jax.vmap(fold)(examples)


def _loss(
    workload: Workload, point: _Point, params: PyTree[Array], batch: PyTree[Array], key: Any
) -> tuple[Float[Array, ""], Array]:
    prepare_key, key = jax.random.split(key)
    # Where it matters (TF32 on GPUs): differences of gradients are taken, and curvatures.
    with jax.default_matmul_precision("float32"):
        (total, count), _ = workload.loss(
            params,
            point.model_state,
            workload.prepare(batch, prepare_key),
            key,
            point.hyperparameters,
        )
    return total, count.astype(total.dtype)


@functools.partial(jax.jit, static_argnums=0)
def _sums(
    workload: Workload, point: _Point, batch: PyTree[Array], key: Any
) -> tuple[Float[Array, " parameters"], Float[Array, ""], Array]:
    take = jax.value_and_grad(functools.partial(_loss, workload, point), has_aux=True)
    (total, count), gradient = take(point.params, batch, key)
    return ravel_pytree(gradient)[0], total, count


def _of_each(
    workload: Workload, point: _Point, batch: PyTree[Array], keys: Any
) -> tuple[PyTree[Float[Array, "examples ..."]], Array]:
    """The gradients of the losses of single examples, and what the losses count."""

    def one(example: PyTree[Array], key: Any) -> tuple[PyTree[Array], Array]:
        alone = jax.tree.map(lambda x: x[None], example)
        return jax.grad(functools.partial(_loss, workload, point), has_aux=True)(
            point.params, alone, key
        )

    return jax.vmap(one)(batch, keys)


def _squared(gradients: PyTree[Float[Array, "examples ..."]]) -> Float[Array, " examples"]:
    return _products_with(gradients, gradients)


def _products_with(
    gradients: PyTree[Float[Array, "examples ..."]], others: PyTree[Array]
) -> Float[Array, " examples"]:
    def of(x: Array, y: Array) -> Float[Array, " examples"]:
        return (x * jnp.broadcast_to(y, x.shape)).sum(tuple(range(1, x.ndim)))

    products = jax.tree.map(of, gradients, others)
    return jnp.sum(jnp.stack(jax.tree.leaves(products)), 0)


@functools.partial(jax.jit, static_argnums=0)
def _moments(
    workload: Workload, point: _Point, batch: PyTree[Array], keys: Any
) -> tuple[Array, Array, Array, Array]:
    # The sum is a gradient by itself: products of matrices, where a sum of gradients is none.
    def total(params: PyTree[Array]) -> tuple[Float[Array, ""], Array]:
        def one(example: PyTree[Array], key: Any) -> Float[Array, ""]:
            alone = jax.tree.map(lambda x: x[None], example)
            return _loss(workload, point, params, alone, key)[0]

        losses = jax.vmap(one)(batch, keys)
        return losses.sum(), losses

    summed, losses = jax.grad(total, has_aux=True)(point.params)
    gradients, counts = _of_each(workload, point, batch, keys)
    return ravel_pytree(summed)[0], _squared(gradients), losses, counts


@functools.partial(jax.jit, static_argnums=0)
def _redrawn(
    workload: Workload, point: _Point, batch: PyTree[Array], keys: tuple[Any, Any]
) -> Float[Array, " examples"]:
    (some, counts), (others, _) = (_of_each(workload, point, batch, key) for key in keys)
    return _squared(jax.tree.map(jnp.subtract, some, others)) / (2 * counts**2)


@functools.partial(jax.jit, static_argnums=0)
def _along(
    workload: Workload,
    point: _Point,
    batch: PyTree[Array],
    keys: Any,
    direction: Float[Array, " parameters"],
) -> Float[Array, " examples"]:
    gradients, counts = _of_each(workload, point, batch, keys)
    return _products_with(gradients, ravel_pytree(point.params)[1](direction)) / counts


@functools.partial(jax.jit, static_argnums=0)
def _single(
    workload: Workload, point: _Point, batch: PyTree[Array], keys: Any
) -> Float[Array, "examples parameters"]:
    gradients, counts = _of_each(workload, point, batch, keys)
    return jax.vmap(lambda tree: ravel_pytree(tree)[0])(gradients) / counts[:, None]


def _products(
    workload: Workload,
    point: _Point,
    batch: PyTree[Array],
    key: Any,
    directions: Float[Array, "directions parameters"],
) -> tuple[Float[Array, "directions parameters"], Array]:
    take = jax.grad(functools.partial(_loss, workload, point), has_aux=True)
    _, unravel = ravel_pytree(point.params)

    def product(direction: Float[Array, " parameters"]) -> tuple[Array, Array]:
        _, tangent, count = jax.jvp(
            lambda params: take(params, batch, key),
            (point.params,),
            (unravel(direction),),
            has_aux=True,
        )
        return ravel_pytree(tangent)[0], count

    products, counts = jax.vmap(product, out_axes=(0, None))(directions)
    return products, counts


_curvature = jax.jit(_products, static_argnums=0)


@functools.partial(jax.jit, static_argnums=0)
def _squares_of_curvature(
    workload: Workload,
    point: _Point,
    batch: PyTree[Array],
    key: Any,
    directions: Float[Array, "directions parameters"],
) -> tuple[Float[Array, " directions"], Array]:
    products, count = _products(workload, point, batch, key, directions)
    return (products * directions).sum(1), count
