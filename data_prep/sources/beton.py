"""Reads an existing .beton as a source, without FFCV. The format: see udkd.data.beton."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from udkd.data.beton import (
    ALLOCATION,
    IMAGE_KIND,
    INT_KIND,
    JPEG_MODE,
    METADATA,
    RAW_MODE,
    VERSION,
    BadBeton,
    Layout,
    read_layout,
    read_rows,
)
from udkd.data_prep.sources.fields import DETECT_FIELDS, IMAGE_OPTION, LABEL_OPTION, NO_LABEL, Fields, choose_field, label_of
from udkd.data_prep.sources.named_split import last_split_in
from udkd.data_prep.sources.source import Entry, Listing
from udkd.data_prep.sources.tar_members import read_at
from udkd.utils.errors import DataError

SUFFIXES = (".beton", ".ffcv")  # used by FFCV's guide and by its ImageNet scripts
KIND_NAMES = {
    0: "FloatField",
    INT_KIND: "IntField",
    IMAGE_KIND: "RGBImageField",
    3: "BytesField",
    4: "NDArrayField",
    5: "JSONField",
    6: "TorchTensorField",
    255: "a custom field",
}
MAX_LISTED = 500  # characters of a list of fields


@dataclass(frozen=True)
class Beton:
    """A .beton file, or a folder with some. File names determine the splits; labels are class numbers.

    fields: names of the fields chosen by the user.
    """

    path: Path
    fields: Fields = DETECT_FIELDS

    @staticmethod
    def probe(path: Path) -> "Beton | None":
        """A Beton if `path` is a .beton file, or a folder with one."""
        return Beton(path) if _files(path) else None

    def list(self) -> Listing:
        """All samples with a label.

        Raises DataError for a damaged file, another version, a missing image or label field, and if the user must choose one.
        """
        listing = Listing()
        for file in _files(self.path):
            for entry in self._samples(file, listing):
                listing.entries.append(entry)
        return listing

    def _samples(self, file: Path, listing: Listing) -> Iterator[Entry]:
        key = "" if file == self.path else file.name
        split, stamp, total = last_split_in(Path(file.name)), file.stat().st_mtime_ns, file.stat().st_size
        images, labels, sizes = _tables(file, self.fields)
        for n in range(len(images)):
            mode, width, height, pointer = images[n].item()
            size, name = int(sizes[n]), f"{file.stem}/{n:09d}"
            if mode not in (JPEG_MODE, RAW_MODE) or not 0 <= size <= total - pointer:
                raise DataError(f"{file} is damaged at sample {n}; expected FFCV's format; write it again")
            label = _label(file, n, int(labels[n]))
            if label is None:
                listing.skipped.append(name, NO_LABEL)
                continue
            extra = ""
            if mode == RAW_MODE:
                if size < width * height * 3:
                    raise DataError(f"{file} is damaged at sample {n}; expected {width} x {height} px of RGB; write it again")
                size, extra = width * height * 3, f"\0{width} {height}"
            data = len(_ppm_header(extra[1:])) + size
            yield Entry(split, listing.class_of_label(label), name, key + extra, pointer, data, stamp)

    def read(self, entry: Entry) -> bytes:
        """The bytes of a stored JPEG; raw pixels become a PPM image."""
        name, _, shape = entry.key.partition("\0")
        header = _ppm_header(shape)
        return header + read_at(self.path / name if name else self.path, entry.offset, entry.size - len(header))


def _label(file: Path, n: int, value: int) -> int | None:
    try:
        label = label_of(value)
    except ValueError as error:
        raise DataError(
            f"{file} {error} at sample {n}; expected a class number, or -1 for none; choose another field with {LABEL_OPTION}"
        ) from None
    assert not isinstance(label, str)
    return label


def _ppm_header(shape: str) -> bytes:
    return f"P6 {shape} 255\n".encode() if shape else b""


def _files(path: Path) -> list[Path]:
    if path.is_dir():
        return sorted(path.glob("*.beton"))
    return [path] if path.suffix in SUFFIXES and path.is_file() else []


def _tables(file: Path, fields: Fields) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Images (dtype IMAGE, [N]), labels (int64 [N]) and sizes of the images (bytes, int64 [N], -1 if unknown).

    All sizes in the file are checked before use.
    """
    try:
        layout = read_layout(file)
        _check_kinds(file, layout)
        image = _field_index(file, layout, IMAGE_KIND, fields.image, IMAGE_OPTION)
        label = _field_index(file, layout, INT_KIND, fields.label, LABEL_OPTION)
        rows = read_rows(file, layout)
        table = np.fromfile(file, ALLOCATION, offset=layout.allocations)
        if len(table) and int(table["sample"].max()) >= len(rows):  # too small a count would lose samples silently
            raise BadBeton(f"it has allocations of more than {len(rows)} samples")
    except BadBeton as error:
        raise DataError(
            f"{file} is not a complete .beton of version {VERSION} ({error}); expected FFCV's format; write it again"
        ) from None
    images = rows[f"f{image}"]
    return images, rows[f"f{label}"], _lengths(images["pointer"], table)


def _check_kinds(file: Path, layout: Layout) -> None:
    if IMAGE_KIND not in layout.kinds or INT_KIND not in layout.kinds or not set(layout.kinds) <= set(METADATA):
        pairs = zip(layout.names, layout.kinds, strict=True)
        listed = ", ".join(f"{name} ({KIND_NAMES.get(kind, kind)})" for name, kind in pairs)
        raise DataError(
            f"{file} has fields of other kinds: {listed[:MAX_LISTED]}; expected an RGBImageField, an IntField, and otherwise "
            "only IntFields and FloatFields; choose another source"
        )


def _field_index(file: Path, layout: Layout, kind: int, requested: str | None, option: str) -> int:
    """The index of the field to read among those of one kind."""
    indices = [index for index, each in enumerate(layout.kinds) if each == kind]
    candidates = [layout.names[index] for index in indices]
    name = choose_field(candidates, requested, where=file, what=KIND_NAMES[kind], option=option)
    if candidates.count(name) > 1:
        raise DataError(f"{file} has several fields {name}; expected unique names; write it again")
    return indices[candidates.index(name)]


def _lengths(pointers: np.ndarray, table: np.ndarray) -> np.ndarray:
    """The number of bytes at each pointer according to the table of allocations, which may be in any order."""
    sizes = np.full(len(pointers), -1, dtype=np.int64)
    if len(table):
        order = np.argsort(table["pointer"], kind="stable")
        index = order[np.maximum(np.searchsorted(table["pointer"][order], pointers, side="right") - 1, 0)]
        known = table["pointer"][index] == pointers
        sizes[known] = table["size"][index[known]].astype(np.int64)
    return sizes
