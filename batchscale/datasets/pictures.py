"""Images from encoded files: decoded, resized and cropped to one size, with Pillow."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int, UInt8

SIDE = 256  # pixels of what is stored of an image; crops of 224 are taken from it


def decoded(content: bytes, *, side: int = SIDE, where: str = "image") -> UInt8[np.ndarray, "..."]:
    """An encoded image (JPEG, PNG or the like) as an array of one size.

    The shorter side is resized to `side` pixels, bilinearly, and the middle of the longer one is
    taken: so the middle 224 x 224 of it is what ImageNet models are commonly evaluated on. Grey
    and CMYK images become RGB.

    Args:
      content: the file.
      side: pixels of height and width.
      where: begins the message of an error.

    Returns:
      uint8 [side, side, 3].

    Raises:
      ValueError: it is no image that Pillow can read.

    >>> from PIL import Image
    >>> file = io.BytesIO()
    >>> Image.new("L", (40, 30), 7).save(file, "PNG")
    >>> image = decoded(file.getvalue(), side=16)
    >>> image.shape, image[0, 0].tolist()
    ((16, 16, 3), [7, 7, 7])
    """
    from PIL import Image

    try:
        with Image.open(io.BytesIO(content)) as file:
            image = file.convert("RGB")
    except (OSError, SyntaxError, ValueError) as error:
        raise ValueError(
            f"{where}: not an image that can be read ({error}). Fetch the file again."
        ) from error
    width, height = image.size
    shorter = min(width, height)
    size = round(width * side / shorter), round(height * side / shorter)
    image = image.resize(size, Image.Resampling.BILINEAR)
    left, top = (size[0] - side) // 2, (size[1] - side) // 2
    return np.asarray(image.crop((left, top, left + side, top + side)))


class Pictures:
    """Images with a label each, read and decoded as they are asked for: a random-access source.

    Args:
      files: paths of them.
      labels: of each.
      side: pixels of height and width; see `decoded`.
    """

    def __init__(
        self, files: Sequence[Path], labels: Int[np.ndarray, " examples"], *, side: int = SIDE
    ) -> None:
        self._files, self._labels, self._side = files, labels, side

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        """`image`, uint8 [side, side, 3], and `label`, int32 []."""
        path = self._files[index]
        image = decoded(path.read_bytes(), side=self._side, where=str(path))
        return {"image": image, "label": np.asarray(self._labels[index], np.int32)}


class Records:
    """Images with a label each of a TFDS data source: a random-access source.

    Args:
      records: gives `image`, the encoded file, and `label`.
      indices: the records, in the order in which they are examples.
      relabel: the label of an example by that of its record.
      side: pixels of height and width; see `decoded`.
    """

    def __init__(
        self,
        records: Any,
        indices: range | Int[np.ndarray, " examples"],
        relabel: Callable[[int], int] = int,
        *,
        side: int = SIDE,
    ) -> None:
        self._records, self._indices, self._relabel = records, indices, relabel
        self._side = side

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        """`image`, uint8 [side, side, 3], and `label`, int32 []."""
        number = int(self._indices[index])
        record = self._records[number]
        image = decoded(record["image"], side=self._side, where=f"record {number:,}")
        return {"image": image, "label": np.asarray(self._relabel(record["label"]), np.int32)}
