"""Packed against one-at-a-time training on the accelerator at hand, in one command.

    python -m benchmarks.accelerator --output results
    python -m benchmarks.accelerator --smoke

For every family of models and batch size: microseconds a step of one trial, of a jitted step in a
Python loop, of one lane, and of packs of several lanes, the fastest of which is chosen; models
that convolve are packed in each way to convolve. Then it checks on the device what the library
promises: kernels, the same bits from the same plan, lanes that are halved where memory is short.
Writes `accelerator.json` after every cell, and `accelerator.md` at the end. A cell that time did
not suffice for, or that did not fit into memory, stays empty. Speed does not hang on what the data
are, so that they are random unless `--data` names a folder of .npz files, `<data set>.npz` each
with arrays named `train/image` and the like.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import batchscale as bs
from batchscale import optimizers, schedules
from batchscale.engine import autotune, layout, parallel
from batchscale.engine.engine import Engine, Training
from batchscale.engine.layout import Layout
from batchscale.engine.packs import TrialId, stacked
from batchscale.models import convolution, layers
from batchscale.records import provenance

FAMILIES = (
    "mnist/fc_128",
    "mnist/simple_cnn_base",
    "cifar10/resnet_8",
    "tiny_shakespeare/transformer_tiny",
    "tiny_shakespeare/lstm_tiny",
)
_CONVOLVE = ("simple_cnn_base", "resnet_8")
BATCH_SIZES = (64, 1024, 4, 256, 16)  # those that tell most come first
LANES = (16, 64, 4)
_HYPERPARAMETERS = {"learning_rate": 0.01, "momentum": 0.9}
_NHWC = ("NHWC", "HWIO", "NHWC")


def workload(name: str, folder: Path | None, *, examples: int) -> bs.Workload:
    """A named workload with data of a folder, or random ones in their place."""
    named = bs.workloads.get(name)
    dataset = name.partition("/")[0]
    if folder is not None:
        splits = bs.datasets.from_npz(folder / f"{dataset}.npz")
    else:
        random = np.random.default_rng(0)

        def some(count: int) -> dict[str, Any]:
            if dataset == "tiny_shakespeare":
                return {"tokens": random.integers(1, 256, (count, 64)).astype(np.uint8)}
            shape = (32, 32, 3) if dataset == "cifar10" else (28, 28, 1)
            images = random.integers(0, 256, (count, *shape)).astype(np.uint8)
            return {"image": images, "label": random.integers(0, 10, count).astype(np.int32)}

        splits = {"train": some(examples), "validation": some(64)}
    return dataclasses.replace(
        named, data=splits, train_examples=len(jax.tree.leaves(splits["train"])[0]), titled=None
    )


def engine_of(chosen: bs.Workload) -> Engine:
    """An engine on the first device alone."""
    training = Training(
        chosen,
        optimizers.get("momentum"),
        schedules.constant,
        names=tuple(_HYPERPARAMETERS),
        seed=0,
        goal=bs.Goal("validation/error", 0.0),
    )
    return Engine(training, mesh=parallel.mesh(jax.devices()[:1]))


def started(engine: Engine, batch_size: int, how: Layout) -> list[Any]:
    """One full pack before its first step."""
    trials = [TrialId(number) for number in range(how.lanes)]
    values = stacked([_HYPERPARAMETERS] * len(trials))
    return engine.start(trials, values, batch_size=batch_size, layout=how)


def repeated(advance: Callable[[int, int], None], seconds: float) -> float:
    """Seconds a step: the median of three runs of about so long; `advance(at, steps)` trains."""
    at, steps, times = 0, 1, []
    advance(at, steps)  # compiles
    at += steps
    while len(times) < 3:
        began = time.perf_counter()
        advance(at, steps)
        took = time.perf_counter() - began
        at += steps
        if took < seconds and not times:
            steps *= 4
        else:
            times.append(took / steps)
    return statistics.median(times)


def packed(chosen: bs.Workload, batch_size: int, lanes: int, *, seconds: float) -> float:
    """Seconds a step of one trial, in a pack of so many lanes, as a study runs it."""
    cpu = jax.default_backend() == "cpu"
    how = layout.choose(chosen, cpu=cpu, batch_size=batch_size, trials=lanes, lanes=lanes)
    with engine_of(chosen) as engine:
        packs = started(engine, batch_size, how)

        def advance(at: int, steps: int) -> None:
            engine.advance(packs, batch_size=batch_size, layout=how, step=at, to=at + steps)

        return repeated(advance, seconds) / lanes


def alone(chosen: bs.Workload, batch_size: int, *, seconds: float) -> float:
    """Seconds a step of a jitted step in a Python loop: what one would write without packs."""
    data = jax.device_put(dict(chosen.splits()["train"]))
    examples = len(jax.tree.leaves(data)[0])
    params, model_state = jax.jit(chosen.init)(jax.random.key(0))
    optimizer = optax.sgd(0.01, momentum=0.9)

    @jax.jit
    def step(state: Any, indices: Any, data: Any) -> Any:
        params, opt_state, key = state
        key, own = jax.random.split(key)
        batch = chosen.prepare(jax.tree.map(lambda x: x[indices], data), None)

        def loss(params: Any) -> Any:
            (total, count), _ = chosen.loss(params, model_state, batch, own, {})
            return total / count.astype(total.dtype)

        updates, opt_state = optimizer.update(jax.grad(loss)(params), opt_state)
        return optax.apply_updates(params, updates), opt_state, key

    state = (params, optimizer.init(params), jax.random.key(1))
    random = np.random.default_rng(0)

    def advance(at: int, steps: int) -> None:
        del at
        nonlocal state
        for _ in range(steps):
            state = step(state, random.integers(0, examples, batch_size).astype(np.int32), data)
        jax.block_until_ready(state)

    return repeated(advance, seconds)


@contextlib.contextmanager
def way_to_convolve(way: convolution.Way | None) -> Iterator[None]:
    """A way to convolve, on whatever the platform is."""
    if way is None:
        yield
        return
    platforms: dict[str, convolution.Way] = dict.fromkeys(("cpu", "cuda", "rocm", "tpu"), way)
    with convolution.ways(**platforms):
        jax.clear_caches()
        yield
    jax.clear_caches()


def cells(name: str, lanes: tuple[int, ...]) -> Iterator[tuple[str, int, convolution.Way | None]]:
    """What is measured of a family, in the order of what it tells: its name, lanes, and way."""
    yield "jitted step", 0, None
    yield "1 lane", 1, None
    if name.rpartition("/")[2] not in _CONVOLVE:
        for count in lanes:
            yield f"{count} lanes", count, None
        return
    for count in lanes:
        for way in ("grouped", "mapped", "patches"):
            yield f"{count} lanes, {way}", count, way


def measured(row: dict[str, Any]) -> dict[str, Any]:
    """A row with the fastest packs, and how many times faster they are than a jitted step."""
    times = row["microseconds"]
    packs = {cell: time for cell, time in times.items() if "lane" in cell}
    if packs:
        row["fastest"] = min(packs, key=lambda cell: packs[cell])
        if "jitted step" in times:
            row["times_faster"] = round(times["jitted step"] / packs[row["fastest"]], 2)
    return row


def check_kernels() -> str:
    """Convolutions in every way, pooling and few-row products, against products in float64."""
    random = np.random.default_rng(0)
    images, kernel = random.normal(size=(9, 8, 7, 3)), random.normal(size=(3, 3, 3, 4))
    padded = np.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)))
    truth = sum(
        np.einsum("bhwc,co->bhwo", padded[:, i : i + 8, j : j + 7], kernel[i, j])
        for i in range(3)
        for j in range(3)
    )
    worst = 0.0
    for way in ("examples", "grouped", "mapped", "patches"):
        with way_to_convolve(way):
            found = jax.jit(
                lambda x, k: layers.fast_conv_general_dilated(
                    x, k, (1, 1), "SAME", dimension_numbers=_NHWC, precision="highest"
                )
            )(jnp.asarray(images, jnp.float32), jnp.asarray(kernel, jnp.float32))
        worst = max(worst, float(np.abs(np.asarray(found) - truth).max()))
    pooled = jax.jit(lambda x: layers.max_pool(x, (2, 2), (2, 2)))(jnp.asarray(images, jnp.float32))
    wanted = images[:, :, :6].reshape(9, 4, 2, 3, 2, 3).max((2, 4)).astype(np.float32)
    if worst > 1e-4 or not np.array_equal(np.asarray(pooled), wanted):
        raise AssertionError(f"convolutions differ by {worst:.2g}, wanted at most 1e-4.")
    return f"convolutions differ by {worst:.1e} at most from float64; pooling is exact"


def check_determinism(chosen: bs.Workload) -> str:
    """The same plan twice: the same bits."""
    how = Layout(4, 16, 4)
    found = []
    for _ in range(2):
        with engine_of(chosen) as engine:
            packs = started(engine, 32, how)
            engine.advance(packs, batch_size=32, layout=how, step=0, to=20)
            found.append(jax.tree.map(np.asarray, packs[0].state.params))
    same = jax.tree.all(jax.tree.map(np.array_equal, *found))
    if not same:
        raise AssertionError("got other bits the second time, wanted the same.")
    return "20 steps of 4 lanes, twice: the same bits"


def check_memory(chosen: bs.Workload) -> str:
    """A device with too little memory: microbatches and lanes are halved until trials fit."""
    wanted = Layout(8, 16, 8)

    class Short(Engine):
        @property
        def memory_limit(self) -> int | None:
            return limit

    with engine_of(chosen) as usual:
        one, all_lanes = (usual.memory(16, wanted.with_lanes(n), 8) for n in (1, 8))
    limit = int((one + all_lanes) / 2 / 0.9)
    with Short(usual._training, mesh=usual.mesh) as engine, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        rehearsal = autotune.Rehearsal(
            engine, 16, lambda ids: stacked([_HYPERPARAMETERS] * len(ids)), 8
        )
        found, why = autotune.final_layout(rehearsal, wanted, probe=False)
    if found.lanes >= wanted.lanes:
        raise AssertionError(f"got {found.lanes} lanes, wanted fewer than {wanted.lanes}.")
    return f"{wanted.lanes} lanes became {found.lanes} ({why})"


def markdown(found: dict[str, Any]) -> str:
    """The record as a page: a table a family, and the checks."""
    machine = found["machine"]
    device = machine["devices"][0]
    parts = [
        f"{device['count']} x {device['kind']}, jax {machine['versions']['jax']}, "
        f"{machine['date'][:10]}: microseconds a step of one trial."
    ]
    for family in dict.fromkeys(row["workload"] for row in found["rows"]):
        rows = [row for row in found["rows"] if row["workload"] == family]
        heads = list(dict.fromkeys(cell for row in rows for cell in row["microseconds"]))
        head = ["batch size", *heads, "fastest", "times faster than a jitted step"]
        lines = [head, ["--"] * len(head)]
        for row in sorted(rows, key=lambda row: row["batch_size"]):
            times = [
                f"{row['microseconds'][h]:.4g}" if h in row["microseconds"] else "" for h in heads
            ]
            ends = [row.get("fastest", ""), row.get("times_faster", "")]
            lines.append([f"{row['batch_size']:,}", *times, *map(str, ends)])
        table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
        parts += [f"## {family}", table]
    parts += ["## Checks", *(f"- {name}: {said}" for name, said in found["checks"].items())]
    return "\n\n".join(parts) + "\n"


def main() -> None:
    """Measures, checks, and writes both files."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--data", type=Path, help="a folder of .npz files")
    parser.add_argument("--families", nargs="+", choices=FAMILIES, default=FAMILIES)
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=BATCH_SIZES)
    parser.add_argument("--lanes", nargs="+", type=int, default=LANES)
    parser.add_argument("--seconds", type=float, default=0.2, help="of a timing")
    parser.add_argument("--minutes", type=float, default=8.0, help="no cell begins after these")
    parser.add_argument(
        "--smoke", action="store_true", help="that it runs: tiny, into a scratch name"
    )
    arguments = parser.parse_args()
    if arguments.smoke:
        arguments.batch_sizes, arguments.lanes, arguments.seconds = [4], [2], 0.01
    began = time.monotonic()
    name = "accelerator_smoke" if arguments.smoke else "accelerator"
    arguments.output.mkdir(parents=True, exist_ok=True)
    examples = 256 if arguments.smoke else 8192
    chosen = {f: workload(f, arguments.data, examples=examples) for f in arguments.families}
    found: dict[str, Any] = {"machine": provenance(), "checks": {}, "rows": [], "not_measured": []}

    def write() -> None:
        (arguments.output / f"{name}.json").write_text(json.dumps(found, indent=1) + "\n")
        (arguments.output / f"{name}.md").write_text(markdown(found))

    small = workload("mnist/fc_128", None, examples=256)
    for check, run in {
        "kernels": check_kernels,
        "determinism": lambda: check_determinism(small),
        "memory": lambda: check_memory(small),
    }.items():
        try:
            found["checks"][check] = run()
        except Exception as error:  # the others are worth running all the same
            found["checks"][check] = f"FAILED: {type(error).__name__}: {error}"
        print(check, found["checks"][check], flush=True)
        write()
    for batch_size in arguments.batch_sizes:
        for family in arguments.families:
            row: dict[str, Any] = {"workload": family, "batch_size": batch_size, "microseconds": {}}
            found["rows"].append(row)
            for cell, lanes, way in cells(family, tuple(arguments.lanes)):
                if time.monotonic() - began > 60 * arguments.minutes:
                    found["not_measured"].append([family, batch_size, cell, "no time left"])
                    continue
                try:
                    with way_to_convolve(way):
                        seconds = (
                            packed(chosen[family], batch_size, lanes, seconds=arguments.seconds)
                            if lanes
                            else alone(chosen[family], batch_size, seconds=arguments.seconds)
                        )
                except RuntimeError as error:  # out of memory
                    found["not_measured"].append([family, batch_size, cell, str(error)[:200]])
                    continue
                row["microseconds"][cell] = round(1e6 * seconds, 2)
            print(measured(row), flush=True)
            write()


if __name__ == "__main__":
    main()
