"""Runs work in threads ahead of its use. Results arrive in order, memory is bounded, exceptions are forwarded."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from udkd.utils.errors import ConfigError
from udkd.utils.operating_system import available_cores

Item = TypeVar("Item")
Result = TypeVar("Result")
_PARTS_PER_WORKER = 4
"""Enough to keep every thread busy. With more, stopping early would take longer, and results would leave the processor's cache
before they are used: with 16, 64 px canvases take 1.04 times as long as with 4.
"""

MAX_WORKERS = 1024
_MAX_BATCH_SIZE = 2**31 - 1


def num_threads(workers: int) -> int:
    """The number of threads: `workers`, or one per core for 0. Raises ConfigError for a number out of range."""
    if not 0 <= workers <= MAX_WORKERS:
        raise ConfigError(f"{workers} decoding threads; expected 0 (one per core) to {MAX_WORKERS}; change data.workers")
    return workers or available_cores()


def chunks(order: NDArray[np.int64], batch_size: int) -> Iterator[NDArray[np.int64]]:
    """Split an order of ids into batches; the last may be smaller. Raises ConfigError for a batch size out of range."""
    if not 1 <= batch_size <= _MAX_BATCH_SIZE:
        raise ConfigError(f"a batch of {batch_size}; expected 1 to {_MAX_BATCH_SIZE:,} images; change the batch size")
    return (order[start : start + batch_size] for start in range(0, len(order), batch_size))


@dataclass(frozen=True, kw_only=True)
class Work(Generic[Item, Result]):
    """A unit of work whose `parts` run in any order and in any thread. size_bytes: memory held from start to delivery."""

    item: Item
    parts: Sequence[Callable[[], Result]]
    size_bytes: int


def run_in_threads(
    work: Iterator[Work[Item, Result]], *, workers: int, ahead_bytes: int, stage: str
) -> Iterator[tuple[Item, list[Result]]]:
    """Yield each unit's item and the results of its parts, in order, while later units are in progress.

    Units in progress hold at most `ahead_bytes`, but there are always two: the next to be yielded and the one after it. An
    exception in a part is raised in place of its unit, after all earlier units. Stopping early (break, close) drops parts that
    have not started and waits for the others, so that no thread leaks.
    """
    waiting: deque[tuple[Work[Item, Result], list[Future[Result]]]] = deque()
    held_bytes = held_parts = size_bytes = 0
    pool = ThreadPoolExecutor(workers, thread_name_prefix=stage)
    try:
        while True:
            # The next unit is assumed to be as large as the last: taking it from `work` would already allocate it.
            while len(waiting) < 2 or (held_bytes + size_bytes <= ahead_bytes and held_parts < _PARTS_PER_WORKER * workers):
                if (piece := next(work, None)) is None:
                    break
                waiting.append((piece, [pool.submit(part) for part in piece.parts]))
                held_bytes += piece.size_bytes
                held_parts += len(piece.parts)
                size_bytes = piece.size_bytes
            if not waiting:
                return
            piece, futures = waiting.popleft()
            results = [future.result() for future in futures]
            held_bytes -= piece.size_bytes
            held_parts -= len(piece.parts)
            yield piece.item, results
            del piece, futures, results  # a batch that the consumer drops must not be kept alive here
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
