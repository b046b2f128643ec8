"""Prefetching: in order, bounded, forwards failures, stops when it is no longer needed."""

import threading
import time
from collections.abc import Iterator

import pytest

from tests.timeouts import scaled, wait_until
from udkd.utils.prefetch import prefetch


def running(stage: str) -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == stage]


def test_all_items_in_order() -> None:
    for depth in (1, 2, 50):
        assert list(prefetch(iter(range(30)), depth, "stage-order")) == list(range(30))
    assert list(prefetch(iter(()), 1, "stage-order")) == []
    assert not running("stage-order")


def test_no_further_ahead_than_its_depth() -> None:
    made: list[int] = []

    def items() -> Iterator[int]:
        for number in range(20):
            made.append(number)
            yield number

    batches = prefetch(items(), 3, "stage-depth")
    for taken in range(1, 20):
        next(batches)
        time.sleep(0.005)
        assert len(made) <= taken + 3 + 1  # in the queue, and held by the thread
    batches.close()  # type: ignore[attr-defined]


class DecodeFailedError(Exception):
    pass


def test_a_failure_comes_after_the_items_before_it() -> None:
    def items() -> Iterator[int]:
        yield 1
        yield 2
        raise DecodeFailedError("sample 7")

    batches = prefetch(items(), 5, "stage-failure")
    assert [next(batches), next(batches)] == [1, 2]
    with pytest.raises(DecodeFailedError, match="sample 7"):
        next(batches)
    assert not running("stage-failure")


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, StopIteration])
def test_odd_exceptions_do_not_hang(error: type[BaseException]) -> None:
    class Items:
        def __iter__(self) -> "Items":
            return self

        def __next__(self) -> int:
            raise error

    batches = prefetch(Items(), 1, "stage-odd")
    if error is StopIteration:  # the normal end
        assert list(batches) == []
    else:
        with pytest.raises(error):
            list(batches)
    assert not running("stage-odd")


def test_leaving_early_stops_the_thread_at_once() -> None:
    finished = threading.Event()

    def items() -> Iterator[int]:
        try:
            yield from range(10**9)
        finally:
            finished.set()

    for item in prefetch(items(), 2, "stage-early"):
        if item == 3:
            break
    assert wait_until(lambda: not running("stage-early"))
    assert finished.wait(scaled(20)), "what the source holds open is closed"


def test_nothing_starts_before_the_first_request() -> None:
    batches = prefetch(iter(range(3)), 2, "stage-lazy")
    assert not running("stage-lazy")
    del batches
