"""One design across batch sizes against search and confirmation, on real training.

    python -m validation.against_search --study digits --repetitions 5
    python -m validation.against_search --study digits_nesterov --repetitions 5
    python -m validation.against_search --study mnist --repetitions 5
    python -m validation.against_search --study digits_nesterov --reference pooled

Once, under a seed of its own, a reference: a search of 64 trials, six settings of which are
compared under 7 seeds each and the best run under 101 others. Then, under other seeds, what a user
would do: `study.run` with 32 trials and `study.confirm`, and `study.measure`. Written are, of each,
seconds of wall time and of all processors (compilation and everything else included), examples and
trials, and how far steps, best rates and B_crit are from the reference's. An interrupted run goes
on.

With two hyperparameters no search of affordable size has its best setting near the optimum at every
batch size, and few seeds choose the lucky ones. `--reference pooled` compares, at every batch size,
what each of five measurements quotes and the fastest of a search of 256 trials, under 101 seeds
each, and reports the best under 201 others.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

import batchscale as bs
from batchscale import records
from batchscale.confirmation import median_ranks
from batchscale.design.trials import middle
from batchscale.files import local_path
from batchscale.stopping import evaluation_grid
from batchscale.tuner.medians import steps_of
from experiments import analysis

# Of MNIST an easier goal and fewer batch sizes: its reference alone would take an hour and a half.
PRESETS = {
    **analysis.PRESETS,
    "mnist": dataclasses.replace(
        analysis.PRESETS["mnist"],
        goal=bs.Goal("validation/error", 0.05),
        batch_sizes=bs.powers_of_two(8, 1024),
    ),
}
REFERENCE_SEED = 1000
TRIALS, SEEDS = 64, 101
POOLED = "pooled"
_POOL_SEEDS = range(100, 105)  # of the measurements whose settings are compared
_POOL_TRIALS, _POOL_LEADING, _REPORTED_SEEDS = 256, 8, 201
_COSTS = "seconds", "cpu_seconds", "examples", "trials"


def study(name: str, *, trials: int, seed: int) -> bs.Study:
    """A study as a user makes it.

    >>> study("digits", trials=32, seed=0).stop
    3.0
    """
    preset = PRESETS[name]
    return bs.Study(
        workload=preset.workload(),
        optimizer=preset.optimizer,
        space=preset.space,
        batch_sizes=preset.batch_sizes,
        goal=preset.goal,
        trials=trials,
        max_steps=preset.max_steps,
        stop=3.0,
        seed=seed,
    )


def _cost(trials: pd.DataFrame) -> dict[str, float]:
    sizes = trials.index.get_level_values("batch_size").to_numpy(float)
    steps = trials["steps_trained"].to_numpy(float)
    return {"trials": len(trials), "examples": float(steps @ sizes)}


def _confirmed(name: str, seed: int, *, trials: int, seeds: int, folder: Path) -> dict[str, Any]:
    """Search and confirmation: medians, rates, B_crit and cost."""
    one = study(name, trials=trials, seed=seed)
    wall, cpu = time.monotonic(), time.process_time()
    result = one.run(folder, progress=False)
    found = one.confirm(folder, seeds=seeds, progress=False)
    wall, cpu = time.monotonic() - wall, time.process_time() - cpu
    with records.StudyFolder.open(folder / "confirm", write=False) as stored:
        runs = stored.tables()[1]
    table = found.table
    rates = bs.tuner.effective_learning_rate(table)
    fit = found.scaling()
    both = [_cost(result.trials), _cost(runs)]
    return {
        "seed": seed,
        "steps": table["steps"].tolist(),
        "low": table["low"].tolist(),
        "high": table["high"].tolist(),
        "rate": rates.tolist(),
        **_b_crit(fit),
        "seconds": round(wall, 2),
        "cpu_seconds": round(cpu, 2),
        **{key: both[0][key] + both[1][key] for key in both[0]},
    }


def _measured(name: str, seed: int, *, precision: float, folder: Path) -> dict[str, Any]:
    """The same of `study.measure`."""
    one = study(name, trials=32, seed=seed)
    wall, cpu = time.monotonic(), time.process_time()
    found = one.measure(folder, precision, progress=False)
    wall, cpu = time.monotonic() - wall, time.process_time() - cpu
    table = found.table
    return {
        "seed": seed,
        "steps": table["steps"].tolist(),
        "low": table["low"].tolist(),
        "high": table["high"].tolist(),
        "rate": table["effective_learning_rate"].tolist(),
        **_b_crit(found.scaling()),
        "seconds": round(wall, 2),
        "cpu_seconds": round(cpu, 2),
        **_cost(found.trials),
        "ended": found.ended,
        "doubted": int((table["by"] == "doubted").sum()),
        "searched": int((table["by"] == "search").sum()),
        "disagree": int((~found.calibration["agrees"]).sum()),
    }


def runs_of_setting(
    name: str, batch_size: int, setting: dict[str, float], *, seeds: int, seed: int
) -> pd.DataFrame:
    """A setting under some seeds: `steps`, inf where the goal was missed, and those before."""
    one = dataclasses.replace(
        study(name, trials=seeds, seed=seed),
        space=bs.SearchSpace(**setting),
        batch_sizes=[batch_size],
        max_infeasible=seeds,
    )
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of settings that miss
        result = one.run(folder, progress=False)
    found = bs.metrics.first_crossings(result.measurements, one.goal)
    before = found["previous_evaluation"].reindex(result.trials.index).fillna(0.0)
    return pd.DataFrame({"steps": steps_of(result.trials), "previous_evaluation": before})


def between(runs: pd.DataFrame) -> float:
    """The median of steps that lie evenly, in logs, between two evaluations.

    >>> between(pd.DataFrame({"steps": [4.0, 4.0, 4.0], "previous_evaluation": [1.0, 1.0, 1.0]}))
    2.0
    """
    high = runs["steps"].median()
    here = runs.loc[runs["steps"] == high, "previous_evaluation"]
    if not np.isfinite(high) or here.empty:
        return float(high)
    below = float((runs["steps"] < high).mean())
    share = (0.5 - below) / (len(here) / len(runs))
    low = float(here.median())
    return float(low * (high / low) ** share)


def _pooled(name: str, folder: Path) -> dict[str, Any]:
    """The best of many settings at every batch size, chosen under many seeds, quoted under others.

    Of each batch size, chosen by `between`, so that settings within one evaluation are compared.
    """
    names = list(study(name, trials=1, seed=0).space.names)
    sizes = study(name, trials=1, seed=0).resolved_batch_sizes()
    pool: dict[int, list[dict[str, float]]] = {size: [] for size in sizes}
    for seed in _POOL_SEEDS:
        table = study(name, trials=32, seed=seed).measure(folder / str(seed), progress=False).table
        for size, row in zip(table["batch_size"], table[names].to_numpy().tolist(), strict=True):
            pool[int(size)].append(dict(zip(names, row, strict=True)))
    search = study(name, trials=_POOL_TRIALS, seed=REFERENCE_SEED + _POOL_TRIALS - TRIALS)
    trials = search.run(folder / "search", progress=False).trials
    for size in sizes:
        here = trials.loc[trials.index.get_level_values("batch_size") == size]
        fastest = here.sort_values("first_crossing").head(_POOL_LEADING)
        pool[size] += [
            dict(zip(names, row, strict=True)) for row in fastest[names].to_numpy().tolist()
        ]
    rows, compared = [], {}
    for size in sizes:
        found = [
            between(runs_of_setting(name, size, one, seeds=SEEDS, seed=REFERENCE_SEED))
            for one in pool[size]
        ]
        best = pool[size][int(np.argmin(found))]
        compared[size] = [round(value, 2) if np.isfinite(value) else None for value in found]
        runs = runs_of_setting(name, size, best, seeds=_REPORTED_SEEDS, seed=REFERENCE_SEED + 1)
        ordered = runs.sort_values(["steps", "previous_evaluation"])
        first, last = median_ranks(len(runs), 0.9)
        rows.append(
            {
                "batch_size": size,
                **best,
                "steps": float(ordered["steps"].median()),
                "previous_evaluation": float(
                    ordered["previous_evaluation"].iloc[len(ordered) // 2]
                ),
                "low": float(ordered["previous_evaluation"].iloc[first]),
                "high": float(ordered["steps"].iloc[last]),
                "between": between(runs),
            }
        )
        print(rows[-1], flush=True)
    table = pd.DataFrame(rows)
    sizes_, low, high = table[["batch_size", "low", "high"]].to_numpy(float).T
    deviation = bs.scaling.deviations(np.log(sizes_), low, high, 0.9)
    fit = bs.scaling.fit(table.assign(log_deviation=deviation, trial=0))
    return {
        **{key: table[key].tolist() for key in ("steps", "low", "high", "between")},
        "rate": bs.tuner.effective_learning_rate(table).tolist(),
        **{key: table[key].tolist() for key in names},
        "compared": compared,
        **_b_crit(fit),
    }


def _b_crit(fit: bs.scaling.Fit) -> dict[str, Any]:
    low, high = fit.b_crit_interval
    return {
        "b_crit": None if fit.refused else round(fit.b_crit, 2),
        "b_crit_interval": [round(low, 2), round(high, 2) if np.isfinite(high) else None],
    }


def errors(
    one: dict[str, Any], reference: dict[str, Any], *, between: bool, most: int
) -> dict[str, float]:
    """How far a study is from the reference: in log steps, log rates and log B_crit.

    Args:
      one: the study.
      reference: likewise.
      between: whether the study's steps are not those of evaluations but in their middle, as a
        measurement's: the reference's then are, too.
      most: the steps of the longest trial.
    """
    truth = np.array(reference["steps"])
    if between and "between" in reference:
        truth = np.array(reference["between"])
    elif between:
        grid = np.array([0, *evaluation_grid(most, 0.05)], float)
        before = grid[np.searchsorted(grid, truth) - 1]
        truth = np.exp([middle(at, previous) for at, previous in zip(truth, before, strict=True)])
    steps = np.log(np.array(one["steps"]) / truth)
    rate = np.log(np.array(one["rate"]) / np.array(reference["rate"]))
    held = (np.array(one["low"]) <= truth) & (truth <= np.array(one["high"]))
    own, true = one["b_crit"], reference["b_crit"]
    return {
        "steps: rms": round(float(np.sqrt(np.mean(steps**2))), 3),
        "steps: mean": round(float(np.mean(steps)), 3),
        "steps: held": round(float(np.mean(held)), 2),
        "rate: rms": round(float(np.sqrt(np.mean(rate**2))), 2),
        "b_crit": round(float(np.log(own / true)), 3) if own and true else np.nan,
    }


def main() -> None:
    """Runs what is missing, and writes it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--study", choices=sorted(PRESETS), default="digits")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--precision", type=float, default=0.15)
    parser.add_argument("--only", choices=["measure", "search"], nargs="*")
    parser.add_argument(
        "--reference",
        type=lambda text: text if text == POOLED else int(text),
        default=TRIALS,
        help="trials of the reference, 64 or more; or `pooled`",
    )
    parser.add_argument("--output", type=local_path, default="validation/results")
    given = parser.parse_args()
    path: Path = given.output / f"against_search_{given.study}.json"
    stored = json.loads(path.read_text()) if path.exists() else {}
    stored.setdefault("measure", [])
    stored.setdefault("search", [])

    def write() -> None:
        path.write_text(json.dumps(stored, indent=1) + "\n")

    with tempfile.TemporaryDirectory() as runs:
        for seed in range(given.repetitions):
            for kind in given.only or ("measure", "search"):
                if any(one["seed"] == seed for one in stored[kind]):
                    continue
                folder = Path(runs) / f"{kind}-{seed}"
                if kind == "measure":
                    one = _measured(given.study, seed, precision=given.precision, folder=folder)
                else:
                    one = _confirmed(given.study, seed, trials=32, seeds=21, folder=folder)
                stored[kind].append(one)
                write()
                print(kind, json.dumps(one), flush=True)
        reference = "reference" if given.reference == TRIALS else f"reference {given.reference}"
        if reference not in stored and not given.only:
            stored[reference] = (
                _pooled(given.study, Path(runs))
                if given.reference == POOLED
                else _confirmed(
                    given.study,
                    # Another search, not more of the same.
                    REFERENCE_SEED + given.reference - TRIALS,
                    trials=given.reference,
                    seeds=SEEDS,
                    folder=Path(runs) / "reference",
                )
            )
            stored["made_by"] = records.provenance()
            write()
    if reference in stored:
        print(reference, stored[reference]["b_crit"], stored[reference]["b_crit_interval"])
        for kind in ("measure", "search"):
            rows = []
            for one in stored[kind]:
                found = errors(
                    one,
                    stored[reference],
                    between=kind == "measure",
                    most=int(PRESETS[given.study].max_steps),
                )
                print(kind, one["seed"], found)
                rows.append({**found, **{key: one[key] for key in _COSTS}})
            table = pd.DataFrame(rows).astype(float)  # seconds are null where they say nothing
            squares = (table[["steps: rms", "rate: rms", "b_crit"]] ** 2).mean() ** 0.5
            print(kind, "means", table.mean().round(3).to_dict())
            print(kind, "root mean squares", squares.round(3).to_dict())


if __name__ == "__main__":
    main()
