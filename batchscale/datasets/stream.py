"""Examples that are read as they are needed, of sets that do not fit into memory."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike

from batchscale import numeric
from batchscale.columns import check_label
from batchscale.datasets import narrow
from batchscale.given import described, instance

_AT_ONCE = 64  # a choice: a thread reads so many examples before it takes others
_SAMPLE = 64


class RandomAccess(Protocol):
    """Any sequence of examples: `len(source)` of them, and `source[i]`, which is one.

    Data sources and `MapDataset`s of grain, TFDS's `as_data_source`, `datasets.Dataset` of Hugging
    Face and PyTorch's map-style data sets are.
    """

    def __len__(self) -> int:
        """How many examples there are."""
        ...

    def __getitem__(self, index: Any, /) -> Any:
        """One of them."""
        ...


class Stream:
    """A split whose examples are read as training needs them, in the order in which it does.

    It is used where a split of arrays is: `data={"train": Stream(source), ...}`. Batches are drawn
    as they are from arrays: without replacement within an epoch, shuffled anew in each epoch and
    for each trial, and of a plan the same whether its data are resident or streamed, to the bit.

    Args:
      source: a `RandomAccess`, whose examples are mappings of numbers or arrays by field, or pairs
        `(input, label)`; or a mapping of arrays by field with the examples along axis 0, such as
        memory maps, of which no more is read than is needed. All examples have the same shapes and
        types. What is read may be read again, by several threads at a time: an example is the same
        each time, so that augmentation belongs into `Workload.preprocess`, which has a key.
      transform: makes an example of what the source returns, where that is none yet (bytes, say).
      name: what errors call it.
      threads: that read at the same time.

    Raises:
      TypeError: the source is none.
      ValueError: it is empty, or its first example is not as above.

    >>> squares = Stream([{"input": np.float64(i), "label": i % 2} for i in range(10)])
    >>> squares
    Stream(10 examples; input float32 (), label int32 ())
    >>> squares.read([4, 1])
    {'input': array([4., 1.], dtype=float32), 'label': array([0, 1], dtype=int32)}

    Pairs have the fields `input` and `label`, and bytes become what `transform` makes of them.

    >>> Stream([b"ab", b"cd"], lambda line: {"tokens": np.frombuffer(line, np.uint8)})
    Stream(2 examples; tokens uint8 (2,))
    """

    def __init__(
        self,
        source: RandomAccess | Mapping[str, ArrayLike],
        transform: Callable[[Any], Any] | None = None,
        *,
        name: str = "stream",
        threads: int = 16,
    ) -> None:
        check_label("stream", name)
        threads = numeric.integer("threads", threads, 1)
        if transform is not None and not callable(transform):
            raise TypeError(
                f"transform: got {described(transform)}, wanted a function of an example."
            )
        self._name = name
        self._arrays: Mapping[str, Any] | None = None
        self._source: Any = source
        if isinstance(source, Mapping):
            self._arrays = {field: _indexed(name, field, x) for field, x in source.items()}
            self._source = _Rows(name, self._arrays)
        elif not (hasattr(source, "__len__") and hasattr(source, "__getitem__")):
            raise TypeError(
                f"{name}: got a {type(source).__name__}, wanted a source with len(source) and "
                "source[i], or a mapping of arrays by field. An iterator has no order of its own "
                "to draw from: write what it yields to a file that has random access."
            )
        if transform is not None:
            self._arrays = None
        self._transform = transform
        self._threads = threads
        self._lock = threading.Lock()
        self._size = len(self._source)
        if not self._size:
            raise ValueError(f"{name}: it has no examples. Give it some, or leave the split out.")
        first = self._stacked(self._examples([0]), [0])
        self._shapes = {field: (x.shape[1:], x.dtype) for field, x in first.items()}

    def __len__(self) -> int:
        return self._size

    def __repr__(self) -> str:
        fields = ", ".join(f"{k} {dtype} {shape}" for k, (shape, dtype) in self._shapes.items())
        return f"Stream({self._size:,} examples; {fields})"

    def fields(self) -> dict[str, StreamedField]:
        """The fields, each a `StreamedField`."""
        return {
            field: StreamedField(self, field, (self._size, *shape), dtype)
            for field, (shape, dtype) in self._shapes.items()
        }

    def read(
        self, indices: Sequence[int] | np.ndarray, *, stop: threading.Event | None = None
    ) -> dict[str, np.ndarray]:
        """Examples, read from the source, those that stand twice once.

        Args:
          indices: of the examples; in any order, of any shape.
          stop: when it is set, reading ends with an error.

        Returns:
          Arrays by field, with the shape of the indices in front.

        Raises:
          InterruptedError: reading was stopped.
          ValueError: an example has other fields, shapes or types than the first, or cannot be
            read; the error names it.
          IndexError: there is no such example.
        """
        indices = _places(self._name, indices, self._size)
        if not indices.size:
            return {
                field: np.empty((*indices.shape, *shape), dtype)
                for field, (shape, dtype) in self._shapes.items()
            }
        wanted, places = np.unique(indices, return_inverse=True)
        found = self._read_sorted(wanted, stop)
        return {field: x[places.reshape(indices.shape)] for field, x in found.items()}

    def _read_sorted(
        self, indices: np.ndarray, stop: threading.Event | None
    ) -> dict[str, np.ndarray]:
        """Examples of which each stands once, in their order; see `read`."""
        if self._arrays is not None:
            return {
                field: self._field(field, np.asarray(x[indices]), indices)
                for field, x in self._arrays.items()
            }
        out = {k: np.empty((len(indices), *shape), t) for k, (shape, t) in self._shapes.items()}

        def some(first: int) -> None:
            if stop is not None and stop.is_set():
                raise InterruptedError(f"{self._name}: reading was stopped.")
            part = indices[first : first + _AT_ONCE].tolist()
            found = self._stacked(self._examples(part), part)
            if found.keys() != self._shapes.keys():
                raise ValueError(
                    f"{self._name}: {_these(part)} has the fields {', '.join(found)}, and the "
                    f"first example {', '.join(self._shapes)}. Give all the same fields."
                )
            for field, x in found.items():
                out[field][first : first + len(part)] = self._field(field, x, part)

        firsts = range(0, len(indices), _AT_ONCE)
        if len(firsts) == 1:
            some(0)
        else:
            # What is wanted first is read first.
            with self._lock, ThreadPoolExecutor(self._threads, "read") as pool:
                for _ in pool.map(some, firsts):
                    pass
        return out

    def sample(self) -> dict[str, np.ndarray]:
        """A few examples from all of it, evenly spaced: enough to know it again by."""
        return self.read(np.unique(np.linspace(0, self._size - 1, _SAMPLE).astype(np.int64)))

    def _examples(self, indices: list[int]) -> list[Mapping[str, np.ndarray]]:
        """Examples as the source and the transformation make them, each copied at once.

        A source may decode into an array that it uses again for the next.
        """
        several = getattr(self._source, "__getitems__", None)
        found = []
        try:
            given = (self._source[i] for i in indices) if several is None else several(indices)
            for index, example in zip(indices, given, strict=True):
                made = example if self._transform is None else self._transform(example)
                fields = self._mapping(made, index)
                self._check_unmasked(fields, index)
                found.append({field: np.array(x) for field, x in fields.items()})
            return found
        except _WrongExampleError as error:
            raise ValueError(str(error)) from None
        except Exception as error:
            # Of what is read one by one, the one that fails follows those that were read.
            at = [indices[min(len(found), len(indices) - 1)]]
            which = _these(indices if several is not None else at)
            raise ValueError(
                f"{self._name}: {which} cannot be read "
                f"({type(error).__name__}: {error}). Mend the source or its transform, or leave "
                "the example out."
            ) from error

    def _check_unmasked(self, fields: Mapping[str, Any], index: int) -> None:
        for field, x in fields.items():
            try:
                narrow.check_unmasked(f"{self._name}: example {index:,}", field, x)
            except ValueError as error:
                raise _WrongExampleError(str(error)) from None

    def _stacked(
        self, rows: list[Mapping[str, np.ndarray]], indices: list[int]
    ) -> dict[str, np.ndarray]:
        for row, index in zip(rows, indices, strict=True):
            if row.keys() != rows[0].keys():
                raise ValueError(
                    f"{self._name}: example {index:,} has the fields {', '.join(row)}, and "
                    f"example {indices[0]:,} {', '.join(rows[0])}. Give all the same fields."
                )
        found = {}
        for field in rows[0]:
            values = [row[field] for row in rows]
            for value, index in zip(values, indices, strict=True):
                if value.shape != values[0].shape:
                    self._refuse_shape(field, index, value.shape, values[0].shape)
                if (value.dtype.kind == "f") != (values[0].dtype.kind == "f"):
                    raise ValueError(
                        f"{self._name}: field {field!r} of example {index:,} is {value.dtype}, and "
                        f"of example {indices[0]:,} {values[0].dtype}. Give all the same type."
                    )
            found[field] = narrow.array(self._name, field, np.stack(values))
        return found

    def _mapping(self, example: Any, index: int) -> Mapping[str, Any]:
        if isinstance(example, Mapping) and example:
            return example
        if isinstance(example, tuple | list) and len(example) == 2:
            return {"input": example[0], "label": example[1]}
        raise _WrongExampleError(
            f"{self._name}: example {index:,} is a {type(example).__name__}, wanted a mapping of "
            "arrays by field or a pair (input, label). Make one with "
            "Stream(source, transform=function)."
        )

    def _field(self, field: str, x: np.ndarray, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """Values of a field in the type that its first example has, if they have its shape."""
        shape, dtype = self._shapes[field]
        if x.shape[1:] != shape:
            self._refuse_shape(field, int(indices[0]), x.shape[1:], shape)
        x = narrow.array(self._name, field, x)
        if x.dtype != dtype:
            raise ValueError(
                f"{self._name}: field {field!r} of {_these(indices)} is {x.dtype}, and that of the "
                f"first example {dtype}. Give all the same type."
            )
        return x

    def _refuse_shape(self, field: str, index: int, got: Any, wanted: Any) -> None:
        raise ValueError(
            f"{self._name}: field {field!r} of example {index:,} has the shape {got}, and others "
            f"{wanted}. Give all the same shape: pad or crop them in Stream(transform=...)."
        )


class _WrongExampleError(ValueError):
    """An example that is none, which is told as it is."""


class StreamedField:
    """A field of a stream where an array would be: it has a shape and a type, and is read in part.

    Attributes:
      stream: whose field it is.
      field: its name.
      shape: the examples along axis 0.
      dtype: of the values.
    """

    def __init__(self, stream: Stream, field: str, shape: tuple[int, ...], dtype: np.dtype) -> None:
        self.stream, self.field, self.shape, self.dtype = stream, field, shape, dtype

    @property
    def ndim(self) -> int:
        """The number of axes."""
        return len(self.shape)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Any) -> np.ndarray:
        """The values of some examples, which are read: of a slice, or of an array of indices."""
        return self.stream.read(np.arange(len(self))[index])[self.field]

    def __array__(self, *arguments: Any, **options: Any) -> np.ndarray:
        raise TypeError(
            f"{self.field!r} of {self.stream!r} is streamed, and no array: read some of it, "
            f"stream.read([0, 1, 2])[{self.field!r}], or give arrays to what wants all of it."
        )

    def __repr__(self) -> str:
        return f"StreamedField({self.field!r}, {self.dtype} {self.shape})"


def is_streamed(split: Mapping[str, Any]) -> bool:
    """Whether the examples of a split are read as they are needed.

    >>> is_streamed(Stream({"input": np.zeros(3)}).fields()), is_streamed({"input": np.zeros(3)})
    (True, False)
    """
    _check_split(split)
    return any(isinstance(x, StreamedField) for x in split.values())


def take(
    split: Mapping[str, Any],
    indices: Sequence[int] | np.ndarray,
    *,
    stop: threading.Event | None = None,
) -> dict[str, np.ndarray]:
    """Some examples of a split, whether it is streamed or not.

    Args:
      split: arrays by field, or the fields of one stream.
      indices: of the examples; of any shape.
      stop: when it is set, reading ends with an error.

    Returns:
      Arrays by field, with the shape of the indices in front.

    >>> take(Stream({"input": np.arange(5)}).fields(), [[3, 0]])
    {'input': array([[3, 0]], dtype=int32)}
    """
    _check_split(split)
    streams = {x.stream for x in split.values() if isinstance(x, StreamedField)}
    if not streams:
        places = _places("take", indices, min((len(x) for x in split.values()), default=0))
        return {field: np.asarray(x)[places] for field, x in split.items()}
    read = {stream: stream.read(indices, stop=stop) for stream in streams}
    return {field: read[x.stream][x.field] for field, x in split.items()}


def _check_split(split: Any) -> None:
    instance("split", split, Mapping, "arrays by field, or the fields of a stream")


def _places(name: str, indices: Any, size: int) -> np.ndarray:
    """Indices as an array of integers, each of an example that there is."""
    found = np.asarray(indices)
    if (
        not found.size
        and isinstance(indices, Sequence | np.ndarray)
        and not isinstance(indices, str)
    ):
        return found.astype(np.int64)
    if found.dtype.kind not in "iu":
        raise IndexError(f"{name}: got indices of the type {found.dtype}, wanted integers.")
    if not 0 <= found.min() <= found.max() < size:
        raise IndexError(
            f"{name}: asked for examples {found.min()} to {found.max()}, and there are {size:,}."
        )
    return found


def _indexed(name: str, field: str, values: Any) -> Any:
    """Values that an array of indices reads a part of."""
    narrow.check_unmasked(name, field, values)
    # Tables of pandas take indices for labels.
    lazy = hasattr(values, "shape") and hasattr(values, "dtype") and not hasattr(values, "iloc")
    return values if lazy else np.asarray(values)


class _Rows:
    """Arrays by field as a sequence of examples."""

    def __init__(self, name: str, arrays: Mapping[str, Any]) -> None:
        lengths = {field: len(x) for field, x in arrays.items()}
        if len(set(lengths.values())) != 1:
            raise ValueError(
                f"{name}: its arrays have the lengths {lengths}; wanted at least one array, and "
                "one length. Put the examples along axis 0."
            )
        self._arrays, self._length = arrays, next(iter(lengths.values()))

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {field: x[index] for field, x in self._arrays.items()}


def _these(indices: Sequence[int] | np.ndarray) -> str:
    some = [f"{int(i):,}" for i in itertools.islice(indices, 3)]
    if len(indices) == 1:
        return f"example {some[0]}"
    return f"an example of {', '.join(some)}{' ...' * (len(indices) > 3)}"
