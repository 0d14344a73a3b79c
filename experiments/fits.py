"""Critical batch sizes of the recorded studies, fitted anew to their recorded steps.

    python -m experiments.fits

Nothing is trained: the tables in `results/` are read. Prints the table of docs/analysis.md, and
writes it with all digits as results/analysis/fits.csv.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

import batchscale as bs
from batchscale import scaling
from batchscale.stopping import evaluation_grid

RESULTS = Path("results")
STUDIES = {
    "digits": "analysis/digits/confirmation.csv",
    "digits, Nesterov": "analysis/digits_nesterov/confirmation.csv",
    "MNIST": "analysis/mnist/confirmation.csv",
    "noisy quadratic": "noisy_quadratic/search.csv",
}
# Studies whose best of N alone is shown, in the README.
SEARCHES = {
    "figure, digits": "digits/sgd/steps_to_target.csv",
    "figure, digits, Nesterov": "digits/nesterov/steps_to_target.csv",
    "figure, MNIST": "mnist/mnist/steps_to_target.csv",
}
BEST, TUNED, TRUTH = "best of N", "tuned setting's median", "the truth"


def curves() -> list[tuple[str, str, pd.DataFrame]]:
    """Of every study: its name, what its steps are, and `batch_size` and `steps`."""
    found = []
    for name, path in STUDIES.items():
        table = pd.read_csv(RESULTS / path)
        sizes, low, high = (table[of].to_numpy(float) for of in ("batch_size", "low", "high"))
        found.append(
            (name, BEST, evaluated(table[["batch_size"]].assign(steps=table["best_of_n"])))
        )
        medians = table["steps"].to_numpy(float)
        precise = scaling.deviations(np.log(sizes), low, high, 0.9, medians)
        found.append((name, TUNED, table.assign(log_deviation=precise)))
        if "least_median" in table:
            found.append((name, TRUTH, table[["batch_size"]].assign(steps=table["least_median"])))
    for name, path in SEARCHES.items():
        found.append((name, BEST, evaluated(pd.read_csv(RESULTS / path))))
    return found


def evaluated(table: pd.DataFrame) -> pd.DataFrame:
    """Steps with the evaluation before them: all of these studies are evaluated 5% apart."""
    grid = np.array([0, *evaluation_grid(int(table["steps"].max()), 0.05)])
    before = grid[np.searchsorted(grid, table["steps"]) - 1]
    return table[["batch_size", "steps"]].assign(previous_evaluation=before)


def fits() -> pd.DataFrame:
    """The fits, averaged over the sharpness of the bend, and by the hyperbola; intervals at 90%."""
    rows = []
    for name, of, steps in curves():
        luck = scaling.LUCK if of == BEST else 0.0
        found = bs.scaling.fit(steps, form="averaged", luck=luck)
        plain = bs.scaling.fit(steps, form="hyperbolic")
        row = {"study": name, "steps": of, "sharpness": found.sharpness, "s_min": found.s_min}
        for what, value, interval in (
            ("b_crit", found.b_crit, found.b_crit_interval),
            ("perfect_until", found.batch_size_at_overhead(0.2), found.overhead_interval(0.2)),
            ("plateau_from", found.batch_size_at_excess(0.2), found.excess_interval(0.2)),
            ("hyperbola", plain.b_crit, plain.b_crit_interval),
        ):
            row |= {what: value, f"{what}_low": interval.low, f"{what}_high": interval.high}
        rows.append(row)
    return pd.DataFrame(rows)


def written(table: pd.DataFrame) -> str:
    """The table in Markdown."""

    def quoted(row: pd.Series, what: str, digits: int) -> str:
        value, *ends = (
            np.format_float_positional(
                row[name], precision=digits, fractional=False, unique=False, trim="-"
            )
            for name in (what, f"{what}_low", f"{what}_high")
        )
        return f"{value} ({ends[0]} to {ends[1]})"

    lines = [
        "| study | | B_crit (90% interval) | a | perfect scaling until | plateau from "
        "| by the hyperbola alone |",
        "|--|--|--|--|--|--|--|",
    ]
    for _, row in table.iterrows():
        cells = [row["study"], row["steps"], quoted(row, "b_crit", 3), f"{row['sharpness']:.1f}"]
        cells += [quoted(row, what, 2) for what in ("perfect_until", "plateau_from")]
        lines.append(f"| {' | '.join([*cells, quoted(row, 'hyperbola', 3)])} |")
    return "\n".join(lines)


if __name__ == "__main__":
    found = fits()
    found.to_csv(RESULTS / "analysis" / "fits.csv", index=False, float_format="%.6g")
    print(written(found))
