"""Exports a view of a cache: its logits as .npy, .safetensors or .parquet, for other programs.

The file is written in pieces and gets its name when it is complete.
"""

import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from udkd.data.dataset import DatasetFolder, Split
from udkd.losses.sample_weight import entropy_weight
from udkd.teacher.cache.reader import Cache
from udkd.teacher.cache.view_file import ViewFile
from udkd.utils.errors import ConfigError
from udkd.utils.files import atomic_write
from udkd.utils.progress import SILENT, Observer

_BLOCKS_AT_ONCE = 16
_TYPES = {"float16": "F16", "float32": "F32", "int64": "I64"}  # of the safetensors format


def export_cache(
    cache: Cache, out: Path, *, view: int = 0, dataset: DatasetFolder | None = None, observer: Observer = SILENT
) -> int:
    """Write the logits of all classes of one view, in id order, and return the number of targets.

    .npy:         logits [N, C], row i is id i; NaN for an excluded one.
    .safetensors: of the n ids that are not excluded: logits [n, C], ids int64 [n], entropy float32 [n] in nats, weights
                  float32 [n], 1 - H / ln C; with `dataset` also labels int64 [n].
    .parquet:     a row for each of these ids: id, weight, entropy, logits (a fixed-size list); with `dataset` also file_name
                  and label. Where a view mixes samples, the label is the id's own one.

    dtype: as stored, float16 or float32; float32 in a .parquet and from the top-k form. Each row's maximum is subtracted.
    ConfigError: another suffix, or a file that exists. CacheError: a damaged or missing view. MismatchError: other data.
    """
    writers = {".npy": _write_npy, ".safetensors": _write_safetensors, ".parquet": _write_parquet}
    if out.suffix.lower() not in writers:
        raise ConfigError(f"{out} has another suffix; expected {', '.join(writers)}; change it")
    if out.exists():
        raise ConfigError(f"{out} exists; expected a new file; remove it or name another")
    if dataset is not None:
        cache.require({"dataset_digest": dataset.digest, "num_classes": len(dataset.classes)})
    rows = _Rows(cache=cache, file=cache.view_file(view), split=None if dataset is None else dataset.split(cache.key.split))
    out.parent.mkdir(parents=True, exist_ok=True)
    observer.start(f"exporting view {view}", rows.num_targets, "targets")
    with atomic_write(out) as target:
        writers[out.suffix.lower()](target, rows, observer)
    observer.finish()
    return rows.num_targets


@dataclass(frozen=True, kw_only=True, eq=False)
class _Rows:
    """A view's targets, read in pieces of consecutive ids; every block is verified. split: the samples, where it is known."""

    cache: Cache
    file: ViewFile
    split: Split | None

    @property
    def num_targets(self) -> int:
        return int((~np.isnan(self.entropy)).sum())

    @property
    def entropy(self) -> NDArray[np.float32]:
        return self.file.uncertainties["entropy"]

    @property
    def dtype(self) -> np.dtype:
        return self.file.dense_logits(slice(0, 1)).dtype

    def pieces(self, observer: Observer) -> Iterator[tuple[slice, NDArray[np.int64], np.ndarray]]:
        """The range of ids, those that are not excluded, int64 [n], and their logits [n, C]."""
        step, num_rows = _BLOCKS_AT_ONCE * self.file.header.key.block_rows, self.cache.num_rows
        for start in range(0, num_rows, step):
            part = slice(start, min(start + step, num_rows))
            for block in range(start // self.file.header.key.block_rows, -(-part.stop // self.file.header.key.block_rows)):
                self.file.require_block(block)
            ids = np.flatnonzero(~np.isnan(self.entropy[part])).astype(np.int64) + start
            yield part, ids, self.file.dense_logits(ids)
            observer.advance(len(ids))

    def weight(self, ids: NDArray[np.int64]) -> NDArray[np.float32]:
        weight: NDArray[np.float32] = entropy_weight(torch.from_numpy(self.entropy[ids]), self.cache.num_classes).numpy()
        return weight


def _write_npy(out: BinaryIO, rows: _Rows, observer: Observer) -> None:
    shape, dtype = (rows.cache.num_rows, rows.cache.num_classes), rows.dtype
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(out, header)
    for part, ids, logits in rows.pieces(observer):
        filled = np.full((part.stop - part.start, shape[1]), np.nan, dtype)
        filled[ids - part.start] = logits
        out.write(filled.tobytes())


def _write_safetensors(out: BinaryIO, rows: _Rows, observer: Observer) -> None:
    """The logits are last, so that only they are written in pieces: https://huggingface.co/docs/safetensors, "Format"."""
    ids = np.flatnonzero(~np.isnan(rows.entropy)).astype(np.int64)
    arrays: dict[str, np.ndarray] = {"ids": ids} | (
        {} if rows.split is None else {"labels": rows.split.labels[ids].astype(np.int64)}
    )
    arrays |= {"entropy": rows.entropy[ids], "weights": rows.weight(ids)}
    described = [(name, array.dtype, array.shape) for name, array in arrays.items()]
    header: dict[str, object] = {"__metadata__": {"teacher": rows.cache.key.teacher, "cache_key": rows.cache.key.to_json()}}
    end = 0
    for name, dtype, shape in [*described, ("logits", rows.dtype, (len(ids), rows.cache.num_classes))]:
        start, end = end, end + int(np.prod(shape)) * dtype.itemsize
        header[name] = {"dtype": _TYPES[dtype.name], "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text = text.ljust(-(-len(text) // 8) * 8)
    out.write(struct.pack("<Q", len(text)) + text)
    for array in arrays.values():
        out.write(array.tobytes())
    for _, _, logits in rows.pieces(observer):
        out.write(logits.tobytes())


def _write_parquet(out: BinaryIO, rows: _Rows, observer: Observer) -> None:
    kind = pa.list_(pa.float32(), rows.cache.num_classes)
    named = [("file_name", pa.string()), ("label", pa.int64())] if rows.split is not None else []
    schema = pa.schema([("id", pa.int64()), *named, ("weight", pa.float32()), ("entropy", pa.float32()), ("logits", kind)])
    with pq.ParquetWriter(out, schema, compression="zstd") as writer:
        for _, ids, logits in rows.pieces(observer):
            columns: dict[str, object] = {
                "id": ids,
                "weight": rows.weight(ids),
                "entropy": rows.entropy[ids],
                "logits": pa.FixedSizeListArray.from_arrays(logits.astype(np.float32).ravel(), type=kind),
            }
            if rows.split is not None:
                columns |= {
                    "file_name": [rows.split.source[sample_id] for sample_id in ids.tolist()],
                    "label": rows.split.labels[ids].astype(np.int64),
                }
            writer.write_table(pa.table({name: columns[name] for name in schema.names}, schema=schema))
