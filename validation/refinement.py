"""Is searching on around the leading trials worth more than as many more trials of the search?

    python -m validation.refinement

A study is made with few trials and refined; others of the same kind search with more trials and
are not. All are confirmed alike. Printed is, for each, how many trials a batch size it has, and the
median of the tuned setting under fresh seeds, over that of the longest search, as a geometric mean
over batch sizes, and at the worst of them. The kinds: one learning rate of a known model; a
learning rate and a momentum; a range that ends far below the optimum; one learning rate of MNIST.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

import batchscale as bs
from batchscale.records import provenance
from batchscale.theory import NoisyQuadratic
from experiments import digits

WAYS = {
    "noisy_quadratic": {"search": (8, 16, 32, 64), "refined": (8, 16)},
    "digits_nesterov": {"search": (8, 16, 32, 64), "refined": (8, 16)},
    "beyond_the_edge": {"search": (16, 32), "refined": (8, 16)},
    "mnist": {"search": (8, 16, 32), "refined": (8,)},
}
ROUNDS, EACH = 2, 4


def study(kind: str, trials: int, seed: int) -> bs.Study:
    """A study of a kind."""
    common: dict[str, Any] = {"optimizer": "sgd", "trials": trials, "stop": 3.0, "seed": seed}
    if kind in ("digits_nesterov", "beyond_the_edge"):
        space = bs.SearchSpace(learning_rate=bs.LogUniform(3e-3, 0.1))  # the optima are 0.5 to 1.1
        if kind == "digits_nesterov":
            common["optimizer"], space = "nesterov", digits.SPACES["nesterov"]
        return bs.Study(
            workload=bs.workloads.get("digits/fc_64"),
            space=space,
            batch_sizes=[16, 64, 256],
            goal=bs.Goal("validation/error", 0.05),
            max_steps=20_000,
            **common,
        )
    if kind == "noisy_quadratic":
        return bs.Study(
            workload=NoisyQuadratic.power_law(200).workload(),
            space=bs.SearchSpace(learning_rate=bs.LogUniform(1e-3, 1.9)),
            batch_sizes=[16, 64, 256, 1024],
            goal=bs.Goal("validation/risk", 0.05),
            max_steps=20_000,
            **common,
        )
    return bs.Study(
        workload=bs.workloads.get("mnist/fc_128_128_128"),
        space=bs.SearchSpace(learning_rate=bs.LogUniform(1e-2, 3)),
        batch_sizes=[64, 256],
        goal=bs.Goal("validation/error", 0.03),
        max_steps=20_000,
        **common,
    )


def main() -> None:
    """Runs all ways and writes what was found as JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--kinds", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--seeds", type=int, default=3, help="of whole studies")
    parser.add_argument("--runs", type=Path, default=Path("runs/refinement"))
    parser.add_argument("--output", type=Path, default=Path("validation/results/refinement.json"))
    arguments = parser.parse_args()
    rows = []
    for kind in arguments.kinds:
        for seed in range(arguments.seeds):
            for way, counts in WAYS[kind].items():
                for trials in counts:
                    folder = arguments.runs / kind / f"{way}-{trials}-{seed}"
                    some = study(kind, trials, seed)
                    some.run(folder, progress=False)
                    total = trials
                    if way == "refined":
                        total += ROUNDS * EACH
                        some.refine(folder, rounds=ROUNDS, trials=EACH, until=0.0, progress=False)
                    # Fresh seeds of the same numbers: what is compared is the setting alone.
                    found = some.confirm(folder, settings=4, selection_seeds=5, seeds=15,
                                         progress=False)  # fmt: skip
                    medians = found.table["steps"].tolist()
                    rows.append(
                        {"kind": kind, "seed": seed, "way": way, "trials": total,
                         "medians": medians}
                    )  # fmt: skip
                    print(rows[-1], flush=True)
    table = []
    for kind in arguments.kinds:
        longest = max(WAYS[kind]["search"])
        best = np.array(
            [row["medians"] for row in rows if row["kind"] == kind and row["trials"] == longest]
        )
        for way, trials in sorted({(r["way"], r["trials"]) for r in rows if r["kind"] == kind}):
            some = np.array(
                [r["medians"] for r in rows
                 if (r["kind"], r["way"], r["trials"]) == (kind, way, trials)]
            )  # fmt: skip
            ratio = np.log(some / np.exp(np.log(best).mean(0)))
            table.append(
                {
                    "kind": kind,
                    "way": way,
                    "trials": trials,
                    "mean_ratio": round(float(np.exp(ratio.mean())), 3),
                    "worst_ratio": round(float(np.exp(ratio.max())), 3),
                }
            )
            print(table[-1], flush=True)
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    about = {"table": table, "rows": rows, "machine": provenance()}
    arguments.output.write_text(json.dumps(about, indent=1) + "\n")


if __name__ == "__main__":
    main()
