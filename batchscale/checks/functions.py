"""Whether the functions of a workload fit together, its data and a goal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from batchscale import arrays, columns, keys
from batchscale.metrics import Goal
from batchscale.metrics.goal import BOUNDS
from batchscale.workloads import Workload, tracing

_LOSS = (
    " The loss is measured where the workload's metrics return it, too: "
    '{"loss": (sum, count), ...}.'
)
_EXAMPLES = 2  # what is of one shape by chance with one example is told apart


class Shapes(NamedTuple):
    """The shapes and types of what the functions of a workload are given.

    Attributes:
      params: from `init`.
      model_state: from `init`.
      batch: two examples of the training set, as they are in the data.
      key: of a trial.
      values: the hyperparameters.
    """

    params: PyTree
    model_state: PyTree
    batch: PyTree
    key: Any
    values: dict[str, jax.ShapeDtypeStruct]

    @classmethod
    def of(cls, workload: Workload, names: Iterable[str]) -> Shapes:
        """Those of a workload; loads its data, and starts no backend."""
        train = workload.splits()["train"]
        some = arrays.like_examples(dict(train), _EXAMPLES)
        key = keys.shape()
        with tracing.told(
            f"workload {workload.name!r}: its init",
            lookup="",
            remedy="It is called as init(key), and returns (params, model_state).",
        ):
            made = tracing.shapes(workload.init, key)
        if not isinstance(made, tuple) or len(made) != 2:
            raise ValueError(
                f"workload {workload.name!r}: its init returns {tracing.described(made)}, wanted "
                "(params, model_state); the state may be {}: return params, {}."
            )
        values = dict.fromkeys(names, jax.ShapeDtypeStruct((), arrays.float_type()))
        return cls(*made, some, key, values)


def metric(goal: Goal, workload: Workload, names: Iterable[str]) -> None:
    """Checks that a workload's functions fit its data and the goal; loads its data.

    Args:
      goal: whose metric it should have.
      workload: whose loss and metrics are traced, and not compiled.
      names: the hyperparameters that the loss is given.
    """
    shapes = Shapes.of(workload, names)
    _check_parameters(workload, shapes.params)
    prepared = _traced(workload, shapes, "preprocess", workload.prepare, shapes.batch, shapes.key)
    state = shapes.params, shapes.model_state
    given = (*state, prepared, shapes.key, shapes.values)
    _check_loss(workload, shapes, _traced(workload, shapes, "loss", workload.loss, *given))

    def plain(batch: PyTree) -> PyTree:
        return workload.prepare(batch, None)

    prepared = _traced(workload, shapes, "preprocess", plain, shapes.batch)
    metrics = _traced(workload, shapes, "metrics", workload.metrics, *state, prepared)
    _check_metrics(workload, metrics)
    known = [f"{split}/{name}" for split in workload.splits() for name in metrics]
    if goal.metric not in known:
        raise ValueError(
            f"goal: workload {workload.name!r} has no metric {goal.metric!r}; "
            f"wanted one of {', '.join(known)}."
            + _LOSS
            * (goal.name == "loss" and goal.split in workload.splits())
        )


def _traced(workload: Workload, shapes: Shapes, what: str, function: Any, *given: PyTree) -> Any:
    with tracing.told(
        f"workload {workload.name!r}: its {what}",
        lookup=lookup(shapes),
        remedy=f"It was traced on two examples: {tracing.described(shapes.batch)}."
        + _of_labels(workload, shapes.batch),
    ):
        return tracing.shapes(function, *given)


def lookup(shapes: Shapes) -> str:
    """What a workload's functions can look up, in words."""
    fields = shapes.params if isinstance(shapes.params, Mapping) else ()
    return (
        f"The fields of its examples are {', '.join(shapes.batch)}; those of its parameters "
        f"{', '.join(map(str, fields)) or 'none'}; and the hyperparameters are "
        f"{', '.join(shapes.values)}."
    )


def _of_labels(workload: Workload, batch: Mapping[str, Any]) -> str:
    """What to do about labels of a shape that is often a mistake."""
    labels = batch.get(workload.labels)
    if labels is None or len(labels.shape) != 2:
        return ""
    if labels.shape[1] == 1:
        return (
            f" The labels {workload.labels!r} have the shape (N, 1); if there is one an example, "
            "give labels[:, 0]."
        )
    return (
        f" The labels {workload.labels!r} have the shape (N, {labels.shape[1]}); if they are "
        "one-hot, give labels.argmax(-1), the integers."
    )


def _check_parameters(workload: Workload, params: PyTree) -> None:
    leaves = jax.tree.leaves(params)
    if not sum(leaf.size for leaf in leaves):
        raise ValueError(
            f"workload {workload.name!r}: its init makes no parameters (got {params}), so that "
            "there is nothing to train. Return them first, and what is not trained as the model's "
            "state."
        )
    if any(not jnp.issubdtype(leaf.dtype, jnp.inexact) for leaf in leaves):
        raise ValueError(
            f"workload {workload.name!r}: its parameters hold integers or keys, which have no "
            f"gradient ({tracing.described(params)}). Put them into the model's state, or make "
            "floats of them."
        )


def _check_finalize(workload: Workload, name: str, sums: PyTree) -> None:
    """Tries a function of added sums on some: for what it looks up, and what it returns.

    The sums are made up, so that arithmetic may fail on them which never does on real ones.
    """
    leaves, structure = jax.tree.flatten(sums)
    made = [np.full(leaf.shape, 2 + n, leaf.dtype) for n, leaf in enumerate(leaves)]
    try:
        workload.finalized(name, jax.tree.unflatten(structure, made))
    except ValueError as error:
        if not isinstance(error.__cause__, ArithmeticError | ValueError):
            raise


def _check_sums(workload: Workload, what: str, sums: PyTree) -> None:
    for leaf in jax.tree.leaves(sums):
        if jnp.issubdtype(leaf.dtype, jnp.complexfloating):
            raise ValueError(
                f"workload {workload.name!r}: a sum or a count of its {what} is {leaf.dtype}, "
                "wanted real numbers: a complex one is past no goal, and no gradient is taken of "
                "it. Take .real or jnp.abs(...) of the values before they are summed."
            )
        if leaf.dtype.itemsize < 4:
            raise ValueError(
                f"workload {workload.name!r}: a sum or a count of its {what} is {leaf.dtype}, "
                "wanted 32 bits or more, since narrower ones stop growing or overflow as batches "
                "grow. Sum floats with .sum(dtype=jnp.float32), and count with "
                ".sum(dtype=jnp.int32)."
            )


def _check_loss(workload: Workload, shapes: Shapes, loss: Any) -> None:
    match loss:
        case ((total, count), model_state) if all(
            getattr(x, "shape", None) == () for x in (total, count)
        ):
            pass
        case _:
            raise ValueError(
                f"workload {workload.name!r}: its loss returns {loss}, wanted "
                "((sum, count), model_state), where the sum over the batch and the count are "
                "scalars. Workload.from_functions takes a loss that returns one value an example."
            )
    _check_sums(workload, "loss", loss[0])
    if not jnp.issubdtype(total.dtype, jnp.floating):
        raise ValueError(
            f"workload {workload.name!r}: its loss is {total.dtype}, and integers and booleans "
            "have no gradient: nothing would be trained. Return a loss that is smooth in the "
            "parameters, such as a cross-entropy, and the count of mistakes as a metric."
        )
    if not tracing.alike(shapes.model_state, model_state):
        raise ValueError(
            f"workload {workload.name!r}: its loss returns the model's state "
            f"{tracing.described(model_state)}, wanted that of init again, "
            f"{tracing.described(shapes.model_state)}."
        )
    pairs = zip(jax.tree.leaves(model_state), jax.tree.leaves(shapes.model_state), strict=True)
    if not all(
        keys.is_key(now) or arrays.keeps_kind(now.dtype, first.dtype) for now, first in pairs
    ):
        raise ValueError(
            f"workload {workload.name!r}: its loss makes floats ({tracing.described(model_state)}) "
            "of integers in the model's state that init returns "
            f"({tracing.described(shapes.model_state)}), and only whole numbers would be kept. "
            "Begin them as floats: 0.0 for 0."
        )


def _check_metrics(workload: Workload, metrics: Any) -> None:
    if not isinstance(metrics, Mapping):
        raise ValueError(
            f"workload {workload.name!r}: its metrics return {metrics}, wanted a mapping, "
            "{name: (sum, count)}."
        )
    for name, value in metrics.items():
        columns.check_name(f"workload {workload.name!r}: a metric", name)
        if name.endswith(BOUNDS):
            raise ValueError(
                f"workload {workload.name!r}: a metric is called {name!r}, and columns that end in "
                f"{' or '.join(BOUNDS)} hold the bounds of evaluations that were cut short. Give "
                "it another name."
            )
        _check_sums(workload, f"metric {name!r}", value)
        if name in workload.finalize:
            _check_finalize(workload, name, value)
            continue
        match value:
            case (total, count) if all(getattr(x, "shape", None) == () for x in (total, count)):
                pass
            case _:
                raise ValueError(
                    f"workload {workload.name!r}: its metric {name!r} is {value}, wanted "
                    "(sum, count), two scalars over the batch, which are added over batches before "
                    "they are divided; for anything else return sums that add, and "
                    f"finalize={{{name!r}: function of the added sums}}."
                )
    unknown = [name for name in workload.finalize if name not in metrics]
    if unknown:
        raise ValueError(
            f"finalize: workload {workload.name!r} has no metric {unknown[0]!r}; wanted some of "
            f"{', '.join(metrics)}."
        )
