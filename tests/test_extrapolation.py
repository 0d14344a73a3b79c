"""Power laws of critical batch sizes against an integral on a grid, and what they refuse."""

import itertools
import math

import numpy as np
import pandas as pd
import pytest
import scipy.integrate
import scipy.stats

from batchscale.scaling import power_law

SIZES = np.array([1e3, 2e3, 8e3, 1e4])
B_CRIT = np.array([31.0, 50.0, 85.0, 120.0])
DEVIATIONS = np.array([0.05, 0.1, 0.08, 0.15])


def studies(sizes=SIZES, b_crit=B_CRIT, deviations=DEVIATIONS):
    wide = np.exp(1.6448536 * deviations)
    return pd.DataFrame(
        {
            "train_examples": sizes,
            "b_crit": b_crit,
            "b_crit_low": b_crit / wide,
            "b_crit_high": b_crit * wide,
        }
    )


def quantiles(values, weights):
    order = np.argsort(values.ravel())
    cumulated = np.cumsum(weights.ravel()[order])
    return np.interp([0.05, 0.5, 0.95], cumulated / cumulated[-1], values.ravel()[order])


@pytest.mark.slow
def test_the_law_and_what_it_says_elsewhere_are_those_of_an_integral_on_a_grid():
    law = power_law(studies(), "train_examples")
    x, y = np.log(SIZES / 4e3), np.log(B_CRIT)
    height, slope, scatter = np.meshgrid(
        np.linspace(2.5, 6.0, 240), np.linspace(-1.5, 2.5, 240), np.linspace(0.0005, 2.0, 160),
        indexing="ij",
    )  # fmt: skip
    log = -np.log1p((scatter / 0.2) ** 2)
    for at, value, deviation in zip(x, y, DEVIATIONS, strict=True):
        variance = deviation**2 + scatter**2
        log -= 0.5 * np.log(variance) + 0.5 * (value - height - slope * at) ** 2 / variance
    weights = np.exp(log - log.max())
    low, middle, high = quantiles(slope, weights)
    np.testing.assert_allclose(law.exponent, middle, atol=0.02)
    np.testing.assert_allclose(law.exponent_interval, (low, high), atol=0.03)
    noise = np.random.default_rng(0).normal(size=scatter.shape)
    there = height + slope * math.log(4e4 / 4e3) + scatter * noise
    low, middle, high = quantiles(there, weights)
    found = law.at(4e4)
    np.testing.assert_allclose(np.log(found.b_crit), middle, atol=0.03)
    np.testing.assert_allclose(np.log(found.interval), (low, high), atol=0.06)
    assert found.factor == 4
    assert "EXTRAPOLATED 4 times beyond" in str(found)


@pytest.mark.parametrize("deviation", [0.001, 0.01, 0.06])
def test_of_studies_known_alike_the_exponent_has_a_closed_form_but_for_one_integral(deviation):
    sizes = np.array([1e3, 2e3, 4e3])
    seen = 30 * (sizes / 1e3) ** 0.5 * np.exp(np.array([0.0, 0.02, 0.0]))
    law = power_law(studies(sizes, seen, np.full(3, deviation)), "train_examples")
    x, y = np.log(sizes) - np.log(sizes).mean(), np.log(seen)
    slope = x @ y / (x @ x)
    left = ((y - y.mean() - slope * x) ** 2).sum()

    def weight(scatter):  # of three points, with height and exponent integrated out
        variance = deviation**2 + scatter**2
        return math.exp(-0.5 * left / variance) / variance**0.5 / (1 + (scatter / 0.2) ** 2)

    def below(value, scatter):
        spread = ((deviation**2 + scatter**2) / (x @ x)) ** 0.5
        return scipy.stats.norm.cdf((value - slope) / spread) * weight(scatter)

    points = [0.001, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 100]
    whole = sum(scipy.integrate.quad(weight, a, b)[0] for a, b in itertools.pairwise([0, *points]))
    for value, share in zip(law.exponent_interval, (0.05, 0.95), strict=True):
        part = sum(
            scipy.integrate.quad(lambda s, v=value: below(v, s), a, b)[0]
            for a, b in itertools.pairwise([0, *points])
        )
        assert part / whole == pytest.approx(share, abs=0.003)


def test_what_is_measured_is_interpolated_and_what_lies_too_far_is_refused():
    law = power_law(studies(), "train_examples")
    assert law.reach == 10
    assert "interpolated within what was measured" in str(law.at(4e3))
    for value, factor in ((1.01e5, 10.1), (99.0, 1e3 / 99)):
        found = law.at(value)
        assert math.isnan(found.b_crit)
        np.testing.assert_allclose(found.factor, factor)
        assert "Measure nearer" in found.refused
    assert not power_law(studies(), "train_examples", reach=11).at(1.01e5).refused


def test_more_precise_studies_that_agree_make_a_narrower_interval():
    exact = 30 * (SIZES / 1e3) ** 0.5
    wide = power_law(studies(b_crit=exact, deviations=DEVIATIONS), "train_examples")
    narrow = power_law(studies(b_crit=exact, deviations=DEVIATIONS / 4), "train_examples")
    np.testing.assert_allclose([wide.exponent, narrow.exponent], 0.5, atol=0.005)
    assert np.ptp(narrow.exponent_interval) < 0.8 * np.ptp(wide.exponent_interval)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"by": "parameters"}, "no column 'parameters'"),
        ({"table": studies().iloc[[0, 1, 1]]}, "2 values of 'train_examples', wanted at least 3"),
        ({"table": studies().assign(b_crit_high=np.inf)}, "row 0 .* leave it out on purpose"),
        ({"table": studies().assign(b_crit=np.nan)}, "row 0"),
        ({"table": studies().assign(b_crit=10.0)}, "row 0 .* in an interval"),
        ({"table": studies(sizes=1e3 * (1 + 1e-9 * SIZES / 1e3))}, "1 values .* apart than 0.1%"),
        ({"reach": 0.5}, "reach: got 0.5"),
        ({"confidence": 1}, "confidence"),
    ],
)
def test_tables_that_say_nothing_of_a_law_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        power_law(**{"table": studies(), "by": "train_examples", **change})


def test_a_law_is_of_a_value_above_zero():
    with pytest.raises(ValueError, match="value: got -1"):
        power_law(studies(), "train_examples").at(-1)
