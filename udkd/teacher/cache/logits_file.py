"""A file of logits that another program computed: .npy, .safetensors or .parquet.

Rows are read when they are needed: the file may be larger than memory.
"""

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from torch import Tensor

from udkd.utils.errors import DataError
from udkd.utils.files import open_regular
from udkd.utils.operating_system import reserve_space
from udkd.utils.printable import shorten
from udkd.utils.string_column import StringColumn, StringColumnBuilder

NAME_COLUMNS = ("path", "file_name")
"""Names of a parquet column of file names; the column of ids is `id`."""

_OTHERS = ("label", "weight", "entropy")  # number columns that `udkd cache export` writes beside the logits
_FLOATS = {torch.float16, torch.bfloat16, torch.float32, torch.float64}
_PIECE_ROWS = 4096
_BUFFER_BYTES = 1 << 20


@dataclass(frozen=True, kw_only=True, eq=False)
class LogitsFile:
    """One row of numbers for each of `num_rows` samples.

    gather: the rows of int64 indices [n], float [n, num_columns] in the file's dtype. dtype: a float type.
    ids: int64 [num_rows], sample ids. names: file names. Both None: the rows are in order.
    columns: names of the columns, where the file has one column for each.
    """

    path: Path
    num_rows: int
    num_columns: int
    dtype: torch.dtype
    gather: Callable[[NDArray[np.int64]], Tensor]
    ids: NDArray[np.int64] | None = None
    names: StringColumn | None = None
    columns: tuple[str, ...] = ()


def open_logits(path: Path, scratch: Path) -> LogitsFile:
    """Open a file of logits by its suffix.

    scratch: a folder for a nameless temporary file with the numbers of a .parquet, which cannot be read at random.
    DataError: no such file, another format, other dtypes or shapes, keys that are not ids or names, or a full disk.
    """
    openers = {".npy": _open_npy, ".safetensors": _open_safetensors, ".parquet": _open_parquet}
    if path.suffix.lower() not in openers:
        raise DataError(f"{path} has another suffix; expected {', '.join(openers)}; save the logits as one of them")
    try:
        with open_regular(path) as file:
            return openers[path.suffix.lower()](path, file, scratch)
    except FileNotFoundError:
        raise DataError(f"{path} does not exist; expected a file of logits; check the path") from None
    except (ValueError, EOFError, OverflowError, SafetensorError, pa.ArrowException) as error:
        if isinstance(error, DataError):
            raise
        reason = shorten((str(error).splitlines() or [type(error).__name__])[0])
        raise DataError(f"{path} cannot be read ({reason}); expected a {path.suffix} file of logits; write it again") from None


def _open_npy(path: Path, file: BinaryIO, scratch: Path) -> LogitsFile:
    del scratch
    if file.read(6) != b"\x93NUMPY":
        raise ValueError("it does not begin as a .npy file does")
    array = np.load(path, mmap_mode="r", allow_pickle=False)
    native = array.dtype.newbyteorder("=")
    dtype = {np.float16: torch.float16, np.float32: torch.float32, np.float64: torch.float64}.get(native.type)
    if dtype is None or array.ndim != 2:
        raise _not_logits(path, str(array.dtype), array.shape)
    return LogitsFile(
        path=path,
        num_rows=array.shape[0],
        num_columns=array.shape[1],
        dtype=dtype,
        gather=lambda rows: torch.from_numpy(np.asarray(array[rows], native)),
    )


def _open_safetensors(path: Path, file: BinaryIO, scratch: Path) -> LogitsFile:
    del file, scratch
    with safe_open(path, "pt") as opened:
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 (it is no mapping)
    # Mapped, not read.
    tables = [name for name, tensor in tensors.items() if tensor.dim() == 2 and tensor.dtype in _FLOATS]
    if "logits" not in tensors and len(tables) != 1:
        held = shorten(", ".join(f"{name} {tensor.dtype} {tuple(tensor.shape)}" for name, tensor in tensors.items()))
        raise DataError(f"{path} holds {held or 'no tensor'}; expected a tensor named logits, of [N, C]; rename it")
    logits = tensors["logits" if "logits" in tensors else tables[0]]
    if logits.dtype not in _FLOATS or logits.dim() != 2:
        raise _not_logits(path, str(logits.dtype).removeprefix("torch."), tuple(logits.shape))
    ids = tensors.get("ids")
    if ids is not None and (ids.dtype not in (torch.int32, torch.int64) or ids.shape != logits.shape[:1]):
        raise DataError(
            f"{path}: ids are {ids.dtype} {tuple(ids.shape)}; expected an int64 for each of {len(logits):,} rows; correct them"
        )
    return LogitsFile(
        path=path,
        num_rows=logits.shape[0],
        num_columns=logits.shape[1],
        dtype=logits.dtype,
        gather=lambda rows: logits[torch.from_numpy(rows)],
        ids=None if ids is None else ids.numpy().astype(np.int64),
    )


def _open_parquet(path: Path, file: BinaryIO, scratch: Path) -> LogitsFile:
    with pq.ParquetFile(file, buffer_size=_BUFFER_BYTES) as table:
        schema, num_rows = table.schema_arrow, table.metadata.num_rows
        columns = _number_columns(path, schema)
        named = [name for name in NAME_COLUMNS if name in schema.names]
        if len(named) > 1:
            raise DataError(f"{path} has the columns {' and '.join(named)}; expected one column of file names; drop the other")
        keys = [*(["id"] if "id" in schema.names else []), *named]
        matrix: np.memmap | None = None
        ids, names, done = np.empty(num_rows, np.int64), StringColumnBuilder(), 0
        batches = table.iter_batches(_PIECE_ROWS, columns=[*columns, *keys], use_threads=False)
        for batch in batches:
            values = _values(path, batch, columns)
            if matrix is None:
                matrix = _scratch_matrix(path, scratch, values.dtype, (num_rows, values.shape[1]))
            if values.shape[1] != matrix.shape[1]:
                raise DataError(
                    f"{path}: row {done} or one soon after has {values.shape[1]} logits; expected {matrix.shape[1]} as before"
                )
            matrix[done : done + len(values)] = values
            if "id" in keys:
                ids[done : done + len(values)] = _ids(path, batch.column("id"))
            for name in _names(path, batch.column(named[0])) if named else ():
                names.append(name)
            done += len(values)
    if matrix is None:
        raise DataError(f"{path} has no rows; expected a row of logits for each sample; write it again")
    return LogitsFile(
        path=path,
        num_rows=num_rows,
        num_columns=matrix.shape[1],
        dtype=torch.from_numpy(np.empty(0, matrix.dtype)).dtype,
        gather=lambda rows: torch.from_numpy(np.asarray(matrix[rows])),
        ids=ids if "id" in keys else None,
        names=names.finish() if named else None,
        columns=() if columns == ["logits"] else tuple(columns),
    )


def _number_columns(path: Path, schema: pa.Schema) -> list[str]:
    """The column of lists, or one column of floats for each class."""
    if "logits" in schema.names:
        kind = schema.field("logits").type
        is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
        if not is_list or not pa.types.is_floating(kind.value_type):
            raise DataError(f"{path}: the column logits holds {kind}; expected lists of floats; write it again")
        return ["logits"]
    columns = [field.name for field in schema if pa.types.is_floating(field.type) and field.name not in _OTHERS]
    if not columns:
        names = shorten(", ".join(schema.names))
        raise DataError(f"{path} has the columns {names}; expected logits, a column of lists of floats; rename it")
    return columns


def _values(path: Path, batch: pa.RecordBatch, columns: list[str]) -> NDArray[Any]:
    """The numbers of a batch, [rows, C]."""
    arrays = [batch.column(name) for name in columns]
    empty = any(array.null_count for array in arrays)
    if columns == ["logits"]:
        lists = arrays[0]
        flat = lists.flatten()
        lengths = lists.value_lengths().to_numpy(zero_copy_only=False) if not empty else np.zeros(0)
        if not (empty or flat.null_count) and len(lengths) and (lengths == lengths[0]).all():
            values: NDArray[Any] = flat.to_numpy(zero_copy_only=False).reshape(len(lists), -1)
            return values
    elif not empty:
        return np.stack([array.to_numpy(zero_copy_only=False) for array in arrays], axis=1)
    raise DataError(f"{path} has rows without a number, or of different lengths; expected one for each class; write it again")


def _ids(path: Path, column: pa.Array) -> NDArray[np.int64]:
    if not pa.types.is_integer(column.type) or column.null_count:
        raise DataError(f"{path}: the column id holds {column.type}; expected an integer in each row; correct it")
    ids: NDArray[np.int64] = column.cast(pa.int64()).to_numpy(zero_copy_only=False)
    return ids


def _names(path: Path, column: pa.Array) -> Iterator[str]:
    for name in column.to_pylist():
        if not isinstance(name, str):
            raise DataError(f"{path} has a file name {name!r}; expected text in each row; correct it")
        yield name


def _scratch_matrix(path: Path, scratch: Path, dtype: np.dtype, shape: tuple[int, int]) -> np.memmap:
    """A matrix in a temporary file, which the kernel removes with the process."""
    num_bytes = max(1, shape[0] * shape[1] * dtype.itemsize)
    with tempfile.TemporaryFile(dir=scratch) as file:
        try:
            reserve_space(file.fileno(), num_bytes)
        except OSError as error:
            raise DataError(
                f"{path}: {error.strerror} in {scratch}; expected {num_bytes / 1e6:.3g} MB for its numbers; free some"
            ) from None
        return np.memmap(file, dtype, "r+", shape=shape)


def _not_logits(path: Path, dtype: str, shape: tuple[int, ...]) -> DataError:
    dimensions = " x ".join(map(str, shape)) or "a single number"
    return DataError(f"{path} holds {dtype}, {dimensions}; expected float16, float32 or float64, N x C; save logits [N, C]")
