"""Intact JPEGs with headers or padding that libjpeg warns about keep their pixels; warnings about scans remain damage."""

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from tests.data_prep.helpers import converted, encoded, photo, picture, small_set, write_tree
from tests.data_prep.rare_jpegs import TALL
from udkd.data_prep.image import BadImage, PixelSettings, prepare
from udkd.data_prep.jpeg_headers import fix_headers
from udkd.data_prep.verify import verify
from udkd.utils.progress import Silent

PAD = PixelSettings(side=256, fit="pad", quality=95, subsampling="4:4:4")
PLAIN = photo("header", 80, 100)
PROGRESSIVE = photo("header", 80, 100, progressive=True)
BARE = PLAIN[:2] + PLAIN[20:]  # without the JFIF segment
TABLES, SCAN = PLAIN.index(b"\xff\xdb"), PLAIN.index(b"\xff\xda")
SEQUENTIAL = SCAN + 5 + 2 * PLAIN[SCAN + 4]  # where the three parameters of its scan are
HEADER, PADDING = "header repaired", "zeros before its end removed"


def segment(marker: int, body: bytes) -> bytes:
    return bytes([0xFF, marker]) + (len(body) + 2).to_bytes(2) + body


def profile(number: int, count: int, size: int = 40) -> bytes:
    return segment(0xE2, b"ICC_PROFILE\0" + bytes([number, count]) + bytes(size))


def with_revision(major: int, minor: int) -> bytes:
    return PLAIN[:11] + bytes([major, minor]) + PLAIN[13:]


def with_parameters(*values: int) -> bytes:
    return PLAIN[:SEQUENTIAL] + bytes(values) + PLAIN[SEQUENTIAL + 3 :]


def behind(position: int, data: bytes) -> bytes:
    return PLAIN[:position] + data + PLAIN[position:]


def padded(data: bytes, padding: bytes) -> bytes:
    assert data.endswith(b"\xff\xd9")
    return data[:-2] + padding + data[-2:]


def grey_with_parameters(*values: int) -> bytes:
    data = encoded(picture("grey", 80, 100, "L"))
    position = data.index(b"\xff\xda") + 7
    return data[:position] + bytes(values) + data[position + 3 :]


INTACT: dict[str, tuple[bytes, str]] = {
    "parameters of a scan, as Samsung writes them": (with_parameters(0, 0, 0), HEADER),
    "parameters of a progressive scan": (with_parameters(1, 5, 0x21), HEADER),
    "parameters in a grey file": (grey_with_parameters(0, 0, 0), HEADER),
    "JFIF 2.01": (with_revision(2, 1), HEADER),
    "JFIF 0.0": (with_revision(0, 0), HEADER),
    "a zero before the tables": (behind(TABLES, b"\0"), HEADER),
    "text before the tables": (behind(TABLES, b"made by a camera"), HEADER),
    "an escaped 0xFF before the tables": (behind(TABLES, b"\xff\0\5"), HEADER),
    "zeros before the frame": (behind(PLAIN.index(b"\xff\xc0"), bytes(9)), HEADER),
    "zeros before the scan": (behind(SCAN, bytes(3)), HEADER),
    "a comment that is longer than it says": (behind(2, b"\xff\xfe\0\4abcdefg"), HEADER),
    "a profile twice": (behind(2, profile(1, 1) * 2), HEADER),
    "a profile without its second half": (behind(2, profile(1, 2)), HEADER),
    "a profile of two counts": (behind(2, profile(1, 2) + profile(2, 3)), HEADER),
    "a profile of part zero": (behind(2, profile(0, 0)), HEADER),
    "an empty profile": (behind(2, profile(1, 1, 0)), HEADER),
    "an unknown colour transform": (BARE[:2] + segment(0xEE, b"Adobe\0\x64\0\0\0\0\x09") + BARE[2:], HEADER),
    "zeros before the end": (padded(PLAIN, bytes(258)), PADDING),
    "zeros and fill before the end": (padded(PLAIN, bytes(9) + b"\xff" * 30), PADDING),
    "zeros before the end of a progressive file": (padded(PROGRESSIVE, bytes(99)), PADDING),
    "both": (padded(with_revision(2, 1), bytes(99)), f"{HEADER}; {PADDING}"),
    "everything, and a second picture behind it": (
        padded(with_parameters(0, 0, 0)[:2] + profile(3, 2) + b"\0" + with_revision(7, 7)[2:], bytes(50)) + photo("other"),
        f"{HEADER}; {PADDING}",
    ),
}


@pytest.mark.parametrize("name", INTACT)
@pytest.mark.parametrize("repair", [False, True])
def test_intact_files_keep_their_pixels(name: str, repair: bool) -> None:
    data, note = INTACT[name]
    with pytest.raises(ValueError, match=r"Corrupt|Warning|Invalid|Unknown"):
        simplejpeg.decode_jpeg(data, strict=True)
    prepared = prepare(data, replace(PAD, repair=repair))
    assert prepared.note == note
    wanted = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))  # Pillow reports no warnings
    assert np.array_equal(simplejpeg.decode_jpeg(prepared.jpeg, strict=True), wanted)
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(prepared.jpeg)).convert("RGB")), wanted)
    assert prepare(prepared.jpeg, PAD).jpeg is prepared.jpeg, "nothing is left to repair"


def test_an_intact_profile_and_fill_bytes_stay() -> None:
    intact = behind(2, b"\xff\xff" + profile(2, 2) + profile(1, 2, 0) + b"\xff")
    assert fix_headers(intact) == (intact, [])
    assert prepare(intact, PAD).jpeg is intact
    odd = behind(TABLES + 2 * len(profile(1, 1)), b"")[:2] + profile(1, 1) + with_revision(9, 9)[2:]
    assert profile(1, 1) in prepare(odd, PAD).jpeg, "only the damaged part is removed"


@pytest.mark.parametrize("data", [PLAIN, PROGRESSIVE, photo("header", progressive=True)[:-300], PLAIN[:300], PLAIN + b"x"])
def test_files_without_warnings_are_not_changed(data: bytes) -> None:
    assert fix_headers(data) == (data, [])


def test_cmyk_with_a_broken_profile() -> None:
    data = encoded(picture("cmyk", 40, 50).convert("CMYK"))
    data = data[:2] + profile(1, 1) * 2 + data[2:]
    assert prepare(data, PAD).note == f"{HEADER}; CMYK to YCbCr"


def test_a_subsampling_that_simplejpeg_cannot_name() -> None:
    intact = prepare(TALL, PAD)
    start = TALL.index(b"\xff\xc4")
    for odd, note in ((TALL[:start] + b"\0" + TALL[start:], HEADER), (padded(TALL, bytes(30)), PADDING)):
        prepared = prepare(odd, PAD)
        assert prepared.note == f"{note}; {intact.note}"
        assert prepared.jpeg == intact.jpeg
    with pytest.raises(BadImage, match="damaged JPEG"):
        prepare(padded(TALL, bytes(range(1, 13))), PAD)


def test_a_file_of_segments_only_is_unchanged() -> None:
    data = with_revision(2, 1)
    assert fix_headers(data[:2] + b"\xff\xe5\0\2" * 20_000 + data[2:])[1] == []


def cut_and_padded(data: bytes, part: float, padding: bytes) -> bytes:
    kept = data[: int(len(data) * part)]
    return kept + padding + b"\xff\xd9"


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"optimize": True}, {"restart_marker_blocks": 5}], ids=str)
@pytest.mark.parametrize("repair", [False, True])
def test_truncated_and_padded_files_are_damaged(options: dict[str, object], repair: bool) -> None:
    data = photo("header", 80, 100, **options)
    for part in (0.5, 0.6, 0.7, 0.8, 0.9, 0.97):
        for count in (0, 1, 5, 300, len(data) - int(len(data) * part)):
            with pytest.raises(BadImage, match="damaged JPEG"):
                prepare(cut_and_padded(data, part, bytes(count)), replace(PAD, repair=repair))


@pytest.mark.parametrize(
    "data",
    [
        padded(PLAIN, b"not nothing"),
        padded(PLAIN, bytes(20) + b"\1" + bytes(20)),
        padded(PLAIN, bytes(9) + b"\xff\0" + bytes(9)),
        behind(PLAIN.index(b"\xff\xc4", TABLES), b"\7"),  # a table that a byte too many has moved ends like this
        behind(SCAN, b"\1"),
        PROGRESSIVE.replace(b"\xff\xda", bytes(9) + b"\xff\xda")[9:],
        PLAIN[: SCAN + 200] + bytes(40) + PLAIN[SCAN + 200 :],
    ],
)
def test_other_extra_bytes_are_damage(data: bytes) -> None:
    with pytest.raises(BadImage):
        prepare(data, PAD)


def test_damage_after_a_fixed_header_is_found() -> None:
    """A decoder reports only its first warning: that of the header would hide that of the scan."""
    data = with_revision(2, 1)
    damaged = data[: SCAN + 300] + data[SCAN + 500 :]
    with pytest.raises(ValueError, match="revision"):
        simplejpeg.decode_jpeg(damaged, strict=True)
    with pytest.raises(BadImage, match=r"damaged JPEG .*premature end of data segment"):
        prepare(damaged, PAD)


def test_a_cut_file_with_an_odd_header_is_repaired() -> None:
    data = photo("rows", 200, 90)
    odd = data[:11] + b"\2\1" + data[13:]
    prepared = prepare(odd[: len(odd) * 3 // 4], replace(PAD, repair=True))
    assert prepared.note.startswith(f"{HEADER}; repaired: cut file, its upper")
    assert prepare(odd[:-2], replace(PAD, repair=True)).note == f"{HEADER}; repaired: end mark added"
    assert prepare(odd[:-2] + bytes(99), replace(PAD, repair=True)).note == f"{HEADER}; repaired: end mark added"
    for kept in (odd[: len(odd) * 3 // 4], odd[:-2]):
        with pytest.raises(BadImage, match="Premature end"):
            prepare(kept, PAD)


def test_through_the_converter(tmp_path: Path) -> None:
    """The folder is intact, and its notes name the fixes."""
    files = small_set(train=1, val=1)
    files |= {f"train/n01440764/w{n:02d}.JPEG": data for n, (data, _) in enumerate(INTACT.values())}
    folder = converted(write_tree(tmp_path / "t", files), tmp_path / "d", side=128, formats=("resident",))
    split = folder.split("train")
    assert not split.excluded.any()
    canvas, _ = split.canvas()
    for n, (data, note) in enumerate(INTACT.values()):
        sample = split.source.index(f"n01440764/w{n:02d}.JPEG")
        wanted = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
        assert split.note[sample] == note
        assert np.array_equal(canvas[sample, :80, :100], wanted)
    assert verify(folder.path, Silent()) == []
