"""Checks by the headers alone, without decoding, whether a JPEG is complete (T.81, B.2 and G.1).

Decoders accept incomplete files: libjpeg-turbo replaces a missing table with the standard's or the previous file's, and fills
in missing scans of a progressive file, differently in each version.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

_NEXT = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")  # a marker, but not a fill byte, a stuffed byte or a restart
FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
PROGRESSIVE_FRAMES = (0xC2, 0xCA)
_TABLES, _END, _SCAN = 0xC4, 0xD9, 0xDA
_UNSENT = 255


@dataclass(frozen=True, kw_only=True)
class Scans:
    """What the scans of a JPEG contain.

    self_contained: every Huffman table is defined before the scan that uses it.
    complete: all bits of all coefficients of every component are in the file.
    """

    self_contained: bool
    complete: bool


def read_scans(data: bytes) -> Scans:
    """Read the scan headers of a file that decodes without warnings."""
    defined: set[int] = set()
    unsent: dict[int, bytearray] = {}  # by component: the number of low bits of each coefficient that no scan has sent yet
    progressive, self_contained = False, True
    for marker, body in segments(data):
        if marker == _TABLES:
            defined |= _table_ids(body)
        elif marker in FRAMES and len(body) >= 6:
            progressive = marker in PROGRESSIVE_FRAMES
            unsent = {name: bytearray([_UNSENT] * 64) for name in body[6::3][: body[5]]}
        elif marker == _SCAN and body and len(body) >= 2 * body[0] + 4:
            first, last, bits = body[-3:]
            first, last, (high, low) = (first, last, divmod(bits, 16)) if progressive else (0, 63, (0, 0))
            for name, use in zip(body[1 : 1 + 2 * body[0] : 2], body[2 : 2 + 2 * body[0] : 2], strict=True):
                used = {use >> 4} if first == 0 and high == 0 else set()
                used |= {0x10 | use & 15} if last > 0 else set()
                self_contained = self_contained and used <= defined
                if name in unsent:
                    unsent[name][first : last + 1] = bytes([low]) * (min(last, 63) + 1 - first)
    return Scans(self_contained=self_contained, complete=bool(unsent) and not any(map(any, unsent.values())))


def segments(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield each marker with the body of its segment, up to the end of the first image."""
    position = 2
    while (match := _NEXT.search(data, position)) is not None and (marker := data[match.start() + 1]) != _END:
        start = match.end()
        end = start + int.from_bytes(data[start : start + 2])
        yield marker, data[start + 2 : end]
        position = max(end, start)


def _table_ids(body: bytes) -> set[int]:
    """The ids of the Huffman tables in a segment; 16 is added for AC coefficients."""
    ids, position = set(), 0
    while position + 17 <= len(body):
        ids.add(body[position])
        position += 17 + sum(body[position + 1 : position + 17])
    return ids
