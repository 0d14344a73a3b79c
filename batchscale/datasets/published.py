"""MNIST, Fashion-MNIST, CIFAR-10 and tiny Shakespeare as they were published, downloaded once."""

from __future__ import annotations

import contextlib
import dataclasses
import gzip
import hashlib
import http.client
import io
import tarfile
import urllib.request
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath

from batchscale.datasets import cifar, idx, text
from batchscale.datasets.splits import Splits
from batchscale.files import replacing

_SECONDS = 20  # until an address that does not answer counts as unreachable
_SLACK = 1 << 20  # bytes by which a gzipped file may exceed its content, names and all


@dataclasses.dataclass(frozen=True)
class Content:
    """What a file holds when nothing is compressed: its size in bytes, and a digest of them.

    Of the content, since the same data gzipped again are other bytes.
    """

    size: int
    algorithm: str
    digest: str

    def fault(self, *content: bytes | memoryview) -> str:
        """What is wrong with these bytes, which follow each other; empty if nothing is."""
        length = sum(map(len, content))
        if length != self.size:
            got = f"{length:,}" if length < self.size else "more"
            return f"{got} bytes, wanted {self.size:,}"
        digest = hashlib.new(self.algorithm, usedforsecurity=False)
        for part in content:
            digest.update(part)
        name = self.algorithm.upper()
        got = digest.hexdigest()
        return "" if got == self.digest else f"{name} {got}, wanted {name} {self.digest}"


@dataclasses.dataclass(frozen=True)
class Published:
    """Where the files of a set are served, and what they are.

    Attributes:
      addresses: folders that hold the same, the first choice first.
      files: contents by name. They define the set: its examples and their order.
      decode: `train` and `test` from these contents.
      encode: the contents from parts of `train` and `test`.
      archive: the tar file that holds them; empty if each is served by itself.
      suffix: of what is served by itself.
    """

    addresses: tuple[str, ...]
    files: Mapping[str, Content]
    decode: Callable[..., Splits] = idx._decode
    encode: Callable[[idx.Parts], Mapping[str, Sequence[bytes | memoryview]]] = idx._encode
    archive: str = ""
    suffix: str = ".gz"

    def served(self) -> str:
        """The names of what is served."""
        return self.archive or ", ".join(f"{file}{self.suffix}" for file in self.files)


def _md5(size: int, digest: str) -> Content:
    return Content(size, "md5", digest)


def _sha1(size: int, digest: str) -> Content:
    return Content(size, "sha1", digest)


# First addresses are those of TFDS. The MD5s are widely quoted, and tested on files from elsewhere.
# The SHA-1s are those by which gluon.data.vision.CIFAR10 of Apache MXNet knew the same files; no
# test has seen these. Their archive has 170,052,171 bytes; its SHA-256 begins with c4a38c50a1bc5f3a
# in TFDS, its MD5 is c32a1d4ab5d03f1284b67883e8d87530 on the authors' page.
SETS = {
    "mnist": Published(
        (
            "https://storage.googleapis.com/cvdf-datasets/mnist/",
            "https://ossci-datasets.s3.amazonaws.com/mnist/",
        ),
        {
            "train-images-idx3-ubyte": _md5(47_040_016, "6bbc9ace898e44ae57da46a324031adb"),
            "train-labels-idx1-ubyte": _md5(60_008, "a25bea736e30d166cdddb491f175f624"),
            "t10k-images-idx3-ubyte": _md5(7_840_016, "2646ac647ad5339dbf082846283269ea"),
            "t10k-labels-idx1-ubyte": _md5(10_008, "27ae3e4e09519cfbb04c329615203637"),
        },
    ),
    "fashion_mnist": Published(
        (
            "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
            "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
        ),
        {
            "train-images-idx3-ubyte": _md5(47_040_016, "f4a8712d7a061bf5bd6d2ca38dc4d50a"),
            "train-labels-idx1-ubyte": _md5(60_008, "9018921c3c673c538a1fc5bad174d6f9"),
            "t10k-images-idx3-ubyte": _md5(7_840_016, "8181f5470baa50b63fa0f6fddb340f0a"),
            "t10k-labels-idx1-ubyte": _md5(10_008, "15d484375f8d13e6eb1aabb0c3f46965"),
        },
    ),
    "cifar10": Published(
        ("https://www.cs.toronto.edu/~kriz/", "https://cave.cs.toronto.edu/kriz/"),
        {
            "data_batch_1.bin": _sha1(30_730_000, "aadd24acce27caa71bf4b10992e9e7b2d74c2540"),
            "data_batch_2.bin": _sha1(30_730_000, "c0ba65cce70568cd57b4e03e9ac8d2a5367c1795"),
            "data_batch_3.bin": _sha1(30_730_000, "1dd00a74ab1d17a6e7d73e185b69dbf31242f295"),
            "data_batch_4.bin": _sha1(30_730_000, "aab85764eb3584312d3c7f65fd2fd016e36a258e"),
            "data_batch_5.bin": _sha1(30_730_000, "26e2849e66a845b7f1e4614ae70f4889ae604628"),
            "test_batch.bin": _sha1(30_730_000, "67eb016db431130d61cd03c7ad570b013799c88c"),
        },
        decode=cifar.decode,
        encode=cifar.encode,
        archive="cifar-10-binary.tar.gz",
    ),
    "tiny_shakespeare": Published(
        ("https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/",),
        {
            "input.txt": Content(
                1_115_394,
                "sha256",
                "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
            )
        },
        decode=text.decode,
        encode=text.encode,
        suffix="",
    ),
}


def read(name: str, folder: Path) -> Splits:
    """`train` and `test` from the files in `folder`, where missing ones are downloaded to.

    Raises:
      ConnectionError: a file is neither in the folder nor to be had from any address, each with
        its reason.
    """
    published = SETS[name]
    if published.archive:
        contents = _archived(published, folder)
    else:
        contents = {file: _served(published, file, folder) for file in published.files}
    return published.decode(contents, source=f"{folder}: ")


def fault(name: str, parts: idx.Parts) -> str:
    """How examples differ from those of the published files; empty if they do not.

    The arrays are written as those files, whatever they came from, so that one checksum stands for
    the examples and their order.

    Args:
      name: of the set.
      parts: of `train` and `test`, in order, each with `image` and `label`.
    """
    try:
        encoded = SETS[name].encode(parts)
    except ValueError as error:
        return str(error)
    for file, content in SETS[name].files.items():
        if different := content.fault(*encoded[file]):
            return f"{file}: {different}"
    return ""


def _served(published: Published, file: str, folder: Path) -> bytes:
    """A file's content: from the folder, with or without .gz, or from an address."""
    wanted = published.files[file]
    failures = []
    for path in dict.fromkeys((folder / f"{file}{published.suffix}", folder / file)):
        if path.is_file():
            content, fault = _unzipped(path.read_bytes(), wanted)
            if not fault:
                return content
            failures.append(f"{path}: {fault}")
    for url, packed in _downloads(published, file + published.suffix, wanted.size, failures):
        content, fault = _unzipped(packed, wanted)
        if fault:
            failures.append(f"{url}: {fault}")
            continue
        _keep(folder / f"{file}{published.suffix}", packed)
        return content
    raise ConnectionError("; ".join(failures))


def _archived(published: Published, folder: Path) -> Mapping[str, bytes]:
    """All files' contents: from the folder, or from the archive there or at an address."""
    failures = []
    paths = [folder / file for file in published.files]
    if all(path.is_file() for path in paths):
        contents = {path.name: path.read_bytes() for path in paths}
        fault = _fault(contents, published.files)
        if not fault:
            return contents
        failures.append(f"{folder}: {fault}")
    archive = folder / published.archive
    if archive.is_file():
        contents, fault = _members(archive.read_bytes(), published.files)
        if not fault:
            return contents
        failures.append(f"{archive}: {fault}")
    size = sum(content.size for content in published.files.values())
    for url, packed in _downloads(published, published.archive, size, failures):
        contents, fault = _members(packed, published.files)
        if fault:
            failures.append(f"{url}: {fault}")
            continue
        for file, content in contents.items():
            _keep(folder / file, content)
        return contents
    raise ConnectionError("; ".join(failures))


def _downloads(
    published: Published, name: str, size: int, failures: list[str]
) -> Iterator[tuple[str, bytes]]:
    """A served file from each address in turn, as long as it is asked for; reasons if it is not."""
    for address in published.addresses:
        url = f"{address}{name}"
        try:
            with urllib.request.urlopen(url, timeout=_SECONDS) as response:
                packed = response.read(size + _SLACK)
        except (OSError, http.client.HTTPException) as error:
            failures.append(f"{url}: {error}")
            continue
        yield url, packed


def _keep(path: Path, content: bytes) -> None:
    with contextlib.suppress(OSError), replacing(path) as stored:
        stored.write(content)


def _unzipped(packed: bytes, wanted: Content) -> tuple[bytes, str]:
    """What gzipped bytes hold, and what is wrong with that; plain bytes hold themselves."""
    content = packed
    if packed[:2] == b"\x1f\x8b":
        try:
            # No more than is wanted, however much there may be.
            content = gzip.GzipFile(fileobj=io.BytesIO(packed)).read(wanted.size + 1)
        except (OSError, EOFError, zlib.error) as error:
            return b"", f"its gzip stream of {len(packed):,} bytes is damaged ({error})"
    return content, wanted.fault(content)


def _members(packed: bytes, wanted: Mapping[str, Content]) -> tuple[Mapping[str, bytes], str]:
    """What an archive holds under these names, in whatever folder, and what is wrong with that."""
    contents = {}
    try:
        with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
            for member in archive:
                name = PurePosixPath(member.name).name
                if member.isfile() and name in wanted:
                    if member.size != wanted[name].size:
                        return {}, f"{name}: {member.size:,} bytes, wanted {wanted[name].size:,}"
                    if (file := archive.extractfile(member)) is not None:
                        contents[name] = file.read()
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        return {}, f"the archive of {len(packed):,} bytes is damaged ({error})"
    return contents, _fault(contents, wanted)


def _fault(contents: Mapping[str, bytes], wanted: Mapping[str, Content]) -> str:
    if missing := [file for file in wanted if file not in contents]:
        return f"no {', no '.join(missing)}"
    faults = ((file, content.fault(contents[file])) for file, content in wanted.items())
    return next((f"{file}: {fault}" for file, fault in faults if fault), "")
