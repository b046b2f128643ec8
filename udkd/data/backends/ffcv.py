"""The FFCV backend: reads stored bytes from samples.beton, FFCV's format, without FFCV.

FFCV's Loader is not used: its decoder is inexact (FASTDCT) and ignores failures, an exception in its thread blocks the
consumer forever, stopping early leaks the thread, later batches overwrite earlier ones, and importing and compiling it takes
12 s in every process.
"""

from collections.abc import Iterator
from typing import final

import numpy as np
import torch
from numpy.typing import NDArray

from udkd.data.beton import open_beton
from udkd.data.dataset import Split
from udkd.data.loading.jpeg_backend import JpegBackend


@final
class FfcvBackend(JpegBackend):
    """Needs only samples.beton. workers: see JpegBackend.

    Raises DataError if samples.beton is absent, damaged or of another dataset.
    """

    def __init__(self, split: Split, device: torch.device, *, workers: int = 0) -> None:
        super().__init__(split, device, workers=workers, stage="ffcv backend")
        self._samples = open_beton(split)

    def read_many(self, ids: NDArray[np.int64]) -> Iterator[bytes]:
        """See BetonSamples.read_many."""
        return self._samples.read_many(ids)
