"""What the backends have in common that decode stored JPEGs on the host, in threads, with libjpeg-turbo.

The pixels equal Pillow's. Pillow itself is too slow in threads: while parsing it holds the interpreter lock twice as long as
decoding a 64 px image takes.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator

import numpy as np
import simplejpeg
import torch
from numpy.typing import NDArray

from udkd.data.batch import Batch
from udkd.data.canvas import PIXELS, decode_canvas, paste
from udkd.data.dataset import Split
from udkd.data.loading.host_loader import HostLoader


class JpegBackend(ABC):
    """Decodes every sample in every epoch.

    workers: decoding threads (libjpeg-turbo runs without the interpreter lock); 0 means one per core. stage: name of the
    threads.
    """

    def __init__(self, split: Split, device: torch.device, *, workers: int, stage: str) -> None:
        self.num_samples = split.num_samples
        self._split = split
        self._loader = HostLoader(split, device, workers=workers, stage=stage)

    def epoch(self, order: NDArray[np.int64], batch_size: int) -> Iterator[Batch]:
        """See udkd.data.batch.Backend."""
        return self._loader.epoch(self._split.order(order), batch_size, self._decode)

    def close(self) -> None:
        """Release the memory; no thread or open file outlives an epoch."""
        self._loader.close()

    def describe(self) -> str:
        """The pixel class: libjpeg-turbo with its default settings, as in Pillow."""
        return PIXELS

    @abstractmethod
    def read_many(self, ids: NDArray[np.int64]) -> Iterator[bytes]:
        """Yield the verified stored bytes of samples, int64 [b], in turn. Called in several threads at once."""

    def _decode(self, ids: NDArray[np.int64], canvas: NDArray[np.uint8]) -> None:
        split, scratch = self._split, np.empty_like(canvas[0])
        sizes = split.sizes[ids].tolist()
        for sample_id, (_, _, height, width), row, jpeg in zip(ids.tolist(), sizes, canvas, self.read_many(ids), strict=True):
            if not try_decode(jpeg, row, scratch, height, width):
                decode_canvas(jpeg, split.side, height=height, width=width, what=split.describe(sample_id), out=row)


def try_decode(jpeg: bytes, canvas: NDArray[np.uint8], scratch: NDArray[np.uint8], height: int, width: int) -> bool:
    """Decode onto a canvas, uint8 [S, S, 3]. False if libjpeg-turbo warns or the size differs: use decode_canvas instead.

    scratch: uint8 [S, S, 3], for images narrower than the canvas, whose rows are not contiguous on it.
    """
    side = len(canvas)
    in_place = width == side
    rows = canvas if height == side else canvas[:height]  # a slice costs 0.3 us, which 64 px images notice
    try:
        pixels = simplejpeg.decode_jpeg(jpeg, "RGB", buffer=rows if in_place else scratch, strict=True)
    except ValueError:
        return False
    if pixels.shape != (height, width, 3):
        return False
    if not in_place:
        paste(pixels, canvas)
    elif height < side:
        canvas[height:] = 0
    return True
