"""Rows of parquet shards: names, labels, and the bytes of images."""

import json
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from data_prep.classes import wnids_of
from data_prep.sources.named_split import class_of_label, split_of
from data_prep.sources.source import Entry, EntryTable, Listing, PassedOver
from udkd.words.errors import DataError

LABEL_COLUMNS = ("label", "labels", "fine_label")


def list_rows(path: Path, files: Sequence[Path]) -> Listing:
    """See Parquet.list."""
    entries, ignored = EntryTable(), PassedOver()
    for file in files:
        try:
            for entry in _rows(file, "" if file == path else str(file.relative_to(path)), ignored):
                entries.append(entry)
        except (pa.ArrowException, OSError) as error:
            text = str(error).splitlines()[0]
            raise DataError(f"{file} cannot be read ({text}); expected a whole parquet file; fetch it again") from None
    return Listing(entries=entries, ignored=ignored, sequential=True)


def read_row(file: Path, row: int) -> bytes:
    """The image's bytes. The row group last read is kept: its other rows come next."""
    try:
        values, first = _row_group(file, _group_of(file, row))
        value = values[row - first].as_py()
    except pa.ArrowException as error:
        raise OSError(5, str(error).splitlines()[0], str(file)) from None
    return bytes(value or b"")


def _rows(file: Path, key: str, ignored: PassedOver) -> Iterator[Entry]:
    with pq.ParquetFile(file) as parquet:
        image, label = _columns(file, parquet.schema_arrow)
        names = _class_names(parquet.schema_arrow, label)
        stamp, split, stem = file.stat().st_mtime_ns, split_of(Path(key or file.name)), Path(key or file.name).stem
        row = 0
        for batch in parquet.iter_batches(batch_size=256, columns=[image, label]):
            sizes = _sizes(batch.column(0))
            for size, number, path in zip(sizes, batch.column(1).to_pylist(), _paths(batch.column(0)), strict=True):
                name = f"{stem}/{row:06d}" + (f"-{path.rsplit('/', 1)[-1]}" if path else "")
                if number is None or number == -1:  # -1: test sets without labels
                    ignored.append(name)
                else:
                    yield Entry(split, _class_name(file, number, names), name, key, row, size, stamp)
                row += 1


def _columns(file: Path, schema: pa.Schema) -> tuple[str, str]:
    """The image and the label column. Raises DataError where there is not one of each."""
    images = [field.name for field in schema if pa.types.is_struct(field.type) and field.type.get_field_index("bytes") >= 0]
    images += [field.name for field in schema if pa.types.is_binary(field.type) or pa.types.is_large_binary(field.type)]
    labels = [name for name in LABEL_COLUMNS if name in schema.names]
    if not images or not labels:
        raise DataError(
            f"{file} has the columns {', '.join(schema.names)}; expected an image column (a struct with `bytes`, or binary) "
            f"and a label column ({', '.join(LABEL_COLUMNS)}); choose another source"
        )
    return images[0], labels[0]


def _class_names(schema: pa.Schema, label: str) -> Sequence[str] | None:
    """The names that `datasets` writes into the schema's metadata, as wnids where they are ImageNet's; or nothing."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        names = features[label]["names"]
    except (KeyError, ValueError, TypeError):
        return None
    if not isinstance(names, list):
        return None
    return wnids_of([str(name) for name in names]) or [str(name).replace("/", "-") for name in names]


def _class_name(file: Path, label: object, names: Sequence[str] | None) -> str:
    if isinstance(label, str):
        return label
    if not isinstance(label, int) or label < 0 or (names is not None and label >= len(names)):
        raise DataError(f"{file} holds the label {label!r}; expected a class number or name; choose another source")
    return class_of_label(label) if names is None else names[label]


def _bytes_of(images: pa.Array) -> pa.Array:
    return images.field("bytes") if pa.types.is_struct(images.type) else images


def _sizes(images: pa.Array) -> list[int]:
    return [size or 0 for size in pc.binary_length(_bytes_of(images)).to_pylist()]


def _paths(images: pa.Array) -> list[str | None]:
    if pa.types.is_struct(images.type) and images.type.get_field_index("path") >= 0:
        return list(images.field("path").to_pylist())
    return [None] * len(images)


@lru_cache(maxsize=256)
def _starts(path: Path) -> tuple[int, ...]:
    """The first row of each row group, and the number of rows."""
    metadata = pq.read_metadata(path)
    starts = [0]
    for group in range(metadata.num_row_groups):
        starts.append(starts[-1] + metadata.row_group(group).num_rows)
    return tuple(starts)


def _group_of(path: Path, row: int) -> int:
    return next(group for group, end in enumerate(_starts(path)[1:]) if row < end)


@lru_cache(maxsize=1)
def _row_group(path: Path, group: int) -> tuple[pa.ChunkedArray, int]:
    """The image bytes of a row group, and its first row."""
    with pq.ParquetFile(path) as parquet:
        image, _ = _columns(path, parquet.schema_arrow)
        table = parquet.read_row_group(group, columns=[image], use_threads=False)
    return _bytes_of(table.column(0).combine_chunks()), _starts(path)[group]
