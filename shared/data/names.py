"""The names of images as Arrow text, which may lie in a file: a few bytes each in memory."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple, overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

TEXT = np.dtypes.StringDType()  # Python's strings take twice the memory
BLOCK = 2**16  # names that are Python's or numpy's at a time


class _Part(NamedTuple):
    """Names in one array: each is ``prefix`` and its text from character ``begin`` on."""

    texts: pa.StringArray
    begin: int
    prefix: str


class Names:
    """The names of n images in order.

    ``names[3]`` is a text; ``names[positions]``, ``names[mask]`` and ``names[2:5]`` are arrays
    (k,) of numpy's text. A selection keeps numbers of rows, 4 bytes each, and copies no text.
    """

    def __init__(self, parts: Sequence[_Part], rows: np.ndarray | None = None) -> None:
        self._parts = tuple(parts)
        self._ends = np.cumsum([len(part.texts) for part in self._parts], dtype=np.int64)
        self._rows = rows  # None: all, in order

    @classmethod
    def of(cls, texts: Iterable[str]) -> "Names":
        """Names from Python's strings."""
        return cls.of_column(pa.chunked_array([pa.array(list(map(str, texts)), pa.string())]))

    @classmethod
    def of_column(cls, texts: pa.ChunkedArray, begin: int = 0) -> "Names":
        """Names from a column without nulls; of each text what stands from ``begin`` on."""
        return cls([_Part(chunk, begin, "") for chunk in texts.chunks])

    def select(self, rows: np.ndarray) -> "Names":
        """The names at these positions (k,) int64, or where a mask (n,) is true."""
        rows = self._at(rows)
        return Names(self._parts, rows.astype(np.min_scalar_type(max(self._number, 2**16))))

    def followed_by(self, others: "Names", prefix: str) -> "Names":
        """These names, and behind them the others with a prefix."""
        parts = [part._replace(prefix=prefix + part.prefix) for part in others._parts]
        rows = None
        if self._rows is not None or others._rows is not None:
            behind = others._at(slice(None)).astype(np.int64) + self._number
            rows = np.concatenate([self._at(slice(None)), behind])
            rows = rows.astype(np.min_scalar_type(max(self._number + others._number, 2**16)))
        return Names([*self._parts, *parts], rows)

    def blocks(self) -> Iterator[list[str]]:
        """All names in order, up to `BLOCK` at a time."""
        for first in range(0, len(self), BLOCK):
            last = min(first + BLOCK, len(self))
            rows = np.arange(first, last) if self._rows is None else self._rows[first:last]
            yield self._texts(rows)

    def tolist(self) -> list[str]:
        """All names as Python's strings."""
        return list(self)

    def __len__(self) -> int:
        return self._number if self._rows is None else len(self._rows)

    def __iter__(self) -> Iterator[str]:
        for block in self.blocks():
            yield from block

    @overload
    def __getitem__(self, key: int | np.integer) -> str: ...
    @overload
    def __getitem__(self, key: slice | np.ndarray | list[int]) -> np.ndarray: ...
    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, int | np.integer):
            row = range(len(self))[key]
            return self._texts(np.array([row if self._rows is None else self._rows[row]]))[0]
        return np.array(self._texts(self._at(key)), dtype=TEXT)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        array = np.array(self.tolist(), dtype=TEXT)
        return array if dtype is None else array.astype(dtype)

    @property
    def _number(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def _at(self, key: Any) -> np.ndarray:
        """Numbers of rows (k,) of positions, a mask or a slice, as numpy takes them."""
        rows = np.arange(self._number) if self._rows is None else self._rows
        return rows[np.array(key, np.int64) if isinstance(key, list) else key]

    def _texts(self, rows: np.ndarray) -> list[str]:
        """The names in these rows (k,)."""
        rows = rows.astype(np.int64)
        part_of = np.searchsorted(self._ends, rows, side="right")
        names = np.empty(len(rows), dtype=object)
        for number in np.unique(part_of):
            texts, begin, prefix = self._parts[number]
            here = part_of == number
            first = self._ends[number] - len(texts)
            cut = pc.utf8_slice_codeunits(texts.take(pa.array(rows[here] - first)), begin)  # type: ignore[attr-defined]
            names[here] = [prefix + text for text in cut.to_pylist()]
        return names.tolist()
