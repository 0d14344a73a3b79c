"""How the time of a trial scales: with trials, devices, lanes and the size of the model.

    python -m benchmarks.scaling

Training alone, on the workload `mnist/fc_128` with heavy-ball momentum. Rounds go through all
points of a table in turn; a cell is the median of the rounds.

- *trials*: 8 to 1,024 of them, in packs as a study makes them. Flat is perfect.
- *devices*: 1, 2, 4, 8 virtual CPU devices, each count in a process of its own. On a CPU they
  share the cores, so this shows overhead and not speed.
- *lanes*: trials vmapped together, from 1 on; the best number is what `lanes` chooses or is told.
- *model*: from a 64-unit perceptron to 2,048-2,048-2,048.
- *memory*: what XLA sets aside for a step, against lanes and microbatch.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

BATCH_SIZE = 64
TRIALS = (8, 16, 32, 64, 128, 256, 512, 1024)
DEVICES = (1, 2, 4, 8)
LANES = (1, 2, 4, 8, 16, 32, 64)
MODELS = ("fc_64", "fc_128", "fc_128_128_128", "fc_512", "fc_1024", "fc_2048_2048_2048")
VALUES = {"learning_rate": 0.01, "momentum": 0.9}


class Point:
    """Trials that are ready to be trained.

    Args:
      workload: its name.
      trials: how many; as many as fill one pack if None.
      lanes: as chosen by the library if None.
    """

    def __init__(self, workload: str, trials: int | None, lanes: int | None) -> None:
        import jax

        from batchscale import optimizers, schedules, workloads
        from batchscale.engine import layout, parallel
        from batchscale.engine.engine import Engine, Training
        from batchscale.engine.packs import TrialId, stacked
        from batchscale.metrics import Goal

        chosen, mesh = workloads.get(workload), parallel.mesh()
        cpu = jax.default_backend() == "cpu"
        self.layout = layout.choose(
            chosen, cpu=cpu, batch_size=BATCH_SIZE, trials=trials or 1024, lanes=lanes
        )
        self.trials = trials or mesh.size * self.layout.lanes
        self._engine = Engine(
            Training(
                chosen,
                optimizers.get("momentum"),
                schedules.constant,
                names=tuple(VALUES),
                seed=0,
                goal=Goal("validation/error", 0.0),
            ),
            mesh=mesh,
        )
        ids = [TrialId(n) for n in range(self.trials)]
        self._packs = self._engine.start(
            ids, stacked([VALUES] * len(ids)), batch_size=BATCH_SIZE, layout=self.layout
        )
        self._at, self._steps = 0, 1
        self.microseconds()  # compiles
        # Several steps a turn, as in a study: weights stay in the caches from step to step.
        while self._steps < 16 or self.microseconds() * self._steps * self.trials < 3e5:
            self._steps *= 2

    def microseconds(self) -> float:
        """A step of one trial."""
        began = time.perf_counter()
        self._engine.advance(
            self._packs,
            batch_size=BATCH_SIZE,
            layout=self.layout,
            step=self._at,
            to=self._at + self._steps,
        )
        self._at += self._steps
        return 1e6 * (time.perf_counter() - began) / self._steps / self.trials

    @property
    def memory(self) -> int:
        """Bytes on each device: data, states, and what XLA sets aside."""
        return self._engine.memory(BATCH_SIZE, self.layout, self.trials)


def table(points: list[Point], rounds: int) -> list[float]:
    """The median of every point, rounds going through all of them in turn."""
    times = [[point.microseconds() for point in points] for _ in range(rounds)]
    return [round(statistics.median(column), 2) for column in zip(*times, strict=True)]


def _devices(count: int, rounds: int) -> float:
    code = (
        "import jax; jax.config.update('jax_num_cpu_devices', int(__import__('sys').argv[1])); "
        "from benchmarks import scaling; "
        "print(scaling.table([scaling.Point('mnist/fc_128', 64, 4)], int(__import__('sys').argv[2])"
        ")[0])"
    )
    found = subprocess.run(
        [sys.executable, "-c", code, str(count), str(rounds)],
        check=True,
        capture_output=True,
        text=True,
    )
    return float(found.stdout.split()[-1])


def memory(workload: str) -> list[dict[str, int]]:
    """What XLA sets aside for a step, by lanes and microbatch, at batch size 1,024."""
    import jax

    from batchscale import optimizers, schedules, workloads
    from batchscale.engine import parallel
    from batchscale.engine.engine import Engine, Training
    from batchscale.engine.layout import Layout
    from batchscale.metrics import Goal

    rows = []
    engine = Engine(
        Training(
            workloads.get(workload),
            optimizers.get("momentum"),
            schedules.constant,
            names=tuple(VALUES),
            seed=0,
            goal=Goal("validation/error", 0.0),
        ),
        mesh=parallel.mesh(jax.devices()[:1]),
    )
    for lanes in (1, 4, 16):
        for microbatch in (64, 256, 1024):
            size = engine.scratch(1024, Layout(lanes, microbatch))
            rows.append({"lanes": lanes, "microbatch": microbatch, "scratch_bytes": size})
    return rows


def main() -> None:
    """Measures and prints the tables, and writes them as JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/scaling.json"))
    arguments = parser.parse_args()
    import jax

    from batchscale import models, workloads
    from batchscale.engine import devices
    from batchscale.records import provenance

    rounds = arguments.rounds
    found: dict[str, Any] = {}
    if not os.environ.get("JAX_PLATFORMS", "cpu").strip("cpu"):
        found["devices"] = [{"devices": n, "microseconds": _devices(n, rounds)} for n in DEVICES]
        print("devices", found["devices"], flush=True)
    devices.ask_for_cores()
    points = [Point("mnist/fc_128", trials, None) for trials in TRIALS]
    found["trials"] = [
        {"trials": n, "lanes": point.layout.lanes, "microseconds": time, "bytes": point.memory}
        for n, point, time in zip(TRIALS, points, table(points, rounds), strict=True)
    ]
    print("trials", found["trials"], flush=True)
    points = [Point("mnist/fc_128", None, lanes) for lanes in LANES]
    found["lanes"] = [
        {"lanes": n, "microseconds": time}
        for n, time in zip(LANES, table(points, rounds), strict=True)
    ]
    print("lanes", found["lanes"], flush=True)
    points = [Point(f"mnist/{model}", None, None) for model in MODELS]
    found["model"] = []
    for model, point, microseconds in zip(MODELS, points, table(points, rounds), strict=True):
        chosen = workloads.get(f"mnist/{model}")
        params, _ = jax.eval_shape(chosen.init, jax.ShapeDtypeStruct((2,), "uint32"))
        rate = chosen.flops() * BATCH_SIZE / microseconds / 1e3
        found["model"].append(
            {
                "model": model,
                "parameters": models.parameter_count(params),
                "lanes": point.layout.lanes,
                "microseconds": microseconds,
                "gflops": round(rate, 1),
            }
        )
    print("model", found["model"], flush=True)
    found["memory"] = memory("mnist/fc_128")
    print("memory", found["memory"], flush=True)
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    about = {"batch_size": BATCH_SIZE, "rounds": rounds, "machine": provenance()}
    arguments.output.write_text(json.dumps(about | found, indent=1) + "\n")


if __name__ == "__main__":
    main()
