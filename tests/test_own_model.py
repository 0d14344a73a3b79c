"""What docs/own_model.md says: its blocks run, and each model is six lines at most."""

import inspect
import re
import warnings
from pathlib import Path

import pytest

import batchscale as bs

BLOCKS = re.findall(
    r"```python\n(.*?)```", (Path(__file__).parents[1] / "docs/own_model.md").read_text(), re.DOTALL
)
MODELS = BLOCKS[1:6]


def run(names, code):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of frameworks, as they are imported
        exec(compile(code, "docs/own_model.md", "exec"), names)


def test_each_model_takes_six_lines_at_most_and_makes_a_workload():
    names = {}
    run(names, BLOCKS[0])
    for code in MODELS:
        lines = [line for line in code.splitlines() if line and not line.startswith("import")]
        assert len(lines) - ("from flax" in code) <= 6
        names.pop("workload", None)
        run(names, code)
        found = names["workload"]
        assert (found.train_examples, found.classes) == (2000, 2)


@pytest.mark.usefixtures("usual_promotion")
def test_the_rest_runs_and_answers(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {}
    for code in (*BLOCKS[:1], *MODELS, *BLOCKS[6:7]):
        run(names, code)
    assert set(names["workload"].finalize) == {"f1"}
    (last,) = BLOCKS[7:]
    # The answer itself is that of the README, whose test trains; here it is the same call.
    asked = {}

    def recommend(workload, optimizer, **given):
        asked.update(given, workload=workload, optimizer=optimizer)
        return Path("answer")

    monkeypatch.setattr(bs, "recommend", recommend)
    monkeypatch.setattr(Path, "report", lambda self, path: path, raising=False)
    run(names, last)
    assert asked["workload"] is names["workload"]
    known = {*inspect.signature(bs.pilot).parameters, "precision"}
    assert set(asked) <= known
