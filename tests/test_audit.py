"""Every fault that is planted in a study is found, and careful studies raise no alarm."""

import dataclasses

import pandas as pd
import pytest

import batchscale as bs
from batchscale.audit import Verdict, audit
from batchscale.confirmation import Confirmation
from benchmarks.simulation import SIZES, Careful, simulate

WIDE = bs.LogUniform(1e-4, 1e2)


def checked(seed=0, *, confirmation=None, batch_dependent=False, **changes):
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
            "statistics of its batches",
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
            "critical batch size within the data",
            Verdict.WARN,
            "no plateau within the batch sizes",
            {"batch_sizes": SIZES[:6], "b_crit": 10_000.0, "s_min": 5.0},
        ),
    ],
)
def test_a_planted_fault_is_found(name, verdict, words, changes):
    check = checked(**changes).of(name)
    assert check.verdict == verdict
    assert words in check.evidence
    assert check.remedy


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
    assert "is not a share" in found.of("goal above the noise of evaluation").evidence
