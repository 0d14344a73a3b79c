"""Splits that are read as they are needed: the numbers of resident ones, each example read once."""

import collections
import dataclasses
import threading
import warnings

import grain
import helpers
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from helpers import KilledError, assert_same_tables, perceptron, points

import batchscale as bs
from batchscale import datasets, optimizers, schedules
from batchscale.engine import chunks, evaluation, feed, parallel
from batchscale.engine import packs as packing
from batchscale.engine.engine import Engine, Training
from batchscale.engine.layout import Layout
from batchscale.engine.packs import TrialId


class Counted:
    """A source that counts how often each example was read."""

    def __init__(self, split):
        self.split, self.reads = split, collections.Counter()

    def __len__(self):
        return len(self.split["label"])

    def __getitem__(self, index):
        self.reads[index] += 1
        return {field: x[index] for field, x in self.split.items()}


@pytest.fixture(scope="module")
def square():
    return perceptron(width=16, validation=1000)


def streamed(workload, names=("train", "validation", "test")):
    splits = {
        name: datasets.Stream(Counted(split)) if name in names else split
        for name, split in workload.splits().items()
    }
    return dataclasses.replace(workload, data=splits)


def study(workload, **options):
    goal = bs.Goal("validation/error", 0.45)
    defaults = {"batch_sizes": [4], "max_steps": 100, "stop": "budget", "goal": goal}
    return helpers.study(workload, **{**defaults, **options})


@pytest.mark.parametrize(
    ("window", "chunk"),
    [pytest.param(2**26, 2**26, marks=pytest.mark.long), (256, 2_000)],
    ids=["a window that holds the set", "many small windows and chunks"],
)
@pytest.mark.slow
def test_resident_and_streamed_data_give_the_same_tables(
    square, tmp_path, monkeypatch, window, chunk
):
    options = {"batch_sizes": [2, 4, 16, "full"], "microbatch": 8, "max_steps": 200}
    options["goal"] = bs.Goal("validation/error", 0.3)
    resident = study(square, **options).run(tmp_path / "resident", progress=False)
    monkeypatch.setattr(feed, "WINDOW_BYTES", window)
    monkeypatch.setattr(chunks, "CHUNK_BYTES", chunk)
    monkeypatch.setattr(evaluation, "RESIDENT_BYTES", 0)
    found = study(streamed(square), **options).run(tmp_path / "streamed", progress=False)
    assert_same_tables(found, resident)
    assert resident.trials["first_crossing"].notna().any()


def test_a_folder_of_arrays_refuses_a_stream_of_the_same(square, tmp_path):
    study(square).run(tmp_path, progress=False)
    with pytest.raises(
        ValueError, match=r"the data \(arrays and streams are not compared\) changed"
    ):
        study(streamed(square)).run(tmp_path, progress=False)


@pytest.mark.slow
def test_a_whole_batch_is_not_reordered_by_its_window(square, tmp_path, monkeypatch):
    options = {"batch_sizes": [8, "full"], "lanes": 1, "trials": 3}
    resident = study(square, **options).run(tmp_path / "resident", progress=False)
    monkeypatch.setattr(feed, "WINDOW_BYTES", 1)  # windows of one step of one trial
    found = study(streamed(square), **options).run(tmp_path / "streamed", progress=False)
    assert_same_tables(found, resident)


def test_evaluations_of_streams_end_when_they_are_decided(square, tmp_path, monkeypatch):
    options = {"stop": "first", "max_steps": 100, "goal": bs.Goal("validation/error", 0.3)}
    resident = study(square, **options).run(tmp_path / "resident", progress=False)
    monkeypatch.setattr(evaluation, "RESIDENT_BYTES", 0)
    monkeypatch.setattr(chunks, "CHUNK_BYTES", 1)
    of = streamed(square)
    found = study(of, **options).run(tmp_path / "streamed", progress=False)
    assert_same_tables(found, resident)
    assert "validation/error_at_least" in found.measurements
    # Chunks of two evaluation batches of 200: a split whose first chunk decides is not read on.
    reads = of.splits()["validation"]["label"].stream._source.reads
    assert reads[999] < reads[0]


def engine(workload):
    training = Training(
        workload,
        optimizers.get("sgd"),
        schedules.constant,
        ("learning_rate",),
        0,
        helpers.GOAL,
    )
    return Engine(training, mesh=parallel.mesh())


def test_a_window_is_read_once_for_all_trials_of_a_pack(square, monkeypatch):
    monkeypatch.setattr(feed, "DRAWN_AT_ONCE", 200)
    of = streamed(square, ["train"])
    reads = of.splits()["train"]["label"].stream._source.reads
    layout = Layout(lanes=4, microbatch=4)
    ids = [TrialId(number) for number in range(8)]
    with engine(of) as running:
        values = {"learning_rate": np.full(8, 0.1)}
        packs = running.start(ids, values, batch_size=4, layout=layout)
        reads.clear()
        running.advance(packs, batch_size=4, layout=layout, step=0, to=100)
    # Two windows of 50 steps: two epochs of each of the eight trials, of which each example is read
    # once. A third may have begun, for what comes after step 100.
    assert [*range(100)] == sorted(reads)
    assert 2 <= min(reads.values()) <= max(reads.values()) <= 3


def test_packs_that_share_the_devices_have_windows_of_their_own(square, monkeypatch):
    monkeypatch.setattr(feed, "WINDOW_BYTES", 256)
    ids = [TrialId(number) for number in range(6)]
    values = {"learning_rate": np.linspace(0.1, 1, 6)}
    layout = Layout(lanes=1, microbatch=4)
    found = []
    for workload in (square, streamed(square)):
        with engine(workload) as running:
            packs = running.start(ids, values, batch_size=4, layout=layout)
            for step, to in ((0, 1), (1, 13), (13, 14), (14, 90)):
                running.advance(packs, batch_size=4, layout=layout, step=step, to=to)
            found.append(packing.unpack(packs))
    assert len(packs) > 1
    for one, other in zip(found[0].leaves, found[1].leaves, strict=True):
        np.testing.assert_array_equal(one, other)


def test_an_interrupted_study_of_a_stream_goes_on_to_the_same_tables(square, tmp_path, monkeypatch):
    monkeypatch.setattr(feed, "WINDOW_BYTES", 256)
    whole = study(square, stop="first").run(tmp_path / "whole", progress=False)
    some = study(streamed(square), stop="first")
    with monkeypatch.context() as patch:
        helpers.writing_after_every_evaluation(patch)
        helpers.operations_before_a_kill(patch, 60)
        with pytest.raises(KilledError):
            some.run(tmp_path / "streamed", progress=False)
    assert_same_tables(some.run(tmp_path / "streamed", progress=False), whole)


def test_a_trial_of_a_stream_can_be_run_again(square, tmp_path):
    some = study(streamed(square), stop="first")
    found = some.run(tmp_path / "streamed", progress=False)
    trial = found.steps_to_target()["trial"].iloc[0]
    again = some.run_trial(batch_size=4, trial=int(trial))
    other = study(square, stop="first").run_trial(batch_size=4, trial=int(trial))
    pd.testing.assert_frame_equal(again.curve, other.curve, check_exact=True)


def test_waiting_for_examples_is_counted_apart(square, tmp_path):
    class Slow(Counted):
        def __getitem__(self, index):
            import time

            time.sleep(0.002)
            return super().__getitem__(index)

    splits = dict(square.splits())
    of = dataclasses.replace(
        square, data={**splits, "train": datasets.Stream(Slow(splits["train"]), threads=1)}
    )
    some = study(of, trials=2, max_steps=20)
    some.run(tmp_path / "study", progress=False)
    assert "waiting for data" in (tmp_path / "study" / "provenance.json").read_text()


def test_what_else_is_a_source(tmp_path):
    x, y = points(50)
    wanted = datasets.from_arrays(train=(x, y))["train"]
    np.save(tmp_path / "x.npy", x)
    pairs = [(row, label) for row, label in zip(x, y, strict=True)]

    class InParts(Counted):
        def __getitems__(self, indices):
            return [self[i] for i in indices]

    sources = {
        "pairs, as PyTorch's map-style data sets": datasets.Stream(pairs),
        "arrays by field, a memory map": datasets.Stream(
            {"input": np.load(tmp_path / "x.npy", mmap_mode="r"), "label": y}
        ),
        "lists by field": datasets.Stream({"input": x.tolist(), "label": list(y)}),
        "a table's columns": datasets.Stream(
            {"input": x, "label": pd.Series(y, index=range(100, 150))}
        ),
        "several at once, as Hugging Face's": datasets.Stream(InParts(wanted)),
        "a MapDataset of grain": datasets.Stream(grain.MapDataset.source(pairs)),
        "bytes, as of array_record": datasets.Stream(
            [row.tobytes() + bytes([label]) for row, label in pairs],
            lambda b: {"input": np.frombuffer(b[:16], np.float64), "label": b[16]},
        ),
    }
    indices = np.array([[3, 3, 49], [0, 7, 3]])
    for name, stream in sources.items():
        found = stream.read(indices)
        for field, array in wanted.items():
            np.testing.assert_array_equal(found[field], array[indices], err_msg=name)
            assert found[field].dtype == array.dtype, name


@pytest.mark.parametrize(
    ("source", "transform", "words"),
    [
        ([], None, "it has no examples"),
        (iter([1]), None, "wanted a source with len"),
        ([3], None, "example 0 is a int, wanted a mapping"),
        ([{"input": "a"}], None, "field 'input' has the dtype"),
        ([b"a"], lambda b: b.no_such, "example 0 cannot be read \\(AttributeError"),
        ({"input": np.zeros(3), "label": np.zeros(2, int)}, None, "have the lengths"),
    ],
)
def test_no_stream_is_made_of_what_is_no_source(source, transform, words):
    with pytest.raises((TypeError, ValueError), match=words):
        datasets.Stream(source, transform)


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (
            {"input": np.zeros(3), "label": 0},
            "example 5 has the shape \\(3,\\), and others",
        ),
        ({"input": np.zeros(2)}, "fields input, and example"),
        ({"input": np.zeros(2), "label": 0.5}, "int32, and that|wanted integers|float"),
        ({"input": np.zeros(2), "label": 7}, "1 label outside 0 to 2"),
    ],
)
def test_an_example_that_is_not_like_the_first_is_named(other, words):
    good = {"input": np.zeros(2), "label": 1}
    stream = datasets.Stream([good] * 5 + [other] + [good] * 500)
    workload = dataclasses.replace(
        perceptron(4), data=lambda: {"train": stream}, classes=3, train_examples=None
    )
    with pytest.raises(ValueError, match=words):
        workload.read("train", np.arange(20))


def test_the_example_that_cannot_be_read_is_named_and_not_its_neighbours():
    def decoded(x):
        if x == 5:
            raise OSError("truncated")
        return {"input": np.float32(x), "label": 0}

    stream = datasets.Stream(list(range(8)), decoded)
    with pytest.raises(ValueError, match=r"example 5 cannot be read \(OSError: truncated\)"):
        stream.read(np.array([3, 4, 5, 6]))


def test_a_split_is_streamed_or_not():
    stream = datasets.Stream({"input": np.zeros((4, 2))}).fields()
    with pytest.raises(ValueError, match=r"'train': 'input' is streamed, and its other fields"):
        datasets.from_arrays(train={**stream, "label": np.zeros(4, int)})


def test_a_window_is_never_just_one_batch(square, monkeypatch):
    """Else another program gathers the batch, whose last bits may be others."""
    monkeypatch.setattr(feed, "WINDOW_BYTES", 1)
    with engine(streamed(square)) as running, engine(square) as other:
        small = [running._feed.places(size, 2) for size in (1, 7, 100)]
        assert small == [2, 8, 101]
        assert all(other._feed.places(size, 2) > size for size in (1, 7, 100))


def test_masks_of_streamed_examples_are_not_lost():
    rows = [{"input": np.ma.masked_less(np.array([1.0, x]), 0), "label": 0} for x in (1, 2, -9)]
    unmasked = [{**row, "input": row["input"].filled(0)} for row in rows]
    assert datasets.Stream(unmasked).read([2])["input"].tolist() == [[1, 0]]
    for transform in (None, lambda row: row):
        with pytest.raises(ValueError, match=r"example 0: field 'input' is a masked array with 0"):
            datasets.Stream(rows, transform)


def test_a_source_may_use_one_array_again_for_every_example():
    class Reusing:
        def __init__(self):
            self.buffer = np.zeros(2)

        def __len__(self):
            return 5

        def __getitem__(self, index):
            self.buffer[:] = index
            return {"input": self.buffer}

    found = datasets.Stream(Reusing()).read([3, 1, 4])
    np.testing.assert_array_equal(found["input"], [[3, 3], [1, 1], [4, 4]])


def test_reading_ends_when_it_is_stopped_and_wants_whole_numbers():
    stream = datasets.Stream([{"input": i} for i in range(200)])
    stop = threading.Event()
    stop.set()
    with pytest.raises(InterruptedError, match="reading was stopped"):
        stream.read(np.arange(200), stop=stop)
    with pytest.raises(IndexError, match="wanted integers"):
        stream.read([1.5])
    assert stream.read([])["input"].shape == (0,)


@pytest.mark.slow
def test_large_sums_of_a_metric_are_those_of_resident_data(tmp_path, monkeypatch):
    """Of a metric that returns a vector an example, which is not kept for every batch."""
    x, y = points(1300)

    def vector(params, batch):
        places = jnp.arange(1500, dtype=jnp.float32)
        return (jnp.sin(batch["input"] @ params["w"] @ jnp.ones((2, 1)) * places[None])).sum(0)

    workload = bs.Workload.from_functions(
        init=lambda key: {"w": jnp.eye(2) / 3},
        loss=lambda params, batch: ((batch["input"] @ params["w"]) ** 2).sum(1),
        metrics={"wave": vector},
        finalize={"wave": lambda sums: float(np.abs(sums).sum())},
        data={"train": (x, y), "validation": (x[::-1], y[::-1])},
    )
    goal = bs.Goal("validation/wave", 1e9)
    options = {"goal": goal, "max_steps": 5, "trials": 2, "batch_sizes": [8]}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        resident = study(workload, **options).run(tmp_path / "resident", progress=False)
        monkeypatch.setattr(evaluation, "RESIDENT_BYTES", 0)
        found = study(streamed(workload, ["validation"]), **options)
        assert_same_tables(found.run(tmp_path / "streamed", progress=False), resident)
        # Where the sums of all batches are too large, resident data are measured in chunks, too.
        monkeypatch.setattr(chunks, "CHUNK_BYTES", 10_000)
        again = study(workload, **options).run(tmp_path / "chunks", progress=False)
    assert_same_tables(again, resident)


def test_a_stream_is_told_from_another_by_its_size_and_a_sample():
    x, y = points(500)
    marks = {
        datasets.fingerprint({"train": datasets.Stream({"input": a, "label": b}).fields()})
        for a, b in [(x, y), (x[:499], y[:499]), (-x, y), (x, y)]
    }
    assert len(marks) == 3


def test_a_streamed_field_is_no_array():
    field = datasets.Stream({"input": np.zeros((5, 2))}).fields()["input"]
    assert (field.shape, field.ndim, len(field)) == ((5, 2), 2, 5)
    np.testing.assert_array_equal(field[1:3], np.zeros((2, 2)))
    with pytest.raises(TypeError, match="is streamed, and no array"):
        np.asarray(field)


def test_memory_counts_windows_and_not_the_set(square, monkeypatch):
    monkeypatch.setattr(feed, "WINDOW_BYTES", 1)
    with engine(streamed(square)) as running, engine(square) as other:
        layout = Layout(lanes=2, microbatch=4)
        windows, whole = (x.memory(4, layout, 8) for x in (running, other))
        # An example is two floats and a label: 12 bytes. Two windows of 5 examples of each
        # of 2 lanes, one more than a batch, and one window ahead.
        packs = -(-8 // (2 * running.mesh.size))
        apart = whole - other.scratch(4, layout) - windows + running.scratch(4, layout)
        assert apart == 100 * 12 - (packs + 1) * 2 * 5 * 12
