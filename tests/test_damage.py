"""Studies whose files were changed: told with the file's path, and never mended over."""

import dataclasses
import hashlib
import json
import re
import shutil
import traceback
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from helpers import (
    KilledError,
    operations_before_a_kill,
    perceptron,
    writing_after_every_evaluation,
)

import batchscale as bs
from batchscale.records import StudyFolder
from batchscale.records._index import Index
from validation import fuzzing

PACKAGE = str(Path(bs.__file__).parent)
CONFIRM = {"settings": 2, "selection_seeds": 1, "seeds": 1, "progress": False}


def study(**changes):
    fields = {
        "workload": perceptron(),
        "optimizer": "sgd",
        "space": bs.SearchSpace(learning_rate=bs.LogUniform(0.3, 3)),
        "batch_sizes": [8, "full"],
        "goal": bs.Goal("validation/error", 0.5),
        "trials": 3,
        "max_steps": 40,
        "stop": 3.0,
    }
    return bs.Study(**fields | changes)


class Stop(Exception):  # noqa: N818
    pass


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A finished study with all that can be beside it, one that was interrupted, another seed's."""
    root = tmp_path_factory.mktemp("damage")
    study().run(root / "finished", progress=False)
    study().refine(root / "finished", rounds=1, trials=2, progress=False)
    study().confirm(root / "finished", **CONFIRM)
    for name, seed in (("interrupted", 0), ("other", 1)):
        told = []

        def stop(progress, told=told):
            told.append(progress)
            if progress.batch_size == 100 and progress.step >= 3:
                raise Stop

        with pytest.raises(Stop):
            study(seed=seed, stop="budget").run(root / name, progress=stop)
    return root


def files(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != ".lock"
    }


def read(folder, name=""):
    """What analyses read of a study; of its refinement and confirmation what a file is read for."""
    result = bs.load(folder)
    tables = [result.measurements, result.trials]
    if not name.startswith("confirm"):
        tables += [result.refined()] if name in ("", "index.json") or "refine" in name else []
    if (name == "" or "confirm" in name) and (folder / "confirm").exists():
        found = result.confirmation()
        tables += [found.table, found.runs, found.settings]
    return tables


def told(folder, wanted, call):
    """Whether a call raised; if so an error of ours that names a file or folder of the study.

    If not, it returned the tables that were wanted.
    """
    error = None
    try:
        found = call(folder)
    except Exception as raised:
        error = raised
    if error is None:
        for table in found:
            assert any(table.equals(former) for former in wanted)
        return False
    assert isinstance(error, ValueError | FileNotFoundError), repr(error)
    assert str(folder) in str(error), str(error)
    raised_at = traceback.extract_tb(error.__traceback__)[-1].filename
    assert raised_at.startswith(PACKAGE), raised_at
    return True


def flips(random, content):
    for _ in range(9):
        place, bit = random.integers(len(content)), 1 << random.integers(8)
        yield content[:place] + bytes([content[place] ^ bit]) + content[place + 1 :]


def json_edits(random, content):
    """Leaves of a JSON file replaced, by a number, a word, nothing; and keys removed."""
    text = content.decode()
    value = json.loads(text)
    paths = []

    def walk(node, path):
        children = node.items() if isinstance(node, dict) else enumerate(node)
        for key, child in children:
            paths.append((*path, key))
            if isinstance(child, dict | list):
                walk(child, (*path, key))

    if isinstance(value, dict | list):
        walk(value, ())
    for number in random.choice(len(paths), min(12, len(paths)), replace=False):
        changed = json.loads(text)
        node = changed
        for key in paths[number][:-1]:
            node = node[key]
        last = paths[number][-1]
        match random.integers(4):
            case 0:
                node[last] = 1 + node[last] if isinstance(node[last], int | float) else 0.25
            case 1:
                node[last] = "changed"
            case 2:
                node[last] = None
            case _:
                del node[last]
        yield json.dumps(changed, indent=1).encode() + b"\n"
    yield b"{}"
    yield b"null"


def row_edits(path):
    """A table written again without a row, with one twice, and with another value."""
    with path.open("rb") as file:
        frame = pq.read_table(file).to_pandas()
    numbers = frame.select_dtypes("number").columns
    yield frame.iloc[1:]
    yield frame.iloc[:-1]
    yield pd.concat([frame, frame.iloc[:1]])
    yield frame.assign(**{numbers[-1]: frame[numbers[-1]] + 1})
    yield frame.assign(**{numbers[-2]: frame[numbers[-2]].to_numpy()[::-1]})
    yield frame.drop(columns=numbers[0])


def mutations(folder, other):
    """Ways to damage a folder, each as a function that does it."""
    random = np.random.default_rng(0)
    for name, content in files(folder).items():
        path = folder / name
        changed = [*flips(random, content), content[: len(content) // 2], content[:-1], b""]
        changed += [content + b"\0", other.get(name, b"another study's")]
        if name.endswith(".json"):
            changed += json_edits(random, content)
        for new in changed:
            yield name, lambda path=path, new=new: path.write_bytes(new)
        if name.endswith(".parquet"):
            for frame in row_edits(path):
                yield name, lambda path=path, frame=frame: frame.to_parquet(path, index=False)
        yield name, path.unlink
        yield name, lambda path=path: path.rename(path.with_name(f"{path.name}.bak"))
        yield name, lambda path=path: (path.unlink(), path.mkdir())


@pytest.mark.parametrize("kind", ["finished", "interrupted"])
@pytest.mark.slow
def test_of_hundreds_of_damaged_folders_none_is_believed_and_none_is_overwritten(
    folders, tmp_path, kind
):
    folder = tmp_path / kind
    shutil.copytree(folders / kind, folder)
    wanted, original = read(folder), files(folder)
    count, silent = 0, []
    for name, damage in list(mutations(folder, files(folders / "other"))):
        damage()
        before = files(folder)
        count += 1
        if not told(folder, wanted, lambda folder, name=name: read(folder, name)):
            silent.append(name)
        assert files(folder) == before
        path = folder / name
        if path.is_dir():
            path.rmdir()
        path.with_name(f"{path.name}.bak").unlink(missing_ok=True)
        path.write_bytes(original[name])
    assert files(folder) == original
    assert count > 180
    # Only what a reader of tables does not read goes unnoticed here; a run reads it.
    assert {name.rpartition("/")[2] for name in silent} <= {"provenance.json", "100.npz"}


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("finished", "provenance.json"),
        ("finished", "trials.parquet"),
        ("finished", "plan.json"),
        ("interrupted", "state/100.npz"),
        ("interrupted", "parts/measurements-00000001.parquet"),
        ("interrupted", "index.json"),
    ],
)
def test_a_run_tells_damage_before_it_trains_or_writes(folders, tmp_path, kind, name):
    folder = tmp_path / kind
    shutil.copytree(folders / kind, folder)
    path = folder / name
    original = path.read_bytes()
    random = np.random.default_rng(1)
    for content in [*list(flips(random, original))[:2], original[:-5], None]:
        path.unlink()
        if content is not None:
            path.write_bytes(content)

        before = files(folder)
        stop = 3.0 if kind == "finished" else "budget"
        assert told(folder, (), lambda f, stop=stop: study(stop=stop).run(f, progress=False))
        assert files(folder) == before
        path.unlink(missing_ok=True)
        path.write_bytes(original)


def test_files_that_do_not_fit_one_another_are_told_though_their_digests_agree(folders, tmp_path):
    def rows(change):
        def write(folder):
            with StudyFolder.open(folder) as records:
                measurements, trials = records.tables()
                records.replace_tables(*change(measurements.copy(), trials.copy()))

        return write

    def plan(change):
        def write(folder):
            with StudyFolder.open(folder) as records:
                found = records.read_plan()
                change(found)
                records.write_plan(found)

        return write

    def put(table, column, value, row=0):
        table.iloc[row, table.columns.get_loc(column)] = value
        return table

    def first_row(plan):
        return plan["trials"]["8"][0]["hyperparameters"]

    def cell(column, value):
        return rows(lambda m, t: (m, put(t, column, value)))

    def renamed(level, old, new):
        def change(table):
            return table.rename(index={old: new}, level=level)

        return rows(lambda m, t: (change(m), change(t)))

    cases = [
        (rows(lambda m, t: (m.iloc[1:], t)), "trial 0: it has"),
        (rows(lambda m, t: (m.drop(index=[(8, 1)]), t)), "batch size 8, trial 1: it has 0 measure"),
        (
            rows(lambda m, t: (m.rename(index={2: 3000}, level="step"), t)),
            "batch size 8, trial 0: it was measured at step",
        ),
        (cell("first_crossing", 0.0), "first_crossing is 0, and its measurements say"),
        (rows(lambda m, t: (put(m, "validation/error", 0.01), t)), "measurements say 0 for valid"),
        (cell("steps_trained", 38), "steps_trained is 38, where nothing is evaluated"),
        (cell("steps_trained", 40), "measurements, wanted 32 up to step 40"),
        (cell("status", "infeasible"), "status is 'infeasible', and its stop_reason 'factor'"),
        (cell("learning_rate", 0.5), "its hyperparameters are {'learning_rate': 0.5}, and the"),
        (cell("origin", "topup"), "its origin is 'topup', and the plan's plan"),
        (cell("stop_reason", "budget"), "its whole budget was trained, and steps_trained is"),
        (rows(lambda m, t: (m, t.iloc[:-1])), "it was measured, and is not in the table of trials"),
        (
            rows(lambda m, t: (m.drop(index=[(8, 0)]), t.drop(index=[(8, 0)]))),
            "batch size 8, trial 0: it is missing, and trial 2 is there",
        ),
        (renamed("batch_size", 8, 16), "batch size 16, all trials: it is not one of the plan's"),
        (
            renamed("trial", 2, 7),
            "batch size 8, trial 7: it is in the tables, and not in the plan",
        ),
        (plan(lambda p: first_row(p).update(learning_rate=0.5)), "which the space and the seed 0"),
        (plan(lambda p: p["study"].update(seed=1)), "which the space and the seed 1 give"),
        (plan(lambda p: p["study"]["goal"].update(value=0.2)), "first_crossing is"),
        (plan(lambda p: p["study"].update(evaluation_spacing=0.5)), "batch size 8, trial 0: "),
        (plan(lambda p: p["trials"]["8"].pop()), "batch size 8, trial 2: it is in the tables, and"),
        (plan(lambda p: p["study"].update(trials=2)), "3 trials are planned, and the study is of"),
        (plan(lambda p: p["study"].pop("goal")), "not the plan of a study (KeyError: 'goal')"),
        (plan(lambda p: p["study"].update(trials="6")), "the plan of a study (TypeError: got '6'"),
        (plan(lambda p: p.update(format=1)), "got format 1, wanted 3. It was written by another"),
    ]
    for number, (write, message) in enumerate(cases):
        folder = tmp_path / str(number)
        shutil.copytree(folders / "finished", folder)
        write(folder)
        before = files(folder)
        run = [lambda f: study().run(f, progress=False)] if number % 7 == 0 else []
        for call in (bs.load, *run):
            with pytest.raises(ValueError, match=re.escape(message)) as error:
                call(folder)
            assert str(error.value).startswith(str(folder))
        assert files(folder) == before


@pytest.mark.slow
def test_what_is_damaged_is_measured_again_on_request(folders, tmp_path):
    folder = tmp_path / "study"
    shutil.copytree(folders / "finished", folder)
    wanted = read(folder)
    damages = {
        "provenance.json": b"{}",
        "measurements.parquet": (folder / "measurements.parquet").read_bytes()[:-3],
        "refine/trials.parquet": b"gone",
    }
    for name, content in damages.items():
        (folder / name).write_bytes(content)
    (folder / "confirm/plan.json").unlink()
    assert told(folder, wanted, read)
    assert [line.partition(",")[0].partition(": /")[0] for line in bs.repair(folder)] == [
        "measurements.parquet: set aside as damaged-1/measurements.parquet",
        "provenance.json: set aside as damaged-1/provenance.json",
        "dropped: batch size 8",
        "dropped: batch size 100",
        "refine: set aside as damaged-1/refine",
        "confirm: set aside as damaged-1/confirm",
    ]
    assert bs.repair(folder) == []
    for name, content in damages.items():
        assert (folder / "damaged-1" / name).read_bytes() == content
    study().run(folder, progress=False)
    study().refine(folder, rounds=1, trials=2, progress=False)
    study().confirm(folder, **CONFIRM)
    for table, former in zip(read(folder), wanted, strict=True):
        pd.testing.assert_frame_equal(table, former, check_exact=True)


@pytest.mark.slow
def test_a_study_that_is_killed_within_its_writes_ends_with_the_same_tables(
    folders, tmp_path, monkeypatch
):
    """Killed again and again, each time after other operations on the disk."""
    writing_after_every_evaluation(monkeypatch)
    some = study(batch_sizes=[8])
    for alive in (1, 7, 19, 33, 48, 64, 85, 110, 160, 10_000):
        with monkeypatch.context() as patch:
            operations_before_a_kill(patch, alive)
            try:
                result = some.run(tmp_path / "killed", progress=False)
            except KilledError:
                if (tmp_path / "killed/index.json").exists():
                    bs.load(tmp_path / "killed")
            else:
                break
    assert alive > 85
    whole = bs.load(folders / "finished")
    for name in ("measurements", "trials"):
        table = getattr(whole, name).loc[[8]]
        pd.testing.assert_frame_equal(getattr(result, name), table, check_exact=True)


def test_a_damaged_part_costs_its_batch_size_alone(folders, tmp_path):
    folder = tmp_path / "study"
    shutil.copytree(folders / "interrupted", folder)
    shutil.copytree(folders / "interrupted", tmp_path / "as it was")
    (folder / "parts/trials-100.parquet").write_bytes(b"gone")
    done = bs.repair(folder)
    assert [line.partition(",")[0] for line in done] == [
        "parts/trials-100.parquet: set aside as damaged-1/parts/trials-100.parquet",
        "dropped: batch size 100",
    ]
    left = bs.load(folder)
    assert set(left.trials.index.get_level_values("batch_size")) == {8}
    advanced = []
    again = study(stop="budget").run(folder, progress=advanced.append)
    assert {p.batch_size for p in advanced if not p.finished} == {100}
    other = study(stop="budget").run(tmp_path / "as it was", progress=False)
    pd.testing.assert_frame_equal(again.measurements, other.measurements, check_exact=True)
    pd.testing.assert_frame_equal(again.trials, other.trials, check_exact=True)


def test_a_hand_edit_is_accepted_by_name(folders, tmp_path):
    folder = tmp_path / "study"
    shutil.copytree(folders / "finished", folder)
    path = folder / "plan.json"
    path.write_text(path.read_text().replace('"value": 0.5', '"value": 0.6'))
    with pytest.raises(bs.DamagedError, match=re.escape("accept=['plan.json']")):
        bs.load(folder)
    with pytest.raises(bs.DamagedError, match="nothing can be measured without it"):
        bs.repair(folder)
    assert bs.load(folder, accept=["plan.json"]).goal.value == 0.6
    with pytest.raises(bs.DamagedError, match="changed since"):
        bs.load(folder)
    plan = json.loads(path.read_text())
    plan["trials"]["8"][0]["hyperparameters"]["learning_rate"] = 0.4
    path.write_text(json.dumps(plan))
    assert bs.repair(folder, accept=["plan.json"]) == []
    assert bs.load(folder).goal.value == 0.6
    # A trial is run again with what the plan says that it was.
    edited = study(goal=bs.Goal("validation/error", 0.6))
    again = edited.run_trial(batch_size=8, trial=0, folder=folder, steps=1)
    assert again.hyperparameters == {"learning_rate": 0.4}
    with pytest.raises(TypeError, match=r"accept: got 'plan\.json', wanted a list"):
        bs.load(folder, accept="plan.json")


def test_a_lost_index_is_made_again_on_request_and_everything_is_compared(folders, tmp_path):
    folder = tmp_path / "study"
    shutil.copytree(folders / "finished", folder)
    wanted = read(folder)
    (folder / "index.json").unlink()
    with pytest.raises(bs.DamagedError, match="missing, though the folder holds files of a study"):
        bs.load(folder)
    definition = bs.load(folder, accept=["index.json"]).definition
    assert definition == bs.load(folders / "finished").definition
    (folder / "refine/index.json").unlink()
    assert bs.repair(folder, accept=["index.json", "refine/index.json"]) == []
    for table, former in zip(read(folder), wanted, strict=True):
        pd.testing.assert_frame_equal(table, former, check_exact=True)


def test_tables_without_a_plan_are_no_study_to_go_on_with(folders, tmp_path):
    result = bs.load(folders / "finished")
    with StudyFolder.open(tmp_path) as records:
        records.append_measurements(result.measurements)
    before = files(tmp_path)
    for call in (bs.load, lambda folder: study().run(folder, progress=False)):
        with pytest.raises(FileNotFoundError, match=re.escape(f"{tmp_path}: no plan.json")):
            call(tmp_path)
    assert files(tmp_path) == before


def test_a_name_that_is_no_file_of_the_study_is_not_accepted(folders):
    folder = folders / "finished"
    before = files(folder)
    for name in ("nope.json", "confirm/nope.json", "refine/state/8.npz"):
        message = f"{folder / name}: accepted, but it is no file of the study. Its files are "
        for call in (bs.load, bs.records.load_tables, bs.repair):
            with pytest.raises(bs.DamagedError, match=re.escape(message)):
                call(folder, accept=["plan.json", name])
    assert files(folder) == before
    held = ["plan.json", "index.json", "confirm/plan.json", "refine/index.json"]
    assert bs.load(folder, accept=held).accepted == set(held)
    with pytest.raises(bs.DamagedError, match=r"no file of the study\. Its files are none\.$"):
        bs.load(folders / "interrupted", accept=["confirm/index.json"])


def test_provenance_is_compared_when_a_study_is_loaded(folders, tmp_path):
    folder = tmp_path / "study"
    shutil.copytree(folders / "finished", folder)
    (folder / "provenance.json").write_text("{}")
    message = f"{folder / 'provenance.json'}: changed since it was written: got digest "
    with pytest.raises(bs.DamagedError, match=re.escape(message)):
        bs.load(folder)
    bs.load(folder, accept=["provenance.json"])
    bs.repair(folder)
    bs.load(folder)


def test_a_damaged_plan_is_not_said_to_be_mended_by_a_plain_repair(folders, tmp_path):
    folder = tmp_path / "study"
    shutil.copytree(folders / "finished", folder)
    plan = folder / "plan.json"
    content = plan.read_text()
    plan.write_text(content.replace('"value": 0.5', '"value": 0.6'))
    with pytest.raises(bs.DamagedError, match="changed since it was written") as error:
        bs.load(folder)
    assert "repair(folder)" not in str(error.value)
    for call in ("batchscale.load", "batchscale.repair"):
        assert f"{call}(folder, accept=['plan.json'])" in str(error.value)
    with StudyFolder.open(
        folder, accept=["plan.json"]
    ) as stored:  # the digest agrees, the plan does not
        found = stored.read_plan()
        found["study"]["seed"] = 1
        stored.write_plan(found)
    for call in (bs.load, bs.repair):
        with pytest.raises(
            bs.DamagedError, match=r"which the space and the seed 1 .* accept it by"
        ):
            call(folder)
    remedy = "Restore it from a copy, or run the study again in another folder."
    plan.write_text(content[:-9])
    with pytest.raises(bs.DamagedError, match=r"not JSON \(") as error:  # accepting does not help
        bs.load(folder, accept=["plan.json"])
    assert str(error.value).endswith(remedy)
    plan.unlink()
    with pytest.raises(bs.DamagedError, match=r"missing; index\.json says") as error:
        bs.load(folder)
    assert str(error.value).endswith(remedy)


def test_a_result_says_that_another_study_has_taken_its_folder(folders, tmp_path):
    for name in ("mine", "other"):
        shutil.copytree(folders / "finished", tmp_path / name)
    with StudyFolder.open(tmp_path / "other") as records:
        records.files.commit(study="another")
    mine = bs.load(tmp_path / "mine")
    shutil.rmtree(tmp_path / "mine")
    (tmp_path / "other").rename(tmp_path / "mine")
    for reading in (mine.audit, mine.refined, mine.confirmation, mine.layouts):
        with pytest.raises(ValueError, match="it holds another study now"):
            reading()
    assert bs.load(tmp_path / "mine").study == "another"


def test_an_index_that_names_files_elsewhere_is_refused_and_they_stay(folders, tmp_path):
    folder, outside = tmp_path / "study", tmp_path / "mine.txt"
    shutil.copytree(folders / "finished", folder)
    outside.write_text("mine")
    index = Index.from_bytes((folder / "index.json").read_bytes())
    digest = hashlib.sha256(b"mine").hexdigest()
    for name in ("../mine.txt", "/etc/hosts", "parts/../../mine.txt", "..\\mine.txt", ""):
        for field in ("files", "gone"):
            forged = dataclasses.replace(index, **{field: {name: digest}})
            (folder / "index.json").write_bytes(forged.to_bytes())
            for call in (bs.load, bs.repair, lambda f: study().run(f, progress=False)):
                with pytest.raises(bs.DamagedError, match="files of a study lie within its folder"):
                    call(folder)
    assert outside.read_text() == "mine"


@pytest.mark.parametrize("name", ["plan.json", "index.json", "measurements.parquet", "confirm"])
def test_a_link_that_leads_out_of_the_folder_is_refused(folders, tmp_path, name):
    folder, outside = tmp_path / "study", tmp_path / "outside"
    shutil.copytree(folders / "finished", folder)
    (folder / name).rename(outside)
    (folder / name).symlink_to(outside)
    for call in (lambda f: read(f), lambda f: study().run(f, progress=False)):
        with pytest.raises(bs.DamagedError, match=r"a link that leads out of .*study"):
            call(folder)
    # The folder itself may be reached by one.
    (folder / name).unlink()
    outside.rename(folder / name)
    (tmp_path / "link").symlink_to(folder)
    assert bs.load(tmp_path / "link").goal == study().goal


@pytest.mark.parametrize("name", ["index.json", "plan.json", "trials.parquet"])
def test_links_that_lead_in_a_circle_are_refused(folders, tmp_path, name):
    folder = tmp_path / "study"
    shutil.copytree(folders / "finished", folder)
    (folder / name).unlink()
    (folder / name).symlink_to(folder / "circle")
    (folder / "circle").symlink_to(folder / name)
    with pytest.raises(bs.DamagedError, match="a link that leads out of"):
        read(folder)


@pytest.mark.parametrize("field", ["versions", "git", "seconds", "devices", "workers"])
def test_a_provenance_of_another_form_is_damaged_though_its_change_is_accepted(
    folders, tmp_path, field
):
    folder = tmp_path / "study"
    shutil.copytree(folders / "finished", folder)
    path = folder / "provenance.json"
    stored = json.loads(path.read_text())
    stored["runs"][-1][field] = -0.5
    path.write_text(json.dumps(stored))
    result = bs.load(folder, accept=["provenance.json"])
    for read_it in (result.runs, lambda: result.report(tmp_path / "page.html")):
        with pytest.raises(bs.DamagedError, match="not the provenance of a study"):
            read_it()


@pytest.mark.slow
def test_of_a_hundred_and_fifty_mutated_folders_none_ends_inside_or_is_believed(folders, tmp_path):
    """A part of `python -m validation.fuzzing`, whose folders are trained as these are."""
    archive = bs.load(folders / "finished").to_archive(tmp_path / "data/model/sgd")
    kinds = dict.fromkeys(("study", "refined", "confirmed"), folders / "finished")
    kinds |= {"interrupted": folders / "interrupted", "archive": archive}
    wanted = {kind: fuzzing.expected(kind, folder) for kind, folder in kinds.items()}
    found = []
    for number in range(150):
        kind = [*kinds][number % len(kinds)]
        found += fuzzing.tried(kind, kinds[kind], number, slow=False, wanted=wanted[kind])
    assert [one for one in found if one.what in fuzzing.BAD] == []
    assert {one.what for one in found} == {"refused", "same", "believed"}
