"""Writes TFRecord files for DALI's readers.tfrecord: one per shard, with the index that DALI's tfrecord2idx writes.

A record is, in little-endian order: its length (uint64), the masked crc32c of these eight bytes, a tf.train.Example, and the
masked crc32c of the Example. Its features are `image/encoded` (the stored JPEG), `image/class/label` (from 0) and `image/id`
(the sample id, which identifies an image when the reader shuffles). Excluded samples have no record.
"""

import hashlib
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from udkd.data.dataset import DatasetFolder, Split
from udkd.data.derived import FileDigest, find_damage, seal
from udkd.data.shards import shard_name
from udkd.data_prep.formats.stored_samples import StoredSample, stored_samples
from udkd.data_prep.formats.writer import DatasetSize, FormatWriter, nothing_required
from udkd.data_prep.pool import Pool
from udkd.utils.crc32c import crc32c
from udkd.utils.files import atomic_write, write_bytes
from udkd.utils.progress import Observer

NAME = "dali"
RECORD_BYTES = 160  # upper bound on a record without its JPEG, including its line in the index


def masked_crc32c(data: bytes) -> int:
    """CRC-32C, rotated and offset for TFRecord (TensorFlow, core/lib/hash/crc32c.h)."""
    crc = crc32c(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def example(jpeg: bytes, label: int, sample_id: int) -> bytes:
    """A serialised tf.train.Example. Features are ordered by name, so equal samples have equal bytes."""
    features = (
        (b"image/class/label", _field(3, _field(1, _varint(label)))),
        (b"image/encoded", _field(1, _field(1, jpeg))),
        (b"image/id", _field(3, _field(1, _varint(sample_id)))),
    )
    entries = (_field(1, _field(1, name) + _field(2, feature)) for name, feature in features)
    return _field(1, b"".join(entries))


def _field(number: int, data: bytes) -> bytes:
    """A length-delimited protobuf field."""
    return bytes([number << 3 | 2]) + _varint(len(data)) + data


def _varint(value: int) -> bytes:
    parts = bytearray()
    while value > 0x7F:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*parts, value])


class RecordWriter:
    """Writes records to an open file and builds their index, which has a line `offset size` (bytes) per record."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._digest = hashlib.sha256()
        self._index: list[str] = []
        self._position = 0

    def add(self, data: bytes) -> None:
        """Append one record."""
        length = struct.pack("<Q", len(data))
        head = length + struct.pack("<I", masked_crc32c(length))
        for part in (head, data, struct.pack("<I", masked_crc32c(data))):
            self._file.write(part)
            self._digest.update(part)
        size = len(head) + len(data) + 4
        self._index.append(f"{self._position} {size}\n")
        self._position += size

    def finish(self) -> tuple[FileDigest, bytes]:
        """The size and checksum of the file, and its index."""
        return FileDigest(size=self._position, sha256=self._digest.hexdigest()), "".join(self._index).encode()


@dataclass(frozen=True)
class ShardTask:
    """The samples of one shard of one split folder."""

    folder: Path
    number: int
    samples: Sequence[StoredSample]


def pack_shard(task: ShardTask) -> dict[str, FileDigest]:
    """Write the TFRecord of a shard and its index; returns their checksums by name. Raises DataError and OSError."""
    path = task.folder / f"{shard_name(task.number)}.tfrecord"
    with atomic_write(path) as file:
        writer = RecordWriter(file)
        for sample in task.samples:
            writer.add(example(sample.read(task.folder), sample.label, sample.sample_id))
        records, index = writer.finish()
    index_path = path.with_name(path.name + ".idx")
    write_bytes(index_path, index)
    return {path.name: records, index_path.name: FileDigest(size=len(index), sha256=hashlib.sha256(index).hexdigest())}


def derive_tfrecord(dataset: DatasetFolder, workers: int, observer: Observer) -> None:
    """Write the TFRecords of every split, shard by shard in parallel. Raises DataError (a damaged sample) and OSError."""
    observer.start(NAME, sum(len(split.ids) for split in dataset.splits.values()), "images")
    with Pool(pack_shard, workers) as pool:
        for split in dataset.splits.values():
            files: dict[str, FileDigest] = {}
            shards = list(_shards(split))
            tasks = (ShardTask(split.path, number, stored_samples(split, ids)) for number, ids in shards)
            for (_, ids), digests in zip(shards, pool.ordered(tasks), strict=True):
                files |= digests
                observer.advance(len(ids))
            seal(split.path, NAME, digest=dataset.digest, files=files)
    observer.finish()


def _shards(split: Split) -> Iterator[tuple[int, np.ndarray]]:
    """Yield the number and the ids of each shard, in ascending order."""
    numbers = split.shard[split.ids]
    starts = np.flatnonzero(np.diff(numbers, prepend=-1))
    yield from zip(numbers[starts].tolist(), np.split(split.ids, starts[1:]), strict=True)


def size_bytes(dataset_size: DatasetSize) -> int | None:
    """An upper bound on the size of the files, in bytes; None if it is not known yet."""
    return None if dataset_size.stored is None else dataset_size.stored + RECORD_BYTES * dataset_size.samples


def problems(split: Split) -> Iterator[str]:
    """Problems of the files, found by checking every byte against tfrecord.json."""
    yield from find_damage(split.path, NAME, digest=split.digest)


WRITER = FormatWriter(
    files="samples-*.tfrecord and .idx",
    require=nothing_required,
    size_bytes=size_bytes,
    size_text=lambda dataset_size: f"TFRecord of {dataset_size.samples:,} samples,",
    derive=derive_tfrecord,
    problems=problems,
)
