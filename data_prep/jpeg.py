"""Decodes JPEG files strictly, treating libjpeg's warnings as errors, and repairs truncated files."""

import contextlib
from dataclasses import dataclass

import numpy as np
import simplejpeg

from udkd.data_prep.jpeg_headers import fix_headers
from udkd.data_prep.jpeg_scans import FRAMES, read_scans, segments

KEPT_SUBSAMPLINGS = ("444", "422", "420", "440", "411", "Gray")  # all backends decode these to the same pixels
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
    """A frame header. marker: identifies the coding process (0xC0 …). bits: per colour value."""

    marker: int
    bits: int


def read_frame(data: bytes) -> Frame | None:
    """The frame header (T.81, B.2.2); None if there is none."""
    frames = (Frame(marker=marker, bits=body[0]) for marker, body in segments(data) if marker in FRAMES and body)
    return next(frames, None)


def decode(data: bytes) -> tuple[np.ndarray, str]:
    """Decode strictly. Most damage shows only in libjpeg's warnings, which Pillow does not report.

    Returns RGB uint8 [H, W, 3], and why the image must be encoded again (empty if its bytes can be kept). Raises DamagedJpeg.
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
        return pixels, "its Huffman tables written"  # as in Motion JPEG: not every decoder assumes the standard tables
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

    error: raised by `decode`. If only the end marker is missing, it is added, and no other byte changes. If a baseline file is
    truncated, the rows above the cut are kept if they are at least half of the image. A file with flipped bits cannot be
    repaired, as incorrect pixels cannot be recognised; nor can a truncated progressive file, as the cut affects all pixels.
    """
    if TRUNCATED not in str(error):
        return None
    with contextlib.suppress(DamagedJpeg):
        ended, _ = fix_headers(data + END_MARKER)
        _, reencode_reason = decode(ended)
        return (ended, "repaired: end mark added") if not reencode_reason else None
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
    """The number of intact rows. The decoder fills missing blocks with the mean of the last block, so their rows repeat."""
    same = (pixels[1:] == pixels[:-1]).all(axis=(1, 2))
    changing = np.flatnonzero(~same)
    last = int(changing[-1]) + 1 if len(changing) else 0
    # Drop the row of blocks that contains the cut, 16 rows at 4:2:0. Chroma upsampling blurs its edge by one row on each side.
    return max(0, (last - 2) // 16 * 16 - 1)
