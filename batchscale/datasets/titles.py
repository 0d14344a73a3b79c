"""What a named set is called in tables: by its name alone only if it is the published one."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from batchscale.datasets import published
from batchscale.datasets.splits import fingerprint

# The fingerprint of what scikit-learn ships, and those of the first published images.
DIGITS = "c2c141284ef4b7233894f869dd593a44"
SUBSETS = {
    "mnist_27500": "b264709a46834b6195b75f3ec79e9a90",
    "mnist_13750": "c2ea8888d7459542fda8ff199f7f739f",
    "mnist_6875": "231e485d3a5761da1d5fe54482920459",
}

# The published examples in whatever order and splits: the BLAKE2b of their sorted BLAKE2bs. That of
# CIFAR-10 is not known here.
EXAMPLES = {
    "mnist": "68614cd4cd096258a6f20696cf7d9377",
    "fashion_mnist": "88fba6421d6a980c6abb638f4f9c9ac3",
}


def title(name: str, splits: Mapping[str, Mapping[str, np.ndarray]], *, validation: int) -> str:
    """`name`, with what is other in these splits than in the standard ones, if anything is."""
    return _called(name, splits) if fault(name, splits, validation=validation) else name


def of_subset(name: str, splits: Mapping[str, Mapping[str, np.ndarray]]) -> str:
    """`name`, with "(other images or order)" if these are not the first of the published images."""
    return name if fingerprint(splits) == SUBSETS[name] else f"{name} (other images or order)"


def warn_of_subset(name: str, splits: Mapping[str, Mapping[str, np.ndarray]], where: Path) -> None:
    """Tells the caller of `datasets.load` of a part that is not that of the published images."""
    called = of_subset(name, splits)
    if called != name:
        warnings.warn(
            f"{where}: not {name!r}, the first of the published images with the standard "
            f"validation and test: it is {called!r} in tables. Take it away to have the published "
            "ones read instead, or load it under another name with from_npz.",
            stacklevel=3,
        )


def warn(
    name: str, splits: Mapping[str, Mapping[str, np.ndarray]], where: Path, *, validation: int
) -> None:
    """Tells the caller of `datasets.load` of splits that are not the standard ones."""
    if different := fault(name, splits, validation=validation):
        warnings.warn(
            f"{where}: not {name!r} as it was published ({different}). What is trained on and what "
            "is held out differ, and steps to a goal with them: this is "
            f"{_called(name, splits)!r} in tables. Take it away to have the published set read "
            "instead, or load it under another name with from_npz or from_arrays.",
            stacklevel=3,
        )


def fault(name: str, splits: Mapping[str, Mapping[str, np.ndarray]], *, validation: int) -> str:
    """How splits differ from the standard ones; empty if they do not.

    Args:
      name: of the set.
      splits: all of them.
      validation: how many of the last training images are held out.
    """
    if name == "digits":
        got = fingerprint(splits)
        return "" if got == DIGITS else f"fingerprint {got}, wanted {DIGITS}"
    wanted = {"tokens"} if name == "tiny_shakespeare" else {"image", "label"}
    fields = {frozenset(part) for part in splits.values()}
    if fields != {frozenset(wanted)}:
        return f"fields that are not {' and '.join(map(repr, sorted(wanted)))}"
    sizes = {split: len(next(iter(part.values()))) for split, part in splits.items()}
    if set(sizes) != {"train", "validation", "test"} or sizes["validation"] != validation:
        kind = "sequences" if wanted == {"tokens"} else "images"
        return f"splits {sizes}, wanted the last {validation:,} training {kind} as 'validation'"
    parts = {"train": [splits["train"], splits["validation"]], "test": [splits["test"]]}
    return published.fault(name, parts)


def _called(name: str, splits: Mapping[str, Mapping[str, np.ndarray]]) -> str:
    if name == "tiny_shakespeare":
        return f"{name} (other text)"
    if name != "digits" and name not in EXAMPLES:
        return f"{name} (other images or order)"
    same = _examples(splits) == EXAMPLES.get(name)
    return f"{name} (other order)" if same else f"{name} (other images)"


def _examples(splits: Mapping[str, Mapping[str, np.ndarray]]) -> str:
    """A digest of the set of examples of all splits, the same in whatever order they are."""
    digests = []
    for fields in splits.values():
        if not {"image", "label"} <= set(fields):
            return ""
        for image, label in zip(fields["image"], fields["label"], strict=True):
            example = image.tobytes() + str(label).encode()
            digests.append(hashlib.blake2b(example, digest_size=16).digest())
    return hashlib.blake2b(b"".join(sorted(digests)), digest_size=16).hexdigest()
