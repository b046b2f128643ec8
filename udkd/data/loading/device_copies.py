"""Copies batches from the host to a GPU ahead of their use, on a separate stream. On the CPU nothing is copied."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from udkd.data.batch import Batch
from udkd.data.loading.buffers import BufferPool, require_memory
from udkd.utils.prefetch import prefetch

Started = TypeVar("Started")


class HostMemory:
    """Memory to decode batches into: pinned if `device` is a GPU, so that copies overlap kernels, else from a BufferPool.

    keep_bytes: see BufferPool. PyTorch caches pinned memory itself, and reuses it only after its copies have finished.
    """

    def __init__(self, device: torch.device, keep_bytes: int) -> None:
        self._pinned = device.type == "cuda"
        self._pool = BufferPool(keep_bytes)

    def take(self, *shape: int) -> Tensor:
        """A uint8 tensor with arbitrary contents."""
        if self._pinned:
            require_memory(math.prod(shape))
            return torch.empty(shape, dtype=torch.uint8, pin_memory=True)
        return torch.from_numpy(self._pool.take(*shape))

    def clear(self) -> None:
        """See BufferPool."""
        self._pool.clear()


@cache
def _copier(device: torch.device) -> "CudaCopier":
    """One copier per process: PyTorch caches memory per stream, so a new stream each epoch could not reuse it."""
    return CudaCopier(device)


def to_device(device: torch.device, batches: Iterator[Batch], stage: str, depth: int = 2) -> Iterator[Batch]:
    """Copy host batches to `device`, `depth` of them ahead of their use. On the CPU they are returned unchanged."""
    return copy_ahead(batches, _copier(device), stage, depth) if device.type == "cuda" else batches


class Copier(Protocol[Started]):
    """Starts copies without waiting, then makes their results usable on the consumer's stream."""

    def start(self, batch: Batch) -> Started: ...

    def finish(self, started: Started) -> Batch: ...


def copy_ahead(batches: Iterator[Batch], copier: Copier[Started], stage: str, depth: int = 2) -> Iterator[Batch]:
    """Start copies in a thread named `stage` and finish them in the consumer's thread. Exceptions: see `prefetch`."""
    started = prefetch((copier.start(batch) for batch in batches), depth=depth, stage=stage)
    try:
        for copy in started:
            yield copier.finish(copy)
    finally:
        started.close()


@dataclass(frozen=True)
class _CudaCopy:
    batch: Batch
    done: torch.cuda.Event


class CudaCopier:
    """Copies on a separate stream. An event orders the consumer's stream after the copy; the host never waits."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def start(self, batch: Batch) -> _CudaCopy:
        """Queue the copies. The canvas must be pinned; PyTorch does not reuse pinned memory while a copy from it runs."""
        with torch.cuda.stream(self._stream):
            copy = Batch(
                ids=batch.ids.pin_memory().to(self._device, non_blocking=True),
                canvas=batch.canvas.to(self._device, non_blocking=True),
                labels=batch.labels.pin_memory().to(self._device, non_blocking=True),
            )
            done = torch.cuda.Event()  # type: ignore[no-untyped-call]
            done.record(self._stream)
        return _CudaCopy(copy, done)

    def finish(self, started: _CudaCopy) -> Batch:
        """Order the current stream after the copy, and reuse of the memory after the current stream."""
        stream = torch.cuda.current_stream(self._device)
        stream.wait_event(started.done)
        for tensor in (started.batch.ids, started.batch.canvas, started.batch.labels):
            tensor.record_stream(stream)
        return started.batch
