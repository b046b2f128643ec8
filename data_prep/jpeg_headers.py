"""Fixes the headers of intact JPEGs that a decoder warns about, without changing a pixel.

Phones, cameras and editors write headers that libjpeg warns about: Samsung's parameters of a sequential scan, a JFIF revision
that does not exist, bytes between two segments, half a colour profile. Some write zeros between the last block and the end
marker. Every decoder reads these images completely. Data in and between scans is not changed: warnings there concern pixels.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from udkd.data_prep.jpeg_scans import FRAMES, PROGRESSIVE_FRAMES

_NEXT = re.compile(rb"\xff[\xc0-\xcf\xd8-\xfe]")  # as libjpeg finds the next segment
_START, _END, _SCAN, _JFIF, _PROFILE, _ADOBE = 0xD8, 0xD9, 0xDA, 0xE0, 0xE2, 0xEE
_METADATA = (_START, *range(0xE0, 0xF0), 0xFE)  # junk may follow these: they are not needed to decode the image
_SEQUENTIAL = bytes([0, 63, 0])  # T.81, B.2.3: the coefficients and bits in a scan header of such a frame
_MAX_SEGMENTS = 10_000  # enough for 600 MB of metadata; ten million empty segments would take 2 GB of memory here
_PROFILE_NAME = b"ICC_PROFILE\0"


@dataclass(frozen=True, kw_only=True)
class _Segment:
    """A segment. before: the bytes between the previous segment and this one; after a scan header, its entropy-coded data."""

    before: bytes
    marker: int
    body: bytes

    @property
    def is_profile(self) -> bool:
        return self.marker == _PROFILE and self.body.startswith(_PROFILE_NAME) and len(self.body) >= 14


def fix_headers(data: bytes) -> tuple[bytes, list[str]]:
    """The file with its headers fixed, and a note for each fix; the same bytes and no notes if there is nothing to fix.

    Decode the result strictly: any remaining warning means damage.
    """
    segments, tail = _split(data)
    if len(segments) > _MAX_SEGMENTS:
        return data, []
    head = data[:2] + b"".join(_rewritten(segments))
    scan, mark, rest = tail.partition(b"\xff\xd9")
    stripped = _strip_padding(scan) if mark and segments and segments[-1].marker == _SCAN else scan
    notes = ["header repaired"] if head + tail != data else []
    notes += ["zeros before its end removed"] if stripped != scan else []
    return head + stripped + mark + rest, notes


def _split(data: bytes) -> tuple[list[_Segment], bytes]:
    """The complete segments before the end marker, and the rest of the file."""
    segments: list[_Segment] = []
    position = 2
    while (match := _NEXT.search(data, position)) and (marker := data[match.start() + 1]) not in (_START, _END):
        start = match.end() + 2
        end = max(start, match.end() + int.from_bytes(data[match.end() : start]))
        if end > len(data) or len(segments) > _MAX_SEGMENTS:
            break
        segments.append(_Segment(before=data[position : match.start()], marker=marker, body=data[start:end]))
        position = end
    return segments, data[position:]


def _rewritten(segments: Sequence[_Segment]) -> list[bytes]:
    frames = [each for each in segments if each.marker in FRAMES and len(each.body) > 5]
    components = frames[0].body[5] if frames else 0
    sequential = not any(each.marker in PROGRESSIVE_FRAMES for each in frames)
    broken = _is_broken([each.body for each in segments if each.is_profile])
    parts: list[bytes] = []
    last, scanned = _START, False
    for each in segments:
        parts.append(b"" if not scanned and _is_junk(each.before, last) else each.before)
        last, scanned = each.marker, scanned or each.marker == _SCAN
        if not (broken and each.is_profile):
            body = _fix_body(each, components=components, sequential=sequential)
            parts.append(bytes([0xFF, each.marker]) + (len(body) + 2).to_bytes(2) + body)
    return parts


def _is_junk(between: bytes, last: int) -> bool:
    """Whether the bytes between two segments can be removed. last: the marker of the segment before them.

    Fill bytes (0xFF) alone are kept, as decoders accept them. After a segment that is needed for decoding only zeros can be
    removed: other bytes may be the end of that segment, displaced by an extra byte in it.
    """
    between = between.strip(b"\xff")
    return bool(between) and (last in _METADATA or not between.strip(b"\0"))


def _fix_body(segment: _Segment, *, components: int, sequential: bool) -> bytes:
    """The body with the values that libjpeg assumes when it warns."""
    body = segment.body
    if segment.marker == _JFIF and body.startswith(b"JFIF\0") and len(body) >= 14 and body[5] != 1:
        return body[:5] + b"\1\2" + body[7:]
    if segment.marker == _ADOBE and body.startswith(b"Adobe") and len(body) >= 12:
        known, guess = {3: ((0, 1), 1), 4: ((0, 2), 2)}.get(components, ((body[11],), 0))
        return body if body[11] in known else body[:11] + bytes([guess]) + body[12:]
    if segment.marker == _SCAN and sequential and body and len(body) == 2 * body[0] + 4:
        return body[:-3] + _SEQUENTIAL
    return body


def _is_broken(profile: Sequence[bytes]) -> bool:
    """Whether a colour profile is incomplete: its parts are not 1 to n of n, each once, or all of them are empty."""
    counted = sorted(part[12] for part in profile) == list(range(1, len(profile) + 1))
    complete = counted and all(part[13] == len(profile) for part in profile) and any(len(part) > 14 for part in profile)
    return bool(profile) and not complete


def _strip_padding(scan: bytes) -> bytes:
    """A scan without the fill bytes and zeros at its end. A zero after a 0xFF belongs to the scan (T.81, B.1.1.5)."""
    kept = scan.rstrip(b"\xff").rstrip(b"\0")
    if kept == scan.rstrip(b"\xff"):
        return scan
    return kept + b"\0" if kept.endswith(b"\xff") else kept
