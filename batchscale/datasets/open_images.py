"""Open Images V4: images with the image-level labels that people have verified."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Int, Shaped, UInt64

from batchscale.datasets.pictures import SIDE, decoded
from batchscale.files import local_path

CLASSES = 7_186  # trainable ones of V4
# As many labels as a split may have whose average precision is measured: of V4 the validation and
# the test split have fewer, the training set more. A choice.
CAPACITY = 1 << 21
_SPLITS = "train", "validation", "test"
_CLASSES_FILE = "classes-trainable.txt"
_ADDRESS = "https://storage.googleapis.com/openimages/2018_04/"


@dataclasses.dataclass(frozen=True)
class Labels:
    """The verified labels of a split, image by image.

    Attributes:
      images: the numbers of the images, ascending; 16 hexadecimal digits name the file.
      ends: how many labels there are up to and with each image.
      classes: of each label, ascending within an image.
      positive: whether the class is in the image.
    """

    images: UInt64[np.ndarray, " images"]
    ends: Int[np.ndarray, " images"]
    classes: Int[np.ndarray, " labels"]
    positive: Bool[np.ndarray, " labels"]


class Labelled:
    """Images with their verified labels, read and decoded as asked for: a random-access source.

    Args:
      folder: of the images, each as `<16 hexadecimal digits>.jpg`.
      labels: of these images.
      most: labels of an example; those with fewer are filled up.
      side: pixels of height and width; see `pictures.decoded`.
    """

    def __init__(self, folder: Path, labels: Labels, *, most: int, side: int = SIDE) -> None:
        self._folder, self._labels, self._most, self._side = folder, labels, most, side
        self._placed = len(labels.classes) <= CAPACITY

    def __len__(self) -> int:
        return len(self._labels.images)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        """One example.

        Returns:
          `image`, uint8 [side, side, 3]; `label`, int32 [most], the classes that were verified,
          filled up with -1; `positive`, bool [most]; `place`, int32 [], the number of labels of the
          examples before, or -1 in a split of more than `CAPACITY` labels.
        """
        index = range(len(self))[index]
        of = self._labels
        stop = int(of.ends[index])
        start = int(of.ends[index - 1]) if index else 0
        label, positive = np.full(self._most, -1, np.int32), np.zeros(self._most, bool)
        label[: stop - start] = of.classes[start:stop]
        positive[: stop - start] = of.positive[start:stop]
        path = self._folder / f"{int(of.images[index]):016x}.jpg"
        return {
            "image": decoded(path.read_bytes(), side=self._side, where=str(path)),
            "label": label,
            "positive": positive,
            "place": np.asarray(start if self._placed else -1, np.int32),
        }


def splits(directory: str | os.PathLike[str], *, side: int = SIDE) -> dict[str, Labelled]:
    """`train`, `validation` and `test` of Open Images, as random-access sources.

    Examples are the images with a verified label of a trainable class, positive or negative, in the
    order of their names; labels that machines made are not used. Both are choices: Shallue et al.
    (2019) trained on some 4.5 million images, and by which rule is not known. An image that was
    verified of the same class twice has one label of it, or none if the two contradict each other.

    Args:
      directory: a folder with `classes-trainable.txt` (one class a line), `<split>/<image>.jpg`,
        and `<split>-annotations-human-imagelabels.csv`, with the columns `ImageID`, `LabelName` and
        `Confidence` (1 positive, 0 negative), there or in the folder of the split.
      side: pixels of height and width of an image; see `pictures.decoded`.

    Returns:
      For each split `len(source)` examples and `source[i]`; see `Labelled`. All examples have as
      many places for labels as the image that has most.

    Raises:
      FileNotFoundError: files are missing; says which, and where they are published.
      ValueError: a file is not as above.
    """
    folder = local_path(directory, "directory")
    classes = _classes(folder)
    of = {split: read_labels(_annotations(folder, split), classes) for split in _SPLITS}
    for split, labels in of.items():
        _check_images(folder / split, labels)
    most = max(int(np.diff(labels.ends, prepend=0).max()) for labels in of.values())
    return {
        split: Labelled(folder / split, labels, most=most, side=side)
        for split, labels in of.items()
    }


def read_labels(path: Path, classes: Sequence[str]) -> Labels:
    """The verified labels of a published file of them.

    Args:
      path: a CSV file with the columns `ImageID`, `LabelName` and `Confidence`.
      classes: the names of those that are used; others are left out.

    Raises:
      ValueError: the file is not as above, or has no label of these classes.
    """
    import pandas as pd
    import pyarrow as pa
    from pyarrow import csv

    wanted = ["ImageID", "LabelName", "Confidence"]
    types = {"ImageID": pa.string(), "LabelName": pa.string(), "Confidence": pa.float32()}
    options = csv.ConvertOptions(include_columns=wanted, column_types=types)
    try:
        with open(path, "rb") as file:
            table = csv.read_csv(file, convert_options=options)
        images = _numbers(table["ImageID"].to_numpy().astype("S17"))
    except (pa.ArrowInvalid, pa.ArrowKeyError, KeyError, ValueError) as error:
        raise ValueError(
            f"{path}: not a table of verified labels ({error}); wanted the columns "
            f"{', '.join(wanted)}, images as 16 hexadecimal digits. Fetch the file again."
        ) from error
    numbers = pd.Index(classes).get_indexer(table["LabelName"].to_numpy()).astype(np.int32)
    confidence = np.asarray(table["Confidence"].to_numpy())
    if not np.isin(confidence, (0, 1)).all():
        raise ValueError(
            f"{path}: confidences other than 0 and 1, wanted labels that people have verified. "
            "Take <split>-annotations-human-imagelabels.csv, not the labels of machines."
        )
    known = numbers >= 0
    if not known.any():
        raise ValueError(
            f"{path}: none of its {len(known):,} labels is of the {len(classes):,} classes. Take "
            f"the {_CLASSES_FILE} of the same version."
        )
    return _by_image(images[known], numbers[known], confidence[known] > 0.5)


def _by_image(
    images: UInt64[np.ndarray, " rows"],
    classes: Int[np.ndarray, " rows"],
    positive: Bool[np.ndarray, " rows"],
) -> Labels:
    order = np.lexsort((classes, images))
    images, classes, positive = images[order], classes[order], positive[order]
    first = np.flatnonzero(np.r_[True, (images[1:] != images[:-1]) | (classes[1:] != classes[:-1])])
    says_yes = np.maximum.reduceat(positive, first)
    agreed = says_yes == np.minimum.reduceat(positive, first)
    first = first[agreed]
    names, counts = np.unique(images[first], return_counts=True)
    return Labels(names, np.cumsum(counts), classes[first], says_yes[agreed])


def _numbers(names: Shaped[np.ndarray, " rows"]) -> UInt64[np.ndarray, " rows"]:
    """What names of 16 hexadecimal digits stand for, each cut to 17 bytes."""
    characters = names.view(np.uint8).reshape(-1, 17)
    digits = characters[:, :16] | np.uint8(0x20)  # letters become small
    letters = digits >= ord("a")
    values = digits - np.where(letters, np.uint8(ord("a") - 10), np.uint8(ord("0")))
    if characters[:, 16].any() or (values > np.where(letters, 15, 9)).any():
        raise ValueError("an image has another name")
    numbers = np.zeros(len(names), np.uint64)
    for column in values.T.astype(np.uint64):
        numbers = numbers * np.uint64(16) + column
    return numbers


def _classes(folder: Path) -> list[str]:
    path = folder / _CLASSES_FILE
    if not path.is_file():
        raise FileNotFoundError(
            f"{folder}: no {_CLASSES_FILE}, the names of the classes, one a line. It is published "
            f"at {_ADDRESS}{_CLASSES_FILE}."
        )
    return path.read_text().split()


def _annotations(folder: Path, split: str) -> Path:
    name = f"{split}-annotations-human-imagelabels.csv"
    for path in (folder / name, folder / split / name):
        if path.is_file():
            return path
    raise FileNotFoundError(
        f"{folder}: no {name}, there or in {split}. It is published at {_ADDRESS}{split}/{name}."
    )


def _check_images(folder: Path, labels: Labels) -> None:
    there = {entry.name for entry in os.scandir(folder)} if folder.is_dir() else set()
    missing = [x for x in labels.images.tolist() if f"{x:016x}.jpg" not in there]
    if missing:
        raise FileNotFoundError(
            f"{folder}: {len(missing):,} of {len(labels.images):,} images are missing, the first "
            f"of them {missing[0]:016x}.jpg. The Common Visual Data Foundation has all of them: "
            f"aws s3 --no-sign-request sync s3://open-images-dataset/{folder.name} {folder}."
        )
