"""What two processes cost: the same study on the same cores, in one process and in two.

    python -m benchmarks.processes
    python -m benchmarks.processes --workload digits/fc_64 --batch-sizes 16 64 --steps 500

One process has two CPU devices; two processes have one each, on a core each, and exchange by gloo
what a pod exchanges by its network. All trials are trained for the whole budget. Each study is run
for two steps first, so that programs come from the compilation cache. Rounds go through both ways
in turn, and a cell is the median of the rounds: seconds of training and of evaluation, and all that
is neither nor compilation, such as what processes tell one another, and files.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

_PARTS = ("training", "evaluation", "other")


def run(arguments: argparse.Namespace) -> None:
    """Runs the studies in this process, which is one of several, and prints their seconds."""
    import jax

    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", 2 // arguments.processes)
    if arguments.processes > 1:
        # Else each has as many threads as there are cores, and they get into each other's way.
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[arguments.process % len(cores)]})
        where = f"127.0.0.1:{arguments.port}"
        jax.distributed.initialize(where, arguments.processes, arguments.process)
    import batchscale as bs

    workload, found = bs.workloads.get(arguments.workload), {}
    for batch_size in arguments.batch_sizes:
        study = bs.Study(
            workload=workload,
            optimizer="momentum",
            space=bs.SearchSpace(learning_rate=bs.LogUniform(1e-3, 1e-1), momentum=0.9),
            batch_sizes=[batch_size],
            goal=bs.Goal("validation/error", 0.0),
            trials=arguments.trials,
            max_steps=arguments.steps,
            stop="budget",
        )
        for one in (dataclasses.replace(study, max_steps=2), study):
            with tempfile.TemporaryDirectory() as folder:
                one.run(folder, progress=False)
                runs = Path(folder) / "provenance.json"
                if arguments.process == 0:
                    found[batch_size] = json.loads(runs.read_text())["runs"][-1]["seconds"]
    if arguments.process == 0:
        print(json.dumps(found))


def seconds(arguments: argparse.Namespace, processes: int) -> dict[str, dict[str, float]]:
    """Of one round in so many processes, by batch size."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.processes", "--port", str(port)]
    command += ["--workload", arguments.workload, "--trials", str(arguments.trials)]
    command += ["--steps", str(arguments.steps), "--processes", str(processes)]
    command += ["--batch-sizes", *map(str, arguments.batch_sizes), "--process"]
    started = [
        subprocess.Popen([*command, str(n)], stdout=subprocess.PIPE, text=True)
        for n in range(processes)
    ]
    printed = [process.communicate()[0] for process in started]
    if any(process.returncode for process in started):
        raise RuntimeError("a process has failed: see above")
    (line,) = [line for line in printed[0].splitlines() if line.startswith("{")]
    found = json.loads(line)
    for parts in found.values():
        known = parts["training"] + parts["evaluation"] + parts["compilation"]
        parts["other"] = parts["total"] - known
    return found


def medians(rounds: Sequence[Mapping[int, Any]]) -> list[dict[str, float]]:
    """The medians of rounds, a row a batch size and number of processes."""
    rows = []
    for size in rounds[0][1]:
        sums: dict[int, float] = {}
        for processes in rounds[0]:
            parts = {
                name: statistics.median(found[processes][size][name] for found in rounds)
                for name in _PARTS
            }
            sums[processes] = sum(parts.values())
            row = {"batch_size": int(size), "processes": processes, **parts}
            rows.append(row | {"ratio": sums[processes] / sums[1]})
    return rows


def main(given: Sequence[str] | None = None) -> None:
    """Measures, and prints the medians."""
    from batchscale import records

    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--workload", default="mnist/fc_128")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[16, 1024])
    parser.add_argument("--trials", type=int, default=32)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path, help="the rounds, as JSON")
    hidden: dict[str, Any] = {"type": int, "help": argparse.SUPPRESS}
    parser.add_argument("--processes", default=0, **hidden)
    parser.add_argument("--process", default=0, **hidden)
    parser.add_argument("--port", default=0, **hidden)
    arguments = parser.parse_args(given)
    if arguments.processes:
        run(arguments)
        return
    rounds = []
    for _ in range(arguments.rounds):
        rounds.append({processes: seconds(arguments, processes) for processes in (1, 2)})
    record = {
        "workload": arguments.workload,
        "trials": arguments.trials,
        "steps": arguments.steps,
        "rows": medians(rounds),
        "rounds": rounds,
        "machine": records.provenance(),
    }
    print(*record["rows"], sep="\n")
    if arguments.output is not None:
        arguments.output.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
