"""Every figure in every preset: whole, legible, and saved to the same bytes."""

import dataclasses
import itertools
import json
import math
from types import SimpleNamespace

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.text import Text
from matplotlib.transforms import Bbox
from test_plots import (
    curve,
    curves_study,
    fitted,
    momentum_study,
    noise_table,
    sgd_study,
    sharpness_table,
)
from test_plots_variants import SIZES, definitions, tuning
from test_plots_variants import Study as Defined

from batchscale import plots, scaling
from batchscale.confirmation import Confirmation
from batchscale.metrics import Goal
from batchscale.plots.common import head, new_axes
from batchscale.records import TRIAL_INDEX
from experiments import regimes

MISS = math.inf
GOAL = Goal("validation/error", 0.05)
MEDIANS = pd.DataFrame(
    {
        "batch_size": [2, 8, 32, 128, 512, 1100],
        "best_of_n": [1500.0, 400, 120, 60, 45, 44],
        "steps": [2000.0, 530, 170, 80, 58, 55],
        "low": [1700.0, 450, 0, 70, 50, 50],
        "high": [2300.0, 600, MISS, 90, 66, 60],
        "quantile_10": [1500.0, 420, 130, 65, 48, 45],
        "quantile_90": [2800.0, 700, MISS, 99, 75, 66],
        "examples": [1.0] * 6,
    }
)
STEPS = MEDIANS[["batch_size", "steps"]]
FIT = scaling.fit(STEPS)
SHARES = {"reached": 0.5, "near": 0.2, "infeasible": 0.0}


def result(**analyses):
    """What figures read of a result, of the medians above."""
    found = Confirmation(MEDIANS, MEDIANS.iloc[:0], MEDIANS.iloc[:0], 0.9)
    return SimpleNamespace(
        name="digits/fc_64, momentum",
        goal=GOAL,
        train_examples=1100,
        steps_to_target=lambda: MEDIANS,
        confirmation=lambda: found,
        scaling=lambda: FIT,
        frontier=lambda seconds_per_step=None: scaling.frontier(
            STEPS, seconds_per_step=seconds_per_step
        ),
        **analyses,
    )


def rates():
    table = MEDIANS.assign(centre=2.0 ** np.arange(6), interval="fitted curve")
    table = table.assign(low=table["centre"] / 2, high=table["centre"] * 3)
    table = table.assign(effective_learning_rate=table["centre"] * 1.1)
    table.loc[3, "interval"] = "between trials"
    table.loc[4, ["low", "high"]] = 0.0, MISS
    return result(learning_rates=lambda: table)


def shares(**share):
    table = MEDIANS[["batch_size"]].assign(**SHARES | share)
    for name in SHARES:
        table[f"{name}_low"] = (table[name] - 0.1).clip(lower=0)
        table[f"{name}_high"] = table[name] + 0.18
    return result(sensitivity=lambda **_: table)


def measured():
    calibration = pd.DataFrame({"batch_size": [8, 128], "seen": [500.0, 82]})
    return result(table=MEDIANS, calibration=calibration)


def compared(names=("SGD", "SGD with Nesterov momentum", "AdamW with warm-up")):
    steps = {
        name: MEDIANS.assign(**{key: MEDIANS[key] * 2**place for key in ("steps", "low", "high")})
        for place, name in enumerate(names)
    }
    return SimpleNamespace(
        steps=steps,
        fits=dict.fromkeys(names, FIT),
        goal="validation/error < 0.05",
        confidence=0.9,
    )


def budgeted():
    steps = [1, 2, 4, 8, 16, 32, 64, 128]
    trials = pd.MultiIndex.from_product([[4, 64, 1100], [0], [0]], names=TRIAL_INDEX)
    rows = pd.MultiIndex.from_product([*trials.levels, steps], names=[*TRIAL_INDEX, "step"])
    size, step = (rows.get_level_values(name).to_numpy(float) for name in ("batch_size", "step"))
    columns = {"status": "complete", "steps_trained": 128, "stop_reason": "budget"}
    return SimpleNamespace(
        name="digits/fc_64, momentum",
        goal=GOAL,
        train_examples=1100,
        trials=pd.DataFrame(columns, trials),
        measurements=pd.DataFrame({GOAL.metric: 1 / (1 + step * size**0.3)}, rows),
    )


def searched():
    """Trials that reach the goal, miss it or diverge, at six batch sizes: the last row has gaps."""
    whole = sgd_study()
    parts = [
        whole.trials.xs(32, level="batch_size", drop_level=False).rename(index={32: 2**power})
        for power in range(6)
    ]
    return dataclasses.replace(whole, trials=pd.concat(parts))


def trained():
    falling = [[0.9, 0.8, 0.6, 0.3, 0.2], [0.9, 0.5, 0.3, 0.09, 0.01]]
    wild = [0.9, 0.7, 300.0, np.nan, np.nan]
    statuses = ["complete", "complete", "infeasible"]
    return curves_study([*falling, wild], statuses, firsts=[MISS, 4.0, MISS])


def families():
    sizes = np.array([4.0, 16, 64, 256])
    found = {}
    for place, name in enumerate(regimes.FAMILIES):
        steps = 30 * (1 + 20 * 2**place / sizes)
        table = pd.DataFrame({"batch_size": sizes, "steps": steps})
        table = table.assign(low=steps / 1.1, high=steps * 1.1)
        found[name] = (table, {"b_crit": 20.0 * 2**place, "s_min": 30.0})
    return found


VARIANTS = {f"validation/error < 0.0{k}": (1 + 32 / SIZES) * 50 * k for k in range(1, 9)}
# Each with a title, or with none: None keeps the figure's own words.
FIGURES = {
    "steps_to_target": lambda **t: plots.steps_to_target([result(), curve()], **t),
    "twelve curves": lambda **t: plots.steps_to_target(
        [curve({k: 100.0 * n + 1000 / k for k in (1, 8, 64)}, name=f"m{n}") for n in range(12)], **t
    ),
    "hyperparameters": lambda **t: plots.hyperparameters(momentum_study(), batch_size=64, **t),
    "a grid": lambda **t: plots.hyperparameters(searched(), **t),
    "a grid of momentum": lambda **t: plots.hyperparameters(momentum_study(), **t),
    "training_curves": lambda **t: plots.training_curves(trained(), batch_size=64, **t),
    "confirmation": lambda **t: plots.confirmation(result(), **t),
    "measurement": lambda **t: plots.measurement(measured(), **t),
    "comparison": lambda **t: plots.comparison(compared(), **t),
    "frontier": lambda **t: plots.frontier(result(), **t),
    "frontier in seconds": lambda **t: plots.frontier(result(), seconds_per_step=0.01, **t),
    "learning_rates": lambda **t: plots.learning_rates(rates(), **t),
    "sensitivity": lambda **t: plots.sensitivity(shares(), max_steps=100, **t),
    "tuning_curve": lambda **t: plots.tuning_curve(tuning([1, 8, 64, 512]), **t),
    "twelve searches": lambda **t: plots.tuning_curve(
        tuning(2 ** np.arange(12)), batch_sizes=2 ** np.arange(12), **t
    ),
    "variants": lambda **t: plots.variants(Defined(definitions(**VARIANTS)), **t),
    "best_by_budget": lambda **t: plots.best_by_budget(budgeted(), **t),
    "eight budgets": lambda **t: plots.best_by_budget(
        budgeted(), steps=[1, 2, 4, 8, 16, 32, 64, 128], **t
    ),
    "noise_scale": lambda **t: plots.noise_scale(noise_table(b_noise=30.0), fit=fitted(), **t),
    "sharpness": lambda **t: plots.sharpness(sharpness_table(), **t),
    "regimes": lambda **t: regimes.draw(families(), **t),
}


@pytest.fixture(autouse=True)
def pyplot_is_left_as_it_was():
    before = dict(mpl.rcParams)
    yield
    plt.close("all")
    assert dict(mpl.rcParams) == before


def figure_of(drawn):
    return np.ravel(drawn)[0].get_figure(root=True)


def boxes(texts):
    """Around the letters; "full" is in its second line."""
    found = []
    for text in texts:
        box = Text.get_window_extent(text)  # without an arrow
        if text.get_text().startswith("\n"):
            box = Bbox([[box.x0, box.y0], [box.x1, (box.y0 + box.y1) / 2]])
        if text.get_text():
            found.append(box)
    return found


def apart(one, other, least=0.5):
    """Whether boxes overlap by less than a part of a pixel in one direction at least."""
    x = min(one.x1, other.x1) - max(one.x0, other.x0)
    y = min(one.y1, other.y1) - max(one.y0, other.y0)
    return x < least or y < least


@pytest.mark.parametrize("preset", ["column", "page", "slide"])
@pytest.mark.parametrize("name", FIGURES)
def test_everything_is_inside_the_figure_and_no_letters_overlap(name, preset):
    with plots.style(preset):
        figure = figure_of(FIGURES[name]())
        wanted = mpl.rcParams["figure.figsize"]
    figure.draw_without_rendering()  # outside the preset, as a user may save it
    whole = figure.bbox
    assert figure.get_figwidth() == wanted[0]
    legends = [*figure.legends, *(ax.get_legend() for ax in figure.axes if ax.get_legend())]
    words = [*figure.texts]
    for ax in figure.axes:
        words += [ax.title, ax.xaxis.label, ax.yaxis.label, *ax.texts]
        for axis in (ax.xaxis, ax.yaxis):
            low, high = sorted(axis.get_view_interval())
            ticks = [*axis.get_major_ticks(), *axis.get_minor_ticks()]
            ticks = [tick.label1 for tick in ticks if low <= tick.get_loc() <= high]
            labels = boxes([label for label in ticks if label.get_visible()])
            assert all(itertools.starmap(apart, itertools.combinations(labels, 2)))
            words += [label for label in ticks if label.get_visible()]
        written = boxes(ax.texts)
        if name != "frontier":  # whose labels may touch where points do
            assert all(itertools.starmap(apart, itertools.combinations(written, 2)))
        if ax.get_legend() and ax.title.get_text():
            above = ax.get_legend().get_window_extent()
            assert apart(above, ax.title.get_window_extent(), 2)
        if ax.get_legend():
            assert ax.get_legend().get_window_extent().width <= 1.02 * ax.bbox.width
        assert ax.bbox.height > 0.15 * whole.height / len({each.bbox.y0 for each in figure.axes})
    for box in [*boxes(words), *(one.get_window_extent() for one in legends)]:
        assert box.x0 >= whole.x0 - 1
        assert box.x1 <= whole.x1 + 1
        assert box.y0 >= whole.y0 - 1
        assert box.y1 <= whole.y1 + 1


@pytest.mark.parametrize("name", FIGURES)
def test_a_title_is_the_users_or_none(name):
    figure = figure_of(FIGURES[name](title="My own, for $5"))
    heads = [np.ravel(figure.axes)[0].get_title()]
    heads += [legend.get_title().get_text() for legend in figure.legends]
    assert r"My own, for \$5" in heads
    assert not heads[0] or heads[0].startswith(("My own", "B = "))


@pytest.mark.parametrize("name", ["steps_to_target", "confirmation", "sharpness"])
def test_an_empty_title_is_none(name):
    assert figure_of(FIGURES[name](title="")).axes[0].get_title() == ""


def test_a_preset_holds_where_it_was_drawn_though_it_is_saved_elsewhere():
    with plots.style("slide"):
        ax = plots.steps_to_target(curve())
    ax.get_figure().draw_without_rendering()
    labels = [tick.label1.get_fontsize() for tick in ax.xaxis.get_major_ticks()]
    assert {*labels, ax.xaxis.label.get_fontsize()} == {18.0}
    assert ax.get_legend().get_texts()[0].get_fontsize() == pytest.approx(0.9 * 18)
    line = ax.get_lines()[1]
    assert line.get_linewidth() == 2.5
    usual = plots.steps_to_target(curve()).get_lines()[1]
    assert usual.get_markersize() / line.get_markersize() == pytest.approx(6 / 10)
    with pytest.raises(ValueError, match="got 'poster', wanted one of column, page, slide"):
        plots.style("poster")


def test_a_saved_pdf_is_the_same_byte_for_byte_and_has_truetype_fonts(tmp_path):
    (once,) = plots.save(plots.steps_to_target(curve()), tmp_path / "once", ["pdf"])
    (twice,) = plots.save(plots.steps_to_target(curve()), tmp_path / "twice", ["pdf"])
    data = once.read_bytes()
    assert data == twice.read_bytes()
    assert b"/FontFile2" in data  # TrueType; Type 3 fonts have none
    assert b"/CreationDate" not in data
    with pytest.raises(ValueError, match=r"got \['tiff'\], wanted some of png, svg, pdf"):
        plots.save(plots.steps_to_target(curve()), tmp_path / "third", ["tiff"])


def test_a_long_legend_is_no_wider_than_the_axes_and_makes_the_figure_taller():
    ax = new_axes()
    handles = [ax.plot([1, 2], label=f"{n}: " + "a name of many words " * 5)[0] for n in range(12)]
    head(ax, "One title", handles)
    figure = ax.get_figure()
    figure.draw_without_rendering()
    assert ax.get_legend().get_window_extent().width <= ax.bbox.width
    assert figure.get_figheight() > 4.8
    assert ax.bbox.height / figure.dpi > 4.8 / 4
    own, panel = plt.subplots()  # a user's figure keeps its size
    head(panel, "One title", [handles[0]] * 12)
    assert own.get_figheight() == 4.8


def arrows(ax):
    """Where arrows end, of intervals that have no end: (x, 0 at the bottom or 1 at the top)."""
    return {text.xy for text in ax.texts if text.arrow_patch is not None}


def heads(ax):
    """Where arrowheads point at an edge: (x, edge, marker)."""
    shown = [line for line in ax.get_lines() if line.get_label() == "_beyond"]
    return {(x, y, line.get_marker()) for line in shown for x, y in line.get_xydata().tolist()}


@pytest.mark.parametrize(
    "draw",
    [
        lambda: plots.steps_to_target(result()),
        lambda: plots.measurement(measured()),
        lambda: plots.comparison(compared(("one",))),
    ],
)
def test_an_interval_without_an_end_is_an_arrow_to_the_edge(draw):
    ax = draw()
    assert arrows(ax) == {(32, 0), (32, 1)}
    assert ax.get_ylim()[1] < 4000  # and does not move the view


def test_an_open_interval_of_a_learning_rate_is_an_arrow():
    assert arrows(plots.learning_rates(rates())) == {(512, 0), (512, 1)}


def test_what_lies_beyond_an_edge_is_an_arrowhead():
    up, down = mpl.markers.CARETUP, mpl.markers.CARETDOWN
    assert heads(plots.confirmation(result())) == {(32, 1.0, up), (32, 0.0, down)}
    assert plots.confirmation(result()).get_ylim()[0] > 30  # an open end does not move the view
    assert heads(plots.training_curves(trained(), batch_size=64)) == {(2, 1.0, up)}
    low = curves_study([[0.9, 0.5, 0.3, 0.2, 0.15], [0.9, -9.0, np.nan, np.nan, np.nan]],
        ["complete", "infeasible"])  # fmt: skip
    assert heads(plots.training_curves(low, batch_size=64)) == {(1, 0.0, down)}
    missed = plots.steps_to_target(curve({1: 90.0, 4: MISS}))
    assert heads(missed) == {(4, 1.0, up)}
    scattered = plots.hyperparameters(sgd_study(), batch_size=32)
    assert {x for x, *_ in heads(scattered)} == {0.01, 9.0}
    assert not heads(plots.steps_to_target(curve()))


def test_a_share_that_is_nowhere_above_zero_is_said_and_has_no_band():
    ax = plots.sensitivity(shares())
    texts = [text.get_text() for text in ax.get_legend().get_texts()]
    assert texts[-1] == "(diverged: none)"
    assert len(ax.collections) == len(ax.get_lines()) == 2
    some = plots.sensitivity(shares(infeasible=[0.0, 0, 0, 0, 0.1, 0.2]))
    assert len(some.collections) == 3


def test_bands_have_edges_that_tell_neighbours_apart():
    ax = plots.tuning_curve(tuning([1, 8, 64, 512]))
    edges = [(tuple(band.get_edgecolor()[0]), str(band.get_linestyle())) for band in ax.collections]
    assert len(set(edges)) == len({dashes for _, dashes in edges}) == 4
    assert all(band.get_linewidth()[0] > 0 for band in ax.collections)
    assert all(band.get_facecolor()[0][3] < 0.15 for band in ax.collections)


def test_twelve_curves_are_shades_in_order_numbered_at_their_ends():
    ax = FIGURES["twelve curves"]()
    drawn = [next(line for line in ax.lines if line.get_label() == f"m{n}") for n in range(12)]
    dark = [np.dot(mpl.colors.to_rgb(line.get_color()), (0.299, 0.587, 0.114)) for line in drawn]
    assert dark == sorted(dark, reverse=True)  # in grey print too
    for one, other in itertools.pairwise(drawn):
        assert one.get_marker() != other.get_marker()
    numbers = [text for text in ax.texts if text.get_text()]
    assert sorted(int(text.get_text()) for text in numbers) == list(range(1, 13))
    entries = [text.get_text() for text in ax.get_legend().get_texts()]
    assert [entry for entry in entries if entry.startswith("12")] == ["12: m11"]


def test_a_grid_with_gaps_has_numbers_at_the_end_of_every_row_and_column():
    panels = plots.hyperparameters(searched())
    figure = panels[0].get_figure()
    figure.draw_without_rendering()
    assert figure.axes == list(panels)  # no axes without anything in them
    across = panels[0].get_subplotspec().get_gridspec().ncols
    for place, panel in enumerate(panels):
        shown = {
            name: any(tick.label1.get_visible() for tick in axis.get_major_ticks())
            for name, axis in (("x", panel.xaxis), ("y", panel.yaxis))
        }
        assert shown == {"x": place + across >= len(panels), "y": place % across == 0}


def test_studies_compared_differ_in_marker_and_in_what_fills_it():
    ax = plots.comparison(compared())
    looks = [
        (container[0].get_marker(), container[0].get_markerfacecolor())
        for container in ax.containers
    ]
    assert len({marker for marker, _ in looks}) == 3
    assert [face == "white" for _, face in looks] == [False, True, False]


def test_families_are_told_apart_without_colour_and_all_are_in_view():
    found = families()
    ax = regimes.draw(found)
    markers = [container[0].get_marker() for container in ax.containers]
    assert len(set(markers)) == len(found) == 5
    assert ax.get_title() == "Five families, each with its critical batch size"
    low, high = ax.get_ylim()
    for container in ax.containers:
        values = container[0].get_ydata()
        assert low < values.min() < values.max() < high
    only = dict([next(iter(found.items()))])
    assert regimes.draw(only).get_title() == "One family, each with its critical batch size"
    with pytest.raises(ValueError, match="no critical batch size is quoted"):
        regimes.draw({})


def test_open_ends_are_written_as_null_and_words_are_left_alone():
    about = {"ends": (3.0, MISS), "of": {"low": -MISS, "s": np.nan}, "note": "to Infinity", "n": 3}
    written = json.loads(json.dumps(regimes.without_infinities(about), allow_nan=False))
    assert written == {"ends": [3.0, None], "of": {"low": None, "s": None},
        "note": "to Infinity", "n": 3}  # fmt: skip
