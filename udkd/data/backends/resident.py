"""The resident backend: canvas.npy, decoded once at conversion.

On a GPU all of it is loaded; on the CPU rows are read when they are needed, usually from the page cache. The file is not
memory-mapped: if a mapped file has been truncated, reading it kills the process with SIGBUS.
"""

import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import final

import numpy as np
import torch
from numpy.typing import NDArray

from udkd.data.batch import Batch
from udkd.data.canvas import canvas_bytes
from udkd.data.dataset import Split
from udkd.data.loading.buffers import BufferPool, require_memory
from udkd.data.loading.host_loader import AHEAD_BYTES
from udkd.data.loading.threads import chunks
from udkd.utils.errors import DataError
from udkd.utils.prefetch import prefetch

_ROWS_AT_ONCE = 1024
_MAX_AHEAD = 2  # batches read ahead, if AHEAD_BYTES allows as many


@final
class ResidentBackend:
    """Gathers rows of canvas.npy. The crc32 of a row is checked when it is read: on a GPU at opening, else at every use.

    workers: ignored, as nothing is decoded. Raises DataError if canvas.npy is absent, of another dataset or size, or damaged.
    """

    def __init__(self, split: Split, device: torch.device, *, workers: int = 0) -> None:
        self.num_samples = split.num_samples
        self._split = split
        self._device = device
        rows, self._crc32 = split.canvas()
        self._path, self._shape, self._start = Path(str(rows.filename)), rows.shape, rows.offset
        self._labels = torch.from_numpy(split.labels.astype(np.int64)).to(device)
        self._resident = self._load() if device.type == "cuda" else None
        self._memory = BufferPool(AHEAD_BYTES)

    def epoch(self, order: NDArray[np.int64], batch_size: int) -> Iterator[Batch]:
        """See udkd.data.batch.Backend."""
        order = self._split.order(order)
        batches = chunks(order, batch_size)
        if self._resident is not None:
            return (self._gathered(self._resident, ids) for ids in batches)
        batch_bytes = max(1, canvas_bytes(min(batch_size, len(order)), self._split.side))
        depth = max(1, min(_MAX_AHEAD, AHEAD_BYTES // batch_bytes))
        return prefetch((self._read(ids) for ids in batches), depth=depth, stage="resident backend")

    def full_batch(self) -> Batch:
        """All N samples as one batch on the device: row i has id i, excluded rows are zeros. On a GPU nothing is copied."""
        canvas = self._load() if self._resident is None else self._resident
        ids_N = torch.arange(self.num_samples, device=self._device)
        return Batch(ids=ids_N, canvas=canvas, labels=self._labels)

    def close(self) -> None:
        """Release the memory."""
        self._resident = None
        self._memory.clear()

    def describe(self) -> str:
        """The pixel class of the decoder that the conversion used."""
        return "libjpeg islow, fancy upsampling"

    def _gathered(self, resident: torch.Tensor, ids: NDArray[np.int64]) -> Batch:
        ids_B = torch.from_numpy(ids).to(self._device, non_blocking=True)
        return Batch(ids=ids_B, canvas=resident[ids_B], labels=self._labels[ids_B])

    def _read(self, ids: NDArray[np.int64]) -> Batch:
        canvas = self._memory.take(len(ids), *self._shape[1:])
        self._read_rows(ids, canvas)
        ids_B = torch.from_numpy(ids)
        return Batch(ids=ids_B, canvas=torch.from_numpy(canvas), labels=self._labels[ids_B])

    def _load(self) -> torch.Tensor:
        needed = canvas_bytes(self.num_samples, self._split.side)
        if self._device.type == "cuda":
            free = torch.cuda.mem_get_info(self._device)[0]
            if needed > free:
                raise DataError(
                    f"canvas.npy takes {needed / 1e9:.1f} GB and {self._device} has {free / 1e9:.1f} GB free; "
                    "expected it to fit; use another --backend"
                )
        else:
            require_memory(needed)
        resident = torch.empty(self._shape, dtype=torch.uint8, device=self._device)
        for ids in np.array_split(np.arange(self.num_samples), -(-self.num_samples // _ROWS_AT_ONCE)):
            rows = np.empty((len(ids), *self._shape[1:]), dtype=np.uint8)
            self._read_rows(ids, rows)
            resident[ids[0] : ids[-1] + 1] = torch.from_numpy(rows)
        return resident

    def _read_rows(self, ids: NDArray[np.int64], rows: NDArray[np.uint8]) -> None:
        remedy = "write canvas.npy again with udkd data derive"
        try:
            with open(self._path, "rb", buffering=0) as file:
                for sample_id, row in zip(ids.tolist(), rows, strict=True):
                    count = os.preadv(file.fileno(), [row.data], self._start + sample_id * row.nbytes)
                    if count != row.nbytes or zlib.crc32(row.data) != self._crc32[sample_id]:
                        what = f"{self._split.describe(sample_id)} in canvas.npy is damaged"
                        raise DataError(f"{what}; expected its recorded crc32; {remedy}")
        except OSError as error:
            what = f"canvas.npy of {self._split.describe(int(ids[0]))} and others cannot be read ({error.strerror})"
            raise DataError(f"{what}; expected a readable file; {remedy}") from None
