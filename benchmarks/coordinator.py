"""What a coordinator of many workers does with its time, by a simulation of the workers alone.

    python -m benchmarks.coordinator                     # 1,000 workers, 100,000 trials
    python -m benchmarks.coordinator --workers 10 --sizes 10

The process that holds the folder is the real one: it plans, makes tasks, checks what comes back
against the plan, writes it, and puts the tables together. Workers are simulated: each returns, at a
moment drawn for it, tables of the shape that a study of classification has (an evaluation at every
10% more steps, the other splits at one in eight), of numbers drawn at random. So time is simulated
where nobody works, and real where the coordinator does.

A batch size has 100 trials here, and there are as many batch sizes as workers, more than any study
has, so that the number of results is that of a thousand workers. What is measured: how long the
coordinator plans before the first task, how long it works on each result, and how long it puts
tables together after the last; bytes; and how many results waited for it at once. It is the limit
where results come faster than it works on one. Its seconds are those of its processor: of a shared
machine they say more, and waiting for the disk is not in them.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import pandas as pd

import batchscale as bs
from batchscale import records
from batchscale.records import MEASUREMENT_INDEX, TRIAL_INDEX, parcels
from batchscale.runner import pool
from batchscale.stopping import evaluation_grid

TRIALS, STEPS, SPACING = 100, 2000, 0.1
OTHERS = ("validation/loss", "test/error", "test/loss", "train/error", "train/loss")


class Clock:
    """Real seconds, and those that were skipped because nobody had anything to do."""

    def __init__(self) -> None:
        self.skipped = 0.0
        self.ends: list[float] = []

    def now(self) -> float:
        """Seconds since some moment."""
        return time.process_time() + self.skipped

    def sleep(self, seconds: float) -> None:
        """Goes on by so many seconds; where nobody is done then, until the next one is."""
        self.skipped += seconds
        self.ends = [end for end in self.ends if end > self.now()]
        if seconds == pool._POLL and self.ends:
            self.skipped += min(self.ends) - self.now()


class Result:
    """What a simulated worker will return."""

    def __init__(self, workers: Workers, size: int, task: str, end: float) -> None:
        self._workers, self._size, self._task, self.end = workers, size, task, end

    def done(self) -> bool:
        """Whether the worker is."""
        return self._workers.clock.now() >= self.end

    def cancel(self) -> bool:
        """It cannot be."""
        return False

    def result(self) -> dict[str, Any]:
        """The tables; the time that it takes to make them up is the worker's."""
        began = time.process_time()
        found = self._workers.value(self._size, json.loads(self._task))
        self._workers.made_up += time.process_time() - began
        self._workers.clock.skipped -= time.process_time() - began
        return found


class Workers:
    """An executor whose tasks end at moments drawn for them, a queue in front of each worker.

    Args:
      count: how many.
      seconds: that a task takes, as a median; half of them between two thirds and one and a half.
    """

    def __init__(self, count: int, seconds: float) -> None:
        self.clock, self._free = Clock(), [0.0] * count
        self._random = np.random.default_rng(0)
        self._seconds = seconds
        self.sent = self.returned = self.results = 0
        self.made_up = 0.0  # seconds that were spent on making tables up
        self.first = 0.0

    def submit(self, function: Any, /, *arguments: Any) -> Result:
        """Gives a task to the worker that is free first."""
        study, task, parcel = arguments
        self.first = self.first or time.process_time()
        size = json.loads(task)["batch_size"]
        self.sent += len(study) + len(task) + sum(map(len, parcel.values()))
        first = int(np.argmin(self._free))
        start = max(self._free[first], self.clock.now())
        end = start + self._seconds * float(np.exp(self._random.normal(0, 0.6)))
        self._free[first] = end
        self.clock.ends.append(end)
        return Result(self, size, task, end)

    def value(self, size: int, about: Mapping[str, Any]) -> dict[str, Any]:
        """What a worker returns of a batch size."""
        plan = about["plan"]
        rows = plan["trials"][str(size)]
        grid = evaluation_grid(STEPS, SPACING)
        count = len(grid) * len(rows)
        index = pd.MultiIndex.from_product([[size], range(len(rows)), [0], grid])
        index.names = [*MEASUREMENT_INDEX]
        found = {"validation/error": self._random.integers(100, 900, count) / 1000}
        now = np.tile(np.arange(len(grid)) % 8 == 0, len(rows))
        for name in OTHERS:
            found[name] = np.where(now, self._random.random(count), np.nan)
        trials = pd.DataFrame(
            [row["hyperparameters"] for row in rows],
            pd.MultiIndex.from_product([[size], range(len(rows)), [0]], names=TRIAL_INDEX),
        ).assign(
            origin="plan",
            status="complete",
            steps_trained=STEPS,
            stop_reason="budget",
            first_crossing=np.inf,
        )
        told = {
            "done": True,
            "layout": plan["layouts"][str(size)],
            "finding": None,
            "rows": rows,
            "drawn_with": plan["drawn_with"],
            "conditions": [about["conditions"]],
            "worker": {"platform": "simulated"},
            "seconds": {"training": 1.0},
            "last": {
                **{"batch_size": size, "step": STEPS, "max_steps": STEPS, "best": 0.1},
                **{"steps": float("inf"), "trials": len(rows), "infeasible": 0},
                **{"seconds": 1.0, "finished": True},
            },
        }
        parcel = parcels.packed(pd.DataFrame(found, index), trials)
        self.returned += sum(map(len, parcel.values()))
        self.results += 1
        return {**parcel, "about": json.dumps(told), "error": None}


def written() -> int:
    """Bytes that this process has written to files so far."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return int(dict(line.split(": ") for line in lines)["wchar"])


def study(sizes: int) -> bs.Study:
    """A study of so many batch sizes, whose model is as small as can be: it is never trained."""
    import jax.numpy as jnp

    x = np.zeros((max(sizes, 2), 1), np.float32)
    y = np.zeros(len(x), np.int32)

    def loss(params: Any, batch: Any) -> Any:
        return (batch["input"][:, 0] * params["w"]) ** 2

    def error(params: Any, batch: Any) -> Any:
        return (batch["input"][:, 0] * params["w"] > 0.5) != (batch["label"] > 0)

    workload = bs.Workload.from_functions(
        lambda key: {"w": jnp.ones(())},
        loss,
        metrics={"error": error},
        data={"train": (x, y), "validation": (x, y), "test": (x, y)},
        name="simulated",
    )
    return bs.Study(
        workload=workload,
        optimizer="momentum",
        space=bs.SearchSpace(
            learning_rate=bs.LogUniform(1e-3, 1), momentum=bs.ReverseLogUniform(0.9, 0.999)
        ),
        batch_sizes=list(range(1, sizes + 1)),
        goal=bs.Goal("validation/error", 0.05),
        trials=TRIALS,
        max_steps=STEPS,
        evaluation_spacing=SPACING,
        stop="budget",
    )


def simulated(count: int, sizes: int, seconds: float) -> dict[str, Any]:
    """A study run by so many simulated workers, and what it took its coordinator."""
    workers, chosen = Workers(count, seconds), study(sizes)
    waits: list[int] = []
    last = [0.0]
    receive = pool._Run._take

    def take(run: pool._Run, ended: Any) -> None:
        waits.append(len(ended))
        receive(run, ended)
        last[0] = time.process_time()

    clock = SimpleNamespace(sleep=workers.clock.sleep, monotonic=time.process_time)
    with tempfile.TemporaryDirectory() as name:
        before, began = written(), time.process_time()
        start = workers.clock.now()
        with (
            mock.patch.object(pool, "time", clock),
            mock.patch.object(pool._Run, "_take", take),
            mock.patch("batchscale.runner.sweep.warn_of_misses"),
        ):
            chosen.run(Path(name) / "study", progress=False, executor=workers)
        ended, whole = time.process_time(), workers.clock.now() - start
        files = [path for path in (Path(name) / "study").rglob("*") if path.is_file()]
        kept = {path.name: path.stat().st_size for path in files}
        bytes_written = written() - before
    results = workers.results
    return {
        "workers": count,
        "batch_sizes": sizes,
        "trials": sizes * TRIALS,
        "rows": sizes * TRIALS * len(evaluation_grid(STEPS, SPACING)),
        "seconds_of_a_task": seconds,
        "hours": round(whole / 3600, 3),
        "seconds_before": round(workers.first - began, 1),
        "seconds_per_result": round((last[0] - workers.first - workers.made_up) / results, 4),
        "seconds_after": round(ended - last[0], 1),
        "most_waiting": max(waits),
        "sent_bytes_per_task": workers.sent // results,
        "returned_bytes_per_result": workers.returned // results,
        "written_bytes_per_result": bytes_written // results,
        "plan_bytes": kept.get("plan.json", 0),
        "table_bytes": kept.get("measurements.parquet", 0) + kept.get("trials.parquet", 0),
        "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def main() -> None:
    """Simulates one study, prints what it took, and adds it to the record."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--workers", type=int, default=1000)
    parser.add_argument("--sizes", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=600.0, help="of a task, the median")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/coordinator.json"))
    given = parser.parse_args()
    found = simulated(given.workers, given.sizes, given.seconds)
    print(json.dumps(found, indent=1))
    before = json.loads(given.output.read_text())["runs"] if given.output.exists() else []
    same = ("workers", "batch_sizes", "seconds_of_a_task")
    kept = [run for run in before if any(run[name] != found[name] for name in same)]
    record = {"runs": [*kept, found], "machine": records.provenance()}
    given.output.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
