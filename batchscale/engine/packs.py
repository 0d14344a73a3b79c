"""Trials that run together: which trial is in which lane, and their states on the host."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np

from batchscale.train import TrainState


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
      drawn: the examples that are seen from some step on, a row a lane; and that step.
      sound: whether the optimizer's state is finite, one a lane; None before any step here.
    """

    ids: list[TrialId | None]
    hyperparameters: Mapping[str, jax.Array]
    state: TrainState
    busy: jax.Array
    drawn: tuple[jax.Array, int] | None = None
    sound: jax.Array | None = None

    @property
    def trials(self) -> list[TrialId]:
        """Those that are not None."""
        return [trial for trial in self.ids if trial is not None]


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


def unpack(packs: Sequence[Pack]) -> HostStates:
    """The states of the trials of packs, without the idle lanes."""
    parts = []
    for pack in packs:
        lanes = [lane for lane, trial in enumerate(pack.ids) if trial is not None]
        leaves = [np.asarray(leaf)[lanes] for leaf in jax.tree.leaves(pack.state)]
        parts.append(HostStates(pack.trials, leaves))
    return HostStates.join(parts)


def arrange(ids: Sequence[TrialId], *, devices: int, lanes: int) -> list[list[TrialId | None]]:
    """Which trial runs in which lane, in as few packs as hold them.

    A pack that is not full is shared out evenly among the devices.

    >>> arrange([TrialId(n) for n in range(3)], devices=2, lanes=2)[0][2:]
    [TrialId(number=2, replicate=0), None]
    """
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


def fill(ids: Sequence[TrialId | None]) -> list[TrialId]:
    """Idle lanes repeat a trial of the pack; what they compute is never read."""
    first = next(trial for trial in ids if trial is not None)
    return [first if trial is None else trial for trial in ids]
