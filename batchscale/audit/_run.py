"""The audit: every check, in a fixed order."""

from __future__ import annotations

import dataclasses
import numbers
from collections.abc import Mapping

import numpy as np
import pandas as pd

from batchscale import given, metrics, numeric, records
from batchscale.audit import measurement, search
from batchscale.audit.checks import Audit, Evidence
from batchscale.confirmation import Confirmation
from batchscale.metrics import Goal
from batchscale.metrics.goal import check_goal
from batchscale.records import Origin
from batchscale.scaling import Pace
from batchscale.tuner import SearchSpace

_CHECKS = (
    measurement.interrupted,
    search.tuned,
    search.edges,
    search.enough,
    search.effort,
    measurement.budget,
    measurement.easy,
    measurement.noise_floor,
    measurement.resolution,
    measurement.looks,
    measurement.schedule,
    measurement.test_set,
    measurement.batch_dependent,
    measurement.reproducible,
    measurement.extrapolated,
)


def audit(
    measurements: pd.DataFrame,
    trials: pd.DataFrame,
    steps: pd.DataFrame,
    goal: Goal,
    *,
    spaces: Mapping[int, SearchSpace],
    max_steps: Mapping[int, int] | None = None,
    batch_dependent: bool | None = None,
    confirmation: Confirmation | None = None,
    evaluation_examples: int | None = None,
    counted: int | None = None,
    refined: pd.DataFrame | None = None,
    paces: Mapping[int, Pace] | None = None,
) -> Audit:
    """Checks whether a study is careful enough to be believed, whoever made its tables.

    Args:
      measurements: one row an evaluation, as `Result.measurements`.
      trials: one row a trial, as `Result.trials`: its hyperparameters and its `status`. Without
        `origin` all are those of a plan; without `first_crossing` it is read off the measurements.
      steps: the table of `metrics.steps_to_target`.
      goal: of the study.
      spaces: what hyperparameters were drawn from, by batch size.
      max_steps: the budget by batch size, if it is known.
      batch_dependent: whether the model has layers that see the whole batch, if it is known.
      confirmation: of the tuned settings, if there is one.
      evaluation_examples: on which the goal's metric is measured, if it is known.
      counted: of how many the goal's metric counts some there: examples, or words or pixels of
        them; guessed from the values of the metric if None.
      refined: the trials of `Study.refine`, as `Result.refined`.
      paces: between which steps the schedule decides when the goal is reached, by batch size, where
        it does, as `Result.paces`; empty of a constant learning rate, None if not known.

    Returns:
      The checks, each with its verdict, the evidence and the remedy.

    Raises:
      TypeError, ValueError: an argument is not as above.
    """
    check_goal("goal", goal)
    records.check_index(measurements, records.MEASUREMENT_INDEX, "measurements")
    records.check_index(trials, records.TRIAL_INDEX, "trials")
    given.frame("trials", trials, "the table Result.trials", ["status"])
    given.frame("steps", steps, "the table of metrics.steps_to_target", ["batch_size", "steps"])
    given.by_batch_size("spaces", spaces, SearchSpace, "a SearchSpace")
    given.by_batch_size(
        "max_steps", {} if max_steps is None else max_steps, numbers.Integral, "a number of steps"
    )
    given.by_batch_size("paces", {} if paces is None else paces, Pace, "a Pace")
    if confirmation is not None:
        wanted = "what Result.confirmation returns"
        given.instance("confirmation", confirmation, Confirmation, wanted)
    if refined is not None:
        records.check_index(refined, records.TRIAL_INDEX, "refined")
    for name, count in (("evaluation_examples", evaluation_examples), ("counted", counted)):
        if count is not None:
            numeric.integer(name, count, 1)
    measurements = metrics.with_goal(measurements, goal)
    if "origin" not in trials:
        trials = trials.assign(origin=str(Origin.PLAN))
    if "first_crossing" not in trials:
        crossings = metrics.first_crossings(measurements, goal)["first_crossing"]
        trials = trials.assign(first_crossing=crossings.reindex(trials.index).fillna(np.inf))
    evidence = Evidence(
        measurements,
        trials,
        steps,
        goal,
        spaces,
        dict(max_steps or {}),
        batch_dependent,
        confirmation,
        evaluation_examples,
        counted,
        refined,
        paces,
    )
    return Audit(
        tuple(dataclasses.replace(check(evidence), key=check.__name__) for check in _CHECKS)
    )
