"""Figure 9 of Shallue et al. (2019): which hyperparameters work, by batch size, within a budget.

    python -m experiments.figure09 --preset small
    python -m experiments.figure09 --archive FOLDER

The upper rows have a budget of epochs, the lower ones of steps. The claim: under a budget of epochs
the region that works shrinks as the batch grows, under a budget of steps it grows.
"""

from __future__ import annotations

import dataclasses

import pandas as pd

from experiments import harness, scatter_panels
from experiments.harness import Figure, Studies
from experiments.scatter_panels import Cell


@dataclasses.dataclass(frozen=True)
class Budgets:
    """Of a study: a budget of epochs and one of steps, and the batch sizes shown of each."""

    epochs: float
    epoch_sizes: tuple[int, ...]
    steps: float
    step_sizes: tuple[int, ...]


STUDIES = {
    "lm1b/transformer_base/nesterov_momentum": Budgets(
        1, (128, 256, 512, 1024, 2048, 4096), 25_000, (512, 1024, 2048, 4096, 8192, 16_384)
    ),
    "digits/fc_64/nesterov_momentum": Budgets(10, (16, 64, 256), 120, (16, 64, 256)),
    "mnist/fc_128_128_128/nesterov_momentum, budget": Budgets(
        5, (16, 64, 256, 1024), 600, (16, 64, 256, 1024)
    ),
}


def draw(studies: Studies, tuned: bool) -> dict[str, pd.DataFrame]:
    """A panel for each batch size and budget."""
    del tuned
    cells = []
    for name, one in studies.items():
        budgets, there = STUDIES[name], one.result.trials.index.unique("batch_size")
        cells += [
            Cell(one, size, f"B = {size:,}, {budgets.epochs:g} epochs", max_epochs=budgets.epochs)
            for size in budgets.epoch_sizes
            if size in there
        ]
        cells += [
            Cell(one, size, f"B = {size:,}, {budgets.steps:,g} steps", max_steps=budgets.steps)
            for size in budgets.step_sizes
            if size in there
        ]
    return scatter_panels.draw(cells, columns=3 if len(cells) % 3 == 0 else 4)


FIGURE = Figure(
    9, tuple(STUDIES), draw, tuned=False, usable=harness.trained_whole, every_trial=True
)

if __name__ == "__main__":
    harness.main(FIGURE, __doc__)
