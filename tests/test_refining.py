"""Searching on: boxes around the leading trials, and beyond the edges that they crowd."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
from helpers import perceptron
from hypothesis import given, settings
from hypothesis import strategies as st

import batchscale as bs
from batchscale import tuner
from batchscale.records import Origin

SPACE = bs.SearchSpace(
    learning_rate=bs.LogUniform(1e-3, 10), momentum=bs.ReverseLogUniform(0.5, 0.99), decay=0.1
)


def trials(places, steps):
    """Trials at places of the range of the learning rate, in the middle of that of momentum."""
    unit = np.array(places, float)
    return pd.DataFrame(
        {
            "learning_rate": SPACE["learning_rate"].value(unit),
            "momentum": SPACE["momentum"].value(np.linspace(0.4, 0.6, len(unit))),
            "decay": 0.1,
            "first_crossing": steps,
        }
    )


@given(
    places=st.lists(st.floats(0, 0.999), min_size=6, max_size=20, unique=True),
    seed=st.integers(0, 5),
)
@settings(deadline=None, max_examples=40)
def test_the_box_holds_the_leading_trials_and_stays_inside(places, seed):
    steps = np.random.default_rng(seed).permutation(len(places)) + 10.0
    table = trials(places, steps)
    box = tuner.refine(SPACE, table, leading=4)
    assert list(box) == list(SPACE)
    assert box["decay"] == 0.1
    lead = table.sort_values("first_crossing").head(4)
    for name in ("learning_rate", "momentum"):
        inside = lead[name].between(box[name].low * (1 - 1e-9), box[name].high * (1 + 1e-9))
        assert inside.all()
        assert SPACE[name].low <= box[name].low < box[name].high <= SPACE[name].high


def test_a_crowded_edge_is_gone_beyond_and_others_are_not():
    table = trials([0.1, 0.2, 0.3, 0.5, 0.8, 0.9, 0.95], [99, 90, 80, 70, 30, 20, 25])
    table["momentum"] = SPACE["momentum"].value(np.array([0.1, 0.9, 0.8, 0.2, 0.4, 0.5, 0.45]))
    high = tuner.expand(SPACE, table, leading=3)
    # The three leading ones are spread over 0.15 of the range: beyond it goes twice that.
    assert high["learning_rate"].high == pytest.approx(1e-3 * 1e4**1.3)
    assert high["learning_rate"].low > SPACE["learning_rate"].low
    assert 0.5 < high["momentum"].low < high["momentum"].high < 0.99
    inner = trials([0.05, 0.1, 0.9, 0.95, 0.45, 0.5, 0.55], [90, 80, 85, 95, 20, 15, 25])
    inner["momentum"] = SPACE["momentum"].value(np.array([0.1, 0.8, 0.2, 0.9, 0.5, 0.45, 0.55]))
    assert tuner.expand(SPACE, inner, leading=3) is None
    low = trials([0.01, 0.05, 0.5, 0.9], [20, 25, 90, 95])
    beyond = tuner.expand(SPACE, low, leading=2)
    assert beyond["learning_rate"].low < SPACE["learning_rate"].low
    assert beyond["momentum"].low >= 0


def test_an_edge_beyond_which_trials_diverged_is_not_crowded():
    places, steps = [0.1, 0.3, 0.5, 0.78, 0.8, 0.82], [90, 80, 70, 30, 20, 25]
    assert tuner.expand(SPACE, trials(places, steps), leading=3)["learning_rate"].high > 10
    some = trials([*places, 0.9, 0.97], [*steps, np.inf, np.inf])
    assert tuner.expand(SPACE, some, leading=3) is None


def test_a_hyperparameter_that_hardly_matters_has_no_crowded_edge():
    space = bs.SearchSpace(
        learning_rate=bs.LogUniform(1e-3, 10), momentum=bs.ReverseLogUniform(0.5, 0.99)
    )
    gone = 0
    for seed in range(40):
        random = np.random.default_rng(seed)
        unit = random.uniform(size=(2, 16))
        table = pd.DataFrame(
            {
                "learning_rate": space["learning_rate"].value(unit[0]),
                "momentum": space["momentum"].value(unit[1]),
                "first_crossing": 100 * np.exp(3 * (unit[0] - 0.5) ** 2),
            }
        )
        gone += tuner.expand(space, table) is not None
    assert gone <= 4  # one in twenty is what chance gives


def test_what_has_no_beyond_stays_inside():
    space = bs.SearchSpace(smoothing=bs.Choice([0, 0.01, 0.1]), layers=bs.Integer(1, 9))
    table = pd.DataFrame(
        {"smoothing": [0.1, 0.1, 0.0], "layers": [9, 8, 1], "first_crossing": [10.0, 12, 90]}
    )
    box = tuner.refine(space, table, leading=2)
    assert box["smoothing"] == 0.1
    assert (box["layers"].low, box["layers"].high) == (8, 9)
    assert tuner.expand(space, table, leading=2) is None
    scattered = table.assign(smoothing=[0.1, 0.0, 0.01])
    assert tuner.refine(space, scattered, leading=2)["smoothing"] == bs.Choice([0, 0.1])
    share = bs.SearchSpace(dropout=bs.Uniform(0, 0.5), momentum=bs.ReverseLogUniform(0, 0.9))
    low = pd.DataFrame(
        {
            "dropout": [0.0, 0.01, 0.4, 0.45],
            "momentum": [0.0, 0.01, 0.8, 0.85],
            "first_crossing": [9.0, 8, 90, 95],
        }
    )
    assert tuner.expand(share, low, leading=2) is None
    high = tuner.expand(share, low.assign(dropout=[0.5, 0.49, 0.1, 0.05]), leading=2)
    assert 0.5 < high["dropout"].high <= 1


def test_too_few_that_reached_the_goal_are_refused():
    with pytest.raises(ValueError, match="1 trials reached the goal, wanted at least 2"):
        tuner.refine(SPACE, trials([0.1, 0.2], [10, np.inf]))


def study(space=None):
    return bs.Study(
        workload=perceptron(),
        optimizer="sgd",
        space=bs.SearchSpace(learning_rate=space or bs.LogUniform(0.01, 3)),
        batch_sizes=[8, "full"],
        goal=bs.Goal("validation/error", 0.15),
        trials=8,
        max_steps=2000,
        stop=3.0,
    )


@pytest.mark.long
def test_refined_trials_are_more_and_change_no_answer_and_survive_a_kill(tmp_path):
    before = study().run(tmp_path / "a", progress=False)
    after = study().refine(tmp_path / "a", rounds=2, trials=4, until=0.0, progress=False)
    pd.testing.assert_frame_equal(
        after.steps_to_target(), before.steps_to_target(), check_exact=True
    )
    refined = after.refined()
    assert refined.groupby("batch_size").size().tolist() == [8, 8]
    assert set(refined["origin"]) <= {Origin.REFINE, Origin.EXPAND}

    finished = []

    def kill(progress):
        kill.told += 1
        finished.append(progress.finished)
        # In the first round, and in the second, which begins when both batch sizes are finished.
        if kill.told == 20 or (sum(finished) == 3 and progress.step > 5):
            raise KeyboardInterrupt

    kill.told = 0
    study().run(tmp_path / "b", progress=False)
    options = {"rounds": 2, "trials": 4, "until": 0.0}
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            study().refine(tmp_path / "b", **options, progress=kill)
    again = study().refine(tmp_path / "b", **options, progress=False)
    pd.testing.assert_frame_equal(again.refined(), refined, check_exact=True)
    once_more = study().refine(tmp_path / "b", **options, progress=False)
    pd.testing.assert_frame_equal(once_more.refined(), refined, check_exact=True)
    number = int(refined.index.get_level_values("trial")[0])
    alone = study().run_trial(batch_size=8, trial=number, folder=tmp_path / "b", steps=3)
    rate = refined["learning_rate"].iloc[0]
    assert alone.hyperparameters["learning_rate"] == rate
    with pytest.raises(ValueError, match="number of a refined trial"):
        study().run_trial(batch_size=8, trial=number)
    third = study().refine(tmp_path / "b", **options | {"rounds": 3}, progress=False)
    assert third.refined().groupby("batch_size").size().tolist() == [12, 12]
    # A confirmation looks at them too.
    found = study().confirm(tmp_path / "a", settings=3, selection_seeds=1, seeds=1, progress=False)
    lead = pd.concat([after.trials, refined]).sort_values(["first_crossing", "trial"])
    wanted = set(lead.loc[[8]].head(3).index.get_level_values("trial"))
    assert set(found.settings.loc[found.settings["batch_size"] == 8, "trial"]) == wanted


@pytest.mark.slow
def test_an_optimum_beyond_the_edge_is_found(tmp_path):
    study(bs.LogUniform(0.003, 0.05)).run(tmp_path, progress=False)
    result = study(bs.LogUniform(0.003, 0.05)).refine(tmp_path, trials=6, progress=False)
    assert (result.refined()["origin"] == Origin.EXPAND).any()
    best = result.refined()["first_crossing"].groupby(level="batch_size").min()
    assert (best.to_numpy() < 0.7 * result.steps_to_target()["steps"].to_numpy()).all()


@pytest.mark.long
def test_batch_sizes_of_an_extension_get_the_rounds_that_others_had(tmp_path):
    some = study()
    few = dataclasses.replace(some, batch_sizes=[8])
    few.run(tmp_path, progress=False)
    few.refine(tmp_path, rounds=2, trials=3, until=0.0, progress=False)
    few.extend(tmp_path, batch_sizes=some.batch_sizes, progress=False)
    result = some.refine(tmp_path, rounds=2, trials=3, until=0.0, progress=False)
    assert result.refined().groupby("batch_size").size().tolist() == [6, 6]
