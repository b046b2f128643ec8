"""A pool of worker processes with ordered results and bounded memory that never hangs or leaves orphaned processes.

Not concurrent.futures: its workers outlive a killed parent, and its queue of results is unbounded.
"""

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator
from multiprocessing.connection import Connection, Pipe, wait
from types import TracebackType
from typing import Generic, NoReturn, Protocol, TypeVar

from udkd.utils.errors import DataError
from udkd.utils.launcher import PACKAGE_ROOT

T = TypeVar("T")
R = TypeVar("R")
T_contra = TypeVar("T_contra", contravariant=True)
R_co = TypeVar("R_co", covariant=True)

TASKS_PER_WORKER = 2  # one in progress, one queued
RESULTS_PER_WORKER = 4  # limits how far the fastest worker may run ahead of the slowest

_idle: dict[Connection, subprocess.Popen[bytes]] | None = None
"""Idle workers inside `reuse_workers`; None outside of it."""


@contextlib.contextmanager
def reuse_workers() -> Iterator[None]:
    """Inside this block, the workers of a pool that ends without an error are reused by the next pool.

    A worker takes half a second to start, for its imports; a command with several pools pays for them once. The workers are
    killed when the block ends.
    """
    global _idle
    if _idle is not None:
        yield
        return
    _idle = {}
    try:
        yield
    finally:
        _kill(_idle)
        _idle = None


def _kill(processes: dict[Connection, subprocess.Popen[bytes]]) -> None:
    for connection, process in processes.items():
        process.kill()
        connection.close()
    for process in processes.values():
        process.wait()
    processes.clear()


class Job(Protocol[T_contra, R_co]):
    """Processes one task in a worker. Must be picklable; keep the imports of its module light, as every worker runs them."""

    def __call__(self, task: T_contra) -> R_co: ...


def _start() -> tuple[Connection, subprocess.Popen[bytes]]:
    parent_end, worker_end = Pipe()
    # -P: modules must not be imported from the user's current folder; ours are found through PYTHONPATH.
    command = [sys.executable, "-P", "-W", "ignore", "-m", "udkd.data_prep.worker", str(worker_end.fileno())]
    paths = [str(PACKAGE_ROOT), *(path for path in sys.path if path)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    with worker_end:
        # A new session: Ctrl-C reaches only the parent, which then ends the workers.
        process = subprocess.Popen(
            command, pass_fds=[worker_end.fileno()], env=environment, stdin=subprocess.DEVNULL, start_new_session=True
        )
    return parent_end, process


class Pool(Generic[T, R]):
    """Worker processes that run one job: `with Pool(job, workers) as pool: for result in pool.ordered(tasks): …`.

    Leaving the block kills the workers; inside `reuse_workers`, idle ones are kept for the next pool.
    """

    def __init__(self, job: Job[T, R], workers: int) -> None:
        self._job = job
        self._workers = workers
        self._processes: dict[Connection, subprocess.Popen[bytes]] = {}
        self._load: dict[Connection, int] = {}  # number of tasks without a result

    def __enter__(self) -> "Pool[T, R]":
        try:
            for _ in range(self._workers):
                connection, process = _idle.popitem() if _idle else _start()
                self._processes[connection], self._load[connection] = process, 0
                try:
                    connection.send((None, self._job))
                except OSError:
                    self._raise_worker_died(connection)
        except BaseException:
            _kill(self._processes)
            raise
        return self

    def ordered(self, tasks: Iterable[T]) -> Iterator[R]:
        """Yield results in the order of the tasks, which are consumed as workers need them. Exhaust it before the next call.

        Raises DataError for a UserError in the job and for a worker that died, and OSError for an OSError in the job.
        """
        pending = enumerate(tasks)
        load = self._load
        results: dict[int, R] = {}
        submitted = delivered = 0
        exhausted = False
        while True:
            while not exhausted and submitted - delivered < RESULTS_PER_WORKER * self._workers:
                idlest = min(load, key=load.__getitem__)
                if load[idlest] >= TASKS_PER_WORKER:
                    break
                item = next(pending, None)
                if item is None:
                    exhausted = True
                    break
                try:
                    idlest.send(item)
                except OSError:
                    self._raise_worker_died(idlest)
                load[idlest] += 1
                submitted += 1
            if delivered in results:
                yield results.pop(delivered)
                delivered += 1
            elif exhausted and delivered == submitted:
                return
            else:
                for ready in wait([connection for connection, count in load.items() if count]):
                    assert isinstance(ready, Connection)
                    number, result = self._receive(ready)
                    results[number] = result
                    load[ready] -= 1

    def _receive(self, connection: Connection) -> tuple[int, R]:
        try:
            number, result, failure = connection.recv()
        except (EOFError, OSError):
            self._raise_worker_died(connection)
        if failure is None:
            return number, result
        kind, arguments = failure
        if kind == "os":
            raise OSError(*arguments)
        if kind == "user":
            raise DataError(*arguments)
        raise RuntimeError(f"a worker failed:\n{arguments[0]}")

    def _raise_worker_died(self, connection: Connection) -> NoReturn:
        process = self._processes[connection]
        code = process.wait()
        cause = f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"
        raise DataError(
            f"worker process {process.pid} {cause} (out of memory?); expected it to keep running; "
            "start again with fewer --workers"
        )

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if _idle is not None and kind is None and not any(self._load.values()):
            _idle.update(self._processes)
        else:
            _kill(self._processes)
