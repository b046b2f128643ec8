"""`udkd-prep verify`: every byte of a dataset folder held against its checksums."""

from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np

from data_prep.derived import DERIVED_FORMATS
from udkd.formats.dataset import DERIVED, DatasetFolder, ShardPacker, Split, read_sample, shard_name
from udkd.words.errors import DataError
from udkd.words.observer import Observer


def verify(folder: Path, observer: Observer) -> list[str]:
    """What is wrong with the folder, a line each; nothing when it is whole.

    Opening checks dataset.json and the manifests (raises DataError). Then every stored sample's sha256, every other byte of
    the shards and of their indices, and every byte of the derived formats (the canvas by its rows' crc32).
    """
    dataset = DatasetFolder.open(folder)
    problems: list[str] = []
    for split in dataset.splits.values():
        observer.start(f"verify {split.name}", len(split.ids), "images")
        for line in _shard_problems(split, observer):
            problems.append(line)
        observer.finish()
        for name, derived in DERIVED_FORMATS.items():
            if split.has(name):
                problems += derived.problems(split)
    return problems


def _shard_problems(split: Split, observer: Observer) -> Iterator[str]:
    numbers = np.unique(split.shard[split.ids])
    wanted = {f"{shard_name(number)}{ending}" for number in numbers.tolist() for ending in (".tar", ".idx")}
    derived = {path for files in DERIVED.values() for pattern in files.data for path in split.path.glob(pattern)}
    extra = {path.name for path in set(split.path.glob("samples-*")) - derived} - wanted
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
