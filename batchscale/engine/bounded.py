"""Evaluations that end as soon as it is certain that a trial is not past the goal.

To reject a trial that is not past the goal, enough of its mistakes have to be seen, not all
examples. So a bounded evaluation goes through the split in small batches, those examples first that
trials have got wrong before, and ends at the mistake that decides. It is exact, whatever the order:
the order costs time, never a wrong answer. What is written down is the bound that the goal itself
is, so the tables do not depend on the order either.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Array, Bool, Float, Int, PyTree

from batchscale import arrays, train
from batchscale.engine import hosts, parallel
from batchscale.engine.evaluated import Evaluated
from batchscale.engine.layout import Layout
from batchscale.engine.packs import Pack, TrialId
from batchscale.engine.programs import Argument
from batchscale.metrics import Goal
from batchscale.workloads import Workload, counts

_FROM = 1_000  # a choice: smaller splits are evaluated whole faster than they are bounded
_RANKING_PAYS = 2  # examples looked at in vain, over those that a new ranking looks at


class Rejected(NamedTuple):
    """What bounded evaluations found out.

    Attributes:
      trials: that are certainly not past the goal.
      diverged: the trials whose parameters are no longer finite.
    """

    trials: set[TrialId]
    diverged: set[TrialId]


class Verdict(NamedTuple):
    """What the program says of a trial, as one array, each of whose entries is an integer.

    Attributes:
      finite: whether its parameters and the model's state are.
      rejected: whether it is certainly not past the goal.
      batches: how many evaluation batches were looked at.
    """

    finite: Any
    rejected: Any
    batches: Any


class Bound:
    """Where an evaluation on the goal's split is decided, and what is written down then.

    Args:
      goal: what is looked for.
      count: of how many its metric counts some.

    Attributes:
      count: the same.
      enough: so much evidence says that a trial is certainly not past the goal.
      row: what is written down of a trial that is rejected.
    """

    def __init__(self, goal: Goal, count: int) -> None:
        self._goal, self.count = goal, count
        limit = goal.limit(count)
        self.enough: int = limit if goal.mode == "min" else count - limit
        self.row: Mapping[str, float] = {goal.bound: limit / count}

    def evidence(self, sums: Mapping[str, PyTree]) -> Any:
        """What counts against a trial: what brings it nearer to a value that is not the goal's."""
        total, count = (x.sum() for x in sums[self._goal.name])
        return total if self._goal.mode == "min" else count - total


class Bounded:
    """Bounded evaluations of packs on the goal's split.

    Args:
      workload: whose metric counts examples there.
      split: of the goal, on the devices.
      bound: where they are decided.
      evaluated: what is seen of packs.
      mesh: the devices.

    Attributes:
      seconds: spent here, without compilation.
    """

    def __init__(
        self,
        workload: Workload,
        split: PyTree[Array],
        bound: Bound,
        evaluated: Evaluated,
        mesh: Mesh,
    ) -> None:
        self.seconds = 0.0
        self._workload, self._bound, self._split = workload, bound, split
        self._evaluated, self._mesh = evaluated, mesh
        self._enough: Int[Array, ""] = parallel.replicate(np.int32(bound.enough), mesh)
        self._ranked = split
        size = arrays.examples(split)
        # Of words or pixels an example may have many.
        enough = math.ceil(bound.enough * size / bound.count)
        self._batch = evaluated.batch(split, enough=enough)
        self._mistakes: Float[np.ndarray, " examples"] = np.zeros(size)
        self._in_vain = 0.0
        self._rank_by = jax.jit(
            lambda split, order: jax.tree.map(lambda x: x[order], split),
            out_shardings=NamedSharding(mesh, parallel.spec("all")),
        )

    @property
    def nbytes(self) -> int:
        """The bytes of what it holds on each device besides the split."""
        return sum(x.nbytes for x in jax.tree.leaves(self._ranked))

    def compile_ahead(self, layout: Layout) -> None:
        """Begins to compile the programs of a layout in the background."""
        self._reject(layout)
        self._each(layout)

    def reject(self, packs: Sequence[Pack], layout: Layout, trials: set[TrialId]) -> Rejected:
        """Which of the trials are certainly not past the goal."""
        program = self._evaluated.wait(self._reject(layout))
        began = time.monotonic()
        found = Rejected(set(), set())
        looked_at = 0
        outs = self._evaluated.dispatch(program, packs, trials, self._ranked, self._enough)
        for out, numbers in zip(outs, hosts.fetched(out.values for out in outs), strict=True):
            for lane, trial in out.trials.items():
                verdict = Verdict(*numbers[lane])
                if not verdict.finite:
                    found.diverged.add(trial)
                if not verdict.finite or verdict.rejected:
                    found.trials.add(trial)
                if verdict.finite and verdict.rejected:
                    looked_at += int(verdict.batches) - 1
        self.seconds += time.monotonic() - began
        self._in_vain += looked_at * self._batch
        # Ranking again costs a pack's whole evaluation; it waits until as much was spent in vain.
        if self._in_vain > _RANKING_PAYS * len(self._mistakes) * len(packs[0].ids):
            self._rank(packs[0], layout)
        return found

    def _rank(self, pack: Pack, layout: Layout) -> None:
        """Puts those examples first that the trials of a pack get wrong, and did before."""
        program = self._evaluated.wait(self._each(layout))
        began = time.monotonic()
        lanes = range(len(pack.ids))
        mistakes = self._evaluated.run(program, pack, lanes, self._split, pack.busy)
        self._mistakes = self._mistakes / 2 + hosts.fetch(mistakes).sum(0)
        order = np.argsort(-self._mistakes, kind="stable").astype(np.int32)
        self._ranked = self._rank_by(self._split, parallel.replicate(order, self._mesh))
        self._in_vain = 0.0
        self.seconds += time.monotonic() - began

    def _reject(self, layout: Layout) -> Future[Any]:
        together = {} if layout.evaluation_lanes == 1 else {"any_lane": _any_lane}

        def reject(
            state: PyTree[Array],
            active: Bool[Array, ""],
            data: PyTree[Array],
            enough: Int[Array, ""],
        ) -> Int[Array, " 3"]:
            found, batches = train.tally(
                self._workload,
                *self._evaluated.parameters(state),
                data,
                self._bound.evidence,
                batch=self._batch,
                enough=jnp.where(active, enough, 0),
                **together,
            )
            verdict = Verdict(train.finite(state[:2]), found >= enough, batches)
            return jnp.stack([jnp.asarray(x, jnp.int32) for x in verdict])

        return self._evaluated.begin(
            "bounded",
            reject,
            Argument("all", self._ranked),
            Argument("all", self._enough),
            layout=layout,
        )

    def _each(self, layout: Layout) -> Future[Any]:
        batch = self._evaluated.batch(self._split)

        def each(
            state: PyTree[Array],
            active: Bool[Array, ""],
            data: PyTree[Array],
            busy: Int[Array, ""],
        ) -> Int[Array, " examples"]:
            del active  # of whom it is counts for nothing: idle lanes repeat a trial of the pack
            parameters = self._evaluated.parameters(state)
            return busy * train.each(
                self._workload, *parameters, data, self._bound.evidence, batch=batch
            )

        return self._evaluated.begin(
            "each",
            each,
            Argument("all", self._split),
            Argument("device", jax.ShapeDtypeStruct((), np.int32)),
            layout=layout,
        )


def is_bounded(workload: Workload, goal: Goal, split: PyTree[Any]) -> bool:
    """Whether evaluations on the goal's split can end early: its metric counts examples, many."""
    return arrays.examples(split) >= _FROM and counts.is_count(workload, goal, split)


def _any_lane(undecided: Bool[Array, ""]) -> Bool[Array, ""]:
    return jax.lax.pmax(undecided.astype(jnp.int32), parallel.LANES) > 0
