"""The short runs: learning rates over a wide range, and the best one again."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import numpy as np
import pandas as pd

from batchscale.piloting.asked import Asked
from batchscale.piloting.effort import SEEDS, Effort
from batchscale.records import Status
from batchscale.result import Result
from batchscale.study import Study

# Choices.
_BEFORE = 0.05  # of the way to where every batch size has got: what is compared lies before it
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
    """What the scan has found, by batch size.

    The best rate is the one that first gets as far as every batch size has got: where trials end
    tells little once they have all got there.
    """
    found = {size: _Size.of(asked, scan, size) for size in effort.sizes}
    sign = 1 if asked.mode == "min" else -1
    for size, one in found.items():
        if not np.isfinite(one.ends).any():
            raise ValueError(
                f"pilot: at batch size {size} all {len(one.rates)} trials diverged, with learning "
                f"rates from {one.rates.min():.1g} to {one.rates.max():.1g}. Give a range of lower "
                "ones, space=SearchSpace(learning_rate=LogUniform(low, high)), and make sure that "
                "the data and the loss are finite."
            )
    started = float(np.median([one.started for one in found.values()]))
    size = max(found, key=lambda size: found[size].ends.min())
    worst = found[size].ends.min()
    if not worst < started:
        raise ValueError(
            f"pilot: at batch size {size} no trial got better than it began ({asked.metric} "
            f"{sign * started:.4g}) in {effort.scan[size]:,} steps. Give it more minutes, or other "
            "ranges of hyperparameters."
        )
    # Short of where they end, where all that trains is alike; however large it is at first.
    way = _BEFORE * (started - worst)
    common = float(worst + (min(way, abs(worst) / 2) if worst else way))
    rows = []
    for size, one in found.items():
        steps = one.steps_to(common)
        best = int(np.argmin(steps))
        above = one.rates[one.diverged & (one.rates > one.rates[best])]
        rate = float(one.rates[best])
        lowest = float(above.min()) if len(above) else math.inf
        rows.append((size, rate, lowest, sign * float(one.ends[best]), float(steps[best])))
    columns = ["batch_size", "best_learning_rate", "diverges_from", "best", "steps"]
    table = pd.DataFrame(rows, columns=columns).merge(effort.timed, on="batch_size")
    return table[list(TABLE)]


def reaching(asked: Asked, effort: Effort, scan: Result) -> Callable[[float], dict[int, float]]:
    """Of a value of the metric: the fewest steps to it of each batch size that got there."""
    found = {size: _Size.of(asked, scan, size) for size in effort.sizes}

    def steps_to(value: float) -> dict[int, float]:
        worse = float(asked.worse(np.array([value]))[0])
        fewest = {size: float(one.steps_to(worse).min()) for size, one in found.items()}
        # A value that a trial begins with tells nothing.
        return {size: steps for size, steps in fewest.items() if 0 < steps < math.inf}

    return steps_to


@dataclasses.dataclass(frozen=True)
class _Size:
    """The scan of one batch size.

    Attributes:
      rates: of the trials.
      diverged: which of them have.
      curves: of each, its steps and its best value until then, as something to be made small.
      ends: the means of their last evaluations; inf where they diverged.
      started: the value before the first step.
    """

    rates: np.ndarray
    diverged: np.ndarray
    curves: list[tuple[np.ndarray, np.ndarray]]
    ends: np.ndarray
    started: float

    @classmethod
    def of(cls, asked: Asked, scan: Result, size: int) -> _Size:
        here = scan.trials.xs(size, level="batch_size")
        diverged = (here["status"] == Status.INFEASIBLE).to_numpy()
        values = scan.measurements[asked.metric].xs(size, level="batch_size")
        curves, ends, started = [], [], []
        for number, replicate in here.index:
            curve = values.xs((number, replicate), level=("trial", "replicate")).sort_index()
            worse = np.nan_to_num(asked.worse(curve), nan=np.inf, posinf=np.inf)
            curves.append((curve.index.to_numpy(float), np.minimum.accumulate(worse)))
            ends.append(worse[-3:].mean())
            started.append(worse[0])
        return cls(
            here["learning_rate"].to_numpy(float),
            diverged,
            curves,
            np.where(diverged, np.inf, ends),
            float(np.median(started)),
        )

    def steps_to(self, value: float) -> np.ndarray:
        """The steps of each trial to a value, between its evaluations; inf of what diverged."""
        found = np.full(len(self.rates), np.inf)
        for place, (steps, best) in enumerate(self.curves):
            past = np.flatnonzero(best <= value)
            if self.diverged[place] or not len(past):
                continue
            at = past[0]
            found[place] = steps[at]
            if at and np.isfinite(best[at - 1]):
                share = (best[at - 1] - value) / (best[at - 1] - best[at])
                found[place] = steps[at - 1] + share * (steps[at] - steps[at - 1])
        return found


def again(asked: Asked, effort: Effort, table: pd.DataFrame, steps: int) -> Study:
    """The best setting of the middle batch size under fresh seeds, for so many steps."""
    middle = table.loc[table["batch_size"] == effort.middle].iloc[0]
    return asked.study(
        effort.workload,
        space=asked.space_with(float(middle["best_learning_rate"])),
        batch_sizes=[effort.middle],
        trials=SEEDS,
        max_steps=steps,
        evaluation_spacing=effort.spacing,
        seed=asked.seed + 1,
    )


def medians(asked: Asked, result: Result) -> pd.DataFrame:
    """The best until each step: its median over seeds, and its extremes."""
    curves = result.measurements[asked.metric].droplevel("batch_size")
    wide = curves.unstack(["trial", "replicate"]).sort_index()  # noqa: PD010
    least = np.minimum.accumulate(
        np.nan_to_num(asked.worse(wide), nan=np.inf, posinf=np.inf), axis=0
    )
    sign = 1 if asked.mode == "min" else -1
    # Not by quantiles, which between two infinite values are none.
    values = {"median": np.median(least, 1), "low": least.min(1), "high": least.max(1)}
    return pd.DataFrame(
        {"step": wide.index.to_numpy(), **{name: sign * of for name, of in values.items()}}
    )
