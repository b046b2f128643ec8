import gc
import os
import threading
import weakref
from collections.abc import Iterator
from functools import partial

import pytest
import torch

from tests.forks import forked
from udkd.utils import cpu_threads
from udkd.utils.cpu_threads import run_in_parts


@pytest.fixture(autouse=True, params=[2, 3])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("count", "least", "parts"), [(0, 1, 1), (1, 1, 1), (5, 3, 1), (5, 2, 2), (7, 1, None), (1000, 1, None)]
)
def test_parts_cover_the_samples(count: int, least: int, parts: int | None, threads: int) -> None:
    done: list[slice] = []
    run_in_parts(done.append, count, least)
    done.sort(key=lambda part: part.start)
    assert [n for part in done for n in range(part.start, part.stop)] == list(range(count))
    assert len(done) == (parts or threads * min(count // threads, 4))
    assert len(done) == 1 or all(part.stop - part.start >= least for part in done)


def test_each_thread_is_one_of_pytorchs(threads: int) -> None:
    """PyTorch's own number is unchanged: here, and in threads that begin later."""
    seen: list[tuple[str, int]] = []
    together = threading.Barrier(threads)

    def work(part: slice) -> None:
        together.wait(60)
        torch.zeros(1 << 20).add_(1)  # so that PyTorch starts its own threads if it would
        seen.append((threading.current_thread().name, torch.get_num_threads()))

    for _ in range(3):
        seen.clear()
        run_in_parts(work, threads, 1)
        assert len({name for name, _ in seen}) == threads
        assert {number for _, number in seen} == {1}
        assert torch.get_num_threads() == threads
    later: list[int] = []
    thread = threading.Thread(target=lambda: later.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert later == [threads]


def test_an_exception_is_raised_when_all_parts_have_ended() -> None:
    done: list[int] = []

    def work(part: slice) -> None:
        if part.start == 0:
            raise ValueError("the first")
        done.append(part.start)

    with pytest.raises(ValueError, match="the first"):
        run_in_parts(work, 6, 1)
    assert sorted(done) == [1, 2, 3, 4, 5]


def test_an_exception_keeps_nothing_alive() -> None:
    class Held:
        pass

    held = Held()
    reference = weakref.ref(held)

    def work(part: slice, held: Held) -> None:
        raise ValueError("no")

    gc.disable()
    try:
        with pytest.raises(ValueError, match="no"):
            run_in_parts(partial(work, held=held), 6, 1)
        del held
        assert reference() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("started", [0, 1])
def test_without_more_threads_the_work_is_done_here(started: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """As when the interpreter is ending, or the process has as many threads as it may have."""
    monkeypatch.setattr(cpu_threads, "_pools", {})
    starts = iter(range(9))
    start = threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        if next(starts) >= started:
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refuse)
    done: list[int] = []
    run_in_parts(lambda part: done.extend(range(part.start, part.stop)), 8, 1)
    assert set(done) == set(range(8))


def test_few_parts_are_not_worth_many_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    done: list[slice] = []
    run_in_parts(done.append, 30, 10)
    assert done == [slice(0, 30)]


@pytest.mark.parametrize("inference", [True, False])
def test_tensors_of_inference_mode(inference: bool) -> None:
    with torch.inference_mode(inference):
        x = torch.zeros(8)
        run_in_parts(lambda part: x[part].add_(1).fill_(2), 8, 1)
    assert torch.equal(x, torch.full((8,), 2.0))
    assert x.is_inference() == inference


def test_a_forked_process_starts_its_own_threads() -> None:
    run_in_parts(lambda part: None, 8, 1)

    def work() -> None:
        done: list[slice] = []
        run_in_parts(done.append, 8, 1)
        os._exit(0 if sum(part.stop - part.start for part in done) == 8 else 3)

    child = forked(work)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
