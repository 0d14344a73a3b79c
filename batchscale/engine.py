"""Packs of trials on devices: started, advanced, measured, moved to the host and back.

The engine holds the compiled programs and the data on the devices. It knows nothing of stopping
or files: which trials run how far is the runner's business. Of the goal it knows when an evaluation
need not go on.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

from batchscale import parallel, train
from batchscale.layout import Layout, evaluation_batch
from batchscale.metrics import Goal
from batchscale.optimizers import Optimizer
from batchscale.schedules import Schedule
from batchscale.train import Recipe, TrainState
from batchscale.workloads import Workload

_TRAIN_SUBSET = 5_000  # a choice: of so many examples the train metrics are taken


class TrialId(NamedTuple):
    """A trial of a batch size: its number, and 0, or which rerun of it under a fresh seed."""

    number: int
    replicate: int = 0


HyperparametersOf = Callable[[TrialId], Mapping[str, float]]


@dataclasses.dataclass
class Pack:
    """Trials that run together, `devices x lanes` of them, at the same step.

    Attributes:
      ids: one a lane; None where the lane is idle.
      hyperparameters: by name, one value a lane, on the devices.
      state: training states, lanes along axis 0, on the devices.
      busy: one a device: 1, or 0 where all of its lanes are idle.
    """

    ids: list[TrialId | None]
    hyperparameters: Mapping[str, jax.Array]
    state: TrainState
    busy: jax.Array


@dataclasses.dataclass
class HostStates:
    """Training states on the host: the leaves, with one entry a trial along axis 0."""

    ids: list[TrialId]
    leaves: list[np.ndarray]

    @classmethod
    def join(cls, parts: Sequence[HostStates]) -> HostStates:
        """Several as one."""
        ids = [trial for part in parts for trial in part.ids]
        leaves = zip(*(part.leaves for part in parts), strict=True)
        return cls(ids, [np.concatenate(leaf) for leaf in leaves])

    def only(self, ids: Sequence[TrialId]) -> HostStates:
        """Those of the given trials, in the given order."""
        rows = [self.ids.index(trial) for trial in ids]
        return HostStates(list(ids), [leaf[rows] for leaf in self.leaves])


@dataclasses.dataclass(frozen=True)
class Measured:
    """What an evaluation of packs found.

    Attributes:
      rows: the metrics of every trial, named `split/metric`, in float64; where its evaluation was
        cut short, the bound of the goal's metric instead of that split's.
      diverged: the trials whose parameters are no longer finite.
    """

    rows: dict[TrialId, dict[str, float]]
    diverged: set[TrialId]


class Engine:
    """Runs trials of one workload, optimizer and schedule on a mesh of devices.

    `seconds` says how long its caller has waited for what; a compilation that ran beside training
    is not waited for.

    Args:
      workload: what is trained; its data goes to the devices here.
      optimizer: the update.
      schedule: the learning rate.
      names: the hyperparameters' names.
      seed: the study's.
      mesh: the devices, from `parallel.mesh`.
      goal: what evaluations are compared with; None if they are not.
    """

    def __init__(
        self,
        workload: Workload,
        optimizer: Optimizer,
        schedule: Schedule,
        *,
        names: Sequence[str],
        seed: int,
        mesh: Mesh,
        goal: Goal | None = None,
    ) -> None:
        self.mesh = mesh
        self._workload, self._optimizer, self._schedule = workload, optimizer, schedule
        self._names, self._seed = tuple(names), seed
        splits = dict(workload.splits())
        self._examples = _examples(splits["train"])
        self._train_data = parallel.replicate(splits["train"], mesh)
        splits["train"] = _subset(splits["train"], _TRAIN_SUBSET)
        self._splits = {name: parallel.replicate(split, mesh) for name, split in splits.items()}
        self._state = jax.eval_shape(
            lambda key, values: train.init(self._recipe(1, 1), key, values),
            jax.ShapeDtypeStruct((2,), np.uint32),
            {name: jax.ShapeDtypeStruct((), _float()) for name in self._names},
        )
        self._goal, self._count = goal, None
        if goal is not None:
            self._count = _count(workload, goal, splits[goal.metric.partition("/")[0]])
        self._limits: dict[int, jax.Array] = {}  # what was sent to the devices is not sent again
        self._masks: dict[bytes, jax.Array] = {}
        self._apart: dict[str, Callable[[Any], Any]] = {}
        self.seconds = dict.fromkeys(("training", "evaluation", "compilation"), 0.0)
        self._programs: dict[Any, Future[Any]] = {}
        self._compiler = ThreadPoolExecutor(max_workers=2, thread_name_prefix="compile")

    @property
    def splits(self) -> list[str]:
        """The splits that can be measured; `train` is a fixed subset of the training set."""
        return list(self._splits)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        """Stops compiling ahead."""
        self._compiler.shutdown(wait=True, cancel_futures=True)

    def compile_ahead(self, batch_size: int, layout: Layout) -> None:
        """Begins to compile a batch size's programs in the background."""
        self._init(layout.lanes)
        self._segment(batch_size, layout)
        for split in self._splits:
            self._evaluation(split, layout)

    def start(
        self,
        ids: Sequence[TrialId],
        hyperparameters: HyperparametersOf,
        *,
        batch_size: int,
        layout: Layout,
    ) -> list[Pack]:
        """Trials before their first step, in as few packs as hold them."""
        program = self._compiled(self._init(layout.lanes))
        packs = []
        for some in self._arrange(ids, layout.lanes):
            filled = _fill(some)
            names = [(self._seed, batch_size, *trial) for trial in filled]
            key = parallel.split(np.asarray(names, np.uint32), self.mesh)
            values = self._values(filled, hyperparameters)
            busy = self._busy(some)
            packs.append(Pack(some, values, program(key, values, (), busy), busy))
        return packs

    def pack(
        self,
        states: HostStates,
        hyperparameters: HyperparametersOf,
        *,
        layout: Layout,
    ) -> list[Pack]:
        """Trials that were at work before, in as few packs as hold them."""
        treedef = jax.tree.structure(self._state)
        packs = []
        for some in self._arrange(states.ids, layout.lanes):
            filled = _fill(some)
            leaves = states.only(filled).leaves
            state = parallel.split(jax.tree.unflatten(treedef, leaves), self.mesh)
            values = self._values(filled, hyperparameters)
            packs.append(Pack(some, values, state, self._busy(some)))
        return packs

    def unpack(self, packs: Sequence[Pack]) -> HostStates:
        """The states of the trials of packs, without the idle lanes."""
        parts = []
        for pack in packs:
            lanes = [lane for lane, trial in enumerate(pack.ids) if trial is not None]
            leaves = [np.asarray(leaf)[lanes] for leaf in jax.tree.leaves(pack.state)]
            parts.append(HostStates([trial for trial in pack.ids if trial is not None], leaves))
        return HostStates.join(parts)

    def advance(
        self, packs: Sequence[Pack], *, batch_size: int, layout: Layout, step: int, to: int
    ) -> None:
        """Trains packs from one step to another; a device with idle lanes alone does nothing."""
        begin = train.start(step, batch_size=batch_size, examples=self._examples)
        program = self._compiled(self._segment(batch_size, layout))
        # One array: each would be sent to the devices by itself.
        numbers = parallel.replicate(
            np.array([*dataclasses.astuple(begin), to - step], np.int32), self.mesh
        )
        shared = (self._train_data, numbers)
        began = time.monotonic()
        for pack in packs:
            pack.state = program(pack.state, pack.hyperparameters, shared, pack.busy)
        jax.block_until_ready([pack.state.key for pack in packs])
        self.seconds["training"] += time.monotonic() - began

    def measure(
        self,
        packs: Sequence[Pack],
        splits: Iterable[str],
        *,
        layout: Layout,
        trials: Iterable[TrialId] | None = None,
        bounded: bool = False,
    ) -> Measured:
        """Evaluates trials of packs on splits.

        Args:
          packs: at the same step.
          splits: by name.
          layout: of the packs.
          trials: which; all of them by default.
          bounded: whether the evaluation of a trial on the goal's split may end as soon as it is
            certain that the trial is not past the goal.
        """
        chosen = set(trials) if trials is not None else None
        waiting = []
        for split in splits:
            program = self._compiled(self._evaluation(split, layout))
            began = time.monotonic()
            shared = (self._splits[split], self._limit(split, bounded))
            for pack in packs:
                lanes = [
                    lane
                    for lane, trial in enumerate(pack.ids)
                    if trial is not None and (chosen is None or trial in chosen)
                ]
                if lanes:
                    active = self._active(lanes, len(pack.ids))
                    state = self._evaluated(pack.state)
                    waiting.append((split, pack, lanes, program(state, active, shared, pack.busy)))
            self.seconds["evaluation"] += time.monotonic() - began
        began = time.monotonic()
        found = Measured({}, set())
        for split, pack, lanes, out in waiting:
            finite, parts, done = self._apart[split](jax.device_get(out))
            parts = jax.tree.map(lambda x, lanes=lanes: x[lanes], parts)
            rows = self._rows(split, parts, done[lanes])
            for lane, row in zip(lanes, rows, strict=True):
                trial = pack.ids[lane]
                assert trial is not None
                found.rows.setdefault(trial, {}).update(row)
                if not finite[lane]:
                    found.diverged.add(trial)
        self.seconds["evaluation"] += time.monotonic() - began
        return found

    def params(self, states: HostStates, trial: TrialId) -> tuple[PyTree, PyTree]:
        """The parameters and the model's state of one trial, as host arrays."""
        row = states.ids.index(trial)
        leaves = [leaf[row] for leaf in states.leaves]
        state = jax.tree.unflatten(jax.tree.structure(self._state), leaves)
        return state.params, state.model_state

    def _rows(
        self, split: str, parts: Mapping[str, PyTree], done: np.ndarray
    ) -> list[dict[str, float]]:
        """Adds the parts of evaluations, exactly, and makes metrics of the sums, or a bound."""
        sums = {name: jax.tree.map(_exact_sum, tree) for name, tree in parts.items()}
        whole = done == len(jax.tree.leaves(parts)[0][0])
        table: dict[str, Sequence[float]] = {}
        for name, tree in sums.items():
            finalize = self._workload.finalize.get(name)
            if finalize is None:
                total, count = tree
                with np.errstate(invalid="ignore", divide="ignore"):
                    table[f"{split}/{name}"] = total / count
            else:
                table[f"{split}/{name}"] = [
                    float(finalize(jax.tree.map(lambda x, i=i: x[i], tree))) if whole[i] else np.nan
                    for i in range(len(done))
                ]
        rows = [
            {name: float(column[i]) for name, column in table.items()} for i in range(len(done))
        ]
        if self._is_bounded(split):
            assert self._goal is not None
            name = self._goal.metric.partition("/")[2]
            total, count = sums[name]
            if (total > count).any() or (total < 0).any() or (count[whole] != self._count).any():
                raise ValueError(
                    f"metrics: the sum of {self._goal.metric!r} is an integer, and so has to count "
                    "some of the examples (0 <= sum <= count, and the same count whatever the "
                    "parameters). Return a float if it is something else."
                )
            furthest = total if self._goal.mode == "min" else total + self._count - count
            for i in np.flatnonzero(~whole):
                rows[i] = {self._goal.bound: float(furthest[i] / self._count)}
        return rows

    def _is_bounded(self, split: str) -> bool:
        """Whether evaluations on a split can be cut short at the goal."""
        if self._goal is None or self._count is None:
            return False
        return split == self._goal.metric.partition("/")[0]

    def _limit(self, split: str, bounded: bool) -> jax.Array:
        """The count at which an evaluation is decided; one that is never met for a whole one."""
        limit = -1 if self._goal is not None and self._goal.mode == "max" else 2**31 - 1
        if bounded and self._is_bounded(split):
            assert self._goal is not None
            assert self._count is not None
            limit = self._goal.limit(self._count)
        if limit not in self._limits:
            self._limits[limit] = parallel.replicate(np.int32(limit), self.mesh)
        return self._limits[limit]

    def _active(self, lanes: Sequence[int], width: int) -> jax.Array:
        """Which lanes of a pack are evaluated."""
        active = np.zeros(width, bool)
        active[lanes] = True
        key = active.tobytes()
        if key not in self._masks:
            self._masks[key] = parallel.split(active, self.mesh)
        return self._masks[key]

    def _shared(self, x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        whole = NamedSharding(self.mesh, PartitionSpec())
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=whole)

    def _compiled(self, program: Future[Any]) -> Any:
        began = time.monotonic()
        try:
            return program.result()
        finally:
            self.seconds["compilation"] += time.monotonic() - began

    def _evaluated(self, state: Any) -> Any:
        """What evaluations need of a state: as little as can be, so that they share programs."""
        averaged = self._workload.evaluated_parameters is not None
        return state.params, state.model_state, state.opt_state if averaged else ()

    def _arrange(self, ids: Sequence[TrialId], lanes: int) -> list[list[TrialId | None]]:
        """Which trial runs in which lane; a pack that is not full is shared out evenly."""
        devices = self.mesh.size
        packs = []
        for first in range(0, len(ids), devices * lanes):
            some = ids[first : first + devices * lanes]
            packs.append(
                [
                    trial
                    for part in np.array_split(np.arange(len(some)), devices)
                    for trial in [*(some[i] for i in part), *[None] * (lanes - len(part))]
                ]
            )
        return packs

    def _values(
        self,
        ids: Sequence[TrialId],
        hyperparameters: HyperparametersOf,
    ) -> dict[str, jax.Array]:
        table = {
            name: np.asarray([hyperparameters(trial)[name] for trial in ids], _float())
            for name in self._names
        }
        return parallel.split(table, self.mesh)

    def _busy(self, ids: Sequence[TrialId | None]) -> jax.Array:
        lanes = np.asarray([trial is not None for trial in ids])
        return parallel.split(lanes.reshape(self.mesh.size, -1).any(1).astype(np.int32), self.mesh)

    def _recipe(self, batch_size: int, microbatch: int) -> Recipe:
        return Recipe.of(
            self._workload,
            self._optimizer,
            self._schedule,
            batch_size=batch_size,
            microbatch=microbatch,
        )

    def _init(self, lanes: int) -> Future[Any]:
        recipe = self._recipe(1, 1)

        def start(name: Any, values: Any, shared: Any, local: Any) -> TrainState:
            del shared, local
            return train.init(recipe, train.trial_key(*name), values)

        name = jax.ShapeDtypeStruct((4,), np.uint32)
        # One at a time: initialisers compile slowly under vmap, and parameters get the same bits
        # however trials are packed.
        # It runs once, so its compilation is what it costs.
        return self._program("init", start, name, (), lanes=lanes, at_once=1, optimization_level=0)

    def _segment(self, batch_size: int, layout: Layout) -> Future[Any]:
        recipe = self._recipe(batch_size, layout.microbatch)

        def segment(state: Any, values: Any, shared: Any, busy: Any) -> TrainState:
            data, numbers = shared
            begin, steps = train.Start(*numbers[:4]), numbers[4]
            return train.segment(recipe, state, values, data, begin, steps * busy)

        key = ("segment", recipe.microbatch, recipe.rest, recipe.whole)
        shared = (self._train_data, self._shared(jax.ShapeDtypeStruct((5,), np.int32)))
        return self._program(key, segment, self._state, shared, lanes=layout.lanes, donate=True)

    def _evaluation(self, split: str, layout: Layout) -> Future[Any]:
        workload, goal = self._workload, self._goal
        bounded, total_count = self._is_bounded(split), self._count
        batch = evaluation_batch(_examples(self._splits[split]), bounded=bounded)
        at_once = layout.evaluation_lanes

        def evaluation(state: Any, active: Any, shared: Any, busy: Any) -> Any:
            del busy
            data, limit = shared
            params, model_state, opt_state = state
            finite = train.finite((params, model_state))
            if workload.evaluated_parameters is not None:
                params = workload.evaluated_parameters(params, opt_state)

            def undecided(sums: Mapping[str, PyTree]) -> Any:
                if not bounded:
                    return active
                assert goal is not None
                total, count = sums[goal.metric.partition("/")[2]]
                if goal.mode == "min":
                    return active & (total < limit)
                return active & (total + (total_count - count) > limit)

            parts, done = train.evaluate(
                workload,
                params,
                model_state,
                data,
                batch=batch,
                undecided=undecided,
                **({} if at_once == 1 else {"any_lane": _any_lane}),
            )
            together, self._apart[split] = _together((finite, parts, done))
            return together

        return self._program(
            ("evaluation", split),
            evaluation,
            self._evaluated(self._state),
            (self._splits[split], self._shared(jax.ShapeDtypeStruct((), np.int32))),
            trial=jax.ShapeDtypeStruct((), bool),
            lanes=layout.lanes,
            at_once=at_once,
        )

    def _program(
        self,
        key: Any,
        function: Any,
        state: Any,
        shared: Any,
        *,
        lanes: int,
        trial: Any = None,
        optimization_level: int | None = None,
        **options: Any,
    ) -> Future[Any]:
        """A compiled program; traced here, compiled in the background."""
        key = (key, lanes, options.get("at_once"))
        if key not in self._programs:
            began = time.monotonic()
            axis = NamedSharding(self.mesh, PartitionSpec("trials"))
            width = self.mesh.size * lanes

            def wide(x: Any, size: int = width) -> jax.ShapeDtypeStruct:
                return jax.ShapeDtypeStruct((size, *x.shape), x.dtype, sharding=axis)

            scalar = jax.ShapeDtypeStruct((), _float())
            own = dict.fromkeys(self._names, scalar) if trial is None else trial
            local = wide(jax.ShapeDtypeStruct((), np.int32), self.mesh.size)
            program = parallel.packed(function, self.mesh, lanes=lanes, **options)
            lowered = program.lower(
                jax.tree.map(wide, state), jax.tree.map(wide, own), shared, local
            )
            compiler_options = (
                None
                if optimization_level is None
                else {"xla_backend_optimization_level": optimization_level}
            )
            self._programs[key] = self._compiler.submit(lowered.compile, compiler_options)
            self.seconds["compilation"] += time.monotonic() - began
        return self._programs[key]


def _float() -> np.dtype:
    return jax.dtypes.canonicalize_dtype(float)


def _fill(ids: Sequence[TrialId | None]) -> list[TrialId]:
    """Idle lanes repeat a trial of the pack; what they compute is never read."""
    first = next(trial for trial in ids if trial is not None)
    return [first if trial is None else trial for trial in ids]


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


def _count(workload: Workload, goal: Goal, split: Mapping[str, np.ndarray]) -> int | None:
    """What the goal's metric counts in a split; None where it is not a count.

    The metrics are computed for nothing but their count, so the compiler leaves out all else.
    """
    name = goal.metric.partition("/")[2]

    def metric(data: PyTree) -> PyTree:
        shapes = jax.eval_shape(workload.init, jax.ShapeDtypeStruct((2,), np.uint32))
        params, model_state = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        return workload.metrics(params, model_state, workload.prepare(data, None))[name]

    if name in workload.finalize:
        return None
    shapes = jax.eval_shape(metric, split)
    if not all(jnp.issubdtype(x.dtype, jnp.integer) and x.shape == () for x in shapes):
        return None
    return int(jax.jit(lambda data: metric(data)[1])(split))


def _examples(split: PyTree) -> int:
    return len(jax.tree.leaves(split)[0])


def _subset(split: Mapping[str, np.ndarray], size: int) -> Mapping[str, np.ndarray]:
    """A fixed random subset of examples, in their order."""
    examples = _examples(split)
    if examples <= size:
        return split
    chosen = np.sort(np.random.Generator(np.random.PCG64(0)).permutation(examples)[:size])
    return jax.tree.map(lambda x: x[chosen], split)
