"""What a run says: lines in a log, a bar in a terminal, and nothing where nobody hears."""

import io
import sys

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
