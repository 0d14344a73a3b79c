"""Does the library measure what it says? The noisy quadratic model, where the truth is known.

Three questions (Zhang et al. 2019, arXiv:1907.04164, section 3, for the model):

- *Risk*: many seeds of one setting, trained by the engine at every batch size from 1 to 65,536.
  Does their mean risk follow the exact expected risk, within its standard error, at every
  evaluation? Do their first crossings have the distribution of those of an independent simulation
  in plain NumPy?
- *Steps*: how far apart are the crossing of the expected risk, the median first crossing of single
  noisy runs, and the best of N trials?
- *Search*: a study as a user makes it, confirmed under fresh seeds, beside the truth: the least
  median of first crossings that any learning rate has, by the simulation.

    python -m experiments.noisy_quadratic
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import pandas as pd
import scipy.stats

import batchscale as bs
from batchscale import records
from batchscale.files import local_path
from batchscale.plots.common import head
from batchscale.stopping import evaluation_grid
from batchscale.theory import NoisyQuadratic
from experiments.publish import CONFIRMED

DIMENSION, TARGET = 200, 0.05
LOW_NOISE = 128  # batch sizes above it have little noise to be lucky with
SIZES = bs.powers_of_two(1, 2**16)
STABLE = 1.99  # learning rates above 2, over the largest curvature, diverge
MODEL = NoisyQuadratic.power_law(DIMENSION)
GOAL = bs.Goal("validation/risk", TARGET)


def exact(batch_sizes: list[int]) -> pd.DataFrame:
    """The optimal learning rate, and its steps to the target, by the recursion of moments."""
    rows = [MODEL.optimum(TARGET, batch_size=size) for size in batch_sizes]
    return pd.DataFrame(rows)


def risk(optima: pd.DataFrame, folder: Path, *, seeds: int, seed: int) -> pd.DataFrame:
    """One setting a batch size, the exact optimum, under many seeds, against theory and NumPy.

    Returns:
      One row a batch size: `evaluations` compared; `worst`, the largest distance of the mean risk
      from the expected one in standard errors, and `allowed`, what the largest of so many
      independent ones is below in 99 of 100 cases; `crossing_of_expected_risk`; the median first
      crossing of the engine and of NumPy; `p`, of the hypothesis that both come from one
      distribution (Kolmogorov and Smirnov, two samples).
    """
    rows = []
    for batch_size, steps, rate in optima[["batch_size", "steps", "learning_rate"]].itertuples(
        index=False
    ):
        one = bs.Study(
            workload=MODEL.workload(),
            optimizer="sgd",
            space=bs.SearchSpace(learning_rate=float(rate)),
            batch_sizes=[int(batch_size)],
            goal=GOAL,
            trials=seeds,
            max_steps=int(2 * steps),
            stop="budget",
            curves="exact",
            seed=seed,
        )
        result = one.run(folder / str(batch_size), progress=False)
        table = result.measurements.pivot_table("validation/risk", index="trial", columns="step")
        expected = MODEL.risk(table.columns, learning_rate=rate, batch_size=batch_size)
        error = np.abs(table.mean() - expected) / table.sem()
        simulated = MODEL.simulate(
            [int(step) for step in table.columns],
            learning_rate=rate,
            batch_size=batch_size,
            runs=seeds,
            seed=seed + 1,
        )
        grid = np.array([*table.columns, np.inf])
        ours, theirs = (
            grid[np.where((r < TARGET).any(1), (r < TARGET).argmax(1), len(grid) - 1)]
            for r in (table.to_numpy(), simulated)
        )
        rows.append(
            {
                "batch_size": int(batch_size),
                "evaluations": table.shape[1],
                "worst": float(error.max()),
                "allowed": float(scipy.stats.norm.isf(0.01 / table.shape[1] / 2)),
                "crossing_of_expected_risk": steps,
                "median_first_crossing": float(np.median(ours)),
                "median_of_numpy": float(np.median(theirs)),
                "best_of_seeds": float(ours.min()),
                "p": float(scipy.stats.ks_2samp(ours, theirs)[1]),  # pyright: ignore
            }
        )
        print(rows[-1], flush=True)
    return pd.DataFrame(rows)


def study(*, trials: int = 32, seed: int = 0) -> bs.Study:
    """A study as a user makes it, whose range goes beyond the largest stable learning rate.

    >>> study().resolved_batch_sizes()[-1]
    65536
    """
    return bs.Study(
        workload=MODEL.workload(),
        optimizer="sgd",
        space=bs.SearchSpace(learning_rate=bs.LogUniform(1e-3, 8.0)),
        batch_sizes=SIZES,
        goal=GOAL,
        trials=trials,
        max_steps=100_000,
        stop=8.0,
        curves="exact",
        seed=seed,
    )


def least_medians(optima: pd.DataFrame, *, runs: int, seed: int) -> pd.DataFrame:
    """What a perfect search would find, by the plain simulation: no engine, no tuner.

    Learning rates about the exact optimum are each simulated `runs` times; the one with the least
    median of first crossings is simulated as often again, and that median is reported.

    Returns:
      One row a batch size: `batch_size`, `least_median` in steps, and its `least_median_rate`.
    """
    rows = []
    for batch_size, steps, rate in optima[["batch_size", "steps", "learning_rate"]].to_numpy():
        grid = evaluation_grid(int(1.7 * steps), 0.05)

        def median(rate: float, seed: int, grid=grid, batch_size=batch_size) -> float:
            found = MODEL.simulate(
                grid, learning_rate=rate, batch_size=batch_size, runs=runs, seed=seed
            )
            past = found < TARGET
            at = np.where(past.any(1), past.argmax(1), len(grid))
            return float(np.median(np.array([*grid, np.inf])[at]))

        rates = rate * np.geomspace(0.6, 2.5, 10)
        rates = rates[rates < STABLE]
        best = min(rates, key=lambda rate: median(rate, seed))
        rows.append((int(batch_size), median(best, seed + 1), best))
        print(rows[-1], flush=True)
    return pd.DataFrame(rows, columns=["batch_size", "least_median", "least_median_rate"])


def main() -> None:
    """Asks all three and writes tables, and the figure of the last."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=256, help="of one setting, for the risk")
    parser.add_argument("--trials", type=int, default=32, help="of the search")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--runs", type=local_path, default="runs/noisy_quadratic")
    parser.add_argument("--output", type=local_path, default="results/noisy_quadratic")
    arguments = parser.parse_args()
    began = time.monotonic()
    arguments.output.mkdir(parents=True, exist_ok=True)
    made_by = records.provenance()
    optima = exact(SIZES)
    checked = risk(optima, arguments.runs / "risk", seeds=arguments.seeds, seed=arguments.seed)
    checked.round(4).to_csv(arguments.output / "risk.csv", index=False)
    truth = least_medians(optima, runs=128, seed=arguments.seed + 1)
    searched = study(trials=arguments.trials, seed=arguments.seed)
    result = searched.run(arguments.runs / "search")
    confirmation = searched.confirm(arguments.runs / "search", **CONFIRMED)
    names = {"steps": "expected_risk_steps", "learning_rate": "expected_risk_rate"}
    table = confirmation.table.merge(truth, on="batch_size")
    table = table.merge(optima.rename(columns=names), on="batch_size")
    table.to_csv(arguments.output / "search.csv", index=False)
    curves = {
        "least median": truth.rename(columns={"least_median": "steps"}),
        "best of N": result.steps_to_target(),
        "tuned setting's median": confirmation.steps_to_target(),
        "expected risk": optima,
    }
    moved = bs.scaling.transitions(
        pd.concat([t.assign(variant=name) for name, t in curves.items()]),
        reference="least median",
        luck={"best of N": bs.scaling.LUCK},
    )
    moved.to_csv(arguments.output / "transitions.csv", index=False, float_format="%.6g")
    print(moved.to_string(index=False))
    to_truth = table[["best_of_n", "steps"]].div(table["least_median"], axis=0).map(np.log)
    where = np.where(table["batch_size"] <= LOW_NOISE, f"up to {LOW_NOISE}", "above")
    ratios = to_truth.groupby(where).mean().map(np.exp).round(4)
    print(f"over the least median, geometric means\n{ratios.to_string()}")
    fits = {
        "expected risk": bs.scaling.fit(optima[["batch_size", "steps"]]),
        "least median": bs.scaling.fit(truth.rename(columns={"least_median": "steps"})),
        "tuned setting's median": confirmation.scaling(),
        "best of N": result.scaling(),
    }
    about = {
        "fits": {
            name: {"b_crit": fit.b_crit, "interval": list(fit.b_crit_interval), "s_min": fit.s_min,
                   "refused": fit.refused}
            for name, fit in fits.items()
        },
        "over the least median": ratios.to_dict("index"),
        "seconds": round(time.monotonic() - began),
        "made by": made_by,
    }  # fmt: skip
    (arguments.output / "about.json").write_text(json.dumps(about, indent=1) + "\n")
    ax = bs.plots.confirmation(result)
    ax.plot(truth["batch_size"], truth["least_median"], color="black", lw=1, label="truth, median")
    handles, labels = ax.get_legend_handles_labels()
    # Of bands of the same name the last one has the edges.
    head(ax, ax.get_title(), [*dict(zip(labels, handles, strict=True)).values()])
    bs.plots.save(ax, arguments.output / "search", ["png"])


if __name__ == "__main__":
    main()
