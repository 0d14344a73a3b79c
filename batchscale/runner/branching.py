"""Branches of one trial: on from its states at other batch sizes, with other learning rates."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd

from batchscale import arrays
from batchscale.engine import compilation_cache, hosts, layout
from batchscale.engine.engine import Engine, Training
from batchscale.engine.layout import Layout
from batchscale.engine.packs import HostStates, Pack, TrialId, stacked, unpack
from batchscale.runner.trial_run import PlannedTrial
from batchscale.workloads.coupling import mixes_examples

# What a branch is told besides the hyperparameters of its trial, all of them traced.
_TOLD = _FACTOR, _PACE, _SHIFT = "branch_factor", "branch_pace", "branch_shift"


class Stage(NamedTuple):
    """A stretch of training at one batch size.

    Attributes:
      batch_size: of its steps.
      steps: how many.
      factor: by which the learning rates of the trial's schedule are multiplied.
    """

    batch_size: int
    steps: int
    factor: float


class Reached(NamedTuple):
    """Copies of a trial after some training.

    Attributes:
      states: of the copies, on the host.
      examples: that each of them has been trained on.
      place: of the next example in the order in which they are seen: as many, or a few more where
        a batch size did not divide the place of its first example.
    """

    states: HostStates
    examples: int
    place: int


class Branching:
    """Copies of one trial that are trained in stages, each at a batch size of its own.

    Schedules go by examples: at a batch size k times the trial's, a step is one of k steps, from
    where the trial is. Copy 0 has the trial's key; the others have keys of their own, the same in
    every branch.

    Args:
      planned: the trial.
      copies: how many.
      split: what is measured of them.
    """

    def __init__(self, planned: PlannedTrial, *, copies: int, split: str) -> None:
        hosts.refuse("branches of a trial", "Run them in one process.")
        self._planned = planned
        self._split = split
        self._ids = [TrialId(planned.id.number, planned.id.replicate + k) for k in range(copies)]
        splits = planned.training.workload.splits()
        self._cached = compilation_cache.cached()
        self._engine = Engine(
            _told(planned.training),
            mesh=planned.mesh,
            examples={split: arrays.examples(splits[split])},
        )

    def __enter__(self) -> Branching:
        self._cached.__enter__()
        self._engine.__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        self._engine.__exit__(*exception)
        self._cached.__exit__(*exception)

    def along(self, steps: Sequence[int]) -> Iterator[Reached]:
        """The trial itself at each of its steps, in increasing order; all copies are alike.

        It ends where the trial diverges.
        """
        planned, engine = self._planned, self._engine
        one, values = planned.id, self._values(1, factor=1.0)
        options = {"batch_size": planned.batch_size, "layout": planned.layout}
        packs, at = engine.start([one], values, **options), 0
        for step in steps:
            engine.advance(packs, step=at, to=step, **options)
            at = step
            found = engine.measure(packs, [self._split], layout=planned.layout)
            if found.diverged or found.not_finite:
                return
            states = engine.copies(unpack(packs), one, self._ids, batch_size=planned.batch_size)
            seen = step * planned.batch_size
            yield Reached(states, seen, seen)

    def start(self) -> Reached:
        """The copies before their first step: they begin alike."""
        return next(self.along([0]))

    def train(
        self, reached: Reached, stage: Stage, looks: Sequence[int]
    ) -> tuple[Reached, pd.DataFrame]:
        """Goes on from somewhere.

        Args:
          reached: where the copies are; the first batch begins at the next multiple of its size.
          stage: how they are trained.
          looks: after which of its steps they are measured, in increasing order, at most its steps.

        Returns:
          Where they are then, and a row a look and copy: `copy`, `step` of the stage, `examples`
          seen since the trial began, and the metrics by name, NaN of a copy that has diverged.
        """
        engine, size = self._engine, stage.batch_size
        packing = self._layout(size)
        first = -(-reached.place // size)
        values = self._values(
            len(self._ids), factor=stage.factor, size=size, first=first, seen=reached.examples
        )
        packs: list[Pack] = engine.pack(reached.states, values, layout=packing)
        rows, at, lost = [], 0, set()
        for step in sorted({*looks, stage.steps}):
            engine.advance(packs, batch_size=size, layout=packing, step=first + at, to=first + step)
            at = step
            if step not in looks:
                continue
            found = engine.measure(packs, [self._split], layout=packing)
            lost |= set(found.diverged) | set(found.not_finite)
            for copy, one in enumerate(self._ids):
                row = found.rows[one]
                values_of = dict.fromkeys(row, np.nan) if one in lost else row
                seen = reached.examples + step * size
                rows.append({"copy": copy, "step": step, "examples": seen, **values_of})
        then = Reached(
            unpack(packs),
            reached.examples + stage.steps * size,
            (first + stage.steps) * size,
        )
        return then, pd.DataFrame(rows)

    @functools.cached_property
    def _mixes(self) -> bool:
        training = self._planned.training
        return mixes_examples(training.workload, self._planned.hyperparameters) is not False

    def _values(
        self, copies: int, *, factor: float, size: int = 0, first: int = 0, seen: int = 0
    ) -> Mapping[str, np.ndarray]:
        """Hyperparameters of copies whose step `first`, of some size, is where the trial is."""
        pace = size / self._planned.batch_size if size else 1.0
        shift = seen / self._planned.batch_size - first * pace
        told = {_FACTOR: factor, _PACE: pace, _SHIFT: shift}
        return stacked([{**self._planned.hyperparameters, **told}] * copies)

    def _layout(self, batch_size: int) -> Layout:
        """Branches share the program of the trial's microbatches, where there are several sizes."""
        planned = self._planned
        cpu = planned.mesh.devices.flat[0].platform == "cpu"
        chosen = layout.choose(
            planned.training.workload,
            cpu=cpu,
            batch_size=batch_size,
            trials=len(self._ids),
            # A norm of batches is one of microbatches here: it must stay the trial's.
            microbatch=planned.layout.microbatch if cpu or self._mixes else None,
        )
        return chosen._replace(shared=True)


def _told(training: Training) -> Training:
    """The same training, whose schedule goes at a branch's pace and is multiplied by its factor.

    No function of the user's sees what a branch is told besides.
    """
    optimizer, workload = training.optimizer, training.workload

    def factory(hyperparameters: Mapping[str, Any], *key: Any) -> Any:
        return optimizer.factory(_own(hyperparameters), *key)

    def loss(params: Any, model_state: Any, batch: Any, key: Any, hyperparameters: Any) -> Any:
        return workload.loss(params, model_state, batch, key, _own(hyperparameters))

    def schedule(step: Any, hyperparameters: Mapping[str, Any]) -> Any:
        with jax.numpy_dtype_promotion("standard"):  # a whole number times a pace
            at = step * hyperparameters[_PACE] + hyperparameters[_SHIFT]
            then = jnp.floor(at + 1e-3).astype(jnp.int32)
        return hyperparameters[_FACTOR] * training.schedule(then, _own(hyperparameters))

    return dataclasses.replace(
        training,
        optimizer=dataclasses.replace(optimizer, factory=factory),
        workload=dataclasses.replace(workload, loss=loss),
        schedule=schedule,
        names=(*training.names, *_TOLD),
    )


def _own(hyperparameters: Mapping[str, Any]) -> dict[str, Any]:
    return {name: x for name, x in hyperparameters.items() if name not in _TOLD}
