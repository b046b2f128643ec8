"""Any picture file as RGB pixels, by the rules by which udkd-prep stores images; data_prep/image.py adds what storing needs."""

import io
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from udkd.words.errors import DataError

FORMATS = ("JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF", "PPM")  # no more: Pillow also knows formats that start other programs
PIXEL_LIMIT = 100_000_000
LONGEST_PX = 2048
"""Larger pictures are scaled down to it first, as udkd-prep scales to the canvas."""


def read_picture(path: Path) -> np.ndarray:
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
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                return np.asarray(_rgb(image, path))
        except DataError:
            raise
        except UnidentifiedImageError:
            raise DataError(f"{path} is no image; expected {', '.join(FORMATS)}; check the file") from None
        except Exception as error:  # Pillow's parsers answer damaged bytes with whatever they trip over
            reason = " ".join(str(error).split()) or type(error).__name__
            raise DataError(f"{path} cannot be decoded ({reason}); expected a whole image; check the file") from None


def _rgb(image: Image.Image, path: Path) -> Image.Image:
    width, height = image.size
    if width * height > PIXEL_LIMIT:
        raise DataError(f"{path} is {width} x {height} px; expected at most {PIXEL_LIMIT:,} pixels; scale it down")
    image.load()
    if image.mode.startswith("I;16"):
        # Pillow's own conversion clips at 255 where a picture wants the upper byte.
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    elif image.mode in ("I", "F"):
        raise DataError(f"{path} has 32-bit pixels without a known range; expected 8 or 16 bits; convert it")
    rgb = image.convert("RGB")
    scale = LONGEST_PX / max(rgb.size)
    if scale < 1:
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        rgb = rgb.resize(size, Image.Resampling.LANCZOS)
    return rgb
