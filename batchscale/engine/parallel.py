"""Lanes and devices: a function of one trial, mapped over a pack of trials.

A pack holds `devices x lanes` trials along axis 0. The devices take equal parts of it (by
`shard_map`, which is what `jax.pmap` is today); on a device the lanes are vmapped, or run as they
are where there is one. More trials than a pack holds run as further packs of the same executable:
neither the number of trials nor the number of devices changes what is compiled for a lane, and a
last pack that is not full is padded with idle lanes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

_AXIS = "trials"
LANES = "lanes"  # the axis of lanes that are vmapped together


def mesh(devices: Sequence[Any] | None = None) -> Mesh:
    """A one-dimensional mesh over devices (all of them by default); its axis is `trials`."""
    devices = jax.devices() if devices is None else devices
    return Mesh(np.asarray(devices), (_AXIS,), axis_types=(jax.sharding.AxisType.Auto,))


def packed(
    function: Callable[..., Any],
    mesh: Mesh,
    *,
    lanes: int,
    at_once: int | None = None,
    donate: bool = False,
) -> Any:
    """Maps a function of one trial over a pack, and compiles it.

    Args:
      function: `function(state, trial, shared, local)` of one trial. `state` and `trial` are the
        trial's own; `shared` is the same everywhere; `local` is the same for a device's lanes.
      mesh: from `mesh()`.
      lanes: trials a device.
      at_once: lanes vmapped together, a divisor of `lanes`; all of them by default. One at a time
        runs the function unbatched: bit for bit that of the trial alone, and no convolution is
        batched over kernels.
      donate: whether the memory of `state` may be reused for the result.

    Returns:
      A jitted function of the same arguments by position, in which `state`, `trial` and the
      result have `devices x lanes` along axis 0 and `local` has one entry a device.
    """

    def block(state: Any, trial: Any, shared: Any, local: Any) -> Any:
        local = jax.tree.map(lambda x: x[0], local)

        def lane(own: tuple[Any, Any]) -> Any:
            return function(*own, shared, local)

        if at_once == 1:
            if lanes == 1:
                out = lane(jax.tree.map(lambda x: x[0], (state, trial)))
                return jax.tree.map(lambda x: x[None], out)
            return jax.lax.map(lane, (state, trial))
        together = jax.vmap(lane, axis_name=LANES)
        if at_once == lanes:
            return together((state, trial))
        groups = jax.tree.map(lambda x: x.reshape(-1, at_once, *x.shape[1:]), (state, trial))
        out = jax.lax.map(together, groups)
        return jax.tree.map(lambda x: x.reshape(lanes, *x.shape[2:]), out)

    at_once = lanes if at_once is None else at_once
    if at_once < 1 or lanes % at_once:
        raise ValueError(f"at_once: got {at_once}, wanted a divisor of the {lanes} lanes.")
    split, whole = PartitionSpec(_AXIS), PartitionSpec()
    mapped = jax.shard_map(
        block,
        mesh=mesh,
        in_specs=(split, split, whole, split),
        out_specs=split,
        check_vma=False,  # devices exchange nothing, so there is nothing to check
    )
    return jax.jit(mapped, donate_argnums=(0,) if donate else ())


def split(tree: PyTree, mesh: Mesh) -> PyTree:
    """Puts host arrays on the mesh, axis 0 divided among the devices."""
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec(_AXIS)))


def replicate(tree: PyTree, mesh: Mesh) -> PyTree:
    """Puts host arrays on every device of the mesh."""
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))
