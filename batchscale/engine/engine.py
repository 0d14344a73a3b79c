"""Packs of trials on devices: started, advanced, measured, moved to the host and back.

The engine holds the compiled programs and the data on the devices. It knows nothing of stopping
or files: which trials run how far is the runner's business.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int, PyTree, UInt32

from batchscale import arrays, jitting, keys, train
from batchscale.engine import devices, feed, hosts, parallel
from batchscale.engine import packs as packing
from batchscale.engine.evaluation import Evaluations
from batchscale.engine.layout import Layout
from batchscale.engine.packs import HostStates, Pack, TrialId, Values
from batchscale.engine.programs import Argument, Programs
from batchscale.engine.whole import Measured
from batchscale.metrics import Goal
from batchscale.optimizers import Optimizer
from batchscale.sampling import Position
from batchscale.schedules import Schedule
from batchscale.train import Recipe, TrainState
from batchscale.workloads import Workload


@dataclasses.dataclass(frozen=True)
class Training:
    """What is trained, and how: all that the engine, and who runs it, reads of a study.

    Attributes:
      workload: data, model, loss and metrics.
      optimizer: the update.
      schedule: the learning rate at a step.
      names: of the hyperparameters.
      seed: of the study; with their names it makes the keys of trials.
      goal: what evaluations are compared with.
      mixes_examples: whether the loss of an example hangs on others of its batch; None if it is not
        known.
    """

    workload: Workload
    optimizer: Optimizer
    schedule: Schedule
    names: tuple[str, ...]
    seed: int
    goal: Goal
    mixes_examples: bool | None = None


_LONG = 0.5  # seconds of training: signals are heard meanwhile


class Span(NamedTuple):
    """Steps that a program takes, and where their examples are.

    It goes to the devices as one array in this order: each number would be a transfer by itself.

    Attributes:
      step: the first, from 0.
      batch_size: examples a step.
      place: of the first step's first example among those drawn.
      steps: how many.
    """

    step: Int[Array, ""] | int
    batch_size: Int[Array, ""] | int
    place: Int[Array, ""] | int
    steps: Int[Array, ""] | int


class Engine:
    """Runs trials on a mesh of devices.

    Args:
      training: what is trained; its data goes to the devices here.
      mesh: the devices, from `parallel.mesh`.
      examples: how many are measured of each split that is, by name; by default as `Evaluate` says.
      resident_bytes: of a streamed split up to which it is kept on the devices; by default a share
        of their memory.
    """

    def __init__(
        self,
        training: Training,
        *,
        mesh: Mesh,
        examples: Mapping[str, int] | None = None,
        resident_bytes: int | None = None,
    ) -> None:
        self.mesh = mesh
        self._training = training
        self._examples = arrays.examples(training.workload.splits()["train"])
        self._feed = feed.of(training.workload, mesh)
        self._programs = Programs(mesh)
        # Like Python's numbers they give way to the types of what they are multiplied with: a
        # learning rate must not widen a state of bfloat16.
        scalar = jax.ShapeDtypeStruct((), arrays.float_type(), weak_type=True)
        self._values = Argument("trial", dict.fromkeys(training.names, scalar))
        self._typed = jax.eval_shape(
            lambda key, values: train.init(self._recipe(1, Layout(1, 1)), key, values),
            jax.ShapeDtypeStruct((2,), np.uint32),
            self._values.shapes,
        )
        self._state = Argument("trial", jax.eval_shape(keys.raw, self._typed))
        self._evaluations = Evaluations(
            training.workload,
            training.goal,
            mesh,
            self._programs,
            self._typed,
            examples=examples,
            resident_bytes=resident_bytes,
            mixes_examples=training.mixes_examples,
        )
        self._seconds = self._lasted = 0.0

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
            "waiting for data": self._feed.waited + self._evaluations.waited,
        }

    @property
    def group(self) -> int | None:
        """The examples that are not cut apart where memory is short; None: no microbatch is cut."""
        one = 1 if self._training.mixes_examples is False else None
        return self._training.workload.ghost_batch_size or one

    @property
    def state_bytes(self) -> int:
        """The bytes of a trial's training state: parameters, the optimizer's state, the model's."""
        return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(self._state.shapes))

    @property
    def memory_limit(self) -> int | None:
        """The bytes of memory of each device, where that is known."""
        return devices.memory(self.mesh.devices.flat[0])

    def memory(self, batch_size: int, layout: Layout, trials: int) -> int:
        """The bytes that the trials of a batch size need on each device, as far as XLA tells."""
        width = self.mesh.size * layout.lanes
        leaves = jax.tree.leaves(self._state.shapes)
        state = layout.lanes * sum(x.size * x.dtype.itemsize for x in leaves)
        packs = -(-trials // width)
        data = self._feed.nbytes(batch_size, layout.lanes, packs)
        return data + self._evaluations.nbytes + packs * state + self.scratch(batch_size, layout)

    def scratch(self, batch_size: int, layout: Layout) -> int:
        """The bytes that XLA sets aside for a step on each device; 0 where it does not tell."""
        program = self._programs.wait(self._segment(batch_size, layout)).memory_analysis()
        return 0 if program is None else program.temp_size_in_bytes

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *exception: object) -> None:
        """Stops compiling and reading ahead."""
        self._programs.close()
        self._feed.close()
        self._evaluations.close()

    def compile_ahead(self, batch_size: int, layout: Layout) -> None:
        """Begins to compile a batch size's programs in the background."""
        self._init(layout.lanes)
        self._segment(batch_size, layout)
        self._draw(batch_size, layout)
        self._evaluations.compile_ahead(layout)

    def compiled(self, batch_size: int, layout: Layout) -> int:
        """Compiles a batch size's programs now; how many of them were not there."""
        before = len(self._programs)
        self.compile_ahead(batch_size, layout)
        self._programs.finish()
        return len(self._programs) - before

    def programs_of(self, batch_size: int, layout: Layout) -> list[Hashable]:
        """The names of the programs that train a batch size; one of the same name is shared."""
        drawn = self._drawn(batch_size, layout).shapes.size
        names = self._segment_name(batch_size, layout), ("draw", drawn)
        return [(name, layout.lanes) for name in names]

    def start(
        self, ids: Sequence[TrialId], values: Values, *, batch_size: int, layout: Layout
    ) -> list[Pack]:
        """Trials before their first step, in as few packs as hold them.

        Args:
          ids: of the trials.
          values: their hyperparameters, in the order of `ids`.
          batch_size: of the trials.
          layout: how they are packed.
        """
        program = self._programs.wait(self._init(layout.lanes))
        packs = []
        for some in self._arrange(ids, layout):
            filled = packing.fill(some)
            names = [(self._training.seed, batch_size, *trial) for trial in filled]
            name = parallel.split(np.asarray(names, np.uint32), self.mesh)
            own = self._of(filled, ids, values)
            packs.append(Pack(some, own, program(name, own), self._busy(some)))
        return packs

    def pack(self, states: HostStates, values: Values, *, layout: Layout) -> list[Pack]:
        """Trials that were at work before, in as few packs as hold them.

        Args:
          states: of the trials.
          values: their hyperparameters, in the same order.
          layout: how they are packed.
        """
        treedef = jax.tree.structure(self._state.shapes)
        packs = []
        for some in self._arrange(states.ids, layout):
            filled = packing.fill(some)
            leaves = states.only(filled).leaves
            state = parallel.split(jax.tree.unflatten(treedef, leaves), self.mesh)
            packs.append(Pack(some, self._of(filled, states.ids, values), state, self._busy(some)))
        return packs

    def unpack(self, packs: Sequence[Pack]) -> HostStates:
        """The states of the trials of packs on the host, without the idle lanes."""
        return packing.unpack(packs)

    @property
    def leaves(self) -> list[jax.ShapeDtypeStruct]:
        """The shapes of what is kept of a trial on the host; see `HostStates`."""
        return jax.tree.leaves(self._state.shapes)

    def advance(
        self, packs: Sequence[Pack], *, batch_size: int, layout: Layout, step: int, to: int
    ) -> None:
        """Trains packs from one step to another; a device with idle lanes alone does nothing."""
        program = self._programs.wait(self._segment(batch_size, layout))
        drawing = self._programs.wait(self._draw(batch_size, layout))

        def draw(pack: Pack, position: Position) -> Int[Array, "lane place"]:
            return drawing(pack.state.key, self._numbers(position))

        began, waited = time.monotonic(), self._feed.waited
        for place, pack in enumerate(packs):
            at = step
            while at < to:
                drawn = self._feed.drawn(packs, place, at, to, batch_size=batch_size, draw=draw)
                steps = min(to, drawn.until) - at
                span = Span(at, batch_size, (at - drawn.since) * batch_size, steps)
                pack.state, pack.sound = program(
                    pack.state,
                    pack.hyperparameters,
                    drawn.examples,
                    drawn.data,
                    self._numbers(span),
                    pack.busy,
                )
                at += steps
        ends = [pack.state.key for pack in packs]
        # While JAX is waited for no signal is heard.
        while self._lasted > _LONG and not all(end.is_ready() for end in ends):
            time.sleep(_LONG / 200)
        jax.block_until_ready(ends)
        self._lasted = time.monotonic() - began
        self._seconds += self._lasted - (self._feed.waited - waited)

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
        noted = [pack for pack in packs if pack.sound is not None]
        for pack, sound in zip(noted, hosts.fetched(pack.sound for pack in noted), strict=True):
            lanes = np.flatnonzero(~sound)
            found.diverged.update(found.rows.keys() & {pack.ids[lane] for lane in lanes})
        return found

    def params(self, states: HostStates, trial: TrialId) -> tuple[PyTree, PyTree]:
        """The parameters and the model's state of one trial, as host arrays."""
        state = self._state_of(states, trial)
        return state.params, state.model_state

    def copies(
        self, states: HostStates, trial: TrialId, ids: Sequence[TrialId], *, batch_size: int
    ) -> HostStates:
        """The state of a trial once for each of some, which go on with randomness of their own.

        Args:
          states: that of the trial is one of them.
          trial: which.
          ids: of the copies; the trial itself stays as it is.
          batch_size: of the trial: a part of every trial's name.
        """
        state, rows = self._state_of(states, trial), []
        for one in ids:
            copy = state
            if one != trial:
                key = train.trial_key(self._training.seed, batch_size, *one)
                noise = keys.mixed(state.opt_state, keys.wrap(key))
                copy = dataclasses.replace(state, key=key, opt_state=noise)
            rows.append(map(np.asarray, jax.tree.leaves(keys.raw(copy))))
        return HostStates(list(ids), [np.stack(leaf) for leaf in zip(*rows, strict=True)])

    def _state_of(self, states: HostStates, trial: TrialId) -> TrainState:
        row = states.ids.index(trial)
        leaves = [leaf[row] for leaf in states.leaves]
        state = jax.tree.unflatten(jax.tree.structure(self._state.shapes), leaves)
        return keys.typed(state, self._typed)

    def _arrange(self, ids: Sequence[TrialId], layout: Layout) -> list[list[TrialId | None]]:
        return packing.arrange(ids, devices=self.mesh.size, lanes=layout.lanes)

    def _of(
        self, filled: Sequence[TrialId], ids: Sequence[TrialId], values: Values
    ) -> Mapping[str, Float[Array, " lane"]]:
        """The hyperparameters of the lanes of a pack."""
        places = {trial: place for place, trial in enumerate(ids)}
        rows = [places[trial] for trial in filled]
        table = {
            name: np.asarray(values[name], arrays.float_type())[rows]
            for name in self._training.names
        }
        return parallel.split(table, self.mesh)

    def _busy(self, ids: Sequence[TrialId | None]) -> Int[Array, " device"]:
        lanes = np.asarray([trial is not None for trial in ids])
        return parallel.split(lanes.reshape(self.mesh.size, -1).any(1).astype(np.int32), self.mesh)

    def _numbers(self, numbers: Span | Position) -> Int[Array | np.ndarray, " numbers"]:
        given = np.array(numbers, np.int32)
        # A program sends a few numbers faster itself, where it reaches all devices.
        return parallel.replicate(given, self.mesh) if hosts.several() else given

    def _recipe(self, batch_size: int, layout: Layout) -> Recipe:
        training = self._training
        return Recipe.of(
            training.workload,
            training.optimizer,
            training.schedule,
            batch_size=batch_size,
            microbatch=layout.microbatch,
            shared=layout.shared,
            mixes_examples=training.mixes_examples,
        )

    def _init(self, lanes: int) -> Future[Any]:
        recipe = self._recipe(1, Layout(1, 1))

        def init(name: UInt32[Array, " 4"], values: Mapping[str, Float[Array, ""]]) -> TrainState:
            return keys.raw(train.init(recipe, train.trial_key(*name), values))

        # One at a time: initialisers compile slowly under vmap, and parameters get the same bits
        # however trials are packed.
        return self._programs.begin(
            "init",
            init,
            Argument("trial", jax.ShapeDtypeStruct((4,), np.uint32)),
            self._values,
            lanes=lanes,
            at_once=1,
            compiler_options=jitting.ONCE,
        )

    def _segment(self, batch_size: int, layout: Layout) -> Future[Any]:
        recipe = self._recipe(batch_size, layout)
        drawn, data = self._drawn(batch_size, layout), self._feed.data(batch_size, layout.lanes)

        def segment(
            state: TrainState,
            values: Mapping[str, Float[Array, ""]],
            drawn: Int[Array, " places"],
            data: PyTree[Array],
            span: Int[Array, " 4"],
            busy: Int[Array, ""],
        ) -> tuple[TrainState, Bool[Array, ""]]:
            now = Span(*span)
            batch = train.Batch(drawn, now.place, now.batch_size)
            state = keys.typed(state, self._typed)
            state = train.segment(recipe, state, values, data, batch, now.step, now.steps * busy)
            return keys.raw(state), train.sound(recipe, state, values)

        return self._programs.begin(
            self._segment_name(batch_size, layout),
            segment,
            self._state,
            self._values,
            drawn,
            data,
            Argument("all", jax.ShapeDtypeStruct((len(Span._fields),), np.int32)),
            Argument("device", jax.ShapeDtypeStruct((), np.int32)),
            lanes=layout.lanes,
            donate=True,
        )

    def _segment_name(self, batch_size: int, layout: Layout) -> Hashable:
        recipe = self._recipe(batch_size, layout)
        data = self._feed.data(batch_size, layout.lanes)
        return (
            "segment",
            *(recipe.microbatch, recipe.rest, recipe.whole, recipe.full),
            *(self._drawn(batch_size, layout).shapes.size, arrays.examples(data.shapes)),
        )

    def _draw(self, batch_size: int, layout: Layout) -> Future[Any]:
        size, examples = self._drawn(batch_size, layout).shapes.size, self._examples

        def draw(key: UInt32[Array, " 2"], position: Int[Array, " 2"]) -> Int[Array, " places"]:
            return train.draw(key, Position(*position), size=size, examples=examples)

        return self._programs.begin(
            ("draw", size),
            draw,
            Argument("trial", self._state.shapes.key),
            Argument("all", jax.ShapeDtypeStruct((len(Position._fields),), np.int32)),
            lanes=layout.lanes,
        )

    def _drawn(self, batch_size: int, layout: Layout) -> Argument:
        """What is drawn at once of the examples that a trial sees."""
        places = self._feed.places(batch_size, layout.lanes)
        return Argument("trial", jax.ShapeDtypeStruct((places,), np.int32))
