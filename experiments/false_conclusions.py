"""Two well-known false conclusions, made on purpose, and what the audit says of them.

*Large batches need a rule.* On digits, the learning rate is tuned at batch size 16 alone and
carried to the others by the linear or the square-root rule, or left as it is; then "large batches
train badly" (or "small ones do") where tuning says otherwise. *Large batches generalise worse.* All
batch sizes get the same number of epochs; large ones then take few steps, and end with a worse
error. Shallue et al. (2019, section 5) trace much of the disagreement in the literature to these.

    python -m experiments.false_conclusions
"""

from __future__ import annotations

import argparse
import json
import warnings

import numpy as np
import pandas as pd

import batchscale as bs
from batchscale import records
from batchscale.files import local_path

SIZES = bs.powers_of_two(1, 512)
REFERENCE = 16
GOAL = bs.Goal("validation/error", 0.05)


def study(space: bs.SearchSpace, *, trials: int, seed: int, **budget) -> bs.Study:
    """A study of digits with SGD."""
    return bs.Study(
        workload=bs.workloads.get("digits/fc_64"),
        optimizer="sgd",
        space=space,
        batch_sizes=SIZES,
        goal=GOAL,
        trials=trials,
        seed=seed,
        **(budget or {"max_steps": 6_000}),
    )


def main() -> None:
    """Runs the tuned study, the untuned ones and the one with an epoch budget."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--trials", type=int, default=24)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--runs", type=local_path, default="runs/false_conclusions")
    parser.add_argument("--output", type=local_path, default="results/false_conclusions")
    arguments = parser.parse_args()
    made_by = records.provenance()
    warnings.simplefilter("ignore", UserWarning)  # misses are what this is about
    wide = bs.SearchSpace(learning_rate=bs.LogUniform(1e-2, 10))
    common = {"trials": arguments.trials, "seed": arguments.seed}
    results = {
        "tuned": study(wide, **common, max_steps=6_000, stop=3.0).run(arguments.runs / "tuned")
    }
    best = results["tuned"].optima().set_index("batch_size")["learning_rate"][REFERENCE]
    for rule, power in (("linear", 1.0), ("square root", 0.5), ("constant", 0.0)):
        space = bs.SearchSpace(
            learning_rate=lambda size, power=power: float(best * (size / REFERENCE) ** power)
        )
        results[rule] = study(space, **common, max_steps=6_000, stop=3.0).run(
            arguments.runs / rule.replace(" ", "_")
        )
    epochs = study(wide, **common, max_epochs=arguments.epochs, stop="budget", curves="exact")
    results["epochs"] = epochs.run(arguments.runs / "epochs")
    arguments.output.mkdir(parents=True, exist_ok=True)
    table = pd.DataFrame(
        {
            name: result.steps_to_target().set_index("batch_size")["steps"]
            for name, result in results.items()
        }
    )
    ended = bs.metrics.best_measurement(results["epochs"].measurements, GOAL.metric)
    table["best error in the epochs"] = ended.set_index("batch_size")["value"]
    table.to_csv(arguments.output / "steps.csv")
    print(table.to_string())
    audits = {name: result.audit() for name, result in results.items()}
    words = "\n\n".join(f"{name}\n{found}" for name, found in audits.items())
    (arguments.output / "audits.txt").write_text(words + "\n")
    print(words)
    ax = bs.plots.steps_to_target(
        {name: result for name, result in results.items() if name != "epochs"},
        confirmed=False,
    )
    bs.plots.save(ax, arguments.output / "rules", ["png"])
    about = {"seed": arguments.seed, "epochs": arguments.epochs, "trials": arguments.trials}
    about |= {"reference learning rate": float(np.round(best, 6)), "made by": made_by}
    (arguments.output / "about.json").write_text(json.dumps(about, indent=1) + "\n")


if __name__ == "__main__":
    main()
