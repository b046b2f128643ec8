"""Writes the resident format, canvas.npy, by decoding the shards in parallel."""

import os
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from udkd.data.canvas import CanvasWriter, canvas_bytes, decode_canvas
from udkd.data.dataset import DatasetFolder, Split
from udkd.data_prep.formats.stored_samples import StoredSample, stored_samples
from udkd.data_prep.formats.writer import DatasetSize, FormatWriter, nothing_required
from udkd.data_prep.pool import Pool
from udkd.utils.errors import DataError
from udkd.utils.progress import Observer

NAME = "resident"
CHUNK_SAMPLES = 64
MAX_LISTED_ROWS = 20


@dataclass(frozen=True)
class DecodeTask:
    """Samples of one split folder to decode into the unfinished canvas file, whose rows start at byte `start`."""

    folder: Path
    canvas: Path
    start: int
    samples: Sequence[StoredSample]


@dataclass(frozen=True)
class DecodeJob:
    """Decodes samples into their rows of the canvas file. Returns the crc32 of each row, uint32 [n]."""

    side: int

    def __call__(self, task: DecodeTask) -> np.ndarray:
        checksums = np.empty(len(task.samples), dtype=np.uint32)
        row_bytes = canvas_bytes(1, self.side)
        descriptor = os.open(task.canvas, os.O_WRONLY | os.O_CLOEXEC)
        try:
            for n, sample in enumerate(task.samples):
                jpeg = sample.read(task.folder)
                row = decode_canvas(jpeg, self.side, height=sample.height, width=sample.width, what=sample.what).tobytes()
                checksums[n] = zlib.crc32(row)
                write_all(descriptor, memoryview(row), task.start + sample.sample_id * row_bytes)
        finally:
            os.close(descriptor)
        return checksums


def write_all(descriptor: int, data: memoryview, offset: int) -> None:
    """Write all bytes at a position of an open file; pwrite may write fewer."""
    while data:
        written = os.pwrite(descriptor, data, offset)
        data, offset = data[written:], offset + written


def size_text(dataset_size: DatasetSize) -> str:
    """The shape of all canvases together, as a text."""
    return f"{dataset_size.samples:,} x {dataset_size.side} x {dataset_size.side} x 3 ="


def size_bytes(dataset_size: DatasetSize) -> int:
    """The size of all splits' canvas.npy, in bytes."""
    return canvas_bytes(dataset_size.samples, dataset_size.side)


def derive_resident(dataset: DatasetFolder, workers: int, observer: Observer) -> None:
    """Write canvas.npy of every split from the shards. Raises DataError (a damaged sample) and OSError."""
    observer.start(NAME, sum(len(split.ids) for split in dataset.splits.values()), "images")
    with Pool(DecodeJob(dataset.side), workers) as pool:
        for split in dataset.splits.values():
            _derive_split(split, pool, observer)
    observer.finish()


def _derive_split(split: Split, pool: Pool[DecodeTask, np.ndarray], observer: Observer) -> None:
    writer = CanvasWriter(split.path, num_samples=split.num_samples, side=split.side, digest=split.digest)
    # The rows of excluded samples remain zero.
    crc32 = np.full(split.num_samples, zlib.crc32(bytes(writer.row_bytes)), dtype=np.uint32)
    chunks = np.split(split.ids, range(CHUNK_SAMPLES, len(split.ids), CHUNK_SAMPLES))
    tasks = (DecodeTask(split.path, writer.temporary, writer.start, stored_samples(split, ids)) for ids in chunks)
    for ids, checksums in zip(chunks, pool.ordered(tasks), strict=True):
        crc32[ids] = checksums
        observer.advance(len(ids))
    writer.finish(crc32)


def problems(split: Split) -> Iterator[str]:
    """Problems of the files, found by checking every row of canvas.npy against its crc32."""
    try:
        canvas, crc32 = split.canvas()
    except DataError as error:
        yield str(error)
        return
    damaged = (n for n in range(split.num_samples) if zlib.crc32(canvas[n]) != crc32[n])
    for count, n in enumerate(damaged):
        if count == MAX_LISTED_ROWS:
            yield f"{split.path / 'canvas.npy'}: and more rows"
            return
        yield f"{split.describe(n)}: its row of canvas.npy does not match its checksum; expected it to; run udkd data derive"


WRITER = FormatWriter(
    files="canvas.npy",
    require=nothing_required,
    size_bytes=size_bytes,
    size_text=size_text,
    derive=derive_resident,
    problems=problems,
)
