"""The .beton file: FFCV's format, version 2, read without FFCV; samples.beton holds a split's samples in it.

The layout (ffcv/types.py, 1.0.2): a header, a descriptor of each field, one row of metadata per sample with the fields in
order, data pages, and a final table of allocations with the size of each sample's bytes.

samples.beton has two fields, `image` (RGBImageField, mode jpg: the stored bytes) and `label` (IntField), and the samples that
are not excluded, in id order. The format has no checksums, so each row is checked against the manifest on opening, and each
sample's bytes when they are read.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from udkd.data.dataset import Split
from udkd.data.derived import DERIVED, read_sealed
from udkd.utils.crc32c import crc32c
from udkd.utils.errors import DataError
from udkd.utils.printable import shorten

VERSION = 2
HEADER = np.dtype(
    [("version", "<u2"), ("fields", "<u2"), ("page", "<u4"), ("samples", "<u8"), ("allocations", "<u8")], align=True
)
FIELD = np.dtype([("kind", "<u1"), ("name", "<u1", 16), ("arguments", "<u1", 1024)], align=True)
ALLOCATION = np.dtype([("sample", "<u8"), ("pointer", "<u8"), ("size", "<u8")])
IMAGE = np.dtype([("mode", "<u1"), ("width", "<u2"), ("height", "<u2"), ("pointer", "<u8")])
FLOAT_KIND, INT_KIND, IMAGE_KIND = 0, 1, 2
METADATA = {FLOAT_KIND: np.dtype("<f8"), INT_KIND: np.dtype("<i8"), IMAGE_KIND: IMAGE}
JPEG_MODE, RAW_MODE = 0, 1

(FILE_NAME,) = DERIVED["ffcv"].data
FIELDS = {"image": IMAGE_KIND, "label": INT_KIND}
"""The fields of samples.beton: the kind of each, by name."""
_REMEDY = "write it again with udkd data derive --formats ffcv"


class BadBeton(ValueError):
    """Bytes that are not a complete .beton of VERSION, or not the expected one. The text is the reason."""


def row_type(kinds: Sequence[int]) -> np.dtype[Any]:
    """The type of a row of metadata with fields of these kinds (keys of METADATA), named f0, f1, …"""
    return np.dtype([(f"f{n}", METADATA[kind]) for n, kind in enumerate(kinds)], align=True)


@dataclass(frozen=True, kw_only=True)
class Layout:
    """What the head of a .beton says.

    names, kinds: of its fields, in order. samples: number of rows. rows, allocations: offsets of the two tables, in bytes.
    """

    names: tuple[str, ...]
    kinds: tuple[int, ...]
    samples: int
    rows: int
    allocations: int


def read_layout(path: Path) -> Layout:
    """Read the head of a file. Raises BadBeton if it is not of VERSION, or not complete."""
    total = path.stat().st_size
    if total < HEADER.itemsize:
        raise BadBeton("it has no header")
    header = np.fromfile(path, HEADER, 1)[0]
    rows, allocations = HEADER.itemsize + int(header["fields"]) * FIELD.itemsize, int(header["allocations"])
    # FFCV writes the header, with the pointer to the table of allocations, last.
    if int(header["version"]) != VERSION or rows > total or not rows <= allocations <= total:
        raise BadBeton("its header is of another version or another file")
    fields = np.fromfile(path, FIELD, int(header["fields"]), offset=HEADER.itemsize)
    return Layout(
        names=tuple(bytes(name).rstrip(b"\0").decode(errors="replace") for name in fields["name"]),
        kinds=tuple(fields["kind"].tolist()),
        samples=int(header["samples"]),
        rows=rows,
        allocations=allocations,
    )


def read_rows(path: Path, layout: Layout) -> NDArray[Any]:
    """The rows of metadata, of type `row_type(layout.kinds)`, [N]. Raises BadBeton if the file is too short for them."""
    row = row_type(layout.kinds)
    if layout.rows + layout.samples * row.itemsize > layout.allocations:
        raise BadBeton(f"it is too short for {layout.samples} samples")
    return np.fromfile(path, row, layout.samples, offset=layout.rows)


@dataclass(frozen=True, kw_only=True, eq=False)
class BetonSamples:
    """A split's samples.beton, its table checked.

    offset: int64 [N], the position of each sample's bytes by id; -1 for excluded samples.
    """

    split: Split
    path: Path
    offset: NDArray[np.int64]

    def read_many(self, ids: NDArray[np.int64]) -> Iterator[bytes]:
        """Yield the stored JPEG bytes of samples in turn, verified by their crc32c. ids: int64, checked by `Split.order`.

        Raises DataError, naming id and source, if the file cannot be read or is damaged. Safe in threads.
        """
        columns = (ids, self.offset[ids], self.split.size[ids], self.split.crc32c[ids])
        descriptor = -1
        try:
            for sample_id, offset, size, crc in zip(*(column.tolist() for column in columns), strict=True):
                try:
                    if descriptor < 0:
                        descriptor = os.open(self.path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
                    data = os.pread(descriptor, size, offset)  # a memory map turns an I/O error into SIGBUS
                except OSError as error:
                    what = f"{self._describe(sample_id)} cannot be read ({error.strerror})"
                    raise DataError(f"{what}; expected its bytes; {_REMEDY}") from None
                if crc32c(data) != crc:
                    raise DataError(f"{self._describe(sample_id)} is damaged; expected the manifest's checksum; {_REMEDY}")
                yield data
        finally:
            if descriptor >= 0:
                os.close(descriptor)

    def _describe(self, sample_id: int) -> str:
        return f"{self.split.describe(sample_id)} in {self.path.name}"


def open_beton(split: Split) -> BetonSamples:
    """Open a split's samples.beton and check its table against the manifest.

    Raises DataError if it is absent, truncated, damaged or of another dataset.
    """
    read_sealed(split.path, "ffcv", digest=split.digest)
    path = split.path / FILE_NAME
    try:
        return BetonSamples(split=split, path=path, offset=_offsets(split, path))
    except BadBeton as error:
        raise DataError(f"{path} is damaged ({error}); expected what was packed from this dataset; {_REMEDY}") from None


def _offsets(split: Split, path: Path) -> NDArray[np.int64]:
    """See BetonSamples.offset; each row is checked against the manifest. Raises BadBeton."""
    layout, ids = read_layout(path), split.ids
    if dict(zip(layout.names, layout.kinds, strict=True)) != FIELDS or layout.names != tuple(FIELDS):
        raise BadBeton(f"its fields are {shorten(repr(layout.names))}")
    end = path.stat().st_size - len(ids) * ALLOCATION.itemsize
    if (layout.samples, layout.allocations) != (len(ids), end):
        raise BadBeton("its header is of other data")
    rows = read_rows(path, layout)
    image, label = (rows[name] for name in rows.dtype.names or ())
    stored = np.stack([label, image["mode"], image["height"], image["width"]], axis=1)
    expected = np.stack([split.labels[ids], np.full(len(ids), JPEG_MODE), split.sizes[ids, 2], split.sizes[ids, 3]], axis=1)
    start = image["pointer"].astype(np.int64)
    differs = (stored != expected).any(axis=1) | (start < 0) | (start + split.size[ids] > end)
    if differs.any():
        raise BadBeton(f"its row of {split.describe(int(ids[differs][0]))} differs from the manifest")
    offset = np.full(split.num_samples, -1, np.int64)
    offset[ids] = start
    return offset
