"""How often the interval of a critical batch size holds the true one, by simulation.

    python -m benchmarks.coverage

Steps to target are drawn about a known curve, with a scatter like that of minima over trials, and
rounded up to the grid of evaluations, as a study reports them. Printed are the share of the
intervals at a confidence of 90% that hold the true B_crit (of all simulated studies: the one-sided
bounds of refusals count as intervals), the share refused, and the median width.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd

from batchscale import scaling
from batchscale.scaling.curve import log_steps
from batchscale.stopping import evaluation_grid

CASES = (  # B_crit, sharpness, scatter, batch sizes as powers of two, budget in steps
    (32.0, 1.0, 0.1, range(13), 10**7),
    (32.0, 1.0, 0.2, range(13), 10**7),
    (32.0, 1.0, 0.1, range(0, 13, 2), 10**7),
    (32.0, 1.0, 0.02, range(13), 10**7),
    (1000.0, 1.0, 0.1, range(12), 10**7),
    (32.0, 1.0, 0.1, range(13), 800),  # the small batch sizes miss the goal
    (32.0, 2.0, 0.1, range(13), 10**7),
)
S_MIN = 40.0


def study(
    random: np.random.Generator,
    b_crit: float,
    sharpness: float,
    scatter: float,
    powers: Iterable[int],
    budget: int,
) -> pd.DataFrame:
    """The table of steps to target of a simulated study."""
    sizes = 2.0 ** np.array(list(powers))
    mean = log_steps(np.log(sizes), math.log(S_MIN), math.log(b_crit), sharpness)
    exact = np.exp(mean + scatter * random.normal(size=len(sizes)))
    grid = np.array(evaluation_grid(budget, 0.05))
    place = np.searchsorted(grid, exact)
    missed = place >= len(grid)
    place = np.minimum(place, len(grid) - 1)
    return pd.DataFrame(
        {
            "batch_size": sizes.astype(int),
            "steps": np.where(missed, np.inf, grid[place]),
            "previous_evaluation": np.where(missed, grid[-1], grid[place - 1]),
        }
    )


def main() -> None:
    """Simulates every case and writes what was found as JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--studies", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/coverage.json"))
    arguments = parser.parse_args()
    rows = []
    for b_crit, sharpness, scatter, powers, budget in CASES:
        random = np.random.default_rng(arguments.seed)
        form: scaling.Form = "hyperbolic" if sharpness == 1 else "generalised"
        fits = [
            scaling.fit(study(random, b_crit, sharpness, scatter, powers, budget), form=form)
            for _ in range(arguments.studies)
        ]
        intervals = [found.b_crit_interval for found in fits]
        rows.append(
            {
                "b_crit": b_crit,
                "sharpness": sharpness,
                "scatter": scatter,
                "batch_sizes": len(list(powers)),
                "budget": budget,
                "covered": float(np.mean([low <= b_crit <= high for low, high in intervals])),
                "refused": float(np.mean([bool(found.refused) for found in fits])),
                "median_width": round(
                    float(np.median([high / max(low, 1e-9) for low, high in intervals])), 3
                ),
            }
        )
        print(rows[-1], flush=True)
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    found = {"studies": arguments.studies, "seed": arguments.seed, "rows": rows}
    arguments.output.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
