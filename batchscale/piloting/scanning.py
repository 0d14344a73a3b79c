"""The short runs: learning rates over a wide range, and the best one again."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd

from batchscale.piloting.asked import Asked
from batchscale.piloting.effort import SEEDS, Effort
from batchscale.records import Status
from batchscale.result import Result
from batchscale.study import Study

# Choices.
TABLE = (
    *("batch_size", "seconds_per_step", "seconds_per_evaluation", "best_learning_rate"),
    *("diverges_from", "best", "steps"),
)


def scan(asked: Asked, effort: Effort) -> Study:
    """Learning rates over a wide range, each for as long as there is time."""
    return asked.study(
        effort.workload,
        batch_sizes=effort.sizes,
        max_steps=dict(effort.scan),
        evaluation_spacing=0.2,
    )


def table_of(asked: Asked, effort: Effort, scan: Result) -> pd.DataFrame:
    """What the scan has found, by batch size."""
    curves, trials = scan.measurements[asked.metric], scan.trials
    rows, reached = [], []
    for size in effort.sizes:
        here = trials.xs(size, level="batch_size")
        rates = here["learning_rate"].to_numpy(float)
        diverged = (here["status"] == Status.INFEASIBLE).to_numpy()
        ends = [
            asked.worse(curves.xs((size, *trial), level=(0, 1, 2)).tail(3)).mean()
            for trial in here.index
        ]
        ends = np.where(diverged, np.inf, np.nan_to_num(ends, nan=np.inf, posinf=np.inf))
        best = int(np.argmin(ends))
        if not math.isfinite(ends[best]):
            low, high = rates.min(), rates.max()
            raise ValueError(
                f"pilot: at batch size {size} all {len(here)} trials diverged, with learning rates "
                f"from {low:.1g} to {high:.1g}. Give a range of lower ones, "
                "space=SearchSpace(learning_rate=LogUniform(low, high)), and make sure that the "
                "data and the loss are finite."
            )
        started = asked.worse(curves.xs((size, *here.index[best], 0), level=(0, 1, 2, 3)))[0]
        above = rates[diverged & (rates > rates[best])]
        reached.append((started, ends[best]))
        rows.append([size, rates[best], above.min() if len(above) else np.inf, ends[best]])
    found = pd.DataFrame(
        rows, columns=["batch_size", "best_learning_rate", "diverges_from", "best"]
    )
    common = max(best for _, best in reached)
    started = min(start for start, _ in reached)
    if not common < started:
        size = int(found["batch_size"].iloc[int(np.argmax([best for _, best in reached]))])
        raise ValueError(
            f"pilot: at batch size {size} no trial got better than it began ({asked.metric} "
            f"{abs(started):.4g}) in {effort.scan[size]:,} steps. Give it more minutes, or other "
            "ranges of hyperparameters."
        )
    if common > started - 0.1 * (started - min(best for _, best in reached)):
        common = started - 0.1 * (started - min(best for _, best in reached))
    steps = []
    for size in effort.sizes:
        values = curves.xs(size, level="batch_size")
        past = values.index.get_level_values("step")[asked.worse(values) <= common]
        steps.append(float(past.min()) if len(past) else math.inf)
    found = found.merge(effort.timed, on="batch_size").assign(
        steps=steps, best=np.where(asked.mode == "min", 1, -1) * found["best"]
    )
    return found[list(TABLE)]


def again(asked: Asked, effort: Effort, table: pd.DataFrame) -> Study:
    """The best setting of the middle batch size under fresh seeds."""
    middle = table.loc[table["batch_size"] == effort.middle].iloc[0]
    return asked.study(
        effort.workload,
        space=asked.space_with(float(middle["best_learning_rate"])),
        batch_sizes=[effort.middle],
        trials=SEEDS,
        max_steps=effort.rerun,
        evaluation_spacing=effort.spacing,
        seed=asked.seed + 1,
    )


def medians(asked: Asked, result: Result) -> pd.DataFrame:
    """The best until each step: its median over seeds, and its extremes."""
    curves = result.measurements[asked.metric].droplevel("batch_size")
    wide = curves.unstack(["trial", "replicate"]).sort_index()  # noqa: PD010
    least = np.minimum.accumulate(np.nan_to_num(asked.worse(wide), nan=np.inf), axis=0)
    sign = 1 if asked.mode == "min" else -1
    quantiles = np.quantile(least, [0.5, 0.0, 1.0], axis=0 + 1, method="median_unbiased")
    return pd.DataFrame(
        {"step": wide.index.to_numpy(), "median": sign * quantiles[0]}
        | {"low": sign * quantiles[1], "high": sign * quantiles[2]}
    )
