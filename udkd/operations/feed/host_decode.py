"""An epoch of canvases decoded on the host, in threads: what backends that differ only in their decode have in common."""

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from udkd.operations.feed.device_copies import HostMemory, onto
from udkd.operations.feed.threads import Work, in_threads
from udkd.words.batch import Batch

AHEAD_BYTES = 256 << 20
"""Bound on canvases that are decoded or being decoded before they are asked for; never less than two batches."""

_MOST_COPIES = 2  # on the device before they are used, where the bound allows as many

_PART_BYTES = 512 << 10
_MOST_PER_PART = 128

Decode = Callable[[NDArray[np.int64], NDArray[np.uint8]], None]
"""Decodes samples `ids` [b] into canvases uint8 [b, S, S, 3], whose contents are arbitrary: it must write every byte."""


def samples_per_part(stored_bytes: NDArray[np.int64]) -> int:
    """How many samples of these sizes a thread gets at a time: 512 KB, one to 128 of them. A part's round trip takes 50 us."""
    mean = max(1, int(stored_bytes.sum()) // max(1, int(np.count_nonzero(stored_bytes))))
    return max(1, min(_MOST_PER_PART, _PART_BYTES // mean))


def decoded_epoch(
    order: NDArray[np.int64],
    batch_size: int,
    decode: Decode,
    *,
    side: int,
    labels: torch.Tensor,
    device: torch.device,
    workers: int,
    samples_per_part: int,
    stage: str,
) -> Iterator[Batch]:
    """Batches of `order` on `device`, decoded ahead by `workers` threads.

    labels: int64 [N] on the CPU. samples_per_part: how many samples of a batch one call of `decode` gets; fewer where the
    batches that may be ahead would not be enough for all threads. Failures of `decode` are raised at their batch's turn.
    """
    batch_bytes = max(1, min(batch_size, len(order)) * side * side * 3)
    batches_ahead = max(2, AHEAD_BYTES // batch_bytes)
    memory = HostMemory(device, batch_bytes, keep=2 + batches_ahead)
    part = max(1, min(samples_per_part, batches_ahead * batch_size // (2 * workers)))

    def work() -> Iterator[Work[Batch, None]]:
        for start in range(0, len(order), batch_size):
            ids = order[start : start + batch_size]
            canvas = memory.take(len(ids), side, side, 3)
            rows = canvas.numpy()
            parts = [partial(decode, ids[n : n + part], rows[n : n + part]) for n in range(0, len(ids), part)]
            ids_B = torch.from_numpy(ids)
            yield Work(item=Batch(ids=ids_B, canvas=canvas, labels=labels[ids_B]), parts=parts, size_bytes=canvas.nbytes)

    batches = (batch for batch, _ in in_threads(work(), workers=workers, ahead_bytes=AHEAD_BYTES, stage=stage))
    return onto(device, batches, stage, depth=max(1, min(_MOST_COPIES, AHEAD_BYTES // batch_bytes)))
