"""Shares of the search space, counted by hand."""

import math
import re
from types import SimpleNamespace

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchscale import plots
from batchscale.metrics import Goal
from batchscale.records import MEASUREMENT_INDEX, TRIAL_INDEX
from batchscale.tuner import Choice, LogUniform, SearchSpace, sensitivity

GOAL = Goal("validation/error", 0.5)
SPACE = SearchSpace(learning_rate=LogUniform(0.01, 100))
MISS = math.inf


def tables(trials):
    """From (batch_size, learning rate, first crossing, status, steps trained, stop reason)."""
    measurements, rows = {}, {}
    for trial, (size, rate, crossing, status, trained, reason) in enumerate(trials):
        measurements[size, trial, 0, 0] = 0.9
        measurements[size, trial, 0, trained] = 0.9
        if crossing < MISS:
            measurements[size, trial, 0, crossing] = 0.1
        rows[size, trial, 0] = {
            "learning_rate": rate,
            "origin": "plan",
            "status": status,
            "steps_trained": trained,
            "stop_reason": reason,
        }
    index = pd.MultiIndex.from_tuples(list(measurements), names=MEASUREMENT_INDEX)
    table = pd.DataFrame(
        list(rows.values()), pd.MultiIndex.from_tuples(list(rows), names=TRIAL_INDEX)
    )
    return pd.DataFrame({GOAL.metric: list(measurements.values())}, index), table


# Batch size 8: the best needs 100 steps, others 150, 200, 201 and 900; one misses; two diverge, one
# of them after it had reached the goal.
WHOLE = [
    (8, 1.0, 100, "complete", 1000, "budget"),
    (8, 0.1, 200, "complete", 1000, "budget"),
    (8, 10.0, 150, "complete", 1000, "budget"),
    (8, 0.05, 201, "complete", 1000, "budget"),
    (8, 0.02, 900, "complete", 1000, "budget"),
    (8, 0.01, MISS, "complete", 1000, "budget"),
    (8, 50.0, 50, "infeasible", 400, "diverged"),
    (8, 90.0, MISS, "infeasible", 20, "diverged"),
]


def shares(trials=WHOLE, space=SPACE, **arguments):
    measurements, table = tables(trials)
    return sensitivity(measurements, GOAL, trials=table, space=space, **arguments).iloc[0]


def test_shares_are_counted_over_all_trials():
    row = shares()
    assert (row["trials"], row["steps"]) == (8, 100)
    assert (row["reached"], row["near"], row["infeasible"]) == (5 / 8, 3 / 8, 2 / 8)
    # From 0.1 to 10 are two of four decades.
    assert row["learning_rate_width"] == pytest.approx(0.5)
    assert shares(within=1.0)["near"] == 1 / 8
    assert shares(within=10.0)["near"] == 5 / 8


def test_a_wilson_interval_is_that_of_the_formula():
    row, z, n, p = shares(), 1.6448536269514722, 8, 5 / 8
    middle = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    assert (row["reached_low"], row["reached_high"]) == (
        pytest.approx(middle - half),
        pytest.approx(middle + half),
    )
    assert shares(confidence=0.5)["reached_low"] > row["reached_low"]


def test_a_trial_that_diverged_counts_until_then_by_the_rule_of_the_first_crossing():
    row = shares(feasible_trials=7)
    assert (row["steps"], row["reached"], row["near"]) == (50, 6 / 8, 2 / 8)
    assert row["infeasible"] == 2 / 8


@pytest.mark.parametrize(
    "budget", [{"max_steps": 200}, {"max_epochs": 1.6, "train_examples": 1000}]
)
def test_under_a_budget_only_what_happened_within_it_counts(budget):
    row = shares(**budget)
    # The trial that diverged at step 400 had not by step 200, and had reached the goal at 50.
    assert (row["steps"], row["reached"], row["near"]) == (50, 4 / 8, 2 / 8)
    assert row["infeasible"] == 1 / 8
    tight = shares(max_steps=40)
    assert (tight["steps"], tight["reached"], tight["infeasible"]) == (MISS, 0, 1 / 8)
    assert math.isnan(tight["near"])
    assert math.isnan(tight["learning_rate_width"])


def test_of_trials_stopped_early_only_the_share_near_the_best_is_known():
    cut = [
        (size, rate, crossing if crossing <= 300 else MISS, status, min(trained, 300), reason)
        if status == "infeasible"
        else (size, rate, crossing if crossing <= 300 else MISS, status, 300, "factor")
        for size, rate, crossing, status, trained, reason in WHOLE
    ]
    row = shares(cut)
    assert row["near"] == 3 / 8
    assert math.isnan(row["reached"])
    assert math.isnan(row["reached_low"])
    assert shares(cut, max_steps=300)["reached"] == 4 / 8
    message = (
        "sensitivity: trials within 4 times the fewest steps to validation/error < 0.5: the curves "
        "are too short to tell: at batch size 8, trial 4 was trained for 300 steps (factor) of "
        "400. To know, train on with study.extend(folder, stop=4.0)."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        shares(cut, within=4)


def test_each_trial_to_its_own_crossing_is_enough():
    own = [
        (*trial[:4], int(trial[2]), "own crossing")
        if trial[3] == "complete" and trial[2] < MISS
        else trial
        for trial in WHOLE
    ]
    pd.testing.assert_series_equal(shares(own), shares())


def test_a_budget_longer_than_the_training_is_refused():
    with pytest.raises(ValueError, match=re.escape("study.extend(folder, max_steps=...)")):
        shares([(8, 1.0, 900, "complete", 1000, "budget"), WHOLE[5]], max_steps=1500)


@given(order=st.permutations(range(len(WHOLE))), factor=st.integers(1, 9))
@settings(deadline=None, max_examples=15)
def test_neither_the_numbers_of_trials_nor_a_common_factor_of_steps_change_shares(order, factor):
    scaled = [
        (size, rate, crossing * factor, status, trained * factor, reason)
        for size, rate, crossing, status, trained, reason in (WHOLE[place] for place in order)
    ]
    row = shares(scaled)
    assert row["steps"] == 100 * factor
    pd.testing.assert_series_equal(row.drop("steps"), shares().drop("steps"))


def test_reruns_and_refinements_are_no_part_of_the_search_and_choices_have_no_width():
    measurements, table = tables(WHOLE)
    refined = table.iloc[[0]].assign(origin="refine").rename(index={0: 99}, level="trial")
    rerun = table.iloc[[0]].assign(origin="confirm").rename(index={0: 1}, level="replicate")
    more = pd.concat([table, refined, rerun]).assign(momentum=0.9)
    space = SearchSpace(learning_rate=LogUniform(0.01, 100), momentum=Choice([0.0, 0.9]))
    found = sensitivity(measurements, GOAL, trials=more, space=space)
    pd.testing.assert_series_equal(found.iloc[0], shares())


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (
            {"max_steps": 5, "max_epochs": 1},
            ValueError,
            "max_steps, max_epochs: give one budget, or none.",
        ),
        (
            {"max_epochs": 1},
            ValueError,
            "max_epochs: needs train_examples, the size of the training set.",
        ),
        ({"max_steps": 0}, ValueError, "max_steps: got 0, wanted a number above 0."),
        (
            {"within": 0.5},
            ValueError,
            "within: got 0.5, wanted a factor of at least 1, such as 2.0.",
        ),
        (
            {"confidence": 2},
            ValueError,
            "confidence: got 2, wanted a number between 0 and 1.",
        ),
        (
            {"space": SearchSpace(beta=LogUniform(0.1, 1))},
            KeyError,
            "sensitivity: no column 'beta' in the trials. Give the space that they were drawn "
            "from.",
        ),
    ],
)
def test_arguments_are_checked(arguments, error, message):
    with pytest.raises(error, match=re.escape(message)):
        shares(**arguments)


def test_the_figure_draws_the_shares_that_are_known_with_their_intervals():
    measurements, table = tables([*WHOLE, (16, 1.0, 10, "complete", 30, "factor"), (
        16, 0.1, MISS, "complete", 30, "factor")])  # fmt: skip
    asked = {}

    def analysed(**arguments):
        asked.update(arguments)
        return sensitivity(measurements, GOAL, trials=table, space=SPACE)

    result = SimpleNamespace(name="digits/fc_64, sgd", goal=GOAL, sensitivity=analysed)
    ax = plots.sensitivity(result, max_steps=1000)
    lines = {line.get_label(): line.get_ydata().tolist() for line in ax.get_lines()}
    np.testing.assert_equal(
        lines,
        {
            "reaches the goal": [5 / 8, math.nan],
            "within 2 times the fewest steps": [3 / 8, 1 / 2],
            "diverged": [2 / 8, 0],
        },
    )
    assert asked == {"within": 2.0, "max_steps": 1000, "max_epochs": None}
    assert ax.get_title() == "digits/fc_64, sgd, validation error < 0.5 in 1,000 steps"
    assert len(ax.collections) == 3
    plt.close("all")
