"""Evaluations on streamed splits: read once for all packs, a chunk ahead of the devices."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Int, PyTree

from batchscale import arrays
from batchscale.engine import hosts, parallel
from batchscale.engine.bounded import Bound
from batchscale.engine.evaluated import Evaluated
from batchscale.engine.layout import Layout
from batchscale.engine.packs import Pack, TrialId
from batchscale.engine.whole import Measured, Parts, Whole
from batchscale.metrics import Goal
from batchscale.workloads import Workload

CHUNK_BYTES = 2**26
"""A choice: about so much of a streamed split is on the devices at once, and as much is read."""
_LARGE = 1000  # numbers of a sum that is not kept for every batch


class _Chunk(NamedTuple):
    """Examples on the devices, and how many evaluation batches of them count."""

    of: Whole
    data: PyTree[Array]
    batches: int


class _Parts:
    """The sums of one trial, by evaluation batch; of large ones their sum so far, as exact.

    Large ones are added one batch after the other, as NumPy adds those of a split that is resident.
    """

    def __init__(self) -> None:
        self._kept: list[list[np.ndarray]] = []
        self._treedef: Any = None

    def add(self, parts: Parts) -> None:
        """Takes the sums of further batches, arrays of shape (1, batches, ...)."""
        leaves, self._treedef = jax.tree.flatten(parts)
        if not self._kept:
            self._kept = [[] for _ in leaves]
        for kept, leaf in zip(self._kept, leaves, strict=True):
            if math.prod(leaf.shape[2:]) < _LARGE:
                kept.append(leaf)
                continue
            wide = leaf.astype(np.int64 if np.issubdtype(leaf.dtype, np.integer) else np.float64)
            for place in range(leaf.shape[1]):
                one = wide[:, place : place + 1]
                kept[:] = [kept[0] + one] if kept else [one]

    def joined(self) -> Parts:
        """All of them, the batches along axis 1."""
        leaves = [np.concatenate(kept, axis=1) for kept in self._kept]
        return jax.tree.unflatten(self._treedef, leaves)


class Chunks:
    """Whole evaluations, and bounded ones, on a split of which a chunk at a time is read.

    The evaluation batches are those of a split that is resident, and so are their sums and what
    becomes of them.

    Args:
      workload: the metrics.
      goal: what is looked for.
      name: of the split, which is streamed.
      indices: of the examples that are measured.
      bound: at which evaluations on this split can end; None if they cannot.
      evaluated: what is seen of packs.
      mesh: the devices.

    Attributes:
      waited: seconds that the devices waited for examples.
    """

    def __init__(
        self,
        workload: Workload,
        goal: Goal,
        name: str,
        indices: Int[np.ndarray, " examples"],
        bound: Bound | None,
        evaluated: Evaluated,
        mesh: Mesh,
    ) -> None:
        self.waited = 0.0
        self._workload, self._goal, self._name = workload, goal, name
        self._indices, self._bound, self._mesh = indices, bound, mesh
        split = dict(workload.splits()[name])
        self._batch = evaluated.batch(arrays.like_examples(split, len(indices)))
        rest, batches = len(indices) % self._batch, len(indices) // self._batch
        one = arrays.nbytes(arrays.like_examples(split, 1))
        # Of two batches or more: a loop of one would be another program.
        chunk = min(max(CHUNK_BYTES // (self._batch * one), 2), batches)
        self._chunk = chunk * self._batch

        def whole(examples: int) -> Whole:
            return Whole(
                workload,
                goal,
                name,
                arrays.like_examples(split, examples),
                None if bound is None else bound.count,
                evaluated,
                batch=min(self._batch, examples),
            )

        self._whole = whole(self._chunk)
        self._rest = whole(rest) if rest else None
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="evaluation")
        self._stop = threading.Event()

    @property
    def seconds(self) -> float:
        """How long was spent here, without compilation and waiting for examples."""
        return self._whole.seconds + (0.0 if self._rest is None else self._rest.seconds)

    @property
    def nbytes(self) -> int:
        """The bytes of the chunks that are on each device at once."""
        split = arrays.like_examples(dict(self._workload.splits()[self._name]), self._chunk)
        return 2 * arrays.nbytes(split)

    def close(self) -> None:
        """Stops reading."""
        self._stop.set()
        self._reader.shutdown(wait=True, cancel_futures=True)

    def compile_ahead(self, layout: Layout) -> None:
        """Begins to compile the programs of a layout in the background."""
        self._whole.compile_ahead(layout)
        if self._rest is not None:
            self._rest.compile_ahead(layout)

    def measure(
        self,
        packs: Sequence[Pack],
        layout: Layout,
        trials: set[TrialId],
        found: Measured,
        bounded: set[TrialId],
    ) -> None:
        """Adds evaluations of trials to what was found.

        Args:
          packs: that hold the trials.
          layout: of the packs.
          trials: which.
          found: what was found.
          bounded: those whose evaluation ends as soon as they are certainly not past the goal.
        """
        undecided = set(trials)
        evidence = dict.fromkeys(bounded if self._bound is not None else (), 0)
        parts = {trial: _Parts() for trial in trials}
        diverged: set[TrialId] = set()
        for chunk in self._chunks():
            for out in chunk.of.dispatch(packs, layout, undecided, chunk.data):
                began = time.monotonic()
                some, finite, sums = chunk.of.parts(out)
                sums = jax.tree.map(lambda x, n=chunk.batches: x[:, :n], sums)
                for row, trial in enumerate(some):
                    own = jax.tree.map(lambda x, r=row: x[r : r + 1], sums)
                    parts[trial].add(own)
                    if not finite[row]:
                        diverged.add(trial)
                    if trial in evidence and self._bound is not None:
                        evidence[trial] += self._bound.evidence(own)
                        if trial in diverged or evidence[trial] >= self._bound.enough:
                            found.rows[trial] |= self._bound.row
                            undecided.discard(trial)
                chunk.of.seconds += time.monotonic() - began
            if not undecided:
                break
        found.diverged.update(diverged)
        for trial in sorted(undecided):
            finite = np.array([trial not in diverged])
            self._whole.take_down([trial], finite, parts[trial].joined(), found)

    def _chunks(self) -> Iterator[_Chunk]:
        """The chunks of the split in its order, each read while the one before it is in use."""
        rest = len(self._indices) % self._batch
        firsts = [*range(rest, len(self._indices), self._chunk)]
        spans = [(0, rest)] * bool(rest) + [
            (first, min(first + self._chunk, len(self._indices))) for first in firsts
        ]
        ahead = self._reader.submit(self._read, *spans[0])
        for place in range(len(spans)):
            began = time.monotonic()
            chunk = hosts.together(ahead.result)
            self.waited += time.monotonic() - began
            if place + 1 < len(spans):
                ahead = self._reader.submit(self._read, *spans[place + 1])
            yield chunk

    def _read(self, first: int, last: int) -> _Chunk:
        indices = self._indices[first:last]
        of, batches = self._whole, len(indices) // self._batch
        if last - first < self._batch and self._rest is not None:
            of, batches = self._rest, 1
        else:  # the last one is filled up; what it says of the last example again is left out
            padding = np.full(self._chunk - len(indices), indices[-1])
            indices = np.concatenate([indices, padding])
        data = self._workload.read(self._name, indices, stop=self._stop)
        return _Chunk(of, parallel.replicate(dict(data), self._mesh), batches)
