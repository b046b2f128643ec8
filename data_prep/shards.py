"""Writes the tar shards of a split. Resumable at every shard; the bytes do not depend on the number of workers."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby, tee
from pathlib import Path

import PIL
from PIL import features

from udkd.data.manifest import Columns, ColumnsBuilder, ManifestRow, rows_to_columns
from udkd.data.shards import ShardWriter, shard_name
from udkd.data_prep.image import PixelSettings, Prepared
from udkd.data_prep.pool import Pool
from udkd.data_prep.prepare import PrepareJob, Sample, Task
from udkd.data_prep.sources import Source, StreamSource
from udkd.utils.files import write_json
from udkd.utils.progress import Observer

CHUNK_SAMPLES = 16  # per task: enough to hide the round trip
CHUNK_BYTES = 1 << 22  # per task of several samples: streams send the bytes along
CONVERTER_VERSION = 7  # raise it whenever the same source would give other bytes or other rows


@dataclass(frozen=True)
class _Shard:
    """A shard to write. first: id of its first sample. key: digest of everything that its bytes depend on."""

    number: int
    first: int
    samples: Sequence[Sample]
    key: str
    repair: bool


def write_shards(
    folder: Path,
    samples: Sequence[Sample],
    *,
    shard_samples: int,
    job: PrepareJob,
    pool: Pool[Task, list[Prepared | str]],
    observer: Observer,
) -> Columns:
    """Write the missing shards of a split; returns the columns of its manifest.

    Each finished shard has a sidecar file with its rows and its key, until `remove_sidecars`. A shard is written again if its
    sidecar is from other settings, or if its samples have changed since.
    """
    shards = [
        _Shard(first // shard_samples, first, part, _key(first, part, job.settings), job.settings.repair)
        for first in range(0, len(samples), shard_samples)
        for part in [samples[first : first + shard_samples]]
    ]
    _remove_others(folder, len(shards))
    finished = {shard.number: rows for shard in shards if (rows := _finished(folder, shard)) is not None}
    prepared = _prepared([shard for shard in shards if shard.number not in finished], job.sources, pool)
    columns = ColumnsBuilder()
    for shard in shards:
        if shard.number in finished:
            columns.extend(finished[shard.number])
            observer.advance(len(shard.samples))
        else:
            columns.extend(_write(folder, shard, prepared, observer))
    return columns.finish()


def _prepared(
    shards: Sequence[_Shard], sources: Sequence[Source], pool: Pool[Task, list[Prepared | str]]
) -> Iterator[tuple[Sample, Prepared | str]]:
    """Yield every sample of the shards with its result, in order. The workers run ahead across shard boundaries."""
    for chunk, results in zip(_chunks(shards), pool.ordered(_tasks(shards, sources)), strict=True):
        yield from zip(chunk, results, strict=True)


def _chunks(shards: Sequence[_Shard]) -> Iterator[list[Sample]]:
    for shard in shards:
        chunk: list[Sample] = []
        room = CHUNK_BYTES
        for sample in shard.samples:
            if chunk and (len(chunk) == CHUNK_SAMPLES or sample.entry.size > room):
                yield chunk
                chunk, room = [], CHUNK_BYTES
            chunk.append(sample)
            room -= sample.entry.size
        if chunk:
            yield chunk


def _tasks(shards: Sequence[_Shard], sources: Sequence[Source]) -> Iterator[Task]:
    """The chunks as tasks, with the bytes of the samples that can only be read in order."""
    samples = (sample for chunk in _chunks(shards) for sample in chunk)
    groups = groupby(samples, key=lambda sample: sample.source_index)
    read = (pair for index, group in groups for pair in _read(sources[index], group))
    return ([next(read) for _ in chunk] for chunk in _chunks(shards))


def _read(source: Source, samples: Iterator[Sample]) -> Iterator[tuple[Sample, bytes | None]]:
    if not isinstance(source, StreamSource):
        return ((sample, None) for sample in samples)
    ours, theirs = tee(samples)
    return zip(ours, source.read_in_order(sample.entry for sample in theirs), strict=True)


def _write(folder: Path, shard: _Shard, prepared: Iterator[tuple[Sample, Prepared | str]], observer: Observer) -> Columns:
    rows: list[ManifestRow] = []
    with ShardWriter(folder, shard.number) as writer:
        for sample_id, expected in enumerate(shard.samples, shard.first):
            sample, result = next(prepared)
            assert sample == expected  # an image under another id would silently corrupt labels and cached targets
            if isinstance(result, str):
                rows.append(ManifestRow(label=sample.label, source=sample.source, excluded=True, note=result))
            else:
                rows.append(_row(sample, result, shard.number, writer.add(sample_id, result.jpeg, sample.label)))
            observer.advance(1)
    packed = [asdict(row) | {"sha256": row.sha256.hex()} for row in rows]
    write_json(
        _sidecar(folder, shard.number),
        {"key": shard.key, "repair": shard.repair, "tar_bytes": _tar_bytes(folder, shard.number), "rows": packed},
    )
    return rows_to_columns(rows)


def _row(sample: Sample, prepared: Prepared, shard: int, offset: int) -> ManifestRow:
    return ManifestRow(
        label=sample.label,
        source=sample.source,
        source_height=prepared.source_height,
        source_width=prepared.source_width,
        height=prepared.height,
        width=prepared.width,
        sha256=prepared.sha256,
        crc32c=prepared.crc32c,
        note=prepared.note,
        shard=shard,
        offset=offset,
        size=len(prepared.jpeg),
    )


def _key(first: int, samples: Sequence[Sample], settings: PixelSettings) -> str:
    made_by = [CONVERTER_VERSION, PIL.__version__, features.version("libjpeg_turbo")]
    digest = hashlib.sha256(json.dumps([first, made_by, asdict(settings) | {"repair": None}], sort_keys=True).encode())
    for sample in samples:
        digest.update(f"{sample.label}\0{sample.source}\0{sample.entry.size}\0{sample.entry.stamp}\n".encode())
    return digest.hexdigest()


def _sidecar(folder: Path, number: int) -> Path:
    return folder / f"{shard_name(number)}.rows.json"


def _tar_bytes(folder: Path, number: int) -> int:
    path = folder / f"{shard_name(number)}.tar"
    return path.stat().st_size if path.exists() else 0


def _finished(folder: Path, shard: _Shard) -> Columns | None:
    try:
        sidecar = json.loads(_sidecar(folder, shard.number).read_bytes())
        if sidecar["key"] != shard.key or sidecar["tar_bytes"] != _tar_bytes(folder, shard.number):
            return None
        rows = [ManifestRow(**fields | {"sha256": bytes.fromhex(fields["sha256"])}) for fields in sidecar["rows"]]
        # `repair` matters only for shards with a bad image: after a change of --on-bad the others are reused.
        affected = any(row.excluded or "repaired:" in row.note for row in rows)
        return None if affected and sidecar["repair"] != shard.repair else rows_to_columns(rows)
    except (FileNotFoundError, ValueError, KeyError, TypeError, OverflowError):
        return None


def _remove_others(folder: Path, count: int) -> None:
    """Remove shards left by an earlier attempt with a larger source."""
    expected = {shard_name(number) for number in range(count)}
    for path in folder.glob("samples-*"):
        if path.name.split(".")[0] not in expected:
            path.unlink()


def remove_sidecars(folder: Path) -> None:
    """Remove the sidecars of a finished conversion."""
    for path in folder.glob("samples-*.rows.json"):
        path.unlink()
