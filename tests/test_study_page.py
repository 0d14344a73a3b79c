"""The example of docs/study.md: it runs as it stands, and however often it is interrupted."""

import re
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
import pytest

import batchscale as bs

PAGE = (Path(__file__).parents[1] / "docs/study.md").read_text()
FIRST, THEN = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
CALL = re.compile(r"study\.(run|extend|refine|confirm)\((?=\"runs/mine\")")


def run_in(namespace: dict[str, Any], code: str) -> None:
    with matplotlib.rc_context({"backend": "agg"}):
        exec(compile(code, "docs/study.md", "exec"), namespace)
        matplotlib.pyplot.close("all")


def smaller(code: str) -> str:
    """The same example with fewer batch sizes, trials and seeds."""
    for text, less in (
        ("*bs.powers_of_two(4, 1024)", "64, 512"),
        ("trials=16", "trials=10"),
        ('study.refine("runs/mine"', 'study.refine("runs/mine", rounds=1, trials=4'),
        (
            'study.confirm("runs/mine"',
            'study.confirm("runs/mine", settings=3, selection_seeds=3, seeds=7',
        ),
    ):
        assert text in FIRST + THEN
        code = code.replace(text, less)
    return code


class Interrupted:
    """The methods of a study, each interrupted several times before it is left to end."""

    def __init__(self, after: tuple[int, ...]) -> None:
        self.after = after
        self.interruptions = 0

    def __call__(self, method, folder, **options):
        for count in self.after:
            heard = []

            def interrupt(progress, count=count, heard=heard):
                heard.append(progress)
                if len(heard) == count:
                    raise KeyboardInterrupt

            try:
                return method(folder, progress=interrupt, **options)
            except KeyboardInterrupt:
                self.interruptions += 1
        return method(folder, progress=False, **options)


def tables(folder: Path) -> list[pd.DataFrame]:
    parts = (folder, folder / "refine", folder / "confirm")
    return [table for part in parts for table in bs.records.load_tables(part)]


def checked(result: bs.Result) -> None:
    """What the page says of its own example: nothing to complain of, and all three regimes."""
    audit = result.audit()
    assert audit.alarms == (), str(audit)
    found = result.confirmation()
    assert not found.scaling().refused
    steps = found.steps_to_target()
    assert np.isfinite(steps["steps"]).all()
    regimes = bs.scaling.regimes(steps)
    assert regimes.perfect_until < found.scaling().b_crit < regimes.plateau_from


@pytest.mark.usefixtures("usual_promotion")
@pytest.mark.long
def test_the_example_interrupted_and_resumed_has_the_tables_of_one_that_was_not(
    tmp_path, monkeypatch, capsys
):
    first, then = smaller(FIRST), smaller(THEN)
    (tmp_path / "whole").mkdir()
    monkeypatch.chdir(tmp_path / "whole")
    names: dict[str, Any] = {}
    run_in(names, first)
    assert "learning_rate_edge" in capsys.readouterr().out
    run_in(names, then)
    told = capsys.readouterr().out
    for words in ("pass  learning rate tuned", "is fastest, in", "NoiseScale(b_simple="):
        assert words in told
    assert len(list(Path("runs/mine").glob("*.png"))) == 2
    assert (names["result"].steps_to_target()["steps"] < 10_000).all()
    (tmp_path / "again").mkdir()
    monkeypatch.chdir(tmp_path / "again")
    # The first evaluations of the first batch size, before any of them is whole; and later ones.
    names["interrupted"] = Interrupted(after=(2, 30))
    calls = [line for line in [*first.splitlines(), *then.splitlines()] if CALL.search(line)]
    assert len(calls) == 4
    run_in(names, CALL.sub(r"interrupted(study.\1, ", "\n".join(calls)))
    assert names["interrupted"].interruptions == 2 * 4
    for table, whole in zip(
        tables(tmp_path / "again/runs/mine"), tables(tmp_path / "whole/runs/mine"), strict=True
    ):
        pd.testing.assert_frame_equal(table, whole, check_exact=True)


@pytest.mark.usefixtures("usual_promotion")
@pytest.mark.long
def test_the_example_as_it_stands_raises_no_alarm(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    run_in(names, FIRST)
    run_in(names, THEN)
    checked(bs.load("runs/mine"))
