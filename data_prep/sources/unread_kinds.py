"""Identifies files and folders of kinds that no source reads, and what to do about them."""

import os
import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from udkd.data_prep.sources.decompress import compression_of
from udkd.data_prep.sources.layout import IMAGE_SUFFIXES, UNREAD_SUFFIXES, is_hidden

MAX_PEEKED = 20_000  # files looked at in a folder
MAGIC = {b"PK\x03\x04": "x.zip", b"7z\xbc\xaf": "x.7z", b"Rar!": "x.rar", b"\x1f\x8b": "x.gz", b"BZh": "x.bz2"} | {
    b"\xfd7zXZ": "x.xz",
    b"\x28\xb5\x2f\xfd": "x.zst",
    b"\x89HDF": "x.h5",
    b"\x93NUMPY": "x.npy",
    b"ARROW1": "x.arrow",
    b"PAR1": "x.parquet",
    b"MATLAB": "x.mat",
}
_WRITE = "write its images as files into class folders (or as parquet or a WebDataset)"
_UNPACK = "unpack it first and name the folder"
FLAT_IMAGES = (
    "images that are not in class folders",
    "sort them into folders, one per class, list them in a .csv with the columns path and label, or name the ground truth of "
    "ILSVRC2012's or Tiny-ImageNet's val as a source",
)
COMPRESSED_TAR = re.compile(r"(?P<stem>.+)\.(tar\.(gz|bz2|xz|zst)|tgz|tbz2?|txz|tzst)", re.IGNORECASE)
# Pattern of file names, what they are, what to do. The first match decides.
UNREAD_KINDS: tuple[tuple[str, str, str], ...] = (
    (
        r"dataset_dict\.json|state\.json|.*\.arrow",
        "files of Hugging Face's `datasets`",
        "name the folder of save_to_disk",
    ),
    (
        r".*\.(tar|tar\.\w+|tgz|zip|7z|rar)\.(\d{2,4}|part.*)|.*\.z\d\d",
        "a part of a split archive",
        "join the parts first, such as with cat x.tar.* > x.tar (zip -s 0 for .z01), and name the whole",
    ),
    (COMPRESSED_TAR.pattern, "compressed tars", "name the tars themselves, such as FOLDER/*.tar.gz"),
    (r".*\.tar\.\w+", "a tar with a compression that is not read", "decompress it first and name the tar"),
    (r".*\.tar", "tar files", "name the tars themselves, such as FOLDER/*.tar"),
    (r".*\.parquet", "parquet files", "name the folder that holds them"),
    (r".*\.(beton|ffcv)", ".beton files", "name the files themselves"),
    (r".*\.zip", "zip files", "name the zips themselves, such as FOLDER/*.zip"),
    (r".*\.(7z|rar)", "an archive", _UNPACK),
    (r".*idx[13]-ubyte.*", "MNIST's idx files", _WRITE),
    (r".*(data_batch_\d+|test_batch|batches\.meta)(\.\w+)?|.*\.(pkl|pickle)", "pickles, such as CIFAR's", _WRITE),
    (r"(data|lock)\.mdb|.*\.lmdb", "an LMDB", _WRITE),
    (r".*\.tfrecords?|.*-\d{5}-of-\d{5}", "TFRecords", _WRITE),
    (r".*\.rec", "MXNet's RecordIO", _WRITE),
    (r".*\.(npy|npz)", "NumPy arrays", _WRITE),
    (r".*\.(h5|hdf5|hdf)", "HDF5", _WRITE),
    (r".*\.mat", "MATLAB files", _WRITE),
    (r".*\.(pt|pth|safetensors)", "tensors", _WRITE),
    (r".*\.(gz|bz2|xz|zst)", "a compressed file", "decompress it first"),
    (r".*\.(mp4|avi|mov|mkv|webm)", "videos", "write their frames as files into class folders"),
    (
        r".*\.(csv|tsv|jsonl?|txt|xml|ya?ml)",
        "lists or annotations, which are not read",
        "sort the images into class folders, or list them in a .csv with the columns path and label",
    ),
)


def identify_unread(path: Path) -> tuple[str, str] | None:
    """A text that says what the files of a path are, and one that says what to do; None if unknown. Raises OSError."""
    if path.is_dir():
        names = list(islice(_names_below(path), MAX_PEEKED))
        kind = _kind([name.rsplit("/", 1)[-1] for name in names])
        images = [name for name in names if name.lower().endswith(IMAGE_SUFFIXES)]
        if images and (kind is None or "annotations" in kind[0]):
            return FLAT_IMAGES
        return kind
    if path.suffix.lower() in (".tar", ".zip"):
        return FLAT_IMAGES
    if path.name.lower().endswith((*IMAGE_SUFFIXES, *UNREAD_SUFFIXES)):
        return "one image", "name the folder of class folders"
    start = b""
    if path.is_file():  # reading a FIFO could block forever
        with open(path, "rb") as file:
            start = file.read(8)
    magic = next((name for begin, name in MAGIC.items() if start.startswith(begin)), None)
    if COMPRESSED_TAR.fullmatch(path.name):
        return FLAT_IMAGES if compression_of(start) else ("not compressed, though its name says so", "fetch it again")
    return _kind([path.name]) or (_kind([magic]) if magic else None)


def kind_of_bytes(start: bytes) -> str:
    """What a file is by its first bytes, such as `a zip archive`; empty if it may be a tar."""
    magic = next((name for begin, name in MAGIC.items() if start.startswith(begin)), None)
    kind = _kind([magic]) if magic else None
    return kind[0] if kind else ""


def _kind(names: list[str]) -> tuple[str, str] | None:
    for pattern, what, remedy in UNREAD_KINDS:
        if any(re.fullmatch(pattern, name, re.IGNORECASE | re.DOTALL) for name in names):
            return what, remedy
    if any(name.lower().endswith(UNREAD_SUFFIXES) for name in names):
        return "images of kinds that are not read", "write them as JPEG or PNG"
    return None


def _names_below(folder: Path) -> Iterator[str]:
    for where, _, names in os.walk(folder):
        inside = os.path.relpath(where, folder)
        yield from (name for name in (os.path.normpath(f"{inside}/{name}") for name in names) if not is_hidden(name))
