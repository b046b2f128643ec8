"""The folder backend: reads stored bytes from the shards by offset."""

from collections.abc import Iterator
from typing import final

import numpy as np
import torch
from numpy.typing import NDArray

from udkd.data.dataset import Split
from udkd.data.loading.jpeg_backend import JpegBackend


@final
class FolderBackend(JpegBackend):
    """Needs only the shards. workers: see JpegBackend."""

    def __init__(self, split: Split, device: torch.device, *, workers: int = 0) -> None:
        super().__init__(split, device, workers=workers, stage="folder backend")

    def read_many(self, ids: NDArray[np.int64]) -> Iterator[bytes]:
        """See Split.read_many."""
        return self._split.read_many(ids)
