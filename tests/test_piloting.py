"""The pilot and the answer in one call: on a model whose truth is known, and on tables."""

import copy
import dataclasses
import json
import math
import pickle
import shutil
import types

import numpy as np
import pandas as pd
import pytest
from helpers import perceptron

import batchscale as bs
from batchscale import growing, measurement
from batchscale.piloting import asked as asking
from batchscale.piloting import deciding, pricing, running, scanning
from batchscale.piloting.effort import Effort, effort_of
from batchscale.runner import measure
from batchscale.stopping import evaluation_grid
from batchscale.theory import NoisyQuadratic

MODEL = NoisyQuadratic.power_law(30)


@pytest.fixture(scope="module")
def answered(tmp_path_factory):
    folder = tmp_path_factory.mktemp("answered") / "nq"
    return folder, answer(folder)


def answer(folder, **changes):
    given = {"minutes": 0.5, "precision": 0.4, "metric": "validation/risk", "progress": False}
    return bs.recommend(MODEL.workload(), "sgd", folder=folder, **(given | changes))


def test_steps_and_setting_of_an_answer_are_those_of_plain_numpy(answered):
    _, found = answered
    study, table = found.pilot.study, found.measurement.table
    row = table.set_index("batch_size").loc[found.batch_size]
    budget = study.definition().max_steps[found.batch_size]
    grid = evaluation_grid(budget, study.evaluation_spacing)
    risk = MODEL.simulate(
        grid, learning_rate=found.learning_rate, batch_size=found.batch_size, runs=200
    )
    past = risk < study.goal.value
    crossing = np.median(np.array([*grid, np.inf])[np.where(past.any(1), past.argmax(1), -1)])
    assert abs(math.log(row["steps"] / crossing)) < 4 * row["log_deviation"] + 0.1
    assert found.learning_rate == row["learning_rate"]


def test_the_goal_is_what_the_reruns_reach_well_before_their_end(answered):
    _, found = answered
    rerun, goal = found.pilot.rerun, found.pilot.study.goal
    past = rerun.loc[goal.reached(rerun["median"])]
    assert 0 < past["step"].iloc[0] <= 0.75 * rerun["step"].iloc[-1]
    assert (rerun["low"] <= rerun["median"]).all()
    assert (rerun["median"] <= rerun["high"]).all()


def test_the_sentence_has_the_numbers_of_the_tables(answered):
    _, found = answered
    words, fit = found.sentence(), found.scaling()
    assert words.startswith(f"To reach {found.goal} use batch size {found.batch_size:,}, ")
    assert f"learning rate {found.learning_rate:.3g}" in words
    if not fit.refused:
        assert f"{fit.b_crit:.3g}" in words
        knee = np.abs(np.log(found.measurement.table["batch_size"] / fit.b_crit)).argmin()
        assert found.batch_size == found.measurement.table["batch_size"].iloc[knee]
    assert "Audit: " in words


@pytest.mark.parametrize(("missed", "said"), [(0, False), (2, True)])
def test_the_sentence_has_the_seeds_that_missed(answered, missed, said):
    found = answered[1]
    here = found.measurement.table["batch_size"] == found.batch_size
    table = found.measurement.table.assign(
        checked_seeds=np.where(here, 9, 8), missed_seeds=np.where(here, missed, 3)
    )
    measured = dataclasses.replace(found.measurement, table=table)
    words = dataclasses.replace(found, measurement=measured).sentence()
    assert (". 2 of 9 fresh seeds missed it there. " in words) == said
    assert "3 of 8" not in words


def test_the_same_call_trains_nothing_and_says_the_same(answered, monkeypatch):
    folder, found = answered
    before = {path: path.read_bytes() for path in folder.rglob("*.parquet")}

    def refuse(*_):
        raise AssertionError("nothing is timed again")

    monkeypatch.setattr(running, "timed", refuse)
    again = answer(folder)
    assert again.sentence() == found.sentence()
    pd.testing.assert_frame_equal(again.measurement.table, found.measurement.table)
    after = {path: path.read_bytes() for path in folder.rglob("*.parquet")}
    assert after == before
    assert again.pilot.study.goal == found.pilot.study.goal


def test_another_study_is_refused_in_the_same_folder(answered):
    folder, found = answered
    pilot = found.pilot.study.workload
    given = {"folder": folder / "pilot", "metric": "validation/risk", "progress": False}
    with pytest.raises(ValueError, match="optimizer"):
        bs.pilot(pilot, "adam", **given)
    with pytest.raises(ValueError, match="seed"):
        bs.pilot(pilot, "sgd", **given, seed=9)
    with pytest.raises(ValueError, match=r"workload|data|model"):
        bs.pilot(NoisyQuadratic.power_law(31).workload(), "sgd", **given)


def test_more_minutes_go_on_with_the_same_study(answered):
    folder, found = answered
    again = answer(folder, minutes=1.0)
    assert again.pilot.study.batch_sizes == found.pilot.study.batch_sizes
    assert again.pilot.study.goal == found.pilot.study.goal
    assert again.measurement.cost["trials"] >= found.measurement.cost["trials"]


def test_a_file_that_is_none_of_a_pilot_is_told_with_its_path(tmp_path):
    bad: list = [[], {"version": 99}, {"version": 1}, {"version": 1, "seconds": float("nan")}]
    bad += [
        {"version": 1, "seconds": 1, "timed": timed} for timed in ([], None, [{"batch_size": 8}])
    ]
    bad += [{"version": 1, "seconds": 1, "effort": 3}, {"version": 1, "seconds": 1, "sizes": ["a"]}]
    for content in ("{", *map(json.dumps, bad)):
        (tmp_path / "pilot.json").write_text(content)
        with pytest.raises(ValueError, match=r"pilot\.json: not the file of a pilot"):
            bs.pilot(perceptron(), folder=tmp_path, progress=False)


def test_an_interruption_says_how_to_go_on_and_its_time_counts(tmp_path, monkeypatch, capsys):
    now = [0.0]
    times = {"batch_size": [8, 32, 64], "seconds_per_step": 1e-4, "seconds_per_evaluation": 1e-4}

    def timed(_):
        now[0] += 3.0
        return pd.DataFrame(times)

    def pressed(*_):
        now[0] += 40.0
        raise KeyboardInterrupt

    monkeypatch.setattr(running.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(running, "timed", timed)
    monkeypatch.setattr(running, "scan", pressed)
    for times_pressed in (1, 2):
        with pytest.raises(KeyboardInterrupt):
            bs.pilot(MODEL.workload(), "sgd", metric="validation/risk", folder=tmp_path)
        kept = json.loads((tmp_path / "pilot.json").read_text())
        assert kept["seconds"] == 3.0 + 40.0 * times_pressed
        assert f"goes on from what is in {tmp_path}." in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"workload": "mnist/fc"}, "workload: got 'mnist/fc'"),
        ({"minutes": 0}, "minutes: got 0"),
        ({"answer_minutes": -1}, "answer_minutes: got -1"),
        ({"mode": "least"}, "mode"),
        ({"metric": "other/error"}, "metric: got 'other/error', and the workload has the splits"),
        ({"optimizer": "sdg"}, "optimizer: got 'sdg'"),
        ({"space": bs.SearchSpace(learning_rate=0.1)}, "space: got learning_rate=0.1"),
        ({"schedule": "cosin"}, "schedule: got 'cosin'"),
        ({"seed": 0.5}, "seed: got 0.5"),
        ({"metric": "train/nosuch"}, "the workload measures"),
        ({"metric": 3}, "metric: got 3"),
        ({"space": [1]}, "space: got"),
        ({"goal": "train/error"}, "goal"),
        ({"goal": bs.Goal("train/loss", 1.0), "metric": "train/error"}, "Leave one of them out"),
    ],
)
def test_bad_input_is_told_before_anything_runs(tmp_path, changes, words):
    given = {"workload": perceptron(), "optimizer": "sgd", "folder": tmp_path / "new"} | changes
    given = {"minutes": 0.05, "progress": False} | given
    with pytest.raises((ValueError, TypeError), match=words):
        bs.pilot(**given)
    assert not (tmp_path / "new").exists()


def asked(**changes):
    given = {
        "workload": perceptron(), "optimizer": "sgd", "minutes": 1.0, "answer_minutes": 10.0,
        "metric": None, "mode": "min", "goal": None, "space": None, "batch_sizes": None,
        "schedule": "constant", "seed": 0, "progress": False, "devices": None, "evaluate": None,
        "max_steps": None, "evaluation_spacing": None,
    }  # fmt: skip
    return asking.checked(*(given | changes).values())


def effort(**changes):
    timed = pd.DataFrame(
        {
            "batch_size": [8, 32, 128],
            "seconds_per_step": [1e-3, 2e-3, 8e-3],
            "seconds_per_evaluation": [1e-3, 1e-3, 1e-3],
            "starting_seconds": [2.0, 2.0, 2.0],
        }
    )
    given = {"timed": timed, "workload": perceptron(), "spacing": 0.1, "share": 1.0}
    return Effort(**(given | {"scan": {}, "rerun": 1000} | changes))


def goal_of(given, rerun, most=math.inf):
    found = deciding.chosen(given, effort(), rerun, lambda steps: steps <= most)
    return found.goal, found.steps, found.words


def test_speeds_are_of_every_batch_size_and_of_the_goals_split():
    study = asked().study(perceptron(), batch_sizes=[4, 64], max_steps=1000)
    found = study.speeds()
    assert found["batch_size"].tolist() == [4, 64]
    assert (found[["seconds_per_step", "seconds_per_evaluation"]] > 0).all(axis=None)


def test_what_is_asked_by_default():
    found = asked()
    assert (found.metric, found.mode) == ("validation/error", "min")
    assert found.space["learning_rate"] == bs.LogUniform(1e-4, 10.0)
    found = asked(optimizer="adamw", schedule="warmup_cosine")
    assert found.space["learning_rate"] == bs.LogUniform(1e-5, 1.0)
    assert found.space["weight_decay"] == 0.01
    assert found.space["warmup_steps"] == bs.ShareOfBudget(0.02)
    assert asked(optimizer="momentum").space["momentum"] == 0.9
    given = asked(space=bs.SearchSpace(momentum=0.5), optimizer="momentum")
    assert given.space["momentum"] == 0.5


def test_seconds_between_and_beyond_what_was_timed():
    found = effort()
    np.testing.assert_allclose(found.seconds_per_step([8, 32, 128]), [1e-3, 2e-3, 8e-3])
    np.testing.assert_allclose(found.seconds_per_step([16]), [math.sqrt(2) * 1e-3])
    # A step of 32 takes twice as long as one of 8: 8 to the power of a quarter, below.
    np.testing.assert_allclose(found.seconds_per_step([1, 512]), [1e-3 / 8**0.25, 32e-3])


def test_the_rough_critical_batch_size_of_exact_steps():
    table = pd.DataFrame({"batch_size": [8, 32, 128]})
    for truth in (20.0, 60.0, 200.0):
        steps = table.assign(steps=50 * (1 + truth / table["batch_size"]))
        assert deciding._rough(steps) == pytest.approx(truth, rel=0.05)
    assert 8 <= deciding._rough(table.assign(steps=math.inf)) <= 128


@pytest.mark.parametrize("start", [1.0, 1e4])
def test_the_best_rate_gets_there_first_however_it_ends_and_begins(start):
    """Where trials end is noise: the slowest ends a little lower than the others."""
    steps = np.array([0, 1, 10, 100, 1000, 2000])
    rates, index = [0.01, 0.1, 1.0], []
    values = [[start, 0.9, 0.8, 0.5, 0.1001, 0.0999], [start, 0.8, 0.3, 0.1, 0.1, 0.1],
              [start, 0.9, 0.9, 0.9, 0.9, 0.9]]  # fmt: skip
    sizes = effort().sizes
    for size in sizes:
        index += [(size, trial, 0, step) for trial in range(3) for step in steps]
    names = ["batch_size", "trial", "replicate", "step"]
    flat = np.tile(np.concatenate(values), len(sizes))
    measured = pd.DataFrame(
        {"validation/error": flat}, index=pd.MultiIndex.from_tuples(index, names=names)
    )
    rows = pd.MultiIndex.from_product([sizes, range(3), [0]], names=names[:3])
    trials = pd.DataFrame({"learning_rate": rates * len(sizes), "status": "complete"}, index=rows)
    scan = types.SimpleNamespace(trials=trials, measurements=measured)
    given = effort(scan=dict.fromkeys(sizes, 2000))
    table = scanning.table_of(asked(), given, scan)
    assert table["best_learning_rate"].tolist() == [0.1] * 3
    assert (table["steps"] <= 100).all()
    reached = scanning.reaching(asked(), given, scan)
    assert reached(0.3) == dict.fromkeys(sizes, 10.0)
    assert reached(0.01) == {}
    assert reached(start) == {}  # before the first step


def test_a_goal_lies_above_the_noise_of_its_split():
    steps = np.arange(0, 1001, 10)
    error = 0.02 + 0.5 * np.exp(-steps / 100)
    rerun = pd.DataFrame({"step": steps, "median": error, "low": error, "high": error})
    goal, at, words = goal_of(asked(), rerun)
    noise = math.sqrt(error[-1] * (1 - error[-1]) / 70)  # the split has 70 examples
    assert goal.value >= error[-1] + noise
    assert error[steps == at][0] < goal.value <= error[steps == at - 10][0]
    assert goal.metric == "validation/error"
    assert f"the split's standard error is {noise:.2g}" in words


def test_a_goal_lies_above_the_spread_of_seeds():
    steps = np.arange(0, 1001, 10)
    loss = 1 + 2 * np.exp(-steps / 100)
    rerun = pd.DataFrame({"step": steps, "median": loss, "low": loss - 0.1, "high": loss + 0.133})
    given = asked(metric="validation/loss")
    goal, _, words = goal_of(given, rerun)
    assert goal.value > loss[-1] + 0.1
    assert "the spread of seeds is 0.1" in words


def falling(scale=100.0, end=1000, noise=0.0):
    steps = np.arange(0, end + 1, 10)
    loss = 1 + 2 * np.exp(-steps / scale)
    return pd.DataFrame({"step": steps, "median": loss, "low": loss - noise, "high": loss + noise})


def test_a_goal_is_as_hard_as_the_minutes_pay_for():
    given, rerun = asked(metric="validation/loss"), falling(scale=500)
    paid, at, words = goal_of(given, rerun, most=250)
    assert paid.value == pytest.approx(1 + 2 * math.exp(-250 / 500), rel=0.02)
    assert at <= 260
    assert "more minutes than there are" in words
    hard, at, words = goal_of(given, rerun)
    assert hard.value < paid.value
    assert 500 < at <= 600
    assert "minutes" not in words
    # However few the minutes are, no goal of a few steps.
    found = deciding.chosen(given, effort(), rerun, lambda steps: False, 120.0)
    assert 120 <= found.steps <= 130
    assert found.limit == 0.0


def test_reruns_are_made_longer_for_a_goal_that_is_paid_for_and_one_that_is_given(monkeypatch):
    monkeypatch.setattr(deciding, "longest", lambda size, examples: 20_000)
    table = effort().timed.assign(
        best_learning_rate=[0.1, 0.2, 0.4], diverges_from=math.inf, steps=[400, 150, 90]
    )
    rich = asked(metric="validation/loss", minutes=5.0, answer_minutes=60.0)

    def more(given, rerun, spent=0.0):
        found = deciding.decided(given, effort(), table, rerun)
        return deciding.longer(given, effort(), 1000, found, spent)

    still, flat = falling(scale=800), falling(scale=50)
    assert 1500 <= more(rich, still) <= 8000
    assert more(rich, flat) is None  # a harder goal would lie in the noise of the end
    assert more(rich, still, spent=7.5 * 60) is None  # the pilot's minutes are over
    poor = asked(metric="validation/loss", minutes=5.0, answer_minutes=0.1)
    assert more(poor, still) is None
    wanted = bs.Goal("validation/loss", 1.05)
    missed = asked(metric="validation/loss", goal=wanted, minutes=5.0, answer_minutes=0.1)
    assert more(missed, still) > 1000
    assert more(asked(goal=wanted, minutes=5.0), flat) is None  # it has been reached


def test_budgets_that_are_given_are_taken():
    table = effort().timed.assign(
        best_learning_rate=[0.1, 0.2, 0.4], diverges_from=math.inf, steps=[400, 150, 90]
    )
    given = asked(metric="validation/loss", max_steps=lambda size: 4096 // size)
    found = deciding.decided(given, effort(), table, falling())
    assert all(
        found.study.definition().max_steps[n] == 4096 // n for n in found.expected.batch_size
    )
    assert found.reasons["max_steps"] == "as they were given"
    with pytest.raises(ValueError, match=r"max_steps.*Give batch_sizes"):
        asked(max_steps={8: 100})
    with pytest.raises(ValueError, match="max_steps: has no entry for batch size 16"):
        asked(max_steps={8: 100}, batch_sizes=[8, 16])
    with pytest.raises(ValueError, match=r"max_steps.*batch size 8"):
        asked(max_steps=lambda size: 100 if size < 8 else 0)


def test_batch_sizes_are_about_the_critical_one_at_the_goal():
    """That of the scan is of the beginning of training, and too small for a harder goal."""
    sizes = effort().timed["batch_size"]
    table = effort().timed.assign(
        best_learning_rate=0.1, diverges_from=math.inf, steps=50 * (1 + 10 / sizes)
    )
    given, rerun = asked(metric="validation/loss"), falling(500)

    def reaching(value):  # as the reruns of 32, with a critical batch size of 60 and none at 128
        at = rerun["step"][np.argmax(rerun["median"] < value)]
        return {8: at * (1 + 60 / 8) / (1 + 60 / 32), 32: 1.0}

    alone = deciding.decided(given, effort(), table, rerun)
    found = deciding.decided(given, effort(), table, rerun, reaching=reaching)
    for one, critical in ((alone, 10), (found, 60)):
        steps = one.expected.set_index("batch_size")["steps"]
        ratio = (1 + critical / 4) / (1 + critical / 32)
        assert steps[4] / steps[32] == pytest.approx(ratio, rel=0.05)
    assert found.study.goal.value >= alone.study.goal.value  # small batches cost more
    missed = asked(metric="validation/loss", goal=bs.Goal("validation/loss", 0.5))
    guessed = deciding.decided(missed, effort(), table, rerun, reaching=lambda _: {8: 1e9})
    steps = guessed.expected.set_index("batch_size")["steps"]
    assert steps[4] / steps[32] == pytest.approx((1 + 10 / 4) / (1 + 10 / 32), rel=0.05)


@pytest.mark.slow
def test_a_goal_is_the_same_whatever_minutes_are_given_later(tmp_path):
    """It was decided by those of the first call."""
    given = {"metric": "validation/risk", "folder": tmp_path, "progress": False, "minutes": 0.05}
    found = bs.pilot(MODEL.workload(), "sgd", answer_minutes=0.02, **given)
    again = bs.pilot(MODEL.workload(), "sgd", answer_minutes=50.0, **given)
    assert again.study.goal == found.study.goal
    assert again.reasons == found.reasons
    pd.testing.assert_frame_equal(again.rerun, found.rerun)


@pytest.fixture
def only_rounds_count(monkeypatch):
    """Minutes of training alone: how long a busy machine compiles does not decide here."""
    monkeypatch.setattr(measure._Clock, "since", lambda self: 0.0)


@pytest.mark.slow
def test_budgets_that_were_guessed_are_made_longer_while_there_are_minutes(
    tmp_path, capsys, only_rounds_count
):
    """The pilot is stopped before it knows how far the goal is."""
    pilot = tmp_path / "pilot"
    goal = bs.Goal("validation/risk", 0.003)
    given = {"goal": goal, "batch_sizes": [16, 64, 256, 1024], "progress": False}
    bs.pilot(MODEL.workload(), "sgd", minutes=0.02, folder=pilot, **given)
    kept = json.loads((pilot / "pilot.json").read_text())
    del kept["digest"]
    kept["effort"]["rerun"] = 12
    kept["reruns"], kept["limit"] = [12], None
    (pilot / "pilot.json").write_text(json.dumps(kept))
    for folder in pilot.glob("rerun*"):
        shutil.rmtree(folder)
    call = {"folder": tmp_path, "minutes": 1.0, "precision": 0.5, **given, "progress": True}
    found = bs.recommend(MODEL.workload(), "sgd", **call)
    told = capsys.readouterr().err
    assert "is not reached in budgets that were guessed" in told
    assert (tmp_path / "measured-2").exists()
    assert found.goal == goal
    assert np.isfinite(found.measurement.table["steps"]).all()
    shorter = bs.load(tmp_path / "measured").definition.max_steps
    longer = found.pilot.study.definition().max_steps
    assert longer[64] in (4 * shorter[64], 16 * shorter[64])
    # The same call again says the same, and trains nothing.
    again = bs.recommend(MODEL.workload(), "sgd", **(call | {"progress": False}))
    pd.testing.assert_frame_equal(again.measurement.table, found.measurement.table)


@pytest.mark.slow
def test_a_goal_that_cannot_be_reached_is_told_in_words_of_the_call(tmp_path):
    with pytest.raises(ValueError, match=r"Give an easier goal, or max_steps, in another"):
        bs.recommend(
            MODEL.workload(), "sgd", folder=tmp_path, minutes=0.2, progress=False,
            goal=bs.Goal("validation/risk", 1e-9), batch_sizes=[16, 64, 256, 1024], max_steps=50,
        )  # fmt: skip


@pytest.mark.long
def test_batch_sizes_are_added_where_the_plateau_is_not_seen(
    tmp_path, monkeypatch, capsys, only_rounds_count
):
    """The rough critical batch size of the short runs may be far too small."""
    rough = deciding._rough
    monkeypatch.setattr(deciding, "_rough", lambda table: rough(table) / 24)
    monkeypatch.setattr(deciding, "_rough_at", lambda critical, *_: critical)
    call = {"folder": tmp_path / "nq", "minutes": 1.0, "precision": 0.4, "progress": True}
    found = answer(**call)
    told = capsys.readouterr().err
    assert "an end of the curve is not seen yet" in told
    sizes = found.measurement.table["batch_size"].tolist()
    kept = json.loads((tmp_path / "nq/pilot/pilot.json").read_text())["sizes"]
    assert set(kept) < set(sizes)
    assert max(sizes) > max(kept)
    budgets = found.pilot.study.definition().max_steps
    assert set(budgets) == set(sizes)
    expected = found.pilot.expected.set_index("batch_size")
    assert expected["max_steps"].to_dict() == budgets
    plateau = expected["steps"][max(kept)]
    assert (expected["steps"][[size for size in sizes if size > max(kept)]] == plateau).all()
    assert (expected["minutes"] > 0).all()
    again = answer(**(call | {"progress": False}))
    assert again.sentence() == found.sentence()
    pd.testing.assert_frame_equal(again.measurement.table, found.measurement.table)
    (tmp_path / "nq/answer.json").write_text("{}")
    with pytest.raises(ValueError, match=r"answer\.json: not the file of an answer"):
        answer(**call)


class _StruckError(Exception):
    """Ends a call where a kill would."""


@pytest.mark.parametrize("struck", [2, pytest.param(3, marks=pytest.mark.long)])
@pytest.mark.slow
def test_an_answer_that_was_killed_while_it_grew_goes_on_with_all_that_was_added(
    tmp_path, monkeypatch, struck
):
    call = {"minutes": 0.3, "precision": 0.6, "progress": False}
    asked, measured = [], growing.Call.measure

    def beyond(found, *_):
        return [2 * int(found.table["batch_size"].max())]

    def struck_at(self, study, *rest, **named):
        asked.append(study.resolved_batch_sizes())
        if len(asked) == struck:
            raise _StruckError
        return measured(self, study, *rest, **named)

    monkeypatch.setattr(growing, "beyond", beyond)
    monkeypatch.setattr(growing.Call, "measure", struck_at)
    with pytest.raises(_StruckError):
        answer(folder=tmp_path / "nq", **call)
    first = asked[0]
    kept = json.loads((tmp_path / "nq/answer.json").read_text())
    assert (kept["widened"], kept["settled"]) == (struck - 1, False)
    found = answer(folder=tmp_path / "nq", **call)
    wanted = [*first, 2 * first[-1], 4 * first[-1]]  # twice, and no more
    assert found.measurement.table["batch_size"].tolist() == wanted
    assert found.pilot.study.resolved_batch_sizes() == wanted
    assert found.pilot.expected["batch_size"].tolist() == wanted
    path = tmp_path / "nq/answer.json"
    kept = json.loads(path.read_text())
    assert (kept["widened"], kept["settled"]) == (2, True)
    assert answer(folder=tmp_path / "nq", **call).sentence() == found.sentence()
    for wrong in ({"widened": 3}, {"widened": "x"}, {"settled": 1}):
        path.write_text(json.dumps({**kept, **wrong}))
        with pytest.raises(ValueError, match=r"answer\.json: not the file of an answer"):
            answer(folder=tmp_path / "nq", **call)


def test_an_answer_is_not_put_into_the_folder_of_a_study(tmp_path):
    (tmp_path / "index.json").write_text("{}")
    with pytest.raises(ValueError, match="holds a study"):
        answer(folder=tmp_path)


def test_batch_sizes_beyond_are_those_that_are_missing_and_paid_for():
    table = pd.DataFrame({"batch_size": [4, 8, 16], "steps": [100.0, 60.0, 40.0]})
    refusals = bs.scaling.Refusal

    def more(kinds, minutes=1e6, unseen=""):
        fit = types.SimpleNamespace(refusals=kinds, unseen=lambda *_: unseen)
        found = types.SimpleNamespace(scaling=lambda: fit, table=table)
        speeds = pd.DataFrame({"batch_size": [8, 16], "seconds_per_step": [0.1, 0.2]})
        return growing.beyond(found, speeds, perceptron(), minutes)

    assert more((refusals.NO_PLATEAU,)) == [32, 64]  # of 100 examples
    assert more((refusals.NO_PERFECT_SCALING,)) == [1, 2]
    assert more((refusals.NEITHER_END,)) == [1, 2, 32, 64]
    assert more((), unseen="the plateau is not seen") == [32, 64]
    assert more((refusals.SCATTER,)) == more(()) == []
    # 35 runs of 40 steps of 0.4 seconds are 9.3 minutes, of twice as many.
    assert more((refusals.NO_PLATEAU,), minutes=19) == [32]
    assert more((refusals.NO_PLATEAU,), minutes=18) == []


def test_a_goal_lies_within_budgets_that_are_given(tmp_path):
    table = effort().timed.assign(
        best_learning_rate=[0.1, 0.2, 0.4], diverges_from=math.inf, steps=[400, 150, 90]
    )
    free = deciding.decided(asked(metric="validation/loss"), effort(), table, falling(500))
    budget = int(free.expected["steps"].max())
    within = asked(metric="validation/loss", max_steps=budget)
    found = deciding.decided(within, effort(), table, falling(500))
    assert found.study.goal.value > free.study.goal.value
    assert (found.expected["steps"] <= budget).all()
    with pytest.raises(ValueError, match=r"which max_steps does not allow\. Give larger budgets"):
        deciding.decided(
            asked(metric="validation/loss", max_steps=3), effort(), table, falling(500)
        )


def test_what_reaches_no_goal_can_be_sent_between_processes():
    told = measurement.NotReachedError("none of 3 trials", 7.5)
    again = pickle.loads(pickle.dumps(told))
    assert (str(again), again.seconds) == ("none of 3 trials", 7.5)
    assert str(copy.copy(told)) == "none of 3 trials"


@pytest.mark.parametrize(
    "bad",
    [
        {"limit": -5}, {"limit": True}, {"limit": float("nan")}, {"reruns": "12"}, {"reruns": [0]},
        {"reruns": [2.7]}, {"reruns": [1e30]}, {"sizes": []}, {"sizes": [-3]}, {"reruns": []},
    ],
)  # fmt: skip
def test_a_pilots_file_without_a_digest_is_looked_at(answered, tmp_path, bad):
    folder, _ = answered
    kept = json.loads((folder / "pilot/pilot.json").read_text())
    del kept["digest"]
    (tmp_path / "pilot.json").write_text(json.dumps(kept | bad))
    with pytest.raises(ValueError, match=r"pilot\.json: not the file of a pilot"):
        bs.pilot(MODEL.workload(), "sgd", metric="validation/risk", folder=tmp_path)


def test_another_goal_is_refused_in_the_folder_of_a_pilot(answered):
    folder, _ = answered
    with pytest.raises(ValueError, match=r"goal: one that it finds there, validation/risk < 0\.5"):
        bs.pilot(
            MODEL.workload(), "sgd", folder=folder / "pilot", progress=False,
            goal=bs.Goal("validation/risk", 0.5),
        )  # fmt: skip


@pytest.mark.slow
def test_other_batch_sizes_and_budgets_are_refused_in_a_folder_of_others(answered, tmp_path):
    folder, _ = answered
    others = {"batch_sizes": [8, 16, 32, 64]}, {"max_steps": 77}, {"evaluation_spacing": 0.03}
    for other in others:
        with pytest.raises(ValueError, match=rf"holds another pilot \({next(iter(other))}: "):
            answer(folder, **other)
    given = {"metric": "validation/risk", "folder": tmp_path, "progress": False, "minutes": 0.02}
    bs.pilot(MODEL.workload(), "sgd", batch_sizes=[8, 16, 32, 64], **given)
    bs.pilot(MODEL.workload(), "sgd", batch_sizes=[64, 32, 16, 8], **given)  # the same
    with pytest.raises(ValueError, match="those that it found here"):
        bs.pilot(MODEL.workload(), "sgd", **given)


@pytest.mark.parametrize("spacing", [0.01, 0.15])
@pytest.mark.slow
def test_a_spacing_of_evaluations_that_is_given_is_taken(tmp_path, spacing):
    found = bs.pilot(
        MODEL.workload(), "sgd", metric="validation/risk", folder=tmp_path, progress=False,
        minutes=0.02, evaluation_spacing=spacing,
    )  # fmt: skip
    assert found.study.evaluation_spacing == spacing
    with pytest.raises(ValueError, match=r"evaluation_spacing: got 2, wanted a share"):
        asked(evaluation_spacing=2)


def test_a_goal_keeps_away_from_where_training_ends():
    """What one batch size has just reached another may not."""
    steps = np.arange(0, 1001, 10)
    loss = 0.09 + np.exp(-steps / 60)
    rerun = pd.DataFrame({"step": steps, "median": loss, "low": loss, "high": loss})
    goal, _, _ = goal_of(asked(metric="validation/loss"), rerun)
    begun = loss[5]
    assert goal.value >= 0.09 + 0.04 * (begun - 0.09)
    # Of values that are reached again and again, a round one.
    flat = np.where(loss < 0.2, 0.123456789, loss)
    flat[-30:] = 0.09
    goal, _, _ = goal_of(asked(metric="validation/loss"), rerun.assign(median=flat))
    assert len(f"{goal.value:g}") <= 5


@pytest.mark.parametrize(
    ("named", "words"),
    [
        ({"executor": 4}, r"recommend: takes no executor.*found\.study\.measure"),
        ({"batchsizes": [4]}, r"recommend: got 'batchsizes'.*Did you mean 'batch_sizes'"),
        ({"answer_minutes": 4}, "recommend: got 'answer_minutes'"),
    ],
)
def test_what_no_pilot_takes_is_refused_in_the_name_of_the_call(named, words, tmp_path):
    with pytest.raises(TypeError, match=words):
        bs.recommend(perceptron(), "sgd", folder=tmp_path / "answer", **named)
    assert not any(tmp_path.iterdir())


def test_fewer_than_four_batch_sizes_are_refused_at_once(tmp_path):
    with pytest.raises(ValueError, match="batch_sizes: got 3, wanted at least 4"):
        bs.recommend(perceptron(), folder=tmp_path / "new", batch_sizes=[8, 32, 64])
    assert not (tmp_path / "new").exists()


def test_a_goal_of_more_is_better_lies_below_what_is_reached():
    steps = np.arange(0, 1001, 10)
    value = 0.9 - 0.8 * np.exp(-steps / 300)
    rerun = pd.DataFrame({"step": steps, "median": value, "low": value, "high": value})
    given = asked(metric="validation/accuracy", mode="max")
    goal, at, _ = goal_of(given, rerun)
    assert goal.mode == "max"
    assert goal.value <= value[steps == 600][0]
    assert 0 < at <= 620
    assert value[steps == at][0] > goal.value


def test_a_goal_that_is_given_is_taken():
    steps = np.arange(0, 1001, 10)
    error = 0.02 + 0.5 * np.exp(-steps / 100)
    rerun = pd.DataFrame({"step": steps, "median": error, "low": error, "high": error})
    wanted = bs.Goal("validation/error", 0.1)
    goal, at, _ = goal_of(asked(goal=wanted), rerun)
    assert goal == wanted
    assert at == steps[error < 0.1][0]
    hard = bs.Goal("validation/error", 0.01)
    _, at, words = goal_of(asked(goal=hard), rerun)
    assert at == 2000
    assert "a guess" in words


@pytest.mark.parametrize("start", [0.9, 4.2, 1e4, 1e6])
def test_round_numbers_are_no_harder_and_passed_no_earlier(start):
    """However large the metric is at first, as a squared error and a perplexity are."""
    least = np.array([start, 0.31, 0.1537, 0.1234567, 0.12])
    assert deciding._rounded(least, 3) == 0.13
    assert deciding._rounded(np.array([start, -0.61, -0.6437, -0.7]), 2) == -0.64
    assert deciding._rounded(np.array([0.5, 0.02, 0.0]), 1) == 0.02


def test_a_goal_can_be_passed_where_the_best_is_none_wrong():
    steps = np.array([0, 1, 2, 4, 8, 16, 32])
    error = np.array([0.9, 0.4, 0.086, 0.0, 0.0, 0.0, 0.0])
    rerun = pd.DataFrame({"step": steps, "median": error, "low": error, "high": error})
    goal, at, _ = goal_of(asked(), rerun)
    assert goal.value == 0.09  # 0 errors cannot be beaten
    assert at == 2
    for flat in (np.zeros(7), np.where(steps > 0, np.inf, 0.9), np.where(steps > 0, 0.0, 0.9)):
        with pytest.raises(ValueError, match="no goal lies between"):
            goal_of(asked(), rerun.assign(median=flat))


def test_what_is_trained_on_is_never_cut():
    data = perceptron().splits()["train"]
    alone = dataclasses.replace(perceptron(), data={"train": data})
    timed = effort().timed.assign(seconds_per_evaluation=10.0)
    given = asked(workload=alone, answer_minutes=5.0)
    assert given.metric == "train/error"
    found = effort_of(given, timed)
    assert found.share == 1.0
    assert found.workload.train_examples == alone.train_examples


def test_sizes_lie_about_the_rough_critical_one_and_cost_no_more_than_asked():
    rich, poor = asked(answer_minutes=1e9), asked(answer_minutes=1 / 60)
    sizes, _ = deciding._sizes(rich, effort(), 40.0, 300, 10_000)
    assert sizes == [1, 2, 4, 8, 16, 32, 64, 128, 256]
    cheap, _ = deciding._sizes(poor, effort(), 40.0, 300, 10_000)
    assert len(cheap) == 5
    assert set(cheap) < set(sizes)
    assert len(deciding._sizes(rich, effort(), 40.0, 300, 20)[0]) >= 4


def test_the_price_has_the_evaluations_of_other_splits():
    """In 100 steps of 8 examples; the splits have 100, 70 and 50 examples."""
    alone = asked(evaluate=bs.Evaluate(splits=[]))
    training, goal = 100 * 1e-3, len(evaluation_grid(100, 0.1)) * 1e-3
    assert pricing.price(alone, effort(), 8, 100) == pytest.approx(30 * 1.3 * (training + goal))
    # Of a perceptron this small, from the first step on: 0, 1, 2, 4, 8, 17, 33, 67, the crossing.
    assert pricing.other_examples(asked(), effort(), 8, 100) == 9 * (100 + 50)
    more = 9 * 150 / 70 * 1e-3
    found = pricing.price(asked(), effort(), 8, 100)
    assert found == pytest.approx(30 * 1.3 * (training + goal + more))


def test_a_pilot_measures_what_is_asked():
    wanted = {"validation": 600, "train": None}
    given = asked(workload=perceptron(validation=4000), evaluate=wanted, answer_minutes=5.0)
    assert given.evaluate.counts(given.workload.splits(), "validation") == {
        "validation": 600,
        "test": 50,
    }
    assert "(600 of validation)" in given.workload.name
    timed = effort().timed.assign(seconds_per_evaluation=10.0)
    assert effort_of(given, timed).workload is given.workload  # and is not cut further
    rerun = pd.DataFrame({"step": [0, 10, 100, 1000], "median": [0.6, 0.4, 0.1, 0.05]})
    rerun = rerun.assign(low=rerun["median"], high=rerun["median"])
    table = effort().timed.assign(
        best_learning_rate=[0.1, 0.2, 0.4], diverges_from=math.inf, steps=[400, 150, 90]
    )
    study = deciding.decided(given, effort(workload=given.workload), table, rerun).study
    assert study.definition().evaluate.splits == ("test", "validation")
    with pytest.raises(ValueError, match="no split 'valid'"):
        asked(evaluate={"valid": 3})


def test_a_large_split_is_cut_to_what_evaluations_may_cost():
    timed = effort().timed.assign(seconds_per_evaluation=10.0)
    given = asked(workload=perceptron(validation=4000), answer_minutes=5.0)
    found = effort_of(given, timed)
    assert found.spacing == 0.2
    count = len(found.workload.splits()["validation"]["label"])
    assert count == round(found.share * 4000) >= 512
    assert f"({count:,} of validation)" in found.workload.name
    whole = asked(
        workload=given.workload, goal=bs.Goal("validation/error", 0.1), answer_minutes=5.0
    )
    assert effort_of(whole, timed).workload is given.workload  # a goal that is given is of all
    own = given.workload.splits()["validation"]["input"]
    kept = found.workload.splits()["validation"]["input"]
    assert {tuple(row) for row in kept.tolist()} <= {tuple(row) for row in own.tolist()}


def test_the_study_of_a_pilot_can_be_edited():
    rerun = pd.DataFrame({"step": [0, 10, 100, 1000], "median": [0.6, 0.4, 0.1, 0.05]})
    rerun = rerun.assign(low=rerun["median"], high=rerun["median"])
    table = effort().timed.assign(
        best_learning_rate=[0.1, 0.2, 0.4], diverges_from=math.inf, steps=[400, 150, 90]
    )
    found = deciding.decided(asked(), effort(), table, rerun)
    study, expected, reasons = found.study, found.expected, found.reasons
    assert set(expected["batch_size"]) == set(study.resolved_batch_sizes())
    budget = dict(zip(expected["batch_size"], expected["max_steps"], strict=True))
    assert study.definition().max_steps == budget
    assert (expected["max_steps"] >= 5 * expected["steps"]).all()
    assert {"goal", "learning_rate", "batch_sizes", "max_steps", "evaluation"} == set(reasons)
    other = dataclasses.replace(study, goal=bs.Goal("validation/error", 0.2))
    assert other.goal.value == 0.2
    low, high = study.space["learning_rate"].low, study.space["learning_rate"].high
    assert low <= 0.01
    assert high >= 4.0


def test_seeds_that_are_infinite_at_the_first_step_have_a_median_and_extremes():
    """As a correlation is of a model whose outputs are all alike."""
    index = pd.MultiIndex.from_product(
        [[8], range(5), [0], [0, 4, 8]], names=["batch_size", "trial", "replicate", "step"]
    )
    values = np.tile([np.nan, 2.0, 1.0], 5) + np.repeat(np.arange(5) / 10, 3)
    values[12:] = np.nan, np.inf, 1.4
    result = types.SimpleNamespace(measurements=pd.DataFrame({"validation/loss": values}, index))
    asked = types.SimpleNamespace(metric="validation/loss", worse=lambda x: x, mode="min")
    found = scanning.medians(asked, result)
    assert found["median"].tolist() == [np.inf, 2.2, 1.2]
    assert found["low"].tolist() == [np.inf, 2.0, 1.0]
    assert found["high"].tolist() == [np.inf, np.inf, 1.4]
