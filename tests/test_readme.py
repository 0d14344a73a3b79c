"""What the README says a user can do."""

import re
from pathlib import Path

import matplotlib

README = (Path(__file__).parents[1] / "README.md").read_text()


def test_the_examples_on_ones_own_arrays_run_as_they_stand(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    first, then = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    namespace: dict[str, object] = {}
    with matplotlib.rc_context({"backend": "agg"}):
        exec(compile(first, "README.md", "exec"), namespace)
        assert "learning_rate_edge" in capsys.readouterr().out
        exec(compile(then, "README.md", "exec"), namespace)
        matplotlib.pyplot.close("all")
    told = capsys.readouterr().out
    for words in ("pass  learning rate tuned", "is fastest, in", "NoiseScale(b_simple="):
        assert words in told
    assert len(list((tmp_path / "runs/mine").glob("*.png"))) == 2
    steps = namespace["result"].steps_to_target()["steps"]
    assert (steps < 5_000).all()
    assert steps.iloc[0] > 10 * steps.iloc[-1]


def test_files_that_the_readme_shows_exist():
    for path in re.findall(r"\]\(((?!http)[^)]+)\)", README):
        assert (Path(__file__).parents[1] / path).exists(), path
