import json
import math
import re

import numpy as np
import pandas as pd
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from batchscale.tuner import (
    Choice,
    Distribution,
    Integer,
    LogUniform,
    ReverseLogUniform,
    SearchSpace,
    Uniform,
    derived,
    effective_learning_rate,
    optima,
    plan,
)

few = settings(deadline=None, max_examples=40)
finite = st.floats(-1e6, 1e6, allow_subnormal=False)
positive = st.floats(1e-9, 1e6)
below_one = st.floats(-10, 1 - 1e-6)


def ordered(numbers):
    """Pairs of bounds that differ by more than rounding does."""
    return (
        st.tuples(numbers, numbers)
        .map(sorted)
        .filter(lambda pair: pair[1] - pair[0] > 1e-6 * max(abs(pair[0]), abs(pair[1]), 1e-9))
    )


distributions = st.one_of(
    ordered(finite).map(lambda pair: Uniform(*pair)),
    ordered(positive).map(lambda pair: LogUniform(*pair)),
    ordered(below_one).map(lambda pair: ReverseLogUniform(*pair)),
    ordered(st.integers(-1000, 1000)).map(lambda pair: Integer(*pair)),
    st.lists(finite, min_size=2, max_size=6, unique=True).map(Choice),
)
spaces = st.dictionaries(
    st.sampled_from(["learning_rate", "momentum", "weight_decay", "dropout", "warmup"]),
    st.one_of(finite, distributions),
    min_size=1,
).map(lambda dimensions: SearchSpace(**dimensions))
units = np.linspace(0, 1, 257)[:-1]


def bounds(distribution):
    if isinstance(distribution, Choice):
        return min(distribution.values), max(distribution.values)
    return distribution.low, distribution.high


@pytest.mark.parametrize(
    ("distribution", "inverse_cdf"),
    [
        (Uniform(-1, 3), scipy.stats.uniform(-1, 4).ppf),
        (LogUniform(1e-4, 10), scipy.stats.loguniform(1e-4, 10).ppf),
        (
            ReverseLogUniform(0.5, 0.9999),
            lambda unit: 1 - scipy.stats.loguniform(1e-4, 0.5).ppf(1 - unit),
        ),
    ],
)
def test_values_are_the_inverse_of_the_cumulative_distribution(distribution, inverse_cdf):
    np.testing.assert_allclose(distribution.value(units), inverse_cdf(units), rtol=1e-12)


def test_integers_and_choices_are_equally_likely():
    value, count = np.unique(Integer(-2, 5).value(units), return_counts=True)
    assert value.tolist() == list(range(-2, 6))
    assert count.tolist() == [32] * 8
    value, count = np.unique(Choice([0.1, 0, 0.01, 5]).value(units), return_counts=True)
    assert value.tolist() == [0, 0.01, 0.1, 5]
    assert count.tolist() == [64] * 4


@few
@given(distributions, st.floats(0, 1, exclude_max=True))
def test_values_lie_within_the_bounds(distribution, unit):
    low, high = bounds(distribution)
    value = distribution.value(np.array([0, unit, math.nextafter(1, 0)]))
    assert np.all((low <= value) & (value <= high))
    assert value.dtype == np.float64


@few
@given(distributions.filter(lambda d: not isinstance(d, Choice)))
def test_positions_invert_values_and_stay_between_0_and_1(distribution):
    value = distribution.value(units)
    position = distribution.unit(value)
    assert np.all((position >= 0) & (position <= 1))
    assert np.all(np.diff(position) >= 0)
    scale = max(abs(bound) for bound in bounds(distribution))
    np.testing.assert_allclose(distribution.value(position), value, rtol=1e-9, atol=1e-9 * scale)
    low, high = bounds(distribution)
    ends = distribution.unit(np.array([low - 1.0, low, high, high + 1.0]))
    np.testing.assert_array_equal(ends, [0, 0, 1, 1])


def test_positions_are_on_the_scale_of_drawing():
    middle = np.array([0.5])
    np.testing.assert_allclose(LogUniform(1e-4, 1e-2).unit(np.array([1e-3])), middle)
    np.testing.assert_allclose(ReverseLogUniform(0.9, 0.999).unit(np.array([0.99])), middle)
    np.testing.assert_allclose(Uniform(2, 4).unit(np.array([3])), middle)
    np.testing.assert_allclose(Integer(0, 10).unit(np.array([5])), middle)
    np.testing.assert_allclose(Choice([7, 0, 3]).unit(np.array([7, 0, 3, 1])), [0, 0.5, 1, np.nan])


@few
@given(distributions)
def test_positions_of_nothing_are_nan(distribution):
    assert np.isnan(distribution.unit(np.array([np.nan]))).all()


@few
@given(distributions)
def test_a_distribution_survives_json(distribution):
    record = json.loads(json.dumps(distribution.to_json()))
    assert Distribution.from_json(record) == distribution


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: LogUniform(10, 1),
            "LogUniform: low is 10.0 and high is 1.0. "
            "Give the lower bound first: LogUniform(1.0, 10.0).",
        ),
        (
            lambda: Uniform(0.1, 0.1),
            "Uniform: low and high are both 0.1. Give the plain number 0.1 for a fixed value.",
        ),
        (
            lambda: LogUniform(0, 1),
            "LogUniform: low is 0.0, but a logarithmic scale needs bounds above 0. "
            "Use a small positive number, or Uniform.",
        ),
        (
            lambda: ReverseLogUniform(0.9, 1),
            "ReverseLogUniform: high is 1.0, but 1 - x is drawn on a logarithmic scale, which "
            "needs bounds below 1. The bounds are of the value itself, such as "
            "ReverseLogUniform(0.9, 0.999).",
        ),
        (lambda: Uniform(0, math.inf), "Uniform: high is inf, but must be finite."),
        (lambda: LogUniform(math.nan, 1), "LogUniform: low is nan, but must be finite."),
        (lambda: Integer(1.5, 3), "Integer: low is 1.5, but must be a whole number."),
        (
            lambda: Integer(5, 3),
            "Integer: low is 5 and high is 3. Give the lower bound first: Integer(3, 5).",
        ),
        (
            lambda: Choice([0.1]),
            "Choice: needs at least two values, got [0.1]. Give a plain number for a fixed value.",
        ),
        (lambda: Choice([1, 2, 1.0]), "Choice: a value is listed twice in [1.0, 2.0, 1.0]."),
        (lambda: Choice([1, math.inf]), "Choice: values[1] is inf, but must be finite."),
        (
            lambda: Distribution.from_json({"distribution": "Normal"}),
            "Distribution.from_json: 'Normal' is not a distribution; expected one of Uniform, "
            "LogUniform, ReverseLogUniform, LogHalfLife, Integer, Choice.",
        ),
    ],
)
def test_a_bad_distribution_is_refused(make, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        make()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Uniform("0", 1), "Uniform: low is '0', but must be a number."),
        (lambda: LogUniform(0.1, True), "LogUniform: high is True, but must be a number."),
        (lambda: Choice([1, None]), "Choice: values[1] is None, but must be a number."),
        (
            lambda: Choice(0.1),
            "Choice: values is 0.1, but must be a sequence of numbers, such as "
            "Choice([0, 0.01, 0.1]).",
        ),
        (
            lambda: SearchSpace(schedule="cosine"),
            "SearchSpace: schedule is 'cosine', but must be a number, a distribution (such as "
            "LogUniform(0.001, 10)) or a function of batch size that returns either.",
        ),
        (
            lambda: SearchSpace(momentum=lambda batch_size: None).at(64),
            "SearchSpace: momentum at batch size 64 is None, but must be a number, a distribution "
            "(such as LogUniform(0.001, 10)) or a function of batch size that returns either.",
        ),
    ],
)
def test_what_is_not_a_number_is_refused(make, message):
    with pytest.raises(TypeError, match=f"^{re.escape(message)}$"):
        make()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: SearchSpace(),
            "SearchSpace: no hyperparameters. Give at least one, such as "
            "SearchSpace(learning_rate=LogUniform(0.001, 10)).",
        ),
        (
            lambda: SearchSpace(momentum=math.nan),
            "SearchSpace: momentum is nan, but must be finite.",
        ),
        (
            lambda: SearchSpace(status=1.0),
            "SearchSpace: 'status' is already a column of the result tables (trials). "
            "Give the hyperparameter another name.",
        ),
        (
            lambda: SearchSpace(momentum=lambda batch_size: math.inf).at(8),
            "SearchSpace: momentum at batch size 8 is inf, but must be finite.",
        ),
        (
            lambda: SearchSpace(momentum=lambda batch_size: 0.9).to_json(),
            "SearchSpace.to_json: momentum is a function of batch size or a share of the budget, "
            "which JSON cannot hold. Write space.at(batch_size, budget).to_json() for each batch "
            "size.",
        ),
    ],
)
def test_a_bad_space_is_refused(make, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        make()


def scaled_space():
    return SearchSpace(
        learning_rate=lambda batch_size: LogUniform(1e-3 * batch_size, 1e3),
        momentum=lambda batch_size: 0.9 if batch_size < 64 else ReverseLogUniform(0.5, 0.95),
        label_smoothing=0,
    )


def test_a_space_is_resolved_at_a_batch_size():
    space = scaled_space()
    assert space.at(8) == SearchSpace(
        learning_rate=LogUniform(0.008, 1000), momentum=0.9, label_smoothing=0.0
    )
    assert space.at(64)["momentum"] == ReverseLogUniform(0.5, 0.95)
    assert space.at(8).at(64) == space.at(8)


def test_a_space_knows_its_names_and_what_is_searched():
    space = scaled_space()
    assert space.names == tuple(space) == ("learning_rate", "momentum", "label_smoothing")
    assert space.searched == ("learning_rate", "momentum")
    assert space.at(8).searched == ("learning_rate",)
    assert space["label_smoothing"] == 0.0
    assert len(space) == 3
    assert "dropout" not in space


def test_spaces_are_equal_when_their_dimensions_are_the_same_in_the_same_order():
    one = SearchSpace(learning_rate=Uniform(0, 1), momentum=0.9)
    assert one == SearchSpace(learning_rate=Uniform(0, 1), momentum=np.float64(0.9))
    assert hash(one) == hash(SearchSpace(learning_rate=Uniform(0, 1), momentum=0.9))
    assert one != SearchSpace(momentum=0.9, learning_rate=Uniform(0, 1))
    assert one != SearchSpace(learning_rate=Uniform(0, 2), momentum=0.9)
    assert one != dict(one)


@few
@given(spaces)
def test_a_space_survives_json_with_sorted_keys(space):
    assert SearchSpace.from_json(json.loads(json.dumps(space.to_json(), sort_keys=True))) == space


@few
@given(spaces, st.integers(1, 2**20), st.integers(0, 2**40), st.integers(1, 70), st.data())
def test_the_first_trials_do_not_depend_on_how_many_there_are(
    space, batch_size, seed, trials, data
):
    first = data.draw(st.integers(1, trials))
    whole = plan(space, batch_size=batch_size, trials=trials, seed=seed)
    pd.testing.assert_frame_equal(
        plan(space, batch_size=batch_size, trials=first, seed=seed),
        whole.iloc[:first],
        check_exact=True,
    )
    assert tuple(whole.columns) == space.names
    assert set(whole.dtypes) == {np.dtype(np.float64)}
    assert whole.index.name == "trial"
    assert whole.index.tolist() == list(range(trials))
    for name, dimension in space.items():
        low, high = bounds(dimension) if isinstance(dimension, Distribution) else (dimension,) * 2
        assert whole[name].between(low, high).all()


def test_a_plan_fills_every_interval_and_every_cell():
    space = SearchSpace(a=LogUniform(1e-3, 10), b=ReverseLogUniform(0.5, 0.99), c=Uniform(-1, 1))
    table = plan(space, batch_size=64, trials=64, seed=3)
    position = np.stack([space[name].unit(table[name].to_numpy()) for name in space], axis=1)
    # A scrambled Sobol sequence of 2^6 points has one in each of 64 intervals of a dimension, and
    # one in each of 8 x 8 cells of its first two: independent draws never do.
    for column in position.T:
        assert sorted(np.floor(column * 64)) == list(range(64))
    cells = np.floor(position[:, :2] * 8) @ [8, 1]
    assert sorted(cells) == list(range(64))


def test_a_plan_is_the_same_to_the_last_bit_everywhere():
    space = SearchSpace(
        learning_rate=LogUniform(1e-3, 10),
        momentum=ReverseLogUniform(0.5, 0.999),
        decay_steps=Integer(300, 600),
        label_smoothing=Choice([0, 0.01, 0.1]),
        dropout=Uniform(-1, 1),
        weight_decay=0.3,
    )
    assert plan(space, batch_size=64, trials=3, seed=0).to_numpy().tolist() == [
        [0.06245047728418278, 0.9984628941442784, 541.0, 0.1, 0.14052661880850792, 0.3],
        [0.10782594248258663, 0.6724725396958713, 447.0, 0.01, -0.11173545755445957, 0.3],
        [1.0994832846537546, 0.9912481338450186, 502.0, 0.1, -0.7306211199611425, 0.3],
    ]


def test_plans_differ_between_seeds_and_batch_sizes():
    space = SearchSpace(learning_rate=Uniform(0, 1))
    rows = {
        tuple(plan(space, batch_size=batch_size, trials=4, seed=seed)["learning_rate"])
        for batch_size in (1, 2, 3)
        for seed in (0, 1, 2)
    }
    assert len(rows) == 9


def test_a_plan_calls_the_functions_with_the_batch_size():
    assert plan(scaled_space(), batch_size=8, trials=50, seed=0)["momentum"].eq(0.9).all()
    table = plan(scaled_space(), batch_size=512, trials=50, seed=0)
    assert table["learning_rate"].between(0.512, 1000).all()
    assert table["momentum"].between(0.5, 0.95).all()


def test_a_plan_of_fixed_values_repeats_them():
    table = plan(SearchSpace(momentum=0.9, learning_rate=0.1), batch_size=1, trials=3, seed=0)
    assert table.to_numpy().tolist() == [[0.9, 0.1]] * 3


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"trials": 0}, ValueError, "plan: trials is 0, but must be at least 1."),
        ({"batch_size": 0}, ValueError, "plan: batch_size is 0, but must be at least 1."),
        ({"seed": -1}, ValueError, "plan: seed is -1, but must be at least 0."),
        ({"trials": 2.0}, TypeError, "plan: trials is 2.0, but must be a whole number."),
    ],
)
def test_a_bad_count_is_refused(arguments, error, message):
    with pytest.raises(error, match=f"^{re.escape(message)}$"):
        plan(SearchSpace(momentum=0.9), **{"batch_size": 1, "trials": 1, "seed": 0} | arguments)


def test_the_effective_learning_rate_has_momentum_in_its_denominator():
    table = pd.DataFrame({"learning_rate": [0.01249], "momentum": [0.97882]}, index=[7])
    expected = pd.Series([0.01249 / 0.02118], index=[7], name="effective_learning_rate")
    pd.testing.assert_series_equal(effective_learning_rate(table), expected)
    plain = effective_learning_rate(table[["learning_rate"]])
    assert plain.tolist() == [0.01249]
    assert plain.name == "effective_learning_rate"
    message = "effective_learning_rate: no column 'learning_rate'; the table has 'momentum'."
    with pytest.raises(KeyError, match=re.escape(message)):
        effective_learning_rate(table[["momentum"]])


def test_derived_quantities_are_those_that_the_columns_allow():
    assert list(derived(pd.DataFrame({"dropout": [0.1]}))) == []
    assert list(derived(pd.DataFrame({"learning_rate": [0.1]}))) == ["effective_learning_rate"]
    assert derived(pd.DataFrame({"momentum": [0.75]}))["one_minus_momentum"].tolist() == [0.25]


def trial_table(rows):
    """Trials from (batch_size, trial, replicate, hyperparameters)."""
    index = pd.MultiIndex.from_tuples(
        [row[:3] for row in rows], names=["batch_size", "trial", "replicate"]
    )
    return pd.DataFrame([row[3] for row in rows], index=index)


def step_table(rows):
    table = pd.DataFrame(rows, columns=["batch_size", "steps", "trial"])
    return table.astype({"steps": "float64", "trial": "Int64"})


def test_optima_are_the_winners_with_their_hyperparameters():
    space = SearchSpace(learning_rate=LogUniform(1e-3, 1e1), momentum=ReverseLogUniform(0.5, 0.95))
    trials = trial_table(
        [
            (64, 0, 0, {"learning_rate": 0.1, "momentum": 0.75}),
            (64, 1, 0, {"learning_rate": 9.0, "momentum": 0.8}),
            (64, 1, 1, {"learning_rate": 9.0, "momentum": 0.8}),
            (128, 1, 0, {"learning_rate": 0.3, "momentum": 0.7}),
            (2, 5, 0, {"learning_rate": 0.2, "momentum": 0.501}),
        ]
    )
    steps = step_table([(64, 900, 1), (128, np.inf, None), (2, 30_000, 5)])
    expected = step_table([(64, 900, 1), (128, np.inf, None), (2, 30_000, 5)]).assign(
        learning_rate=[9.0, np.nan, 0.2],
        momentum=[0.8, np.nan, 0.501],
        effective_learning_rate=[9.0 / (1 - 0.8), np.nan, 0.2 / (1 - 0.501)],
        learning_rate_edge=["high", "", ""],
        momentum_edge=["", "", "low"],
    )
    pd.testing.assert_frame_equal(optima(steps, trials, space), expected, check_exact=True)


@pytest.mark.parametrize(
    ("dimension", "value", "edge", "expected"),
    [
        # A twentieth of four decades is a factor of 10 ** 0.2 = 1.585.
        (LogUniform(1e-3, 1e1), 1.58e-3, 0.05, "low"),
        (LogUniform(1e-3, 1e1), 1.59e-3, 0.05, ""),
        (LogUniform(1e-3, 1e1), 1e1 / 1.59, 0.05, ""),
        (LogUniform(1e-3, 1e1), 1e1 / 1.58, 0.05, "high"),
        (LogUniform(1e-3, 1e1), 0.9, 0.25, ""),
        (LogUniform(1e-3, 1e1), 1.1, 0.25, "high"),
        (LogUniform(1e-3, 1e1), 1e1, 0.0, "high"),
        # Momentum 0.998 is in the middle of 1 - momentum's decades, not near the top.
        (ReverseLogUniform(0.9, 0.9999), 0.998, 0.05, ""),
        (ReverseLogUniform(0.9, 0.9999), 0.99989, 0.05, "high"),
        (ReverseLogUniform(0.9, 0.9999), 0.91, 0.05, "low"),
        (Uniform(0, 10), 0.5, 0.05, "low"),
        (Uniform(0, 10), 0.51, 0.05, ""),
        (Integer(1, 4), 1, 0.05, "low"),
        (Integer(1, 4), 2, 0.05, ""),
        (Integer(1, 4), 4, 0.0, "high"),
        (Integer(0, 1000), 960, 0.05, "high"),
        (Choice([0, 0.01, 0.1]), 0, 0.05, ""),
        (Choice([0, 0.01, 0.1]), 0.1, 0.05, ""),
        # A trial from outside the range is beyond its edge.
        (LogUniform(1e-3, 1e1), 20.0, 0.05, "high"),
    ],
)
def test_an_optimum_is_at_an_edge_on_the_scale_it_was_drawn_on(dimension, value, edge, expected):
    table = optima(
        step_table([(8, 10, 0)]),
        trial_table([(8, 0, 0, {"x": value})]),
        SearchSpace(x=dimension),
        edge=edge,
    )
    assert table["x_edge"].tolist() == [expected]
    assert "effective_learning_rate" not in table


def test_edges_are_those_of_the_range_at_each_batch_size():
    space = SearchSpace(
        learning_rate=lambda batch_size: LogUniform(1e-3 * batch_size, 1e1 * batch_size),
        momentum=lambda batch_size: 0.5 if batch_size == 1 else Uniform(0.5, 0.9),
        label_smoothing=0.1,
    )
    winner = {"learning_rate": 1.0, "momentum": 0.5, "label_smoothing": 0.1}
    batch_sizes = (1, 1000)
    table = optima(
        step_table([(batch_size, 10, 0) for batch_size in batch_sizes]),
        trial_table([(batch_size, 0, 0, winner) for batch_size in batch_sizes]),
        space,
    )
    assert table["learning_rate_edge"].tolist() == ["", "low"]
    assert table["momentum_edge"].tolist() == ["", "low"]
    assert "label_smoothing_edge" not in table


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (
            {"edge": 0.5},
            ValueError,
            "optima: edge is 0.5, but must be a fraction of the range in [0, 0.5).",
        ),
        (
            {"steps": step_table([(8, 10, 3)])},
            KeyError,
            "optima: trial 3 of batch size 8 is not in the trials.",
        ),
        (
            {"space": SearchSpace(y=Uniform(0, 1))},
            KeyError,
            "optima: no column 'y' in the trials, which have 'x'. "
            "Give the space that they were drawn from.",
        ),
    ],
)
def test_tables_that_do_not_belong_together_are_refused(arguments, error, message):
    steps = arguments.pop("steps", step_table([(8, 10, 0)]))
    space = arguments.pop("space", SearchSpace(x=Uniform(0, 1)))
    with pytest.raises(error, match=re.escape(message)):
        optima(steps, trial_table([(8, 0, 0, {"x": 0.3})]), space, **arguments)
