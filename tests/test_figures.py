"""Every figure of the paper, of an archive that is written here, and of studies that are run."""

import csv
import dataclasses
import functools
import json
import shutil
from math import nan

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

import batchscale as bs
from experiments import catalogue, figure08, harness, record, shown
from experiments.harness import Figure

FIGURES = {number: record.figure(number) for number in range(1, 12)}
NAMES = sorted({name for figure in FIGURES.values() for name in figure.studies})
PAPER = [name for name in NAMES if name in catalogue.PRESETS["paper"]()]
SIZES = {"lm1b": (128, 512, 1024, 2048), "common": (32, 1024), "imagenet": (64, 1024, 65_536)}
GRID = [0, *(10 * 2**n for n in range(14))]  # up to 81,920 steps
LOSS = bs.Goal("validation/loss", 3.9)
RATE = {"type": "DOUBLE", "min_value": 1e-4, "max_value": 10.0, "scale": "LOG_SCALE"}
MOMENTUM = {"type": "DOUBLE", "min_value": 0.9, "max_value": 0.999, "scale": "REVERSE_LOG_SCALE"}
SMOOTHING = {"type": "DISCRETE", "feasible_points": [0.0, 0.01, 0.1]}


def crossing(name, batch_size, trial):
    """When a trial first gets to 0.7 times the goal, and so past it: an exact power of the grid."""
    first = 40 + 40_960 // batch_size
    needed = first * (1 + trial % 3)
    return next(step for step in GRID if step >= needed)


def write(root, name, goal, trials=6):
    """An archive of a study: six trials a batch size, or others; the last of them diverges."""
    data_set, model, optimizer = name.split("/")[-3:]
    sizes = next(
        (sizes for start, sizes in SIZES.items() if data_set.startswith(start)), (2, 64, 512)
    )
    column = {
        "validation/error": "val/classification_error",
        "validation/loss": "val/cross_entropy_error",
    }.get(goal.metric, "val/average_precision")
    configs = {"learning_rate": RATE, "momentum": MOMENTUM}
    if model == "resnet_50":
        configs["label_smoothing"] = SMOOTHING
    for size in sizes:
        folder = root / name / str(size)
        folder.mkdir(parents=True)
        about = {
            "batch_size": size, "dataset": data_set, "model": model, "optimizer": optimizer,
            "early_stopping": False, "parameter_configs": configs, "train_steps": GRID[-1],
        }  # fmt: skip
        (folder / "study.json").write_text(json.dumps(about))
        for trial in range(trials):
            place = folder / str(trial)
            place.mkdir()
            values = {
                "learning_rate": 10.0 ** (3 * trial / trials - 2),
                "momentum": 0.9 + 0.09 * trial / trials,
            }
            if model == "resnet_50":
                values["label_smoothing"] = (0.0, 0.01, 0.1)[trial % 3]
            status = "INFEASIBLE" if trial == trials - 1 else "COMPLETE"
            said = {"trial_id": trial, "status": status, "steps": GRID[-1], "parameters": values}
            (place / "metadata.json").write_text(json.dumps(said))
            past, before = (0.7, 3.0) if goal.mode == "min" else (1.2, 0.3)
            rows = [
                (step, goal.value * (past if step >= crossing(name, size, trial) else before))
                for step in GRID
            ]
            with open(place / "measurements.csv", "w", newline="") as file:
                csv.writer(file).writerows([("step", column), *rows])


def write_one(root, name):
    write(root, name, LOSS)
    return root / name


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    root = tmp_path_factory.mktemp("archive")
    for name in PAPER:
        write(root, name, catalogue.PRESETS["paper"]()[name].arguments["goal"])
    return root


def drawn(figure: Figure, archive, folder):
    arguments = ["--archive", str(archive), "--output", str(folder)]
    harness.main(figure, "A figure.", arguments)
    return folder / figure.name / "archive"


@pytest.mark.parametrize("number", FIGURES)
@pytest.mark.slow
def test_every_figure_is_drawn_of_an_archive(number, archive, tmp_path):
    folder = drawn(FIGURES[number], archive, tmp_path)
    image = plt.imread(folder / f"figure{number:02d}.png")
    assert image.min() < 0.5 < image.mean()  # something dark on a light ground
    about = json.loads((folder / "about.json").read_text())
    assert list(about["studies"]) == FIGURES[number].needed(PAPER)
    assert about["made_by"]["versions"]["batchscale"] == bs.__version__


def test_the_steps_of_figure_1_are_the_fewest_of_complete_trials(archive, tmp_path):
    folder = drawn(FIGURES[1], archive, tmp_path)
    table = pd.read_csv(folder / "steps_minima.csv")
    # Of an earlier call that had medians to show: a later one that has none takes them back.
    about = json.loads((folder / "about.json").read_text())
    assert about["files"] == ["figure01.png", "steps_minima.csv"]
    (folder / "about.json").write_text(json.dumps(about | {"files": ["figure01_tuned.png"]}))
    (folder / "figure01_tuned.png").touch()
    (folder / "notes.txt").touch()
    drawn(FIGURES[1], archive, tmp_path)
    names = ["about.json", "figure01.png", "notes.txt", "steps_minima.csv"]
    assert sorted(path.name for path in folder.iterdir()) == names
    assert table["panel"].nunique() == 9
    for row in table.to_dict("records"):
        wanted = min(crossing("", row["batch_size"], trial) for trial in range(5))
        assert row["steps"] == wanted


def test_minima_are_of_the_first_trials_of_which_the_paper_has_as_many(tmp_path, capsys):
    name = "lm1b/lstm/nesterov_momentum"  # of whose batch sizes the paper compares 50 trials
    goal = catalogue.PRESETS["paper"]()[name].arguments["goal"]
    write(tmp_path / "archive", name, goal, trials=54)
    lucky = tmp_path / "archive" / name / "512"
    (lucky / "51" / "measurements.csv").write_text(f"step,val/cross_entropy_error\n{GRID[1]},0.1\n")
    steps = harness.read(FIGURES[1], tmp_path / "archive")[name].result.steps_to_target()
    wanted = [min(crossing(name, size, trial) for trial in range(50)) for size in SIZES["lm1b"]]
    assert steps["steps"].tolist() == wanted
    assert harness.read(FIGURES[1], tmp_path / "archive")[name].result.definition.trials == 50
    # The figures of all trials have all of them.
    every = dataclasses.replace(FIGURES[1], every_trial=True)
    trials = harness.read(every, tmp_path / "archive")[name].result.trials
    assert len(trials) == len(SIZES["lm1b"]) * 54
    assert trials["first_crossing"].xs(512, level="batch_size").min() == GRID[1]
    assert all(FIGURES[n].every_trial == (n in (9, 10, 11)) for n in FIGURES)
    assert "complete" not in capsys.readouterr().out
    # Where there are fewer, all batch sizes have as many as the one that has the fewest.
    for number in range(20, 54):
        shutil.rmtree(lucky / str(number))
    trials = harness.read(FIGURES[1], tmp_path / "archive")[name].result.trials
    assert trials.groupby("batch_size").size().tolist() == [20] * len(SIZES["lm1b"])
    assert f"{name}: 20 complete trials" in capsys.readouterr().out


def test_figure_2_has_every_goal_of_the_paper(archive, tmp_path):
    folder = drawn(FIGURES[2], archive, tmp_path)
    table = pd.read_csv(folder / "steps_minima.csv")
    lines = table.groupby("panel")["line"].nunique()
    ends = pd.read_csv(folder / "scaling_minima.csv")
    assert ends.groupby("panel")["goal"].nunique().to_dict() == lines.to_dict()
    assert (ends["b_crit"].isna() == ends["refused"].notna()).all()
    assert lines.to_dict() == {
        "Simple CNN on MNIST": 5,
        "Transformer on LM1B": 6,
        "ResNet-50 on ImageNet": 4,
    }


def test_figure_3_divides_by_the_steps_at_an_anchor(archive, tmp_path):
    studies = harness.read(FIGURES[3], archive)
    FIGURES[3].draw(studies, False)
    by_title = {ax.get_title(): ax for ax in plt.gcf().axes}
    assert len(by_title) == 6
    ax = by_title["ResNet and VGG"]
    assert ax.get_ylabel() == "Steps / (steps at B=64)"
    first = [
        line.get_ydata()[0] for line in ax.lines if str(line.get_label()).startswith(("R", "V"))
    ]
    assert first == [1.0, 1.0]
    plt.close("all")


def test_goals_of_a_panel_hold_for_the_papers_studies_and_not_for_what_stands_in(archive):
    name = "imagenet/resnet_50/nesterov_momentum"
    studies = harness.read(FIGURES[3], archive)
    ours = {key: dataclasses.replace(one, stands_in=True) for key, one in studies.items()}
    for found, goal in ((studies, 0.35), (ours, 0.25)):
        table = FIGURES[3].draw(found, False)["steps_minima"]
        line = table[(table["panel"] == "ResNet and VGG") & (table["line"] == "ResNet-50")]
        assert set(line["goal"]) == {f"validation/error < {goal}"}
    plt.close("all")
    assert name in studies


def test_figure_7_shows_each_amount_of_smoothing_alone(archive, tmp_path):
    table = pd.read_csv(drawn(FIGURES[7], archive, tmp_path) / "steps_minima.csv")
    for row in table.to_dict("records"):
        trials = [t for t in range(5) if (0, 0.01, 0.1)[t % 3] == row["label_smoothing"]]
        assert row["steps"] == min(crossing("", row["batch_size"], trial) for trial in trials)


def test_figure_9_counts_what_is_reached_within_each_budget(archive, tmp_path):
    table = pd.read_csv(drawn(FIGURES[9], archive, tmp_path) / "trials.csv")
    epoch = table[table["panel"].str.contains("epochs")].set_index("batch_size")
    assert epoch.loc[512, "last_step"] == 30_301_028 // 512
    for row in table.to_dict("records"):
        steps = [crossing("", row["batch_size"], trial) for trial in range(5)]
        assert row["reached"] == sum(step <= row["last_step"] for step in steps)
        assert row["diverged"] == 1
        assert row["reached"] + row["not_reached"] == 5
        rates = [10 ** (3 * t / 6 - 2) / (0.1 - 0.09 * t / 6) for t in range(5)]
        there = [rate for step, rate in zip(steps, rates, strict=True) if step <= row["last_step"]]
        found = row["lowest_rate"], row["highest_rate"]
        assert found == pytest.approx(
            (min(there), max(there)) if there else (nan, nan), nan_ok=True
        )
        if there:
            assert row["fastest_rate"] == pytest.approx(rates[steps.index(min(steps))])


def test_figure_11_leaves_out_budgets_that_nothing_was_trained_for(archive, tmp_path):
    table = pd.read_csv(drawn(FIGURES[11], archive, tmp_path) / "best_by_budget.csv")
    steps = table[table["unit"] == "steps"]
    assert steps["budget"].max() <= GRID[-1]
    for row in steps[steps["panel"] == "Simple CNN on MNIST"].to_dict("records"):
        first = min(crossing("", row["batch_size"], trial) for trial in range(5))
        assert row["value"] == pytest.approx(0.01 * (0.7 if first <= row["budget"] else 3.0))


def test_what_a_preset_has_nothing_for_is_told(capsys, tmp_path):
    with pytest.raises(SystemExit, match=r"none of its studies. Presets that have: small, paper"):
        harness.main(FIGURES[10], "A figure.", ["--preset", "cifar", "--output", str(tmp_path)])
    with pytest.raises(SystemExit, match="none of its studies is in"):
        harness.main(FIGURES[1], "A figure.", ["--archive", str(tmp_path)])


@pytest.mark.slow
def test_every_study_of_every_preset_can_be_made():
    for preset in ("small", "mnist", "cifar", "text", "paper"):
        for entry in catalogue.PRESETS[preset]().values():
            if preset in ("mnist", "cifar", "paper"):  # whose data are loaded when they are run
                study = entry.study(trials=2, seed=3)
                assert (study.trials, study.seed, study.goal) == (2, 3, entry.arguments["goal"])
    for number, figure in FIGURES.items():
        assert figure.entries("small"), number  # every figure has a small version
        assert figure.entries("paper"), number


def test_a_small_figure_runs_and_goes_on_from_its_studies(tmp_path, capsys):
    name = "mnist/fc_1024/sgd"
    figure = Figure(1, (name,), FIGURES[8].draw, tuned=False)
    run = harness.run(figure, "small", tmp_path / "runs" / "small", trials=4)
    assert "1 studies; at most" in capsys.readouterr().out
    again = harness.run(figure, "small", tmp_path / "runs" / "small", trials=4)
    pd.testing.assert_frame_equal(run[name].result.trials, again[name].result.trials)
    entry = figure.entries("small")[name]
    folder = harness.folder_of(tmp_path / "runs" / "small", name, entry)
    assert record.state(record.Task("small", name, entry, False, folder)) == "done"
    assert record.state(record.Task("small", name, entry, True, folder)) == "to be confirmed"


@pytest.mark.slow
def test_a_record_goes_on_where_its_slice_ended(tmp_path, monkeypatch, capsys):
    name = "digits/fc_64/sgd"
    one = Figure(8, (name,), FIGURES[8].draw, tuned=False)
    monkeypatch.setattr(figure08, "FIGURE", one)
    monkeypatch.setattr(record, "ORDER", (("small", (8,)),))
    runs, results = tmp_path / "runs", tmp_path / "results"

    def slice_of(minutes):
        places = ["--runs", str(runs), "--output", str(results)]
        monkeypatch.setattr("sys.argv", ["record", "--minutes", str(minutes), *places])
        record.main()
        return capsys.readouterr().out

    assert "the same command goes on" in slice_of(1e-9)
    assert "not begun" in slice_of(1e-9)
    assert "the same command goes on" in slice_of(0.01)
    assert "of 6 batch sizes" in slice_of(1e-9)
    assert "done" in slice_of(10)
    assert (results / "figure08" / "small" / "figure08.png").exists()
    entry = one.entries("small")[name]
    whole = entry.study().run(tmp_path / "whole", progress=False)
    sliced = bs.load(harness.folder_of(runs / "small", name, entry))
    pd.testing.assert_frame_equal(sliced.trials, whole.trials)


@pytest.mark.long
def test_batch_sizes_that_were_left_out_are_added_later(tmp_path):
    name = "digits/fc_64/sgd"
    figure = Figure(8, (name,), FIGURES[8].draw)
    run, folder = functools.partial(harness.run, figure, "small", trials=3), tmp_path / "small"
    sizes = figure.entries("small")[name].study().resolved_batch_sizes()
    part = run(folder, largest=64)[name].result
    assert part.definition.batch_sizes == [size for size in sizes if size <= 64]
    assert max(sizes) == 1024
    grown = run(folder)[name]
    assert grown.result.definition.batch_sizes == sizes
    assert grown.folder is not None
    task = record.Task("small", name, figure.entries("small")[name], True, grown.folder)
    assert record.state(task) == "done"
    confirmed = bs.load(grown.folder).confirmation().table
    assert confirmed["batch_size"].tolist() == grown.result.definition.batch_sizes
    whole = run(tmp_path / "whole")[name]
    pd.testing.assert_frame_equal(grown.result.trials, whole.result.trials)
    pd.testing.assert_frame_equal(confirmed, whole.result.confirmation().table)
    # Fewer take nothing away.
    assert run(folder, largest=64)[name].result.definition.batch_sizes == sizes


def test_a_version_without_anything_to_show_is_left_out(tmp_path, monkeypatch, capsys):
    name = "lm1b/lstm/nesterov_momentum"
    first = Figure(1, (name,), FIGURES[1].draw)
    result = bs.load_archive(write_one(tmp_path / "archive", name), goal=LOSS)
    first_stop = dataclasses.replace(
        result, definition=dataclasses.replace(result.definition, stop="first")
    )
    study = harness.Study(name, catalogue.words(name), first_stop, folder=tmp_path)
    assert set(first.draw({name: study}, False)) == {"steps_minima"}
    assert first.draw({name: study}, True) == {}
    plt.close("all")


def test_another_goal_is_read_off_the_same_curves(archive):
    name = "mnist/simple_cnn_base/nesterov_momentum"
    result = bs.load_archive(archive / name)
    easier = shown.minima(result, bs.Goal("validation/error", 0.02))
    assert easier.goal.value == 0.02
    assert np.isfinite(easier.trials["first_crossing"]).all()
    harder = shown.minima(result, bs.Goal("validation/error", 0.005))
    assert np.isinf(harder.trials["first_crossing"]).all()
    assert np.isinf(harder.steps_to_target()["steps"]).all()
