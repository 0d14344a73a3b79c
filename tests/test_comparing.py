"""Studies beside each other: ratios against closed forms."""

import dataclasses
import math

import numpy as np
import pandas as pd
import pytest

import batchscale as bs
from batchscale import comparing, scaling
from batchscale.confirmation import Confirmation

GOAL = bs.Goal("validation/error", 0.1)
SIZES = np.array([4, 8, 16, 32, 64, 128, 256, 512])


def confirmed(critical, fewest, width=1.08, *, confidence=0.9, goal=GOAL):
    """A confirmation whose medians lie on a hyperbola."""
    steps = fewest * (1 + critical / SIZES)
    table = pd.DataFrame(
        {
            "batch_size": SIZES, "best_of_n": steps, "trial": 0, "learning_rate": 0.1, "seeds": 21,
            "steps": steps, "previous_evaluation": steps / 1.05, "low": steps / width,
            "high": steps * width, "missed": 0.0,
        }
    )  # fmt: skip
    nothing = pd.DataFrame()
    return Confirmation(table, nothing, nothing, confidence, goal=goal, name="workload, sgd")


def test_ratios_are_those_of_the_curves_and_hold_the_truth():
    found = bs.compare({"one": confirmed(120, 40), "other": confirmed(40, 60)})
    rows = found.ratios.set_index("of")
    assert rows.loc["b_crit", "ratio"] == pytest.approx(3, rel=0.1)
    assert rows.loc["b_crit", "ratio_low"] < 3 < rows.loc["b_crit", "ratio_high"]
    assert rows.loc["fewest_steps", "ratio"] == pytest.approx(40 / 60, rel=0.1)
    assert rows.loc["steps at 64", "ratio"] == pytest.approx(
        40 * (1 + 120 / 64) / (60 * (1 + 40 / 64))
    )
    assert rows.loc["b_crit", "differ"]
    assert "they differ" in str(found)
    assert set(found.table["shows"]) == {"confirmed"}


def test_the_interval_of_a_ratio_is_that_of_two_estimates():
    """By hand: MOVER on logs."""
    ratio, low, high, differ = comparing._ratio((10.0, 8.0, 15.0), (20.0, 16.0, 30.0))
    below = math.log(0.5) - math.hypot(math.log(10 / 8), math.log(30 / 20))
    above = math.log(0.5) + math.hypot(math.log(15 / 10), math.log(20 / 16))
    assert (ratio, low, high) == pytest.approx((0.5, math.exp(below), math.exp(above)))
    assert differ == (high < 1)
    same = comparing._ratio((10.0, 8.0, 12.0), (10.0, 8.0, 12.0))
    assert same[0] == 1
    assert same[1] < 1 < same[2]
    assert same[3] is False


def test_normal_estimates_are_held_as_often_as_said():
    """Of estimates with normal logs, by simulation."""
    rng, z, held = np.random.default_rng(0), 1.6449, 0
    for _ in range(400):
        logs = np.log([3.0, 1.0]) + rng.normal(size=2) * [0.2, 0.3]
        ends = [
            (math.exp(x), math.exp(x - z * s), math.exp(x + z * s))
            for x, s in zip(logs, [0.2, 0.3], strict=True)
        ]
        _, low, high, _ = comparing._ratio(*ends)
        held += low < 3 < high
    assert 0.86 < held / 400 < 0.94


def test_an_end_that_is_open_stays_open():
    ratio, low, high, differ = comparing._ratio((10.0, 8.0, math.inf), (5.0, 4.0, 6.0))
    assert (ratio, high) == (pytest.approx(2), math.inf)
    assert low == pytest.approx(2 * math.exp(-math.hypot(math.log(10 / 8), math.log(6 / 5))))
    assert differ
    assert comparing._ratio((math.nan, 0.0, math.inf), (5.0, 4.0, 6.0))[3] is False


def test_what_is_refused_is_said_and_has_no_ratio():
    found = bs.compare({"flat": confirmed(1e-9, 40), "bent": confirmed(40, 60)})
    row = found.ratios.set_index("of").loc["b_crit"]
    assert math.isnan(row["ratio"])
    assert not row["differ"]
    assert found.table.set_index("name").loc["flat", "why"]
    assert "is not known" in str(found)


def test_other_goals_and_other_things_are_refused():
    with pytest.raises(ValueError, match="got 1 study"):
        bs.compare({"one": confirmed(40, 60)})
    with pytest.raises(ValueError, match="got list"):
        bs.compare([confirmed(40, 60), confirmed(40, 60)])
    with pytest.raises(TypeError, match="'two' is a DataFrame"):
        bs.compare({"one": confirmed(40, 60), "two": pd.DataFrame()})


class Named(Confirmation):
    """A confirmation under a name, with an audit, as a measurement has them."""

    name = "mine, sgd"

    def audit(self):
        return bs.audit.Audit((bs.audit.Check("goal hard enough", bs.audit.Verdict.FAIL, "no"),))


def test_goals_on_other_examples_and_audits_that_fail_are_told():
    some = Named(*vars(confirmed(120, 40)).values())
    other = Named(*vars(confirmed(40, 60)).values())
    found = bs.compare({"one": some, "other": other})
    assert "one: Audit: fails (goal hard enough)." in str(found)
    for found, value in ((some, 0.1), (other, 0.2)):
        answer = bs.Answer(64, {"learning_rate": 0.1}, found, None)
        object.__setattr__(found, "goal", bs.Goal("validation/error", value))
        assert answer.goal.value == value
    with pytest.raises(ValueError, match="the goals differ"):
        bs.compare({"one": some, "other": other})
    object.__setattr__(other, "goal", some.goal)
    object.__setattr__(other, "name", "mine (551 of validation), sgd")
    with pytest.raises(ValueError, match=r"one: all of it; other: 551 of validation"):
        bs.compare({"one": some, "other": other})


def test_the_figure_has_the_points_and_the_curves():
    found = bs.compare({"one": confirmed(120, 40), "other": confirmed(40, 60)})
    ax = bs.plots.comparison(found)
    lines = [line for line in ax.get_lines() if len(line.get_xdata()) == len(SIZES)]
    drawn = {tuple(np.round(np.asarray(line.get_ydata(), float), 6)) for line in lines}
    for name in ("one", "other"):
        assert tuple(np.round(found.steps[name]["steps"], 6)) in drawn
        curve = scaling.Fit.steps(found.fits[name], SIZES)
        np.testing.assert_allclose(curve, found.steps[name]["steps"], rtol=0.1)
    assert len(ax.get_legend().get_texts()) == 2 if ax.get_legend() else True


def test_confirmations_are_of_one_goal_one_part_of_a_split_and_one_confidence():
    one = confirmed(120, 40)
    assert bs.compare({"one": one, "other": confirmed(40, 60)}).goal == "validation/error < 0.1"
    for other, words in (
        (confirmed(40, 60, goal=bs.Goal("validation/error", 0.3)), "the goals differ"),
        (confirmed(40, 60, goal=None), "the goal of the confirmation 'other' is not known"),
        (confirmed(40, 60, confidence=0.5), "'other' are at 0.5"),
        (
            dataclasses.replace(one, name="workload (500 of validation), sgd"),
            "decided on other examples",
        ),
    ):
        with pytest.raises(ValueError, match=words):
            bs.compare({"one": one, "other": other})
