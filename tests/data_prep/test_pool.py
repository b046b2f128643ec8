"""Worker processes: order, bounds, errors, and no orphans."""

import itertools
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.data_prep.pool_jobs import Double, Echo, Unreadable
from tests.timeouts import wait_until
from udkd.data_prep import pool as module
from udkd.data_prep.pool import RESULTS_PER_WORKER, Pool, reuse_workers
from udkd.utils.errors import DataError


@pytest.fixture(autouse=True)
def _none_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_idle", None)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except FileNotFoundError:
        return False


def gone(pids: set[int]) -> bool:
    return wait_until(lambda: not any(alive(pid) for pid in pids))


def test_tasks_and_results_larger_than_the_buffer_of_a_socket() -> None:
    """The parent sends a second task while the worker sends its first result: neither may wait for the other."""
    tasks = [bytes([n]) * (8 << 20) for n in range(4)]
    with Pool(Echo(), 1) as pool:
        assert [task for task, _ in pool.ordered(tasks)] == tasks  # type: ignore[misc]


def test_results_come_in_order_and_tasks_are_taken_as_needed() -> None:
    taken = 0

    def tasks() -> Iterator[float]:
        nonlocal taken
        for n in range(60):
            taken += 1
            yield 0.01 if n % 7 == 0 else 0.0001 * n

    with Pool(Echo(), 3) as pool:
        results = []
        for number, (task, _) in enumerate(pool.ordered(tasks())):
            assert taken <= number + 3 * RESULTS_PER_WORKER + 1
            results.append(task)
    assert results == [0.01 if n % 7 == 0 else 0.0001 * n for n in range(60)]


def test_a_pool_can_be_used_again_and_left_early() -> None:
    with Pool(Echo(), 2) as pool:
        assert [task for task, _ in pool.ordered(iter(range(5)))] == list(range(5))
        pids = {pid for _, pid in pool.ordered(iter(range(20)))}
        assert list(pool.ordered(iter(()))) == []
        next(pool.ordered(iter(range(100))))
    assert gone(pids)


def test_idle_workers_are_reused_by_the_next_pool() -> None:
    """Only workers that have finished all tasks are reused; others would still send old results."""
    with reuse_workers():
        with Pool(Echo(), 2) as echo:
            pids = {pid for _, pid in echo.ordered(iter(range(20)))}
        with reuse_workers(), Pool(Double(), 1) as double:
            assert list(double.ordered(iter(range(5)))) == [0, 2, 4, 6, 8]
        with Pool(Echo(), 2) as echo:
            assert {pid for _, pid in echo.ordered(iter(range(20)))} == pids
            next(echo.ordered(iter(range(100))))
        assert gone(pids)
        with pytest.raises(DataError, match="is bad"), Pool(Echo(), 1) as echo:
            list(echo.ordered(iter(["user"])))
        with Pool(Echo(), 2) as echo:
            pids = {pid for _, pid in echo.ordered(iter(range(20)))}
        os.kill(min(pids), signal.SIGKILL)
        with pytest.raises(DataError, match="signal 9"), Pool(Echo(), 2) as echo:
            list(echo.ordered(iter(range(20))))
    assert gone(pids)


@pytest.mark.parametrize(
    ("task", "kind", "message"),
    [
        ("user", DataError, r"sample 3 \(x\.jpg\) is bad"),
        ("disk", OSError, "No space left"),
        ("die", DataError, "was killed by signal 9"),
        ("bug", RuntimeError, "KeyError: 'oops'"),
    ],
)
def test_failures_reach_the_parent_at_once(task: str, kind: type[Exception], message: str) -> None:
    later = iter([0.01] * 10_000)
    with pytest.raises(kind, match=message), Pool(Echo(), 2) as pool:
        list(pool.ordered(itertools.chain([1, 2, task], later)))
    assert len(list(later)) > 9_900


@pytest.mark.timeout(60)
def test_a_task_that_cannot_be_received_ends_its_worker() -> None:
    with pytest.raises(DataError, match="ended with code 0"), Pool(Echo(), 1) as pool:
        list(pool.ordered(iter([Unreadable()])))


def test_workers_end_with_a_killed_parent(tmp_path: Path) -> None:
    script = """
from udkd.data_prep.pool import Pool
from tests.data_prep.pool_jobs import Echo
with Pool(Echo(), 2) as pool:
    print(*{pid for _, pid in pool.ordered(iter(range(20)))}, flush=True)
    list(pool.ordered(iter([0.2] * 1000)))
"""
    root = Path(__file__).resolve().parent.parent.parent
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, env=os.environ | {"PYTHONPATH": str(root)}
    )
    assert process.stdout is not None
    pids = {int(word) for word in process.stdout.readline().split()}
    process.stdout.close()
    assert pids
    assert all(alive(pid) for pid in pids)
    process.kill()
    process.wait()
    assert gone(pids)
