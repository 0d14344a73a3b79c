from fractions import Fraction

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchscale.metrics import (
    Goal,
    best_measurement,
    epoch_budget,
    example_measurements,
    first_crossings,
    members,
    step_budget,
    steps_to_target,
    steps_to_targets,
)
from batchscale.records import MEASUREMENT_INDEX, TRIAL_INDEX, Status

ERROR = "validation/error"
GOAL = Goal(ERROR, 0.3)


def curves(values: dict, metric: str = ERROR) -> pd.DataFrame:
    """Measurements of {(batch_size, trial, step): value}, or with a replicate before the step."""
    rows = [key if len(key) == 4 else (*key[:2], 0, key[2]) for key in values]
    index = pd.MultiIndex.from_tuples(rows, names=MEASUREMENT_INDEX)
    return pd.DataFrame({metric: list(values.values())}, index, dtype=float)


def trial_rows(rows: dict) -> pd.DataFrame:
    """Trials of {(batch_size, trial): (status, steps_trained, stop_reason)}."""
    index = pd.MultiIndex.from_tuples(
        [key if len(key) == 3 else (*key, 0) for key in rows], names=TRIAL_INDEX
    )
    columns = ["status", "steps_trained", "stop_reason"]
    table = pd.DataFrame(list(rows.values()), index, columns)
    number = index.get_level_values("trial")
    return table.assign(origin="plan", first_crossing=np.inf, learning_rate=0.5**number)


def answer(table: pd.DataFrame) -> dict:
    """{batch_size: (steps, previous_evaluation, trial)}, None for what is missing."""
    rows = table[["batch_size", "steps", "previous_evaluation", "trial"]].astype(object)
    rows = rows.where(rows.notna(), None)
    return {row[0]: tuple(row[1:]) for row in rows.itertuples(index=False)}


@pytest.mark.parametrize(
    ("mode", "expected"),
    [("min", [True, False, False, False, True]), ("max", [False, False, True, False, False])],
)
def test_a_goal_is_reached_strictly_past_it_and_never_by_nan(mode, expected):
    values = [0.1, 0.3, 0.5, np.nan, -np.inf]
    np.testing.assert_array_equal(Goal("test/x", 0.3, mode).reached(values), expected)


def test_a_goal_compares_in_float64():
    errors, examples = np.int64(150), np.int64(5000)
    goal = Goal(ERROR, 0.03)
    assert not goal.reached(errors / examples)
    assert goal.reached(np.float32(errors / examples))  # why counts leave the device as integers
    assert Goal(ERROR, 1).value == 1.0


def test_a_goal_reads_as_an_inequality():
    assert str(Goal(ERROR, 0.03)) == "validation/error < 0.03"
    assert str(Goal("validation/average_precision", 0.31, "max")) == (
        "validation/average_precision > 0.31"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("error", 0.1),
            'Goal: metric must be "split/name", such as "validation/error"; got \'error\'.',
        ),
        (("validation/", 0.1), 'Goal: metric must be "split/name", such as "validation/error"; '),
        ((ERROR, np.inf), "Goal: value must be a finite number, got inf."),
        ((ERROR, "0.1"), "Goal: value must be a finite number, got '0.1'."),
        ((ERROR, 0.1, "lower"), 'Goal: mode must be "min" or "max", got \'lower\'.'),
    ],
)
def test_a_bad_goal_is_refused(arguments, message):
    with pytest.raises(ValueError) as error:  # noqa: PT011  (its words are compared below)
        Goal(*arguments)
    assert str(error.value).startswith(message)


def test_first_crossings_of_every_trial_and_replicate():
    measurements = curves(
        {
            (8, 0, 0, 0): 0.9,
            (8, 0, 0, 10): np.nan,  # not evaluated: not the previous evaluation either
            (8, 0, 0, 20): 0.2,
            (8, 0, 0, 30): 0.9,  # need not stay below
            (8, 0, 1, 0): 0.1,  # already past it when first evaluated
            (8, 1, 0, 0): 0.9,
            (8, 1, 0, 10): 0.3,  # equal is not past
            (8, 2, 0, 10): np.nan,
        }
    )
    expected = pd.DataFrame(
        {
            "first_crossing": [20, 0, np.inf, np.inf],
            "previous_evaluation": [0, np.nan, 10, np.nan],
        },
        pd.MultiIndex.from_tuples([(8, 0, 0), (8, 0, 1), (8, 1, 0), (8, 2, 0)], names=TRIAL_INDEX),
    )
    pd.testing.assert_frame_equal(first_crossings(measurements, GOAL), expected, check_exact=True)


def test_steps_to_target_is_the_first_evaluation_of_any_trial_past_the_goal():
    measurements = curves(
        {
            (8, 0, 0): 0.9,
            (8, 0, 10): 0.4,
            (8, 0, 20): 0.1,
            (8, 1, 0): 0.9,
            (8, 1, 15): 0.29,
            (8, 1, 20): 0.5,
            (8, 1, 1, 5): 0.0,  # a rerun buys no chance
            (16, 3, 0): 0.9,
            (16, 3, 10): 0.3,
        }
    )
    result = steps_to_target(measurements, GOAL)
    assert answer(result) == {8: (15.0, 0.0, 1), 16: (np.inf, 10.0, None)}
    assert result.dtypes.astype(str).to_dict() == {
        "batch_size": "int64",
        "steps": "float64",
        "previous_evaluation": "float64",
        "trial": "Int64",
    }


def test_the_lowest_trial_wins_a_tie():
    tied = curves({(8, trial, step): 0.9 - 0.1 * step for trial in (4, 2, 3) for step in (0, 8)})
    assert answer(steps_to_target(tied, GOAL)) == {8: (8.0, 0.0, 2)}


def test_goals_that_are_to_be_exceeded():
    measurements = curves({(8, 0, 0): 0.1, (8, 0, 5): 0.31, (8, 0, 9): 0.32}, "validation/ap")
    goal = Goal("validation/ap", 0.31, "max")
    assert answer(steps_to_target(measurements, goal)) == {8: (9.0, 5.0, 0)}


WINS_THEN_DIVERGES = {
    (8, 0, 0): 0.9,
    (8, 0, 10): 0.1,
    (8, 0, 20): np.nan,
    **{(8, 1, step): value for step, value in [(0, 0.9), (10, 0.5), (20, 0.2), (30, 0.2)]},
    **{(8, 2, step): value for step, value in [(0, 0.9), (10, 0.2), (20, 0.5), (30, 0.2)]},
}
WINS_THEN_DIVERGES_TRIALS = {
    (8, 0): ("infeasible", 20, "diverged"),
    (8, 1): ("complete", 30, "budget"),
    (8, 2): ("complete", 30, "budget"),
}


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ({}, (10.0, 0.0, 2)),  # the paper's: trial 0 never counts
        ({"feasible_trials": 1}, (10.0, 0.0, 0)),  # trial 0 counts until it diverges
        ({"feasible_trials": 3}, (10.0, 0.0, 0)),
    ],
)
def test_the_two_rules_treat_a_later_divergence_differently(rule, expected):
    measurements, trials = curves(WINS_THEN_DIVERGES), trial_rows(WINS_THEN_DIVERGES_TRIALS)
    result = steps_to_target(measurements, GOAL, trials=trials, **rule)
    assert answer(result) == {8: expected}
    assert result["learning_rate"].tolist() == [0.5 ** expected[2]]


def test_a_replacement_counts_only_once_the_trial_it_replaces_has_diverged():
    trials = trial_rows(WINS_THEN_DIVERGES_TRIALS)
    early = {**WINS_THEN_DIVERGES, (8, 0, 10): 0.9}
    result = steps_to_target(curves(early), GOAL, trials=trials, feasible_trials=2)
    # Trial 2 is past the goal at step 10 and not at step 20, when it begins to count.
    assert answer(result) == {8: (20.0, 10.0, 1)}
    early[8, 1, 20] = 0.9
    result = steps_to_target(curves(early), GOAL, trials=trials, feasible_trials=2)
    assert answer(result) == {8: (30.0, 20.0, 1)}


def test_a_trial_does_not_count_at_the_step_it_diverges():
    measurements = curves({(8, 0, 0): 0.9, (8, 0, 10): 0.1, (8, 1, 0): 0.9, (8, 1, 10): 0.8})
    trials = trial_rows(
        {(8, 0): ("infeasible", 10, "diverged"), (8, 1): ("complete", 10, "budget")}
    )
    result = steps_to_target(measurements, GOAL, trials=trials, feasible_trials=2)
    assert answer(result) == {8: (np.inf, 10.0, None)}


def test_a_batch_size_that_is_only_in_trials_has_its_row():
    trials = trial_rows(
        {
            (8, 1): ("complete", 20, "budget"),
            (8, 0): ("complete", 20, "budget"),
            (4, 0): ("infeasible", 0, "diverged"),
        }
    )
    for rule in ({}, {"feasible_trials": 2}):
        result = steps_to_target(example_measurements(), GOAL, trials=trials, **rule)
        assert answer(result) == {4: (np.inf, None, None), 8: (20.0, 10.0, 1)}
        assert result["learning_rate"].tolist() == pytest.approx([np.nan, 0.5], nan_ok=True)


def test_only_the_rows_of_trials_count():
    trials = trial_rows({(8, 0): ("complete", 20, "budget")})
    assert answer(steps_to_target(example_measurements(), GOAL, trials=trials)) == {
        8: (np.inf, 20.0, None)
    }


def test_several_goals_come_one_after_the_other():
    goals = [Goal(ERROR, 0.25), Goal(ERROR, 0.15)]
    result = steps_to_targets(example_measurements(), iter(goals))
    assert (
        result["goal"].tolist() == ["validation/error < 0.25"] * 2 + ["validation/error < 0.15"] * 2
    )
    assert result["steps"].tolist() == [20, 10, np.inf, 10]
    with pytest.raises(ValueError, match=r"^goals: wanted at least one, got none\.$"):
        steps_to_targets(example_measurements(), [])


CUT = 'study.extend(folder, stop="budget"), or a larger factor than before, such as stop=3.0'


@pytest.mark.parametrize(
    ("status", "reason", "remedy"),
    [
        ("complete", "first crossing", f"train on with {CUT}"),
        ("complete", "own crossing", f"train on with {CUT}"),
        ("complete", "factor", f"train on with {CUT}"),
        ("complete", "budget", "raise the budget with study.extend(folder, max_steps=...)"),
        ("incomplete", "interrupted", "finish the interrupted trials with study.run(folder)"),
    ],
)
@pytest.mark.parametrize("rule", [{}, {"feasible_trials": 2}])
def test_a_trial_stopped_before_the_answer_is_refused(status, reason, remedy, rule):
    measurements = curves(
        {(8, trial, step): 0.9 for trial in (0, 1) for step in (0, 10)} | {(8, 1, 20): 0.2}
    )
    trials = {(8, 0): (status, 10, reason), (8, 1): ("complete", 20, "own crossing")}
    with pytest.raises(ValueError, match="too short") as error:
        steps_to_target(measurements, GOAL, trials=trial_rows(trials), **rule)
    assert str(error.value) == (
        "validation/error < 0.3: the curves are too short to tell: at batch size 8, trial 0 was "
        f"trained for 10 steps ({reason}) of 20. To know, {remedy}."
    )
    # As long as the answer is long enough, whatever stopped it.
    trials[8, 0] = (status, 20, reason)
    result = steps_to_target(measurements, GOAL, trials=trial_rows(trials), **rule)
    assert answer(result) == {8: (20.0, 10.0, 1)}


@pytest.mark.parametrize(
    ("status", "reason", "certain"),
    [
        ("complete", "budget", True),
        ("infeasible", "diverged", True),
        ("complete", "first crossing", False),
        ("complete", "own crossing", False),
        ("complete", "factor", False),
        ("incomplete", "interrupted", False),
    ],
)
@pytest.mark.parametrize("rule", [{}, {"feasible_trials": 2}])
def test_a_miss_takes_the_whole_budget_of_every_trial(status, reason, certain, rule):
    measurements = curves({(8, trial, step): 0.9 for trial in (0, 1) for step in (0, 10)})
    trials = {(8, 0): ("complete", 30, "budget"), (8, 1): (status, 10, reason)}
    if reason == "budget":
        trials[8, 0] = ("complete", 10, "budget")
    if certain:
        result = steps_to_target(measurements, GOAL, trials=trial_rows(trials), **rule)
        assert answer(result) == {8: (np.inf, 10.0, None)}
    else:
        with pytest.raises(ValueError, match=rf"trial 1 was trained for 10 .*{reason}\) of 30\."):
            steps_to_target(measurements, GOAL, trials=trial_rows(trials), **rule)
        # Where no trial shows how long the budget is, neither.
        del trials[8, 0]
        with pytest.raises(ValueError, match=rf"{reason}\) of a whole budget\. To know, "):
            steps_to_target(measurements, GOAL, trials=trial_rows(trials), **rule)
    # Stopped by something else at the last step of the budget: there is no more to know.
    trials[8, 0] = ("complete", 10, "budget")
    assert steps_to_target(measurements, GOAL, trials=trial_rows(trials), **rule)["trial"].isna()[0]


def test_tables_of_impossible_numbers_are_refused():
    measurements = curves({(8, 0, 0): 0.9, (8, 0, 10): 0.2})
    unknown = trial_rows({(8, 0): ("complete", np.nan, "budget")})
    with pytest.raises(
        ValueError, match=r"^trials: steps_trained is nan of trial 0 at batch size 8"
    ):
        steps_to_target(measurements, GOAL, trials=unknown)
    for row, message in (
        ((8, 0, -10), "measurements: got step -10, wanted 0 or more"),
        ((0, 0, 10), "measurements: got batch_size 0, wanted 1 or more"),
        ((8, -1, 10), "measurements: got trial -1, wanted 0 or more"),
    ):
        with pytest.raises(ValueError, match=message):
            steps_to_target(curves({row: 0.2, (8, 0, 0): 0.9}), GOAL)


def test_a_trial_that_cannot_count_may_be_short():
    measurements = curves(
        {(8, trial, step): 0.9 for trial in (0, 1) for step in (0, 10)} | {(8, 0, 20): 0.2}
    )
    trials = trial_rows(
        {(8, 0): ("complete", 20, "first crossing"), (8, 1): ("incomplete", 10, "interrupted")}
    )
    result = steps_to_target(measurements, GOAL, trials=trials, feasible_trials=1)
    assert answer(result) == {8: (20.0, 10.0, 0)}
    with pytest.raises(ValueError, match="trial 1 was trained for 10 steps"):
        steps_to_target(measurements, GOAL, trials=trials, feasible_trials=2)
    with pytest.raises(ValueError, match="trial 0 was trained for 20 steps"):
        steps_to_target(measurements, Goal(ERROR, 0.1), trials=trials, feasible_trials=1)
    complete = trials[trials["status"] == Status.COMPLETE]
    assert answer(steps_to_target(measurements, GOAL, trials=complete)) == {8: (20.0, 10.0, 0)}


def test_a_refusal_names_the_first_batch_sizes_and_every_remedy():
    measurements = curves({(2**n, 0, 0): 0.9 for n in range(5)})
    trials = trial_rows(
        {
            (1, 0): ("complete", 7, "first crossing"),
            (1, 1): ("complete", 5, "first crossing"),
            (2, 0): ("incomplete", 3, "interrupted"),
            **{(2**n, 0): ("complete", 2, "factor") for n in (2, 3, 4)},
        }
    )
    with pytest.raises(ValueError, match="too short") as error:
        steps_to_target(measurements, GOAL, trials=trials)
    assert str(error.value) == (
        "validation/error < 0.3: the curves are too short to tell: "
        "at batch size 1, trial 1 was trained for 5 steps (first crossing) of a whole budget; "
        "at batch size 2, trial 0 was trained for 3 steps (interrupted) of a whole budget; "
        "at batch size 4, trial 0 was trained for 2 steps (factor) of a whole budget; "
        "and so on at 2 more. To know, finish the interrupted trials with study.run(folder), "
        f"and train on with {CUT}."
    )


def test_members_are_the_first_feasible_trials_at_each_step():
    diverged = {0: 30, 2: 10, 3: 20}
    trials = trial_rows(
        {
            (8, t): ("infeasible", diverged[t], "diverged")
            if t in diverged
            else ("complete", 90, "budget")
            for t in range(6)
        }
        | {(16, 7): ("complete", 90, "budget"), (16, 8, 1): ("complete", 90, "budget")}
    )
    result = members(trials, 2)
    assert result.index.tolist() == [(8, t, 0) for t in range(6)] + [(16, 7, 0)]
    at = {
        step: result.index[(result["first_step"] <= step) & (step < result["end_step"])]
        .get_level_values("trial")
        .tolist()
        for step in (0, 10, 20, 29, 30, 90)
    }
    assert at[0] == [0, 1, 7]
    assert at[20] == at[29] == [0, 1, 7]
    assert at[30] == at[90] == [1, 4, 7]  # trials 2 and 3 diverged before their turn came
    with pytest.raises(ValueError, match=r"^feasible_trials: got 0, wanted an integer, 1 or more"):
        members(trials, 0)


GRID = (0, 1, 2, 4, 8)
VALUES = st.sampled_from([0.2, 0.3, 0.4, np.nan])


@st.composite
def batch_sizes(draw):
    """Trials and values of one batch size: {trial: row of trials}, {(trial, step): value}."""
    values, trials = {}, {}
    for trial in draw(st.lists(st.integers(0, 9), min_size=1, max_size=5, unique=True)):
        status, reason = draw(
            st.sampled_from(
                [
                    ("complete", "budget"),
                    ("complete", "first crossing"),
                    ("incomplete", "interrupted"),
                    ("infeasible", "diverged"),
                    ("infeasible", "diverged"),
                ]
            )
        )
        trained = GRID[-1] if reason == "budget" else draw(st.sampled_from(GRID))
        trials[trial] = (status, trained, reason)
        values |= {(trial, step): draw(VALUES) for step in GRID if step <= trained}
    return trials, values


STUDIES = st.lists(batch_sizes(), min_size=1, max_size=6)


def tables(study):
    """The two tables of {batch_size: (trials, values)}."""
    rows = {
        (size, *key): value for size, (_, values) in study.items() for key, value in values.items()
    }
    trials = {
        (size, trial): row for size, (rows, _) in study.items() for trial, row in rows.items()
    }
    return curves(rows), trial_rows(trials)


def counts(trials, trial, step, feasible_trials):
    """Whether a trial counts at a step: the definition, word for word."""

    def alive(number):
        status, trained, _ = trials[number]
        return not (status == "infeasible" and trained <= step)

    if feasible_trials is None:
        return trials[trial][0] != "infeasible"
    lower = [number for number in trials if number < trial and alive(number)]
    return alive(trial) and len(lower) < feasible_trials


def by_definition(trials, values, goal, feasible_trials):
    """(steps, trial), or None if an evaluation that was never made could change it."""
    answers = [
        (step, trial)
        for step in GRID
        for trial in sorted(trials)
        if counts(trials, trial, step, feasible_trials)
        and values.get((trial, step), np.nan) < goal.value
    ]
    steps, winner = answers[0] if answers else (np.inf, None)
    # The budget ends at the grid's last step, but only a trial that got there shows it.
    shown = any(reason == "budget" for _, _, reason in trials.values())
    unseen = [
        (step, trial)
        for step in (GRID if shown else (*GRID, 16))
        for trial, (_, trained, _) in trials.items()
        if trained < step <= steps and counts(trials, trial, step, feasible_trials)
    ]
    return None if unseen else (steps, winner)


@settings(deadline=None, max_examples=40)
@given(STUDIES, st.sampled_from([None, 1, 2, 3]))
def test_steps_to_target_agrees_with_the_definition(studies, feasible_trials):
    expected = [by_definition(*study, GOAL, feasible_trials) for study in studies]
    certain = {n: studies[n - 1] for n, found in enumerate(expected, 1) if found is not None}
    if certain:
        measurements, trials = tables(certain)
        result = steps_to_target(measurements, GOAL, trials=trials, feasible_trials=feasible_trials)
        found = {size: (steps, trial) for size, (steps, _, trial) in answer(result).items()}
        assert found == {size: expected[size - 1] for size in certain}
    uncertain = {n: studies[n - 1] for n, found in enumerate(expected, 1) if found is None}
    if uncertain:
        measurements, trials = tables(uncertain)
        with pytest.raises(ValueError, match="the curves are too short to tell") as error:
            steps_to_target(measurements, GOAL, trials=trials, feasible_trials=feasible_trials)
        named = [f"at batch size {size}," in str(error.value) for size in uncertain]
        assert named == [True] * min(3, len(uncertain)) + [False] * (len(uncertain) - 3)


@settings(deadline=None, max_examples=40)
@given(STUDIES, st.integers(1, 3), st.sampled_from([0.25, 0.35]), st.data())
def test_an_answer_from_cut_curves_is_the_answer_from_whole_ones(studies, number, value, data):
    goal = Goal(ERROR, value)
    whole, cut = {}, {}
    for size, (trials, values) in enumerate(studies, 1):
        # Whole: every trial diverged or was trained for the budget.
        trials = {
            trial: row if row[0] == "infeasible" else ("complete", GRID[-1], "budget")
            for trial, row in trials.items()
        }
        for trial, (_, trained, _) in trials.items():
            for step in GRID:
                if step <= trained and (trial, step) not in values:
                    values[trial, step] = data.draw(VALUES)
        whole[size] = trials, values
        cuts = {trial: data.draw(st.sampled_from(GRID)) for trial in trials}
        trials = {  # a divergence after the cut was never seen
            trial: ("complete", cuts[trial], "first crossing") if cuts[trial] < row[1] else row
            for trial, row in trials.items()
        }
        values = {key: value for key, value in values.items() if key[1] <= cuts[key[0]]}
        if by_definition(trials, values, goal, number) is not None:
            cut[size] = trials, values
    if cut:
        whole = {size: whole[size] for size in cut}
        pd.testing.assert_frame_equal(
            *(
                steps_to_target(measurements, goal, trials=trials, feasible_trials=number)
                for measurements, trials in (tables(whole), tables(cut))
            ),
            check_exact=True,
        )


@settings(deadline=None, max_examples=10)
@given(STUDIES, st.randoms())
def test_more_trials_never_worsen_and_the_order_of_rows_does_not_matter(studies, random):
    measurements, _ = tables(dict(enumerate(studies, 1)))
    result = steps_to_target(measurements, GOAL)
    fewer = measurements[measurements.index.get_level_values("trial") % 2 == 0]
    both = result.merge(steps_to_target(fewer, GOAL), on="batch_size")
    assert (both["steps_x"] <= both["steps_y"]).all()
    shuffled = measurements.iloc[random.sample(range(len(measurements)), len(measurements))]
    pd.testing.assert_frame_equal(steps_to_target(shuffled, GOAL), result, check_exact=True)
    pd.testing.assert_frame_equal(
        first_crossings(shuffled, GOAL), first_crossings(measurements, GOAL), check_exact=True
    )
    pd.testing.assert_frame_equal(
        best_measurement(shuffled, ERROR), best_measurement(measurements, ERROR), check_exact=True
    )


@settings(deadline=None, max_examples=20)
@given(STUDIES, st.randoms())
def test_relabelling_trials_changes_no_step(studies, random):
    measurements, _ = tables(dict(enumerate(studies, 1)))
    rows = measurements.index.to_frame(index=False)
    known = sorted(set(rows["trial"]))
    names = dict(zip(known, random.sample(range(100), len(known)), strict=True))
    renamed = measurements.set_axis(
        pd.MultiIndex.from_frame(rows.assign(trial=rows["trial"].map(names)))
    )
    columns = ["batch_size", "steps"]
    result, other = (steps_to_target(table, GOAL) for table in (measurements, renamed))
    # Of trials that cross together the one with the lowest number is named.
    pd.testing.assert_frame_equal(result[columns], other[columns], check_exact=True)
    crossings = first_crossings(measurements, GOAL)["first_crossing"]
    again = first_crossings(renamed, GOAL)["first_crossing"]
    for (size, trial, replicate), step in crossings.items():
        assert again[(size, names[trial], replicate)] == step


def test_a_step_budget_keeps_the_rows_up_to_it():
    measurements = example_measurements()
    assert step_budget(measurements, 19.5).index.tolist() == [
        row for row in measurements.index if row[3] <= 10
    ]
    pd.testing.assert_frame_equal(step_budget(measurements, 20), measurements, check_exact=True)


@pytest.mark.parametrize("epochs", [0.3, np.float64(0.3), Fraction(3, 10)])
def test_an_epoch_budget_compares_exactly(epochs):
    # 0.3 as a binary fraction is below 3/10, and 0.1 + 0.2 above.
    measurements = curves({(batch, 0, step): 0 for batch in (1, 3, 7) for step in range(310)})
    kept = epoch_budget(measurements, epochs, 1000)
    last = kept.reset_index().groupby("batch_size")["step"].max().to_dict()
    assert last == {1: 300, 3: 100, 7: 42}
    last = epoch_budget(measurements, 0.1 + 0.2, 1000).reset_index()["step"].max()
    assert last == 300


def test_budgets_of_large_studies_do_not_overflow():
    measurements = curves({(65536, 0, 10**12): 0.1, (65536, 0, 10**12 + 1): 0.1})
    kept = epoch_budget(measurements, 2**16, 10**12)
    assert kept.index.get_level_values("step").tolist() == [10**12]


def test_budgets_with_trials_keep_feasible_plain_trials():
    measurements = curves(
        {(8, t, r, s): 0.5 for t in (0, 1, 2) for r in (0, 1) for s in (0, 10, 20)}
    )
    trials = trial_rows(
        {
            (8, 0): ("complete", 10, "first crossing"),
            (8, 0, 1): ("complete", 5, "own crossing"),
            (8, 1): ("infeasible", 10, "diverged"),
        }
    )
    expected = [(8, 0, 0, 0), (8, 0, 0, 10)]
    assert step_budget(measurements, 10, trials=trials).index.tolist() == expected
    assert epoch_budget(measurements, 2.25, 39, trials=trials).index.tolist() == expected


@pytest.mark.parametrize(
    ("status", "reason", "remedy"),
    [
        ("complete", "first crossing", 'train on with study.extend(folder, stop="budget")'),
        ("complete", "own crossing", 'train on with study.extend(folder, stop="budget")'),
        ("complete", "factor", 'train on with study.extend(folder, stop="budget")'),
        ("complete", "budget", "raise the budget with study.extend(folder, max_steps=...)"),
        ("incomplete", "interrupted", "finish the interrupted trials with study.run(folder)"),
    ],
)
def test_a_budget_that_trials_were_not_trained_for_is_refused(status, reason, remedy):
    trials = trial_rows({(8, 0): (status, 20, reason), (16, 0): ("infeasible", 1, "diverged")})
    assert len(step_budget(example_measurements(), 20, trials=trials)) == 3
    for budget, call in [
        ("21 steps", lambda: step_budget(example_measurements(), 21, trials=trials)),
        ("1.68 epochs", lambda: epoch_budget(example_measurements(), 1.68, 100, trials=trials)),
    ]:
        with pytest.raises(ValueError, match="too short") as error:
            call()
        assert str(error.value) == (
            f"a budget of {budget}: the curves are too short to tell: at batch size 8, trial 0 "
            f"was trained for 20 steps ({reason}) of 21. To know, {remedy}."
        )


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: step_budget(m, np.inf), "steps: got inf, wanted a number above 0."),
        (lambda m: step_budget(m, -1), "steps: got -1, wanted a number above 0."),
        (lambda m: epoch_budget(m, "1", 10), "epochs: got '1', wanted a number above 0."),
        (lambda m: epoch_budget(m, 1, 0), "train_examples: got 0, wanted a number above 0."),
        (
            lambda m: best_measurement(m, ERROR, mode="less"),  # pyright: ignore
            'best_measurement: mode must be "min" or "max", got \'less\'.',
        ),
        (
            lambda m: steps_to_target(m, GOAL, feasible_trials=3),
            "feasible_trials: needs `trials`, which say when each diverged.",
        ),
        (
            lambda m: steps_to_target(m, GOAL, trials=trial_rows({})[["status"]]),
            "trials: lacks the columns steps_trained, stop_reason.",
        ),
        (
            lambda m: steps_to_target(m.droplevel("replicate"), GOAL),
            "measurements: the index must be (batch_size, trial, replicate, step), got "
            "(batch_size, trial, step). Set it with measurements.set_index(['batch_size', "
            "'trial', 'replicate', 'step']); replicate is 0 for a plain trial.",
        ),
        (
            lambda m: step_budget(pd.concat([m, m]), 10),
            "measurements: batch_size 8, trial 0, replicate 0, step 0 has more than one row; "
            "wanted one.",
        ),
    ],
)
def test_bad_arguments_are_refused(call, message):
    with pytest.raises(ValueError) as error:  # noqa: PT011  (its words are compared below)
        call(example_measurements())
    assert str(error.value) == message


@pytest.mark.parametrize(
    "call",
    [
        lambda m, name: steps_to_target(m, Goal(name, 0.1)),
        lambda m, name: first_crossings(m, Goal(name, 0.1)),
        best_measurement,
    ],
)
def test_an_unknown_metric_is_named_with_those_there_are(call):
    measurements = example_measurements().assign(**{"train/loss": 1.0})
    with pytest.raises(KeyError) as error:
        call(measurements, "test/error")
    assert error.value.args == (
        "measurements: no column 'test/error'; it has train/loss, validation/error. Nothing of "
        "'test' was measured: the study's evaluate=Evaluate(...) says of which splits.",
    )


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("min", [(4, None, None, None), (8, 0.1, 10, 1)]),
        ("max", [(4, None, None, None), (8, 0.9, 0, 0)]),
    ],
)
def test_the_best_measurement_is_over_trials_and_evaluations(mode, expected):
    measurements = curves(
        {
            (4, 0, 0): np.nan,
            (8, 0, 0): 0.9,
            (8, 1, 0): 0.9,
            (8, 0, 20): 0.1,
            (8, 2, 10): 0.1,
            (8, 1, 10): 0.1,  # of the earliest, the lowest trial
            (8, 1, 1, 5): 0.0,
        }
    )
    rows = best_measurement(measurements, ERROR, mode=mode).astype(object)
    rows = rows.where(rows.notna(), None)
    assert [tuple(row) for row in rows.itertuples(index=False)] == expected


def test_the_best_measurement_leaves_infeasible_trials_out():
    measurements, trials = curves(WINS_THEN_DIVERGES), trial_rows(WINS_THEN_DIVERGES_TRIALS)
    expected = pd.DataFrame(
        {"batch_size": [8], "value": [0.2], "step": [10], "trial": [2], "learning_rate": [0.25]}
    ).astype({"step": "Int64", "trial": "Int64"})
    pd.testing.assert_frame_equal(
        best_measurement(measurements, ERROR, trials=trials), expected, check_exact=True
    )


def test_a_study_that_has_not_begun_has_no_rows():
    measurements = example_measurements().iloc[:0][[]]
    trials = trial_rows({(8, 0): ("complete", 1, "budget")}).iloc[:0]
    for trained in (None, trials):
        assert steps_to_target(measurements, GOAL, trials=trained).shape[0] == 0
        assert best_measurement(measurements, ERROR, trials=trained).shape[0] == 0
        assert step_budget(measurements, 5, trials=trained).shape[0] == 0
    assert steps_to_target(measurements, GOAL, trials=trials, feasible_trials=2).shape[0] == 0
    assert first_crossings(measurements, GOAL).shape == (0, 2)
    assert members(trials, 2).shape == (0, 2)


@pytest.mark.parametrize(
    ("column", "word"),
    [("status", "diverged"), ("status", "Infeasible"), ("stop_reason", "finished")],
)
def test_words_of_trials_that_are_none_are_refused(column, word):
    """A trial that diverged by another name would count."""
    index = pd.MultiIndex.from_product([[8], range(2), [0]], names=TRIAL_INDEX)
    trials = pd.DataFrame(
        {"status": "complete", "steps_trained": 20, "stop_reason": "budget"}, index
    )
    rows = pd.MultiIndex.from_product([[8], range(2), [0], [10, 20]], names=MEASUREMENT_INDEX)
    curves = pd.DataFrame({"validation/error": [0.4, 0.1, 0.2, 0.1]}, rows)
    trials.loc[(8, 1, 0), column] = word
    with pytest.raises(ValueError, match=f"{column} is '{word}' of trial .*; wanted one of '"):
        steps_to_target(curves, Goal("validation/error", 0.3), trials=trials)
