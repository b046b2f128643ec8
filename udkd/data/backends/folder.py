"""The folder backend: reads stored bytes from the shards by offset and decodes them with libjpeg-turbo, in threads.

Not with Pillow, whose pixels it gives: Pillow's parsing holds the interpreter lock for twice as long as a 64 px decode takes.
"""

from collections.abc import Iterator
from typing import final

import numpy as np
import simplejpeg
import torch
from numpy.typing import NDArray

from udkd.data.backends.registry import register
from udkd.data.batch import Batch
from udkd.data.canvas import paste
from udkd.data.dataset import Split
from udkd.data.loading.host_loader import HostLoader


@final
@register("folder")
class FolderBackend:
    """Decodes every sample of every batch anew; the backend that needs nothing but the shards.

    workers: decoding threads (libjpeg-turbo runs without the interpreter lock); 0 means one per core.
    """

    def __init__(self, split: Split, device: torch.device, *, workers: int = 0) -> None:
        self.num_samples = split.num_samples
        self._split = split
        self._feed = HostLoader(split, device, workers=workers, stage="folder backend")

    def epoch(self, order: NDArray[np.int64], batch_size: int) -> Iterator[Batch]:
        """See udkd.data.batch.Backend."""
        return self._feed.epoch(self._split.order(order), batch_size, self._decode)

    def close(self) -> None:
        """Let the memory go; no thread or file outlives an epoch."""
        self._feed.close()

    def describe(self) -> str:
        """Pillow's decode: libjpeg-turbo with its defaults."""
        return "libjpeg islow, fancy upsampling"

    def _decode(self, ids: NDArray[np.int64], canvas: NDArray[np.uint8]) -> None:
        scratch = np.empty_like(canvas[0])
        sizes = self._split.sizes[ids].tolist()
        for sample_id, (_, _, height, width), row, jpeg in zip(
            ids.tolist(), sizes, canvas, self._split.read_many(ids), strict=True
        ):
            if not decoded(jpeg, row, scratch, height, width):
                self._split.pixels(sample_id, row)


def decoded(jpeg: bytes, canvas: NDArray[np.uint8], scratch: NDArray[np.uint8], height: int, width: int) -> bool:
    """Decode onto a canvas [S, S, 3]. False where libjpeg-turbo finds anything odd, or another size: ask the reference then.

    scratch: uint8 [S, S, 3], for decodes whose rows do not follow each other on the canvas.
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
