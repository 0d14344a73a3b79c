"""Other definitions of steps to target, on curves written down by hand."""

import math

import numpy as np
import pandas as pd
import pytest

import batchscale as bs
from batchscale import metrics, scaling
from batchscale.records import MEASUREMENT_INDEX, TRIAL_INDEX

ERROR = "validation/error"
GOAL = metrics.Goal(ERROR, 0.2)
MISS = math.inf
GRID = (0, 1, 10, 20, 40, 80)


def curves(values: dict, grid=GRID) -> pd.DataFrame:
    """Measurements of {(batch_size, trial): {column: values along the grid}}."""
    frames = []
    for (batch_size, trial), columns in values.items():
        index = pd.MultiIndex.from_tuples(
            [(batch_size, trial, 0, step) for step in grid], names=MEASUREMENT_INDEX
        )
        frames.append(pd.DataFrame(columns, index, dtype=float))
    return pd.concat(frames)


def all_trials(measurements: pd.DataFrame, **changes) -> pd.DataFrame:
    index = measurements.index.droplevel("step").unique()
    fields = {"status": "complete", "steps_trained": 80, "stop_reason": "budget"}
    return pd.DataFrame({"origin": "plan", **fields, **changes}, index).rename_axis(TRIAL_INDEX)


def steps(measurements, goal=GOAL, *, trials=None, **arguments) -> dict:
    """{variant: steps of the only batch size}, or the reason in words."""
    trials = all_trials(measurements) if trials is None else trials
    table = metrics.variants(measurements, goal, trials=trials, **arguments)
    return {row.variant: row.why or row.steps for row in table.itertuples()}


NOISY = {(8, 0): {ERROR: [0.9, 0.8, 0.4, 0.1, 0.25, 0.1]}, (8, 1): {ERROR: [0.9] * 6}}


def test_the_definition_itself_comes_first_and_is_that_of_steps_to_target():
    measurements = curves(NOISY)
    trials = all_trials(measurements)
    table = metrics.variants(measurements, GOAL, trials=trials)
    first = table[table["variant"] == str(GOAL)].reset_index(drop=True)
    wanted = metrics.steps_to_target(measurements, GOAL, trials=trials)
    pd.testing.assert_frame_equal(first[list(wanted)], wanted, check_exact=True)
    assert table["variant"].iloc[0] == str(GOAL)
    assert (table["why"] == "").all()


def test_every_reading_of_a_noisy_curve():
    found = steps(curves(NOISY), factors=[0.4, 2.5])
    between = 10 * 2 ** ((0.4 - 0.2) / (0.4 - 0.1))
    assert found == {
        "validation/error < 0.2": 20,
        "validation/error < 0.08": MISS,
        "validation/error < 0.5": 10,
        "interpolated": pytest.approx(between),
        "mean of 3 evaluations": 80,  # (0.1 + 0.25 + 0.1) / 3; (0.4 + 0.1 + 0.25) / 3 is above
        "2 evaluations in a row": MISS,
        "3 evaluations in a row": MISS,
    }


def test_the_first_of_the_evaluations_in_a_row_is_meant():
    measurements = curves(
        {(8, 0): {ERROR: [0.9, 0.1, 0.4, 0.1, 0.1, 0.1]}, (8, 1): {ERROR: [0.9] * 5 + [0.1]}}
    )
    table = metrics.variants(measurements, GOAL, trials=all_trials(measurements))
    rows = table.set_index("variant")
    for variant in ("2 evaluations in a row", "3 evaluations in a row"):
        assert rows.loc[variant, ["steps", "previous_evaluation", "trial"]].tolist() == [20, 10, 0]


def test_the_least_interpolated_crossing_wins_not_the_lowest_trial():
    measurements = curves(
        {
            (8, 0): {ERROR: [0.9, 0.9, 0.9, 0.19, 0.1, 0.1]},
            (8, 1): {ERROR: [0.9, 0.9, 0.21, 0.1, 0.1, 0.1]},
        }
    )
    table = metrics.variants(measurements, GOAL, trials=all_trials(measurements))
    rows = table.set_index("variant")
    assert rows.loc[str(GOAL), "trial"] == 0
    assert rows.loc["interpolated", "trial"] == 1
    assert rows.loc["interpolated", "steps"] == pytest.approx(10 * 2 ** (0.01 / 0.11))
    assert np.isnan(rows.loc["interpolated", "previous_evaluation"])


def test_nothing_is_interpolated_from_step_0():
    found = steps(curves({(8, 0): {ERROR: [0.9] + [0.1] * 5}}))
    assert found["interpolated"] == found[str(GOAL)] == 1


def test_other_splits_and_the_loss_are_read_where_they_were_measured():
    nan = np.nan
    measurements = curves(
        {
            (8, 0): {
                ERROR: [0.9, 0.5, 0.3, 0.1, 0.1, 0.1],
                "test/error": [0.9, 0.5, nan, nan, 0.1, 0.1],
                "train/error": [0.9, 0.5, 0.1, nan, nan, 0.1],
                "validation/loss": [3, 2, 1.5, 0.8, 0.7, 0.6],
            },
            (16, 0): {
                ERROR: [0.9, 0.5, 0.1, 0.1, 0.1, 0.1],
                "test/error": [0.9, 0.5, nan, nan, 0.1, 0.1],
                "train/error": [0.9, 0.5, 0.1, nan, nan, 0.1],
                "validation/loss": [3, 2, 1.2, 0.8, 0.7, 0.6],
            },
        }
    )
    table = metrics.variants(measurements, GOAL, trials=all_trials(measurements))
    rows = table.set_index(["variant", "batch_size"])
    assert rows.loc[("test/error < 0.2", 8), ["steps", "previous_evaluation"]].tolist() == [40, 1]
    assert rows.loc[("train/error < 0.2", 8), ["steps", "previous_evaluation"]].tolist() == [10, 1]
    # The winners' losses at their crossings are 0.8 and 1.2.
    assert rows.loc["validation/loss < 1.0"]["steps"].tolist() == [20, 20]


def test_a_goal_to_be_exceeded_is_read_the_other_way_round():
    name = "validation/accuracy"
    measurements = curves({(8, 0): {name: [0.1, 0.2, 0.6, 0.9, 0.7, 0.95]}})
    found = steps(measurements, metrics.Goal(name, 0.8, "max"), factors=[0.5, 3.0])
    assert found["validation/accuracy > 0.8"] == 20
    assert found["validation/accuracy > 0.4"] == 10  # three times as many mistakes
    assert found["validation/accuracy > 0.9"] == 80  # half as many
    assert found["interpolated"] == pytest.approx(10 * 2 ** (2 / 3))
    assert found["mean of 3 evaluations"] == 80
    assert found["2 evaluations in a row"] == MISS


def test_what_the_tables_cannot_answer_is_refused_for_itself_only():
    measurements = curves({(8, 0): {ERROR: [0.9, 0.5, 0.3, 0.1]}}, GRID[:4])
    trials = all_trials(measurements, steps_trained=20, stop_reason="first crossing")
    table = metrics.variants(measurements, GOAL, trials=trials, factors=[0.4, 2])
    rows = table.set_index("variant")
    assert rows.loc[str(GOAL), "steps"] == 20
    assert rows.loc["validation/error < 0.4", "steps"] == 10
    assert rows.loc["interpolated", "steps"] == pytest.approx(10 * 2**0.5)
    for variant in ("validation/error < 0.08", "2 evaluations in a row", "mean of 3 evaluations"):
        assert np.isnan(rows.loc[variant, "steps"])
        assert rows.loc[variant, "trial"] is pd.NA
        assert "trial 0 was trained for 20 steps (first crossing)" in rows.loc[variant, "why"]
        assert "study.extend(folder, stop=" in rows.loc[variant, "why"]


def test_evaluations_that_were_cut_short_are_refused_where_they_matter():
    measurements = curves(
        {
            (8, 0): {
                ERROR: [0.9, np.nan, np.nan, 0.1, np.nan, 0.1],
                f"{ERROR}_at_least": [np.nan, 0.4, 0.21, np.nan, 0.21, np.nan],
                "validation/loss": [3, np.nan, np.nan, 0.8, np.nan, 0.6],
            }
        }
    )
    found = steps(measurements, factors=[1.25], smoothing=2)
    assert found[str(GOAL)] == 20
    assert (
        "step 10, it is only known that validation/error is at least 0.21"
        in (found["validation/error < 0.25"])
    )
    assert "step 10, validation/error is not known" in found["interpolated"]
    assert (
        "step 20, it is only known that validation/error is at least 0.155"
        in (found["mean of 2 evaluations"])
    )
    assert "step 1, validation/loss is not known" in found["validation/loss < 0.8"]
    assert found["2 evaluations in a row"] == MISS
    for why in found.values():
        assert not isinstance(why, str) or 'study.extend(folder, curves="exact")' in why


def test_a_trial_that_diverged_counts_until_then_in_every_variant():
    measurements = curves(
        {(8, 0): {ERROR: [0.9, 0.1, 0.1, 0.1]}, (8, 1): {ERROR: [0.9, 0.9, 0.9, 0.1]}}, GRID[:4]
    )
    trials = all_trials(measurements, steps_trained=20)
    trials.loc[(8, 0, 0), ["status", "stop_reason"]] = ["infeasible", "diverged"]
    assert steps(measurements, trials=trials)["2 evaluations in a row"] == MISS
    found = steps(measurements, trials=trials, feasible_trials=1)
    assert found["2 evaluations in a row"] == 1
    assert found["3 evaluations in a row"] == MISS  # it has diverged when the third is made


def test_the_definition_itself_must_be_answered_and_arguments_are_checked():
    measurements = curves(NOISY)
    trials = all_trials(measurements, steps_trained=10, stop_reason="first crossing")
    with pytest.raises(ValueError, match="the curves are too short to tell"):
        metrics.variants(measurements, GOAL, trials=trials)
    with pytest.raises(ValueError, match="smoothing: got 1, wanted an integer, 2 or more"):
        steps(measurements, smoothing=1)
    with pytest.raises(ValueError, match="consecutive: got 0, wanted an integer, 2 or more"):
        steps(measurements, consecutive=(3, 0))


SIZES = 2.0 ** np.arange(13)


def long_table(**variants) -> pd.DataFrame:
    frames = [
        pd.DataFrame({"variant": name, "batch_size": SIZES, "steps": count})
        for name, count in variants.items()
    ]
    return pd.concat(frames, ignore_index=True)


def hyperbola(s_min, b_crit):
    return s_min * (1 + b_crit / SIZES)


def test_transitions_are_compared_with_those_of_the_reference():
    table = long_table(
        first=hyperbola(50, 32), shifted=hyperbola(400, 32), moved=hyperbola(50, 128)
    )
    found = scaling.transitions(table).set_index("variant")
    assert found.loc["shifted", "b_crit_ratio"] == pytest.approx(1, rel=0.01)
    assert found.loc["moved", "b_crit_ratio"] == pytest.approx(4, rel=0.02)
    assert found["perfect_until_ratio"].tolist() == pytest.approx([1, 1, 4], rel=0.01)
    assert found["plateau_from_ratio"].tolist() == pytest.approx([1, 1, 4], rel=0.01)
    assert (found["low"] <= found["b_crit"]).all()
    assert (found["b_crit"] <= found["high"]).all()
    other = scaling.transitions(table, reference="moved").set_index("variant")
    assert other.loc["first", "b_crit_ratio"] == pytest.approx(1 / 4, rel=0.02)
    assert other.loc["moved", "perfect_until_ratio"] == 1


def test_minima_have_luck_and_what_is_none_has_not():
    random = np.random.default_rng(0)
    steps = hyperbola(50, 32) * np.exp(0.1 * random.standard_normal(len(SIZES)))
    table = long_table(minima=steps, medians=steps)
    own = pd.DataFrame({"batch_size": SIZES, "steps": steps})

    def ends(found, name):
        return found.set_index("variant").loc[name, ["low", "high"]].tolist()

    fits = {
        luck: list(scaling.fit(own, form="averaged", luck=luck).b_crit_interval)
        for luck in (0.0, scaling.LUCK)
    }
    assert fits[scaling.LUCK][1] / fits[scaling.LUCK][0] > 1.1 * fits[0.0][1] / fits[0.0][0]
    assert ends(scaling.transitions(table), "medians") == fits[scaling.LUCK]
    assert ends(scaling.transitions(table, luck=0), "minima") == fits[0.0]
    some = scaling.transitions(table, luck={"minima": scaling.LUCK})
    assert [ends(some, name) for name in ("minima", "medians")] == [fits[scaling.LUCK], fits[0.0]]
    assert list(scaling.recommend(own).fit.b_crit_interval) == fits[scaling.LUCK]
    assert list(scaling.recommend(own, luck=0).fit.b_crit_interval) == fits[0.0]
    # Medians, whose precision is known, are no minima.
    known = own.assign(log_deviation=0.1)
    expected = list(scaling.fit(known, form="averaged").b_crit_interval)
    assert list(scaling.recommend(known).fit.b_crit_interval) == expected
    assert ends(scaling.transitions(known.assign(variant="x")), "x") == expected


def test_variants_without_an_answer_have_no_transitions_and_say_why():
    table = long_table(first=hyperbola(50, 32), unknown=np.nan, early=0.0 * SIZES, far=1e6 / SIZES)
    table["why"] = np.where(table["variant"] == "unknown", "the curves are too short", "")
    found = scaling.transitions(table).set_index("variant")
    assert found.loc["first", "refused"] == ""
    assert found.loc["unknown", "refused"] == "the curves are too short"
    assert found.loc["early", "refused"] == "the goal holds before the first step"
    assert "no plateau is certain within the batch sizes" in found.loc["far", "refused"]
    assert found.loc[["unknown", "early", "far"], "b_crit_ratio"].isna().all()
    assert found.loc["far", "perfect_until"] == SIZES[-1]


def test_a_reference_that_is_none_is_refused():
    with pytest.raises(ValueError, match=r"reference: got 'x', wanted one of 'first'\."):
        scaling.transitions(long_table(first=hyperbola(50, 32)), reference="x")
    with pytest.raises(ValueError, match="variants: no column 'variant'"):
        scaling.transitions(pd.DataFrame({"batch_size": [1], "steps": [1]}))
    with pytest.raises(ValueError, match="variants: the table has no rows"):
        scaling.transitions(long_table(first=hyperbola(50, 32)).iloc[:0])


@pytest.mark.slow
def test_a_result_has_both_analyses(square, tmp_path):
    study = bs.Study(
        workload=square,
        optimizer="sgd",
        space=bs.SearchSpace(learning_rate=bs.LogUniform(0.1, 2)),
        batch_sizes=[8, 32],
        goal=metrics.Goal(ERROR, 0.45),
        trials=9,
        max_steps=60,
        stop="budget",
    )
    result = study.run(tmp_path, progress=False)
    tables = {"measurements": result.measurements, "trials": result.trials}
    pd.testing.assert_frame_equal(
        result.tuning_curve(), metrics.tuning_curve(goal=result.goal, **tables), check_exact=True
    )
    harder = metrics.Goal(ERROR, 0.4)
    pd.testing.assert_frame_equal(
        result.tuning_curve(harder, confidence=0.5),
        metrics.tuning_curve(goal=harder, confidence=0.5, **tables),
        check_exact=True,
    )
    found = result.variants()
    pd.testing.assert_frame_equal(
        found, metrics.variants(goal=result.goal, **tables), check_exact=True
    )
    assert {"test/error < 0.45", "train/error < 0.45"} < set(found["variant"])
    assert found["variant"].str.startswith("validation/loss < ").any()
