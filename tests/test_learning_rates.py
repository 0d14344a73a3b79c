"""Learning rates against batch size, on tables whose tuning curves are known."""

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
from batchscale.records import MEASUREMENT_INDEX, TRIAL_INDEX
from batchscale.scaling.response import Parabola, Wall, fit_curve
from batchscale.theory.noisy_quadratic import NoisyQuadratic

GOAL = Goal("validation/error", 0.5)
RATES = np.geomspace(0.01, 10, 25)
SIZES = [1, 2, 4, 8]


def study(steps, *, rates=RATES, sizes=SIZES, trained=10**7, momentum=None):
    """The tables of trials that reach the goal at `steps(batch_size, rate)`; inf: diverged."""
    measurements, trials = {}, {}
    for size in sizes:
        for trial, rate in enumerate(rates):
            crossing = steps(size, rate)
            key = (size, trial, 0)
            measurements[*key, 0] = 0.9
            if crossing < math.inf:
                measurements[*key, max(round(crossing), 1)] = 0.1
            trials[key] = {
                "learning_rate": rate,
                "origin": "plan",
                "status": "complete" if crossing < math.inf else "infeasible",
                "steps_trained": trained,
                "stop_reason": "budget" if crossing < math.inf else "diverged",
            }
    index = pd.MultiIndex.from_tuples(list(measurements), names=MEASUREMENT_INDEX)
    table = pd.DataFrame(
        list(trials.values()), pd.MultiIndex.from_tuples(list(trials), names=TRIAL_INDEX)
    )
    if momentum is not None:
        table["momentum"] = np.tile(momentum, len(sizes))
    return pd.DataFrame({GOAL.metric: list(measurements.values())}, index), table


def noise_dominated(largest, fewest=20_000):
    """Steps of one noisy parabola whose variance decides: the optimum is half the largest rate."""

    def steps(size, rate):
        u = rate / largest(size)
        return fewest / size / (4 * u * (1 - u)) if u < 1 else math.inf

    return steps


def measured(steps, **options):
    arguments = {name: options.pop(name) for name in ("within", "tolerance") if name in options}
    measurements, trials = study(steps, **options)
    return scaling.learning_rates(measurements, GOAL, trials=trials, **arguments)


def test_where_the_largest_rate_follows_the_batch_the_linear_rule_loses_nothing():
    table = measured(noise_dominated(lambda size: 0.4 * size))
    # The curve is not of quite this form: a parabola would be off by a third.
    np.testing.assert_allclose(table["centre"], 0.2 * table["batch_size"], rtol=0.11)
    assert (table["low"] < 0.2 * table["batch_size"]).all()
    assert (table["high"] > 0.2 * table["batch_size"]).all()
    found = scaling.rules(table)
    assert found.reference == 1
    np.testing.assert_allclose(found.table["linear_lost"], 1, atol=0.02)
    assert found.exponent == pytest.approx(1, abs=0.06)
    # At 8 times the batch the square root is 0.35 of the optimum: 1 / (4 u (1 - u)), u = 0.177.
    assert found.table["square_root_lost"].iloc[-1] == pytest.approx(1.72, rel=0.1)


def test_where_the_optimum_stays_the_linear_rule_loses_a_known_factor_and_then_everything():
    found = scaling.rules(measured(noise_dominated(lambda size: 0.5)), reference=1)
    lost = found.table.set_index("batch_size")
    # Twice the optimum is where training diverges; its square root loses 1 / (4 0.71 0.29).
    assert lost.loc[2, "square_root_lost"] == pytest.approx(1.207, rel=0.05)
    assert lost.loc[4, "linear_lost"] == math.inf
    assert lost.loc[4, "linear_why"] == "beyond the usable learning rates"
    assert found.exponent == pytest.approx(0, abs=0.06)
    assert found.exponent_interval.low <= 0 <= found.exponent_interval.high


def test_a_rule_that_leaves_the_search_loses_nobody_knows_what():
    found = scaling.rules(measured(noise_dominated(lambda size: 0.5), sizes=[1, 64]))
    last = found.table.iloc[-1]
    assert math.isnan(last["linear_lost"])
    assert last["linear_why"] == "outside the searched range"
    assert last["square_root_lost"] == math.inf


@pytest.mark.parametrize("sharpness", [0.5, 2.0, 6.0])
@pytest.mark.parametrize("shape", [Wall, Parabola])
def test_an_exact_curve_is_found_again(shape, sharpness):
    x = np.log(RATES)
    y = 3 + shape.height(x - 0.1, sharpness)
    leads = y < 3 + math.log(3)
    found = fit_curve(
        x, np.where(leads, y, 3 + math.log(3)), leads, shape, height=0.2, confidence=0.9
    )
    assert found.centre == pytest.approx(0.1, abs=0.02)
    assert found.sharpness == pytest.approx(sharpness, rel=0.05)
    low, high = shape.reach(0.2, sharpness)
    assert found.interval.low == pytest.approx(0.1 + low, abs=0.15)
    assert found.interval.high == pytest.approx(0.1 + high, abs=0.15)
    assert found.interval.low < 0.1 + low < 0.1 + high < found.interval.high


@pytest.mark.parametrize("shape", [Wall, Parabola])
@given(height=st.floats(0.01, 5), sharpness=st.floats(0.05, 12))
@settings(deadline=None, max_examples=30)
def test_a_reach_has_the_height_and_gradients_are_those_of_differences(shape, height, sharpness):
    low, high = shape.reach(height, sharpness)
    assert low < 0 < high
    for z in (low, high):
        assert shape.height(z, sharpness) == pytest.approx(height, rel=1e-6)
        by_z, by_log = shape.gradient(z, sharpness)
        step = 1e-5
        slope = (shape.height(z + step, sharpness) - shape.height(z - step, sharpness)) / 2e-5
        assert by_z == pytest.approx(slope, rel=1e-3, abs=1e-6)
        more, less = (shape.height(z, sharpness * math.exp(sign * step)) for sign in (1, -1))
        assert by_log == pytest.approx((more - less) / 2e-5, rel=1e-3, abs=1e-5)


def test_the_interval_covers_a_noisy_optimum_and_more_noise_widens_it():
    clean = noise_dominated(lambda size: 0.8)

    def width(scatter, seed):
        random = np.random.default_rng(seed).normal(size=len(RATES))
        noise = dict(zip(RATES, np.exp(scatter * random), strict=True))
        row = measured(lambda size, rate: clean(size, rate) * noise[rate], sizes=[4]).iloc[0]
        assert row["low"] < 0.4 < row["high"]
        assert row["low"] <= row["centre"] <= row["high"]
        return row["high"] / row["low"]

    widths = [np.mean([width(scatter, seed) for seed in range(4)]) for scatter in (0.02, 0.3)]
    assert widths[0] < widths[1]


def test_one_unlucky_trial_hardly_moves_the_optimum():
    clean = noise_dominated(lambda size: 0.8)
    best = RATES[np.argmin([clean(1, rate) for rate in RATES])]
    unlucky = measured(lambda b, rate: clean(b, rate) * (5 if rate == best else 1), sizes=[4])
    assert unlucky["centre"].item() == pytest.approx(0.4, rel=0.1)


@given(order=st.permutations(range(len(RATES))), factor=st.sampled_from([2, 3, 7]))
@settings(deadline=None, max_examples=5)
def test_numbers_of_trials_change_nothing_and_more_steps_change_steps_alone(order, factor):
    steps = noise_dominated(lambda size: 0.5, fewest=400_000)
    plain = measured(steps, sizes=[4])
    other = measured(lambda b, rate: factor * steps(b, rate), sizes=[4], rates=RATES[list(order)])
    assert other["steps"].item() == pytest.approx(factor * plain["steps"].item(), rel=1e-3)
    names = ["effective_learning_rate", "centre", "low", "high", "usable_low", "sharpness"]
    np.testing.assert_allclose(other[names], plain[names], rtol=0.01)


def test_the_optimum_of_the_noisy_quadratic_model_is_found():
    """Best rates grow with the batch and then stay, as the model's own search says."""
    model = NoisyQuadratic.power_law(30)
    rates = np.geomspace(0.003, 1.9, 24)
    sizes = [1, 4, 16, 64, 256]

    def steps(size, rate):
        return model.steps_to_target(0.1, learning_rate=rate, batch_size=size, max_steps=10**5)

    table = measured(steps, rates=rates, sizes=sizes)
    exact = [model.optimum(0.1, batch_size=size, max_steps=10**5).learning_rate for size in sizes]
    np.testing.assert_allclose(table["centre"], exact, rtol=0.25)
    assert ((table["low"] < exact) & (exact < table["high"])).all()
    assert np.diff(np.log(table["centre"]))[0] == pytest.approx(math.log(4), rel=0.15)
    assert np.diff(np.log(table["centre"]))[-1] < 0.4


def test_with_too_few_leading_trials_the_interval_lies_between_trials():
    rates = np.array([0.01, 0.03, 0.1, 0.3, 1.0])
    steps = dict(zip(rates, [900, 250, 100, 120, math.inf], strict=True))
    row = measured(lambda _, rate: steps[rate], rates=rates, sizes=[4]).iloc[0]
    assert row["interval"] == "between trials"
    assert (row["leading"], row["low"], row["high"]) == (3, pytest.approx(0.01), pytest.approx(1))
    assert row["centre"] == pytest.approx(np.exp(np.mean(np.log([0.03, 0.1, 0.3]))))
    assert math.isnan(row["sharpness"])
    found = scaling.rules(pd.DataFrame([row, row.replace(4, 8)]), reference=4)
    assert found.table["linear_why"].tolist() == ["too few leading trials for a curve"] * 2
    assert found.table["linear_lost"].isna().all()


def test_momentum_moves_the_effective_rate_and_has_an_optimum_of_its_own():
    momentum = 1 - np.geomspace(0.01, 0.5, len(RATES))
    target = dict(zip(0.02 * RATES, 1 - momentum, strict=True))

    def steps(size, rate):
        return 1000 * math.exp(0.7 * math.log(target[rate] / 0.1) ** 2)

    table = measured(steps, rates=0.02 * RATES, momentum=momentum, sizes=[4])
    assert table["one_minus_momentum_centre"].item() == pytest.approx(0.1, rel=0.02)
    assert table["one_minus_momentum_interval"].item() == "fitted curve"
    winner = np.argmin(np.abs(np.log((1 - momentum) / 0.1)))
    assert table["one_minus_momentum"].item() == pytest.approx(1 - momentum[winner])
    expected = 0.02 * RATES[winner] / (1 - momentum[winner])
    assert table["effective_learning_rate"].item() == pytest.approx(expected)
    assert "one_minus_momentum" not in measured(
        steps, rates=0.02 * RATES, momentum=np.full(len(RATES), 0.9)
    )


def test_reruns_and_refinements_do_not_count_and_misses_have_a_row():
    measurements, trials = study(noise_dominated(lambda size: 0.5), sizes=[4])
    plain = scaling.learning_rates(measurements, GOAL, trials=trials)
    chosen = trials.iloc[[3]].assign(origin="refine").rename(index={3: 99}, level="trial")
    rerun = trials.iloc[[3]].assign(origin="confirm").rename(index={0: 1}, level="replicate")
    missed = trials.rename(index={4: 8}, level="batch_size").assign(status="infeasible")
    fast = pd.DataFrame(
        {GOAL.metric: 0.1},
        pd.MultiIndex.from_tuples([(4, 99, 0, 1), (4, 3, 1, 1)], names=MEASUREMENT_INDEX),
    )
    table = scaling.learning_rates(
        pd.concat([measurements, fast]), GOAL, trials=pd.concat([trials, chosen, rerun, missed])
    )
    pd.testing.assert_frame_equal(table.iloc[[0]], plain, check_dtype=False, check_exact=True)
    assert table["steps"].iloc[1] == math.inf
    assert table["centre"].isna().tolist() == [False, True]
    assert scaling.rules(table).table["linear_why"].tolist() == ["", "the goal was not reached"]


def test_trials_cut_at_the_first_crossing_are_refused_and_those_of_a_whole_budget_are_not():
    measurements, trials = study(noise_dominated(lambda size: 0.5), sizes=[4], trained=6000)
    kept = measurements.index.get_level_values("step") < 6000
    measurements = measurements[kept]
    scaling.learning_rates(measurements, GOAL, trials=trials)
    feasible = trials["status"] == "complete"
    cut = trials.assign(stop_reason=trials["stop_reason"].mask(feasible, "first crossing"))
    message = (
        "learning_rates: trials within 3 times the fewest steps to validation/error < 0.5: the "
        "curves are too short to tell: at batch size 4, trial 0 was trained for 6000 steps (first "
        "crossing) of 15039. To know, train on with study.extend(folder, stop=3.0)."
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        scaling.learning_rates(measurements, GOAL, trials=cut)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"within": 1.0}, "within: got 1.0, wanted a factor above 1, such as 3.0."),
        (
            {"tolerance": 2.5},
            "tolerance: got 2.5, wanted a share above 0 and at most within - 1 = 2, such as 0.2.",
        ),
        ({"confidence": 1}, "confidence: got 1, wanted a number between 0 and 1."),
    ],
)
def test_arguments_are_checked(arguments, message):
    measurements, trials = study(noise_dominated(lambda size: 0.5), sizes=[4])
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        scaling.learning_rates(measurements, GOAL, trials=trials, **arguments)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: pd.concat([t, t]), "table: a batch size stands twice"),
        (lambda t: t.assign(batch_size=t["batch_size"] - 4), "table: wanted finite batch sizes"),
        (lambda t: t.assign(batch_size=t["batch_size"].astype(str)), "table: the column 'batch_"),
        (lambda t: t.assign(centre=0.0), "table: wanted a finite centre above 0"),
        (lambda t: t.assign(centre=np.inf), "table: wanted a finite centre above 0"),
    ],
)
def test_rules_of_a_table_that_is_none_are_refused(change, message):
    table = measured(noise_dominated(lambda size: 0.5), sizes=[4, 16, 64])
    with pytest.raises(ValueError, match=f"^{message}"):
        scaling.rules(change(table))


def test_rules_take_batch_sizes_of_another_unit():
    table = measured(noise_dominated(lambda size: 0.5), sizes=[4, 16, 64])
    ours = scaling.rules(table)
    theirs = scaling.rules(table.assign(batch_size=table["batch_size"] / 100))
    assert theirs.reference == ours.reference / 100
    np.testing.assert_allclose(theirs.table["linear"], ours.table["linear"])


def test_rules_begin_from_a_batch_size_that_has_a_learning_rate():
    table = measured(noise_dominated(lambda size: 0.5))
    message = (
        "rules: reference is 3, which has no tuned learning rate; those that have: 1, 2, 4, 8."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        scaling.rules(table, reference=3)
    with pytest.raises(ValueError, match="no batch size reaches the goal"):
        scaling.rules(table.assign(centre=np.nan))
    rated = scaling.rules(table, reference=4).table.set_index("batch_size")
    assert rated.loc[4, "linear"] == rated.loc[4, "square_root"] == rated.loc[4, "centre"]


def result(table, name="digits/fc_64, sgd"):
    return SimpleNamespace(name=name, goal=GOAL, learning_rates=lambda: table)


def test_the_figure_shows_centres_with_bars_between_the_two_rules():
    table = measured(noise_dominated(lambda size: 0.4 * size))
    table.loc[3, "interval"] = "between trials"
    table = pd.concat([table, table.iloc[[0]].assign(batch_size=16, centre=np.nan)])
    ax = plots.learning_rates(result(table))
    lines = {line.get_label(): line for line in ax.get_lines()}
    begin = table["centre"].iloc[0]
    np.testing.assert_allclose(lines["linear rule"].get_ydata(), begin * np.array(SIZES))
    np.testing.assert_allclose(lines["square-root rule"].get_ydata(), begin * np.sqrt(SIZES))
    assert lines["linear rule"].is_dashed()
    fitted, few = ax.containers
    assert fitted.lines[0].get_xdata().tolist() == [1, 2, 4]
    assert few.lines[0].get_xdata().tolist() == [8]
    ends = np.array([segment[:, 1] for segment in fitted.lines[2][0].get_segments()])
    np.testing.assert_allclose(ends, table[["low", "high"]].iloc[:3])
    with pytest.raises(ValueError, match="has no learning rate at reference=16"):
        plots.learning_rates(result(table), reference=16)
    with pytest.raises(ValueError, match="reaches its goal at no batch size"):
        plots.learning_rates(result(table.assign(centre=np.nan)))
    plt.close("all")


def test_the_rate_of_a_winner_that_was_past_the_goal_before_it_counted_is_its_own():
    index = pd.MultiIndex.from_tuples([(8, t, 0) for t in range(3)], names=TRIAL_INDEX)
    trials = pd.DataFrame(
        {
            "learning_rate": [0.1, 0.2, 0.4],
            "origin": ["plan", "plan", "topup"],
            "status": ["infeasible", "complete", "complete"],
            "steps_trained": [40, 90, 90],
            "stop_reason": ["diverged", "budget", "budget"],
        },
        index,
    )
    grid = [20, 30, 40, 90]
    curves = {0: [0.9, 0.9, 0.9], 1: [0.9] * 4, 2: [0.9, 0.1, 0.1, 0.1]}
    rows = [(8, t, 0, s) for t, values in curves.items() for s in grid[: len(values)]]
    measurements = pd.DataFrame(
        {GOAL.metric: [value * GOAL.value * 5 for values in curves.values() for value in values]},
        pd.MultiIndex.from_tuples(rows, names=MEASUREMENT_INDEX),
    )
    row = scaling.learning_rates(measurements, GOAL, trials=trials, feasible_trials=2).iloc[0]
    assert (row["steps"], row["trial"]) == (40, 2)
    assert row["effective_learning_rate"] == pytest.approx(0.4)
    none = scaling.learning_rates(measurements.iloc[:0], GOAL, trials=trials.iloc[:0])
    assert len(none) == 0
    assert "centre" in none
