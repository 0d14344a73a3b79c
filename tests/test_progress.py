"""What a run says: lines in a log, a bar in a terminal, and nothing where nobody hears."""

import io
import sys

import pandas as pd
import pytest
from helpers import diverging, study

import batchscale as bs
from batchscale.runner import progress
from batchscale.runner.progress import Progress, ProgressBar

GOAL = bs.Goal("validation/error", 0.1)


class Terminal(io.StringIO):
    def isatty(self):
        return True


def at(step, finished=False):
    return Progress(64, step, 1000, 0.2, 300.0 if finished else float("nan"), 8, 0, 2.5, finished)


def shown(monkeypatch, file, *, later=0.0):
    """What is written of three evaluations, `later` seconds apart."""
    clock = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(sys, "stderr", file)
    with ProgressBar(3, GOAL, "mine, sgd") as bar:
        bar.say("3 batch sizes")
        for step in (10, 20, 30):
            clock[0] += later
            bar(at(step))
        bar(at(300, finished=True))
    return file.getvalue()


def test_a_log_has_lines_and_no_carriage_returns(monkeypatch):
    text = shown(monkeypatch, io.StringIO(), later=20.0)
    assert "\r" not in text
    assert text.splitlines() == [
        "3 batch sizes",
        "mine, sgd: batch size 64: step 20, best validation/error 0.2",  # once in half a minute
        "batch size     64:     300 steps to validation/error < 0.1 (8 trials, 2.5 s)",
    ]


def test_a_terminal_has_a_bar(monkeypatch):
    text = shown(monkeypatch, Terminal(), later=1.0)
    assert "batch sizes |" in text
    assert "batch size 64: step 30" in text
    assert "300 steps to validation/error < 0.1" in text


def test_a_closed_standard_error_is_no_error(monkeypatch):
    monkeypatch.setattr(sys, "stderr", None)
    with ProgressBar(3, GOAL, "mine, sgd") as bar:
        bar.say("3 batch sizes")
        bar(at(10))
        bar(at(300, finished=True))


def table(evaluations, part):
    """What was told of trials, as the table of a study has it."""
    index = ["batch_size", "trial", "replicate"]
    rows = [{name: getattr(e, name) for name in index} | getattr(e, part) for e in evaluations]
    if part == "values":
        rows = [row | {"step": e.step} for row, e in zip(rows, evaluations, strict=True)]
        index.append("step")
    frame = pd.DataFrame(rows).set_index(index).sort_index()
    return frame.loc[~frame.index.duplicated()] if part == "hyperparameters" else frame


def assert_told(evaluations, folder):
    measurements, trials = bs.records.load_tables(folder)
    values, hyperparameters = table(evaluations, "values"), table(evaluations, "hyperparameters")
    assert values.index.is_unique
    pd.testing.assert_frame_equal(values, measurements, check_like=True, check_exact=True)
    trials = trials.loc[hyperparameters.index, list(hyperparameters.columns)]
    pd.testing.assert_frame_equal(hyperparameters, trials, check_exact=True)
    assert {e.folder for e in evaluations} == {folder}


@pytest.mark.filterwarnings("ignore:no trial reached")
def test_a_callback_is_told_every_row_of_the_tables_once_also_of_an_interrupted_run(
    square, tmp_path
):
    told, calls = [], []

    def hear(progress):
        told.extend(progress.evaluations)
        calls.append(progress)
        if len(calls) == 20:
            raise KeyboardInterrupt

    one = diverging(square, max_steps=60)  # trials take the place of others
    with pytest.raises(KeyboardInterrupt):
        one.run(tmp_path / "study", progress=hear)
    before = len(told)
    one.run(tmp_path / "study", progress=hear)
    assert 0 < before < len(told)
    assert_told(told, tmp_path / "study")
    assert not any(progress.evaluations for progress in calls if progress.finished)


def test_what_is_run_beside_a_study_is_told_with_its_own_folder(square, tmp_path):
    few, told = study(square, batch_sizes=[32], stop=3.0), []
    few.run(tmp_path, progress=False)

    def hear(progress):
        told.extend(progress.evaluations)

    few.refine(tmp_path, rounds=1, trials=4, progress=hear)
    assert_told(told, tmp_path / "refine")
    told.clear()
    few.confirm(tmp_path, settings=2, selection_seeds=2, seeds=3, progress=hear)
    assert_told(told, tmp_path / "confirm")
    assert {e.replicate for e in told} == {1, 2, 3, 4, 5}


def test_lines_begin_after_five_seconds_and_are_half_a_minute_apart(monkeypatch):
    clock, said = [0.0], []
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    seldom = progress.Seldom(said.append)
    for second in range(70):
        clock[0] = second
        seldom(f"second {second}")
    assert said == ["second 5", "second 35", "second 65"]


def test_a_trial_says_how_far_it_is_unless_it_is_soon_done_or_shall_not(
    monkeypatch, square, capsys
):
    one = study(square, batch_sizes=[8], trials=1, max_steps=200)
    one.run_trial(batch_size=8, trial=0, steps=2)
    assert not capsys.readouterr().err
    monkeypatch.setattr(progress, "_FIRST", 0.0)
    monkeypatch.setattr(progress, "_LINES", 0.0)
    one.run_trial(batch_size=8, trial=0, steps=2)
    said = capsys.readouterr().err.splitlines()
    assert said == [f"trial 0 of batch size 8: step {step} of 2" for step in (0, 1, 2)]
    one.run_trial(batch_size=8, trial=0, steps=2, progress=False)
    assert not capsys.readouterr().err


@pytest.mark.slow
def test_what_trains_a_run_again_says_what_is_at_work_unless_it_shall_not(square, capsys):
    one = study(square, batch_sizes=[8], trials=1, max_steps=200)
    run = {"batch_size": 8, "trial": 0}
    calls = {
        "step 2 of 2: branches at batch size 16, 2 copies of 8 steps": lambda **kwargs: (
            bs.theory.branches(
                one, **run, steps=[2], batch_sizes=[8, 16], examples=128, copies=2, **kwargs
            )
        ),
        "example 16 of 80: 4 steps at batch size 16": lambda **kwargs: bs.theory.train_in_stages(
            one, [(0, 8), (16, 16)], **run, examples=80, copies=1, **kwargs
        ),
        "step 2 of 2: its noise scale": lambda **kwargs: bs.theory.noise_scales(
            one, **run, steps=[2], **kwargs
        ),
    }
    for line, call in calls.items():
        call()
        assert line in capsys.readouterr().err.splitlines()
        call(progress=False)
        assert not capsys.readouterr().err
