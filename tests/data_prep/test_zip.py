"""Zips, written by zipfile and by Info-ZIP: the same dataset as the plain folder's, and each refusal."""

import io
import os
import shutil
import stat
import struct
import subprocess
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from tests.data_prep.helpers import contents, converted, photo, small_set, write_tar, write_tree
from udkd.data.image_files import BadImage
from udkd.data_prep.listing import SampleListing, list_samples
from udkd.data_prep.sources import open_sources
from udkd.data_prep.sources.zip import Zip
from udkd.data_prep.sources.zip_members import iter_members, read_member
from udkd.utils.errors import DataError

FILES = small_set(train=3, val=1)
PREFIX = "ILSVRC/Data/CLS-LOC/"


def write_zip(path: Path, files: Mapping[str, bytes], prefix: str = "", method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in files.items():
            archive.writestr(prefix + name, data)
    return path


def listing_of(*paths: Path, hold_out: float | None = None) -> SampleListing:
    return list_samples(open_sources(paths), classes="all", hold_out_percent=hold_out)


def dataset_files(folder: Path) -> dict[str, str]:
    return {name: file for name, file in contents(folder).items() if name != "report.json"}


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("plain")
    return converted(write_tree(root / "tree", FILES), root / "d", formats=()).path


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_zip_becomes_what_the_folder_becomes(tmp_path: Path, plain: Path, method: int) -> None:
    """Below a prefix, with files of macOS and lists beside the images."""
    extra = {f"__MACOSX/{PREFIX}{name}": b"x" for name in FILES} | {
        f"{PREFIX}train/n01440764/.DS_Store": b"x",
        "list.csv": b"x",
    }
    archive = write_zip(tmp_path / "a.zip", {PREFIX + name: data for name, data in FILES.items()} | extra, method=method)
    data = converted(archive, tmp_path / "d", formats=(), workers=2)
    assert dataset_files(data.path) == dataset_files(plain)


@pytest.mark.parametrize("options", [["-r"], ["-r", "-0"], ["-r", "-fz"], ["-r", "-fd"]])
def test_info_zips_archives(tmp_path: Path, options: list[str]) -> None:
    """Stored, with zip64 fields, and with sizes after the data."""
    if shutil.which("zip") is None:
        pytest.skip("zip is not installed")
    tree = write_tree(tmp_path / "tree", FILES)
    subprocess.run(["zip", "-q", *options, tmp_path / "a.zip", "train", "val"], cwd=tree, check=True)
    source = Zip(tmp_path / "a.zip")
    images = {f"{entry.split}/{entry.class_name}/{entry.name}": source.read(entry) for entry in source.list().entries}
    assert images == FILES


def test_streamed_zips_and_those_after_other_bytes(tmp_path: Path) -> None:
    """A writer that cannot seek puts sizes and checksums after the data; a self-extracting zip begins with a program."""

    class Pipe(io.BytesIO):
        def seekable(self) -> bool:
            return False

        def tell(self) -> int:
            raise io.UnsupportedOperation

        def seek(self, *_: int) -> int:
            raise io.UnsupportedOperation

    buffer = Pipe()
    with zipfile.ZipFile(buffer, "w") as archive:
        for n, (name, data) in enumerate(FILES.items()):
            with archive.open(zipfile.ZipInfo(name), "w", force_zip64=n % 2 == 0) as file:
                file.write(data)
    (tmp_path / "a.zip").write_bytes(b"#!/bin/sh\n" * 50 + buffer.getvalue())
    assert {member.name: _read(tmp_path / "a.zip", member.name) for member in iter_members(tmp_path / "a.zip")} == FILES


def _read(path: Path, name: str) -> bytes:
    member = next(each for each in iter_members(path) if each.name == name)
    return read_member(path, member.offset, member.size, member.crc32)


@pytest.mark.parametrize("inside", [True, False])
def test_kaggles_imagenet(tmp_path: Path, inside: bool) -> None:
    """A flat val/ and test/, its solution in the zip or beside it, annotations and lists."""
    val = {name: data for name, data in FILES.items() if name.startswith("val/")}
    flat = {f"{PREFIX}val/ILSVRC2012_val_{n:08d}.JPEG": data for n, data in enumerate(val.values())}
    truth = ["ImageId,PredictionString"]
    truth += [f"ILSVRC2012_val_{n:08d},{name.split('/')[1]} 1 2 3 4 " for n, name in enumerate(val)]
    solution = "\n".join(truth).encode()
    files = {PREFIX + name: data for name, data in FILES.items() if name.startswith("train/")} | flat
    files |= {f"{PREFIX}test/ILSVRC2012_test_{n:08d}.JPEG": photo(n) for n in range(2)}
    files |= {"ILSVRC/Annotations/CLS-LOC/val/a.xml": b"<a/>", "LOC_synset_mapping.txt": b"n01440764 tench\n"}
    if inside:
        files["LOC_val_solution.csv"] = solution
    else:
        (tmp_path / "LOC_val_solution.csv").write_bytes(solution)
    listing = listing_of(write_zip(tmp_path / "imagenet-object-localization-challenge.zip", files))
    assert {split: len(samples) for split, samples in listing.samples.items()} == {"train": 6, "val": 2}
    assert [sample.label for sample in listing.samples["val"]] == [0, 1]
    test = write_zip(tmp_path / "test.zip", {name: data for name, data in files.items() if "/test/" in name})
    with pytest.raises(DataError, match=r"test\.zip: test would be a class, but is named for a split"):
        listing_of(test, tmp_path / "imagenet-object-localization-challenge.zip")


def test_several_zips_form_one_dataset(tmp_path: Path, plain: Path) -> None:
    zips = [
        write_zip(tmp_path / f"{split}.zip", {n[len(split) + 1 :]: data for n, data in FILES.items() if n.startswith(split)})
        for split in ("train", "val")
    ]
    assert dataset_files(converted(zips, tmp_path / "d", formats=()).path) == dataset_files(plain)
    with pytest.raises(DataError, match=r"expected both; name .*val\.zip too, which looks like validation"):
        listing_of(zips[0])


def test_a_name_that_occurs_twice_is_refused(tmp_path: Path) -> None:
    first = next(iter(FILES))
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for name, data in FILES.items():
            archive.writestr(name, data)
        with pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr(first, FILES[first])
    with pytest.raises(DataError, match=r"train/n01440764/n01440764_0\.JPEG exists twice"):
        listing_of(tmp_path / "a.zip")


def test_backslashes_of_windows_are_separators(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for name, data in FILES.items():
            info = zipfile.ZipInfo(name.replace("/", "\\"))
            info.create_system = 0
            archive.writestr(info, data)
    assert sum(map(len, listing_of(tmp_path / "a.zip").samples.values())) == len(FILES)


def info(name: str, **attributes: object) -> zipfile.ZipInfo:
    each = zipfile.ZipInfo(name)
    for key, value in attributes.items():
        setattr(each, key, value)
    return each


@pytest.mark.parametrize(
    ("member", "message"),
    [
        (info("/train/a/1.jpg"), r"'/train/a/1\.jpg': its path leaves the archive, as it is absolute"),
        (info("C:/train/a/1.jpg"), "its path leaves the archive, as it is absolute"),
        (info("train/../../1.jpg"), r"'train/\.\./\.\./1\.jpg': its path leaves the archive"),
        (info("train/a/1.jpg", create_system=3, external_attr=(stat.S_IFLNK | 0o777) << 16), "it is a link"),
        (info("train/a/1.jpg", compress_type=zipfile.ZIP_BZIP2), "compressed with bzip2; expected stored or deflated files"),
        (info("train/a/1.jpg", compress_type=zipfile.ZIP_LZMA), "compressed with lzma"),
    ],
)
def test_members_that_are_refused(tmp_path: Path, member: zipfile.ZipInfo, message: str) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr(member, photo(1))
    with pytest.raises(DataError, match=message):
        listing_of(tmp_path / "a.zip")


def test_encrypted_and_split_zips_are_refused(tmp_path: Path) -> None:
    if shutil.which("zip") is None:
        pytest.skip("zip is not installed")
    tree = write_tree(tmp_path / "tree", FILES | {"train/n01440764/noise.JPEG": os.urandom(100_000)})
    subprocess.run(["zip", "-qr", "-P", "secret", tmp_path / "a.zip", "train"], cwd=tree, check=True)
    with pytest.raises(DataError, match=r"a\.zip is encrypted; expected a zip without a password; unpack it"):
        listing_of(tmp_path / "a.zip")
    subprocess.run(["zip", "-qr", "-s", "64k", tmp_path / "b.zip", "train"], cwd=tree, check=True)
    with pytest.raises(DataError, match=r"b\.zip is a part of a split zip.*zip -s 0 b\.zip"):
        listing_of(tmp_path / "b.zip")


def test_cut_and_damaged_zips_are_refused_wherever_they_are_cut(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "a.zip", FILES)
    intact = path.read_bytes()
    directory = intact.index(b"PK\x01\x02")
    for size in (*range(directory, len(intact), 97), len(intact) - 1, 40):
        path.write_bytes(intact[:size])
        with pytest.raises(DataError, match=r"is truncated or damaged.*fetch it again"):
            list(iter_members(path))
    for at in range(directory, len(intact) - 22, 7):
        path.write_bytes(intact[:at] + b"\xff\xff\xff" + intact[at + 3 :])
        try:  # each damage is one line, now or as a bad image
            for member in iter_members(path):
                member.check(path)
                read_member(path, member.offset, member.size, member.crc32)
        except (DataError, BadImage):
            pass
    path.write_bytes(b"<html>not found</html>")
    with pytest.raises(DataError, match="is not a zip"):
        listing_of(path)


def test_damaged_members_are_bad_images(tmp_path: Path) -> None:
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        path = write_zip(tmp_path / "a.zip", {"a/1.jpg": photo(1)}, method=method)
        member = next(iter(iter_members(path)))
        data = bytearray(path.read_bytes())
        data[200] ^= 0xFF
        path.write_bytes(data)
        with pytest.raises(BadImage, match="damaged in its zip"):
            read_member(path, member.offset, member.size, member.crc32)


def patched_size(path: Path, size: int) -> None:
    """Change the size that the directory declares for the first member."""
    data = path.read_bytes()
    at = data.index(b"PK\x01\x02") + 24
    path.write_bytes(data[:at] + struct.pack("<L", size) + data[at + 4 :])


def test_bombs_are_refused_by_their_size(tmp_path: Path) -> None:
    """A declared size is checked before anything is inflated; a stream that holds more than declared is cut off."""
    path = write_zip(tmp_path / "a.zip", {"a/1.bmp": bytes(1 << 25)})
    patched_size(path, 0xF0000000)
    (member,) = iter_members(path)
    with pytest.raises(BadImage, match=r"declares 4,026,531,840 bytes for it, the limit is 1,073,741,824"):
        read_member(path, member.offset, member.size, member.crc32)
    patched_size(path, 1000)
    (member,) = iter_members(path)
    tracemalloc.start()
    try:
        with pytest.raises(BadImage, match="its CRC-32 differs"):
            read_member(path, member.offset, member.size, zlib.crc32(bytes(1000)))
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda root: {"train.tar": write_tar(root / "t.tar", FILES).read_bytes()},
            r"train\.tar\); unpack it and name the files",
        ),
        (lambda root: {"set/inner.zip": write_zip(root / "i.zip", FILES).read_bytes()}, r"inner\.zip\); unpack it and name"),
        (lambda root: {"data/train-0.parquet": b"PAR1"}, r"train-0\.parquet\); unpack it and name the files inside"),
        (lambda root: {}, "holds no images in class folders"),
        (lambda root: {"1.jpg": photo(1), "2.jpg": photo(2)}, "images that are not in class folders"),
    ],
)
def test_zips_without_class_folders(tmp_path: Path, make: Callable[[Path], dict[str, bytes]], message: str) -> None:
    with pytest.raises(DataError, match=message):
        listing_of(write_zip(tmp_path / "a.zip", make(tmp_path)), hold_out=10)


def test_a_folder_of_zips_and_other_zips(tmp_path: Path) -> None:
    (tmp_path / "f").mkdir()
    write_zip(tmp_path / "f" / "a.zip", FILES)
    with pytest.raises(DataError, match=r"it holds zip files: name the zips themselves, such as FOLDER/\*\.zip"):
        listing_of(tmp_path / "f")
    write_zip(tmp_path / "f" / "a.zip", FILES).rename(tmp_path / "download")
    assert sum(map(len, listing_of(tmp_path / "download").samples.values())) == len(FILES)
    write_zip(tmp_path / "x.npz", FILES)
    with pytest.raises(DataError, match="NumPy"):
        listing_of(tmp_path / "x.npz")


def test_many_members_take_little_memory(tmp_path: Path) -> None:
    """zipfile keeps 650 bytes for each member."""
    path = write_zip(tmp_path / "a.zip", {f"train/n{n % 100:08d}/{n}.JPEG": b"" for n in range(4_000)}, method=0)
    tracemalloc.start()
    try:
        assert sum(1 for _ in iter_members(path)) == 4_000
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()
