"""Odd image files from real datasets, through the full converter: each has one expected outcome in every format.

Policies: fail ends it without a folder; skip leaves out what is bad; fix keeps the intact part of it.
"""

import io
import json
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from tests.data_prep.helpers import contents, converted, encoded, patched, photo, picture, png, run, small_set, write_tree
from tests.data_prep.rare_jpegs import ARITHMETIC, MIXED, TALL, THIRD
from udkd.data.dataset import DatasetFolder
from udkd.data_prep import formats
from udkd.data_prep.verify import verify
from udkd.utils.errors import DataError
from udkd.utils.progress import Silent


def twelve_bit(data: bytes) -> bytes:
    """Only the header says 12 bits: no decoder here reads real 12-bit files."""
    return patched(data, data.index(b"\xff\xc0") + 4, b"\x0c")


def ycck() -> bytes:
    """Pillow writes CMYK; the last byte of the Adobe segment turns the first three components into YCC."""
    data = encoded(picture("ycck").convert("CMYK"))
    at = data.index(b"Adobe") + 11
    return patched(data, at, b"\x02")


def rotated(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(picture("exif", 20, 50), exif=exif)


def png_bomb() -> bytes:
    header = struct.pack(">IIBBBBB", 40_000, 40_000, 8, 2, 0, 0, 0)
    return png((b"IHDR", header), (b"IDAT", zlib.compress(bytes(1000))))


def flipped(data: bytes) -> bytes:
    """The file with one bit flipped where libjpeg notices it."""
    for at in range(len(data) // 2, len(data) - 2):
        damaged = patched(data, at, bytes([data[at] ^ 64]))
        try:
            simplejpeg.decode_jpeg(damaged)
        except ValueError:
            return damaged
    raise AssertionError("no flip is seen")


SIXTEEN = Image.fromarray(np.asarray(picture(4, mode="L")).astype(np.uint16) << 8)
FRAMES = [picture(n).quantize(32) for n in range(3)]
LARGE = photo("large", 200, 90)

# File name to bytes and the beginning of the note, empty if the bytes are kept.
GOOD: dict[str, tuple[bytes, str]] = {
    "a_plain.JPEG": (photo("plain"), ""),
    "b_progressive.JPEG": (photo("prog", progressive=True), ""),
    "c_grey.JPEG": (encoded(picture("grey", mode="L")), ""),
    "d_422.JPEG": (photo("422", subsampling=1), ""),
    "e_440.JPEG": (simplejpeg.encode_jpeg(np.asarray(picture("440")), colorsubsampling="440"), ""),
    "f_411.JPEG": (simplejpeg.encode_jpeg(np.asarray(picture("411")), colorsubsampling="411"), ""),
    "g_one.JPEG": (photo("one", 1, 1), ""),
    "h_trailing.JPEG": (photo("trailing") + b"\0\0garbage", ""),
    "i_exif.JPEG": (rotated(6), ""),
    "j_arithmetic.JPEG": (ARITHMETIC, "arithmetic to Huffman coding"),
    "k_tall.JPEG": (TALL, "subsampling 441 to a common one"),
    "m_cmyk.JPEG": (encoded(picture("cmyk").convert("CMYK")), "CMYK to YCbCr"),
    "n_ycck.JPEG": (ycck(), "YCCK to YCbCr"),
    "o_wide.JPEG": (photo("wide", 12, 20_000), ""),
    "p_png.JPEG": (encoded(picture("png"), "PNG"), "PNG to JPEG"),
    "q_webp.JPEG": (encoded(picture("webp"), "WEBP"), "WEBP to JPEG"),
    "r_bmp.JPEG": (encoded(picture("bmp"), "BMP"), "BMP to JPEG"),
    "s_16bit.png": (encoded(SIXTEEN, "PNG"), "PNG to JPEG; 16-bit to 8-bit"),
    "t_palette.png": (encoded(FRAMES[0], "PNG"), "PNG to JPEG; palette to RGB"),
    "u_animated.gif": (encoded(FRAMES[0], "GIF", save_all=True, append_images=FRAMES[1:]), "GIF to JPEG; first of several"),
    "ua_turned.tif": (encoded(picture("tif", 40, 56), "TIFF", tiffinfo={0x112: 6}), "TIFF to JPEG; TIFF orientation 6 applied"),
    "v_alpha.png": (encoded(picture("alpha", mode="RGBA"), "PNG"), "PNG to JPEG; transparency dropped"),
}
# File name to bytes, reason, and the note after `fix` (None: not fixed).
BAD: dict[str, tuple[bytes, str, str | None]] = {
    "a_cut.JPEG": (LARGE[: len(LARGE) * 3 // 4], "damaged JPEG (Premature end", "repaired: cut file, its upper"),
    "b_cut_early.JPEG": (LARGE[: len(LARGE) // 4], "damaged JPEG (Premature end", None),
    "c_cut_progressive.JPEG": (photo("p", progressive=True)[:-200], "damaged JPEG (", None),
    "d_no_end.JPEG": (photo("end")[:-2], "damaged JPEG (Premature end", "repaired: end mark added"),
    "e_empty.JPEG": (b"", "empty file", None),
    "f_html.JPEG": (b"<!DOCTYPE html><html>404</html>", "not an image (it starts with b'<!DOCTYPE", None),
    "g_header.JPEG": (photo("head")[:400], "", None),
    "h_flipped.JPEG": (flipped(photo("flip")), "damaged JPEG (", None),
    "i_12bit.JPEG": (twelve_bit(photo("12")), "JPEG of 12 bits; expected 8", None),
    "j_bomb.png": (png_bomb(), "40000 x 40000 px is more than the limit of 100,000,000 pixels", None),
    "k_cut.png": (encoded(picture("cutpng"), "PNG")[:-900], "cannot be decoded", None),
    "l_third.JPEG": (THIRD, "a JPEG of unusual chroma subsampling, which is not read", None),
    "m_mixed.JPEG": (MIXED, "a JPEG of unusual chroma subsampling, which is not read", None),
}


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    files = small_set(train=1, val=1)
    files |= {f"train/n01440764/{name}": data for name, (data, _) in GOOD.items()}
    files |= {f"train/n01443537/{name}": data for name, (data, _, _) in BAD.items()}
    return write_tree(tmp_path_factory.mktemp("odd") / "t", files)


def notes(folder: DatasetFolder) -> dict[str, tuple[bool, str]]:
    split = folder.split("train")
    return {split.source[n].split("/")[1]: (bool(split.excluded[n]), split.note[n]) for n in range(split.num_samples)}


def check_good(folder: DatasetFolder) -> None:
    split = folder.split("train")
    outcomes = notes(folder)
    for name, (data, note) in GOOD.items():
        excluded, message = outcomes[name]
        assert not excluded, name
        assert message.startswith(note), name
        assert bool(message) == bool(note), name
        n = split.source.index(f"n01440764/{name}")
        if not note and name != "o_wide.JPEG":
            assert split.read(n) == data, name
        image = Image.open(io.BytesIO(data))
        assert split.sizes[n].tolist()[:2] == [image.height, image.width]
        if "16bit" not in name:  # where Pillow's conversion clips
            scaled = image.convert("RGB").resize(split.sizes[n, [3, 2]].tolist(), Image.Resampling.LANCZOS)
            stored = split.pixels(n)[: split.sizes[n, 2], : split.sizes[n, 3]]
            assert np.abs(stored.astype(int) - np.asarray(scaled)).mean() < 5, name


def test_skip_leaves_out_bad_images(tree: Path, tmp_path: Path) -> None:
    every = tuple(formats.WRITERS)
    folder = converted(tree, tmp_path / "d", side=256, on_bad="skip", formats=every)
    check_good(folder)
    outcomes = notes(folder)
    for name, (_, reason, _) in BAD.items():
        assert outcomes[name][0], name
        assert reason in outcomes[name][1], name
    assert "--max-pixels moves the limit" in outcomes["j_bomb.png"][1]
    assert verify(folder.path, Silent()) == []
    canvas, _ = folder.split("train").canvas()
    for n in range(folder.split("train").num_samples):  # the same outcome for every format
        assert folder.split("train").excluded[n] or np.array_equal(canvas[n], folder.split("train").pixels(n))
    report = json.loads((folder.path / "report.json").read_text())
    assert [entry["source"].split("/")[1] for entry in report["bad"]] == list(BAD)
    assert sum(report["fixed"]["train"].values()) == sum(bool(note) for _, note in GOOD.values())


def test_fix_keeps_intact_parts(tree: Path, tmp_path: Path) -> None:
    folder = converted(tree, tmp_path / "d", side=256, on_bad="fix")
    check_good(folder)
    split, outcomes = folder.split("train"), notes(folder)
    for name, (_, reason, fixed) in BAD.items():
        assert outcomes[name][0] == (fixed is None), name
        assert (reason if fixed is None else fixed) in outcomes[name][1], name
    n = split.source.index("n01443537/d_no_end.JPEG")
    assert split.read(n) == BAD["d_no_end.JPEG"][0] + b"\xff\xd9"  # lossless
    n = split.source.index("n01443537/a_cut.JPEG")
    height, width = split.sizes[n, :2].tolist()
    assert (100 <= height < 200, width) == (True, 90)
    intact = np.asarray(Image.open(io.BytesIO(LARGE)))[:height].astype(int)
    assert np.abs(split.pixels(n)[:height, :width] - intact).mean() < 2  # real rows, to the last one
    assert np.abs(split.pixels(n)[height - 1, :width] - intact[-1]).mean() < 3
    # The same whether the policy was chosen first or after another policy left its shards.
    with pytest.raises(DataError, match=r"13 of 39 images cannot be used.*--on-bad skip to leave them out, or fix to"):
        converted(tree, tmp_path / "e", side=256, shard_samples=7)
    converted(tree, tmp_path / "e", side=256, shard_samples=7, on_bad="fix")
    other = converted(tree, tmp_path / "f", side=256, shard_samples=7, on_bad="fix")
    assert contents(tmp_path / "e") == contents(tmp_path / "f")
    assert other.digest == folder.digest


def test_cut_anywhere_only_real_rows_are_kept() -> None:
    from udkd.data_prep.image import BadImage, PixelSettings, prepare

    settings = PixelSettings(side=256, fit="pad", quality=100, subsampling="4:4:4", repair=True)
    kept = 0
    for options in ({}, {"subsampling": 0}, {"subsampling": 1}, {"restart_marker_blocks": 4}):
        data = photo("rows", 160, 120, **options)
        intact = np.asarray(Image.open(io.BytesIO(data))).astype(int)
        for cut in range(700, len(data) - 2, 97):
            try:
                prepared = prepare(data[:cut], settings)
            except BadImage:
                continue
            kept += 1
            rows = np.asarray(Image.open(io.BytesIO(prepared.jpeg))).astype(int)
            assert len(rows) >= 80
            if "end mark" not in prepared.note:
                assert np.abs(rows - intact[: len(rows)]).max() < 24, (options, cut)
    assert kept > 40


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_is_applied_on_request(orientation: int) -> None:
    from PIL import ImageOps

    from udkd.data_prep.image import PixelSettings, prepare

    data = rotated(orientation)
    settings = PixelSettings(side=256, fit="pad", quality=95, subsampling="4:4:4", exif="apply")
    prepared = prepare(data, settings)
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    assert (prepared.source_height, prepared.source_width) == (expected.height, expected.width)
    stored = np.asarray(Image.open(io.BytesIO(prepared.jpeg))).astype(int)
    assert np.abs(stored - np.asarray(expected)).mean() < 2
    assert prepared.note == ("" if orientation == 1 else f"EXIF orientation {orientation} applied")
    assert (prepared.jpeg is data) == (orientation == 1)


def test_the_options_on_the_command_line(tmp_path: Path) -> None:
    files = small_set(train=2, val=1) | {"train/n01440764/exif.JPEG": rotated(8), "train/n01443537/cut.JPEG": LARGE[:-2]}
    tree = write_tree(tmp_path / "t", files)
    command = ("convert", tree, tmp_path / "d", "--side", 256, "--formats", "none", "--workers", 1)
    code, out, err = run(*command, "--on-bad", "fix", "--exif", "apply", "--max-pixels", 10_000)
    assert code == 0, err
    assert "1 fixed: EXIF orientation 8 applied" in out
    assert "200 px is more than the limit of 10,000 pixels (a decompression bomb? --max-pixels moves the limit)" in out
