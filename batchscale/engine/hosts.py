"""Several processes, of one host or of many: what they say to one another, and shared arrays.

Processes that have called `jax.distributed.initialize` see each other's devices. Process 0 leads:
it decides, and tells the others. Arrays that lie on the devices of all of them are put there part
by part, and fetched by all. Where there is one process, they are put and fetched as JAX does it.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import jax
import numpy as np
from jax._src import distributed  # where alone processes can wait without their devices
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree, Shaped, UInt8

from batchscale import faults

_T = TypeVar("_T")
_DAY = 24 * 60 * 60 * 1000  # milliseconds; who dies meanwhile is missed by its heartbeat
_BLOCKS = (2**12, 2**16, 2**20, 2**24)  # bytes that are sent at once: each size is a program


class LostError(RuntimeError):
    """Another process has ended, or cannot be reached any more."""


def several() -> bool:
    """Whether there are several processes. Starts no backend where there is one.

    >>> several()
    False
    """
    return jax.distributed.is_initialized() and jax.process_count() > 1


def is_first() -> bool:
    """Whether this is process 0, which leads: the only one that writes and shows anything.

    >>> is_first()
    True
    """
    return not several() or jax.process_index() == 0


def check(mesh: Mesh) -> None:
    """Refuses a mesh that does not have as many devices of each process, at least one.

    Raises:
      ValueError: it has not.
    """
    if not several():
        return
    counts = dict.fromkeys(range(jax.process_count()), 0)
    for device in mesh.devices.flat:
        counts[device.process_index] += 1
    if min(counts.values()) < max(counts.values()) or not min(counts.values()):
        by = ", ".join(f"{count} of process {process}" for process, count in counts.items())
        raise ValueError(
            f"devices: got {by}, wanted as many of each process, and at least one. On CPUs ask for "
            'them in every process alike, jax.config.update("jax_num_cpu_devices", n).'
        )


def own_devices(mesh: Mesh) -> list[Any]:
    """The devices of a mesh that are those of this process, in its order."""
    process = jax.process_index()
    return [device for device in mesh.devices.flat if device.process_index == process]


def refuse(what: str, remedy: str) -> None:
    """Refuses what is for one process, where there are several.

    Args:
      what: is refused.
      remedy: what to do instead.

    Raises:
      RuntimeError: there are.
    """
    if several():
        raise RuntimeError(f"{what}: got {jax.process_count()} processes, wanted one. {remedy}")


def broadcast(content: bytes = b"") -> bytes:
    """What process 0 has, in every process; called by all of them.

    Args:
      content: of process 0; that of others is not looked at.

    >>> broadcast(b"as it is")
    b'as it is'
    """
    if not several():
        return content
    if not is_first():
        content = b""
    first = np.zeros(_BLOCKS[0], np.uint8)
    head = len(content).to_bytes(8, "little") + content[: _BLOCKS[0] - 8]
    first[: len(head)] = np.frombuffer(head, np.uint8)
    found = _exchanged(first, of_all=False).tobytes()
    size = int.from_bytes(found[:8], "little")
    parts, at = [found[8 : 8 + size]], _BLOCKS[0] - 8
    while at < size:
        length = next((n for n in _BLOCKS if n >= size - at), _BLOCKS[-1])
        block = np.zeros(length, np.uint8)
        some = np.frombuffer(content[at : at + length], np.uint8)
        block[: len(some)] = some
        parts.append(_exchanged(block, of_all=False).tobytes()[: size - at])
        at += length
    return b"".join(parts)


def say(message: Any = None) -> Any:
    """What process 0 says, in every process: plain values, as JSON holds them.

    >>> say({"learning_rate": 0.1})
    {'learning_rate': 0.1}
    """
    return json.loads(broadcast(json.dumps(message, default=_plain).encode()))


def agreed(work: Callable[[], _T]) -> _T:
    """What a function finds in process 0, where alone it is called; or its error, in all of them.

    For what depends on a clock, on memory, on files or on the environment.

    Args:
      work: returns plain values, as JSON holds them.

    >>> agreed(lambda: {"lanes": 4})
    {'lanes': 4}
    """
    if not several():
        return work()
    if not is_first():
        found = say()
        if "failed" in found:
            raise faults.rebuilt(found["failed"])
        return found["found"]
    try:
        found = work()
    except Exception as error:
        say({"failed": faults.plain(error)})
        raise
    say({"found": found})
    return found


def together(work: Callable[[], _T]) -> _T:
    """What a function finds in each process; where it fails in one of them, all of them raise.

    Raises:
      RuntimeError: it failed elsewhere; says where, and how.
    """
    if not several():
        return work()
    found, failure = None, None
    try:
        found = work()
    except Exception as error:
        failure = error
    failed = np.flatnonzero(gathered(np.array([failure is not None]))[:, 0])
    if failure is None and not len(failed):
        return found  # pyright: ignore[reportReturnType]
    words = "" if failure is None else f"{type(failure).__name__}: {failure}"
    said = np.zeros(_BLOCKS[0], np.uint8)
    content = np.frombuffer(words.encode()[: len(said)], np.uint8)
    said[: len(content)] = content
    found = gathered(said)[failed[0]].tobytes().rstrip(b"\0").decode(errors="replace")
    if failure is not None:
        raise failure
    raise RuntimeError(f"process {failed[0]} of {jax.process_count()} failed: {found}")


def gathered(own: Shaped[np.ndarray, "..."]) -> Shaped[np.ndarray, "process ..."]:
    """An array of every process, in each of them.

    Args:
      own: of this process; of the same shape and type in all of them.
    """
    if not several():
        return own[np.newaxis]
    return _exchanged(own, of_all=True)


def put(tree: PyTree, sharding: NamedSharding) -> PyTree:
    """Host arrays, the same in every process, as arrays on devices: each process fills its own."""
    if sharding.is_fully_addressable:
        return jax.device_put(tree, sharding)

    def one(x: Any) -> jax.Array:
        x = np.asarray(x)
        return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])

    return jax.tree.map(one, tree)


def put_own(tree: PyTree, mesh: Mesh, spec: PartitionSpec) -> PyTree:
    """As `put`, of arrays divided along axis 0: here is the part of this process's devices."""
    sharding = NamedSharding(mesh, spec)
    if sharding.is_fully_addressable:
        return jax.device_put(tree, sharding)
    own = own_devices(mesh)
    times = mesh.size // len(own)

    def one(x: Any) -> jax.Array:
        parts = np.split(np.asarray(x), len(own))
        return jax.make_array_from_single_device_arrays(
            (len(x) * times, *x.shape[1:]),
            sharding,
            [jax.device_put(part, device) for part, device in zip(parts, own, strict=True)],
        )

    return jax.tree.map(one, tree)


def local(array: jax.Array) -> np.ndarray:
    """The part of an array, divided along axis 0, that lies on the devices of this process."""
    if array.is_fully_addressable or array.is_fully_replicated:
        return np.asarray(array)
    shards = sorted(array.addressable_shards, key=lambda shard: shard.index[0].start or 0)
    return np.concatenate([np.asarray(shard.data) for shard in shards])


def fetched(trees: Iterable[PyTree]) -> Iterator[PyTree]:
    """`fetch` of each: as they are there, or of several processes all in one exchange.

    >>> [*fetched([jax.numpy.ones(1)])]
    [array([1.], dtype=float32)]
    """
    yield from fetch([*trees]) if several() else map(fetch, trees)


def fetch(tree: PyTree) -> PyTree:
    """Arrays on devices as host arrays, whole in every process; called by all of them.

    All leaves go in one exchange, for each takes its time.
    """
    leaves, structure = jax.tree.flatten(tree)
    apart = [leaf for leaf in leaves if _is_apart(leaf)]
    joined = iter(_joined(apart) if apart else ())
    return structure.unflatten(
        [next(joined) if _is_apart(leaf) else np.asarray(leaf) for leaf in leaves]
    )


def _is_apart(array: Any) -> bool:
    """Whether no process has all of an array."""
    return isinstance(array, jax.Array) and not (
        array.is_fully_addressable or array.is_fully_replicated
    )


def _joined(arrays: Sequence[jax.Array]) -> Iterator[np.ndarray]:
    count, failure = jax.process_count(), None
    try:
        mine = [local(array) for array in arrays]
    except Exception as error:  # what went wrong on a device of this process alone
        failure = error
        mine = [np.zeros((len(x) // count, *x.shape[1:]), x.dtype) for x in arrays]
    # Of which process a part is fine goes with it.
    flat = [np.ravel(part).view(np.uint8) for part in mine]
    content = np.concatenate([np.array([failure is not None], np.uint8), *flat])
    most = _BLOCKS[-1] // count  # or the devices' memory might not hold what all of them have
    blocks = [_gathered_bytes(content[at : at + most]) for at in range(0, len(content), most)]
    whole = np.concatenate(blocks, axis=1)
    if whole[:, 0].any():
        together(lambda: _raise(failure))
    at = 1
    for array, part in zip(arrays, flat, strict=True):
        yield _in_order(array, whole[:, at : at + len(part)])
        at += len(part)


def _gathered_bytes(own: UInt8[np.ndarray, " n"]) -> UInt8[np.ndarray, "process n"]:
    """As `gathered`, in one of few lengths, for each is a program, and at most twice as much."""
    length = max(_BLOCKS[0], 1 << (len(own) - 1).bit_length())
    if length > _BLOCKS[1]:  # states, whose lengths are few and which are large
        length = -(-len(own) // _BLOCKS[1]) * _BLOCKS[1]
    return gathered(np.pad(own, (0, length - len(own))))[:, : len(own)]


def _in_order(array: jax.Array, parts: UInt8[np.ndarray, "process n"]) -> np.ndarray:
    """An array of the bytes that each process has of it."""
    where = array.sharding.devices_indices_map(array.shape)
    order = sorted(where, key=lambda device: where[device][0].start or 0)
    own, rows = len(order) // len(parts), len(array) // len(order)  # of a process, of a device
    typed = np.ascontiguousarray(parts).view(array.dtype)
    left = [iter(x) for x in typed.reshape(len(parts), own, rows, *array.shape[1:])]
    return np.concatenate([next(left[device.process_index]) for device in order])


def _plain(number: Any) -> Any:
    """A number of NumPy as one of Python."""
    return number.item()


def _raise(failure: Exception | None) -> None:
    if failure is not None:
        raise failure


def _exchanged(own: Shaped[np.ndarray, "..."], *, of_all: bool) -> Shaped[np.ndarray, "..."]:
    try:
        return np.asarray(_programs()[of_all](_beside(own)))
    except (RuntimeError, ValueError) as error:  # as the libraries that exchange raise it
        raise LostError(
            "another process of this run has ended, or cannot be reached any more: its own log "
            f"says why ({error}). This one ends too, which may take JAX another minute or two."
        ) from error


def _beside(own: Shaped[np.ndarray, "..."]) -> jax.Array:
    """The arrays of all processes, each on a device of its own."""
    return jax.make_array_from_single_device_arrays(
        (jax.process_count(), *own.shape),
        NamedSharding(_mesh(), PartitionSpec("processes")),
        [jax.device_put(own[np.newaxis], jax.local_devices()[0])],
    )


@functools.cache
def _mesh() -> Mesh:
    """A device of each process, once all of them are there.

    They may come late, after loading data: gloo gives up when it has called them for 30 seconds.
    """
    client = distributed.global_state.client
    if client is not None:
        client.wait_at_barrier("batchscale", timeout_in_ms=_DAY)
    devices = {device.process_index: device for device in reversed(jax.devices())}
    return Mesh(np.asarray([devices[n] for n in sorted(devices)]), ("processes",))


@functools.cache
def _programs() -> tuple[Callable[[jax.Array], jax.Array], Callable[[jax.Array], jax.Array]]:
    """What brings the part of process 0 to all, and what brings the parts of all to all."""
    everywhere = NamedSharding(_mesh(), PartitionSpec())
    first = jax.jit(lambda x: x[0], out_shardings=everywhere)
    return first, jax.jit(lambda x: x, out_shardings=everywhere)
