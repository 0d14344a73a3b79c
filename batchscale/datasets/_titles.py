"""What a named set is called in tables: by its name alone only if it is the published one."""

from __future__ import annotations

import hashlib
import warnings
from pathlib import Path

import numpy as np

from batchscale.datasets import _published
from batchscale.datasets.splits import Splits, fingerprint

DIGITS = "c2c141284ef4b7233894f869dd593a44"  # the fingerprint of what scikit-learn ships

# The published examples in whatever order and splits: the BLAKE2b of their sorted BLAKE2bs.
EXAMPLES = {
    "mnist": "68614cd4cd096258a6f20696cf7d9377",
    "fashion_mnist": "88fba6421d6a980c6abb638f4f9c9ac3",
}


def title(name: str, splits: Splits, *, validation: int) -> str:
    """`name`, with what is other in these splits than in the standard ones, if anything is."""
    if not _fault(name, splits, validation):
        return name
    same = _examples(splits) == EXAMPLES.get(name)
    return f"{name} (other order)" if same else f"{name} (other images)"


def warn(name: str, splits: Splits, where: Path, *, validation: int) -> None:
    """Tells of splits that are not the standard ones of a named set."""
    fault = _fault(name, splits, validation)
    if not fault:
        return
    called = title(name, splits, validation=validation)
    warnings.warn(
        f"{where}: not {name!r} as it was published ({fault}). What is trained on and what is held "
        f"out differ, and steps to a goal with them: this is {called!r} in tables. For the "
        "published set put its files into the cache, or have TFDS prepare it anew.",
        stacklevel=4,
    )


def _fault(name: str, splits: Splits, validation: int) -> str:
    """How splits differ from the standard ones; empty if they do not."""
    if name == "digits":
        got = fingerprint(splits)
        return "" if got == DIGITS else f"fingerprint {got}, wanted {DIGITS}"
    if name not in _published.SETS:
        return ""
    got = {split: len(next(iter(fields.values()))) for split, fields in splits.items()}
    if set(got) != {"train", "validation", "test"} or got["validation"] != validation:
        return f"splits {got}, wanted {validation:,} of the training images as 'validation'"
    train, held_out, test = (splits[split] for split in ("train", "validation", "test"))
    if not set(train) == set(held_out) == set(test):
        return "splits with different fields"
    joined = {field: np.concatenate([train[field], held_out[field]]) for field in train}
    return _published.fault(name, {"train": joined, "test": test})


def _examples(splits: Splits) -> str:
    """A digest of the set of examples of all splits, the same in whatever order they are."""
    digests = []
    for fields in splits.values():
        if set(fields) != {"image", "label"}:
            return ""
        for image, label in zip(fields["image"], fields["label"], strict=True):
            example = image.tobytes() + str(label).encode()
            digests.append(hashlib.blake2b(example, digest_size=16).digest())
    return hashlib.blake2b(b"".join(sorted(digests)), digest_size=16).hexdigest()
