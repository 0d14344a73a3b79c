"""ImageNet (ILSVRC 2012) and its subsets, read as they are needed; other sets in its format too."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from batchscale.datasets import prepared
from batchscale.datasets.pictures import SIDE, Pictures, Records
from batchscale.datasets.splits import from_npz, to_npz
from batchscale.files import cache_folder, local_path

# Official examples: those to train with, of which the test split is taken, and the validation set.
OFFICIAL = {"train": 1_281_167, "validation": 50_000}
TEST = 50_045  # examples of the test split in Shallue et al. (2019), as errors of theirs tell
SUBSETS = ("all", "half_images", "half_classes")
_VALIDATION = "val", "validation"
_ENDINGS = ".jpeg", ".jpg", ".png"

Source = Pictures | Records


def splits(
    directory: str | os.PathLike[str],
    *,
    subset: str = "all",
    test: int = TEST,
    side: int = SIDE,
) -> dict[str, Source]:
    """The splits of ImageNet, or of another set in its format, as random-access sources.

    `validation` is the official validation set. `test` is taken out of the official training set,
    since the official test labels are not public. Choices, since it is not known which images
    Shallue et al. (2019) took:

    - the order of a split is that of the MD5 of "train" or "validation" followed by the file's name
      (`n01440764_10026.JPEG`). It is that of the records of TFDS, so that either source gives the
      same examples in the same order, and it has nothing to do with the classes;
    - `test` is the first 50,045 of the training images in this order, `train` all others;
    - `half_images` is the first half of `train`, with the same `validation` and `test`;
    - `half_classes` is every second class in the order of their WordNet numbers, the first one
      included, numbered anew from 0; of all three splits the images of other classes are left out.

    Args:
      directory: a folder with `train` and `val` (or `validation`), each with one folder a class,
        named by its WordNet number; `val` may also hold the 50,000 images themselves. Or the folder
        of one version of `imagenet2012` that TFDS has prepared in array_record format.
      subset: `all`, `half_images` or `half_classes`. For the half of the classes the labels of all
        records of TFDS have to be read once, which may take an hour; they are kept in the cache.
      test: how many training images are the test split.
      side: pixels of height and width of an image; see `pictures.decoded`.

    Returns:
      `train`, `validation` and `test`: `len(source)` examples, `source[i]` with `image`, uint8
      [side, side, 3], and `label`, int32 [].

    Raises:
      FileNotFoundError: the folder holds neither; says what to do.
      ValueError: the subset is not known, classes differ between the splits, or `test` leaves
        nothing to train with.
    """
    if subset not in SUBSETS:
        raise ValueError(f"subset: got {subset!r}, wanted one of {', '.join(SUBSETS)}.")
    folder = local_path(directory, "directory")
    if (folder / "dataset_info.json").is_file():
        return _of_records(folder, subset, test, side)
    return _of_folders(folder, subset, test, side)


def order(split: str, names: Sequence[str]) -> Int[np.ndarray, " examples"]:
    """The order of examples: by the MD5 of the split's name and the file's, which is that of TFDS.

    >>> order("train", ["a.JPEG", "b.JPEG", "c.JPEG"])
    array([1, 0, 2])
    """
    digests = np.array(
        [hashlib.md5(f"{split}{name}".encode(), usedforsecurity=False).digest() for name in names],
        "V16",
    ).view(">u8")
    return np.lexsort((digests[1::2], digests[::2]))


def class_folders(folder: Path) -> tuple[list[str], list[Path], Int[np.ndarray, " examples"]]:
    """The classes of a folder with one folder each, its images, and the class of each image.

    Classes are numbered in the order of their names.
    """
    classes = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir())
    files, labels = [], []
    for label, name in enumerate(classes):
        found = sorted(x.name for x in os.scandir(folder / name) if _is_image(x.name))
        files += [folder / name / file for file in found]
        labels += [label] * len(found)
    return classes, files, np.array(labels, np.int32)


def _of_folders(folder: Path, subset: str, test: int, side: int) -> dict[str, Source]:
    at = {"train": folder / "train", "validation": folder / _VALIDATION[0]}
    if not at["validation"].is_dir():
        at["validation"] = folder / _VALIDATION[1]
    missing = [path for path in at.values() if not path.is_dir()]
    if missing:
        raise FileNotFoundError(
            f"{folder}: no {missing[0].name}, and no dataset_info.json. Unpack "
            "ILSVRC2012_img_train.tar there, each archive within it into a folder of its name, as "
            "train/n01440764/n01440764_10026.JPEG, and ILSVRC2012_img_val.tar as val; or name the "
            "folder of a version of imagenet2012 that TFDS has prepared."
        )
    classes, train, train_labels = class_folders(at["train"])
    held_classes, held, held_labels = class_folders(at["validation"])
    if not held_classes:
        held, held_labels = _numbered(at["validation"], classes)
    elif held_classes != classes:
        different = sorted({*classes} ^ {*held_classes})
        raise ValueError(
            f"{folder}: train and {at['validation'].name} have not the same classes: "
            f"{', '.join(different[:3])} is in one of them alone. Unpack both again."
        )
    found: dict[str, Source] = {}
    by_order = order("train", [path.name for path in train])
    parts = {**_parts(by_order, test, subset, folder)}
    parts["validation"] = order("validation", [path.name for path in held])
    for split in ("train", "validation", "test"):
        files, labels = (held, held_labels) if split == "validation" else (train, train_labels)
        indices = parts[split]
        if subset == "half_classes":
            indices = indices[labels[indices] % 2 == 0]
            labels = labels // 2
        found[split] = Pictures([files[i] for i in indices], labels[indices], side=side)
    return found


def _of_records(folder: Path, subset: str, test: int, side: int) -> dict[str, Source]:
    records = {split: prepared.encoded(folder, split) for split in OFFICIAL}
    # The records of TFDS are in this order already.
    orders = {split: np.arange(len(of)) for split, of in records.items()}
    parts = {**_parts(orders["train"], test, subset, folder), "validation": orders["validation"]}
    found: dict[str, Source] = {}
    for split in ("train", "validation", "test"):
        of = "validation" if split == "validation" else "train"
        if subset != "half_classes":
            found[split] = Records(records[of], parts[split], side=side)
            continue
        indices = parts[split][_labels(folder, of, records[of])[parts[split]] % 2 == 0]
        found[split] = Records(records[of], indices, _half, side=side)
    return found


def _half(label: int) -> int:
    return int(label) // 2


def _parts(
    by_order: Int[np.ndarray, " examples"], test: int, subset: str, folder: Path
) -> dict[str, Int[np.ndarray, " examples"]]:
    if not 0 < test < len(by_order):
        raise ValueError(
            f"test: got {test:,}, wanted 1 to {len(by_order) - 1:,}, since {folder} holds "
            f"{len(by_order):,} training images. Take out fewer."
        )
    train = by_order[test:]
    if subset == "half_images":
        train = train[: (len(train) + 1) // 2]
    return {"train": train, "test": by_order[:test]}


def _labels(folder: Path, split: str, records: Any) -> Int[np.ndarray, " examples"]:
    """The labels of all records, from the cache if they have been read before."""
    stats = [
        (path.name, path.stat().st_size, path.stat().st_mtime_ns)
        for path in sorted(folder.glob(f"*-{split}.array_record-*"))
    ]
    key = hashlib.blake2b(json.dumps(stats).encode(), digest_size=8).hexdigest()
    stored = cache_folder() / "tfds" / f"{folder.parent.name}-{folder.name}-{split}-{key}.npz"
    try:
        return from_npz(stored)[split]["label"]
    except (OSError, ValueError, KeyError):  # not there yet, or damaged
        labels = np.array([records[i]["label"] for i in range(len(records))], np.int32)
    with contextlib.suppress(OSError):  # a cache that cannot be written only costs time
        to_npz({split: {"label": labels}}, stored)
    return labels


def _numbered(
    folder: Path, classes: Sequence[str]
) -> tuple[list[Path], Int[np.ndarray, " examples"]]:
    """The images of the validation set where they are not sorted into classes.

    Their classes, in the order of the names, are a file that TFDS comes with.
    """
    files = sorted(folder / x.name for x in os.scandir(folder) if _is_image(x.name))
    names = prepared.package_text("datasets/imagenet2012/validation_labels.txt").split()
    known = {name: label for label, name in enumerate(classes)}
    if len(files) != len(names) or not {*names} <= {*known}:
        raise ValueError(
            f"{folder}: {len(files):,} images and no folders of classes, wanted "
            f"{len(names):,} images, or one folder for each class of train. Unpack "
            "ILSVRC2012_img_val.tar again, or sort the images into folders."
        )
    return files, np.array([known[name] for name in names], np.int32)


def _is_image(name: str) -> bool:
    return name.lower().endswith(_ENDINGS)
