"""Lanes and devices: a function of one trial, mapped over a pack of trials.

A pack holds `devices x lanes` trials along axis 0. The devices take equal parts of it (by
`shard_map`, which is what `jax.pmap` is today); on a device the lanes are vmapped, or run as they
are where there is one. More trials than a pack holds run as further packs of the same executable:
neither the number of trials nor the number of devices changes what is traced for a lane, and a
last pack that is not full is padded with idle lanes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

from batchscale.engine import hosts

_AXIS = "trials"
LANES = "lanes"  # the axis of lanes that are vmapped together

Per = Literal["trial", "device", "all"]
"""Whether an argument of a packed function is one a trial, one a device, or one for all."""


def mesh(devices: Sequence[Any] | None = None) -> Mesh:
    """A one-dimensional mesh over devices (all of them by default); its axis is `trials`."""
    devices = jax.devices() if devices is None else devices
    return Mesh(np.asarray(devices), (_AXIS,), axis_types=(jax.sharding.AxisType.Auto,))


def packed(
    function: Callable[..., PyTree],
    mesh: Mesh,
    *,
    per: Sequence[Per],
    lanes: int,
    at_once: int | None = None,
    donate: bool = False,
) -> Any:
    """Maps a function of one trial over a pack, and compiles it.

    Args:
      function: of one trial; what it returns is the trial's own.
      mesh: from `mesh()`.
      per: for each of its arguments whether it is one a trial, one a device, or one for all.
      lanes: trials a device.
      at_once: lanes vmapped together, a divisor of `lanes`; all of them by default. One at a time
        runs the function unbatched: bit for bit that of the trial alone, and no convolution is
        batched over kernels.
      donate: whether the memory of the first argument may be reused for the result.

    Returns:
      A jitted function of the same arguments by position, in which those of a trial, and the
      result, have `devices x lanes` along axis 0, and those of a device have `devices`.
    """

    def block(*arguments: PyTree) -> PyTree:
        alone = [x for x, kind in zip(arguments, per, strict=True) if kind == "trial"]
        arguments = tuple(
            jax.tree.map(lambda leaf: leaf[0], x) if kind == "device" else x
            for x, kind in zip(arguments, per, strict=True)
        )

        def lane(own: list[PyTree]) -> PyTree:
            some = iter(own)
            return function(
                *(
                    next(some) if kind == "trial" else x
                    for x, kind in zip(arguments, per, strict=True)
                )
            )

        if at_once == 1:
            if lanes == 1:
                out = lane(jax.tree.map(lambda x: x[0], alone))
                return jax.tree.map(lambda x: x[None], out)
            return jax.lax.map(lane, alone)
        together = jax.vmap(lane, axis_name=LANES)
        if at_once == lanes:
            return together(alone)
        groups = jax.tree.map(lambda x: x.reshape(-1, at_once, *x.shape[1:]), alone)
        out = jax.lax.map(together, groups)
        return jax.tree.map(lambda x: x.reshape(lanes, *x.shape[2:]), out)

    at_once = lanes if at_once is None else at_once
    if at_once < 1 or lanes % at_once:
        raise ValueError(f"at_once: got {at_once}, wanted a divisor of the {lanes} lanes.")
    mapped = jax.shard_map(
        block,
        mesh=mesh,
        in_specs=tuple(spec(kind) for kind in per),
        out_specs=spec("trial"),
        check_vma=False,  # devices exchange nothing, so there is nothing to check
    )
    return jax.jit(mapped, donate_argnums=(0,) if donate else ())


def spec(kind: Per) -> PartitionSpec:
    """How an argument lies on the mesh: divided along axis 0, or whole on every device."""
    return PartitionSpec() if kind == "all" else PartitionSpec(_AXIS)


def split(tree: PyTree, mesh: Mesh) -> PyTree:
    """Puts host arrays on the mesh, axis 0 divided among the devices."""
    return hosts.put(tree, NamedSharding(mesh, spec("trial")))


def split_own(tree: PyTree, mesh: Mesh) -> PyTree:
    """As `split`, of the part that goes to the devices of this process."""
    return hosts.put_own(tree, mesh, spec("trial"))


def replicate(tree: PyTree, mesh: Mesh) -> PyTree:
    """Puts host arrays on every device of the mesh."""
    return hosts.put(tree, NamedSharding(mesh, spec("all")))
