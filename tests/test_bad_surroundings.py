"""What is bad about the surroundings: places that cannot be written, extras that are missing, too
little memory. It is told before anything compiles, with the place or the name, and what to do.
"""

import importlib.util
import os
import re
import subprocess
import sys

import matplotlib.pyplot as plt
import pytest
from helpers import compiled, perceptron, points, study

import batchscale as bs
from batchscale import cli, datasets
from batchscale.datasets import vocabulary

SPLITS = datasets.from_arrays(train=points(20), validation=points(20, 1))


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("found") / "study"
    return study(perceptron(), batch_sizes=[4, 16], trials=3).run(folder, progress=False)


@pytest.fixture
def unwritable(tmp_path):
    """A folder in which nothing can be written; of root, who may write in any, a read-only disk."""
    place = tmp_path / "unwritable"
    place.mkdir()
    if os.geteuid():
        place.chmod(0o555)
        yield place
        place.chmod(0o755)
        return
    mount = ["mount", "-t", "tmpfs", "-o", "ro,size=64k", "tmpfs", place]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("root can write everywhere, and nothing can be mounted here")
    yield place
    subprocess.run(["umount", place], check=True)


def writers(found):
    """Everything that writes into a place that it is given."""
    one = study(perceptron(), batch_sizes=[4, 8, 16, 32], trials=2)
    tune = {"minutes": 0.01, "progress": False}
    return {
        "run": lambda place: one.run(place, progress=False),
        "measure": lambda place: one.measure(place, progress=False),
        "extend": lambda place: one.extend(place, progress=False),
        "pilot": lambda place: bs.pilot(perceptron(), folder=place, **tune),
        "recommend": lambda place: bs.recommend(perceptron(), folder=place, **tune),
        "save_tables": found.save_tables,
        "to_archive": found.to_archive,
        "report": lambda place: found.report(place / "page.html"),
        "save": lambda place: bs.plots.save(plt.figure(), place / "figure"),
        "to_npz": lambda place: datasets.to_npz(SPLITS, place / "data.npz"),
    }


NAMES = [*writers(type("Result", (), {"save_tables": None, "to_archive": None}))]


def told(write, place):
    """The words of the error of the operating system, before anything was compiled."""
    with compiled() as programs, pytest.raises(OSError) as error:  # noqa: PT011  (its words are)
        write(place)
    plt.close("all")
    assert not programs
    assert str(place) in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("name", NAMES)
def test_a_place_that_cannot_be_written_is_told(found, unwritable, name):
    words = told(writers(found)[name], unwritable / "a")
    assert "Make it writable, or give another" in words
    assert not [*unwritable.iterdir()]


@pytest.mark.parametrize("name", NAMES)
def test_a_place_below_a_file_is_told(found, tmp_path, name):
    (tmp_path / "file").write_text("mine")
    words = told(writers(found)[name], tmp_path / "file" / "a")
    assert re.search("give another|Give another", words)
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("name", [*NAMES[:5], "to_archive"])
def test_a_file_in_the_place_of_a_folder_is_told(found, tmp_path, name):
    (tmp_path / "file").write_text("mine")
    words = told(writers(found)[name], tmp_path / "file")
    assert re.search("give another|Give a", words)
    assert (tmp_path / "file").read_text() == "mine"


def test_the_command_line_tells_of_a_place_in_words(found, unwritable, capsys, monkeypatch):
    words = ["batchscale", "export", str(found.folder), "-o", str(unwritable / "a")]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    said = capsys.readouterr().err
    assert f"{unwritable}/a/audit.csv: Read-only" in said or "Permission denied" in said
    assert "Make it writable" in said
    assert ended.value.code


EXTRAS = {
    "sklearn.datasets": ("experiments", lambda: datasets.load("digits")),
    "sentencepiece": ("text", lambda: vocabulary.Vocabulary(b"")),
}


@pytest.mark.parametrize("module", EXTRAS)
def test_an_extra_that_is_missing_is_named_with_what_to_install(monkeypatch, module):
    extra, use = EXTRAS[module]
    monkeypatch.setitem(sys.modules, module, None)
    with compiled() as programs, pytest.raises(ImportError) as error:
        use()
    assert f'pip install "batchscale[{extra}]"' in str(error.value)
    assert not programs


def test_without_cloudpickle_what_cannot_be_sent_is_told(monkeypatch, tmp_path):
    from concurrent.futures import ThreadPoolExecutor

    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "cloudpickle" else find(name)
    )
    one = study(perceptron(), batch_sizes=[4], trials=2)
    with (
        ThreadPoolExecutor(1) as executor,
        compiled() as programs,
        pytest.raises((TypeError, ValueError)) as error,
    ):
        one.run(tmp_path / "a", progress=False, executor=executor)
    assert "cloudpickle" in str(error.value)
    assert not programs
    assert not (tmp_path / "a").exists()


def test_a_trial_that_fits_on_no_device_is_told_before_anything_is_compiled(tmp_path):
    one = study(perceptron(10**12), batch_sizes=[4, 8, 16, 32], trials=2)  # 24 TB of weights
    calls = {
        "run": lambda: one.run(tmp_path / "a", progress=False),
        "measure": lambda: one.measure(tmp_path / "a", progress=False),
        "speeds": one.speeds,
        "seconds_per_step": one.seconds_per_step,
        "estimate_seconds": one.estimate_seconds,
        "pilot": lambda: bs.pilot(perceptron(10**12), minutes=0.01, progress=False),
    }
    for name, call in calls.items():
        with compiled() as programs, pytest.raises(MemoryError) as error:
            call()
        words = str(error.value)
        assert re.search(r"workload 'square'.* take 2.4e\+04 GB, and a device has", words), name
        assert "take a smaller model" in words
        assert not programs
    assert not [*tmp_path.iterdir()]


def test_the_bytes_of_a_trial_are_parameters_and_states():
    from batchscale import checks, optimizers

    numbers = 2 * 16 + 16 + 16 * 3 + 3
    bytes_of = {"sgd": 4 * numbers, "momentum": 2 * 4 * numbers}
    for name, wanted in bytes_of.items():
        hyperparameters = ["learning_rate"] if name == "sgd" else ["learning_rate", "momentum"]
        found = checks.updates(perceptron(), optimizers.get(name), "constant", hyperparameters)
        assert wanted <= found <= wanted + 16  # and a counter


def test_a_device_may_have_all_of_a_cpus_memory_where_the_others_are_not_used():
    import jax

    from batchscale.engine import devices

    some = jax.devices()
    assert devices.most_memory(some[:1]) // len(some) == devices.memory(some[0])
    assert devices.most_memory(some) == devices.memory(some[0])


def test_what_is_written_keeps_the_link_and_the_mode_of_what_was_there(tmp_path):
    (tmp_path / "real.npz").write_bytes(b"before")
    (tmp_path / "real.npz").chmod(0o600)
    (tmp_path / "link.npz").symlink_to(tmp_path / "real.npz")
    datasets.to_npz(SPLITS, tmp_path / "link.npz")
    assert (tmp_path / "link.npz").is_symlink()
    assert (tmp_path / "real.npz").stat().st_mode & 0o777 == 0o600
    assert datasets.from_npz(tmp_path / "real.npz").keys() == SPLITS.keys()
    long = tmp_path / f"{'a' * 240}.npz"
    datasets.to_npz(SPLITS, long)
    assert {path.name for path in tmp_path.iterdir()} == {"real.npz", "link.npz", long.name}


def test_an_error_of_another_place_or_of_no_file_is_left_as_it_is(tmp_path):
    import socket

    from batchscale.files import told

    for error in (
        socket.gaierror(1, "no such host"),
        IsADirectoryError(21, "Is a directory", "/elsewhere/input"),
    ):
        with pytest.raises(type(error)) as found, told(tmp_path / "out.npz"):
            raise error
        assert found.value is error
