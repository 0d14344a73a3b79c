"""Branches of a run, and the local critical batch size, against plain NumPy and closed forms."""

import dataclasses
import math
import types

import numpy as np
import optax
import pandas as pd
import pytest
from helpers import drawn

import batchscale as bs
from batchscale.runner.branching import Branching
from batchscale.theory import Branches, Change, NoisyQuadratic, branches, train_in_stages
from batchscale.theory._local import largest_that_recovers

EXAMPLES, DIMENSION, SIZE, SEED = 64, 3, 4, 5
_random = np.random.default_rng(1)
X = _random.normal(size=(EXAMPLES, DIMENSION))
Y = X @ [1.0, -2.0, 0.5] + 0.2 * _random.normal(size=EXAMPLES)
MOMENTUM, RATE, DECAY, FACTOR = 0.6, 0.05, 40.0, 0.2
REGRESSION = bs.Workload.from_functions(
    init=lambda key: np.zeros(DIMENSION, np.float32),
    loss=lambda params, batch: 0.5 * (batch["input"] @ params - batch["label"]) ** 2,
    data={name: (X.astype(np.float32), Y.astype(np.float32)) for name in ("train", "validation")},
)
STUDY = bs.Study(
    workload=REGRESSION,
    optimizer="momentum",
    schedule="linear_decay",
    space=bs.SearchSpace(
        learning_rate=RATE,
        momentum=MOMENTUM,
        learning_rate_decay_steps=DECAY,
        end_learning_rate_factor=FACTOR,
    ),
    batch_sizes=[SIZE],
    goal=bs.Goal("validation/loss", 0.01),
    trials=1,
    max_steps=1000,
    seed=SEED,
)


def rate(step):
    return RATE * (1 - (1 - FACTOR) * min(step / DECAY, 1))


class Walk:
    """Heavy-ball momentum on the regression, by hand."""

    def __init__(self):
        self.params, self.velocity = np.zeros(DIMENSION), np.zeros(DIMENSION)

    def steps(self, copy, size, first, count, factor, at=None):
        """Goes on with the examples of a copy, at the pace of the batch size.

        Its first step has the learning rate of the trial at step `at`.
        """
        at = first * size // SIZE if at is None else at
        seen = drawn((SEED, SIZE, 0, copy), size * (first + count), EXAMPLES)
        losses = []
        for step in range(first, first + count):
            some = seen[step * size : (step + 1) * size]
            gradient = X[some].T @ (X[some] @ self.params - Y[some]) / size
            self.velocity = MOMENTUM * self.velocity + gradient
            learning_rate = factor * rate(at + (step - first) * size // SIZE)
            self.params = self.params - learning_rate * self.velocity
            losses.append(0.5 * np.mean((X @ self.params - Y) ** 2))
        return losses


def smoothed(values):
    found = values[0]
    for value in values[1:]:
        found = 0.5 * found + 0.5 * value
    return found


@pytest.mark.slow
def test_a_branch_goes_on_from_the_whole_state_at_its_batch_size_rate_and_pace():
    found = branches(
        STUDY, batch_size=SIZE, trial=0, steps=[0, 8, 11], batch_sizes=[4, 8, 16],
        examples=128, rule="linear", copies=3, metric="validation/loss",
    )  # fmt: skip
    rows = found.losses.set_index(["step", "batch_size", "copy"])["loss"]
    assert len(rows) == 3 * 3 * 3
    for (step, size, copy), loss in rows.items():
        walk = Walk()
        if step:
            walk.steps(0, SIZE, 0, step, 1.0)
        # After 11 steps of 4 the next multiple of all batch sizes is the 48th example.
        first, count = {0: 0, 8: 32, 11: 48}[step] // size, 128 // size
        losses = walk.steps(copy, size, first, count, size / SIZE, at=step)
        looks = [round(count * k / 8) - 1 for k in range(1, 9)]
        np.testing.assert_allclose(loss, smoothed([losses[at] for at in looks]), rtol=2e-5)


def test_the_branch_at_the_trials_own_batch_size_is_the_trial():
    found = branches(
        STUDY, batch_size=SIZE, trial=0, steps=[8], batch_sizes=[4, 8], examples=64, copies=2
    )
    curve = STUDY.run_trial(batch_size=SIZE, trial=0, steps=[10, 12, 14, 16, 18, 20, 22, 24]).curve
    losses = curve["validation/loss"].droplevel(["batch_size", "trial", "replicate"])
    own = found.losses.query("batch_size == 4 and copy == 0")["loss"].item()
    np.testing.assert_allclose(own, smoothed(losses[[*range(10, 26, 2)]].tolist()), rtol=1e-6)


def test_stages_keep_the_momentum_and_the_place_in_the_training_set():
    table = train_in_stages(
        STUDY, [(0, 4), (32, 8), (64, 16)], batch_size=SIZE, trial=0, examples=160, looks=1,
        rule="square_root", copies=1,
    )  # fmt: skip
    walk = Walk()
    ends = [walk.steps(0, 4, 0, 8, 1.0)[-1]]
    ends.append(walk.steps(0, 8, 4, 4, math.sqrt(2))[-1])
    ends.append(walk.steps(0, 16, 4, 6, 2.0)[-1])
    assert table["steps"].tolist() == [8, 12, 18]
    assert table["examples"].tolist() == [32, 64, 160]
    np.testing.assert_allclose(table["loss"], ends, rtol=2e-5)


def test_no_example_is_seen_twice_where_batch_sizes_do_not_divide_each_other():
    table = train_in_stages(
        STUDY, [(0, 4), (12, 16), (28, 4)], batch_size=SIZE, trial=0, examples=40, looks=1,
        rule="linear", copies=1,
    )  # fmt: skip
    walk = Walk()
    ends = [walk.steps(0, 4, 0, 3, 1.0)[-1]]
    # The second stage begins at the 16th example, and the third after its 32nd.
    ends.append(walk.steps(0, 16, 1, 1, 4.0, at=3)[-1])
    ends.append(walk.steps(0, 4, 8, 3, 1.0, at=7)[-1])
    np.testing.assert_allclose(table["loss"], ends, rtol=2e-5)


@pytest.mark.slow
def test_losses_of_branches_are_those_that_a_noisy_quadratic_expects():
    model = NoisyQuadratic.power_law(20)
    study = bs.Study(
        workload=model.workload(),
        optimizer="sgd",
        space=bs.SearchSpace(learning_rate=0.05),
        batch_sizes=[4],
        goal=bs.Goal("validation/risk", 0.01),
        trials=1,
        max_steps=1000,
    )
    sizes, examples, copies = [4, 16, 64, 256], 4096, 32
    found = branches(
        study, batch_size=4, trial=0, steps=[200], batch_sizes=sizes, examples=examples,
        copies=copies, metric="validation/risk", tolerance=0.02,
    )  # fmt: skip
    theta = study.run_trial(batch_size=4, trial=0, steps=[200]).checkpoints[0].params["theta"]
    from_here = NoisyQuadratic(model.curvature, model.noise, theta.astype(float) ** 2)
    expected = []
    for size in sizes:
        looks = [round(examples / size * k / 8) for k in range(1, 9)]
        risks = from_here.risk(looks, learning_rate=0.05 * size / 4, batch_size=size)
        expected.append(smoothed(list(risks)))
        own = found.losses.query("batch_size == @size")["loss"]
        assert abs(own.mean() - expected[-1]) < 4 * own.std() / copies**0.5 + 1e-6
    row = found.table.iloc[0]
    assert row["recovers"] == sizes[largest_that_recovers(np.array(expected), 0.02)] == 64
    assert row["b_local"] == 128
    assert row["low"] <= 64
    assert row["high"] >= 256


@pytest.mark.parametrize(
    ("losses", "place"),
    [
        ([1.0, 1.01, 1.03], 1),
        ([1.0, 0.5, 0.99], 1),
        ([1.0, 1.02, 0.99], 2),  # one that does not recover does not stop a larger one
        ([1.0, math.inf, math.inf], 0),
        ([math.inf, 1.0, 1.0], 2),
    ],
)
def test_the_largest_branch_that_is_no_worse_than_any_smaller_one(losses, place):
    assert largest_that_recovers(np.array(losses), 0.015) == place


def of_losses(*rows, sizes=(8, 16, 32)):
    """Branches with these losses, of one copy or several, after 10 steps each further."""
    table = [
        (10 * (n + 1), 80 * (n + 1), size, size / 8, copy, loss)
        for n, copies in enumerate(rows)
        for copy, losses in enumerate(copies)
        for size, loss in zip(sizes, losses, strict=True)
    ]
    names = ["step", "examples", "batch_size", "learning_rate_factor", "copy", "loss"]
    return Branches(pd.DataFrame(table, columns=names), "validation/loss", 8, 0.01)


def test_what_lies_beyond_the_branches_is_not_quoted():
    found = of_losses([[1.0, 1.1, 1.2]] * 2, [[1.0, 1.0, 1.2]] * 2, [[1.0, 1.0, 1.0]] * 2).table
    assert found["recovers"].tolist() == [8, 16, 32]
    np.testing.assert_allclose(found["b_local"], [np.nan, 512**0.5, np.nan])
    assert found["low"].tolist() == [0.0, 16.0, 32.0]
    assert found["high"].tolist() == [16.0, 32.0, np.inf]
    assert ["below 8" in found["why"][0], found["why"][1], "above 32" in found["why"][2]] == [
        True, "", True,
    ]  # fmt: skip


def test_copies_that_disagree_make_the_interval_wide():
    apart = of_losses([[1.0, 1.1, 1.2], [1.0, 0.95, 0.9], [1.0, 1.0, 1.2], [1.0, 1.0, 0.9]]).table
    assert (apart["low"].item(), apart["high"].item()) == (0.0, np.inf)


def test_a_smallest_branch_that_diverges_says_nothing():
    (row,) = of_losses([[np.inf, 1.0, 1.0]] * 2).table.to_dict("records")
    assert np.isnan(row["recovers"])
    assert np.isnan(row["b_local"])
    assert (row["low"], row["high"]) == (0.0, np.inf)
    assert "diverges at batch size 8" in row["why"]
    (row,) = of_losses([[1.0, np.inf, np.inf]] * 2).table.to_dict("records")
    assert row["recovers"] == 8
    assert "larger ones diverge" in row["why"]


def test_what_has_nothing_smaller_to_be_compared_with_changes_no_batch_size():
    for losses in ([1.0, 2.0, 3.0], [np.inf] * 3, [np.inf, 1.0, 1.0]):
        # Branches of 64 and more, of a trial whose batch size is 8.
        assert of_losses([losses] * 2, sizes=(64, 128, 256)).warm_up() == [Change(0, 8)]


def test_a_warm_up_doubles_where_the_critical_batch_size_is_twice_as_large():
    found = of_losses([[1.0, 1.1, 1.2]] * 2, [[1.0, 1.0, 1.2]] * 2, [[1.0, 1.0, 1.0]] * 2)
    # Between 16 and 32 it is 22.6, which is more than 16; then at least 32, which is not.
    assert found.warm_up() == [Change(0, 8), Change(160, 16)]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"steps": [8, 8]}, "steps"),
        ({"batch_sizes": [8]}, "two or more"),
        ({"batch_sizes": [8, 128]}, "1 to 64"),
        ({"examples": 100}, "examples: got 100"),
        ({"copies": 1}, "copies"),
        ({"tolerance": 0}, "tolerance"),
        ({"rule": "cubic"}, 'wanted "linear"'),
        ({"rule": lambda k: -k}, "rule"),
        ({"metric": "validation/accuracy"}, "no metric 'validation/accuracy'"),
        ({"study": bs}, "study: got a value of type module"),
        ({"steps": 8}, "steps: got 8, wanted a list"),
        ({"batch_sizes": None}, "batch_sizes: got None"),
        ({"rule": ["linear"]}, 'wanted "linear"'),
        ({"batch_size": 5}, "batch_size: got 5"),
    ],
)
def test_what_cannot_branch_is_refused_before_anything_is_compiled(given, message):
    usual = {"batch_size": 4, "trial": 0, "steps": [8], "batch_sizes": [4, 16], "copies": 2}
    with pytest.raises((TypeError, ValueError), match=message):
        branches(**{"study": STUDY, **usual, **given})


def test_an_optimizer_of_ones_own_has_no_usual_rule():
    def sgd(h):
        return optax.adam(h["learning_rate"])

    own = dataclasses.replace(
        STUDY, optimizer=sgd, schedule="constant", space=bs.SearchSpace(learning_rate=RATE)
    )
    with pytest.raises(ValueError, match="none is usual for optimizer 'sgd'"):
        branches(own, batch_size=4, trial=0, steps=[8], batch_sizes=[4, 16])


def test_a_metric_of_which_more_is_better_is_refused():
    more = dataclasses.replace(STUDY, goal=bs.Goal("validation/loss", 1.0, mode="max"))
    with pytest.raises(ValueError, match="more is better"):
        branches(more, batch_size=4, trial=0, steps=[8], batch_sizes=[4, 16])


@pytest.mark.parametrize("changes", [[4, 8], [(0, 4), (40, "x")], [(0, 4.7)], [(8, 4)], 3, []])
def test_stages_that_are_none_are_refused(changes):
    with pytest.raises((TypeError, ValueError), match="batch_sizes"):
        train_in_stages(STUDY, changes, batch_size=4, trial=0, examples=100)


@pytest.mark.parametrize(
    ("platform", "mixes", "microbatch"), [("cpu", False, 4), ("gpu", False, 32), ("gpu", True, 4)]
)
def test_an_accelerator_takes_a_branchs_batch_at_once_unless_its_examples_mix(
    platform, mixes, microbatch
):
    def centred(params, batch):
        seen = batch["input"] - batch["input"].mean(0, keepdims=True) * float(mixes)
        return 0.5 * (seen @ params - batch["label"]) ** 2

    workload = bs.Workload.from_functions(
        init=lambda key: np.zeros(DIMENSION, np.float32), loss=centred, data=REGRESSION.splits()
    )
    planned = dataclasses.replace(STUDY, workload=workload).planned_trial(batch_size=SIZE, trial=0)
    with Branching(planned, copies=2, split="validation") as branching:
        device = types.SimpleNamespace(platform=platform)
        mesh = types.SimpleNamespace(devices=np.array([device], object))
        branching._planned = planned._replace(mesh=mesh)
        assert branching._layout(32).microbatch == microbatch
