"""Lists and reads the rows of parquet and arrow files: names, labels, and image bytes."""

import contextlib
import mmap
import os
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path, PurePath

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from udkd.data.image_files import BadImage
from udkd.data_prep.classes import wnids_of
from udkd.data_prep.sources.address import Address, Location
from udkd.data_prep.sources.byte_stream import ByteStream
from udkd.data_prep.sources.fields import (
    IMAGE_OPTION,
    LABEL_LIKE,
    LABEL_OPTION,
    NO_LABEL,
    SPLIT_COLUMN_ADVICE,
    Fields,
    Label,
    LabelAgreement,
    choose_field,
    label_of,
)
from udkd.data_prep.sources.named_split import LabelFolders, last_split_in
from udkd.data_prep.sources.source import TEST_IMAGES, Entry, Listing, SourceSplit, class_name_of_label
from udkd.utils.errors import DataError
from udkd.utils.files import read_regular
from udkd.utils.parsing import parse_json

IMAGE_COLUMN = "image"  # the name used by `datasets`; it has priority over other columns
LABEL_COLUMNS = ("label", "labels", "fine_label")  # in order of priority, before others that end in `label`
SPLIT_COLUMNS = ("split", "subset", "partition", "fold")
BATCH_ROWS = 256
ARROW_FILE, ARROW_END = b"ARROW1", b"\xff\xff\xff\xff\0\0\0\0"  # the start of a file, the end of a stream
MAX_ERROR_TEXT = 500  # characters of an error of pyarrow


@dataclass(frozen=True, kw_only=True)
class Columns:
    """The columns to read. labels: in order of priority; may be empty for a test set."""

    image: str
    labels: Sequence[str]

    @property
    def names(self) -> list[str]:
        """All of them."""
        return [self.image, *self.labels]


@dataclass(frozen=True, kw_only=True)
class ImageRow:
    """A row of a table of images. index: from 0. size: of its image, bytes. stamp: see Entry; None for that of its table.

    image: its value, a dict of bytes and path, or bytes.
    """

    index: int
    size: int
    stamp: int | None
    name: str
    label: Label
    image: pa.Scalar


def list_rows(path: Location, files: Sequence[Location], fields: Fields, stream: ByteStream | None = None) -> Listing:
    """See Parquet.list. stream: of the only file, if it is at an address."""
    listing, folders, agreement = Listing(sequential=True), LabelFolders(path), LabelAgreement()
    ambiguous = len({file.name for file in files}) < len(files)  # then the names of rows include the folder
    others: set[str] = set()
    val_advice, unread, versions = "", "", dict[SourceSplit | None, set[str]]()
    for file in files:
        key = "" if file == path or isinstance(file, Address) else os.path.relpath(file, str(path))
        stem = (key if ambiguous else file.name).removesuffix(".parquet").removesuffix(".arrow")
        split = last_split_in(Path(key or file.name))
        try:
            with _opened(file, stream) as (schema, batches, stamp):
                columns = choose_columns(file, schema, fields, may_lack_labels=split == "test")
                split_column = find_split_column(schema)
                if split_column and split is None:
                    unread = unread or unread_splits(file, split_column)
                val_advice = val_advice or (split_column and SPLIT_COLUMN_ADVICE.format(file=file, name=split_column))
                versions.setdefault(split, set()).add(str(PurePath(key).parent))
                others |= set(_image_columns(schema)) - {columns.image}
                for row in iter_rows(batches(columns.names), columns, schema, file, f"{stem}/", agreement):
                    if row.label is None:
                        listing.skipped.append(row.name, NO_LABEL if columns.labels else TEST_IMAGES)
                    else:
                        class_name = folders.of_label(row.label, listing)
                        stamp_of_row = stamp if row.stamp is None else row.stamp
                        listing.entries.append(Entry(split, class_name, row.name, key, row.index, row.size, stamp_of_row))
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            raise _unreadable(file, error) from None
    agreement.finish(path)
    warning = f"{path} has other columns of images, which are not read: {', '.join(sorted(others))} ({IMAGE_OPTION} chooses)"
    warnings = [*([warning] if others else []), *filter(None, [unread])]
    several = next((folders for split, folders in versions.items() if split and len(folders) > 1), ())
    if several:
        where = ", ".join(sorted(several))
        warnings.append(f"{path} has files of one split in {where}; all are read: name one if these are versions of one set")
    return replace(listing, val_advice=val_advice, warnings=tuple(warnings))


def find_split_column(schema: pa.Schema) -> str:
    """The first column that may hold the names of splits; empty if there is none."""
    return next((name for name in schema.names if name.lower() in SPLIT_COLUMNS), "")


def unread_splits(where: object, column: str) -> str:
    """A warning about a column of splits."""
    return f"the column {column} of {where} may name the splits, but is not read: write a file for each split to keep them"


@contextlib.contextmanager
def _opened(
    file: Location, stream: ByteStream | None = None
) -> Iterator[tuple[pa.Schema, Callable[[list[str]], Iterable[pa.RecordBatch]], int]]:
    """The schema of a file, a function that yields its rows with the named columns, and its stamp: see Entry."""
    if isinstance(file, Address):
        assert stream is not None
        with _streamed(stream) as parquet:  # one thread: the file can be asked for one thing at a time
            batches = partial(parquet.iter_batches, BATCH_ROWS, use_threads=False)
            yield parquet.schema_arrow, lambda names: batches(columns=names), zlib.crc32(stream.tag.encode())
    elif file.suffix.lower() == ".parquet":
        with pq.ParquetFile(file) as parquet:
            batches = partial(parquet.iter_batches, BATCH_ROWS)
            yield parquet.schema_arrow, lambda names: batches(columns=names), file.stat().st_mtime_ns
    else:
        table = _arrow_table(file)
        yield table.schema, lambda names: table.select(names).to_batches(max_chunksize=BATCH_ROWS), file.stat().st_mtime_ns


@contextlib.contextmanager
def _streamed(stream: ByteStream) -> Iterator[pq.ParquetFile]:
    with stream.reader() as reader, pq.ParquetFile(pa.PythonFile(reader.seekable(), mode="r")) as parquet:
        yield parquet


def read_rows(stream: ByteStream, rows: Iterable[int], fields: Fields) -> Iterator[bytes]:
    """The bytes of the images in ascending rows. Each row group is read once. Raises DataError."""
    try:
        with _streamed(stream) as parquet:
            image = choose_columns(stream.location, parquet.schema_arrow, fields, may_lack_labels=True).image
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
        raise _unreadable(stream.location, error) from None


def has_images(files: Iterable[Path]) -> bool:
    """See Parquet.has_images."""
    try:
        return any(_image_columns(pq.read_schema(file)) for file in files)
    except (pa.ArrowException, OSError, UnicodeDecodeError):
        return True


def path_columns(file: Path) -> list[str]:
    """The columns of a file without images, except for structs. Raises DataError if it has images, or is damaged."""
    try:
        with file.open("rb") as opened:
            schema = pq.read_schema(opened)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise _unreadable(file, error) from None
    if images := _image_columns(schema):
        raise DataError(f"{file} holds images, in its column {images[0]}; expected only paths; remove the option for tables")
    return [field.name for field in schema if not pa.types.is_struct(field.type)]


def iter_values(file: Path, columns: Sequence[str]) -> Iterator[list[object]]:
    """The values of columns, row by row. Raises DataError for a damaged file."""
    try:
        with file.open("rb") as opened, pq.ParquetFile(opened) as parquet:
            for batch in parquet.iter_batches(columns=list(dict.fromkeys(columns)), use_threads=False):
                yield from map(list, zip(*(batch.column(name).to_pylist() for name in columns), strict=True))
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise _unreadable(file, error) from None


def _unreadable(file: Location, error: Exception) -> DataError:
    text = str(error).splitlines()[0][:MAX_ERROR_TEXT]
    return DataError(
        f"{file} cannot be read ({text}); expected a complete {file.name.rpartition('.')[2].lower()} file; fetch it again"
    )


def read_row(file: Path, row: int, fields: Fields) -> bytes:
    """The bytes of an image. The last row group is cached, as the next images are usually in it."""
    try:
        if file.suffix.lower() == ".parquet":
            values, first = _row_group(file, _group_of(file, row), fields)
        else:
            values, first = _arrow_images(file, fields), 0
        value = values[row - first].as_py()
    except pa.ArrowException as error:
        raise OSError(5, str(error).splitlines()[0], str(file)) from None
    return image_bytes(value, file.parent)


def image_bytes(value: object, folder: Path) -> bytes:
    """The bytes of an image's value, or those of the file that it names. folder: of relative paths. Raises BadImage."""
    data, path = (value.get("bytes"), value.get("path")) if isinstance(value, dict) else (value, None)
    if data is None and isinstance(path, str) and path:
        try:
            return read_regular(folder / path)
        except (FileNotFoundError, NotADirectoryError):
            raise BadImage(f"its row has no bytes, and the file {path} does not exist") from None
        except ValueError:
            raise BadImage(f"its row has no bytes, and {path} is no file") from None
    return data if isinstance(data, bytes) else b""


def iter_rows(
    batches: Iterable[pa.RecordBatch],
    columns: Columns,
    schema: pa.Schema,
    where: Location,
    prefix: str,
    agreement: LabelAgreement,
) -> Iterator[ImageRow]:
    """Yield the rows of batches. where: the file of the rows, for errors and for relative paths. prefix: of names.

    Raises DataError if no row has bytes or names a file that exists.
    """
    names = {label: _class_names(schema, label) for label in columns.labels}
    index, path, any_image = 0, None, False
    for batch in batches:
        images = batch.column(columns.image)
        labels = {label: batch.column(label).to_pylist() for label in columns.labels}
        for n, (size, path) in enumerate(zip(_sizes(images), _paths(images), strict=True)):
            file = path if isinstance(path, str) else ""
            name = f"{prefix}{index:06d}" + (f"-{file.rsplit('/', 1)[-1]}" if file else "")
            row_labels = {label: _label(where, values[n], names[label]) for label, values in labels.items()}
            status = _status(where.parent / file) if file and size is None and isinstance(where, Path) else None
            any_image = any_image or size is not None or status is not None
            yield ImageRow(
                index=index,
                size=size or (status.st_size if status else 0),
                stamp=status.st_mtime_ns if status else None,
                name=name,
                label=agreement.take(row_labels, where),
                image=images[n],
            )
            index += 1
    if index and not any_image:
        which = f" (such as {path})" if path else ""
        raise DataError(
            f"{where} holds paths{which} instead of images: its column {columns.image} has no bytes, and no file is there; "
            "expected the images; embed them (datasets.table.embed_table_storage), or name the folder of the files"
        )


def _status(path: Path) -> os.stat_result | None:
    try:
        return path.stat() if path.is_file() else None
    except OSError:
        return None


def choose_columns(file: Location, schema: pa.Schema, fields: Fields, *, may_lack_labels: bool = False) -> Columns:
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
    return Columns(image=image, labels=labels)


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
    if kind is None:
        return False
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or _is_view(kind))


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
    data = data.dictionary_decode() if pa.types.is_dictionary(data.type) else data
    return data.cast(pa.large_binary()) if _is_view(data.type) else data


def _is_view(kind: pa.DataType) -> bool:
    return str(kind) == "binary_view"  # older versions of pyarrow have no function for it


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
    """The images of a row group, and its first row."""
    with path.open("rb") as file, pq.ParquetFile(file) as parquet:
        image = choose_columns(path, parquet.schema_arrow, fields, may_lack_labels=True).image
        table = parquet.read_row_group(group, columns=[image], use_threads=False)
    return table.column(0), _starts(path)[group]


def _arrow_table(path: Path) -> pa.Table:
    """An arrow file, in the format of streams, as `datasets` writes it, or of files. Its bytes stay on the disk."""
    with path.open("rb") as file:  # Arrow refuses paths that are not UTF-8
        buffer = pa.py_buffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if path.stat().st_size else b"")
    if buffer[: len(ARROW_FILE)].to_pybytes() == ARROW_FILE:
        return pa.ipc.open_file(buffer).read_all()
    # Arrow accepts a stream that was cut between batches.
    if buffer[max(0, buffer.size - len(ARROW_END)) :].to_pybytes() != ARROW_END:
        raise pa.ArrowInvalid("its end is missing")
    return pa.ipc.open_stream(buffer).read_all()


@lru_cache(maxsize=16)
def _arrow_images(path: Path, fields: Fields) -> pa.ChunkedArray:
    table = _arrow_table(path)
    return table.column(choose_columns(path, table.schema, fields, may_lack_labels=True).image)
