"""MNIST and Fashion-MNIST as their authors published them: four IDX files each, downloaded once."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import http.client
import urllib.request
from collections.abc import Mapping
from pathlib import Path

from batchscale.datasets import idx
from batchscale.datasets.splits import Splits
from batchscale.files import replacing

_SECONDS = 20  # until an address that does not answer counts as unreachable


@dataclasses.dataclass(frozen=True)
class Published:
    """Where the files of a set are served, and what they are.

    `addresses` are folders with the same files, the first choice first; `files` gives each file's
    size in bytes and SHA-256.
    """

    addresses: tuple[str, ...]
    files: Mapping[str, tuple[int, str]]


# First addresses, sizes and checksums are those of TFDS.
SETS = {
    "mnist": Published(
        (
            "https://storage.googleapis.com/cvdf-datasets/mnist/",
            "https://ossci-datasets.s3.amazonaws.com/mnist/",
        ),
        {
            "train-images-idx3-ubyte.gz": (
                9_912_422,
                "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
            ),
            "train-labels-idx1-ubyte.gz": (
                28_881,
                "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
            ),
            "t10k-images-idx3-ubyte.gz": (
                1_648_877,
                "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
            ),
            "t10k-labels-idx1-ubyte.gz": (
                4_542,
                "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
            ),
        },
    ),
    "fashion_mnist": Published(
        (
            "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
            "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
        ),
        {
            "train-images-idx3-ubyte.gz": (
                26_421_880,
                "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
            ),
            "train-labels-idx1-ubyte.gz": (
                29_515,
                "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
            ),
            "t10k-images-idx3-ubyte.gz": (
                4_422_102,
                "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
            ),
            "t10k-labels-idx1-ubyte.gz": (
                5_148,
                "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
            ),
        },
    ),
}


def read(name: str, folder: Path) -> Splits:
    """`train` and `test` from the four files in `folder`, where missing ones are downloaded to.

    Raises:
      ConnectionError: a file is neither in the folder nor to be had from any address, each with
        its reason.
    """
    contents = {file.removesuffix(".gz"): _content(name, file, folder) for file in SETS[name].files}
    return idx._decode(contents, source=f"{folder}: ")


def _content(name: str, file: str, folder: Path) -> bytes:
    size, sha256 = SETS[name].files[file]
    failures = []
    path = folder / file
    if path.is_file():
        content = path.read_bytes()
        if not (fault := _fault(content, size, sha256)):
            return content
        failures.append(f"{path}: {fault}")
    for address in SETS[name].addresses:
        url = address + file
        try:
            with urllib.request.urlopen(url, timeout=_SECONDS) as response:
                content = response.read(size + 1)
        except (OSError, http.client.HTTPException) as error:
            failures.append(f"{url}: {error}")
            continue
        if fault := _fault(content, size, sha256):
            failures.append(f"{url}: {fault}")
            continue
        with contextlib.suppress(OSError), replacing(path) as stored:
            stored.write(content)
        return content
    raise ConnectionError("; ".join(failures))


def _fault(content: bytes, size: int, sha256: str) -> str:
    """What is wrong with a file's content; empty if nothing is."""
    if len(content) != size:
        length = f"{len(content):,}" if len(content) < size else "more"
        return f"{length} bytes, wanted {size:,}"
    digest = hashlib.sha256(content).hexdigest()
    return "" if digest == sha256 else f"SHA-256 {digest}, wanted {sha256}"
