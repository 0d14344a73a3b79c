"""Figures of tuning curves and of other definitions, from tables written down by hand."""

import dataclasses
import itertools
import math

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex

from batchscale import plots
from batchscale.metrics import Goal

MISS = math.inf
SIZES = 2.0 ** np.arange(13)


@pytest.fixture(autouse=True)
def pyplot_is_left_as_it_was():
    before = dict(mpl.rcParams)
    yield
    plt.close("all")
    assert dict(mpl.rcParams) == before


@dataclasses.dataclass(frozen=True)
class Study:
    """What the figures read of a result."""

    table: pd.DataFrame
    paces: None = None
    name: str = "mnist/fc, sgd"
    goal: Goal = Goal("validation/error", 0.03)  # noqa: RUF009

    def tuning_curve(self):
        return self.table

    variants = tuning_curve


def tuning(sizes, median=(90.0, 70.0, 60.0), low=(50.0, 40.0, 30.0), high=(200.0, 99.0, 80.0)):
    rows = {"n": [1, 2, 4], "median": median, "low": low, "high": high}
    return Study(pd.concat([pd.DataFrame({**rows, "batch_size": size}) for size in sizes]))


def definitions(**steps):
    frames = [
        pd.DataFrame({"variant": name, "batch_size": SIZES, "steps": count, "why": ""})
        for name, count in steps.items()
    ]
    return pd.concat(frames, ignore_index=True)


def labels(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


def line(ax, label):
    (found,) = [line for line in ax.get_lines() if line.get_label() == label]
    return found


def test_a_tuning_curve_is_the_median_within_its_band_on_log2_axes():
    ax = plots.tuning_curve(tuning([8]))
    np.testing.assert_array_equal(line(ax, "batch size 8").get_xydata()[:, 1], [90, 70, 60])
    (band,) = ax.collections
    corners = band.get_paths()[0].vertices
    assert {(1, 50), (1, 200), (4, 30), (4, 80)} <= set(map(tuple, corners.tolist()))
    assert ax.xaxis.get_transform().base == ax.yaxis.get_transform().base == 2
    assert ax.get_xlabel() == "Trials of the search"
    assert ax.get_ylabel() == "Steps to validation error < 0.03"
    assert ax.get_title() == "mnist/fc, sgd"
    assert labels(ax) == ["batch size 8", "interval of a new search"]


def test_what_a_log_axis_cannot_show_ends_at_its_edges():
    ax = plots.tuning_curve(tuning([8], median=(MISS, 70, 60), low=(0, 40, 30), high=(MISS,) * 3))
    bottom, top = ax.get_ylim()
    assert 0 < bottom < 30
    assert top > 70
    corners = ax.collections[0].get_paths()[0].vertices[:, 1]
    assert corners.min() == pytest.approx(bottom)
    assert corners.max() == pytest.approx(top)
    assert np.isnan(line(ax, "batch size 8").get_ydata()[0])
    (miss,) = [each for each in ax.get_lines() if not each.get_clip_on()]
    assert miss.get_xdata().tolist() == [1]
    assert to_hex(miss.get_markerfacecolor()) == "#ffffff"
    assert "goal not reached" in labels(ax)


def test_some_batch_sizes_are_drawn_or_those_that_are_asked_for():
    sizes = [1, 2, 4, 8, 16, 32, 64]
    own = plt.subplots()[1]
    assert plots.tuning_curve(tuning(sizes), ax=own) is own
    assert labels(own)[:-1] == [f"batch size {size}" for size in (1, 4, 16, 64)]
    ax = plots.tuning_curve(tuning(sizes), batch_sizes=[32, 2])
    assert labels(ax)[:-1] == ["batch size 2", "batch size 32"]
    with pytest.raises(ValueError, match="has no batch size 3; it has 1, 2, 4, 8, 16, 32, 64"):
        plots.tuning_curve(tuning(sizes), batch_sizes=[3, 4])
    many = plots.tuning_curve(tuning(sizes), batch_sizes=sizes)
    assert [text.get_text() for text in many.texts] == [str(size) for size in sizes]
    assert len(many.collections) == 0  # bands would hide one another
    drawn = [line(many, f"batch size {size}") for size in sizes]
    assert len({each.get_color() for each in drawn}) == len(sizes)
    for one, other in itertools.pairwise(drawn):
        assert one.get_marker() != other.get_marker()
        assert one._dash_pattern != other._dash_pattern


def test_variants_are_lines_and_their_critical_batch_sizes_diamonds_on_them():
    curve = 50 * (1 + 32 / SIZES)
    table = definitions(**{"validation/error < 0.03": curve, "interpolated": 4 * curve})
    ax = plots.variants(Study(table))
    reference = line(ax, "validation error < 0.03")
    assert reference.get_linewidth() > line(ax, "interpolated").get_linewidth()
    diamonds = [each for each in ax.get_lines() if each.get_marker() == "D"]
    (x, y), (other_x, other_y) = (each.get_xydata()[0] for each in diamonds)
    assert x == pytest.approx(32, rel=0.01)
    assert y == pytest.approx(100, rel=0.02)
    assert other_x == pytest.approx(x)
    assert other_y == pytest.approx(4 * y)
    assert ax.xaxis.get_transform().base == ax.yaxis.get_transform().base == 2
    assert labels(ax) == ["validation error < 0.03", "interpolated", "critical batch size"]


def test_a_variant_without_an_answer_is_named_and_a_miss_ends_its_line():
    curve = 50 * (1 + 32 / SIZES)
    missing = np.where(SIZES < 4, MISS, curve)
    table = definitions(**{"validation/error < 0.03": curve, "hard": missing, "cut": np.nan})
    table.loc[table["variant"] == "cut", "why"] = "the curves are too short"
    ax = plots.variants(Study(table))
    assert "(cut: not known)" in labels(ax)
    assert np.isnan(line(ax, "hard").get_ydata()).tolist() == (SIZES < 4).tolist()


def test_kinds_of_definitions_have_a_colour_each_and_their_members_a_dash():
    curve = 50 * (1 + 32 / SIZES)
    names = [
        "validation/error < 0.03", "validation/error < 0.02", "validation/error < 0.04",
        "test/error < 0.03", "interpolated",
    ]  # fmt: skip
    ax = plots.variants(Study(definitions(**{name: k * curve for k, name in enumerate(names, 1)})))
    looks = [
        (line(ax, name.replace("/", " ")).get_color(), str(line(ax, name.replace("/", " "))
        ._dash_pattern)) for name in names
    ]  # fmt: skip
    assert len(set(looks)) == len(names)
    assert looks[1][0] == looks[2][0]
    assert len({color for color, _ in looks}) == 4


def test_variants_of_one_batch_size_are_points_that_can_be_told_apart():
    names = ["validation/error < 0.03", "validation/error < 0.04", "validation/error < 0.05"]
    table = pd.DataFrame({"variant": names, "batch_size": 64, "steps": [90.0, 60, 40], "why": ""})
    ax = plots.variants(Study(table))
    drawn = [line(ax, name.replace("/", " ")) for name in names]
    (x, *_), y = zip(*(each.get_xydata()[0] for each in drawn), strict=True)
    assert y == (90, 60, 40)
    assert 32 < x < 64
    assert drawn[1].get_xydata()[0, 0] == pytest.approx(64)
    assert [text.get_text() for text in ax.get_xticklabels()] == ["64"]
    assert len({each.get_marker() for each in drawn}) == 3
    low, high = ax.get_ylim()
    assert low < 40 < 90 < high
