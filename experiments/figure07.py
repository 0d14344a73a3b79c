"""Figure 7 of Shallue et al. (2019): label smoothing at every batch size.

    python -m experiments.figure07 --preset small
    python -m experiments.figure07 --archive FOLDER

Left the best validation error without a budget, right the steps to the goal, each by the amount of
smoothing. The claim: regularisation matters at large batch sizes.
"""

from __future__ import annotations

import pandas as pd

import batchscale as bs
from batchscale.plots.common import axis_label, frame
from batchscale.plots.marks import looks
from batchscale.plots.scales import log2_axis
from experiments import harness, shown
from experiments.harness import Figure, Studies, grid

NAMES = ("imagenet/resnet_50/nesterov_momentum", "digits/smoothed/sgd")
AMOUNTS = (0.0, 0.01, 0.1)


def draw(studies: Studies, tuned: bool) -> dict[str, pd.DataFrame]:
    """Both panels, of the trials of each amount of smoothing."""
    del tuned
    (study,) = studies.values()
    result, axes = study.result, grid(2, columns=2)
    parts = {f"{amount:g}": shown.where(result, label_smoothing=amount) for amount in AMOUNTS}
    goal, tables = result.goal, []
    for (label, part), look in zip(parts.items(), looks(len(parts)), strict=True):
        best = bs.metrics.best_measurement(
            part.measurements,
            goal.metric,
            mode="max" if goal.mode == "max" else "min",
            trials=part.trials,
        )
        axes[0].plot(best["batch_size"], best["value"], label=label, **look)
        tables.append(best.assign(label_smoothing=label))
    log2_axis(axes[0], "x")
    axes[0].set(xlabel="Batch size (examples)", ylabel=f"Best {axis_label(goal.metric).lower()}")
    frame(axes[0])
    axes[0].legend(title="label smoothing", fontsize=9)
    minima = {label: shown.minima(part, name=label) for label, part in parts.items()}
    bs.plots.steps_to_target(minima, ax=axes[1], title=study.title)
    axes[0].set_title(study.title)
    steps = [one.steps_to_target().assign(label_smoothing=k) for k, one in minima.items()]
    return {"best": pd.concat(tables, ignore_index=True), "steps_minima": pd.concat(steps)}


FIGURE = Figure(7, NAMES, draw, tuned=False)

if __name__ == "__main__":
    harness.main(FIGURE, __doc__)
