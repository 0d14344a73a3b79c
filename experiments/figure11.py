"""Figure 11 of Shallue et al. (2019): how good solutions become within budgets.

    python -m experiments.figure11 --preset small
    python -m experiments.figure11 --archive FOLDER

Left budgets of steps, right budgets of epochs; the best validation metric over all trials and
evaluations. The claim: fixed steps favour large batch sizes, fixed epochs small ones, and near
saturation the differences vanish: large batches have no loss of quality of their own.
"""

from __future__ import annotations

import pandas as pd

import batchscale as bs
from experiments import harness
from experiments.harness import Figure, Studies, grid

_CNN = ((5e3, 2e4, 1e5, 5e5, 5e6), (10, 100, 1_000, 10_000))
_WORDS = ((1e4, 3e4, 1e5, 3e5, 1e6), (0.2, 0.5, 1, 5, 20))
BUDGETS = {
    "solution_quality/mnist/simple_cnn_base/nesterov_momentum": _CNN,
    "solution_quality/fashion_mnist/simple_cnn_base/nesterov_momentum": _CNN,
    "lm1b/transformer_narrow_and_shallow/nesterov_momentum": _WORDS,
    "lm1b/transformer_base/nesterov_momentum": _WORDS,
    "digits/fc_64/nesterov_momentum": ((30, 100, 300, 1000), (2, 6, 20)),
    "mnist/fc_128_128_128/nesterov_momentum, budget": ((100, 300, 1000, 3000), (1, 3, 10)),
}


def draw(studies: Studies, tuned: bool) -> dict[str, pd.DataFrame]:
    """Two panels for each study: budgets of steps, and of epochs."""
    del tuned
    axes, tables = grid(2 * len(studies), columns=2), []
    for row, (name, one) in enumerate(studies.items()):
        for column, (unit, budgets) in enumerate(
            zip(("steps", "epochs"), BUDGETS[name], strict=True)
        ):
            ax = axes[2 * row + column]
            title = f"{one.title}, budgets of {unit}"
            bs.plots.best_by_budget(one.result, ax=ax, title=title, **{unit: budgets})
            table = bs.metrics.best_by_budget(
                one.result.measurements,
                one.result.goal.metric,
                trials=one.result.trials,
                train_examples=one.result.train_examples,
                mode=one.result.goal.mode,
                **{unit: budgets},
            )
            tables.append(table.assign(panel=one.title, unit=unit))
    return {"best_by_budget": pd.concat(tables, ignore_index=True)}


FIGURE = Figure(
    11, tuple(BUDGETS), draw, tuned=False, usable=harness.trained_whole, every_trial=True
)

if __name__ == "__main__":
    harness.main(FIGURE, __doc__)
