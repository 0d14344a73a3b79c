"""A small part of `validation/soak.py`: studies killed at moments that no other test chooses."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="it forks the processes it kills")


@pytest.mark.slow
def test_what_is_killed_goes_on_to_the_same_tables(tmp_path):
    found = tmp_path / "soak.json"
    command = [sys.executable, "-m", "validation.soak", "--calls", "run", "--moments", "3"]
    command += ["--hows", "SIGKILL", "half a file, SIGKILL", "SIGTERM", "full disk"]
    command += ["--seed", "1", "--output", str(found)]
    run = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    rows = json.loads(found.read_text())["moments"]
    assert len(rows) == 3
    for row in rows:
        assert row["ended"] == (1 if row["how"] == "full disk" else row["how"].split()[-1])
        assert (row["opens"], row["resumed"]) == (True, True)
        assert (row["lost"], row["wrong"]) == (0, 0)
    assert {row["how"] for row in rows} >= {"SIGKILL", "SIGTERM"}
    assert {row["ended"] for row in rows} <= {1, *(number.name for number in signal.Signals)}


def test_the_page_says_what_was_recorded():
    root = Path(__file__).parents[1]
    found = json.loads((root / "validation/results/soak.json").read_text())
    page = (root / "docs/reliability.md").read_text()
    rows = found["moments"]
    lost, wrong = (sum(row[what] for row in rows) for what in ("lost", "wrong"))
    failed = sum((not row["opens"]) + (not row["resumed"]) for row in rows)
    assert f"| all | {len(rows)} | {lost} | {wrong} | {failed} |" in page
    assert len(rows) >= 50
