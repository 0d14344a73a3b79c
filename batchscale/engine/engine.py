"""Packs of trials on devices: started, advanced, measured, moved to the host and back.

The engine holds the compiled programs and the data on the devices. It knows nothing of stopping
or files: which trials run how far is the runner's business.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any, Self

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import PyTree

from batchscale import arrays, keys, sampling, train
from batchscale.engine import devices, parallel
from batchscale.engine import packs as packing
from batchscale.engine.evaluation import Evaluations, Measured
from batchscale.engine.layout import Layout
from batchscale.engine.packs import HostStates, HyperparametersOf, Pack, TrialId
from batchscale.engine.programs import Programs
from batchscale.metrics import Goal
from batchscale.optimizers import Optimizer
from batchscale.sampling import Position
from batchscale.schedules import Schedule
from batchscale.train import Recipe, TrainState
from batchscale.workloads import Workload

_DRAWN = 2**15  # a choice: so many examples of every trial are drawn at once


class Engine:
    """Runs trials of one workload, optimizer and schedule on a mesh of devices.

    Args:
      workload: what is trained; its data goes to the devices here.
      optimizer: the update.
      schedule: the learning rate.
      names: the hyperparameters' names.
      seed: the study's.
      mesh: the devices, from `parallel.mesh`.
      goal: what evaluations are compared with; None if they are not.
      examples: how many are measured of each split that is, by name; by default as `Evaluate` says.
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
        examples: Mapping[str, int] | None = None,
    ) -> None:
        self.mesh = mesh
        self._workload, self._optimizer, self._schedule = workload, optimizer, schedule
        self._names, self._seed = tuple(names), seed
        data = workload.splits()["train"]
        self._examples = arrays.examples(data)
        self._train_data = parallel.replicate(data, mesh)
        self._programs = Programs(mesh, self._names)
        self._typed = jax.eval_shape(
            lambda key, values: train.init(self._recipe(1, 1), key, values),
            jax.ShapeDtypeStruct((2,), np.uint32),
            self._programs.scalars,
        )
        self._state = jax.eval_shape(keys.raw, self._typed)
        self._evaluations = Evaluations(
            workload, goal, mesh, self._programs, self._typed, examples=examples
        )
        self._seconds = 0.0

    @property
    def splits(self) -> list[str]:
        """The splits that can be measured."""
        return self._evaluations.splits

    @property
    def bounded(self) -> bool:
        """Whether evaluations can end before they are whole, and be bounds."""
        return self._evaluations.bounded

    @property
    def seconds(self) -> dict[str, float]:
        """How long its caller has waited for what."""
        return {
            "training": self._seconds,
            "evaluation": self._evaluations.seconds,
            "compilation": self._programs.seconds,
        }

    @property
    def memory_limit(self) -> int | None:
        """The bytes of memory of each device, where that is known."""
        return devices.memory(self.mesh.devices.flat[0])

    def memory(self, batch_size: int, layout: Layout, trials: int) -> int:
        """The bytes that the trials of a batch size need on each device, as far as XLA tells."""
        width = self.mesh.size * layout.lanes
        state = layout.lanes * sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(self._state))
        data = sum(x.nbytes for x in jax.tree.leaves(self._train_data))
        packs = -(-trials // width)
        return data + self._evaluations.nbytes + packs * state + self.scratch(batch_size, layout)

    def scratch(self, batch_size: int, layout: Layout) -> int:
        """The bytes that XLA sets aside for a step on each device; 0 where it does not tell."""
        program = self._programs.wait(self._segment(batch_size, layout)).memory_analysis()
        return 0 if program is None else program.temp_size_in_bytes

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        """Stops compiling ahead."""
        self._programs.close()

    def compile_ahead(self, batch_size: int, layout: Layout) -> None:
        """Begins to compile a batch size's programs in the background."""
        self._init(layout.lanes)
        self._segment(batch_size, layout)
        self._draw(batch_size, layout)
        self._evaluations.compile_ahead(layout)

    def start(
        self,
        ids: Sequence[TrialId],
        hyperparameters: HyperparametersOf,
        *,
        batch_size: int,
        layout: Layout,
    ) -> list[Pack]:
        """Trials before their first step, in as few packs as hold them."""
        program = self._programs.wait(self._init(layout.lanes))
        packs = []
        for some in self._arrange(ids, layout):
            filled = packing.fill(some)
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
        for some in self._arrange(states.ids, layout):
            filled = packing.fill(some)
            leaves = states.only(filled).leaves
            state = parallel.split(jax.tree.unflatten(treedef, leaves), self.mesh)
            values = self._values(filled, hyperparameters)
            packs.append(Pack(some, values, state, self._busy(some)))
        return packs

    def advance(
        self, packs: Sequence[Pack], *, batch_size: int, layout: Layout, step: int, to: int
    ) -> None:
        """Trains packs from one step to another; a device with idle lanes alone does nothing."""
        program = self._programs.wait(self._segment(batch_size, layout))
        draw = self._programs.wait(self._draw(batch_size, layout))
        block = self._drawn(batch_size).size // batch_size
        began = time.monotonic()
        for pack in packs:
            at = step
            while at < to:
                if pack.drawn is None or not pack.drawn[1] <= at < pack.drawn[1] + block:
                    place = sampling.position(at, batch_size=batch_size, examples=self._examples)
                    pack.drawn = draw(pack.state.key, (), self._numbers(*place), pack.busy), at
                drawn, since = pack.drawn
                steps = min(to, since + block) - at
                numbers = self._numbers(at, batch_size, (at - since) * batch_size, steps)
                shared = (self._train_data, numbers)
                pack.state, pack.sound = program(
                    pack.state, (pack.hyperparameters, drawn), shared, pack.busy
                )
                at += steps
        jax.block_until_ready([pack.state.key for pack in packs])
        self._seconds += time.monotonic() - began

    def measure(
        self,
        packs: Sequence[Pack],
        splits: Iterable[str],
        *,
        layout: Layout,
        trials: Collection[TrialId] | None = None,
        bounded: Collection[TrialId] = (),
    ) -> Measured:
        """Evaluates trials of packs on splits.

        Args:
          packs: at the same step.
          splits: by name.
          layout: of the packs.
          trials: which; all of them by default.
          bounded: those of them whose evaluation on the goal's split may end as soon as it is
            certain that the trial is not past the goal.
        """
        if trials is None:
            trials = [trial for pack in packs for trial in pack.trials]
        found = self._evaluations.measure(
            packs, splits, layout=layout, trials=trials, bounded=bounded
        )
        for pack in packs:
            lanes = [] if pack.sound is None else np.flatnonzero(~np.asarray(pack.sound))
            found.diverged.update(found.rows.keys() & {pack.ids[lane] for lane in lanes})
        return found

    def params(self, states: HostStates, trial: TrialId) -> tuple[PyTree, PyTree]:
        """The parameters and the model's state of one trial, as host arrays."""
        row = states.ids.index(trial)
        leaves = [leaf[row] for leaf in states.leaves]
        state = jax.tree.unflatten(jax.tree.structure(self._state), leaves)
        state = keys.typed(state, self._typed)
        return state.params, state.model_state

    def _arrange(self, ids: Sequence[TrialId], layout: Layout) -> list[list[TrialId | None]]:
        return packing.arrange(ids, devices=self.mesh.size, lanes=layout.lanes)

    def _values(
        self,
        ids: Sequence[TrialId],
        hyperparameters: HyperparametersOf,
    ) -> dict[str, jax.Array]:
        table = {
            name: np.asarray([hyperparameters(trial)[name] for trial in ids], arrays.float_type())
            for name in self._names
        }
        return parallel.split(table, self.mesh)

    def _busy(self, ids: Sequence[TrialId | None]) -> jax.Array:
        lanes = np.asarray([trial is not None for trial in ids])
        return parallel.split(lanes.reshape(self.mesh.size, -1).any(1).astype(np.int32), self.mesh)

    def _numbers(self, *numbers: Any) -> jax.Array:
        """Numbers as one array: each would be sent to the devices by itself."""
        return parallel.replicate(np.array(numbers, np.int32), self.mesh)

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
            return keys.raw(train.init(recipe, train.trial_key(*name), values))

        name = jax.ShapeDtypeStruct((4,), np.uint32)
        # One at a time: initialisers compile slowly under vmap, and parameters get the same bits
        # however trials are packed.
        return self._programs.begin(
            "init",
            start,
            name,
            (),
            lanes=lanes,
            at_once=1,
            # It runs once, so its compilation is what it costs.
            compiler_options={"xla_backend_optimization_level": 0},
        )

    def _segment(self, batch_size: int, layout: Layout) -> Future[Any]:
        recipe, drawn = self._recipe(batch_size, layout.microbatch), self._drawn(batch_size)

        def segment(state: Any, own: Any, shared: Any, busy: Any) -> tuple[TrainState, Any]:
            values, drawn = own
            data, (number, size, first, steps) = shared
            batch = train.Batch(drawn, first, size)
            state = keys.typed(state, self._typed)
            state = train.segment(recipe, state, values, data, batch, number, steps * busy)
            return keys.raw(state), train.sound(recipe, state, values)

        return self._programs.begin(
            ("segment", recipe.microbatch, recipe.rest, recipe.whole, drawn.size),
            segment,
            self._state,
            (self._train_data, jax.ShapeDtypeStruct((4,), np.int32)),
            trial=(self._programs.scalars, drawn),
            lanes=layout.lanes,
            donate=True,
        )

    def _draw(self, batch_size: int, layout: Layout) -> Future[Any]:
        size, examples = self._drawn(batch_size).size, self._examples

        def draw(key: Any, own: Any, shared: Any, busy: Any) -> Any:
            del own, busy
            return train.draw(key, Position(*shared), size=size, examples=examples)

        return self._programs.begin(
            ("draw", size),
            draw,
            self._state.key,
            jax.ShapeDtypeStruct((2,), np.int32),
            trial=(),
            lanes=layout.lanes,
        )

    def _drawn(self, batch_size: int) -> jax.ShapeDtypeStruct:
        """What is drawn at once of the examples that a trial sees."""
        return jax.ShapeDtypeStruct((max(_DRAWN, batch_size),), np.int32)
