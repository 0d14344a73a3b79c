"""A table of bad inputs to every public entry point: each is told before anything compiles.

A row is an entry point, an argument and a kind of value; the kinds below are what such an argument
never is. Every error is one of ours, names the argument, and says what was got or wanted; no
program is compiled, and nothing on disk changes.
"""

import math
import re
import traceback
from pathlib import Path

import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
import pandas as pd
import pytest
from flax import linen as nn
from helpers import compiled, perceptron, points

import batchscale as bs
from batchscale import audit, datasets, metrics, models, plots, records, scaling, theory, tuner
from batchscale.records import MEASUREMENT_INDEX, TRIAL_INDEX

PACKAGE = str(Path(bs.__file__).parent)
OURS = ValueError, TypeError, KeyError, IndexError, FileNotFoundError, FileExistsError
INSIDE = re.compile(
    "positional argument|object has no attribute|object is not|unsupported operand|unhashable"
)
GOAL = bs.Goal("validation/error", 0.3)
SPACE = bs.SearchSpace(learning_rate=bs.LogUniform(0.1, 3))
WORKLOAD = perceptron()
CURVE = pd.DataFrame({"batch_size": [1, 2, 4, 8, 16], "steps": [1010.0, 510, 260, 135, 72]})
FIT = scaling.fit(CURVE)
SPLITS = datasets.from_arrays(train=points(20), validation=points(20, 1))
DATA = {"train": points(20), "validation": points(20, 1)}


def tables():
    """Measurements and trials of a small search, without any training."""
    sizes, trials, steps = (8, 16, 32), range(4), (0, 10, 20, 40)
    index = pd.MultiIndex.from_product([sizes, trials, [0], steps], names=MEASUREMENT_INDEX)
    size, trial, _, step = (index.get_level_values(i).to_numpy(float) for i in range(4))
    error = 0.9 / (1 + step * size**0.5 * (1 + trial) / 60)
    measurements = pd.DataFrame({GOAL.metric: error}, index)
    index = pd.MultiIndex.from_product([sizes, trials, [0]], names=TRIAL_INDEX)
    rates = 0.2 * 2.0 ** index.get_level_values("trial").to_numpy(float)
    found = pd.DataFrame({"learning_rate": rates, "origin": "plan", "status": "complete"}, index)
    found = found.assign(steps_trained=40, stop_reason="budget")
    crossings = metrics.first_crossings(measurements, GOAL)["first_crossing"]
    return measurements, records.trial_table(found.assign(first_crossing=crossings))


MEASURED, TRIALS = tables()
STEPS = metrics.steps_to_target(MEASURED, GOAL, trials=TRIALS)
SPACES = dict.fromkeys((8, 16, 32), SPACE)


class Result:
    """What a figure reads of a result."""

    name, goal, train_examples, space = "square, sgd", GOAL, 100, SPACE
    trials, measurements, paces = TRIALS, MEASURED, {}

    def steps_to_target(self):
        return STEPS

    def learning_rates(self):
        return scaling.learning_rates(MEASURED, GOAL, trials=TRIALS)

    def frontier(self, *, seconds_per_step=None):
        return scaling.frontier(STEPS, seconds_per_step=seconds_per_step)

    def scaling(self):
        return FIT

    def variants(self):
        return metrics.variants(MEASURED, GOAL, trials=TRIALS)

    def sensitivity(self, **options):
        return tuner.sensitivity(MEASURED, GOAL, trials=TRIALS, space=SPACE, **options)

    def tuning_curve(self):
        return metrics.tuning_curve(MEASURED, GOAL, trials=TRIALS)


RESULT = Result()
NOISE = pd.DataFrame({"step": [1, 2], "b_simple": [3.0, 4], "low": [2.0, 3], "high": [4.0, 5]})
NQ = theory.NoisyQuadratic.power_law(4)
PARAMS = {  # as the perceptron's init makes them
    **{"w1": np.zeros((2, 16), np.float32), "b1": np.zeros(16, np.float32)},
    **{"w2": np.zeros((16, 3), np.float32), "b2": np.zeros(3, np.float32)},
}

NAN, HUGE = math.nan, 10**400
BAD = {
    "count": [None, "3", 2.5, NAN, True, 0, -1, [1], HUGE, 1j, int, pd.NA],
    "natural": [None, "3", 2.5, True, -1],
    "positive": [None, "3", NAN, True, 0, -1, [1.0], 1j, float],
    "share": [None, "0.2", NAN, True, -0.1],
    "confidence": [None, "0.9", NAN, 0, 1, 2, True, [0.9], 1j],
    "goal": [None, 0.1, "validation/error", ("validation/error", 0.1), bs.Goal],
    "measurements": [None, [1], "x", pd.DataFrame(), pd.DataFrame, TRIALS, MEASURED.reset_index()],
    "trials": [None, [1], "x", pd.DataFrame(), MEASURED, TRIALS.reset_index()],
    "steps": [None, "x", 5, pd.DataFrame(), CURVE.drop(columns="steps"), CURVE.assign(steps="x")],
    "frame": [None, "x", 5, [1], pd.DataFrame],
    "path": [None, "", 5, True, "a\0b", "gs://bucket/x", ["a"], Path],
    "progress": ["no", 3, None, [], lambda: None],
    "devices": ["cpu", 5, ["cpu"], [], {}],
    "ax": [5, "x", [], plt.Axes],
    "title": [5, []],
    "workload": [None, "mnist/fc_64", 5, bs.Workload],
    "study": [None, "x", bs.Study, RESULT],
    "result": [None, "x", 5, bs.Result, MEASURED],
    "optimizer": [None, "sdg", "SGD", 5, [], optax.sgd(0.1), lambda: 0, lambda h: None],
    "space": [None, {}, {"learning_rate": 0.1}, 0.1, bs.SearchSpace, "x"],
    "schedule": [None, "cosin", 5, [], lambda: 0, lambda step, h: None],
    "seed": [None, "0", 1.5, True, -1, 2**40],
    "stop": [None, "frist", 0, -1, 0.5, NAN, True, []],
    "curves": [None, "bound", 5, []],
    "batch_sizes": [None, 8, "full", [], [0], [2.5], ["8"], [8, 8], [101], ["full", 100], [True]],
    "max_steps": ["10", 0, 2.5, True, [], {4: 10}, lambda b: None, lambda: 5, 2**40],
    "evaluate": [None, 5, "validation", {"nosuch": 5}, {"validation": 0}, bs.Evaluate, []],
    "microbatch": [None, 0, "all", 2.5, True],
    "lanes": [None, 0, -1, "all", 2.5, True],
    "mode": [None, "low", 5, []],
    "metric": [None, 5, "nosuch/error", []],
    "paces": ["x", 5, [1], {4: 5}],
    "fit": ["x", 5, scaling.Fit, CURVE],
    "spaces": [None, 5, SPACE, {4: 5}],
    "patience": [None, "x", 1, NAN, True],
    "precision": [None, "x", 0, 2, NAN],
    "times": ["x", 0, -1, {}, {8: "x"}, NAN, True],
    "splits": [None, 5, [], {"train": None}, {"train": {"x": "abc"}}],
    "data": [
        *(None, 5, [], {}, {"train": None}, {"validation": points(5)}, {"train": (1, 2, 3)}),
        *({"train": (np.zeros((3, 2)), np.zeros(2, int))}, {"train": (np.zeros((0, 2)), [])}),
        {"train": (np.ma.masked_array([[1.0]], [[True]]), np.zeros(1, int))},
        *({"train": (np.array([["a"]]), np.zeros(1, int))}, {"train": points(5), "dev": points(5)}),
        *(lambda: None, lambda: 5),
    ],
    "indices": [None, "x", [0.5], [1000], [-1], [True]],
    "examples": [
        *(5, "x", (1,), {}, {"x": 5}, {"x": np.array(["a"])}, {"x": np.array([2**40])}),
        *({"x": np.zeros(3), "y": np.zeros(2)}, {"x": np.ma.masked_array([1.0], [True])}),
    ],
    "model": [None, 5, "x", nn.Dense, lambda key: 5, (1, 2), nn.Dense(1), lambda: 1],
    "loss": [None, 5, "crossentropy", [], lambda outputs: 0, lambda o, labels: 1 / 0],
    "name": [5, "", [], "\n"],
    "word": [None, 5, []],
    "function": [None, 5, "x"],
    "accept": ["plan.json", [1], 5, ["nosuch.json"], ["../plan.json"], ["/etc/passwd"]],
    "low": [None, "x", NAN, math.inf, True, [1], 1j, HUGE, 1000],
    "dimension": [None, "x", [1, 2], NAN, True, bs.LogUniform, 1j],
    "text": [None, 5, "nosuch", [], ""],
}


def study(**changes):
    fields = {"workload": WORKLOAD, "optimizer": "sgd", "space": SPACE, "goal": GOAL, "trials": 4}
    return bs.Study(**fields | {"batch_sizes": [4, 8, 16, 32], "max_steps": 120} | changes)


def own(**fields):
    """A study of a workload of one's own, checked as `run` does before it opens the folder."""

    def loss(params, batch):
        logits = batch["input"] @ params["w"]
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])

    given = {"init": lambda key: {"w": jnp.zeros((2, 3))}, "loss": loss, "data": DATA} | fields
    made = bs.Workload.from_functions(**given)
    goal = bs.Goal("validation/loss", 0.5)
    return study(workload=made, goal=goal, batch_sizes=[8]).run("own", progress=False)


def of_model(**fields):
    model = nn.Sequential([nn.Dense(4), nn.relu, nn.Dense(3)])
    made = bs.Workload.from_model(**{"model": model, "data": DATA} | fields)
    return study(workload=made, batch_sizes=[8]).run("own", progress=False)


def finalized(finalize):
    metric = {"a": lambda params, batch: {"n": jnp.asarray(3.0), "s": params["w"].sum()}}
    return own(metrics=metric, finalize={"a": finalize})


STUDY = study()
SIZE = {"batch_size": "count"}
PLACE = {"ax": "ax", "title": "title"}
OF_POINT = {"workload": "workload", "seed": "seed", "split": "text"}
M, T = {"measurements": MEASURED, "goal": GOAL}, {"trials": TRIALS}
RUN = {"folder": "path", "progress": "progress", "devices": "devices"}
TABLE = [  # an entry point, good arguments, and what each argument is
    (study, {}, {"workload": "workload", "optimizer": "optimizer", "space": "space"}),
    (study, {}, {"batch_sizes": "batch_sizes", "goal": "goal", "trials": "count", "stop": "stop"}),
    (study, {}, {"max_steps": "max_steps", "curves": "curves", "schedule": "schedule"}),
    (study, {}, {"evaluation_spacing": "share", "evaluate": "evaluate", "seed": "seed"}),
    (study, {}, {"lanes": "lanes", "microbatch": "microbatch", "max_infeasible": [-1, 2.5, "x"]}),
    (study, {"max_steps": None}, {"max_epochs": "positive"}),
    (STUDY.run, {"folder": "a", "progress": False}, RUN),
    (STUDY.with_batch_sizes, {}, {"more": ["8", 8, [], ["x"], [0], [2.5], [HUGE], [8, 8]]}),
    (STUDY.extend, {"folder": "a", "progress": False}, RUN | {"trials": [0, "x", 2.5]}),
    (STUDY.confirm, {"folder": "a"}, RUN | {"settings": "count", "seeds": "count"}),
    (STUDY.confirm, {"folder": "a"}, {"selection_seeds": "count", "patience": "patience"}),
    (STUDY.refine, {"folder": "a"}, {"folder": "path", "rounds": "count", "until": "share"}),
    (STUDY.measure, {"folder": "a", "progress": False}, RUN | {"precision": "precision"}),
    (STUDY.measure, {"folder": "a"}, {"minutes": ["x", 0, NAN], "examples": ["x", 0, NAN]}),
    (STUDY.run_trial, {"batch_size": 8, "trial": 0}, SIZE | {"trial": "natural"}),
    (STUDY.run_trial, {"batch_size": 8, "trial": 0}, {"steps": ["x", 0, 2.5, [], [4, 2], [1, 1]]}),
    (STUDY.planned_trial, {"batch_size": 8, "trial": 0}, SIZE | {"replicate": "natural"}),
    (STUDY.speeds, {}, {"devices": "devices"}),
    (bs.Study.of_paper, {"optimizer": "sgd"}, {"workload": "text"}),
    (bs.powers_of_two, {"first": 1, "last": 16}, {"first": [None, "1", NAN, True, 32]}),
    (bs.Goal, {"value": 0.1}, {"metric": [None, 5, "error", "a/b/c", "", []]}),
    (bs.Goal, {"metric": "a/b"}, {"value": [None, "x", NAN, math.inf, True, [1], 1j, HUGE]}),
    (bs.Goal, {"metric": "a/b", "value": 1}, {"mode": "mode"}),
    (GOAL.limit, {}, {"count": "count"}),
    (bs.Evaluate, {}, {"splits": ["test", 5, [5]], "examples": [5, [1], {"a": 0}, {5: 1}]}),
    (bs.Evaluate, {}, {"every": ["x", 1, NAN, True], "share": ["x", 0, NAN, True]}),
    *((kind, {"high": 2}, {"low": "low"}) for kind in (bs.LogUniform, bs.Uniform, bs.Integer)),
    (bs.Choice, {}, {"values": [None, 5, "ab", [], [1], ["a"], [1, 1], [NAN, 1]]}),
    (bs.ShareOfBudget, {}, {"of": [None, "x", 0, 2, NAN, True, bs.LogUniform]}),
    (bs.half_life, {}, {"low": [None, "x", 0, -1, NAN, True]}),
    (bs.SearchSpace, {}, {"learning_rate": "dimension", "batch_size": [0.1], "status": [0.1]}),
    (SPACE.at, {}, {"batch_size": "count"}),
    (bs.workloads.get, {}, {"name": [*"x5", None, 5, "digits/nosuch", "digts/fc_64", "digits"]}),
    (bs.pilot, {"workload": WORKLOAD}, {"workload": "workload", "minutes": "positive"}),
    (bs.pilot, {"workload": WORKLOAD}, {"batch_sizes": [8, [], ["8"], [8, 8]], "mode": "mode"}),
    (bs.pilot, {"workload": WORKLOAD}, {"progress": "progress", "devices": "devices"}),
    (bs.pilot, {"workload": WORKLOAD}, {"space": [{}, 0.1], "metric": ["nosuch/error", 5, ""]}),
    (bs.pilot, {"workload": WORKLOAD}, {"optimizer": "optimizer", "seed": "seed"}),
    (bs.recommend, {"workload": WORKLOAD, "folder": "a"}, {"precision": "precision"}),
    (bs.recommend, {"workload": WORKLOAD, "folder": "a"}, {"batch_sizes": [8, [8], [1, 2, 3, 3]]}),
    (bs.recommend, {"workload": WORKLOAD, "folder": "a"}, RUN | {"minutes": "positive"}),
    (bs.load, {}, {"folder": ["nosuch", *BAD["path"]]}),
    (bs.repair, {}, {"folder": ["nosuch", *BAD["path"]]}),
    (bs.load_archive, {}, {"folder": ["nosuch", *BAD["path"]]}),
    (records.load_tables, {}, {"folder": ["nosuch", *BAD["path"]]}),
    (bs.compare, {}, {"studies": [None, 5, "ab", [RESULT], {}, {"a": RESULT}, {"a": 5, "b": 5}]}),
    (audit.audit, {**M, **T, "steps": STEPS, "spaces": SPACES}, {"measurements": "measurements"}),
    (audit.audit, {**M, **T, "steps": STEPS, "spaces": SPACES}, {"trials": "trials"}),
    (audit.audit, {**M, **T, "steps": STEPS, "spaces": SPACES}, {"goal": "goal", "paces": "paces"}),
    (audit.audit, {**M, **T, "steps": STEPS, "spaces": SPACES}, {"spaces": "spaces"}),
    (audit.audit, {**M, **T, "steps": STEPS, "spaces": SPACES}, {"counted": [0, 2.5, "x"]}),
    (metrics.steps_to_target, M, {"measurements": "measurements", "goal": "goal"}),
    (metrics.steps_to_target, {**M, **T}, {"feasible_trials": [0, "3", 2.5, True]}),
    (metrics.steps_to_targets, {"measurements": MEASURED}, {"goals": [None, 5, GOAL, [], [5]]}),
    (metrics.first_crossings, M, {"measurements": "measurements", "goal": "goal"}),
    (
        metrics.members,
        {**T, "feasible_trials": 2},
        {"trials": "trials", "feasible_trials": "count"},
    ),
    (metrics.best_of, {**M, **T}, {"n": "count"}),
    (metrics.tuning_curve, {**M, **T}, {"trials": "trials", "confidence": "confidence"}),
    (metrics.variants, {**M, **T}, {"factors": [None, 5, ["a"], [0], [NAN]], "smoothing": [1]}),
    (metrics.with_goal, M, {"measurements": "frame", "goal": "goal"}),
    (metrics.best_measurement, {"measurements": MEASURED}, {"metric": "metric"}),
    (
        metrics.best_by_budget,
        {"measurements": MEASURED, "metric": GOAL.metric, **T},
        {"steps": [5, "x", ["a"], [NAN], [-1], []]},
    ),
    (metrics.epoch_budget, {"measurements": MEASURED, "train_examples": 9}, {"epochs": "positive"}),
    (metrics.step_budget, {"measurements": MEASURED}, {"steps": "positive"}),
    (metrics.last_steps, {"steps": 5}, {"batch_sizes": ["x", None, [0], [2.5], ["a"]]}),
    (scaling.fit, {"steps": CURVE}, {"steps": "steps", "form": "text", "confidence": "confidence"}),
    (scaling.fit, {"steps": CURVE}, {"paces": "paces", "luck": "share"}),
    (scaling.frontier, {"steps": CURVE}, {"steps": "steps", "seconds_per_step": "times"}),
    (scaling.overhead, {}, {"steps": "steps"}),
    (scaling.regimes, {"steps": CURVE}, {"tolerance": "positive", "fit": "fit", "paces": "paces"}),
    (scaling.recommend, {"steps": CURVE}, {"steps": "steps", "fit": "fit"}),
    (scaling.learning_rates, {**M, **T}, {"measurements": "measurements", "within": "patience"}),
    (scaling.rules, {}, {"table": ["x", 5, None, CURVE]}),
    (scaling.transitions, {}, {"variants": ["x", 5, None, CURVE]}),
    (scaling.power_law, {"by": "a"}, {"table": ["x", 5, None, CURVE]}),
    (FIT.steps, {}, {"batch_sizes": [[-1], [NAN]]}),
    (FIT.overhead_interval, {}, {"overhead": "positive"}),
    (tuner.plan, {"space": SPACE, "batch_size": 8, "trials": 3, "seed": 0}, {"space": "space"}),
    (tuner.optima, {"steps": STEPS, **T, "space": SPACE}, {"steps": "frame", "space": "space"}),
    (tuner.leading, {**T, "count": 2}, {"trials": "trials", "count": "count"}),
    (tuner.refine, {"space": SPACE, **T}, {"space": "space", "leading": "count"}),
    (tuner.expand, {"space": SPACE, **T}, {"trials": "frame"}),
    (tuner.spread, {"space": SPACE, **T}, {"leading": "count"}),
    (tuner.sensitivity, {**M, **T, "space": SPACE}, {"space": "space", "within": [0.5, "x", NAN]}),
    (tuner.crowded_edges, {"spaces": SPACES}, {"trials": "frame"}),
    (tuner.derived, {}, {"table": "frame"}),
    (datasets.load, {}, {"name": [None, 5, "nosuch", "digts", "../digits", ["digits"]]}),
    (datasets.from_arrays, {}, {"train": "examples"}),
    (datasets.from_npz, {}, {"path": ["nosuch.npz", __file__, *BAD["path"]]}),
    (datasets.from_idx, {}, {"directory": ["nosuch", *BAD["path"]]}),
    (datasets.to_npz, {"splits": SPLITS, "path": "x.npz"}, {"splits": "splits", "path": "path"}),
    (datasets.check_labels, {"splits": SPLITS}, {"classes": [*BAD["count"], 2]}),
    (datasets.fingerprint, {}, {"splits": "splits"}),
    (datasets.not_finite, {}, {"splits": "splits"}),
    (datasets.take, {"split": SPLITS["train"]}, {"indices": "indices"}),
    (datasets.Stream, {}, {"source": [None, 5, {}, [], {"x": np.zeros(3), "y": np.zeros(2)}]}),
    (datasets.Stream, {"source": {"x": np.zeros(3)}}, {"transform": [5, "x"], "threads": "count"}),
    (models.get, {"classes": 10}, {"name": [None, 5, "nosuch", "fc_0", "fc_x", []]}),
    (models.get, {"name": "fc_8"}, {"classes": [None, "x", 1, 2.5, True]}),
    (plots.steps_to_target, {"result_or_results": RESULT}, PLACE | {"labels": [5, [5], []]}),
    (plots.steps_to_target, {}, {"result_or_results": [[], {}, [5], *BAD["result"]]}),
    (plots.learning_rates, {"result": RESULT}, PLACE | {"result": "result", "reference": [7]}),
    (plots.training_curves, {"result": RESULT, "batch_size": 8}, PLACE | {"metric": [5, "a/b"]}),
    (plots.training_curves, {"result": RESULT}, {"batch_size": "count"}),
    (plots.hyperparameters, {"result": RESULT, "batch_size": 8}, PLACE | {"x": "text"}),
    (plots.frontier, {"result": RESULT}, PLACE | {"result": "result", "confirmed": ["x", 5]}),
    (plots.sensitivity, {"result": RESULT}, PLACE | {"result": "result"}),
    (plots.variants, {"result": RESULT}, PLACE | {"result": "result"}),
    (plots.tuning_curve, {"result": RESULT}, PLACE | {"batch_sizes": [5, [], [7], ["a"]]}),
    (plots.best_by_budget, {"result": RESULT}, PLACE | {"result": "result"}),
    (plots.confirmation, {"result": RESULT}, {"result": "result"}),
    (plots.measurement, {}, {"found": "result"}),
    (plots.comparison, {}, {"found": "result"}),
    (plots.noise_scale, {"table": NOISE}, PLACE | {"table": "frame", "fit": ["x", 5]}),
    (plots.save, {"stem": "a"}, {"figure": [None, 5, "x", []]}),
    (plots.style, {}, {"preset": "text"}),
    (theory.noise_scale, {"workload": WORKLOAD, "params": PARAMS}, OF_POINT | {"params": [5, {}]}),
    (
        theory.sharpness,
        {"workload": WORKLOAD, "params": PARAMS},
        {"tolerance": [None, "3", math.nan, True, -1, math.inf]},
    ),
    (
        theory.noise_scales,
        {"study": STUDY, "batch_size": 8, "trial": 0, "steps": [1]},
        {"study": "study", "steps": [None, 5, [], [2, 1]], "examples": [0, 2.5], "nosuch": [1]},
    ),
    (theory.generalisation, {"study": STUDY, "train_loss": 0.5}, {"result": "result"}),
    (
        theory.branches,
        {"study": STUDY, "batch_size": 8, "trial": 0, "steps": [1], "batch_sizes": [4, 8]},
        {"study": "study", "tolerance": "positive", "rule": ["nosuch", 5, lambda: 1]},
    ),
    (NQ.risk, {"steps": [1], "learning_rate": 0.1}, {"batch_size": "positive"}),
    (NQ.simulate, {"steps": [1], "learning_rate": 0.1, "batch_size": 2}, {"runs": "count"}),
    (own, {}, {"init": ["x", lambda: {}, lambda key: {}], "data": "data", "name": "name"}),
    (own, {}, {"loss": [5, lambda p: 0, lambda p, b: None, lambda p, b: p["nosuch"]]}),
    (own, {}, {"loss": [lambda p, b: True, lambda p, b: (1.0, 2.0, 3.0), lambda p, b: 1 / 0]}),
    (own, {}, {"loss": [lambda p, b: jnp.zeros((5, 5)), lambda p, b: jnp.zeros(2, complex)]}),
    (own, {}, {"metrics": [5, [], {"a": 5}, {"a/b": len}, {"a": lambda p, b: None}]}),
    (own, {}, {"labels": "word", "ignored_label": ["x", 2.5], "titled": [5, lambda: 1]}),
    (finalized, {}, {"finalize": [lambda: 1, lambda s: None, lambda s: s["x"], lambda s: [1, 2]]}),
    (finalized, {}, {"finalize": [lambda s: 1j, lambda s: (1,), lambda s: True, 5]}),
    (of_model, {}, {"model": "model", "loss": "loss", "data": "data", "name": "name"}),
    (
        of_model,
        {},
        {"scale": ["3", NAN, True, 0, -1], "ignore_label": ["x", 2.5, 2**40], "mode": [5, "x"]},
    ),
    (WORKLOAD.read, {"split": "train"}, {"indices": "indices"}),
    (records.StudyFolder.open, {}, {"folder": "path"}),
]


CASES = [
    pytest.param(
        call,
        good,
        argument,
        BAD[kind] if isinstance(kind, str) else kind,
        id=f"{number}-{getattr(call, '__qualname__', call)}-{argument}",
    )
    for number, (call, good, arguments) in enumerate(TABLE)
    for argument, kind in arguments.items()
]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("bad")


def test_the_table_has_hundreds_of_rows():
    kinds = [kind for _, _, arguments in TABLE for kind in arguments.values()]
    assert sum(len(BAD[kind] if isinstance(kind, str) else kind) for kind in kinds) >= 250


@pytest.mark.parametrize(("call", "good", "argument", "values"), CASES)
def test_it_is_told_before_anything_compiles_or_is_written(
    call, good, argument, values, place, monkeypatch
):
    monkeypatch.chdir(place)
    for value in values:
        with compiled() as programs, pytest.raises(OURS) as told:
            call(**good | {argument: value})
        words = str(told.value)
        at = traceback.extract_tb(told.value.__traceback__)[-1].filename
        assert at.startswith(PACKAGE), (value, words, at)
        assert "raises" in words or not INSIDE.search(words), (value, words)
        assert not programs, (value, words)
        assert not [*place.iterdir()], (value, words)
    plt.close("all")
