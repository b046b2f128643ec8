"""manifest.parquet: one row per sample, in id order.

In memory it is stored as columns, too: 101 bytes per sample plus its strings. It is written and read in groups of rows, so that
nothing else grows with the number of samples.
"""

from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from udkd.utils.errors import DataError
from udkd.utils.files import atomic_write, sha256_file
from udkd.utils.printable import shorten
from udkd.utils.string_column import StringColumn, StringColumnBuilder

FILE_NAME = "manifest.parquet"
SCHEMA = pa.schema(
    [
        ("label", pa.int32()),
        ("source", pa.string()),
        ("source_height", pa.int32()),
        ("source_width", pa.int32()),
        ("height", pa.int32()),
        ("width", pa.int32()),
        ("sha256", pa.binary(32)),
        ("crc32c", pa.uint32()),
        ("excluded", pa.bool_()),
        ("note", pa.string()),
        ("shard", pa.int32()),
        ("offset", pa.int64()),
        ("size", pa.int64()),
    ]
)
# Names and notes are read dictionary-encoded: one long text in a million rows must not become a million copies.
_READ_SCHEMA = pa.schema(
    [field.with_type(pa.dictionary(pa.int32(), pa.string())) if field.type == pa.string() else field for field in SCHEMA]
)
SIZE_COLUMNS = ("source_height", "source_width", "height", "width")
GROUP_ROWS = 2**17
_MAX_ROW_BYTES = 8192  # on average; a path has up to 4,096 characters
_MAX_HEAD_BYTES = 1 << 20


@dataclass(frozen=True, kw_only=True, slots=True)
class ManifestRow:
    """One sample. Excluded rows have zeros for sizes, checksums, offset and size, and shard -1."""

    label: int
    source: str
    source_height: int = 0
    source_width: int = 0
    height: int = 0
    width: int = 0
    sha256: bytes = bytes(32)
    crc32c: int = 0
    excluded: bool = False
    note: str = ""
    shard: int = -1
    offset: int = 0
    size: int = 0


@dataclass(frozen=True, kw_only=True, eq=False)
class Columns:
    """The manifest in memory; row n describes the sample with id n.

    labels:   int32 [N], class indices.
    sizes:    int32 [N, 4], pixels: source height, source width, stored height, stored width.
    excluded: bool [N]; an excluded row has no bytes, and no order contains it.
    source:   N names, `class/name` as in the source.
    note:     N texts: what was fixed, why it is excluded, or empty.
    sha256:   uint8 [N, 32], of the stored JPEG bytes: checked by verify and derive.
    crc32c:   uint32 [N], of the same bytes: checked by every read in training (4 us for 110 KB; sha256 takes 61).
    shard, offset, size: int32, int64, int64 [N]: where those bytes are stored; shard -1 for excluded rows.
    """

    labels: np.ndarray
    sizes: np.ndarray
    excluded: np.ndarray
    source: Sequence[str]
    note: Sequence[str]
    sha256: np.ndarray
    crc32c: np.ndarray
    shard: np.ndarray
    offset: np.ndarray
    size: np.ndarray

    @property
    def num_samples(self) -> int:
        """N, the excluded rows included."""
        return len(self.labels)

    @property
    def ids(self) -> np.ndarray:
        """The ids of the samples that are not excluded, ascending, int64."""
        return np.flatnonzero(~self.excluded).astype(np.int64)


class ColumnsBuilder:
    """Builds Columns from rows or other Columns, added in id order."""

    def __init__(self) -> None:
        self._texts = {name: StringColumnBuilder() for name in ("source", "note")}
        self._numbers = {
            "labels": array("i"),
            "sizes": array("i"),
            "excluded": array("b"),
            "sha256": array("B"),
            "crc32c": array("I"),
            "shard": array("i"),
            "offset": array("q"),
            "size": array("q"),
        }

    def add(self, row: ManifestRow) -> None:
        """Add one sample."""
        self._texts["source"].append(row.source)
        self._texts["note"].append(row.note)
        numbers = self._numbers
        numbers["labels"].append(row.label)
        numbers["sizes"].extend((row.source_height, row.source_width, row.height, row.width))
        numbers["excluded"].append(row.excluded)
        numbers["sha256"].frombytes(row.sha256)
        numbers["crc32c"].append(row.crc32c)
        numbers["shard"].append(row.shard)
        numbers["offset"].append(row.offset)
        numbers["size"].append(row.size)

    def extend(self, columns: Columns) -> None:
        """Add all samples of other columns."""
        for name, texts in self._texts.items():
            column = getattr(columns, name)
            texts.extend(column if isinstance(column, StringColumn) else StringColumn.of(column))
        for name, numbers in self._numbers.items():
            numbers.frombytes(np.ascontiguousarray(getattr(columns, name)).tobytes())

    def finish(self) -> Columns:
        """The columns, without a copy. Nothing may be added afterwards."""
        numbers = {name: np.frombuffer(column, dtype=column.typecode) for name, column in self._numbers.items()}
        return Columns(
            labels=numbers["labels"],
            sizes=numbers["sizes"].reshape(-1, len(SIZE_COLUMNS)),
            excluded=numbers["excluded"].view(np.bool_),
            source=self._texts["source"].finish(),
            note=self._texts["note"].finish(),
            sha256=numbers["sha256"].reshape(-1, 32),
            crc32c=numbers["crc32c"],
            shard=numbers["shard"],
            offset=numbers["offset"],
            size=numbers["size"],
        )


def rows_to_columns(rows: Iterable[ManifestRow]) -> Columns:
    """Rows as columns."""
    builder = ColumnsBuilder()
    for row in rows:
        builder.add(row)
    return builder.finish()


def write_manifest(path: Path, columns: Columns) -> None:
    """Write the manifest; the same samples give the same bytes (with one version of pyarrow)."""
    options = {"compression": "zstd", "use_dictionary": ["note", "label"], "write_page_checksum": True}
    with atomic_write(path) as file, pq.ParquetWriter(file, SCHEMA, **options) as writer:
        for start in range(0, columns.num_samples, GROUP_ROWS):
            writer.write_table(_table(columns, slice(start, start + GROUP_ROWS)), row_group_size=GROUP_ROWS)


def _table(columns: Columns, rows: slice) -> pa.Table:
    """A slice of the columns as an Arrow table."""
    sizes = columns.sizes[rows]
    checksums = np.ascontiguousarray(columns.sha256[rows])
    arrays = {
        "label": columns.labels[rows],
        "source": _strings(columns.source, rows),
        "sha256": pa.FixedSizeBinaryArray.from_buffers(pa.binary(32), len(checksums), [None, pa.py_buffer(checksums)]),
        "crc32c": columns.crc32c[rows],
        "excluded": columns.excluded[rows],
        "note": _strings(columns.note, rows),
        "shard": columns.shard[rows],
        "offset": columns.offset[rows],
        "size": columns.size[rows],
    }
    arrays |= {name: sizes[:, index] for index, name in enumerate(SIZE_COLUMNS)}
    return pa.table({name: arrays[name] for name in SCHEMA.names}, schema=SCHEMA)


def _strings(texts: Sequence[str], rows: slice) -> pa.StringArray:
    """A slice of strings for Arrow, made without Python strings, which would take a hundred bytes per row."""
    column = texts if isinstance(texts, StringColumn) else StringColumn.of(texts)
    bounds = column.bounds[rows.start : rows.stop + 1]
    offsets = (bounds - bounds[0]).astype(np.int32)
    data = memoryview(column.data)[int(bounds[0]) : int(bounds[-1])]
    return pa.StringArray.from_buffers(len(bounds) - 1, pa.py_buffer(offsets), pa.py_buffer(data))


def _texts(column: pa.ChunkedArray) -> StringColumn:
    """The strings of an Arrow column. Raises ValueError if they are not UTF-8."""
    builder = StringColumnBuilder()
    for chunk in column.chunks:
        strings = chunk.dictionary_decode()
        data = strings.buffers()[2]
        texts = StringColumn(b"" if data is None else data.to_pybytes(), _bounds(strings).astype(np.int64))
        _check_text(texts)
        builder.extend(texts)
    return builder.finish()


def _check_text(texts: StringColumn) -> None:
    """Raise ValueError for bytes that are not UTF-8, and for strings that begin in the middle of a character."""
    data = bytes(texts.data[int(texts.bounds[0]) : int(texts.bounds[-1])])
    data.decode("utf-8", "surrogatepass")
    starts = texts.bounds[:-1][texts.bounds[:-1] < texts.bounds[-1]] - texts.bounds[0]
    if (np.frombuffer(data, np.uint8)[starts] & 0xC0 == 0x80).any():
        raise ValueError("names or notes are not text")


def read_manifest(path: Path, *, samples: int, size_bytes: int, sha256: str) -> Columns:
    """Read a manifest after checking its size, checksum and row count against dataset.json.

    samples: the number of rows. Raises DataError if it is absent, different or damaged.
    """
    remedy = "the folder is damaged or mixed from two; convert again"
    if not path.is_file():
        raise DataError(f"{path} is missing; expected a manifest of {samples} samples, a regular file; {remedy}")
    actual_bytes = path.stat().st_size
    if actual_bytes != size_bytes:
        raise DataError(f"{path} has {actual_bytes} bytes; expected {size_bytes} as in dataset.json; {remedy}")
    actual_sha256 = sha256_file(path)
    if actual_sha256 != sha256:
        raise DataError(f"{path} has sha256 {actual_sha256[:16]}…; expected {sha256[:16]}… as in dataset.json; {remedy}")
    try:
        # Opened here, as Arrow refuses paths that are not UTF-8.
        with (
            path.open("rb") as raw,
            pq.ParquetFile(raw, page_checksum_verification=True, read_dictionary=["source", "note"]) as file,
        ):
            if file.schema_arrow != _READ_SCHEMA:
                names = shorten(", ".join(file.schema_arrow.names))
                raise DataError(f"{path} has other columns ({names}); expected {', '.join(SCHEMA.names)}; {remedy}")
            if file.metadata.num_rows != samples:
                raise DataError(f"{path} has {file.metadata.num_rows} rows; expected {samples} as in dataset.json; {remedy}")
            return _read_groups(file, samples)
    except (pa.ArrowException, OSError, ValueError, OverflowError) as error:
        if isinstance(error, DataError):
            raise
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(f"{path} cannot be read ({shorten(reason)}); expected a manifest; {remedy}") from None


def _read_groups(file: pq.ParquetFile, samples: int) -> Columns:
    """Read all rows, group by group. Raises ValueError for invalid content, before it takes much memory."""
    budget = samples * _MAX_ROW_BYTES + _MAX_HEAD_BYTES
    groups = [file.metadata.row_group(index) for index in range(file.num_row_groups)]
    if sum(max(group.total_byte_size, 0) for group in groups) > budget:
        raise ValueError(f"its columns are larger than {budget:,} bytes")
    builder = ColumnsBuilder()
    for index, group in enumerate(groups):
        table = file.read_row_group(index, use_threads=False)
        empty = [name for name in SCHEMA.names if table.column(name).null_count]
        if empty or len(table) != group.num_rows:
            raise ValueError(f"there are rows without {', '.join(empty) or 'a value of each column'}")
        budget -= sum(_text_bytes(table.column(name)) for name in ("source", "note"))
        if budget < 0:
            raise ValueError("its names and notes are too long")
        builder.extend(_columns(table))
    columns = builder.finish()
    if columns.num_samples != samples:
        raise ValueError(f"it holds {columns.num_samples} rows")
    return columns


def _text_bytes(column: pa.ChunkedArray) -> int:
    """The number of bytes in all strings of a dictionary-encoded column, repetitions included."""
    total = 0
    for chunk in column.chunks:
        lengths = np.diff(_bounds(chunk.dictionary))
        total += int(lengths[_values(chunk.indices)].sum())
    return total


def _values(array: pa.Array) -> np.ndarray:
    """The values of an array of numbers or booleans, without nulls. Not `to_numpy`, which imports pandas if it is installed."""
    if len(array) == 0:
        return np.zeros(0, np.int32)
    buffer, end = array.buffers()[1], array.offset + len(array)
    if pa.types.is_boolean(array.type):
        return np.unpackbits(np.frombuffer(buffer, np.uint8), count=end, bitorder="little")[array.offset :]
    return np.frombuffer(buffer, np.dtype(str(array.type)))[array.offset : end]


def _bounds(strings: pa.StringArray) -> np.ndarray:
    """The byte offsets at which n strings begin, then the end of the last: int32 [n + 1]."""
    if len(strings) == 0:
        return np.zeros(1, np.int32)
    return np.frombuffer(strings.buffers()[1], dtype=np.int32)[strings.offset : strings.offset + len(strings) + 1]


def _columns(table: pa.Table) -> Columns:
    def array_of(name: str, dtype: type) -> np.ndarray:
        parts = [np.zeros(0, dtype), *map(_values, table.column(name).chunks)]
        return np.concatenate(parts, dtype=dtype, casting="unsafe")

    checksums = table.column("sha256").combine_chunks()
    return Columns(
        labels=array_of("label", np.int32),
        sizes=np.stack([array_of(name, np.int32) for name in SIZE_COLUMNS], axis=1),
        excluded=array_of("excluded", np.bool_),
        source=_texts(table.column("source")),
        note=_texts(table.column("note")),
        sha256=np.frombuffer(checksums.buffers()[1], dtype=np.uint8).reshape(-1, 32)[checksums.offset :][: len(checksums)],
        crc32c=array_of("crc32c", np.uint32),
        shard=array_of("shard", np.int32),
        offset=array_of("offset", np.int64),
        size=array_of("size", np.int64),
    )
