"""JPEG files: what kind they are, decoding that hears libjpeg's warnings, and what can be saved of a file that was cut."""

import contextlib
from dataclasses import dataclass

import numpy as np
import simplejpeg

from data_prep.jpeg_headers import fix_headers
from data_prep.jpeg_scans import FRAMES, read_scans, segments

KEPT_SUBSAMPLINGS = ("444", "422", "420", "440", "411", "Gray")  # what every decoder of ours reads alike
HUFFMAN_FRAMES = (0xC0, 0xC1, 0xC2)  # baseline, extended, progressive
ARITHMETIC_FRAMES = (0xC9, 0xCA)
PROGRESSIVE = 0xC2
UNNAMED_SUBSAMPLING = "Could not determine subsampling"
CUT = "Premature end of JPEG file"  # libjpeg's JWRN_JPEG_EOF
END = b"\xff\xd9"
MIN_KEPT_SHARE = 0.5  # of a cut picture's rows: less shows too little of what the label says


class DamagedJpeg(ValueError):
    """A JPEG that does not decode without a warning; its text is the decoder's."""


@dataclass(frozen=True, kw_only=True)
class Frame:
    """What the frame header says. marker: the kind of coding (0xC0 …). bits: of a sample."""

    marker: int
    bits: int


def read_frame(data: bytes) -> Frame | None:
    """The frame header (T.81, B.2.2); None where there is none."""
    frames = (Frame(marker=marker, bits=body[0]) for marker, body in segments(data) if marker in FRAMES and body)
    return next(frames, None)


def decode(data: bytes) -> tuple[np.ndarray, str]:
    """Decode strictly: libjpeg's warnings are the only trace of most damage, and Pillow does not pass them on.

    Returns RGB uint8 [H, W, 3], and why the bytes cannot be kept as they are, or nothing. Raises DamagedJpeg.
    """
    try:
        _, _, colours, subsampling = simplejpeg.decode_jpeg_header(data)
        pixels: np.ndarray = simplejpeg.decode_jpeg(data, strict=True)
    except (ValueError, MemoryError) as error:
        raise DamagedJpeg(str(error)) from None
    except KeyError:  # 4:4:1, for which libjpeg-turbo has a name and simplejpeg has none
        raise DamagedJpeg(UNNAMED_SUBSAMPLING) from None
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
        return pixels, "its Huffman tables written"  # as in Motion JPEG; libjpeg-turbo knows the standard's, others need not
    return pixels, "" if subsampling in KEPT_SUBSAMPLINGS else f"subsampling {subsampling} to a common one"


def has_unnamed_subsampling(error: DamagedJpeg) -> bool:
    """Whether it is only libjpeg-turbo's interface that has no name for the file's subsampling (3x1, say)."""
    return UNNAMED_SUBSAMPLING in str(error)


def repair(data: bytes, error: DamagedJpeg) -> tuple[bytes | np.ndarray, str] | None:
    """What can be saved of a damaged JPEG, and what was done in words; None where nothing can.

    error: what `decode` said. A file that lacks nothing but its end mark gets one: its other bytes stay. Of a baseline file
    that was cut, the rows above the cut are kept (RGB uint8) where they are at least half. Pixels that are there but wrong
    cannot be told from others, so a file with flipped bits is beyond repair; so is a cut progressive file, whose whole
    picture is coarser.
    """
    if CUT not in str(error):
        return None
    with contextlib.suppress(DamagedJpeg):
        ended, _ = fix_headers(data + END)
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
    if rows < max(1, MIN_KEPT_SHARE * height):
        return None
    return np.ascontiguousarray(pixels[:rows]), f"repaired: cut file, its upper {100 * rows // height} % kept"


def _rows_before_the_cut(pixels: np.ndarray) -> int:
    """The decoder fills what is missing with the last block's mean: rows of flat blocks, each like the one above."""
    same = (pixels[1:] == pixels[:-1]).all(axis=(1, 2))
    changing = np.flatnonzero(~same)
    last = int(changing[-1]) + 1 if len(changing) else 0
    # Leave out the row of blocks with the cut in it, 16 rows at 4:2:0. Upsampled chroma runs one row over its edge, both ways.
    return max(0, (last - 2) // 16 * 16 - 1)
