"""What a result says of its own study is what the analyses say of its tables."""

import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import batchscale as bs
from batchscale import metrics
from batchscale.plan import Definition
from batchscale.records import MEASUREMENT_INDEX, TRIAL_INDEX, measurement_table, trial_table
from batchscale.result import Result
from batchscale.runner import sweep
from batchscale.stopping import evaluation_grid


@pytest.fixture(scope="module")
def result(square, tmp_path_factory):
    study = bs.Study(
        workload=square,
        optimizer="sgd",
        space=bs.SearchSpace(learning_rate=bs.LogUniform(0.05, 5)),
        batch_sizes=[4, 16],
        goal=bs.Goal("validation/error", 0.4),
        trials=8,
        max_steps=400,
        stop=3.0,
        seed=0,
    )
    return study.run(tmp_path_factory.mktemp("study"), progress=False)


HARDER = bs.Goal("validation/error", 0.38)


@pytest.mark.parametrize("goal", [None, HARDER])
def test_analyses_of_a_result_are_those_of_its_tables(result, goal):
    tables = {"trials": result.trials, "feasible_trials": 8}
    wanted = goal or result.goal
    pd.testing.assert_frame_equal(
        result.learning_rates(goal),
        bs.scaling.learning_rates(result.measurements, wanted, **tables),
        check_exact=True,
    )
    pd.testing.assert_frame_equal(
        result.sensitivity(goal, max_epochs=1),
        bs.tuner.sensitivity(
            result.measurements,
            wanted,
            space=result.space,
            max_epochs=1,
            train_examples=100,
            **tables,
        ),
        check_exact=True,
    )
    steps = result.steps_to_target(goal)
    pd.testing.assert_frame_equal(
        result.frontier(goal, seconds_per_step=2.0),
        bs.scaling.frontier(steps, seconds_per_step=2.0),
        check_exact=True,
    )
    words = result.recommend(goal, confirmed=False).sentences
    assert words[:-1] == bs.scaling.recommend(steps).sentences
    assert words[-1].startswith("Steps are those of the best of ")


def test_learning_rates_of_a_study_surround_its_winners(result):
    table = result.learning_rates()
    assert table["steps"].tolist() == result.steps_to_target()["steps"].tolist()
    rates = result.optima()["learning_rate"]
    assert table["effective_learning_rate"].tolist() == rates.tolist()
    assert ((table["usable_low"] <= rates) & (rates <= table["usable_high"])).all()


def test_a_metric_that_is_never_a_number_is_told_and_one_that_is_not_so_is_not():
    keys = [(8, 0, 0, step) for step in (0, 1)]
    index = pd.MultiIndex.from_tuples(keys, names=bs.records.MEASUREMENT_INDEX)
    table = pd.DataFrame(
        {"validation/error": [0.9, 0.1], "validation/r2": np.nan, "validation/once": [1.0, np.nan]},
        index,
    )
    trials = pd.DataFrame(
        {"status": ["complete"]},
        pd.MultiIndex.from_tuples([(8, 0, 0)], names=bs.records.TRIAL_INDEX),
    )
    steps = pd.DataFrame({"batch_size": [8], "steps": [1.0]})
    with pytest.warns(UserWarning, match=r"^validation/r2: not a number in any evaluation") as told:
        sweep.warn_of_misses(steps, table, trials, bs.Goal("validation/error", 0.2))
    assert len(told) == 1


EASY, HARD = bs.Goal("validation/error", 0.2), bs.Goal("validation/error", 0.1)


def of_two_goals(goal):
    """A study whose best learning rate is in the middle for the easy goal, and at the edge else."""
    sizes, rates = [2**k for k in range(2, 12)], np.geomspace(0.01, 1, 24)
    grid, random = evaluation_grid(60_000, 0.03), np.random.default_rng(0)
    rows, trials = {}, {}
    for size in sizes:
        for trial, rate in enumerate(rates):
            far, base = np.log10(rate / 0.1), 60 * (1 + 64 / size)
            easy = base * np.exp(far**2 + 0.02 * random.normal())
            hard = 4 * base * np.exp(1.2 * (1 - far) + 0.02 * random.normal())
            for step in grid:
                error = 0.9 if step < easy else 0.15 if step < max(hard, 1.2 * easy) else 0.05
                rows[size, trial, 0, step] = error
            trials[size, trial, 0] = {
                "learning_rate": rate, "origin": "plan", "status": "complete",
                "steps_trained": 60_000, "stop_reason": "budget",
            }  # fmt: skip
    index = pd.MultiIndex.from_tuples(list(rows), names=MEASUREMENT_INDEX)
    curves = measurement_table(pd.DataFrame({"validation/error": list(rows.values())}, index))
    index = pd.MultiIndex.from_tuples(list(trials), names=TRIAL_INDEX)
    table = pd.DataFrame(list(trials.values()), index)
    table["first_crossing"] = metrics.first_crossings(curves, goal)["first_crossing"]
    definition = Definition(
        workload="own", optimizer="sgd", schedule="constant", goal=goal, trials=24,
        spaces=dict.fromkeys(sizes, bs.SearchSpace(learning_rate=bs.LogUniform(0.01, 1))),
        max_infeasible=0, max_steps=dict.fromkeys(sizes, 60_000), earlier_budgets={},
        stop="budget", curves="exact", evaluation_spacing=0.03, seed=0, train_examples=10**6,
    )  # fmt: skip
    return Result(Path("none"), definition, trial_table(table), curves)


def test_edges_are_crowded_by_the_trials_that_lead_to_the_goal_that_is_asked_for():
    of_easy, of_hard = of_two_goals(EASY), of_two_goals(HARD)
    for goal, quoted in ((EASY, True), (HARD, False)):
        found = {str(study.scaling(goal)) for study in (of_easy, of_hard)}
        found.add(str((of_easy if goal == EASY else of_hard).scaling()))
        assert len(found) == 1
        assert ("crowd" not in found.pop()) == quoted


def test_a_goal_of_a_split_that_was_seldom_measured_is_told(square, tmp_path):
    arguments = {
        **{"workload": square, "optimizer": "sgd", "batch_sizes": [4, 8, 16, 32], "trials": 8},
        "space": bs.SearchSpace(learning_rate=bs.LogUniform(0.05, 5)),
        **{"goal": bs.Goal("validation/error", 0.4), "max_steps": 400, "stop": "budget"},
    }
    other = bs.Goal("test/error", 0.42)
    seldom = bs.Study(**arguments).run(tmp_path / "seldom", progress=False)
    with pytest.warns(UserWarning, match=r"'test' was measured at \d+% of the evaluations alone"):
        seldom.steps_to_target(other)
    with pytest.warns(UserWarning, match="may be far off"):
        assert "may be far off" in " ".join(seldom.scaling(other).cautions)
    often = bs.Study(**arguments, evaluate=bs.Evaluate(every=1.01, share=None))
    always = often.run(tmp_path / "always", progress=False)
    assert always.steps_to_target(other)["steps"].le(seldom_steps(seldom, other)).all()


def seldom_steps(result, goal):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return result.steps_to_target(goal)["steps"]
