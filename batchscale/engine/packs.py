"""Trials that run together: which trial is in which lane, and their states on the host."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PyTree, Shaped

from batchscale.engine import hosts


class TrialId(NamedTuple):
    """A trial of a batch size: its number, and 0, or which rerun of it under a fresh seed."""

    number: int
    replicate: int = 0


Values = Mapping[str, Float[np.ndarray, " trial"]]
"""Hyperparameters by name, one value a trial."""
ValuesOf = Callable[[Sequence[TrialId]], Values]
"""The hyperparameters of trials that are planned, in their order."""


class Drawn(NamedTuple):
    """Examples that the trials of a pack see from a step on, drawn ahead of their use.

    Attributes:
      examples: their places in the data, in the order in which they are seen.
      since: the step that sees the first of them.
      until: the step that sees none of them any more.
      data: the training set, or what of it these steps see, on the devices.
    """

    examples: Int[Array, "lane place"]
    since: int
    until: int
    data: PyTree[Array]


@dataclasses.dataclass
class Pack:
    """Trials that run together at the same step: `lane` of them, devices x lanes a device.

    Attributes:
      ids: the trial in each lane; None where the lane is idle.
      hyperparameters: by name, one value a lane, on the devices.
      state: training states, the lanes along axis 0, on the devices.
      busy: for each device 1, or 0 where all of its lanes are idle, so that it takes no step.
      drawn: the examples of the next steps; None before the first step here.
      ahead: of a streamed training set, from which step on what comes next is being read.
      sound: whether the optimizer's state is finite; None before the first step here.
    """

    ids: list[TrialId | None]
    hyperparameters: Mapping[str, Float[Array, " lane"]]
    state: PyTree[Shaped[Array, "lane ..."]]
    busy: Int[Array, " device"]
    drawn: Drawn | None = None
    ahead: tuple[int, Future[Drawn]] | None = None
    sound: Bool[Array, " lane"] | None = None

    @property
    def trials(self) -> list[TrialId]:
        """The trials, without the idle lanes."""
        return [trial for trial in self.ids if trial is not None]


@dataclasses.dataclass
class HostStates:
    """Training states on the host.

    Attributes:
      ids: the trials.
      leaves: of the tree of a state, each with the trials along axis 0.
    """

    ids: list[TrialId]
    leaves: list[Shaped[np.ndarray, "trial ..."]]

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
        leaves = [hosts.fetch(leaf)[lanes] for leaf in jax.tree.leaves(pack.state)]
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


def stacked(rows: Sequence[Mapping[str, float]]) -> Values:
    """The hyperparameters of several trials.

    >>> stacked([{"learning_rate": 0.1}, {"learning_rate": 0.3}])
    {'learning_rate': array([0.1, 0.3])}
    """
    return {name: np.asarray([row[name] for row in rows]) for name in rows[0]}
