"""Arrays of numbers in types that JAX holds by default, and what cannot be made one."""

from __future__ import annotations

import jax
import numpy as np
from numpy.typing import ArrayLike


def array(where: str, field: str, value: ArrayLike) -> np.ndarray:
    """Values as an array with the examples along axis 0, of 32 bits or less.

    Labels become int32, 64-bit numbers 32-bit ones; what needs no change is not copied.

    Args:
      where: the split, for errors.
      field: its name; `label` is one of labels.
      value: the values.

    Raises:
      ValueError: they are no real numbers, empty or masked, or do not fit.

    >>> array("split 'train'", "input", [[1.0, 2.0]]).dtype.name
    'float32'
    """
    check_unmasked(where, field, value)
    array = np.asarray(value)
    if array.dtype.kind not in "biuf" and not narrow_float(array.dtype):
        raise ValueError(
            f"{where}: field {field!r} has the dtype {array.dtype}, wanted real numbers. "
            "Encode it as integers or floats, one array a field."
        )
    if array.ndim == 0:
        raise ValueError(
            f"{where}: field {field!r} is a single number, wanted an array with the examples "
            "along axis 0."
        )
    if not array.size:
        raise ValueError(
            f"{where}: field {field!r} is empty (shape {array.shape}). "
            "Give it examples, or leave the split out."
        )
    return _narrow(where, field, array)


def check_unmasked(where: str, field: str, value: object) -> None:
    """Refuses masked arrays of NumPy, whose masks would be dropped.

    >>> check_unmasked("split 'train'", "input", np.ma.masked_less([1.0, -9.0, -9.0], 0))
    Traceback (most recent call last):
    ValueError: split 'train': field 'input' is a masked array with 2 of 3 entries masked, whose
    mask would be lost. Fill them, with .filled(0) for example, and give the mask as a field of its
    own if a loss is to read it; or leave out the examples that have any.
    """
    if isinstance(value, np.ma.MaskedArray):
        masked = int(np.ma.getmaskarray(value).sum())
        raise ValueError(
            f"{where}: field {field!r} is a masked array with {masked:,} of {value.size:,} entries "
            "masked, whose mask would be lost. Fill them, with .filled(0) for example, and give "
            "the mask as a field of its own if a loss is to read it; or leave out the examples "
            "that have any."
        )


def check_held(where: str, field: str, value: np.ndarray) -> None:
    """Refuses whole numbers that JAX would let wrap around: of 64 bits, where it has 32.

    >>> check_held("split 'train'", "input", np.array([2**32 + 5]))
    Traceback (most recent call last):
    ValueError: split 'train': field 'input' reaches from 4294967301 to 4294967301, which int32
    cannot hold. Scale or renumber it.
    """
    if not isinstance(value, np.ndarray) or value.dtype.kind not in "iu" or not value.size:
        return
    held = jax.dtypes.canonicalize_dtype(value.dtype)
    if held != value.dtype:
        low, high = value.min(), value.max()
        if low < np.iinfo(held).min or high > np.iinfo(held).max:
            _refuse(where, field, low, high, held)


def _refuse(where: str, field: str, low: object, high: object, dtype: np.dtype) -> None:
    raise ValueError(
        f"{where}: field {field!r} reaches from {low} to {high}, which {dtype} cannot hold. Scale "
        "or renumber it."
    )


def narrow_float(dtype: np.dtype) -> bool:
    """Whether a type is a float that NumPy has not of its own: bfloat16 and narrower ones."""
    return dtype.kind == "V" and dtype.names is None and "float" in dtype.name


def _narrow(where: str, field: str, array: np.ndarray) -> np.ndarray:
    # JAX would narrow 64-bit numbers by itself, and let integers that are too large wrap around.
    if narrow_float(array.dtype):
        return array
    dtype = array.dtype.newbyteorder("=")
    if dtype.kind == "f" and dtype.itemsize > 4:
        dtype = np.dtype(np.float32)
    elif dtype.kind in "iu" and (dtype.itemsize > 4 or field == "label"):
        dtype = np.dtype(np.int32)
    if dtype == array.dtype:
        return array
    with np.errstate(over="ignore"):
        narrow = array.astype(dtype)
    lost = np.isinf(narrow) != np.isinf(array) if dtype.kind == "f" else narrow != array
    if np.any(lost):
        _refuse(where, field, np.nanmin(array), np.nanmax(array), dtype)
    return narrow
