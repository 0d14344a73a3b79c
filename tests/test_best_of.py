"""What another search would report, against enumeration of all subsets and against simulation."""

import itertools
import math
import re

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchscale import metrics
from batchscale.metrics.ranks import largest_drop, ranks_of
from batchscale.records import MEASUREMENT_INDEX, TRIAL_INDEX

ERROR = "validation/error"
GOAL = metrics.Goal(ERROR, 0.3)
MISS = math.inf
STEPS = [40, 12, 30, 22, 15, 15, 60, 33, 18]  # of nine trials; the fastest four are 12, 15, 15, 18


def tables(steps, *, before=1, budget=1000, batch_size=8):
    """Measurements and trials that cross at these steps; a miss was evaluated to the budget."""
    rows, values = [], []
    for trial, step in enumerate(steps):
        if math.isinf(step):
            rows.append((batch_size, trial, 0, budget))
            values.append(0.9)
        else:
            rows += [(batch_size, trial, 0, int(at)) for at in (step - before, step)]
            values += [0.9, 0.1]
    index = pd.MultiIndex.from_tuples(rows, names=MEASUREMENT_INDEX)
    trials = pd.DataFrame(
        {"origin": "plan", "status": "complete", "steps_trained": budget, "stop_reason": "budget"},
        pd.MultiIndex.from_product([[batch_size], range(len(steps)), [0]], names=TRIAL_INDEX),
    )
    return pd.DataFrame({ERROR: values}, index), trials


def cut(trials, numbers, at, reason="factor"):
    """The trials of these numbers stopped at a step."""
    chosen = trials.index.get_level_values("trial").isin(numbers)
    trials = trials.copy()
    trials.loc[chosen, ["steps_trained", "stop_reason"]] = [at, reason]
    return trials


def best_of(steps, n, confidence=0.9, **arguments):
    measurements, trials = tables(steps, **arguments)
    (row,) = metrics.best_of(measurements, GOAL, trials=trials, n=n, confidence=confidence).to_dict(
        "records"
    )
    return row


@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("misses", [0, 2, 7])
def test_median_mean_and_share_are_those_of_all_subsets(n, misses):
    steps = STEPS[: len(STEPS) - misses] + [MISS] * misses
    minima = np.array([min(subset) for subset in itertools.combinations(steps, n)])
    found = best_of(steps, n)
    assert found["median"] == np.quantile(minima, 0.5, method="inverted_cdf")
    assert found["mean"] == pytest.approx(minima.mean())
    assert found["share_reaching"] == pytest.approx(np.isfinite(minima).mean())
    assert (found["batch_size"], found["trials"], found["n"]) == (8, 9, n)


@pytest.mark.parametrize(("size", "n"), [(6, 1), (6, 2), (9, 3)])
@pytest.mark.parametrize("confidence", [0.5, 0.8, 0.9])
def test_ends_are_those_of_all_orders_of_old_and_new_trials(size, n, confidence):
    # Any n of the N + n places are as likely to be the new ones.
    places = range(size + n)
    ranks = [
        sum(place < min(new) for place in set(places) - set(new))  # old ones below the new minimum
        for new in itertools.combinations(places, n)
    ]
    outside = (1 - confidence) / 2 + 1e-12
    below = [np.mean([rank < k for rank in ranks]) for k in range(1, size + 1)]
    found = ranks_of(size, n, confidence)
    assert found.low == sum(share <= outside for share in below)
    assert found.high == size + 1 - sum(1 - share <= outside for share in below)


@pytest.mark.parametrize(("size", "n", "fastest"), [(24, 8, 4), (24, 3, 2), (300, 100, 4)])
def test_an_end_below_all_crossings_is_passed_as_seldom_as_said(size, n, fastest):
    random = np.random.default_rng(0)
    old = np.sort(np.log(random.uniform(size=(40_000, size))), axis=1)  # a power law
    new = np.log(random.uniform(size=(40_000, n))).min(axis=1)
    distance = (old[:, [fastest - 1]] - old[:, : fastest - 1]).mean(axis=1)
    below = new < old[:, 0] - largest_drop(size, n, fastest, 0.05) * distance
    assert below.mean() == pytest.approx(0.05, abs=0.004)
    # With nothing added, the new minimum is the least of all N + n with probability n / (N + n).
    assert largest_drop(size, n, fastest, n / (size + n) * (1 - 1e-9)) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(("trials", "n"), [(24, 1), (24, 8), (64, 21)])
def test_the_interval_holds_what_a_new_search_reports(trials, n):
    random = np.random.default_rng(1)

    def draw(searches, count):
        u = random.uniform(-1, 1, (searches, count))
        steps = 1000 * np.exp(3 * u**2 + 0.2 * random.normal(size=u.shape))
        return np.where(random.random(u.shape) < 0.2, np.inf, np.ceil(steps))

    old, new = draw(400, trials), draw(400, n).min(axis=1)
    made = [tables(steps, budget=10**6, batch_size=place) for place, steps in enumerate(old, 1)]
    measurements, plans = (pd.concat(parts) for parts in zip(*made, strict=True))
    found = metrics.best_of(measurements, GOAL, trials=plans, n=n)
    held = (found["low"] < new) & (new <= found["high"])
    assert 0.87 < held.mean() < 0.99  # 0.9, and more where the upper end is a miss


def test_low_is_an_evaluation_before_the_crossing_and_below_all_if_need_be():
    steps = list(range(100, 140))
    assert best_of(steps, 1, before=7)["low"] == steps[1] - 7
    assert best_of(steps, 1, 0.5, before=7)["low"] == steps[9] - 7
    assert best_of(steps, 13)["low"] < 99
    assert best_of([100] * 40, 13, before=7)["low"] == 93  # no spread to go by
    assert best_of([100, *[MISS] * 39], 13)["low"] == 0


def test_high_is_infinite_where_a_new_search_may_miss_or_trials_are_few():
    assert best_of(range(100, 124), 1)["high"] == 123
    assert best_of([*range(100, 122), MISS, MISS], 1)["high"] == MISS
    assert best_of([*range(100, 122), MISS, MISS], 8)["high"] < 123
    assert best_of(range(100, 112), 1)["high"] == MISS


steps_of_trials = st.lists(
    st.one_of(st.integers(2, 500), st.just(MISS)), min_size=9, max_size=24
).filter(lambda steps: sum(map(math.isfinite, steps)) > 2)


@given(steps=steps_of_trials, factor=st.integers(2, 9), seed=st.integers(0, 9))
@settings(deadline=None, max_examples=25)
def test_scaling_all_steps_scales_the_answer_and_renaming_trials_changes_nothing(
    steps, factor, seed
):
    found = best_of(steps, 2)
    scaled = best_of([factor * step for step in steps], 2, before=factor, budget=1000 * factor)
    renamed = best_of(np.random.default_rng(seed).permutation(steps).tolist(), 2)
    for name in ("median", "low", "high", "mean"):
        assert scaled[name] == pytest.approx(factor * found[name])
        assert renamed[name] == pytest.approx(found[name])


@given(steps=steps_of_trials)
@settings(deadline=None, max_examples=25)
def test_more_trials_never_worsen_the_minimum(steps):
    measurements, trials = tables(steps)
    curve = metrics.tuning_curve(measurements, GOAL, trials=trials)
    for name in ("median", "high", "mean"):
        values = curve[name].tolist()
        assert values == sorted(values, reverse=True)
    assert curve["share_reaching"].is_monotonic_increasing
    assert (curve["low"] < curve["median"]).all()
    assert (curve["median"] <= curve["high"]).all()


def test_the_tuning_curve_has_the_rows_of_best_of():
    measurements, trials = tables(range(100, 130))
    other, more = tables(range(200, 212), batch_size=16)
    measurements, trials = pd.concat([measurements, other]), pd.concat([trials, more])
    curve = metrics.tuning_curve(measurements, GOAL, trials=trials, confidence=0.8)
    assert curve.loc[curve["batch_size"] == 8, "n"].tolist() == [1, 2, 3, 4, 6, 8]
    assert curve.loc[curve["batch_size"] == 16, "n"].tolist() == [1, 2, 3, 4]
    for n, rows in curve[curve["n"] <= 4].groupby("n"):
        wanted = metrics.best_of(measurements, GOAL, trials=trials, n=n, confidence=0.8)
        pd.testing.assert_frame_equal(rows.reset_index(drop=True), wanted, check_exact=True)


def test_only_feasible_trials_of_the_plan_and_its_topups_count():
    measurements, trials = tables([5, 6, 7, *range(100, 124), 100])
    trials.loc[(8, 0, 0), ["status", "stop_reason"]] = ["infeasible", "diverged"]
    trials.loc[(8, 1, 0), "origin"] = "refine"
    trials.loc[(8, 2, 0), "origin"] = "expand"
    trials.loc[(8, 27, 0), "origin"] = "topup"
    rerun = (
        trials[trials.index.get_level_values("trial") == 3]
        .rename(index={0: 1}, level="replicate")
        .assign(origin="confirm")
    )
    again = measurements[measurements.index.get_level_values("trial") == 3].rename(
        index={0: 1}, level="replicate"
    )
    found = metrics.best_of(
        pd.concat([measurements, again]), GOAL, trials=pd.concat([trials, rerun]), n=1
    )
    wanted = best_of([*range(100, 124), 100], 1)
    assert found.to_dict("records") == [wanted]


def test_trials_that_were_cut_beyond_the_interval_do_not_matter():
    steps = [*range(100, 116), *[MISS] * 8]
    measurements, trials = tables(steps)
    whole = metrics.best_of(measurements, GOAL, trials=trials, n=8)
    trials = cut(trials, range(16, 24), at=300)
    found = metrics.best_of(measurements, GOAL, trials=trials, n=8)
    same = ["median", "low", "high", "share_reaching"]
    pd.testing.assert_frame_equal(found[same], whole[same], check_exact=True)
    assert whole["mean"].tolist() == [MISS]
    assert found["mean"].isna().all()
    curve = metrics.tuning_curve(measurements, GOAL, trials=trials)
    assert curve["n"].tolist() == [1, 2, 3, 4, 6, 8]
    trials = cut(trials, range(16, 24), at=108)
    curve = metrics.tuning_curve(measurements, GOAL, trials=trials)
    assert curve["n"].tolist() == [2, 3, 4, 6, 8]  # of one the median may be of a cut trial


def test_trials_that_were_cut_only_widen_the_interval_upwards():
    measurements, trials = tables(range(100, 124))
    whole = metrics.best_of(measurements, GOAL, trials=trials, n=2)
    # The slower half was cut where it could have been faster than the upper end.
    late = measurements.index.get_level_values("trial") >= 10
    far = measurements.index.get_level_values("step") > 109
    found = metrics.best_of(
        measurements[~(late & far)], GOAL, trials=cut(trials, range(10, 24), at=109), n=2
    )
    assert found[["median", "low"]].equals(whole[["median", "low"]])
    assert whole["high"].item() < found["high"].item() == MISS


def test_trials_that_were_cut_before_the_median_are_refused():
    measurements, trials = tables([*range(100, 116), *[MISS] * 8])
    early = cut(trials, range(16, 24), at=102)
    message = (
        "the best of 8 to validation/error < 0.3: the curves are too short to tell: at batch size "
        "8, trial 16 was trained for 102 steps (factor) of 103. To know, train on with "
        'study.extend(folder, stop="all"), or a larger factor than before, such as stop=3.0.'
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        metrics.best_of(measurements, GOAL, trials=early, n=8)
    with pytest.raises(ValueError, match=re.escape(message)):
        metrics.tuning_curve(measurements, GOAL, trials=early)
    late = cut(trials, range(16, 24), at=105, reason="first crossing")
    with pytest.raises(ValueError, match=r"105 steps \(first crossing\) of 111"):
        metrics.best_of(measurements, GOAL, trials=late, n=1)
    unfinished = cut(trials, [3], at=4, reason="interrupted").assign(status="complete")
    unfinished.loc[(8, 3, 0), "status"] = "incomplete"
    dropped = measurements.drop((8, 3), axis=0)
    with pytest.raises(ValueError, match=re.escape("study.run(folder)")):
        metrics.best_of(dropped, GOAL, trials=unfinished, n=8)


def test_evaluations_that_were_cut_short_do_not_decide_a_harder_goal():
    measurements, trials = tables(range(100, 124))
    bound = f"{ERROR}_at_least"
    measurements[bound] = np.where(measurements[ERROR] > 0.5, 0.35, np.nan)
    measurements[ERROR] = measurements[ERROR].where(measurements[ERROR] < 0.5)
    assert metrics.best_of(measurements, GOAL, trials=trials, n=1)["median"].tolist() == [111]
    with pytest.raises(ValueError, match=re.escape('study.extend(folder, curves="exact")')):
        metrics.best_of(measurements, metrics.Goal(ERROR, 0.4), trials=trials, n=1)


def test_too_large_a_share_of_the_trials_is_refused():
    message = (
        "n: got 9, wanted 1 to 8, a third of the 24 feasible trials at batch size 8: a minimum "
        "over more is decided by the few fastest of them, and says too little of what others "
        "would give. Ask for a smaller n, or call study.extend(folder, trials=...)."
    )
    for n in (9, 24, 0):
        with pytest.raises(ValueError, match=re.escape(message.replace("got 9", f"got {n}"))):
            best_of(range(100, 124), n)
    measurements, trials = tables([100, 110])
    with pytest.raises(ValueError, match="trials: 2 feasible at batch size 8, at least 3"):
        metrics.tuning_curve(measurements, GOAL, trials=trials)


def test_arguments_are_checked():
    measurements, trials = tables(range(100, 124))
    with pytest.raises(ValueError, match=r"confidence: got 1\.0"):
        metrics.best_of(measurements, GOAL, trials=trials, n=1, confidence=1.0)
    with pytest.raises(ValueError, match="lacks the columns origin"):
        metrics.best_of(measurements, GOAL, trials=trials.drop(columns="origin"), n=1)
    with pytest.raises(KeyError, match="no column 'test/error'"):
        metrics.best_of(measurements, metrics.Goal("test/error", 0.3), trials=trials, n=1)
