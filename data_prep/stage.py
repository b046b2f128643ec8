"""`udkd data stage`: copies a dataset folder from a shared disk or an address to a folder near the node.

Every byte is checked: the manifests by the sha256 in dataset.json; the images by the crc32c in the manifest, as in every read
in training (`verify` checks their sha256); dataset.json by its digest of all these; report.json by its own checksum. What is
between the images in a shard, and its index, follows from the manifest, so it is written from that and not copied.

Until all files are there and synced, dataset.json is called staging.json. No file of an unfinished folder is trusted: its
images are checked like those of the source, and only the others are read from there.
"""

import contextlib
import hashlib
import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self, cast

import numpy as np

from udkd.data.dataset import DatasetFolder, Split
from udkd.data.derived import DERIVED, is_derived, read_sealed
from udkd.data.header import FILE_NAME as HEADER_NAME
from udkd.data.header import MAX_BYTES as MAX_HEADER_BYTES
from udkd.data.header import Header, SplitHeader, parse_header, read_header
from udkd.data.manifest import FILE_NAME as MANIFEST_NAME
from udkd.data.shards import BLOCK as TAR_BLOCK
from udkd.data.shards import ShardPacker, shard_bytes, shard_name
from udkd.data_prep.convert import LOCK_NAME, name_folder
from udkd.data_prep.formats import (
    WRITERS,
    DatasetSize,
    default_formats,
    derive_formats,
    discard_formats,
    format_bytes,
    require_free,
)
from udkd.data_prep.formats.resident import write_all
from udkd.data_prep.report import FILE_NAME as REPORT_NAME
from udkd.data_prep.report import report_faults
from udkd.data_prep.sources.address import Location
from udkd.data_prep.sources.byte_stream import BLOCK, ByteStream
from udkd.data_prep.verify import excluded_faults, extra_files
from udkd.utils.crc32c import crc32c
from udkd.utils.errors import BusyError, DataError
from udkd.utils.files import (
    FolderLock,
    atomic_write,
    fsync_folder,
    read_regular,
    sha256_file,
    write_bytes,
    write_json,
)
from udkd.utils.progress import Observer

STAGING_NAME = "staging.json"
POLL_S = 0.5
MAX_WAIT_S = 12 * 3600.0  # for another process of the node; longer than any copy
MAX_REPORT_BYTES = 1 << 30
_REMEDY = "check the source with udkd data verify, and run the same command again"


@dataclass(frozen=True, kw_only=True)
class Staged:
    """What was done. copied_bytes: of shards, from the source, in `seconds`. kept_bytes: of shards that the folder had.

    formats: derived in the folder.
    """

    copied_bytes: int = 0
    kept_bytes: int = 0
    seconds: float = 0.0
    formats: tuple[str, ...] = ()


def stage(
    source: Location, folder: Path, *, formats: Sequence[str] | None = (), workers: int = 1, observer: Observer
) -> Staged | None:
    """Copy the dataset folder at `source` to `folder`, then derive formats there. After an interruption, the same call resumes.

    formats: None for `default_formats`. Returns None if there was nothing to do: a folder with a dataset.json is checked by
    the sizes of its files and its records. One process of a machine works; others that have the same folder wait for it.
    Raises DataError (not a dataset, a damaged or unreadable source, another dataset in `folder`, a full disk), ConfigError (a
    missing package), BusyError and OSError.
    """
    if isinstance(source, Path):
        header = read_header(source)
        _check_separate(source, folder)
    else:
        header = parse_header(_read(source / HEADER_NAME, MAX_HEADER_BYTES), source / HEADER_NAME)
    names = default_formats(header.fit, header.side) if formats is None else tuple(formats)
    for name in names:
        WRITERS[name].require()
    _check_target(folder, header, source)
    if _has_all(folder, names):
        return None
    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        _enter_when_free(stack, FolderLock(folder), observer)
        stack.enter_context(name_folder(folder))
        _check_target(folder, header, source)
        if _has_all(folder, names):  # another process has done it
            return None
        return _stage(source, folder, header, names, workers, observer)


def _has_all(folder: Path, formats: Sequence[str]) -> bool:
    dataset = _complete(folder)
    return dataset is not None and not _missing(dataset, formats)


def _stage(source: Location, folder: Path, header: Header, formats: Sequence[str], workers: int, observer: Observer) -> Staged:
    dataset = _complete(folder)
    if dataset is not None:
        missing = _missing(dataset, formats)
        derive_formats(dataset, missing, workers=workers, observer=observer)
        return Staged(formats=missing)
    write_json(folder / STAGING_NAME, header.model_dump(mode="json"))
    (folder / HEADER_NAME).unlink(missing_ok=True)
    dataset = _copy_records(source, folder, header)
    missing = _missing(dataset, formats)
    discard_formats(dataset, _missing(dataset, DERIVED))
    for split in dataset.splits.values():
        _remove_leftovers(split)
    _check_room(dataset, missing)
    _tell_of_formats(source, dataset, formats, observer)
    started = time.monotonic()
    copied, kept = _copy_shards(source, dataset, observer)
    _sync(dataset)
    seconds = time.monotonic() - started
    derive_formats(dataset, missing, workers=workers, observer=observer)
    os.replace(folder / STAGING_NAME, folder / HEADER_NAME)
    fsync_folder(folder)
    return Staged(copied_bytes=copied, kept_bytes=kept, seconds=seconds, formats=missing)


def _tell_of_formats(source: Location, dataset: DatasetFolder, formats: Sequence[str], observer: Observer) -> None:
    """Say which derived formats of a source on a disk the copy will not have."""
    if isinstance(source, Path):
        there = [name for name in DERIVED if all(is_derived(source / split, name) for split in dataset.splits)]
        left = [name for name in there if name not in (*formats, *dataset.formats)]
        if left:
            observer.note(f"not copied, as they can be made from the shards: add --formats {','.join(left)}")


def _check_separate(source: Path, folder: Path) -> None:
    path, target = source.resolve(), folder.resolve()
    if path == target or path in target.parents or target in path.parents:
        raise DataError(f"{folder} and the source {source} are one folder or one inside the other; expected two; give another")


def _check_target(folder: Path, header: Header, source: Location) -> None:
    """Raise DataError if the folder holds another dataset or other files. Nothing is written."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise DataError(f"{folder} is a file; expected a folder to copy to; give another path")
    for name in (HEADER_NAME, STAGING_NAME):
        if (folder / name).is_file():
            digest = parse_header(read_regular(folder / name, MAX_HEADER_BYTES), folder / name).digest
            if digest != header.digest:
                raise DataError(
                    f"{folder} holds another dataset, of digest {digest[:16]}…; expected {header.digest[:16]}… as in {source}; "
                    "give another path, or remove it"
                )
            return
    others = {path.name for path in folder.iterdir()} - {LOCK_NAME, STAGING_NAME + ".tmp"}
    if others:
        raise DataError(f"{folder} holds other files, such as {min(others)}; expected a new or empty folder; give another path")


def _enter_when_free(stack: contextlib.ExitStack, lock: FolderLock, observer: Observer) -> None:
    """Enter a lock, waiting for its holder. Raises BusyError after MAX_WAIT_S."""
    end, told = time.monotonic() + MAX_WAIT_S, False
    while True:
        try:
            stack.enter_context(lock)
        except BusyError as error:
            if time.monotonic() > end:
                raise
            if not told:
                observer.note(f"{str(error).partition(';')[0]}; waiting until it has finished")
            told = True
            time.sleep(POLL_S)
        else:
            return


def _complete(folder: Path) -> DatasetFolder | None:
    """The dataset folder if all of its files are there, by their sizes and records; None to copy what is missing."""
    if not (folder / HEADER_NAME).exists() or not (folder / REPORT_NAME).is_file():
        return None
    try:
        dataset = DatasetFolder.open(folder)
    except DataError:
        return None
    sizes = {path: size for split in dataset.splits.values() for path, size in _shard_sizes(split).items()}
    indices = [path.with_suffix(".idx") for path in sizes]
    complete = all(_size(path) == size for path, size in sizes.items()) and all(path.is_file() for path in indices)
    return dataset if complete else None


def _shard_sizes(split: Split) -> dict[Path, int]:
    """The shards of a split and their sizes in bytes."""
    last = {number: ids[-1] for number, ids in _ids_by_shard(split).items()}
    return {split.shard_path(n): shard_bytes(int(split.offset[n]), int(split.size[n])) for n in last.values()}


def _ids_by_shard(split: Split) -> dict[int, np.ndarray]:
    """The ids in each shard, ascending."""
    ids = split.ids[np.argsort(split.shard[split.ids], kind="stable")]
    numbers, starts = np.unique(split.shard[ids], return_index=True)
    return dict(zip(numbers.tolist(), np.split(ids, starts[1:]), strict=False))  # without ids there is one empty part


def _size(path: Path) -> int:
    """The size of a file, bytes; 0 if there is none."""
    return path.stat().st_size if path.is_file() else 0


def _missing(dataset: DatasetFolder, formats: Iterable[str]) -> tuple[str, ...]:
    """Those of the formats that a split lacks, or whose files have other sizes than their descriptions say."""
    return tuple(name for name in formats if not all(_has(split, name) for split in dataset.splits.values()))


def _has(split: Split, name: str) -> bool:
    try:
        if name == "resident":
            split.canvas()
        else:
            read_sealed(split.path, name, digest=split.digest)
    except DataError:
        return False
    return True


def _copy_records(source: Location, folder: Path, header: Header) -> DatasetFolder:
    """Copy manifests and report; returns the dataset, whose shards may be missing. Raises DataError for a damaged source."""
    for name, part in header.splits.items():
        (folder / name).mkdir(exist_ok=True)
        _copy_manifest(source / name / MANIFEST_NAME, folder / name / MANIFEST_NAME, part)
    dataset = DatasetFolder.load(folder, header, before_shards=True)
    report = _read(source / REPORT_NAME, MAX_REPORT_BYTES)
    for line in (
        *excluded_faults(header, dataset, source / HEADER_NAME),
        *report_faults(report, source / REPORT_NAME, header.digest),
    ):
        raise DataError(line)
    write_bytes(folder / REPORT_NAME, report)
    return dataset


def _read(location: Location, max_bytes: int) -> bytes:
    with ByteStream(location).reader() as reader:
        return reader.read(max_bytes)


def _copy_manifest(source: Location, path: Path, part: SplitHeader) -> None:
    if _size(path) == part.manifest_bytes and sha256_file(path) == part.manifest_sha256:
        return
    digest = hashlib.sha256()
    with ByteStream(source).reader() as reader, atomic_write(path) as file:
        while data := reader.read(BLOCK):
            digest.update(data)
            file.write(data)
        if digest.hexdigest() != part.manifest_sha256:
            raise DataError(
                f"{source} has sha256 {digest.hexdigest()}; expected {part.manifest_sha256} as in dataset.json; {_REMEDY}"
            )


def _remove_leftovers(split: Split) -> None:
    """Remove what belongs to no sample: shards of another packing of the same images, and files of killed writers."""
    unfinished = {path.with_name(path.name + ".tmp") for path in _shard_sizes(split)}
    for path in {*extra_files(split), *split.path.glob("*.tmp")} - unfinished:
        path.unlink()


def _check_room(dataset: DatasetFolder, formats: Sequence[str]) -> None:
    """Raise DataError if the disk is too small for what is missing, after removing the records if no shard was copied yet."""
    sizes = {path: size for split in dataset.splits.values() for path, size in _shard_sizes(split).items()}
    present = sum(_size(path) + _size(path.with_name(path.name + ".tmp")) for path in sizes)
    need = sum(sizes.values()) + format_bytes(formats, DatasetSize.of(dataset)) - present
    try:
        what = " and ".join(("the shards", *formats))
        require_free(f"{what} take{' another' if present else ''}", need, dataset.path, "free some or give another folder")
    except DataError:
        if not present:
            for split in dataset.splits.values():
                (split.path / MANIFEST_NAME).unlink()
                with contextlib.suppress(OSError):  # it is not empty
                    split.path.rmdir()
            for name in (REPORT_NAME, STAGING_NAME):
                (dataset.path / name).unlink()
        raise


def _copy_shards(source: Location, dataset: DatasetFolder, observer: Observer) -> tuple[int, int]:
    """Copy the shards one after the other, in order. Returns the bytes read from the source, and those found in the folder."""
    total = sum(sum(_shard_sizes(split).values()) for split in dataset.splits.values())
    progress = _Progress(total, observer)
    copied = kept = 0
    for split in dataset.splits.values():
        for number, ids in _ids_by_shard(split).items():
            parts = _copy_shard(source / split.name / f"{shard_name(number)}.tar", split, ids, progress)
            copied, kept = copied + parts[0], kept + parts[1]
    observer.finish()
    return copied, kept


class _Progress:
    """Shows bytes as MB."""

    def __init__(self, total_bytes: int, observer: Observer) -> None:
        self._bytes, self._observer = 0, observer
        observer.start("stage", -(-total_bytes // 10**6), "MB")

    def advance(self, num_bytes: int) -> None:
        before = self._bytes // 10**6
        self._bytes += num_bytes
        if self._bytes // 10**6 > before:
            self._observer.advance(self._bytes // 10**6 - before)


def _copy_shard(source: Location, split: Split, ids: np.ndarray, progress: _Progress) -> tuple[int, int]:
    """Write the shard with these samples from the images in its unfinished file and, where they are not intact, in the source.

    Returns the bytes of samples from the source, and of the others. Raises DataError; what was written stays for the next try.
    """
    path = split.shard_path(int(ids[0]))
    unfinished = path.with_name(path.name + ".tmp")
    if path.exists():
        os.replace(path, unfinished)  # checked like any other
    copied = kept = 0
    with ByteStream(source).reader() as reader, _ShardFile(unfinished) as file:
        packer = ShardPacker(cast(BinaryIO, file))
        columns = (ids, split.offset[ids], split.size[ids], split.crc32c[ids], split.labels[ids])
        for n, offset, size, crc, label in zip(*(column.tolist() for column in columns), strict=True):
            start = file.position
            if offset != start + TAR_BLOCK:
                raise DataError(
                    f"{split.describe(n)} is at byte {offset} of {source} by the manifest; expected {start + TAR_BLOCK}, where "
                    "udkd data convert puts it; convert again"
                )
            data = file.read(offset, size)
            intact = len(data) == size and crc32c(data) == crc
            if not intact:
                reader.seek(offset)
                data = reader.read(size)
                found = crc32c(data)
                if len(data) != size or found != crc:
                    raise DataError(
                        f"{source}: {split.describe(n)} has crc32c {found:08x} ({len(data)} of {size} bytes read); expected "
                        f"{crc:08x} as in the manifest; {_REMEDY}"
                    )
            packer.add(n, data, label)
            num_bytes = file.position - start
            copied, kept = (copied, kept + num_bytes) if intact else (copied + num_bytes, kept)
            progress.advance(num_bytes)
        index = packer.finish()
        file.finish()
    os.replace(unfinished, path)
    path.with_suffix(".idx").write_text(index)
    return copied, kept


def _sync(dataset: DatasetFolder) -> None:
    """Make the shards durable. Once, at the end: until then the kernel writes while the next shards are copied."""
    for split in dataset.splits.values():
        for path in _shard_sizes(split):
            for file in (path, path.with_suffix(".idx")):
                descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
                try:
                    os.fsync(descriptor)
                finally:
                    os.close(descriptor)
        fsync_folder(split.path)


class _ShardFile:
    """A file to write from its start, which may hold a part of the same bytes: only blocks that differ are written.

    position: the number of bytes written so far.
    """

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        self._present = os.fstat(self._descriptor).st_size
        self._block: list[bytes] = []
        self._block_start = self.position = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if error is not None:
            with contextlib.suppress(OSError):  # such as the error that ends the block
                self._flush()  # for the next attempt
        os.close(self._descriptor)

    def read(self, offset: int, size: int) -> bytes:
        """What the file holds after `position`; nothing if it is shorter."""
        return os.pread(self._descriptor, size, offset) if offset + size <= self._present else b""

    def write(self, data: bytes) -> None:
        """Append bytes."""
        self._block.append(data)
        self.position += len(data)
        if self.position - self._block_start >= BLOCK:
            self._flush()

    def finish(self) -> None:
        """Write what waits, and cut off what is beyond."""
        self._flush()
        if self._present > self.position:
            os.ftruncate(self._descriptor, self.position)

    def _flush(self) -> None:
        block = b"".join(self._block)
        if self.read(self._block_start, len(block)) != block:
            write_all(self._descriptor, memoryview(block), self._block_start)
        self._block.clear()
        self._block_start = self.position
