"""Decodes image files to RGB pixels, by the same rules for udkd data convert and `udkd predict`."""

import io
import re
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from udkd.utils.errors import DataError

FORMATS = ("JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF", "PPM")  # no others: Pillow starts external programs for some
_OTHER_KINDS = (  # by their first bytes: not every Pillow can decode them, and versions differ in the pixels
    ("an AVIF image", re.compile(rb".{4}ftyp.{0,24}?avi[fs]", re.DOTALL)),
    ("a HEIC image", re.compile(rb".{4}ftyp(hei|hev|mif1|msf1)", re.DOTALL)),
    ("a JPEG XL image", re.compile(rb"\xff\x0a|\0\0\0\x0cJXL ")),
    ("a JPEG 2000 image", re.compile(rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51")),
)
_MAGIC = {b"\x89PNG\r\n\x1a\n": "PNG", b"GIF8": "GIF", b"II*\0": "TIFF", b"MM\0*": "TIFF"}
PIXEL_LIMIT = 100_000_000  # 300 MB as RGB; ImageNet's largest image has 61 million pixels
LONGEST_PX = 2048
"""Longer images are scaled down to this first, as udkd data convert scales to the canvas."""


class BadImage(ValueError):
    """Bytes that are not a usable image. The text is the reason shown in the manifest and the report."""


def open_image(data: bytes) -> Image.Image:
    """Open an image and read its header, not its pixels. Raises BadImage."""
    if not data:
        raise BadImage("empty file")
    try:
        return Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError:
        kind = next((name for name, start in _OTHER_KINDS if start.match(data)), None)
        if kind is not None:
            raise BadImage(f"{kind}, which is not read: convert it to one of {', '.join(FORMATS)}") from None
        kind = next((name for start, name in _MAGIC.items() if data.startswith(start)), None)
        if kind is not None:
            raise BadImage(f"damaged {kind} (its header cannot be read)") from None
        raise BadImage(f"not an image (it starts with {data[:12]!r})") from None
    except Exception as error:  # on damaged bytes Pillow's parsers may raise anything
        raise BadImage(failure_text("header cannot be read", error)) from None


def to_rgb(image: Image.Image) -> tuple[Image.Image, list[str]]:
    """The first frame as 8-bit RGB, and notes on the conversions. Transparency is dropped, as in torchvision's loader."""
    notes = []
    try:
        if image.format != "MPO" and getattr(image, "is_animated", False):
            notes.append("first of several frames")
        image.load()
        if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM"):
            # Pillow's own conversion clips at 255; the upper byte is what 16-bit images need.
            image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
            notes.append("16-bit to 8-bit")
        elif image.mode in ("I", "F"):
            raise BadImage("32-bit pixels without a known range")
        elif image.mode in ("P", "PA"):
            notes.append("palette to RGB")
        if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
            notes.append("transparency dropped")
        return image.convert("RGB"), notes
    except BadImage:
        raise
    except Exception as error:  # see open_image
        raise BadImage(failure_text("cannot be decoded", error)) from None


def failure_text(what: str, error: Exception) -> str:
    """`what` failed, followed by the exception's message, on one line."""
    text = " ".join(str(error).split()) or type(error).__name__
    return f"{what} ({text})"


def read_image_file(path: Path) -> np.ndarray:
    """Decode a file: uint8 [h, w, 3]. EXIF orientation and transparency are ignored; of several frames the first is used.

    An image with a side over LONGEST_PX is scaled down. Raises DataError, naming the file, if it is not an intact image.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}; expected an image file; check the path") from None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's remarks about EXIF and palettes
        try:
            image = open_image(data)
            width, height = image.size
            if width * height > PIXEL_LIMIT:
                raise DataError(f"{path} is {width} x {height} px; expected at most {PIXEL_LIMIT:,} pixels; scale it down")
            return np.asarray(_scaled_down(to_rgb(image)[0]))
        except BadImage as error:
            raise DataError(f"{path}: {error}; expected an intact image ({', '.join(FORMATS)}); check the file") from None


def _scaled_down(rgb: Image.Image) -> Image.Image:
    scale = LONGEST_PX / max(rgb.size)
    if scale >= 1:
        return rgb
    width, height = rgb.size
    return rgb.resize((max(1, round(width * scale)), max(1, round(height * scale))), Image.Resampling.LANCZOS)
