"""Prepares an image for storage: keeps its bytes, encodes it as a JPEG, or rejects it."""

import hashlib
import io
import warnings
from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image, PngImagePlugin

from udkd.data.image_files import PIXEL_LIMIT, BadImage, failure_text, open_image, to_rgb
from udkd.data_prep.jpeg import DamagedJpeg, decode, has_unnamed_subsampling, read_frame, repair
from udkd.data_prep.jpeg_headers import fix_headers
from udkd.utils.crc32c import crc32c

__all__ = ["PIXEL_LIMIT", "BadImage", "PixelSettings", "Prepared", "prepare"]

Image.MAX_IMAGE_PIXELS = None  # PixelSettings.pixel_limit is checked before any pixel is decoded
PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY  # intact PNGs may hold megabytes of text in one chunk

UNSUPPORTED_SUBSAMPLING = "a JPEG of unusual chroma subsampling, which is not read: encode it again, such as with 4:2:0"
ORIENTATION_TAG = 0x0112
TRANSPOSES = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclass(frozen=True, kw_only=True)
class PixelSettings:
    """How images become stored JPEGs. side: S, pixels. fit, quality, subsampling: see `udkd data convert --help`.

    exif: whether the orientation tag is ignored, as usual for ImageNet, or applied. pixel_limit: larger images are rejected
    without decoding. repair: see udkd.data_prep.jpeg.repair. unchecked: keep JPEGs that fit without decoding them; only used to
    measure the cost of checking.
    """

    side: int
    fit: Literal["pad", "squash"]
    quality: int
    subsampling: Literal["4:4:4", "4:2:0"]
    exif: Literal["ignore", "apply"] = "ignore"
    pixel_limit: int = PIXEL_LIMIT
    repair: bool = False
    unchecked: bool = False


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """An image as it is stored. Sizes in pixels. note: what was fixed; empty if nothing."""

    jpeg: bytes
    sha256: bytes
    crc32c: int
    source_height: int
    source_width: int
    height: int
    width: int
    note: str


def prepare(data: bytes, settings: PixelSettings) -> Prepared:
    """Check an image strictly and convert it to its stored form.

    An RGB or grey JPEG that fits keeps its bytes: up to S on the long side (pad), or S x S (squash). Any other image is
    decoded, converted to 8-bit RGB, resampled once (Lanczos) if its size requires it, and encoded once. Raises BadImage.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's warnings about EXIF and palettes; the note has what matters
        image = _open(data)
        if image.width * image.height > settings.pixel_limit:
            raise BadImage(
                f"{image.width} x {image.height} px is more than the limit of {settings.pixel_limit:,} pixels "
                "(a decompression bomb? --max-pixels moves the limit)"
            )
        if settings.unchecked and _fits_unchanged(image, settings):
            size = image.height, image.width
            return _prepared(data, size, size, [])
        is_jpeg = image.format in ("JPEG", "MPO")
        data, rgb, notes = _prepare_jpeg(data, image, settings) if is_jpeg else _prepare_other(image)
        transpose = TRANSPOSES.get(_orientation(image)) if settings.exif == "apply" and image.format != "TIFF" else None
        if transpose is not None:
            rgb = rgb.transpose(transpose)
            notes.append(f"EXIF orientation {_orientation(image)} applied")
    source = (rgb.height, rgb.width)
    size = _stored_size(*source, settings)
    if data and transpose is None and size == source:
        return _prepared(data, source, size, notes)
    if size != source:
        rgb = rgb.resize((size[1], size[0]), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    rgb.info.clear()  # else Pillow writes the source's comment into the new file
    rgb.save(buffer, "JPEG", quality=settings.quality, subsampling=settings.subsampling)
    return _prepared(buffer.getvalue(), source, size, notes)


def _fits_unchanged(image: Image.Image, settings: PixelSettings) -> bool:
    """Whether a JPEG can be kept unchanged according to its header."""
    size = image.height, image.width
    return image.format == "JPEG" and image.mode in ("RGB", "L") and _stored_size(*size, settings) == size


def _prepare_jpeg(data: bytes, image: Image.Image, settings: PixelSettings) -> tuple[bytes, Image.Image, list[str]]:
    """The bytes to keep (empty if they cannot be kept), the image as RGB, and notes on what was fixed."""
    notes: list[str] = []
    try:
        pixels, reencode_reason = decode(data)
    except DamagedJpeg:
        fixed, notes = fix_headers(data)
        try:
            data, (pixels, reencode_reason) = fixed, _decode_fixed(fixed, image)
        except DamagedJpeg as damage:
            if has_unnamed_subsampling(damage):
                to_rgb(image)  # raises BadImage for a damaged file, whose subsampling cannot be determined either
                raise BadImage(UNSUPPORTED_SUBSAMPLING) from None
            repaired = repair(fixed, damage) if settings.repair else None
            if repaired is None:
                raise BadImage(failure_text("damaged JPEG", damage)) from None
            result, note = repaired
            notes.append(note)
            if isinstance(result, np.ndarray):
                return b"", Image.fromarray(result), notes
            data = result
            pixels, reencode_reason = decode(data)
    if pixels.shape != (image.height, image.width, 3):
        sizes = f"{image.height} x {image.width} and {pixels.shape[0]} x {pixels.shape[1]} px"
        raise BadImage(f"damaged JPEG (decoders find {sizes})")
    if reencode_reason:
        return b"", to_rgb(image)[0], [*notes, reencode_reason]
    return data, Image.fromarray(pixels), notes  # equal to decoding again with Pillow


def _decode_fixed(data: bytes, image: Image.Image) -> tuple[np.ndarray, str]:
    """`decode` for a file with fixed headers, which must give the same pixels as `image`, the original."""
    pixels, reencode_reason = decode(data)
    if not reencode_reason and not np.array_equal(pixels, np.asarray(to_rgb(image)[0])):
        raise DamagedJpeg("decoders differ")
    return pixels, reencode_reason


def _prepare_other(image: Image.Image) -> tuple[bytes, Image.Image, list[str]]:
    """`_prepare_jpeg` for other image formats, whose bytes are never kept."""
    orientation_applied = image.format == "TIFF" and _orientation(image) in TRANSPOSES  # Pillow always applies it to a TIFF
    orientation_note = [f"TIFF orientation {_orientation(image)} applied"] if orientation_applied else []
    rgb, notes = to_rgb(image)
    return b"", rgb, [f"{image.format} to JPEG", *orientation_note, *notes]


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(ORIENTATION_TAG, 1))
    except Exception:  # a damaged EXIF block does not affect the pixels; see open_image
        return 1


def _prepared(jpeg: bytes, source: tuple[int, int], stored: tuple[int, int], notes: list[str]) -> Prepared:
    return Prepared(
        jpeg=jpeg,
        sha256=hashlib.sha256(jpeg).digest(),
        crc32c=crc32c(jpeg),
        source_height=source[0],
        source_width=source[1],
        height=stored[0],
        width=stored[1],
        note="; ".join(notes),
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
        return open_image(data)
    except BadImage:
        frame = read_frame(data) if data.startswith(b"\xff\xd8") else None
        if frame is not None and frame.bits != 8:
            raise BadImage(f"JPEG of {frame.bits} bits; expected 8") from None
        raise
