"""What a named set is called in tables: by its name alone only if it is the published one."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from batchscale.datasets import published
from batchscale.datasets.splits import fingerprint

DIGITS = "c2c141284ef4b7233894f869dd593a44"  # the fingerprint of what scikit-learn ships

# The published examples in whatever order and splits: the BLAKE2b of their sorted BLAKE2bs. That of
# CIFAR-10 is not known here.
EXAMPLES = {
    "mnist": "68614cd4cd096258a6f20696cf7d9377",
    "fashion_mnist": "88fba6421d6a980c6abb638f4f9c9ac3",
}


def title(name: str, splits: Mapping[str, Mapping[str, np.ndarray]], *, validation: int) -> str:
    """`name`, with what is other in these splits than in the standard ones, if anything is."""
    return _called(name, splits) if fault(name, splits, validation=validation) else name


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
    fields = {frozenset(part) for part in splits.values()}
    if fields != {frozenset({"image", "label"})}:
        return "fields that are not 'image' and 'label'"
    sizes = {split: len(part["label"]) for split, part in splits.items()}
    if set(sizes) != {"train", "validation", "test"} or sizes["validation"] != validation:
        return f"splits {sizes}, wanted the last {validation:,} training images as 'validation'"
    parts = {"train": [splits["train"], splits["validation"]], "test": [splits["test"]]}
    return published.fault(name, parts)


def _called(name: str, splits: Mapping[str, Mapping[str, np.ndarray]]) -> str:
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
