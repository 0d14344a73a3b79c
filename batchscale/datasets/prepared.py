"""Sets that TensorFlow Datasets has prepared on this machine, read without TensorFlow."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import importlib.util
import json
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from batchscale.datasets.splits import Splits, from_npz, to_npz

_SPLITS = ("train", "test")


def find(root: Path, name: str, splits: Sequence[str] = _SPLITS) -> Path | None:
    """The folder of the newest version of a set that is prepared in array_record format."""
    versions = [
        folder
        for folder in (root / name).glob("*")
        # TFDS prepares in "3.0.1.incomplete...", and renames that in the end.
        if re.fullmatch(r"\d+\.\d+\.\d+", folder.name)
        and (folder / "dataset_info.json").is_file()
        and all(list(folder.glob(f"{name}-{split}.array_record-*")) for split in splits)
    ]
    return max(versions, key=lambda folder: [*map(int, folder.name.split("."))], default=None)


def read(folder: Path, cache: Path, published: Callable[[Splits], bool]) -> Splits:
    """`train` and `test` of a prepared set, in the order in which they were published.

    Decoding takes about 0.3 ms an image, so the arrays are kept in `cache`, where the folder's
    name, version, file sizes and dates find them again.

    Args:
      folder: of one version of a set.
      cache: the folder of the cache.
      published: whether arrays are those that were published. If they are not when TFDS's order is
        undone, they are left in the order of the files.
    """
    name, version = folder.parent.name, folder.name
    records = sorted(folder.glob("*.array_record-*"))
    stats = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in records]
    key = json.dumps(["order of publication", name, version, stats])
    key = hashlib.blake2b(key.encode(), digest_size=8).hexdigest()
    stored = cache / "tfds" / f"{name}-{version}-{key}.npz"
    with contextlib.suppress(OSError, ValueError):  # not there yet, or damaged
        return from_npz(stored)
    filed = decoded(folder)
    original = {split: unshuffled(split, fields) for split, fields in filed.items()}
    splits = original if published(original) else filed
    with contextlib.suppress(OSError):  # a cache that cannot be written only costs time
        to_npz(splits, stored)
    return splits


def prepare(root: Path, name: str, splits: Sequence[str] = _SPLITS) -> Path:
    """Has TFDS download and prepare a set, which takes TensorFlow; its folder is returned."""
    if importlib.util.find_spec("tensorflow") is None:
        raise ModuleNotFoundError("TensorFlow is not installed")
    _tfds().builder(name, data_dir=root, file_format="array_record").download_and_prepare()
    folder = find(root, name, splits)
    if folder is None:
        raise FileNotFoundError(f"it made no array_record files under {root / name}")
    return folder


def decoded(folder: Path) -> Splits:
    """The images and labels of a prepared set, in the order in which they are filed."""
    builder = _tfds().builder_from_directory(folder)
    return {split: _examples(builder.as_data_source(split)) for split in _SPLITS}


def texts(folder: Path) -> dict[str, bytes]:
    """The texts of a prepared set that holds one a split."""
    builder = _tfds().builder_from_directory(folder)
    found = {}
    for split in ("train", "validation", "test"):
        (example,) = builder.as_data_source(split)
        text = example["text"]
        found[split] = text if isinstance(text, bytes) else str(text).encode()
    return found


def _examples(source: Any) -> dict[str, np.ndarray]:
    images, labels = [], []
    for start in range(0, len(source), 1000):
        # One call for many is twice as fast as one call for each.
        for example in source.__getitems__(range(start, min(start + 1000, len(source)))):
            images.append(example["image"])
            labels.append(example["label"])
    return {"image": np.stack(images), "label": np.array(labels, np.int32)}


def unshuffled(split: str, fields: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The examples of a split by their numbers, which were the keys that TFDS sorted by.

    TFDS writes examples sorted by the MD5 of the split's name and the key, over all files of a
    split (`Shuffler` in its core/shuffle.py), and takes the number of an example as its key in all
    sets here (`_generate_examples` in its image_classification/mnist.py and cifar.py).
    """
    examples = len(next(iter(fields.values())))
    written = sorted(
        range(examples),
        key=lambda key: hashlib.md5(f"{split}{key}".encode(), usedforsecurity=False).digest(),
    )
    place = np.empty(examples, int)
    place[written] = np.arange(examples)
    return {field: array[place] for field, array in fields.items()}


def _tfds() -> ModuleType:
    # What TFDS imports may be deprecated, which is nothing that the user can mend.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return importlib.import_module("tensorflow_datasets")


def encoded(folder: Path, split: str) -> Any:
    """The records of a split of a prepared set, with random access; images stay encoded."""
    builder = _tfds().builder_from_directory(folder)
    decoders = {"image": _tfds().decode.SkipDecoding()} if "image" in builder.info.features else {}
    if split not in builder.info.splits:
        raise FileNotFoundError(
            f"{folder}: it has no split {split!r}, only {', '.join(builder.info.splits)}. Have "
            "TFDS prepare the set again, with all of its archives."
        )
    return builder.as_data_source(split, decoders=decoders)


def package_text(path: str) -> str:
    """A text file that TFDS comes with, such as a list of labels."""
    spec = importlib.util.find_spec("tensorflow_datasets")
    if spec is None or spec.origin is None:
        raise ImportError("tensorflow-datasets is not installed: pip install tensorflow-datasets")
    return (Path(spec.origin).parent / path).read_text()
