"""Fingerprints, by which a changed workload is noticed before its rows join older ones."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import jax
import numpy as np
from jaxtyping import PyTree

from batchscale import arrays, datasets, jitting, keys
from batchscale.optimizers import Optimizer
from batchscale.schedules import Schedule
from batchscale.workloads import Workload


def fingerprint(
    workload: Workload, optimizer: Optimizer, schedule: Schedule, names: Sequence[str]
) -> dict[str, str]:
    """Digests of the data and of the program.

    Args:
      workload: its splits are hashed byte by byte; its `init`, `loss` and `metrics` as the
        program that JAX makes of them; its `finalize`, which runs on the host, as what it makes of
        a few sums.
      optimizer: its update is part of the program.
      schedule: so is the learning rate.
      names: the hyperparameters.

    Returns:
      `data`; `program`; `compiler`, without which programs cannot be compared, since the text
      of the same program changes with the version of JAX; and `finalize`, if there is any.
    """
    splits = workload.splits()
    with jitting.as_usual():
        lowered = jax.jit(_program(workload, optimizer, schedule)).lower(
            keys.shape(),
            arrays.like_examples(splits["train"], 2),
            jax.ShapeDtypeStruct((), np.int32),
            {name: jax.ShapeDtypeStruct((), arrays.float_type()) for name in names},
        )
    digest = hashlib.blake2b(lowered.as_text().encode(), digest_size=16).hexdigest()
    floats = arrays.float_type()
    compiler = f"jax {jax.__version__}, {jax.default_backend()}, {floats}"
    found = {"data": datasets.fingerprint(splits), "program": digest, "compiler": compiler}
    if not workload.finalize:
        return found
    first = _finalized(workload)
    # One that draws says nothing.
    return found | ({"finalize": first} if first == _finalized(workload) else {})


def changes(there: Mapping[str, str], here: Mapping[str, str]) -> list[str]:
    """What differs between two fingerprints, in words.

    >>> changes({"data": "a", "program": "b", "compiler": "c"},
    ...         {"data": "z", "program": "x", "compiler": "y"})
    ['the data']
    """
    found = []
    if there["data"] != here["data"]:
        streamed = [one["data"].startswith("streamed") for one in (there, here)]
        kept = " (arrays and streams are not compared)" if len(set(streamed)) == 2 else ""
        found = [f"the data{kept}"]
    if there["compiler"] == here["compiler"] and there["program"] != here["program"]:
        found.append("the model, its loss, its metrics or the optimizer")
    both = {one["finalize"] for one in (there, here) if "finalize" in one}
    if there["compiler"] == here["compiler"] and len(both) == 2:
        found.append("what finalize makes of sums")
    return found


_DRAWS = 4  # a choice


def _finalized(workload: Workload) -> str:
    """What `finalize` makes of a few sums, in words."""
    batch = arrays.like_examples(workload.splits()["train"], 2)

    def metrics(key: PyTree, batch: PyTree) -> PyTree:
        params, model_state = workload.init(key)
        return workload.metrics(params, model_state, workload.prepare(batch, None))

    shapes = jax.eval_shape(metrics, keys.shape(), batch)
    random = np.random.default_rng(0)

    def sums(shape: jax.ShapeDtypeStruct) -> np.ndarray:
        drawn = random.uniform(1, 100, shape.shape)
        return (np.sort(drawn, axis=None).reshape(shape.shape)).astype(shape.dtype)

    found = []
    for name in sorted(workload.finalize):
        for _ in range(_DRAWS):
            try:
                value = f"{workload.finalized(name, jax.tree.map(sums, shapes[name])):.5g}"
            except ValueError:  # these may be no sums that it could be given
                value = "refused"
            found.append(f"{name} {value}")
    return hashlib.blake2b("; ".join(found).encode(), digest_size=16).hexdigest()


def _program(workload: Workload, optimizer: Optimizer, schedule: Schedule):
    def program(
        key: PyTree, batch: PyTree, step: PyTree, hyperparameters: Mapping[str, PyTree]
    ) -> PyTree:
        params, model_state = workload.init(key)
        learning_rate = schedule(step, hyperparameters)
        transformation = optimizer.transformation(hyperparameters, learning_rate)
        updates, opt_state = transformation.update(params, transformation.init(params), params)
        train = workload.loss(
            params, model_state, workload.prepare(batch, key), key, hyperparameters
        )
        metrics = workload.metrics(params, model_state, workload.prepare(batch, None))
        if workload.evaluated_parameters is not None:
            params = workload.evaluated_parameters(params, opt_state)
        return updates, train, metrics, params

    return program
