"""Packs of trials on devices: started, advanced, measured, moved to the host and back.

The engine holds the compiled programs and the data on the devices. It knows nothing of goals,
stopping or files: which trials run how far is the runner's business.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

from batchscale import parallel, train
from batchscale.layout import Layout
from batchscale.optimizers import Optimizer
from batchscale.schedules import Schedule
from batchscale.train import Recipe, TrainState
from batchscale.workloads import Workload

# Choices: how many examples are evaluated at once, and of how many the train metrics are taken.
_EVALUATION_BATCH = 500
_TRAIN_SUBSET = 5_000


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


class Engine:
    """Runs trials of one workload, optimizer and schedule on a mesh of devices.

    Args:
      workload: what is trained; its data goes to the devices here.
      optimizer: the update.
      schedule: the learning rate.
      names: the hyperparameters' names.
      seed: the study's.
      mesh: the devices, from `parallel.mesh`.
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
    ) -> None:
        self.mesh = mesh
        self._workload, self._optimizer, self._schedule = workload, optimizer, schedule
        self._names, self._seed = tuple(names), seed
        splits = dict(workload.splits())
        self._examples = len(jax.tree.leaves(splits["train"])[0])
        self._train_data = parallel.replicate(splits["train"], mesh)
        splits["train"] = _subset(splits["train"], _TRAIN_SUBSET)
        self._splits = {name: parallel.replicate(split, mesh) for name, split in splits.items()}
        self._state = jax.eval_shape(
            lambda key, values: train.init(self._recipe(1, 1), key, values),
            jax.ShapeDtypeStruct((2,), np.uint32),
            {name: jax.ShapeDtypeStruct((), _float()) for name in self._names},
        )
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
            self._evaluation(split, layout.lanes)

    def start(
        self,
        ids: Sequence[TrialId],
        hyperparameters: HyperparametersOf,
        *,
        batch_size: int,
        layout: Layout,
    ) -> list[Pack]:
        """Trials before their first step, in as few packs as hold them."""
        program = self._init(layout.lanes).result()
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
        begin = jax.tree.map(np.int32, begin)
        program = self._segment(batch_size, layout).result()
        shared = (self._train_data, begin, np.int32(to - step))
        for pack in packs:
            pack.state = program(pack.state, pack.hyperparameters, shared, pack.busy)

    def measure(
        self, packs: Sequence[Pack], splits: Iterable[str], *, layout: Layout
    ) -> tuple[dict[TrialId, dict[str, float]], set[TrialId]]:
        """Evaluates packs on splits.

        Returns:
          The metrics of every trial, named `split/metric`, in float64; and the trials whose
          parameters are no longer finite.
        """
        waiting = []
        for split in splits:
            program = self._evaluation(split, layout.lanes).result()
            for pack in packs:
                data = self._splits[split]
                out = program(pack.state, pack.hyperparameters, data, pack.busy)
                waiting.append((split, pack, out))
        values: dict[TrialId, dict[str, float]] = {}
        diverged: set[TrialId] = set()
        for split, pack, out in waiting:
            finite, parts = jax.device_get(out)
            lanes = [lane for lane, trial in enumerate(pack.ids) if trial is not None]
            table = self._finalized(jax.tree.map(lambda x, lanes=lanes: x[lanes], parts))
            for place, lane in enumerate(lanes):
                trial = pack.ids[lane]
                assert trial is not None
                row = {f"{split}/{name}": float(column[place]) for name, column in table.items()}
                values.setdefault(trial, {}).update(row)
                if not finite[lane]:
                    diverged.add(trial)
        return values, diverged

    def params(self, states: HostStates, trial: TrialId) -> tuple[PyTree, PyTree]:
        """The parameters and the model's state of one trial, as host arrays."""
        row = states.ids.index(trial)
        leaves = [leaf[row] for leaf in states.leaves]
        state = jax.tree.unflatten(jax.tree.structure(self._state), leaves)
        return state.params, state.model_state

    def _finalized(self, parts: Mapping[str, PyTree]) -> dict[str, Sequence[float]]:
        """Adds the parts of evaluations, exactly, and makes metrics of the sums."""
        table: dict[str, Sequence[float]] = {}
        for name, tree in parts.items():
            sums = jax.tree.map(_exact_sum, tree)
            finalize = self._workload.finalize.get(name)
            if finalize is None:
                total, count = sums
                with np.errstate(invalid="ignore", divide="ignore"):
                    table[name] = total / count
            else:
                lanes = len(jax.tree.leaves(sums)[0])
                table[name] = [
                    float(finalize(jax.tree.map(lambda x, i=i: x[i], sums))) for i in range(lanes)
                ]
        return table

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
            data, begin, steps = shared
            return train.segment(recipe, state, values, data, begin, steps * busy)

        key = ("segment", recipe.microbatch, recipe.rest, recipe.whole)
        count = jax.ShapeDtypeStruct((), np.int32)
        shared = (
            self._train_data,
            jax.tree.map(lambda _: count, train.start(0, batch_size=1, examples=1)),
            count,
        )
        return self._program(key, segment, self._state, shared, lanes=layout.lanes, donate=True)

    def _evaluation(self, split: str, lanes: int) -> Future[Any]:
        workload = self._workload

        def evaluation(state: TrainState, values: Any, data: Any, busy: Any) -> Any:
            del values
            params = state.params
            finite = train.finite((params, state.model_state))
            if workload.evaluated_parameters is not None:
                params = workload.evaluated_parameters(params, state.opt_state)

            def parts() -> Any:
                return train.evaluate(
                    workload, params, state.model_state, data, batch=_EVALUATION_BATCH
                )

            def nothing() -> Any:
                return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(parts))

            return finite, jax.lax.cond(busy > 0, parts, nothing)

        key = ("evaluation", split)
        return self._program(key, evaluation, self._state, self._splits[split], lanes=lanes)

    def _program(
        self,
        key: Any,
        function: Any,
        state: Any,
        shared: Any,
        *,
        lanes: int,
        optimization_level: int | None = None,
        **options: Any,
    ) -> Future[Any]:
        """A compiled program; traced here, compiled in the background."""
        key = (key, lanes)
        if key not in self._programs:
            axis = NamedSharding(self.mesh, PartitionSpec("trials"))
            width = self.mesh.size * lanes

            def wide(x: Any, size: int = width) -> jax.ShapeDtypeStruct:
                return jax.ShapeDtypeStruct((size, *x.shape), x.dtype, sharding=axis)

            scalar = jax.ShapeDtypeStruct((), _float())
            values = {name: wide(scalar) for name in self._names}
            local = wide(jax.ShapeDtypeStruct((), np.int32), self.mesh.size)
            program = parallel.packed(function, self.mesh, lanes=lanes, **options)
            lowered = program.lower(jax.tree.map(wide, state), values, shared, local)
            compiler_options = (
                None
                if optimization_level is None
                else {"xla_backend_optimization_level": optimization_level}
            )
            self._programs[key] = self._compiler.submit(lowered.compile, compiler_options)
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


def _subset(split: Mapping[str, np.ndarray], size: int) -> Mapping[str, np.ndarray]:
    """A fixed random subset of examples, in their order."""
    examples = len(jax.tree.leaves(split)[0])
    if examples <= size:
        return split
    chosen = np.sort(np.random.Generator(np.random.PCG64(0)).permutation(examples)[:size])
    return jax.tree.map(lambda x: x[chosen], split)
