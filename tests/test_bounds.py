"""Evaluations that end when they are decided: the same answers, and bounds that hold."""

import dataclasses
import re
import shutil
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from helpers import perceptron, points
from hypothesis import given
from hypothesis import strategies as st

import batchscale as bs
from batchscale import metrics
from batchscale.engine import layout
from batchscale.engine.engine import Engine
from experiments import catalogue, record

GOAL = bs.Goal("validation/error", 0.15)
VALIDATION = 1_100  # from 1,000 on, evaluations may be cut short


def study(**changes):
    fields = {
        "workload": perceptron(validation=VALIDATION),
        "optimizer": "momentum",
        "space": bs.SearchSpace(
            learning_rate=bs.LogUniform(1e-2, 1e20), momentum=bs.ReverseLogUniform(0.5, 0.99)
        ),
        "batch_sizes": [8, "full"],
        "goal": GOAL,
        "trials": 7,
        "max_steps": 120,
        "lanes": 2,
    }
    return bs.Study(**fields | changes)


@pytest.fixture(scope="module")
def exact(tmp_path_factory):
    return study(curves="exact").run(tmp_path_factory.mktemp("exact"), progress=False)


@pytest.fixture(scope="module")
def bounded(tmp_path_factory):
    return study().run(tmp_path_factory.mktemp("bounded"), progress=False)


def assert_bounds_hold(bounded: bs.Result, exact: bs.Result) -> None:
    """The trials are the same, and so are the measurements but for bounds, which are true."""
    pd.testing.assert_frame_equal(bounded.trials, exact.trials, check_exact=True)
    pd.testing.assert_frame_equal(
        bounded.steps_to_target(), exact.steps_to_target(), check_exact=True
    )
    goal = exact.goal
    assert bounded.measurements.index.equals(exact.measurements.index)
    found, truth = bounded.measurements, exact.measurements[goal.metric]
    cut = found[goal.metric].isna()
    assert 0.2 < cut.mean() < 1
    bound = found[goal.bound]
    assert bound.notna().equals(cut)
    assert not goal.reached(bound[cut]).any()
    beyond = bound <= truth if goal.mode == "min" else bound >= truth
    assert beyond[cut].all()
    assert (bound != truth)[cut].any()
    for name in exact.measurements:
        both = found[name].notna() & exact.measurements[name].notna()
        assert both.any()
        pd.testing.assert_series_equal(found[name][both], exact.measurements[name][both])
        if name.startswith("validation/"):
            assert found[name][~cut].notna().equals(exact.measurements[name][~cut].notna())


def test_bounds_change_no_trial_and_no_answer(bounded, exact):
    assert (exact.trials["status"] == "infeasible").any()  # divergence is found all the same
    assert_bounds_hold(bounded, exact)


@pytest.mark.filterwarnings("ignore:no trial reached")
def test_whole_evaluations_are_made_now_and_then_and_at_the_last_step(tmp_path):
    some = study(batch_sizes=[8], max_steps=70, goal=bs.Goal("validation/error", 0.001))
    result = some.run(tmp_path, progress=False)
    rows = result.measurements.reset_index("step").set_index("step")
    for metric, steps in {
        "validation/error": {66, 70},
        "train/error": {66, 70},
        "test/error": {70},
    }.items():
        assert set(rows.index[rows[metric].notna()]) == steps


def test_the_bound_is_the_goal_itself(bounded):
    """So it does not depend on the order in which examples were looked at."""
    assert set(bounded.measurements[GOAL.bound].dropna()) == {0.15}


@pytest.mark.filterwarnings("ignore:no trial reached")
@pytest.mark.parametrize(
    "together", [2, *(pytest.param(n, marks=pytest.mark.long) for n in (1, 4))]
)
@pytest.mark.slow
def test_lanes_that_are_evaluated_together_are_cut_as_if_alone(
    together, bounded, tmp_path, monkeypatch
):
    choose = layout.choose
    monkeypatch.setattr(
        layout,
        "choose",
        lambda *a, **k: choose(*a, **k)._replace(lanes=4, evaluation_lanes=together),
    )
    result = study(batch_sizes=[8], max_steps=40, stop="budget").run(
        tmp_path / "together", progress=False
    )
    monkeypatch.undo()
    exact = study(batch_sizes=[8], max_steps=40, stop="budget", curves="exact", lanes=4).run(
        tmp_path / "exact", progress=False
    )
    assert_bounds_hold(result, exact)


@pytest.mark.slow
def test_a_metric_that_grows_is_bounded_from_above(tmp_path):
    goal = bs.Goal("validation/accuracy", 0.85, "max")
    some = study(goal=goal, batch_sizes=[8], stop=1.5)
    result = some.run(tmp_path / "bounds", progress=False)
    exact = dataclasses.replace(some, curves="exact").run(tmp_path / "exact", progress=False)
    assert_bounds_hold(result, exact)
    assert goal.bound == "validation/accuracy_at_most"


@pytest.mark.slow
def test_extending_by_exact_curves_measures_what_was_only_bounded(exact, tmp_path):
    some = study()
    some.run(tmp_path, progress=False)
    with pytest.raises(ValueError, match="curves: 'bounds' there, 'exact' here"):
        dataclasses.replace(some, curves="exact").run(tmp_path, progress=False)
    extended = some.extend(tmp_path, curves="exact", progress=False)
    goal_split = [name for name in exact.measurements if name.startswith("validation/")]
    pd.testing.assert_frame_equal(
        extended.measurements[goal_split], exact.measurements[goal_split], check_exact=True
    )
    pd.testing.assert_frame_equal(extended.trials, exact.trials, check_exact=True)
    assert extended.definition.curves == "exact"
    told = []
    some.run(tmp_path, progress=told.append)
    assert all(progress.finished for progress in told)  # no bound is left to be measured again


@pytest.mark.filterwarnings("ignore:no trial reached")
@pytest.mark.slow
def test_an_interrupted_extension_by_exact_curves_goes_on_where_it_was(tmp_path):
    some = study(batch_sizes=[8, 16], trials=2)
    first = some.run(tmp_path, progress=False)
    told = []

    def interrupt(progress):
        told.append(progress.step)
        if len(told) == 12:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        some.extend(tmp_path, trials=7, curves="exact", progress=interrupt)
    later = bs.load(tmp_path)  # whose turn has not come
    pd.testing.assert_frame_equal(later.trials.loc[[16]], first.trials.loc[[16]])
    pd.testing.assert_frame_equal(later.measurements.loc[[16]], first.measurements.loc[[16]])
    more = []
    result = some.extend(
        tmp_path,
        trials=7,
        curves="exact",
        progress=lambda p: more.append(p.step) if p.batch_size == 8 else None,
    )
    assert min(more) >= told[-2] > 0
    assert result.measurements["validation/error"].notna().all()
    ends = result.measurements.reset_index("step").groupby(["batch_size", "trial", "replicate"])
    feasible = result.trials["status"] == "complete"
    last, trained = ends["step"].max(), result.trials["steps_trained"]
    pd.testing.assert_series_equal(last[feasible], trained[feasible], check_names=False)


def test_what_a_cut_evaluation_does_not_tell_is_refused(bounded):
    for goal in (bs.Goal("validation/loss", 0.01), bs.Goal("validation/error", 0.99, "max")):
        with pytest.raises(ValueError, match="is not known: the evaluation was cut short"):
            metrics.steps_to_target(bounded.measurements, goal)
    with pytest.raises(ValueError, match="cut short"):
        metrics.best_measurement(bounded.measurements, "validation/loss")


def test_an_easier_goal_is_refused_where_it_hangs_on_a_bound(bounded, exact):
    easier = bs.Goal("validation/error", 0.2)
    message = "it is only known that validation/error is at least 0."
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        bounded.steps_to_target(easier)
    assert 'study.extend(folder, curves="exact")' in str(caught.value)
    assert len(exact.steps_to_target(easier)) == 2
    harder = bs.Goal("validation/error", 0.14)  # no bound is past it, but curves may be short
    with pytest.raises(ValueError, match="too short"):
        bounded.steps_to_target(harder)


def test_the_best_measurement_is_refused_where_it_may_be_a_bound(bounded):
    best = metrics.best_measurement(bounded.measurements, "validation/error")
    assert GOAL.reached(best["value"]).all()
    steps = bounded.measurements.index.get_level_values("step")
    before = bounded.measurements[steps < 8]
    with pytest.raises(ValueError, match="cut short"):
        metrics.best_measurement(before, "validation/error")


@pytest.mark.slow
def test_a_sum_of_integers_that_is_no_count_is_refused(tmp_path):
    workload = perceptron(validation=VALIDATION)

    def squares(params, model_state, batch):
        found = workload.metrics(params, model_state, batch)
        label = batch["label"]
        return found | {"error": ((label * label).sum(), jnp.asarray(label.size))}

    some = study(workload=dataclasses.replace(workload, metrics=squares), batch_sizes=[8])
    with pytest.raises(ValueError, match=re.escape("(0 <= sum <= count")):
        some.run(tmp_path, progress=False)


def test_values_that_are_no_booleans_are_never_cut_short(tmp_path):
    """Integers an example are summed as floats: they may be anything."""
    data = {"train": points(64), "validation": points(VALIDATION, 1)}
    workload = bs.Workload.from_functions(
        init=lambda key: {"w": jax.random.normal(key, (2,))},
        loss=lambda params, batch: (
            (batch["input"] @ params["w"] - jnp.float32(batch["label"])) ** 2
        ),
        metrics={"off": lambda params, batch: (batch["input"] @ params["w"]).astype(int) - 5},
        data=data,
    )
    some = bs.Study(
        workload=workload,
        optimizer="sgd",
        space=bs.SearchSpace(learning_rate=0.1),
        batch_sizes=[8],
        goal=bs.Goal("validation/off", -100.0),
        trials=2,
        max_steps=10,
    )
    with pytest.warns(UserWarning, match="no trial reached"):
        result = some.run(tmp_path, progress=False)
    assert result.measurements["validation/off"].notna().all()
    assert "validation/off_at_least" not in result.measurements


@given(value=st.floats(0, 1), count=st.integers(1, 3000), mode=st.sampled_from(["min", "max"]))
def test_the_limit_is_the_nearest_count_that_is_not_past_the_goal(value, count, mode):
    goal = bs.Goal("validation/x", value, mode)
    misses = np.flatnonzero(~goal.reached(np.arange(count + 1) / count))
    if mode == "min":
        assert goal.limit(count) == (misses[0] if len(misses) else count + 1)
    else:
        assert goal.limit(count) == (misses[-1] if len(misses) else -1)


@pytest.mark.slow
def test_a_confirmation_is_as_whole_as_its_study_and_answers_easier_goals(tmp_path, monkeypatch):
    some = study(
        batch_sizes=[8], stop=3.0, trials=8, space=bs.SearchSpace(learning_rate=0.1, momentum=0.9)
    )
    seeds = {"settings": 1, "selection_seeds": 2, "seeds": 3, "progress": False}
    easier = bs.Goal("validation/error", 0.2)
    whole = dataclasses.replace(some, curves="exact")
    whole.run(tmp_path / "whole", progress=False)
    expected = whole.confirm(tmp_path / "whole", **seeds)
    told = whole.estimate(tmp_path / "whole", call="confirm", **_numbers(seeds))
    assert not told["examples"].any()  # nothing is left of it
    some.run(tmp_path / "some", progress=False)
    first = some.confirm(tmp_path / "some", **seeds)
    pd.testing.assert_frame_equal(first.table, expected.table)
    with pytest.raises(ValueError, match=re.escape("and study.confirm again")):
        bs.load(tmp_path / "some").confirmation(easier)
    some.extend(tmp_path / "some", curves="exact", progress=False)
    entry = catalogue.Entry("", "", {"batch_sizes": (8,), "stop": 3.0}, goals=(easier.value,))
    task = record.Task("", "", entry, True, tmp_path / "some")
    assert record.state(task) == "to be confirmed"
    shutil.copytree(tmp_path / "some", tmp_path / "there")
    left = whole.estimate(tmp_path / "some", call="confirm", **_numbers(seeds))
    assert left["examples"].all()
    with monkeypatch.context() as patched:
        patched.setattr(Engine, "start", _no_memory)
        with pytest.raises(RuntimeError, match="no memory"):
            whole.confirm(tmp_path / "some", **seeds)
    kept = bs.load(tmp_path / "some").confirmation()  # until there is something in its place
    pd.testing.assert_frame_equal(kept.table, first.table)
    again = whole.confirm(tmp_path / "some", **seeds)
    pd.testing.assert_frame_equal(again.table, expected.table)
    assert record.state(task) == "done"
    found = bs.load(tmp_path / "some").confirmation(easier)
    pd.testing.assert_frame_equal(
        found.table, bs.load(tmp_path / "whole").confirmation(easier).table
    )
    with ThreadPoolExecutor(1) as executor:
        whole.confirm(tmp_path / "there", **seeds, executor=executor)
    for table, other in zip(
        bs.records.load_tables(tmp_path / "some/confirm"),
        bs.records.load_tables(tmp_path / "there/confirm"),
        strict=True,
    ):
        pd.testing.assert_frame_equal(table, other)
    runs = bs.records.load_tables(tmp_path / "whole/confirm")[0].query("replicate > 2")
    first_past = (
        runs["validation/error"].loc[lambda error: error < 0.2].reset_index().groupby("replicate")
    )
    assert found.table["steps"].item() == first_past["step"].min().median()


def _no_memory(*_, **__):
    raise RuntimeError("no memory")


def _numbers(seeds):
    return {name: seeds[name] for name in ("settings", "selection_seeds", "seeds")}
