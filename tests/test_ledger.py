"""What the ledger decides, without an engine: a study that is played on made-up curves."""

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchscale import metrics
from batchscale.engine.packs import TrialId
from batchscale.metrics import Goal
from batchscale.records import (
    MEASUREMENT_INDEX,
    TRIAL_COLUMNS,
    TRIAL_INDEX,
    Origin,
    measurement_table,
    trial_table,
)
from batchscale.runner.ledger import BatchSizeSpec, Ledger
from batchscale.stopping import StopRule, evaluation_grid

GOAL = Goal("validation/error", 0.5)
RULES = ["first", "all", "budget", 2.0]


def empty(columns, index):
    return pd.DataFrame(columns=columns, index=pd.MultiIndex.from_tuples([], names=index))


NOTHING = (
    measurement_table(empty([GOAL.metric], MEASUREMENT_INDEX)),
    trial_table(empty(TRIAL_COLUMNS, TRIAL_INDEX)),
)


@st.composite
def worlds(draw):
    """What would become of every trial: its errors on the grid, and where it diverges."""
    trials = draw(st.integers(1, 4))
    spare = draw(st.integers(0, 3))
    last = draw(st.integers(1, 24))
    grid = evaluation_grid(last, draw(st.sampled_from([0.1, 0.5, 1.0])))
    curves = [
        draw(
            st.lists(st.sampled_from([0.4, 0.5, 0.6, 0.9]), min_size=len(grid), max_size=len(grid))
        )
        for _ in range(trials + spare)
    ]
    ends = [draw(st.sampled_from([math.inf, *grid])) for _ in range(trials + spare)]
    return trials, spare, grid, curves, ends


def spec_of(world, rule):
    trials, spare, grid, *_ = world
    return BatchSizeSpec(
        batch_size=8,
        trials=trials,
        max_infeasible=spare,
        grid=grid,
        goal=GOAL,
        rule=StopRule.of(rule),
        exact=True,
    )


def tables(ledger):
    measured = ledger.unwritten()
    trials = ledger.trials(lambda trial: {}, lambda trial: Origin.PLAN)
    return (
        measurement_table(measured) if len(measured) else NOTHING[0],
        trial_table(trials) if len(trials) else NOTHING[1],
    )


def play(world, ledger, *, states=None, limit=math.inf):
    """Does what is next until nothing is, or so many times; the steps of the states."""
    _, _, grid, curves, ends = world
    at = {} if states is None else states
    done = 0
    while done < limit and (action := ledger.next(at)) is not None:
        done += 1
        assert action.trials
        assert {at.get(trial, -1) for trial in action.trials} == {action.since}
        assert action.to in grid
        assert action.to > action.since
        ledger.go_on(action.trials)
        rows = {
            trial: {GOAL.metric: curves[trial.number][grid.index(action.to)]}
            for trial in action.unmeasured
        }
        diverged = [trial for trial in rows if ends[trial.number] <= action.to]
        at |= dict.fromkeys(action.trials, action.to)
        ledger.record(action.to, rows, diverged)
        for trial in diverged:
            del at[trial]
    return at


def by_definition(world, rule):
    """The steps to target, from all curves at once."""
    trials, _, grid, curves, ends = world
    if rule == "budget":  # of those that never diverge, the first N
        survivors = [n for n, end in enumerate(ends) if end == math.inf][:trials]
        crossings = [
            step for n in survivors for step, e in zip(grid, curves[n], strict=True) if e < 0.5
        ]
        return min(crossings, default=math.inf)
    for place, step in enumerate(grid):
        counting = [n for n, end in enumerate(ends) if end > step][:trials]
        if any(curves[n][place] < 0.5 for n in counting):
            return step
    return math.inf


@pytest.mark.parametrize("rule", RULES)
@given(world=worlds())
def test_the_ledger_and_the_analysis_agree_with_the_definition(rule, world):
    ledger = Ledger(spec_of(world, rule), *NOTHING)
    play(world, ledger)
    ledger.conclude()
    assert ledger.steps_to_target() == by_definition(world, rule)
    measured, trials = tables(ledger)
    if rule != "budget":
        found = metrics.steps_to_target(
            measured, GOAL, trials=trials, feasible_trials=ledger.spec.trials
        )
        assert found["steps"].tolist() == [by_definition(world, rule)]
    spans = metrics.members(trials, ledger.spec.trials)
    for step in (s for s in ledger.spec.grid if s <= trials["steps_trained"].max()):
        inside = spans[(spans["first_step"] <= step) & (step < spans["end_step"])]
        counting = [TrialId(number, replicate) for _, number, replicate in inside.index]
        assert set(counting) <= set(ledger.members(step))


@pytest.mark.parametrize("rule", RULES)
@given(world=worlds())
def test_trials_stop_where_the_rule_says(rule, world):
    ledger = Ledger(spec_of(world, rule), *NOTHING)
    play(world, ledger)
    ledger.conclude()
    grid, (_, trials) = ledger.spec.grid, tables(ledger)
    steps = by_definition(world, "first")
    ends = {
        "first": lambda crossing: min(steps, grid[-1]),
        "all": lambda counted: min(counted, grid[-1]),
        "budget": lambda crossing: grid[-1],
        2.0: lambda crossing: next((s for s in grid if s >= 2 * steps), grid[-1]),
    }[rule]
    counting = ledger.members(int(trials["steps_trained"].max()))
    for (_, number, replicate), row in trials.iterrows():
        if row["status"] == "complete" and TrialId(number, replicate) in counting:
            past = [s for s, e in zip(grid, world[3][number], strict=True) if e < 0.5]
            while_it_counts = [s for s in past if TrialId(number, replicate) in ledger.members(s)]
            assert row["steps_trained"] == ends(min(while_it_counts, default=math.inf))


@pytest.mark.parametrize("rule", RULES)
@given(world=worlds(), pause=st.integers(0, 30), kept=st.booleans())
def test_an_interruption_changes_no_table(rule, world, pause, kept):
    """Whether the states are kept, or are lost and trained once more up to where they were."""
    whole = Ledger(spec_of(world, rule), *NOTHING)
    play(world, whole)
    whole.conclude()
    first = Ledger(spec_of(world, rule), *NOTHING)
    states = play(world, first, limit=pause)
    measured, trials = tables(first)
    second = Ledger(spec_of(world, rule), measured, trials)
    play(world, second, states=states if kept else {})
    second.conclude()
    more, ended = tables(second)
    both = pd.concat([measured, more]).sort_index()
    pd.testing.assert_frame_equal(
        both, tables(whole)[0].sort_index(), check_like=True, check_exact=True
    )
    pd.testing.assert_frame_equal(ended, tables(whole)[1], check_exact=True)


def test_what_is_next_is_said_again_until_it_is_done():
    world = (1, 0, [0, 1, 2], [[0.9, 0.9, 0.4]], [math.inf])
    ledger = Ledger(spec_of(world, "first"), *NOTHING)
    assert ledger.next({}) == ledger.next({}) == ([TrialId(0)], -1, 0, [TrialId(0)])
    play(world, ledger)
    assert ledger.next({}) is None
    assert ledger.next({TrialId(0): 2}) is None
    assert np.isinf(Ledger(spec_of(world, "first"), *tables(ledger)).crossing(TrialId(1)))
