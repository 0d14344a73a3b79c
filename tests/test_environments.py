"""Odd streams, homes, limits and names; full disks; folders with others' files in them."""

import errno
import io
import os
import shutil
import subprocess
import sys
import warnings
import zlib
from pathlib import Path

import jax
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from helpers import assert_same_tables, study

import batchscale as bs
from batchscale.engine import compilation_cache
from batchscale.files import cache_folder
from batchscale.records import StudyFolder, load_tables
from batchscale.runner import room
from batchscale.runner.progress import tell

pytestmark = pytest.mark.filterwarnings(
    "ignore:no trial reached", "ignore:.*held before the first step"
)
ROOT = Path(__file__).parents[1]
RUN = """
import sys
sys.path.insert(0, "tests")
from helpers import perceptron, study
result = study(perceptron(), batch_sizes=[16], trials=2, max_steps=60, goal={goal}).run(sys.argv[1])
result.report(sys.argv[1] + "/page.html")
"""


@pytest.mark.skipif(sys.platform == "win32", reason="limits and streams of POSIX")
@pytest.mark.slow
def test_a_study_runs_in_a_poor_environment_to_the_same_tables(square, tmp_path):
    """All at once: what fails alone fails together. No standard error, no home, no jit, -O."""
    goal = bs.Goal("validation/error", 0.4)
    whole = study(square, batch_sizes=[16], trials=2, max_steps=60, goal=goal).run(
        tmp_path / "whole", progress=False
    )
    code = "import batchscale as bs\n" + RUN.format(goal='bs.Goal("validation/error", 0.4)')
    poor = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0", "HOME": "/proc/none"}
    poor |= {"JAX_DISABLE_JIT": "1", "XDG_CACHE_HOME": "", "BATCHSCALE_CACHE": ""}

    folder = tmp_path / "ünï"
    command = [sys.executable, "-O", "-c", code, folder]
    poorly = ["sh", "-c", 'ulimit -n 24; exec "$@" 2>&-', "sh", *command]
    run = subprocess.run(poorly, cwd=ROOT, env=os.environ | poor, stdout=subprocess.PIPE)
    assert run.returncode == 0
    assert_same_tables(bs.load(folder), whole)
    assert "ünï" in (folder / "page.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("how", ["closed", "broken", "missing"])
def test_no_run_ends_by_what_it_cannot_say(monkeypatch, how):
    stream = io.StringIO()
    if how == "closed":
        stream.close()
    if how == "broken":
        monkeypatch.setattr(stream, "write", lambda _: (_ for _ in ()).throw(BrokenPipeError))
    monkeypatch.setattr(sys, "stderr", None if how == "missing" else stream)
    tell("a line")
    with bs.runner.progress.ProgressBar(1, bs.Goal("validation/error", 0.1), "mine") as bar:
        bar.say("a line")


def test_copies_that_others_leave_are_passed_over_with_a_word(square, tmp_path):
    small = study(square, batch_sizes=[16], trials=2, max_steps=20, goal=bs.Goal("train/loss", 9))
    first = small.run(tmp_path, progress=False)
    for name in (
        "trials (1).parquet",
        "plan (conflicted copy).json",
        "parts/trials-16 (1).parquet",
        "state/16 - Copy.npz",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"anything")
    for name in ("notes.txt", "figure.png", ".DS_Store", "parts/.DS_Store"):
        (tmp_path / name).write_bytes(b"anything")
    with pytest.warns(UserWarning, match="passed over") as told:
        again = small.run(tmp_path, progress=False)
    (words,) = [str(one.message) for one in told if "passed over" in str(one.message)]
    for name in ("trials (1)", "(conflicted copy)", "parts/trials-16 (1)", "16 - Copy"):
        assert name in words
    assert "notes" not in words
    assert ".DS_Store" not in words
    assert_same_tables(again, first)
    assert (tmp_path / "trials (1).parquet").read_bytes() == b"anything"


@pytest.mark.parametrize(
    ("number", "remedy"),
    [(errno.ENOSPC, "Make room"), (errno.EROFS, "Make it writable"), (errno.EMFILE, "ulimit -n")],
)
@pytest.mark.parametrize("part", ["table", "arrays", "index"])
def test_a_disk_that_refuses_is_told_with_the_folder_and_what_to_do(
    tmp_path, monkeypatch, number, remedy, part
):
    def write(records, value):
        if part == "table":
            index = pd.MultiIndex.from_tuples(
                [(8, 0, 0, 5)], names=["batch_size", "trial", "replicate", "step"]
            )
            records.append_measurements(pd.DataFrame({"train/loss": [value]}, index))
        elif part == "arrays":
            records.write_state(8, {"x": np.full(9, value)}, {})
        else:
            records.write_plan({"value": value})

    def full(file):
        raise OSError(number, os.strerror(number))

    with StudyFolder.open(tmp_path) as records:
        write(records, 1.0)
        before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", full)
            with pytest.raises(OSError, match=remedy) as error:
                write(records, 2.0)
        assert (error.value.errno, str(tmp_path) in str(error.value)) == (number, True)
        assert {path: path.read_bytes() for path in before} == before
        write(records, 3.0)
    if part == "table":
        assert load_tables(tmp_path)[0]["train/loss"].tolist() == [3.0]


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can mount")
def test_of_a_disk_that_is_really_full_nothing_is_lost(tmp_path):
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", tmp_path], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("nothing can be mounted here")
    try:
        with StudyFolder.open(tmp_path / "study") as records:
            records.write_plan({"seed": 1})
            records.write_state(8, {"x": np.arange(5_000)}, {})
            for wide in (60_000, 30_000):
                with pytest.raises(OSError, match=r"study: No space left on device. Make room"):
                    records.write_state(8, {"x": np.arange(wide)}, {})
            arrays, _ = records.read_state(8)
            np.testing.assert_array_equal(arrays["x"], np.arange(5_000))
            records.write_state(8, {"x": np.arange(6_000)}, {})  # nothing was left lying about
    finally:
        subprocess.run(["umount", tmp_path], check=True)


def test_states_too_large_for_the_disk_are_told_before_anything_is_trained(tmp_path, monkeypatch):
    free = shutil.disk_usage(tmp_path)._replace(free=1_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: free)
    room.warn(tmp_path, 250)
    with pytest.warns(UserWarning, match=r"take 2.51e-07 GB, twice that .* Make room"):
        room.warn(tmp_path, 251)


def test_half_a_compiled_program_is_removed_once_nobody_writes_it(tmp_path):
    whole, half, young = (tmp_path / "here" / f"{name}-cache" for name in ("a", "b", "c"))
    whole.parent.mkdir()
    content = zlib.compress(bytes(range(256)))
    whole.write_bytes(content)
    half.write_bytes(content[:-5])
    young.write_bytes(content[:-5])
    for path in (whole, half):
        os.utime(path, (1e9, 1e9))
    compilation_cache.tidy(whole.parent)
    assert sorted(path.name for path in whole.parent.glob("*-cache")) == ["a-cache", "c-cache"]


def test_a_program_that_another_process_is_writing_is_compiled_without_a_word(
    tmp_path, monkeypatch
):
    monkeypatch.setenv("BATCHSCALE_CACHE", str(tmp_path))
    monkeypatch.setattr(compilation_cache, "_LEAST_SECONDS", 0.0)

    def tripled():
        with compilation_cache.cached():
            return int(jax.jit(lambda x: 3 * x + 1)(np.int32(2)))

    chosen = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", None)
    try:
        assert tripled() == 7
        (program,) = tmp_path.glob("compiled/*/*-cache")
        program.write_bytes(program.read_bytes()[:-9])
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert tripled() == 7
    finally:
        jax.config.update("jax_compilation_cache_dir", chosen)


def test_compiled_programs_are_kept_apart_by_what_a_processor_can_do(monkeypatch):
    here = compilation_cache.folder()
    monkeypatch.setattr(compilation_cache, "_features", lambda: "avx2 fma")
    assert compilation_cache.folder().parent == here.parent
    assert compilation_cache.folder() != here


def test_without_a_home_nothing_is_kept_and_what_to_do_is_said(monkeypatch):
    for name in ("BATCHSCALE_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    with pytest.raises(OSError, match="set BATCHSCALE_CACHE to a folder"):
        cache_folder()


def test_a_name_is_a_name_in_figures_and_pages(square, tmp_path):
    named = bs.Workload(**{**vars(square), "name": "a$b <i>$x_{"})
    goal = bs.Goal("validation/error", 0.4)
    result = study(named, batch_sizes=[16], trials=2, max_steps=60, goal=goal).run(
        tmp_path, progress=False
    )
    ax = bs.plots.steps_to_target(result)
    ax.figure.canvas.draw()
    assert r"a\$b <i>\$x_{, sgd" in ax.get_legend_handles_labels()[1]
    plt.close("all")
    page = result.report(tmp_path / "page.html").read_text()
    assert "a$b &lt;i&gt;$x_{" in page
    assert "<i>" not in page
    assert bs.load(tmp_path).definition.workload == named.name
