"""Time against cost, and what is recommended, on tables whose answer is known."""

import math
import re
from types import SimpleNamespace

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchscale import plots, scaling
from batchscale.metrics import Goal

SIZES = 2 ** np.arange(0, 13)
MISS = math.inf


def hyperbola(b_crit=64.0, s_min=100.0, sizes=SIZES):
    return pd.DataFrame({"batch_size": sizes, "steps": s_min * (1 + b_crit / np.asarray(sizes))})


def table(steps):
    return pd.DataFrame({"batch_size": 2 ** np.arange(len(steps)), "steps": np.array(steps, float)})


def test_steps_and_examples_lie_on_the_hyperbola():
    found = scaling.frontier(hyperbola())
    np.testing.assert_allclose((found["steps"] / 100 - 1) * (found["examples"] / 6400 - 1), 1)
    np.testing.assert_allclose(found["speedup"], 65 / (1 + 64 / SIZES))
    np.testing.assert_allclose(found["efficiency"], 65 / (SIZES + 64))
    overhead = scaling.overhead(hyperbola())["overhead"]
    np.testing.assert_allclose(found["efficiency"], 1 / (1 + overhead))
    assert found["pareto"].all()
    assert "seconds" not in found


@given(st.lists(st.integers(1, 50) | st.just(MISS), min_size=1, max_size=8))
@settings(deadline=None, max_examples=30)
def test_the_frontier_is_what_nothing_beats(steps):
    found = scaling.frontier(table(steps))
    points = list(zip(found["steps"], found["examples"], strict=True))
    expected = [
        a < MISS and not any(c <= a and d <= b and (c < a or d < b) for c, d in points)
        for a, b in points
    ]
    assert found["pareto"].tolist() == expected
    assert found["pareto"].any() == (min(steps) < MISS)


def test_misses_are_infinite_and_a_smallest_batch_size_that_misses_compares_with_none():
    found = scaling.frontier(table([100, 50, MISS]))
    assert found["examples"].tolist() == [100, 100, MISS]
    assert found["speedup"].tolist() == [1, 2, 0]
    assert found["efficiency"].tolist() == [1, 1, 0]
    assert found["pareto"].tolist() == [False, True, False]
    assert scaling.frontier(table([MISS, 50]))[["speedup", "efficiency"]].isna().all(axis=None)


SECONDS = {1: 0.1, 2: 0.1, 4: 0.3}


@pytest.mark.parametrize(
    "given_times",
    [
        SECONDS,
        pd.DataFrame({"batch_size": list(SECONDS), "seconds_per_step": list(SECONDS.values())}),
    ],
)
def test_measured_step_times_make_seconds_whose_least_may_lie_inside(given_times):
    found = scaling.frontier(table([400, 200, 100]), seconds_per_step=given_times)
    np.testing.assert_allclose(found["seconds"], [40, 20, 30])
    np.testing.assert_allclose(found["speedup"], [1, 2, 4 / 3])
    assert found["pareto"].tolist() == [False, True, False]
    best = scaling.recommend(table([400, 200, 100]), seconds_per_step=given_times)
    assert best.fastest == 2
    assert best.sentences[-1] == "2 is fastest, in 20 seconds."
    assert best.sentences[0].startswith("Seconds are steps times the given seconds a step")


def test_one_step_time_for_all_changes_the_unit_alone():
    steps = hyperbola()
    plain, timed = scaling.frontier(steps), scaling.frontier(steps, seconds_per_step=0.5)
    np.testing.assert_allclose(timed["seconds"], 0.5 * plain["steps"])
    pd.testing.assert_frame_equal(timed.drop(columns="seconds"), plain, check_exact=True)


@pytest.mark.parametrize(
    ("seconds", "message"),
    [
        (
            {1: 0.1, 2: 0.1},
            "seconds_per_step: no time for batch size 4; got those of 1, 2.",
        ),
        ({1: 0.1, 2: 0.1, 4: 0.0}, "seconds_per_step: got 0.0 at batch size 4, wanted seconds "),
        (-1.0, "seconds_per_step: got -1.0 at batch size 1, wanted seconds above 0."),
        (True, "seconds_per_step: got True at batch size 1, wanted seconds above 0."),
        ([0.1], "seconds_per_step: got [0.1] at batch size 1, wanted seconds above 0."),
        ("1 ms", "seconds_per_step: got '1 ms' at batch size 1, wanted seconds above 0."),
        (
            pd.DataFrame({"batch_size": [1, 2, 4], "seconds": 1.0}),
            "seconds_per_step: no column 'seconds_per_step'; wanted 'batch_size' and "
            "'seconds_per_step'.",
        ),
        (
            pd.DataFrame({"batch_size": [1, 2, 2, 4], "seconds_per_step": [0.1, 0.1, 0.9, 0.1]}),
            "seconds_per_step: batch size 2 stands twice; wanted one row a batch size.",
        ),
    ],
)
def test_step_times_are_checked(seconds, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        scaling.frontier(table([400, 200, 100]), seconds_per_step=seconds)


def test_batch_sizes_may_be_in_another_unit():
    steps = table([400, 200, 110, 70, 50, 45])
    millions = steps.assign(batch_size=steps["batch_size"] / 4)
    there, here = scaling.frontier(millions), scaling.frontier(steps)
    np.testing.assert_array_equal(there["batch_size"] * 4, here["batch_size"])
    np.testing.assert_array_equal(there["examples"] * 4, here["examples"])
    assert here["batch_size"].dtype.kind == "i"
    ours, theirs = scaling.regimes(steps), scaling.regimes(millions)
    assert theirs.perfect_until == ours.perfect_until / 4
    assert theirs.plateau_from == ours.plateau_from / 4
    found = scaling.recommend(millions)
    assert found.knee == pytest.approx(scaling.recommend(steps).knee / 4)
    assert "32" not in str(found)


@given(b_crit=st.sampled_from([16, 32, 64, 128]), factor=st.floats(0.1, 50))
@settings(deadline=None, max_examples=3)
def test_the_knee_is_the_critical_batch_size_whatever_the_steps_are_multiplied_by(b_crit, factor):
    steps = hyperbola(b_crit, s_min=100 * factor)
    quoted = scaling.recommend(steps)
    assert not quoted.fit.refused
    assert quoted.knee == b_crit
    # Steps times examples are least at B_crit too, where too few batch sizes quote none.
    near = steps[steps["batch_size"].isin([b_crit // 4, b_crit, b_crit * 4])]
    refused = scaling.recommend(near)
    assert refused.fit.refused
    assert refused.knee == b_crit


def test_the_words_say_where_doubling_is_free_where_it_ends_and_how_sure_that_is():
    steps = hyperbola(100.0, sizes=[1, 4, 16, 64, 128, 512, 2048, 8192])
    found = scaling.recommend(steps, luck=0)
    low, high = found.fit.b_crit_interval
    assert str(found).split("\n") == [
        "Steps stand for time: on ideal hardware a step takes as long at every batch size.",
        "Up to 20 (90% interval 20 to 20): doubling the batch halves the steps, at no more than "
        "20% over the fewest examples.",
        "128 is the knee: 1.8 times the fewest steps and 2.3 times the fewest examples of the "
        f"fitted curve, whose critical batch size is 100 (90% interval {low:.3g} to {high:.3g}).",
        "Above 500 (90% interval 500 to 500): no gain beyond 20% of the fewest steps.",
    ]
    assert found.fastest == 8192
    assert found.regimes == scaling.regimes(steps, fit=found.fit)
    assert found.regimes.by == "fit"
    given_fit = scaling.fit(steps, confidence=0.5)
    assert "(50% interval" in str(scaling.recommend(steps, given_fit))


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        (
            [400, 200, 100],
            [
                "Up to 4: doubling the batch halves the steps at the same number of examples "
                "(within 20%). That is the largest batch size: larger ones may scale on.",
                "4 is the knee among the batch sizes: 1.0 times the fewest steps and 1.0 times the "
                "fewest examples. It is the largest that reached the goal: the true one may lie "
                "above.",
                "No critical batch size is quoted: 3 batch sizes reach the goal, at least 4 are "
                "needed.",
                "No end of the gain within the batch sizes: 4, the largest that reached the goal; "
                "every smaller one needs over 20% more steps.",
            ],
        ),
        (
            [100, 100, 100],
            [
                "No perfect scaling from 1, the smallest batch size, on: the next needs over 20% "
                "more examples.",
                "1 is the knee among the batch sizes: 1.0 times the fewest steps and 1.0 times the "
                "fewest examples. It is the smallest that reached the goal: the true one may lie "
                "below.",
                "No critical batch size is quoted: 3 batch sizes reach the goal, at least 4 are "
                "needed.",
                "Above 1: no gain beyond 20% of the fewest steps.",
            ],
        ),
        (
            [MISS, 100, 80],
            [
                "Not reached in the steps that were trained: the goal at 1.",
                "Where perfect scaling ends is not known: 1, the smallest batch size, did not "
                "reach the goal.",
            ],
        ),
        (
            [400, MISS, 100, 55],
            [
                "Not reached in the steps that were trained: the goal at 2.",
                "Perfect scaling holds at least up to 1; the next batch size did not reach the "
                "goal.",
            ],
        ),
        (
            [100],
            [
                "1 is the only batch size: where perfect scaling ends is not known.",
                "Only 1 reached the goal: where the knee lies is not known.",
                "No critical batch size is quoted: 1 batch size reaches the goal, at least 4 are "
                "needed.",
                "Only 1 reached the goal: where the gain ends is not known.",
            ],
        ),
        ([MISS, MISS], ["No batch size reached the goal, so nothing can be recommended."]),
    ],
)
def test_what_is_not_known_is_said(steps, expected):
    found = scaling.recommend(table(steps))
    assert list(found.sentences[1 : 1 + len(expected)]) == expected
    assert math.isnan(found.knee) == math.isnan(found.fastest) == (min(steps) == MISS)


def test_with_seconds_the_knee_is_one_of_seconds_and_nothing_beats_it():
    steps = pd.DataFrame({"batch_size": [1, 4, 16, 64, 256], "steps": [1710, 435, 116, 37, 16]})
    slow = {1: 1.0, 4: 1.0, 16: 1.0, 64: 4.0, 256: 16.0}
    fit = scaling.fit(steps)
    low, high = fit.b_crit_interval
    assert scaling.recommend(steps, fit).knee == 256
    found = scaling.recommend(steps, fit, seconds_per_step=slow)
    assert found.knee == found.fastest == 16
    assert found.table.set_index("batch_size")["pareto"][16]
    assert found.sentences[2:4] == (
        "16 is the knee among the batch sizes: 1.0 times the fewest seconds and 1.1 times the "
        "fewest examples.",
        f"In steps the critical batch size is 181 (90% interval {low:.3g} to {high:.3g}).",
    )


def test_a_batch_size_nearly_as_fast_for_less_is_named():
    found = scaling.recommend(table([400, 200, 110, 100]), seconds_per_step=1.0)
    assert found.sentences[-1] == (
        "8 is fastest, in 100 seconds; 4 is within 20% of it, with fewer examples a step."
    )


def result(steps):
    medians = steps.assign(steps=2 * steps["steps"])
    return SimpleNamespace(
        name="digits/fc_64, sgd",
        goal=Goal("validation/error", 0.05),
        frontier=lambda seconds_per_step=None: scaling.frontier(
            steps, seconds_per_step=seconds_per_step
        ),
        scaling=lambda: scaling.fit(steps),
        confirmation=lambda: SimpleNamespace(
            steps_to_target=lambda: medians, scaling=lambda: scaling.fit(medians)
        ),
    )


def test_the_figure_says_whose_steps_it_shows():
    best, confirmed = (plots.frontier(result(hyperbola()), confirmed=c) for c in (False, True))
    assert best.get_title() == "digits/fc_64, sgd: time against cost, best of N"
    assert confirmed.get_title() == "digits/fc_64, sgd: time against cost, tuned settings' medians"
    once, twice = (ax.get_lines()[0].get_xydata() for ax in (best, confirmed))
    np.testing.assert_allclose(twice, 2 * once)
    plt.close("all")


def test_the_figure_has_a_labelled_point_a_batch_size_and_the_fitted_hyperbola():
    steps = pd.concat([hyperbola(), pd.DataFrame({"batch_size": [8192], "steps": [150.0]})])
    steps = pd.concat([steps, pd.DataFrame({"batch_size": [16384], "steps": [MISS]})])
    ax = plots.frontier(result(steps))
    lines = {line.get_label(): line for line in ax.get_lines()}
    fit = scaling.fit(steps)
    x, y = lines[f"fitted curve, critical batch size {fit.b_crit:.3g}"].get_data()
    np.testing.assert_allclose((y / fit.s_min - 1) * (x / fit.s_min / fit.b_crit - 1), 1, rtol=1e-6)
    assert lines["beaten by another"].get_xydata().tolist() == [[8192 * 150, 150]]
    assert len(lines["on the frontier"].get_xdata()) == len(SIZES)
    assert [text.get_text() for text in ax.texts] == [f"{size:,}" for size in [*SIZES, 8192]]
    assert (ax.get_xlabel(), ax.get_ylabel()) == (
        "Examples to validation error < 0.05",
        "Steps to validation error < 0.05",
    )
    plt.close("all")


def test_the_figure_of_seconds_has_no_hyperbola_and_one_of_misses_is_refused():
    ax = plots.frontier(result(hyperbola()), seconds_per_step=0.1)
    assert ax.get_ylabel() == "Seconds to validation error < 0.05"
    assert [line.get_label() for line in ax.get_lines()] == ["on the frontier"]
    with pytest.raises(ValueError, match="reaches its goal at no batch size"):
        plots.frontier(result(table([MISS, MISS])))
    plt.close("all")
