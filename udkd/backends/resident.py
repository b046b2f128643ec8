"""The resident backend: canvas.npy, decoded once at conversion. Whole on a GPU; on the CPU read row by row, from the system's
memory where it keeps the file. Not through a map: a file that is cut meanwhile would end the process without a word.
"""

import os
import zlib
from collections.abc import Iterator
from typing import final

import numpy as np
import torch
from numpy.typing import NDArray

from udkd.formats.dataset import Split, canvas_bytes
from udkd.operations.feed import AHEAD_BYTES, BufferPool
from udkd.operations.prefetch import ahead
from udkd.words.batch import Batch
from udkd.words.errors import DataError

_ROWS_AT_ONCE = 1024
_MOST_AHEAD = 2  # batches ready before they are asked for, where the bound on bytes allows as many


@final
class ResidentBackend:
    """Gathers rows of canvas.npy. A row's crc32 is checked whenever it is read: on a GPU at opening, else at every use.

    Raises DataError where canvas.npy is absent, of another dataset or size, or a row is damaged.
    """

    def __init__(self, split: Split, device: torch.device) -> None:
        self.num_samples = split.num_samples
        self._split = split
        self._device = device
        rows, self._crc32 = split.canvas()
        self._shape, self._start = rows.shape, rows.offset
        self._file = open(rows.filename, "rb", buffering=0)  # noqa: SIM115  # until close
        self._labels = torch.from_numpy(split.labels.astype(np.int64)).to(device)
        self._resident = self._load() if device.type == "cuda" else None
        self._memory = BufferPool(AHEAD_BYTES)

    def epoch(self, order: NDArray[np.int64], batch_size: int) -> Iterator[Batch]:
        """See udkd.words.batch.Backend."""
        order = self._split.order(order)
        chunks = (order[start : start + batch_size] for start in range(0, len(order), batch_size))
        if self._resident is not None:
            return (self._gathered(self._resident, chunk) for chunk in chunks)
        batch_bytes = max(1, canvas_bytes(min(batch_size, len(order)), self._split.side))
        depth = max(1, min(_MOST_AHEAD, AHEAD_BYTES // batch_bytes))
        return ahead((self._read(chunk) for chunk in chunks), depth=depth, stage="resident backend")

    def whole(self) -> Batch:
        """Every row on the device at once: row i is id i, excluded ids are zeros. On a GPU it is no copy."""
        canvas = self._load() if self._resident is None else self._resident
        ids_N = torch.arange(self.num_samples, device=self._device)
        return Batch(ids=ids_N, canvas=canvas, labels=self._labels)

    def close(self) -> None:
        """Release the memory and the file."""
        self._resident = None
        self._memory.clear()
        self._file.close()

    def describe(self) -> str:
        """The decode that conversion stored."""
        return "libjpeg islow, fancy upsampling"

    def _gathered(self, resident: torch.Tensor, ids: NDArray[np.int64]) -> Batch:
        ids_B = torch.from_numpy(ids).to(self._device, non_blocking=True)
        return Batch(ids=ids_B, canvas=resident[ids_B], labels=self._labels[ids_B])

    def _read(self, ids: NDArray[np.int64]) -> Batch:
        canvas = self._memory.take(len(ids), *self._shape[1:])
        for row, sample_id in zip(canvas, ids.tolist(), strict=True):
            self._read_row(sample_id, row)
        ids_B = torch.from_numpy(ids)
        return Batch(ids=ids_B, canvas=torch.from_numpy(canvas), labels=self._labels[ids_B])

    def _load(self) -> torch.Tensor:
        resident = torch.empty(self._shape, dtype=torch.uint8, device=self._device)
        rows = np.empty((_ROWS_AT_ONCE, *self._shape[1:]), dtype=np.uint8)
        for start in range(0, self.num_samples, _ROWS_AT_ONCE):
            count = min(_ROWS_AT_ONCE, self.num_samples - start)
            for place, row in enumerate(rows[:count]):
                self._read_row(start + place, row)
            resident[start : start + count] = torch.from_numpy(rows[:count])
        return resident

    def _read_row(self, sample_id: int, row: NDArray[np.uint8]) -> None:
        try:
            count = os.preadv(self._file.fileno(), [row], self._start + sample_id * row.nbytes)
        except OSError as error:
            what = f"{self._split.describe(sample_id)} in canvas.npy cannot be read ({error.strerror})"
            raise DataError(f"{what}; expected to; write it anew with udkd-prep derive") from None
        if count != row.nbytes or zlib.crc32(row) != self._crc32[sample_id]:
            raise DataError(
                f"{self._split.describe(sample_id)} in canvas.npy is damaged; expected its recorded crc32; "
                "write canvas.npy anew with udkd-prep derive"
            )
