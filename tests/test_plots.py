import dataclasses
import re
import types
import xml.etree.ElementTree

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex, to_rgba

from batchscale import plots
from batchscale.metrics import Goal
from batchscale.tuner import Choice, LogUniform, ReverseLogUniform, SearchSpace, Uniform

TRIAL = ["batch_size", "trial", "replicate"]
MISS = float("inf")
SGD = {1: 4096.0, 4: 1024.0, 16: 300.0, 64: 128.0, 256: 100.0}


@pytest.fixture(autouse=True)
def pyplot_is_left_as_it_was():
    before = dict(mpl.rcParams)
    yield
    plt.close("all")
    assert dict(mpl.rcParams) == before


@dataclasses.dataclass(frozen=True)
class Study:
    """What plots read of a result, from tables written down by hand."""

    name: str = "mnist/fc, sgd"
    goal: Goal = Goal("validation/error", 0.03)  # noqa: RUF009
    train_examples: int = 55_000
    space: SearchSpace = SearchSpace(learning_rate=LogUniform(1e-3, 10))  # noqa: RUF009
    steps: dict | None = None
    trials: pd.DataFrame | None = None
    measurements: pd.DataFrame | None = None

    def steps_to_target(self):
        if self.steps is not None:
            rows = [(size, steps, 0 if np.isfinite(steps) else None) for size, steps in self.steps]
        else:
            rows = []
            for size, table in self.trials.groupby(level="batch_size"):
                first = table.loc[table["status"] != "infeasible", "first_crossing"]
                first = first[first.index.get_level_values("replicate") == 0]
                hit = np.isfinite(first.min())
                rows.append((size, first.min(), first.idxmin()[1] if hit else None))
        table = pd.DataFrame(rows, columns=["batch_size", "steps", "trial"])
        return table.astype({"steps": "float64", "trial": "Int64"})


def curve(steps=SGD, **fields):
    return Study(steps=tuple(steps.items()), **fields)


def lines(ax, label):
    return [line for line in ax.get_lines() if line.get_label() == label]


def points(line):
    return list(zip(*(np.asarray(data).tolist() for data in line.get_data()), strict=True))


def legend(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


def at_top_edge(line):
    """Whether a line is drawn at the top edge however the y axis is changed."""
    line.axes.set_ylim(1, 7)
    shown = line.get_transform().transform(line.get_xydata())
    axes = line.axes.bbox
    return not line.get_clip_on() and np.allclose(shown[:, 1], axes.y1) and len(shown) > 0


def tick_labels(axis, *, minor=False):
    """The labels of the ticks in view."""
    axis.get_figure().draw_without_rendering()
    low, high = axis.get_view_interval()
    ticks = axis.get_minor_ticks() if minor else axis.get_major_ticks()
    labels = [tick.label1.get_text() for tick in ticks if low <= tick.get_loc() <= high]
    return [label for label in labels if label]


def test_a_curve_is_drawn_through_the_steps_on_log2_axes():
    ax = plots.steps_to_target(curve())
    assert points(*lines(ax, "mnist/fc, sgd")) == list(SGD.items())
    for axis, scale in ((ax.xaxis, ax.get_xscale()), (ax.yaxis, ax.get_yscale())):
        assert scale == "log"
        assert axis.get_transform().base == 2
    assert ax.get_xlabel() == "Batch size (examples)"
    assert ax.get_ylabel() == "Steps to validation error < 0.03"
    assert legend(ax) == ["mnist/fc, sgd", "perfect scaling"]


def test_intervals_of_medians_are_bars_and_open_ones_do_not_move_the_view():
    table = pd.DataFrame(
        {"batch_size": [8, 16], "steps": [100.0, 60], "low": [80.0, 50], "high": [130.0, MISS]}
    )
    result = types.SimpleNamespace(
        name="mine", goal=curve().goal, train_examples=100, steps_to_target=lambda: table
    )
    ax = plots.steps_to_target(result, perfect_scaling=False)
    (bars,) = ax.collections
    ends = [segment[:, 1].tolist() for segment in bars.get_segments()]
    assert ends == [[80, 130], [50, 60]]  # the open one is an arrow
    assert legend(ax) == ["mine"]
    halved = plots.steps_to_target(result, normalize_at=8)
    ends = [segment[:, 1].tolist() for segment in halved.collections[0].get_segments()]
    assert ends[0] == [0.8, 1.3]


def test_perfect_scaling_starts_at_the_smallest_batch_size():
    (line,) = lines(plots.steps_to_target(curve()), "perfect scaling")
    assert points(line) == [(1, 4096), (4, 1024), (16, 256), (64, 64), (256, 16)]
    assert to_hex(line.get_color()) == "#4c4c4c"
    assert line.is_dashed()


def test_perfect_scaling_starts_at_the_smallest_batch_size_that_reached_the_goal():
    ax = plots.steps_to_target(curve({1: MISS, 2: 100.0, 8: 50.0, 16: MISS}))
    assert points(*lines(ax, "perfect scaling")) == [(2, 100), (8, 25), (16, 12.5)]


def test_misses_are_open_markers_at_the_top_edge_and_interrupt_the_line():
    ax = plots.steps_to_target(curve({1: MISS, 2: 100.0, 4: MISS, 8: 50.0}))
    (misses,) = lines(ax, "goal not reached")
    assert misses.get_xdata().tolist() == [1, 4]
    assert at_top_edge(misses)
    assert to_hex(misses.get_markerfacecolor()) == "#ffffff"
    assert misses.get_linestyle() == "None"
    drawn = lines(ax, "mnist/fc, sgd")[0].get_ydata()
    np.testing.assert_array_equal(drawn, [np.nan, 100, np.nan, 50])
    assert legend(ax) == ["mnist/fc, sgd", "perfect scaling", "goal not reached"]
    assert ax.get_xlim()[0] < 1


def test_a_curve_of_misses_has_no_perfect_scaling():
    ax = plots.steps_to_target(curve({1: MISS, 8: MISS}))
    ax.get_figure().draw_without_rendering()
    assert lines(ax, "perfect scaling") == []
    assert at_top_edge(*lines(ax, "goal not reached"))
    assert legend(ax) == ["mnist/fc, sgd", "goal not reached"]


def test_several_curves_differ_in_colour_and_marker():
    results = [curve(name=f"model {i}") for i in range(6)]
    ax = plots.steps_to_target(results)
    drawn = [lines(ax, result.name)[0] for result in results]
    assert len({line.get_color() for line in drawn}) == 6
    assert len({line.get_marker() for line in drawn}) == 6
    assert {line.get_linestyle() for line in drawn} == {"-"}  # dashes are for perfect scaling
    perfect = lines(ax, "perfect scaling")
    assert len(perfect) == 6
    assert not {line.get_color() for line in perfect} & {line.get_color() for line in drawn}
    assert legend(ax) == [*(result.name for result in results), "perfect scaling"]


def test_curves_beyond_the_colours_still_differ_from_each_other():
    ax = plots.steps_to_target([curve(name=f"model {i}") for i in range(20)])
    drawn = [lines(ax, f"model {i}")[0] for i in range(20)]
    assert len({(line.get_color(), line.get_marker()) for line in drawn}) == 20


@pytest.mark.parametrize(
    ("results", "labels", "expected"),
    [
        ({"SGD": curve(), "Nesterov": curve()}, None, ["SGD", "Nesterov"]),
        ([curve(), curve()], ["SGD", "Nesterov"], ["SGD", "Nesterov"]),
        ((curve(), curve()), None, ["mnist/fc, sgd (1)", "mnist/fc, sgd (2)"]),
        (curve(), ["mine"], ["mine"]),
        (
            [curve(), curve(goal=Goal("test/accuracy", 0.9, "max"))],
            None,
            [
                "mnist/fc, sgd: validation error < 0.03",
                "mnist/fc, sgd: test accuracy > 0.9",
            ],
        ),
    ],
)
def test_curves_are_labelled(results, labels, expected):
    ax = plots.steps_to_target(results, labels=labels)
    assert legend(ax) == [*expected, "perfect scaling"]


def test_different_goals_share_a_neutral_axis_label():
    ax = plots.steps_to_target([curve(), curve(goal=Goal("validation/error", 0.02))])
    assert ax.get_ylabel() == "Steps to goal"
    ax = plots.steps_to_target(curve(goal=Goal("validation/average_precision", 0.31, "max")))
    assert ax.get_ylabel() == "Steps to validation average precision > 0.31"


def test_normalized_curves_are_1_at_the_anchor_and_share_one_perfect_scaling():
    fast = {2: 64.0, 4: 32.0, 16: 16.0, 1024: MISS}
    ax = plots.steps_to_target({"slow": curve(), "fast": curve(fast)}, normalize_at=4)
    assert points(*lines(ax, "slow")) == [(size, steps / 1024) for size, steps in SGD.items()]
    np.testing.assert_array_equal(lines(ax, "fast")[0].get_ydata(), [2, 1, 0.5, np.nan])
    (perfect,) = lines(ax, "perfect scaling")
    assert points(perfect) == [(size, 4 / size) for size in (4, 16, 64, 256, 1024)]
    assert to_hex(perfect.get_color()) == "#4c4c4c"
    assert ax.get_ylabel() == "Steps / (steps at B=4)"
    assert lines(ax, "goal not reached")[0].get_xdata().tolist() == [1024]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: plots.steps_to_target(
                {"a": curve(), "b": curve({1: 9.0, 4: MISS})}, normalize_at=4
            ),
            "steps_to_target: 'b' has no steps to divide by at normalize_at=4; "
            "it reached its goal at batch size 1.",
        ),
        (
            lambda: plots.steps_to_target(curve({1: MISS}), normalize_at=8),
            "steps_to_target: 'mnist/fc, sgd' has no steps to divide by at normalize_at=8; "
            "it reached its goal at batch size none.",
        ),
        (
            lambda: plots.steps_to_target(curve({1: 9.0, 2: 0.0})),
            "'mnist/fc, sgd': at batch size 2 the goal validation error < 0.03 is reached at step "
            "0, before any training. Choose a harder goal.",
        ),
        (lambda: plots.steps_to_target([]), "steps_to_target: there is no result to draw."),
        (
            lambda: plots.steps_to_target([curve(), curve()], labels=["a"]),
            "steps_to_target: 1 labels for 2 results; give one a result, in the same order.",
        ),
    ],
)
def test_curves_that_cannot_be_drawn_are_refused_before_there_is_a_figure(call, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        call()
    assert plt.get_fignums() == []


def test_few_powers_are_plain_numbers_and_many_are_powers():
    ax = plots.steps_to_target(curve({2**k: 2.0 ** (20 - k) for k in range(17)}))
    assert tick_labels(ax.xaxis) == [f"$2^{{{k}}}$" for k in range(0, 17, 2)]
    ax = plots.steps_to_target(curve({size: 2.0**20 / size for size in (1, 2, 4, 1024)}))
    assert tick_labels(ax.xaxis) == [str(2**k) for k in range(10)] + ["1,024"]


def test_an_axis_of_one_value_still_has_two_labels():
    ax = plots.steps_to_target(curve({100: 1000.0}))
    low, high = ax.get_ylim()
    assert low <= 512 < 1024 <= high
    low, high = ax.get_xlim()
    assert low <= 64 < 128 <= high


@pytest.mark.parametrize(
    ("train_examples", "sizes", "expected"),
    [
        (55_000, (1, 64, 55_000), ["\nfull: 55,000"]),
        (55_000, (1, 64), []),
        (1024, (1, 1024), []),
    ],
)
def test_a_full_batch_between_powers_of_two_is_marked(train_examples, sizes, expected):
    ax = plots.steps_to_target(curve(dict.fromkeys(sizes, 10.0), train_examples=train_examples))
    assert tick_labels(ax.xaxis, minor=True) == expected
    assert ax.xaxis.get_ticklocs(minor=True).tolist() == ([55_000] if expected else [])


def test_full_batches_of_several_sizes_are_marked_each():
    ax = plots.steps_to_target(
        [curve({1: 9.0, size: 5.0}, train_examples=size) for size in (6875, 13_750, 13_750)]
    )
    assert ax.xaxis.get_ticklocs(minor=True).tolist() == [6875, 13_750]
    assert tick_labels(ax.xaxis, minor=True) == ["\nfull", "\nfull"]


def scatter_study(*, space, rows, **fields):
    """A study from (batch_size, trial, replicate, hyperparameters, status, first_crossing)."""
    index = pd.MultiIndex.from_tuples([row[:3] for row in rows], names=TRIAL)
    trials = pd.DataFrame([row[3] for row in rows], index=index)
    trials["status"] = [row[4] for row in rows]
    trials["first_crossing"] = [row[5] for row in rows]
    return Study(space=space, trials=trials, **fields)


def momentum_study():
    rows = []
    for batch_size in (16, 64):
        rows += [
            (batch_size, 0, 0, {"learning_rate": 0.1, "momentum": 0.9}, "complete", 50.0),
            (batch_size, 1, 0, {"learning_rate": 0.2, "momentum": 0.8}, "complete", 40.0),
            (batch_size, 1, 1, {"learning_rate": 0.2, "momentum": 0.8}, "complete", 30.0),
            (batch_size, 2, 0, {"learning_rate": 0.001, "momentum": 0.5}, "complete", MISS),
            (batch_size, 3, 0, {"learning_rate": 0.002, "momentum": 0.6}, "incomplete", MISS),
            (batch_size, 4, 0, {"learning_rate": 9.0, "momentum": 0.95}, "infeasible", 7.0),
        ]
    space = SearchSpace(learning_rate=LogUniform(1e-3, 10), momentum=ReverseLogUniform(0.5, 0.95))
    return scatter_study(space=space, rows=rows)


def sgd_study(**fields):
    values = [0.01, 0.1, 1.0, 9.0]
    ends = [("complete", MISS), ("complete", 900.0), ("complete", 700.0), ("infeasible", MISS)]
    rows = [
        (batch_size, trial, 0, {"learning_rate": value}, status, steps)
        for batch_size in (8, 32, 128, 55_000, 2)
        for trial, (value, (status, steps)) in enumerate(zip(values, ends, strict=True))
    ]
    return scatter_study(space=SearchSpace(learning_rate=LogUniform(1e-3, 10)), rows=rows, **fields)


def test_trials_are_scattered_by_learning_rate_and_momentum():
    ax = plots.hyperparameters(momentum_study(), batch_size=64)
    expected = {
        "goal reached": [(0.1, 0.1), (0.2, 0.2)],
        "not reached when stopped": [(0.001, 0.5), (0.002, 0.4)],
        "diverged": [(9.0, 0.05)],
        "best": [(0.2, 0.2)],
    }
    for kind, places in expected.items():
        np.testing.assert_allclose(points(*lines(ax, kind)), places)
    assert (ax.get_xscale(), ax.get_yscale()) == ("log", "log")
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("Learning rate", "1 \N{MINUS SIGN} momentum")
    assert ax.get_title() == "mnist/fc, sgd, batch size 64"
    assert legend(ax) == [
        "diverged",
        "not reached when stopped",
        "goal reached",
        "best",
        "equal effective learning rate",
    ]


def test_kinds_of_trials_differ_in_shape():
    ax = plots.hyperparameters(momentum_study(), batch_size=64)
    shapes = {
        kind: (line.get_marker(), to_rgba(line.get_markerfacecolor()) == to_rgba("white"))
        for kind in ("diverged", "not reached when stopped", "goal reached", "best")
        for line in lines(ax, kind)
    }
    assert shapes == {
        "diverged": ("x", False),
        "not reached when stopped": ("o", True),
        "goal reached": ("o", False),
        "best": ("*", False),
    }


def test_grey_lines_join_equal_effective_learning_rates_and_leave_the_view_alone():
    study = momentum_study()
    ax = plots.hyperparameters(study, batch_size=64)
    kinds = {"diverged", "not reached when stopped", "goal reached", "best"}
    equal = [line for line in ax.get_lines() if line.get_label() not in kinds]
    rates = [line.get_xdata() / line.get_ydata() for line in equal]
    # From 0.001 / 0.5 to 9 / 0.05 there are five decades.
    np.testing.assert_allclose(
        rates, [[rate, rate] for rate in (0.01, 0.1, 1, 10, 100)], rtol=1e-12
    )
    assert {text.get_text() for text in ax.texts} == {"0.01", "0.1", "1", "10", "100"}
    assert 1e-4 < ax.get_xlim()[0] < 0.001
    assert 9 < ax.get_xlim()[1] < 90


def test_one_searched_hyperparameter_is_scattered_against_steps():
    ax = plots.hyperparameters(sgd_study(), batch_size=32)
    assert points(*lines(ax, "goal reached")) == [(0.1, 900), (1.0, 700)]
    assert points(*lines(ax, "best")) == [(1.0, 700)]
    (missed,), (diverged,) = lines(ax, "not reached when stopped"), lines(ax, "diverged")
    assert missed.get_xdata().tolist() == [0.01]
    assert diverged.get_xdata().tolist() == [9.0]
    assert at_top_edge(missed)
    assert at_top_edge(diverged)
    assert ax.get_ylabel() == "Steps to validation error < 0.03"


def test_any_hyperparameter_or_derived_quantity_can_be_an_axis():
    ax = plots.hyperparameters(
        momentum_study(), batch_size=64, x="effective_learning_rate", y="first_crossing"
    )
    np.testing.assert_allclose(points(*lines(ax, "goal reached")), [(1.0, 50), (1.0, 40)])
    assert ax.get_xlabel() == "Effective learning rate"
    ax = plots.hyperparameters(momentum_study(), batch_size=64, x="momentum", y="learning_rate")
    assert (ax.get_xscale(), ax.get_yscale()) == ("linear", "log")


def test_refined_trials_are_drawn_beside_those_of_the_search():
    rows = [
        (32, 9000, 0, {"learning_rate": 0.7}, "complete", 650.0),
        (32, 9001, 0, {"learning_rate": 0.9}, "complete", MISS),
        (32, 9002, 0, {"learning_rate": 20.0}, "infeasible", MISS),
        (128, 9000, 0, {"learning_rate": 0.6}, "complete", 10.0),
    ]
    refined = scatter_study(space=sgd_study().space, rows=rows).trials
    ax = plots.hyperparameters(sgd_study(), batch_size=32, refined=refined)
    assert points(*lines(ax, "refined, goal reached")) == [(0.7, 650)]
    (missed,) = lines(ax, "refined, not reached or diverged")
    assert missed.get_xdata().tolist() == [0.9, 20.0]
    assert at_top_edge(missed)
    assert points(*lines(ax, "best")) == [(1.0, 700)]  # of the search alone
    panels = plots.hyperparameters(sgd_study(), refined=refined)
    drawn = [[points(line) for line in lines(p, "refined, goal reached")] for p in panels]
    assert drawn == [[], [], [[(0.7, 650)]], [[(0.6, 10)]], []]


def test_what_is_reached_after_a_budget_is_not_reached():
    whole = momentum_study()
    trials = whole.trials.assign(steps_trained=60)
    study = dataclasses.replace(whole, trials=trials, train_examples=640)
    at_45 = plots.hyperparameters(study, batch_size=16, max_steps=45)
    assert points(*lines(at_45, "goal reached")) == [(0.2, pytest.approx(0.2))]
    assert "not reached in the budget" in legend(at_45)
    assert len(points(*lines(at_45, "diverged"))) == 1
    one_epoch = plots.hyperparameters(study, batch_size=16, max_epochs=1)  # 40 steps
    assert len(points(*lines(one_epoch, "goal reached"))) == 1
    assert points(*lines(one_epoch, "best")) == [(0.2, pytest.approx(0.2))]
    none = plots.hyperparameters(study, batch_size=16, max_steps=39)
    assert not lines(none, "goal reached")
    assert not lines(none, "best")
    with pytest.raises(ValueError, match="was trained for 60 steps, less than the budget"):
        plots.hyperparameters(study, batch_size=16, max_steps=61)
    with pytest.raises(ValueError, match="wanted one budget"):
        plots.hyperparameters(study, batch_size=16, max_steps=1, max_epochs=1)


def test_linear_axes_have_no_lines_of_equal_rate():
    values = {"learning_rate": 0.3, "momentum": 0.9}
    study = scatter_study(
        space=SearchSpace(learning_rate=Uniform(0, 1), momentum=Choice([0.9, 0.99])),
        rows=[(8, 0, 0, values, "complete", 5.0), (8, 1, 0, values, "complete", 6.0)],
    )
    ax = plots.hyperparameters(study, batch_size=8)
    assert legend(ax) == ["goal reached", "best"]


def test_without_a_batch_size_every_one_has_its_panel():
    panels = plots.hyperparameters(sgd_study())
    titles = [panel.get_title() for panel in panels]
    assert titles == ["B = 2", "B = 8", "B = 32", "B = 128", "B = 55,000"]
    figure = panels[0].get_figure()
    assert figure.axes == list(panels)
    assert figure.get_supxlabel() == "Learning rate"
    assert figure.get_supylabel() == "Steps to validation error < 0.03"
    (entries,) = figure.legends
    assert [text.get_text() for text in entries.get_texts()] == [
        "diverged",
        "not reached when stopped",
        "goal reached",
        "best",
    ]
    assert len({panel.get_xlim() + panel.get_ylim() for panel in panels}) == 1
    assert figure.get_size_inches()[0] == 6.4
    # The last panel of every column says what its x axis is.
    figure.draw_without_rendering()
    labelled = [any(tick.label1.get_visible() for tick in p.xaxis.majorTicks) for p in panels]
    assert labelled == [False, True, True, True, True]


def test_panels_of_momentum_share_their_lines_of_equal_rate():
    panels = plots.hyperparameters(momentum_study())
    counts = [len(panel.get_lines()) for panel in panels]
    assert counts == [4 + 5, 4 + 5]
    assert all(len(panel.texts) == 0 for panel in panels)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"batch_size": 48},
            "hyperparameters: 'mnist/fc, sgd' has no batch size 48; it has 2, 8, 32, 128, 55000.",
        ),
        (
            {"x": "dropout"},
            "hyperparameters: x is 'dropout', which 'mnist/fc, sgd' does not have; "
            "it has learning_rate, effective_learning_rate.",
        ),
        (
            {"batch_size": 8, "y": "momentum"},
            "hyperparameters: y is 'momentum', which 'mnist/fc, sgd' does not have; "
            "it has learning_rate, effective_learning_rate, first_crossing.",
        ),
    ],
)
def test_a_scatter_of_what_is_not_there_is_refused(arguments, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        plots.hyperparameters(sgd_study(), **arguments)
    assert plt.get_fignums() == []


def test_axes_hold_one_batch_size():
    _, ax = plt.subplots()
    message = "hyperparameters: ax holds one batch size; give batch_size with it."
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        plots.hyperparameters(sgd_study(), ax=ax)


STEPS = [0, 1, 2, 4, 8]


def curves_study(values, statuses, *, metric="validation/error", goal=None, firsts=None):
    """One batch size, 64; one list of values a trial, at STEPS, NaN where not evaluated."""
    goal = goal or Goal(metric, 0.1)
    index = pd.MultiIndex.from_tuples([(64, t, 0) for t in range(len(values))], names=TRIAL)
    rows = [(64, t, 0, step) for t in range(len(values)) for step in STEPS]
    rows += [(64, 0, 1, step) for step in STEPS]
    measured = pd.DataFrame(
        {metric: np.concatenate([*values, np.full(len(STEPS), 0.77)])},
        pd.MultiIndex.from_tuples(rows, names=[*TRIAL, "step"]),
    )
    first = [MISS] * len(values) if firsts is None else firsts
    trials = pd.DataFrame({"status": statuses, "first_crossing": first}, index)
    return Study(goal=goal, trials=trials, measurements=measured)


def error_study():
    nan = np.nan
    return curves_study(
        [[0.9, 0.8, 0.6, 0.3, 0.2], [0.9, 0.5, nan, 0.09, 0.05], [0.9, 0.7, 300.0, nan, nan]],
        ["complete", "complete", "infeasible"],
        firsts=[MISS, 4.0, MISS],
    )


def test_every_trial_has_a_curve_where_it_was_evaluated_after_step_0():
    ax = plots.training_curves(error_study(), batch_size=64)
    assert points(*lines(ax, "trial 0")) == [(1, 0.8), (2, 0.6), (4, 0.3), (8, 0.2)]
    assert points(*lines(ax, "trial 1")) == [(1, 0.5), (4, 0.09), (8, 0.05)]
    assert ax.get_xscale() == "log"
    assert ax.get_xlabel() == "Steps"
    assert ax.get_ylabel() == "Validation error"
    assert ax.get_title() == "mnist/fc, sgd, batch size 64"


def test_the_winner_is_thick_and_the_goal_is_dashed():
    ax = plots.training_curves(error_study(), batch_size=64)
    width = {f"trial {t}": lines(ax, f"trial {t}")[0].get_linewidth() for t in range(3)}
    assert max(width, key=width.get) == "trial 1"
    (goal,) = [line for line in ax.get_lines() if set(line.get_ydata()) == {0.1}]
    assert goal.is_dashed()
    assert legend(ax) == ["trial", "best: trial 1", "validation error < 0.1", "diverged"]


def test_a_diverged_trial_ends_in_a_cross_within_the_view_of_the_others():
    ax = plots.training_curves(error_study(), batch_size=64)
    low, high = ax.get_ylim()
    assert 0.03 < low < 0.05
    assert 0.8 < high < 1
    (cross,) = [line for line in ax.get_lines() if line.get_marker() == "x"]
    assert points(cross) == [(2, high)]
    assert not cross.get_clip_on()


def test_curves_of_chosen_trials_alone():
    ax = plots.training_curves(error_study(), batch_size=64, trials=[0])
    assert lines(ax, "trial 1") == lines(ax, "trial 2") == []
    assert legend(ax) == ["trial", "validation error < 0.1"]


def test_another_metric_has_no_goal_line():
    study = error_study()
    study.measurements["train/loss"] = study.measurements["validation/error"] * 2
    ax = plots.training_curves(study, batch_size=64, metric="train/loss")
    assert points(*lines(ax, "trial 0")) == [(1, 1.6), (2, 1.2), (4, 0.6), (8, 0.4)]
    assert ax.get_ylabel() == "Train loss"
    assert legend(ax) == ["trial", "best: trial 1", "diverged"]


@pytest.mark.parametrize(
    ("values", "mode", "scale"),
    [
        ([0.9, 0.8, 0.5, 0.2, 0.01], "min", "log"),
        ([0.9, 0.8, 0.5, 0.2, 0.0], "min", "linear"),
        ([0.9, 0.8, 0.5, 0.01, 0.0], "min", "log"),
        ([0.9, 0.8, 0.5, 0.4, 0.3], "min", "linear"),
        ([0.01, 0.1, 0.5, 0.8, 0.9], "max", "linear"),
        ([1.0, 0.8, 0.0, -5.0, -9.0], "min", "linear"),
        ([0.1, 0.1, 0.1, 0.1, 0.1], "min", "linear"),
        ([0.9, np.nan, np.nan, np.nan, np.nan], "min", "linear"),
    ],
)
def test_a_metric_that_falls_by_a_decade_is_on_a_log_scale(values, mode, scale):
    study = curves_study([values], ["complete"], goal=Goal("validation/error", 0.1, mode))
    ax = plots.training_curves(study, batch_size=64)
    ax.get_figure().draw_without_rendering()
    assert ax.get_yscale() == scale
    low, high = ax.get_ylim()
    assert low < 0.1 < high


def test_curves_that_all_diverged_are_still_in_view():
    study = curves_study([[0.9, 5.0, 50.0, np.inf, np.nan]], ["infeasible"])
    ax = plots.training_curves(study, batch_size=64)
    (cross,) = [line for line in ax.get_lines() if line.get_marker() == "x"]
    assert points(cross) == [(2, 50.0)]
    assert legend(ax) == ["validation error < 0.1", "diverged"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"batch_size": 48},
            "training_curves: 'mnist/fc, sgd' has no batch size 48; it has 64.",
        ),
        (
            {"batch_size": 64, "metric": "train/loss"},
            "training_curves: 'mnist/fc, sgd' has no metric 'train/loss'; it has validation/error. "
            "Nothing of 'train' was measured: the study's evaluate=Evaluate(...) says of which "
            "splits.",
        ),
        (
            {"batch_size": 64, "trials": [1, 7]},
            "training_curves: 'mnist/fc, sgd' has no trial 7 at batch size 64; it has 0, 1, 2.",
        ),
    ],
)
def test_curves_of_what_is_not_there_are_refused(arguments, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        plots.training_curves(error_study(), **arguments)
    assert plt.get_fignums() == []


DRAWINGS = [
    lambda ax: plots.steps_to_target(curve(), ax=ax),
    lambda ax: plots.hyperparameters(momentum_study(), batch_size=64, ax=ax),
    lambda ax: plots.training_curves(error_study(), batch_size=64, ax=ax),
]


@pytest.mark.parametrize("draw", DRAWINGS)
def test_given_axes_are_drawn_into_and_pyplot_does_not_notice(draw):
    _, (ax, current) = plt.subplots(1, 2)
    plt.sca(current)
    assert draw(ax) is ax
    assert plt.gca() is current
    assert len(plt.get_fignums()) == 1
    assert current.get_lines() == []


@pytest.mark.parametrize("draw", DRAWINGS)
def test_a_new_figure_is_as_wide_as_a_readme_and_legible(draw):
    figure = draw(None).get_figure()
    assert figure.get_size_inches().tolist() == [6.4, 4.8]
    figure.draw_without_rendering()
    texts = [text for text in figure.findobj(mpl.text.Text) if text.get_text()]
    assert len(texts) > 10
    assert min(text.get_fontsize() for text in texts) >= 9
    # Nothing sticks out of the figure.
    tight = figure.get_tightbbox()
    assert tight.x0 >= -0.01
    assert tight.x1 <= 6.41


def test_a_saved_svg_is_the_same_byte_for_byte(tmp_path):
    draw = DRAWINGS[0]
    png, svg = plots.save(draw(None), tmp_path / "figures" / "mnist.v1")
    assert (png, svg) == (
        tmp_path / "figures" / "mnist.v1.png",
        tmp_path / "figures" / "mnist.v1.svg",
    )
    assert plt.imread(png).shape[:2] == (960, 1280)
    assert xml.etree.ElementTree.parse(svg).getroot().tag.endswith("svg")
    _, again = plots.save(draw(None).get_figure(), str(tmp_path / "again"))
    assert svg.read_bytes() == again.read_bytes()


def test_a_stem_has_no_suffix_and_a_title_is_text(tmp_path):
    with pytest.raises(ValueError, match=r"save\(figure, 'mnist', \['pdf'\]\)"):
        plots.save(plots.steps_to_target(momentum_study()), tmp_path / "mnist.pdf")
    with pytest.raises(TypeError, match="title: got 3, wanted text"):
        plots.steps_to_target(momentum_study(), title=3)
    with pytest.raises(ValueError, match="wanted one of column, page, slide"):
        plots.style(["column"])


def test_a_grid_is_saved_whole(tmp_path):
    png, _ = plots.save(plots.hyperparameters(momentum_study()), tmp_path / "grid")
    height, width, _ = plt.imread(png).shape
    assert (width, height) == (1280, 638)


def noise_table(**columns):
    table = {
        "step": [0, 4, 16, 64],
        "b_simple": [50.0, 20.0, 90.0, MISS],
        "low": [40.0, 15.0, 60.0, 80.0],
        "high": [60.0, 27.0, 300.0, MISS],
    }
    return pd.DataFrame(table | columns)


def fitted(b_crit=30.0, low=20.0, high=45.0):
    return types.SimpleNamespace(b_crit=b_crit, b_crit_interval=(low, high))


def test_the_noise_scale_is_drawn_beside_the_critical_batch_size():
    ax = plots.noise_scale(noise_table(), fit=fitted())
    (line,) = lines(ax, "gradient noise scale, $B_{simple}$")
    np.testing.assert_array_equal(line.get_xdata(), [4, 16, 64])
    np.testing.assert_array_equal(line.get_ydata(), [20, 90, np.nan])
    (critical,) = lines(ax, "critical batch size, $B_{crit}$")
    assert set(critical.get_ydata()) == {30.0}
    (band,) = ax.patches
    assert (band.get_y(), band.get_y() + band.get_height()) == (20.0, 45.0)
    (hidden,) = lines(ax, "gradient hidden by noise")
    assert hidden.get_xdata().tolist() == [64]
    for axis in (ax.xaxis, ax.yaxis):
        assert axis.get_transform().base == 2
    assert at_top_edge(hidden)


def test_intervals_are_a_band_that_ends_at_the_edge_where_they_do_not():
    ax = plots.noise_scale(noise_table())
    (band,) = ax.collections
    heights = band.get_paths()[0].vertices
    top = ax.get_ylim()[1]
    assert {tuple(point) for point in heights} >= {(4, 15), (4, 27), (16, 300), (64, 80), (64, top)}
    exact = plots.noise_scale(noise_table(low=[50, 20, 90, 95], high=[50, 20, 90, 95]))
    assert not exact.collections


@pytest.mark.parametrize(
    ("low", "high", "words"), [(20.0, MISS, "at least 20"), (0.0, 45.0, "at most 45")]
)
def test_a_refused_critical_batch_size_is_a_bound(low, high, words):
    ax = plots.noise_scale(noise_table(), fit=fitted(np.nan, low, high))
    (band,) = ax.patches
    bottom, top = ax.get_ylim()
    assert band.get_y() == pytest.approx(max(low, bottom))
    assert band.get_y() + band.get_height() == pytest.approx(min(high, top))
    assert legend(ax)[-1] == f"critical batch size, $B_{{crit}}$: {words}"


def test_a_fit_that_says_nothing_is_not_drawn():
    ax = plots.noise_scale(noise_table(), fit=fitted(np.nan, np.nan, np.nan))
    assert not ax.patches
    assert "critical" not in " ".join(legend(ax))


def sharpness_table(**columns):
    table = {
        "batch_size": [8, 8, 8, 64, 64, 512],
        "train_loss": [0.1, 0.09, 0.095, 0.1, np.nan, 0.098],
        "gap": [0.02, 0.04, 0.09, 0.01, np.nan, -0.01],
        "sharpness": [1.0, 2.0, 9.0, 3.0, np.nan, 4.0],
        "sharpness_error": [0.1, 0.1, 0.1, 0.1, np.nan, 0.1],
    }
    return pd.DataFrame(table | columns)


def test_sharpness_and_gap_are_two_panels_with_medians():
    axes = plots.sharpness(sharpness_table())
    for ax, medians, values in zip(
        axes, ([2, 3, 4], [0.04, 0.01, -0.01]), ("sharpness", "gap"), strict=True
    ):
        (line,) = lines(ax, "median")
        assert points(line) == list(zip([8, 64, 512], medians, strict=True))
        (trials,) = (line for line in ax.get_lines() if line.get_linestyle() == "None")
        assert sorted(trials.get_ydata()) == sorted(sharpness_table()[values].dropna())
        assert ax.get_xscale() == "log"
    assert axes[0].get_ylim()[0] == 0
    assert axes[0].get_title() == "training loss 0.09 to 0.1"


def test_tables_without_what_is_drawn_are_refused():
    with pytest.raises(ValueError, match="noise_scale: the table has no column b_simple"):
        plots.noise_scale(noise_table().drop(columns="b_simple"))
    with pytest.raises(ValueError, match="noise_scale: the table has no step above 0"):
        plots.noise_scale(noise_table().iloc[:1])
    with pytest.raises(ValueError, match="sharpness: the table has no column gap"):
        plots.sharpness(sharpness_table().drop(columns="gap"))
    with pytest.raises(ValueError, match="sharpness: no trial got down"):
        plots.sharpness(sharpness_table(sharpness=[np.nan] * 6))


def test_branches_are_drawn_without_noise_scales_too():
    local = pd.DataFrame(
        {
            "step": [0, 10, 100], "recovers": [4, 8, 16], "b_local": [5.7, 11.3, np.nan],
            "low": [4.0, 8.0, 16.0], "high": [8.0, 16.0, np.inf],
        }
    )  # fmt: skip
    ax = plots.noise_scale(local=local)
    (known, bound) = ax.containers
    assert known[0].get_xydata().tolist() == [[10, 11.3]]
    assert bound[0].get_xydata().tolist() == [[100, 16]]
    texts = [text.get_text() for legend in ax.figure.legends for text in legend.get_texts()]
    assert not any("noise" in text for text in texts)
    plt.close(ax.figure)
    with pytest.raises(ValueError, match="neither a table"):
        plots.noise_scale()
    with pytest.raises(ValueError, match="no step above 0"):
        plots.noise_scale(local=local[:1])
