"""Reads the devkit's meta.mat: a subset of the MAT-file format, level 5 (MathWorks, "MAT-File Format").

scipy.io.loadmat is unsafe for damaged or hostile files: a file of 232 bytes with large dimensions keeps it busy for over a
minute while it fills memory, and a megabyte of nested cells crashes the interpreter.
"""

import struct
import zlib
from collections.abc import Iterator

from udkd.utils.errors import DataError

LIMIT_BYTES = 1 << 26  # of a decompressed element; meta.mat of ILSVRC2012 has 1 MB
COMPRESSED, MATRIX = 15, 14
STRUCT = 2
TEXT = {1: "latin-1", 2: "latin-1", 4: "utf-16-le", 16: "utf-8", 17: "utf-16-le"}
NUMBERS = {1: "b", 2: "B", 3: "h", 4: "H", 5: "i", 6: "I", 7: "f", 9: "d", 12: "q", 13: "Q"}
CHAR = 4


def struct_array(data: bytes) -> list[dict[str, object]]:
    """The first struct array of a MAT file as one dict per element. Values are text, single numbers, or None for others.

    Raises DataError if the bytes are not such a file.
    """
    try:
        if data[126:128] != b"IM":
            raise ValueError("not a little-endian MAT file")
        for kind, payload in _elements(data[128:]):
            if kind == COMPRESSED:
                inflater = zlib.decompressobj()
                inner = inflater.decompress(payload, LIMIT_BYTES)
                if inflater.unconsumed_tail:
                    raise ValueError("it is larger than the limit")
                kind, payload = next(_elements(inner))
            if kind == MATRIX and payload[8] == STRUCT:
                return _structs(payload)
        raise ValueError("it holds no struct array")
    except (ValueError, IndexError, StopIteration, struct.error, zlib.error, UnicodeDecodeError) as error:
        raise DataError(f"meta.mat cannot be read ({error}); expected the file of the devkit; fetch the devkit again") from None


def _elements(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Type and payload of each data element. An element of up to four bytes is stored inside its tag."""
    position = 0
    while position + 8 <= len(data):
        kind, size = struct.unpack_from("<II", data, position)
        if kind >> 16:
            kind, size = kind & 0xFFFF, kind >> 16
            start, position = position + 4, position + 8
        else:
            start = position + 8
            position = start + size + (0 if kind == COMPRESSED else -size % 8)
        if start + size > len(data):
            raise ValueError("it is truncated")
        yield kind, data[start : start + size]


def _structs(payload: bytes) -> list[dict[str, object]]:
    flags, dimensions, _, width, names, *fields = (body for _, body in _elements(payload))
    del flags
    size = int.from_bytes(width, "little")
    columns = [names[start : start + size].split(b"\0")[0].decode() for start in range(0, len(names), size)]
    count = 1
    for (extent,) in struct.iter_unpack("<i", dimensions):
        count *= extent
    if count * len(columns) != len(fields):
        raise ValueError("its number of fields does not match its dimensions")
    return [{column: _value(fields[n * len(columns) + k]) for k, column in enumerate(columns)} for n in range(count)]


def _value(payload: bytes) -> object:
    """A row of characters as text, or a single number; None for any other value."""
    parts = list(_elements(payload))
    kind, body = parts[3] if len(parts) > 3 else (0, b"")
    if parts[0][1][0] == CHAR:
        return body.decode(TEXT[kind]) if body else ""
    if kind in NUMBERS and len(body) == struct.calcsize(NUMBERS[kind]):
        return struct.unpack("<" + NUMBERS[kind], body)[0]
    return None
