"""One writer to a folder, whatever the file system: who holds it, who takes it over, who stops."""

import json
import os
import shutil

import pytest

from batchscale.records import StudyFolder, _holding

pytestmark = pytest.mark.skipif(os.name == "nt", reason="forks, and locks of the operating system")


@pytest.fixture(autouse=True)
def quickly(monkeypatch):
    monkeypatch.setattr(_holding, "_RENEWED", 0.05)
    monkeypatch.setattr(_holding, "_SILENT", 0.4)


@pytest.fixture
def no_locks(monkeypatch):
    def refuse(*_):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr("fcntl.flock", refuse)


def leave_claim(folder, **changes):
    """What a writer that was killed leaves."""
    claim = {"writer": "w", "machine": "m", "host": "far", "process": 7, "count": "000000000003"}
    (folder / ".lock").write_text(json.dumps(claim | changes))


def test_a_claim_of_another_machine_is_taken_over_once_it_is_silent(tmp_path):
    leave_claim(tmp_path)
    with (
        pytest.warns(UserWarning, match="process 7 on far has not ended its run"),
        StudyFolder.open(tmp_path) as records,
    ):
        records.write_plan({"seed": 1})
    assert (tmp_path / ".lock").read_text() == ""


def test_a_claim_of_this_machine_needs_no_wait_where_there_are_locks(tmp_path):
    leave_claim(tmp_path, machine=_holding._machine())
    with StudyFolder.open(tmp_path) as records:  # a warning would be an error
        records.write_plan({"seed": 1})


@pytest.mark.usefixtures("no_locks")
@pytest.mark.filterwarnings("ignore:.*Waiting")
def test_without_locks_a_second_writer_is_refused_and_the_first_goes_on(tmp_path):
    with StudyFolder.open(tmp_path) as first:
        with pytest.raises(RuntimeError, match=r"another process is writing .*process \d+ on"):
            StudyFolder.open(tmp_path)
        first.write_plan({"seed": 1})
    with StudyFolder.open(tmp_path) as records:
        assert records.read_plan() == {"seed": 1}


def test_a_writer_whose_folder_was_taken_over_writes_no_further(tmp_path):
    with StudyFolder.open(tmp_path) as records:
        records.write_plan({"seed": 1})
        leave_claim(tmp_path)
        with pytest.raises(RuntimeError, match="another process has begun to write this study"):
            records.write_plan({"seed": 2})
        assert records.read_plan() == {"seed": 1}
    assert "far" in (tmp_path / ".lock").read_text()  # and leaves it to the other


def test_a_folder_that_is_gone_is_not_made_again(tmp_path):
    folder = tmp_path / "study"
    with StudyFolder.open(folder) as records:
        records.write_plan({"seed": 1})
        shutil.move(folder, tmp_path / "moved")
        with pytest.raises(
            FileNotFoundError, match=r"the folder, .*has gone while .* the same call goes on"
        ):
            records.write_plan({"seed": 2})
    assert os.listdir(tmp_path) == ["moved"]
    with StudyFolder.open(tmp_path / "moved") as records:
        assert records.read_plan() == {"seed": 1}


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning", "ignore:os.fork:RuntimeWarning")
def test_the_lock_ends_with_the_run_though_a_forked_process_lives_on(tmp_path):
    read, write = os.pipe()
    with StudyFolder.open(tmp_path) as records:
        records.write_plan({"seed": 1})
        child = os.fork()
        if child == 0:
            try:  # what is its parent's it neither writes nor gives away
                records.write_plan({"seed": 2})
            except RuntimeError:
                records.close()
            os.read(read, 1)
            os._exit(0)
        with pytest.raises(RuntimeError, match="another process is writing"):
            StudyFolder.open(tmp_path)
    with StudyFolder.open(tmp_path) as records:
        assert records.read_plan() == {"seed": 1}
    os.write(write, b"x")
    assert os.waitpid(child, 0)[1] == 0
