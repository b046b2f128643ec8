"""The folder backend: reads stored bytes from the shards by offset and decodes them with Pillow, in threads."""

import os
from collections.abc import Iterator
from typing import final

import numpy as np
import torch
from numpy.typing import NDArray

from udkd.formats.dataset import Split
from udkd.operations.feed import decoded_epoch
from udkd.words.batch import Batch

_SAMPLES_PER_PART = 4  # measured at 64 px: a thread's round trip costs as much as half a decode


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
        return decoded_epoch(
            self._split.order(order),
            batch_size,
            self._decode,
            side=self._split.side,
            labels=self._labels,
            device=self._device,
            workers=self._workers,
            samples_per_part=_SAMPLES_PER_PART,
            stage="folder backend",
        )

    def close(self) -> None:
        """Nothing outlives an epoch."""

    def describe(self) -> str:
        """Pillow's decode."""
        return "libjpeg islow, fancy upsampling"

    def _decode(self, ids: NDArray[np.int64], canvas: NDArray[np.uint8]) -> None:
        for sample_id, row in zip(ids.tolist(), canvas, strict=True):
            self._split.pixels(sample_id, row)
