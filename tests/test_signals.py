"""Signals that end a run: what is in flight is finished and written, and a second one stops it."""

import signal
import threading

import pytest
from helpers import assert_same_tables, study

import batchscale as bs
from batchscale.engine import engine
from batchscale.runner.interruption import Interruption

pytestmark = pytest.mark.filterwarnings("ignore:no trial reached")


def few(workload):
    return study(workload, batch_sizes=[8], trials=2, max_steps=12, stop="budget")


def test_a_signal_ends_the_run_after_the_segment_in_flight_which_is_written(
    square, tmp_path, capsys, monkeypatch
):
    whole = few(square).run(tmp_path / "whole", progress=False)
    monkeypatch.setattr(engine, "_LONG", 1e-9)  # all segments, in which signals are looked for
    steps, handler = [], signal.getsignal(signal.SIGINT)

    def press(progress):
        steps.append(progress.step)
        if progress.step == 4:
            signal.raise_signal(signal.SIGINT)
            steps.append("after the signal")

    with pytest.raises(KeyboardInterrupt):
        few(square).run(tmp_path / "study", progress=press)
    assert steps == [0, 1, 2, 3, 4, "after the signal"]
    assert signal.getsignal(signal.SIGINT) is handler
    said = capsys.readouterr().err.splitlines()
    assert said[0].startswith("SIGINT: what is being trained is finished and written first")
    assert said[1] == f"Interrupted. The same call goes on from what is in {tmp_path / 'study'}."
    with bs.records.StudyFolder.open(tmp_path / "study", write=False) as records:
        assert records.read_state(8)[1]["cohorts"]["0"]["step"] == 4
    assert bs.load(tmp_path / "study").measurements.index.get_level_values("step").max() == 4

    steps.clear()
    result = few(square).run(tmp_path / "study", progress=lambda p: steps.append(p.step))
    assert steps[0] == 5  # from the state: nothing is trained twice
    assert_same_tables(result, whole)


def test_a_second_signal_stops_at_once(square, tmp_path):
    steps = []

    def press(progress):
        steps.append(progress.step)
        if progress.step == 2:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
            steps.append("not reached")

    with pytest.raises(KeyboardInterrupt):
        few(square).run(tmp_path, progress=press)
    assert steps == [0, 1, 2]


def test_a_handler_of_ones_own_is_left_alone(square, tmp_path):
    heard, steps = [], []
    former = signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number))
    try:
        few(square).run(
            tmp_path,
            progress=lambda p: steps.append(p.step) or signal.raise_signal(signal.SIGTERM),
        )
    finally:
        signal.signal(signal.SIGTERM, former)
    assert heard == [signal.SIGTERM] * len(steps)
    assert steps[-1] == 12


def test_outside_the_main_thread_no_handler_is_touched(square, tmp_path):
    found, before = [], signal.getsignal(signal.SIGTERM)

    def run():
        few(square).run(tmp_path, progress=lambda _: found.append(signal.getsignal(signal.SIGTERM)))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert set(found) == {before}


def test_where_nothing_is_in_flight_a_signal_ends_the_run_at_once(monkeypatch):
    killed = []
    monkeypatch.setattr("os.kill", lambda process, number: killed.append(number))
    said = []
    with pytest.raises(SystemExit) as ended, Interruption(said.append):
        signal.raise_signal(signal.SIGTERM)
    assert ended.value.code == 128 + signal.SIGTERM
    assert killed == [signal.SIGTERM]  # so that the status is that of the signal
    assert not said
