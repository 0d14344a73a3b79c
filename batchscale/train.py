"""The pure training step, a segment of steps, and an exact evaluation: one trial, no I/O.

Nothing here knows of other trials, devices, files or goals. Every function is written for a single
trial; `parallel` maps it over lanes and devices.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int, Integer, Num, PyTree, UInt32

from batchscale import arrays, keys, sampling
from batchscale.optimizers import Hyperparameters, Optimizer, as_usual
from batchscale.sampling import Position
from batchscale.schedules import Schedule
from batchscale.workloads import Workload

_INIT, _SHUFFLE, _LOSS, _OPTIMIZER = 0, 1, 2, 3
_DRAWN_AT_ONCE = 4096  # a choice: what is at work fits a core's cache

Evidence = Callable[[Mapping[str, PyTree[Array]]], Int[Array, ""]]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """The state of one trial.

    Attributes:
      params: what is trained.
      model_state: what the model keeps besides (batch statistics); may be empty.
      opt_state: the optimizer's.
      key: raw key data of the trial, two words; never changes.
    """

    params: PyTree[Array]
    model_state: PyTree[Array]
    opt_state: PyTree[Array]
    key: UInt32[Array, " 2"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Batch:
    """The examples of a step.

    Attributes:
      drawn: places in the data of examples in the order in which they are seen, from `draw`.
      first: the place of the step's first example in `drawn`.
      size: examples a step; traced, so that one executable serves several batch sizes.
    """

    drawn: Int[Array, " places"]
    first: Int[Array, ""] | int
    size: Int[Array, ""] | int


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How trials of a workload are trained: everything static, so it names an executable.

    Attributes:
      workload: data, model, loss and metrics.
      optimizer: the update.
      schedule: the learning rate at a step.
      microbatch: examples whose gradient is taken at once; gradients of microbatches are summed.
      rest: examples of the last, smaller microbatch; 0 where microbatches divide the batch.
      whole: whether the batch is taken at once; if not, the number of microbatches is traced, so
        one executable serves every batch size with the same microbatch and rest.
      full: whether that is the whole training set, in an order that does not matter, which is
        then not drawn.
    """

    workload: Workload
    optimizer: Optimizer
    schedule: Schedule
    microbatch: int
    rest: int = 0
    whole: bool = True
    full: bool = False

    @classmethod
    def of(
        cls,
        workload: Workload,
        optimizer: Optimizer,
        schedule: Schedule,
        *,
        batch_size: int,
        microbatch: int,
        shared: bool = False,
        mixes_examples: bool | None = None,
    ) -> Recipe:
        """The recipe for a batch size.

        Args:
          workload: see `Recipe`.
          optimizer: see `Recipe`.
          schedule: see `Recipe`.
          batch_size: examples a step.
          microbatch: the examples of a microbatch at most.
          shared: whether a batch of one microbatch has the executable of several.
          mixes_examples: whether the loss of an example hangs on others: it may then hang on their
            order, too, which is drawn. None if it is not known.
        """
        if microbatch >= batch_size and not shared:
            whole = batch_size == arrays.examples(workload.splits()["train"])
            full = whole and mixes_examples is False
            return cls(workload, optimizer, schedule, batch_size, full=full)
        return cls(workload, optimizer, schedule, microbatch, batch_size % microbatch, False)


def init(recipe: Recipe, key: UInt32[Array, " 2"], hyperparameters: Hyperparameters) -> TrainState:
    """The state before the first step: parameters from the trial's key, an empty optimizer."""
    params, model_state = recipe.workload.init(_key(key, _INIT))
    opt_state = start(recipe.optimizer, hyperparameters, params, _key(key, _OPTIMIZER))
    return TrainState(params, model_state, opt_state, key)


def start(
    optimizer: Optimizer, hyperparameters: Hyperparameters, params: PyTree[Array], key: Any
) -> PyTree[Array]:
    """The optimizer's state before the first step; `key` is the trial's, for its noise."""
    opt_state = optimizer.transformation(hyperparameters, None, key).init(params)
    if not optimizer.takes_key:
        opt_state = keys.mixed(opt_state, key)  # else the noise of all trials were the same
    # Of types that the next states have too: those of Python's numbers give way to others.
    return _as(opt_state, opt_state)


def update(
    optimizer: Optimizer,
    hyperparameters: Hyperparameters,
    learning_rate: Float[ArrayLike, ""],
    gradient: PyTree[Array],
    opt_state: PyTree[Array],
    params: PyTree[Array],
    key: Any,
) -> tuple[PyTree[Array], PyTree[Array]]:
    """The parameters and the optimizer's state after a gradient, in the types of those before.

    Args:
      optimizer: the update; static.
      hyperparameters: the trial's.
      learning_rate: the schedule's at this step.
      gradient: of the batch's mean loss, in the parameters' types.
      opt_state: before.
      params: before.
      key: the trial's, for a factory that takes it.
    """
    transformation = optimizer.transformation(hyperparameters, learning_rate, key)
    # Of parameters that hold slow ones too, optax wants the gradient of the fast ones.
    if isinstance(gradient, optax.LookaheadParams):
        gradient = gradient.fast
    updates, after = transformation.update(gradient, opt_state, params)
    return as_usual(optax.apply_updates)(params, updates), _as(after, opt_state)


def draw(
    key: UInt32[Array, " 2"],
    position: Position,
    *,
    size: int,
    examples: int,
) -> Int[Array, " size"]:
    """The examples that a trial sees from a position on, in the order in which it sees them.

    They are drawn apart from the steps that use them: one program draws for every batch size, and
    a step costs no hashing.

    Args:
      key: the trial's.
      position: of the first.
      size: how many.
      examples: of the training set.
    """
    shuffle = jax.random.key_data(_key(key, _SHUFFLE))

    def some(first: Int[Array, ""]) -> Int[Array, " chunk"]:
        places = first + jnp.arange(min(_DRAWN_AT_ONCE, size))
        return sampling.indices(shuffle, position, places, examples=examples)

    firsts = jnp.arange(0, size, _DRAWN_AT_ONCE)
    return jax.lax.map(some, firsts).ravel()[:size]


def step(
    recipe: Recipe,
    state: TrainState,
    hyperparameters: Hyperparameters,
    data: PyTree[Array],
    batch: Batch,
    number: Int[Array, ""] | int,
) -> TrainState:
    """One step of one trial: take the gradient of the batch's mean loss, update.

    The gradient is that of the sum over the batch divided by what it counts. A batch that counts
    nothing (all masked) is a step whose gradient is zero: momentum and weight decay go on. States
    keep the types that `init` gave them.

    Args:
      recipe: how to train; static.
      state: the trial's state.
      hyperparameters: the trial's, traced scalars by name.
      data: the training split, or a part of it that has what is drawn, examples along axis 0.
      batch: which of them the step sees.
      number: of the step, from 0.

    Returns:
      The state after the step. A step that diverges makes values that are not finite; nothing
      stops, and `finite` tells.
    """
    gradient, model_state = _gradient(recipe, state, hyperparameters, data, batch, number)
    learning_rate = recipe.schedule(jnp.asarray(number), hyperparameters)
    params, opt_state = update(
        recipe.optimizer,
        hyperparameters,
        learning_rate,
        gradient,
        state.opt_state,
        state.params,
        _key(state.key, _OPTIMIZER),
    )
    return TrainState(params, _as(model_state, state.model_state), opt_state, state.key)


def segment(
    recipe: Recipe,
    state: TrainState,
    hyperparameters: Hyperparameters,
    data: PyTree[Array],
    batch: Batch,
    number: Int[Array, ""] | int,
    steps: Int[Array, ""] | int,
) -> TrainState:
    """Any number of steps; the number is traced, so one executable runs a segment of any length.

    Args:
      recipe: how to train; static.
      state: the trial's state.
      hyperparameters: the trial's, traced scalars by name.
      data: the training split, examples along axis 0.
      batch: of the first step; those of the others follow in `drawn`.
      number: of the first step, from 0.
      steps: how many.
    """

    def body(i: Int[Array, ""], state: TrainState) -> TrainState:
        now = dataclasses.replace(batch, first=batch.first + i * batch.size)
        return step(recipe, state, hyperparameters, data, now, number + i)

    return jax.lax.fori_loop(0, steps, body, state)


def evaluate(
    workload: Workload,
    params: PyTree[Array],
    model_state: PyTree[Array],
    split: PyTree[Array],
    *,
    batch: int,
) -> Mapping[str, PyTree[Array]]:
    """Exact sums of every metric over a split, whatever the evaluation batch.

    Args:
      workload: the metrics; static.
      params: of one trial.
      model_state: of the same trial.
      split: examples along axis 0.
      batch: examples evaluated at once; static. It need not divide the split.

    Returns:
      What the workload's metrics return, with one entry for each evaluation batch along axis 0:
      the host adds them in integers or float64, so nothing is lost to float32.
    """

    def sums(examples: PyTree[Array]) -> Mapping[str, PyTree[Array]]:
        return workload.metrics(params, model_state, workload.prepare(examples, None))

    first, rest = _batches(split, batch)
    parts = jax.lax.map(sums, rest)
    if first is None:
        return parts
    return jax.tree.map(lambda x, more: jnp.concatenate([x[None], more]), sums(first), parts)


def tally(
    workload: Workload,
    params: PyTree[Array],
    model_state: PyTree[Array],
    split: PyTree[Array],
    evidence: Evidence,
    *,
    batch: int,
    enough: Int[Array, ""],
    any_lane: Callable[[Bool[Array, ""]], Bool[Array, ""]] = lambda undecided: undecided,
) -> tuple[Int[Array, ""], Int[Array, ""]]:
    """Adds up evidence over a split, until there is enough of it.

    Args:
      workload: the metrics; static.
      params: of one trial.
      model_state: of the same trial.
      split: examples along axis 0.
      evidence: what the metrics' sums of some examples say against the trial: a count of at least
        0, so that it only grows.
      batch: examples evaluated at once; static.
      enough: at so much the rest of the split is left out.
      any_lane: where trials are vmapped together, whether it is true of any of them: they go
        through the split together.

    Returns:
      The evidence, at least `enough` if and only if that of the whole split is, and how many
      evaluation batches were looked at.
    """

    def of(examples: PyTree[Array]) -> Int[Array, ""]:
        sums = workload.metrics(params, model_state, workload.prepare(examples, None))
        return evidence(sums).astype(jnp.int32)

    def nth(index: Int[Array, ""]) -> PyTree[Array]:
        return jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, index, keepdims=False), rest)

    first, rest = _batches(split, batch)
    found = jnp.zeros((), jnp.int32) if first is None else of(first)
    found, index = jax.lax.while_loop(
        lambda at: (at[1] < arrays.examples(rest)) & any_lane(at[0] < enough),
        lambda at: (at[0] + of(nth(at[1])), at[1] + 1),
        (found, jnp.zeros((), jnp.int32)),
    )
    return found, index + int(first is not None)


def each(
    workload: Workload,
    params: PyTree[Array],
    model_state: PyTree[Array],
    split: PyTree[Array],
    evidence: Evidence,
    *,
    batch: int,
) -> Int[Array, " examples"]:
    """What every single example of a split says against a trial; `tally` adds it up."""

    def of(example: PyTree[Array]) -> Int[Array, ""]:
        alone = workload.prepare(jax.tree.map(lambda x: x[None], example), None)
        return evidence(workload.metrics(params, model_state, alone)).astype(jnp.int32)

    return jax.lax.map(of, split, batch_size=batch)


def finite(tree: PyTree[Array]) -> Bool[Array, ""]:
    """Whether every value of a trial's parameters (or any tree) is finite."""
    leaves = jax.tree.leaves(tree)
    checks = [jnp.all(jnp.isfinite(x)) for x in leaves if jnp.issubdtype(x.dtype, jnp.inexact)]
    return jnp.all(jnp.stack(checks)) if checks else jnp.asarray(True)


def sound(recipe: Recipe, state: TrainState, hyperparameters: Hyperparameters) -> Bool[Array, ""]:
    """Whether the optimizer's state of a trial is finite, but for what begins as infinite.

    A least loss so far begins as infinity, and is no divergence. NaN always is; and so is what has
    become infinite, also where parameters stay finite: a second moment that has overflowed makes
    every update zero.

    Args:
      recipe: how the trial is trained; static.
      state: of the trial.
      hyperparameters: of the trial, by name.
    """
    first = start(recipe.optimizer, hyperparameters, state.params, _key(state.key, _OPTIMIZER))
    pairs = zip(jax.tree.leaves(state.opt_state), jax.tree.leaves(first), strict=True)
    checks = [
        jnp.all(jnp.isfinite(now) | (~jnp.isfinite(first) & ~jnp.isnan(now)))
        for now, first in pairs
        if jnp.issubdtype(now.dtype, jnp.inexact)
    ]
    return jnp.all(jnp.stack(checks)) if checks else jnp.asarray(True)


def trial_key(
    seed: Integer[Array, ""] | int,
    batch_size: Integer[Array, ""] | int,
    number: Integer[Array, ""] | int,
    replicate: Integer[Array, ""] | int,
) -> UInt32[Array, " 2"]:
    """The key of a trial: of what it is called, never of its hyperparameters or its place."""
    key = keys.key(seed)
    for name in (batch_size, number, replicate):
        key = jax.random.fold_in(key, name)
    return jax.random.key_data(key)


def _key(key: UInt32[Array, " 2"], purpose: int) -> Any:
    return jax.random.fold_in(keys.wrap(key), purpose)


def _as(tree: PyTree[Array], like: PyTree[Array]) -> PyTree[Array]:
    """A state in the types of an earlier one."""

    def of(x: Any, like: Any) -> Array:
        if keys.is_key(like):
            return x
        now, dtype = jnp.asarray(x), jnp.asarray(like).dtype
        if not arrays.keeps_kind(now.dtype, dtype):
            raise ValueError(
                f"state: a value begins as {dtype}, and a step makes {now.dtype} of it, of which "
                "only the whole number would be kept. Begin it as a float: 0.0 for 0."
            )
        return now.astype(dtype)

    return jax.tree.map(of, tree, like)


def _batches(split: PyTree[Array], batch: int) -> tuple[PyTree[Array] | None, PyTree[Array]]:
    """A first, smaller batch, where there has to be one, and the whole ones along axis 0."""
    batch = min(batch, arrays.examples(split))
    rest = arrays.examples(split) % batch
    whole = jax.tree.map(lambda x: x[rest:].reshape(-1, batch, *x.shape[1:]), split)
    return (jax.tree.map(lambda x: x[:rest], split) if rest else None), whole


def _gradient(
    recipe: Recipe,
    state: TrainState,
    hyperparameters: Hyperparameters,
    data: PyTree[Array],
    batch: Batch,
    number: Int[Array, ""] | int,
) -> tuple[PyTree[Array], PyTree[Array]]:
    """The gradient of the batch's mean loss, and the model's state after the batch."""
    workload = recipe.workload
    loss_key = jax.random.fold_in(_key(state.key, _LOSS), number)

    def gather(first: Int[Array, ""] | int, count: int) -> PyTree[Array]:
        if recipe.full:
            return data
        indices = jax.lax.dynamic_slice_in_dim(batch.drawn, batch.first + first, count)
        # They lie within the split, and clipping would cost a pass.
        return jax.tree.map(lambda x: x.at[indices].get(mode="promise_in_bounds"), data)

    def loss(
        params: PyTree[Array], model_state: PyTree[Array], first: Int[Array, ""] | int, count: int
    ) -> tuple[Float[Array, ""], tuple[Num[Array, ""], PyTree[Array]]]:
        key = jax.random.fold_in(loss_key, first)
        prepare_key, key = jax.random.split(key)
        (total, weight), model_state = workload.loss(
            params,
            model_state,
            workload.prepare(gather(first, count), prepare_key),
            key,
            hyperparameters,
        )
        return total, (weight, model_state)

    def summed(
        model_state: PyTree[Array], first: Int[Array, ""] | int, count: int
    ) -> tuple[Float[Array, ""], Callable[..., PyTree[Array]], Array, PyTree[Array]]:
        total, pull_back, (weight, model_state) = jax.vjp(
            lambda params: loss(params, model_state, first, count), state.params, has_aux=True
        )
        return total, pull_back, weight.astype(arrays.wide_type(total.dtype)), model_state

    if recipe.whole:
        total, pull_back, weight, model_state = summed(state.model_state, 0, recipe.microbatch)
        (gradient,) = pull_back((1 / _or_infinite(weight)).astype(total.dtype))
        return gradient, model_state

    def add(
        carry: tuple[PyTree[Array], Float[Array, ""], PyTree[Array]],
        first: Int[Array, ""] | int,
        count: int,
    ) -> tuple[PyTree[Array], Float[Array, ""], PyTree[Array]]:
        so_far, weights, model_state = carry
        total, pull_back, weight, model_state = summed(model_state, first, count)
        down, up = _scale(state.params, total.dtype, weight)
        (gradient,) = pull_back(down)
        so_far = jax.tree.map(lambda x, g: x + up(g.astype(x.dtype)), so_far, gradient)
        return so_far, weights + weight, model_state

    total_shape = jax.eval_shape(
        lambda: loss(state.params, state.model_state, 0, recipe.microbatch)[0]
    )
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, arrays.wide_type(x.dtype)), state.params)
    carry = (zeros, jnp.zeros((), arrays.wide_type(total_shape.dtype)), state.model_state)
    count = recipe.microbatch
    microbatches = jnp.asarray(batch.size) // count
    carry = jax.lax.fori_loop(0, microbatches, lambda i, c: add(c, i * count, count), carry)
    if recipe.rest:
        carry = add(carry, microbatches * count, recipe.rest)
    so_far, weights, model_state = carry
    weights = _or_infinite(weights)
    mean = jax.tree.map(lambda x, like: (x / weights).astype(like.dtype), so_far, state.params)
    return mean, model_state


def _or_infinite(weight: Float[Array, ""]) -> Float[Array, ""]:
    """What a sum is divided by, so that one that counts nothing is no gradient."""
    return jnp.where(weight > 0, weight, jnp.inf)


def _scale(
    params: PyTree[Array], dtype: Any, weight: Float[Array, ""]
) -> tuple[Array, Callable[[Array], Array]]:
    """What a sum is pulled back by, and how its gradient is scaled back.

    The gradient of a sum overflows float16 where that of the mean does not, so there it is taken of
    the sum over a power of two that is at least its count. A power of two rounds nothing.
    """
    leaves = [dtype, *(x.dtype for x in jax.tree.leaves(params))]
    if all(jnp.finfo(x).maxexp >= jnp.finfo(jnp.float32).maxexp for x in leaves):
        return jnp.ones((), dtype), lambda x: x
    _, exponent = jnp.frexp(jnp.maximum(weight, 1))
    return jnp.ldexp(jnp.ones((), dtype), -exponent), lambda x: jnp.ldexp(x, exponent)
