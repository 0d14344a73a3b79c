"""What the README says a user can do."""

import re
from pathlib import Path
from typing import Any

import matplotlib
import pytest

README = (Path(__file__).parents[1] / "README.md").read_text()
(ANSWER,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def test_files_that_the_readme_shows_exist():
    for path in re.findall(r"\]\(((?!http)[^)]+)\)", README):
        assert (Path(__file__).parents[1] / path).exists(), path


@pytest.mark.usefixtures("usual_promotion")
@pytest.mark.slow
def test_the_answer_in_one_call_is_one(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    assert "minutes=3," in ANSWER
    less = "minutes=0.5, precision=0.4, batch_sizes=[16, 64, 256, 1024], progress=False,"
    with matplotlib.rc_context({"backend": "agg"}):
        exec(compile(ANSWER.replace("minutes=3,", less), "README.md", "exec"), names)
    assert capsys.readouterr().out.startswith("To reach ")
    assert "Steps to target" in (tmp_path / "runs/answer/report.html").read_text()
