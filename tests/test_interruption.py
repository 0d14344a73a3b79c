"""A study that is interrupted at any moment goes on, and ends with the same tables."""

import contextlib
import itertools
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
from helpers import perceptron, writing_after_every_evaluation

import batchscale as bs
from batchscale.engine import layout
from batchscale.runner import batch_size, planning, session
from batchscale.runner.batch_size import Pauses

# From 1,000 examples on evaluations may be bounds: the first ones are nothing else.
STUDY = bs.Study(
    workload=perceptron(validation=1_000),
    optimizer="sgd",
    space=bs.SearchSpace(learning_rate=bs.LogUniform(1.0, 3.0)),
    batch_sizes=[50, "full"],
    goal=bs.Goal("validation/error", 0.35),
    trials=3,
    max_steps=6,
    stop="budget",
)
CALLS = {
    "run": lambda folder, **how: STUDY.run(folder, **how),
    "refine": lambda folder, **how: STUDY.refine(folder, rounds=1, trials=2, **how),
    "confirm": lambda folder, **how: STUDY.confirm(
        folder, settings=2, selection_seeds=2, seeds=2, **how
    ),
}
ANALYSES = ("steps_to_target", "optima", "audit", "confirmation", "refined", "variants", "layouts",
            "learning_rates", "sensitivity", "tuning_curve", "frontier", "recommend")  # fmt: skip


@pytest.fixture(autouse=True)
def compiled_once(monkeypatch, kept):
    """Runs share programs; what is tested is what they write and read."""
    for module, name in (
        (planning, "fingerprint"),
        (planning, "mixes_examples"),
        (session, "Engine"),
        (layout, "choose"),
    ):
        function = getattr(module, name)

        def once(*arguments, name=name, function=function, **options):
            key = name, options.get("batch_size")
            if key not in kept:
                kept[key] = function(*arguments, **options)
            return contextlib.nullcontext(kept[key]) if name == "Engine" else kept[key]

        monkeypatch.setattr(module, name, once)
    writing_after_every_evaluation(monkeypatch)


@pytest.fixture(scope="module")
def kept():
    return {}


@contextlib.contextmanager
def watching(folder: Path, monkeypatch, before=lambda name: None, after=lambda name: None):
    """Calls functions before and after each file in the folder takes its place."""
    replace = os.replace

    def watched(source, target):
        inside = Path(target).is_relative_to(folder)
        name = os.path.relpath(target, folder)
        if inside:
            before(name)
        replace(source, target)
        if inside:
            after(name)

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", watched)
        yield


def tables(folder: Path) -> list[pd.DataFrame]:
    """All that a study has found, also what was run beside it."""
    found = []
    for part in (folder, folder / "refine", folder / "confirm"):
        if (part / "plan.json").exists():
            found += bs.records.load_tables(part)
    return found


def assert_same(folder: Path, whole: list[pd.DataFrame]) -> None:
    found = tables(folder)
    assert len(found) == len(whole)
    for table, expected in zip(found, whole, strict=True):
        pd.testing.assert_frame_equal(table, expected, check_exact=True)


@pytest.fixture(scope="module")
def finished():
    """Folders before each call, copies of them at every write in it, and the tables in the end."""
    return {}


def play(call: str, finished, tmp_path_factory, monkeypatch):
    """Runs the calls up to one; what there was before it, at each write, and after it."""
    for name in CALLS:
        if name not in finished:
            folder = tmp_path_factory.mktemp(name) / "study"
            start = tmp_path_factory.mktemp(name) / "start"
            previous = list(finished.values())
            if previous:
                shutil.copytree(previous[-1]["end"], folder)
            else:
                folder.mkdir()
            shutil.copytree(folder, start)
            copies: list[Path] = []

            def copy(_, name=name, folder=folder, copies=copies):
                copies.append(tmp_path_factory.mktemp(name) / "copy")
                shutil.copytree(folder, copies[-1])

            with watching(folder, monkeypatch, before=copy, after=copy):
                CALLS[name](folder, progress=False)
            finished[name] = {"start": start, "copies": copies, "end": folder}
        if name == call:
            return finished[name]
    raise KeyError(call)


@pytest.mark.parametrize("every", [80, pytest.param(1, marks=pytest.mark.long)])
@pytest.mark.parametrize(
    "call", [pytest.param(n, marks=[pytest.mark.long] * (n == "confirm")) for n in CALLS]
)
def test_a_kill_before_or_after_any_write_changes_no_table(
    call, every, finished, tmp_path_factory, monkeypatch
):
    played = play(call, finished, tmp_path_factory, monkeypatch)
    monkeypatch.setattr(batch_size, "PAUSES", Pauses(60.0))
    whole, copies = tables(played["end"]), played["copies"]
    assert len(copies) > 20
    # The first evaluations, and then some: one write is like another. With -m slow, all.
    for number, copy in enumerate(copies):
        if number in (2, 7) or number % every == 0:
            again = copy.with_name(f"again-{every}")
            shutil.copytree(copy, again)
            CALLS[call](again, progress=False)
            assert_same(again, whole)


@pytest.mark.filterwarnings("ignore:.*not finished, and left out")
@pytest.mark.slow
def test_every_analysis_has_an_answer_or_a_reason_at_any_moment(
    finished, tmp_path_factory, monkeypatch
):
    """Not a KeyError of a column that early tables do not have."""
    answered = set()
    for call in CALLS:
        for copy in play(call, finished, tmp_path_factory, monkeypatch)["copies"][2:14:4]:
            if not (copy / "plan.json").exists():
                continue
            result = bs.load(copy)
            assert STUDY.goal.metric in result.measurements
            assert "learning_rate" in result.trials
            for name in ANALYSES:
                try:
                    getattr(result, name)()
                    answered.add(name)
                except (ValueError, FileNotFoundError):
                    pass  # what, and what to do
    assert answered >= {"steps_to_target", "optima", "audit", "refined", "layouts", "frontier"}


@pytest.mark.parametrize(
    ("call", "when"),
    [("run", "before"), ("run", "after"), ("refine", "before"), ("confirm", "after")],
)
def test_an_interruption_at_a_write_goes_on_to_the_same_tables(
    call, when, finished, tmp_path_factory, tmp_path, monkeypatch
):
    """What is interrupted is written again at once, so that no row is lost and none twice."""
    played = play(call, finished, tmp_path_factory, monkeypatch)
    whole = tables(played["end"])
    kinds = {
        "run": ["plan", "parts/measurements", "state", "measurements"],
        "refine": ["refine/parts/measurements"],
        "confirm": ["confirm/plan", "confirm/parts/measurements"],
    }[call]
    for kind in kinds:
        for count in (1, 2) if kind == "parts/measurements" else (1,):
            folder = tmp_path / f"{kind}-{count}"
            shutil.copytree(played["start"], folder)
            seen = []

            def interrupt(name, kind=kind, count=count, seen=seen):
                if name.startswith(kind):
                    seen.append(name)
                    if len(seen) == count:
                        raise KeyboardInterrupt

            with watching(folder, monkeypatch, **{when: interrupt}):
                try:
                    CALLS[call](folder, progress=False)
                except KeyboardInterrupt:
                    assert len(seen) >= count
                else:
                    assert len(seen) < count  # the kind is not written so often
            CALLS[call](folder, progress=False)
            assert_same(folder, whole)


@pytest.mark.parametrize(("call", "told"), [("run", 1), ("run", 9), ("refine", 1), ("confirm", 3)])
def test_an_interruption_by_whoever_watches_goes_on_to_the_same_tables(
    call, told, finished, tmp_path_factory, tmp_path, monkeypatch
):
    played = play(call, finished, tmp_path_factory, monkeypatch)
    folder = tmp_path / "study"
    shutil.copytree(played["start"], folder)
    heard = []

    def interrupt(progress):
        heard.append(progress)
        if len(heard) == told:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        CALLS[call](folder, progress=interrupt)
    CALLS[call](folder, progress=False)
    assert_same(folder, tables(played["end"]))


def test_rows_of_an_interrupted_write_are_written_with_the_states_that_follow_them(
    finished, tmp_path_factory, tmp_path, monkeypatch
):
    """Else the states would be ahead of the rows, by all the evaluations since the last write."""
    played = play("run", finished, tmp_path_factory, monkeypatch)
    clock = itertools.count()  # it is read twice an evaluation: a write every fourth
    monkeypatch.setattr(batch_size, "time", SimpleNamespace(monotonic=lambda: float(next(clock))))
    monkeypatch.setattr(batch_size, "PAUSES", Pauses(6.0, 0.0))
    seen = []

    def interrupt(name):
        if name.startswith("parts/measurements") and not seen:
            seen.append(name)
            raise KeyboardInterrupt

    folder = tmp_path / "study"
    folder.mkdir()
    with watching(folder, monkeypatch, before=interrupt), pytest.raises(KeyboardInterrupt):
        STUDY.run(folder, progress=False)
    STUDY.run(folder, progress=False)
    assert_same(folder, tables(played["end"]))


def test_the_first_tables_are_bounds_alone(finished, tmp_path_factory, monkeypatch):
    """Else the tests above would not test them."""
    played = play("run", finished, tmp_path_factory, monkeypatch)
    begun = [copy for copy in played["copies"] if (copy / "index.json").exists()]
    tables = (bs.records.load_tables(copy)[0] for copy in begun)
    early = list(itertools.islice((table for table in tables if len(table)), 3))
    assert ["validation/error_at_least"] in [list(table.columns) for table in early]
