"""`udkd data verify`: checks every byte of a dataset folder against its checksums."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np

from udkd.data.dataset import DatasetFolder, Split
from udkd.data.derived import DERIVED, unfinished_files
from udkd.data.header import FILE_NAME as HEADER_NAME
from udkd.data.header import Header, read_header
from udkd.data.shards import ShardPacker, read_sample, shard_name
from udkd.data_prep.formats import WRITERS
from udkd.data_prep.report import report_problems
from udkd.utils.errors import DataError
from udkd.utils.files import json_bytes, open_regular
from udkd.utils.progress import Observer


def verify(folder: Path, observer: Observer) -> list[str]:
    """List the problems of a folder, one line each; empty if it is intact.

    Opening the folder checks the content of dataset.json and the manifests, and raises DataError. Then these are checked: the
    sha256 of every stored sample; all other bytes of the shards, their indices, dataset.json and report.json; and the derived
    formats (the canvas by the crc32 of its rows, the others by the sha256 of their files).
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
    """Problems of dataset.json that opening the folder does not detect: the counts of excluded samples, and changed bytes."""
    path = dataset.path / HEADER_NAME
    header = read_header(dataset.path)
    if path.read_bytes() != json_bytes(header.model_dump(mode="json")):
        yield f"{path} was changed after udkd data convert wrote it; expected the original bytes; restore it"
    yield from excluded_faults(header, dataset, path)


def excluded_faults(header: Header, dataset: DatasetFolder, path: object) -> Iterator[str]:
    """Yield a line for each split whose count of excluded samples is not the manifest's. path: of dataset.json."""
    for name, part in header.splits.items():
        excluded = int(dataset.splits[name].excluded.sum())
        if part.excluded != excluded:
            yield f"{path} lists {part.excluded} excluded {name} samples; expected {excluded} as in the manifest; restore it"


def _orphans(split: Split, name: str) -> Iterator[str]:
    """Problems: data files of a derived format that has no description."""
    for path in sorted(path for pattern in DERIVED[name].data for path in split.path.glob(pattern)):
        yield (
            f"{path} has no {DERIVED[name].description} beside it; expected both or none; "
            f"write the format again with udkd data derive --formats {name}"
        )


def _unfinished(split: Split, name: str) -> Iterator[str]:
    """Problems: temporary files of a derived format, left by a killed derive."""
    for path in unfinished_files(split.path, name):
        yield (
            f"{path} is an incomplete file of a killed derive; expected none; "
            f"write the format again with udkd data derive --formats {name}, or remove it"
        )


def extra_files(split: Split) -> list[Path]:
    """The files in a split's folder that are named like shards and belong to no sample."""
    expected = {f"{shard_name(number)}{ending}" for number in shard_numbers(split) for ending in (".tar", ".idx")}
    derived = {path for files in DERIVED.values() for pattern in files.data for path in split.path.glob(pattern)}
    derived |= {path for name in DERIVED for path in unfinished_files(split.path, name)}
    return sorted(path for path in set(split.path.glob("samples-*")) - derived if path.name not in expected)


def shard_numbers(split: Split) -> list[int]:
    """The numbers of a split's shards, ascending."""
    numbers: list[int] = np.unique(split.shard[split.ids]).tolist()
    return numbers


def _shard_problems(split: Split, observer: Observer) -> Iterator[str]:
    yield from (f"{path} belongs to no sample; expected only the manifest's shards" for path in extra_files(split))
    for number in shard_numbers(split):
        ids = np.flatnonzero((split.shard == number) & ~split.excluded)
        path = split.path / f"{shard_name(number)}.tar"
        if (np.diff(split.offset[ids]) < split.size[ids[:-1]]).any():
            yield f"{path} has overlapping samples by its manifest; expected one after the other; convert again"
            continue
        with contextlib.ExitStack() as stack:
            try:
                file = stack.enter_context(open_regular(path))
            except (OSError, ValueError) as error:
                yield f"{path} cannot be read ({error}); expected {len(ids):,} samples; restore it or convert again"
                continue
            yield from _check_shard(split, number, ids, file, observer)


def _check_shard(split: Split, number: int, ids: np.ndarray, file: BinaryIO, observer: Observer) -> Iterator[str]:
    """Check every sample in a shard, then the bytes between them (names, labels, padding) by packing the shard again."""
    path, comparison, intact = split.path / f"{shard_name(number)}.tar", _ByteComparison(file), True
    packer = ShardPacker(cast(BinaryIO, comparison))
    for n in ids.tolist():
        try:
            where = split.path, number, int(split.offset[n]), int(split.size[n])
            data = read_sample(*where, split.sha256[n].tobytes(), split.describe(n))
            packer.add(n, data, int(split.labels[n]))
        except DataError as error:
            intact = False
            yield str(error)
        observer.advance(1)
    if not intact:
        return
    index = packer.finish().encode()
    if not comparison.equal or file.read(1):
        yield f"{path} holds all samples, but unexpected bytes between them; expected what udkd data convert wrote; restore it"
    index_path = path.with_suffix(".idx")
    if not index_path.is_file() or index_path.stat().st_size != len(index) or index_path.read_bytes() != index:
        yield f"{index_path} does not match its shard; expected what udkd data convert wrote; restore it or convert again"


class _ByteComparison:
    """A writable file that compares what is written with another file. equal: whether all bytes have matched so far."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.equal = True

    def write(self, data: bytes) -> None:
        self.equal = self.equal and self._file.read(len(data)) == data
