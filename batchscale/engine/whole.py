"""Whole evaluations: the sums of every metric over all batches of a split, added on the host."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, PyTree, Shaped

from batchscale import arrays, train
from batchscale.engine import hosts
from batchscale.engine.evaluated import Evaluated, Outcome
from batchscale.engine.layout import Layout
from batchscale.engine.packs import Pack, TrialId
from batchscale.engine.programs import Argument
from batchscale.metrics import Goal
from batchscale.workloads import Workload

Parts: TypeAlias = Mapping[str, PyTree]
"""The sums of every metric, by name: arrays with the trials along axis 0, the batches along 1."""


@dataclasses.dataclass(frozen=True)
class Measured:
    """What an evaluation of packs found.

    Attributes:
      rows: the metrics of every trial, named `split/metric`, in float64; where its evaluation was
        cut short, the bound of the goal's metric instead of that split's.
      diverged: the trials whose parameters, or whose optimizer's state, are no longer finite.
      not_finite: the trials of which, on the goal's split, sums of floats over the examples are
        not, and the metrics' names.
    """

    rows: dict[TrialId, dict[str, float]]
    diverged: set[TrialId]
    not_finite: dict[TrialId, list[str]]


class Whole:
    """Whole evaluations on one split, or on a part of it.

    Args:
      workload: the metrics.
      goal: what is looked for.
      name: of the split.
      split: its examples, on the devices, or their shapes.
      counted: of how many the goal's metric counts some, if evaluations can end early.
      evaluated: what is seen of packs.
      batch: examples evaluated at once.

    Attributes:
      seconds: spent here, without compilation.
    """

    def __init__(
        self,
        workload: Workload,
        goal: Goal,
        name: str,
        split: PyTree[Array],
        counted: int | None,
        evaluated: Evaluated,
        *,
        batch: int | None = None,
    ) -> None:
        self.seconds = 0.0
        self._workload, self._name, self._split = workload, name, split
        self._goal = goal if goal.split == name else None
        self._counted, self._evaluated = counted, evaluated
        self._batch = evaluated.batch(split) if batch is None else batch
        self._parts = jax.eval_shape(
            lambda state, data: self._sums(evaluated.parameters(state), data),
            evaluated.shapes,
            split,
        )
        self._joined = _Joined((jax.ShapeDtypeStruct((), bool), self._parts))

    def compile_ahead(self, layout: Layout) -> None:
        """Begins to compile the program of a layout in the background."""
        self._program(layout)

    def measure(
        self, packs: Sequence[Pack], layout: Layout, trials: set[TrialId], found: Measured
    ) -> None:
        """Adds evaluations of trials to what was found."""
        dispatched = self.dispatch(packs, layout, trials, self._split)
        began = time.monotonic()
        for out, values in zip(
            dispatched, hosts.fetched(out.values for out in dispatched), strict=True
        ):
            self.take_down(*self.parts(out._replace(values=values)), found)
        self.seconds += time.monotonic() - began

    def dispatch(
        self, packs: Sequence[Pack], layout: Layout, trials: set[TrialId], split: PyTree[Array]
    ) -> list[Outcome]:
        """Starts evaluations of trials on examples that are on the devices."""
        program = self._evaluated.wait(self._program(layout))
        began = time.monotonic()
        started = self._evaluated.dispatch(program, packs, trials, split)
        self.seconds += time.monotonic() - began
        return started

    def parts(self, out: Outcome) -> tuple[list[TrialId], Bool[np.ndarray, " trial"], Parts]:
        """The trials of a pack, whether they are finite, and their sums by batch."""
        finite, parts = self._joined.apart(hosts.fetch(out.values))
        lanes = [*out.trials]
        rows = jax.tree.map(lambda x: x[lanes], parts)
        return [*out.trials.values()], np.asarray(finite[lanes], bool), rows

    def take_down(
        self,
        trials: Sequence[TrialId],
        finite: Bool[np.ndarray, " trial"],
        parts: Parts,
        found: Measured,
    ) -> None:
        """Adds up the sums of trials over all batches, and adds their metrics to what was found."""
        sums = {name: jax.tree.map(exact_sum, tree) for name, tree in parts.items()}
        endless = self._not_finite(sums)
        for i, (trial, row) in enumerate(zip(trials, self._rows(sums, len(trials)), strict=True)):
            found.rows[trial] |= row
            if not finite[i]:
                found.diverged.add(trial)
            if names := [name for name, which in endless.items() if which[i]]:
                found.not_finite[trial] = names

    def _not_finite(self, sums: Mapping[str, PyTree]) -> dict[str, Bool[np.ndarray, " trial"]]:
        """Of which trials a sum of floats on the goal's split is not finite, by metric.

        Not what it is divided by: 0 / 0 may well be NaN, as may what `finalize` makes of sums.
        """
        if self._goal is None:
            return {}
        found = {}
        for name, tree in sums.items():
            of = tree if name in self._workload.finalize else tree[0]
            leaves = [x for x in jax.tree.leaves(of) if x.dtype == np.float64]
            found[name] = np.any(
                [~np.isfinite(x).reshape(len(x), -1).all(1) for x in leaves], axis=0
            )
        return {name: which for name, which in found.items() if which.any()}

    def _rows(self, sums: Mapping[str, PyTree], trials: int) -> list[dict[str, float]]:
        """The metrics of every trial."""
        rows: list[dict[str, float]] = [{} for _ in range(trials)]
        for name, tree in sums.items():
            column = f"{self._name}/{name}"
            if name in self._workload.finalize:
                for i, row in enumerate(rows):
                    own = jax.tree.map(lambda x, i=i: x[i], tree)
                    row[column] = self._workload.finalized(name, own)
                continue
            total, count = tree
            with np.errstate(invalid="ignore", divide="ignore"):
                means = (total / count).tolist()
            for row, mean in zip(rows, means, strict=True):
                row[column] = mean
            if self._goal is not None and self._counted is not None and name == self._goal.name:
                for pair in zip(total.tolist(), count.tolist(), strict=True):
                    self._check_count(self._goal, *map(int, pair))
        return rows

    def _check_count(self, goal: Goal, total: int, count: int) -> None:
        if not 0 <= total <= count or count != self._counted:
            raise ValueError(
                f"metrics: the sum of {goal.metric!r} is an integer, and so has to count "
                "some of the examples (0 <= sum <= count, and the same count whatever the "
                "parameters). Return a float if it is something else."
            )

    def _sums(self, parameters: tuple[PyTree, PyTree], data: PyTree[Array]) -> Any:
        return train.evaluate(self._workload, *parameters, data, batch=self._batch)

    def _program(self, layout: Layout) -> Future[Any]:
        def whole(
            state: PyTree[Array], active: Bool[Array, ""], data: PyTree[Array]
        ) -> dict[str, Shaped[Array, " values"]]:
            def skip(parameters: Any) -> Any:
                del parameters
                return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), self._parts)

            parts = jax.lax.cond(
                active,
                lambda parameters: self._sums(parameters, data),
                skip,
                self._evaluated.parameters(state),
            )
            return self._joined.join((train.finite(state[:2]), parts))

        return self._evaluated.begin(
            ("whole", self._name, arrays.examples(self._split)),
            whole,
            Argument("all", self._split),
            layout=layout,
        )


class _Joined:
    """The leaves of a lane's tree as one vector a type.

    Each array that comes back is a transfer, which costs more than what is in it.

    Args:
      tree: the shapes of a lane's leaves.
    """

    def __init__(self, tree: PyTree[jax.ShapeDtypeStruct]) -> None:
        leaves, self._treedef = jax.tree.flatten(tree)
        self._shapes = [(self._kind(x.dtype), x.shape) for x in leaves]

    def join(self, tree: PyTree[Array]) -> dict[str, Shaped[Array, " values"]]:
        """The vectors of a lane, by type."""
        leaves = [x.astype(self._kind(x.dtype)) for x in jax.tree.leaves(tree)]
        return {
            kind: jnp.concatenate([x.ravel() for x in leaves if x.dtype == kind])
            for kind in dict.fromkeys(kind for kind, _ in self._shapes)
        }

    def apart(self, vectors: Mapping[str, Shaped[np.ndarray, "lane values"]]) -> PyTree:
        """The tree, its leaves with the lanes along axis 0."""
        places, found = dict.fromkeys(vectors, 0), []
        for kind, shape in self._shapes:
            first = places[kind]
            places[kind] += math.prod(shape)
            part = vectors[kind][:, first : places[kind]]
            found.append(part.reshape(len(part), *shape))
        return jax.tree.unflatten(self._treedef, found)

    def _kind(self, dtype: Any) -> str:
        return "int32" if jnp.issubdtype(dtype, jnp.bool_) else str(dtype)


def exact_sum(parts: Shaped[np.ndarray, "trial batch ..."]) -> Shaped[np.ndarray, "trial ..."]:
    """The sum over batches, in integers or in float64."""
    exact = np.int64 if np.issubdtype(parts.dtype, np.integer) else np.float64
    return parts.astype(exact).sum(1)
