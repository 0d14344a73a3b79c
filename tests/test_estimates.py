"""What calls are said to cost beforehand, against what they do, and against closed forms."""

import dataclasses
import math
import re
import warnings

import numpy as np
import pandas as pd
import pytest
from helpers import study

import batchscale as bs
from batchscale.engine.engine import Engine
from batchscale.runner import rates
from batchscale.runner.rates import BOUNDED, Line, Rates
from batchscale.stopping import evaluation_grid

SIZES = [4, 32]
GRID = evaluation_grid(60, 0.1)


def small(square, **changes):
    return study(square, **{"batch_sizes": SIZES, "trials": 5, "max_steps": 60} | changes)


@pytest.fixture(scope="module")
def three(square):
    return small(square, stop=3.0, max_steps=150)


@pytest.fixture(scope="module")
def searched(three, tmp_path_factory):
    return three.run(tmp_path_factory.mktemp("searched"), progress=False)


def test_a_goal_that_is_never_reached_costs_what_is_said_at_most(square):
    some = small(square)
    most = some.estimate().set_index("batch_size")
    never = some.estimate(steps=dict.fromkeys(SIZES, 1000)).set_index("batch_size")
    same = ["max_steps", "trials", "examples", "flops", "goal_examples"]
    assert (most[same] == never[same]).all(axis=None)
    # Once more where a trial crosses the goal, which none does here.
    crossing = 5 * (most["other_examples"] - never["other_examples"]) / 5
    assert crossing.tolist() == [5 * 150] * 2


@pytest.mark.parametrize(
    ("stop", "steps"),
    [
        ("first", 5 * 10),
        (2.0, 5 * 21),  # the first evaluation from 20 on
        ("budget", 5 * 60),
        ("all", 10 + 30 + 3 * 60),  # half of them, rounded, from the first to three times it
    ],
)
def test_steps_to_the_goal_say_what_a_rule_to_stop_costs(square, stop, steps):
    assert {10, 21, 30, 60} <= {*GRID}
    some = small(square, stop=stop, evaluation_spacing=0.1)
    table = some.estimate(steps={4: 10, 32: 10})
    assert table["examples"].tolist() == [steps * size for size in SIZES]


def test_steps_between_known_ones_follow_a_curve(square):
    some = small(square, batch_sizes=[1, 10, 100], max_steps=1000, stop="first", trials=1)
    given = {1: 330, 100: 33}  # 30 (1 + 10 / B)
    table = some.estimate(steps=given)
    next_step = next(step for step in evaluation_grid(1000, 0.05) if step >= 60)
    assert table["examples"].tolist()[1] == 10 * next_step


def test_steps_may_be_a_table_or_a_series(square):
    table = pd.DataFrame({"batch_size": SIZES, "steps": [20.0, 10.0], "minutes": 1.0})
    some, series = small(square), table.set_index("batch_size")["steps"]
    wanted = some.estimate(steps={4: 20, 32: 10})
    for steps in (table, series):
        pd.testing.assert_frame_equal(some.estimate(steps=steps), wanted)
    with pytest.raises(TypeError, match="steps: got 20, wanted None"):
        some.estimate(steps=20)


def test_what_is_counted_is_what_is_done(three, searched):
    """Where the crossings are those of the tables, every step and every evaluation is counted."""
    trials, measured = searched.trials, searched.measurements
    assert (trials["status"] == "complete").all()
    for size in SIZES:
        own = trials.loc[size]
        pattern = three.estimate(steps={size: own["first_crossing"].min()})
        row = pattern.set_index("batch_size").loc[size]
        # By the rule, all of them run to three times the first crossing.
        assert row["examples"] == size * own["steps_trained"].sum()
        assert row["goal_examples"] == 70 * measured.loc[size, "validation/error"].notna().sum()


def test_what_is_on_disk_is_not_counted_again(three, searched):
    nothing = three.estimate(searched.folder, steps="likely")
    assert (nothing.drop(columns=["batch_size", "max_steps"]) == 0).all(axis=None)
    assert (three.estimate_seconds(searched.folder)["seconds"] == 0).all()
    more = dataclasses.replace(three, batch_sizes=[4, 16, 32])
    left = more.estimate(searched.folder, steps="likely").set_index("batch_size")
    assert (left["examples"] > 0).tolist() == [False, True, False]
    first = searched.steps_to_target().set_index("batch_size")["steps"]
    assert 16 * 5 * 3 * first[32] <= left.loc[16, "examples"] <= 16 * 5 * 3.2 * first[4]


def test_a_confirmation_costs_at_most_its_limits_and_likely_less(three, searched):
    numbers = {"settings": 2, "selection_seeds": 3, "seeds": 4, "patience": 2.0}
    asked = {"call": "confirm", **numbers}
    most = three.estimate(searched.folder, **asked).set_index("batch_size")
    likely = three.estimate(searched.folder, steps="likely", **asked).set_index("batch_size")
    grid = evaluation_grid(150, 0.05)
    for size, best in searched.steps_to_target()[["batch_size", "steps"]].to_numpy():
        limit = next(step for step in grid if step >= 2 * best)
        assert most.loc[size, "trials"] == 2 * 3 + 4
        assert most.loc[size, "examples"] == size * 10 * limit
        crossings = np.sort(searched.trials.loc[int(size), "first_crossing"])[:2]
        ends = [next(s for s in grid if s >= min(1.25 * at, limit)) for at in crossings]
        assert likely.loc[size, "examples"] == size * (7 * ends[0] + 3 * ends[1])
    assert (likely["examples"] < most["examples"]).all()


def test_a_refinement_runs_its_rounds_to_their_limits_at_most(three, searched):
    most = three.estimate(searched.folder, call="refine", rounds=2, trials=3, patience=2.0)
    grid = evaluation_grid(150, 0.05)
    for (size, best), (trials, examples) in zip(
        searched.steps_to_target()[["batch_size", "steps"]].to_numpy(),
        most[["trials", "examples"]].to_numpy(),
        strict=True,
    ):
        assert trials == 6
        assert examples == size * 6 * next(step for step in grid if step >= 2 * best)


def test_seconds_are_those_of_the_parts(square, monkeypatch):
    """By rates that are given: two lanes on two devices make packs of four trials."""
    given = Rates(
        opening=1.0,
        closing=0.5,
        evaluation=0.01,
        compilation={4: 2.0, 32: 3.0},
        steps={4: Line(0.1, 0.001), 32: Line(0.1, 0.002)},
        whole={"train": Line(0.0, 1.0), "validation": Line(0.2, 0.1), "test": Line(0.0, 2.0)},
        bounded=None,
        first=4.0,
    )
    asked = []

    def measured(training, definition, layout_of, sizes, chosen):
        asked.append(sizes)
        return given

    monkeypatch.setattr(rates, "measured", measured)
    some = small(square, stop="budget", max_steps=8)
    table = some.estimate_seconds(steps=dict.fromkeys(SIZES, 1000)).set_index("batch_size")
    assert asked == [SIZES]
    packs, evaluations, others = 2, 9, 5  # of five trials; steps 0 to 8; 0, 1, 2, 4, 8
    np.testing.assert_allclose(table["training_seconds"], [packs * 8 * 0.101, packs * 8 * 0.102])
    np.testing.assert_allclose(table["goal_seconds"], evaluations * (packs * 0.2 + 5 * 0.1))
    np.testing.assert_allclose(table["other_seconds"], others * 5 * 3.0)
    np.testing.assert_allclose(table["compilation_seconds"], [6.0, 3.0])
    np.testing.assert_allclose(table["host_seconds"], 0.5 + 0.5 + 9 * 0.01)
    parts = [name for name in table if str(name).endswith("_seconds")]
    np.testing.assert_allclose(table["seconds"], table[parts].sum(axis=1))


def test_an_evaluation_that_ends_early_costs_at_least_its_share():
    some = Rates(0, 0, 0, {}, {}, {"validation": Line(0.5, 10.0)}, Line(0.25, 1.0), 0)
    counts = rates.Counts(bounded=3, bounded_packs=2, whole={"validation": 4})
    counts.packs["validation"] = 1
    found = some.evaluations("validation", counts, "validation")
    assert found == pytest.approx(0.5 + 4 * 10.0 + 2 * 0.25 + 3 * BOUNDED * 10.0)


@pytest.mark.slow
def test_seconds_are_taken_of_real_steps_evaluations_and_compilations(square, monkeypatch):
    sizes = set()
    compiled = Engine.compiled

    def noted(self, batch_size, layout):
        sizes.add(batch_size)
        return compiled(self, batch_size, layout)

    monkeypatch.setattr(Engine, "compiled", noted)
    monkeypatch.setattr(rates, "_SECONDS", 0.0)
    some = small(square, batch_sizes=[2, 4, 8, 16, 32], max_steps=8, trials=3)
    table = some.estimate_seconds()
    assert sizes == {2, 8, 32}
    always = table.drop(columns=["batch_size", "compilation_seconds"])
    assert (always > 0).all(axis=None)
    assert table["compilation_seconds"].iloc[0] > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"call": "walk"}, "call: got 'walk', wanted 'run', 'refine' or 'confirm'"),
        ({"steps": "likely"}, "steps: got 'likely', and no folder"),
        ({"steps": {4: 0}}, "steps: got {4: 0}, wanted None, 'likely', or steps to the goal"),
        ({"call": "confirm", "seeds": 0}, "seeds: got 0"),
    ],
)
def test_what_cannot_be_estimated_is_refused(square, arguments, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        small(square).estimate(**arguments)


def test_another_study_in_the_folder_is_refused(three, searched):
    other = dataclasses.replace(three, seed=3)
    with pytest.raises(ValueError, match="holds another study"):
        other.estimate_seconds(searched.folder)


def test_nothing_is_likely_before_a_goal_is_reached(square, tmp_path):
    some = small(square, goal=bs.Goal("validation/error", 1e-9), max_steps=2)
    with pytest.warns(UserWarning, match="no trial reached"):
        some.run(tmp_path, progress=False)
    with pytest.raises(ValueError, match="no batch size has reached the goal yet"):
        some.estimate(tmp_path, steps="likely")
    assert not math.isnan(some.estimate(tmp_path)["flops"].sum())


def test_a_confirmation_where_no_trial_reached_the_goal_costs_nothing(square, tmp_path):
    never = {"goal": bs.Goal("validation/error", 1e-9), "max_steps": 10}
    some = small(square, **never)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        some.run(tmp_path, progress=False)
        table = some.estimate(tmp_path, call="confirm", steps=dict.fromkeys(SIZES, 5))
    assert not table["examples"].any()
