"""What each of two processes runs in test_hosts.py: `processes.py PROCESS PORT FOLDER WHAT`."""

import json
import os
import sys
from pathlib import Path

import jax
import numpy as np
from helpers import perceptron
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import batchscale as bs
from batchscale.engine import hosts
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
    fetched = _fetched()  # first: the study may not have begun to exchange
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
        "fetched": fetched,
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


def _fetched() -> list[str]:
    """Which arrays come back wrong, of parts that both processes hold, in several orders."""
    random, devices = np.random.default_rng(0), jax.devices()
    arrays = {
        "float32": random.normal(size=(8, 3)).astype(np.float32),
        "bool": random.normal(size=(4, 5)) > 0,
        "bfloat16": random.normal(size=4).astype(jax.numpy.bfloat16),
        "int8": random.integers(0, 9, (12, 2, 2)).astype(np.int8),
        "empty": np.zeros((4, 0), np.float32),
        "larger than what is sent at once": random.normal(size=(4, 1_200_000)).astype(np.float32),
        "uint32": random.integers(0, 2**32, (4, 2)).astype(np.uint32),
    }
    wrong = []
    for order in ([0, 1, 2, 3], [0, 2, 1, 3], [3, 1, 2, 0]):
        mesh = Mesh(np.array([devices[n] for n in order]), ("devices",))
        sharding = NamedSharding(mesh, PartitionSpec("devices"))
        put = {name: hosts.put(array, sharding) for name, array in arrays.items()}
        each = dict(zip(put, hosts.fetched(put.values()), strict=True))
        for found in (hosts.fetch(put), each):
            same = {name: found[name].dtype == array.dtype for name, array in arrays.items()}
            same = {n: same[n] and np.array_equal(found[n], arrays[n]) for n in arrays}
            wrong += [f"{name}, devices {order}" for name in arrays if not same[name]]
    return wrong


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
