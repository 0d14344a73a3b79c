"""Studies from end to end on a small workload: rules, resumption, extension, errors."""

import dataclasses
import functools
import itertools
import os
import re
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import optax
import pandas as pd
import pytest
from helpers import GOAL, assert_same_tables, diverging, study

import batchscale as bs
from batchscale import metrics
from batchscale.engine.engine import Engine


@pytest.fixture(scope="module")
def first(square, tmp_path_factory):
    """A study stopped at the first crossing."""
    return study(square).run(tmp_path_factory.mktemp("first"), progress=False)


@pytest.fixture(scope="module")
def budget(square, tmp_path_factory):
    """The same trials, all trained for the whole budget."""
    return study(square, stop="budget").run(tmp_path_factory.mktemp("budget"), progress=False)


def test_a_result_has_a_row_a_batch_size_and_every_trial_its_status(first):
    table = first.steps_to_target()
    assert table["batch_size"].tolist() == [4, 32, 100]
    assert np.isfinite(table["steps"]).all()
    assert (first.trials["status"] == "complete").all()
    assert len(first.trials) == 18
    assert set(first.trials["stop_reason"]) <= {"first crossing", "budget"}


def test_stopping_at_the_first_crossing_gives_the_answer_of_the_whole_budget(first, budget):
    columns = ["batch_size", "steps", "previous_evaluation", "trial", "learning_rate"]
    pd.testing.assert_frame_equal(
        first.steps_to_target()[columns], budget.steps_to_target()[columns], check_exact=True
    )
    # ... and every measurement that it has is one of the longer run's, bit for bit.
    column = "validation/error"
    longer = budget.measurements[column].reindex(first.measurements.index)
    pd.testing.assert_series_equal(first.measurements[column], longer)
    assert len(first.measurements) < len(budget.measurements)


@pytest.mark.parametrize("stop", [2.5, "all"])
def test_other_stop_rules_stop_where_they_say(square, budget, tmp_path, stop):
    result = study(square, stop=stop).run(tmp_path, progress=False)
    trials = result.trials
    crossed = metrics.first_crossings(budget.measurements, GOAL)["first_crossing"]
    steps = result.steps_to_target().set_index("batch_size")["steps"]
    pd.testing.assert_series_equal(steps, budget.steps_to_target().set_index("batch_size")["steps"])
    for (batch_size, trial, replicate), row in trials.iterrows():
        if stop == "all":
            expected = min(300, crossed[batch_size, trial, replicate])
            assert row["steps_trained"] == expected
        else:
            wanted = 2.5 * steps[batch_size]
            assert min(300, wanted) <= row["steps_trained"] <= min(300, 1.06 * wanted + 1)
    pd.testing.assert_series_equal(
        trials["first_crossing"], crossed.where(crossed <= trials["steps_trained"], np.inf)
    )


def test_the_grid_is_the_same_for_every_trial_and_ends_with_the_budget(budget):
    steps = budget.measurements.index.get_level_values("step")
    for _, group in budget.measurements.groupby(["batch_size", "trial"]):
        grid = group.index.get_level_values("step").tolist()
        assert grid[:4] == [0, 1, 2, 3]
        assert grid[-1] == 300
        assert all(b == max(a + 1, -(-21 * a // 20)) for a, b in itertools.pairwise(grid[1:-1]))
    assert steps.max() == 300


def test_other_splits_are_measured_now_and_then_and_at_the_crossing(first):
    for batch_size, steps, trial in first.steps_to_target()[
        ["batch_size", "steps", "trial"]
    ].itertuples(index=False):
        row = first.measurements.loc[batch_size, trial, 0, int(steps)]
        assert row[["test/error", "train/error", "validation/loss"]].notna().all()
    share = first.measurements["test/error"].notna().mean()
    assert 0.05 < share < 0.6


def test_a_loaded_result_is_the_one_that_was_returned(first):
    loaded = bs.load(first.folder)
    assert_same_tables(first, loaded)
    pd.testing.assert_frame_equal(
        first.steps_to_target(), loaded.steps_to_target(), check_exact=True
    )
    pd.testing.assert_frame_equal(first.optima(), loaded.optima(), check_exact=True)
    assert (loaded.goal, loaded.train_examples, loaded.name) == (GOAL, 100, "square, sgd")
    assert loaded.space == bs.SearchSpace(learning_rate=bs.LogUniform(1e-2, 3))


def test_running_a_finished_study_again_trains_nothing(square, first):
    told = []
    again = study(square).run(first.folder, progress=told.append)
    assert all(progress.finished for progress in told)
    assert_same_tables(first, again)


@pytest.mark.slow
def test_extending_gives_the_tables_of_a_run_that_asked_for_it_at_once(square, tmp_path):
    for changes in ({"stop": 2.0, "trials": 9, "batch_sizes": [4, 8]}, {"max_steps": 800}):
        asked = {"stop": "budget"} if "max_steps" in changes else {}
        folder = tmp_path / next(iter(changes))
        some = study(square, batch_sizes=[4], **{"max_steps": 80, **asked})
        some.run(folder, progress=False)
        extended = some.extend(folder, progress=False, **changes)
        at_once = dataclasses.replace(some, **changes).run(f"{folder}-at-once", progress=False)
        if "max_steps" in changes:  # the last step of the first budget was evaluated as well
            drop = [row for row in extended.measurements.index if row[3] == 80]
            assert len(drop) == 6
            kept = extended.measurements.drop(drop)["validation/error"]
            expected = at_once.measurements["validation/error"].drop(drop, errors="ignore")
            pd.testing.assert_series_equal(kept, expected)
        else:
            assert_same_tables(extended, at_once)


def test_a_single_trial_runs_again_bit_for_bit(square, budget):
    run = study(square).run_trial(batch_size=32, trial=4, steps=300)
    assert "Array" not in repr(run)
    assert "array(" not in repr(run)
    expected = budget.measurements.loc[[32]].query("trial == 4")["validation/loss"]
    pd.testing.assert_series_equal(run.curve["validation/loss"], expected)
    assert run.params["w1"].shape == (2, 16)
    assert run.hyperparameters["learning_rate"] == budget.trials["learning_rate"][32, 4, 0]
    fresh = study(square).run_trial(batch_size=32, trial=4, replicate=1, steps=20)
    assert not np.array_equal(fresh.params["w1"], run.params["w1"])


@pytest.mark.parametrize("stop", ["first", "budget"])
def test_diverged_trials_are_infeasible_and_replaced(square, tmp_path, stop):
    result = diverging(square, stop=stop).run(tmp_path, progress=False)
    status = result.trials["status"]
    assert (status == "complete").sum() == 6
    assert (status == "infeasible").sum() > 2
    # The first six that survive, and none after the last of them.
    assert status.iloc[-1] == "complete"
    assert set(result.trials["origin"].iloc[:6]) == {"plan"}
    assert set(result.trials["origin"].iloc[6:]) == {"topup"}
    infeasible = result.trials[status == "infeasible"]
    assert (infeasible["stop_reason"] == "diverged").all()
    last = result.measurements.groupby(["batch_size", "trial", "replicate"]).apply(
        lambda group: group.index.get_level_values("step").max()
    )
    for trial, steps in infeasible["steps_trained"].items():
        assert last.get(trial, -1) < steps


def test_too_many_divergences_leave_fewer_trials_and_no_loop(square, tmp_path):
    space = bs.SearchSpace(learning_rate=bs.LogUniform(1e30, 1e38))
    some = study(square, space=space, batch_sizes=[16], max_infeasible=4)
    with pytest.warns(UserWarning, match="all of the 10 trials diverged"):
        result = some.run(tmp_path, progress=False)
    assert (result.trials["status"] == "infeasible").all()
    assert len(result.trials) == 10


def test_the_members_of_the_runner_are_those_of_the_analysis(square, tmp_path):
    some = diverging(square, stop=3.0, goal=bs.Goal("validation/error", 0.3))
    result = some.run(tmp_path, progress=False)
    members = metrics.members(result.trials, 6)
    steps = result.steps_to_target()["steps"].item()
    past = result.measurements.loc[:, "validation/error"] < 0.3
    by_hand = [
        step
        for (batch_size, trial, replicate, step), reached in past.items()
        if reached
        and members.loc[(batch_size, trial, replicate), "first_step"] <= step
        and step < members.loc[(batch_size, trial, replicate), "end_step"]
    ]
    assert steps == min(by_hand)


def test_a_miss_is_infinite_and_said(square, tmp_path):
    some = study(square, goal=bs.Goal("validation/error", 0.01), batch_sizes=[4], max_steps=30)
    message = "no trial reached validation/error < 0.01 at batch size 4; the best value there was"
    with pytest.warns(UserWarning, match=re.escape(message)):
        result = some.run(tmp_path, progress=False)
    row = result.steps_to_target().iloc[0]
    assert row["steps"] == np.inf
    assert pd.isna(row["trial"])
    assert (result.trials["stop_reason"] == "budget").all()


def test_a_goal_that_holds_from_the_start_is_said(square, tmp_path):
    some = study(square, goal=bs.Goal("validation/error", 1.5), batch_sizes=[4], max_steps=5)
    with pytest.warns(UserWarning, match="held before the first step at batch size 4"):
        some.run(tmp_path, progress=False)


def test_a_batch_size_at_which_all_trials_diverged_is_said(square, tmp_path):
    space = bs.SearchSpace(learning_rate=1e30)
    some = study(square, space=space, batch_sizes=[4], trials=2, max_infeasible=3, max_steps=20)
    with pytest.warns(UserWarning, match="all of the 5 trials diverged at batch size 4"):
        some.run(tmp_path, progress=False)


def test_an_optimizer_of_ones_own_that_reads_what_is_not_there_is_refused(square):
    message = "reads the hyperparameter 'decay', and the space has learning_rate."
    with pytest.raises(ValueError, match=re.escape(message)):
        study(square, optimizer=lambda h: optax.adamw(h["learning_rate"], weight_decay=h["decay"]))
    with pytest.raises(ValueError, match="wanted a function of a mapping of hyperparameters"):
        study(square, optimizer=lambda h: h["learning_rate"])


def test_a_harder_goal_is_refused_where_curves_were_cut_and_an_easier_one_is_read_off(
    first, budget
):
    with pytest.raises(ValueError, match=re.escape("extend(")):
        first.steps_to_target(bs.Goal("validation/error", 0.02))
    easy = bs.Goal("validation/error", 0.3)
    pd.testing.assert_frame_equal(
        first.steps_to_target(easy), budget.steps_to_target(easy), check_exact=True
    )


@pytest.mark.slow
def test_a_run_of_which_only_the_plan_was_written_goes_on(square, first, tmp_path):
    class StopError(Exception):
        pass

    def stop(progress):
        raise StopError

    with pytest.raises(StopError):
        study(square).run(tmp_path, progress=stop)
    assert_same_tables(study(square).run(tmp_path, progress=False), first)


@pytest.mark.parametrize(
    "evaluations", [3, *(pytest.param(n, marks=pytest.mark.long) for n in (40, 100))]
)
def test_an_interrupted_run_goes_on_where_it_was(square, budget, tmp_path, evaluations):
    told = []

    def interrupt(progress):
        told.append(progress)
        if len(told) == evaluations:
            raise KeyboardInterrupt

    some = study(square, stop="budget")
    with pytest.raises(KeyboardInterrupt):
        some.run(tmp_path, progress=interrupt)
    partial = bs.load(tmp_path)
    assert "incomplete" in set(partial.trials["status"])
    with pytest.warns(UserWarning, match="not finished, and left out"):
        done = partial.steps_to_target()
    expected = budget.steps_to_target()
    pd.testing.assert_frame_equal(
        done, expected.iloc[: len(done)], check_dtype=False, check_exact=True
    )
    more = []
    assert_same_tables(some.run(tmp_path, progress=more.append), budget)
    evaluated = [p for p in told + more if not p.finished]
    total = len(budget.measurements) // 6
    assert len(evaluated) <= total + 1  # nothing was evaluated twice


def test_an_interrupted_run_says_how_it_goes_on(square, tmp_path, monkeypatch, capsys):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(Engine, "measure", interrupted)
    with pytest.raises(KeyboardInterrupt):
        study(square).run(tmp_path, progress=True)
    told = f"Interrupted. The same call goes on from what is in {tmp_path}."
    assert told in capsys.readouterr().err


@pytest.mark.parametrize(
    "stop", ["first", *(pytest.param(x, marks=pytest.mark.long) for x in ("all", "budget"))]
)
@pytest.mark.slow
def test_an_interruption_inside_an_evaluation_loses_no_evaluation(
    square, tmp_path, monkeypatch, stop
):
    some = study(square, batch_sizes=[8], stop=stop, max_steps=60)
    whole = some.run(tmp_path / "whole", progress=False)
    measure, calls = Engine.measure, []

    def interrupted(self, *arguments, **options):
        calls.append(arguments)
        found = measure(self, *arguments, **options)
        if len(calls) % 7 == 0:
            raise KeyboardInterrupt
        return found

    monkeypatch.setattr(Engine, "measure", interrupted)
    for _ in range(20):
        try:
            resumed = some.run(tmp_path / "interrupted", progress=False)
        except KeyboardInterrupt:
            continue
        break
    assert len(calls) > 7
    assert_same_tables(resumed, whole)


def test_extending_an_interrupted_run_by_a_longer_rule_measures_everything(square, tmp_path):
    some = study(square, batch_sizes=[8], stop="all", max_steps=80)
    told = []

    def interrupt(progress):
        told.append(progress)
        if len(told) == 25:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        some.run(tmp_path / "some", progress=interrupt)
    extended = some.extend(tmp_path / "some", stop="budget", progress=False)
    whole = dataclasses.replace(some, stop="budget").run(tmp_path / "whole", progress=False)
    column = "validation/error"  # other splits are also measured where the first run ended
    pd.testing.assert_series_equal(extended.measurements[column], whole.measurements[column])
    pd.testing.assert_frame_equal(extended.trials, whole.trials, check_exact=True)


def test_extending_by_trials_keeps_a_longer_stop_rule(square, tmp_path):
    some = study(square, batch_sizes=[8], max_steps=40)
    some.run(tmp_path, progress=False)
    some.extend(tmp_path, stop="budget", progress=False)
    result = some.extend(tmp_path, trials=8, progress=False)
    assert result.definition.stop == "budget"
    assert (result.trials["steps_trained"] == 40).all()
    assert len(result.trials) == 8


SCRIPT = """
    import sys
    sys.path.insert(0, {tests!r})
    from helpers import diverging, perceptron
    from batchscale.runner import batch_size
    batch_size.PAUSES = batch_size.Pauses(seconds=0.0, times=0.0)
    some = diverging(perceptron(), stop="budget", max_steps=1_000)
    def report(progress):
        print(progress.step, flush=True)
    some.run(sys.argv[1], progress=report)
    print("done", flush=True)
"""


def test_a_killed_study_resumes_and_ends_with_the_same_tables(square, tmp_path):
    script = textwrap.dedent(SCRIPT).format(tests=str(Path(__file__).parent))
    command = [sys.executable, "-c", script]
    diverging(square, stop="budget", max_steps=1_000).run(tmp_path / "whole", progress=False)
    with subprocess.Popen(
        [*command, tmp_path / "killed"], stdout=subprocess.PIPE, text=True
    ) as process:
        steps = (int(line) for line in process.stdout)
        next(step for step in steps if step > 100)
        os.kill(process.pid, signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert (bs.load(tmp_path / "killed").trials["status"] == "incomplete").any()
    resumed = subprocess.run(
        [*command, tmp_path / "killed"], stdout=subprocess.PIPE, text=True, check=True
    )
    steps = [int(line) for line in resumed.stdout.splitlines() if line != "done"]
    assert steps[0] > 50  # it did not begin anew
    assert_same_tables(bs.load(tmp_path / "killed"), bs.load(tmp_path / "whole"))


def test_a_folder_refuses_another_study_by_name(square, first):
    for changes, message in [
        ({"seed": 1}, "holds another study (seed: 0 there, 1 here). Give this one a folder"),
        ({"optimizer": "adam"}, "holds another study (optimizer: sgd there, adam here"),
        ({"trials": 7}, "holds a smaller study (trials: 6 there, 7 here). Call study.extend("),
        (
            {"seed": 1, "trials": 7},
            "(seed: 0 there, 1 here). Give this one a folder of its own. It is smaller, too, which "
            "study.extend(folder) mends (trials: 6 there, 7 here).",
        ),
        ({"stop": 3.0}, "holds a smaller study (stop: 'first' there, 3.0 here)"),
    ]:
        with pytest.raises(ValueError, match=re.escape(message)):
            study(square, **changes).run(first.folder, progress=False)


def test_changed_data_or_a_changed_model_is_noticed(square, first):
    splits = {**square.splits(), "validation": square.splits()["test"]}
    with pytest.raises(ValueError, match=re.escape("(the data changed)")):
        study(dataclasses.replace(square, data=splits)).run(first.folder, progress=False)

    def loss(*arguments):
        (total, count), state = square.loss(*arguments)
        return (2 * total, count), state

    with pytest.raises(ValueError, match=re.escape("the model, its loss, its metrics")):
        study(dataclasses.replace(square, loss=loss)).run(first.folder, progress=False)


def test_a_schedule_of_ones_own_that_changed_is_noticed(square, tmp_path):
    def schedule(step, hyperparameters, power=0.5):
        return hyperparameters["learning_rate"] / (1 + jnp.float32(step)) ** power

    some = study(square, schedule=schedule, batch_sizes=[16], goal=bs.Goal("validation/error", 0.3))
    some.run(tmp_path, progress=False)

    @functools.wraps(schedule)
    def steeper(step, hyperparameters):
        return schedule(step, hyperparameters, power=1.0)

    with pytest.raises(ValueError, match=re.escape("the model, its loss, its metrics")):
        dataclasses.replace(some, schedule=steeper).run(tmp_path, progress=False)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"batch_sizes": [4, 128]},
            "batch_sizes: 128 is larger than the 100 training examples of 'square'. Batches are "
            'drawn without replacement; use at most 100 ("full").',
        ),
        ({"batch_sizes": [0]}, "batch_sizes: got 0, wanted an integer, 1 or more, or 'full'."),
        ({"batch_sizes": [4, 4]}, "batch_sizes: 4 is given twice; wanted each once."),
        ({"batch_sizes": []}, "batch_sizes: got none, wanted at least one."),
        ({"trials": 0}, "trials: got 0, wanted an integer, 1 or more."),
        ({"seed": -1}, "seed: got -1, wanted an integer, 0 to 4,294,967,295."),
        (
            {"max_steps": 0},
            "max_steps at batch size 4: got 0, wanted an integer, 1 to 2,147,483,647.",
        ),
        ({"max_steps": {4: 10}}, "max_steps: has no entry for batch size 32; wanted one for each."),
        (
            {"max_epochs": 3},
            "max_steps, max_epochs: got 300 and 3, wanted one of them: the budget of a trial in "
            "steps, or in epochs.",
        ),
        ({"stop": "never"}, "stop: got 'never', wanted 'first', 'all', 'budget', or a factor"),
        ({"stop": 0.5}, "stop: got 0.5, wanted 'first', 'all', 'budget', or a factor of at least"),
        ({"evaluation_spacing": 0}, "evaluation_spacing: got 0, wanted a share of the steps"),
        ({"optimizer": "sdg"}, "optimizer: got 'sdg', wanted one of sgd, momentum, nesterov"),
        (
            {"optimizer": "momentum"},
            "space: optimizer 'momentum' needs 'momentum', and the space has learning_rate. "
            "Add momentum=... to the SearchSpace; a plain number is a fixed value.",
        ),
        (
            {"space": bs.SearchSpace(learning_rate=0.1, momentun=0.9)},
            "space: nothing reads 'momentun'; optimizer 'sgd', schedule 'constant' and workload "
            "'square' read learning_rate.",
        ),
    ],
)
def test_bad_input_is_refused_when_the_study_is_written(square, changes, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        study(square, **changes)


def test_an_unknown_metric_is_refused_before_anything_runs(square, tmp_path):
    some = study(square, goal=bs.Goal("validation/recall", 0.9, "max"))
    message = (
        "goal: workload 'square' has no metric 'validation/recall'; wanted one of train/accuracy"
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        some.run(tmp_path / "study", progress=False)
    assert not (tmp_path / "study/plan.json").exists()


def test_extending_something_else_is_refused(square, first):
    with pytest.raises(TypeError, match="unexpected keyword argument 'seed'"):
        study(square).extend(first.folder, seed=3)


def test_the_estimate_counts_every_example_of_every_budget(square):
    table = study(square).estimate().set_index("batch_size")
    assert table["examples"].to_dict() == {4: 7200, 32: 57_600, 100: 180_000}
    # Forward and backward of 2-16-3: two products each way for every weight, three where needed.
    weights = 2 * 16 + 16 * 3
    per_example = (table["flops"] / table["examples"]).unique().item()
    assert 4 * weights < per_example < 12 * weights


def test_progress_tells_every_evaluation(square, tmp_path):
    told = []
    result = study(square, batch_sizes=[32]).run(tmp_path, progress=told.append)
    steps = result.steps_to_target()["steps"].item()
    assert [p.step for p in told][-2:] == [steps, steps]
    assert told[-1].finished
    assert told[-1].steps == steps
    assert told[-1].best < GOAL.value


def test_the_progress_bar_shows_a_line_a_batch_size(square, first, capsys):
    study(square).run(first.folder, progress=True)
    shown = capsys.readouterr().err
    assert "3 batch sizes, 6 trials each, on 2 x cpu" in shown
    assert (
        len(re.findall(r"batch size .* steps to validation/error < 0\.15 \(6 trials", shown)) == 3
    )


def test_nothing_before_run_starts_a_backend():
    script = """
        import batchscale as bs
        import jax
        jax.config.update("jax_platforms", "none_of_this_name")  # which no backend starts on
        bs.Study(
            workload=bs.workloads.get("mnist/simple_cnn_base"), optimizer="nesterov",
            space=bs.SearchSpace(learning_rate=bs.LogUniform(1e-3, 1), momentum=0.9),
            batch_sizes=[1, "full"], goal=bs.Goal("validation/error", 0.01), trials=4,
            max_epochs=3,
        )
        import jax.numpy as jnp, numpy as np, optax
        from batchscale import checks, optimizers
        x = np.ones((4, 2), np.float32)
        own = bs.Study(
            workload=bs.Workload.from_functions(
                lambda key: {"w": 0 * x[0]}, lambda p, b: b["input"] @ p["w"],
                data={"train": (x, x[:, 0]), "validation": (x, x[:, 0])},
            ),
            optimizer=lambda h: optax.adam(h["learning_rate"], b1=h["b1"]),
            schedule=lambda step, h: h["learning_rate"] / (1.0 + jnp.float32(step)),
            space=bs.SearchSpace(learning_rate=0.1, b1=0.9), batch_sizes=[1],
            goal=bs.Goal("validation/loss", 0.01), trials=4, max_steps=3,
        )
        checks.metric(own.goal, own.workload, own.space.names)
        checks.updates(
            own.workload, optimizers.get(own.optimizer), own.schedule, own.space.names
        )
        try:
            jax.devices()
        except RuntimeError:
            print("none was started")
    """
    command = [sys.executable, "-c", textwrap.dedent(script)]
    found = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    assert found.stdout.strip() == "none was started"


@pytest.mark.parametrize("stop", ["first", 1.5])
def test_a_budget_that_ended_where_the_rule_did_is_no_whole_one_once_it_has_grown(
    square, first, tmp_path, stop
):
    """Harder goals are as unknown as if the longer budget had been given at once."""
    begun = study(square, batch_sizes=[32], stop=stop)
    at_once = begun.run(tmp_path / "at once", progress=False)
    end = int(at_once.trials["steps_trained"].max())
    short = study(square, batch_sizes=[32], stop=stop, max_steps=end)
    short.run(tmp_path / "short", progress=False)
    longer = at_once.definition.max_steps[32]
    result = short.extend(tmp_path / "short", max_steps=longer, progress=False)
    pd.testing.assert_frame_equal(result.trials, at_once.trials)
    pd.testing.assert_frame_equal(bs.load(tmp_path / "short").trials, at_once.trials)
    best = at_once.measurements[GOAL.metric].min()
    harder = dataclasses.replace(GOAL, value=float(best))
    for one in (at_once, result):
        with pytest.raises(ValueError, match="too short"):
            one.steps_to_target(harder)


@pytest.mark.parametrize("stop", ["budget", "first"])
def test_a_longer_budget_that_was_not_gone_on_with_is_not_finished(square, tmp_path, stop):
    never = dataclasses.replace(GOAL, value=1e-9)
    begun = study(square, batch_sizes=[4, 32], stop=stop, max_steps=20, goal=never)
    with pytest.warns(UserWarning, match="no trial"):
        begun.run(tmp_path, progress=False)

    def interrupt(progress):
        if progress.step > 30:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        begun.extend(tmp_path, max_steps=200, progress=interrupt)
    result = bs.load(tmp_path)
    with pytest.warns(UserWarning, match="batch size 4, 32 not finished"):
        assert not len(result.steps_to_target())
    assert set(result.trials["status"]) == {"incomplete"}


def test_a_trial_of_a_study_that_was_extended_ends_where_it_crossed_there(square, tmp_path):
    """On an earlier budget's last step, where no trial is evaluated otherwise."""
    arguments = {"batch_sizes": [32], "stop": "budget", "curves": "exact"}
    fine = study(square, evaluation_spacing=0.01, **arguments).run(tmp_path / "a", progress=False)

    def coarse(max_steps):
        return study(square, max_steps=max_steps, evaluation_spacing=1.0, **arguments)

    crossings, grid = fine.trials["first_crossing"], coarse(300).definition().grid(32)
    some = crossings[np.isfinite(crossings) & ~crossings.isin(grid)]
    number, end = some.index[0][1], int(some.iloc[0])
    folder = tmp_path / "b"
    coarse(end).run(folder, progress=False)
    result = coarse(end).extend(folder, max_steps=300, progress=False)
    assert result.trials.loc[(32, number, 0), "first_crossing"] == end
    # By the study as it was defined at first, and as it was extended.
    for one in (coarse(end), coarse(300)):
        run = one.run_trial(batch_size=32, trial=number, folder=folder, progress=False)
        assert run.curve.index.get_level_values("step")[-1] == end
