"""The local critical batch size along a run, beside the noise scale and what was measured.

    python -m experiments.branches --study digits
    python -m experiments.branches --study mnist
    python -m experiments.branches --study text

A perceptron on digits and on MNIST (SGD, linear rule) and a small Transformer on tiny Shakespeare
(Adam, square-root rule) branch along one run. Then the warm-up of batch sizes that follows from it
is trained, beside the constant batch sizes at both of its ends, on as many examples each.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd

import batchscale as bs
from batchscale import records, theory
from batchscale.files import local_path


@dataclasses.dataclass(frozen=True)
class Preset:
    """A run that branches.

    Attributes:
      workload: by name.
      optimizer: by name.
      learning_rate: of the run, about the best one at its batch size.
      batch_size: of the run.
      steps: at which it branches.
      batch_sizes: of the branches.
      examples: of each branch.
      trained: examples of the runs that are compared.
      tolerance: in the unit of the loss.
      noise_examples: of the noise scale; all of them if None.
      validation: examples of the validation set that losses are of; all of them if None.
      measured: the study of `results/analysis/fits.csv` whose critical batch size is drawn.
    """

    workload: str
    optimizer: str
    learning_rate: float
    batch_size: int
    steps: Sequence[int]
    batch_sizes: Sequence[int]
    examples: int
    trained: int
    tolerance: float = 0.01
    noise_examples: int | None = None
    validation: int | None = None
    measured: str = ""


PRESETS = {
    "digits": Preset(
        workload="digits/fc_64",
        optimizer="sgd",
        learning_rate=0.3,
        batch_size=8,
        steps=[0, 10, 30, 100, 300, 1000],
        batch_sizes=bs.powers_of_two(8, 256),
        examples=4096,
        trained=16384,
        measured="digits",
    ),
    "mnist": Preset(
        workload="mnist/fc_128_128_128",
        optimizer="sgd",
        learning_rate=0.12,
        batch_size=16,
        steps=[0, 30, 100, 300, 1000, 3000],
        batch_sizes=bs.powers_of_two(16, 512),
        examples=16384,
        trained=131072,
        noise_examples=1000,
        measured="MNIST",
    ),
    "text": Preset(
        workload="tiny_shakespeare/transformer_tiny",
        optimizer="adam",
        learning_rate=0.003,
        batch_size=1,
        steps=[0, 30, 100, 300, 1000, 3000],
        batch_sizes=bs.powers_of_two(1, 64),
        examples=2048,
        trained=8192,
        noise_examples=200,
        validation=64,
    ),
}


def main() -> None:
    """Branches, trains the warm-up and the constants, and writes tables and the figure."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--study", choices=PRESETS, default="digits")
    parser.add_argument("--copies", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=local_path, default="results/branches")
    given = parser.parse_args()
    made_by, began = records.provenance(), time.monotonic()
    preset = PRESETS[given.study]
    output: Path = given.output / given.study
    output.mkdir(parents=True, exist_ok=True)
    one = study(preset, given.seed)
    run: dict[str, Any] = {"batch_size": preset.batch_size, "trial": 0}
    found = theory.branches(
        one,
        **run,
        steps=preset.steps,
        batch_sizes=preset.batch_sizes,
        examples=preset.examples,
        tolerance=preset.tolerance,
        copies=given.copies,
    )
    print(found.table.to_string(index=False), flush=True)
    noise = theory.noise_scales(one, **run, steps=preset.steps, examples=preset.noise_examples)
    warm_up = found.warm_up()
    ends = sorted({preset.batch_size, warm_up[-1].batch_size})
    ways = {"warm-up": warm_up, **{f"constant, {b}": [theory.Change(0, b)] for b in ends}}
    trained = pd.concat(
        theory.train_in_stages(
            one, changes, **run, examples=preset.trained, copies=given.copies
        ).assign(way=way)
        for way, changes in ways.items()
    )
    compared = last(trained)
    print(compared.to_string(index=False), flush=True)
    for name, table in (
        ("branches", found.losses), ("local", found.table), ("noise_scale", noise),
        ("trained", trained), ("compared", compared),
    ):  # fmt: skip
        table.to_csv(output / f"{name}.csv", index=False, float_format="%.6g")
    with matplotlib.rc_context({"backend": "agg"}):
        ax = bs.plots.noise_scale(noise, fit=_measured(preset), local=found.table)
        bs.plots.save(ax, output / "local", ["png"])
    about = {
        "warm-up": [change._asdict() for change in warm_up],
        "tolerance": preset.tolerance,
        "examples of a branch": preset.examples,
        "seed": given.seed,
        "seconds": round(time.monotonic() - began),
        "made by": made_by,
    }
    (output / "about.json").write_text(json.dumps(about, indent=1) + "\n")


def study(preset: Preset, seed: int) -> bs.Study:
    """The study whose only trial is the run."""
    part = {} if preset.validation is None else {"validation": preset.validation}
    return bs.Study(
        workload=bs.workloads.get(preset.workload),
        optimizer=preset.optimizer,
        space=bs.SearchSpace(learning_rate=preset.learning_rate),
        batch_sizes=[preset.batch_size],
        goal=bs.Goal("validation/loss", 0.0),
        trials=1,
        max_steps=max(*preset.steps, 1),
        evaluate=part,
        seed=seed,
    )


def last(trained: pd.DataFrame) -> pd.DataFrame:
    """Of every way its steps, and the mean of its copies' losses at the end, with its error."""
    rows = []
    for way, part in trained.groupby("way", sort=False):
        end = part[part["examples"] == part["examples"].max()]
        error = end["loss"].std() / np.sqrt(len(end))
        rows.append((way, int(end["steps"].max()), end["loss"].mean(), error))
    return pd.DataFrame(rows, columns=["way", "steps", "loss", "standard_error"])


def _measured(preset: Preset) -> bs.scaling.Fit | None:
    """The fit of the recorded study, to its tuned settings' medians."""
    from experiments import fits

    for name, of, steps in fits.curves():
        if (name, of) == (preset.measured, fits.TUNED):
            return bs.scaling.fit(steps, form="averaged")
    return None


if __name__ == "__main__":
    main()
