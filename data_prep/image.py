"""The decision about one image: keep its bytes, make a JPEG of it, or refuse it."""

import hashlib
import io
import warnings
from dataclasses import dataclass
from typing import Literal

import numpy as np
import simplejpeg
from PIL import Image, UnidentifiedImageError

FORMATS = ("JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF", "PPM")  # no more: Pillow also knows formats that start other programs
PIXEL_LIMIT = 100_000_000  # 300 MB as RGB; ImageNet's largest image has 61 million pixels
KEPT_SUBSAMPLINGS = ("444", "422", "420", "440", "411", "Gray")  # what every decoder of ours reads alike


class BadImage(ValueError):
    """Bytes that are no usable image; its text is the reason, as manifest and report show it."""


@dataclass(frozen=True, kw_only=True)
class PixelSettings:
    """How images become stored JPEGs. side: S, pixels."""

    side: int
    fit: Literal["pad", "squash"]
    quality: int
    subsampling: Literal["4:4:4", "4:2:0"]


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """An image as it is stored; sizes in pixels. note: what was fixed, or nothing."""

    jpeg: bytes
    sha256: bytes
    source_height: int
    source_width: int
    height: int
    width: int
    note: str


def prepare(data: bytes, settings: PixelSettings) -> Prepared:
    """Check an image strictly and give it the form in which it is stored.

    An RGB or grey JPEG that fits keeps its bytes untouched: up to S on the long side (pad), or S x S (squash). Anything
    else is decoded, turned to 8-bit RGB, resampled once (Lanczos) where its size asks for it, and encoded once. EXIF
    orientation is ignored, as is usual for ImageNet. Raises BadImage.
    """
    if not data:
        raise BadImage("empty file")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's remarks about EXIF and palettes; the note says what matters
        image = _open(data)
        width, height = image.size
        if width * height > PIXEL_LIMIT:
            raise BadImage(f"{width} x {height} px is more than the limit of {PIXEL_LIMIT:,} pixels (a decompression bomb?)")
        size = _stored_size(height, width, settings)
        notes = []
        if image.format in ("JPEG", "MPO"):
            pixels, unusual = _decode_strictly(data, height, width)
            if not unusual and size == (height, width):
                return _prepared(data, (height, width), size, "")
            notes.append(unusual)
            rgb = _to_rgb(image)[0] if unusual else Image.fromarray(pixels)  # equal to Pillow's own decode, and at hand
        else:
            rgb, fixed = _to_rgb(image)
            notes += [f"{image.format} to JPEG", fixed]
    if size != (height, width):
        rgb = rgb.resize((size[1], size[0]), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    rgb.info.clear()  # Pillow would write the source's comment into the new file
    rgb.save(buffer, "JPEG", quality=settings.quality, subsampling=settings.subsampling)
    return _prepared(buffer.getvalue(), (height, width), size, "; ".join(note for note in notes if note))


def _prepared(jpeg: bytes, source: tuple[int, int], stored: tuple[int, int], note: str) -> Prepared:
    return Prepared(
        jpeg=jpeg,
        sha256=hashlib.sha256(jpeg).digest(),
        source_height=source[0],
        source_width=source[1],
        height=stored[0],
        width=stored[1],
        note=note,
    )


def _stored_size(height: int, width: int, settings: PixelSettings) -> tuple[int, int]:
    if settings.fit == "squash":
        return settings.side, settings.side
    longest = max(height, width)
    if longest <= settings.side:
        return height, width
    return max(1, round(height * settings.side / longest)), max(1, round(width * settings.side / longest))


def _open(data: bytes) -> Image.Image:
    try:
        return Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise BadImage(f"{error} (our limit: {PIXEL_LIMIT:,} pixels)") from None
    except UnidentifiedImageError:
        raise BadImage(f"not an image (it starts with {data[:12]!r})") from None
    except Exception as error:  # Pillow's parsers answer damaged bytes with whatever they trip over
        raise BadImage(_reason("header cannot be read", error)) from None


def _decode_strictly(data: bytes, height: int, width: int) -> tuple[np.ndarray, str]:
    """Decode a JPEG: libjpeg's warnings are the only trace of most damage, and Pillow does not pass them on.

    Returns RGB uint8 [height, width, 3], and why the bytes cannot be kept as they are, or nothing. Raises BadImage.
    """
    try:
        _, _, colours, subsampling = simplejpeg.decode_jpeg_header(data)
        pixels: np.ndarray = simplejpeg.decode_jpeg(data, strict=True)
    except (ValueError, MemoryError) as error:
        raise BadImage(_reason("damaged JPEG", error)) from None
    if pixels.shape != (height, width, 3):
        raise BadImage(f"damaged JPEG (decoders find {height} x {width} and {pixels.shape[0]} x {pixels.shape[1]} px)")
    if colours not in ("YCbCr", "Gray"):
        return pixels, f"{colours} to YCbCr"
    return pixels, "" if subsampling in KEPT_SUBSAMPLINGS else f"subsampling {subsampling} to a common one"


def _to_rgb(image: Image.Image) -> tuple[Image.Image, str]:
    """The first frame as 8-bit RGB, and what that took. Transparency is dropped, as torchvision's loader does."""
    notes = []
    try:
        if image.format != "MPO" and getattr(image, "is_animated", False):
            notes.append("first of several frames")
        image.load()
        if image.mode.startswith("I;16"):
            # Pillow's own conversion clips at 255 where a picture wants the upper byte.
            image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
            notes.append("16-bit to 8-bit")
        elif image.mode in ("I", "F"):
            raise BadImage("32-bit pixels without a known range")
        elif image.mode in ("P", "PA"):
            notes.append("palette to RGB")
        if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
            notes.append("transparency dropped")
        return image.convert("RGB"), "; ".join(notes)
    except BadImage:
        raise
    except Exception as error:  # see _open
        raise BadImage(_reason("cannot be decoded", error)) from None


def _reason(what: str, error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return f"{what} ({text})"
