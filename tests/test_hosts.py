"""Two processes with two devices each share a study: the tables of one process, to the bit."""

import itertools
import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import processes
import pytest
from helpers import assert_same_tables

import batchscale as bs


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """What is left of a run whose second process has died, and what two processes then did."""
    folder = tmp_path_factory.mktemp("hosts")
    first, second = _started(folder, "dies")
    with first, second:
        second.wait(300)
        (folder / "dead.txt").write_text(str(second.returncode))
        (folder / "error.txt").write_text(_until(first.stderr, "in any number of processes"))
        first.kill()  # it only waits for the heartbeats that are missing
    for name in ("died", "damaged"):
        shutil.copytree(folder / "died", folder / f"{name}-1" if name == "died" else folder / name)
    plan = folder / "damaged" / "plan.json"
    plan.write_text(plan.read_text().replace('"seed": 0', '"seed": 1'))
    done = _started(folder, "runs")
    with done[0], done[1]:
        errors = [process.communicate(timeout=300)[1] for process in done]
    assert [process.returncode for process in done] == [0, 0], errors
    return folder


@pytest.fixture(scope="module")
def alone(folder) -> bs.Result:
    """The same study in this process, which has two devices."""
    return processes.study().run(folder / "alone", progress=False)


def tables_are_those_of_one_process(folder, alone):
    assert_same_tables(bs.load(folder / "whole"), alone)
    assert set(alone.measurements.index.get_level_values("batch_size")) == {4, 100}


def every_process_has_the_result(folder, alone):
    for process, name in itertools.product((0, 1), ("trials", "measurements")):
        table = pd.read_parquet(folder / f"process-{process}" / f"{name}.parquet")
        pd.testing.assert_frame_equal(table, getattr(alone, name), check_exact=True)


def plan_and_layout_are_those_of_one_process(folder):
    assert (folder / "whole/plan.json").read_bytes() == (folder / "alone/plan.json").read_bytes()


def all_processes_fetch_what_was_put(folder):
    assert [_said(folder, process)["fetched"] for process in (0, 1)] == [[], []]


def process_0_alone_is_told_of_progress(folder):
    told = [_said(folder, process)["told"] for process in (0, 1)]
    assert told[0] > 5
    assert told[1] == 0


def a_trial_runs_again_in_both(folder):
    run = processes.study().run_trial(batch_size=4, trial=1, steps=9, folder=folder / "alone")
    for process in (0, 1):
        with np.load(folder / f"process-{process}" / "trial.npz") as params:
            assert params.keys() == run.params.keys()
            assert all((params[name] == leaf).all() for name, leaf in run.params.items())


def confirmation_is_that_of_one_process(folder):
    words = str(processes.confirmed(folder / "alone"))
    assert [_said(folder, process)["confirmation"] for process in (0, 1)] == [words, words]
    for name in ("trials", "measurements"):
        some, other = (folder / own / f"confirm/{name}.parquet" for own in ("whole", "alone"))
        assert some.read_bytes() == other.read_bytes()


def a_death_is_told_and_leaves_a_folder_that_goes_on(folder, alone):
    assert (folder / "dead.txt").read_text() == "9"
    assert "another process of this run has ended" in (folder / "error.txt").read_text()
    left = bs.load(folder / "died-1")
    assert 0 < len(left.measurements) < len(alone.measurements)
    assert list((folder / "died-1/state").glob("*.npz"))
    assert_same_tables(bs.load(folder / "died"), alone)  # by two processes
    assert_same_tables(processes.study().run(folder / "died-1", progress=False), alone)  # by one


def what_fails_in_one_process_fails_in_both(folder):
    for what, error, words in (
        ("damaged", "DamagedError", "changed since it was written"),
        ("callback", "ZeroDivisionError", "at step 0"),
        ("other data", "RuntimeError", "process 1 of 2 failed: ValueError: the data"),
    ):
        some, other = (_said(folder, process)[what] for process in (0, 1))
        assert some[0] == error
        assert words in some[1]
        assert other == some
    assert "differ from those of process 0" in some[1]


@pytest.mark.slow
def test_two_processes_do_what_one_does(folder, alone):
    """One test, for workers of the suite that shared it would each start the processes anew."""
    tables_are_those_of_one_process(folder, alone)
    every_process_has_the_result(folder, alone)
    plan_and_layout_are_those_of_one_process(folder)
    all_processes_fetch_what_was_put(folder)
    process_0_alone_is_told_of_progress(folder)
    a_trial_runs_again_in_both(folder)
    confirmation_is_that_of_one_process(folder)
    what_fails_in_one_process_fails_in_both(folder)
    a_death_is_told_and_leaves_a_folder_that_goes_on(folder, alone)


def _said(folder: Path, process: int) -> dict:
    return json.loads((folder / f"process-{process}/said.json").read_text())


def _started(folder: Path, what: str) -> list[subprocess.Popen]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, processes.__file__]
    return [
        subprocess.Popen(
            [*command, str(process), str(port), str(folder), what],
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"},
        )
        for process in (0, 1)
    ]


def _until(lines, words: str) -> str:
    """What is written up to a line with these words, or to the end."""
    found = ""
    for line in lines:
        found += line
        if words in line:
            break
    return found
