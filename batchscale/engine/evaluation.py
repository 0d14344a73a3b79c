"""Evaluations of packs on splits: whole ones, and those that end when they are decided."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, PyTree, Shaped

from batchscale import arrays, train
from batchscale.engine import parallel
from batchscale.engine.bounded import Bounded, is_bounded
from batchscale.engine.evaluated import Evaluated
from batchscale.engine.layout import Layout, evaluation_batch
from batchscale.engine.packs import Pack, TrialId
from batchscale.engine.programs import Argument, Programs
from batchscale.evaluate import Evaluate
from batchscale.metrics import Goal
from batchscale.workloads import Workload, counts


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


class Evaluations:
    """Measures packs on the splits of a workload, and compares them with a goal.

    Args:
      workload: metrics and splits; they go to the devices here.
      goal: what is looked for.
      mesh: the devices.
      programs: where evaluations are compiled.
      state: shapes of a trial's state, its keys typed.
      examples: how many are measured of each split that is, by name.

    Attributes:
      splits: what can be measured, by name; where not all examples are, a fixed subset.
    """

    def __init__(
        self,
        workload: Workload,
        goal: Goal,
        mesh: Mesh,
        programs: Programs,
        state: Any,
        *,
        examples: Mapping[str, int] | None = None,
    ) -> None:
        splits = workload.splits()
        if examples is None:
            examples = Evaluate().counts(splits, goal.split)
        splits = {
            name: _subset(split, examples[name])
            for name, split in splits.items()
            if name in examples
        }
        counts.refuse_empty(workload, splits)
        self.splits = list(splits)
        self._on_devices = {name: parallel.replicate(split, mesh) for name, split in splits.items()}
        evaluated = Evaluated(workload, mesh, programs, state)
        self._goal_split = goal.split
        self._bounded: Bounded | None = None
        counted: int | None = None
        if is_bounded(workload, goal, splits[goal.split]):
            counted = counts.of_goal(workload, goal, splits[goal.split])
            self._bounded = Bounded(
                workload, goal, self._on_devices[goal.split], counted, evaluated, mesh
            )
        self._whole = {
            name: _Whole(workload, goal, name, split, counted, evaluated)
            for name, split in self._on_devices.items()
        }

    @property
    def bounded(self) -> bool:
        """Whether evaluations can end early: the goal's metric counts examples, many of them."""
        return self._bounded is not None

    @property
    def seconds(self) -> float:
        """How long was spent here, without compilation."""
        some = [] if self._bounded is None else [self._bounded]
        return sum(part.seconds for part in [*self._whole.values(), *some])

    @property
    def nbytes(self) -> int:
        """The bytes of the splits on each device."""
        more = 0 if self._bounded is None else self._bounded.nbytes
        return sum(x.nbytes for x in jax.tree.leaves(self._on_devices)) + more

    def compile_ahead(self, layout: Layout) -> None:
        """Begins to compile the evaluations of a layout in the background."""
        for whole in self._whole.values():
            whole.compile_ahead(layout)
        if self._bounded is not None:
            self._bounded.compile_ahead(layout)

    def measure(
        self,
        packs: Sequence[Pack],
        splits: Iterable[str],
        *,
        layout: Layout,
        trials: Collection[TrialId],
        bounded: Collection[TrialId],
    ) -> Measured:
        """Evaluates trials of packs; see `Engine.measure`."""
        found = Measured({trial: {} for trial in trials}, set(), {})
        for split in splits:
            whole = set(trials)
            asked = whole.intersection(bounded)
            if asked and self._bounded is not None and split == self._goal_split:
                rejected = self._bounded.reject(packs, layout, asked)
                found.diverged.update(rejected.diverged)
                for trial in rejected.trials:
                    found.rows[trial] |= self._bounded.row
                whole -= rejected.trials
            if whole:
                self._whole[split].measure(packs, layout, whole, found)
        return found


class _Whole:
    """Whole evaluations on one split.

    Args:
      workload: the metrics.
      goal: what is looked for.
      name: of the split.
      split: its examples, on the devices.
      counted: of how many the goal's metric counts some, if evaluations can end early.
      evaluated: what is seen of packs.
    """

    def __init__(
        self,
        workload: Workload,
        goal: Goal,
        name: str,
        split: PyTree[Array],
        counted: int | None,
        evaluated: Evaluated,
    ) -> None:
        self.seconds = 0.0
        self._workload, self._name, self._split = workload, name, split
        self._goal = goal if goal.split == name else None
        self._counted, self._evaluated = counted, evaluated
        self._batch = evaluation_batch(arrays.examples(split))
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
        program = self._evaluated.wait(self._program(layout))
        began = time.monotonic()
        for out in self._evaluated.dispatch(program, packs, trials, self._split):
            finite, parts = self._joined.apart(jax.device_get(out.values))
            lanes = [*out.trials]
            sums = {
                name: jax.tree.map(lambda x, lanes=lanes: _exact_sum(x[lanes]), tree)
                for name, tree in parts.items()
            }
            endless = self._not_finite(sums)
            for i, (lane, trial) in enumerate(out.trials.items()):
                found.rows[trial] |= self._row(sums, i)
                if not finite[lane]:
                    found.diverged.add(trial)
                if names := [name for name, which in endless.items() if which[i]]:
                    found.not_finite[trial] = names
        self.seconds += time.monotonic() - began

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

    def _row(self, sums: Mapping[str, PyTree], place: int) -> dict[str, float]:
        """The metrics of a trial."""
        row = {}
        for name, tree in sums.items():
            own = jax.tree.map(lambda x: x[place], tree)
            if name in self._workload.finalize:
                row[f"{self._name}/{name}"] = self._workload.finalized(name, own)
                continue
            total, count = own
            with np.errstate(invalid="ignore", divide="ignore"):
                row[f"{self._name}/{name}"] = float(total / count)
            if self._goal is not None and self._counted is not None and name == self._goal.name:
                self._check_count(self._goal, int(total), int(count))
        return row

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
            ("whole", self._name), whole, Argument("all", self._split), layout=layout
        )


def counted(workload: Workload, goal: Goal, measured: Mapping[str, int]) -> int | None:
    """Of how many the goal's metric counts some where it is measured; None if it is no count.

    Args:
      workload: the metrics and the data.
      goal: whose metric.
      measured: how many examples of every split are.
    """
    split = _subset(workload.splits()[goal.split], measured[goal.split])
    return counts.of_goal(workload, goal, split) if counts.is_count(workload, goal, split) else None


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


def _exact_sum(parts: Shaped[np.ndarray, "trial batch ..."]) -> Shaped[np.ndarray, "trial ..."]:
    exact = np.int64 if np.issubdtype(parts.dtype, np.integer) else np.float64
    return parts.astype(exact).sum(1)


def _subset(split: Mapping[str, np.ndarray], size: int) -> Mapping[str, np.ndarray]:
    """A fixed random subset of examples, in their order."""
    total = arrays.examples(split)
    if total <= size:
        return split
    chosen = np.sort(np.random.Generator(np.random.PCG64(0)).permutation(total)[:size])
    return jax.tree.map(lambda x: x[chosen], split)
