"""Everything a sceptical referee would ask of a study, on digits, on MNIST, and on a known model.

    python -m experiments.analysis --study digits
    python -m experiments.analysis --study mnist

Trains a study past its first crossings with whole curves, confirms the tuned settings under fresh
seeds, and writes every analysis of the library as a table, with its figures: best of N
and tuned settings, tuning curves, other definitions, learning-rate rules, time against cost,
sensitivity, the noise scale along a run, sharpness, and the audit.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import warnings
from pathlib import Path

import pandas as pd

import batchscale as bs
from batchscale import records, theory


@dataclasses.dataclass(frozen=True)
class Preset:
    """A study, and at which points theory is asked.

    Attributes:
      workload: from the registry.
      goal: validation error.
      space: of SGD.
      batch_sizes: measured.
      trials: a batch size.
      max_steps: the budget.
      noise_at: the batch size whose winner is followed.
      matched_loss: the training loss at which batch sizes are compared.
      budgets: in steps and in epochs, under which the share of the space that works is compared.
      stop: how many times the first crossing trials are trained.
      examples: of noise scale and sharpness; all if None.
      hessian: whether B_noise is computed too.
    """

    workload: str
    goal: float
    space: bs.SearchSpace
    batch_sizes: list
    trials: int
    max_steps: int
    noise_at: int
    matched_loss: float
    budgets: tuple[int, int]
    stop: float = 3.0
    examples: int | None = None
    hessian: bool = False


PRESETS = {
    "digits": Preset(
        workload="digits/fc_64",
        goal=0.05,
        space=bs.SearchSpace(learning_rate=bs.LogUniform(1e-2, 10)),
        batch_sizes=[*bs.powers_of_two(1, 1024), "full"],
        trials=48,
        max_steps=20_000,
        noise_at=16,
        matched_loss=0.1,
        budgets=(400, 7),
        stop=8.0,
        hessian=True,
    ),
    "mnist": Preset(
        workload="mnist/fc_128_128_128",
        goal=0.03,
        space=bs.SearchSpace(learning_rate=bs.LogUniform(1e-2, 3)),
        batch_sizes=bs.powers_of_two(8, 2048),
        trials=24,
        max_steps=50_000,
        noise_at=64,
        matched_loss=0.05,
        budgets=(1300, 4),
        examples=2000,
    ),
}


def study(name: str, *, seed: int = 0) -> bs.Study:
    """The study of a preset.

    >>> study("digits").stop
    8.0
    """
    preset = PRESETS[name]
    return bs.Study(
        workload=bs.workloads.get(preset.workload),
        optimizer="sgd",
        space=preset.space,
        batch_sizes=preset.batch_sizes,
        goal=bs.Goal("validation/error", preset.goal),
        trials=preset.trials,
        max_steps=preset.max_steps,
        stop=preset.stop,
        curves="exact",
        seed=seed,
    )


def main() -> None:
    """Runs the study and all analyses."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--study", choices=PRESETS, default="digits")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--runs", type=Path, default=Path("runs/analysis"))
    parser.add_argument("--output", type=Path, default=Path("results/analysis"))
    arguments = parser.parse_args()
    preset = PRESETS[arguments.study]
    folder, output = arguments.runs / arguments.study, arguments.output / arguments.study
    output.mkdir(parents=True, exist_ok=True)
    some = study(arguments.study, seed=arguments.seed)
    result = some.run(folder)
    found = some.confirm(folder, settings=5, selection_seeds=7, seeds=21)
    sessions = json.loads((folder / "provenance.json").read_text())["runs"]

    def write(table: pd.DataFrame, name: str) -> None:
        table.to_csv(output / f"{name}.csv", index=False, float_format="%.6g")
        print(f"\n{name}\n{table.to_string(index=False)}", flush=True)

    best, tuned = result.steps_to_target(), found.steps_to_target()
    write(found.table, "confirmation")
    curves = [
        best.assign(variant="best of N", why=""),
        tuned.assign(variant="tuned setting, median of fresh seeds", why=""),
    ]
    write(bs.scaling.transitions(pd.concat(curves)), "best_and_tuned")
    try:
        write(result.tuning_curve(), "tuning_curve")
        tuning = bs.plots.tuning_curve(result)
    except ValueError as error:  # trials were cut too early for it
        tuning = None
        (output / "tuning_curve.txt").write_text(f"{error}\n")
    variants = result.variants()
    write(variants, "variants")
    write(bs.scaling.transitions(variants), "transitions")
    rates = result.learning_rates()
    write(rates, "learning_rates")
    rules = bs.scaling.rules(rates)
    write(rules.table, "rules")
    write(result.frontier(), "frontier")
    times = some.seconds_per_step()
    write(result.frontier(seconds_per_step=times), "frontier_seconds")
    steps_budget, epochs_budget = preset.budgets
    shares = {
        "sensitivity": {},
        "sensitivity_steps": {"max_steps": steps_budget},
        "sensitivity_epochs": {"max_epochs": epochs_budget},
    }
    for name, budget in shares.items():
        write(result.sensitivity(**budget), name)
    words = [str(found.recommend()), str(found.recommend(seconds_per_step=times))]
    low, high = rules.exponent_interval
    words.append(
        f"The best learning rate grows as the batch size to the power {rules.exponent:.2f} "
        f"({low:.2f} to {high:.2f}) up to {rules.exponent_until:.3g}."
    )
    audit = result.audit()
    write(audit.table(), "audit")
    fits = {
        f"{name}, {form}": bs.scaling.fit(table, form=form)
        for name, table in (("best of N", best), ("tuned", tuned))
        for form in ("hyperbolic", "generalised")
    }
    (output / "recommendation.txt").write_text("\n\n".join(words) + "\n")
    print("\n".join(words), *fits.items(), sep="\n")

    winner = int(tuned.set_index("batch_size")["trial"][preset.noise_at])
    steps = int(best.set_index("batch_size")["steps"][preset.noise_at])
    marks = sorted({0, *(max(1, round(3 * steps / 2**k)) for k in range(8))})
    noise = theory.noise_scales(
        some,
        batch_size=preset.noise_at,
        trial=winner,
        steps=marks,
        folder=folder,
        examples=preset.examples,
        with_hessian=preset.hessian,
    )
    write(noise, "noise_scale")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        sharp = theory.generalisation(
            some, result, train_loss=preset.matched_loss, trials=3, examples=preset.examples
        )
    write(sharp, "sharpness")
    columns = ["sharpness", "gap", "error_gap"]
    medians = sharp.groupby("batch_size")[columns].median().reset_index()
    write(medians, "sharpness_medians")

    plots = {
        "confirmation": bs.plots.confirmation(result),
        **({"tuning_curve": tuning} if tuning is not None else {}),
        "variants": bs.plots.variants(result),
        "learning_rates": bs.plots.learning_rates(result),
        "frontier": bs.plots.frontier(result),
        "frontier_seconds": bs.plots.frontier(result, seconds_per_step=times),
        **{name: bs.plots.sensitivity(result, **budget) for name, budget in shares.items()},
        "noise_scale": bs.plots.noise_scale(noise, fit=found.scaling()),
        "sharpness": bs.plots.sharpness(sharp),
    }
    for name, figure in plots.items():
        bs.plots.save(figure, output / name)
    about = {
        "seed": arguments.seed,
        # Of all sessions, if it was interrupted: none measures again what another has measured.
        "seconds of training": round(sum(s.get("seconds", {}).get("total", 0) for s in sessions)),
        "fits": {
            name: {
                "b_crit": fit.b_crit,
                "interval": list(fit.b_crit_interval),
                "sharpness": fit.sharpness,
                "spread": fit.spread,
                "refused": fit.refused,
            }
            for name, fit in fits.items()
        },
        "made by": records.provenance(),
    }
    (output / "about.json").write_text(json.dumps(about, indent=1) + "\n")


if __name__ == "__main__":
    main()
