"""Malformed images, tars and labels: each is kept, fixed, skipped or refused with a one-line error."""

import io
import json
import struct
import tarfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.data_prep.helpers import (
    contents,
    converted,
    encoded,
    patched,
    photo,
    picture,
    png,
    run,
    small_set,
    write_tar,
    write_tree,
)
from udkd.data_prep.formats import WRITERS
from udkd.data_prep.image import BadImage, PixelSettings, prepare
from udkd.data_prep.listing import list_samples
from udkd.data_prep.sources import open_sources
from udkd.data_prep.verify import verify
from udkd.utils.errors import DataError
from udkd.utils.progress import Silent

HEADER = struct.pack(">IIBBBBB", 56, 40, 8, 2, 0, 0, 0)
JPEG = photo("bad", 80, 120)
RESTARTS = photo("restarts", 160, 120, restart_marker_blocks=4)
MARKS = [at for at in range(len(RESTARTS) - 1) if RESTARTS[at] == 0xFF and 0xD0 <= RESTARTS[at + 1] <= 0xD7]
PNG = encoded(picture("png"), "PNG")


def upside_down() -> bytes:
    data = encoded(picture("bmp"), "BMP")
    return patched(data, 22, struct.pack("<i", -struct.unpack("<i", data[22:26])[0]))


# Bytes and expected outcome: the full note if kept or fixed, the beginning of the reason if bad.
KEPT: dict[str, tuple[bytes, str]] = {
    "a second image behind it": (JPEG + photo("other", 30, 30), ""),
    "2.6 MB of APP1": (JPEG[:2] + (b"\xff\xe1\xff\xff" + bytes(65533)) * 40 + JPEG[2:], ""),
    "two ends": (JPEG + b"\xff\xd9", ""),
    "no Huffman tables": (JPEG[: JPEG.index(b"\xff\xc4")] + JPEG[JPEG.index(b"\xff\xda") :], "its Huffman tables written"),
    "several pictures (MPO)": (encoded(picture(1), "MPO", save_all=True, append_images=[picture(2)]), ""),
    "PNG without its end": (PNG[:-12], "PNG to JPEG"),
    "animated PNG": (
        encoded(picture(1), "PNG", save_all=True, append_images=[picture(2)]),
        "PNG to JPEG; first of several frames",
    ),
    "animated WebP": (
        encoded(picture(1), "WEBP", save_all=True, append_images=[picture(2)]),
        "WEBP to JPEG; first of several frames",
    ),
    "TIFF of two pages": (
        encoded(picture(1), "TIFF", save_all=True, append_images=[picture(2)]),
        "TIFF to JPEG; first of several frames",
    ),
    "BMP from the top down": (upside_down(), "BMP to JPEG"),
    "16-bit PGM": (b"P5 9 9 65535\n" + np.arange(0, 65536, 810, dtype=">u2")[:81].tobytes(), "PPM to JPEG; 16-bit to 8-bit"),
}
BAD: dict[str, tuple[bytes, str]] = {
    "APP1 over the end": (JPEG[:2] + b"\xff\xe1\xff\xff" + JPEG[2:], "header cannot be read"),
    "PNG, wrong crc of data": (patched(PNG, len(PNG) - 19, bytes(3)), "cannot be decoded"),
    "PNG, wrong crc of header": (patched(PNG, 29, bytes(4)), "damaged PNG (its header cannot be read)"),
    "PNG, empty data": (png((b"IHDR", HEADER), (b"IDAT", b""), (b"IEND", b"")), "cannot be decoded"),
    "PNG, no data": (png((b"IHDR", HEADER), (b"IEND", b"")), "cannot be decoded"),
    "PNG, too few rows": (png((b"IHDR", HEADER), (b"IDAT", zlib.compress(bytes(99))), (b"IEND", b"")), "cannot be decoded"),
    "PNG, 80 MB of text": (
        png((b"IHDR", HEADER), (b"zTXt", b"k\0\0" + zlib.compress(bytes(80_000_000))), (b"IDAT", b""), (b"IEND", b"")),
        "header cannot be read",
    ),
    "cut WebP": (encoded(picture(1), "WEBP")[:-200], "header cannot be read"),
    "cut BMP": (encoded(picture(1), "BMP")[:-500], "cannot be decoded"),
    "BMP of no size": (patched(encoded(picture(1), "BMP"), 18, bytes(8)), "not an image"),
    "cut GIF": (encoded(picture(1).quantize(32), "GIF")[:-300], "cannot be decoded"),
    "GIF without frames": (
        b"GIF89a" + struct.pack("<HHBBB", 10, 10, 0, 0, 0) + b";",
        "damaged GIF (its header cannot be read)",
    ),
    "cut TIFF": (encoded(picture(1), "TIFF")[:-500], "cannot be decoded"),
    "TIFF of floats": (encoded(Image.fromarray(np.ones((9, 9), np.float32)), "TIFF"), "32-bit pixels without a known range"),
    "PPM of negative size": (b"P6 -4 4 255\n" + bytes(99), "not an image"),
    "PPM of words": (b"P3 4 4 255\n1 2 3 x", "cannot be decoded"),
    "ICO": (encoded(picture(1), "ICO"), "not an image"),
    "JPEG 2000": (encoded(picture(1), "JPEG2000"), "a JPEG 2000 image, which is not read: convert it to one of JPEG, PNG"),
    "lossless JPEG": (patched(JPEG, JPEG.index(b"\xff\xc0"), b"\xff\xc3"), ""),
    "hierarchical JPEG": (patched(JPEG, JPEG.index(b"\xff\xc0"), b"\xff\xc5"), "cannot be decoded"),
    "cut within a restart marker": (RESTARTS[: MARKS[len(MARKS) // 2] + 1], "damaged JPEG (Premature end"),
    "a restart interval is missing": (RESTARTS[: MARKS[10]] + RESTARTS[MARKS[11] :], "damaged JPEG (Corrupt JPEG data"),
    "restart markers out of turn": (patched(RESTARTS, MARKS[10] + 1, b"\xd7"), "damaged JPEG (Corrupt JPEG data"),
    "no quantisation tables": (JPEG[: JPEG.index(b"\xff\xdb")] + JPEG[JPEG.index(b"\xff\xc0") :], "damaged JPEG"),
    "a start before the start": (b"\xff\xd8" + JPEG, "cannot be decoded"),
    "junk before the start": (bytes(3) + JPEG, "not an image"),
    "no components": (patched(JPEG, JPEG.index(b"\xff\xc0") + 9, b"\0"), "not an image"),
    "no height": (patched(JPEG, JPEG.index(b"\xff\xc0") + 5, bytes(2)), "not an image"),
    "start and end": (b"\xff\xd8\xff\xd9", "not an image"),
    "a program": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image"),
    "SVG": (b"<svg xmlns='http://www.w3.org/2000/svg'></svg>", "not an image"),
    "HEIC": (b"\0\0\0\x18ftypheic" + bytes(99), "a HEIC image, which is not read"),
    "HEIC of another brand": (b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic" + bytes(99), "a HEIC image"),
    "AVIF": (b"\0\0\0\x20ftypavif\0\0\0\0avifmif1miaf" + bytes(99), "an AVIF image"),
    "AVIF of another brand": (b"\0\0\0\x1cftypmif1\0\0\0\0mif1avif" + bytes(99), "an AVIF image"),
    "JPEG XL": (b"\xff\x0a" + bytes(99), "a JPEG XL image"),
    "JPEG XL in boxes": (b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(99), "a JPEG XL image"),
    "JPEG 2000 without boxes": (b"\xff\x4f\xff\x51" + bytes(99), "a JPEG 2000 image"),
}


@pytest.mark.parametrize("name", KEPT)
@pytest.mark.parametrize("repair", [False, True])
def test_kept_or_fixed(name: str, repair: bool) -> None:
    data, note = KEPT[name]
    prepared = prepare(data, PixelSettings(side=256, fit="pad", quality=95, subsampling="4:4:4", repair=repair))
    assert prepared.note == note
    assert (prepared.jpeg is data) == (not note)
    wanted = Image.open(io.BytesIO(data))
    assert Image.open(io.BytesIO(prepared.jpeg)).size == wanted.size
    if "16-bit" not in note:
        stored = np.asarray(Image.open(io.BytesIO(prepared.jpeg)).convert("RGB")).astype(int)
        assert np.abs(stored - np.asarray(wanted.convert("RGB"))).mean() < 4


@pytest.mark.parametrize("name", BAD)
def test_refused_with_one_line(name: str) -> None:
    data, reason = BAD[name]
    with pytest.raises(BadImage) as caught:
        prepare(data, PixelSettings(side=256, fit="pad", quality=95, subsampling="4:4:4"))
    assert str(caught.value).startswith(reason)
    assert "\n" not in str(caught.value)


def test_all_inputs_in_one_conversion(tmp_path: Path) -> None:
    """On the command line and into every format: each contains the same images."""
    files = small_set(train=1, val=1)
    files |= {f"train/n01440764/k{n:02d}.jpg": data for n, (data, _) in enumerate(KEPT.values())}
    files |= {f"train/n01443537/b{n:02d}.jpg": data for n, (data, _) in enumerate(BAD.values())}
    tree = write_tree(tmp_path / "t", files)
    command = ("convert", tree, tmp_path / "d", "--side", 256, "--formats", ",".join(WRITERS), "--workers", 1)
    code, _, err = run(*command)
    assert code == 1
    assert f"error: {len(BAD)} of {len(files)} images cannot be used" in err
    assert "Traceback" not in err
    code, out, err = run(*command, "--on-bad", "skip")
    assert (code, "Traceback" in err) == (0, False), err
    assert f"{len(BAD)} excluded" in out
    assert verify(tmp_path / "d", Silent()) == []
    report = json.loads((tmp_path / "d" / "report.json").read_text())
    assert len(report["bad"]) == len(BAD)
    assert sum(report["fixed"]["train"].values()) == sum(bool(note) for _, note in KEPT.values())


ODD_NAMES = [
    "two\nlines.jpg",
    "\x1b[31mred.jpg",
    "日本語 ñ.jpg",
    "n" * 245 + ".jpg",
    "Case.jpg",
    "case.jpg",
    "a;b'c\"d.jpg",
    "-.jpg",
]


def test_odd_names_stay_one_line_each(tmp_path: Path) -> None:
    files = small_set(train=1, val=1) | {f"train/n01440764/{name}": photo(name, 20, 20) for name in ODD_NAMES}
    files["train/n01440764/bad\nname.jpg"] = b"no image"
    from_tree = converted(write_tree(tmp_path / "t", files), tmp_path / "d", on_bad="skip", formats=())
    from_tar = converted(write_tar(tmp_path / "t.tar", files), tmp_path / "e", on_bad="skip", formats=())
    assert contents(tmp_path / "d") == contents(tmp_path / "e")
    names = [name.split("/", 1)[1] for name in from_tree.split("train").source]
    assert all(name.isprintable() for name in names)
    assert {"two\\nlines.jpg", "\\x1b[31mred.jpg", "日本語 ñ.jpg", "Case.jpg", "case.jpg"} <= set(names)
    assert from_tar.split("train").num_samples == len(ODD_NAMES) + 3
    code, out, err = run("info", tmp_path / "d")
    assert code == 0, err
    assert "n01440764/bad\\nname.jpg: not an image" in out


def member(name: str, data: bytes = b"", **fields: object) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for key, value in fields.items():
        setattr(info, key, value)
    return info, data


def tar_of(path: Path, *more: tuple[tarfile.TarInfo, bytes], kind: int = tarfile.PAX_FORMAT) -> Path:
    with tarfile.open(path, "w", format=kind) as archive:
        for name, data in small_set(train=2, val=1).items():
            archive.addfile(member(name, data)[0], io.BytesIO(data))
        for info, data in more:
            archive.addfile(info, io.BytesIO(data))
    return path


@pytest.mark.parametrize("kind", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_long_names_and_pax_headers_are_read(tmp_path: Path, kind: int) -> None:
    long = member("train/n01440764/" + "ü" * 120 + ".jpg", JPEG, pax_headers={"mtime": "1.5", "comment": "x" * 5000})
    path = tar_of(tmp_path / "a.tar", long, member("train/empty-class", type=tarfile.DIRTYPE), kind=kind)
    listing = list_samples(open_sources([path]), classes="all", hold_out_percent=None)
    (sample,) = [each for each in listing.samples["train"] if "ü" in each.source]
    assert open_sources([path])[0].read(sample.entry) == JPEG
    assert [entry.wnid for entry in listing.classes] == ["n01440764", "n01443537"]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ([member("train/n01440764/a.jpg", JPEG)] * 2, r"train/n01440764/a\.jpg exists twice"),
        ([member("train/n01440764/a.jpg", type=tarfile.LNKTYPE, linkname="train/n01440764/n01440764_0.JPEG")], None),
        ([member("train/n01440764/a.jpg", JPEG, pax_headers={"GNU.sparse.map": "0,1", "GNU.sparse.size": "9"})], "sparse"),
        ([member("train/n01440764/a.jpg", JPEG, type=tarfile.CONTTYPE)], None),
        ([member("train/n01440764/../../a.jpg", JPEG)], "its path leaves the archive"),
        ([member("train/n01440764/a.jpg", JPEG, pax_headers={"GNU.sparse.map": "0,x"})], "is not a complete tar"),
        ([member("train/n01440764/a.jpg", JPEG, pax_headers={"size": "-100000"})], "size is negative"),
        (
            [member("train/n01440764/a.jpg", JPEG, pax_headers={"size": "9" * 24})],
            "is (not a complete tar|truncated or damaged)",
        ),
        (
            [member("train/n01440764/a.jpg", JPEG, pax_headers={"size": "9" * 5000})],
            "is (not a complete tar|truncated or damaged)",
        ),
    ],
    ids=["twice", "hard link", "sparse", "contiguous", "up", "map", "negative", "huge", "digits"],
)
def test_malformed_tars(tmp_path: Path, more: list[tuple[tarfile.TarInfo, bytes]], message: str | None) -> None:
    path = tar_of(tmp_path / "a.tar", *more)
    if message is None:
        assert len(list_samples(open_sources([path]), classes="all", hold_out_percent=None).samples["train"]) == 5
        return
    with pytest.raises(DataError, match=message) as caught:
        list_samples(open_sources([path]), classes="all", hold_out_percent=None)
    assert "\n" not in str(caught.value)


def test_validation_images_in_class_folders_need_no_ground_truth(tmp_path: Path) -> None:
    files = {f"val/n01440764/ILSVRC2012_val_{n:08d}.JPEG": photo(n, 9, 9) for n in range(2)}
    files |= {f"train/n01440764/{n}.JPEG": photo(n, 9, 9) for n in range(2)}
    listing = list_samples(open_sources([write_tar(tmp_path / "a.tar", files)]), classes="all", hold_out_percent=None)
    assert [len(samples) for samples in listing.samples.values()] == [2, 2]


@pytest.mark.parametrize(
    ("name", "label", "message"),
    [
        ("cls", b"9" * 5000, "has no label"),
        ("json", b"[" * 200_000, "has no label"),
        ("json", b'{"label": ' + b"9" * 5000 + b"}", "has no label"),
    ],
)
def test_invalid_labels(tmp_path: Path, name: str, label: bytes, message: str) -> None:
    files = {"0000.jpg": JPEG, "0000.cls": b"1", "0001.jpg": JPEG, f"0001.{name}": label}
    source = open_sources([write_tar(tmp_path / "train-0.tar", files)])
    with pytest.raises(DataError, match=message):
        list_samples(source, classes="all", hold_out_percent=50)


@pytest.mark.parametrize("labels", [(b"a/b", b"a-b"), (rb'{"label": "\u0001"}', rb'{"label": "\\x01"}')])
def test_labels_are_not_merged_into_one_class(tmp_path: Path, labels: tuple[bytes, bytes]) -> None:
    ending = "json" if b"{" in labels[0] else "cls"
    files = {f"{n:04d}.{end}": data for n in range(20) for end, data in (("jpg", photo(n, 9, 9)), (ending, labels[n % 2]))}
    source = open_sources([write_tar(tmp_path / "train-0.tar", files)])
    with pytest.raises(DataError, match=r"expected .*names"):
        list_samples(source, classes="all", hold_out_percent=50)


def test_lone_surrogates_in_labels_are_escaped(tmp_path: Path) -> None:
    """A lone surrogate, which JSON can hold and files cannot, is escaped."""
    files: dict[str, bytes] = {}
    for n in range(40):
        files[f"{n:04d}.jpg"] = photo(n, 9, 9)
        files[f"{n:04d}.json"] = json.dumps({"label": ["\ud800x", "plain"][n % 2]}).encode()
    tar = write_tar(tmp_path / "a.tar", files)
    folder = converted(tar, tmp_path / "d", hold_out_percent=30, formats=())
    assert {entry.wnid for entry in folder.classes} == {"\\ud800x", "plain"}
