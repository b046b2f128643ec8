"""`udkd-prep verify`: every byte of a dataset folder held against its checksums."""

import zlib
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np

from udkd.formats.dataset import DatasetFolder, ShardPacker, Split, read_sample, shard_name
from udkd.words.errors import DataError
from udkd.words.observer import Observer

NAMED_ROWS = 20


def verify(folder: Path, observer: Observer) -> list[str]:
    """What is wrong with the folder, a line each; nothing when it is whole.

    Opening checks dataset.json and the manifests (raises DataError). Then every stored sample's sha256, every other byte of
    the shards and of their indices, and every canvas row's crc32.
    """
    dataset = DatasetFolder.open(folder)
    problems: list[str] = []
    for split in dataset.splits.values():
        observer.start(f"verify {split.name}", len(split.ids), "images")
        for line in _shard_problems(split, observer):
            problems.append(line)
        observer.finish()
        if split.has_canvas():
            problems += _canvas_problems(split)
    return problems


def _shard_problems(split: Split, observer: Observer) -> Iterator[str]:
    numbers = np.unique(split.shard[split.ids])
    wanted = {f"{shard_name(number)}{ending}" for number in numbers.tolist() for ending in (".tar", ".idx")}
    extra = {path.name for path in split.path.glob("samples-*")} - wanted
    yield from (f"{split.path / name} belongs to no sample; expected only the manifest's shards" for name in sorted(extra))
    for number in numbers.tolist():
        ids = np.flatnonzero((split.shard == number) & ~split.excluded)
        before = True
        samples: list[tuple[int, bytes]] = []
        path = split.path / f"{shard_name(number)}.tar"
        for n in ids.tolist():
            try:
                data = read_sample(path, int(split.offset[n]), int(split.size[n]), split.sha256[n].tobytes(), split.describe(n))
                samples.append((n, data))
            except DataError as error:
                before = False
                yield str(error)
            observer.advance(1)
        if before:
            yield from _packing_problems(split, path, samples)


def _packing_problems(split: Split, path: Path, samples: list[tuple[int, bytes]]) -> Iterator[str]:
    """What lies between the samples (names, labels, padding): pack them again and compare."""
    buffer = BytesIO()
    packer = ShardPacker(cast(BinaryIO, buffer))
    for n, data in samples:
        packer.add(n, data, int(split.labels[n]))
    index = packer.finish()
    if path.read_bytes() != buffer.getbuffer():
        yield f"{path} holds all samples, but other bytes between them; expected what udkd-prep wrote; restore it"
    index_path = path.with_suffix(".idx")
    if not index_path.is_file() or index_path.read_bytes() != index.encode():
        yield f"{index_path} does not match its shard; expected what udkd-prep wrote; restore it or convert again"


def _canvas_problems(split: Split) -> Iterator[str]:
    try:
        canvas, crc32 = split.canvas()
    except DataError as error:
        yield str(error)
        return
    found = (n for n in range(split.num_samples) if zlib.crc32(canvas[n]) != crc32[n])
    for count, n in enumerate(found):
        if count == NAMED_ROWS:
            yield f"{split.path / 'canvas.npy'}: and more rows"
            return
        yield f"{split.describe(n)}: its row of canvas.npy does not match its checksum; expected it to; run udkd-prep derive"
