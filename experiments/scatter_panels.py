"""Panels of trials by their hyperparameters: figures 9 and 10 of the paper."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import pandas as pd

import batchscale as bs
from experiments.harness import Study, grid, one_legend


@dataclasses.dataclass(frozen=True)
class Cell:
    """A panel.

    Attributes:
      study: whose trials are shown.
      batch_size: of them.
      title: of the panel.
      max_steps: the budget in steps.
      max_epochs: or the budget in epochs.
    """

    study: Study
    batch_size: int
    title: str
    max_steps: float | None = None
    max_epochs: float | None = None


def draw(cells: Sequence[Cell], *, columns: int) -> dict[str, pd.DataFrame]:
    """Draws the cells; returns how many trials of each got to the goal, did not, or diverged.

    Of those that got there also the effective learning rates: the least, the greatest, and that of
    the fewest steps.

    Args:
      cells: in the order of panels.
      columns: beside each other.
    """
    axes, rows = grid(len(cells), columns=columns, width=3.6), []
    for ax, cell in zip(axes, cells, strict=True):
        bs.plots.hyperparameters(
            cell.study.result,
            batch_size=cell.batch_size,
            max_steps=cell.max_steps,
            max_epochs=cell.max_epochs,
            ax=ax,
            title=cell.title,
        )
        rows.append(_counts(cell))
    one_legend(axes, pad=18)
    return {"trials": pd.DataFrame(rows)}


def _counts(cell: Cell) -> dict[str, Any]:
    result, size = cell.study.result, cell.batch_size
    trials = result.trials.xs(size, level="batch_size")
    last = int(
        bs.metrics.last_steps(
            [size], steps=cell.max_steps, epochs=cell.max_epochs, examples=result.train_examples
        )[0]
    )
    diverged = (trials["status"] == "infeasible").to_numpy()
    reached = ~diverged & (trials["first_crossing"].to_numpy() <= last)
    there = trials[reached].assign(rate=bs.tuner.effective_learning_rate(trials[reached]))
    fastest = there["rate"].to_numpy()[there["first_crossing"].argsort()[:1]]
    return {
        "panel": cell.title,
        "batch_size": size,
        "last_step": last,
        "reached": int(reached.sum()),
        "not_reached": int((~reached & ~diverged).sum()),
        "diverged": int(diverged.sum()),
        "lowest_rate": there["rate"].min(),
        "highest_rate": there["rate"].max(),
        "fastest_rate": fastest[0] if len(fastest) else math.nan,
    }
