"""Microseconds a step of one trial: training alone, against what a user would write instead.

    python -m benchmarks.throughput
    python -m benchmarks.throughput --resume --workloads cifar10/resnet_8

The second way keeps what is recorded and measures what is missing, so that a record can be made in
parts. Needs the extra `benchmarks` (PyTorch). The peers take turns, round after round, each in a
process of its own, so that a busy machine slows all of them; before its turn is timed, a peer
trains a quarter as long untimed, for its data has left the caches, and the threads of the peer
before have to have stopped spinning. A cell is the median of the rounds. The ratio is the peer's
time over ours. Operations are those of one example's gradient as XLA counts them, the machine's
rate is that of a large matrix product on all cores, and the roofline is the longer of two times:
operations at that rate, and five passes over the weights, the fewest there can be (read by the
forward pass; weights and momentum read and written by the update), at the rate at which arrays of a
lane's size are copied. A share above 1 says that this copying is not the limit: caches are.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

from benchmarks.peers import PEERS, Process, trains

WORKLOADS = (
    "mnist/fc_128",
    "mnist/fc_1024_1024_1024",
    "mnist/simple_cnn_base",
    "cifar10/resnet_8",
    "tiny_shakespeare/transformer_tiny",
    "tiny_shakespeare/lstm_tiny",
)
BATCH_SIZES = (1, 16, 64, 256, 1024)
_PASSES = 5
_FEWEST_STEPS = 4
_PAUSE = 0.3  # seconds: threads that wait spin for 0.2


def machine() -> dict[str, float]:
    """The rates of this machine: operations a second, and bytes a second by array size."""
    import jax
    import jax.numpy as jnp

    from batchscale.engine import devices, parallel

    devices.ask_for_cores()
    mesh = parallel.mesh()

    def rate(function: Any, work: float, *arrays: Any) -> float:
        jitted = jax.jit(function)
        jax.block_until_ready(jitted(*arrays))
        times = []
        for _ in range(5):
            began = time.perf_counter()
            jax.block_until_ready(jitted(*arrays))
            times.append(time.perf_counter() - began)
        return work * mesh.size / statistics.median(times)

    def everywhere(function: Any) -> Any:
        spec = jax.sharding.PartitionSpec("trials")
        return jax.shard_map(function, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False)

    side, loops = 2048, 100
    square = parallel.split(jnp.ones((mesh.size, side, side)), mesh)
    rates = {"operations": rate(everywhere(lambda x: x @ x), 2.0 * side**3, square)}
    for size in (400_000, 5_000_000, 15_000_000, 100_000_000):
        array = parallel.split(jnp.ones((mesh.size, size // 4)), mesh)

        def passes(x: Any) -> Any:
            return jax.lax.fori_loop(0, loops, lambda _, x: x * 1.0000001, x)

        rates[f"bytes, arrays of {size:,}"] = rate(everywhere(passes), 2.0 * size * loops, array)
    return rates


def work(workload: str) -> tuple[float, float]:
    """The operations of one example's gradient, and the bytes of the weights."""
    import jax

    from batchscale import models, workloads

    chosen = workloads.get(workload)
    params, _ = jax.eval_shape(chosen.init, jax.ShapeDtypeStruct((2,), "uint32"))
    return chosen.flops(), 4.0 * models.parameter_count(params)


def roofline(rates: dict[str, float], operations: float, weights: float) -> float:
    """The least seconds a step of one trial can take."""
    sizes = {int(name.rpartition(" ")[2].replace(",", "")): rate
             for name, rate in rates.items() if name.startswith("bytes")}  # fmt: skip
    nearest = min(sizes, key=lambda size: abs(size - weights))
    return max(operations / rates["operations"], _PASSES * weights / sizes[nearest])


def measure(
    workload: str, batch_size: int, peers: list[str], *, rounds: int, seconds: float
) -> dict[str, list[float]]:
    """Seconds a step of one trial of every peer, round after round."""
    running = {peer: Process(peer, workload, batch_size) for peer in peers}
    try:
        steps, times = {}, {peer: [] for peer in peers}
        for peer, process in running.items():
            count = 1
            while True:
                process.seconds(count)  # compiles, a loop of a fixed length each time
                took, _ = process.seconds(count)
                if took >= seconds / 4:
                    break
                count *= 8
            # A step alone would be timed with what a call costs.
            steps[peer] = max(_FEWEST_STEPS, round(seconds * count / took))
            for count in {steps[peer], max(1, steps[peer] // 4)}:
                process.seconds(count)  # compiles loops of a fixed length
        for _ in range(rounds):
            for peer, process in running.items():
                time.sleep(_PAUSE)
                process.seconds(max(1, steps[peer] // 4))
                took, trials = process.seconds(steps[peer])
                times[peer].append(took / (steps[peer] * trials))
        return times
    finally:
        for process in running.values():
            process.close()


def main() -> None:
    """Measures and prints every cell, and writes them as JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--workloads", nargs="+", default=WORKLOADS)
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=BATCH_SIZES)
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=list(PEERS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.5, help="of a peer in a round")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/throughput.json"))
    parser.add_argument("--resume", action="store_true", help="measure only what is not recorded")
    arguments = parser.parse_args()
    from batchscale.records import provenance

    rates = machine()
    rows = []
    if arguments.resume and arguments.output.exists():
        rows = json.loads(arguments.output.read_text())["rows"]
    known = {(row["workload"], row["batch_size"]) for row in rows}
    order = [*WORKLOADS, *arguments.workloads, *(workload for workload, _ in known)]
    print({name: f"{rate:.3g} /s" for name, rate in rates.items()})
    for workload in arguments.workloads:
        flops, weights = work(workload)
        for batch_size in arguments.batch_sizes:
            if (workload, batch_size) in known:
                continue
            times = measure(
                workload,
                batch_size,
                [peer for peer in arguments.peers if trains(peer, workload)],
                rounds=arguments.rounds,
                seconds=arguments.seconds,
            )
            medians = {peer: statistics.median(found) for peer, found in times.items()}
            ours = medians["batchscale"]
            row = {
                "workload": workload,
                "batch_size": batch_size,
                "microseconds": {peer: round(1e6 * t, 1) for peer, t in medians.items()},
                "ratio": {peer: round(t / ours, 2) for peer, t in medians.items()},
                "gflops": round(flops * batch_size / ours / 1e9, 1),
                "share_of_product_rate": round(flops * batch_size / ours / rates["operations"], 2),
                "share_of_roofline": round(roofline(rates, flops * batch_size, weights) / ours, 2),
                "all_microseconds": {
                    peer: [round(1e6 * t, 1) for t in found] for peer, found in times.items()
                },
            }
            rows.append(row)
            rows.sort(key=lambda one: (order.index(one["workload"]), one["batch_size"]))
            print({k: v for k, v in row.items() if k != "all_microseconds"}, flush=True)
            arguments.output.parent.mkdir(parents=True, exist_ok=True)
            arguments.output.write_text(
                json.dumps({"machine": provenance(), "rates": rates, "rows": rows}, indent=1) + "\n"
            )


if __name__ == "__main__":
    main()
