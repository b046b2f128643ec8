"""Many short strings in one block of memory. The overhead per string is 8 bytes; a str object takes 50.

Any str is stored without loss, including file names that are not UTF-8 and lone surrogates.
"""

from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import overload

import numpy as np
from numpy.typing import NDArray

_ERRORS = "surrogatepass"  # lossless for every str; bytes sort like code points


class StringColumn(Sequence[str]):
    """An immutable sequence of N strings. data: their concatenated UTF-8. bounds: int64 [N + 1], where each starts and ends."""

    __slots__ = ("bounds", "data")

    def __init__(self, data: bytes | bytearray, bounds: NDArray[np.int64]) -> None:
        self.data = data
        self.bounds = bounds

    @staticmethod
    def of(texts: Iterable[str]) -> "StringColumn":
        """Store strings in a column."""
        builder = StringColumnBuilder()
        for text in texts:
            builder.append(text)
        return builder.finish()

    def __len__(self) -> int:
        return len(self.bounds) - 1

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[str, ...]: ...
    def __getitem__(self, index: int | slice) -> str | tuple[str, ...]:
        if isinstance(index, slice):
            return tuple(self[n] for n in range(*index.indices(len(self))))
        row = range(len(self))[index]
        return str(self.data[self.bounds[row] : self.bounds[row + 1]], "utf-8", _ERRORS)

    def __iter__(self) -> Iterator[str]:
        return (self[n] for n in range(len(self)))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence) or isinstance(other, str):
            return NotImplemented
        return len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"StringColumn({len(self)}: {', '.join(map(repr, self[:3]))}{', …' if len(self) > 3 else ''})"


class StringColumnBuilder:
    """Builds a StringColumn by appending."""

    def __init__(self) -> None:
        self._data = bytearray()
        self._bounds = array("q", [0])

    def __len__(self) -> int:
        return len(self._bounds) - 1

    def append(self, text: str) -> None:
        """Add a string."""
        self._data += text.encode("utf-8", _ERRORS)
        self._bounds.append(len(self._data))

    def __getitem__(self, index: int) -> str:
        """The string added at `index`, from 0."""
        return str(self._data[self._bounds[index] : self._bounds[index + 1]], "utf-8", _ERRORS)

    def extend(self, texts: StringColumn) -> None:
        """Add all strings of a column."""
        first = len(self._data) - int(texts.bounds[0])
        self._data += memoryview(texts.data)[int(texts.bounds[0]) : int(texts.bounds[-1])]
        self._bounds.frombytes((texts.bounds[1:] + first).astype(np.int64).tobytes())

    def finish(self) -> StringColumn:
        """The column, which shares the builder's memory: add nothing afterwards."""
        return StringColumn(self._data, np.frombuffer(self._bounds, dtype=np.int64))
