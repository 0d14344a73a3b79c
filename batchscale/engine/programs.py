"""The compiled programs of an engine: traced once, compiled in the background, waited for."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

from batchscale import arrays
from batchscale.engine import parallel


class Programs:
    """Programs for packs on a mesh.

    Args:
      mesh: the devices.
      names: of the hyperparameters, the arguments of a lane.

    Attributes:
      seconds: that were spent on tracing, and on waiting for a compilation; one that ran beside
        training is not waited for.
    """

    def __init__(self, mesh: Mesh, names: Sequence[str]) -> None:
        self.seconds = 0.0
        self._mesh, self._names = mesh, tuple(names)
        self._futures: dict[Any, Future[Any]] = {}
        self._compiler = ThreadPoolExecutor(max_workers=2, thread_name_prefix="compile")

    def close(self) -> None:
        """Stops compiling ahead."""
        self._compiler.shutdown(wait=True, cancel_futures=True)

    @property
    def scalars(self) -> dict[str, jax.ShapeDtypeStruct]:
        """The shapes of a trial's hyperparameters.

        Like Python's numbers they give way to the types of what they are multiplied with: a
        learning rate must not widen a state of bfloat16.
        """
        return dict.fromkeys(
            self._names, jax.ShapeDtypeStruct((), arrays.float_type(), weak_type=True)
        )

    def shared(self, tree: PyTree) -> PyTree:
        """The shapes of what every device holds whole."""
        whole = NamedSharding(self._mesh, PartitionSpec())
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=whole), tree)

    def begin(
        self,
        key: Any,
        function: Any,
        state: Any,
        shared: Any,
        *,
        lanes: int,
        trial: Any = None,
        compiler_options: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> Future[Any]:
        """A program of `parallel.packed`; traced here, compiled in the background.

        Args:
          key: what it is, besides lanes.
          function: of one trial.
          state: shapes of a trial's state.
          shared: shapes of what is the same everywhere.
          lanes: trials a device.
          trial: shapes of what else is a trial's own; its hyperparameters by default.
          compiler_options: for XLA.
          **options: for `parallel.packed`.
        """
        key = (key, lanes, options.get("at_once"))
        if key not in self._futures:
            began = time.monotonic()
            axis = NamedSharding(self._mesh, PartitionSpec("trials"))
            width = self._mesh.size * lanes

            def wide(x: Any, size: int = width) -> jax.ShapeDtypeStruct:
                weak = getattr(x, "weak_type", False)
                shape = (size, *x.shape)
                return jax.ShapeDtypeStruct(shape, x.dtype, sharding=axis, weak_type=weak)

            own = self.scalars if trial is None else trial
            local = wide(jax.ShapeDtypeStruct((), np.int32), self._mesh.size)
            program = parallel.packed(function, self._mesh, lanes=lanes, **options)
            lowered = program.lower(
                jax.tree.map(wide, state), jax.tree.map(wide, own), self.shared(shared), local
            )
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
