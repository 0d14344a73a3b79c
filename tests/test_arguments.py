"""What is no argument is refused with its name, by every public function that takes one."""

import copy
import math
import pickle
import re
from pathlib import Path

import jax
import numpy as np
import optax
import pandas as pd
import pytest
from helpers import perceptron
from helpers import study as small

import batchscale as bs

HUGE = 10**400


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("arguments") / "study"
    study().run(path, progress=False)
    return path


def study(**changes):
    wanted = {"batch_sizes": [8, 64], "max_steps": 40, "trials": 2, "stop": "budget"}
    return small(perceptron(), **wanted | {"goal": bs.Goal("validation/error", 0.3)} | changes)


@pytest.mark.parametrize("name", ["max_infeasible", "lanes", "microbatch", "trials", "curves"])
@pytest.mark.parametrize("value", ["automatic", pd.NA, 2.5, True, -1, HUGE, [1]])
def test_numbers_of_a_study_are_checked_where_it_is_written(name, value):
    with pytest.raises(ValueError, match=rf"^{name}: got "):
        study(**{name: value})


@pytest.mark.parametrize(
    ("name", "word"),
    [("max_infeasible", "auto"), ("lanes", None), ("microbatch", None), ("microbatch", "probe")],
)
def test_a_word_of_another_argument_is_refused(name, word):
    with pytest.raises(ValueError, match=rf"^{name}: got {word!r}, wanted an integer"):
        study(**{name: word})


def test_an_argument_that_is_refused_leaves_the_folder_as_it_was(folder):
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    for wrong in ({"max_infeasible": "auto"}, {"trials": 0}, {"progress": "no"}, {"devices": []}):
        with pytest.raises((ValueError, TypeError), match=rf"^{next(iter(wrong))}: got "):
            study().extend(folder, **wrong)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("chosen", ["cpu", 5, ["cpu"], [], "twice"])
def test_devices_are_devices_each_once(chosen, tmp_path):
    devices = [jax.devices()[0]] * 2 if chosen == "twice" else chosen
    with pytest.raises((ValueError, TypeError), match=r"^devices: got "):
        study().run(tmp_path / "study", progress=False, devices=devices)
    assert not (tmp_path / "study").exists()


@pytest.mark.parametrize("progress", ["no", 5, None, []])
def test_progress_is_a_switch_or_a_function(progress, tmp_path):
    with pytest.raises(TypeError, match=r"^progress: got "):
        study().run(tmp_path / "study", progress=progress)
    assert not (tmp_path / "study").exists()


@pytest.mark.parametrize("goal", ["validation/error", 5, ("validation/error", 0.1)])
def test_another_goal_is_a_goal(folder, goal):
    result = bs.load(folder)
    for call in (
        *(result.steps_to_target, result.scaling, result.learning_rates, result.frontier),
        *(result.recommend, result.sensitivity, result.tuning_curve),
        lambda goal: bs.metrics.steps_to_target(result.measurements, goal),
        lambda goal: bs.metrics.first_crossings(result.measurements, goal),
        lambda goal: bs.metrics.best_of(result.measurements, goal, n=1, trials=result.trials),
    ):
        with pytest.raises(TypeError, match=r"^goal: got .*, wanted a Goal"):
            call(goal)


@pytest.mark.parametrize("table", [None, [1, 2], "table"])
def test_measurements_are_a_table(table):
    goal = bs.Goal("validation/error", 0.6)
    for call in (bs.metrics.steps_to_target, bs.metrics.first_crossings):
        with pytest.raises(TypeError, match=r"^measurements: got a .*, wanted a pandas"):
            call(table, goal)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": [8]}, "batch_size: got [8], wanted one of the study's: 8, 64"),
        ({"batch_size": 7}, "batch_size: got 7, wanted one of the study's: 8, 64"),
        ({"replicate": 2**32}, "replicate: got 4294967296, wanted an integer, 0 to 4,294,967,295"),
        ({"trial": 2**32}, "trial: got 4294967296, wanted an integer, 0 to 4,294,967,295"),
    ],
)
def test_the_name_of_a_trial_is_checked(changes, message):
    with pytest.raises(ValueError, match="^" + re.escape(message)):
        study().run_trial(**{"batch_size": 8, "trial": 0, "steps": 1} | changes)


def test_names_of_files_workloads_and_models_are_words(folder):
    with pytest.raises(TypeError, match=r"^accept: got \[1\], wanted a list of names of files"):
        bs.load(folder, accept=[1])
    for name in (5, None):
        with pytest.raises(ValueError, match=rf"^workload: got {name}, wanted 'data set/model'"):
            bs.workloads.get(name)
        with pytest.raises(ValueError, match=rf"^name: '{name}' is not a model"):
            bs.models.get(name, 10)
    for classes in (2.5, math.nan, True, "10"):
        with pytest.raises(ValueError, match=r"^classes: got .*, wanted an integer, 2 or more"):
            bs.models.get("fc_8", classes)


def test_numbers_that_no_float_holds_are_refused():
    for make in (bs.LogUniform, bs.Uniform, bs.Integer):
        with pytest.raises(TypeError, match="must be a number"):
            make(1, HUGE)
    with pytest.raises(ValueError, match=r"^Goal: value must be a finite number"):
        bs.Goal("validation/error", HUGE)


def test_powers_of_two_are_between_two_numbers():
    assert bs.powers_of_two(1, 2**70)[-1] == 2**70
    assert bs.powers_of_two(3, np.float64(9)) == [4, 8]
    for wrong in ((1, math.inf), (True, 4), ("1", 4), (1, math.nan)):
        with pytest.raises(ValueError, match=r"powers_of_two: got .*, wanted two numbers"):
            bs.powers_of_two(*wrong)


@pytest.mark.parametrize(
    "through", [copy.copy, copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))]
)
def test_a_damage_comes_whole_from_another_process(through):
    for remedy in (None, "Mend it."):
        error = bs.DamagedError(Path("a/plan.json"), "changed.", name="plan.json", remedy=remedy)
        again = through(error)
        assert isinstance(again, bs.DamagedError)
        assert str(again) == str(error)
        assert (again.path, again.found, again.name) == (error.path, error.found, error.name)


def test_a_goal_that_holds_from_the_start_says_what_else_may_be_meant(tmp_path):
    with pytest.warns(UserWarning, match="choose a harder goal, or mode='max' if more of it is"):
        result = study(goal=bs.Goal("validation/accuracy", 0.99)).run(
            tmp_path / "study", progress=False
        )
    check = result.audit().of("goal hard enough")
    assert check.verdict == "fail"
    assert "mode='max'" in check.remedy
    with pytest.warns(UserWarning, match=r"choose a harder goal\.$"):
        study(goal=bs.Goal("validation/accuracy", 0.01, "max")).run(
            tmp_path / "other", progress=False
        )


def test_a_rate_that_nothing_calls_so_is_named():
    space = bs.SearchSpace(peak=bs.LogUniform(0.01, 1))
    with pytest.raises(ValueError, match=r'reads it as h\["learning_rate"\]'):
        study(optimizer=lambda h: optax.sgd(h["peak"]), space=space)
