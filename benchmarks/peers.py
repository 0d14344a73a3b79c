"""What a user would write instead of `batchscale`, each written well, each in its own process.

Every peer trains with heavy-ball momentum on batches drawn without replacement, reshuffled each
epoch, from data that lies in memory. A peer is a function of (workload, batch size) that prepares
everything and returns `advance(steps)`, which trains that many steps further and returns when they
are done, and how many trials it trains at once.
"""

# pyright: reportMissingImports=false, reportPrivateImportUsage=false
from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from benchmarks import torch_models

RATE, MOMENTUM = 0.01, 0.9


def stacked(batch_size: int) -> int:
    """How many models torch.func.vmap stacks: fewer where a step of 32 would take minutes."""
    return 32 if batch_size <= 16 else 8 if batch_size <= 64 else 2


def trains(peer: str, workload: str) -> bool:
    """Whether a peer can train a workload: torch.func.vmap stacks no attention and no LSTM."""
    return peer != "torch, vmap" or workload.startswith("mnist/")


Advance = Callable[[int], Any]


class Process:
    """A peer in a process of its own, which sleeps until it is told to train."""

    def __init__(self, peer: str, workload: str, batch_size: int) -> None:
        here, there = multiprocessing.get_context("spawn").Pipe()
        self._pipe = here
        self._process = multiprocessing.get_context("spawn").Process(
            target=_serve, args=(there, peer, workload, batch_size), daemon=True
        )
        self._process.start()
        there.close()

    def seconds(self, steps: int) -> tuple[float, int]:
        """The wall time of so many steps of all trials that it trains, and how many those are."""
        self._pipe.send(steps)
        found = self._pipe.recv()
        if isinstance(found, str):
            raise RuntimeError(found)
        return found

    def close(self) -> None:
        """Ends the process."""
        self._process.kill()
        self._process.join()


def _serve(pipe: Connection, peer: str, workload: str, batch_size: int) -> None:
    try:
        advance, trials = PEERS[peer](workload, batch_size)
        while True:
            steps = pipe.recv()
            began = time.perf_counter()
            advance(steps)
            pipe.send((time.perf_counter() - began, trials))
    except EOFError:
        return
    except Exception as error:
        pipe.send(f"{peer}: {type(error).__name__}: {error}")


def _batches(examples: int, batch_size: int, seed: int = 0) -> Iterator[np.ndarray]:
    """Indices of batches, without replacement within an epoch, across the ends of epochs."""
    random = np.random.default_rng(seed)
    waiting = random.permutation(examples)
    while True:
        while len(waiting) < batch_size:
            waiting = np.concatenate([waiting, random.permutation(examples)])
        yield waiting[:batch_size]
        waiting = waiting[batch_size:]


def batchscale(workload: str, batch_size: int) -> tuple[Advance, int]:
    """One pack of trials, as a study runs it."""
    import jax

    from batchscale import optimizers, schedules, workloads
    from batchscale.engine import devices, layout, parallel
    from batchscale.engine.engine import Engine, Training
    from batchscale.engine.packs import TrialId, stacked
    from batchscale.metrics import Goal

    devices.ask_for_cores()
    chosen, mesh = workloads.get(workload), parallel.mesh()
    cpu = jax.default_backend() == "cpu"
    how = layout.choose(chosen, cpu=cpu, batch_size=batch_size, trials=64)
    engine = Engine(
        Training(
            chosen,
            optimizers.get("momentum"),
            schedules.constant,
            names=("learning_rate", "momentum"),
            seed=0,
            goal=Goal("validation/error", 0.0),
        ),
        mesh=mesh,
    )
    trials = [TrialId(n) for n in range(mesh.size * how.lanes)]
    values = {"learning_rate": RATE, "momentum": MOMENTUM}
    packs = engine.start(trials, stacked([values] * len(trials)), batch_size=batch_size, layout=how)
    at = 0

    def advance(steps: int) -> None:
        nonlocal at
        engine.advance(packs, batch_size=batch_size, layout=how, step=at, to=at + steps)
        jax.block_until_ready(packs[0].state.params)
        at += steps

    return advance, len(trials)


def _jax_step(workload: str) -> tuple[Callable[..., Any], Any, Any]:
    """A plain step, its first state and the data on the device."""
    import jax
    import optax

    from batchscale import workloads

    chosen = workloads.get(workload)
    data = jax.device_put(dict(chosen.splits()["train"]))
    optimizer = optax.sgd(RATE, momentum=MOMENTUM)
    params, model_state = chosen.init(jax.random.key(0))

    def step(state: Any, indices: Any, data: Any) -> Any:
        params, opt_state, key = state
        key, dropout = jax.random.split(key)
        batch = chosen.prepare(jax.tree.map(lambda x: x[indices], data), None)

        def loss(params: Any) -> Any:
            (total, count), _ = chosen.loss(params, model_state, batch, dropout, {})
            return total / count.astype(total.dtype)

        gradient = jax.grad(loss)(params)
        updates, opt_state = optimizer.update(gradient, opt_state)
        return optax.apply_updates(params, updates), opt_state, key

    return step, (params, optimizer.init(params), jax.random.key(1)), data


def jax_step(workload: str, batch_size: int) -> tuple[Advance, int]:
    """One trial, a jitted step in a Python loop."""
    import jax

    step, state, data = _jax_step(workload)
    jitted = jax.jit(step, donate_argnums=0)
    batches = _batches(len(jax.tree.leaves(data)[0]), batch_size)

    def advance(steps: int) -> None:
        nonlocal state
        for _ in range(steps):
            state = jitted(state, next(batches).astype(np.int32), data)
        jax.block_until_ready(state)

    return advance, 1


def jax_loop(workload: str, batch_size: int) -> tuple[Advance, int]:
    """One trial, the loop over steps inside jit."""
    import jax

    step, state, data = _jax_step(workload)

    @jax.jit
    def loop(state: Any, indices: Any, data: Any) -> Any:
        return jax.lax.scan(lambda state, i: (step(state, i, data), None), state, indices)[0]

    batches = _batches(len(jax.tree.leaves(data)[0]), batch_size)

    def advance(steps: int) -> None:
        nonlocal state
        indices = np.stack([next(batches) for _ in range(steps)]).astype(np.int32)
        state = loop(state, indices, data)
        jax.block_until_ready(state)

    return advance, 1


def torch_eager(workload: str, batch_size: int) -> tuple[Advance, int]:
    """PyTorch, one trial, eager."""
    import torch

    torch.set_num_threads(_cores())
    model, (inputs, labels) = torch_models.get(workload), torch_models.data(workload)
    optimizer = torch.optim.SGD(model.parameters(), RATE, momentum=MOMENTUM)
    batches = _batches(len(labels), batch_size)

    def advance(steps: int) -> None:
        for _ in range(steps):
            indices = torch.from_numpy(next(batches))
            optimizer.zero_grad(set_to_none=True)
            torch_models.loss(model(inputs[indices]), labels[indices]).backward()
            optimizer.step()

    return advance, 1


def torch_vmap(workload: str, batch_size: int) -> tuple[Advance, int]:
    """PyTorch, stacked models under torch.func.vmap, each with batches of its own."""
    import torch
    from torch.func import functional_call, grad, stack_module_state, vmap

    torch.set_num_threads(_cores())
    inputs, labels = torch_models.data(workload)
    count = stacked(batch_size)
    models = [torch_models.get(workload) for _ in range(count)]
    parameters, _ = stack_module_state(models)
    parameters = {name: value.detach() for name, value in parameters.items()}
    moments = {name: torch.zeros_like(value) for name, value in parameters.items()}
    model = models[0]
    batches = [_batches(len(labels), batch_size, seed) for seed in range(count)]

    def loss(parameters: Any, x: Any, y: Any) -> Any:
        return torch_models.loss(functional_call(model, parameters, (x,)), y)

    gradient = vmap(grad(loss), randomness="different")

    def advance(steps: int) -> None:
        for _ in range(steps):
            indices = torch.from_numpy(np.stack([next(batch) for batch in batches]))
            found = gradient(parameters, inputs[indices], labels[indices])
            for name, value in found.items():
                moments[name].mul_(MOMENTUM).add_(value)
                parameters[name].sub_(moments[name], alpha=RATE)

    return advance, count


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


PEERS: dict[str, Callable[[str, int], tuple[Advance, int]]] = {
    "batchscale": batchscale,
    "jax, step": jax_step,
    "jax, loop": jax_loop,
    "torch, eager": torch_eager,
    "torch, vmap": torch_vmap,
}
