"""A minimal DALI pipeline: JPEGs read by their offset in a shard, decoded and, for canvases, padded."""

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import nvidia.dali.fn as fn
import torch
from nvidia.dali import Pipeline, types

from udkd.data.dataset import Split
from udkd.data.shards import shard_name


def image_loop(
    split: Split,
    order: np.ndarray,
    batch_size: int,
    threads: int,
    device: torch.device,
    *,
    padded: bool = True,
    in_memory: bool = False,
) -> Callable[[int], int]:
    """A function that decodes at least `count` images of `order` in a DALI pipeline and returns their number.

    padded: as canvases; otherwise at the images' sizes. in_memory: the JPEGs are read beforehand, untimed.
    """
    read = _from_memory(split, order) if in_memory else _from_shards(split)
    starts: Iterator[int] = iter(())

    def feed() -> list[np.ndarray]:
        start = next(starts)
        return [np.frombuffer(read(order[n % len(order)]), dtype=np.uint8) for n in range(start, start + batch_size)]

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
        """Each call is a separate epoch, so that images prefetched between two calls do not count for the second."""
        nonlocal starts
        starts, done = iter(range(0, count, batch_size)), 0
        with contextlib.suppress(StopIteration):
            while True:
                pipeline.run()
                done += batch_size
        pipeline.reset()
        return done

    return run


def _from_memory(split: Split, order: np.ndarray) -> Callable[[int], bytes]:
    return {int(n): split.read(int(n)) for n in order}.__getitem__


def _from_shards(split: Split) -> Callable[[int], bytes]:
    """A function that reads a sample's bytes, without checksums or error messages; all shards are kept open."""
    numbers = set(split.shard[split.ids].tolist())
    shards = {number: os.open(split.path / f"{shard_name(number)}.tar", os.O_RDONLY) for number in numbers}
    columns = (split.shard.tolist(), split.size.tolist(), split.offset.tolist())
    locations = [(shards.get(number, -1), size, offset) for number, size, offset in zip(*columns, strict=True)]
    return lambda sample_id: os.pread(*locations[sample_id])
