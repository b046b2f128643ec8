"""The decision about one image: keep its bytes, make a JPEG of it, or refuse it."""

import contextlib
import hashlib
import io
import warnings
from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image, PngImagePlugin

from data_prep.huffman import DamagedScan, check_baseline
from data_prep.jpeg import DamagedJpeg, decode, has_unnamed_subsampling, read_frame, repair
from data_prep.jpeg_headers import fix_headers
from udkd.data.image_files import PIXEL_LIMIT, BadImage, open_image, reason, to_rgb
from udkd.utils.crc32c import crc32c

__all__ = ["PIXEL_LIMIT", "BadImage", "PixelSettings", "Prepared", "prepare"]

Image.MAX_IMAGE_PIXELS = None  # ours is the limit, checked before any pixel is decoded
PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY  # intact PNGs hold megabytes of text in one chunk

ODD = "unusual subsampling to a common one"
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
    """How images become stored JPEGs. side: S, pixels. pixel_limit: images of more pixels are refused undecoded.

    exif: whether the orientation tag is ignored, as is usual for ImageNet, or applied. repair: see data_prep.jpeg.repair.
    unchecked: common JPEGs that fit are kept for their header alone. No command offers it: it measures what checking costs.
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
    """An image as it is stored; sizes in pixels. note: what was fixed, or nothing."""

    jpeg: bytes
    sha256: bytes
    crc32c: int
    source_height: int
    source_width: int
    height: int
    width: int
    note: str


def prepare(data: bytes, settings: PixelSettings) -> Prepared:
    """Check an image strictly and give it the form in which it is stored.

    An RGB or grey JPEG that fits keeps its bytes untouched: up to S on the long side (pad), or S x S (squash). Anything
    else is decoded, turned to 8-bit RGB, resampled once (Lanczos) where its size asks for it, and encoded once. Raises
    BadImage.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's remarks about EXIF and palettes; the note says what matters
        image = _open(data)
        if image.width * image.height > settings.pixel_limit:
            raise BadImage(
                f"{image.width} x {image.height} px is more than the limit of {settings.pixel_limit:,} pixels "
                "(a decompression bomb? --max-pixels moves the limit)"
            )
        if settings.unchecked and _fits_unchanged(image, settings):
            size = image.height, image.width
            return _prepared(data, size, size, [])
        data, rgb, notes = (
            _prepare_jpeg(data, image, settings) if image.format in ("JPEG", "MPO") else _prepare_other(data, image)
        )
        turn = TRANSPOSES.get(_orientation(image)) if settings.exif == "apply" and image.format != "TIFF" else None
        if turn is not None:
            rgb = rgb.transpose(turn)
            notes.append(f"EXIF orientation {_orientation(image)} applied")
    source = (rgb.height, rgb.width)
    size = _stored_size(*source, settings)
    if data and turn is None and size == source:
        return _prepared(data, source, size, notes)
    if size != source:
        rgb = rgb.resize((size[1], size[0]), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    rgb.info.clear()  # Pillow would write the source's comment into the new file
    rgb.save(buffer, "JPEG", quality=settings.quality, subsampling=settings.subsampling)
    return _prepared(buffer.getvalue(), source, size, notes)


def _fits_unchanged(image: Image.Image, settings: PixelSettings) -> bool:
    """Whether a header promises a JPEG that needs nothing done."""
    size = image.height, image.width
    return image.format == "JPEG" and image.mode in ("RGB", "L") and _stored_size(*size, settings) == size


def _prepare_jpeg(data: bytes, image: Image.Image, settings: PixelSettings) -> tuple[bytes, Image.Image, list[str]]:
    """The bytes to keep (none where they cannot be), the picture as RGB, and what was done to get there."""
    notes: list[str] = []
    try:
        pixels, unusual = decode(data)
    except DamagedJpeg:
        whole, notes = fix_headers(data)
        try:
            data, (pixels, unusual) = whole, _decode_alike(whole, image)
        except DamagedJpeg as damage:
            if has_unnamed_subsampling(damage):
                return b"", *_prepare_unnamed(data, image)
            saved = repair(whole, damage) if settings.repair else None
            if saved is None:
                raise BadImage(reason("damaged JPEG", damage)) from None
            found, note = saved
            notes.append(note)
            if isinstance(found, np.ndarray):
                return b"", Image.fromarray(found), notes
            data = found
            pixels, unusual = decode(data)
    if pixels.shape != (image.height, image.width, 3):
        found_px = f"{image.height} x {image.width} and {pixels.shape[0]} x {pixels.shape[1]} px"
        raise BadImage(f"damaged JPEG (decoders find {found_px})")
    if unusual:
        return b"", to_rgb(image)[0], [*notes, unusual]
    return data, Image.fromarray(pixels), notes  # equal to Pillow's own decode, and at hand


def _decode_alike(data: bytes, image: Image.Image) -> tuple[np.ndarray, str]:
    """See `decode`; of a mended file, which must look as the file itself does to a second decoder. image: the file itself."""
    pixels, unusual = decode(data)
    if not unusual and not np.array_equal(pixels, np.asarray(to_rgb(image)[0])):
        raise DamagedJpeg("decoders differ")
    return pixels, unusual


def _prepare_unnamed(data: bytes, image: Image.Image) -> tuple[Image.Image, list[str]]:
    """The picture of a JPEG that only Pillow decodes, which finds cut files only: its bits are checked here."""
    rgb, _ = to_rgb(image)
    try:
        with contextlib.suppress(DamagedScan):
            check_baseline(data)
            return rgb, [ODD]
        data, notes = fix_headers(data)
        check_baseline(data)
    except DamagedScan as error:
        raise BadImage(reason("damaged JPEG", error)) from None
    return rgb, [*notes, ODD]


def _prepare_other(data: bytes, image: Image.Image) -> tuple[bytes, Image.Image, list[str]]:
    """Any other kind of image, see `_prepare_jpeg`; its bytes are never kept."""
    del data
    turned = (
        image.format == "TIFF" and _orientation(image) in TRANSPOSES
    )  # part of that format: Pillow turns it, whatever we say
    told = [f"TIFF orientation {_orientation(image)} applied"] if turned else []
    rgb, notes = to_rgb(image)
    return b"", rgb, [f"{image.format} to JPEG", *told, *notes]


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(ORIENTATION_TAG, 1))
    except Exception:  # a damaged EXIF block says nothing of the picture; see open_image
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
