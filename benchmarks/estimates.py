"""What calls of studies were said to cost, and what they took, part by part.

    python -m benchmarks.estimates                     # rows that are not in the table yet
    python -m benchmarks.estimates --only digits_sgd_confirm

Every row is a process of its own, with an empty compilation cache of its own. What has to be known
before the call is made first (a search, before its confirmation; some batch sizes, before the
others), then the call is estimated, and then it is made. The estimate is of what is known at that
moment: where trials use their budgets, or where the batch sizes on disk say what is likely. Seconds
that were taken are those that the run has noted in the folder's provenance. `load` is the
machine's average load of a minute, before the estimate and after the call; `cpu` are the seconds of
the processor that the call took in all its threads, and `cpu_ratio` is their ratio to the seconds
that were said, at as many seconds of the processor in a second as the estimate itself had: what
others do on the machine plays no part in it.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

import batchscale as bs
from batchscale import records
from batchscale.engine import devices
from batchscale.files import replacing
from batchscale.theory import NoisyQuadratic

PARTS = ("training", "evaluation", "compilation", "host")
Call = Callable[[bs.Study, str], Any]


class Row(NamedTuple):
    """A call that is estimated and made.

    Attributes:
      study: that it is of.
      known: what the estimate is of, in words.
      before: what is made first, so that something is known; None for nothing.
      estimate: how the call is estimated, besides its study and folder.
      call: what is made then.
    """

    study: Callable[[], bs.Study]
    known: str
    before: Call | None
    estimate: dict[str, Any]
    call: Call


def _run(study: bs.Study, folder: str) -> None:
    study.run(folder, progress=False)


def _ends(study: bs.Study, folder: str) -> None:
    """The smallest and the largest batch size alone."""
    sizes = study.resolved_batch_sizes()
    _run(dataclasses.replace(study, batch_sizes=[sizes[0], sizes[-1]]), folder)


def _others(study: bs.Study, folder: str) -> None:
    study.extend(folder, progress=False)


def _confirm(study: bs.Study, folder: str) -> None:
    study.confirm(folder, progress=False)


def _refine(study: bs.Study, folder: str) -> None:
    study.refine(folder, progress=False)


def _budgets(study: Callable[[], bs.Study]) -> Row:
    return Row(study, "trials use their budgets", None, {}, _run)


def _rest(study: Callable[[], bs.Study]) -> Row:
    return Row(study, "two batch sizes are done", _ends, {"steps": "likely"}, _others)


def _after(study: Callable[[], bs.Study], call: Call, name: str) -> Row:
    return Row(study, "the search is done", _run, {"steps": "likely", "call": name}, call)


def digits(optimizer: str, **changes: Any) -> bs.Study:
    """A perceptron on digits."""
    rates = (1e-3, 0.3) if optimizer.startswith("adam") else (1e-2, 3)
    others = {"momentum": {"momentum": 0.9}, "nesterov": {"momentum": 0.9}}.get(optimizer, {})
    if optimizer == "adamw":
        others = {"weight_decay": 0.01}
    fields: dict[str, Any] = {
        "workload": bs.workloads.get("digits/fc_64"),
        "optimizer": optimizer,
        "space": bs.SearchSpace(learning_rate=bs.LogUniform(*rates), **others),
        "batch_sizes": bs.powers_of_two(8, 256),
        "goal": bs.Goal("validation/error", 0.05),
        "trials": 32,
        "max_steps": 5_000,
        "stop": 3.0,
    }
    return bs.Study(**fields | changes)


def of_budgets(workload: str, optimizer: str, goal: bs.Goal, **changes: Any) -> bs.Study:
    """A study whose trials all use their budgets."""
    rates = bs.LogUniform(1e-4, 1e-2) if optimizer == "adam" else bs.LogUniform(1e-3, 0.1)
    others = {"momentum": 0.9} if optimizer == "momentum" else {}
    fields: dict[str, Any] = {
        "workload": bs.workloads.get(workload),
        "optimizer": optimizer,
        "space": bs.SearchSpace(learning_rate=rates, **others),
        "goal": goal,
        "stop": "budget",
        "evaluate": bs.Evaluate(splits=[]),
    }
    return bs.Study(**fields | changes)


def noisy_quadratic() -> bs.Study:
    """The noisy quadratic of 200 dimensions."""
    return bs.Study(
        workload=NoisyQuadratic.power_law(200).workload(),
        optimizer="sgd",
        space=bs.SearchSpace(learning_rate=bs.LogUniform(1e-3, 1.9)),
        batch_sizes=bs.powers_of_two(4, 1024),
        goal=bs.Goal("validation/risk", 0.05),
        trials=32,
        max_steps=20_000,
        stop=3.0,
    )


def regression() -> bs.Study:
    """A network that learns a function of ten numbers, by its squared error."""
    from flax import linen as nn

    x = np.random.default_rng(0).normal(size=(3000, 10)).astype(np.float32)
    y = np.sin(x[:, :1]) + x[:, 1:2] * x[:, 2:3]
    workload = bs.Workload.from_model(
        nn.Sequential([nn.Dense(64), nn.relu, nn.Dense(1)]),
        {"train": (x[:2000], y[:2000]), "validation": (x[2000:], y[2000:])},
        loss="squared_error",
    )
    return bs.Study(
        workload=workload,
        optimizer="adam",
        space=bs.SearchSpace(learning_rate=bs.LogUniform(1e-4, 0.1)),
        batch_sizes=bs.powers_of_two(8, 256),
        goal=bs.Goal("validation/loss", 0.5),
        trials=16,
        max_steps=5_000,
        stop=3.0,
    )


def mnist() -> bs.Study:
    """A perceptron on MNIST, whose evaluations end early."""
    return bs.Study(
        workload=bs.workloads.get("mnist/fc_128_128_128"),
        optimizer="sgd",
        space=bs.SearchSpace(learning_rate=bs.LogUniform(1e-2, 1)),
        batch_sizes=[32, 64, 128],
        goal=bs.Goal("validation/error", 0.08),
        trials=8,
        max_steps=20_000,
    )


def text(model: str) -> bs.Study:
    """A small language model."""
    return of_budgets(
        f"tiny_shakespeare/{model}", "adam", bs.Goal("validation/loss", 2.0),
        batch_sizes=[4], trials=2, max_steps=20, evaluation_spacing=0.5,
        evaluate={"validation": 64, "train": None},
    )  # fmt: skip


ROWS = {
    "digits_sgd_budgets": _budgets(
        lambda: digits("sgd", stop="budget", max_steps=lambda size: 16_000 // size)
    ),
    "digits_adam_budgets": _budgets(
        lambda: digits("adam", stop="budget", max_steps=lambda size: 16_000 // size)
    ),
    "digits_sgd_others": _rest(lambda: digits("sgd")),
    "digits_momentum_others": _rest(lambda: digits("momentum")),
    "digits_nesterov_others": _rest(lambda: digits("nesterov")),
    "digits_adamw_others": _rest(lambda: digits("adamw")),
    "digits_sgd_confirm": _after(lambda: digits("sgd"), _confirm, "confirm"),
    "digits_sgd_refine": _after(lambda: digits("sgd"), _refine, "refine"),
    "digits_cnn_budgets": _budgets(
        lambda: of_budgets(
            "digits/simple_cnn_base",
            "momentum",
            bs.Goal("validation/error", 0.05),
            batch_sizes=[8, 32],
            trials=4,
            max_steps=12,
            evaluation_spacing=0.5,
        )
    ),
    "text_transformer_budgets": _budgets(lambda: text("transformer_tiny")),
    "text_lstm_budgets": _budgets(lambda: text("lstm_tiny")),
    "noisy_quadratic_others": _rest(noisy_quadratic),
    "regression_others": _rest(regression),
    "regression_confirm": _after(regression, _confirm, "confirm"),
    "mnist_others": _rest(mnist),
}


def made(name: str) -> dict[str, Any]:
    """A row, in this process."""
    row = ROWS[name]
    study = row.study()
    with tempfile.TemporaryDirectory() as folder:
        if row.before is not None:
            row.before(study, folder)
        known = folder if row.before is not None else None
        load = os.getloadavg()[0]
        began, cpu = time.monotonic(), time.process_time()
        table = study.estimate_seconds(known, **row.estimate)
        estimating, share = time.monotonic() - began, time.process_time() - cpu
        share /= estimating
        cpu = time.process_time()
        row.call(study, folder)
        cpu = time.process_time() - cpu
        runs = json.loads(Path(folder, "provenance.json").read_text())["runs"]
        taken = {name: float(seconds) for name, seconds in runs[-1]["seconds"].items()}
    said = table.sum()
    predicted = {
        "training": said["training_seconds"],
        "evaluation": said["goal_seconds"] + said["other_seconds"],
        "compilation": said["compilation_seconds"],
        "host": said["host_seconds"],
    }
    total = taken["total"]
    taken["host"] = total - sum(taken[part] for part in PARTS[:-1])
    found: dict[str, Any] = {"row": name, "known": row.known}
    found["predicted"] = round(float(said["seconds"]), 1)
    found["taken"] = round(total, 1)
    found["ratio"] = round(total / float(said["seconds"]), 2)
    for part in PARTS:
        found[f"predicted_{part}"] = round(float(predicted[part]), 1)
        found[f"taken_{part}"] = round(taken[part], 1)
    return found | {
        "estimating": round(estimating, 1),
        "cpu": round(cpu, 1),
        "cpu_ratio": round(cpu / (share * float(said["seconds"])), 2),
        "load_before": round(load, 1),
        "load_after": round(os.getloadavg()[0], 1),
    }


def apart(name: str) -> dict[str, Any]:
    """The same in a process of its own, with a compilation cache of its own."""
    with tempfile.TemporaryDirectory() as cache:
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.estimates", "--here", name],
            check=True,
            stdout=subprocess.PIPE,
            env={**os.environ, "BATCHSCALE_CACHE": cache},
        )
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Makes the rows that are not in the table yet, and writes it after each."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", choices=ROWS, action="append", help="made again; may be repeated")
    parser.add_argument("--here", choices=ROWS, help="one row, in this process, printed")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/estimates.csv"))
    given = parser.parse_args()
    if given.here is not None:
        print(json.dumps(made(given.here)))
        return
    devices.ask_for_cores()  # as the rows do, for what is said of the machine
    table = pd.read_csv(given.output).set_index("row") if given.output.exists() else pd.DataFrame()
    for name in given.only or [name for name in ROWS if name not in table.index]:
        row = apart(name) | {
            "revision": str((records.provenance()["git"] or {}).get("revision"))[:7]
        }
        print(row, flush=True)
        others = table.drop(index=name, errors="ignore")
        table = pd.concat([others, pd.DataFrame([row]).set_index("row")])
        table = table.loc[[name for name in ROWS if name in table.index]]
        with replacing(given.output) as file:
            file.write(table.to_csv().encode())
        with replacing(given.output.with_suffix(".json")) as file:
            about = records.provenance() | {"command": "python -m benchmarks.estimates"}
            file.write(json.dumps({"machine": about}, indent=1).encode() + b"\n")
    ratios = table["ratio"]
    print(f"within a factor of 1.5: {ratios.between(1 / 1.5, 1.5).sum()} of {len(ratios)}")


if __name__ == "__main__":
    main()
