"""Lists and reads the rows of parquet files: names, labels, and image bytes."""

import contextlib
import os
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path, PurePath

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from udkd.data_prep.classes import wnids_of
from udkd.data_prep.sources.address import Address, Location
from udkd.data_prep.sources.byte_stream import ByteStream
from udkd.data_prep.sources.fields import (
    IMAGE_OPTION,
    LABEL_LIKE,
    LABEL_OPTION,
    NO_LABEL,
    Fields,
    Label,
    LabelAgreement,
    choose_field,
    label_of,
)
from udkd.data_prep.sources.named_split import LabelFolders, last_split_in
from udkd.data_prep.sources.source import TEST_IMAGES, Entry, Listing, SourceSplit, class_name_of_label
from udkd.utils.errors import DataError
from udkd.utils.parsing import parse_json

IMAGE_COLUMN = "image"  # the name used by `datasets`; it has priority over other columns
LABEL_COLUMNS = ("label", "labels", "fine_label")  # in order of priority, before others that end in `label`
SPLIT_COLUMNS = ("split", "subset", "partition", "fold")
SPLIT_COLUMN_ADVICE = (
    "the column {name} of {file} may name the validation rows, but is not read: write a file for each split, or give "
    "--hold-out PERCENT if it does not"
)
MAX_ERROR_TEXT = 500  # characters of an error of pyarrow


@dataclass(frozen=True, kw_only=True)
class _Columns:
    """The columns to read. labels: in order of priority; may be empty for a test set."""

    image: str
    labels: Sequence[str]


def list_rows(path: Location, files: Sequence[Location], fields: Fields, stream: ByteStream | None = None) -> Listing:
    """See Parquet.list. stream: of the only file, if it is at an address."""
    listing, folders, agreement = Listing(sequential=True), LabelFolders(path), LabelAgreement()
    ambiguous = len({file.name for file in files}) < len(files)  # then the names of rows include the folder
    others: set[str] = set()
    val_advice, versions = "", dict[SourceSplit | None, set[str]]()
    for file in files:
        key = "" if file == path or isinstance(file, Address) else os.path.relpath(file, str(path))
        stem = (key if ambiguous else file.name).removesuffix(".parquet")
        split = last_split_in(Path(key or file.name))
        try:
            with _opened(file if isinstance(file, Path) else None, stream) as (parquet, stamp):
                columns = _columns(file, parquet.schema_arrow, fields, may_lack_labels=split == "test")
                split_column = next((name for name in parquet.schema_arrow.names if name.lower() in SPLIT_COLUMNS), "")
                val_advice = val_advice or (split_column and SPLIT_COLUMN_ADVICE.format(file=file, name=split_column))
                versions.setdefault(split, set()).add(str(PurePath(key).parent))
                others |= set(_image_columns(parquet.schema_arrow)) - {columns.image}
                for row, size, name, label in _rows(file, parquet, columns, stem, agreement):
                    if label is None:
                        listing.skipped.append(name, NO_LABEL if columns.labels else TEST_IMAGES)
                    else:
                        class_name = folders.folder(listing.class_of_label(label) if isinstance(label, int) else label)
                        listing.entries.append(Entry(split, class_name, name, key, row, size, stamp))
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            text = str(error).splitlines()[0][:MAX_ERROR_TEXT]
            raise DataError(f"{file} cannot be read ({text}); expected a complete parquet file; fetch it again") from None
    agreement.finish(path)
    warning = f"{path} has other columns of images, which are not read: {', '.join(sorted(others))} ({IMAGE_OPTION} chooses)"
    warnings = [warning] if others else []
    several = next((folders for split, folders in versions.items() if split and len(folders) > 1), ())
    if several:
        where = ", ".join(sorted(several))
        warnings.append(f"{path} has files of one split in {where}; all are read: name one if these are versions of one set")
    return replace(listing, val_advice=val_advice, warnings=tuple(warnings))


@contextlib.contextmanager
def _opened(file: Path | None, stream: ByteStream | None) -> Iterator[tuple[pq.ParquetFile, int]]:
    """A parquet file, local or of a stream, and its stamp: see Entry."""
    if file is not None:
        with pq.ParquetFile(file) as parquet:
            yield parquet, file.stat().st_mtime_ns
        return
    assert stream is not None
    with stream.reader() as reader, pq.ParquetFile(pa.PythonFile(reader.seekable(), mode="r")) as parquet:
        yield parquet, zlib.crc32(stream.tag.encode())


def read_rows(stream: ByteStream, rows: Iterable[int], fields: Fields) -> Iterator[bytes]:
    """The bytes of the images in ascending rows. Each row group is read once. Raises DataError."""
    try:
        with _opened(None, stream) as (parquet, _):
            image = _columns(stream.location, parquet.schema_arrow, fields, may_lack_labels=True).image
            group, start, end, values = -1, 0, 0, None
            for row in rows:
                while row >= end:
                    group, start = group + 1, end
                    end, values = start + parquet.metadata.row_group(group).num_rows, None
                if values is None:
                    values = _bytes_of(
                        parquet.read_row_group(group, columns=[image], use_threads=False).column(0).combine_chunks()
                    )
                yield bytes(values[row - start].as_py() or b"")
    except (pa.ArrowException, OSError) as error:
        text = str(error).splitlines()[0][:MAX_ERROR_TEXT]
        raise DataError(
            f"{stream.location} cannot be read ({text}); expected a complete parquet file; fetch it again"
        ) from None


def has_images(files: Iterable[Path]) -> bool:
    """See Parquet.has_images."""
    try:
        return any(_image_columns(pq.read_schema(file)) for file in files)
    except (pa.ArrowException, OSError, UnicodeDecodeError):
        return True


def read_row(file: Path, row: int, fields: Fields) -> bytes:
    """The bytes of an image. The last row group is cached, as the next images are usually in it."""
    try:
        values, first = _row_group(file, _group_of(file, row), fields)
        value = values[row - first].as_py()
    except pa.ArrowException as error:
        raise OSError(5, str(error).splitlines()[0], str(file)) from None
    return bytes(value or b"")


def _rows(
    file: Location, parquet: pq.ParquetFile, columns: _Columns, stem: str, agreement: LabelAgreement
) -> Iterator[tuple[int, int, str, Label]]:
    """Yield index, image size in bytes, name and label of each row. Raises DataError if the file has only paths of images."""
    names = {label: _class_names(parquet.schema_arrow, label) for label in columns.labels}
    row, path, any_bytes = 0, None, False
    # One thread: a file of a stream can be asked for one thing at a time.
    for batch in parquet.iter_batches(batch_size=256, columns=[columns.image, *columns.labels], use_threads=False):
        images = batch.column(columns.image)
        labels = {label: batch.column(label).to_pylist() for label in columns.labels}
        for n, (size, path) in enumerate(zip(_sizes(images), _paths(images), strict=True)):
            name = f"{stem}/{row:06d}" + (f"-{path.rsplit('/', 1)[-1]}" if isinstance(path, str) and path else "")
            row_labels = {label: _label(file, values[n], names[label]) for label, values in labels.items()}
            yield row, size or 0, name, agreement.take(row_labels, file)
            any_bytes = any_bytes or size is not None
            row += 1
    if row and not any_bytes:
        where = f" (such as {path})" if path else ""
        raise DataError(
            f"{file} holds paths{where} instead of images: its column {columns.image} has no bytes; expected the images; "
            "embed them (datasets.table.embed_table_storage), or name the folder of the files"
        )


def _columns(file: Location, schema: pa.Schema, fields: Fields, *, may_lack_labels: bool = False) -> _Columns:
    """The columns to read. Raises DataError if there are none, or if the user must choose."""
    images = _image_columns(schema)
    labels = [field.name for field in schema if LABEL_LIKE.fullmatch(field.name) and not _is_list(field.type)]
    labels.sort(key=lambda name: LABEL_COLUMNS.index(name) if name in LABEL_COLUMNS else len(LABEL_COLUMNS))
    if fields.label is not None and not (may_lack_labels and fields.label not in schema.names):
        labels = [choose_field(schema.names, fields.label, where=file, what="column", option=LABEL_OPTION)]
    if not images or not (labels or may_lack_labels):
        raise DataError(
            f"{file} has the columns {', '.join(map(_described, schema))}; "
            "expected an image column (binary, or a struct with `bytes`) and a label column with one value a row "
            f"({', '.join(LABEL_COLUMNS)}); name it with {LABEL_OPTION}, or choose another source"
        )
    requested = fields.image or (IMAGE_COLUMN if IMAGE_COLUMN in images else None)
    image = choose_field(images, requested, where=file, what="image column", option=IMAGE_OPTION)
    duplicates = [name for name in (image, *labels) if schema.names.count(name) > 1]
    if duplicates:
        raise DataError(f"{file} has several columns {duplicates[0]}; expected one of that name; rename the others")
    return _Columns(image=image, labels=labels)


def _described(field: pa.Field) -> str:
    return f"{field.name} (lists)" if _is_list(field.type) else str(field.name)


def _image_columns(schema: pa.Schema) -> list[str]:
    return [
        field.name
        for field in schema
        if _is_bytes(field.type) or (pa.types.is_struct(field.type) and _is_bytes(_field(field.type, "bytes")))
    ]


def _field(struct: pa.DataType, name: str) -> pa.DataType | None:
    index = struct.get_field_index(name)
    return None if index < 0 else struct.field(index).type


def _is_bytes(kind: pa.DataType | None) -> bool:
    if kind is not None and pa.types.is_dictionary(kind):
        kind = kind.value_type
    return kind is not None and (pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def _class_names(schema: pa.Schema, label: str) -> Sequence[str] | None:
    """The class names in the metadata written by `datasets`, as wnids if they are ImageNet's; None if there are none."""
    try:
        features = parse_json((schema.metadata or {})[b"huggingface"])["info"]["features"]
        names = features[label]["names"]
    except (KeyError, ValueError, TypeError):
        return None
    if not isinstance(names, list):
        return None
    return wnids_of([str(name) for name in names]) or _unique_names([str(name).replace("/", "-") for name in names])


def _unique_names(names: list[str]) -> list[str]:
    """The names, with their number added to duplicates: ImageNet has two cranes and two maillots."""
    count = Counter(names)
    return [name if count[name] == 1 else f"{name}-{class_name_of_label(n)}" for n, name in enumerate(names)]


def _label(file: Location, value: object, names: Sequence[str] | None) -> Label:
    """The class name of a label if `names` has one, else the label. Raises DataError for an invalid value."""
    try:
        label = label_of(value)
        if isinstance(label, int) and names is not None and label >= len(names):
            raise ValueError(f"holds the label {label} but names only {len(names)} classes")
    except ValueError as error:
        raise DataError(
            f"{file} {error}; expected a class number or name; choose another column with {LABEL_OPTION}, or another source"
        ) from None
    return names[label] if isinstance(label, int) and names is not None else label


def _bytes_of(images: pa.Array) -> pa.Array:
    data = pc.struct_field(images, "bytes") if pa.types.is_struct(images.type) else images
    return data.dictionary_decode() if pa.types.is_dictionary(data.type) else data


def _sizes(images: pa.Array) -> list[int | None]:
    return list(pc.binary_length(_bytes_of(images)).to_pylist())


def _paths(images: pa.Array) -> list[object]:
    if pa.types.is_struct(images.type) and images.type.get_field_index("path") >= 0:
        return list(images.field("path").to_pylist())
    return [None] * len(images)


@lru_cache(maxsize=256)
def _starts(path: Path) -> tuple[int, ...]:
    """The first row of each row group, then the total number of rows."""
    with path.open("rb") as file:  # Arrow refuses paths that are not UTF-8
        metadata = pq.read_metadata(file)
    starts = [0]
    for group in range(metadata.num_row_groups):
        starts.append(starts[-1] + metadata.row_group(group).num_rows)
    return tuple(starts)


def _group_of(path: Path, row: int) -> int:
    return next(group for group, end in enumerate(_starts(path)[1:]) if row < end)


@lru_cache(maxsize=1)
def _row_group(path: Path, group: int, fields: Fields) -> tuple[pa.ChunkedArray, int]:
    """The image bytes of a row group, and its first row."""
    with path.open("rb") as file, pq.ParquetFile(file) as parquet:
        image = _columns(path, parquet.schema_arrow, fields, may_lack_labels=True).image
        table = parquet.read_row_group(group, columns=[image], use_threads=False)
    return _bytes_of(table.column(0).combine_chunks()), _starts(path)[group]
