"""Large data sets by name: where this machine has them, and how they are made ready."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from batchscale.datasets import imagenet, open_images, prepared, sentences, tokens
from batchscale.datasets.stream import Stream
from batchscale.files import cache_folder, local_path


@dataclasses.dataclass(frozen=True)
class Images:
    """Images with one label each: ImageNet, or a part of it.

    Attributes:
      subset: of `imagenet.SUBSETS`.
      train: training examples; None where that hangs on the labels.
      classes: how many.
    """

    subset: str
    train: int | None
    classes: int


@dataclasses.dataclass(frozen=True)
class LabelledImages:
    """Images with several verified labels each: Open Images."""

    classes: int = open_images.CLASSES
    train: int | None = None


@dataclasses.dataclass(frozen=True)
class Text:
    """Sentences as sub-word tokens.

    Attributes:
      train: training sentences; None where any number will do.
      length: tokens a sentence.
      vocabulary: tokens that there are, padding included.
    """

    train: int | None
    length: int = tokens.LENGTH
    vocabulary: int = tokens.VOCABULARY


_TRAIN = imagenet.OFFICIAL["train"] - imagenet.TEST
SETS: dict[str, Images | LabelledImages | Text] = {
    "imagenet": Images("all", _TRAIN, 1000),
    "imagenet_half_images": Images("half_images", (_TRAIN + 1) // 2, 1000),
    "imagenet_half_classes": Images("half_classes", None, 500),
    "open_images_v4": LabelledImages(),
    "lm1b": Text(30_301_028),
    "common_crawl": Text(None),
}
_IMAGENET_TFDS = "imagenet2012"
_LM1B = {
    "train": "training-monolingual.tokenized.shuffled/news.en-*",
    "held_out": "heldout-monolingual.tokenized.shuffled/news.en.heldout-*",
}
_C4 = {"train": "c4-train.*.json.gz", "held_out": "c4-validation.*.json.gz"}
_LM1B_ADDRESS = (
    "http://www.statmt.org/lm-benchmark/1-billion-word-language-modeling-benchmark-r13output.tar.gz"
)


def find(name: str, *, directory: str | os.PathLike[str] | None = None) -> Path | None:
    """Where this machine has a large data set, ready to be read; None if it has not.

    Args:
      name: one of `SETS`.
      directory: where to look; by default the cache (see `datasets.load`), and then where TFDS
        keeps its data.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     find("lm1b", directory=folder) is None
    True
    """
    return next(_found(name, directory), None)


def sources(name: str, *, directory: str | os.PathLike[str] | None = None) -> Mapping[str, Any]:
    """The splits of a large data set, which are read as they are needed.

    =======================  ==========  ==========  =======  ==================================
    name                     train       validation  test     an example
    =======================  ==========  ==========  =======  ==================================
    `imagenet`                1,231,122      50,000   50,045  256 x 256 x 3, one of 1,000 classes
    `imagenet_half_images`      615,561      50,000   50,045  likewise
    `imagenet_half_classes`  about half  about half     half  likewise, one of 500 classes
    `open_images_v4`           millions      41,620  125,436  likewise, some of 7,186 classes
    `lm1b`                   30,301,028      1 / 32   1 / 32  128 tokens of 32,000
    `common_crawl`           as prepared     1 / 32   1 / 32  128 tokens of 32,000
    =======================  ==========  ==========  =======  ==================================

    `imagenet` and its halves are those of `imagenet.splits`, read from `<directory>/imagenet` or
    from `imagenet2012` as TFDS has prepared it; `open_images_v4` is that of `open_images.splits`,
    read from `<directory>/open_images_v4`. `lm1b` and `common_crawl` are made ready by
    `datasets.prepare`; the latter is C4 (Raffel et al. 2020), for the text of Common Crawl that
    Shallue et al. (2019) took is not public. Of their sentences that are held out two 32nds are
    used.

    Args:
      name: one of the above.
      directory: where to look; see `find`.

    Returns:
      Of every split a source, with `len(source)` and `source[i]`; or a mapping of memory maps by
      field, with the examples along axis 0.

    Raises:
      ValueError: the name is not known, or the files are not those of that set.
      FileNotFoundError: it is not here; the message says what to do.
    """
    folder = find(name, directory=directory)
    if folder is None:
        raise FileNotFoundError(
            f"{name!r} was not found in {', '.join(map(str, _roots(directory)))}. {remedy(name)}"
        )
    kind = SETS[name]
    if isinstance(kind, Images):
        return imagenet.splits(folder, subset=kind.subset)
    if isinstance(kind, LabelledImages):
        return open_images.splits(folder)
    return tokens.load(folder)


def streams(name: str, *, directory: str | os.PathLike[str] | None = None) -> dict[str, Any]:
    """The splits of `sources`, each a `Stream`, as the data of a named workload.

    Raises:
      ValueError: text was prepared in another length or vocabulary than the set's.
      FileNotFoundError: as for `sources`.
    """
    kind, folder = SETS[name], find(name, directory=directory)
    if isinstance(kind, Text) and folder is not None:
        said = tokens.manifest(folder)
        got, wanted = (said["length"], said["vocabulary"]), (kind.length, kind.vocabulary)
        if got != wanted:
            raise ValueError(
                f"{folder}: sentences of {got[0]} tokens of {got[1]:,}, and {name!r} has "
                f"{wanted[0]} of {wanted[1]:,}. Prepare it again in another folder, without "
                "`length` and `vocabulary`; or train with Workload.from_model(model, "
                "datasets.tokens.load(folder), 'next_token')."
            )
    return {
        split: Stream(of, name=f"{name}: {split}")
        for split, of in sources(name, directory=directory).items()
    }


def prepare(
    name: str,
    source: str | os.PathLike[str] | None = None,
    *,
    directory: str | os.PathLike[str] | None = None,
    **options: Any,
) -> Path:
    """Makes a large data set ready to be read, once.

    Args:
      name: `lm1b`: from the unpacked files of the benchmark, or from what TFDS has prepared, or
        prepares now if TensorFlow is installed. `common_crawl`: from `c4-train.*.json.gz` and
        `c4-validation.*.json.gz` of the English C4, as many of them as you like. `imagenet`: has
        TFDS prepare it, which takes TensorFlow and the two archives in
        `<directory>/downloads/manual`.
      source: the folder of these files, of text.
      directory: where the result goes; by default the cache, or of ImageNet where TFDS keeps its
        data.
      **options: `length`, `vocabulary` and `learned_from`; see `tokens.prepare`.

    Returns:
      The folder that was made.

    Raises:
      ValueError: the name is not one of these.
      FileNotFoundError: the files are not there; the message says what to do.
      FileExistsError: it was made before.
    """
    if name == "imagenet":
        root = _tfds_root() if directory is None else local_path(directory, "directory")
        return prepared.prepare(root, _IMAGENET_TFDS, ("train", "validation"))
    if name not in SETS or not isinstance(SETS[name], Text):
        raise ValueError(
            f"name: got {name!r}, wanted 'lm1b', 'common_crawl' or 'imagenet'. Of other sets "
            "datasets.sources says what to do."
        )
    train, held_out = _sentences(name, source)
    root = cache_folder() if directory is None else local_path(directory, "directory")
    return tokens.prepare(train, held_out, root / name, name=name, **options)


def title(name: str, splits: Mapping[str, Mapping[str, Any]]) -> str:
    """What tables call a large set: by its name alone if it has as many examples as it should.

    >>> import numpy as np
    >>> title("lm1b", {"train": {"tokens": np.zeros((5, 128), np.uint16)}})
    'lm1b (other examples)'
    """
    wanted = SETS[name].train
    got = len(next(iter(splits["train"].values())))
    return name if wanted in (None, got) else f"{name} (other examples)"


def remedy(name: str) -> str:
    """What to do where a large set is missing."""
    kind, cache = SETS[name], cache_folder()
    if isinstance(kind, Images):
        return (
            "Register at https://image-net.org/download-images, and unpack the training and the "
            f"validation archive into {cache / 'imagenet'} as train/<class>/<image>.JPEG and val; "
            "or have TFDS prepare imagenet2012 with file_format='array_record', and set "
            "`directory` or TFDS_DATA_DIR to its folder."
        )
    if isinstance(kind, LabelledImages):
        return (
            f"Put classes-trainable.txt, <split>-annotations-human-imagelabels.csv and "
            f"<split>/<image>.jpg into {cache / name}; datasets.open_images.splits says where they "
            "are published."
        )
    if name == "lm1b":
        return (
            f"Unpack {_LM1B_ADDRESS}, and run datasets.prepare('lm1b', folder); or have TFDS "
            "prepare lm1b with file_format='array_record', and run datasets.prepare('lm1b')."
        )
    return (
        "Fetch some of https://huggingface.co/datasets/allenai/c4/tree/main/en, and run "
        f"datasets.prepare({name!r}, folder)."
    )


def _sentences(
    name: str, source: str | os.PathLike[str] | None
) -> tuple[sentences.Sentences, sentences.Sentences]:
    patterns = _LM1B if name == "lm1b" else _C4
    if source is not None:
        folder = local_path(source, "source")
        files = {part: sorted(folder.glob(pattern)) for part, pattern in patterns.items()}
        missing = [patterns[part] for part, found in files.items() if not found]
        if missing:
            raise FileNotFoundError(
                f"{folder}: no {', no '.join(missing)}. Name the folder that holds both. "
                f"{remedy(name)}"
            )
        return sentences.of_files(files["train"]), sentences.of_files(files["held_out"])
    if name != "lm1b":
        raise FileNotFoundError(f"source: none was given. {remedy(name)}")
    root = _tfds_root()
    folder = prepared.find(root, name)
    if folder is None:
        try:
            folder = prepared.prepare(root, name)
        # TFDS and TensorFlow fail in many ways.
        except Exception as error:
            raise FileNotFoundError(
                f"{root / name}: nothing prepared by TFDS, which cannot prepare it here "
                f"({type(error).__name__}: {error}). {remedy(name)}"
            ) from error
    return sentences.of_records(folder, "train"), sentences.of_records(folder, "test")


def _found(name: str, directory: str | os.PathLike[str] | None) -> Iterator[Path]:
    if name not in SETS:
        raise ValueError(f"name: got {name!r}, wanted one of {', '.join(SETS)}.")
    kind = SETS[name]
    for root in _roots(directory):
        if isinstance(kind, Images):
            if (root / "imagenet" / "train").is_dir():
                yield root / "imagenet"
            folder = prepared.find(root, _IMAGENET_TFDS, ("train", "validation"))
            if folder is not None:
                yield folder
        elif isinstance(kind, LabelledImages):
            if (root / name / "classes-trainable.txt").is_file():
                yield root / name
        elif (root / name / "tokens.json").is_file():
            yield root / name


def _roots(directory: str | os.PathLike[str] | None) -> list[Path]:
    if directory is not None:
        return [local_path(directory, "directory")]
    return [cache_folder(), _tfds_root()]


def _tfds_root() -> Path:
    root = os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    return local_path(root, "TFDS_DATA_DIR")
