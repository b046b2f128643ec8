"""Preparing a single image."""

import io
import struct
import subprocess
import sys
import zlib
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from tests.data_prep.helpers import encoded, photo, picture, png
from udkd.data_prep.image import PIXEL_LIMIT, BadImage, PixelSettings, Prepared, prepare

PAD = PixelSettings(side=64, fit="pad", quality=95, subsampling="4:4:4")
SQUASH = PixelSettings(side=48, fit="squash", quality=95, subsampling="4:4:4")


def opened(prepared: Prepared) -> Image.Image:
    image = Image.open(io.BytesIO(prepared.jpeg))
    assert image.format == "JPEG"
    assert (prepared.height, prepared.width) == (image.height, image.width)
    return image


def rms(a: Image.Image, b: Image.Image) -> float:
    difference = np.asarray(a.convert("RGB")).astype(float) - np.asarray(b.convert("RGB")).astype(float)
    return float(np.sqrt((difference**2).mean()))


@pytest.mark.parametrize(
    "options",
    [{}, {"subsampling": 0}, {"subsampling": 1}, {"progressive": True}, {"optimize": True}, {"restart_marker_blocks": 2}],
)
def test_pad_keeps_the_bytes_of_what_fits(options: dict[str, object]) -> None:
    for size in ((64, 64), (1, 1), (63, 17), (5, 64)):
        data = photo(1, *size, **options)
        prepared = prepare(data, PAD)
        assert prepared.jpeg is data
        assert (prepared.source_height, prepared.source_width) == (prepared.height, prepared.width) == size
        assert prepared.note == ""


def test_pad_keeps_grey_jpegs() -> None:
    data = encoded(picture(1, mode="L"))
    prepared = prepare(data, PAD)
    assert prepared.jpeg is data
    assert prepared.note == ""


@pytest.mark.parametrize(
    ("source", "stored"), [((65, 64), (64, 63)), ((300, 200), (64, 43)), ((20, 900), (1, 64)), ((3000, 2), (64, 1))]
)
def test_pad_scales_larger_ones_down_once(source: tuple[int, int], stored: tuple[int, int]) -> None:
    image = picture(2, *source)
    prepared = prepare(encoded(image, quality=100, subsampling=0), PAD)
    assert (prepared.source_height, prepared.source_width) == source
    assert (prepared.height, prepared.width) == stored
    expected = image.resize((stored[1], stored[0]), Image.Resampling.LANCZOS)
    assert rms(opened(prepared), expected) < 6


@pytest.mark.parametrize("source", [(300, 200), (1, 1), (20, 900), (47, 48)])
def test_squash_resamples_to_the_square(source: tuple[int, int]) -> None:
    image = picture(3, *source)
    prepared = prepare(encoded(image, quality=100, subsampling=0), SQUASH)
    assert (prepared.height, prepared.width) == (48, 48)
    assert rms(opened(prepared), image.resize((48, 48), Image.Resampling.LANCZOS)) < 6


def test_squash_keeps_images_of_the_stored_size() -> None:
    data = photo(3, 48, 48)
    assert prepare(data, SQUASH).jpeg is data


@pytest.mark.parametrize(("subsampling", "expected"), [("4:4:4", 0), ("4:2:0", 2)])
def test_encoder_settings(subsampling: str, expected: int) -> None:
    from PIL import JpegImagePlugin

    settings = PixelSettings(side=48, fit="squash", quality=80, subsampling=subsampling)  # type: ignore[arg-type]
    prepared = prepare(photo(1, 100, 100), settings)
    assert JpegImagePlugin.get_sampling(opened(prepared)) == expected
    assert len(prepared.jpeg) < len(prepare(photo(1, 100, 100), SQUASH).jpeg)


def sixteen_bit() -> Image.Image:
    return Image.fromarray((np.asarray(picture(4, mode="L")).astype(np.uint16) << 8) + 7)


FORMATS: list[tuple[str, bytes, Image.Image, str]] = [
    ("cmyk", encoded(picture(4).convert("CMYK")), picture(4), "CMYK to YCbCr"),
    ("rgb jpeg", encoded(picture(4), keep_rgb=True), picture(4), "RGB to YCbCr"),
    ("png", encoded(picture(4), "PNG"), picture(4), "PNG to JPEG"),
    ("webp", encoded(picture(4), "WEBP", lossless=True), picture(4), "WEBP to JPEG"),
    ("bmp", encoded(picture(4), "BMP"), picture(4), "BMP to JPEG"),
    ("tiff", encoded(picture(4), "TIFF"), picture(4), "TIFF to JPEG"),
    ("1 bit", encoded(picture(4).convert("1"), "PNG"), picture(4).convert("1"), "PNG to JPEG"),
    ("16 bit", encoded(sixteen_bit(), "PNG"), picture(4, mode="L"), "PNG to JPEG; 16-bit to 8-bit"),
    ("palette", encoded(picture(4).quantize(64), "PNG"), picture(4).quantize(64), "PNG to JPEG; palette to RGB"),
    ("alpha", encoded(picture(4, mode="RGBA"), "PNG"), picture(4), "PNG to JPEG; transparency dropped"),
    (
        "animated",
        encoded(picture(4).quantize(64), "GIF", save_all=True, append_images=[picture(5).quantize(64)]),
        picture(4).quantize(64),
        "GIF to JPEG; first of several frames",
    ),
]


@pytest.mark.parametrize(("data", "image", "note"), [case[1:] for case in FORMATS], ids=[case[0] for case in FORMATS])
def test_other_kinds_become_rgb_jpegs(data: bytes, image: Image.Image, note: str) -> None:
    prepared = prepare(data, PAD)
    stored = opened(prepared)
    assert stored.mode == "RGB"
    assert prepared.note.startswith(note)
    assert rms(stored, image) < 12


def test_encoded_images_carry_nothing_but_pixels() -> None:
    for mode in ("RGB", "CMYK"):
        plain = encoded(picture(1, 90, 90).convert(mode))
        commented = encoded(picture(1, 90, 90).convert(mode), comment=b"made by a camera", dpi=(300, 300))
        assert prepare(plain, PAD).jpeg == prepare(commented, PAD).jpeg


def test_exif_orientation_is_ignored() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(picture(1, 20, 60), exif=exif)
    assert prepare(data, PAD).jpeg is data
    scaled = prepare(encoded(picture(1, 20, 160), exif=exif), PAD)
    assert (scaled.height, scaled.width) == (8, 64)


def png_header(height: int, width: int) -> bytes:
    return png((b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)), (b"IDAT", bytes(9)))


def jpeg_of_size(height: int, width: int) -> bytes:
    """A small JPEG whose header claims another size."""
    data = bytearray(photo(1))
    at = data.index(b"\xff\xc0") + 5
    data[at : at + 4] = struct.pack(">HH", height, width)
    return bytes(data)


BAD: list[tuple[str, bytes, str]] = [
    ("empty", b"", "empty file"),
    ("html", b"<!DOCTYPE html><html>404</html>", "not an image"),
    ("truncated", photo(1)[:-300], "damaged JPEG"),
    ("without end", photo(1)[:-2], "damaged JPEG"),
    ("header only", photo(1)[:200], ""),
    ("two bytes", b"\xff\xd8", ""),
    ("zeros", bytes(5000), "not an image"),
    ("truncated png", encoded(picture(1), "PNG")[:-400], "cannot be decoded"),
    ("bomb", png_header(30000, 30000), f"{PIXEL_LIMIT:,} pixels"),
    ("just over", png_header(10001, 10000), f"more than the limit of {PIXEL_LIMIT:,} pixels"),
    ("jpeg bomb", jpeg_of_size(65000, 65000), f"{PIXEL_LIMIT:,} pixels"),
    ("wrong size", jpeg_of_size(400, 560), "damaged JPEG"),
]


@pytest.mark.parametrize(("data", "reason"), [case[1:] for case in BAD], ids=[case[0] for case in BAD])
@pytest.mark.parametrize("settings", [PAD, SQUASH], ids=["pad", "squash"])
def test_bad_images_have_a_reason(data: bytes, reason: str, settings: PixelSettings) -> None:
    with pytest.raises(BadImage) as caught:
        prepare(data, settings)
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


def test_damaged_bytes_raise_only_bad_image() -> None:
    """Random damage to every kind: prepared or refused, and kept bytes decode in Pillow to the stated size."""
    rng = np.random.default_rng(0)
    refused = 0
    for data in [photo(1), photo(2, progressive=True), *(case[1] for case in FORMATS)]:
        for _ in range(25):
            damaged = bytearray(data)
            for at in rng.integers(0, len(damaged), 3):
                damaged[at] ^= 1 << int(rng.integers(8))
            try:
                prepared = prepare(bytes(damaged), PAD)
            except BadImage:
                refused += 1
            else:
                assert opened(prepared).convert("RGB").size == (prepared.width, prepared.height)
    assert refused > 50


def test_strict_decoding_finds_bit_flips_that_pillow_misses() -> None:
    data = photo(7, 64, 64)
    found_by_us = found_by_pillow = 0
    for at in range(700, len(data) - 2, 5):
        damaged = bytearray(data)
        damaged[at] ^= 0x20
        try:
            Image.open(io.BytesIO(damaged)).load()
        except OSError:
            found_by_pillow += 1
        try:
            prepare(bytes(damaged), PAD)
        except BadImage:
            found_by_us += 1
    assert found_by_us > found_by_pillow


def test_unchecked_images_give_the_same_rows() -> None:
    unchecked = replace(PAD, unchecked=True)
    for data in (photo(1, 64, 64), photo(2, 80, 40), encoded(picture(3, mode="L")), encoded(picture(4), "PNG")):
        assert prepare(data, unchecked) == prepare(data, PAD)
    cut = photo(5, 64, 64)[:-400]
    assert prepare(cut, unchecked).jpeg == cut
    with pytest.raises(BadImage):
        prepare(cut, PAD)


@pytest.mark.parametrize("chunk", [b"zTXtnote\0\0", b"iCCPprofile\0\0", b"iTXtnote\0\1\0\0\0"])
def test_a_png_with_megabytes_of_text_or_profile_is_intact(chunk: bytes) -> None:
    """Only Pillow refuses these, other decoders do not. Its limit on the total size of texts stays."""
    plain = encoded(picture(1), "PNG")

    def with_text(size: int) -> bytes:
        body = chunk + zlib.compress(b"x" * size)
        return plain[:33] + struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body)) + plain[33:]

    assert prepare(with_text(3_000_000), PAD).jpeg == prepare(plain, PAD).jpeg
    with pytest.raises(BadImage, match="header cannot be read"):
        prepare(with_text(70_000_000), PAD)


def test_udkd_does_not_change_the_limits_of_pillow() -> None:
    """The converter raises Pillow's limits; a process that imports udkd keeps them."""
    limits = "(Image.MAX_IMAGE_PIXELS, PngImagePlugin.MAX_TEXT_CHUNK)"
    program = f"from PIL import Image, PngImagePlugin; a = {limits}; import udkd.data.image_files; assert a == {limits}"
    subprocess.run([sys.executable, "-c", program], check=True)
