"""Evaluations of packs on splits: whole ones, and those that end when they are decided."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Int

from batchscale import arrays, datasets, keys
from batchscale.engine import chunks, devices, hosts, parallel
from batchscale.engine.bounded import Bound, Bounded, is_bounded
from batchscale.engine.chunks import Chunks
from batchscale.engine.evaluated import Evaluated
from batchscale.engine.layout import Layout
from batchscale.engine.packs import Pack, TrialId
from batchscale.engine.programs import Programs
from batchscale.engine.whole import Measured, Whole
from batchscale.evaluate import Evaluate
from batchscale.metrics import Goal
from batchscale.workloads import Workload, counts

_RESIDENT_SHARE = 8  # a choice: of a device's memory, for each streamed split that is measured
RESIDENT_BYTES: int | None = None
"""The bytes up to which a streamed split that is measured is kept on the devices; None: a share."""


class Evaluations:
    """Measures packs on the splits of a workload, and compares them with a goal.

    Args:
      workload: metrics and splits; they go to the devices here.
      goal: what is looked for.
      mesh: the devices.
      programs: where evaluations are compiled.
      state: shapes of a trial's state, its keys typed.
      examples: how many are measured of each split that is, by name.
      resident_bytes: as `most_resident` says.
      mixes_examples: whether the loss of an example hangs on others of its batch: so may what is
        counted, and every evaluation is whole.

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
        resident_bytes: int | None = None,
        mixes_examples: bool | None = None,
    ) -> None:
        splits = workload.splits()
        if examples is None:
            examples = Evaluate().counts(splits, goal.split)
        self.splits = [name for name in splits if name in examples]
        limit = (
            hosts.agreed(lambda: most_resident(mesh)) if resident_bytes is None else resident_bytes
        )
        evaluated = Evaluated(workload, mesh, programs, state)
        resident, streamed = {}, {}
        for name in self.splits:
            indices = _subset(splits[name], examples[name])
            part = arrays.like_examples(dict(splits[name]), len(indices))
            sums = _sums_of_a_batch(workload) * -(-len(indices) // evaluated.batch(part))
            if sums > chunks.CHUNK_BYTES:
                streamed[name] = indices  # those of all batches would not fit the devices
            elif not datasets.is_streamed(splits[name]):
                # What is measured whole is not copied.
                whole = len(indices) == arrays.examples(splits[name])
                resident[name] = splits[name] if whole else datasets.take(splits[name], indices)
            elif arrays.nbytes(part) <= limit:
                resident[name] = workload.read(name, indices)
            else:
                streamed[name] = indices
        counts.refuse_empty(workload, {**resident, **{name: splits[name] for name in streamed}})
        self._on_devices = {
            name: parallel.replicate(split, mesh) for name, split in resident.items()
        }
        self._goal_split = goal.split
        self._bounded: Bounded | None = None
        bound: Bound | None = None
        of_goal = resident.get(goal.split, splits[goal.split])
        if not mixes_examples and is_bounded(workload, goal, of_goal):
            bound = Bound(goal, counts.of_goal(workload, goal, of_goal))
            if goal.split in resident:
                self._bounded = Bounded(
                    workload, self._on_devices[goal.split], bound, evaluated, mesh
                )
        self.bounded = bound is not None
        self._whole = {
            name: Whole(
                workload, goal, name, split, None if bound is None else bound.count, evaluated
            )
            for name, split in self._on_devices.items()
        }
        self._chunks = {
            name: Chunks(
                workload,
                goal,
                name,
                indices,
                bound if name == goal.split else None,
                evaluated,
                mesh,
            )
            for name, indices in streamed.items()
        }
        self._row = {} if bound is None else bound.row

    @property
    def seconds(self) -> float:
        """How long was spent here, without compilation and waiting for examples."""
        some = [] if self._bounded is None else [self._bounded]
        parts = [*self._whole.values(), *self._chunks.values(), *some]
        return sum(part.seconds for part in parts)

    @property
    def waited(self) -> float:
        """How many seconds the devices waited for examples that are streamed."""
        return sum(of.waited for of in self._chunks.values())

    @property
    def nbytes(self) -> int:
        """The bytes of the splits on each device."""
        more = 0 if self._bounded is None else self._bounded.nbytes
        more += sum(of.nbytes for of in self._chunks.values())
        return arrays.nbytes(self._on_devices) + more

    def close(self) -> None:
        """Stops reading."""
        for of in self._chunks.values():
            of.close()

    def compile_ahead(self, layout: Layout) -> None:
        """Begins to compile the evaluations of a layout in the background."""
        for part in [*self._whole.values(), *self._chunks.values()]:
            part.compile_ahead(layout)
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
            asked = whole.intersection(bounded) if split == self._goal_split else set()
            if split in self._chunks:
                self._chunks[split].measure(packs, layout, whole, found, asked)
                continue
            if asked and self._bounded is not None:
                rejected = self._bounded.reject(packs, layout, asked)
                found.diverged.update(rejected.diverged)
                for trial in rejected.trials:
                    found.rows[trial] |= self._row
                whole -= rejected.trials
            if whole:
                self._whole[split].measure(packs, layout, whole, found)
        return found


def counted(workload: Workload, goal: Goal, measured: Mapping[str, int]) -> int | None:
    """Of how many the goal's metric counts some where it is measured; None if it is no count.

    Args:
      workload: the metrics and the data.
      goal: whose metric.
      measured: how many examples of every split are.
    """
    split = workload.splits()[goal.split]
    if not counts.is_count(workload, goal, split):
        return None
    indices = _subset(split, measured[goal.split])
    if len(indices) < arrays.examples(split):
        split = workload.read(goal.split, indices)
    return counts.of_goal(workload, goal, split)


def _subset(split: Mapping[str, Any], size: int) -> Int[np.ndarray, " examples"]:
    """A fixed random subset of examples, in their order."""
    total = arrays.examples(split)
    if total <= size:
        return np.arange(total)
    return np.sort(np.random.Generator(np.random.PCG64(0)).permutation(total)[:size])


def _sums_of_a_batch(workload: Workload) -> int:
    """The bytes of what the metrics of an evaluation batch return."""

    def sums(key: Any, batch: Any) -> Any:
        return workload.metrics(*workload.init(key), workload.prepare(batch, None))

    one = arrays.like_examples(dict(workload.splits()["train"]), 1)
    return arrays.nbytes(jax.eval_shape(sums, keys.shape(), one))


def most_resident(mesh: Mesh) -> int:
    """The bytes of a streamed split up to which it is read once and kept on the devices."""
    if RESIDENT_BYTES is not None:
        return RESIDENT_BYTES
    limit = devices.memory(mesh.devices.flat[0])
    return 2**30 if limit is None else limit // _RESIDENT_SHARE
