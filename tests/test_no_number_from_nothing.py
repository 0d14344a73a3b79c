"""What is NaN, infinite, empty or zero gives a reason, and no number that looks like one."""

import math
import re

import numpy as np
import pandas as pd
import pytest

import batchscale as bs
from batchscale import scaling, theory, tuner
from batchscale.confirmation import confirmation, median_ranks
from batchscale.metrics import Goal, example_measurements
from batchscale.records import TRIAL_INDEX

SIZES = [1, 4, 16, 64, 256]
STEPS = [1710.0, 435, 116, 37, 16]


def table(steps=STEPS, sizes=SIZES, **more):
    return pd.DataFrame({"batch_size": sizes, "steps": steps, **more})


def fit(*arguments, **columns):
    return scaling.fit(table(*arguments, **columns))


def trials(rate, **more):
    index = pd.MultiIndex.from_tuples([(8, 0, 0), (8, 1, 0), (16, 0, 0)], names=TRIAL_INDEX)
    columns = {"learning_rate": rate, "status": "complete", "steps_trained": [20, 20, 10]}
    return pd.DataFrame(columns | {"stop_reason": "budget"} | more, index)


def learning_rates(rate, **more):
    goal = Goal("validation/error", 0.5)
    return scaling.learning_rates(example_measurements(), goal, trials=trials(rate, **more))


def quadratic(**options):
    model = theory.NoisyQuadratic.power_law(4)
    return model.steps_to_target(**{"target": 0.5, "learning_rate": 0.1, "batch_size": 8} | options)


NAN, INF = math.nan, math.inf
SPACE = tuner.SearchSpace(learning_rate=tuner.LogUniform(0.01, 1.0))


@pytest.mark.parametrize(
    ("words", "call"),
    [
        ("steps: wanted steps of at least 0", lambda: fit([NAN, *STEPS[1:]])),
        ("steps: wanted steps of at least 0", lambda: fit([-1.0, *STEPS[1:]])),
        ("steps: wanted finite batch sizes", lambda: fit(STEPS, [*SIZES[:-1], INF])),
        ("steps: wanted finite batch sizes", lambda: fit(STEPS, [NAN, *SIZES[1:]])),
        ("a previous_evaluation is not", lambda: fit(previous_evaluation=[9999.0] * 5)),
        ("a previous_evaluation is not", lambda: fit(previous_evaluation=[-INF] * 5)),
        ("goal held before the first", lambda: fit([*STEPS[:-1], 0.0])),
        ("goal held before the first", lambda: scaling.regimes(table([0.0] * 5))),
        ("goal held before the first", lambda: scaling.overhead(table([0.0] * 5))),
        ("goal held before the first", lambda: scaling.frontier(table([*STEPS[:-1], 0.0]))),
        ("goal held before the first", lambda: scaling.recommend(table([*STEPS[:-1], 0.0]))),
        ("tolerance: got inf", lambda: scaling.regimes(table(), tolerance=INF)),
        ("tolerance: got nan", lambda: scaling.regimes(table(), tolerance=NAN)),
        ("overhead: got inf", lambda: fit().batch_size_at_overhead(INF)),
        ("batch_sizes: got [nan]", lambda: fit().steps([NAN])),
        ("batch_sizes: got [-4]", lambda: fit().steps([-4])),
        ("seconds_per_step: got nan", lambda: scaling.frontier(table(), seconds_per_step=NAN)),
        ("an effective learning rate is 0.0", lambda: learning_rates([0.0, 0.1, 0.2])),
        ("an effective learning rate is nan", lambda: learning_rates([0.1, NAN, 0.2])),
        ("an effective learning rate is inf", lambda: learning_rates(0.1, momentum=1.0)),
        ("a momentum is 1.5", lambda: learning_rates(0.1, momentum=1.5)),
        ("within: got nan", lambda: scaling.learning_rates(
            example_measurements(), Goal("validation/error", 0.5), trials=trials(0.1), within=NAN)),
        ("confidence: got 90", lambda: median_ranks(21, 90)),
        ("confidence: got nan", lambda: median_ranks(21, NAN)),
        ("confidence: got 90", lambda: confirmation(
            trials(0.1, origin="plan"), pd.DataFrame(columns=["previous_evaluation"]),
            table(), selection_seeds=3, confidence=90)),
        ("feasible_trials: got nan", lambda: bs.metrics.members(trials(0.1), NAN)),
        ("steps: got nan, wanted a number above 0", lambda: bs.metrics.step_budget(
            example_measurements(), NAN)),
        ("crowding: wanted values without NaN", lambda: tuner.crowding(
            SPACE["learning_rate"], np.array([0.02, NAN]), np.array([True, True]))),
        ("crowding: wanted values without NaN", lambda: tuner.crowding(
            SPACE["learning_rate"], np.array([0.02, 0.1]), np.array([False, False]))),
        ("optima: edge is nan", lambda: tuner.optima(
            table().assign(trial=0), trials(0.1), SPACE, edge=NAN)),
        ("curvature: wanted a vector, not empty", lambda: theory.NoisyQuadratic([], [], [])),
        ("dimension: got 0, wanted an integer", lambda: theory.NoisyQuadratic.power_law(0)),
        ("noise: wanted a vector", lambda: theory.NoisyQuadratic([1.0], [NAN], [1.0])),
        ("target: got nan", lambda: quadratic(target=NAN)),
        ("target: got nan", lambda: theory.NoisyQuadratic.power_law(4).optimum(NAN, batch_size=8)),
        ("learning_rate: wanted numbers", lambda: quadratic(learning_rate=INF)),
        ("learning_rate: wanted numbers", lambda: quadratic(learning_rate=NAN)),
        ("batch_size: got nan", lambda: quadratic(batch_size=NAN)),
        ("momentum: got 1.0", lambda: theory.NoisyQuadratic.power_law(4).simulate(
            [1], learning_rate=0.1, batch_size=8, runs=2, momentum=1.0)),
        ("steps: got [3, 1]", lambda: theory.NoisyQuadratic.power_law(4).simulate(
            [3, 1], learning_rate=0.1, batch_size=8, runs=2)),
    ],
)  # fmt: skip
def test_what_is_no_number_is_refused(words, call):
    with pytest.raises(ValueError, match=re.escape(words)):
        call()


def test_nothing_and_one_row_are_said_to_be_too_little():
    for some in (table([], []), table([100.0], [8]), table([INF] * 5)):
        found = scaling.fit(some)
        assert math.isnan(found.b_crit)
        assert "at least 4 are needed" in found.refused
    empty = scaling.regimes(table([], []))
    assert math.isnan(empty.perfect_until)
    assert math.isnan(empty.plateau_from)
    assert len(scaling.frontier(table([], []))) == 0
    assert math.isnan(scaling.recommend(table([INF] * 5)).fastest)


def test_a_variant_that_holds_before_the_first_step_has_no_transition_points():
    variants = pd.concat([table().assign(variant="a"), table([0.0] * 5).assign(variant="b")])
    found = scaling.transitions(variants).set_index("variant")
    assert found.loc["a", "perfect_until"] > 0
    assert found.loc["b", ["perfect_until", "plateau_from", "b_crit"]].isna().all()
    assert found.loc["b", "refused"] == "the goal holds before the first step"


@pytest.mark.parametrize("slope", [np.nan, np.inf, 1e25])
def test_a_noise_scale_of_gradients_that_are_not_finite_is_refused(slope):
    x = np.linspace(-1, 1, 32, dtype=np.float32)
    workload = bs.Workload.from_functions(
        init=lambda key: {"slope": np.zeros((), np.float32)},
        loss=lambda params, batch: (params["slope"] * batch["input"] - batch["label"]) ** 2,
        data={"train": (x, 2 * x)},
    )
    at = {"slope": np.float32(slope)}
    with pytest.raises(ValueError, match="params: gradients of single examples"):
        theory.noise_scale(workload, at)
    if not np.isfinite(slope):  # of batches squares are taken in float64
        with pytest.raises(ValueError, match="params: gradients of batches of 2 examples"):
            theory.noise_scale_of_batches(workload, at, small=2, big=8)
