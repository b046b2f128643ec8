"""Decodes canvases on the host, in threads. Shared by the backends that differ only in how they decode."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from udkd.data.batch import Batch
from udkd.data.loading.device_copies import HostMemory, to_device
from udkd.data.loading.threads import Work, chunks, num_threads, run_in_threads

AHEAD_BYTES = 256 << 20
"""Limit on canvases that are decoded, or being decoded, ahead of their use; two batches are allowed in any case."""

_MAX_COPIES = 2  # batches copied to the device ahead of their use, if AHEAD_BYTES allows as many

_PART_BYTES = 512 << 10
_MAX_PER_PART = 128

Decode = Callable[[NDArray[np.int64], NDArray[np.uint8]], None]
"""Decodes samples `ids` [b] into canvases, uint8 [b, S, S, 3], whose contents are arbitrary: it must write every byte."""


def samples_per_part(stored_bytes: NDArray[np.int64]) -> int:
    """The number of samples per part of a thread's work: about 512 KB, 1 to 128 samples. Handing out a part takes 50 us."""
    mean = max(1, int(stored_bytes.sum()) // max(1, int(np.count_nonzero(stored_bytes))))
    return max(1, min(_MAX_PER_PART, _PART_BYTES // mean))


class StoredSplit(Protocol):
    """What a HostLoader needs from a split. side: S, pixels. labels: integers [N]. size: int64 [N], stored bytes."""

    @property
    def side(self) -> int: ...
    @property
    def labels(self) -> NDArray[np.integer]: ...
    @property
    def size(self) -> NDArray[np.int64]: ...


class HostLoader:
    """Delivers batches of a split on `device`, decoded ahead of their use by `workers` threads (0: one per core).

    stage: name of the threads.
    """

    def __init__(self, split: StoredSplit, device: torch.device, *, workers: int, stage: str) -> None:
        self._labels = torch.from_numpy(split.labels.astype(np.int64))
        self._samples_per_part = samples_per_part(split.size)
        self._side = split.side
        self._device = device
        self._workers = num_threads(workers)
        self._stage = stage
        self._memory = HostMemory(device, AHEAD_BYTES)

    def epoch(self, order: NDArray[np.int64], batch_size: int, decode: Decode) -> Iterator[Batch]:
        """The batches of `order`. An exception of `decode` is raised in place of its batch. Stopping early ends the threads."""
        batches = chunks(order, batch_size)
        batch_bytes = max(1, min(batch_size, len(order)) * self._side**2 * 3)
        ahead = AHEAD_BYTES // batch_bytes
        # Smaller parts if the batches allowed ahead would not keep all threads busy otherwise.
        part = max(1, min(self._samples_per_part, max(2, ahead) * batch_size // (2 * self._workers)))
        work = self._work(batches, part, decode)
        done = run_in_threads(work, workers=self._workers, ahead_bytes=AHEAD_BYTES, stage=self._stage)
        return to_device(self._device, (batch for batch, _ in done), self._stage, depth=max(1, min(_MAX_COPIES, ahead)))

    def close(self) -> None:
        """Free the memory that no batch uses."""
        self._memory.clear()

    def _work(self, batches: Iterator[NDArray[np.int64]], part: int, decode: Decode) -> Iterator[Work[Batch, None]]:
        for ids in batches:
            canvas = self._memory.take(len(ids), self._side, self._side, 3)
            rows = canvas.numpy()
            parts = [partial(decode, ids[n : n + part], rows[n : n + part]) for n in range(0, len(ids), part)]
            ids_B = torch.from_numpy(ids)
            batch = Batch(ids=ids_B, canvas=canvas, labels=self._labels[ids_B])
            yield Work(item=batch, parts=parts, size_bytes=canvas.nbytes)
