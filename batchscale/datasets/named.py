"""Data sets by name: the standard splits, from wherever this machine can get them."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from batchscale.datasets import prepared, published, text, titles
from batchscale.datasets.splits import Splits, _hold_out, check_labels, from_npz
from batchscale.files import cache_folder, local_path


@dataclasses.dataclass(frozen=True)
class ImageSet:
    """What a name promises: `shape` is an image's (height, width, channels), the rest examples."""

    shape: tuple[int, int, int]
    train: int
    validation: int
    test: int

    @property
    def example(self) -> Mapping[str, tuple[str, tuple[int, ...]]]:
        """The type and the shape of every field of one."""
        return {"image": ("uint8", self.shape), "label": ("int32", ())}


@dataclasses.dataclass(frozen=True)
class TextSet:
    """What a name promises: `length` is in bytes a sequence, the rest in sequences."""

    length: int
    train: int
    validation: int
    test: int

    @property
    def example(self) -> Mapping[str, tuple[str, tuple[int, ...]]]:
        """The type and the shape of every field of one."""
        return {"tokens": ("uint8", (self.length,))}


@dataclasses.dataclass(frozen=True)
class Subset:
    """The first training examples of another set, with its validation and test splits."""

    of: str
    train: int


SETS: dict[str, ImageSet | TextSet] = {
    "digits": ImageSet((8, 8, 1), train=1_100, validation=350, test=347),
    "mnist": ImageSet((28, 28, 1), train=55_000, validation=5_000, test=10_000),
    "fashion_mnist": ImageSet((28, 28, 1), train=55_000, validation=5_000, test=10_000),
    "cifar10": ImageSet((32, 32, 3), train=45_000, validation=5_000, test=10_000),
    "tiny_shakespeare": TextSet(text.LENGTH, train=15_686, validation=872, test=872),
}
# Of Shallue et al. (2019, section 4.5); which examples they took is not known: a choice.
SUBSETS = {
    "mnist_27500": Subset("mnist", 27_500),
    "mnist_13750": Subset("mnist", 13_750),
    "mnist_6875": Subset("mnist", 6_875),
}
_CLASSES = 10


def names() -> tuple[str, ...]:
    """The data sets that `load` knows.

    >>> names()[:4]
    ('digits', 'mnist', 'fashion_mnist', 'cifar10')
    >>> names()[4:]
    ('tiny_shakespeare', 'mnist_27500', 'mnist_13750', 'mnist_6875')
    """
    return (*SETS, *SUBSETS)


def load(name: str, *, directory: str | os.PathLike[str] | None = None) -> Splits:
    """A data set by name, in its standard splits.

    ==================  ===========  ======  ==========  ======
    name                an example   train   validation  test
    ==================  ===========  ======  ==========  ======
    `digits`            8 x 8 x 1     1,100         350     347
    `mnist`             28 x 28 x 1  55,000       5,000  10,000
    `mnist_27500`       28 x 28 x 1  27,500       5,000  10,000
    `mnist_13750`       28 x 28 x 1  13,750       5,000  10,000
    `mnist_6875`        28 x 28 x 1   6,875       5,000  10,000
    `fashion_mnist`     28 x 28 x 1  55,000       5,000  10,000
    `cifar10`           32 x 32 x 3  45,000       5,000  10,000
    `tiny_shakespeare`  64 bytes     15,686         872     872
    ==================  ===========  ======  ==========  ======

    `digits` comes with scikit-learn and is shuffled once, always in the same way; its pixels go
    from 0 to 16. In the other sets of images the last 5,000 training images in the order of the
    published files are the validation split, whatever they are read from; `mnist_27500` and the
    like have the first of the others, and the same validation and test splits. `tiny_shakespeare`
    is one text of 1,115,394 bytes, of which the first 90% are to train with and the next 5% to
    validate; each part is cut into sequences, the last of them filled up with zeros, which are no
    bytes of the text. The first of these that has the set is used:

    1. `<name>.npz` in `directory`, as `to_npz` writes it, with whatever splits it holds;
    2. a set that TFDS has prepared in array_record format, read without TensorFlow;
    3. the published files in the cache, downloaded there if need be;
    4. TFDS, which downloads and prepares the set if TensorFlow is installed.

    TFDS keeps examples in an order of its own, which is undone. Arrays that are not those of the
    published files are told by a checksum: a warning says so, and tables call them by another name
    (see `title`). The cache is the folder that the environment variable `BATCHSCALE_CACHE` names,
    or else `batchscale` in `XDG_CACHE_HOME` or in `~/.cache`. The first reading of a prepared set
    takes some 20 seconds, later ones a fraction of a second.

    Args:
      name: one of `names()`.
      directory: where TFDS keeps its data, on a local disk; by default what the environment
        variable `TFDS_DATA_DIR` names, or else `~/tensorflow_datasets`.

    Returns:
      `train`, `validation` and `test`, each with `image` (uint8 [n, height, width, channels]) and
      `label` (int32 [n], 0 to 9), or with `tokens` (uint8 [n, 64]).

    Raises:
      ValueError: the name is not known, or what was found is not that data set.
      FileNotFoundError: no source has the data set; the message says what was tried and what to do.
      ImportError: `digits` without scikit-learn.

    >>> splits = load("digits")
    >>> {split: fields["image"].shape for split, fields in splits.items()}
    {'train': (1100, 8, 8, 1), 'validation': (350, 8, 8, 1), 'test': (347, 8, 8, 1)}
    """
    _check_name(name)
    if name in SUBSETS:
        of = SUBSETS[name]
        own = _stored(name, directory)
        if own is not None:
            _check(of.of, own[0], own[1])
            part = _first(own[0], of.train)
            titles.warn_of_subset(name, part, own[1])
            return part
        return _first(load(of.of, directory=directory), of.train)
    splits, where = _found(name, directory)
    titles.warn(name, splits, where, validation=SETS[name].validation)
    return splits


def find(name: str) -> Path | None:
    """Where this machine has a set, without reading it; None if it would be downloaded.

    >>> find("digits").name
    'scikit-learn'
    """
    _check_name(name)
    if name == "digits":
        return Path("scikit-learn")
    of = SUBSETS[name].of if name in SUBSETS else name
    root = local_path(os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets", "directory")
    cached = cache_folder() / of
    return prepared.find(root, of) or (cached if cached.is_dir() else None)


def title(name: str, splits: Mapping[str, Mapping[str, np.ndarray]]) -> str:
    """What tables call these splits of a named set.

    Args:
      name: one of `names()`.
      splits: as `load` gives them, or others.

    Returns:
      The name alone if they are the standard splits of the published images, in the published
      order, whatever they were read from; with "(other order)" if they are the same images in
      another order or otherwise held out; with "(other images)" if they are not; with "(other
      images or order)" where that cannot be told, of `cifar10`.

    Raises:
      ValueError: the name is not known.

    >>> splits = load("digits")
    >>> title("digits", splits)
    'digits'
    >>> title("digits", splits | {"train": splits["test"]})
    'digits (other images)'
    """
    _check_name(name)
    if name in SUBSETS:
        return titles.of_subset(name, splits)
    return titles.title(name, splits, validation=SETS[name].validation)


def _check_name(name: str) -> None:
    if name not in names():
        raise ValueError(
            f"name: got {name!r}, wanted one of {', '.join(names())}. "
            "Data of your own comes from from_arrays, from_npz or from_idx."
        )


def _stored(name: str, directory: str | os.PathLike[str] | None) -> tuple[Splits, Path] | None:
    """The splits of `<name>.npz` in a directory, and where that is; None if there is none."""
    if directory is None:
        return None
    stored = local_path(directory, "directory") / f"{name}.npz"
    return (from_npz(stored), stored) if stored.is_file() else None


def _found(name: str, directory: str | os.PathLike[str] | None) -> tuple[Splits, Path]:
    """The splits from the first source that has the set, and where that is."""
    own = _stored(name, directory)
    if own is not None:
        _check(name, own[0], own[1])
        return own
    if name == "digits":
        return _digits(), Path("scikit-learn")
    root = directory or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    return _from_sources(name, local_path(root, "directory"), cache_folder())


def _digits() -> Splits:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError(
            "'digits' comes with scikit-learn, which cannot be imported here "
            f'({error}). Run: pip install "batchscale[experiments]"'
        ) from error
    pixels, labels = map(np.asarray, load_digits(return_X_y=True))
    sizes = SETS["digits"]
    images = pixels.reshape(-1, 8, 8, 1).astype(np.uint8)
    order = np.random.Generator(np.random.PCG64(0)).permutation(len(labels))
    parts = np.split(order, [sizes.train, sizes.train + sizes.validation])
    return {
        split: {"image": images[part], "label": labels[part].astype(np.int32)}
        for split, part in zip(("train", "validation", "test"), parts, strict=True)
    }


def _from_sources(name: str, root: Path, cache: Path) -> tuple[Splits, Path]:
    folder = prepared.find(root, name)
    if folder is not None:
        return _of_tfds(name, folder, cache), folder
    failures = [f"{root / name} holds no array_record files prepared by TFDS"]
    try:
        return _standard(name, published.read(name, cache / name), cache / name), cache / name
    except ConnectionError as error:
        failures.append(f"the published files could not be had ({error})")
    try:
        folder = prepared.prepare(root, name)
    # TFDS and TensorFlow fail in many ways, and each is one more reason for the user.
    except Exception as error:
        failures.append(f"TFDS cannot prepare it here ({type(error).__name__}: {error})")
    else:
        return _of_tfds(name, folder, cache), folder
    raise FileNotFoundError(
        f"{name!r} was not found: {'; '.join(failures)}. Do one of these: "
        f"put {published.SETS[name].served()} into {cache / name}; set `directory` or "
        "TFDS_DATA_DIR to where TFDS has prepared it with file_format='array_record' "
        "(`tfds convert_format` converts other formats); install TensorFlow, so that TFDS can "
        "download and prepare it."
    )


def _first(splits: Splits, examples: int) -> Splits:
    """The splits with so many of the training examples alone."""
    train = {field: array[:examples] for field, array in splits["train"].items()}
    return {**splits, "train": train}


def _of_tfds(name: str, folder: Path, cache: Path) -> Splits:
    if isinstance(SETS[name], TextSet):
        return _standard(name, text.of_texts(prepared.texts(folder)), folder)

    def as_published(examples: Splits) -> bool:
        return not published.fault(name, {split: [part] for split, part in examples.items()})

    return _standard(name, prepared.read(folder, cache, as_published), folder)


def _standard(name: str, examples: Splits, where: Path) -> Splits:
    """All training examples and the test split, checked, with the last ones held out.

    Of a text also the validation split is given: it is cut before it is made into sequences.
    """
    sizes = SETS[name]
    if isinstance(sizes, TextSet):
        wanted = {"train": sizes.train, "validation": sizes.validation, "test": sizes.test}
    else:
        wanted = {"train": sizes.train + sizes.validation, "test": sizes.test}
    got = {split: len(next(iter(fields.values()))) for split, fields in examples.items()}
    if got != wanted:
        kind = "sequences" if isinstance(sizes, TextSet) else "images"
        raise ValueError(
            f"{where}: it holds {got['train']:,} training and {got['test']:,} test {kind}, wanted "
            f"{wanted['train']:,} and {wanted['test']:,} for {name!r}. Prepare or fetch the set "
            "again; a part of it is data of your own, for from_arrays or from_npz."
        )
    _check(name, examples, where)
    return examples if isinstance(sizes, TextSet) else _hold_out(examples, sizes.validation)


def _check(name: str, splits: Splits, where: Path) -> None:
    wanted = SETS[name].example
    for split, fields in splits.items():
        got = {field: (str(array.dtype), array.shape[1:]) for field, array in fields.items()}
        if got != wanted:
            raise ValueError(
                f"{where}: an example of split {split!r} is {got}, wanted {wanted} for {name!r}. "
                "Use from_npz or from_arrays for data of your own."
            )
    if "label" in wanted:
        check_labels(splits, _CLASSES)
