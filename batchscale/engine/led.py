"""An engine over the devices of several processes: process 0 leads, the others do what it does.

What is decided, which trials run how far, is decided in process 0, where the folder and the clock
are. The calls that it makes of its engine are told to the others, who make them of theirs: so all
processes run the same programs on their devices in the same order, and none decides anything.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import weakref
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
from jax.sharding import Mesh

from batchscale import faults
from batchscale.engine import hosts
from batchscale.engine.engine import Engine, Training
from batchscale.engine.evaluation import most_resident
from batchscale.engine.layout import Layout
from batchscale.engine.packs import HostStates, Pack, TrialId, Values
from batchscale.engine.whole import Measured
from batchscale.workloads.fingerprint import changes, fingerprint

_T = TypeVar("_T")


class LeadingEngine(Engine):
    """The engine of process 0, whose calls the engines of the other processes make too.

    Args:
      training: what is trained.
      mesh: the devices, of all processes.
      examples: as of `Engine`.
      marks: the fingerprint of what is trained, which that of the other processes has to be.

    Raises:
      RuntimeError: another process has other data, or another model.
    """

    def __init__(
        self,
        training: Training,
        *,
        mesh: Mesh,
        examples: Mapping[str, int],
        marks: Mapping[str, str],
    ) -> None:
        self._places: dict[int, int] = {}  # the number of each pack, by its identity in memory
        self._packs = 0
        self._gone: list[int] = []
        about = {
            "mixes_examples": training.mixes_examples,
            "examples": dict(examples),
            "marks": dict(marks),
            "resident": (resident := most_resident(mesh)),
        }
        self._tell("open", about)
        hosts.together(lambda: None)  # the others compare the fingerprints
        make = functools.partial(super().__init__, resident_bytes=resident)
        hosts.together(lambda: make(training, mesh=mesh, examples=examples))

    def __exit__(self, *exception: object) -> None:
        """See `Engine.__exit__`."""
        super().__exit__(*exception)
        with contextlib.suppress(hosts.LostError):  # there may be nobody to be told
            self._tell("close", {})

    def compile_ahead(self, batch_size: int, layout: Layout) -> None:
        """See `Engine.compile_ahead`."""
        self._do(
            "compile_ahead",
            {"batch_size": batch_size, "layout": layout},
            lambda: Engine.compile_ahead(self, batch_size, layout),
        )

    def scratch(self, batch_size: int, layout: Layout) -> int:
        """See `Engine.scratch`: in process 0."""
        return self._do(
            "scratch",
            {"batch_size": batch_size, "layout": layout},
            lambda: Engine.scratch(self, batch_size, layout),
        )

    def start(
        self, ids: Sequence[TrialId], values: Values, *, batch_size: int, layout: Layout
    ) -> list[Pack]:
        """See `Engine.start`."""
        about = {"ids": ids, "batch_size": batch_size, "layout": layout}
        packs = self._do(
            "start",
            about | {"values": _plain(values), "first": self._packs},
            lambda: Engine.start(self, ids, values, batch_size=batch_size, layout=layout),
        )
        return self._numbered(packs)

    def pack(self, states: HostStates, values: Values, *, layout: Layout) -> list[Pack]:
        """See `Engine.pack`; the states go to all processes."""
        about = {"ids": states.ids, "layout": layout, "values": _plain(values)}
        packs = self._do(
            "pack",
            about | {"first": self._packs},
            lambda: Engine.pack(self, states, values, layout=layout),
            leaves=states.leaves,
        )
        return self._numbered(packs)

    def unpack(self, packs: Sequence[Pack]) -> HostStates:
        """See `Engine.unpack`."""
        return self._do("unpack", self._named(packs), lambda: Engine.unpack(self, packs))

    def advance(
        self, packs: Sequence[Pack], *, batch_size: int, layout: Layout, step: int, to: int
    ) -> None:
        """See `Engine.advance`."""
        how: Any = {"batch_size": batch_size, "layout": layout, "step": step, "to": to}
        self._do("advance", self._named(packs) | how, lambda: Engine.advance(self, packs, **how))

    def measure(
        self,
        packs: Sequence[Pack],
        splits: Iterable[str],
        *,
        layout: Layout,
        trials: Collection[TrialId] | None = None,
        bounded: Collection[TrialId] = (),
    ) -> Measured:
        """See `Engine.measure`."""
        splits = list(splits)
        if trials is None:
            trials = [trial for pack in packs for trial in pack.trials]
        about = {
            "splits": splits,
            "layout": layout,
            "trials": list(trials),
            "bounded": list(bounded),
        }
        return self._do(
            "measure",
            self._named(packs) | about,
            lambda: Engine.measure(
                self, packs, splits, layout=layout, trials=trials, bounded=bounded
            ),
        )

    def _do(
        self,
        name: str,
        about: Mapping[str, Any],
        work: Callable[[], _T],
        leaves: Sequence[np.ndarray] = (),
    ) -> _T:
        self._tell(name, about)
        for leaf in leaves:
            hosts.broadcast(np.ascontiguousarray(leaf).tobytes())
        return hosts.together(work)

    def _tell(self, name: str, about: Mapping[str, Any]) -> None:
        gone, self._gone = self._gone, []
        hosts.say({"do": name, "gone": gone, **about})

    def _numbered(self, packs: list[Pack]) -> list[Pack]:
        for pack in packs:
            self._places[id(pack)] = self._packs
            self._packs += 1
            # The others let go of what is let go of here.
            weakref.finalize(pack, self._drop, id(pack)).atexit = False
        return packs

    def _drop(self, place: int) -> None:
        self._gone.append(self._places.pop(place))

    def _named(self, packs: Sequence[Pack]) -> dict[str, Any]:
        return {"packs": [self._places[id(pack)] for pack in packs]}


def follow(training: Training, mesh: Mesh) -> None:
    """Makes the calls that process 0 makes of its engines, until it is done.

    Args:
      training: what is trained; the same as there.
      mesh: the devices, of all processes.

    Raises:
      Exception: process 0 has failed; of the same type, where that is known here.
    """
    led: _Led | None = None
    try:
        while (said := hosts.say())["do"] != "done":
            if said["do"] == "failed":
                raise faults.rebuilt(said["failed"])
            if said["do"] == "close":
                if led is not None:
                    led.close()
                led = None
            elif said["do"] == "open":
                # Of what fails in one of them process 0 hears, and says what follows.
                with contextlib.suppress(Exception):
                    hosts.together(functools.partial(_compare, training, said["marks"]))
                    led = hosts.together(functools.partial(_Led, training, mesh, said))
            elif led is not None:
                call = led.call(said)
                with contextlib.suppress(Exception):
                    led.keep(said, hosts.together(call))
    finally:
        if led is not None:
            led.close()


def _compare(training: Training, there: Mapping[str, str]) -> None:
    here = fingerprint(training.workload, training.optimizer, training.schedule, training.names)
    if differ := changes(there, here):
        raise ValueError(
            f"{' and '.join(differ)} differ from those of process 0. Start the same script, with "
            "the same data, in every process."
        )


class _Led:
    """The engine of a process that is led, and its packs by number."""

    def __init__(self, training: Training, mesh: Mesh, about: Mapping[str, Any]) -> None:
        training = dataclasses.replace(training, mixes_examples=about["mixes_examples"])
        self._engine = Engine(
            training, mesh=mesh, examples=about["examples"], resident_bytes=about["resident"]
        )
        self._packs: dict[int, Pack] = {}

    def close(self) -> None:
        self._packs.clear()
        self._engine.__exit__(None, None, None)

    def call(self, said: Mapping[str, Any]) -> Callable[[], Any]:
        """The call that process 0 makes."""
        for number in said["gone"]:
            del self._packs[number]
        engine, layout = self._engine, Layout(*said.get("layout", (1, 1)))
        packs = [self._packs[number] for number in said.get("packs", ())]
        ids = _trials(said.get("ids", ()))
        values = {name: np.asarray(of) for name, of in said.get("values", {}).items()}
        size = said.get("batch_size", 0)
        match said["do"]:
            case "compile_ahead":
                return lambda: engine.compile_ahead(size, layout)
            case "scratch":
                return lambda: engine.scratch(size, layout)
            case "start":
                return lambda: engine.start(ids, values, batch_size=size, layout=layout)
            case "pack":
                leaves = [
                    np.frombuffer(hosts.broadcast(), leaf.dtype).reshape(len(ids), *leaf.shape)
                    for leaf in engine.leaves
                ]
                return lambda: engine.pack(HostStates(ids, leaves), values, layout=layout)
            case "unpack":
                return lambda: engine.unpack(packs)
            case "advance":
                step, to = said["step"], said["to"]
                return lambda: engine.advance(
                    packs, batch_size=size, layout=layout, step=step, to=to
                )
            case _:
                trials, bounded = map(_trials, (said["trials"], said["bounded"]))
                return lambda: engine.measure(
                    packs, said["splits"], layout=layout, trials=trials, bounded=bounded
                )

    def keep(self, said: Mapping[str, Any], found: Any) -> None:
        """Keeps the packs that a call has made."""
        if said["do"] in ("start", "pack"):
            self._packs |= dict(enumerate(found, said["first"]))


def _plain(values: Values) -> dict[str, list[float]]:
    return {name: np.asarray(of).tolist() for name, of in values.items()}


def _trials(names: Iterable[Sequence[int]]) -> list[TrialId]:
    return [TrialId(*name) for name in names]
