"""The binary files in which CIFAR-10 is published: five batches of training images, one of test."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from jaxtyping import UInt8

from batchscale.datasets.idx import Parts, _as_bytes
from batchscale.datasets.splits import Splits, _checked

FILES = {"train": tuple(f"data_batch_{i}.bin" for i in range(1, 6)), "test": ("test_batch.bin",)}
_PLANES = (3, 32, 32)  # a record is the label, then the red, green and blue values, row by row
_RECORD = 1 + 3 * 32 * 32


def decode(contents: Mapping[str, bytes], *, source: str) -> Splits:
    """`train` and `test` from the bytes of the six files by name.

    https://www.cs.toronto.edu/~kriz/cifar.html describes the format.
    """
    splits: Splits = {}
    for split, files in FILES.items():
        for file in files:
            if len(contents[file]) % _RECORD:
                raise ValueError(
                    f"{source}{file}: {len(contents[file]):,} bytes, wanted records of "
                    f"{_RECORD:,} bytes. Fetch the file again."
                )
        records = np.frombuffer(b"".join(contents[file] for file in files), np.uint8)
        records = records.reshape(-1, _RECORD)
        images = records[:, 1:].reshape(-1, *_PLANES).transpose(0, 2, 3, 1)
        splits[split] = {"image": np.ascontiguousarray(images), "label": records[:, 0]}
    return _checked(splits, source=source)


def encode(parts: Parts) -> dict[str, list[memoryview]]:
    """The bytes of the six files by name, of which `decode` makes the same arrays again.

    Raises:
      ValueError: an image has another shape, or a number does not fit in a byte.
    """
    contents = {}
    for split, files in FILES.items():
        records = np.concatenate([_records(split, part) for part in parts[split]])
        contents |= {
            file: [batch.reshape(-1).data]
            for file, batch in zip(files, np.array_split(records, len(files)), strict=True)
        }
    return contents


def _records(split: str, part: Mapping[str, np.ndarray]) -> UInt8[np.ndarray, "n bytes"]:
    images, labels = _as_bytes(split, "image", part), _as_bytes(split, "label", part)
    if images.shape[1:] != (32, 32, 3) or labels.ndim != 1:
        raise ValueError(
            f"split {split!r}: images of shape {images.shape} and labels of shape {labels.shape}, "
            "wanted (n, 32, 32, 3) and (n,). Store other arrays with to_npz."
        )
    planes = images.transpose(0, 3, 1, 2).reshape(len(images), -1)
    return np.concatenate([labels[:, np.newaxis], planes], axis=1)
