"""The folder backend: reads stored bytes from the shards by offset and decodes them with libjpeg-turbo, in threads.

The pixels equal Pillow's. Pillow itself is too slow in threads: while parsing it holds the interpreter lock twice as long as
decoding a 64 px image takes.
"""

from collections.abc import Iterator
from typing import final

import numpy as np
import simplejpeg
import torch
from numpy.typing import NDArray

from udkd.data.batch import Batch
from udkd.data.canvas import paste
from udkd.data.dataset import Split
from udkd.data.loading.host_loader import HostLoader


@final
class FolderBackend:
    """Decodes every sample in every epoch. It needs only the shards.

    workers: decoding threads (libjpeg-turbo runs without the interpreter lock); 0 means one per core.
    """

    def __init__(self, split: Split, device: torch.device, *, workers: int = 0) -> None:
        self.num_samples = split.num_samples
        self._split = split
        self._loader = HostLoader(split, device, workers=workers, stage="folder backend")

    def epoch(self, order: NDArray[np.int64], batch_size: int) -> Iterator[Batch]:
        """See udkd.data.batch.Backend."""
        return self._loader.epoch(self._split.order(order), batch_size, self._decode)

    def close(self) -> None:
        """Release the memory; no thread or open file outlives an epoch."""
        self._loader.close()

    def describe(self) -> str:
        """The pixel class: libjpeg-turbo with its default settings, as in Pillow."""
        return "libjpeg islow, fancy upsampling"

    def _decode(self, ids: NDArray[np.int64], canvas: NDArray[np.uint8]) -> None:
        scratch = np.empty_like(canvas[0])
        sizes = self._split.sizes[ids].tolist()
        for sample_id, (_, _, height, width), row, jpeg in zip(
            ids.tolist(), sizes, canvas, self._split.read_many(ids), strict=True
        ):
            if not try_decode(jpeg, row, scratch, height, width):
                self._split.pixels(sample_id, row)


def try_decode(jpeg: bytes, canvas: NDArray[np.uint8], scratch: NDArray[np.uint8], height: int, width: int) -> bool:
    """Decode onto a canvas, uint8 [S, S, 3]. False if libjpeg-turbo warns or the size differs: use Split.pixels instead.

    scratch: uint8 [S, S, 3], for images narrower than the canvas, whose rows are not contiguous on it.
    """
    in_place = width == canvas.shape[1]
    try:
        pixels = simplejpeg.decode_jpeg(jpeg, "RGB", buffer=canvas[:height] if in_place else scratch, strict=True)
    except ValueError:
        return False
    if pixels.shape != (height, width, 3):
        return False
    if in_place:
        canvas[height:] = 0
    else:
        paste(pixels, canvas)
    return True
