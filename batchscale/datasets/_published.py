"""MNIST and Fashion-MNIST as their authors published them: four IDX files each, downloaded once."""

from __future__ import annotations

import contextlib
import dataclasses
import gzip
import hashlib
import http.client
import io
import urllib.request
import zlib
from collections.abc import Mapping
from pathlib import Path

from batchscale.datasets import idx
from batchscale.datasets.splits import Splits
from batchscale.files import replacing

_SECONDS = 20  # until an address that does not answer counts as unreachable
_SLACK = 1 << 20  # bytes by which a gzipped file may exceed its content, names and all


@dataclasses.dataclass(frozen=True)
class Content:
    """What a file holds when nothing is compressed: its size in bytes and its MD5.

    Of the content, since the same data gzipped again are other bytes.
    """

    size: int
    md5: str

    def fault(self, content: bytes) -> str:
        """What is wrong with these bytes; empty if nothing is."""
        if len(content) != self.size:
            length = f"{len(content):,}" if len(content) < self.size else "more"
            return f"{length} bytes, wanted {self.size:,}"
        digest = hashlib.md5(content, usedforsecurity=False).hexdigest()
        return "" if digest == self.md5 else f"MD5 {digest}, wanted {self.md5}"


@dataclasses.dataclass(frozen=True)
class Published:
    """Where the files of a set are served, and what they are.

    `addresses` are folders with the same files, gzipped, the first choice first; `files` are their
    contents by name. They define the set: its examples and their order.
    """

    addresses: tuple[str, ...]
    files: Mapping[str, Content]


# First addresses are those of TFDS; the MD5s are widely quoted, and tested on files from elsewhere.
SETS = {
    "mnist": Published(
        (
            "https://storage.googleapis.com/cvdf-datasets/mnist/",
            "https://ossci-datasets.s3.amazonaws.com/mnist/",
        ),
        {
            "train-images-idx3-ubyte": Content(47_040_016, "6bbc9ace898e44ae57da46a324031adb"),
            "train-labels-idx1-ubyte": Content(60_008, "a25bea736e30d166cdddb491f175f624"),
            "t10k-images-idx3-ubyte": Content(7_840_016, "2646ac647ad5339dbf082846283269ea"),
            "t10k-labels-idx1-ubyte": Content(10_008, "27ae3e4e09519cfbb04c329615203637"),
        },
    ),
    "fashion_mnist": Published(
        (
            "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
            "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
        ),
        {
            "train-images-idx3-ubyte": Content(47_040_016, "f4a8712d7a061bf5bd6d2ca38dc4d50a"),
            "train-labels-idx1-ubyte": Content(60_008, "9018921c3c673c538a1fc5bad174d6f9"),
            "t10k-images-idx3-ubyte": Content(7_840_016, "8181f5470baa50b63fa0f6fddb340f0a"),
            "t10k-labels-idx1-ubyte": Content(10_008, "15d484375f8d13e6eb1aabb0c3f46965"),
        },
    ),
}


def read(name: str, folder: Path) -> Splits:
    """`train` and `test` from the four files in `folder`, where missing ones are downloaded to.

    Raises:
      ConnectionError: a file is neither in the folder nor to be had from any address, each with
        its reason.
    """
    contents = {file: _content(name, file, folder) for file in SETS[name].files}
    return idx._decode(contents, source=f"{folder}: ")


def fault(name: str, examples: Splits) -> str:
    """How `train` and `test` differ from the published files; empty if they do not.

    The arrays are written as those files, whatever they came from, so that one checksum stands for
    the examples and their order.
    """
    try:
        encoded = idx._encode(examples)
    except (KeyError, ValueError) as error:
        return f"not to be written as the published files ({error})"
    for file, content in SETS[name].files.items():
        if different := content.fault(encoded[file]):
            return f"{file}: {different}"
    return ""


def _content(name: str, file: str, folder: Path) -> bytes:
    """A file without its compression: from the folder, with or without .gz, or an address."""
    wanted = SETS[name].files[file]
    failures = []
    for path in (folder / f"{file}.gz", folder / file):
        if path.is_file():
            content, fault = _unpacked(path.read_bytes(), wanted)
            if not fault:
                return content
            failures.append(f"{path}: {fault}")
    for address in SETS[name].addresses:
        url = f"{address}{file}.gz"
        try:
            with urllib.request.urlopen(url, timeout=_SECONDS) as response:
                packed = response.read(wanted.size + _SLACK)
        except (OSError, http.client.HTTPException) as error:
            failures.append(f"{url}: {error}")
            continue
        content, fault = _unpacked(packed, wanted)
        if fault:
            failures.append(f"{url}: {fault}")
            continue
        with contextlib.suppress(OSError), replacing(folder / f"{file}.gz") as stored:
            stored.write(packed)
        return content
    raise ConnectionError("; ".join(failures))


def _unpacked(packed: bytes, wanted: Content) -> tuple[bytes, str]:
    """What gzipped bytes hold, and what is wrong with that; plain bytes hold themselves."""
    content = packed
    if packed[:2] == b"\x1f\x8b":
        try:
            # No more than is wanted, however much there may be.
            content = gzip.GzipFile(fileobj=io.BytesIO(packed)).read(wanted.size + 1)
        except (OSError, EOFError, zlib.error) as error:
            return b"", f"its gzip stream of {len(packed):,} bytes is damaged ({error})"
    return content, wanted.fault(content)
