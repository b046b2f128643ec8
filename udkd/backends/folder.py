"""The folder backend: reads stored bytes from the shards by offset and decodes them with Pillow, in threads."""

import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import final

import numpy as np
import torch
from numpy.typing import NDArray

from udkd.formats.dataset import Split, canvas_bytes
from udkd.words.batch import Batch

_AHEAD_BYTES = 256 << 20
"""Bound on decoded canvases that wait for their turn."""


@final
class FolderBackend:
    """Decodes every sample of every batch anew; the slowest backend, and the one that needs nothing but the shards.

    workers: decoding threads (Pillow lets go of the interpreter lock while it decodes); 0 means one per core.
    """

    def __init__(self, split: Split, device: torch.device, *, workers: int = 0) -> None:
        self.num_samples = split.num_samples
        self._split = split
        self._device = device
        self._labels = torch.from_numpy(split.labels.astype(np.int64))
        self._workers = workers or len(os.sched_getaffinity(0))

    def epoch(self, order: NDArray[np.int64], batch_size: int) -> Iterator[Batch]:
        """See udkd.words.batch.Backend."""
        order = self._split.order(order)
        # At least one whole batch and one image a thread, then as many as the bound on bytes allows.
        least = batch_size + self._workers
        depth = max(least, min(4 * least, _AHEAD_BYTES // canvas_bytes(1, self._split.side)))
        waiting: deque[Future[NDArray[np.uint8]]] = deque()
        ids = iter(order.tolist())
        pool = ThreadPoolExecutor(self._workers, thread_name_prefix="folder backend")
        try:
            for start in range(0, len(order), batch_size):
                chunk = order[start : start + batch_size]
                while len(waiting) < depth and (sample_id := next(ids, None)) is not None:
                    waiting.append(pool.submit(self._split.pixels, sample_id))
                yield self._batch(chunk, np.stack([waiting.popleft().result() for _ in chunk]))
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def close(self) -> None:
        """Nothing outlives an epoch."""

    def describe(self) -> str:
        """Pillow's decode."""
        return "libjpeg islow, fancy upsampling"

    def _batch(self, ids: NDArray[np.int64], canvas: NDArray[np.uint8]) -> Batch:
        ids_B = torch.from_numpy(ids)
        return Batch(
            ids=ids_B.to(self._device),
            canvas=torch.from_numpy(canvas).to(self._device),
            labels=self._labels[ids_B].to(self._device),
        )
