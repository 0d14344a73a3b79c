"""What an answer costs: a whole study as it is, against two other ways to the same answer.

    python -m benchmarks.cost --study digits

The *plain protocol* trains every trial to three times the steps to target of its batch size, and
evaluates it in full on the same grid. It runs on the same engine, with the same plan, so that the
steps to target and the best trials have to be the same: the script says whether they are. *Optuna*
is what a user would write: a study a batch size, quasi-random trials one after the other, a jitted
step in a Python loop, with the same budget and grid; it needs the extra `benchmarks`. Its trials
take equally long, so that where there are many of them, `--optuna-trials` of every batch size are
timed, and the time is multiplied.

Every run is a new process, all begin with an empty compilation cache, and they take turns.
`examples` are those trained on; seconds are those that the run waited for training, evaluation and
compilation, and the rest is the host's. Goal by goal, in `batch_sizes`, the share that evaluation
takes is what training and evaluation report for a study of that batch size alone, with programs
that are compiled.
"""

# pyright: reportMissingImports=false
from __future__ import annotations

import argparse
import dataclasses
import json
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import batchscale as bs
from experiments import digits, mnist

STUDIES: dict[str, Callable[[], bs.Study]] = {
    "digits": lambda: digits.study("sgd"),
    "mnist": lambda: mnist.study(largest=1024),
    "mnist_three": lambda: dataclasses.replace(mnist.study(), batch_sizes=[16, 64, 256]),
}
WAYS: dict[str, dict[str, Any]] = {
    "batchscale": {},
    "plain protocol": {"stop": 3.0, "curves": "exact"},
}
FACTOR = 3.0


def _child(code: str, *arguments: str, environment: dict[str, str] | None = None) -> float:
    """Runs code in a new process; its wall time."""
    began = time.monotonic()
    subprocess.run(
        [sys.executable, "-c", code, *arguments], check=True, env=environment or dict(os.environ)
    )
    return time.monotonic() - began


def run(study: str, way: str, cache: str) -> dict[str, Any]:
    """Runs a study one way."""
    with tempfile.TemporaryDirectory() as folder:
        wall = _child(
            "import dataclasses, sys; from benchmarks import cost; "
            "some = dataclasses.replace(cost.STUDIES[sys.argv[1]](), **cost.WAYS[sys.argv[2]]); "
            "some.run(sys.argv[3], progress=False)",
            *(study, way, f"{folder}/study"),
            environment=os.environ | {"JAX_COMPILATION_CACHE_DIR": cache},
        )
        result = bs.load(f"{folder}/study")
        made = json.loads(Path(folder, "study/provenance.json").read_text())["runs"][-1]
    sizes = result.trials.index.get_level_values("batch_size").to_numpy()
    seconds = made.pop("seconds")
    made["command"] = shlex.join(["python", *sys.orig_argv[1:]])
    seconds["host"] = round(2 * seconds["total"] - sum(seconds.values()), 1)
    table = result.steps_to_target()
    return {
        "wall": round(wall, 1),
        "examples": int((sizes * result.trials["steps_trained"].to_numpy()).sum()),
        "seconds": seconds,
        "answer": table[["batch_size", "steps", "trial"]].astype(float).values.tolist(),
        "machine": made,
    }


def batch_sizes(study: str, cache: str) -> list[dict[str, Any]]:
    """How the time of every batch size, alone, is split, with a compilation cache that is full."""
    code = (
        "import dataclasses, json, sys; from benchmarks import cost; "
        "size = int(sys.argv[2]); "
        "some = dataclasses.replace(cost.STUDIES[sys.argv[1]](), batch_sizes=[size]); "
        "some.run(sys.argv[3], progress=False)"
    )
    rows = []
    for size in STUDIES[study]().resolved_batch_sizes():
        with tempfile.TemporaryDirectory() as folder:
            _child(
                code,
                *(study, str(size), folder),
                environment=os.environ | {"JAX_COMPILATION_CACHE_DIR": cache},
            )
            made = json.loads(Path(folder, "provenance.json").read_text())["runs"][-1]["seconds"]
        share = made["evaluation"] / (made["training"] + made["evaluation"])
        rows.append({"batch_size": size, **made, "evaluation_share": round(share, 3)})
        print(rows[-1], flush=True)
    return rows


def optuna_seconds(study: str, batch_size: int, target: int, trials: int) -> float:
    """Seconds of a batch size in Optuna: every trial for three times the target, on our grid."""
    import jax
    import optax
    import optuna

    from batchscale.stopping import StopRule, evaluation_grid

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    began = time.monotonic()
    some = STUDIES[study]()
    workload, distribution = some.workload, some.space.at(batch_size)["learning_rate"]
    assert isinstance(distribution, bs.tuner.LogUniform)
    splits = {name: jax.device_put(split) for name, split in workload.splits().items()}
    data = splits["train"]
    examples = len(jax.tree.leaves(data)[0])

    @jax.jit
    def step(params: Any, indices: Any, learning_rate: Any, data: Any) -> Any:
        batch = workload.prepare(jax.tree.map(lambda x: x[indices], data), None)

        def loss(params: Any) -> Any:
            (total, count), _ = workload.loss(params, {}, batch, jax.random.key(0), {})
            return total / count

        updates = jax.tree.map(lambda g: -learning_rate * g, jax.grad(loss)(params))
        return optax.apply_updates(params, updates)

    @jax.jit
    def evaluate(params: Any, split: Any) -> Any:
        wrong, count = workload.metrics(params, {}, workload.prepare(split, None))["error"]
        return wrong / count

    whole = evaluation_grid(int(FACTOR * target) + 1, some.evaluation_spacing)
    horizon = StopRule.of(FACTOR).horizon(target, whole)
    grid = [at for at in whole if at <= horizon]

    def objective(trial: Any) -> float:
        rate = trial.suggest_float("learning_rate", distribution.low, distribution.high, log=True)
        params, _ = workload.init(jax.random.key(trial.number))
        random = np.random.default_rng(trial.number)
        waiting = random.permutation(examples)
        at, crossing = 0, float("inf")
        for end in grid:
            for _ in range(end - at):
                while len(waiting) < batch_size:
                    waiting = np.concatenate([waiting, random.permutation(examples)])
                params = step(params, waiting[:batch_size].astype(np.int32), rate, data)
                waiting = waiting[batch_size:]
            at = end
            error = float(evaluate(params, splits["validation"]))
            if error < some.goal.value:
                crossing = min(crossing, at)
        return crossing

    optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0)).optimize(
        objective, n_trials=trials
    )
    return time.monotonic() - began


def run_optuna(study: str, answer: list[list[float]], trials: int | None) -> dict[str, Any]:
    """Optuna at every batch size, each in a process of its own."""
    code = (
        "import sys; from benchmarks import cost; "
        "print(cost.optuna_seconds(sys.argv[1], *map(int, sys.argv[2:])))"
    )
    wanted = STUDIES[study]().trials
    timed = min(trials or wanted, wanted)
    seconds = {}
    for size, target, _ in answer:
        walls = {}
        for count in {1, timed}:  # what is not a trial's (start, compilation) is paid once
            found = subprocess.run(
                [sys.executable, "-c", code, study, str(int(size)), str(int(target)), str(count)],
                check=True,
                capture_output=True,
                text=True,
            )
            walls[count] = float(found.stdout.split()[-1])
        each = (walls[timed] - walls[1]) / (timed - 1)
        seconds[int(size)] = round(walls[1] + (wanted - 1) * each, 1)
        print("Optuna", int(size), seconds[int(size)], flush=True)
    return {"trials_timed": timed, "seconds": seconds, "wall": round(sum(seconds.values()), 1)}


def main() -> None:
    """Runs all ways in turns, prints their costs and writes them as JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--study", choices=STUDIES, default="digits")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--optuna-trials", type=int, help="that are timed; 0: without Optuna")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    runs: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(arguments.rounds):
            for way, found in runs.items():
                found.append(run(arguments.study, way, f"{folder}/{turn}{way}"))
                print(way, {name: found[-1][name] for name in ("wall", "examples", "seconds")})
        warm = run(arguments.study, "batchscale", f"{folder}/0batchscale")
        print("batchscale, warm compilation cache", warm["wall"], warm["seconds"])
        split = batch_sizes(arguments.study, f"{folder}/0batchscale")
    answers = [found["answer"] for some in runs.values() for found in some]
    ours, plain = (statistics.median(found["wall"] for found in some) for some in runs.values())
    summary: dict[str, Any] = {
        "study": arguments.study,
        "same_answer": all(answer == answers[0] for answer in answers),
        "share_of_examples": round(
            runs["batchscale"][0]["examples"] / runs["plain protocol"][0]["examples"], 3
        ),
        "median_wall": {"batchscale": ours, "plain protocol": plain},
        "warm_wall": warm["wall"],
        "times_faster_than_plain": round(plain / ours, 2),
        "most_evaluation": max(row["evaluation_share"] for row in split),
    }
    if arguments.optuna_trials != 0:
        optuna = run_optuna(arguments.study, answers[0], arguments.optuna_trials)
        summary |= {
            "optuna": optuna,
            "times_faster_than_optuna": round(optuna["wall"] / ours, 1),
        }
    print(summary)
    output = arguments.output or Path(f"benchmarks/results/cost_{arguments.study}.json")
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(summary | {"batch_sizes": split, "runs": runs}, indent=1) + "\n")


if __name__ == "__main__":
    main()
