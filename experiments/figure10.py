"""Figure 10 of Shallue et al. (2019): which hyperparameters work, by the size of the model.

    python -m experiments.figure10 --preset small
    python -m experiments.figure10 --archive FOLDER

At one batch size, within a budget of steps. The claim: smaller models allow larger effective
learning rates.
"""

from __future__ import annotations

import pandas as pd

import batchscale as bs
from experiments import harness, scatter_panels
from experiments.harness import Figure, Studies
from experiments.scatter_panels import Cell

_PAPER = tuple(
    f"lm1b/transformer_{size}/nesterov_momentum"
    for size in ("narrow_and_shallow", "shallow", "base", "wide")
)
_SMALL = (
    "digits/fc_8/nesterov_momentum",
    "digits/fc_16/nesterov_momentum",
    "digits/fc_64/nesterov_momentum",
    "digits/fc_64_64_64/nesterov_momentum",
)
NAMES = (*_PAPER, *_SMALL)
GOALS = dict.fromkeys(_PAPER, bs.Goal("validation/loss", 4.2))


def draw(studies: Studies, tuned: bool) -> dict[str, pd.DataFrame]:
    """A panel for each size of the model."""
    del tuned
    size, steps = (1024, 50_000) if studies.keys() & {*_PAPER} else (64, 300)
    cells = [
        Cell(one, size, f"{one.title}, {steps:,} steps", max_steps=steps)
        for one in studies.values()
        if size in one.result.trials.index.unique("batch_size")
    ]
    return scatter_panels.draw(cells, columns=2)


FIGURE = Figure(
    10,
    NAMES,
    draw,
    tuned=False,
    goals=GOALS,
    panels=(_PAPER, _SMALL),
    usable=harness.trained_whole,
    every_trial=True,
)

if __name__ == "__main__":
    harness.main(FIGURE, __doc__)
