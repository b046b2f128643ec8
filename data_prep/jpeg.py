"""JPEG files: their frame header, strict decoding that reports libjpeg's warnings, and repair of truncated files."""

import contextlib
from dataclasses import dataclass

import numpy as np
import simplejpeg

from data_prep.jpeg_headers import fix_headers
from data_prep.jpeg_scans import FRAMES, read_scans, segments

KEPT_SUBSAMPLINGS = ("444", "422", "420", "440", "411", "Gray")  # all backends decode these alike
HUFFMAN_FRAMES = (0xC0, 0xC1, 0xC2)  # baseline, extended, progressive
ARITHMETIC_FRAMES = (0xC9, 0xCA)
PROGRESSIVE = 0xC2
UNNAMED_SUBSAMPLING = "Could not determine subsampling"
TRUNCATED = "Premature end of JPEG file"  # libjpeg's JWRN_JPEG_EOF
END_MARKER = b"\xff\xd9"
MIN_KEPT_FRACTION = 0.5  # of a truncated image's rows: less may not show what the label names


class DamagedJpeg(ValueError):
    """A JPEG that does not decode without a warning; the text is the decoder's."""


@dataclass(frozen=True, kw_only=True)
class Frame:
    """A frame header. marker: the coding process (0xC0 …). bits: per sample."""

    marker: int
    bits: int


def read_frame(data: bytes) -> Frame | None:
    """The frame header (T.81, B.2.2); None if there is none."""
    frames = (Frame(marker=marker, bits=body[0]) for marker, body in segments(data) if marker in FRAMES and body)
    return next(frames, None)


def decode(data: bytes) -> tuple[np.ndarray, str]:
    """Decode strictly: libjpeg's warnings are the only trace of most damage, and Pillow does not report them.

    Returns RGB uint8 [H, W, 3], and why the bytes cannot be kept, or an empty text. Raises DamagedJpeg.
    """
    try:
        colours, subsampling = _colours_and_subsampling(data)
        pixels: np.ndarray = simplejpeg.decode_jpeg(data, strict=True)
    except (ValueError, MemoryError) as error:
        raise DamagedJpeg(str(error)) from None
    frame, scans = read_frame(data), read_scans(data)
    if not scans.complete:
        raise DamagedJpeg("its last scans are missing")
    if frame is not None and frame.marker in ARITHMETIC_FRAMES:
        return pixels, "arithmetic to Huffman coding"
    if frame is None or frame.marker not in HUFFMAN_FRAMES:
        return pixels, "an unusual coding to a common one"
    if colours not in ("YCbCr", "Gray"):
        return pixels, f"{colours} to YCbCr"
    if not scans.self_contained:
        return pixels, "its Huffman tables written"  # as in Motion JPEG: other decoders may not assume the standard tables
    return pixels, "" if subsampling in KEPT_SUBSAMPLINGS else f"subsampling {subsampling} to a common one"


def _colours_and_subsampling(data: bytes) -> tuple[str, str]:
    try:
        _, _, colours, subsampling = simplejpeg.decode_jpeg_header(data)
    except KeyError:  # 4:4:1, which libjpeg-turbo names and simplejpeg does not
        return "YCbCr", "441"
    return colours, subsampling


def has_unnamed_subsampling(error: DamagedJpeg) -> bool:
    """Whether decoding failed only because libjpeg-turbo's API has no name for the subsampling (such as 3x1)."""
    return UNNAMED_SUBSAMPLING in str(error)


def repair(data: bytes, error: DamagedJpeg) -> tuple[bytes | np.ndarray, str] | None:
    """The repaired file or its intact rows (RGB uint8 [H, W, 3]), and a note; None if the file cannot be repaired.

    error: raised by `decode`. A file that lacks only its end marker gets one; its other bytes stay. Of a truncated baseline
    file the rows above the cut are kept if they are at least half. A file with flipped bits cannot be repaired, as wrong
    pixels cannot be recognized; nor can a truncated progressive file, all of whose pixels are coarser.
    """
    if TRUNCATED not in str(error):
        return None
    with contextlib.suppress(DamagedJpeg):
        ended, _ = fix_headers(data + END_MARKER)
        _, unusual = decode(ended)
        return (ended, "repaired: end mark added") if not unusual else None
    frame = read_frame(data)
    if frame is None or frame.marker == PROGRESSIVE or not read_scans(data).complete:
        return None
    try:
        pixels: np.ndarray = simplejpeg.decode_jpeg(data, strict=False)
    except (ValueError, MemoryError):
        return None
    height = len(pixels)
    rows = _rows_before_the_cut(pixels)
    if rows < max(1, MIN_KEPT_FRACTION * height):
        return None
    return np.ascontiguousarray(pixels[:rows]), f"repaired: cut file, its upper {100 * rows // height} % kept"


def _rows_before_the_cut(pixels: np.ndarray) -> int:
    """Number of intact rows. The decoder fills missing blocks with the mean of the last one, so their rows repeat."""
    same = (pixels[1:] == pixels[:-1]).all(axis=(1, 2))
    changing = np.flatnonzero(~same)
    last = int(changing[-1]) + 1 if len(changing) else 0
    # Drop the row of blocks with the cut, 16 rows at 4:2:0. Chroma upsampling blurs one row across its edge, both ways.
    return max(0, (last - 2) // 16 * 16 - 1)
