"""Two Dask workers against one process on the same cores: seconds of the same study, in turns.

    python -m benchmarks.executors                        # MNIST, alone on the machine
    python -m benchmarks.executors --study digits --rounds 1 --output /tmp/executors.json

One process spreads trials over one virtual device a core; two workers have one device each, on a
core each, and a batch size each at a time, so that both batch sizes are of as many examples. Every
turn is a process of its own with an empty compilation cache, that of the workers is shared by them.
The seconds are those of `study.run` from an empty folder, with a cluster that has started; the
tables of both are compared, in the last bits too where an update does not divide. Cells are medians
of the rounds. Needs the extra `cluster`.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import batchscale as bs

WAYS = ("process", "dask")


def study(name: str) -> bs.Study:
    """A search of learning rates with plain gradient descent, as the first figure has it."""
    workload, goal = {
        "digits": ("digits/fc_64", 0.1),
        "mnist": ("mnist/fc_128_128_128", 0.03),
    }[name]
    return bs.Study(
        workload=bs.workloads.get(workload),
        optimizer="sgd",
        space=bs.SearchSpace(learning_rate=bs.LogUniform(1e-2, 3)),
        batch_sizes=[512, 1024],
        goal=bs.Goal("validation/error", goal),
        trials=16,
        max_steps={512: 1500, 1024: 750},
        stop="budget",
    )


def timed(name: str, way: str, folder: Path) -> dict[str, Any]:
    """Seconds of one run, and a digest of its tables, in this process."""
    import hashlib

    import pandas as pd

    chosen = study(name)

    def run(executor: Any = None) -> float:
        began = time.perf_counter()
        chosen.run(folder, progress=False, executor=executor)
        return time.perf_counter() - began

    if way == "process":
        seconds = run()
    else:
        import distributed

        with (
            distributed.LocalCluster(
                n_workers=2, threads_per_worker=1, dashboard_address=":0"
            ) as cluster,
            distributed.Client(cluster) as client,
        ):
            # Else each has as many threads as there are cores, and they get into each other's way.
            cores = sorted(os.sched_getaffinity(0))
            for worker, core in zip(client.scheduler_info()["workers"], cores, strict=False):
                client.run(os.sched_setaffinity, 0, {core}, workers=[worker])
            seconds = run(client.get_executor())
    rows = pd.util.hash_pandas_object(bs.load(folder).measurements).to_numpy().tobytes()
    return {"seconds": seconds, "rows": hashlib.blake2b(rows, digest_size=8).hexdigest()}


def apart(name: str, way: str) -> dict[str, Any]:
    """The same in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "BATCHSCALE_CACHE": f"{folder}/cache"}
        if way == "dask":
            environment["JAX_NUM_CPU_DEVICES"] = "1"
        done = subprocess.run(
            [
                *(sys.executable, "-m", "benchmarks.executors", "--study", name, "--way", way),
                *("--folder", f"{folder}/study"),
            ],
            check=True,
            stdout=subprocess.PIPE,
            env=environment,
        )
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Measures in turns, prints the medians, and writes them as JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--study", default="mnist", choices=["digits", "mnist"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--way", choices=WAYS, help="one run of it, here")
    parser.add_argument("--folder", type=Path, help="where that is")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/executors.json"))
    given = parser.parse_args()
    if given.way is not None:
        print(json.dumps(timed(given.study, given.way, given.folder)))
        return
    found: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
    for _ in range(given.rounds):
        for way in WAYS:
            found[way].append(apart(given.study, way))
            print(way, found[way][-1], flush=True)
    median = {way: statistics.median(one["seconds"] for one in found[way]) for way in WAYS}
    record = {
        "study": given.study,
        "seconds": {way: round(seconds, 1) for way, seconds in median.items()},
        "ratio": round(median["process"] / median["dask"], 3),
        "same_rows": len({one["rows"] for runs in found.values() for one in runs}) == 1,
        "runs": found,
        "machine": bs.records.provenance(),
    }
    print(json.dumps({name: record[name] for name in ("seconds", "ratio", "same_rows")}))
    given.output.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
