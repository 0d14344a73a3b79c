"""The tuned setting under fresh seeds: chosen by some, reported by others."""

import dataclasses
import math
import shutil
from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from helpers import perceptron
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

import batchscale as bs
from batchscale.cli import app
from batchscale.confirmation import Confirmation, at_goal, confirmation, median_ranks
from batchscale.engine.engine import Engine
from batchscale.records import TRIAL_INDEX
from batchscale.tuner import medians

BEST = pd.DataFrame({"batch_size": [8], "steps": [40.0]})


def runs(steps: dict[int, list[float]]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Reruns of settings, numbered from 1, and where they crossed; evaluations are 5 apart."""
    keys = [(8, trial, 1 + r) for trial, found in steps.items() for r in range(len(found))]
    index = pd.MultiIndex.from_tuples(keys, names=TRIAL_INDEX)
    found = np.concatenate([np.array(values, float) for values in steps.values()])
    trials = pd.DataFrame(
        {
            "learning_rate": [0.1 * trial for _, trial, _ in keys],
            "origin": "confirm",
            "status": "complete",
            "steps_trained": np.where(np.isinf(found), 160, found).astype(int),
            "stop_reason": "own crossing",
            "first_crossing": found,
        },
        index,
    )
    previous = np.where(np.isinf(found), 160.0, found - 5)
    return trials, pd.DataFrame({"first_crossing": found, "previous_evaluation": previous}, index)


def test_seeds_that_chose_a_setting_do_not_report_it():
    trials, crossings = runs({3: [50, 60, 70, 81, 92, 95, 101, 103], 5: [40, 65, 90]})
    found = confirmation(trials, crossings, BEST, selection_seeds=3)
    row = found.table.iloc[0]
    assert (row["trial"], row["seeds"], row["steps"], row["previous_evaluation"]) == (3, 5, 95, 90)
    assert row["luck"] == 95 / 40
    assert row["learning_rate"] == pytest.approx(0.3)
    assert (row["low"], row["high"]) == (76, 103)  # the evaluation before the first, and the last
    assert found.settings["trial"].tolist() == [3, 5]
    assert found.settings["median"].tolist() == [60, 65]
    assert found.settings["chosen"].tolist() == [True, False]
    assert found.runs["replicate"].tolist() == [4, 5, 6, 7, 8]


def test_an_easier_goal_is_read_off_the_same_runs_of_the_same_settings():
    trials, crossings = runs({3: [50, 60, 70, 81, 92, 95, 101, 103], 5: [40, 65, 90]})
    found = confirmation(trials, crossings, BEST, selection_seeds=3)
    easier = crossings.assign(first_crossing=crossings["first_crossing"] - 30)
    easier["previous_evaluation"] -= 30
    ended = trials.assign(stop_reason="own crossing")
    other = at_goal(found, ended, easier, BEST.assign(steps=20.0))
    row = other.table.iloc[0]
    assert (row["trial"], row["steps"], row["previous_evaluation"]) == (3, 65, 60)
    assert (row["low"], row["high"], row["luck"]) == (46, 73, 65 / 20)
    assert other.runs["steps"].tolist() == [51, 62, 65, 71, 73]
    assert found.table.iloc[0]["steps"] == 95  # the other is as it was
    # Where they ended the harder goal was not reached, which is no miss.
    harder = easier.assign(
        first_crossing=easier["first_crossing"].where(easier["first_crossing"] < 70, math.inf)
    )
    with pytest.raises(ValueError, match=r"run 7 of trial 3 ended.*one of 2 such.*easier goals"):
        at_goal(found, ended, harder, BEST.assign(steps=20.0))
    given = at_goal(found, ended.assign(stop_reason="budget"), harder, BEST.assign(steps=20.0))
    assert given.table.iloc[0]["missed"] == pytest.approx(0.4)


def test_what_was_never_run_again_is_no_miss_of_an_easier_goal():
    trials, crossings = runs({3: [50, 60, 70, 81, 92, 95]})
    best = pd.concat([BEST, BEST.assign(batch_size=32, steps=math.inf)])
    found = confirmation(trials, crossings, best, selection_seeds=3)
    assert found.table["steps"].tolist() == [92, math.inf]
    for steps, median in [(30.0, math.nan), (math.inf, math.inf)]:
        easier = best.assign(steps=[20.0, steps])
        other = at_goal(found, trials.assign(stop_reason="own crossing"), crossings, easier)
        np.testing.assert_array_equal(other.table["steps"], [92, median])
        assert len(other.steps_to_target()) == 1 + math.isinf(median)


def test_the_median_of_an_even_number_lies_after_the_mean_of_two():
    trials, crossings = runs({1: [10, 20, 30, 44, 55, math.inf, math.inf]})
    row = confirmation(trials, crossings, BEST, selection_seeds=3).table.iloc[0]
    assert (row["steps"], row["missed"]) == (math.inf, 0.5)
    # Between the second, which lies after 50, and the third, which lies after its limit of 160.
    assert row["previous_evaluation"] == pytest.approx(math.sqrt(50 * 160))


def test_misses_and_divergences_are_infinite_and_stay():
    trials, crossings = runs({1: [10, 20, 30, math.inf, math.inf, 44, 55, math.inf]})
    trials.loc[(8, 1, 6), "status"] = "infeasible"  # it was past the goal before
    row = confirmation(trials, crossings, BEST, selection_seeds=3).table.iloc[0]
    assert row["steps"] == math.inf
    assert row["missed"] == pytest.approx(0.8)
    assert row["previous_evaluation"] == 160


def test_the_least_median_is_chosen_and_of_infinite_ones_that_with_the_fewest_misses():
    inf = math.inf
    trials, _ = runs({1: [10, inf, inf], 2: [50, 60, inf], 3: [inf, inf, inf], 4: [60, 60, 60]})
    assert medians.by_median(trials)["trial"].tolist() == [4, 2, 1, 3]


@given(seeds=st.integers(1, 40), confidence=st.sampled_from([0.5, 0.8, 0.9, 0.95]))
@settings(deadline=None, max_examples=30)
def test_ranks_hold_the_median_at_least_as_often_as_they_say(seeds, confidence):
    low, high = median_ranks(seeds, confidence)
    assert -1 <= low <= high == seeds - 1 - low

    def covered(low):  # of seeds that are each below the median or above it
        ways = sum(math.comb(seeds, below) for below in range(low + 1, seeds - low))
        return ways / 2**seeds

    assert low == -1 or covered(low) >= confidence  # else it is open
    assert covered(low + 1) < confidence


def test_too_few_seeds_for_an_interval_leave_it_open():
    trials, crossings = runs({3: [50, 60, 70, 81, 92, 103]})
    row = confirmation(trials, crossings, BEST, selection_seeds=3).table.iloc[0]
    assert (row["seeds"], row["low"], row["high"]) == (3, 0, math.inf)


def test_a_choice_is_not_made_before_all_settings_have_all_seeds():
    trials, crossings = runs({3: [50, 60, 70, 81, 92, 103], 5: [40, 65]})

    def found(**asked):
        return confirmation(trials, crossings, BEST, selection_seeds=3, **asked)

    for asked in ({}, {"asked": {8: [3, 5]}}, {"asked": {8: [3, 4]}}, {"asked": {8: []}}):
        assert math.isnan(found(**asked).table["steps"][0])
    whole = found(asked={8: [3]})  # of the other nothing is looked at
    assert whole.table["trial"].tolist() == whole.settings["trial"].tolist() == [3]


def test_a_median_that_is_a_miss_is_marked_and_interrupts_the_line():
    table = pd.DataFrame(
        {
            "batch_size": [1, 2, 4],
            "best_of_n": [90.0, 80, 30],
            "steps": [120.0, math.inf, 40],
            "low": [100.0, 90, 30],
            "high": [130.0, math.inf, 50],
            "quantile_10": [90.0, 80, 30],
            "quantile_90": [140.0, math.inf, 60],
        }
    )

    def drawn(table):
        found = Confirmation(table, table.iloc[:0], table.iloc[:0], 0.9)
        return bs.plots.confirmation(
            SimpleNamespace(
                name="own, sgd",
                goal=bs.Goal("validation/error", 0.1),
                train_examples=100,
                confirmation=lambda: found,
            )
        )

    ax = drawn(table)
    assert np.isnan(ax.lines[0].get_ydata()).tolist() == [False, True, False]
    assert ax.lines[2].get_xdata().tolist() == [2]
    assert "goal not reached" in [text.get_text() for text in ax.get_legend().get_texts()]
    # The seeds that miss at 2 have a bar of their own, and no band to 1 and 4.
    bars, bands = ax.collections[::2], ax.collections[1::2]
    segments = [segment for bar in bars for segment in bar.get_segments()]
    assert [segment.size for segment in segments] == [0, 0]  # nor where half of them miss
    assert max(band.get_datalim(ax.transData).y1 for band in bands) < 1000
    some = drawn(table.assign(steps=[120.0, 60, 40], high=[130.0, 70, 50]))
    (bar,), none = (bars.get_segments() for bars in some.collections[::2])
    assert (bar[:, 0].tolist(), len(none)) == ([2, 2], 0)
    assert bar[1][1] > some.get_ylim()[1]
    alone = drawn(table.iloc[:1])
    assert len(alone.collections) == 2  # bars, where a band has no width
    with pytest.raises(ValueError, match="no setting reached the goal"):
        drawn(table.iloc[1:2])
    plt.close("all")


def study(**changes):
    fields = {
        "workload": perceptron(),
        "optimizer": "sgd",
        "space": bs.SearchSpace(learning_rate=bs.LogUniform(0.1, 3)),
        "batch_sizes": [8, "full"],
        "goal": bs.Goal("validation/error", 0.15),
        "trials": 6,
        "max_steps": 600,
        "stop": 3.0,
    }
    return bs.Study(**fields | changes)


OPTIONS = {"settings": 2, "selection_seeds": 3, "seeds": 5, "progress": False}


@pytest.mark.long
def test_a_confirmation_is_beside_the_study_and_goes_on_after_a_kill(tmp_path):
    result = study().run(tmp_path / "a", progress=False)
    found = study().confirm(result.folder, **OPTIONS)
    again = bs.load(tmp_path / "a")
    pd.testing.assert_frame_equal(again.trials, result.trials, check_exact=True)
    pd.testing.assert_frame_equal(again.confirmation().table, found.table, check_exact=True)
    assert found.table["seeds"].tolist() == [5, 5]
    assert (found.table["low"] < found.table["steps"]).all()
    assert (found.table["steps"] <= found.table["high"]).all()
    ax = bs.plots.confirmation(again)
    assert ax.get_ylabel() == "Steps to validation error < 0.15"
    assert ax.get_xticklabels(minor=True)[0].get_text() == f"\nfull: {again.train_examples}"
    median, best = ax.lines[:2]
    np.testing.assert_array_equal(median.get_ydata(), found.table["steps"])
    np.testing.assert_array_equal(best.get_ydata(), again.steps_to_target()["steps"])
    plt.close(ax.figure)
    assert str(found).count("\n") == 2  # a line a batch size, and a head
    assert str(again).startswith("square, sgd, validation/error < 0.15, 6 trials a batch size\n")

    class Kill(Exception):  # noqa: N818
        pass

    told = []

    def kill(progress):
        told.append(progress)
        if len(told) in (15, 60):
            raise Kill

    study().run(tmp_path / "b", progress=False)
    for _ in range(2):
        with pytest.raises(Kill):
            study().confirm(tmp_path / "b", **OPTIONS | {"progress": kill})
    killed = study().confirm(tmp_path / "b", **OPTIONS)
    pd.testing.assert_frame_equal(killed.table, found.table, check_exact=True)
    pd.testing.assert_frame_equal(killed.settings, found.settings, check_exact=True)


@pytest.mark.slow
def test_a_rerun_has_another_seed_and_the_setting_of_its_trial(tmp_path):
    result = study().run(tmp_path, progress=False)
    found = study().confirm(tmp_path, **OPTIONS)
    row, run = found.table.iloc[0], found.runs.iloc[0]
    chosen = result.trials.loc[(8, row["trial"], 0)]
    assert row["learning_rate"] == chosen["learning_rate"]
    alone = study().run_trial(
        batch_size=8, trial=int(run["trial"]), replicate=int(run["replicate"]), folder=tmp_path
    )
    assert alone.curve.index.get_level_values("step").max() == run["steps"]
    assert len(set(found.runs.loc[found.runs["batch_size"] == 8, "steps"])) > 1


@pytest.mark.long
def test_what_leads_may_change_and_what_was_run_before_stays(tmp_path):
    study().run(tmp_path, progress=False)
    study().confirm(tmp_path, **OPTIONS | {"settings": 4})
    fewer = study().confirm(tmp_path, **OPTIONS)
    assert fewer.settings.groupby("batch_size").size().tolist() == [2, 2]
    study().refine(tmp_path, rounds=1, trials=6, progress=False)
    refined = study().confirm(tmp_path, **OPTIONS)
    assert (refined.table["seeds"] == 5).all()
    more = study().extend(tmp_path, trials=8, progress=False)
    again = study(trials=8).confirm(tmp_path, **OPTIONS | {"seeds": 3})
    assert (again.table["seeds"] == 3).all()
    assert again.table["best_of_n"].tolist() == more.steps_to_target()["steps"].tolist()


def test_what_is_not_run_again_yet_is_not_a_miss(tmp_path):
    class Kill(Exception):  # noqa: N818
        pass

    def kill(progress):
        if progress.finished:
            raise Kill

    study().run(tmp_path, progress=False)
    with pytest.raises(Kill):
        study().confirm(tmp_path, **OPTIONS | {"progress": kill})
    half = bs.load(tmp_path).confirmation()
    assert half.table["steps"].isna().tolist() == [False, True]
    assert half.steps_to_target()["batch_size"].tolist() == [8]
    check = bs.load(tmp_path).audit().of("optimum reproducible under new seeds")
    assert (check.verdict, check.evidence) == ("unknown", "not run again at batch size 100")


def test_later_crossings_than_a_run_was_given_are_misses():
    trials, crossings = runs({1: [50, 60, 70, 80, 90, 100]})
    found = confirmation(trials, crossings, BEST, selection_seeds=3, seeds=3, limits={8: 85.0})
    assert found.table["steps"].tolist() == [math.inf]
    assert found.table["missed"].iloc[0] == pytest.approx(2 / 3)
    short = confirmation(trials, crossings, BEST, selection_seeds=3, seeds=4)
    assert short.table["steps"].isna().all()


def test_a_kill_while_the_chosen_setting_is_reported_loses_no_state(tmp_path, monkeypatch):
    study(batch_sizes=[8]).run(tmp_path, progress=False)

    class Kill(Exception):  # noqa: N818
        pass

    told = []

    def kill(progress):
        told.append(progress.step)
        if told.count(0) == 2 and progress.step > 15:  # the second start is that of the report
            raise Kill

    options = OPTIONS | {"seeds": 5}
    with pytest.raises(Kill):
        study(batch_sizes=[8]).confirm(tmp_path, **options | {"progress": kill})
    advanced = []
    advance = Engine.advance

    def watched(self, packs, **to):
        advanced.append(to["step"])
        return advance(self, packs, **to)

    monkeypatch.setattr(Engine, "advance", watched)
    study(batch_sizes=[8]).confirm(tmp_path, **options)
    assert advanced
    assert min(advanced) > 10


def test_what_cannot_be_confirmed_is_refused(tmp_path):
    study(stop="first").run(tmp_path, progress=False)
    with pytest.raises(ValueError, match="before all were stopped, at less than 2 times"):
        study(stop="first").confirm(tmp_path, settings=5, progress=False)
    study(stop=1.01).run(tmp_path / "soon", progress=False)
    with pytest.raises(ValueError, match="before all were stopped, at less than 2 times"):
        study(stop=1.01).confirm(tmp_path / "soon", settings=5, progress=False)
    with pytest.raises(FileNotFoundError, match="nothing is confirmed yet"):
        bs.load(tmp_path).confirmation()
    with pytest.raises(ValueError, match="patience: got 1, wanted a factor above 1"):
        study().confirm(tmp_path, patience=1)


@pytest.mark.slow
def test_an_extension_that_moves_the_best_makes_its_confirmation_stale(tmp_path):
    few = study(batch_sizes=[8], trials=3)
    few.run(tmp_path, progress=False)
    assert few.confirm(tmp_path, **OPTIONS).table["steps"].notna().all()
    more = few.extend(tmp_path, trials=24, progress=False)
    assert more.steps_to_target()["steps"][0] < few_steps(few, tmp_path)
    assert more.confirmation().table["steps"].isna().all()
    assert more.audit().of("optimum reproducible under new seeds").verdict == "unknown"
    again = study(batch_sizes=[8], trials=24).confirm(tmp_path, **OPTIONS)
    assert again.table["steps"].notna().all()


def few_steps(few, folder):
    """The steps to target of the study before it was extended, from its first trials."""
    trials = bs.load(folder).trials
    first = trials[trials.index.get_level_values("trial") < few.trials]
    return first["first_crossing"].min()


@pytest.mark.slow
def test_what_draws_or_recommends_goes_by_the_medians_once_they_are_whole(tmp_path):
    one = study(batch_sizes=[4, 16])
    one.run(tmp_path / "one", progress=False)
    other = study(batch_sizes=[4, 16], seed=1).run(tmp_path / "other", progress=False)
    told = []

    def kill(progress):
        told.append(progress.batch_size)
        if progress.batch_size == 16:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        one.confirm(tmp_path / "one", **OPTIONS | {"progress": kill})
    partly = bs.load(shutil.copytree(tmp_path / "one", tmp_path / "partly"))
    assert partly.confirmation().table["steps"].isna().tolist() == [False, True]
    medians_of = one.confirm(tmp_path / "one", **OPTIONS)
    whole, best = bs.load(tmp_path / "one"), partly.steps_to_target()["steps"].tolist()
    tuned = medians_of.table["steps"].tolist()
    assert best != tuned
    for result, confirmed, steps, words in (
        (partly, None, best, "Steps to"),
        (whole, None, tuned, "Median steps to"),
        (whole, False, best, "Steps to"),
        ([whole, other], None, best, "Steps to"),  # of one there are no medians
        ([whole, whole], None, tuned, "Median steps to"),
    ):
        ax = bs.plots.steps_to_target(result, confirmed=confirmed, perfect_scaling=False)
        assert ax.get_ylabel() == f"{words} validation error < 0.15"
        assert ax.lines[0].get_ydata().tolist() == steps
        plt.close(ax.figure)
    with pytest.raises(FileNotFoundError, match="nothing is confirmed"):
        bs.plots.steps_to_target(other, confirmed=True)
    ax = bs.plots.frontier(whole, title=None)
    assert "tuned settings' medians" in ax.get_title() + str(
        [text.get_text() for text in ax.figure.texts]
    )
    plt.close(ax.figure)
    luck = "Steps are those of the best of 6 trials, some of it luck."
    fresh = "Steps are medians of the tuned settings under fresh seeds."
    assert partly.recommend().sentences[-1] == luck
    assert whole.recommend(confirmed=False).sentences[-1] == luck
    assert whole.recommend(whole.goal).sentences[-1] == luck
    assert whole.recommend().sentences[-1] == fresh
    assert whole.recommend().table["steps"].tolist() == tuned
    assert bs.compare({"one": whole, "other": other}).table["shows"].tolist() == [
        "confirmed", "best of N",
    ]  # fmt: skip
    shown = CliRunner().invoke(app, ["show", str(tmp_path / "one")]).output
    assert f"{medians_of}\n{medians_of.scaling()}" in shown


def test_a_batch_size_where_only_a_trial_that_diverged_got_there_is_passed_over(
    tmp_path, monkeypatch
):
    some = study()
    some.run(tmp_path, progress=False)
    leading = medians.leading

    def without(trials, count):
        found = leading(trials, count)
        return found[found.index.get_level_values("batch_size") != 8]

    monkeypatch.setattr(medians, "leading", without)
    table = some.confirm(tmp_path, **OPTIONS).table.set_index("batch_size")
    assert table["steps"].isna().tolist() == [True, False]
    result = bs.load(tmp_path)
    assert result.confirmed() is None  # there a setting could have been confirmed
    trials = result.trials
    diverged = trials.index.get_level_values("batch_size") == 8
    trials = trials.assign(status=trials["status"].mask(diverged, "infeasible"))
    only = dataclasses.replace(result, trials=trials)
    pd.testing.assert_frame_equal(only.confirmed().table, result.confirmation().table)


def test_the_end_of_a_search_is_that_of_its_first_crossing_also_of_a_trial_that_diverged():
    """At three times 10, though the fastest that did not diverge crossed at 25."""
    index = pd.MultiIndex.from_product([[8], range(4), [0]], names=TRIAL_INDEX)
    trials = pd.DataFrame(
        {
            "learning_rate": 0.1,
            "origin": ["plan", "plan", "plan", "refine"],
            "status": ["infeasible", "complete", "complete", "complete"],
            "steps_trained": [20, 30, 30, 26],
            "stop_reason": ["diverged", "factor", "factor", "factor"],
            "first_crossing": [10.0, 25.0, np.inf, np.inf],
        },
        index,
    )
    assert medians.leading(trials, 3).index.get_level_values("trial").tolist() == [1]
    trials.loc[(8, 0, 0), "first_crossing"] = 25.0
    with pytest.raises(ValueError, match="at less than 2 times the steps of the first crossing"):
        medians.leading(trials, 3)
