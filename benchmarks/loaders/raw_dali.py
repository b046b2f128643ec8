"""DALI as one would write it straight away: JPEGs that are in memory already, decoded and, for canvases, padded."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import nvidia.dali.fn as fn
import torch
from nvidia.dali import Pipeline, types

from udkd.formats.dataset import Split


def epochs(
    split: Split, order: np.ndarray, batch_size: int, threads: int, device: torch.device, *, padded: bool = True
) -> Callable[[int], int]:
    """A function that takes at least `count` images of `order` through a DALI pipeline, and says how many it took.

    padded: as canvases; else as images, each of its own size.
    """
    stored = [np.frombuffer(split.read(int(n)), dtype=np.uint8) for n in order]
    starts: Iterator[int] = iter(())

    def feed() -> list[np.ndarray]:
        start = next(starts)
        return [stored[n % len(stored)] for n in range(start, start + batch_size)]

    decoder: dict[str, Any] = {"device": "cpu"}
    if device.type == "cuda":
        decoder = {"device": "mixed", "hw_decoder_load": 0.0, "jpeg_fancy_upsampling": True}
    pipeline = Pipeline(
        batch_size=batch_size,
        num_threads=threads,
        device_id=(device.index or 0) if device.type == "cuda" else None,
        prefetch_queue_depth=2,
    )
    with pipeline:
        jpegs = fn.external_source(source=feed, dtype=types.UINT8, ndim=1, batch=True, no_copy=True)
        images = fn.decoders.image(jpegs, output_type=types.RGB, adjust_orientation=False, **decoder)
        pipeline.set_outputs(fn.pad(images, axes=(0, 1), shape=(split.side, split.side), fill_value=0) if padded else images)
    pipeline.build()

    def run(count: int) -> int:
        """Each call is an epoch by itself: what DALI decodes ahead between two calls must not count for the second."""
        nonlocal starts
        starts, done = iter(range(0, count, batch_size)), 0
        with contextlib.suppress(StopIteration):
            while True:
                pipeline.run()
                done += batch_size
        pipeline.reset()
        return done

    return run
