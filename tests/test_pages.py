"""What the pages of docs/ say: their examples run, and what they list is all that there is."""

import ast
import inspect
import re
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import batchscale as bs
from batchscale.audit import audit, measured
from benchmarks import tables
from validation.simulation import Careful, simulate

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
MODELS = ["equinox", "functions", "haiku", "linen", "nnx"]


@pytest.mark.parametrize("page", tables.TABLES, ids=str)
def test_tables_of_the_pages_are_those_of_the_recorded_results(page, monkeypatch):
    monkeypatch.chdir(ROOT)
    # Whoever records anew writes the pages anew: python -m benchmarks.tables.
    assert tables.written(page) == page.read_text()


def blocks(page):
    return re.findall(r"```python\n(.*?)```", (DOCS / page).read_text(), re.DOTALL)


def run(names, code, page):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of frameworks, as they are imported
        exec(compile(code, page, "exec"), names)


def test_every_page_of_a_model_is_tested():
    assert sorted(page.stem for page in (DOCS / "models").iterdir()) == MODELS


@pytest.mark.usefixtures("usual_promotion")
@pytest.mark.parametrize("framework", MODELS)
@pytest.mark.slow
def test_a_model_takes_six_lines_at_most_and_learns(framework, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    page, names = f"models/{framework}.md", {}
    data, model, study, *more = blocks(page)
    assert len([line for line in model.splitlines() if line]) <= 6
    assert "[32, 256]" in study  # one of them is as good, in half of the time
    for code in (data, model, study.replace("[32, 256]", "[256]")):
        run(names, code, page)
    other = dict(names)
    for code in more:  # another example, which uses some of the names
        run(other, code, page)
    assert (names["workload"].train_examples, names["workload"].classes) == (2000, 2)
    result = bs.load(f"runs/{framework}")
    assert (result.trials["status"] == "complete").sum() == 4
    assert (result.steps_to_target()["steps"] <= 200).all()
    # Half of the labels are 1, whatever the model: it has learned what no constant tells.
    assert names["y"][2000:].mean() == pytest.approx(0.5, abs=0.03)
    assert result.measurements["validation/error"].min() < 0.1
    assert "learning_rate" in capsys.readouterr().out


def test_the_metric_of_sums_is_f1():
    names = {}
    (code,) = blocks("own_model.md")
    run(names, code, "own_model.md")
    workload = names["workload"]
    outputs = np.array([[0, 1], [0, 1], [1, 0], [1, 0], [1, 0]], np.float32)
    labels = np.array([1, 0, 1, 1, 0], np.int32)
    found = workload.finalized("f1", names["counts"](outputs, labels))
    assert found == pytest.approx(2 * 0.5 * (1 / 3) / (0.5 + 1 / 3))  # of precision and recall


def test_the_call_for_an_answer_is_one(monkeypatch):
    """The answer itself is that of the README, whose test trains; here it is the same call."""
    asked = {}

    def recommend(workload, optimizer, **given):
        asked.update(given, workload=workload, optimizer=optimizer)
        return Path("answer")

    monkeypatch.setattr(bs, "recommend", recommend)
    monkeypatch.setattr(Path, "report", lambda self, path: path, raising=False)
    (code,) = blocks("choosing.md")
    run({"bs": bs, "workload": "one"}, code, "choosing.md")
    assert asked["workload"] == "one"
    assert set(asked) <= {*inspect.signature(bs.pilot).parameters, "precision"}


def test_the_first_page_has_the_example_of_the_readme():
    (shown,) = blocks("index.md")
    assert shown in (ROOT / "README.md").read_text()


def measured_checks():
    """Those of a measurement that nobody would quote: what they find is no matter here."""
    table = pd.DataFrame({"batch_size": [8], "steps": [99.0], "low": [90.0], "high": [110.0]})
    table = table.assign(by="model", learning_rate=0.1)
    checked = pd.DataFrame({"batch_size": [8], "seeds": 9, "deviations": 0.0, "seen": 99.0})
    steps = pd.DataFrame({"batch_size": [4, 8], "steps": [200, 99], "trial": 0})
    trial = pd.MultiIndex.from_tuples([(8, 0, 0)], names=["batch_size", "trial", "replicate"])
    return measured(
        table,
        checked.assign(agrees=True),
        pd.DataFrame({"status": ["complete"]}, trial),
        bs.scaling.fit(steps),
        goal=bs.Goal("validation/error", 0.1),
        spaces={8: bs.SearchSpace(learning_rate=bs.LogUniform(1e-2, 1))},
        precision=0.15,
        ended="precision",
    )


def test_the_page_of_the_audit_has_every_check_and_no_other():
    text = (DOCS / "audit.md").read_text()
    tables = simulate(Careful(), 0)
    study = audit(
        tables.measurements, tables.trials, tables.steps, tables.goal, spaces=tables.spaces
    )
    headings = re.findall(r"^### (.+)\n\n`(\w+)`\. ", text, re.MULTILINE)
    assert headings == [(check.name, check.key) for check in study]
    assert len(headings) == text.count("\n### ")
    rows = re.findall(r"^\| ([^|`]+) \| `(\w+)` \| ", text, re.MULTILINE)
    assert rows == [(check.name, check.key) for check in measured_checks()]


def public(package):
    """What the package re-exports, or defines, by its text."""
    path = Path(inspect.getfile(getattr(bs, package)))
    names = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("batchscale"):
            names.update(alias.asname for alias in node.names if alias.asname)
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
    return {name for name in names if not name.startswith("_")}


PACKAGES = sorted(path.stem for path in (DOCS / "reference").iterdir())


def test_the_reference_has_every_public_name():
    text = (DOCS / "reference.md").read_text()
    shown = set(re.findall(r"^::: batchscale\.(\w+)$", text, re.MULTILINE))
    assert shown | set(PACKAGES) == set(bs.__all__) - {"__version__"}


@pytest.mark.parametrize("package", PACKAGES)
def test_the_reference_of_a_package_has_every_public_name(package):
    text = (DOCS / f"reference/{package}.md").read_text()
    shown = re.findall(rf"^::: batchscale\.{package}\.(\w+)$", text, re.MULTILINE)
    # What `import batchscale as bs` has itself is described there, and linked.
    linked = re.findall(r"\(\.\./reference\.md#batchscale\.(\w+)\)", text)
    assert set(linked) <= set(bs.__all__)
    assert sorted([*shown, *linked]) == sorted(public(package))


def test_the_gallery_has_every_figure():
    shown = set(re.findall(r"bs\.plots\.(\w+)\(", (DOCS / "gallery.md").read_text()))
    assert shown == public("plots")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_files_that_a_page_links_to_exist(page):
    for target in re.findall(r"\]\(((?!http|#)[^)#]+)", page.read_text()):
        assert (page.parent / target).exists(), target


def test_every_page_is_in_the_navigation_of_the_site():
    text = (ROOT / "mkdocs.yml").read_text().partition("\nnav:\n")[2]
    listed = re.findall(r": ([\w/]+\.md)$", text, re.MULTILINE)
    assert sorted(listed) == sorted(page.relative_to(DOCS).as_posix() for page in PAGES)
