import contextlib
import json
import math
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import ml_dtypes
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from helpers import KilledError, operations_before_a_kill
from hypothesis import given, settings
from hypothesis import strategies as st

from batchscale.records import (
    MEASUREMENT_INDEX,
    TRIAL_COLUMNS,
    TRIAL_INDEX,
    DamagedError,
    Origin,
    Status,
    StopReason,
    StudyFolder,
    _holding,
    environment,
    load_tables,
    measurement_table,
    provenance,
    trial_table,
)


def measurements(rows: dict) -> pd.DataFrame:
    """The table of {(batch_size, trial, replicate, step): {column: value}}."""
    index = pd.MultiIndex.from_tuples(rows, names=MEASUREMENT_INDEX)
    return pd.DataFrame(list(rows.values()), index)


def trials(rows: list[tuple], **columns) -> pd.DataFrame:
    index = pd.MultiIndex.from_tuples(rows, names=TRIAL_INDEX)
    defaults = {
        "learning_rate": 0.1,
        "origin": Origin.PLAN,
        "status": Status.COMPLETE,
        "steps_trained": 9,
        "stop_reason": StopReason.BUDGET,
        "first_crossing": math.inf,
    }
    return pd.DataFrame(defaults | columns, index)


ROW = measurements({(8, 0, 0, 5): {"validation/error": 0.5}})


def test_tables_come_back_in_their_exact_form(tmp_path):
    with StudyFolder.open(tmp_path) as records:
        records.append_measurements(
            measurements({(8, 0, 0, 5): {"validation/error": 1}, (4, 1, 0, 2): {"train/loss": 7}})
        )
        records.append_measurements(measurements({(8, 0, 0, 0): {"validation/error": 0.1}}))
        records.write_trials(
            8, trials([(8, 1, 0), (8, 0, 0)], momentum=[0, 1], status="infeasible")
        )
        records.write_trials(4, trials([(4, 1, 0)], origin="topup", first_crossing=[7]))
    measured, tried = load_tables(tmp_path)
    nan = np.nan
    expected = pd.DataFrame(
        {"train/loss": [7.0, nan, nan], "validation/error": [nan, 0.1, 1.0]},
        pd.MultiIndex.from_tuples(
            [(4, 1, 0, 2), (8, 0, 0, 0), (8, 0, 0, 5)], names=MEASUREMENT_INDEX
        ),
    )
    pd.testing.assert_frame_equal(measured, expected, check_exact=True)
    assert tried.columns.tolist() == ["learning_rate", "momentum", *TRIAL_COLUMNS]
    assert tried.index.tolist() == [(4, 1, 0), (8, 0, 0), (8, 1, 0)]
    assert tried["momentum"].tolist() == pytest.approx([nan, 1, 0], nan_ok=True)
    assert tried["status"].tolist() == ["complete", "infeasible", "infeasible"]
    assert tried["first_crossing"].tolist() == [7, np.inf, np.inf]
    assert [str(tried[name].dtype) for name in ("steps_trained", "first_crossing")] == [
        "int64",
        "float64",
    ]
    assert tried["origin"].dtype == pd.Series(["plan"], dtype=str).dtype
    assert {str(level.dtype) for table in (measured, tried) for level in table.index.levels} == {
        "int64"
    }


def test_an_empty_study_has_empty_tables_of_the_right_form(tmp_path):
    with StudyFolder.open(tmp_path) as records:
        records.append_measurements(measurement_table(ROW).iloc[:0])
        assert not list(tmp_path.glob("parts/*"))
        before = records.tables()
        records.compact()
        after = records.tables()
    for measured, tried in (before, after):
        pd.testing.assert_frame_equal(
            measured, measurement_table(ROW).iloc[:0][[]], check_exact=True
        )
        pd.testing.assert_frame_equal(
            tried, trial_table(trials([(8, 0, 0)])).iloc[:0, 1:], check_exact=True
        )


@settings(deadline=None, max_examples=15)
@given(st.data())
def test_tables_do_not_depend_on_the_order_or_number_of_parts(data):
    keys = st.tuples(st.sampled_from([1, 8]), st.integers(0, 2), st.just(0), st.integers(0, 3))
    values = st.fixed_dictionaries(
        {}, optional={"train/loss": st.floats(), "validation/error": st.floats()}
    )
    rows = data.draw(st.dictionaries(keys, values, min_size=1))
    whole = measurement_table(measurements(rows))
    order = data.draw(st.permutations(list(rows)))
    cuts = sorted(data.draw(st.sets(st.integers(1, len(order)))) | {len(order)})
    with tempfile.TemporaryDirectory() as folder, StudyFolder.open(folder) as records:
        for start, end in zip([0, *cuts], cuts, strict=False):
            part = measurements({key: rows[key] for key in order[start:end]})
            records.append_measurements(part)
            if data.draw(st.booleans()):
                records.compact()
            if data.draw(st.booleans()):
                records.append_measurements(part.iloc[:1])
        pd.testing.assert_frame_equal(records.tables()[0], whole, check_exact=True)


def test_a_row_or_batch_size_written_again_replaces_the_former(tmp_path):
    with StudyFolder.open(tmp_path) as records:
        for number in range(12):  # part 10 comes after part 9, not after part 1
            records.append_measurements(ROW * 0 + number)
        records.write_trials(8, trials([(8, 0, 0), (8, 1, 0)], steps_trained=1))
        records.write_trials(4, trials([(4, 0, 0)]))
        assert records.tables()[0]["validation/error"].tolist() == [11]
        records.compact()
        records.append_measurements(ROW * 0 + 12)
        records.write_trials(8, trials([(8, 0, 0)], steps_trained=2))
        measured, tried = records.tables()
    assert measured["validation/error"].tolist() == [12]
    assert tried.index.tolist() == [(4, 0, 0), (8, 0, 0)]
    assert tried["steps_trained"].tolist() == [9, 2]


@pytest.mark.parametrize("alive", range(19))
def test_a_kill_within_compaction_changes_no_table(tmp_path, monkeypatch, alive):
    with StudyFolder.open(tmp_path) as records:
        records.append_measurements(ROW)
        records.write_trials(8, trials([(8, 0, 0)]))
        records.compact()
        records.append_measurements(ROW + 1)  # a row of three versions
        records.append_measurements(measurements({(8, 0, 0, 6): {"train/loss": 1.0}}))
        records.append_measurements(ROW + 2)
        records.write_trials(8, trials([(8, 0, 0), (8, 1, 0)], status="infeasible"))
        records.write_trials(4, trials([(4, 0, 0)]))
        before = records.tables()
        with monkeypatch.context() as patch:
            operations_before_a_kill(patch, alive)
            # Two tables synced and renamed, their folder; the index likewise; two renamed again,
            # and five parts removed.
            if alive < 15:
                with pytest.raises(KilledError):
                    records.compact()
            else:
                records.compact()
    for table, former in zip(load_tables(tmp_path), before, strict=True):
        pd.testing.assert_frame_equal(table, former, check_exact=True)
    with StudyFolder.open(tmp_path) as records:
        records.append_measurements(ROW + 3)
        assert records.tables()[0].loc[(8, 0, 0, 5), "validation/error"] == 3.5
        records.compact()
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == [
        ".lock",
        "index.json",
        "measurements.parquet",
        "trials.parquet",
    ]


@pytest.mark.parametrize("alive", range(20))
def test_what_is_written_together_counts_at_once_or_not_at_all(tmp_path, monkeypatch, alive):
    def write(records, number):
        with records.together():
            records.append_measurements(ROW * 0 + number)
            records.write_trials(8, trials([(8, 0, 0)], steps_trained=number))
            records.write_state(8, {"x": np.full(3, number)}, {"step": number})

    def read():
        with StudyFolder.open(tmp_path, write=False) as records:
            measured, tried = records.tables()
            arrays, about = records.read_state(8)
        return [measured.iloc[0, 0], tried["steps_trained"].item(), arrays["x"][0], about["step"]]

    with StudyFolder.open(tmp_path) as records:
        write(records, 1)
        with monkeypatch.context() as patch:
            operations_before_a_kill(patch, alive)
            with contextlib.suppress(KilledError):
                write(records, 2)
    found = read()
    assert found in ([1] * 4, [2] * 4)
    assert (found == [2] * 4) == (alive > 9)  # three files, two folders, and the index renamed
    with StudyFolder.open(tmp_path) as records:
        assert read() == found
        write(records, 3)
    assert read() == [3] * 4
    assert not list(tmp_path.rglob(".unfinished-*"))


def test_an_interruption_while_files_are_moved_is_made_up_for_by_the_same_process(
    tmp_path, monkeypatch
):
    with StudyFolder.open(tmp_path) as records:
        records.write_plan({"version": 1})
        with monkeypatch.context() as patch:
            operations_before_a_kill(patch, 6)
            with pytest.raises(KilledError):
                records.write_plan({"version": 2})
        records.write_trials(8, trials([(8, 0, 0)]))
        assert records.read_plan() == {"version": 2}
    assert json.loads((tmp_path / "plan.json").read_text()) == {"version": 2}


@pytest.mark.parametrize("alive", range(7))
def test_a_kill_within_a_write_leaves_the_former_file(tmp_path, monkeypatch, alive):
    with StudyFolder.open(tmp_path) as records:
        records.write_plan({"version": 1})
        with monkeypatch.context() as patch:
            operations_before_a_kill(patch, alive)
            with pytest.raises(KilledError):
                records.write_plan({"version": 2})
    with StudyFolder.open(tmp_path) as records:
        assert records.read_plan() == {"version": 1 if alive < 5 else 2}
        assert not list(tmp_path.rglob(".unfinished-*"))


WRITER = """
import sys
import pandas as pd
from batchscale.records import MEASUREMENT_INDEX, StudyFolder
records = StudyFolder.open(sys.argv[1])
for step in range(10_000):
    index = pd.MultiIndex.from_tuples([(8, 0, 0, step)], names=MEASUREMENT_INDEX)
    records.append_measurements(pd.DataFrame({"train/loss": [step / 7]}, index))
    if step % 5 == 4:
        records.compact()
    print(step, flush=True)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL")
def test_a_killed_writer_loses_nothing_it_had_written_and_holds_no_lock(tmp_path):
    command = [sys.executable, "-c", WRITER, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
        while writer.stdout.readline().strip() != "17":
            pass
        with pytest.raises(RuntimeError) as error:
            StudyFolder.open(tmp_path)
        load_tables(tmp_path)  # reading goes on beside it
        writer.send_signal(signal.SIGKILL)
    assert str(error.value) == (
        f"{tmp_path}: another process is writing this study (process {writer.pid} on "
        f"{platform.node()}). Wait until it has ended, "
        "or give another folder; its tables can be loaded meanwhile."
    )
    with StudyFolder.open(tmp_path) as records:
        measured = records.tables()[0]
    steps = measured.index.get_level_values("step")
    assert len(steps) >= 18
    assert steps.tolist() == list(range(len(steps)))
    np.testing.assert_array_equal(measured["train/loss"], np.arange(len(steps)) / 7)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no flock")
def test_a_file_system_without_locks_has_one_writer_too(tmp_path, monkeypatch):
    def no_locks(*_):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr("fcntl.flock", no_locks)
    monkeypatch.setattr(_holding, "_RENEWED", 0.05)
    monkeypatch.setattr(_holding, "_SILENT", 0.5)
    with StudyFolder.open(tmp_path) as records:
        records.write_plan({})
        with (
            pytest.warns(UserWarning, match="Waiting 0 s whether it is heard of"),
            pytest.raises(RuntimeError, match="another process is writing this study"),
        ):
            StudyFolder.open(tmp_path)
        records.write_plan({"seed": 1})


def test_reading_survives_a_compaction_beside_it(tmp_path, monkeypatch):
    with StudyFolder.open(tmp_path) as records:
        records.append_measurements(ROW)
        read, compactions = pq.ParquetFile, []

        def read_after_compaction(*arguments, **options):
            if not compactions:
                compactions.append(records)
                records.append_measurements(ROW + 1)
                records.compact()
            return read(*arguments, **options)

        records.write_trials(8, trials([(8, 0, 0)]))
        monkeypatch.setattr(pq, "ParquetFile", read_after_compaction)
        # The first part is open already; the part of trials is gone when its turn comes.
        pd.testing.assert_frame_equal(
            load_tables(tmp_path)[0], measurement_table(ROW + 1), check_exact=True
        )


@given(st.recursive(st.floats(allow_nan=False, allow_infinity=False) | st.text() | st.none()
                    | st.booleans() | st.integers(),
                    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)))  # fmt: skip
@settings(deadline=None, max_examples=30)
def test_a_plan_comes_back_exactly(value):
    with tempfile.TemporaryDirectory() as folder, StudyFolder.open(folder) as records:
        assert records.read_plan() is None
        records.write_plan({"value": value})
        assert records.read_plan() == {"value": value}


def test_numpy_scalars_and_tuples_of_a_plan_become_those_of_json(tmp_path):
    with StudyFolder.open(tmp_path) as records:
        records.write_plan({"x": np.float32(0.1), "n": np.int64(3), "t": (1, 2), "o": Origin.PLAN})
        assert records.read_plan() == {
            "x": float(np.float32(0.1)),
            "n": 3,
            "t": [1, 2],
            "o": "plan",
        }


@pytest.mark.parametrize(
    ("plan", "kind", "message"),
    [
        (
            {"trials": [{"learning_rate": math.inf}]},
            ValueError,
            "plan.trials[0].learning_rate: JSON has no inf. "
            "Use None for what is absent or endless.",
        ),
        (
            {"x": np.float32("nan")},
            ValueError,
            "plan.x: JSON has no nan. Use None for what is absent or endless.",
        ),
        (
            {"max_steps": {64: 10}},
            TypeError,
            "plan.max_steps: key 64 must be a string to be kept in JSON.",
        ),
        ({"x": {1, 2}}, TypeError, "plan.x: set cannot be kept in JSON."),
    ],
)
def test_a_plan_that_json_cannot_hold_is_refused(tmp_path, plan, kind, message):
    with StudyFolder.open(tmp_path) as records:
        records.write_plan({"seed": 1})
        with pytest.raises(kind) as error:
            records.write_plan(plan)
        assert str(error.value) == message
        assert records.read_plan() == {"seed": 1}


def test_provenance_keeps_every_run(tmp_path):
    for run in (1, 2):
        with StudyFolder.open(tmp_path) as records:
            records.write_provenance({"run": run})
    written = json.loads((tmp_path / "provenance.json").read_text())
    assert written == {"runs": [{"run": 1}, {"run": 2}]}


ARRAYS = {
    "params/dense/kernel": np.arange(6, dtype=np.float32).reshape(2, 3).T,
    "file": np.array(3, np.int64),  # a name that NumPy's own function takes for itself
    "allow_pickle": np.array(True),
    "": np.empty((0, 4), np.uint8),
    "keys": np.arange(4, dtype=np.uint32),
    "big endian": np.arange(3, dtype=">i4"),
    "bfloat16": np.array([[1.5, -2], [np.inf, np.nan]], ml_dtypes.bfloat16),
    "scalar bfloat16": np.array(0.1, ml_dtypes.bfloat16),
    "float8": np.array([0.5, 448], ml_dtypes.float8_e4m3fn),
    "int4": np.array([-8, 7], ml_dtypes.int4),
    "empty bfloat16": np.empty((3, 0), ml_dtypes.bfloat16),
}


def test_a_state_comes_back_bit_for_bit(tmp_path):
    about = {"step": 12, "lanes": [0, 3], "loss": 0.1}
    with StudyFolder.open(tmp_path) as records:
        assert records.read_state(8) is None
        records.write_state(8, ARRAYS, about)
        arrays, read = records.read_state(8)
        assert read == about
        assert list(arrays) == list(ARRAYS)
        for name, array in ARRAYS.items():
            assert (arrays[name].dtype, arrays[name].shape) == (array.dtype, array.shape)
            assert arrays[name].tobytes() == array.tobytes()
        records.write_state(8, {}, {})
        assert records.read_state(8) == ({}, {})
        records.drop_state(8)
        records.drop_state(8)
        assert records.read_state(8) is None


def test_a_state_of_python_objects_is_refused(tmp_path):
    with StudyFolder.open(tmp_path) as records:
        with pytest.raises(TypeError) as error:
            records.write_state(8, {"x": np.array([None])}, {})
        assert str(error.value) == "state: array 'x' holds Python objects; wanted numbers."


def _foreign(path, kind):
    if kind == "text":
        path.write_text("hello")
    elif kind == "array":
        with open(path, "wb") as file:
            np.save(file, np.ones(3))
    elif kind == "another archive":
        np.savez(path, x=np.ones(3))
    elif kind == "torn":
        path.write_bytes(path.read_bytes()[:-9])
    else:
        np.savez(path, header=np.array([None]))  # NumPy would have to unpickle it


@pytest.mark.parametrize("kind", ["text", "array", "another archive", "pickle", "torn"])
def test_a_foreign_state_is_told_and_never_read(tmp_path, kind):
    path = tmp_path / "state/8.npz"
    with StudyFolder.open(tmp_path) as records:
        records.write_state(8, ARRAYS, {"step": 1})
        _foreign(path, kind)
        with pytest.raises(DamagedError, match="changed since it was written") as error:
            records.read_state(8)
        assert str(error.value).startswith(f"{path}: ")
    with StudyFolder.open(tmp_path, write=False, accept=["state/8.npz"]) as records:
        with pytest.raises(DamagedError, match="not a whole training state") as error:
            records.read_state(8)
        assert str(error.value).startswith(f"{path}: ")


@pytest.mark.parametrize("what", ["seed", "type of floats", "batch size"])
def test_a_state_of_another_seed_type_or_batch_size_is_refused(tmp_path, what):
    with StudyFolder.open(tmp_path) as records:
        records.identity = {"seed": 0, "type of floats": "float32"}
        records.write_state(8, {"x": np.ones(3)}, {})
        assert records.read_state(8) is not None
        if what == "batch size":  # and signed again
            (tmp_path / "state/4.npz").write_bytes((tmp_path / "state/8.npz").read_bytes())
            records.files.write(
                "state/4.npz", lambda file: file.write((tmp_path / "state/8.npz").read_bytes())
            )
        records.identity = records.identity | {what: 1}
        with pytest.raises(DamagedError, match=f"the training state of another {what}: got"):
            records.read_state(4 if what == "batch size" else 8)


def test_what_a_kill_left_unfinished_is_removed_by_the_next_writer(tmp_path):
    with StudyFolder.open(tmp_path) as records:
        records.append_measurements(ROW)
        records.write_state(8, {}, {})
    left = [
        tmp_path / ".unfinished-plan.json",
        tmp_path / "parts/.unfinished-measurements-00000002.parquet",
        tmp_path / "state/.unfinished-8.npz",
    ]
    for path in left:
        path.write_bytes(b"half")
    pd.testing.assert_frame_equal(
        load_tables(tmp_path)[0], measurement_table(ROW), check_exact=True
    )
    assert all(path.exists() for path in left)
    with StudyFolder.open(tmp_path) as records:
        assert not any(path.exists() for path in left)
        assert records.read_plan() is None


def test_only_an_open_folder_is_written(tmp_path):
    with StudyFolder.open(tmp_path) as records:
        records.write_plan({})
        with pytest.raises(RuntimeError, match="another process is writing"):
            StudyFolder.open(tmp_path)
    for closed in (records, StudyFolder.open(tmp_path, write=False)):
        for write in (
            lambda it: it.write_plan({}),
            lambda it: it.write_provenance({}),
            lambda it: it.append_measurements(ROW),
            lambda it: it.write_trials(8, trials([(8, 0, 0)])),
            lambda it: it.write_state(8, {}, {}),
            lambda it: it.drop_state(8),
            lambda it: it.compact(),
        ):
            with pytest.raises(RuntimeError) as error:
                write(closed)
            assert str(error.value) == (
                f"{tmp_path}: not open for writing. Open it with StudyFolder.open(folder)."
            )
        assert closed.read_plan() == {}


def test_a_folder_that_is_no_study_is_refused(tmp_path):
    def message(folder):
        with pytest.raises(FileNotFoundError) as error:
            load_tables(folder)
        return str(error.value)

    missing = tmp_path / "missing"
    assert message(missing) == (
        f"{missing}: no such folder. Give the one that study.run was given."
    )
    assert not missing.exists()
    empty = (
        f"{tmp_path}: not a study, it holds neither index.json nor tables. "
        "Give the folder that study.run was given."
    )
    assert message(tmp_path) == empty
    for name in ("sgd", "adam"):
        with StudyFolder.open(tmp_path / name) as records:
            records.write_plan({})
    assert message(tmp_path) == f"{empty} There are studies in it: adam, sgd."


def test_a_study_is_where_its_folder_is(tmp_path):
    # Parquet readers may take "learning_rate=7" in a path for a column.
    with StudyFolder.open(tmp_path / "learning_rate=7/x") as records:
        records.write_trials(8, trials([(8, 0, 0)]))
        records.compact()
    shutil.move(tmp_path / "learning_rate=7", tmp_path / "origin=8")
    tried = load_tables(tmp_path / "origin=8/x")[1]
    assert tried["learning_rate"].tolist() == [0.1]
    assert tried["origin"].tolist() == ["plan"]


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("parts/measurements-00000001.parquet", lambda c: c[:-7], "changed since it was written: "),
        ("parts/trials-8.parquet", lambda c: c[:50] + b"?" + c[51:], "changed since it was writ"),
        ("plan.json", lambda c: c.replace(b"1", b"2"), "changed since it was written: got digest"),
        ("plan.json", None, "missing; index.json says that the study has it. Nothing was overwr"),
        ("index.json", lambda c: c.replace(b"a", b"b", 1), "changed since it was written: "),
        ("index.json", lambda c: b"[]", "changed since it was written: it is no index."),
        ("index.json", None, "missing, though the folder holds files of a study. It says which"),
        ("provenance.json", lambda c: c + b" ", "changed since it was written: got digest"),
    ],
)
def test_a_damaged_file_is_named_and_nothing_is_overwritten(tmp_path, name, damage, message):
    with StudyFolder.open(tmp_path) as records:
        records.append_measurements(ROW)
        records.write_trials(8, trials([(8, 0, 0)]))
        records.write_plan({"seed": 1})
        records.write_provenance({"run": 1})
    path = tmp_path / name
    content = path.read_bytes()
    path.unlink()
    if damage is not None:
        path.write_bytes(damage(content))

    def read(records):
        records.contents()
        if name == "provenance.json":
            records.runs()

    before = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    for open_ in (
        lambda: StudyFolder.open(tmp_path),
        lambda: read(StudyFolder.open(tmp_path, write=False)),
    ):
        with pytest.raises(DamagedError) as error:
            open_()
        assert str(error.value).startswith(f"{path}: {message}")
    assert before == {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}


def test_a_part_of_another_folder_is_not_read_and_stops_the_next_writer(tmp_path):
    for name in ("a", "b"):
        with StudyFolder.open(tmp_path / name) as records:
            records.append_measurements(ROW + ord(name))
            if name == "a":
                records.compact()
    foreign = tmp_path / "a/parts/measurements-00000001.parquet"
    shutil.copy(tmp_path / "b/parts/measurements-00000001.parquet", foreign)
    (tmp_path / "a/parts/measurements-2.parquet.bak").write_text("a copy")
    pd.testing.assert_frame_equal(
        load_tables(tmp_path / "a")[0], measurement_table(ROW + 97), check_exact=True
    )
    with pytest.raises(DamagedError, match=r"not of this study: index\.json does not name it"):
        StudyFolder.open(tmp_path / "a")
    foreign.unlink()
    with pytest.warns(UserWarning, match=r"passed over, .* parts/measurements-2\.parquet\.bak"):
        StudyFolder.open(tmp_path / "a").close()


def test_a_folder_beside_another_study_is_told(tmp_path):
    for name in ("a", "b"):
        with StudyFolder.open(tmp_path / name) as records, records.beside("refine") as side:
            side.write_plan({"rounds": []})
    with StudyFolder.open(tmp_path / "a", write=False) as records:
        assert records.reading_beside("confirm") is None
        assert records.reading_beside("refine").read_plan() == {"rounds": []}
        shutil.rmtree(tmp_path / "a/refine")
        with pytest.raises(DamagedError, match="missing; its study says that it is there"):
            records.reading_beside("refine")
        shutil.copytree(tmp_path / "b/refine", tmp_path / "a/refine")
        with pytest.raises(DamagedError, match="of another study than the folder it is in"):
            records.reading_beside("refine")


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (
            ROW.droplevel("replicate"),
            "measurements: the index must be (batch_size, trial, replicate, step), got "
            "(batch_size, trial, step). Set it with measurements.set_index(['batch_size', "
            "'trial', 'replicate', 'step']); replicate is 0 for a plain trial.",
        ),
        (
            ROW.rename(columns={"validation/error": "error"}),
            "measurements: column 'error' must be named \"split/metric\".",
        ),
        (
            pd.concat([ROW, ROW]),
            "measurements: batch_size 8, trial 0, replicate 0, step 5 has more than one row; "
            "wanted one.",
        ),
        (
            ROW.astype(str).replace("0.5", "low"),
            "measurements: column 'validation/error' must be numbers: "
            "could not convert string to float: 'low'.",
        ),
        (
            ROW.rename(index=float, level="step"),
            "measurements: index level 'step' must be integers, got float64.",
        ),
    ],
)
def test_measurements_of_another_form_are_refused(tmp_path, frame, message):
    with StudyFolder.open(tmp_path) as records:
        with pytest.raises(ValueError) as error:  # noqa: PT011  (its words are compared below)
            records.append_measurements(frame)
        assert str(error.value) == message
    assert not list(tmp_path.glob("parts/*"))


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (
            trials([(8, 0, 0)], status="done"),
            "trials: status 'done' is not one of complete, incomplete, infeasible.",
        ),
        (
            trials([(8, 0, 0)]).drop(columns=["status", "origin"]),
            "trials: lacks the columns origin, status.",
        ),
        (
            trials([(8, 0, 0), (16, 0, 0)]),
            "trials: batch size 8 was given rows of batch size 16. "
            "Write each batch size by itself.",
        ),
    ],
)
def test_trials_of_another_form_are_refused(tmp_path, frame, message):
    with StudyFolder.open(tmp_path) as records:
        with pytest.raises(ValueError) as error:  # noqa: PT011  (its words are compared below)
            records.write_trials(8, frame)
        assert str(error.value) == message


def test_the_words_of_a_trial_are_those_a_user_reads():
    assert [*Status, *Origin, *StopReason] == [
        *("complete", "incomplete", "infeasible"),
        *("plan", "topup", "refine", "expand", "confirm", "measure"),
        *("first crossing", "own crossing", "factor", "budget", "own budget"),
        *("diverged", "interrupted"),
    ]
    tried = trial_table(trials([(8, 0, 0)]))
    assert (tried["status"] == Status.COMPLETE).tolist() == [True]


def test_provenance_says_what_a_run_depends_on(tmp_path, monkeypatch):
    import jax

    monkeypatch.setattr(sys, "orig_argv", ["/opt/bin/python3", "run.py", "--goal", "a b"])
    found = provenance()
    assert found["command"] == "python run.py --goal 'a b'"
    assert found["versions"]["jax"] == jax.__version__
    assert found["versions"]["pandas"] == pd.__version__
    assert sum(device["count"] for device in found["devices"]) == len(jax.devices())
    assert found["devices"][0]["platform"] == jax.devices()[0].platform
    assert found["jax_enable_x64"] is jax.config.jax_enable_x64
    assert found["date"].endswith("+00:00")
    assert 1 <= found["processors"] <= os.cpu_count()
    assert found["processor"]
    with StudyFolder.open(tmp_path) as records:
        records.write_provenance(found)


def test_a_package_that_is_absent_has_no_version(monkeypatch):
    monkeypatch.setattr(environment, "PACKAGES", ("no-such-package",))
    assert provenance()["versions"]["no-such-package"] is None


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_the_git_revision_is_that_of_a_checkout_that_tracks_the_file(tmp_path):
    def git(*arguments):
        identity = ["-c", "user.name=x", "-c", "user.email=x@example.org"]
        command = ["git", *identity, *arguments]
        return subprocess.run(
            command, cwd=tmp_path, check=True, capture_output=True, text=True
        ).stdout.strip()

    file = tmp_path / "package.py"
    file.write_text("x = 1\n")
    assert environment.git_state(file) is None
    git("init", "--quiet")
    assert environment.git_state(file) is None  # an installed package inside another project
    git("add", "package.py")
    git("commit", "--quiet", "--message", "first")
    assert environment.git_state(file) == {"revision": git("rev-parse", "HEAD"), "dirty": False}
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "steps.csv").write_text("batch_size,steps\n")  # made by that code
    assert environment.git_state(file) == {"revision": git("rev-parse", "HEAD"), "dirty": False}
    file.write_text("x = 2\n")
    assert environment.git_state(file) == {"revision": git("rev-parse", "HEAD"), "dirty": True}


def test_where_there_is_no_git_there_is_no_revision(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert environment.git_state(Path(__file__)) is None
