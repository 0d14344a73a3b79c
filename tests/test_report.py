"""Pages: what they say, that nothing in them is code, and how they look in a browser."""

import html.parser
import math
import shutil
import subprocess

import numpy as np
import pytest
from helpers import perceptron

import batchscale as bs
from batchscale import display, report

NAME = '<script>alert("$x^{$")</script> & co'


class Reader(html.parser.HTMLParser):
    """Tags, their attributes, and all words of a page."""

    def __init__(self):
        super().__init__(convert_charrefs=True)
        self.tags, self.attributes, self.words, self.open = [], [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in ("meta", "link", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


def read(path):
    found = Reader()
    found.feed(path.read_text("utf-8"))
    assert not found.open
    return found, " ".join(" ".join(found.words).split())


@pytest.fixture(scope="module")
def study_folder(tmp_path_factory):
    import dataclasses

    folder = tmp_path_factory.mktemp("reported") / "study"
    study = bs.Study(
        workload=dataclasses.replace(perceptron(), name=NAME),
        optimizer="sgd",
        space=bs.SearchSpace(learning_rate=bs.LogUniform(1e-2, 3)),
        batch_sizes=[4, 16, 64],
        goal=bs.Goal("validation/error", 0.3),
        trials=6,
        max_steps=600,
        stop=3.0,
    )
    study.run(folder, progress=False)
    study.confirm(folder, settings=1, selection_seeds=1, seeds=5, progress=False)
    return folder


def test_hyperparameters_that_are_searched_stand_before_those_that_are_not(tmp_path):
    space = bs.SearchSpace(momentum=0.5, learning_rate=bs.LogUniform(1e-2, 3))
    study = bs.Study(
        workload=perceptron(), optimizer="momentum", space=space, batch_sizes=[4, 16],
        goal=bs.Goal("validation/error", 0.3), trials=3, max_steps=600,
    )  # fmt: skip
    assert study.space.names[0] == "momentum"
    _, words = read(study.run(tmp_path / "study", progress=False).report(tmp_path / "page.html"))
    assert words.index("Learning rate") < words.index("Momentum")


def test_a_page_has_the_confirmed_numbers_and_says_so(study_folder, tmp_path):
    result = bs.load(study_folder)
    path = result.report(tmp_path / "page.html")
    found, words = read(path)
    assert "the median of the tuned setting under fresh seeds" in words
    for row in result.confirmation().table.to_dict("records"):
        for name in ("batch_size", "steps", "low", "best_of_n", "learning_rate"):
            assert display.words(row[name]) in words
    for check in result.audit():
        assert check.name in words
        assert " ".join(check.evidence.split()) in words
    run = result.runs()[-1]
    assert run["versions"]["jax"] in words
    assert f"Version {bs.__version__}" in words
    assert found.tags.count("img") >= 1


def test_nothing_on_a_page_is_code_or_comes_from_elsewhere(study_folder, tmp_path):
    found, words = read(bs.load(study_folder).report(tmp_path / "page.html"))
    assert NAME in words
    assert not {"script", "iframe", "object", "embed", "form", "a"} & set(found.tags)
    for name, value in found.attributes:
        assert not name.startswith("on")
        if name in ("src", "href"):
            assert value.startswith("data:")
    assert ("http-equiv", "Content-Security-Policy") in found.attributes


def test_a_page_takes_the_place_of_one_that_is_there(study_folder, tmp_path):
    path = tmp_path / "deep" / "page.html"
    result = bs.load(study_folder)
    first = result.report(path).read_bytes()
    assert result.report(path).read_bytes() == first
    assert [x.name for x in path.parent.iterdir()] == ["page.html"]


def test_a_notebook_shows_tables_in_which_nothing_is_code(study_folder):
    result = bs.load(study_folder)
    for found in (result, result.confirmation()):
        text = found._repr_html_()
        assert "<script" not in text
        assert "<table" in text
        assert display.words(found.steps_to_target()["steps"].iloc[0]) in text
    assert len(repr(result)) < 400
    assert str(result.goal) in repr(result)


@pytest.mark.parametrize(
    ("value", "wanted"),
    [(True, "yes"), (np.float32(0.1), "0.1"), (-math.inf, "-∞"), (99.96, "100"), (1e-7, "1e-07"),
     (np.int64(4096), "4,096"), (1.5e9, "1,500,000,000")],
)  # fmt: skip
def test_numbers_are_short(value, wanted):
    assert display.words(value) == wanted


def test_a_page_of_a_study_without_an_answer_says_so(tmp_path):
    study = bs.Study(
        workload=perceptron(), optimizer="sgd", batch_sizes=[16], trials=2, max_steps=4,
        space=bs.SearchSpace(learning_rate=bs.LogUniform(1e-6, 1e-5)),
        goal=bs.Goal("validation/error", 0.01),
    )  # fmt: skip
    with pytest.warns(UserWarning, match="no trial"):
        result = study.run(tmp_path / "study", progress=False)
    _, words = read(report.write(result, tmp_path / "page.html"))
    assert "No batch size reached the goal." in words
    assert "not reached" in words


BROWSER = shutil.which("chromium") or shutil.which("google-chrome")


@pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine")
@pytest.mark.parametrize("width", [390, 1280])
def test_a_browser_shows_a_page_without_a_complaint(study_folder, tmp_path, width):
    """Nothing is wider than the screen but tables, which scroll; the console stays empty."""
    path = bs.load(study_folder).report(tmp_path / "page.html")
    shot = tmp_path / "page.png"
    done = subprocess.run(
        [
            BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
            "--enable-logging=stderr", f"--user-data-dir={tmp_path / 'profile'}",
            f"--window-size={width},2400", f"--screenshot={shot}", path.as_uri(),
        ],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    assert "CONSOLE" not in done.stderr
    from matplotlib import image

    pixels = image.imread(shot)[..., :3]
    assert pixels.shape[1] == width
    assert pixels.std() > 0.05  # it is not blank
    # Nothing is cut off at the right edge: the margin is as white as paper.
    assert (pixels[:, -3:] > 0.97).all()
