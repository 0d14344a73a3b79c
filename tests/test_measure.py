"""`Study.measure` on real training: what it writes, goes on with, and refuses."""

import dataclasses
import json
import math
import time

import numpy as np
import pandas as pd
import pytest

import batchscale as bs
from batchscale import columns, measurement, records
from batchscale.runner import candidates, measure
from batchscale.stopping import evaluation_grid
from batchscale.stored.measured import FIRST_MEASURED, MeasurePlan
from batchscale.theory import NoisyQuadratic

MODEL = NoisyQuadratic.power_law(30)
SIZES = [4, 16, 64, 256]


def study(**changes):
    given = {
        "workload": MODEL.workload(),
        "optimizer": "sgd",
        "space": bs.SearchSpace(learning_rate=bs.LogUniform(1e-2, 8.0)),
        "batch_sizes": SIZES,
        "goal": bs.Goal("validation/risk", 0.05),
        "trials": 16,
        "max_steps": 3000,
        "evaluation_spacing": 0.1,
    } | changes
    return bs.Study(**given)


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    folder = tmp_path_factory.mktemp("measured") / "study"
    return folder, study().measure(folder, 0.4, progress=False)


def plan_of(folder):
    with records.StudyFolder.open(folder / "measure", write=False) as stored:
        return MeasurePlan.from_json(stored.read_plan(), "plan.json")


def test_steps_are_medians_that_other_seeds_have(measured):
    """Against the plain NumPy simulation of the setting that is quoted."""
    _, found = measured
    assert found.ended in ("precision", "precision of the model", "search")
    for row in found.table.to_dict("records"):
        grid = evaluation_grid(3000, 0.1)
        risk = MODEL.simulate(
            grid, learning_rate=row["learning_rate"], batch_size=row["batch_size"], runs=200
        )
        past = risk < 0.05
        crossing = np.median(np.array([*grid, np.inf])[np.where(past.any(1), past.argmax(1), -1)])
        assert abs(math.log(row["steps"] / crossing)) < 4 * row["log_deviation"] + 0.1


def test_trials_are_in_tables_of_their_own_with_their_origin(measured):
    folder, found = measured
    assert set(found.trials["origin"]) == {"measure"}
    assert found.trials.index.get_level_values("trial").min() == FIRST_MEASURED
    result = bs.load(folder)
    assert result.trials.empty
    again = result.measurement()
    pd.testing.assert_frame_equal(again.table, found.table)
    pd.testing.assert_frame_equal(again.trials, found.trials)
    assert again.cost == found.cost
    sizes = found.trials.index.get_level_values("batch_size").to_numpy()
    assert found.cost["examples"] == (sizes * found.trials["steps_trained"]).sum()
    assert found.cost["trials"] == len(found.trials)


def test_predictions_stand_beside_what_came(measured):
    _, found = measured
    table = found.calibration
    assert (table["seeds"] >= 5).all()
    runs = found.trials.loc[(256,)]
    plan = plan_of(measured[0])
    check = [n for n, t in enumerate(plan.trials(256), FIRST_MEASURED) if t.purpose == 2]
    steps = runs["first_crossing"].to_numpy()[np.isin(runs.index.get_level_values(0), check)]
    assert abs(math.log(table["seen"].iloc[-1] / np.median(steps))) < 0.2
    assert found.audit().of("calibrated").verdict in ("pass", "warn")


def test_every_column_is_declared(measured):
    _, found = measured
    tables = (found.table, found.calibration, found.learning_rates(), found.audit().table())
    names = {name for table in tables for name in table} - {"learning_rate"}
    assert names <= set(columns.taken())


def test_the_figure_shows_intervals_and_what_checked_them(measured):
    _, found = measured
    ax = bs.plots.measurement(found)
    drawn = {line.get_marker(): np.asarray(line.get_ydata(), float) for line in ax.get_lines()}
    np.testing.assert_allclose(drawn["o"], found.table["steps"])
    np.testing.assert_allclose(drawn["s"], found.calibration["seen"])
    assert ax.get_xlabel() == "Batch size (examples)"
    perfect = found.table["steps"].iloc[0] * 4 / np.array(SIZES)
    of_steps = bs.plots.steps_to_target(found)
    for axes in (ax, of_steps):
        dashed = [line for line in axes.get_lines() if line.get_label() == "perfect scaling"]
        np.testing.assert_allclose(dashed[0].get_ydata(), perfect)
    np.testing.assert_allclose(of_steps.get_lines()[-1].get_ydata(), found.table["steps"])
    bars = [bar for drawn in of_steps.collections for bar in drawn.get_segments()]
    ends = [(low, high) for (_, low), (_, high) in bars]
    np.testing.assert_allclose(ends, found.table[["low", "high"]])


def test_fresh_seeds_that_missed_are_counted(measured):
    folder, found = measured
    plan, table = plan_of(folder), found.table.set_index("batch_size")
    for size in SIZES:
        searched = table.loc[size, "by"] == "search"
        of = [
            number
            for number, trial in enumerate(plan.trials(size), FIRST_MEASURED)
            if trial.purpose == (5 if searched else 2)
        ]
        runs = found.trials.loc[size].loc[of, "first_crossing"]
        assert 0 < table.loc[size, "checked_seeds"] <= len(runs)
        assert table.loc[size, "missed_seeds"] <= np.isinf(runs).sum()
        if table.loc[size, "checked_seeds"] == len(runs):
            assert table.loc[size, "missed_seeds"] == np.isinf(runs).sum()


@pytest.mark.slow
def test_minutes_are_of_everything_that_a_call_does(tmp_path, capsys):
    began = time.monotonic()
    found = study().measure(tmp_path / "study", 0.5, minutes=60)
    wall = time.monotonic() - began
    plan = plan_of(tmp_path / "study")
    assert plan.opening > 0
    assert plan.asking > 0
    assert found.cost["seconds"] == plan.opening + plan.training + plan.asking <= wall
    told = capsys.readouterr().err
    assert all(f"batch size {size} is compiled and timed" in told for size in (4, 64, 256))
    # What has nothing to do takes nothing; what goes on adds to it.
    again = study().measure(tmp_path / "study", 0.5, minutes=60, progress=False)
    assert again.cost == found.cost
    more = study().measure(tmp_path / "study", 0.25, minutes=60, progress=False)
    assert plan_of(tmp_path / "study").opening > plan.opening
    assert more.cost["seconds"] > found.cost["seconds"]
    # Little of it is left to rounds where the rest has taken it.
    with pytest.warns(UserWarning, match=r"precision: got 0\.02; .* to about 4\.7% at best"):
        few = study().measure(tmp_path / "few", 0.02, minutes=1e-3, progress=False)
    assert few.ended == "price"
    assert "with more minutes" in few.audit().of("precise").remedy
    for ended, words in (("trials", "evaluation_spacing"), ("precision", "with more minutes")):
        done = dataclasses.replace(few, ended=ended)
        assert words in done.audit().of("precise").remedy


@pytest.mark.parametrize("bad", [-1.0, math.nan, "3", 1e300])
def test_seconds_that_are_none_are_refused(measured, bad):
    plan = plan_of(measured[0]).to_json()
    older = {name: value for name, value in plan.items() if name not in ("opening", "asking")}
    assert MeasurePlan.from_json(older, "plan.json").opening == 0
    for name in ("opening", "asking"):
        with pytest.raises(ValueError, match=rf"plan\.json: not the plan of a measurement.*{name}"):
            MeasurePlan.from_json({**plan, name: bad}, "plan.json")


def test_analyses_are_of_the_medians(measured):
    _, found = measured
    fit = found.scaling()
    assert fit.form == "averaged"
    assert "minima" not in str(found)
    assert str(found.recommend()).startswith("Steps stand for time")
    rates = found.learning_rates()
    assert (rates["low"] < rates["centre"]).all()
    assert (rates["centre"] < rates["high"]).all()
    assert len(found.audit()) == 14


@pytest.mark.long
def test_a_run_that_was_killed_goes_on_with_the_same_trials(tmp_path, monkeypatch, measured):
    class Killed(BaseException):
        pass

    trained = candidates.run
    calls = 0

    def run(*arguments, **named):
        nonlocal calls
        calls += 1
        if calls % 5 == 0:
            raise Killed
        return trained(*arguments, **named)

    monkeypatch.setattr(measure.candidates, "run", run)
    # Timings decide what is asked where; those of the first run are taken.
    of_first = plan_of(measured[0]).seconds_per_step
    monkeypatch.setattr(measure, "seconds_per_step", lambda plan, engine, say: of_first)
    folder = tmp_path / "study"
    for _ in range(60):
        try:
            found = study().measure(folder, 0.4, progress=False)
            break
        except Killed:
            pass
    pd.testing.assert_frame_equal(found.trials, measured[1].trials)
    pd.testing.assert_frame_equal(found.table, measured[1].table)


@pytest.mark.long
def test_it_goes_on_to_a_finer_precision(tmp_path):
    folder = tmp_path / "study"
    first = study().measure(folder, 0.5, progress=False)
    again = study().measure(folder, 0.5, progress=False)
    assert len(again.trials) == len(first.trials)
    finer = study().measure(folder, 0.1, progress=False)
    assert len(finer.trials) > len(first.trials)
    common = finer.trials.loc[first.trials.index]
    pd.testing.assert_frame_equal(common, first.trials)


@pytest.mark.long
def test_a_search_in_the_same_folder_is_left_alone(tmp_path):
    folder = tmp_path / "study"
    one = study(stop=3.0)
    result = one.run(folder, progress=False)
    before = result.steps_to_target()
    one.measure(folder, 0.5, progress=False)
    pd.testing.assert_frame_equal(bs.load(folder).steps_to_target(), before)
    # And a study that was measured first can be searched afterwards.
    one.measure(tmp_path / "other", 0.5, progress=False)
    pd.testing.assert_frame_equal(
        one.run(tmp_path / "other", progress=False).steps_to_target(), before
    )


@pytest.mark.long
def test_two_hyperparameters_are_measured(tmp_path):
    two = study(
        optimizer="momentum",
        space=bs.SearchSpace(
            learning_rate=bs.LogUniform(1e-3, 4.0), momentum=bs.ReverseLogUniform(0.1, 0.95)
        ),
    )
    found = two.measure(tmp_path / "study", 0.4, progress=False)
    assert {"learning_rate", "momentum"} <= set(found.table)
    effective = found.table["learning_rate"] / (1 - found.table["momentum"])
    np.testing.assert_allclose(effective, found.table["effective_learning_rate"])


@pytest.mark.slow
def test_what_is_not_measured_is_said(tmp_path):
    study().measure(tmp_path / "study", 0.5, progress=False)
    study(stop=3.0, trials=4, batch_sizes=[4, 16]).run(tmp_path / "searched", progress=False)
    with pytest.raises(FileNotFoundError, match=r"Call study\.measure\(folder\)"):
        bs.load(tmp_path / "searched").measurement()
    hopeless = study(max_steps=3, goal=bs.Goal("validation/risk", 1e-9))
    with pytest.raises(ValueError, match="none of 16 trials reached validation/risk"):
        hopeless.measure(tmp_path / "hopeless", progress=False)


@pytest.mark.parametrize(
    ("changes", "arguments", "message"),
    [
        ({}, {"precision": 0}, "precision: got 0, wanted a share from 0.01 to 1"),
        ({}, {"minutes": 0}, "minutes: got 0"),
        ({}, {"examples": -1}, "examples: got -1"),
        ({"batch_sizes": [1, 2, 4]}, {}, "batch_sizes: got 3, wanted at least 4"),
        ({"space": bs.SearchSpace(learning_rate=0.1)}, {}, "searches nothing; wanted"),
    ],
)
def test_arguments_are_refused_before_anything_is_written(tmp_path, changes, arguments, message):
    with pytest.raises(ValueError, match=message):
        study(**changes).measure(tmp_path / "study", progress=False, **arguments)
    assert not (tmp_path / "study").exists()


@pytest.mark.slow
def test_a_plan_that_was_changed_is_refused(tmp_path):
    folder = tmp_path / "study"
    study().measure(folder, 0.5, progress=False)
    path = folder / "measure" / "plan.json"
    plan = json.loads(path.read_text())
    plan["rounds"][0]["asked"]["4"][0][0]["learning_rate"] = 0.123
    path.write_text(json.dumps(plan))
    with pytest.raises(records.DamagedError):
        bs.load(folder).measurement()
    told = bs.repair(folder)
    assert any("measure" in line for line in told)


def audited(found, **changes):
    given = {
        "goal": found.goal, "spaces": found._spaces, "precision": 0.4, "ended": "precision",
        **found._audited, **changes,
    }  # fmt: skip
    table = given.pop("table", found.table)
    fit = given.pop("fit", found.scaling())
    return bs.audit.measured(table, found.calibration, found.trials, fit, **given)


def test_the_audit_looks_at_what_a_measurement_is_of(measured):
    _, found = measured
    table, sizes = found.table, found.table["batch_size"]
    epochs = float((sizes * table["steps"]).median())
    for examples, verdict in ((epochs * 3.9, "pass"), (epochs * 4.1, "warn")):
        check = audited(found, train_examples=int(examples)).of("far")
        assert check.verdict == verdict
    assert audited(found, train_examples=None).of("far").verdict == "unknown"
    for spacing, verdict in ((0.2, "pass"), (0.3, "warn"), (None, "unknown")):
        assert audited(found, evaluation_spacing=spacing).of("resolution").verdict == verdict
    assert audited(found, batch_dependent=True).of("batch_dependent").verdict == "warn"
    assert audited(found, paces={}).of("schedule").verdict == "pass"
    assert audited(found, paces=None).of("schedule").verdict == "unknown"
    late = {size: bs.scaling.Pace(rises_until=10**6) for size in SIZES}
    assert audited(found, paces=late).of("schedule").verdict == "fail"
    for share, verdict in ((0.2, "warn"), (0.6, "pass")):
        decay = table.assign(learning_rate_decay_steps=table["steps"] / share)
        check = audited(found, paces={}, table=decay).of("schedule")
        assert check.verdict == verdict
    between = 2 ** np.arange(2, 9)  # its ends, at a fifth and at five times B_crit, are seen
    curve = pd.DataFrame(
        {"batch_size": between, "steps": 50 * (1 + 32 / between), "log_deviation": 0.05}
    )
    fit = bs.scaling.fit(curve, form="averaged")
    half = 0.5 * math.log(fit.b_crit_interval[1] / fit.b_crit_interval[0])
    for precision, verdict in ((half / 1.2, "warn"), (half / 1.05, "pass")):
        check = audited(found, precision=precision, fit=fit).of("within")
        assert check.verdict == verdict
        assert (f"a half width of {half:.0%}" in check.evidence) == (verdict == "warn")


def test_every_trial_is_drawn_and_every_batch_size_named(measured):
    _, found = measured
    ax = bs.plots.measured_trials(found)
    drawn = {}
    for line in ax.get_lines():
        drawn.setdefault(line.get_marker(), []).extend(np.asarray(line.get_ydata(), float))
    reached = found.trials["first_crossing"][np.isfinite(found.trials["first_crossing"])]
    assert set(reached) <= set(drawn["o"])
    np.testing.assert_allclose(sorted(drawn["*"])[-4:], sorted(found.table["steps"]))
    texts = {text.get_text() for text in ax.texts}
    assert {"batch size", "4", "16", "64", "256"} <= texts
    rates = bs.plots.learning_rates(found)
    assert rates.get_ylabel() == "Best effective learning rate"


def test_where_half_of_the_seeds_missed_no_steps_are_quoted(measured):
    _, found = measured
    answer = dataclasses.replace(
        found._answer,
        levels=dataclasses.replace(
            found._answer.levels, seen=np.where(np.arange(4) == 1, np.inf, 3.0)
        ),
        searched=np.zeros(4, bool),
    )
    definition = bs.load(measured[0]).definition
    trials = measurement.trials_of(plan_of(measured[0]), definition, found.trials)
    table = measurement._table(answer, definition, trials)
    assert np.isinf(table["steps"]).tolist() == [False, True, False, False]
    assert np.isinf(table["high"]).tolist() == [False, True, False, False]
    calibration = found.calibration.assign(seen=answer.levels.seen)
    missed = dataclasses.replace(found, table=table, calibration=calibration)
    ax = bs.plots.measurement(missed)  # a warning is an error here
    drawn = {line.get_marker(): np.asarray(line.get_ydata(), float) for line in ax.get_lines()}
    np.testing.assert_allclose(drawn["o"], table["steps"][np.isfinite(table["steps"])])
    words = str(bs.scaling.recommend(table[["batch_size", "steps", "log_deviation"]]))
    assert "Not reached in the steps that were trained: the goal at 16" in words
    precise, far = (
        audited(found, table=table, train_examples=8).of(key) for key in ("precise", "far")
    )
    assert precise.verdict == "warn"
    assert ", unbounded at batch size 16, where 40% was asked for" in precise.evidence
    assert "inf" not in precise.evidence + far.evidence
    reached = (table["steps"] * table["batch_size"])[np.isfinite(table["steps"])] / 8
    assert far.evidence.startswith(f"it takes {float(f'{reached.min():.2g}'):,.0f} to ")
    none = audited(found, table=table.assign(steps=np.inf, high=np.inf))
    assert none.of("precise").evidence.startswith("no interval is bounded")
    assert none.of("far").verdict == "unknown"


def test_what_the_precision_is_short_of_is_said_where_an_end_is_not_seen_too(measured):
    _, found = measured
    table = pd.DataFrame({"batch_size": SIZES, "steps": [255.0, 74.0, 25.0, 14.0]})
    fit = bs.scaling.fit(table)  # of 10 (1 + 100 / B), at 256 1.4 times the plateau
    low, high = fit.b_crit_interval
    half = 0.5 * math.log(high / low)
    check = audited(found, fit=fit, precision=half / 2).of("within")
    assert check.verdict == "warn"
    assert f"a half width of {half:.0%}, where {half / 2:.0%} was asked for; but " in check.evidence
    assert "the plateau is not seen" in check.evidence
    assert "study.with_batch_sizes([...]).measure(folder, extend=True)" in check.remedy
    assert "a half width" not in audited(found, fit=fit, precision=2 * half).of("within").evidence


@pytest.mark.slow
def test_batch_sizes_are_added_to_a_measurement_that_may_grow(tmp_path):
    few, folder = study(max_steps=dict.fromkeys(SIZES, 3000)), tmp_path / "study"
    few.measure(folder, 0.6, progress=False)
    more = few.with_batch_sizes([1024, 4, 1])  # what the audit says to do
    assert more.max_steps == {1: 12_000, **few.max_steps, 1024: 3000}
    assert few.measure(folder, 0.6, progress=False).folder == folder
    with pytest.raises(ValueError, match=r"smaller|batch size"):
        more.measure(folder, 0.6, progress=False)
    found = more.measure(folder, 0.6, progress=False, extend=True)
    assert found.table["batch_size"].tolist() == [1, *SIZES, 1024]
    assert (found.calibration["seeds"] >= 5).all()
    again = more.measure(folder, 0.6, progress=False)
    pd.testing.assert_frame_equal(again.table, found.table)
    for size in (1, 1024):
        row = found.table.set_index("batch_size").loc[size]
        grid = evaluation_grid(3000, 0.1)
        risk = MODEL.simulate(grid, learning_rate=row["learning_rate"], batch_size=size, runs=200)
        past = risk < 0.05
        crossing = np.median(np.array([*grid, np.inf])[np.where(past.any(1), past.argmax(1), -1)])
        assert abs(math.log(row["steps"] / crossing)) < 4 * row["log_deviation"] + 0.1


class _StruckError(Exception):
    """Ends a call where a kill would."""


def _struck(*_):
    raise _StruckError


TOLD = dict.fromkeys([1, *SIZES, 1024], 1e-5)


def _timed(plan, *_):
    return {size: TOLD[size] for size in plan.definition.batch_sizes}


@pytest.mark.long
def test_a_measurement_goes_on_as_where_it_began_whatever_devices_there_are(tmp_path, monkeypatch):
    """Rounds are filled up to full packs, whose width is that of the devices."""
    monkeypatch.setattr(measure, "seconds_per_step", _timed)
    tables = {}
    for width in (4, 16):
        monkeypatch.setattr(measure, "width", lambda *_, of=width: of)
        tables[width] = study().measure(tmp_path / f"{width}", 0.4, progress=False).trials
    assert len(tables[4]) != len(tables[16])
    train = measure._train

    def third(session, plan, place, *rest):
        return _struck() if place == 2 else train(session, plan, place, *rest)

    monkeypatch.setattr(measure, "width", lambda *_: 4)
    monkeypatch.setattr(measure, "_train", third)
    with pytest.raises(_StruckError):
        study().measure(tmp_path / "killed", 0.4, progress=False)
    monkeypatch.setattr(measure, "width", lambda *_: 16)
    monkeypatch.setattr(measure, "_train", train)
    found = study().measure(tmp_path / "killed", 0.4, progress=False)
    pd.testing.assert_frame_equal(found.trials, tables[4])
    plan = plan_of(tmp_path / "killed")
    assert plan.width == 4
    for wrong in (0, -3, True, 4.0, "4"):
        with pytest.raises(ValueError, match="width is"):
            MeasurePlan.from_json({**plan.to_json(), "width": wrong}, "plan.json")
    older = plan.to_json()
    del older["width"]
    assert MeasurePlan.from_json(older, "plan.json").width is None


@pytest.mark.slow
def test_a_measurement_whose_extension_was_killed_at_once_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(measure, "seconds_per_step", _timed)
    folder, more = tmp_path / "study", study(batch_sizes=[1, *SIZES, 1024])
    few = study().measure(folder, 0.5, progress=False)
    monkeypatch.setattr(measure, "seconds_per_step", _struck)
    with pytest.raises(_StruckError):
        more.measure(folder, 0.5, progress=False, extend=True)
    again = bs.load(folder).measurement()
    pd.testing.assert_frame_equal(again.table, few.table)
    assert again.audit().of("precise").verdict == few.audit().of("precise").verdict
    again.report(tmp_path / "page.html")
    monkeypatch.setattr(measure, "seconds_per_step", _timed)
    found = more.measure(folder, 0.5, progress=False, extend=True)
    assert found.table["batch_size"].tolist() == [1, *SIZES, 1024]


@pytest.mark.slow
def test_a_measurement_that_has_only_begun_says_so(tmp_path, monkeypatch):
    folder, train = tmp_path / "study", measure._train
    monkeypatch.setattr(measure, "_train", _struck)
    with pytest.raises(_StruckError):
        study().measure(folder, 0.4, progress=False)
    with pytest.raises(measurement.NotYetError, match=r"only begun: none of 0 trials so far"):
        bs.load(folder).measurement()
    monkeypatch.setattr(measure, "_train", train)
    assert len(study().measure(folder, 0.4, progress=False).trials)


@pytest.mark.filterwarnings("ignore:.*not searched")
@pytest.mark.parametrize("figure", ["hyperparameters", "sensitivity", "tuning_curve"])
def test_figures_of_a_search_say_what_draws_a_measurement(measured, figure):
    with pytest.raises(
        ValueError, match=rf"{figure}: there is no trial of a search .*measured_trials"
    ):
        getattr(bs.plots, figure)(bs.load(measured[0]))


def test_a_result_that_was_loaded_before_its_study_grew_reads_it_as_it_is_now(measured):
    whole = bs.load(measured[0])
    before = dataclasses.replace(
        whole.definition,
        max_steps=dict.fromkeys(whole.definition.batch_sizes, 40),
        evaluation_spacing=0.5,
    )
    held = dataclasses.replace(whole, definition=before, paces=None)
    pd.testing.assert_frame_equal(held.measurement().table, whole.measurement().table)
    assert str(held.measurement().scaling()) == str(whole.measurement().scaling())
