"""The command line: what it prints is what the library says, and it changes nothing."""

import hashlib
import re
import shutil
import subprocess
import sys

import pandas as pd
import pytest
from helpers import perceptron
from typer.testing import CliRunner

import batchscale as bs
from batchscale.cli import Format, app, as_text


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    where = tmp_path_factory.mktemp("command") / "study"
    bs.Study(
        workload=perceptron(), optimizer="sgd", batch_sizes=[4, 16], trials=4, max_steps=600,
        space=bs.SearchSpace(learning_rate=bs.LogUniform(1e-2, 3)),
        goal=bs.Goal("validation/error", 0.3), stop=3.0,
    ).run(where, progress=False)  # fmt: skip
    return where


@pytest.fixture(autouse=True)
def unchanged(folder):
    def digests():
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        return {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}

    before = digests()
    yield
    assert digests() == before


def run(*arguments, code=0):
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert done.exit_code == code, (done.output, done.exception)
    return done.output


def test_show_and_audit_print_what_the_library_says(folder):
    result = bs.load(folder)
    shown = run("show", folder)
    assert str(result) in shown
    assert str(result.scaling()) in shown
    failed = any(check.verdict == "fail" for check in result.audit())
    assert str(result.audit()) in run("audit", folder, code=int(failed))


@pytest.mark.slow
def test_what_is_under_way_is_shown_and_said_once(folder, tmp_path):
    copy = tmp_path / "copy"
    begun = bs.Study(
        workload=perceptron(), optimizer="sgd", batch_sizes=[4, 16], trials=4, max_steps=600,
        space=bs.SearchSpace(learning_rate=bs.LogUniform(1e-2, 3)),
        goal=bs.Goal("validation/error", 1e-9), stop=3.0,
    )  # fmt: skip
    with pytest.raises(KeyboardInterrupt):
        begun.run(copy, progress=stopping_after(20))
    done = subprocess.run(
        [sys.executable, "-m", "batchscale", "show", str(copy)], capture_output=True, text=True
    )
    assert done.returncode == 0
    assert "no batch size is finished yet" in done.stdout
    assert "Empty DataFrame" not in done.stdout
    assert re.search(r"batch size 4: step \d+ of at most 600", done.stdout)
    assert done.stderr.count("not finished, and left out") == 1


def stopping_after(step):
    """A progress callback that interrupts the run, past a step."""

    def told(progress):
        if progress.step > step:
            raise KeyboardInterrupt

    return told


def test_tables_are_exported_in_every_format(folder, tmp_path):
    expected = bs.load(folder).steps_to_target()
    for name, ending in {
        "csv": "csv",
        "parquet": "parquet",
        "latex": "tex",
        "markdown": "md",
    }.items():
        run("export", folder, "--output", tmp_path / name, "--format", name)
        path = tmp_path / name / f"steps_to_target.{ending}"
        if name == "csv":
            pd.testing.assert_frame_equal(pd.read_csv(path), expected, check_dtype=False)
        elif name == "parquet":
            pd.testing.assert_frame_equal(pd.read_parquet(path), expected)
        else:
            text = path.read_text()
            assert "batch_size" in text.replace("\\", "")
            assert str(int(expected["batch_size"].iloc[-1])) in text
    assert (tmp_path / "csv" / "measurements.csv").exists()


def test_figures_and_pages_are_written(folder, tmp_path):
    run("plot", folder, "steps", "--output", tmp_path / "figure")
    assert (tmp_path / "figure.png").stat().st_size > 1000
    assert (tmp_path / "figure.svg").exists()
    run("report", folder, "--output", tmp_path / "page.html")
    assert "Steps to target" in (tmp_path / "page.html").read_text()


def test_studies_are_compared(folder, tmp_path):
    other = shutil.copytree(folder, tmp_path / "other" / "study")
    words = run("compare", folder, other, "--output", tmp_path / "both")
    assert "b_crit: " in words
    assert str(other) in words  # two of one name are told apart
    assert (tmp_path / "both.png").exists()


def test_what_is_wrong_is_told_in_a_line_without_a_traceback(tmp_path):
    command = [sys.executable, "-c", "from batchscale.cli import main; main()"]
    done = subprocess.run(
        [*command, "show", str(tmp_path / "none")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert f"batchscale: {tmp_path / 'none'}: no such folder" in done.stderr


def test_an_export_replaces_no_study_and_leaves_no_tables_of_another(folder, tmp_path):
    study = shutil.copytree(folder, tmp_path / "study")
    for output in (study, study / "confirmed"):
        if (output / "plan.json").exists() or (output / "index.json").exists():
            done = CliRunner().invoke(app, ["export", str(folder), "-o", str(output)])
            assert "holds a study, whose own tables" in str(done.exception)
    before = bs.load(study).trials
    run("export", study, "--output", study / "tables", "--format", "parquet")
    pd.testing.assert_frame_equal(bs.load(study).trials, before)
    other = tmp_path / "other"
    other.mkdir()
    (other / "measurement.csv").write_text("of another\n")
    done = CliRunner().invoke(app, ["export", str(folder), "-o", str(other)])
    assert "measurement.csv would stay of another export" in str(done.exception)
    run("export", folder, "--output", other, "--format", "latex")


@pytest.mark.parametrize("format", [Format.LATEX, Format.MARKDOWN])
def test_small_and_large_numbers_are_printed_as_they_are(format):
    table = pd.DataFrame({"batch_size": [8], "learning_rate": [3.2e-5], "steps": [1234567.0]})
    text = as_text(table, format)
    assert "3.2e-05" in text
    assert "1234567" in text
    assert "1234567.0" not in text


def test_an_answer_whose_pilot_is_not_finished_says_so(tmp_path):
    (tmp_path / "pilot").mkdir()
    (tmp_path / "pilot" / "pilot.json").write_text("{}")
    assert "its pilot is not finished yet" in run("show", tmp_path)
