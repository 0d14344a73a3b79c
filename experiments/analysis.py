"""Everything a sceptical referee would ask of a study, on digits, on MNIST, and on a known model.

    python -m experiments.analysis --study digits
    python -m experiments.analysis --study digits_nesterov
    python -m experiments.analysis --study mnist
    python -m experiments.analysis --study noisy_quadratic

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
from collections.abc import Callable

import pandas as pd

import batchscale as bs
from batchscale import records, theory
from batchscale.files import local_path
from experiments import digits, noisy_quadratic
from experiments.publish import CONFIRMED


@dataclasses.dataclass(frozen=True)
class Preset:
    """A study, and at which points theory is asked.

    Attributes:
      workload: makes it.
      goal: of the study.
      optimizer: by name.
      space: of its hyperparameters.
      batch_sizes: measured.
      trials: a batch size.
      max_steps: the budget.
      noise_at: the batch size whose winner is followed by the noise scale.
      matched_loss: the training loss at which the sharpness of batch sizes is compared, if it is.
      sharp_examples: of which the sharpness is taken; all if None.
      budgets: in steps and in epochs, under which the share of the space that works is compared.
      stop: how many times the first crossing trials are trained.
      examples: of the noise scale; all if None.
      hessian: whether B_noise is computed too.
    """

    workload: Callable[[], bs.Workload]
    goal: bs.Goal
    space: bs.SearchSpace
    batch_sizes: list
    trials: int
    max_steps: int
    noise_at: int
    budgets: tuple[int, float]
    matched_loss: float | None = None
    sharp_examples: int | None = None
    optimizer: str = "sgd"
    stop: float = 3.0
    examples: int | None = None
    hessian: bool = False


PRESETS = {
    "digits": Preset(
        workload=lambda: bs.workloads.get("digits/fc_64"),
        goal=bs.Goal("validation/error", 0.05),
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
    "noisy_quadratic": Preset(
        workload=noisy_quadratic.MODEL.workload,
        goal=noisy_quadratic.GOAL,
        space=noisy_quadratic.study().space,
        batch_sizes=noisy_quadratic.SIZES,
        trials=32,
        max_steps=100_000,
        noise_at=16,
        budgets=(200, 0.5),
        stop=8.0,
        examples=1000,
        hessian=True,
    ),
    "mnist": Preset(
        workload=lambda: bs.workloads.get("mnist/fc_128_128_128"),
        goal=bs.Goal("validation/error", 0.03),
        space=bs.SearchSpace(learning_rate=bs.LogUniform(1e-2, 3)),
        batch_sizes=bs.powers_of_two(8, 2048),
        trials=24,
        max_steps=50_000,
        noise_at=64,
        matched_loss=0.05,
        budgets=(900, 2),
        sharp_examples=2000,
        examples=1000,
        hessian=True,
    ),
}
PRESETS["digits_nesterov"] = dataclasses.replace(
    PRESETS["digits"],
    optimizer="nesterov",
    space=digits.SPACES["nesterov"],
    matched_loss=None,
    hessian=False,
)


def study(name: str, *, seed: int = 0) -> bs.Study:
    """The study of a preset.

    >>> study("digits").stop
    8.0
    """
    preset = PRESETS[name]
    return bs.Study(
        workload=preset.workload(),
        optimizer=preset.optimizer,
        space=preset.space,
        batch_sizes=preset.batch_sizes,
        goal=preset.goal,
        trials=preset.trials,
        max_steps=preset.max_steps,
        stop=preset.stop,
        curves="exact",
        evaluate=bs.Evaluate(share=None),  # other definitions are read off the other splits
        seed=seed,
    )


def main() -> None:
    """Runs the study and all analyses."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--study", choices=PRESETS, default="digits")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--runs", type=local_path, default="runs/analysis")
    parser.add_argument("--output", type=local_path, default="results/analysis")
    arguments = parser.parse_args()
    preset = PRESETS[arguments.study]
    folder, output = arguments.runs / arguments.study, arguments.output / arguments.study
    output.mkdir(parents=True, exist_ok=True)
    made_by = records.provenance()
    some = study(arguments.study, seed=arguments.seed)
    result = some.run(folder)
    found = some.confirm(folder, **CONFIRMED)
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
    write(bs.scaling.transitions(pd.concat(curves), paces=result.paces), "best_and_tuned")
    try:
        write(result.tuning_curve(), "tuning_curve")
        tuning = bs.plots.tuning_curve(result)
    except ValueError as error:  # trials were cut too early for it
        tuning = None
        (output / "tuning_curve.txt").write_text(f"{error}\n")
    variants = result.variants()
    write(variants, "variants")
    write(bs.scaling.transitions(variants, paces=result.paces), "transitions")
    rates = result.learning_rates()
    write(rates, "learning_rates")
    rules = bs.scaling.rules(rates)
    write(rules.table, "rules")
    write(bs.scaling.frontier(tuned), "frontier")
    times = some.seconds_per_step()
    write(bs.scaling.frontier(tuned, seconds_per_step=times), "frontier_seconds")
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
        f"({low:.2f} to {high:.2f}) up to {rules.knee:.3g}."
    )
    audit = result.audit()
    write(audit.table(), "audit")
    (output / "recommendation.txt").write_text("\n\n".join(words) + "\n")
    print("\n".join(words))

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
    plots = {
        "confirmation": bs.plots.confirmation(result),
        **({"tuning_curve": tuning} if tuning is not None else {}),
        "variants": bs.plots.variants(result),
        "learning_rates": bs.plots.learning_rates(result),
        "trials": bs.plots.hyperparameters(result),
        "frontier": bs.plots.frontier(result, confirmed=True),
        "frontier_seconds": bs.plots.frontier(result, confirmed=True, seconds_per_step=times),
        **{name: bs.plots.sensitivity(result, **budget) for name, budget in shares.items()},
        "noise_scale": bs.plots.noise_scale(noise, fit=found.scaling()),
    }
    if preset.matched_loss is not None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            sharp = theory.generalisation(
                some,
                result,
                train_loss=preset.matched_loss,
                trials=3,
                examples=preset.sharp_examples,
            )
        write(sharp, "sharpness")
        columns = ["sharpness", "gap", "error_gap"]
        medians = sharp.groupby("batch_size")[columns].median().reset_index()
        write(medians, "sharpness_medians")
        plots["sharpness"] = bs.plots.sharpness(sharp)
    for name, figure in plots.items():
        bs.plots.save(figure, output / name, ["png"])
    about = {
        "seed": arguments.seed,
        # Of all sessions, if it was interrupted: none measures again what another has measured.
        "seconds of training": round(sum(s.get("seconds", {}).get("total", 0) for s in sessions)),
        "made by": made_by,
    }
    (output / "about.json").write_text(json.dumps(about, indent=1) + "\n")


if __name__ == "__main__":
    main()
