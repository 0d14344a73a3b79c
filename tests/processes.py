"""What each of two processes runs in test_hosts.py: `processes.py PROCESS PORT FOLDER WHAT`."""

import json
import os
import sys
from pathlib import Path

import jax
import numpy as np
from helpers import perceptron

import batchscale as bs
from batchscale.engine.engine import Engine
from batchscale.runner import batch_size

DIES_AT = 6  # calls of Engine.advance


def study(**changes):
    fields = {
        "workload": perceptron(validation=1_000),
        "optimizer": "momentum",
        "space": bs.SearchSpace(learning_rate=bs.LogUniform(0.1, 3.0), momentum=0.5),
        "batch_sizes": [4, "full"],
        "goal": bs.Goal("validation/error", 0.25),
        "trials": 5,
        "max_steps": 40,
        "stop": 2.0,
        "lanes": 2,
        "evaluation_spacing": 0.3,
        "evaluate": {"train": None, "test": None},
    }
    return bs.Study(**fields | changes)


def confirmed(folder):
    return study().confirm(folder, settings=2, selection_seeds=2, seeds=2, progress=False)


def main(process: int, port: str, folder: Path, what: str) -> None:
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", 2)
    jax.distributed.initialize(f"127.0.0.1:{port}", 2, process, heartbeat_timeout_seconds=10)
    # Only process 0 sees the folder.
    seen = folder if process == 0 else Path("/dev/null/nowhere")
    if what == "dies":
        _die(process)
        study().run(seen / "died", progress=False)
        return
    told = []
    result = study().run(seen / "whole", progress=told.append)
    out = folder / f"process-{process}"
    out.mkdir()
    result.trials.to_parquet(out / "trials.parquet")
    result.measurements.to_parquet(out / "measurements.parquet")
    run = study().run_trial(batch_size=4, trial=1, steps=9, folder=seen / "whole")
    np.savez(out / "trial.npz", **run.params)
    confirmation = confirmed(seen / "whole")
    study().run(seen / "died", progress=False)
    other = study(workload=perceptron(validation=1_000 + process))
    said = {
        "told": len(told),
        "confirmation": str(confirmation),
        "damaged": _raised(lambda: study().run(seen / "damaged", progress=False)),
        "callback": _raised(lambda: study().run(seen / "callback", progress=_fails)),
        "other data": _raised(lambda: other.run(seen / "other", progress=False)),
    }
    (out / "said.json").write_text(json.dumps(said))


def _die(process: int) -> None:
    """Lets process 1 end halfway, without a word; process 0 writes as often as it can."""
    batch_size.PAUSES = batch_size.Pauses(seconds=0.0, times=0.0)
    advance, calls = Engine.advance, []

    def counted(self, *arguments, **options):
        calls.append(0)
        if process == 1 and len(calls) == DIES_AT:
            os._exit(9)
        return advance(self, *arguments, **options)

    Engine.advance = counted


def _fails(progress) -> None:
    raise ZeroDivisionError(f"at step {progress.step}")


def _raised(call) -> list[str]:
    try:
        call()
    except Exception as error:
        return [type(error).__name__, str(error)]
    return []


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], Path(sys.argv[3]), sys.argv[4])
