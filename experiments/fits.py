"""Critical batch sizes of the recorded studies, fitted anew to their recorded steps.

    python -m experiments.fits

Nothing is trained: the tables in `results/` are read.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

import batchscale as bs
from batchscale import scaling

RESULTS = Path("results")
BEST = {
    "digits, SGD": "digits/sgd",
    "digits, Nesterov": "digits/nesterov",
    "MNIST, SGD": "mnist/mnist",
}
TUNED = {
    "digits, SGD": "digits",
    "digits, Nesterov": "digits_nesterov",
    "MNIST, SGD": "mnist",
    "noisy quadratic": "noisy_quadratic",
}


def fits() -> pd.DataFrame:
    """The fits of the best of N and of the tuned settings' medians; intervals are at 90%."""
    rows = []
    for name, folder in BEST.items():
        table = pd.read_csv(RESULTS / folder / "steps_to_target.csv")
        rows.append((name, "best of N", bs.scaling.fit(table, form="averaged", luck=scaling.LUCK)))
    for name, folder in TUNED.items():
        table = pd.read_csv(RESULTS / "analysis" / folder / "confirmation.csv")
        sizes, low, high = (table[of].to_numpy(float) for of in ("batch_size", "low", "high"))
        table["log_deviation"] = scaling.deviations(np.log(sizes), low, high, 0.9)
        rows.append((name, "medians", bs.scaling.fit(table, form="averaged")))
    return pd.DataFrame(
        [(name, of, found.b_crit, *found.b_crit_interval) for name, of, found in rows],
        columns=["study", "steps", "b_crit", "low", "high"],
    )


if __name__ == "__main__":
    print(fits().to_string(index=False, float_format=lambda x: f"{x:.1f}"))
