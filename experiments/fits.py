"""Critical batch sizes of the recorded studies, fitted anew to their recorded steps.

    python -m experiments.fits

Nothing is trained: the tables in `results/` are read. Prints the tables of docs/analysis.md, and
writes them with all digits: results/analysis/fits.csv; how far other definitions of steps to target
move a fit, transitions.csv and best_and_tuned.csv of every study; and the transitions.csv of the
noisy quadratic, whose truth is known.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import matplotlib
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
DEFINITIONS = [
    "the definition", *(f"goal times {factor}" for factor in (0.8, 0.9, 1.1, 1.25)),
    "on the test set", "on the training set", "the loss of validation", "interpolated",
    "mean of 3 evaluations", "2 evaluations in a row", "3 evaluations in a row",
]  # fmt: skip
"""In the order of `Result.variants`."""
TITLES = {
    "digits": "digits/fc_64, sgd",
    "mnist": "mnist/fc_128_128_128, sgd",
    "digits_nesterov": "digits/fc_64, nesterov",
    "noisy_quadratic": "noisy_quadratic, sgd",
}
"""Of the studies of `experiments.analysis`."""
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
            rounded(row[name], digits) for name in (what, f"{what}_low", f"{what}_high")
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


def rounded(value: float, digits: int) -> str:
    """A number to so many significant digits.

    >>> rounded(1234.5, 2), rounded(7.0312, 3)
    ('1200', '7.03')
    """
    return np.format_float_positional(
        value, precision=digits, fractional=False, unique=False, trim="-"
    )


def variants_of(study: str) -> pd.DataFrame:
    """Steps to target by other definitions, as recorded."""
    path = RESULTS / "analysis" / study / "variants.csv"
    return pd.read_csv(path, dtype={"why": str}).fillna({"why": ""})


def moved(study: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """By other definitions of steps to target, and by medians instead of minima.

    Args:
      study: of `results/analysis`.
    """
    folder = RESULTS / "analysis" / study
    variants = variants_of(study)
    own = variants.loc[variants["variant"] == variants["variant"].iloc[0]]
    tuned = pd.read_csv(folder / "confirmation.csv")
    sizes, low, high, medians = tuned[["batch_size", "low", "high", "steps"]].to_numpy(float).T
    precise = scaling.deviations(np.log(sizes), low, high, 0.9, medians)
    both = [
        own.assign(variant=BEST, why=""),
        tuned.assign(log_deviation=precise, variant="tuned setting, median of fresh seeds", why=""),
    ]
    return scaling.transitions(variants), scaling.transitions(pd.concat(both))


def draw(study: str) -> None:
    """The figure of the definitions."""
    folder, table = RESULTS / "analysis" / study, variants_of(study)
    metric = str(table["variant"].iloc[0]).split(" < ", maxsplit=1)[0]
    result: Any = SimpleNamespace(
        name=TITLES[study], goal=bs.Goal(metric, 0.0), paces={}, variants=lambda: table
    )
    with matplotlib.rc_context({"backend": "agg"}):
        bs.plots.save(bs.plots.variants(result), folder / "variants", ["png"])


def moved_of_a_known_truth() -> pd.DataFrame:
    """The noisy quadratic's curves beside the truth, as `experiments.noisy_quadratic` has them."""
    table = pd.read_csv(RESULTS / STUDIES["noisy quadratic"])
    known = {of: steps for name, of, steps in curves() if name == "noisy quadratic"}
    found = {
        "least median": known[TRUTH],
        BEST: known[BEST],
        TUNED: known[TUNED][["batch_size", "steps", "previous_evaluation", "log_deviation"]],
        "expected risk": table[["batch_size"]].assign(steps=table["expected_risk_steps"]),
    }
    every = pd.concat([steps.assign(variant=of) for of, steps in found.items()])
    return scaling.transitions(every, reference="least median", luck={BEST: scaling.LUCK})


def defined(tables: list[pd.DataFrame]) -> str:
    """The transition points of each definition, studies beside one another, in Markdown."""

    def cells(row: pd.Series) -> list[str]:
        if not np.isfinite(row["b_crit"]):
            return ["not known", "", ""]
        ends = (f"{float(f'{row[end]:.3g}'):,.10g}" for end in ("low", "high"))
        points = (f"{float(f'{row[of]:.2g}'):,.10g}" for of in ("perfect_until", "plateau_from"))
        return [f"{float(f'{row.b_crit:.3g}'):,.10g} ({' to '.join(ends)})", *points]

    lines = []
    for place, words in enumerate(DEFINITIONS):
        row = [words, *(cell for table in tables for cell in cells(table.iloc[place]))]
        lines.append(f"| {' | '.join(row)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    tables = []
    for study in TITLES:
        draw(study)
        for name, table in zip(("transitions", "best_and_tuned"), moved(study), strict=True):
            path = RESULTS / "analysis" / study / f"{name}.csv"
            table.to_csv(path, index=False, float_format="%.6g")
            tables += [table] * (name == "transitions")
    path = RESULTS / "noisy_quadratic" / "transitions.csv"
    moved_of_a_known_truth().to_csv(path, index=False, float_format="%.6g")
    print(defined(tables[:2]))  # of digits and of MNIST
    found = fits()
    found.to_csv(RESULTS / "analysis" / "fits.csv", index=False, float_format="%.6g")
    print(written(found))
