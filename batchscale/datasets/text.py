"""Texts as sequences of bytes: one published file, cut into splits and then into sequences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from batchscale.datasets.splits import Splits

LENGTH = 64  # bytes a sequence; a choice
_TRAIN = 0.9  # of a text, as of TFDS's tiny_shakespeare, which halves the rest


def sequences(text: bytes, length: int = LENGTH) -> np.ndarray:
    """A text cut into sequences of so many bytes; the last is filled up with zeros.

    >>> sequences(b"abcde", 3)
    array([[ 97,  98,  99],
           [100, 101,   0]], dtype=uint8)
    """
    places = -(-len(text) // length) * length
    return np.frombuffer(text.ljust(places, b"\0"), np.uint8).reshape(-1, length).copy()


def of_texts(texts: Mapping[str, bytes]) -> Splits:
    """Splits, each of them one text, as sequences."""
    return {split: {"tokens": sequences(text)} for split, text in texts.items()}


def decode(contents: Mapping[str, bytes], source: str = "") -> Splits:
    """The splits of a file's text: the first 90% of its bytes, and the halves of the rest."""
    del source
    (text,) = contents.values()
    train = int(_TRAIN * len(text))
    validation = train + (len(text) - train) // 2
    return of_texts(
        {
            "train": text[:train],
            "validation": text[train:validation],
            "test": text[validation:],
        }
    )


def encode(parts: Mapping[str, Sequence[Mapping[str, np.ndarray]]]) -> Mapping[str, list[bytes]]:
    """The text of which these are the sequences, in one file; zeros at a part's end are none.

    Raises:
      ValueError: they are no sequences of bytes.
    """
    texts = []
    for several in parts.values():
        for part in several:
            tokens = part["tokens"]
            if tokens.dtype != np.uint8 or tokens.shape[1:] != (LENGTH,):
                raise ValueError(
                    f"sequences of {tokens.dtype} and shape {tokens.shape[1:]}, wanted uint8 of "
                    f"({LENGTH},)"
                )
            texts.append(tokens.tobytes().rstrip(b"\0"))
    return {"input.txt": texts}
