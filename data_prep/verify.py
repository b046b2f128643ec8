"""`udkd-prep verify`: every byte of a dataset folder held against its checksums."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np

from data_prep.formats import WRITERS
from data_prep.report import report_problems
from udkd.data.dataset import DatasetFolder, Split
from udkd.data.derived import DERIVED, unfinished
from udkd.data.header import FILE_NAME as HEADER_NAME
from udkd.data.header import read_header
from udkd.data.shards import ShardPacker, read_sample, shard_name
from udkd.utils.errors import DataError
from udkd.utils.files import json_bytes, open_regular
from udkd.utils.progress import Observer


def verify(folder: Path, observer: Observer) -> list[str]:
    """What is wrong with the folder, a line each; nothing when it is whole.

    Opening checks dataset.json and the manifests (raises DataError). Then every stored sample's sha256, every other byte of
    the shards and of their indices, of dataset.json and report.json, and of the derived formats (the canvas by its rows'
    crc32, the others by their files' sha256).
    """
    dataset = DatasetFolder.open(folder)
    problems = [*_header_problems(dataset), *report_problems(dataset)]
    for split in dataset.splits.values():
        observer.start(f"verify {split.name}", len(split.ids), "images")
        for line in _shard_problems(split, observer):
            problems.append(line)
        observer.finish()
        for name in DERIVED:
            problems += WRITERS[name].problems(split) if split.has(name) else _orphans(split, name)
            problems += _unfinished(split, name)
    return problems


def _header_problems(dataset: DatasetFolder) -> Iterator[str]:
    """What opening need not know: the counts of excluded samples, and bytes that mean nothing."""
    path = dataset.path / HEADER_NAME
    header = read_header(dataset.path)
    if path.read_bytes() != json_bytes(header.model_dump(mode="json")):
        yield f"{path} is not written as udkd-prep writes it; expected no other hand in it; restore it"
    for name, part in header.splits.items():
        found = int(dataset.splits[name].excluded.sum())
        if part.excluded != found:
            yield f"{path} tells of {part.excluded} excluded {name} samples; expected {found} as in the manifest; restore it"


def _orphans(split: Split, name: str) -> Iterator[str]:
    """Data files of a derived format whose description is missing."""
    for path in sorted(path for pattern in DERIVED[name].data for path in split.path.glob(pattern)):
        yield (
            f"{path} has no {DERIVED[name].description} beside it; expected both or none; "
            f"write the format anew with udkd-prep derive --formats {name}"
        )


def _unfinished(split: Split, name: str) -> Iterator[str]:
    """Files under the temporary names of a derived format: a derive that was killed leaves them."""
    for path in unfinished(split.path, name):
        yield (
            f"{path} is half of a file; expected none, a derive was killed; "
            f"write the format anew with udkd-prep derive --formats {name}, or remove it"
        )


def _shard_problems(split: Split, observer: Observer) -> Iterator[str]:
    numbers = np.unique(split.shard[split.ids])
    wanted = {f"{shard_name(number)}{ending}" for number in numbers.tolist() for ending in (".tar", ".idx")}
    derived = {path for files in DERIVED.values() for pattern in files.data for path in split.path.glob(pattern)}
    derived |= {path for name in DERIVED for path in unfinished(split.path, name)}
    extra = {path.name for path in set(split.path.glob("samples-*")) - derived} - wanted
    yield from (f"{split.path / name} belongs to no sample; expected only the manifest's shards" for name in sorted(extra))
    for number in numbers.tolist():
        ids = np.flatnonzero((split.shard == number) & ~split.excluded)
        path = split.path / f"{shard_name(number)}.tar"
        if (np.diff(split.offset[ids]) < split.size[ids[:-1]]).any():
            yield f"{path} is to hold samples that overlap, by the manifest; expected each after the other; convert again"
            continue
        with contextlib.ExitStack() as stack:
            try:
                file = stack.enter_context(open_regular(path))
            except (OSError, ValueError) as error:
                yield f"{path} cannot be read ({error}); expected {len(ids):,} samples; restore it or convert again"
                continue
            yield from _one_shard(split, number, ids, file, observer)


def _one_shard(split: Split, number: int, ids: np.ndarray, file: BinaryIO, observer: Observer) -> Iterator[str]:
    """Every sample of a shard, then what lies between them (names, labels, padding): they are packed again and compared."""
    path, again, whole = split.path / f"{shard_name(number)}.tar", _ByteComparison(file), True
    packer = ShardPacker(cast(BinaryIO, again))
    for n in ids.tolist():
        try:
            where = split.path, number, int(split.offset[n]), int(split.size[n])
            data = read_sample(*where, split.sha256[n].tobytes(), split.describe(n))
            packer.add(n, data, int(split.labels[n]))
        except DataError as error:
            whole = False
            yield str(error)
        observer.advance(1)
    if not whole:
        return
    index = packer.finish().encode()
    if not again.same or file.read(1):
        yield f"{path} holds all samples, but other bytes between them; expected what udkd-prep wrote; restore it"
    index_path = path.with_suffix(".idx")
    if not index_path.is_file() or index_path.stat().st_size != len(index) or index_path.read_bytes() != index:
        yield f"{index_path} does not match its shard; expected what udkd-prep wrote; restore it or convert again"


class _ByteComparison:
    """What would be written, held against what a file has there. same: whether all of it was equal so far."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.same = True

    def write(self, data: bytes) -> None:
        self.same = self.same and self._file.read(len(data)) == data
