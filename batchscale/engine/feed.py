"""The examples that the steps of packs see: of a training set on the devices, or streamed there.

A program draws which examples every trial of a pack sees next. Where the training set is resident,
steps gather them from it. Where it is streamed, a window of it goes to the devices: the examples
that the next steps of a pack see, each once however many of its trials see it, with their places in
the window for what was drawn. The steps are the same program, and take the same numbers.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Int, PyTree

from batchscale import arrays, datasets, sampling
from batchscale.engine import hosts, parallel
from batchscale.engine.packs import Drawn, Pack
from batchscale.engine.programs import Argument
from batchscale.sampling import Position
from batchscale.workloads import Workload

DRAWN_AT_ONCE = 2**15
"""A choice: so many examples of every trial are drawn at once, ahead of the steps that see them."""
WINDOW_BYTES = 2**26
"""A choice: about so much of a streamed training set is on each device, and as much is ahead."""

Draw = Callable[[Pack, Position], Int[Array, "lane place"]]
"""Starts to draw the examples that the trials of a pack see from a position on."""


class Feed(Protocol):
    """Where the examples of steps come from.

    Attributes:
      waited: seconds that the devices waited for them.
    """

    waited: float

    def places(self, batch_size: int, lanes: int) -> int:
        """How many examples of a trial are drawn at once."""
        ...

    def data(self, batch_size: int, lanes: int) -> Argument:
        """What steps gather from, as an argument of their program."""
        ...

    def nbytes(self, batch_size: int, lanes: int, packs: int) -> int:
        """The bytes of it on each device."""
        ...

    def drawn(
        self, packs: Sequence[Pack], place: int, step: int, to: int, *, batch_size: int, draw: Draw
    ) -> Drawn:
        """What the steps of a pack see from a step on.

        Args:
          packs: that are advanced, one after another.
          place: of the pack among them.
          step: the first.
          to: the step to which all of them are advanced.
          batch_size: examples a step.
          draw: starts to draw.
        """
        ...

    def close(self) -> None:
        """Stops reading."""
        ...


def of(workload: Workload, mesh: Mesh) -> Feed:
    """The feed of a workload's training set."""
    train = workload.splits()["train"]
    return Streamed(workload, mesh) if datasets.is_streamed(train) else Resident(train, mesh)


class Resident:
    """A training set that is whole on every device.

    Args:
      train: the training set.
      mesh: the devices.
    """

    def __init__(self, train: PyTree, mesh: Mesh) -> None:
        self.waited = 0.0
        self._examples = arrays.examples(train)
        self._data = parallel.replicate(train, mesh)

    def places(self, batch_size: int, lanes: int) -> int:
        """See `Feed.places`."""
        del lanes
        return max(DRAWN_AT_ONCE, batch_size)

    def data(self, batch_size: int, lanes: int) -> Argument:
        """See `Feed.data`."""
        del batch_size, lanes
        return Argument("all", self._data)

    def nbytes(self, batch_size: int, lanes: int, packs: int) -> int:
        """See `Feed.nbytes`."""
        del batch_size, lanes, packs
        return arrays.nbytes(self._data)

    def drawn(
        self, packs: Sequence[Pack], place: int, step: int, to: int, *, batch_size: int, draw: Draw
    ) -> Drawn:
        """See `Feed.drawn`."""
        del to
        pack = packs[place]
        if pack.drawn is None or not pack.drawn.since <= step < pack.drawn.until:
            position = sampling.position(step, batch_size=batch_size, examples=self._examples)
            steps = self.places(batch_size, 1) // batch_size
            pack.drawn = Drawn(draw(pack, position), step, step + steps, self._data)
        return pack.drawn

    def close(self) -> None:
        """See `Feed.close`."""


class Streamed:
    """A training set of which a window is on the devices, and the next one is being read.

    Args:
      workload: whose training set is streamed.
      mesh: the devices.
    """

    def __init__(self, workload: Workload, mesh: Mesh) -> None:
        self.waited = 0.0
        self._workload, self._mesh = workload, mesh
        split = dict(workload.splits()["train"])
        self._examples = arrays.examples(split)
        self._one = arrays.like_examples(split, 1)
        self._bytes = arrays.nbytes(self._one)
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="feed")
        self._stop = threading.Event()

    def places(self, batch_size: int, lanes: int) -> int:
        """See `Feed.places`; a power of two where it can be, which batch sizes share."""
        most = DRAWN_AT_ONCE
        if self._examples * self._bytes > WINDOW_BYTES:
            fit = max(WINDOW_BYTES // (lanes * self._bytes), 1)
            most = min(most, 1 << (fit.bit_length() - 1))
        # A window of just one batch is another program, with other last bits than one of a part of
        # what is drawn, as resident data have.
        return max(most, batch_size + (batch_size < DRAWN_AT_ONCE))

    def data(self, batch_size: int, lanes: int) -> Argument:
        """See `Feed.data`: one window a device."""
        size = self._size(batch_size, lanes)
        shapes = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct((size, *x.shape[1:]), x.dtype), self._one
        )
        return Argument("device", shapes)

    def nbytes(self, batch_size: int, lanes: int, packs: int) -> int:
        """See `Feed.nbytes`: every pack keeps what is left of its window, and one is ahead."""
        return (packs + 1) * self._size(batch_size, lanes) * self._bytes

    def drawn(
        self, packs: Sequence[Pack], place: int, step: int, to: int, *, batch_size: int, draw: Draw
    ) -> Drawn:
        """See `Feed.drawn`."""
        pack = packs[place]
        if pack.drawn is None or not pack.drawn.since <= step < pack.drawn.until:
            pack.drawn = None  # its memory is free for the next
            pack.drawn = self._wait(pack, self._begin(pack, step, batch_size, draw))
        # What is needed next is read while this window is in use: of this pack, of the next one
        # that lacks it, or, after an evaluation, of the first again.
        for after in [*range(place, len(packs)), 0]:
            other = packs[after]
            begins = step if other.drawn is None else other.drawn.until
            if begins < to or (after == 0 and begins == to):
                self._begin(other, begins, batch_size, draw)
                break
        return pack.drawn

    def close(self) -> None:
        """See `Feed.close`."""
        self._stop.set()
        self._reader.shutdown(wait=True, cancel_futures=True)

    def _size(self, batch_size: int, lanes: int) -> int:
        """The examples of a window."""
        return min(lanes * self.places(batch_size, lanes), self._examples)

    def _begin(self, pack: Pack, step: int, batch_size: int, draw: Draw) -> Future[Drawn]:
        """Begins to read what a pack sees from a step on, if that has not begun."""
        if pack.ahead is None or pack.ahead[0] != step:
            position = sampling.position(step, batch_size=batch_size, examples=self._examples)
            examples = draw(pack, position)
            reading = self._reader.submit(self._read, examples, step, batch_size)
            pack.ahead = step, reading
        return pack.ahead[1]

    def _wait(self, pack: Pack, reading: Future[Drawn]) -> Drawn:
        if not reading.done():
            jax.block_until_ready(pack.state.key)  # the devices are at work until then
            began = time.monotonic()
            reading.result()
            self.waited += time.monotonic() - began
        pack.ahead = None
        return reading.result()

    def _read(self, drawn: Int[Array, "lane place"], since: int, batch_size: int) -> Drawn:
        """The window of what was drawn, on the devices."""
        own, places = hosts.local(drawn), drawn.shape[1]
        lanes, steps = drawn.shape[0] // self._mesh.size, places // batch_size
        devices = len(own) // lanes
        examples = own[:, : steps * batch_size].reshape(devices, -1)
        wanted, found = np.unique(examples, return_inverse=True)
        found = found.reshape(examples.shape)
        read = self._workload.read("train", wanted, stop=self._stop)
        size = self._size(batch_size, lanes)
        window = {
            field: np.zeros((devices, size, *x.shape[1:]), x.dtype) for field, x in read.items()
        }
        within = np.zeros((devices * lanes, places), np.int32)
        for device in range(devices):
            seen, where = np.unique(found[device], return_inverse=True)
            rows = where.reshape(lanes, steps * batch_size)
            within[device * lanes : (device + 1) * lanes, : steps * batch_size] = rows
            for field, x in read.items():
                window[field][device, : len(seen)] = x if len(seen) == len(x) else x[seen]
        data = parallel.split_own(window, self._mesh)
        jax.block_until_ready(data)
        return Drawn(parallel.split_own(within, self._mesh), since, since + steps, data)
