"""That no table has a column of which a hyperparameter could have the name."""

import inspect
import subprocess
import sys

import matplotlib.pyplot as plt
import pandas as pd
import pytest

import batchscale as bs
from batchscale import columns, metrics, scaling, tuner

HYPERPARAMETERS = {"learning_rate", "momentum"}


@pytest.fixture
def seen(monkeypatch):
    """The names of all columns that any table has from now on, those in between too."""
    names = set()

    def recorded(method, found):
        original = getattr(pd.DataFrame, method)

        def call(self, *args, **kwargs):
            result = original(self, *args, **kwargs)
            names.update(found(self if result is None else result, *args))
            return result

        monkeypatch.setattr(pd.DataFrame, method, call)

    for method in ("__init__", "rename", "reset_index", "merge", "join", "assign", "set_index"):
        recorded(method, lambda frame, *_: [*frame.columns, *frame.index.names])
    recorded("__setitem__", lambda frame, key, *_: key if isinstance(key, list) else [key])
    recorded("insert", lambda frame, place, name, *_: [name])
    return names


def callable_alone(function):
    """Whether a function needs nothing besides its first argument."""
    _, *others = inspect.signature(function).parameters.values()
    return all(p.default is not p.empty or p.kind is p.VAR_KEYWORD for p in others)


@pytest.mark.filterwarnings("ignore:no trial reached")
@pytest.mark.slow
def test_every_column_of_every_table_is_declared(square, tmp_path, seen):
    study = bs.Study(
        workload=square,
        optimizer="momentum",
        space=bs.SearchSpace(
            learning_rate=bs.LogUniform(1e-2, 1), momentum=bs.ReverseLogUniform(0.5, 0.95)
        ),
        batch_sizes=[16, 64],
        goal=bs.Goal("validation/error", 0.25),
        trials=6,
        max_steps=120,
        stop="budget",
        lanes=2,
    )
    study.run(tmp_path, progress=False)
    study.refine(tmp_path, rounds=1, trials=2, progress=False)
    study.confirm(tmp_path, settings=2, selection_seeds=2, seeds=3, progress=False)
    study.estimate()
    result = bs.load(tmp_path)
    analyses = [
        getattr(result, name)
        for name, method in inspect.getmembers(bs.Result, inspect.isfunction)
        # What `Study.measure` finds has its own columns, looked at where it is measured.
        if not name.startswith("_") and name != "measurement" and callable_alone(method)
    ]
    for analysis in analyses:
        analysis()
    tables = result.measurements, result.goal
    trials = {"trials": result.trials}
    for function in (
        metrics.steps_to_target, scaling.learning_rates, metrics.tuning_curve, metrics.variants
    ):  # fmt: skip
        function(*tables, **trials)
    metrics.best_of(*tables, n=1, **trials)
    metrics.members(result.trials, 3)
    metrics.steps_to_targets(result.measurements, [result.goal], **trials)
    metrics.best_measurement(result.measurements, result.goal.metric, **trials)
    metrics.epoch_budget(result.measurements, 2, 100, **trials)
    scaling.rules(result.learning_rates())
    scaling.transitions(result.variants())
    scaling.frontier(result.steps_to_target(), seconds_per_step=0.1)
    tuner.optima(result.steps_to_target(), result.trials, result.space)
    result.audit().table()
    for name, plot in inspect.getmembers(bs.plots, inspect.isfunction):
        if next(iter(inspect.signature(plot).parameters)) == "result" and callable_alone(plot):
            plot(result)
            plt.close("all")
            assert name

    own = {f"{name}{end}" for name in HYPERPARAMETERS for end in ("", "_edge", "_width")}
    words = {name for name in seen if isinstance(name, str) and "/" not in name}
    assert len(words) > 60
    assert words - own - set(columns.taken()) == set()


def test_a_column_is_declared_with_the_table_that_has_it():
    found = columns.taken()
    assert found["crossing"] == "crossings of a search"
    assert found["train_loss"] == "generalisation"
    assert found["b_simple"] == "noise scales"


@pytest.mark.slow
def test_names_are_taken_whatever_has_been_imported():
    """Figures and theory are imported when they are first used."""
    script = """
        import importlib, pkgutil
        import batchscale as bs
        from batchscale import columns
        bs.Study, bs.SearchSpace, bs.Result
        before = set(columns.taken())
        for module in pkgutil.walk_packages(bs.__path__, "batchscale."):
            importlib.import_module(module.name)
        later = set(columns.taken()) - before
        assert not later, later
    """
    code = "\n".join(line.removeprefix(" " * 8) for line in script.splitlines())
    subprocess.run([sys.executable, "-c", code], check=True)
