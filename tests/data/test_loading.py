"""Loading batches onto a device: order, bounds, failures, and no leaks."""

import gc
import threading
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tests.timeouts import scaled
from udkd.data.batch import Batch
from udkd.data.loading import buffers, host_loader
from udkd.data.loading.buffers import BufferPool
from udkd.data.loading.device_copies import CudaCopier, HostMemory, copy_ahead, to_device
from udkd.data.loading.host_loader import HostLoader
from udkd.data.loading.threads import Work, run_in_threads

CPU = torch.device("cpu")


def pieces(count: int, part: Callable[[int, int], int], size_bytes: int, started: list[int]) -> Iterator[Work[int, int]]:
    for n in range(count):
        started.append(n)
        yield Work(item=n, parts=[lambda n=n, m=m: part(n, m) for m in range(3)], size_bytes=size_bytes)  # type: ignore[misc]


@pytest.mark.parametrize("workers", [1, 2, 8])
def test_results_keep_their_order_however_long_each_takes(workers: int) -> None:
    def part(n: int, m: int) -> int:
        time.sleep(0.002 * ((7 * n + 3 * m) % 5))
        return 10 * n + m

    got = list(run_in_threads(pieces(12, part, 100, []), workers=workers, ahead_bytes=500, stage="test"))
    assert got == [(n, [10 * n, 10 * n + 1, 10 * n + 2]) for n in range(12)]


@pytest.mark.parametrize(("ahead_bytes", "most"), [(0, 2), (250, 2), (400, 4), (1000, 10)])
def test_work_ahead_is_bounded_in_bytes(ahead_bytes: int, most: int) -> None:
    started: list[int] = []
    stream = run_in_threads(pieces(40, lambda n, m: n, 100, started), workers=4, ahead_bytes=ahead_bytes, stage="test")
    for delivered, (n, _) in enumerate(stream, 1):
        assert n == delivered - 1
        assert len(started) - (delivered - 1) <= most
    assert len(started) == 40


def test_a_failure_is_raised_in_order_and_ends_everything() -> None:
    threads = threading.active_count()

    def part(n: int, m: int) -> int:
        if (n, m) == (3, 1):
            raise KeyError(n)
        time.sleep(0.002)
        return n

    stream = run_in_threads(pieces(20, part, 1, []), workers=3, ahead_bytes=100, stage="test")
    assert [next(stream)[0] for _ in range(3)] == [0, 1, 2]
    with pytest.raises(KeyError):
        next(stream)
    assert next(stream, None) is None
    assert threading.active_count() == threads


def test_closing_early_starts_no_more_work() -> None:
    threads, done = threading.active_count(), []

    def part(n: int, m: int) -> int:
        time.sleep(0.001)
        done.append(n)
        return n

    stream = run_in_threads(pieces(1000, part, 1, []), workers=2, ahead_bytes=10**6, stage="test")
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    assert threading.active_count() == threads
    assert len(done) < 200


def test_memory_is_reused_only_without_references() -> None:
    pool = BufferPool(keep_bytes=0)
    first = pool.take(4, 4, 3)
    address = first.ctypes.data
    view = torch.from_numpy(first)[1:]
    del first
    second = pool.take(4, 4, 3)
    assert second.ctypes.data != address
    del view
    third = pool.take(2, 4, 3)
    assert third.ctypes.data == address
    assert third.shape == (2, 4, 3)
    assert third.flags.writeable
    del second, third
    gc.collect()
    assert len(pool._free) == 2
    assert pool.take(7, 7).shape == (7, 7), "a piece that is too small is freed"
    assert [len(piece) for piece in pool._free] == [49]
    pool.clear()
    assert not pool._free


def test_memory_is_released_when_the_module_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    """When the interpreter ends, its names are None before the last array is freed."""
    pool = BufferPool(keep_bytes=0)
    array = pool.take(4)
    for name in [name for name in vars(buffers) if not name.startswith("__")]:
        monkeypatch.setattr(buffers, name, None)
    del array
    assert len(pool._free) == 1


@pytest.mark.parametrize(("keep_bytes", "kept"), [(0, 2), (20, 2), (39, 3), (40, 4), (10**6, 64)])
def test_unused_memory_is_bounded(keep_bytes: int, kept: int) -> None:
    pool = BufferPool(keep_bytes)
    held = [pool.take(10) for _ in range(70)]
    held.clear()
    assert len(pool._free) == kept


def test_an_epoch_is_decoded_into_the_memory_of_the_one_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """New memory costs more than a decode where the system is slow to allocate it."""
    order = np.arange(120, dtype=np.int64)
    loader = HostLoader(SimpleNamespace(labels=order, size=order, side=8), CPU, workers=2, stage="test")
    plain_empty, made = np.empty, []
    monkeypatch.setattr(np, "empty", lambda *given, **more: made.append(given) or plain_empty(*given, **more))
    counts = []
    for _ in range(3):
        made.clear()
        for batch in loader.epoch(order, 4, lambda ids, canvas: canvas.fill(1)):
            assert batch.canvas.eq(1).all()
        del batch
        counts.append(len(made))
    assert counts[0] >= 3
    assert max(counts[1:]) <= 2, "a thread may still hold one piece"
    loader.close()


def batches(count: int, broken: int | None = None) -> Iterator[Batch]:
    for n in range(count):
        if n == broken:
            raise KeyError(n)
        yield Batch(ids=torch.tensor([n]), canvas=torch.full((1, 2, 2, 3), n, dtype=torch.uint8), labels=torch.tensor([n % 3]))


class RecordingCopier:
    """A copier that records the order of its calls."""

    def __init__(self) -> None:
        self.started: list[int] = []
        self.finished: list[int] = []

    def start(self, batch: Batch) -> Batch:
        assert threading.current_thread().name == "test"
        self.started.append(int(batch.ids[0]))
        return batch

    def finish(self, started: Batch) -> Batch:
        assert threading.current_thread() is threading.main_thread()
        self.finished.append(int(started.ids[0]))
        return started


def test_copies_start_ahead_and_finish_where_they_are_used() -> None:
    copier = RecordingCopier()
    ids = []
    for batch in copy_ahead(batches(20), copier, "test"):
        ids.append(int(batch.ids[0]))
        assert copier.finished == ids
        assert len(copier.started) <= len(ids) + 4  # two ready, one in flight, one with the consumer
    assert ids == copier.started == list(range(20))


def test_a_failure_is_raised_after_the_copies_before_it() -> None:
    threads = threading.active_count()
    stream = copy_ahead(batches(20, broken=4), RecordingCopier(), "test")
    assert [int(next(stream).ids[0]) for _ in range(4)] == [0, 1, 2, 3]
    with pytest.raises(KeyError):
        next(stream)
    assert threading.active_count() == threads


def test_leaving_copies_early_closes_their_source() -> None:
    threads, ended = threading.active_count(), threading.Event()

    def source() -> Iterator[Batch]:
        try:
            yield from batches(1000)
        finally:
            ended.set()

    copier = RecordingCopier()
    for _batch in copy_ahead(source(), copier, "test"):
        break
    assert ended.is_set() or ended.wait(scaled(20))
    assert threading.active_count() == threads
    assert len(copier.started) < 8


def test_on_the_cpu_nothing_is_copied() -> None:
    given = list(batches(3))
    assert [a is b for a, b in zip(to_device(CPU, iter(given), "test"), given, strict=True)] == [True] * 3


def test_decoding_ahead_is_bounded_in_bytes_not_in_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """For any batch size, what is decoded ahead stays below the bound, or at two batches."""
    side, bound, lock = 8, 40 * 8 * 8 * 3, threading.Lock()
    monkeypatch.setattr(host_loader, "AHEAD_BYTES", bound)
    for batch_size in (1, 4, 16, 64):
        decoded = 0

        def decode(ids: np.ndarray, canvas: np.ndarray) -> None:
            nonlocal decoded
            canvas[:] = ids[:, None, None, None]
            with lock:
                decoded += len(ids)

        taken = 0
        order = np.arange(200, dtype=np.int64)
        split = SimpleNamespace(labels=order % 7, size=np.full(200, 170 << 10), side=side)
        loader = HostLoader(split, CPU, workers=2, stage="test")
        for batch in loader.epoch(order, batch_size, decode):
            time.sleep(0.001)
            taken += len(batch.ids)
            assert decoded - taken + len(batch.ids) <= max(40, 2 * batch_size)
            assert torch.equal(batch.canvas[:, 0, 0, 0].long(), batch.ids)
            assert torch.equal(batch.labels, batch.ids % 7)
        assert taken == decoded == 200


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_copies_to_a_gpu() -> None:
    device = torch.device("cuda")
    memory = HostMemory(device, keep_bytes=0)

    def source() -> Iterator[Batch]:
        for n in range(50):
            canvas = memory.take(1, 64, 64, 3)
            assert canvas.is_pinned()
            canvas.fill_(n)
            yield Batch(ids=torch.tensor([n]), canvas=canvas, labels=torch.tensor([n]))

    for n, batch in enumerate(copy_ahead(source(), CudaCopier(device), "test")):
        assert batch.canvas.is_cuda
        assert batch.canvas.eq(n).all()
        assert batch.ids.tolist() == [n]
