"""Any picture file as RGB pixels: the rules by which udkd-prep stores images and `udkd predict` reads them."""

import io
import re
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from udkd.utils.errors import DataError

FORMATS = ("JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF", "PPM")  # no more: Pillow also knows formats that start other programs
_OTHER_KINDS = (  # by how files of them begin: what Pillow may know, but not every decoder, nor each version to the same pixels
    ("an AVIF image", re.compile(rb".{4}ftyp.{0,24}?avi[fs]", re.DOTALL)),
    ("a HEIC image", re.compile(rb".{4}ftyp(hei|hev|mif1|msf1)", re.DOTALL)),
    ("a JPEG XL image", re.compile(rb"\xff\x0a|\0\0\0\x0cJXL ")),
    ("a JPEG 2000 image", re.compile(rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51")),
)
_BEGINS = {b"\x89PNG\r\n\x1a\n": "PNG", b"GIF8": "GIF", b"II*\0": "TIFF", b"MM\0*": "TIFF"}
PIXEL_LIMIT = 100_000_000  # 300 MB as RGB; ImageNet's largest image has 61 million pixels
LONGEST_PX = 2048
"""Larger pictures are scaled down to it first, as udkd-prep scales to the canvas."""


class BadImage(ValueError):
    """Bytes that are no usable image; its text is the reason, as manifest and report show it."""


def open_image(data: bytes) -> Image.Image:
    """Read the header: what kind of picture it is, and its size. Raises BadImage."""
    if not data:
        raise BadImage("empty file")
    try:
        return Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError:
        kind = next((name for name, start in _OTHER_KINDS if start.match(data)), None)
        if kind is not None:
            raise BadImage(f"{kind}, which is not read: convert it to one of {', '.join(FORMATS)}") from None
        kind = next((name for start, name in _BEGINS.items() if data.startswith(start)), None)
        if kind is not None:
            raise BadImage(f"damaged {kind} (its header cannot be read)") from None
        raise BadImage(f"not an image (it starts with {data[:12]!r})") from None
    except Exception as error:  # Pillow's parsers answer damaged bytes with whatever they trip over
        raise BadImage(failure_text("header cannot be read", error)) from None


def to_rgb(image: Image.Image) -> tuple[Image.Image, list[str]]:
    """The first frame as 8-bit RGB, and what that took. Transparency is dropped, as torchvision's loader does."""
    notes = []
    try:
        if image.format != "MPO" and getattr(image, "is_animated", False):
            notes.append("first of several frames")
        image.load()
        if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM"):
            # Pillow's own conversion clips at 255 where a picture wants the upper byte.
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
    """What went wrong, and the words of whoever noticed, in one line."""
    text = " ".join(str(error).split()) or type(error).__name__
    return f"{what} ({text})"


def read_image_file(path: Path) -> np.ndarray:
    """Decode a file: uint8 [h, w, 3]. EXIF orientation is ignored, transparency dropped, of several frames the first taken.

    Raises DataError, naming the file, where it is no whole picture.
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
            return np.asarray(_shrunk(to_rgb(image)[0]))
        except BadImage as error:
            raise DataError(f"{path}: {error}; expected a whole image ({', '.join(FORMATS)}); check the file") from None


def _shrunk(rgb: Image.Image) -> Image.Image:
    scale = LONGEST_PX / max(rgb.size)
    if scale >= 1:
        return rgb
    width, height = rgb.size
    return rgb.resize((max(1, round(width * scale)), max(1, round(height * scale))), Image.Resampling.LANCZOS)
