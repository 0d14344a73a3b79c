"""Regimes and critical batch sizes, on tables whose answer is known."""

import dataclasses
import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchscale import scaling
from batchscale.scaling.curve import log_steps
from batchscale.stopping import evaluation_grid

SIZES = 2.0 ** np.arange(0, 13)


def table(
    b_crit=32.0, s_min=50.0, sharpness=1.0, scatter=0.0, sizes=SIZES, budget=None, seed=0
) -> pd.DataFrame:
    """A study's table: steps about a curve, rounded up to the grid of evaluations."""
    mean = log_steps(np.log(sizes), math.log(s_min), math.log(b_crit), sharpness)
    exact = np.exp(mean + scatter * np.random.default_rng(seed).normal(size=len(sizes)))
    if budget is None:
        return pd.DataFrame({"batch_size": sizes.astype(int), "steps": exact})
    grid = np.array(evaluation_grid(budget, 0.05))
    place = np.searchsorted(grid, exact)
    missed = place == len(grid)
    place = np.minimum(place, len(grid) - 1)
    return pd.DataFrame(
        {
            "batch_size": sizes.astype(int),
            "steps": np.where(missed, np.inf, grid[place]),
            "previous_evaluation": np.where(missed, grid[-1], grid[place - 1]),
        }
    )


@pytest.mark.parametrize(("form", "sharpness"), [("hyperbolic", 1.0), ("generalised", 2.5)])
def test_an_exact_curve_is_found_again(form, sharpness):
    found = scaling.fit(table(sharpness=sharpness), form=form)
    assert found.refused == ""
    assert str(found).startswith(f"critical batch size {found.b_crit:.3g} (90% interval ")
    assert found.b_crit == pytest.approx(32, rel=0.01)
    assert found.s_min == pytest.approx(50, rel=0.01)
    assert found.sharpness == pytest.approx(sharpness, rel=0.02)
    assert found.b_crit_interval.low < 32 < found.b_crit_interval.high < 34
    np.testing.assert_allclose(found.steps(SIZES), table(sharpness=sharpness)["steps"], rtol=0.02)


def test_at_b_crit_twice_the_steps_and_twice_the_examples_are_needed():
    found = scaling.fit(table())
    assert found.steps([found.b_crit])[0] == pytest.approx(2 * found.s_min)
    examples = found.b_crit * found.steps([found.b_crit])[0]
    assert examples == pytest.approx(2 * found.s_min * found.b_crit)
    assert found.batch_size_at_overhead(1.0) == pytest.approx(found.b_crit)


@pytest.mark.parametrize("form", ["hyperbolic", "generalised"])
@given(factor=st.floats(0.01, 1000), shift=st.integers(0, 20))
@settings(deadline=None, max_examples=5)
def test_scaling_all_steps_scales_the_fit_and_nothing_else(form, factor, shift):
    some = table(scatter=0.1, seed=shift, sharpness=1.0 if form == "hyperbolic" else 2.0)
    found = scaling.fit(some, form=form)
    other = scaling.fit(some.assign(steps=some["steps"] * factor), form=form)
    assert other.s_min == pytest.approx(found.s_min * factor, rel=0.01)
    assert other.b_crit == pytest.approx(found.b_crit, rel=0.01)
    np.testing.assert_allclose(other.b_crit_interval, found.b_crit_interval, rtol=0.02)


def test_the_order_of_rows_does_not_matter():
    some = table(scatter=0.1, budget=10**6)
    shuffled = some.sample(frac=1, random_state=1)
    for analysis in (scaling.fit, scaling.regimes):
        # Not ==, for which a NaN is only sometimes itself.
        np.testing.assert_equal(
            dataclasses.asdict(analysis(shuffled)), dataclasses.asdict(analysis(some))
        )


def test_more_scatter_and_fewer_batch_sizes_widen_the_interval():
    def width(**changes):
        low, high = scaling.fit(table(seed=3, budget=10**6, **changes)).b_crit_interval
        return high / low

    assert width(scatter=0.05) < width(scatter=0.2)
    assert width(scatter=0.1) < width(scatter=0.1, sizes=SIZES[::3])


def test_the_resolution_of_the_grid_is_part_of_the_interval():
    exact, rounded = scaling.fit(table()), scaling.fit(table(budget=10**6))
    assert rounded.b_crit_interval.low < 32 < rounded.b_crit_interval.high
    assert rounded.spread <= 0.05
    assert np.diff(np.log(rounded.b_crit_interval)) > np.diff(np.log(exact.b_crit_interval))


@pytest.mark.parametrize("form", ["hyperbolic", "generalised"])
def test_one_sided_bounds_are_near_the_data(form):
    sizes = 2.0 ** np.arange(10)
    noise = np.exp(0.1 * np.random.default_rng(0).normal(size=10))
    perfect = scaling.fit(
        pd.DataFrame({"batch_size": sizes, "steps": 1e5 / sizes * noise}), form=form
    )
    assert 100 < perfect.b_crit_interval.low < 10_000
    assert perfect.b_crit_interval.high == np.inf
    flat = scaling.fit(pd.DataFrame({"batch_size": sizes, "steps": 100 * noise}), form=form)
    assert flat.b_crit_interval.low == 0
    assert 1e-3 < flat.b_crit_interval.high < 5
    for seed in range(3):
        found = scaling.fit(
            table(b_crit=3000, sizes=sizes, budget=10**7, scatter=0.1, seed=seed), form=form
        )
        assert 50 < found.b_crit_interval.low < 3000


def test_misses_say_that_steps_are_more_than_were_evaluated():
    some = table(budget=600)
    assert np.isinf(some["steps"]).sum() == 2
    found = scaling.fit(some)
    assert (found.batch_sizes, found.misses) == (11, 2)
    assert found.b_crit_interval.low < 32 < found.b_crit_interval.high
    # The steps that were evaluated in vain speak against a curve that is below them.
    reached = pd.DataFrame(
        {
            "batch_size": [8, 16, 32, 64, 128, 256],
            "steps": [100, 90, 80, 70, 60, 55],
            "previous_evaluation": [95, 85, 76, 66, 57, 52],
        }
    )
    miss = pd.DataFrame({"batch_size": [1], "steps": [np.inf], "previous_evaluation": [2000]})
    without, found = scaling.fit(reached), scaling.fit(pd.concat([miss, reached]))
    assert without.steps([1])[0] < 600 < found.steps([1])[0]
    # A miss of which it is not known how long it was says nothing.
    unknown = pd.concat([miss.assign(previous_evaluation=np.nan), reached])
    assert scaling.fit(unknown).s_min == pytest.approx(without.s_min)


def power_law(exponent, *, sizes=SIZES[:9], scatter=0.0):
    noise = scatter * np.random.default_rng(0).normal(size=len(sizes))
    steps = 1e5 * np.array(sizes, float) ** -exponent * np.exp(noise)
    return pd.DataFrame({"batch_size": sizes, "steps": np.ceil(steps)})


@pytest.mark.parametrize("spacing", [0.2, 0.5])
def test_a_coarse_grid_makes_no_power_law_of_a_bend(spacing):
    sizes = np.array(SIZES[3:8])
    grid = np.array(evaluation_grid(100_000, spacing))
    for seed in range(10):
        noise = 0.02 * np.random.default_rng(seed).normal(size=len(sizes))
        exact = 400 * (1 + 32 / sizes) * np.exp(noise)
        place = np.searchsorted(grid, exact)
        some = pd.DataFrame(
            {
                "batch_size": sizes,
                "steps": grid[place],
                "previous_evaluation": grid[place - 1],
            }
        )
        assert "power law" not in scaling.fit(some).refused


def test_a_sharper_bend_is_none_where_there_is_none():
    found = scaling.fit(power_law(0.5), form="generalised")
    assert "along a power law" in found.refused
    assert found.b_crit_interval == (0, math.inf)


@pytest.mark.parametrize(
    ("some", "why", "interval"),
    [
        (table(sizes=SIZES[:3]), "3 batch sizes reach the goal, at least 4 are needed", None),
        (
            table(b_crit=1e6, scatter=0.02),
            "no plateau is certain within the batch sizes",
            (1e3, math.inf),
        ),
        (
            table(b_crit=0.01, scatter=0.02),
            "no perfect scaling is certain within the batch sizes",
            (0.0, 1),
        ),
        (table(scatter=1.5), "scatter by a factor of", None),
        (power_law(0.5), "along a power law of the batch size", None),
        (power_law(0.3, sizes=SIZES[:9]), "along a power law of the batch size", None),
        (power_law(0.7, sizes=SIZES[3:12]), "along a power law of the batch size", None),
        (power_law(0.5, sizes=SIZES[:9], scatter=0.1), "along a power law", None),
    ],
)
def test_a_critical_batch_size_that_was_not_seen_is_refused(some, why, interval):
    found = scaling.fit(some)
    assert why in found.refused
    assert str(found) == f"no critical batch size is quoted: {found.refused}"
    assert math.isnan(found.b_crit)
    assert math.isnan(found.batch_size_at_overhead(0.2))
    if interval is not None:
        low, high = found.b_crit_interval
        if math.isinf(interval[1]):
            assert low > interval[0]
            assert high == math.inf
        else:
            assert low == 0
            assert high < interval[1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.drop(columns="steps"), "no column 'steps'"),
        (lambda t: pd.concat([t, t]), "a batch size stands twice"),
        (lambda t: t.assign(batch_size=t["batch_size"] - 1), "wanted finite batch sizes above 0"),
        (lambda t: t.assign(steps=-1), "wanted steps of at least 0, inf for a miss"),
        (lambda t: t.assign(steps=0), "the goal held before the first step"),
        (
            lambda t: t.astype({"steps": str}),
            "the column 'steps' is str(ing)?; wanted real numbers",
        ),
        (lambda t: t.astype({"steps": complex}), "the column 'steps' is complex128; wanted real"),
        (lambda t: t.assign(steps=True), "the column 'steps' is bool; wanted real numbers"),
        (
            lambda t: t.assign(batch_size=pd.Series(["full", *t["batch_size"][1:]], dtype=object)),
            "the column 'batch_size' holds 'full'; wanted real numbers, such as pandas.to_numeric",
        ),
        (
            lambda t: t.assign(previous_evaluation=pd.Timestamp(0)),
            "the column 'previous_evaluation' is datetime64.*; wanted real numbers",
        ),
        (
            lambda t: t.assign(steps=t["steps"].astype("Float64").where(t["batch_size"] > 1)),
            "wanted steps of at least 0, inf for a miss",
        ),
        (
            lambda t: pd.concat([t, t[["steps"]]], axis=1),
            "the column 'steps' stands twice; wanted the table of metrics.steps_to_target, each",
        ),
    ],
)
def test_tables_that_are_none_are_refused(change, message):
    with pytest.raises(ValueError, match=f"^steps: .*{message}"):
        scaling.fit(change(table()))


@pytest.mark.parametrize("given", [pd.Series([8, 4], name="steps"), {"steps": [8, 4]}, None])
def test_what_is_no_table_is_refused(given):
    of = "wanted the table of metrics.steps_to_target, a pandas.DataFrame"
    for call in (scaling.fit, scaling.regimes, scaling.frontier, scaling.recommend):
        with pytest.raises(TypeError, match=f"^steps: got a {type(given).__name__}, {of}"):
            call(given)
    with pytest.raises(TypeError, match=r"^variants: got a .*, wanted the table of metrics\.var"):
        scaling.transitions(given)


def test_numbers_of_any_kind_are_taken():
    wanted = scaling.fit(table())
    for kind in ("Int64", "int32", object):
        assert scaling.fit(table().astype({"batch_size": kind})) == wanted
    assert scaling.fit(table().astype({"steps": object})) == wanted


def test_transitions_of_a_table_that_is_none_are_refused():
    variants = table().assign(variant="a")
    with pytest.raises(ValueError, match="steps: no column 'steps'; wanted the table of"):
        scaling.transitions(variants.drop(columns="steps"))
    with pytest.raises(ValueError, match="variants: the column 'variant' stands twice; wanted"):
        scaling.transitions(pd.concat([variants, variants[["variant"]]], axis=1))
    of_a_file = variants.assign(why=np.nan)  # as empty words come back from CSV
    assert scaling.transitions(of_a_file).equals(scaling.transitions(variants))


@pytest.mark.parametrize("arguments", [{"form": "linear"}, {"confidence": 1.0}])
def test_arguments_are_checked(arguments):
    with pytest.raises(ValueError, match=next(iter(arguments))):
        scaling.fit(table(), **arguments)
    with pytest.raises(ValueError, match="tolerance"):
        scaling.regimes(table(), tolerance=0)


def regimes(steps, tolerance=0.2):
    sizes = 2 ** np.arange(len(steps))
    return scaling.regimes(
        pd.DataFrame({"batch_size": sizes, "steps": np.asarray(steps, float)}), tolerance=tolerance
    )


@pytest.mark.parametrize(
    ("steps", "perfect", "plateau", "useful"),
    [
        ([64, 32, 16, 8, 4], 16, math.nan, 16),  # perfect scaling all along
        ([50, 50, 50, 50], 1, 1, 1),  # plateau all along
        ([800, 410, 210, 130, 100, 98], 4, 16, 16),
        ([800, 380, 210, 130, 100, 120], 4, 16, 16),  # less than perfect, and up again
        ([800, 410, 210, 130, 100, 60], 4, math.nan, 32),
        ([math.inf, 410, 210, 130, 100, 98], math.nan, 16, 16),
        ([800, 410, math.inf, 130, 100, 98], 2, 16, 16),
    ],
)
def test_regimes_are_read_off_the_table(steps, perfect, plateau, useful):
    found = regimes(steps)
    for got, wanted in (
        (found.perfect_until, perfect),
        (found.plateau_from, plateau),
        (found.useful_until, useful),
    ):
        assert got == wanted or (math.isnan(got) and math.isnan(wanted))
    assert found.fewest_steps == min(steps)


def test_where_nothing_reaches_the_goal_there_is_no_regime():
    found = regimes([math.inf, math.inf])
    assert math.isnan(found.perfect_until)
    assert found.fewest_steps == math.inf


def test_an_overhead_may_be_below_zero():
    some = pd.DataFrame({"batch_size": [1, 2, 4], "steps": [100.0, 45.0, math.inf]})
    assert scaling.overhead(some)["overhead"].tolist() == [0.0, pytest.approx(-0.1), math.inf]
