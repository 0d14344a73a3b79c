"""Sentences of published texts: lines of files, plain, gzipped or JSON, or records of TFDS."""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, TypeAlias

from batchscale.datasets import prepared

_AT_ONCE = 1000
Sentences: TypeAlias = Callable[[], Iterator[str]]
"""Sentences in any order; called anew, it begins anew."""


def of_files(paths: Sequence[Path]) -> Sentences:
    r"""The lines of files: of text, or of JSON with a field `text`, as C4 is published.

    Args:
      paths: of each file. One that ends in `.gz` is gzipped; one with `.json` has an object a line,
        of whose text every line is a sentence.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder) / "some.json"
    ...     _ = path.write_text(json.dumps({"text": "One.\nTwo."}))
    ...     list(of_files([path])())
    ['One.', 'Two.']
    """

    def sentences() -> Iterator[str]:
        for path in paths:
            with _opened(path) as file:
                if ".json" in path.suffixes:
                    yield from _lines(_texts(file, path))
                else:
                    yield from (line.strip() for line in file)

    return sentences


def of_records(folder: Path, split: str) -> Sentences:
    """The field `text` of every record of a split that TFDS has prepared in array_record format."""
    records = prepared.encoded(folder, split)

    def sentences() -> Iterator[str]:
        for start in range(0, len(records), _AT_ONCE):
            some = range(start, min(start + _AT_ONCE, len(records)))
            yield from map(_text, records.__getitems__(some))

    return sentences


def key(sentence: str) -> int:
    """The first 64 bits of the MD5 of a sentence, by which sentences are put in order.

    >>> hex(key("A sentence ."))
    '0x43df02d34048e764'
    """
    digest = hashlib.md5(sentence.encode(), usedforsecurity=False).digest()
    return int.from_bytes(digest[:8], "big")


def _opened(path: Path) -> IO[str]:
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8", newline="\n")
    return open(path, encoding="utf-8", newline="\n")


def _texts(lines: Iterable[str], path: Path) -> Iterator[str]:
    for number, line in enumerate(lines, 1):
        try:
            yield json.loads(line)["text"]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{path}: line {number:,} is not an object with a field 'text' ({error}). Fetch "
                "the file again."
            ) from error


def _text(record: Any) -> str:
    text = record["text"]
    return (text.decode() if isinstance(text, bytes) else str(text)).strip()


def _lines(texts: Iterable[str]) -> Iterator[str]:
    """The lines of texts that are not empty."""
    for text in texts:
        for line in text.split("\n"):
            if stripped := line.strip():
                yield stripped
