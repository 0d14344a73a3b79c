"""One way from what a user gives to a path: absolute, `~` expanded, addresses refused, any name."""

import os
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import pytest
from helpers import perceptron

import batchscale as bs
from batchscale.files import cache_folder, local_path
from batchscale.records import StudyFolder, load_tables


def study():
    return bs.Study(
        workload=perceptron(),
        optimizer="sgd",
        space=bs.SearchSpace(learning_rate=bs.LogUniform(0.3, 3)),
        batch_sizes=[8],
        goal=bs.Goal("validation/error", 0.5),
        trials=2,
        max_steps=10,
    )


ODD = ["lr:0.1/a", "a=b", "two words", "ünï-码", "100%d", "a*[b]?", "~x", "-", "x;y&z'\"", "a\nb"]


@pytest.mark.parametrize("name", ODD)
def test_any_name_that_a_folder_may_have_is_a_name_and_nothing_else(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    with StudyFolder.open(name) as records:
        records.write_plan({"seed": 1})
        records.compact()
    assert records.folder == Path(str(tmp_path), name)
    assert (tmp_path / name / "measurements.parquet").is_file()
    assert [len(table) for table in load_tables(name)] == [0, 0]
    assert os.listdir(tmp_path) == [Path(name).parts[0]]
    for path in bs.plots.save(plt.subplots()[1], f"{name}/figure"):
        assert path.is_absolute()
        assert path.is_file()
    plt.close("all")


def test_the_home_folder_is_that_of_the_user(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert local_path("~/runs") == tmp_path / "runs"
    assert local_path(Path("~/runs")) == tmp_path / "runs"
    assert local_path("./~/runs") == tmp_path / "~/runs"
    with StudyFolder.open("~/runs") as records:
        records.write_plan({})
    assert os.listdir(tmp_path) == ["runs"]
    for variable in ("BATCHSCALE_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.setenv(variable, "~/cache")
        assert cache_folder().relative_to(tmp_path).parts[0] == "cache"


@pytest.mark.parametrize(
    "address",
    ["gs://bucket/a", "s3://bucket/a", "file:///a", "hdfs://a/b", Path("gs://bucket/a"), "x+y://a"],
)
def test_an_address_is_refused_at_every_entrance_before_anything_is_done(
    tmp_path, monkeypatch, address
):
    monkeypatch.chdir(tmp_path)
    some = study()
    result = bs.Result(tmp_path, some.definition(), pd.DataFrame(), pd.DataFrame())
    monkeypatch.setattr(bs.Workload, "splits", lambda _: pytest.fail("data was loaded"))
    for entrance in (
        some.run,
        some.extend,
        some.confirm,
        some.refine,
        lambda folder: some.run_trial(batch_size=8, trial=0, folder=folder),
        bs.load,
        bs.repair,
        load_tables,
        StudyFolder.open,
        result.save_tables,
        lambda stem: bs.plots.save(plt.figure(), stem),
    ):
        with pytest.raises(ValueError, match="an address; wanted a path on a disk of this machine"):
            entrance(address)
    plt.close("all")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("given", [None, 3, b"", "", "a\0b"])
def test_what_is_no_path_is_refused(given):
    with pytest.raises((TypeError, ValueError), match=r"folder: got .* wanted a path"):
        local_path(given)


def test_a_study_ends_where_it_began_whatever_becomes_of_the_working_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "elsewhere").mkdir()

    def leave(progress):
        os.chdir(tmp_path / "elsewhere")

    result = study().run("lr:0.1/a=b %d", progress=leave)
    assert result.folder == tmp_path / "lr:0.1/a=b %d"
    pd.testing.assert_frame_equal(result.trials, bs.load(result.folder).trials, check_exact=True)
    os.chdir(tmp_path)
    loaded = bs.load("lr:0.1/a=b %d")
    os.chdir(tmp_path / "elsewhere")
    assert loaded.folder == result.folder
    assert len(loaded.layouts()) == 1
    assert [path.parent for path in loaded.save_tables("tables")] == [
        tmp_path / "elsewhere/tables"
    ] * 2
    assert sorted(os.listdir(tmp_path)) == ["elsewhere", "lr:0.1"]
    assert os.listdir(tmp_path / "elsewhere") == ["tables"]


def test_a_file_in_the_place_of_a_folder_is_told(tmp_path):
    (tmp_path / "a").write_text("")
    with pytest.raises(FileExistsError, match="not a folder, but a file is there"):
        StudyFolder.open(tmp_path / "a")
    with pytest.raises(FileNotFoundError, match="a file, and no folder"):
        bs.load(tmp_path / "a")
