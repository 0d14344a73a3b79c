"""Evaluations of packs: whole, or only until it is certain that a trial is not past the goal.

To reject a trial that is not past the goal, enough of its mistakes have to be seen, not all
examples. So a bounded evaluation goes through the split in small batches, those examples first that
trials have got wrong before, and ends at the mistake that decides. It is exact, whatever the order:
the order costs time, never a wrong answer. What it writes down is the bound that the goal itself
is, so the tables do not depend on the order either.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

from batchscale import arrays, keys, train
from batchscale.engine import parallel
from batchscale.engine.layout import Layout, evaluation_batch
from batchscale.engine.packs import Pack, TrialId
from batchscale.engine.programs import Programs
from batchscale.evaluate import Evaluate
from batchscale.metrics import Goal
from batchscale.train import TrainState
from batchscale.workloads import Workload, counts

_BOUNDED_FROM = 1_000  # a choice: smaller splits are evaluated whole faster than they are bounded
_RANKING_PAYS = 2  # examples looked at in vain, over those that a new ranking looks at


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
      goal: what is looked for; None if nothing is.
      mesh: the devices.
      programs: where evaluations are compiled.
      state: shapes of a trial's state, its keys typed.
      examples: how many are measured of each split that is, by name.

    Attributes:
      splits: what can be measured, by name; where not all examples are, a fixed subset.
      bounded: whether evaluations can end early: the goal's metric counts examples, many of them.
      seconds: spent here, without compilation.
    """

    def __init__(
        self,
        workload: Workload,
        goal: Goal | None,
        mesh: Mesh,
        programs: Programs,
        state: Any,
        *,
        examples: Mapping[str, int] | None = None,
    ) -> None:
        self.seconds = 0.0
        self._workload, self._goal, self._mesh, self._programs = workload, goal, mesh, programs
        self._typed = self._evaluated(state)
        self._state = jax.eval_shape(keys.raw, self._typed)
        splits = workload.splits()
        if examples is None:
            examples = Evaluate().counts(splits, None if goal is None else self._goal_split)
        splits = {
            name: _subset(split, examples[name])
            for name, split in splits.items()
            if name in examples
        }
        counts.refuse_empty(workload, splits)
        self._splits = {name: parallel.replicate(split, mesh) for name, split in splits.items()}
        self.splits = list(splits)
        self._apart: dict[str, Callable[[Any], Any]] = {}
        self._masks: dict[bytes, jax.Array] = {}  # what was sent to the devices is not sent again
        self._count: int | None = None
        self.bounded = goal is not None and is_bounded(workload, goal, splits[self._goal_split])
        if self.bounded:
            assert goal is not None
            self._count = counts.of_goal(workload, goal, splits[self._goal_split])
            limit = goal.limit(self._count)
            self._bound = {goal.bound: limit / self._count}
            enough = limit if goal.mode == "min" else self._count - limit
            self._enough = parallel.replicate(np.int32(enough), mesh)
            self._ranked = self._splits[self._goal_split]
            size = arrays.examples(self._ranked)
            # Of words or pixels an example may have many.
            enough = math.ceil(enough * size / self._count)
            self._batch = evaluation_batch(size, enough=enough)
            self._mistakes = np.zeros(size)
            self._in_vain = 0.0
            self._rank_by = jax.jit(
                lambda split, order: jax.tree.map(lambda x: x[order], split),
                out_shardings=NamedSharding(mesh, PartitionSpec()),
            )

    @property
    def nbytes(self) -> int:
        """The bytes of the splits on each device."""
        ranked = [self._ranked] if self.bounded else []
        return sum(x.nbytes for x in jax.tree.leaves([self._splits, ranked]))

    def compile_ahead(self, layout: Layout) -> None:
        """Begins to compile the evaluations of a layout in the background."""
        for split in self.splits:
            self._whole_program(split, layout)
        if self.bounded:
            self._bounded_program(layout)
            self._each_program(layout)

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
            if asked and self.bounded and split == self._goal_split:
                left, diverged = self._reject(packs, layout, asked)
                found.diverged.update(diverged)
                for trial in asked - left:
                    found.rows[trial] |= self._bound
                whole -= asked - left
            if whole:
                self._measure_whole(packs, split, layout, whole, found)
        return found

    def _reject(
        self, packs: Sequence[Pack], layout: Layout, trials: set[TrialId]
    ) -> tuple[set[TrialId], set[TrialId]]:
        """Which of the trials are not rejected, and which have diverged."""
        program = self._programs.wait(self._bounded_program(layout))
        began = time.monotonic()
        shared = (self._ranked, self._enough)
        left, diverged = set(), set()
        looked_at = 0
        for pack, lanes, out in self._dispatch(program, packs, trials, shared):
            numbers = np.asarray(out)
            for lane in lanes:
                trial = pack.ids[lane]
                assert trial is not None
                finite, rejected, batches = numbers[lane]
                if not finite:
                    diverged.add(trial)
                elif not rejected:
                    left.add(trial)
                else:
                    looked_at += batches - 1
        self.seconds += time.monotonic() - began
        self._in_vain += looked_at * self._batch
        # Ranking again costs a pack's whole evaluation; it waits until as much was spent in vain.
        if self._in_vain > _RANKING_PAYS * len(self._mistakes) * len(packs[0].ids):
            self._rank(packs[0], layout)
        return left, diverged

    def _rank(self, pack: Pack, layout: Layout) -> None:
        """Puts those examples first that the trials of a pack get wrong, and did before."""
        program = self._programs.wait(self._each_program(layout))
        began = time.monotonic()
        split = self._splits[self._goal_split]
        out = program(
            self._evaluated(pack.state),
            self._mask(list(range(len(pack.ids))), len(pack.ids)),
            (split, self._enough),
            pack.busy,
        )
        self._mistakes = self._mistakes / 2 + np.asarray(out).sum(0)
        order = np.argsort(-self._mistakes, kind="stable").astype(np.int32)
        self._ranked = self._rank_by(split, parallel.replicate(order, self._mesh))
        self._in_vain = 0.0
        self.seconds += time.monotonic() - began

    def _measure_whole(
        self,
        packs: Sequence[Pack],
        split: str,
        layout: Layout,
        trials: set[TrialId],
        found: Measured,
    ) -> None:
        """Adds whole evaluations of trials to what was found."""
        program = self._programs.wait(self._whole_program(split, layout))
        began = time.monotonic()
        for pack, lanes, out in self._dispatch(program, packs, trials, self._splits[split]):
            finite, parts = self._apart[split](jax.device_get(out))
            sums = {
                name: jax.tree.map(lambda x, lanes=lanes: _exact_sum(x[lanes]), tree)
                for name, tree in parts.items()
            }
            endless = self._not_finite(split, sums)
            for i, (lane, row) in enumerate(zip(lanes, self._rows(split, sums), strict=True)):
                trial = pack.ids[lane]
                assert trial is not None
                found.rows[trial] |= row
                if not finite[lane]:
                    found.diverged.add(trial)
                if names := [name for name, which in endless.items() if which[i]]:
                    found.not_finite[trial] = names
        self.seconds += time.monotonic() - began

    def _dispatch(
        self, program: Any, packs: Sequence[Pack], trials: set[TrialId], shared: Any
    ) -> list[tuple[Pack, list[int], Any]]:
        """Starts a program on every pack that has one of the trials: the pack, lanes, result."""
        waiting = []
        for pack in packs:
            lanes = [lane for lane, trial in enumerate(pack.ids) if trial in trials]
            if lanes:
                mask = self._mask(lanes, len(pack.ids))
                out = program(self._evaluated(pack.state), mask, shared, pack.busy)
                waiting.append((pack, lanes, out))
        return waiting

    def _not_finite(self, split: str, sums: Mapping[str, PyTree]) -> dict[str, np.ndarray]:
        """Of which trials a sum of floats on the goal's split is not finite, by metric.

        Not what it is divided by: 0 / 0 may well be NaN, as may what `finalize` makes of sums.
        """
        if self._goal is None or split != self._goal_split:
            return {}
        found = {}
        for name, tree in sums.items():
            of = tree if name in self._workload.finalize else tree[0]
            leaves = [x for x in jax.tree.leaves(of) if x.dtype == np.float64]
            found[name] = np.any(
                [~np.isfinite(x).reshape(len(x), -1).all(1) for x in leaves], axis=0
            )
        return {name: which for name, which in found.items() if which.any()}

    def _rows(self, split: str, sums: Mapping[str, PyTree]) -> list[dict[str, float]]:
        """Makes metrics of sums."""
        trials = len(jax.tree.leaves(sums)[0])
        table: dict[str, Sequence[float]] = {}
        for name, tree in sums.items():
            if name in self._workload.finalize:
                table[f"{split}/{name}"] = [
                    self._workload.finalized(name, jax.tree.map(lambda x, i=i: x[i], tree))
                    for i in range(trials)
                ]
            else:
                total, count = tree
                with np.errstate(invalid="ignore", divide="ignore"):
                    table[f"{split}/{name}"] = total / count
        if self.bounded and split == self._goal_split:
            assert self._goal is not None
            total, count = sums[self._goal_name]
            if (total > count).any() or (total < 0).any() or (count != self._count).any():
                raise ValueError(
                    f"metrics: the sum of {self._goal.metric!r} is an integer, and so has to count "
                    "some of the examples (0 <= sum <= count, and the same count whatever the "
                    "parameters). Return a float if it is something else."
                )
        return [{name: float(column[i]) for name, column in table.items()} for i in range(trials)]

    @property
    def _goal_split(self) -> str:
        assert self._goal is not None
        return self._goal.metric.partition("/")[0]

    @property
    def _goal_name(self) -> str:
        assert self._goal is not None
        return self._goal.metric.partition("/")[2]

    def _evidence(self, sums: Mapping[str, PyTree]) -> Any:
        """What counts against a trial: what brings it nearer to a value that is not the goal's."""
        assert self._goal is not None
        total, count = sums[self._goal_name]
        return total if self._goal.mode == "min" else count - total

    def _evaluated(self, state: TrainState) -> Any:
        """What evaluations need of a state: as little as can be, so that they share programs."""
        averaged = self._workload.evaluated_parameters is not None
        return state.params, state.model_state, state.opt_state if averaged else ()

    def _params(self, state: Any) -> tuple[PyTree, PyTree]:
        params, model_state, opt_state = keys.typed(state, self._typed)
        if self._workload.evaluated_parameters is not None:
            params = self._workload.evaluated_parameters(params, opt_state)
        return params, model_state

    def _mask(self, lanes: Sequence[int], width: int) -> jax.Array:
        """Which lanes of a pack are evaluated."""
        active = np.zeros(width, bool)
        active[lanes] = True
        key = active.tobytes()
        if key not in self._masks:
            self._masks[key] = parallel.split(active, self._mesh)
        return self._masks[key]

    def _whole_program(self, split: str, layout: Layout) -> Future[Any]:
        batch = evaluation_batch(arrays.examples(self._splits[split]))

        def whole(state: Any, active: Any, data: Any, busy: Any) -> Any:
            del busy
            parameters = self._params(state)

            def run(parameters: tuple[PyTree, PyTree]) -> Any:
                return train.evaluate(self._workload, *parameters, data, batch=batch)

            def skip(parameters: Any) -> Any:
                shapes = jax.eval_shape(run, parameters)
                return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)

            parts = jax.lax.cond(active, run, skip, parameters)
            together, self._apart[split] = _together((train.finite(state[:2]), parts))
            return together

        return self._begin(("whole", split), whole, self._splits[split], layout)

    def _bounded_program(self, layout: Layout) -> Future[Any]:
        together = {} if layout.evaluation_lanes == 1 else {"any_lane": _any_lane}

        def bounded(state: Any, active: Any, shared: Any, busy: Any) -> Any:
            del busy
            data, enough = shared
            found, batches = train.tally(
                self._workload,
                *self._params(state),
                data,
                self._evidence,
                batch=self._batch,
                enough=jnp.where(active, enough, 0),
                **together,
            )
            told = train.finite(state[:2]), found >= enough, batches
            return jnp.stack([jnp.asarray(x, jnp.int32) for x in told])

        return self._begin("bounded", bounded, (self._ranked, self._enough), layout)

    def _each_program(self, layout: Layout) -> Future[Any]:
        batch = evaluation_batch(arrays.examples(self._ranked))

        def each(state: Any, active: Any, shared: Any, busy: Any) -> Any:
            del active
            data, _ = shared
            parameters = self._params(state)
            return busy * train.each(self._workload, *parameters, data, self._evidence, batch=batch)

        return self._begin("each", each, (self._ranked, self._enough), layout)

    def _begin(self, key: Any, function: Any, shared: Any, layout: Layout) -> Future[Any]:
        return self._programs.begin(
            ("evaluation", key),
            function,
            self._state,
            shared,
            trial=jax.ShapeDtypeStruct((), bool),
            lanes=layout.lanes,
            at_once=layout.evaluation_lanes,
        )


def is_bounded(workload: Workload, goal: Goal, split: PyTree) -> bool:
    """Whether evaluations on the goal's split can end early: its metric counts examples, many."""
    return arrays.examples(split) >= _BOUNDED_FROM and counts.is_count(workload, goal, split)


def counted(workload: Workload, goal: Goal, measured: Mapping[str, int]) -> int | None:
    """Of how many the goal's metric counts some where it is measured; None if it is no count.

    Args:
      workload: the metrics and the data.
      goal: whose metric.
      measured: how many examples of every split are.
    """
    where = goal.metric.partition("/")[0]
    split = _subset(workload.splits()[where], measured[where])
    return counts.of_goal(workload, goal, split) if counts.is_count(workload, goal, split) else None


def _exact_sum(parts: np.ndarray) -> np.ndarray:
    exact = np.int64 if np.issubdtype(parts.dtype, np.integer) else np.float64
    return parts.astype(exact).sum(1)


def _any_lane(undecided: jax.Array) -> jax.Array:
    return jax.lax.pmax(undecided.astype(jnp.int32), parallel.LANES) > 0


def _together(tree: PyTree) -> tuple[dict[str, jax.Array], Callable[[Any], Any]]:
    """The leaves of a lane's tree as one vector a type, and how to take them apart on the host.

    Each array that comes back is a transfer, which costs more than what is in it.
    """
    leaves, treedef = jax.tree.flatten(tree)
    leaves = [x.astype(jnp.int32) if x.dtype == bool else x for x in leaves]
    shapes = [(str(x.dtype), x.shape) for x in leaves]
    vectors = {
        kind: jnp.concatenate([x.ravel() for x in leaves if str(x.dtype) == kind])
        for kind in dict.fromkeys(kind for kind, _ in shapes)
    }

    def apart(vectors: Mapping[str, np.ndarray]) -> Any:
        places, found = dict.fromkeys(vectors, 0), []
        for kind, shape in shapes:
            first = places[kind]
            places[kind] += math.prod(shape)
            part = vectors[kind][:, first : places[kind]]
            found.append(part.reshape(len(part), *shape))
        return jax.tree.unflatten(treedef, found)

    return vectors, apart


def _subset(split: Mapping[str, np.ndarray], size: int) -> Mapping[str, np.ndarray]:
    """A fixed random subset of examples, in their order."""
    total = arrays.examples(split)
    if total <= size:
        return split
    chosen = np.sort(np.random.Generator(np.random.PCG64(0)).permutation(total)[:size])
    return jax.tree.map(lambda x: x[chosen], split)
