"""Splits of arrays: made from what the user has, checked, stored and fingerprinted."""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike

from batchscale import given, numeric
from batchscale.datasets.narrow import array as _array
from batchscale.datasets.narrow import narrow_float
from batchscale.datasets.stream import Stream, StreamedField
from batchscale.files import local_path, replacing

Splits: TypeAlias = dict[str, dict[str, np.ndarray]]
Examples: TypeAlias = Mapping[str, ArrayLike] | tuple[ArrayLike, ArrayLike] | Stream


def from_arrays(
    *, train: Examples, validation: Examples | None = None, test: Examples | None = None
) -> Splits:
    """Splits from one's own arrays, checked, in types that JAX holds by default.

    64-bit numbers become 32-bit ones and labels become int32; everything else, bfloat16 too, keeps
    its type, and an array that needs no change is not copied.

    Args:
      train: arrays by field name, each with the examples along axis 0, or a pair
        (inputs, labels), which becomes the fields `input` and `label`.
      validation: the same fields, for choosing hyperparameters.
      test: the same fields, for reporting.

    Returns:
      The splits that were given, each a dictionary of arrays by field name.

    Raises:
      TypeError: a split is neither a mapping nor a pair.
      ValueError: a split is empty or uneven, a field does not hold numbers or is masked, a number
        does not fit in 32 bits, or splits differ in their fields.

    >>> splits = from_arrays(train=(np.zeros((4, 2)), np.array([0, 1, 1, 0])))
    >>> {field: (array.shape, str(array.dtype)) for field, array in splits["train"].items()}
    {'input': ((4, 2), 'float32'), 'label': ((4,), 'int32')}
    """
    given = {"train": train, "validation": validation, "test": test}
    return _checked(
        {split: _fields(split, part) for split, part in given.items() if part is not None}
    )


def from_npz(path: str | os.PathLike[str]) -> Splits:
    """Splits from an .npz file whose arrays are named `split/field`, such as `train/image`.

    Args:
      path: the file, as `to_npz` or `numpy.savez` writes it.

    Returns:
      The splits of the file, checked and typed as `from_arrays` does.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it is not such a file, or `from_arrays` would refuse its arrays. Objects are
        refused, so that no code of the file runs.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     to_npz({"train": {"input": np.arange(3)}}, f"{folder}/three.npz")
    ...     from_npz(f"{folder}/three.npz")
    {'train': {'input': array([0, 1, 2], dtype=int32)}}
    """
    path = local_path(path, "path")
    try:
        with open(path, "rb") as file:
            stored = np.load(file, allow_pickle=False)
            if isinstance(stored, np.ndarray):
                raise ValueError("it holds one array without a name")
            if twice := [name for name in stored.files if name.endswith(".npy")]:
                raise ValueError(f"NumPy cannot tell {twice[0]!r} from another array")
            arrays = {name: stored[name] for name in stored.files}
    except (
        ValueError, EOFError, NotImplementedError, RuntimeError, zipfile.BadZipFile, zlib.error
    ) as error:  # fmt: skip
        raise ValueError(
            f"{path}: not a readable .npz file of plain arrays ({error}). "
            "Write it with datasets.to_npz."
        ) from error
    splits: Splits = {}
    for name, array in arrays.items():
        split, _, field = name.partition("/")
        if not split or not field:
            raise ValueError(
                f"{path}: the array {name!r} is not named 'split/field'. Name the arrays "
                "'train/image', 'train/label' and so on, or write the file with datasets.to_npz."
            )
        splits.setdefault(split, {})[field] = array
    return _checked(splits, source=f"{path}: ")


def to_npz(splits: Mapping[str, Mapping[str, np.ndarray]], path: str | os.PathLike[str]) -> None:
    """Stores splits in one uncompressed .npz file, which `from_npz` reads back.

    The file appears under its name only when it is whole; missing folders are made.

    Args:
      splits: what to store; checked and typed as `from_arrays` does.
      path: the file to write or to replace.

    Raises:
      ValueError: `from_arrays` would refuse the splits, a split has "/" in its name, or a field is
        of a type that the file cannot hold.
      OSError: the file cannot be written.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     to_npz({"train": {"input": np.zeros(2)}}, f"{folder}/zeros.npz")
    ...     np.load(f"{folder}/zeros.npz").files
    ['train/input']
    """
    _check_splits(splits)
    arrays = {}
    for split, fields in _checked(splits).items():
        if not split or "/" in split:
            raise ValueError(f"split {split!r}: its name must not be empty or hold '/'. Rename it.")
        for field, array in fields.items():
            if field.endswith(".npy"):
                raise ValueError(
                    f"split {split!r}: field {field!r} ends with .npy, as NumPy ends names itself. "
                    "Rename it."
                )
            if narrow_float(array.dtype):
                raise ValueError(
                    f"split {split!r}: field {field!r} is {array.dtype}, which an .npz file cannot "
                    "hold. Convert it with .astype(np.float32)."
                )
        arrays.update({f"{split}/{field}": array for field, array in fields.items()})
    with replacing(local_path(path, "path")) as file:
        np.savez(file, **arrays)


def not_finite(splits: Mapping[str, Mapping[str, np.ndarray]]) -> list[str]:
    """Which fields hold NaN or infinity, in words; those of streams are not looked through.

    >>> not_finite({"train": {"input": np.array([[0.0], [np.nan]]), "label": np.array([0, 1])}})
    ["field 'input' of split 'train', in 1 of 2 examples (the first is example 1)"]
    """
    _check_splits(splits)
    found = []
    for split, fields in splits.items():
        for field, array in fields.items():
            if isinstance(array, StreamedField):
                continue
            if np.issubdtype(array.dtype, np.floating) or narrow_float(array.dtype):
                bad = np.asarray(~np.isfinite(array).reshape(len(array), -1).all(1))
                if bad.any():
                    found.append(
                        f"field {field!r} of split {split!r}, in {bad.sum():,} of {len(bad):,} "
                        f"examples (the first is example {bad.argmax():,})"
                    )
    return found


def check_labels(
    splits: Mapping[str, Mapping[str, np.ndarray]],
    classes: int,
    *,
    field: str = "label",
    ignored: int | None = None,
) -> None:
    """Refuses labels that are not the integers 0 to `classes` - 1.

    JAX clips an index that is out of range, so that training would go on with wrong labels. Of a
    stream a sample is checked here, and everything that is read from it as it is read.

    Args:
      splits: what to check, every split of it.
      classes: the number of classes, at least 1.
      field: the field that holds the labels.
      ignored: a label that is allowed besides.

    Raises:
      ValueError: a split has no such field, or labels that are out of range or not integers.

    >>> check_labels({"train": {"label": np.array([0, 3, 9, 12, 11])}}, 10)
    Traceback (most recent call last):
    ValueError: labels: split 'train' has 2 labels outside 0 to 9 (smallest 0, largest 12).
    Renumber the field 'label' from 0, or state the right number of classes.
    """
    classes = numeric.integer("classes", classes, 1)
    if ignored is not None:
        ignored = numeric.integer("ignored", ignored, -(2**63), 2**63 - 1)
    _check_splits(splits)
    for split, fields in splits.items():
        if field not in fields:
            raise ValueError(
                f"labels: split {split!r} has no field {field!r}, only {_listed(fields)}. "
                "Name the field that holds the labels."
            )
        labels = some(fields[field])
        _check_integers(f"labels: split {split!r}", field, labels)
        if ignored is not None:
            labels = labels[labels != ignored]
        bad = int(np.count_nonzero((labels < 0) | (labels >= classes)))
        if bad:
            raise ValueError(
                f"labels: split {split!r} has {bad:,} label{'s' if bad > 1 else ''} outside 0 to "
                f"{classes - 1} (smallest {labels.min()}, largest {labels.max()}). "
                f"Renumber the field {field!r} from 0, or state the right number of classes."
                + _of_padding(labels)
            )


def fingerprint(splits: Mapping[str, Mapping[str, np.ndarray]]) -> str:
    """A digest that changes with any name, type, shape or number in the splits.

    The order of the dictionaries, the layout of the arrays in memory and the machine's byte order
    do not matter; the order of the examples does. Of a stream it is of how many examples there
    are, and of a sample of them: one that differs in others alone is taken for the same.

    Args:
      splits: arrays of numbers by split and field.

    Returns:
      BLAKE2b with 128 bits, as 32 hexadecimal digits, after `"streamed "` where there is a stream.

    >>> fingerprint({"train": {"label": np.array([0, 1], np.int32)}})
    'ca7bcfff63946cb554e28d607f360f21'
    """
    _check_splits(splits)
    digest = hashlib.blake2b(digest_size=16)
    for split in sorted(splits):
        for field in sorted(splits[split]):
            given = splits[split][field]
            array = some(given)
            little = array.astype(array.dtype.newbyteorder("<"), order="C", copy=False)
            kind = little.dtype.name if narrow_float(array.dtype) else little.dtype.str
            of = given.shape if isinstance(given, StreamedField) else little.shape
            digest.update(json.dumps([split, field, kind, of]).encode())
            digest.update(little.reshape(-1).view(np.uint8).data)
    fields = [field for split in splits.values() for field in split.values()]
    streamed = any(isinstance(field, StreamedField) for field in fields)
    return f"streamed {digest.hexdigest()}" if streamed else digest.hexdigest()


def _check_splits(splits: Any) -> None:
    """Refuses what is no mapping from splits to mappings of arrays by field, or is empty."""
    wanted = 'splits by name, each a mapping of arrays by field: {"train": {"input": ...}}'
    given.instance("splits", splits, Mapping, wanted)
    for split, fields in splits.items():
        given.instance("splits: a name", split, str, "a word")
        given.instance(f"splits[{split!r}]", fields, Mapping, "a mapping of arrays by field")
        for field, array in fields.items():
            if not hasattr(array, "dtype") or not len(getattr(array, "shape", ())):
                raise TypeError(
                    f"splits[{split!r}][{field!r}]: got {given.described(array)}, wanted an array "
                    "with the examples along axis 0."
                )


def _checked(splits: Mapping[str, Mapping[str, ArrayLike]], *, source: str = "") -> Splits:
    """The splits with narrow types, if they are sound; `source` begins the message if not."""
    result: Splits = {}
    for split, fields in splits.items():
        where = f"{source}split {split!r}"
        streamed = [name for name, x in fields.items() if isinstance(x, StreamedField)]
        if 0 < len(streamed) < len(fields):
            raise ValueError(
                f"{where}: {', '.join(map(repr, streamed))} is streamed, and its other fields are "
                "arrays. Make one stream of all fields, or read them all."
            )
        result[split] = {field: _field(where, field, fields[field]) for field in fields}
        _check_lengths(where, result[split])
    if not result:
        raise ValueError(f"{source}there are no splits. Give at least 'train'.")
    first, *others = result
    for split in others:
        _check_alike(source, result, first, split)
    return result


def _hold_out(splits: Splits, examples: int) -> Splits:
    """The splits with the last training examples taken off as `validation`; nothing is copied."""
    if not examples:
        return splits
    train = splits["train"]
    return {
        "train": {field: array[:-examples] for field, array in train.items()},
        "validation": {field: array[-examples:] for field, array in train.items()},
        **{split: fields for split, fields in splits.items() if split != "train"},
    }


def some(array: Any) -> np.ndarray:
    """An array; of a field of a stream, a sample.

    >>> some(Stream({"input": np.arange(3)}).fields()["input"]).tolist()
    [0, 1, 2]
    """
    if isinstance(array, StreamedField):
        return array.stream.sample()[array.field]
    return np.asarray(array)


def _field(where: str, field: str, value: Any) -> Any:
    return value if isinstance(value, StreamedField) else _array(where, field, value)


def _fields(split: str, part: Examples) -> Mapping[str, ArrayLike]:
    if isinstance(part, Stream):
        return part.fields()
    if isinstance(part, Mapping):
        return part
    if isinstance(part, tuple) and len(part) == 2:
        return {"input": part[0], "label": part[1]}
    got = f"a tuple of {len(part)}" if isinstance(part, tuple) else f"a {type(part).__name__}"
    raise TypeError(
        f"{split}: got {got}, wanted a dictionary of arrays by field name or a pair "
        "(inputs, labels)."
    )


def _of_padding(labels: np.ndarray) -> str:
    """What to do about labels that are no class, where that may be what they stand for."""
    if labels.min() >= 0:
        return ""
    return (
        f" If {labels.min()} marks padding, say so: ignore_label={labels.min()} in "
        "Workload.from_model, ignored_label in a Workload whose loss and metrics return (sum, "
        "count) over what is not padding."
    )


def _check_integers(where: str, field: str, labels: np.ndarray) -> None:
    if labels.dtype.kind not in "iu":
        raise ValueError(
            f"{where}: field {field!r} has the dtype {labels.dtype}, wanted integers, one a class. "
            "Convert classes with .astype(np.int32); of a regression, give Workload.from_model "
            "loss='squared_error' or a loss of your own, and a Workload no `classes`."
        )


def _check_lengths(where: str, fields: Mapping[str, np.ndarray]) -> None:
    if not fields:
        raise ValueError(f"{where}: it has no fields. Give it arrays by field name.")
    lengths = {field: len(array) for field, array in fields.items()}
    if len(set(lengths.values())) > 1:
        got = ", ".join(f"{field!r} {length:,}" for field, length in lengths.items())
        raise ValueError(
            f"{where}: its fields differ in length along axis 0: {got}. "
            "Give every field one entry an example."
        )


def _check_alike(source: str, splits: Splits, first: str, other: str) -> None:
    if splits[first].keys() != splits[other].keys():
        raise ValueError(
            f"{source}split {other!r} has the fields {_listed(splits[other])}, split {first!r} has "
            f"{_listed(splits[first])}. Give every split the same fields."
        )
    for field, wanted in splits[first].items():
        got = splits[other][field]
        if (got.shape[1:], got.dtype.kind) != (wanted.shape[1:], wanted.dtype.kind):
            raise ValueError(
                f"{source}field {field!r}: an example is {got.dtype} of shape {got.shape[1:]} in "
                f"split {other!r}, and {wanted.dtype} of shape {wanted.shape[1:]} in split "
                f"{first!r}. Prepare every split in the same way."
            )


def _listed(names: Iterable[str]) -> str:
    return ", ".join(repr(name) for name in sorted(names)) or "none"
