"""Writes samples.beton in FFCV's format, without FFCV, deterministically, in one pass over the shards.

FFCV's DatasetWriter is not used: its processes race for pages, so no two files are equal, and it hangs if one of them fails.
Samples lie where FFCV's MemoryAllocator puts those of a single process, and FFCV's Reader and Loader read the file.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from udkd.data.beton import ALLOCATION, FIELD, FIELDS, FILE_NAME, HEADER, JPEG_MODE, VERSION, row_type
from udkd.data.dataset import DatasetFolder, Split
from udkd.data.derived import FileDigest, find_damage, remove_derived, seal
from udkd.data_prep.formats.writer import DatasetSize, FormatWriter, nothing_required
from udkd.utils.errors import DataError
from udkd.utils.files import atomic_write
from udkd.utils.progress import Observer

NAME = "ffcv"
SMALL_PAGE = 1 << 21  # FFCV's minimum; its default, four times as large, would stay mostly empty for a small dataset
LARGE_PAGE = 1 << 23
LARGE_SET = 1 << 26
LARGEST_PAGE = 1 << 31  # FFCV stores the page size in 32 bits
ROW_BYTES = 64  # per sample in both tables, rounded up


def size_bytes(dataset_size: DatasetSize) -> int | None:
    """Estimated size of samples.beton: stored bytes, tables, and unused ends of pages."""
    if dataset_size.stored is None:
        return None
    return dataset_size.stored + dataset_size.stored // 50 + dataset_size.samples * ROW_BYTES + 4 * LARGE_PAGE


def derive_ffcv(dataset: DatasetFolder, workers: int, observer: Observer) -> None:
    """Write samples.beton of every split, as fast as copying. Raises DataError and OSError."""
    observer.start(NAME, sum(len(split.ids) for split in dataset.splits.values()), "images")
    for split in dataset.splits.values():
        remove_derived(split.path, NAME)
        try:
            path = _pack(split, observer)
            seal(split.path, NAME, digest=split.digest, files={path.name: FileDigest.of(path)})
        except BaseException:
            remove_derived(split.path, NAME)
            raise
    observer.finish()


def _pack(split: Split, observer: Observer) -> Path:
    ids, page = split.ids, _page_bytes(split)
    row = row_type(tuple(FIELDS.values()))
    tables_end = HEADER.itemsize + len(FIELDS) * FIELD.itemsize + len(ids) * row.itemsize
    pointers, end = _pointers(split.size[ids], -(-tables_end // page) * page, page)
    header = np.array([(VERSION, len(FIELDS), page, len(ids), end)], HEADER)
    path = split.path / FILE_NAME
    with atomic_write(path) as file:
        file.write(header.tobytes() + _descriptors() + _rows(split, pointers, row))
        position = tables_end
        for pointer, jpeg in zip(pointers.tolist(), split.read_many(ids), strict=True):
            if pointer != position:
                file.seek(pointer)  # the unused end of a page is zeros
            file.write(jpeg)
            position = pointer + len(jpeg)
            observer.advance(1)
        file.seek(end)
        allocations = np.empty(len(ids), ALLOCATION)
        allocations["sample"], allocations["pointer"], allocations["size"] = np.arange(len(ids)), pointers, split.size[ids]
        file.write(allocations.tobytes())
    return path


def _pointers(sizes: NDArray[np.int64], start: int, page: int) -> tuple[NDArray[np.int64], int]:
    """Positions of samples of these sizes, one after the other from `start`, none across pages; the end of the last page."""
    pointers = np.empty_like(sizes)
    position = end = start
    for n, size in enumerate(sizes.tolist()):
        if position + size > end:
            position, end = end, end + page
        pointers[n] = position
        position += size
    return pointers, end


def _descriptors() -> bytes:
    """The descriptors of the fields: kind, name, and no arguments."""
    described = np.zeros(len(FIELDS), FIELD)
    described["kind"] = list(FIELDS.values())
    for descriptor, name in zip(described, FIELDS, strict=True):
        descriptor["name"][: len(name)] = np.frombuffer(name.encode("ascii"), np.uint8)
    return described.tobytes()


def _rows(split: Split, pointers: NDArray[np.int64], row: np.dtype[np.void]) -> bytes:
    """The table of metadata; bytes between the fields are zeros."""
    ids, rows = split.ids, np.zeros(len(pointers), row)
    image, label = (rows[name] for name in row.names or ())
    image["mode"], image["pointer"] = JPEG_MODE, pointers
    image["height"], image["width"] = split.sizes[ids, 2], split.sizes[ids, 3]
    label[:] = split.labels[ids]
    return rows.tobytes()


def _page_bytes(split: Split) -> int:
    """The page size, a power of two that fits every sample. Raises DataError if it exceeds FFCV's maximum."""
    largest = int(split.size.max(initial=0))
    page = LARGE_PAGE if split.size.sum() > LARGE_SET else SMALL_PAGE
    while page < largest:
        page *= 2
    if page > LARGEST_PAGE:
        name = split.describe(int(split.size.argmax()))
        raise DataError(f"{name} has {largest:,} bytes; expected at most {LARGEST_PAGE:,} in FFCV's format; use another format")
    return page


def problems(split: Split) -> Iterator[str]:
    """Problems of the files, found by checking every byte against beton.json."""
    yield from find_damage(split.path, NAME, digest=split.digest)


WRITER = FormatWriter(
    files="samples.beton",
    require=nothing_required,
    size_bytes=size_bytes,
    size_text=lambda dataset_size: "samples.beton, about",
    derive=derive_ffcv,
    problems=problems,
)
