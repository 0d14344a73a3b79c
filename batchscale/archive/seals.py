"""Digests of what this library wrote in the archive's layout, so that a later change is told."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from batchscale.archive import files, names
from batchscale.records import DamagedError

_FILES, _WRITTEN, _SIZES, _DIGEST = "files", "written", "batch_sizes", "digest"
_KEYS = _FILES, _WRITTEN, _SIZES, _DIGEST


class Seal(NamedTuple):
    """What the `study.json` of a batch size says of the files beside it.

    Attributes:
      folder: of the batch size.
      batch_sizes: that the archive was written with; the names of their folders.
      files: the digest of every file of a trial, by its name in the folder.
      written: what names all that was written at once.
      whole: whether `study.json` has the digest that it was written with.
    """

    folder: Path
    batch_sizes: tuple[str, ...]
    files: Mapping[str, str]
    written: str
    whole: bool


def digest(content: bytes) -> str:
    """The digest of a file.

    >>> digest(b"")[:12]
    'e3b0c44298fc'
    """
    return hashlib.sha256(content).hexdigest()


def sealed(
    study: Mapping[str, Any],
    batch_sizes: Collection[int],
    digests: Mapping[str, str],
    written: str = "",
) -> dict[str, Any]:
    """A `study.json` with the digests of its trials' files and of itself.

    Args:
      study: its content, with a record of this library.
      batch_sizes: all that the archive is written with.
      digests: of every file of a trial, by its name in the folder.
      written: what names all that is written at once: a digest of it.

    Returns:
      The content, under whose record of this library they are.

    >>> sorted(sealed({"batch_size": 8, "_batchscale": {}}, [8], {})["_batchscale"])
    ['batch_sizes', 'digest', 'files', 'written']
    """
    sealed = {_SIZES: sorted(batch_sizes), _FILES: dict(digests), _WRITTEN: written}
    own = {**study[names.OWN], **sealed}
    open_ = json.loads(json.dumps({**study, names.OWN: own}))  # as it will be read
    return {**open_, names.OWN: {**open_[names.OWN], _DIGEST: _digest(open_)}}


def opened(folder: Path, study: Mapping[str, Any]) -> tuple[dict[str, Any], Seal | None]:
    """The record of this library in a `study.json` without the digests, and these, if it has any.

    Args:
      folder: of the batch size.
      study: the content, with a record of this library.

    Raises:
      ValueError: the record is none, or the digests are.

    >>> study = sealed({"batch_size": 8, "_batchscale": {"seed": 0}}, [8], {})
    >>> opened(Path("8"), study)[0], opened(Path("8"), study | {"batch_size": 9})[1].whole
    ({'seed': 0}, False)
    """
    own = study[names.OWN]
    if not isinstance(own, dict):
        raise ValueError(f"{names.OWN}: got {own!r}, wanted a record.")
    rest = {name: value for name, value in own.items() if name not in _KEYS}
    if len(rest) == len(own):
        return rest, None
    unsealed = {name: value for name, value in own.items() if name != _DIGEST}
    sizes, listed = own.get(_SIZES, []), own.get(_FILES, {})
    if not isinstance(sizes, list) or not isinstance(listed, dict):
        raise ValueError(f"{names.OWN}: its {_SIZES} are no list, or its {_FILES} no record.")
    whole = own.get(_DIGEST) == _digest({**study, names.OWN: unsealed})
    return rest, Seal(folder, tuple(map(str, sizes)), listed, str(own.get(_WRITTEN)), whole)


def check(path: Path, seals: Sequence[Seal], accept: Collection[str]) -> None:
    """Compares what was written with what is there.

    Args:
      path: the folder that is read.
      seals: of all batch sizes found in it.
      accept: files that may be others, or be missing, by their names in the folder of the
        optimizer, such as `8/1/measurements.csv`.

    Raises:
      DamagedError: a file was changed, added or removed since, and is not accepted; or one that is
        accepted is none of the archive's.
    """
    changes: dict[str, str] = {}
    known: set[str] = set()
    for seal in seals:
        known |= _changes(seal, changes)
    root = seals[0].folder.parent
    for seal in seals:
        if seal.written != seals[0].written:
            name = f"{seal.folder.name}/{names.STUDY}"
            changes.setdefault(name, f"it was not written with {seals[0].folder.name}.")
    below = path.resolve() == seals[0].folder.resolve()  # a single batch size is asked for
    here = {seal.folder.name for seal in seals}
    for size in dict.fromkeys(size for seal in seals for size in seal.batch_sizes):
        name = f"{size}/{names.STUDY}"
        known.add(name)
        if size not in here and not below:
            changes.setdefault(name, "missing; it was written with the others.")
    for seal in seals:
        if seal.folder.name not in seal.batch_sizes:
            name = f"{seal.folder.name}/{names.STUDY}"
            changes.setdefault(name, "it was not written with the others.")
    unknown = sorted(set(accept) - known)
    if unknown:
        raise ValueError(
            f"accept: got {unknown[0]!r}, which is no file of {root}. Name files as they lie in "
            f"the folder of the optimizer, such as '{seals[0].folder.name}/{names.STUDY}'."
        )
    left = {name: found for name, found in changes.items() if name not in accept}
    if left:
        raise _changed(root, left, [name for name in accept if name in changes])


def _changes(seal: Seal, changes: dict[str, str]) -> set[str]:
    """Adds what was changed of a batch size, and returns the names of all of its files."""
    root, size = seal.folder.parent, seal.folder.name
    study = f"{size}/{names.STUDY}"
    if not seal.whole:
        changes[study] = "changed since it was written."
    here = {
        f"{folder.name}/{name}"
        for _, folder in files.trials(seal.folder)
        for name in (names.METADATA, names.MEASUREMENTS)
        if (folder / name).exists()
    }
    for name in sorted({*here, *seal.files}):
        full = f"{size}/{name}"
        if name not in seal.files:
            changes[full] = "it was not written with the others."
        elif name not in here:
            changes[full] = "missing; it was written with the others."
        elif digest(files.content(root / full)) != seal.files[name]:
            changes[full] = "changed since it was written."
    return {study, *(f"{size}/{name}" for name in {*here, *seal.files})}


def _changed(root: Path, left: Mapping[str, str], accepted: Sequence[str]) -> DamagedError:
    """Of the first of the files that are not accepted, with all of them in the remedy.

    Args:
      root: the folder of the optimizer.
      left: what was found of each file, by its name.
      accepted: files whose changes are.
    """
    name, found = next(iter(left.items()))
    if len(left) > 1:
        found = f"{found[:-1]}, as {len(left) - 1} more are that follow."
    copy = "Restore the archive from a copy, or write it again by Result.to_archive"
    # A trial of which one file is missing cannot be read, whatever is accepted.
    alone = [n for n in left if left[n].startswith("missing") and _halves(root / n)]
    if alone:
        remedy = (
            f"{copy}; or, if it is meant, remove the whole trial, {alone[0].rpartition('/')[0]}, "
            "and accept that both of its files are missing."
        )
    else:
        remedy = (
            f"{copy}; or, if the change is meant, accept it by name: "
            f"batchscale.load_archive(folder, accept={[*accepted, *left]!r})."
        )
    return DamagedError(root / name, found, remedy=remedy)


def _halves(path: Path) -> bool:
    """Whether a file of a trial is missing whose other one is there."""
    return path.name != names.STUDY and any(
        (path.parent / name).exists() for name in (names.METADATA, names.MEASUREMENTS)
    )


def _digest(study: Mapping[str, Any]) -> str:
    """Of what a file says, whatever the order of its keys and the spaces between them."""
    return digest(json.dumps(study, sort_keys=True).encode())
