"""The compiled programs of an engine: traced once, compiled in the background, waited for."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh, NamedSharding
from jaxtyping import PyTree

from batchscale import jitting
from batchscale.engine import parallel
from batchscale.engine.parallel import Per


class Argument(NamedTuple):
    """An argument of a program.

    Attributes:
      per: whether there is one a trial, one a device, or one for all.
      shapes: of one of them, a tree of `jax.ShapeDtypeStruct` or of arrays.
    """

    per: Per
    shapes: PyTree


class Programs:
    """Programs for packs on a mesh.

    Args:
      mesh: the devices.

    Attributes:
      seconds: that were spent on tracing, and on waiting for a compilation; one that ran beside
        training is not waited for.
    """

    def __init__(self, mesh: Mesh) -> None:
        self.seconds = 0.0
        self._mesh = mesh
        self._futures: dict[Hashable, Future[Any]] = {}
        self._compiler = ThreadPoolExecutor(max_workers=2, thread_name_prefix="compile")

    def close(self) -> None:
        """Stops compiling ahead."""
        self._compiler.shutdown(wait=True, cancel_futures=True)

    def __len__(self) -> int:
        """How many programs were begun."""
        return len(self._futures)

    def finish(self) -> None:
        """Waits for all that were begun."""
        for program in self._futures.values():
            self.wait(program)

    def begin(
        self,
        key: Hashable,
        function: Callable[..., PyTree],
        *arguments: Argument,
        lanes: int,
        at_once: int | None = None,
        donate: bool = False,
        compiler_options: Mapping[str, Any] | None = None,
    ) -> Future[Any]:
        """A program of `parallel.packed`; traced here, compiled in the background.

        Args:
          key: what it is, besides lanes.
          function: of one trial.
          *arguments: of the function, in order.
          lanes: trials a device.
          at_once: as in `parallel.packed`.
          donate: as in `parallel.packed`.
          compiler_options: for XLA.
        """
        key = (key, lanes, at_once)
        if key not in self._futures:
            began = time.monotonic()
            program = parallel.packed(
                function,
                self._mesh,
                per=[argument.per for argument in arguments],
                lanes=lanes,
                at_once=at_once,
                donate=donate,
            )
            with jitting.as_usual():
                lowered = program.lower(*(self._wide(argument, lanes) for argument in arguments))
            self._futures[key] = self._compiler.submit(
                lowered.compile, None if compiler_options is None else dict(compiler_options)
            )
            self.seconds += time.monotonic() - began
        return self._futures[key]

    def wait(self, program: Future[Any]) -> Any:
        """The program, compiled."""
        began = time.monotonic()
        try:
            return program.result()
        finally:
            self.seconds += time.monotonic() - began

    def _wide(self, argument: Argument, lanes: int) -> PyTree:
        """The shapes of an argument for a whole pack, and where it lies."""
        devices = self._mesh.size
        places = {"trial": (devices * lanes,), "device": (devices,), "all": ()}[argument.per]
        sharding = NamedSharding(self._mesh, parallel.spec(argument.per))
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(
                (*places, *x.shape),
                x.dtype,
                sharding=sharding,
                weak_type=getattr(x, "weak_type", False),
            ),
            argument.shapes,
        )
