"""What evaluations see of packs: of which lanes, and as little of a state as they need."""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Sequence
from concurrent.futures import Future
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, PyTree, Shaped

from batchscale import arrays, keys
from batchscale.engine import parallel
from batchscale.engine.layout import Layout, evaluation_batch
from batchscale.engine.packs import Pack, TrialId
from batchscale.engine.programs import Argument, Programs
from batchscale.train import TrainState
from batchscale.workloads import Workload


class Outcome(NamedTuple):
    """What a program made of a pack.

    Attributes:
      trials: by lane, those that were asked about.
      values: on the devices, the lanes along axis 0.
    """

    trials: dict[int, TrialId]
    values: PyTree[Shaped[Array, "lane ..."]]


class Evaluated:
    """The part of training states that evaluations see, and the programs that see it.

    So little as can be, so that evaluations of several batch sizes share programs: parameters and
    the model's state, and the optimizer's where parameters are averaged with it.

    Args:
      workload: what is trained.
      mesh: the devices.
      programs: where evaluations are compiled.
      state: shapes of a trial's state, its keys typed.
    """

    def __init__(self, workload: Workload, mesh: Mesh, programs: Programs, state: Any) -> None:
        self._workload, self._mesh, self._programs = workload, mesh, programs
        self._typed = self._of(state)
        self._shapes = Argument("trial", jax.eval_shape(keys.raw, self._typed))
        self._masks: dict[bytes, Bool[Array, " lane"]] = {}  # what was sent is not sent again

    def batch(self, split: PyTree, *, enough: int | None = None) -> int:
        """Examples of a split that are evaluated at once; see `layout.evaluation_batch`."""
        return evaluation_batch(
            arrays.examples(split),
            enough=enough,
            tokens=arrays.elements(split),
            cpu=self._mesh.devices.flat[0].platform == "cpu",
        )

    @property
    def shapes(self) -> PyTree:
        """The shapes of what programs are given of a trial's state."""
        return self._shapes.shapes

    def parameters(self, state: PyTree) -> tuple[PyTree, PyTree]:
        """The parameters that are evaluated, and the model's state, of what programs are given."""
        params, model_state, opt_state = keys.typed(state, self._typed)
        if self._workload.evaluated_parameters is not None:
            params = self._workload.evaluated_parameters(params, opt_state)
        return params, model_state

    def begin(
        self, key: Hashable, function: Callable[..., PyTree], *more: Argument, layout: Layout
    ) -> Future[Any]:
        """Begins to compile a program.

        Args:
          key: what it is.
          function: of what is seen of a trial's state, of whether its lane is evaluated, and of
            the other arguments.
          *more: these.
          layout: of the packs.
        """
        return self._programs.begin(
            ("evaluation", key),
            function,
            self._shapes,
            Argument("trial", jax.ShapeDtypeStruct((), bool)),
            *more,
            lanes=layout.lanes,
            at_once=layout.evaluation_lanes,
        )

    def wait(self, program: Future[Any]) -> Any:
        """The program, compiled."""
        return self._programs.wait(program)

    def dispatch(
        self, program: Any, packs: Sequence[Pack], trials: Collection[TrialId], *more: PyTree
    ) -> list[Outcome]:
        """Starts a program from `begin` on every pack that has one of the trials."""
        found = []
        for pack in packs:
            lanes = {
                lane: trial
                for lane, trial in enumerate(pack.ids)
                if trial is not None and trial in trials
            }
            if lanes:
                found.append(Outcome(lanes, self.run(program, pack, lanes, *more)))
        return found

    def run(self, program: Any, pack: Pack, lanes: Collection[int], *more: PyTree) -> PyTree:
        """Starts a program from `begin` on some lanes of a pack."""
        return program(self._of(pack.state), self._mask(lanes, len(pack.ids)), *more)

    def _of(self, state: TrainState) -> tuple[PyTree, PyTree, PyTree]:
        averaged = self._workload.evaluated_parameters is not None
        return state.params, state.model_state, state.opt_state if averaged else ()

    def _mask(self, lanes: Collection[int], width: int) -> Bool[Array, " lane"]:
        """Which lanes of a pack are evaluated."""
        active = np.zeros(width, bool)
        active[[*lanes]] = True
        key = active.tobytes()
        if key not in self._masks:
            self._masks[key] = parallel.split(active, self._mesh)
        return self._masks[key]
