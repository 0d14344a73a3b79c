"""What every experiment leaves behind: tables, a figure, and how they were made."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib
import pandas as pd

import batchscale as bs

CONFIRMED: dict[str, Any] = {"settings": 5, "selection_seeds": 7, "seeds": 21}
"""How the recorded studies are confirmed."""


def publish(results: Mapping[str, bs.Result], folder: Path, *, stem: str, seconds: float) -> None:
    """Prints the steps to target, and writes the figure and the tables.

    Args:
      results: by the name that the figure's legend shows.
      folder: where to; each study's tables go into a folder of it.
      stem: the figure's file name, without its ending.
      seconds: what the experiment took, compilation included.
    """
    folder.mkdir(parents=True, exist_ok=True)
    print(table(results).to_string())
    for name, result in results.items():
        result.save_tables(folder / name)
        made = (result.folder / "provenance.json").read_text()
        (folder / name / "provenance.json").write_text(made)
    with matplotlib.rc_context({"backend": "agg"}):
        shown = dict(results) if len(results) > 1 else next(iter(results.values()))
        ax = bs.plots.steps_to_target(shown, confirmed=False)
        files = bs.plots.save(ax, folder / stem, ["png"])
    print(f"{seconds:.0f} s; wrote {', '.join(map(str, files))} and the tables beside them")


def table(results: Mapping[str, bs.Result]) -> pd.DataFrame:
    """Steps to target side by side, with the best learning rates."""
    columns = {}
    for name, result in results.items():
        best = result.optima().set_index("batch_size")
        columns[name, "steps"] = best["steps"].map("{:,.0f}".format)
        for value in ("learning_rate", "momentum"):
            if value in best:
                columns[name, value] = best[value].map("{:.3g}".format)
    return pd.DataFrame(columns)
