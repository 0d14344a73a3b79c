"""What is measured besides the goal's split: which splits, on what, how often, at what price."""

import dataclasses
import itertools
import re

import numpy as np
import pandas as pd
import pytest
from helpers import perceptron, study

import batchscale as bs
from batchscale import plots, theory
from batchscale.evaluate import Work
from batchscale.plan import Plan
from batchscale.records import StudyFolder
from batchscale.stopping import evaluation_grid

GOAL_COLUMNS = ["validation/accuracy", "validation/error", "validation/loss"]


def small(**changes):
    return study(perceptron(), **{"batch_sizes": [4, 32], "trials": 3, "max_steps": 60} | changes)


def plan_of(folder):
    with StudyFolder.open(folder, write=False) as stored:
        return Plan.from_json(stored.read_plan() or {})


@pytest.fixture(scope="module")
def measured_all(tmp_path_factory):
    return small().run(tmp_path_factory.mktemp("all"), progress=False)


@pytest.fixture(scope="module")
def goal_alone(tmp_path_factory):
    return small(evaluate=bs.Evaluate(splits=[])).run(
        tmp_path_factory.mktemp("alone"), progress=False
    )


@pytest.mark.slow
def test_what_is_measured_besides_the_goal_changes_no_trial_and_no_crossing(
    measured_all, goal_alone, tmp_path
):
    some = bs.Evaluate(splits=["train"], examples={"train": 7}, every=1.5)
    part = small(evaluate=some).run(tmp_path, progress=False)
    for result, columns in ((goal_alone, []), (part, ["accuracy", "error", "loss"])):
        wanted = [f"train/{name}" for name in columns] + GOAL_COLUMNS
        assert result.measurements.columns.tolist() == wanted
        pd.testing.assert_frame_equal(result.trials, measured_all.trials, check_exact=True)
        pd.testing.assert_frame_equal(
            result.measurements[GOAL_COLUMNS],
            measured_all.measurements[GOAL_COLUMNS],
            check_exact=True,
        )
    sevenths = part.measurements["train/error"].dropna() * 7
    assert np.allclose(sevenths, sevenths.round())
    steps = set(part.measurements["train/error"].dropna().loc[4].index.get_level_values("step"))
    # 1.5 ** n on the grid: 1, 2, 3, 4, 6, 8, ...; and at the crossing.
    assert {0, 1, 2, 3, 4, 6, 8} <= steps
    assert not {5, 7} & steps - set(part.steps_to_target()["steps"])


@pytest.mark.parametrize(
    ("shapes", "examples"),
    [
        ({"image": (28, 28, 1), "label": ()}, 5000),  # one label
        ({"image": (32, 32, 3), "label": (1,)}, 5000),
        ({"text": (64,), "next": (64,)}, 78),  # 4,992 tokens
        ({"text": (257,)}, 64),  # no fewer than that
        ({"x": (2,), "y": (2,)}, 2500),
    ],
)
def test_of_train_as_many_examples_are_measured_as_have_5000_elements(shapes, examples):
    fields = {name: np.zeros((6000, *shape), np.uint8) for name, shape in shapes.items()}
    counts = bs.Evaluate().counts({"train": fields, "validation": fields}, "validation")
    assert counts == {"train": examples, "validation": 6000}
    # What steps to target are read off is not cut down.
    assert bs.Evaluate().counts({"train": fields}, "train") == {"train": 5000}


@pytest.mark.parametrize("share", [0.05, 0.2, 1.0])
@pytest.mark.parametrize("batch_size", [1, 4, 64, 4096])
@pytest.mark.parametrize("work", [Work(3e4, 1e4), Work(6e5, 2.7e5), Work(4e7, 1.3e7)])
def test_the_others_cost_at_most_their_share_of_the_training_before(share, batch_size, work):
    """Added up over the grid, from the operations; what is quick in any case costs ten steps."""
    evaluate = bs.Evaluate(share=share)
    counts = {"train": 5000, "validation": 3000, "test": 10_000}
    first = evaluate.first_steps(counts, "validation", batch_size, work)
    assert set(first) == {"train", "test"}
    grid = evaluation_grid(200_000, 0.05)
    for split, bounds in itertools.product(first, (True, False)):
        cost = counts[split] * work.evaluation
        steps = sorted(evaluate.steps(split, grid, first=first[split], bounds=bounds))
        for number, step in enumerate(steps, 1):
            spent, trained = number * cost, step * (2.5e6 + batch_size * work.training)
            # One more at the end of the budget may come at any time.
            assert step == grid[-1] or cost <= 10 * 2.5e6 or spent <= share / 2 * trained


def test_from_the_step_from_which_on_they_are_paid_for_they_are_measured(tmp_path, monkeypatch):
    monkeypatch.setattr("batchscale.evaluate.QUICK_STEPS", 0)
    monkeypatch.setattr(
        "batchscale.evaluate.STEP_OPERATIONS", 100.0
    )  # far less than an example of them
    some = small(batch_sizes=[4], stop="budget", evaluate=bs.Evaluate(share=4.0))
    result = some.run(tmp_path, progress=False)
    plan = plan_of(tmp_path)
    first = plan.measured_from[4]
    work = Work(some.workload.flops(names=["learning_rate"]), some.workload.evaluation_flops())
    for split, count in {"train": 100, "test": 50}.items():
        needed = count * work.evaluation / (2 * (100 + 4 * work.training))
        assert needed <= first[split] < 2 * needed
        steps = result.measurements[f"{split}/error"].dropna().index.get_level_values("step")
        crossings = set(result.trials["first_crossing"])
        assert 1 < first[split] <= min(set(steps) - crossings) < 2 * first[split]
        assert set(steps) & crossings  # each trial's own, whatever it costs


def test_another_choice_is_another_study_and_the_same_one_goes_on(goal_alone):
    some = small(evaluate=bs.Evaluate(splits=[]))
    pd.testing.assert_frame_equal(
        some.run(goal_alone.folder, progress=False).measurements,
        goal_alone.measurements,
        check_exact=True,
    )
    with pytest.raises(ValueError, match=re.escape("(evaluate: Evaluate(splits=(),")):
        small().run(goal_alone.folder, progress=False)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"splits": "train"}, "got splits='train', wanted names of splits, several"),
        ({"splits": ["trian"]}, "no split 'trian'; wanted any of train, validation, test"),
        ({"examples": {"train": 0}}, "examples of 'train': got 0, wanted an integer, 1 or more"),
        ({"examples": {"train": 2.5}}, "examples of 'train': got 2.5"),
        ({"examples": {"validation": 10}}, "the goal's split, which is always measured whole"),
        ({"every": 1}, "evaluate: every: got 1, wanted a number above 1, or None"),
        ({"examples": 5}, "got examples=5, wanted numbers of examples by split"),
        ({"examples": {1: 2, "a": 3}}, "wanted numbers of examples by split"),
        ({"splits": [1, "a"]}, "got splits=[1, 'a'], wanted names of splits"),
        ({"share": True}, "evaluate: share: got True"),
        ({"share": 0}, "evaluate: share: got 0, wanted a number above 0, or None"),
        ({"share": "0.2"}, "evaluate: share: got '0.2', wanted a number above 0"),
    ],
)
def test_bad_choices_are_refused_where_they_are_written(arguments, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        small(evaluate=bs.Evaluate(**arguments))


def test_examples_by_split_measure_no_split_that_is_none():
    found = small(evaluate={"train": None, "test": 9})
    assert found.evaluate == bs.Evaluate(splits=["test", "validation"], examples={"test": 9})
    assert found.workload.name == "square"
    assert small(evaluate={"test": 9}).evaluate == bs.Evaluate(examples={"test": 9})


def test_a_goal_on_a_part_of_its_split_is_another_workloads(tmp_path):
    whole = perceptron()
    some = study(
        whole, evaluate={"validation": 20, "train": None, "test": None}, batch_sizes=[4],
        goal=bs.Goal("validation/error", 0.6), trials=2, max_steps=40,
    )  # fmt: skip
    assert some.workload.name == "square (20 of validation)"
    assert some.evaluate == bs.Evaluate(splits=["validation"])
    result = some.run(tmp_path, progress=False)
    assert result.measurements.columns.tolist() == GOAL_COLUMNS
    kept = some.workload.splits()["validation"]["input"]
    every = whole.splits()["validation"]["input"]
    assert sorted(map(tuple, kept.tolist())) == [
        row for row in sorted(map(tuple, every.tolist())) if row in set(map(tuple, kept.tolist()))
    ]
    errors = result.measurements["validation/error"].dropna() * 20
    assert np.allclose(errors, errors.round())
    # As many as there are, or more, are the whole.
    assert small(evaluate={"validation": 10_000}).workload.name == "square"


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ({"validation": None}, "None for 'validation', the goal's split"),
        ({"validation": 0}, "examples of 'validation': got 0"),
        ({"test": 1.5}, "examples of 'test': got 1.5"),
        ({"dev": 10}, "no split 'dev'; wanted any of train, validation, test"),
    ],
)
def test_numbers_of_examples_that_measure_nothing_are_refused(counts, message):
    with pytest.raises(ValueError, match=message):
        small(evaluate=counts)


def test_a_study_of_a_part_measures_what_is_asked_of_it_later():
    part = small(evaluate={"validation": 20})
    examples = {
        str(asked): dataclasses.replace(part, evaluate=asked)._measured()["validation"]
        for asked in ({"validation": 50}, {"validation": 10}, {"train": None}, bs.Evaluate())
    }
    assert [*examples.values()] == [50, 10, 70, 20]
    assert dataclasses.replace(part, trials=2).workload is part.workload
    more = dataclasses.replace(part, evaluate={"validation": 50})
    assert more.workload.name == "square (50 of validation)"


def test_numpy_numbers_are_taken():
    some = bs.Evaluate(examples={"train": np.int64(7)}, every=np.float32(2), share=np.float64(0.5))
    assert bs.Evaluate.from_json(some.to_json()) == some
    assert some == bs.Evaluate(examples={"train": 7}, every=2.0, share=0.5)


def test_an_estimate_counts_evaluations():
    table = small(max_steps=8, trials=5).estimate().set_index("batch_size")
    # Steps 0 to 8 on the goal's split of 70; 0, 1, 2, 4, 8 and the crossing on 100 and 50.
    assert table["examples"].tolist() == [5 * 8 * 4, 5 * 8 * 32]
    assert table["goal_examples"].tolist() == [5 * 9 * 70] * 2
    assert table["other_examples"].tolist() == [5 * 6 * 150] * 2
    each = table["evaluation_flops"] / (table["goal_examples"] + table["other_examples"])
    assert (each == small().workload.evaluation_flops()).all()
    alone = small(max_steps=8, trials=5, evaluate=bs.Evaluate(splits=[])).estimate()
    assert (alone["other_examples"] == 0).all()


def test_analyses_say_what_was_not_measured(goal_alone):
    message = "Nothing of 'test' was measured: the study's evaluate=Evaluate(...) says"
    with pytest.raises(KeyError, match=re.escape(message)):
        goal_alone.steps_to_target(bs.Goal("test/error", 0.2))
    with pytest.raises(ValueError, match=re.escape(message)):
        plots.training_curves(goal_alone, batch_size=4, metric="test/error")
    with pytest.raises(KeyError) as caught:
        goal_alone.steps_to_target(bs.Goal("validation/acuracy", 0.2))
    assert "Nothing of" not in str(caught.value)
    assert not goal_alone.variants()["variant"].str.contains("test/|train/").any()
    assert len(goal_alone.audit().checks)


def test_one_trial_is_measured_on_the_split_that_it_is_run_until(goal_alone):
    some = small(evaluate=bs.Evaluate(splits=[]))
    run = some.run_trial(
        batch_size=4, trial=0, folder=goal_alone.folder, steps=4, until=bs.Goal("test/error", 0.01)
    )
    assert "test/error" in run.curve
    assert "train/error" not in run.curve


def test_generalisation_measures_what_it_needs(goal_alone):
    """The study itself measured nothing of it."""
    some = small(evaluate=bs.Evaluate(splits=[]))
    table = theory.generalisation(some, goal_alone, train_loss=0.8, examples=20, iterations=5)
    assert np.isfinite(table["gap"]).any()
