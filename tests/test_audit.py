"""Every fault that is planted in a study is found, and careful studies raise no alarm."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest

import batchscale as bs
from batchscale import scaling
from batchscale.audit import Verdict, audit
from batchscale.confirmation import Confirmation
from batchscale.engine.evaluation import counted
from batchscale.engine.layout import Layout
from batchscale.numeric import short
from batchscale.plan import Plan
from batchscale.scaling import Pace
from validation.simulation import SIZES, Careful, simulate

WIDE = bs.LogUniform(1e-4, 1e2)
NONE: dict[int, Pace] = {}  # of a constant learning rate


FOLLOWS = {
    # Of the largest batch sizes all trials diverge, so that there are none, and none gets there.
    "a learning rate by the linear rule": {"enough", "effort", "budget"},
    "spans less than a factor of 4": {"edges"},  # the optimum lies beyond
    "within 10 steps": {"looks"},  # of which the smallest batch sizes have more
}


def checked(seed=0, *, confirmation=None, batch_dependent=False, paces=NONE, **changes):
    tables = simulate(dataclasses.replace(Careful(), **changes), seed)
    return audit(
        tables.measurements,
        tables.trials,
        tables.steps,
        tables.goal,
        spaces=tables.spaces,
        max_steps=tables.max_steps,
        batch_dependent=batch_dependent,
        confirmation=confirmation,
        paces=paces,
    )


def confirmed(luck, missed=0.0):
    table = pd.DataFrame({"batch_size": SIZES, "best_of_n": 100.0, "missed": missed, "luck": luck})
    table["steps"] = 50 * (1 + 32 / table["batch_size"])
    table = table.assign(previous_evaluation=0.95 * table["steps"], trial=0)
    return Confirmation(table, table.iloc[:0], table.iloc[:0], 0.9)


def test_an_unfinished_study_is_found():
    tables = simulate(Careful(), 0)
    trials = tables.trials.copy()
    trials.loc[(64, 3, 0), "status"] = "incomplete"
    found = audit(tables.measurements, trials, tables.steps, tables.goal, spaces=tables.spaces).of(
        "study finished"
    )
    assert (found.verdict, found.evidence) == (Verdict.WARN, "not at batch size 64")


def cut(tables, keep):
    """The tables of a study that was killed between two batch sizes."""
    some = (tables.measurements, tables.trials)
    some = [t.loc[t.index.get_level_values("batch_size").isin(keep)] for t in some]
    return *some, tables.steps[tables.steps["batch_size"].isin(keep)]


def test_batch_sizes_that_have_not_begun_are_not_finished():
    tables = simulate(Careful(), 0)
    found = audit(*cut(tables, SIZES[:7]), tables.goal, spaces=tables.spaces)
    check = found.of("study finished")
    assert check.verdict == Verdict.WARN
    assert check.evidence == "not at batch sizes 128, 256, 512, 1024, 2048, 4096"
    assert found.of("optimum inside the search space").verdict == Verdict.PASS


def test_where_there_is_nothing_to_look_at_nothing_passes():
    tables = simulate(Careful(), 0)
    empty = audit(*cut(tables, []), tables.goal, spaces=tables.spaces)
    looked = {c.name for c in empty if c.verdict == Verdict.PASS}
    assert looked == {"learning rate tuned at every batch size", "not tuned on the test set"}
    missed = checked(max_steps=lambda _: 10, confirmation=None)
    for name in ("goal hard enough", "evaluations close together", "equal looks at the metric"):
        assert missed.of(name).verdict == Verdict.UNKNOWN
    assert missed.of("critical batch size within the data").verdict == Verdict.UNKNOWN
    fixed = checked(space=bs.SearchSpace(learning_rate=0.3))
    assert fixed.of("optimum inside the search space").verdict == Verdict.UNKNOWN
    narrow = checked(space=bs.SearchSpace(learning_rate=bs.Choice([0.3, 0.33])))
    assert narrow.of("learning rate tuned at every batch size").verdict == Verdict.WARN


def test_what_is_no_share_has_no_noise_of_counting_and_few_values_are_enough_to_see_it():
    tables = simulate(Careful(), 0)

    def noise(values, goal, examples=None):
        measurements = tables.measurements.assign(**{goal.metric: values})
        return audit(
            measurements, tables.trials, tables.steps, goal, spaces=tables.spaces,
            evaluation_examples=examples,
        ).of("goal above the noise of evaluation")  # fmt: skip

    percent = 100 * (1 - tables.measurements[tables.goal.metric])
    assert noise(percent, bs.Goal("validation/accuracy", 95, "max")).verdict == Verdict.UNKNOWN
    few = tables.measurements[tables.goal.metric].mul(0) + 37 / 5000
    found = noise(few, bs.Goal("validation/error", 0.001), examples=5000)
    assert (found.verdict, found.evidence[:33]) == (
        Verdict.WARN,
        "the goal is 5 of 5,000 examples, ",
    )


@pytest.mark.parametrize("times", [20.0, 1.0])
def test_a_warm_up_is_found_where_the_crossings_of_the_plateau_come_soon_after_it(times):
    # The plateau of the simulated studies is at some 50 steps.
    paces = dict.fromkeys(SIZES, Pace(rises_until=round(100 / times)))
    check = checked(paces=paces).of("steps not made by the schedule")
    assert check.verdict == (Verdict.FAIL if times == 1 else Verdict.PASS)
    unknown = checked(paces=None).of("steps not made by the schedule")
    assert unknown.verdict == Verdict.UNKNOWN


def test_the_audit_has_the_critical_batch_size_that_is_quoted():
    tables = simulate(Careful(), 1)
    quoted = scaling.fit(tables.steps, form="averaged", luck=scaling.LUCK)
    low, high = quoted.b_crit_interval
    evidence = checked(1).of("extrapolated").evidence
    assert evidence == f"{short(quoted.b_crit)}, {short(low)} to {short(high)} (best of N)"
    plain = scaling.fit(tables.steps, form="averaged").b_crit_interval
    assert high / low > 1.1 * plain[1] / plain[0]


def test_batch_sizes_that_are_not_done_refuse_nothing():
    """As of `Result.scaling`, which leaves them out."""
    tables = simulate(Careful(), 0)
    narrow = tables.spaces | {1: bs.SearchSpace(learning_rate=bs.LogUniform(1e-9, 1e-8))}
    steps = tables.steps[tables.steps["batch_size"] > 1]
    crowding = tables.trials.copy()
    at = crowding.index.get_level_values("batch_size") == 1
    crowding.loc[at, "learning_rate"] = np.geomspace(1e-9, 1e-8, at.sum())
    crowding.loc[at, "first_crossing"] = np.linspace(900, 100, at.sum())
    found = [
        audit(tables.measurements, crowding, some, tables.goal, spaces=narrow).of("extrapolated")
        for some in (tables.steps, steps)
    ]
    assert "crowd the high edge of learning_rate at batch size 1" in found[0].evidence
    assert found[1].evidence.endswith("(best of N)")


def test_evaluations_after_every_step_are_said_to_be_a_step_apart():
    tables = simulate(Careful(), 0)
    steps = tables.steps.assign(steps=6.0, previous_evaluation=5.0)
    found = audit(tables.measurements, tables.trials, steps, tables.goal, spaces=tables.spaces)
    assert found.of("resolution").evidence == "a single step apart"


def test_an_unfinished_confirmation_leaves_the_best_of_n_to_be_fitted():
    table = confirmed(1.2).table
    table.loc[table["batch_size"] > 2, ["steps", "luck"]] = float("nan")
    found = checked(confirmation=Confirmation(table, table.iloc[:0], table.iloc[:0], 0.9))
    assert found.of("critical batch size within the data").evidence.endswith("(best of N)")
    assert found.of("optimum reproducible under new seeds").verdict == Verdict.UNKNOWN


@pytest.mark.parametrize("seed", range(3))
def test_a_careful_study_raises_no_alarm(seed):
    found = checked(seed, confirmation=confirmed(1.2))
    assert found.alarms == (), str(found)
    assert {check.verdict for check in found} == {Verdict.PASS}


@pytest.mark.parametrize(
    ("name", "verdict", "words", "changes"),
    [
        (
            "optimum inside the search space",
            Verdict.FAIL,
            "crowd the high edge of learning_rate",
            {"space": bs.SearchSpace(learning_rate=bs.LogUniform(1e-4, 0.05))},
        ),
        (
            "optimum inside the search space",
            Verdict.FAIL,
            "crowd the low edge of learning_rate at batch sizes 1",
            {"space": bs.SearchSpace(learning_rate=bs.LogUniform(0.06, 100))},
        ),
        (
            "learning rate tuned at every batch size",
            Verdict.FAIL,
            "a learning rate by the linear rule",
            {"space": bs.SearchSpace(learning_rate=lambda size: 0.02 * size)},
        ),
        (
            "learning rate tuned at every batch size",
            Verdict.FAIL,
            "a learning rate by the square-root rule",
            {"space": bs.SearchSpace(learning_rate=lambda size: 0.02 * size**0.5)},
        ),
        (
            "learning rate tuned at every batch size",
            Verdict.FAIL,
            "the same learning rate, 0.2, at batch sizes",
            {"space": bs.SearchSpace(learning_rate=0.2)},
        ),
        (
            "learning rate tuned at every batch size",
            Verdict.WARN,
            "spans less than a factor of 4",
            {"space": bs.SearchSpace(learning_rate=bs.LogUniform(0.1, 0.3))},
        ),
        ("enough feasible trials", Verdict.WARN, "4 feasible trials", {"trials": 4}),
        (
            "enough feasible trials",
            Verdict.WARN,
            "more than 80% of the trials diverged",
            {"diverges": 0.05, "curvature": 0.05},
        ),
        (
            "equal tuning effort",
            Verdict.FAIL,
            "between 16 (batch size 64) and 32",
            {"trials": dict.fromkeys(SIZES, 32) | {64: 16}},
        ),
        (
            "budget long enough",
            Verdict.FAIL,
            "no trial reached validation/error < 0.05 at batch sizes 1, 2",
            {"max_steps": lambda _: 500},
        ),
        (
            "budget long enough",
            Verdict.FAIL,
            "the same number of epochs at every batch size, so at batch sizes",
            {"max_steps": lambda size: 16_384 // size},
        ),
        ("goal hard enough", Verdict.WARN, "within 10 steps", {"s_min": 4.0}),
        (
            "goal above the noise of evaluation",
            Verdict.WARN,
            "the goal is 5 of 100 examples",
            {"examples": 100},
        ),
        ("evaluations close together", Verdict.WARN, "of the steps earlier", {"spacing": 0.5}),
        (
            "equal looks at the metric",
            Verdict.WARN,
            "most at batch size 4",
            {"spacing": dict.fromkeys(SIZES, 0.05) | {4: 0.01}},
        ),
        ("not tuned on the test set", Verdict.FAIL, "test/error", {"metric": "test/error"}),
        (
            "model independent of the batch size",
            Verdict.WARN,
            "depends on the others of its batch",
            {"batch_dependent": True},
        ),
        (
            "optimum reproducible under new seeds",
            Verdict.WARN,
            "more than 2 times the best",
            {"confirmation": confirmed(3.0)},
        ),
        (
            "optimum reproducible under new seeds",
            Verdict.WARN,
            "more than 20% of the seeds missed",
            {"confirmation": confirmed(1.2, missed=0.5)},
        ),
        (
            "optimum reproducible under new seeds",
            Verdict.WARN,
            "more than 3 times the best at batch size 64",
            {"confirmation": confirmed([1.2] * 6 + [3.5] + [2.5] * 2 + [1.1] * 4)},
        ),
        (
            "critical batch size within the data",
            Verdict.WARN,
            "no plateau is certain within the batch sizes",
            {"batch_sizes": SIZES[:6], "b_crit": 10_000.0, "s_min": 5.0},
        ),
    ],
)
def test_a_planted_fault_is_found_and_nothing_else(name, verdict, words, changes):
    found = checked(**{"confirmation": confirmed(1.2)} | changes)
    check = found.of(name)
    assert check.verdict == verdict
    assert words in check.evidence
    assert check.remedy
    assert {alarm.key for alarm in found.alarms} == {check.key} | FOLLOWS.get(words, set())


def test_what_the_tables_cannot_tell_is_unknown():
    found = checked(stop=1.0, batch_dependent=None)
    assert found.of("optimum inside the search space").verdict == Verdict.UNKNOWN
    assert found.of("model independent of the batch size").verdict == Verdict.UNKNOWN
    assert found.of("optimum reproducible under new seeds").verdict == Verdict.UNKNOWN
    assert found.alarms == ()
    with pytest.raises(KeyError, match="no check 'speed'"):
        found.of("speed")
    assert found.table()["verdict"].tolist() == [check.verdict for check in found]


def test_a_loss_is_not_counted():
    tables = simulate(Careful(), 0)
    loss = tables.measurements * 3.14159 + 1e-3
    found = audit(
        loss,
        tables.trials,
        tables.steps,
        bs.Goal("validation/error", 0.158),
        spaces=tables.spaces,
    )
    assert "not known to be a share" in found.of("goal above the noise of evaluation").evidence


def test_a_confirmed_setting_beyond_the_range_and_a_median_below_the_best_are_found():
    space = bs.SearchSpace(learning_rate=bs.LogUniform(1e-4, 1e2))
    inside = confirmed(1.2).table.assign(learning_rate=0.5)
    outside = inside.assign(learning_rate=[200.0, *[0.5] * 11, 1e-5])

    def edges(table):
        confirmation = Confirmation(table, table.iloc[:0], table.iloc[:0], 0.9)
        return checked(space=space, confirmation=confirmation)

    name = "optimum inside the search space"
    assert edges(inside).of(name).verdict == Verdict.PASS
    found = edges(outside).of(name)
    assert found.verdict == Verdict.FAIL
    assert "the high edge of learning_rate at batch size 1;" in found.evidence
    assert "the low edge of learning_rate at batch size 4096" in found.evidence
    lucky = checked(confirmation=confirmed(0.4)).of("optimum reproducible under new seeds")
    assert lucky.verdict == Verdict.WARN
    assert "1.5 times faster than the best of N" in lucky.evidence
    hard = checked(max_steps=lambda _: 10)
    assert "Choose an easier goal" in hard.of(name).remedy


def test_unequal_refinement_is_unequal_effort():
    tables = simulate(Careful(), 0)
    some = tables.trials.loc[tables.trials.index.get_level_values("trial") < 5]
    name = "equal tuning effort"

    def effort(refined):
        options = {"spaces": tables.spaces, "refined": refined.assign(origin="refine")}
        return audit(
            tables.measurements, tables.trials, tables.steps, tables.goal, **options
        ).of(name)  # fmt: skip

    same = effort(some)
    assert same.verdict == Verdict.PASS
    assert same.evidence.endswith("at every batch size, and 5 refined ones")
    most = effort(some.drop(64, level="batch_size"))
    assert (most.verdict, most.remedy[:20]) == (Verdict.WARN, "study.refine(folder)")
    assert "between 0 (batch size 64) and 5 refined trials" in most.evidence
    assert effort(some.iloc[:0]).verdict == Verdict.PASS


def test_tables_of_others_need_neither_origins_nor_crossings():
    tables = simulate(Careful(), 0)
    options = {"spaces": tables.spaces, "max_steps": tables.max_steps}
    ours = audit(tables.measurements, tables.trials, tables.steps, tables.goal, **options)
    plain = tables.trials.drop(columns=["origin", "first_crossing"])
    theirs = audit(tables.measurements, plain, tables.steps, tables.goal, **options)
    pd.testing.assert_frame_equal(ours.table(), theirs.table(), check_exact=True)


def test_an_edge_beyond_which_trials_diverged_is_not_crowded():
    # The optimum of large batches is 0.64, and what is above twice that diverges.
    changes = {"rate": 0.02, "curvature": 0.8, "diverges": 2.0, "scatter": 0.05}
    space = bs.SearchSpace(learning_rate=bs.LogUniform(1e-4, 3.0))
    name = "optimum inside the search space"
    assert checked(space=space, **changes).of(name).verdict == Verdict.PASS
    tight = bs.SearchSpace(learning_rate=bs.LogUniform(1e-4, 0.4))
    assert checked(space=tight, **changes).of(name).verdict == Verdict.FAIL


@pytest.mark.parametrize(
    ("sizes", "microbatch", "dependent"),
    [
        ([8, 16], 8, False),
        ([8, 12, 20], 8, True),  # 12 are 8 and 4
        ([9, 10], 8, True),
        ([12], 8, False),
        ([4, 8], 8, True),
    ],
)
def test_a_last_smaller_microbatch_is_another_model_where_examples_see_each_other(
    sizes, microbatch, dependent
):
    plan = Plan(
        None,  # pyright: ignore[reportArgumentType]
        {},
        layouts={size: Layout(1, microbatch) for size in sizes},
        mixes_examples=True,
    )
    assert plan.batch_dependent is dependent
    assert dataclasses.replace(plan, mixes_examples=False).batch_dependent is False


@pytest.mark.usefixtures("usual_promotion")
def test_a_goal_of_a_few_words_is_one_that_single_words_decide():
    split = {"input": np.zeros((100, 4), np.float32), "label": np.zeros((100, 4), np.int32)}
    words = bs.Workload(
        name="words",
        init=lambda key: ({"w": jnp.zeros(())}, {}),
        loss=lambda p, s, b, k, h: ((p["w"] * b["input"].sum(), jnp.ones(())), s),
        metrics=lambda p, s, b: {
            "error": ((b["label"] > p["w"]).sum(), b["label"].size),
            "precision": ((b["label"] > p["w"]).sum(), (b["input"] > p["w"]).sum()),
            "loss": ((b["input"] - p["w"]).sum(), b["label"].size),
        },
        data={"train": split, "validation": split},
    )
    measured = {"train": 50, "validation": 100}
    assert counted(words, bs.Goal("validation/error", 0.02), measured) == 400
    assert counted(words, bs.Goal("train/error", 0.02), measured) == 200
    # Of the predictions, and of no integers: there is no such number.
    assert counted(words, bs.Goal("validation/precision", 0.02), measured) is None
    assert counted(words, bs.Goal("validation/loss", 0.02), measured) is None
    tables = simulate(Careful(), 0)
    of_words = tables.measurements.assign(**{"validation/error": 7 / 400})
    check = audit(
        of_words, tables.trials, tables.steps, bs.Goal("validation/error", 0.02),
        spaces=tables.spaces, evaluation_examples=100, counted=400,
    ).of("goal above the noise of evaluation")  # fmt: skip
    assert check.verdict == Verdict.WARN
    assert "the goal is 8 of 400 examples or parts of examples, measured on 100" in check.evidence
