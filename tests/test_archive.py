"""The paper's archive, of files written here by hand, and our own results in its layout."""

import ast
import csv
import dataclasses
import json
import math
import re
import shutil
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from helpers import study

import batchscale as bs

RATE = {"type": "DOUBLE", "min_value": 0.001, "max_value": 10.0, "scale": "LOG_SCALE"}
MOMENTUM = {"type": "DOUBLE", "min_value": 0.9, "max_value": 0.999, "scale": "REVERSE_LOG_SCALE"}
GOAL = bs.Goal("validation/error", 0.03)
OPTIMIZER = "mnist/fc_128_128_128/nesterov_momentum"


def curve(errors, metric="val/classification_error"):
    """The rows of a `measurements.csv`, of errors by step."""
    return [["step", metric], *([step, error] for step, error in errors.items())]


def write(root, batch_size, trials, *, optimizer=OPTIMIZER, configs=None, about=None):
    """One batch size: of every trial its number, status, parameters and rows."""
    dataset, model, name = optimizer.split("/")[-3:]
    folder = root / optimizer / str(batch_size)
    folder.mkdir(parents=True)
    written = {
        "batch_size": batch_size,
        "dataset": dataset,
        "early_stopping": False,
        "model": model,
        "optimizer": name,
        "parameter_configs": {"learning_rate": RATE} if configs is None else configs,
        "train_steps": 100,
    }
    (folder / "study.json").write_text(json.dumps(written | (about or {})))
    for number, status, parameters, rows in trials:
        place = folder / str(number)
        place.mkdir()
        last = rows[-1][0] if len(rows) > 1 else 0
        said = {"trial_id": number, "status": status, "steps": last, "parameters": parameters}
        (place / "metadata.json").write_text(json.dumps(said))
        with open(place / "measurements.csv", "w", newline="") as file:
            csv.writer(file).writerows(rows)
    return root / optimizer


def trial(number, errors, status="COMPLETE", **parameters):
    return number, status, {"learning_rate": 0.1} | parameters, curve(errors)


def steps(result, goal=None):
    table = result.steps_to_target(goal).set_index("batch_size")
    return {size: (row["steps"], row["trial"]) for size, row in table.iterrows()}


def test_what_is_read_has_the_names_of_the_library(tmp_path):
    names = [f"{s}/{m}_error" for s in ("train", "val", "test")
             for m in ("cross_entropy", "classification")]  # fmt: skip
    rows = [["step", *names], [0, 6.9, 0.9, 6.8, 0.91, 6.7, 0.92], [100, 1, 0.1, 2, 0.2, 3, 0.3]]
    folder = write(tmp_path, 64, [(7, "COMPLETE", {"learning_rate": 0.5}, rows)])
    result = bs.load_archive(folder, goal=bs.Goal("validation/error", 0.25))
    assert result.name == "mnist/fc_128_128_128, nesterov"
    assert result.train_examples == 55_000
    assert result.measurements.loc[64, 7, 0, 100].to_dict() == {
        "train/loss": 1, "train/error": 0.1, "validation/loss": 2, "validation/error": 0.2,
        "test/loss": 3, "test/error": 0.3,
    }  # fmt: skip
    assert result.trials.loc[64, 7, 0].to_dict() == {
        "learning_rate": 0.5, "origin": "plan", "status": "complete", "steps_trained": 100,
        "stop_reason": "budget", "first_crossing": 100.0,
    }  # fmt: skip
    assert isinstance(result, bs.Result)


def test_average_precision_is_a_goal_that_grows(tmp_path):
    rows = curve({0: 0.1, 50: 0.31, 100: 0.32}, "val/average_precision")
    optimizer = "open_images_v4/resnet_50/nesterov_momentum"
    trials = [(1, "COMPLETE", {"learning_rate": 0.5}, rows)]
    folder = write(tmp_path, 64, trials, optimizer=optimizer)
    with pytest.raises(ValueError, match=r"^train_examples: it is not known how many .*images_v4"):
        bs.load_archive(folder)
    result = bs.load_archive(folder, train_examples=4_500_000)
    assert str(result.goal) == "validation/average_precision > 0.31"
    assert steps(result) == {64: (100, 1)}  # strictly past the goal


def test_a_run_that_reached_the_goal_and_diverged_later_does_not_count(tmp_path):
    folder = write(
        tmp_path,
        64,
        [
            trial(1, {0: 0.9, 10: 0.02, 60: "nan"}, "INFEASIBLE"),
            trial(2, {0: 0.9, 50: 0.03, 75: 0.029, 100: 0.5}),  # equal to the goal is not past it
            trial(3, {0: 0.9, 5: 0.01}, "INCOMPLETE"),
        ],
    )
    result = bs.load_archive(folder)
    assert steps(result) == {64: (75, 2)}
    assert result.trials["status"].to_dict() == {
        (64, 1, 0): "infeasible",
        (64, 2, 0): "complete",
    }
    assert result.trials.loc[(64, 1, 0), "first_crossing"] == 10
    assert result.trials.loc[(64, 1, 0), "steps_trained"] == 60
    overview = result.studies.set_index("batch_size").loc[64]
    assert overview[["complete", "incomplete", "infeasible"]].tolist() == [1, 1, 1]


def test_evaluations_need_no_even_spacing_nor_the_same_steps_in_all_trials(tmp_path):
    folder = write(
        tmp_path,
        64,
        [
            trial(1, {0: 0.9, 7: 0.5, 8: 0.4, 61: 0.02, 100: 0.02}),
            trial(2, {0: 0.9, 33: 0.2, 58: 0.01, 100: 0.4}),
        ],
    )
    row = bs.load_archive(folder).steps_to_target().iloc[0]
    assert (row["steps"], row["previous_evaluation"], row["trial"]) == (58, 33, 2)


def test_numbers_are_read_to_the_nearest_float(tmp_path):
    rng = np.random.default_rng(0)
    values = rng.uniform(0, 1, 300).tolist()
    folder = write(tmp_path, 64, [trial(1, {s: repr(v) for s, v in enumerate(values)})])
    assert bs.load_archive(folder).measurements["validation/error"].tolist() == values


def test_the_first_trials_are_those_with_the_lowest_numbers(tmp_path):
    """As numbers: 2 before 10; and the ones that are not complete do not count as trials."""
    some = {
        10: trial(10, {0: 0.9, 20: 0.01, 100: 0.01}),
        2: trial(2, {0: 0.9, 50: 0.01, 100: 0.01}),
        1: trial(1, {0: 0.9, 10: 0.01, 90: "nan"}, "INFEASIBLE"),
        3: trial(3, {0: 0.9, 70: 0.01, 100: 0.01}),
    }
    folder = write(tmp_path, 64, some.values())
    write(tmp_path, 8, [some[2], some[10], some[3]])
    result = bs.load_archive(folder, trials=2)
    assert result.trials.index.tolist() == [(8, 2, 0), (8, 3, 0), (64, 2, 0), (64, 3, 0)]
    assert steps(result) == {8: (50, 2), 64: (50, 2)}
    assert result.definition.trials == 2
    assert steps(bs.load_archive(folder, trials=3)) == {8: (20, 10), 64: (20, 10)}
    with pytest.raises(ValueError, match="got 4, and batch size 8 has 3 complete ones"):
        bs.load_archive(folder, trials=4)
    with pytest.raises(ValueError, match="trials: got 0, wanted an integer, 1 or more"):
        bs.load_archive(folder, trials=0)


def test_of_trials_that_get_there_at_the_same_step_the_lowest_number_wins(tmp_path):
    errors = {0: 0.9, 50: 0.01, 100: 0.02}
    folder = write(tmp_path, 64, [trial(n, errors) for n in (11, 9, 30)])
    assert steps(bs.load_archive(folder)) == {64: (50, 9)}


def test_a_missing_label_smoothing_is_none_and_others_are_not_known(tmp_path):
    smoothing = {"type": "DISCRETE", "feasible_points": [0.0, 0.01, 0.1]}
    errors = {0: 0.9, 50: 0.01, 100: 0.02}
    folder = write(
        tmp_path,
        64,
        [trial(1, errors, label_smoothing=0.1, l2=0.5), trial(2, errors, momentum=0.95)],
        configs={"learning_rate": RATE, "label_smoothing": smoothing, "momentum": MOMENTUM},
    )
    write(tmp_path, 8, [trial(1, errors, momentum=0.91), trial(2, errors, momentum=0.95)])
    result = bs.load_archive(folder)
    table = result.trials
    assert table["label_smoothing"].tolist() == [0, 0, 0.1, 0]
    np.testing.assert_array_equal(table["momentum"], [0.91, 0.95, math.nan, 0.95])
    np.testing.assert_array_equal(table["l2"], [math.nan, math.nan, 0.5, math.nan])
    # What momentum was drawn from at batch size 8 is not said, so that it is in no space.
    assert result.definition.spaces == {
        8: bs.SearchSpace(learning_rate=bs.LogUniform(0.001, 10), label_smoothing=0),
        64: bs.SearchSpace(
            learning_rate=bs.LogUniform(0.001, 10), label_smoothing=bs.Choice([0, 0.01, 0.1])
        ),
    }
    assert result.optima()["learning_rate"].tolist() == [0.1, 0.1]


def test_a_budget_of_time_makes_every_trial_complete_that_did_not_diverge(tmp_path):
    folder = write(
        tmp_path,
        64,
        [
            trial(1, {0: 0.9, 40: 0.5}, "INCOMPLETE"),
            trial(2, {0: 0.9, 50: 0.2, 90: 0.01}),
            trial(3, {0: 0.9, 60: "inf"}, "INFEASIBLE"),
        ],
        about={"train_steps": 0},
    )
    result = bs.load_archive(folder)
    assert result.trials["status"].tolist() == ["complete", "complete", "infeasible"]
    assert steps(result) == {64: (90, 2)}  # though trial 1 ended before
    hard = bs.Goal("validation/error", 0.001)
    assert result.steps_to_target(hard)["steps"].tolist() == [math.inf]
    assert steps(bs.load_archive(folder, trials=2)) == {64: (90, 2)}
    assert result.definition.max_steps == {64: 90}


def test_trials_that_ran_longer_than_asked_count_as_far_as_they_ran(tmp_path):
    folder = write(
        tmp_path, 64, [trial(1, {0: 0.9, 100: 0.5}), trial(2, {0: 0.9, 100: 0.2, 150: 0.01})]
    )
    result = bs.load_archive(folder)
    assert steps(result) == {64: (150, 2)}
    assert result.sensitivity()["reached"].tolist() == [0.5]
    within = bs.metrics.step_budget(result.measurements, 100, trials=result.trials)
    assert within.index.get_level_values("step").max() == 100
    with pytest.raises(
        ValueError, match=r"trial 1 was trained for 100 steps \(own budget\) of 120"
    ):
        bs.metrics.step_budget(result.measurements, 120, trials=result.trials)


@pytest.mark.parametrize("seed", range(3))
def test_steps_are_those_of_the_papers_definition(tmp_path, seed):
    """All rows of complete trials pooled, by step and then by trial: the first below the goal."""
    random = np.random.default_rng(seed)
    wanted = {}
    for size in (1, 16, 256):
        trials, rows = [], []
        for number in random.permutation(np.arange(1, 30))[:12].tolist():
            status = random.choice(["COMPLETE", "COMPLETE", "INCOMPLETE", "INFEASIBLE"])
            some = np.unique(random.integers(0, 60, random.integers(1, 20))).tolist()
            errors = {step: random.choice([0.02, 0.03, 0.5, 0.9, "nan"]) for step in some}
            trials.append(trial(number, errors, str(status)))
            if status == "COMPLETE":
                rows += [(step, number, float(error)) for step, error in errors.items()]
        trials.append(trial(30, {0: 0.9}))
        write(tmp_path, size, trials)
        past = [(step, number) for step, number, error in sorted(rows) if error < 0.03]
        wanted[size] = past[0] if past else (math.inf, None)
    result = bs.load_archive(tmp_path)
    found = {size: (s, None if n is pd.NA else n) for size, (s, n) in steps(result).items()}
    assert found == wanted


def test_analyses_take_trials_with_budgets_of_their_own(tmp_path):
    """Of a trial that ended without a crossing none is expected: no answer is refused for it."""
    trials = [
        trial(n, {0: 0.9, 10 * n: 0.02 if n > 3 else 0.5}, learning_rate=0.01 * n)
        for n in range(1, 13)
    ]
    result = bs.load_archive(write(tmp_path, 64, trials, about={"train_steps": 0}))
    assert steps(result) == {64: (40, 4)}
    assert result.sensitivity(within=2.0)["near"].tolist() == [5 / 12]  # 40 to 80 steps
    curve = result.tuning_curve().set_index("n")
    assert curve.loc[1, "share_reaching"] == pytest.approx(9 / 12)
    assert result.learning_rates()["steps"].tolist() == [40]
    assert result.variants().set_index("variant").loc["validation/error < 0.03", "steps"] == 40


def test_all_kinds_and_scales_of_hyperparameters(tmp_path):
    given = {
        "learning_rate": RATE,
        "momentum": MOMENTUM,
        "l2": {"type": "DOUBLE", "min_value": 0, "max_value": 1, "scale": "LINEAR_SCALE"},
        "decay": {"type": "INTEGER", "min_value": 50, "max_value": 100, "scale": ""},
        "smoothing": {"type": "DISCRETE", "feasible_points": [0.0, 0.1]},
        "fixed": {"type": "DISCRETE", "feasible_points": [0.3]},
    }
    wanted = bs.SearchSpace(
        learning_rate=bs.LogUniform(0.001, 10),
        momentum=bs.ReverseLogUniform(0.9, 0.999),
        l2=bs.Uniform(0, 1),
        decay=bs.Integer(50, 100),
        smoothing=bs.Choice([0, 0.1]),
        fixed=0.3,
    )
    values = {"momentum": 0.95, "l2": 0.5, "decay": 60, "smoothing": 0.1, "fixed": 0.3}
    trials = [trial(1, {0: 0.9, 100: 0.01}, **values)]
    folder = write(tmp_path / "by name", 64, trials, configs=given)
    assert bs.load_archive(folder).definition.spaces == {64: wanted}
    listed = [{"name": name, **config} for name, config in given.items()]
    folder = write(tmp_path / "listed", 64, trials, configs=listed)
    assert bs.load_archive(folder).definition.spaces == {64: wanted}
    # 1 - momentum is drawn log-uniformly: the middle of 0.1 and 0.001 is 0.01.
    (middle,) = wanted["momentum"].value(np.array([0.5]))
    assert middle == pytest.approx(0.99)


def test_a_workload_is_found_wherever_it_lies_and_several_are_listed(tmp_path):
    errors = {0: 0.9, 50: 0.01, 100: 0.02}
    subset = "mnist_subsets/mnist_27500/simple_cnn_base/nesterov_momentum"
    write(tmp_path, 64, [trial(1, errors)], optimizer=subset, about={"dataset": "mnist"})
    result = bs.load_archive(tmp_path / "mnist_subsets")
    assert (result.definition.workload, result.train_examples, str(result.goal)) == (
        "mnist_27500/simple_cnn_base",
        27_500,
        "validation/error < 0.02",
    )
    write(tmp_path, 64, [trial(1, errors)])
    with pytest.raises(
        ValueError, match=r"of 2 workloads .* mnist/fc_128_128_128/nesterov_momentum, mnist_subs"
    ):
        bs.load_archive(tmp_path)
    with pytest.raises(FileNotFoundError, match="no such folder"):
        bs.load_archive(tmp_path / "imagenet")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"there is no study\.json in it"):
        bs.load_archive(tmp_path / "empty")


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("study.json", '{"batch_size": 64, "dat', "not JSON"),
        ("study.json", "[]", "got list, wanted a record"),
        ("study.json", {"batch_size": "64"}, "batch_size: got '64', wanted a whole number, 1"),
        ("study.json", {"model": None}, "model: got None, wanted a word"),
        ("study.json", {"train_steps": -1}, "train_steps: got -1, wanted a whole number"),
        ("study.json", {"early_stopping": "no"}, "early_stopping: got 'no', wanted true or false"),
        ("study.json", {"parameter_configs": None}, "parameter_configs: got None, wanted a record"),
        (
            "study.json",
            {"parameter_configs": {"learning_rate": RATE | {"scale": "SQRT_SCALE"}}},
            "parameter_configs of 'learning_rate': got scale 'SQRT_SCALE', wanted one of LINEAR",
        ),
        (
            "study.json",
            {"parameter_configs": {"learning_rate": RATE | {"type": "CATEGORICAL"}}},
            "parameter_configs of 'learning_rate': got type 'CATEGORICAL', wanted DOUBLE",
        ),
        (
            "study.json",
            {"parameter_configs": {"learning_rate": {"type": "DOUBLE", "min_value": 1}}},
            "parameter_configs of 'learning_rate': max_value is None, but must be a number",
        ),
        ("study.json", {"_batchscale": {"stop": "first"}}, "not what batchscale wrote"),
        ("1/metadata.json", None, "metadata.json: cannot be read (No such file or directory)"),
        ("1/metadata.json", b"\xff\xfe", "not text"),
        ("1/metadata.json", '{"status": NaN}', "not JSON (got NaN, wanted a number)"),
        ("1/metadata.json", {"status": "DONE"}, "status: got 'DONE', wanted one of COMPLETE"),
        ("1/metadata.json", {"steps": 2.5}, "steps: got 2.5, wanted a whole number, 0 or more"),
        ("1/metadata.json", {"parameters": [0.1]}, "parameters: got [0.1], wanted a record"),
        (
            "1/metadata.json",
            {"parameters": {"learning_rate": "__import__('os').system('true')"}},
            "parameters: learning_rate is \"__import__('os').system('true')\", wanted a number",
        ),
        ("1/metadata.json", {"trial_id": 2}, "trial_id: got 2, which is that of"),
        ("1/metadata.json", {"_batchscale": {"origin": "luck"}}, "'luck' is not a valid Origin"),
        ("1/measurements.csv", None, "cannot be read"),
        ("1/measurements.csv", "", "got the columns none, wanted one named 'step'"),
        ("1/measurements.csv", "time,val/loss\n0,1\n", "the columns time, val/loss, wanted one na"),
        ("1/measurements.csv", "step,val/loss\n0,1\n50", "line 3: got 1 cells, wanted 2"),
        ("1/measurements.csv", "step,val/loss\n0,1_0\n", "line 2: got '1_0', wanted a number"),
        ("1/measurements.csv", "step,val/loss\n0,high\n", "line 2: got 'high', wanted a number"),
        ("1/measurements.csv", "step,val/loss\n0.5,1\n", "line 2: got step '0.5', wanted a whole"),
        ("1/measurements.csv", "step,val/loss\n1e300,1\n", "line 2: got step '1e300', wanted a w"),
        ("1/measurements.csv", "step,val/loss\n,1\n", "line 2: got step '', wanted a whole num"),
        ("1/measurements.csv", "step,val/loss,val/cross_entropy_error\n0,1,1\n", "two of its col"),
    ],
)
def test_damage_is_told_with_its_path(tmp_path, file, content, message):
    errors = {0: 0.9, 50: 0.01, 100: 0.02}
    folder = write(tmp_path, 64, [trial(1, errors), trial(2, errors)])
    path = folder / "64" / file
    if content is None:
        path.unlink()
    elif isinstance(content, dict):
        path.write_text(json.dumps(json.loads(path.read_text()) | content))
    elif isinstance(content, bytes):
        path.write_bytes(content)
    else:
        path.write_text(content)
    named = path.with_name("metadata.json").parent.with_name("2") / "metadata.json"
    with pytest.raises(bs.DamagedError, match=re.escape(message)) as error:
        bs.load_archive(folder)
    assert str(error.value).startswith(str(named if "trial_id" in message else path))


def test_a_file_that_ends_within_a_line_is_told(tmp_path):
    folder = write(tmp_path, 64, [trial(1, {0: 0.9, 10: 0.05, 20: 0.042})])
    path = folder / "64" / "1" / "measurements.csv"
    assert steps(bs.load_archive(folder, goal=bs.Goal("validation/error", 0.04)))[64][0] == np.inf
    path.write_text(path.read_text().rstrip()[:-2])  # 20,0.0
    with pytest.warns(UserWarning, match=r"1/measurements\.csv: it ends within a line"):
        cut = bs.load_archive(folder, goal=bs.Goal("validation/error", 0.04))
    assert steps(cut)[64][0] == 20  # hence the warning


def test_the_first_trials_are_those_of_the_lowest_numbers_whatever_their_folders(tmp_path):
    folder = write(tmp_path, 64, [trial(1, {0: 0.9, 20: 0.5}), trial(2, {0: 0.9, 20: 0.01})])
    for place, number in ((1, 2), (2, 1)):
        path = folder / "64" / str(place) / "metadata.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"trial_id": number}))
    assert steps(bs.load_archive(folder, trials=1, goal=bs.Goal("validation/error", 0.04))) == {
        64: (20, 1)
    }


def test_batch_sizes_of_an_archive_fit_one_another(tmp_path):
    errors = {0: 0.9, 50: 0.01, 100: 0.02}
    folder = write(tmp_path / "a", 8, [trial(1, errors)])
    write(tmp_path / "a", 64, [trial(1, errors)], about={"batch_size": 8})
    with pytest.raises(bs.DamagedError, match=r"8/study.json: it is of batch size 8, as is .*64/"):
        bs.load_archive(folder)
    folder = write(tmp_path / "b", 8, [trial(1, errors)])
    write(tmp_path / "b", 64, [trial(1, errors)], about={"model": "fc_1024"})
    with pytest.raises(bs.DamagedError, match="it is of workload 'mnist/fc_1024', and"):
        bs.load_archive(folder)
    folder = write(tmp_path / "c", 8, [trial(1, errors, "INCOMPLETE")])
    with pytest.raises(bs.DamagedError, match="batch size 8 has no complete and no infeasible"):
        bs.load_archive(folder)
    folder = write(tmp_path / "d", 60_000, [trial(1, errors)])
    with pytest.raises(ValueError, match=r"got 55,000, and .* is of batch size 60,000"):
        bs.load_archive(folder)
    folder = write(tmp_path / "e", 8, [trial(1, errors, trial=3)])
    with pytest.raises(ValueError, match="'trial' is already a column"):
        bs.load_archive(folder)


def test_a_goal_is_one_that_was_measured(tmp_path):
    errors = {0: 0.9, 50: 0.01, 100: 0.02}
    folder = write(tmp_path, 64, [trial(1, errors)], optimizer="c4/transformer/adam")
    with pytest.raises(ValueError, match=r"^goal: the paper has none for 'c4/transformer'"):
        bs.load_archive(folder, train_examples=1000)
    with pytest.raises(
        ValueError, match=r"'validation/loss' is not measured in .*validation/error"
    ):
        bs.load_archive(folder, train_examples=1000, goal=bs.Goal("validation/loss", 3.9))
    with pytest.raises(TypeError, match=r"^goal: got 0.1, wanted a Goal"):
        bs.load_archive(folder, train_examples=1000, goal=0.1)
    assert steps(bs.load_archive(folder, train_examples=1000, goal=GOAL)) == {64: (50, 1)}


def test_of_a_step_that_was_evaluated_twice_the_last_row_counts(tmp_path):
    folder = write(tmp_path, 64, [trial(1, {0: 0.9, 100: 0.5})])
    path = folder / "64/1/measurements.csv"
    path.write_text("step,val/classification_error\n0,0.9\n50,0.01\n50,0.2\n100,0.02\n")
    with pytest.warns(UserWarning, match=r"measurements.csv: 1 evaluations, in 1 files, are of a"):
        result = bs.load_archive(folder)
    assert steps(result) == {64: (100, 1)}


def careful(root, sizes=(2, 8, 32, 128, 512, 2048), count=24):
    """An archive whose steps follow 100 + 3200 / B at the best learning rate, more beside it."""
    random = np.random.default_rng(0)
    best = {}
    for size in sizes:
        trials = []
        for number in range(1, count + 1):
            place = random.uniform(-2, 1)
            rate, momentum = 10**place, 1 - 10 ** random.uniform(-3, -1)
            needed = (100 + 3200 / size) * (1 + 2 * abs(place + 0.5))
            grid = np.unique(np.ceil(1.05 ** np.arange(0, 190)).astype(int))
            grid = [0, *grid[grid < 8000].tolist(), 8000]
            errors = {step: 0.9 * 2 ** (-5 * min(step / needed, 1.2)) for step in grid}
            status = "INFEASIBLE" if number % 6 == 0 else "COMPLETE"
            values = {"learning_rate": rate, "momentum": momentum}
            trials.append((number, status, values, curve(errors)))
            if status == "COMPLETE":
                crossing = min(step for step, error in errors.items() if error < 0.03)
                best[size] = min(best.get(size, (math.inf, 0)), (crossing, number))
        configs = {"learning_rate": RATE, "momentum": MOMENTUM}
        write(root, size, trials, configs=configs, about={"train_steps": 8000})
    return root / OPTIMIZER, best


@pytest.fixture(scope="module")
def archived(tmp_path_factory):
    folder, best = careful(tmp_path_factory.mktemp("archive"))
    return bs.load_archive(folder), best


def test_steps_budgets_and_optima_are_those_of_a_study(archived):
    result, best = archived
    assert steps(result) == best
    optima = result.optima()
    assert {"momentum_edge", "effective_learning_rate"} < set(optima)
    winner = result.trials.loc[(8, best[8][1], 0)]
    assert optima.set_index("batch_size").loc[8, "learning_rate"] == winner["learning_rate"]
    trials = result.trials
    within = bs.metrics.step_budget(result.measurements, 500, trials=trials)
    assert within.index.get_level_values("step").max() <= 500
    assert within.groupby(level=["batch_size", "trial"]).ngroups == 6 * 20  # that did not diverge
    epoch = bs.metrics.epoch_budget(
        result.measurements, 0.1, result.train_examples, trials=trials
    ).reset_index()
    assert (epoch["batch_size"] * epoch["step"]).max() <= 5500
    quality = bs.metrics.best_measurement(within, "validation/error", trials=trials)
    assert len(quality) == 6


def test_all_analyses_run_on_an_archive(archived):
    result, _ = archived
    fit = result.scaling()
    assert fit.refused or fit.b_crit_interval[0] < fit.b_crit < fit.b_crit_interval[1]
    assert result.sensitivity()["infeasible"].tolist() == [4 / 24] * 6
    assert len(result.learning_rates()) == 6
    assert result.tuning_curve()["n"].max() == 6
    assert "interpolated" in set(result.variants()["variant"])
    assert str(result.recommend())
    assert len(result.frontier()) == 6
    assert result.refined().empty
    checks = {check.key: str(check.verdict) for check in result.audit()}
    assert checks["interrupted"] == checks["budget"] == checks["effort"] == "pass"
    assert checks["batch_dependent"] == checks["reproducible"] == checks["schedule"] == "unknown"


def test_all_figures_are_drawn_of_an_archive(archived, tmp_path):
    result, _ = archived
    for draw in (
        lambda: bs.plots.steps_to_target([result]),
        lambda: bs.plots.hyperparameters(result, batch_size=8),
        lambda: bs.plots.training_curves(result, batch_size=8),
        lambda: bs.plots.sensitivity(result),
        lambda: bs.plots.learning_rates(result),
        lambda: bs.plots.tuning_curve(result),
        lambda: bs.plots.variants(result),
        lambda: bs.plots.frontier(result),
    ):
        axes = np.atleast_1d(draw()).flat[0]
        assert axes.has_data()
        plt.close("all")
    assert [path.name for path in result.save_tables(tmp_path)] == [
        "steps_to_target.csv",
        "optima.csv",
    ]


def test_what_reads_the_folder_of_a_study_refuses_an_archive(archived):
    result, _ = archived
    for call in (result.confirmation, result.layouts, lambda: bs.plots.confirmation(result)):
        with pytest.raises(FileNotFoundError, match="an archive of trials, not the folder of a st"):
            call()
    with pytest.raises(FileNotFoundError, match="not a study"):
        bs.load(result.folder)


def assert_comes_back(result, folder):
    """The tables to the bit, and what is read off them."""
    assert result.to_archive(folder) == folder
    again = bs.load_archive(folder)
    pd.testing.assert_frame_equal(again.trials, result.trials, check_exact=True)
    pd.testing.assert_frame_equal(again.measurements, result.measurements, check_exact=True)
    pd.testing.assert_frame_equal(
        again.steps_to_target(), result.steps_to_target(), check_exact=True
    )
    kept = {"earlier_budgets": {}, "evaluate": again.definition.evaluate}
    assert again.definition == dataclasses.replace(result.definition, **kept)
    assert again.paces == result.paces
    return again


@pytest.fixture(scope="module")
def ours(tmp_path_factory):
    from helpers import perceptron

    folder = tmp_path_factory.mktemp("ours") / "study"
    return study(perceptron(), batch_sizes=[4, 32], trials=4, stop=3.0).run(folder, progress=False)


def test_a_study_comes_back_from_its_archive(ours, tmp_path):
    again = assert_comes_back(ours, tmp_path / "square" / "square" / "sgd")
    assert again.name == "square, sgd"
    pd.testing.assert_frame_equal(again.optima(), ours.optima())
    found, former = again.audit(), ours.audit()
    known = [check.key for check in found if check.verdict != "unknown"]
    assert [found.of(key).verdict for key in known] == [former.of(key).verdict for key in known]


def test_half_lives_come_back(square, tmp_path):
    space = bs.SearchSpace(learning_rate=bs.LogUniform(0.1, 1), momentum=bs.half_life(20, 400))
    options = {"batch_sizes": [4, 32], "trials": 2, "optimizer": "momentum", "space": space}
    result = study(square, **options).run(tmp_path / "study", progress=False)
    again = assert_comes_back(result, tmp_path / "square" / "square" / "momentum")
    halving = bs.LogHalfLife(0.5 ** (4 / 20), 0.5 ** (4 / 400))
    assert again.definition.spaces[4]["momentum"] == halving


def test_a_study_with_bounds_comes_back(tmp_path):
    from helpers import perceptron

    workload = perceptron(validation=1500)
    result = study(workload, batch_sizes=[32], trials=3).run(tmp_path / "study", progress=False)
    assert result.goal.bound in result.measurements
    assert_comes_back(result, tmp_path / "archive")


@pytest.mark.parametrize("stop", ["first", "budget"])
def test_a_study_with_trials_that_diverged_comes_back(square, tmp_path, stop):
    space = bs.SearchSpace(learning_rate=bs.LogUniform(1e-1, 1e12))
    result = study(square, space=space, batch_sizes=[16], trials=4, stop=stop).run(
        tmp_path / "study", progress=False
    )
    assert (result.trials["status"] == "infeasible").any()
    assert_comes_back(result, tmp_path / "archive")


def test_a_winner_that_diverged_later_counts_by_the_rule_of_its_study(ours, tmp_path):
    """With `stop=3.0` a trial counts until it diverges; with the paper's rule it does not."""
    winner = int(ours.steps_to_target().set_index("batch_size").loc[32, "trial"])
    trials = ours.trials.copy()
    trials.loc[(32, winner, 0), ["status", "stop_reason"]] = ["infeasible", "diverged"]
    trials.loc[(32, winner, 0), "steps_trained"] += 1
    result = dataclasses.replace(ours, trials=trials)
    again = assert_comes_back(result, tmp_path / "archive")
    assert steps(again)[32] == steps(ours)[32]
    papers = bs.metrics.first_crossings(ours.measurements, ours.goal)["first_crossing"]
    others = papers.loc[32].drop(winner, level="trial")
    assert others.min() > steps(again)[32][0]


def test_the_files_are_those_of_the_archive(ours, tmp_path):
    folder = ours.to_archive(tmp_path / "square/square/sgd")
    about = json.loads((folder / "32/study.json").read_text())
    assert {
        "batch_size": 32,
        "dataset": "square",
        "model": "square",
        "optimizer": "sgd",
    }.items() <= (about.items())
    assert about["parameter_configs"] == {
        "learning_rate": RATE | {"min_value": 0.01, "max_value": 3.0}
    }
    row = ours.trials.loc[(32, 0, 0)]
    said = json.loads((folder / "32/0/metadata.json").read_text())
    assert (said["status"], said["steps"], said["trial_id"]) == (
        "COMPLETE",
        row["steps_trained"],
        0,
    )
    assert said["parameters"] == {"learning_rate": row["learning_rate"]}
    table = pd.read_csv(folder / "32/0/measurements.csv", index_col="step")
    assert {"val/classification_error", "train/cross_entropy_error"} < set(table)
    first = table.index[table["val/classification_error"] < ours.goal.value]
    assert first[0] == row["first_crossing"]


@pytest.mark.filterwarnings("ignore:.*not finished")
def test_nothing_else_is_overwritten(ours, tmp_path):
    for name, make in {
        "a file": lambda path: path.write_text("mine"),
        "a folder": lambda path: (path / "8").mkdir(parents=True) or (path / "8/a").write_text("b"),
        "a link": lambda path: path.symlink_to(tmp_path / "nowhere"),
        "the paper's": lambda path: write(path, 8, [trial(1, {0: 0.9})]),
    }.items():
        make(tmp_path / name)
        with pytest.raises(FileExistsError, match="something else, which is not overwritten"):
            ours.to_archive(tmp_path / name)
    with pytest.raises(FileExistsError, match="something else, which is not overwritten"):
        ours.to_archive(ours.folder)
    (tmp_path / "empty").mkdir()
    ours.to_archive(tmp_path / "empty")
    (tmp_path / "empty/32/0/measurements.csv").write_text("")
    assert_comes_back(ours, tmp_path / "empty")  # its own, written again
    # That of other batch sizes, another goal or another seed is another's.
    sizes = ours.trials.index.get_level_values("batch_size")
    fewer = dataclasses.replace(ours, trials=ours.trials.loc[sizes != 32])
    goal = bs.Goal("validation/error", 0.123)
    wide = bs.SearchSpace(learning_rate=bs.LogUniform(1e-5, 3))
    wide = dict.fromkeys(ours.definition.spaces, wide)
    for other in (
        fewer,
        dataclasses.replace(ours, definition=dataclasses.replace(ours.definition, seed=77)),
        dataclasses.replace(ours, definition=dataclasses.replace(ours.definition, goal=goal)),
        dataclasses.replace(ours, definition=dataclasses.replace(ours.definition, trials=2)),
        dataclasses.replace(ours, definition=dataclasses.replace(ours.definition, spaces=wide)),
    ):
        with pytest.raises(FileExistsError, match="something else"):
            other.to_archive(tmp_path / "empty")
    assert_comes_back(ours, tmp_path / "empty")
    (tmp_path / "empty/32/notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="something else"):
        ours.to_archive(tmp_path / "empty")


def test_an_error_leaves_what_was_there(ours, tmp_path, monkeypatch):
    import os

    folder = ours.to_archive(tmp_path / "sgd")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    rename, left = os.rename, [1]

    def failing(*arguments):
        if left[0] == 0:
            left[0] = -1
            raise OSError("disk full")
        left[0] -= 1
        return rename(*arguments)

    monkeypatch.setattr(os, "rename", failing)
    with pytest.raises(OSError, match="disk full"):
        ours.to_archive(folder)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_name_that_means_another_is_refused(ours, tmp_path):
    other = ours.measurements.rename(columns={"test/error": "test/classification_error"})
    renamed = dataclasses.replace(ours, measurements=other)
    with pytest.raises(ValueError, match="'test/classification_error' has a name that means anot"):
        renamed.to_archive(tmp_path / "archive")
    assert not list(tmp_path.iterdir())


def test_an_archive_that_was_read_can_be_written(archived, tmp_path):
    result, best = archived
    result.to_archive(tmp_path / "copy")
    again = bs.load_archive(tmp_path / "copy")
    pd.testing.assert_frame_equal(again.trials, result.trials, check_exact=True)
    assert steps(again) == best
    assert again.paces is None


EDITS = {
    "a cell": (
        "32/0/measurements.csv",
        lambda path: path.write_text(path.read_text() + "99,0.0\n"),
    ),
    "a status": (
        "4/1/metadata.json",
        lambda path: path.write_text(path.read_text().replace('"trial_id": 1', '"trial_id": 7')),
    ),
    "a budget": (
        "4/study.json",
        lambda path: path.write_text(
            path.read_text().replace('"max_steps": 300', '"max_steps": 299')
        ),
    ),
    "a trial that is gone": ("4/2/metadata.json", lambda path: shutil.rmtree(path.parent)),
    "a curve that is gone": ("4/2/measurements.csv", Path.unlink),
    "a trial that was added": (
        "4/9/measurements.csv",
        lambda path: shutil.copytree(path.parent.with_name("1"), path.parent),
    ),
    "a batch size that is gone": ("4/study.json", lambda path: shutil.rmtree(path.parent)),
    "a batch size that was added": (
        "8/study.json",
        lambda path: (
            shutil.copytree(path.parent.with_name("4"), path.parent)
            and path.write_text(path.read_text().replace('"batch_size": 4', '"batch_size": 8'))
        ),
    ),
    "digests that are gone": (
        "4/study.json",
        lambda path: path.write_text(
            re.sub('"digest": "[0-9a-f]+"', '"digest": ""', path.read_text())
        ),
    ),
}


@pytest.mark.parametrize("edit", EDITS)
def test_an_archive_of_ours_that_was_changed_is_told(ours, tmp_path, edit):
    folder = ours.to_archive(tmp_path / "square/square/sgd")
    name, change = EDITS[edit]
    change(folder / name)
    with pytest.raises(bs.DamagedError) as told:
        bs.load_archive(folder)
    size, trial = name.split("/")[0], name.split("/")[1]
    assert f"{folder / size}" in str(told.value)
    assert trial in str(told.value)
    half = edit == "a curve that is gone"  # a trial of which one file is left cannot be read
    offered = f"remove the whole trial, {size}/" if half else "load_archive(folder, accept=["
    assert offered in str(told.value)
    with pytest.raises(bs.DamagedError):
        bs.load_archive(folder, accept=["32/1/metadata.json"])  # another file


def test_a_change_that_is_meant_is_accepted_by_name(ours, tmp_path):
    folder = ours.to_archive(tmp_path / "square/square/sgd")
    curve = folder / "32/0/measurements.csv"
    head, first, *rest = curve.read_text().splitlines()
    cells = dict(zip(head.split(","), first.split(","), strict=True))
    cells["val/classification_error"] = "0.0"
    curve.write_text("\n".join([head, ",".join(cells.values()), *rest]) + "\n")
    again = bs.load_archive(folder, accept=["32/0/measurements.csv"])
    assert steps(again)[32][0] == 0  # the first evaluation is at the goal now
    shutil.rmtree(folder / "4")
    accept = ["32/0/measurements.csv", "4/study.json"]
    assert list(steps(bs.load_archive(folder, accept=accept))) == [32]
    alone = bs.load_archive(folder / "32", accept=accept[:1])  # of one batch size none is missed
    assert list(steps(alone)) == [32]
    with pytest.raises(ValueError, match=r"accept: got 'plan\.json', which is no file of"):
        bs.load_archive(folder, accept=[*accept, "plan.json"])
    with pytest.raises(TypeError, match="wanted a list of names of files"):
        bs.load_archive(folder, accept="4/study.json")


def test_all_changes_are_told_at_once_and_half_a_trial_cannot_be_accepted(ours, tmp_path):
    folder = ours.to_archive(tmp_path / "square/square/sgd")
    for name in ("32/0/measurements.csv", "4/0/measurements.csv"):
        path = folder / name
        path.write_bytes(path.read_bytes() + b"\n")
    with pytest.raises(bs.DamagedError) as told:
        bs.load_archive(folder)
    (accept,) = re.findall(r"accept=(\[.*?\])", str(told.value))
    names = ast.literal_eval(accept)
    assert sorted(names) == ["32/0/measurements.csv", "4/0/measurements.csv"]
    assert sorted(steps(bs.load_archive(folder, accept=names))) == [4, 32]
    with pytest.raises(bs.DamagedError) as told:  # the offer has what is accepted already
        bs.load_archive(folder, accept=names[:1])
    assert sorted(ast.literal_eval(re.findall(r"accept=(\[.*?\])", str(told.value))[0])) == sorted(
        names
    )
    (folder / "4/1/metadata.json").unlink()
    with pytest.raises(bs.DamagedError, match=r"remove the whole trial, 4/1"):
        bs.load_archive(folder, accept=names)
    shutil.rmtree(folder / "4/1")
    gone = ["4/1/metadata.json", "4/1/measurements.csv"]
    assert sorted(steps(bs.load_archive(folder, accept=[*names, *gone]))) == [4, 32]


def test_the_papers_files_have_no_digests_to_accept(archived):
    with pytest.raises(ValueError, match="has no digests, for another program wrote it"):
        bs.load_archive(archived[0].folder, accept=["8/study.json"])


def test_an_archive_that_is_mixed_of_two_is_told(ours, tmp_path):
    folder = ours.to_archive(tmp_path / "square/square/sgd")
    curves = ours.measurements.assign(**{"test/error": 0.5})
    other = dataclasses.replace(ours, measurements=curves).to_archive(tmp_path / "other")
    shutil.rmtree(folder / "32")
    shutil.copytree(other / "32", folder / "32")
    with pytest.raises(bs.DamagedError, match=r"32/study\.json: it was not written with 4"):
        bs.load_archive(folder)
    assert list(steps(bs.load_archive(folder, accept=["32/study.json"]))) == [4, 32]


def without(folder, *keys):
    """Takes keys of ours out of every `study.json`."""
    for path in folder.glob("*/study.json"):
        said = json.loads(path.read_text())
        for key in keys:
            said["_batchscale"].pop(key)
        path.write_text(json.dumps(said))


def test_an_archive_without_digests_is_read_with_a_word(ours, tmp_path):
    folder = ours.to_archive(tmp_path / "square/square/sgd")
    without(folder, "files", "batch_sizes", "written", "digest")
    with pytest.warns(UserWarning, match="written without digests"):
        again = bs.load_archive(folder)
    assert steps(again) == steps(ours)
    for path in folder.glob("*/study.json"):
        said = json.loads(path.read_text())
        del said["_batchscale"]
        path.write_text(json.dumps(said))
    with pytest.raises(bs.DamagedError, match="says under _batchscale is missing here"):
        bs.load_archive(folder, goal=ours.goal, train_examples=100)
