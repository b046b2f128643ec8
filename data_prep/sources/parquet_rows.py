"""Rows of parquet shards: names, labels, and the bytes of images."""

import json
from collections import Counter
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
    alike = len({file.name for file in files}) < len(files)  # then rows are named by their folder, too
    for file in files:
        key = "" if file == path else str(file.relative_to(path))
        try:
            for entry in _rows(file, key, (key if alike else file.name).removesuffix(".parquet"), ignored):
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


def _rows(file: Path, key: str, stem: str, ignored: PassedOver) -> Iterator[Entry]:
    with pq.ParquetFile(file) as parquet:
        image, label = _columns(file, parquet.schema_arrow)
        names = _class_names(parquet.schema_arrow, label)
        stamp, split = file.stat().st_mtime_ns, split_of(Path(key or file.name))
        row = 0
        for batch in parquet.iter_batches(batch_size=256, columns=[image, label]):
            sizes = _sizes(batch.column(0))
            for size, number, path in zip(sizes, batch.column(1).to_pylist(), _paths(batch.column(0)), strict=True):
                name = f"{stem}/{row:06d}" + (f"-{path.rsplit('/', 1)[-1]}" if isinstance(path, str) and path else "")
                if number is None or number == -1:  # -1: test sets without labels
                    ignored.append(name)
                else:
                    yield Entry(split, _class_name(file, number, names), name, key, row, size, stamp)
                row += 1


def _columns(file: Path, schema: pa.Schema) -> tuple[str, str]:
    """The image and the label column. Raises DataError where there is not one of each."""
    images = [field.name for field in schema if pa.types.is_struct(field.type) and _is_bytes(_field(field.type, "bytes"))]
    images += [field.name for field in schema if _is_bytes(field.type)]
    labels = [name for name in LABEL_COLUMNS if name in schema.names]
    if not images or not labels:
        raise DataError(
            f"{file} has the columns {', '.join(schema.names)}; expected an image column (binary, or a struct with `bytes`) "
            f"and a label column ({', '.join(LABEL_COLUMNS)}); choose another source"
        )
    return images[0], labels[0]


def _field(struct: pa.DataType, name: str) -> pa.DataType | None:
    place = struct.get_field_index(name)
    return None if place < 0 else struct.field(place).type


def _is_bytes(kind: pa.DataType | None) -> bool:
    return kind is not None and (pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _class_names(schema: pa.Schema, label: str) -> Sequence[str] | None:
    """The names that `datasets` writes into the schema's metadata, as wnids where they are ImageNet's; or nothing."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        names = features[label]["names"]
    except (KeyError, ValueError, TypeError):
        return None
    if not isinstance(names, list):
        return None
    return wnids_of([str(name) for name in names]) or _apart([str(name).replace("/", "-") for name in names])


def _apart(names: list[str]) -> list[str]:
    """Names that are there more than once with their number: ImageNet alone has two cranes and two maillots."""
    count = Counter(names)
    return [name if count[name] == 1 else f"{name}-{class_of_label(n)}" for n, name in enumerate(names)]


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


def _paths(images: pa.Array) -> list[object]:
    if pa.types.is_struct(images.type) and images.type.get_field_index("path") >= 0:
        return list(images.field("path").to_pylist())
    return [None] * len(images)


@lru_cache(maxsize=256)
def _starts(path: Path) -> tuple[int, ...]:
    """The first row of each row group, and the number of rows."""
    with path.open("rb") as file:  # Arrow takes no path that is not UTF-8
        metadata = pq.read_metadata(file)
    starts = [0]
    for group in range(metadata.num_row_groups):
        starts.append(starts[-1] + metadata.row_group(group).num_rows)
    return tuple(starts)


def _group_of(path: Path, row: int) -> int:
    return next(group for group, end in enumerate(_starts(path)[1:]) if row < end)


@lru_cache(maxsize=1)
def _row_group(path: Path, group: int) -> tuple[pa.ChunkedArray, int]:
    """The image bytes of a row group, and its first row."""
    with path.open("rb") as file, pq.ParquetFile(file) as parquet:
        image, _ = _columns(path, parquet.schema_arrow)
        table = parquet.read_row_group(group, columns=[image], use_threads=False)
    return _bytes_of(table.column(0).combine_chunks()), _starts(path)[group]
