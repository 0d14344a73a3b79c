"""Data sets: splits and their checks, files, downloads, prepared sets and the order of sources."""

import dataclasses
import gzip
import hashlib
import importlib.util
import io
import json
import os
import struct
import subprocess
import sys
import tarfile
import types
import urllib.error
import urllib.request
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

import batchscale as bs
from batchscale import datasets, files, workloads
from batchscale.datasets import named, prepared, published, titles

PREPARED = Path(
    os.environ.get("TFDS_DATA_DIR") or Path(__file__).parents[2] / "shared" / "data" / "tfds"
)
IDX = PREPARED.parent / "idx"
FILES = tuple(f"{file}.gz" for file in published.SETS["mnist"].files)


def message(kind, call, *args, **kwargs):
    with pytest.raises(kind) as raised:
        call(*args, **kwargs)
    return str(raised.value)


def assert_same(got, wanted):
    assert {split: set(fields) for split, fields in got.items()} == {
        split: set(fields) for split, fields in wanted.items()
    }
    for split, fields in wanted.items():
        for field, array in fields.items():
            assert got[split][field].dtype == array.dtype
            np.testing.assert_array_equal(got[split][field], array)


def digits_like(examples, *, start=0, shape=(28, 28, 1)):
    """Random images; their labels count up from `start`, so that the order can be read off."""
    images = np.random.default_rng(start).integers(0, 256, (examples, *shape), np.uint8)
    return {"image": images, "label": np.arange(start, start + examples, dtype=np.int32) % 10}


def idx_bytes(array):
    magic = 0x0800 + array.ndim
    return (
        struct.pack(f">{1 + array.ndim}I", magic, *array.shape) + array.astype(np.uint8).tobytes()
    )


def idx_files(train, test):
    arrays = train["image"][..., 0], train["label"], test["image"][..., 0], test["label"]
    return {file: idx_bytes(array) for file, array in zip(FILES, arrays, strict=True)}


def as_tfds_sorts(split, fields):
    """The examples in the order that TFDS gives them, by its own hash."""
    hashing = pytest.importorskip("tensorflow_datasets.core.hashing")
    hasher = hashing.Hasher(split)
    order = sorted(range(len(fields["label"])), key=hasher.hash_key)
    return {field: array[order] for field, array in fields.items()}


def write_prepared(root, name, splits, *, version="3.0.1", shards=1, sort=as_tfds_sorts):
    """A data set as TFDS prepares it in array_record format, written without TensorFlow."""
    array_record_module = pytest.importorskip("array_record.python.array_record_module")
    from PIL import Image
    from tensorflow_datasets.proto import tf_example_pb2

    folder = root / name / version
    folder.mkdir(parents=True)
    kinds = "tensorflow_datasets.core.features."
    height, width, channels = splits["train"]["image"].shape[1:]
    dimensions = [str(height), str(width), str(channels)]
    features = {
        "image": {
            "pythonClassName": f"{kinds}image_feature.Image",
            "image": {"dtype": "uint8", "shape": {"dimensions": dimensions}},
        },
        "label": {
            "pythonClassName": f"{kinds}class_label_feature.ClassLabel",
            "classLabel": {"numClasses": "10"},
        },
    }
    structure = {
        "pythonClassName": f"{kinds}features_dict.FeaturesDict",
        "featuresDict": {"features": features},
    }
    (folder / "features.json").write_text(json.dumps(structure))
    infos = []
    for split, fields in splits.items():
        parts = np.array_split(np.arange(len(fields["label"])), shards)
        fields, size = sort(split, fields), 0
        for shard, part in enumerate(parts):
            path = folder / f"{name}-{split}.array_record-{shard:05}-of-{shards:05}"
            writer = array_record_module.ArrayRecordWriter(str(path), "group_size:1")
            for image, label in zip(fields["image"][part], fields["label"][part], strict=True):
                encoded = io.BytesIO()
                Image.fromarray(image[..., 0] if channels == 1 else image).save(encoded, "PNG")
                example = tf_example_pb2.Example()
                example.features.feature["image"].bytes_list.value.append(encoded.getvalue())
                example.features.feature["label"].int64_list.value.append(int(label))
                writer.write(example.SerializeToString())
            writer.close()
            size += path.stat().st_size
        infos.append(
            {
                "name": split,
                "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
                "numBytes": str(size),
                "shardLengths": [str(len(part)) for part in parts],
            }
        )
    info = {"name": name, "version": version, "fileFormat": "array_record", "splits": infos}
    (folder / "dataset_info.json").write_text(json.dumps(info))
    return folder


def tensorflow(monkeypatch, spec):
    """Has TensorFlow installed or not; a module of that name would be more than TFDS can bear."""
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *rest: spec if name == "tensorflow" else find_spec(name, *rest),
    )


@pytest.fixture
def cache(tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    monkeypatch.setenv("BATCHSCALE_CACHE", str(folder))
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "nothing prepared"))
    tensorflow(monkeypatch, None)
    return folder


@pytest.fixture
def no_network(monkeypatch):
    def unreachable(url, **_):
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setattr(urllib.request, "urlopen", unreachable)


@pytest.fixture
def small_mnist(monkeypatch):
    """MNIST with 6 + 2 training and 3 test images, as `load` would have it whole."""
    sizes = named.ImageSet((28, 28, 1), train=6, validation=2, test=3)
    monkeypatch.setitem(named.SETS, "mnist", sizes)
    splits = {"train": digits_like(8), "test": digits_like(3, start=5)}
    contents = {
        file.removesuffix(".gz"): published.Content(
            len(content), "md5", hashlib.md5(content).hexdigest()
        )
        for file, content in idx_files(**splits).items()
    }
    small = dataclasses.replace(published.SETS["mnist"], files=contents)
    monkeypatch.setitem(published.SETS, "mnist", small)
    digests = [
        hashlib.blake2b(image.tobytes() + str(label).encode(), digest_size=16).digest()
        for fields in splits.values()
        for image, label in zip(fields["image"], fields["label"], strict=True)
    ]
    every = hashlib.blake2b(b"".join(sorted(digests)), digest_size=16).hexdigest()
    monkeypatch.setitem(titles.EXAMPLES, "mnist", every)
    return splits


@pytest.fixture
def server(tmp_path, monkeypatch, small_mnist):
    """A folder that stands in for the place of publication; a second, empty one comes first."""
    folder = tmp_path / "server"
    folder.mkdir()
    for file, content in idx_files(**small_mnist).items():
        (folder / file).write_bytes(gzip.compress(content))
    addresses = f"{(tmp_path / 'down').as_uri()}/", f"{folder.as_uri()}/"
    served = dataclasses.replace(published.SETS["mnist"], addresses=addresses)
    monkeypatch.setitem(published.SETS, "mnist", served)
    return folder


CIFAR_FILES = (*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin")


def cifar_records(fields):
    """StudyFolder of the binary version: label, then the red, green and blue plane row by row."""
    return [
        bytes([label]) + b"".join(bytes(image[:, :, plane].ravel().tolist()) for plane in range(3))
        for image, label in zip(fields["image"], fields["label"].tolist(), strict=True)
    ]


def cifar_archive(contents, folder="cifar-10-batches-bin/", mode="w:gz"):
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode=mode) as archive:
        for file, content in {"readme.html": b"<html>", **contents}.items():
            member = tarfile.TarInfo(folder + file)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return packed.getvalue()


@pytest.fixture
def small_cifar(monkeypatch):
    """CIFAR-10 with 5 files of 2 training images and one of 3 test images."""
    sizes = named.ImageSet((32, 32, 3), train=7, validation=3, test=3)
    monkeypatch.setitem(named.SETS, "cifar10", sizes)
    splits = {
        "train": digits_like(10, shape=(32, 32, 3)),
        "test": digits_like(3, start=5, shape=(32, 32, 3)),
    }
    train, test = cifar_records(splits["train"]), cifar_records(splits["test"])
    batches = [train[2 * i : 2 * i + 2] for i in range(5)] + [test]
    contents = {file: b"".join(records) for file, records in zip(CIFAR_FILES, batches, strict=True)}
    files = {
        file: published.Content(len(content), "sha1", hashlib.sha1(content).hexdigest())
        for file, content in contents.items()
    }
    small = dataclasses.replace(published.SETS["cifar10"], files=files)
    monkeypatch.setitem(published.SETS, "cifar10", small)
    held_out = {
        "train": {field: array[:7] for field, array in splits["train"].items()},
        "validation": {field: array[7:] for field, array in splits["train"].items()},
        "test": splits["test"],
    }
    return types.SimpleNamespace(examples=splits, splits=held_out, contents=contents)


@pytest.fixture
def cifar_server(tmp_path, monkeypatch, small_cifar):
    folder = tmp_path / "server"
    folder.mkdir()
    (folder / "cifar-10-binary.tar.gz").write_bytes(cifar_archive(small_cifar.contents))
    addresses = f"{(tmp_path / 'down').as_uri()}/", f"{folder.as_uri()}/"
    served = dataclasses.replace(published.SETS["cifar10"], addresses=addresses)
    monkeypatch.setitem(published.SETS, "cifar10", served)
    return folder


def test_a_pair_becomes_input_and_label():
    x, y = np.ones((3, 2), np.float32), np.array([0, 1, 2], np.int32)
    splits = datasets.from_arrays(train=(x, y), test=(x[:1], y[:1]))
    assert_same(
        splits, {"train": {"input": x, "label": y}, "test": {"input": x[:1], "label": y[:1]}}
    )
    assert splits["train"]["input"] is x


@pytest.mark.parametrize(
    ("field", "given", "kept"),
    [
        ("image", np.uint8, np.uint8),
        ("input", np.float64, np.float32),
        ("input", np.float16, np.float16),
        ("input", np.int64, np.int32),
        ("input", ">i4", np.int32),
        ("input", np.uint64, np.int32),
        ("input", np.int16, np.int16),
        ("input", np.bool_, np.bool_),
        ("label", np.uint8, np.int32),
        ("label", np.int64, np.int32),
    ],
)
def test_types_become_those_that_jax_holds(field, given, kept):
    array = np.array([1, 0, 1]).astype(given)
    result = datasets.from_arrays(train={field: array})["train"][field]
    assert result.dtype == kept
    assert result.dtype.isnative
    assert result.tolist() == array.tolist()


def test_names_that_npz_files_cannot_tell_apart_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"field 'a\.npy' ends with \.npy"):
        datasets.to_npz({"train": {"a": np.zeros(2), "a.npy": np.ones(2)}}, tmp_path / "x.npz")
    np.savez(tmp_path / "y.npz", **{"train/a": np.zeros(2), "train/a.npy": np.ones(2)})
    with pytest.raises(ValueError, match=r"cannot tell 'train/a\.npy' from"):
        datasets.from_npz(tmp_path / "y.npz")


def test_an_npz_file_of_a_part_comes_first_too(tmp_path, cache, no_network, small_mnist):
    few = held_out(small_mnist)
    datasets.to_npz(few, tmp_path / "mnist_6875.npz")
    with pytest.warns(UserWarning, match=r"not 'mnist_6875', .* 'mnist_6875 \(other images or"):
        assert_same(datasets.load("mnist_6875", directory=tmp_path), few)
    with pytest.raises(FileNotFoundError):
        datasets.load("mnist_13750", directory=tmp_path)


@pytest.mark.parametrize(
    ("train", "expected"),
    [
        (
            {"image": np.zeros((10, 2)), "label": np.zeros(9, int)},
            "split 'train': its fields differ in length along axis 0: 'image' 10, 'label' 9. "
            "Give every field one entry an example.",
        ),
        (
            {"image": np.zeros((0, 2))},
            "split 'train': field 'image' is empty (shape (0, 2)). "
            "Give it examples, or leave the split out.",
        ),
        ({}, "split 'train': it has no fields. Give it arrays by field name."),
        (
            {"text": np.array(["a", "b"])},
            "split 'train': field 'text' has the dtype <U1, wanted real numbers. "
            "Encode it as integers or floats, one array a field.",
        ),
        (
            {"input": np.float32(3)},
            "split 'train': field 'input' is a single number, wanted an array with the examples "
            "along axis 0.",
        ),
        (
            {"token": np.array([0, 2**31])},
            "split 'train': field 'token' reaches from 0 to 2147483648, which int32 cannot hold. "
            "Scale or renumber it.",
        ),
        (
            {"input": np.array([1e39, 0.0])},
            "split 'train': field 'input' reaches from 0.0 to 1e+39, which float32 cannot hold. "
            "Scale or renumber it.",
        ),
        (
            {"input": np.ma.masked_equal([[1, 2], [-1, -1]], -1)},
            "split 'train': field 'input' is a masked array with 2 of 4 entries masked, whose mask "
            "would be lost. Fill them, with .filled(0) for example, and give the mask as a field "
            "of its own if a loss is to read it; or leave out the examples that have any.",
        ),
    ],
)
def test_unsound_arrays_are_refused(train, expected):
    assert message(ValueError, datasets.from_arrays, train=train) == expected


def test_infinities_and_nans_are_kept():
    array = np.array([np.inf, -np.inf, np.nan, 1.0])
    kept = datasets.from_arrays(train={"input": array})["train"]["input"]
    np.testing.assert_array_equal(kept, array.astype(np.float32))


@pytest.mark.parametrize(
    ("train", "got"), [([1, 2], "a list"), ((1, 2, 3), "a tuple of 3"), (np.zeros(3), "a ndarray")]
)
def test_a_split_is_a_mapping_or_a_pair(train, got):
    assert message(TypeError, datasets.from_arrays, train=train) == (
        f"train: got {got}, wanted a dictionary of arrays by field name or a pair (inputs, labels)."
    )


@pytest.mark.parametrize(
    ("validation", "expected"),
    [
        (
            {"image": np.zeros((2, 3), np.uint8)},
            "split 'validation' has the fields 'image', split 'train' has 'image', 'label'. "
            "Give every split the same fields.",
        ),
        (
            {"image": np.zeros((2, 4), np.uint8), "label": np.zeros(2, int)},
            "field 'image': an example is uint8 of shape (4,) in split 'validation', and uint8 of "
            "shape (3,) in split 'train'. Prepare every split in the same way.",
        ),
        (
            {"image": np.zeros((2, 3)), "label": np.zeros(2, int)},
            "field 'image': an example is float32 of shape (3,) in split 'validation', and uint8 "
            "of shape (3,) in split 'train'. Prepare every split in the same way.",
        ),
    ],
)
def test_splits_that_do_not_match_are_refused(validation, expected):
    train = {"image": np.zeros((5, 3), np.uint8), "label": np.zeros(5, int)}
    got = message(ValueError, datasets.from_arrays, train=train, validation=validation)
    assert got == expected


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (
            [0, 12, 10, 11],
            "labels: split 'train' has 3 labels outside 0 to 9 (smallest 0, largest 12). "
            "Renumber the field 'label' from 0, or state the right number of classes.",
        ),
        (
            [-1, 9, 0, 3],
            "labels: split 'train' has 1 label outside 0 to 9 (smallest -1, largest 9). "
            "Renumber the field 'label' from 0, or state the right number of classes. If -1 marks "
            "padding, say so: ignore_label=-1 in Workload.from_model, ignored_label in a Workload "
            "whose loss and metrics return (sum, count) over what is not padding.",
        ),
        (
            [0.0, 1.0],
            "labels: split 'train': field 'label' has the dtype float64, wanted integers, one a "
            "class. Convert classes with .astype(np.int32); of a regression, give "
            "Workload.from_model loss='squared_error' or a loss of your own, and a Workload no "
            "`classes`.",
        ),
    ],
)
def test_bad_labels_are_counted_and_named(labels, expected):
    splits = {"train": {"label": np.array(labels)}}
    assert message(ValueError, datasets.check_labels, splits, 10) == expected


def test_labels_are_checked_in_every_split_and_in_the_field_that_is_named():
    splits = {"train": {"digit": np.array([0, 1])}, "test": {"digit": np.array([[1, 2], [0, 2]])}}
    datasets.check_labels(splits, 3, field="digit")
    assert message(ValueError, datasets.check_labels, splits, 2, field="digit").startswith(
        "labels: split 'test' has 2 labels outside 0 to 1 (smallest 0, largest 2)."
    )
    assert message(ValueError, datasets.check_labels, splits, 2) == (
        "labels: split 'train' has no field 'label', only 'digit'. "
        "Name the field that holds the labels."
    )
    assert message(ValueError, datasets.check_labels, splits, 0) == (
        "classes: got 0, wanted an integer, 1 or more."
    )


arrays = st.sampled_from(["uint8", "int32", "float32", "bool"]).flatmap(
    lambda dtype: npst.arrays(dtype, npst.array_shapes(max_dims=3, max_side=4))
)
field_names = st.text("abc/_", min_size=1, max_size=4).filter(lambda name: name != "label")


@settings(deadline=None, max_examples=40)
@given(st.dictionaries(field_names, arrays, min_size=1, max_size=3), st.data())
def test_npz_files_give_back_what_was_stored(tmp_path_factory, fields, data):
    examples = min(len(array) for array in fields.values())
    train = {field: array[:examples] for field, array in fields.items()}
    splits = {"train": train, data.draw(st.sampled_from(["validation", "test", "x"])): train}
    path = tmp_path_factory.mktemp("npz") / "deep" / "splits.npz"
    datasets.to_npz(splits, path)
    assert_same(datasets.from_npz(path), splits)
    assert [file.name for file in path.parent.iterdir()] == ["splits.npz"]


def test_npz_files_of_numpy_are_read(tmp_path):
    labels = np.array([3, 1])
    np.savez_compressed(tmp_path / "a.npz", **{"train/label": labels, "test/label": labels[:1]})
    wanted = {"train": {"label": np.int32([3, 1])}, "test": {"label": np.int32([3])}}
    assert_same(datasets.from_npz(tmp_path / "a.npz"), wanted)


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "splits.npz"
    datasets.to_npz({"train": {"label": np.arange(3)}}, path)
    before = path.read_bytes()

    def savez(file, **_):
        file.write(b"half of it")
        raise OSError("No space left on device")

    monkeypatch.setattr(np, "savez", savez)
    with pytest.raises(OSError, match="No space left"):
        datasets.to_npz({"train": {"label": np.arange(4)}}, path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_npz_files_that_are_something_else_are_refused(tmp_path):
    path = tmp_path / "bad.npz"
    advice = "Write it with datasets.to_npz."

    np.savez(path, images=np.zeros(3))
    assert message(ValueError, datasets.from_npz, path) == (
        f"{path}: the array 'images' is not named 'split/field'. Name the arrays 'train/image', "
        "'train/label' and so on, or write the file with datasets.to_npz."
    )
    np.savez(path, **{"train/image": np.zeros(3), "train/label": np.zeros(2, int)})
    assert message(ValueError, datasets.from_npz, path).startswith(
        f"{path}: split 'train': its fields differ in length along axis 0: 'image' 3, 'label' 2."
    )
    with path.open("wb") as file:
        np.save(file, np.zeros(3))
    assert message(ValueError, datasets.from_npz, path) == (
        f"{path}: not a readable .npz file of plain arrays (it holds one array without a name). "
        + advice
    )
    with zipfile.ZipFile(path, "w"):
        pass
    assert message(ValueError, datasets.from_npz, path) == (
        f"{path}: there are no splits. Give at least 'train'."
    )
    datasets.to_npz({"train": {"label": np.arange(1000)}}, path)
    whole = path.read_bytes()
    for content in (b"", b"<html>", whole[:-500], whole[:200] + b"?" + whole[201:]):
        path.write_bytes(content)
        got = message(ValueError, datasets.from_npz, path)
        assert got.startswith(f"{path}: not a readable .npz file of plain arrays (")
        assert got.endswith(advice)
    with pytest.raises(FileNotFoundError):
        datasets.from_npz(tmp_path / "absent.npz")


def test_no_code_of_an_npz_file_runs(tmp_path):
    class Trap:
        def __reduce__(self):
            return (tmp_path / "sprung").mkdir, ()

    path = tmp_path / "objects.npz"
    np.savez(path, **{"train/label": np.array([Trap()], object)})
    assert "Object arrays cannot be loaded" in message(ValueError, datasets.from_npz, path)
    assert not (tmp_path / "sprung").exists()


def test_a_split_whose_name_would_not_come_back_is_not_stored(tmp_path):
    splits = {"a/b": {"label": np.arange(2)}}
    assert message(ValueError, datasets.to_npz, splits, tmp_path / "a.npz") == (
        "split 'a/b': its name must not be empty or hold '/'. Rename it."
    )


def test_the_fingerprint_is_blake2b_of_names_types_shapes_and_bytes():
    images = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    labels = np.array([7, 258], np.int32)
    digest = hashlib.blake2b(digest_size=16)
    digest.update(b'["train", "image", "|u1", [2, 2, 3]]' + bytes(range(12)))
    digest.update(b'["train", "label", "<i4", [2]]' + bytes([7, 0, 0, 0, 2, 1, 0, 0]))
    assert datasets.fingerprint({"train": {"image": images, "label": labels}}) == digest.hexdigest()


def test_the_fingerprint_ignores_order_of_names_layout_and_byte_order():
    a, b = np.arange(6, dtype=np.int32).reshape(2, 3), np.arange(2, dtype=np.float32)
    one = {"train": {"a": a, "b": b}, "test": {"a": a[:1], "b": b[:1]}}
    two = {
        "test": {"b": b[:1], "a": a[:1]},
        "train": {"b": b.astype(">f4"), "a": np.asfortranarray(a)},
    }
    assert datasets.fingerprint(one) == datasets.fingerprint(two)


@settings(deadline=None, max_examples=60)
@given(arrays, st.data())
def test_the_fingerprint_sees_every_change(array, data):
    changed = array.copy()
    place = data.draw(st.integers(0, array.size - 1))
    changed.reshape(-1).view(np.uint8)[place * array.itemsize] ^= 1
    same = datasets.fingerprint({"train": {"a": array}})
    others = [
        {"train": {"a": changed}},
        {"train": {"b": array}},
        {"test": {"a": array}},
        {"train": {"a": array[np.newaxis]}},
        {"train": {"a": array.astype(np.float64)}},
        {"train": {"a": array, "b": array}},
        {"train": {"a": array}, "test": {"a": array}},
    ]
    assert same not in {datasets.fingerprint(other) for other in others}
    assert len(same) == 32


@pytest.mark.parametrize("zipped", [False, True])
def test_idx_files_become_splits_in_file_order(tmp_path, zipped):
    train, test = digits_like(7, shape=(4, 5, 1)), digits_like(3, start=40, shape=(4, 5, 1))
    for file, content in idx_files(train, test).items():
        name, content = (file, gzip.compress(content)) if zipped else (file[:-3], content)
        (tmp_path / name).write_bytes(content)
    parts = {
        "train": {field: array[:5] for field, array in train.items()},
        "validation": {field: array[5:] for field, array in train.items()},
        "test": test,
    }
    assert_same(datasets.from_idx(tmp_path, validation=2), parts)
    assert_same(datasets.from_idx(tmp_path, validation=0), {"train": train, "test": test})
    for validation in (7, -1, 5000):
        assert message(ValueError, datasets.from_idx, tmp_path, validation=validation) == (
            f"validation: got {validation:,}, wanted 0 to 6, since {tmp_path} holds 7 training "
            "examples. Hold out fewer."
        )
    for validation in ("2", 2.5, True):
        with pytest.raises(ValueError, match=f"validation: got {validation!r}, wanted an integer"):
            datasets.from_idx(tmp_path, validation=validation)


@pytest.mark.parametrize(
    ("file", "change", "expected"),
    [
        (
            "train-labels-idx1-ubyte",
            lambda content: b"\0\0\x08\x03" + content[4:],
            "its magic number is 2051, wanted 2049 for unsigned bytes in 1 dimension. "
            "Check that the file is what its name says.",
        ),
        (
            "t10k-images-idx3-ubyte",
            lambda content: b"<!DOCTYPE html>",
            "its magic number is 1008813135, wanted 2051 for unsigned bytes in 3 dimensions. "
            "Check that the file is what its name says.",
        ),
        (
            "t10k-images-idx3-ubyte",
            lambda content: content[:9],
            "it ends after 9 bytes, within the header of 16 bytes. Fetch the file again.",
        ),
        (
            "t10k-labels-idx1-ubyte",
            lambda content: b"",
            "it ends after 0 bytes, within the header of 8 bytes. Fetch the file again.",
        ),
        (
            "train-images-idx3-ubyte",
            lambda content: content[:-1],
            "27 bytes follow the header, wanted 7 x 2 x 2 = 28. Fetch the file again.",
        ),
        (
            "train-images-idx3-ubyte",
            lambda content: content + b"\0",
            "29 bytes follow the header, wanted 7 x 2 x 2 = 28. Fetch the file again.",
        ),
        (
            "train-images-idx3-ubyte",
            lambda content: gzip.compress(content)[:-9],
            "its gzip stream is damaged (Compressed file ended before the end-of-stream marker was "
            "reached). Fetch the file again.",
        ),
    ],
)
def test_damaged_idx_files_are_refused(tmp_path, file, change, expected):
    small = digits_like(7, shape=(2, 2, 1)), digits_like(3, shape=(2, 2, 1))
    for name, content in idx_files(*small).items():
        (tmp_path / name[:-3]).write_bytes(content)
    path = tmp_path / file
    path.write_bytes(change(path.read_bytes()))
    got = message(ValueError, datasets.from_idx, tmp_path)
    assert got == f"{tmp_path}: {file}: {expected}"


def test_missing_idx_files_and_uneven_ones_are_named(tmp_path):
    train, test = digits_like(7), digits_like(3)
    files = idx_files(train, {**test, "label": test["label"][:2]})
    for name in FILES[1:]:
        (tmp_path / name).write_bytes(files[name])
    assert message(FileNotFoundError, datasets.from_idx, tmp_path) == (
        f"{tmp_path}: no train-images-idx3-ubyte, with or without .gz. "
        "Put the four IDX files of the data set into this folder."
    )
    (tmp_path / FILES[0]).write_bytes(files[FILES[0]])
    assert message(ValueError, datasets.from_idx, tmp_path) == (
        f"{tmp_path}: split 'test': its fields differ in length along axis 0: 'image' 3, "
        "'label' 2. Give every field one entry an example."
    )


def test_digits_are_scikit_learns_in_one_fixed_order():
    source = pytest.importorskip("sklearn.datasets").load_digits()
    splits = datasets.load("digits")
    assert {split: len(fields["label"]) for split, fields in splits.items()} == {
        "train": 1100,
        "validation": 350,
        "test": 347,
    }
    images = np.concatenate([fields["image"] for fields in splits.values()])
    labels = np.concatenate([fields["label"] for fields in splits.values()])
    assert (images.dtype, images.shape[1:], labels.dtype) == (np.uint8, (8, 8, 1), np.int32)

    def rows(images, labels):
        return sorted(map(tuple, np.column_stack([images.reshape(-1, 64), labels]).astype(int)))

    assert rows(images, labels) == rows(source.images, source.target)
    assert datasets.fingerprint(splits) == "c2c141284ef4b7233894f869dd593a44"


def test_digits_without_scikit_learn_say_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    got = message(ImportError, datasets.load, "digits")
    assert got.startswith("'digits' comes with scikit-learn, which cannot be imported here (")
    assert got.endswith('). Run: pip install "batchscale[experiments]"')


def test_an_unknown_name_lists_the_known_ones():
    subsets = "mnist_27500", "mnist_13750", "mnist_6875"
    names = "digits", "mnist", "fashion_mnist", "cifar10", "tiny_shakespeare", *subsets
    assert datasets.names() == names
    wanted = (
        f"name: got 'mnits', wanted one of {', '.join(names)}. "
        "Data of your own comes from from_arrays, from_npz or from_idx."
    )
    assert message(ValueError, datasets.load, "mnits") == wanted
    assert message(ValueError, datasets.title, "mnits", {}) == wanted


def test_an_npz_file_in_the_directory_comes_first(tmp_path, cache, no_network, small_mnist):
    write_prepared(tmp_path, "mnist", {"train": digits_like(8, start=90), "test": digits_like(3)})
    datasets.to_npz(held_out(small_mnist), tmp_path / "mnist.npz")
    assert_same(datasets.load("mnist", directory=tmp_path), held_out(small_mnist))


@pytest.mark.parametrize(
    ("train", "expected"),
    [
        (
            {"image": np.zeros((2, 28, 28), np.uint8), "label": np.zeros(2, int)},
            "an example of split 'train' is {'image': ('uint8', (28, 28)), 'label': ('int32', ())},"
            " wanted {'image': ('uint8', (28, 28, 1)), 'label': ('int32', ())} for 'mnist'. "
            "Use from_npz or from_arrays for data of your own.",
        ),
        (
            {"image": np.zeros((1, 28, 28, 1), np.uint8), "label": np.array([10])},
            "labels: split 'train' has 1 label outside 0 to 9 (smallest 10, largest 10).",
        ),
    ],
)
def test_an_npz_file_that_is_not_the_named_set_is_refused(tmp_path, train, expected):
    datasets.to_npz({"train": train}, tmp_path / "mnist.npz")
    assert expected in message(ValueError, datasets.load, "mnist", directory=tmp_path)


def held_out(examples):
    """The standard splits of the small MNIST."""
    return {
        "train": {field: array[:6] for field, array in examples["train"].items()},
        "validation": {field: array[6:] for field, array in examples["train"].items()},
        "test": examples["test"],
    }


@pytest.mark.parametrize("by", ["argument", "variable"])
def test_prepared_sets_are_read_without_tensorflow(
    tmp_path, cache, no_network, monkeypatch, small_mnist, by
):
    write_prepared(tmp_path, "mnist", small_mnist)
    if by == "variable":
        monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    splits = datasets.load("mnist", directory=tmp_path if by == "argument" else None)
    assert_same(splits, held_out(small_mnist))


@pytest.mark.parametrize("examples", [1, 1000])
@pytest.mark.parametrize("split", ["train", "test"])
def test_the_order_of_tfds_is_undone_as_tfds_itself_makes_it(tmp_path, split, examples):
    shuffle = pytest.importorskip("tensorflow_datasets.core.shuffle")
    shuffler = shuffle.Shuffler(tmp_path, split)
    for number in range(examples):
        shuffler.add(number, str(number).encode())
    written = {"label": np.array([int(data) for _, data in shuffler])}
    assert (written["label"] == np.arange(examples)).all() == (examples == 1)
    assert prepared.unshuffled(split, written)["label"].tolist() == list(range(examples))


def test_the_order_is_undone_over_the_files_of_a_split(tmp_path, cache, small_mnist):
    write_prepared(tmp_path, "mnist", small_mnist, shards=3)
    assert_same(datasets.load("mnist", directory=tmp_path), held_out(small_mnist))


def test_a_set_that_tfds_did_not_sort_is_left_as_it_is(tmp_path, cache, small_mnist):
    write_prepared(tmp_path, "mnist", small_mnist, sort=lambda split, fields: fields)
    assert_same(datasets.load("mnist", directory=tmp_path), held_out(small_mnist))


def swapped(fields, first, second):
    order = np.arange(len(fields["label"]))
    order[[first, second]] = second, first
    return {field: array[order] for field, array in fields.items()}


def other_orders(examples):
    train, test = examples["train"], examples["test"]
    return [
        {"train": swapped(train, 0, 1), "test": test},
        {"train": swapped(train, 5, 6), "test": test},  # between train and validation
        {"train": train, "test": swapped(test, 0, 2)},
    ]


@pytest.mark.parametrize("case", range(3))
@pytest.mark.parametrize("source", ["npz", "tfds"])
def test_two_swapped_images_are_another_order_by_another_name(
    tmp_path, cache, small_mnist, case, source
):
    other = other_orders(small_mnist)[case]
    if source == "npz":
        datasets.to_npz(held_out(other), where := tmp_path / "mnist.npz")
    else:
        where = write_prepared(tmp_path, "mnist", other, sort=lambda split, fields: fields)
    with pytest.warns(UserWarning, match="not 'mnist' as it was published") as warned:
        splits = datasets.load("mnist", directory=tmp_path)
    file = ("t10k" if case == 2 else "train") + "-images-idx3-ubyte"
    images = other["test" if case == 2 else "train"]["image"][..., 0]
    got = hashlib.md5(idx_bytes(images)).hexdigest()
    assert str(warned[0].message) == (
        f"{where}: not 'mnist' as it was published ({file}: MD5 {got}, wanted MD5 "
        f"{published.SETS['mnist'].files[file].digest}). What is trained on and what is held out "
        "differ, and steps to a goal with them: this is 'mnist (other order)' in tables. Take it "
        "away to have the published set read instead, or load it under another name with from_npz "
        "or from_arrays."
    )
    assert warned[0].filename == __file__
    assert_same(splits, held_out(other))
    assert datasets.title("mnist", splits) == "mnist (other order)"


def changed_pixel(splits):
    images = splits["test"]["image"].copy()
    images[1, 2, 3] ^= 1
    return splits | {"test": {**splits["test"], "image": images}}


def changed_label(splits):
    labels = splits["validation"]["label"] + np.int32([0, 256])  # the same in a byte
    return splits | {"validation": {**splits["validation"], "label": labels}}


@pytest.mark.parametrize(
    ("change", "called"),
    [
        (lambda splits: splits, "mnist"),
        (lambda splits: dict(reversed(splits.items())), "mnist"),
        (changed_pixel, "mnist (other images)"),
        (changed_label, "mnist (other images)"),
        (lambda splits: {"train": splits["train"]}, "mnist (other images)"),
        (lambda splits: {"train": {"input": np.zeros(3)}}, "mnist (other images)"),
        (
            lambda splits: {
                split: {**fields, "image": fields["image"] / np.float32(255)}
                for split, fields in splits.items()
            },
            "mnist (other images)",
        ),
        (lambda splits: splits | {"validation": splits["test"]}, "mnist (other images)"),
        (
            lambda splits: splits | {"validation": splits["test"], "test": splits["validation"]},
            "mnist (other order)",
        ),
    ],
)
def test_a_set_is_called_by_its_name_alone_only_if_it_is_the_published_one(
    small_mnist, change, called
):
    assert datasets.title("mnist", change(held_out(small_mnist))) == called


def test_the_newest_complete_version_is_read(tmp_path, cache, small_mnist):
    other = {"train": digits_like(8, start=3), "test": digits_like(3, start=3)}
    write_prepared(tmp_path, "mnist", other, version="3.0.9")
    newest = write_prepared(tmp_path, "mnist", small_mnist, version="3.0.10")
    write_prepared(tmp_path, "mnist", other, version="3.0.11.incompleteABC")
    write_prepared(tmp_path, "mnist", {"train": other["train"]}, version="4.0.0")
    assert prepared.find(tmp_path, "mnist") == newest
    assert_same(datasets.load("mnist", directory=tmp_path), held_out(small_mnist))


def test_decoded_images_are_cached_until_the_set_changes(tmp_path, cache, monkeypatch, small_mnist):
    folder = write_prepared(tmp_path, "mnist", small_mnist)
    decoded = []
    decode = prepared.decoded
    monkeypatch.setattr(prepared, "decoded", lambda folder: decoded.append(1) or decode(folder))

    first = datasets.load("mnist", directory=tmp_path)
    (stored,) = (cache / "tfds").iterdir()
    assert stored.name.startswith("mnist-3.0.1-")
    assert_same(datasets.load("mnist", directory=tmp_path), first)
    assert len(decoded) == 1

    stored.write_bytes(stored.read_bytes()[:500])
    assert_same(datasets.load("mnist", directory=tmp_path), first)
    assert len(decoded) == 2

    record = next(folder.glob("mnist-test.array_record-*"))
    os.utime(record, ns=(1, 1))
    assert_same(datasets.load("mnist", directory=tmp_path), first)
    assert len(decoded) == 3


def test_arrays_that_an_earlier_version_cached_in_the_order_of_tfds_are_not_served(
    tmp_path, cache, small_mnist
):
    folder = write_prepared(tmp_path, "mnist", small_mnist)
    records = sorted(folder.glob("*.array_record-*"))
    stats = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in records]
    key = hashlib.blake2b(json.dumps(["mnist", "3.0.1", stats]).encode(), digest_size=8).hexdigest()
    filed = {split: as_tfds_sorts(split, fields) for split, fields in small_mnist.items()}
    datasets.to_npz(filed, cache / "tfds" / f"mnist-3.0.1-{key}.npz")
    assert_same(datasets.load("mnist", directory=tmp_path), held_out(small_mnist))


def test_a_cache_that_cannot_be_written_is_no_error(tmp_path, cache, small_mnist, server):
    cache.write_text("a file where the folder should be")
    assert_same(datasets.load("mnist"), held_out(small_mnist))
    write_prepared(tmp_path, "mnist", small_mnist)
    assert_same(datasets.load("mnist", directory=tmp_path), held_out(small_mnist))


def test_a_part_of_a_set_does_not_pass_for_it(tmp_path, cache):
    folder = write_prepared(tmp_path, "mnist", {"train": digits_like(5), "test": digits_like(2)})
    assert message(ValueError, datasets.load, "mnist", directory=tmp_path) == (
        f"{folder}: it holds 5 training and 2 test images, wanted 60,000 and 10,000 for 'mnist'. "
        "Prepare or fetch the set again; a part of it is data of your own, for from_arrays or "
        "from_npz."
    )


def test_published_files_are_downloaded_once_from_the_first_address_that_has_them(
    cache, small_mnist, server, monkeypatch
):
    asked = []
    urlopen = urllib.request.urlopen
    monkeypatch.setattr(
        urllib.request, "urlopen", lambda url, **kwargs: asked.append(url) or urlopen(url, **kwargs)
    )
    assert_same(datasets.load("mnist"), held_out(small_mnist))
    first, second = published.SETS["mnist"].addresses
    assert asked == [address + file for file in FILES for address in (first, second)]
    assert sorted(file.name for file in (cache / "mnist").iterdir()) == sorted(FILES)

    asked.clear()
    assert_same(datasets.load("mnist"), held_out(small_mnist))
    assert asked == []


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda content: b"short", "5 bytes, wanted 11"),
        (lambda content: content + b"?", "more bytes, wanted 11"),
        (lambda content: gzip.compress(bytes(10**6)), "more bytes, wanted 11"),
        (lambda content: bytes(11), f"MD5 {hashlib.md5(bytes(11)).hexdigest()}, wanted MD5 "),
        (
            lambda content: gzip.compress(content)[:-9],
            "its gzip stream of 22 bytes is damaged (Compressed file ended before the "
            "end-of-stream marker was reached)",
        ),
    ],
)
def test_files_that_are_not_the_published_ones_are_refused(cache, server, change, fault):
    file = "t10k-labels-idx1-ubyte.gz"
    content = gzip.decompress((server / file).read_bytes())
    (server / file).write_bytes(change(content))
    got = message(FileNotFoundError, datasets.load, "mnist")
    assert f"{server.as_uri()}/{file}: {fault}" in got
    assert not (cache / "mnist" / file).exists()


@pytest.mark.parametrize("level", [0, 1, None])
def test_published_files_are_known_however_they_are_compressed(
    cache, no_network, small_mnist, level
):
    (cache / "mnist").mkdir(parents=True)
    for file, content in idx_files(**small_mnist).items():
        name, content = (
            (file[:-3], content) if level is None else (file, gzip.compress(content, level))
        )
        (cache / "mnist" / name).write_bytes(content)
    assert_same(datasets.load("mnist"), held_out(small_mnist))


def test_cifar10_has_one_order_from_its_published_files_and_from_tfds(
    tmp_path, cache, cifar_server, small_cifar
):
    assert_same(datasets.load("cifar10"), small_cifar.splits)
    assert {path.name for path in (cache / "cifar10").iterdir()} == set(CIFAR_FILES)
    (cifar_server / "cifar-10-binary.tar.gz").unlink()
    assert_same(datasets.load("cifar10"), small_cifar.splits)
    write_prepared(tmp_path, "cifar10", small_cifar.examples, version="3.0.2", shards=2)
    splits = datasets.load("cifar10", directory=tmp_path)
    assert_same(splits, small_cifar.splits)
    assert datasets.title("cifar10", splits) == "cifar10"


@pytest.mark.parametrize("mode", ["w:gz", "w:xz", "w"])
@pytest.mark.parametrize("folder", ["cifar-10-batches-bin/", "a/b/", ""])
def test_an_archive_of_cifar10_in_the_cache_is_read_however_it_is_packed(
    cache, no_network, small_cifar, mode, folder
):
    (cache / "cifar10").mkdir(parents=True)
    packed = cifar_archive(small_cifar.contents, folder, mode)
    (cache / "cifar10" / "cifar-10-binary.tar.gz").write_bytes(packed)
    assert_same(datasets.load("cifar10"), small_cifar.splits)


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda files: cifar_archive(files)[:-700], "bytes is damaged ("),
        (lambda files: b"<html>", "the archive of 6 bytes is damaged ("),
        (
            lambda files: cifar_archive({file: files[file] for file in CIFAR_FILES[1:]}),
            "no data_batch_1.bin",
        ),
        (
            lambda files: cifar_archive(files | {"test_batch.bin": b"?"}),
            "test_batch.bin: 1 bytes, wanted 9,219",
        ),
        (
            lambda files: cifar_archive(files | {"test_batch.bin": bytes(9219)}),
            f"test_batch.bin: SHA1 {hashlib.sha1(bytes(9219)).hexdigest()}, wanted SHA1 ",
        ),
        (
            lambda files: cifar_archive(files | {"data_batch_1.bin": files["data_batch_2.bin"]}),
            "data_batch_1.bin: SHA1 ",
        ),
    ],
)
def test_an_archive_that_is_not_the_published_one_is_refused(
    cache, cifar_server, small_cifar, change, fault
):
    (cifar_server / "cifar-10-binary.tar.gz").write_bytes(change(small_cifar.contents))
    got = message(FileNotFoundError, datasets.load, "cifar10")
    assert fault in got[got.index(f"{cifar_server.as_uri()}/cifar-10-binary.tar.gz: ") :]
    assert not (cache / "cifar10").exists()


def test_a_damaged_cached_file_of_cifar10_is_fetched_again(cache, cifar_server, small_cifar):
    datasets.load("cifar10")
    damaged = cache / "cifar10" / "data_batch_3.bin"
    damaged.write_bytes(damaged.read_bytes()[::-1])
    assert_same(datasets.load("cifar10"), small_cifar.splits)
    assert damaged.read_bytes() == small_cifar.contents["data_batch_3.bin"]


def test_cifar10_that_is_not_the_published_one_gets_another_name(tmp_path, cache, small_cifar):
    other = {split: swapped(fields, 0, 1) for split, fields in small_cifar.examples.items()}
    where = write_prepared(tmp_path, "cifar10", other, version="3.0.2")
    with pytest.warns(UserWarning, match="not 'cifar10' as it was published") as warned:
        splits = datasets.load("cifar10", directory=tmp_path)
    assert datasets.title("cifar10", splits) == "cifar10 (other images or order)"
    told = str(warned[0].message)
    assert told.startswith(f"{where}: not 'cifar10' as it was published (data_batch_1.bin: SHA1 ")
    assert "this is 'cifar10 (other images or order)' in tables." in told
    filed = as_tfds_sorts("train", other["train"])  # left as it was found
    np.testing.assert_array_equal(splits["train"]["image"], filed["image"][:7])


def test_a_damaged_cached_file_is_fetched_again(cache, small_mnist, server, monkeypatch):
    datasets.load("mnist")
    damaged = cache / "mnist" / FILES[0]
    good = damaged.read_bytes()
    damaged.write_bytes(good[:-1])
    assert_same(datasets.load("mnist"), held_out(small_mnist))
    assert damaged.read_bytes() == good

    damaged.write_bytes(good[:-1])
    (server / FILES[0]).unlink()
    assert f"{damaged}: its gzip stream of {len(good) - 1:,} bytes is damaged (" in message(
        FileNotFoundError, datasets.load, "mnist"
    )


def test_without_a_network_the_error_says_what_was_tried_and_what_to_do(
    tmp_path, cache, no_network
):
    urls = [
        f"https://{host}/mnist/train-images-idx3-ubyte.gz: "
        "<urlopen error Name or service not known>"
        for host in ("storage.googleapis.com/cvdf-datasets", "ossci-datasets.s3.amazonaws.com")
    ]
    assert message(FileNotFoundError, datasets.load, "mnist") == (
        f"'mnist' was not found: {tmp_path}/nothing prepared/mnist holds no array_record files "
        f"prepared by TFDS; the published files could not be had ({'; '.join(urls)}); TFDS cannot "
        "prepare it here (ModuleNotFoundError: TensorFlow is not installed). "
        "Do one of these: put train-images-idx3-ubyte.gz, train-labels-idx1-ubyte.gz, "
        f"t10k-images-idx3-ubyte.gz, t10k-labels-idx1-ubyte.gz into {cache}/mnist; set "
        "`directory` or TFDS_DATA_DIR to where TFDS has prepared it with "
        "file_format='array_record' (`tfds convert_format` converts other formats); install "
        "TensorFlow, so that TFDS can download and prepare it."
    )
    cifar = message(FileNotFoundError, datasets.load, "cifar10", directory=tmp_path)
    assert cifar.startswith(f"'cifar10' was not found: {tmp_path}/cifar10 holds no array_record")
    assert f"put cifar-10-binary.tar.gz into {cache}/cifar10; " in cifar


def test_tfds_prepares_what_nothing_else_has(tmp_path, cache, no_network, monkeypatch, small_mnist):
    tfds = pytest.importorskip("tensorflow_datasets")
    tensorflow(monkeypatch, "found")

    def builder(name, *, data_dir, file_format):
        assert file_format == "array_record"

        def download_and_prepare():
            write_prepared(data_dir, name, small_mnist)

        return types.SimpleNamespace(download_and_prepare=download_and_prepare)

    monkeypatch.setattr(tfds, "builder", builder)
    assert_same(datasets.load("mnist", directory=tmp_path / "new"), held_out(small_mnist))


def test_what_tfds_says_when_it_fails_is_passed_on(tmp_path, cache, no_network, monkeypatch):
    tfds = pytest.importorskip("tensorflow_datasets")
    tensorflow(monkeypatch, "found")
    idle = types.SimpleNamespace(download_and_prepare=lambda: None)
    monkeypatch.setattr(tfds, "builder", lambda name, **_: idle)
    assert (
        "TFDS cannot prepare it here (FileNotFoundError: it made no array_record files under "
        f"{tmp_path}/cifar10). Do one of these: "
    ) in message(FileNotFoundError, datasets.load, "cifar10", directory=tmp_path)


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"BATCHSCALE_CACHE": "/a", "XDG_CACHE_HOME": "/b"}, "/a"),
        ({"BATCHSCALE_CACHE": "", "XDG_CACHE_HOME": "/b"}, "/b/batchscale"),
        ({"BATCHSCALE_CACHE": "", "XDG_CACHE_HOME": ""}, "/home/me/.cache/batchscale"),
        ({"BATCHSCALE_CACHE": "~/c", "XDG_CACHE_HOME": ""}, "/home/me/c"),
    ],
)
def test_the_cache_is_where_the_environment_says(monkeypatch, variables, expected):
    for name, value in {"HOME": "/home/me", **variables}.items():
        monkeypatch.setenv(name, value)
    assert files.cache_folder() == Path(expected)


@pytest.mark.parametrize("dataset", published.SETS)
def test_the_first_address_is_that_of_tfds(dataset):
    tfds = pytest.importorskip("tensorflow_datasets")
    root, ours = Path(tfds.__file__).parent, published.SETS[dataset]
    tables = root / f"url_checksums/{dataset}.txt", root / f"datasets/{dataset}/checksums.tsv"
    (table,) = (path for path in tables if path.exists())
    theirs = [line.split("\t") for line in table.read_text().splitlines()]
    assert {url for url, *_ in theirs} == {ours.addresses[0] + f for f in ours.served().split(", ")}
    if ours.served() in ours.files:  # the file itself, neither packed nor in an archive
        ((_, size, digest, _),) = theirs
        content = ours.files[ours.served()]
        assert (int(size), digest) == (content.size, content.digest)


def test_a_workload_is_called_by_what_is_found(small_mnist):
    found = {
        "order of publication": held_out(small_mnist),
        "other": held_out(other_orders(small_mnist)[1]),
    }
    called = {}
    for case, splits in found.items():
        workload = dataclasses.replace(
            workloads.get("mnist/fc_4"), data=lambda splits=splits: splits, train_examples=None
        )
        called[case] = workload.title()
    assert called == {"order of publication": "mnist/fc_4", "other": "mnist (other order)/fc_4"}


def test_a_workload_under_a_name_of_ones_own_keeps_it(small_mnist):
    splits = held_out(other_orders(small_mnist)[1])
    workload = dataclasses.replace(
        workloads.get("mnist/fc_4"), name="own", data=lambda: splits, train_examples=None
    )
    assert workload.title() == "own"


@pytest.mark.filterwarnings("ignore:no trial reached")
@pytest.mark.slow
def test_studies_of_two_orders_have_two_names_and_two_folders(tmp_path, small_mnist):
    loaded, studies = [], []
    for examples in (small_mnist, other_orders(small_mnist)[1]):

        def data(splits=held_out(examples)):  # noqa: B008
            loaded.append(1)
            return splits

        studies.append(
            bs.Study(
                workload=dataclasses.replace(
                    workloads.get("mnist/fc_4"), data=data, train_examples=6
                ),
                optimizer="sgd",
                goal=bs.Goal("validation/error", 0.01),
                batch_sizes=[2],
                space=bs.SearchSpace(learning_rate=0.1),
                trials=1,
                max_steps=2,
            )
        )
    assert loaded == []
    result = studies[1].run(tmp_path, progress=False)
    assert result.definition.workload == "mnist (other order)/fc_4"
    got = message(ValueError, studies[0].run, tmp_path, progress=False)
    assert "holds another study (" in got
    assert "workload: mnist (other order)/fc_4 there, mnist/fc_4 here; the data changed" in got
    assert "the data changed" in got


def test_optional_and_slow_packages_are_imported_only_when_a_set_needs_them():
    code = "import sys, batchscale.datasets; print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    assert not {"sklearn", "tensorflow_datasets", "tensorflow"} & set(run.stdout.split())


@pytest.fixture(scope="module")
def mnist():
    """MNIST itself, decoded once and then taken from the user's own cache."""
    if prepared.find(PREPARED, "mnist") is None:
        pytest.skip(f"MNIST is not prepared for TFDS in {PREPARED}; set TFDS_DATA_DIR")
    return datasets.load("mnist", directory=PREPARED)


@pytest.mark.data
def test_mnist_has_the_published_number_of_each_digit(mnist):
    assert {split: fields["image"].shape for split, fields in mnist.items()} == {
        "train": (55_000, 28, 28, 1),
        "validation": (5_000, 28, 28, 1),
        "test": (10_000, 28, 28, 1),
    }
    counts = {split: np.bincount(fields["label"]) for split, fields in mnist.items()}
    assert (counts["train"] + counts["validation"]).tolist() == [
        5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949
    ]  # fmt: skip
    assert counts["test"].tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert counts["validation"].min() > 400


@pytest.mark.data
def test_mnist_pixels_have_the_well_known_mean_and_deviation(mnist):
    pixels = np.concatenate([mnist["train"]["image"], mnist["validation"]["image"]])
    counts = np.bincount(pixels.ravel(), minlength=256) / pixels.size
    values = np.arange(256) / 255
    mean = counts @ values
    assert mean == pytest.approx(0.1307, abs=5e-5)
    assert np.sqrt(counts @ (values - mean) ** 2) == pytest.approx(0.3081, abs=5e-5)


def published_splits(name, cache):
    """The named set from the published files in shared data, gzipped again, in the cache."""
    if not (IDX / name).is_dir():
        pytest.skip(f"the published files of {name} are not in {IDX / name}")
    (cache / name).mkdir(parents=True)
    for path in (IDX / name).iterdir():
        (cache / name / path.name).symlink_to(path)
    return datasets.load(name)


# The MD5s of the uncompressed IDX files, as several projects quote them.
MD5S = {
    "mnist": {
        ("train", "image"): "6bbc9ace898e44ae57da46a324031adb",
        ("train", "label"): "a25bea736e30d166cdddb491f175f624",
        ("test", "image"): "2646ac647ad5339dbf082846283269ea",
        ("test", "label"): "27ae3e4e09519cfbb04c329615203637",
    },
    "fashion_mnist": {
        ("train", "image"): "f4a8712d7a061bf5bd6d2ca38dc4d50a",
        ("train", "label"): "9018921c3c673c538a1fc5bad174d6f9",
        ("test", "image"): "8181f5470baa50b63fa0f6fddb340f0a",
        ("test", "label"): "15d484375f8d13e6eb1aabb0c3f46965",
    },
}


def idx_md5s(splits):
    """MD5s of the IDX files of standard splits, their validation put back at the end of train."""
    joined = {
        field: np.concatenate([splits["train"][field], splits["validation"][field]])
        for field in ("image", "label")
    }
    return {
        (split, field): hashlib.md5(
            idx_bytes(fields[field][..., 0] if field == "image" else fields[field])
        ).hexdigest()
        for split, fields in {"train": joined, "test": splits["test"]}.items()
        for field in ("image", "label")
    }


@pytest.mark.data
@pytest.mark.parametrize("name", MD5S)
def test_published_files_give_the_published_arrays_in_order(cache, no_network, name):
    splits = published_splits(name, cache)
    assert idx_md5s(splits) == MD5S[name]
    assert len(splits["validation"]["label"]) == 5000
    assert datasets.title(name, splits) == name
    other = {split: swapped(fields, 0, 1) for split, fields in splits.items()}
    assert datasets.title(name, other) == f"{name} (other order)"


@pytest.mark.data
def test_mnist_has_one_order_from_tfds_and_from_the_published_files(mnist):
    assert idx_md5s(mnist) == MD5S["mnist"]
    assert mnist["train"]["label"][:10].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]
    assert len(mnist["validation"]["label"]) == 5000
    assert datasets.title("mnist", mnist) == "mnist"
