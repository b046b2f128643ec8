"""manifest.parquet: one row per sample, in id order."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from udkd.words.errors import DataError
from udkd.words.files import atomic, sha256_file

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
        ("excluded", pa.bool_()),
        ("note", pa.string()),
        ("shard", pa.int32()),
        ("offset", pa.int64()),
        ("size", pa.int64()),
    ]
)
SIZE_COLUMNS = ("source_height", "source_width", "height", "width")


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One sample. Excluded rows have zeros for sizes, checksum, offset and size, and shard -1."""

    label: int
    source: str
    source_height: int = 0
    source_width: int = 0
    height: int = 0
    width: int = 0
    sha256: bytes = bytes(32)
    excluded: bool = False
    note: str = ""
    shard: int = -1
    offset: int = 0
    size: int = 0


@dataclass(frozen=True, kw_only=True, eq=False)
class Columns:
    """The manifest in memory; row n is the sample with id n.

    labels:   int32 [N], class indices.
    sizes:    int32 [N, 4], pixels: source height, source width, stored height, stored width.
    excluded: bool [N]; such a row has no bytes, and no order contains it.
    source:   N names, `class/name` as the source called it.
    note:     N lines: what was fixed, why it is excluded, or nothing.
    sha256:   uint8 [N, 32], of the stored JPEG bytes.
    shard, offset, size: int32, int64, int64 [N]: where those bytes lie; shard -1 for excluded rows.
    """

    labels: np.ndarray
    sizes: np.ndarray
    excluded: np.ndarray
    source: tuple[str, ...]
    note: tuple[str, ...]
    sha256: np.ndarray
    shard: np.ndarray
    offset: np.ndarray
    size: np.ndarray

    @property
    def num_samples(self) -> int:
        """N, the excluded rows included."""
        return len(self.labels)

    @property
    def ids(self) -> np.ndarray:
        """The ids that orders are made of (not excluded), ascending, int64."""
        return np.flatnonzero(~self.excluded).astype(np.int64)


def write_manifest(path: Path, rows: Sequence[Row]) -> None:
    """Write the rows; the same rows give the same bytes (with one version of pyarrow)."""
    table = pa.table({name: [getattr(row, name) for row in rows] for name in SCHEMA.names}, schema=SCHEMA)
    with atomic(path) as file:
        pq.write_table(
            table, file, compression="zstd", use_dictionary=["note", "label"], write_page_checksum=True, row_group_size=2**17
        )


def read_manifest(path: Path, *, samples: int, size_bytes: int, sha256: str) -> Columns:
    """Read a manifest after holding its size, checksum and row count against what dataset.json says.

    Raises DataError where it is absent, differs or is damaged.
    """
    remedy = "the folder is damaged or mixed from two; convert again"
    if not path.is_file():
        raise DataError(f"{path} is missing; expected a manifest of {samples} samples; {remedy}")
    found_bytes = path.stat().st_size
    if found_bytes != size_bytes:
        raise DataError(f"{path} has {found_bytes} bytes; expected {size_bytes} as dataset.json says; {remedy}")
    found_sha256 = sha256_file(path)
    if found_sha256 != sha256:
        raise DataError(f"{path} has sha256 {found_sha256[:16]}…; expected {sha256[:16]}… as dataset.json says; {remedy}")
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            if file.schema_arrow != SCHEMA:
                raise DataError(
                    f"{path} has other columns ({', '.join(file.schema_arrow.names)}); expected {', '.join(SCHEMA.names)}"
                )
            if file.metadata.num_rows != samples:
                raise DataError(f"{path} has {file.metadata.num_rows} rows; expected {samples} as dataset.json says; {remedy}")
            table = file.read(use_threads=False)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path} cannot be read ({str(error).splitlines()[0]}); expected a manifest; {remedy}") from None
    return _columns(table)


def _columns(table: pa.Table) -> Columns:
    def array(name: str, dtype: type) -> np.ndarray:
        return np.ascontiguousarray(table.column(name).to_numpy(), dtype=dtype)

    checksums = np.frombuffer(b"".join(table.column("sha256").to_pylist()), dtype=np.uint8).reshape(-1, 32)
    return Columns(
        labels=array("label", np.int32),
        sizes=np.stack([array(name, np.int32) for name in SIZE_COLUMNS], axis=1),
        excluded=array("excluded", np.bool_),
        source=tuple(table.column("source").to_pylist()),
        note=tuple(table.column("note").to_pylist()),
        sha256=checksums,
        shard=array("shard", np.int32),
        offset=array("offset", np.int64),
        size=array("size", np.int64),
    )
