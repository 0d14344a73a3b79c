"""Training on a stream against the same training on resident data, and how long devices wait.

    python -m benchmarks.streaming

Each row trains the same packs, resident and streamed in turn, a round of both after another; a cell
is the median of the rounds. *Waiting* is the share of the time in which the devices had nothing to
do because examples were still being read. Sources: a *memory map* of arrays in a file, and *array
records* of encoded images that TFDS reads and decodes one by one (`--tfds`, a folder of its data).
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

ROWS = (
    ("mnist/fc_128_128_128", "memory map", 1),
    ("mnist/fc_128_128_128", "memory map", 64),
    ("mnist/fc_128_128_128", "memory map", 1024),
    ("mnist/fc_128_128_128", "array records", 64),
    ("mnist/simple_cnn_base", "memory map", 64),
    ("mnist/simple_cnn_base", "array records", 64),
    ("cifar10/resnet_8", "memory map", 64),
    ("tiny_shakespeare/transformer_tiny", "memory map", 16),
    ("tiny_shakespeare/transformer_tiny", "memory map", 256),
)
VALUES = {"learning_rate": 0.01, "momentum": 0.9}


class Run:
    """A pack of trials that is trained on some source.

    Args:
      workload: what is trained.
      batch_size: examples a step.
    """

    def __init__(self, workload: Any, batch_size: int) -> None:
        import jax

        from batchscale import optimizers, schedules
        from batchscale.engine import layout, parallel
        from batchscale.engine.engine import Engine, Training
        from batchscale.engine.packs import TrialId, stacked
        from batchscale.metrics import Goal

        mesh, self._batch_size = parallel.mesh(), batch_size
        cpu = jax.default_backend() == "cpu"
        self._layout = layout.choose(workload, cpu=cpu, batch_size=batch_size, trials=64)
        self.trials = mesh.size * self._layout.lanes
        training = Training(
            workload,
            optimizers.get("momentum"),
            schedules.constant,
            names=tuple(VALUES),
            seed=0,
            goal=Goal("train/loss", 0.0),
        )
        self._engine = Engine(training, mesh=mesh)
        ids = [TrialId(n) for n in range(self.trials)]
        self._packs = self._engine.start(
            ids, stacked([VALUES] * len(ids)), batch_size=batch_size, layout=self._layout
        )
        self._at = 0

    def train(self, steps: int) -> tuple[float, float]:
        """Seconds of so many steps, and of them those in which the devices waited."""
        began, waited = time.perf_counter(), self._engine.seconds["waiting for data"]
        self._engine.advance(
            self._packs,
            batch_size=self._batch_size,
            layout=self._layout,
            step=self._at,
            to=self._at + steps,
        )
        self._at += steps
        waited = self._engine.seconds["waiting for data"] - waited
        return time.perf_counter() - began, waited

    def close(self) -> None:
        """Stops reading."""
        self._engine.__exit__()


def row(name: str, source: str, batch_size: int, splits: Any, rounds: int) -> dict[str, Any]:
    """Microseconds a step of one trial, resident and streamed, and the share of waiting."""
    from batchscale import workloads

    resident = workloads.get(name)
    streamed = dataclasses.replace(resident, data=splits, train_examples=None, titled=None)
    runs = [Run(resident, batch_size), Run(streamed, batch_size)]
    steps = 1
    while runs[0].train(steps)[0] < 1.0:
        steps *= 2
    runs[1].train(steps)
    found = [[run.train(steps) for run in runs] for _ in range(rounds)]
    for run in runs:
        run.close()
    per = 1e6 / steps / runs[0].trials
    microseconds = [statistics.median(x[k][0] for x in found) * per for k in range(2)]
    return {
        "workload": name,
        "source": source,
        "batch_size": batch_size,
        "resident": round(microseconds[0], 2),
        "streamed": round(microseconds[1], 2),
        "ratio": round(statistics.median(x[1][0] / x[0][0] for x in found), 3),
        "waiting": round(statistics.median(x[1][1] / x[1][0] for x in found), 4),
    }


def memory_map(name: str, folder: Path) -> dict[str, Any]:
    """The training set of a workload as a stream of memory maps; the other splits as they are."""
    from batchscale import datasets, workloads

    splits = dict(workloads.get(name).splits())
    maps = {}
    for field, array in splits["train"].items():
        path = folder / f"{name.replace('/', '-')}-{field}.npy"
        if not path.exists():
            np.save(path, array)
        maps[field] = np.load(path, mmap_mode="r")
    return {**splits, "train": datasets.Stream(maps)}


def array_records(name: str, folder: str | None) -> dict[str, Any]:
    """The training set of a workload as TFDS stores it, read and decoded one by one."""
    import tensorflow_datasets as tfds

    from batchscale import datasets, workloads

    splits = dict(workloads.get(name).splits())
    size = len(splits["train"]["label"])
    builder: Any = tfds.builder(name.partition("/")[0], data_dir=folder)
    source = builder.as_data_source(split=f"train[:{size}]")
    return {**splits, "train": datasets.Stream(source)}


def main() -> None:
    """Measures and prints the table, and writes it as JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tfds", help="where TFDS keeps its data; TFDS_DATA_DIR by default")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/streaming.json"))
    arguments = parser.parse_args()
    from batchscale.engine import devices
    from batchscale.records import provenance

    devices.ask_for_cores()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        sources: dict[str, Callable[[str], dict[str, Any]]] = {
            "memory map": lambda name: memory_map(name, Path(folder)),
            "array records": lambda name: array_records(name, arguments.tfds),
        }
        for name, source, batch_size in ROWS:
            splits = sources[source](name)
            rows.append(row(name, source, batch_size, splits, arguments.rounds))
            print(rows[-1], flush=True)
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    found = {"rounds": arguments.rounds, "rows": rows, "machine": provenance()}
    arguments.output.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
