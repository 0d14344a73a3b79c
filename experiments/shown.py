"""What a figure shows of a study: its minima over trials, or medians of its tuned settings."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pandas as pd

import batchscale as bs


@dataclasses.dataclass(frozen=True)
class Shown:
    """A result as the figures of `batchscale.plots` take it, at a goal of its own.

    Attributes:
      name: what it is called.
      goal: that steps are counted to.
      train_examples: the size of a full batch.
      space: what the hyperparameters were drawn from.
      trials: with the first crossings of that goal.
      measurements: of all trials.
      table: the steps.
      rates: the table of `Result.learning_rates`, where it was asked for.
    """

    name: str
    goal: bs.Goal
    train_examples: int
    space: bs.SearchSpace
    trials: pd.DataFrame
    measurements: pd.DataFrame
    table: pd.DataFrame
    rates: pd.DataFrame | None = None

    def steps_to_target(self) -> pd.DataFrame:
        """The steps."""
        return self.table

    def learning_rates(self) -> pd.DataFrame:
        """The best effective learning rates.

        Raises:
          ValueError: they are not known.
        """
        if self.rates is None:
            raise ValueError(f"{self.name}: the learning rates were not asked for.")
        return self.rates


def minima(result: bs.Result, goal: bs.Goal | None = None, *, name: str = "") -> Shown:
    """The fewest steps over trials, the paper's definition.

    Args:
      result: of a study, or of an archive.
      goal: another one than the study's, read off the same curves.
      name: the study's if not given.
    """
    trials, wanted = result.trials, result.goal if goal is None else goal
    if wanted != result.goal:
        crossings = bs.metrics.first_crossings(result.measurements, wanted)["first_crossing"]
        reached = crossings.reindex(trials.index).fillna(np.inf)
        trials = trials.assign(first_crossing=reached)
    return Shown(
        name or result.name,
        wanted,
        result.train_examples,
        result.space,
        trials,
        result.measurements,
        result.steps_to_target(None if wanted == result.goal else wanted),
    )


def medians(result: bs.Result, goal: bs.Goal | None = None, *, name: str = "") -> Shown:
    """The medians of the tuned settings under fresh seeds, with their 90% intervals.

    At another goal than the study's they are of the same runs, whose setting was tuned for the
    study's own.

    Args:
      result: of a study that `Study.confirm` was called on.
      goal: another, easier one than the study's, read off the same runs.
      name: the study's if not given.
    """
    found = result.confirmation(goal).table
    table = found.loc[found["steps"].notna(), ["batch_size", "steps", "low", "high", "trial"]]
    return dataclasses.replace(minima(result, goal, name=name), table=table.reset_index(drop=True))


def where(result: bs.Result, **values: Any) -> bs.Result:
    """The result of those trials alone that have certain values of hyperparameters.

    Args:
      result: whose trials were all trained to the end of their budget, so that those that are left
        do not hang on the others.
      **values: by the hyperparameter's name.
    """
    keep = np.ones(len(result.trials), bool)
    for name, value in values.items():
        keep &= np.isclose(result.trials[name].to_numpy(float), value)
    trials = result.trials.loc[keep]
    rows = result.measurements.reset_index()[["batch_size", "trial", "replicate"]]
    of_trials = pd.MultiIndex.from_frame(rows).isin(trials.index)
    return dataclasses.replace(
        result, trials=trials, measurements=result.measurements.loc[of_trials]
    )
