"""Work on parts of a batch in CPU threads.

PyTorch divides each operation among its threads and waits for all of them after each: several times as slow as one thread where
operations are short or cores are busy. Here a thread runs all operations of its samples.
"""

import contextlib
import ctypes
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import partial
from itertools import pairwise

import torch

_PARTS_PER_THREAD = 4  # so that a slow part does not keep the others waiting
_MOST_THREADS = 16  # about a twentieth of the time is Python's, which runs in one thread at a time
_pools: dict[int, ThreadPoolExecutor] = {}
_lock = threading.Lock()


def run_in_parts(work: Callable[[slice], None], count: int, least: int) -> None:
    """Call `work` with slices that together cover range(count), in at most as many threads as PyTorch uses, and at most 16.

    Within them PyTorch uses one thread. A part has at least `least` samples; where there would be fewer than half as many parts
    as threads, or one, `work` is called here with all samples, and PyTorch uses all its threads. An exception is raised when no
    part is running any more. `work` may be called again for the same samples.
    """
    threads, parts = min(torch.get_num_threads(), _MOST_THREADS), count // least
    if min(threads, parts) < 2 or parts < threads // 2 or _set_openmp_threads is None:
        work(slice(0, count))
        return
    if parts > threads:
        parts = threads * min(parts // threads, _PARTS_PER_THREAD)
    bounds = [count * n // parts for n in range(parts + 1)]
    try:
        _run_all(partial(_run, work, torch.is_inference_mode_enabled()), [slice(*ends) for ends in pairwise(bounds)], threads)
    except _NoThreadError:
        work(slice(0, count))


class _NoThreadError(Exception):
    """The interpreter is ending, or no more threads can be started."""


def _run(work: Callable[[slice], None], inference: bool, part: slice) -> None:
    with torch.inference_mode(inference):
        work(part)


def _run_all(run: Callable[[slice], None], parts: Sequence[slice], threads: int) -> None:
    futures: list[Future[None]] = []
    try:
        pool = _pool(threads)
        for part in parts:
            try:
                futures.append(pool.submit(run, part))
            except RuntimeError as error:
                raise _NoThreadError from error
        wait(futures)
    except BaseException:
        for future in futures:
            future.cancel()
        wait(futures)
        raise
    try:
        for future in futures:
            future.result()
    finally:
        del futures, future  # an exception refers to this frame: what it holds would live until the next garbage collection


def _pool(threads: int) -> ThreadPoolExecutor:
    with _lock:
        if threads not in _pools:
            _pools.clear()
            _pools[threads] = ThreadPoolExecutor(threads, thread_name_prefix="samples", initializer=_use_one_thread)
        return _pools[threads]


def _use_one_thread() -> None:
    torch.get_num_threads()  # PyTorch sets a new thread's number when it is first asked for it, so ask before changing it
    # Not torch.set_num_threads, which also sets what other threads begin with, and how MKL divides its sums.
    if _set_openmp_threads is not None:
        _set_openmp_threads(1)


_set_openmp_threads: Callable[[int], object] | None = None  # of the calling thread
with contextlib.suppress(AttributeError, OSError, TypeError):  # a system or a PyTorch without OpenMP's symbols
    _set_openmp_threads = ctypes.CDLL(None).omp_set_num_threads


def _forget_pools() -> None:
    """A forked process has none of its parent's threads, and one of those may have held the lock."""
    global _lock
    _pools.clear()
    _lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_pools)
