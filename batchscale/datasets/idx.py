"""The IDX files in which MNIST and its relatives are published: four files, train and test."""

from __future__ import annotations

import gzip
import math
import os
import struct
import zlib
from collections.abc import Mapping, Sequence
from typing import TypeAlias

import numpy as np
from jaxtyping import UInt8

from batchscale.datasets.splits import Splits, _checked, _hold_out
from batchscale.files import local_path
from batchscale.numeric import integer

# Of each split the fields of its parts, one after the other.
Parts: TypeAlias = Mapping[str, Sequence[Mapping[str, np.ndarray]]]

# Field of each split -> file name and number of dimensions.
_FILES = {
    ("train", "image"): ("train-images-idx3-ubyte", 3),
    ("train", "label"): ("train-labels-idx1-ubyte", 1),
    ("test", "image"): ("t10k-images-idx3-ubyte", 3),
    ("test", "label"): ("t10k-labels-idx1-ubyte", 1),
}


def from_idx(directory: str | os.PathLike[str], *, validation: int = 5000) -> Splits:
    """Splits from a folder with the four IDX files of MNIST, Fashion-MNIST, KMNIST or the like.

    The files are `train-images-idx3-ubyte`, `train-labels-idx1-ubyte`, `t10k-images-idx3-ubyte`
    and `t10k-labels-idx1-ubyte`, each as it is or with `.gz`.

    Args:
      directory: the folder.
      validation: how many training examples, the last in file order, become the validation split;
        0 for none.

    Returns:
      `train`, `validation` and `test`, with `image` (uint8 [n, height, width, 1]) and `label`
      (int32 [n]).

    Raises:
      FileNotFoundError: a file is missing.
      ValueError: a file is damaged or not what its name says, images and labels differ in number,
        or `validation` leaves no example to train with.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     for split in ("train", "t10k"):
    ...         header = bytes([0, 0, 8, 3, 0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0, 3])
    ...         images = local_path(f"{folder}/{split}-images-idx3-ubyte")
    ...         _ = images.write_bytes(header + bytes(6))
    ...         header = bytes([0, 0, 8, 1, 0, 0, 0, 2])
    ...         labels = local_path(f"{folder}/{split}-labels-idx1-ubyte")
    ...         _ = labels.write_bytes(header + bytes([7, 1]))
    ...     splits = from_idx(folder, validation=1)
    >>> splits["test"]["image"].shape, splits["validation"]["label"]
    ((2, 1, 3, 1), array([1], dtype=int32))
    """
    folder = local_path(directory, "directory")
    paths = {}
    for name, _ in _FILES.values():
        candidates = (folder / name, folder / f"{name}.gz")
        paths[name] = next((path for path in candidates if path.is_file()), None)
    missing = [name for name, path in paths.items() if path is None]
    if missing:
        raise FileNotFoundError(
            f"{folder}: no {', no '.join(missing)}, with or without .gz. "
            "Put the four IDX files of the data set into this folder."
        )
    splits = _decode(
        {name: path.read_bytes() for name, path in paths.items() if path}, source=f"{folder}: "
    )
    examples = len(splits["train"]["label"])
    validation = integer("validation", validation, -(2**31))
    if not 0 <= validation < examples:
        raise ValueError(
            f"validation: got {validation:,}, wanted 0 to {examples - 1:,}, since {folder} holds "
            f"{examples:,} training examples. Hold out fewer."
        )
    return _hold_out(splits, validation)


def _decode(contents: Mapping[str, bytes], *, source: str) -> Splits:
    """`train` and `test` from the bytes of the four files by name, plain or gzipped."""
    splits: Splits = {"train": {}, "test": {}}
    for (split, field), (name, dimensions) in _FILES.items():
        array = _array(contents[name], where=f"{source}{name}", dimensions=dimensions)
        splits[split][field] = array[..., np.newaxis] if field == "image" else array
    return _checked(splits, source=source)


def _encode(parts: Parts) -> dict[str, list[bytes | memoryview]]:
    """The bytes of the four files by name, of which `_decode` makes the same arrays again.

    Raises:
      ValueError: a number does not fit in a byte, or an image has not one channel.
    """
    contents = {}
    for (split, field), (name, dimensions) in _FILES.items():
        arrays = [_as_bytes(split, field, part) for part in parts[split]]
        shape = arrays[0].shape[1:dimensions]
        for array in arrays:
            if array.size != len(array) * math.prod(shape):
                raise ValueError(
                    f"split {split!r}: field {field!r} has the shape {array.shape}, wanted "
                    f"({len(array)}, {', '.join(map(str, shape))}) and one channel. "
                    "Store other arrays with to_npz."
                )
        sizes = sum(map(len, arrays)), *shape
        header = struct.pack(f">{1 + dimensions}I", 0x0800 + dimensions, *sizes)
        contents[name] = [header, *(array.reshape(-1).data for array in arrays)]
    return contents


def _as_bytes(split: str, field: str, part: Mapping[str, np.ndarray]) -> UInt8[np.ndarray, "..."]:
    """A field as unsigned bytes in one piece."""
    array = part[field]
    with np.errstate(invalid="ignore"):
        stored = np.ascontiguousarray(array, np.uint8)
    if array.dtype != np.uint8 and not np.array_equal(stored, array):
        raise ValueError(
            f"split {split!r}: field {field!r} is {array.dtype}, wanted whole numbers from 0 to "
            "255. Store other arrays with to_npz."
        )
    return stored


def _array(content: bytes, *, where: str, dimensions: int) -> UInt8[np.ndarray, "*shape"]:
    """An array of unsigned bytes: magic number, sizes (all big-endian, 32 bits), then the bytes.

    http://yann.lecun.com/exdb/mnist/ describes the format.
    """
    if content[:2] == b"\x1f\x8b":
        try:
            content = gzip.decompress(content)
        except (OSError, EOFError, zlib.error) as error:
            raise ValueError(
                f"{where}: its gzip stream is damaged ({error}). Fetch the file again."
            ) from error
    header = 4 * (1 + dimensions)
    wanted = 0x0800 + dimensions  # 8 stands for unsigned bytes
    magic = int.from_bytes(content[:4], "big")
    if len(content) >= 4 and magic != wanted:
        raise ValueError(
            f"{where}: its magic number is {magic}, wanted {wanted} for unsigned bytes in "
            f"{dimensions} dimension{'s' if dimensions > 1 else ''}. "
            "Check that the file is what its name says."
        )
    if len(content) < header:
        raise ValueError(
            f"{where}: it ends after {len(content)} bytes, within the header of {header} bytes. "
            "Fetch the file again."
        )
    _, *shape = struct.unpack(f">{1 + dimensions}I", content[:header])
    size = math.prod(shape)
    if len(content) - header != size:
        raise ValueError(
            f"{where}: {len(content) - header:,} bytes follow the header, wanted "
            f"{' x '.join(map(str, shape))} = {size:,}. Fetch the file again."
        )
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)
