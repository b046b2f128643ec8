"""Writes samples.beton in FFCV's own format, deterministically, in one pass over the shards, with FFCV's own types.

FFCV's DatasetWriter is not used: its processes race for pages, so no two files are equal, and it hangs if one of them fails.
"""

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from udkd.data.beton import BETON_FIELDS, FILE_NAME, import_ffcv
from udkd.data.dataset import DatasetFolder, Split
from udkd.data.derived import FileDigest, find_damage, remove_derived, seal
from udkd.data_prep.formats.writer import DatasetSize, FormatWriter
from udkd.utils.errors import DataError
from udkd.utils.files import fsync_folder
from udkd.utils.progress import Observer

NAME = "ffcv"
SMALL_PAGE = 1 << 21  # FFCV's minimum; its default, four times as large, would stay mostly empty for a small dataset
LARGE_PAGE = 1 << 23
LARGE_SET = 1 << 26
LARGEST_PAGE = 1 << 31  # FFCV stores the page size in 32 bits
ROW_BYTES = 64  # per sample in both tables, rounded up


def require() -> None:
    """Raise ConfigError if FFCV is not installed."""
    import_ffcv()


def size_bytes(dataset_size: DatasetSize) -> int | None:
    """Estimated size of samples.beton: stored bytes, tables, and unused ends of pages."""
    if dataset_size.stored is None:
        return None
    return dataset_size.stored + dataset_size.stored // 50 + dataset_size.samples * ROW_BYTES + 4 * LARGE_PAGE


def derive_ffcv(dataset: DatasetFolder, workers: int, observer: Observer) -> None:
    """Write samples.beton of every split, as fast as copying. Raises ConfigError (no FFCV), DataError and OSError."""
    ffcv = import_ffcv()
    observer.start(NAME, sum(len(split.ids) for split in dataset.splits.values()), "images")
    for split in dataset.splits.values():
        remove_derived(split.path, NAME)
        try:
            path = _pack(ffcv, split, observer)
            seal(split.path, NAME, digest=split.digest, files={path.name: FileDigest.of(path)})
        except BaseException:
            remove_derived(split.path, NAME)
            raise
    observer.finish()


def _pack(ffcv: ModuleType, split: Split, observer: Observer) -> Path:
    """Write the file under a temporary name, then rename it."""
    fields: dict[str, Any] = dict(zip(BETON_FIELDS, (ffcv.fields.RGBImageField(), ffcv.fields.IntField()), strict=True))
    table = np.zeros(len(split.ids), dtype=ffcv.types.get_metadata_type(list(fields.values())))
    allocations = np.zeros(len(split.ids), dtype=ffcv.types.ALLOC_TABLE_TYPE)
    header = np.zeros(1, dtype=ffcv.types.HeaderType)
    header["version"], header["num_fields"], header["num_samples"] = ffcv.types.CURRENT_VERSION, len(fields), len(table)
    header["page_size"] = _page_bytes(split)
    described = _descriptors(ffcv, fields)
    path, temporary = split.path / FILE_NAME, split.path / (FILE_NAME + ".tmp")
    temporary.write_bytes(header.tobytes() + described + table.tobytes())
    allocator = _allocator(ffcv.memory_allocator, temporary, int(header["page_size"][0]))
    with allocator:
        for row, sample_id in enumerate(split.ids.tolist()):
            _add(allocator, split, row, sample_id, table, allocations)
            observer.advance(1)
    header["alloc_table_ptr"] = allocator.offset + allocator.next_page_written.value * allocator.page_size
    with open(temporary, "r+b") as file:
        end = file.seek(0, os.SEEK_END)
        if end != header["alloc_table_ptr"][0]:  # FFCV does not check for short writes
            raise DataError(
                f"{path}: FFCV wrote {end} bytes of {header['alloc_table_ptr'][0]}; expected all; is the disk full?"
            )
        file.write(allocations.tobytes())
        file.seek(0)
        file.write(header.tobytes() + described + table.tobytes())
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    fsync_folder(path.parent)
    return path


class _Counter:
    """Replaces multiprocessing.Value, whose semaphore needs /dev/shm; containers may lack it."""

    def __init__(self, kind: type, value: int) -> None:
        self.value = value

    def get_lock(self) -> AbstractContextManager[None]:
        """A null lock: there is one process and one thread."""
        return nullcontext()


def _allocator(module: Any, path: Path, page_bytes: int) -> Any:
    """FFCV's allocator, which appends pages to a file, for use in this process only."""
    shared, module.Value = module.Value, _Counter
    try:
        return module.MemoryAllocator(str(path), path.stat().st_size, page_bytes)
    finally:
        module.Value = shared


def _add(allocator: Any, split: Split, row: int, sample_id: int, table: np.ndarray, allocations: np.ndarray) -> None:
    """Copy one sample's bytes into a page of FFCV's allocator, and record their position."""
    jpeg = np.frombuffer(split.read(sample_id), dtype=np.uint8)
    allocator.set_current_sample(row)
    pointer, buffer = allocator.malloc(len(jpeg))
    buffer[:] = jpeg
    allocator.allocations.clear()  # else it keeps 150 bytes of Python objects per sample; `allocations` needs 24
    image, label = table.dtype.names or ()
    _, _, height, width = split.sizes[sample_id].tolist()
    table[image][row] = (0, width, height, pointer)  # mode 0: jpg
    table[label][row] = split.labels[sample_id]
    allocations[row] = (row, pointer, len(jpeg))


def _descriptors(ffcv: ModuleType, fields: dict[str, Any]) -> bytes:
    """The descriptors of the fields in the file header: type, name, arguments."""
    types = {handler: number for number, handler in ffcv.types.TYPE_ID_HANDLER.items()}
    described = np.zeros(len(fields), dtype=ffcv.types.FieldDescType)
    for descriptor, (name, field) in zip(described, fields.items(), strict=True):
        descriptor["type_id"] = types[type(field)]
        descriptor["name"][: len(name)] = np.frombuffer(name.encode("ascii"), dtype=np.uint8)
        descriptor["arguments"][:] = field.to_binary()[0]
    return described.tobytes()


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
    require=require,
    size_bytes=size_bytes,
    size_text=lambda dataset_size: "samples.beton, about",
    derive=derive_ffcv,
    problems=problems,
)
