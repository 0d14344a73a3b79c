"""What a trial's updates depend on: every hyperparameter, and the schedule, should be heard.

A hyperparameter that nothing reads would be given a best value all the same, by luck. So the
functions of a step are traced, and from what is trained it is followed back to what it was computed
from. This is a matter of structure, not of values: 0 * x depends on x.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree

from batchscale import arrays, keys, schedules, train
from batchscale.checks.functions import Shapes, lookup
from batchscale.optimizers import Optimizer
from batchscale.schedules import OfSteps, Schedule
from batchscale.workloads import Workload, tracing
from batchscale.workloads.tracing import Traced


def updates(
    workload: Workload,
    optimizer: Optimizer,
    schedule: str | Schedule | OfSteps,
    names: Iterable[str],
) -> int:
    """Refuses hyperparameters and schedules that no update depends on, and losses without gradient.

    Traces a step; loads the data, and starts no backend.

    Args:
      workload: whose functions fit, as `metric` says.
      optimizer: the update.
      schedule: the learning rate.
      names: of the hyperparameters.

    Returns:
      The bytes that a trial needs at least: its parameters and its states.

    Raises:
      ValueError: what is not heard, or cannot be trained.
    """
    shapes = Shapes.of(workload, names)
    read = _gradient(workload, shapes)
    init, update = _optimizer(optimizer, shapes)
    wanted = _evaluated(workload, shapes, init.shapes)
    heard, values, wanted = _steps(update, shapes, wanted)
    read |= values | _true(init.reads(wanted)[1])

    function, title = schedules.get(schedule)[0], schedules.name(schedule)
    step = jax.ShapeDtypeStruct((), np.int32)
    rate = Traced(function, step, shapes.values)
    if heard:
        read |= _true(rate.reads()[1])
    elif not rate.returns("learning_rate"):
        raise ValueError(
            f"schedule: optimizer {optimizer.name!r} does not hear schedule {title!r}: what it "
            "does at a step does not depend on h['learning_rate'] at that step, only, if at all, "
            "on that from before the first, as with optax.inject_hyperparams, which keeps it. Make "
            "the transformation of h['learning_rate'] itself, such as lambda h: "
            "optax.sgd(h['learning_rate']): it is made at every step, with the schedule's value."
        )
    unread = [name for name in shapes.values if name not in read]
    if unread:
        raise ValueError(
            f"space: nothing reads {', '.join(map(repr, unread))}: neither the updates of "
            f"optimizer {optimizer.name!r} and schedule {title!r} nor the gradient of workload "
            f"{workload.name!r} depend on it, whatever its value. They depend on "
            f"{', '.join(name for name in shapes.values if name in read) or 'none'}. Spell it as "
            "it is read, or take it out of the SearchSpace."
        )
    kept = shapes.params, shapes.model_state, init.shapes
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(kept))


def _true(names: dict[str, bool]) -> set[str]:
    return {name for name, used in names.items() if used}


def _gradient(workload: Workload, shapes: Shapes) -> set[str]:
    """The hyperparameters that the gradient, or the model's state, depends on."""

    def gradient(
        params: PyTree, model_state: PyTree, batch: PyTree, key: Any, values: Any, scale: Any
    ) -> PyTree:
        def mean(params: PyTree) -> Any:
            prepared = workload.prepare(batch, key)
            (total, count), after = workload.loss(params, model_state, prepared, key, values)
            return total / count.astype(total.dtype), after

        value, back, after = jax.vjp(mean, params, has_aux=True)
        return back(scale.astype(value.dtype))[0], after

    scale = jax.ShapeDtypeStruct((), arrays.float_type())
    with tracing.told(
        f"workload {workload.name!r}: the gradient of its loss",
        lookup=lookup(shapes),
        remedy="The loss has to be differentiable in reverse: lax.scan instead of a while_loop, "
        "for example.",
    ):
        traced = Traced(gradient, *shapes, scale)
    parts, after = traced.shapes
    nothing = jax.tree.map(lambda _: False, after)
    # A gradient that is zero for all inputs does not depend on what it is multiplied with.
    if not traced.reads((jax.tree.map(lambda _: True, parts), nothing))[-1]:
        raise ValueError(
            f"workload {workload.name!r}: its loss has no gradient: no parameter reaches it "
            "through anything that can be differentiated, so that nothing would be trained. "
            "jax.lax.stop_gradient, argmax, comparisons and integers have none. Let the loss "
            "depend smoothly on the parameters."
        )
    return _true(traced.reads()[4])


def _optimizer(optimizer: Optimizer, shapes: Shapes) -> tuple[Traced, Traced]:
    """The start of the optimizer, and a step of it."""
    params, values = shapes.params, shapes.values

    def start(params: PyTree, values: Any) -> PyTree:
        return train.start(optimizer, values, params, keys.key(0))

    def step(gradient: PyTree, state: PyTree, params: PyTree, values: Any, rate: Any) -> PyTree:
        return train.update(optimizer, values, rate, gradient, state, params, keys.key(0))

    what = f"optimizer {optimizer.name!r}"
    names = f"The space has the hyperparameters {', '.join(values)}."
    with tracing.told(f"{what}: its init", lookup=names, remedy="It is called as init(params)."):
        init = Traced(start, params, values)
    with tracing.told(
        f"{what}: its update",
        lookup=names,
        remedy="It is called as update(gradient, state, params). A transformation that needs more, "
        "such as the value of the loss or the loss itself (optax.lbfgs and others that search "
        "along a line), cannot be used here; take one that makes do with the gradient.",
    ):
        update = Traced(
            step, params, init.shapes, params, values, jax.ShapeDtypeStruct((), arrays.float_type())
        )
    after, state = update.shapes
    for name, found, expected in (("parameters", after, params), ("state", state, init.shapes)):
        if not tracing.alike(found, expected):
            raise ValueError(
                f"{what}: its update makes {name} of another structure or other shapes "
                f"({tracing.described(found)}) than its init ({tracing.described(expected)}). "
                "Return them as they came."
            )
    return init, update


def _evaluated(workload: Workload, shapes: Shapes, state: PyTree) -> PyTree:
    """Which leaves of the optimizer's state the evaluated parameters are made of."""
    if workload.evaluated_parameters is None:
        return jax.tree.map(lambda _: False, state)
    what = f"workload {workload.name!r}: its evaluated_parameters"
    with tracing.told(
        what,
        lookup=lookup(shapes),
        remedy=f"It is called as f(params, opt_state), with the state {tracing.described(state)}.",
    ):
        traced = Traced(workload.evaluated_parameters, shapes.params, state)
    if not tracing.alike(traced.shapes, shapes.params):
        raise ValueError(
            f"{what} return {tracing.described(traced.shapes)}, wanted parameters as those of "
            f"init, {tracing.described(shapes.params)}."
        )
    return traced.reads()[1]


def _steps(update: Traced, shapes: Shapes, wanted: PyTree) -> tuple[bool, set[str], PyTree]:
    """What the parameters after any number of steps depend on.

    Returns:
      Whether the learning rate is heard; the hyperparameters; the leaves of the first state.
    """
    params = jax.tree.map(lambda _: True, shapes.params)
    while True:
        _, state, _, values, heard = update.reads((params, wanted))
        # What the next step reads has to be made by this one.
        more = jax.tree.map(lambda a, b: a or b, wanted, state)
        if jax.tree.leaves(more) == jax.tree.leaves(wanted):
            return heard, _true(values), wanted
        wanted = more
