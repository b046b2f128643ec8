"""The group of processes that torchrun starts for one job: its store, and how its processes fail together.

torchrun provides a key-value store. Building a cache needs nothing else of torch.distributed, as its processes share the files.
"""

import contextlib
import json
import math
import os
import platform
import signal
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import psutil

from udkd.utils.errors import ConfigError, MismatchError, ProcessGroupError, RunError, UserError
from udkd.utils.launcher import LAUNCHER_GONE, is_started_by_torchrun, is_torchrun_gone, is_torchrun_worker
from udkd.utils.operating_system import available_cores, die_with_parent

_POLL_S = 0.05
_CONNECT_S = 20.0  # torchrun's store exists before its processes; this bounds a slow network, or variables set by hand
_START_S = 600.0  # for all processes to have started: their imports may come from a slow shared disk
_REPORT_S = 10.0  # within which the main process reports the error of another one
SETUP_S = 3600.0
"""Seconds for all processes to have opened the data, the teacher and the run."""
_FINAL = "error that no restart cures"


class WorkerFailed(ProcessGroupError):
    """The error of another process of the group, with its rank and host."""


@dataclass(frozen=True, kw_only=True)
class WorkerGroup:
    """A process's rank of size, and its local_rank of local_size on this machine. hosts: of each rank.

    store: of this start of the group; None for a single process. all_starts: torchrun's own store, which outlives its restarts.
    failed_before: the error of an earlier start that no restart cures.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    hosts: tuple[str, ...] = (platform.node(),)
    store: Any = None
    all_starts: Any = None
    failed_before: str | None = None

    @classmethod
    def join(cls, environment: Mapping[str, str] = os.environ) -> "WorkerGroup":
        """Join the group that torchrun's variables describe, or a group of one.

        ProcessGroupError: the store or a process does not answer.
        """
        if is_started_by_torchrun(environment):
            die_with_parent(signal.SIGTERM)  # not SIGKILL: from here on there is something to clean up
        if not is_torchrun_worker(environment):
            return cls()
        if is_torchrun_gone(environment):
            raise ProcessGroupError(LAUNCHER_GONE)
        from torch.distributed.distributed_c10d import PrefixStore  # takes seconds, and a single process does not need it
        from torch.distributed.rendezvous import rendezvous

        try:
            store, rank, size = next(rendezvous("env://", timeout=timedelta(seconds=_CONNECT_S)))
        except (RuntimeError, ValueError, OSError) as error:
            raise ProcessGroupError(
                f"WORLD_SIZE is {environment['WORLD_SIZE']} and no other process answers ({_first_line(error)}); "
                "expected to be started by torchrun; use it, or unset WORLD_SIZE"
            ) from None
        name, hosts, failed_before = _agree_on_start(store, rank, size)
        return cls(
            rank=rank,
            size=size,
            local_rank=int(environment.get("LOCAL_RANK", "0")),
            local_size=int(environment.get("LOCAL_WORLD_SIZE", "1")),
            hosts=hosts,
            store=PrefixStore(name, store),
            all_starts=store,
            failed_before=failed_before,
        )

    @property
    def is_main(self) -> bool:
        """Whether this process holds the lock, finishes files and talks to the user."""
        return self.rank == 0

    def device_name(self, name: str) -> str:
        """The --device of this process where the group has several: its own GPU for auto or cuda."""
        import torch

        if self.size > 1 and (name == "cuda" or (name == "auto" and torch.cuda.is_available())):
            return f"cuda:{self.local_rank}"
        return name

    def where(self, rank: int | None = None) -> str:
        """A rank and its host, for messages; this process's by default."""
        rank = self.rank if rank is None else rank
        return f"rank {rank} on {self.hosts[rank] if rank < len(self.hosts) else 'an unknown host'}"

    def set(self, name: str, value: object = None) -> None:
        """Publish a JSON value under a name."""
        if self.store is not None:
            _call_store(self.store.set, name, json.dumps(value))

    def wait(self, name: str, seconds: float = math.inf) -> Any:
        """Wait for the value of a name. Raises WorkerFailed with the error of a process that failed.

        seconds: after which a process that has not failed either counts as lost: ProcessGroupError.
        """
        end = time.monotonic() + seconds
        while not self.check(name):
            if time.monotonic() > end:
                raise _no_answer(name, seconds)
            time.sleep(_POLL_S)
        return json.loads(_call_store(self.store.get, name))

    def check(self, name: str) -> bool:
        """Whether a name has a value. Raises WorkerFailed with the error of a process that failed."""
        if (error := self._failure()) is not None:
            raise error
        return bool(_call_store(self.store.check, [name]))

    def gather(self, name: str, value: object) -> list[Any]:
        """The JSON values of all processes, by rank. Raises WorkerFailed with the error of one that failed."""
        if self.size == 1:
            return [value]
        self.set(f"{name} of {self.where()}", value)
        return [self.wait(f"{name} of {self.where(rank)}", SETUP_S) for rank in range(self.size)]

    def add(self, name: str, count: int) -> int:
        """Add to a shared counter and return its new value."""
        return count if self.store is None else int(_call_store(self.store.add, name, count))

    @contextlib.contextmanager
    def reports_once(self, explain: Callable[[Exception], str | None] = lambda error: None) -> Iterator[None]:
        """Of the errors that end the processes of a group, let one reach the user, with the rank and host it came from.

        The first error is published; the main process raises it, and the others exit with 1. Another process raises its own
        error if the main one does not: it may be gone, or wait in a kernel.
        explain: the text of an error of the machine; other errors are bugs, whose process shows the traceback.
        """
        try:
            if self.failed_before is not None:
                raise WorkerFailed(self.failed_before)
            yield
        except Exception as error:
            if self.size == 1:
                raise
            explained = error if isinstance(error, UserError) else None
            if explained is None and (text := explain(error)) is not None:
                explained = UserError(text)
            if explained is None:
                with contextlib.suppress(ProcessGroupError):
                    self._publish(f"{type(error).__name__}: {_first_line(error)}")
                    self.set("reported")
                raise
            if (reported := self._fail(explained)) is None:
                raise SystemExit(1) from None
            raise reported from None

    def _fail(self, error: UserError) -> UserError | None:
        """The error that this process prints, or None where another one does."""
        try:
            lost = isinstance(error, ProcessGroupError) and not isinstance(error, WorkerFailed)
            if lost and self.is_main:  # most likely one that has failed: it says why
                self._wait_for("failed", _REPORT_S / 4)
            if not isinstance(error, ProcessGroupError):
                self._publish(str(error), final=isinstance(error, ConfigError | MismatchError | RunError))
            first = self._failure() or error
            if isinstance(error, ProcessGroupError) and _call_store(self.store.check, ["reported"]):
                return None
            if not self.is_main:
                if self._wait_for("reported", _REPORT_S) or self.add("reporting", 1) > 1:
                    return None
                return first
            self.set("reported")
            return first if isinstance(error, ProcessGroupError) else error
        except ProcessGroupError:  # the store is gone, and torchrun with it
            return error if self.is_main else None

    def _publish(self, text: str, *, final: bool = False) -> None:
        """Publish an error, unless there is one. final: also to later starts of the group."""
        where = "" if self.is_main else f"{self.where()}: "
        if final and self.all_starts is not None:
            _call_store(self.all_starts.compare_set, _FINAL, "", where + text)
        _call_store(self.store.compare_set, "failed", "", json.dumps(where + text))

    def _failure(self) -> WorkerFailed | None:
        """The first error that a process has published."""
        if self.store is None or not _call_store(self.store.check, ["failed"]):
            return None
        return WorkerFailed(json.loads(_call_store(self.store.get, "failed")))

    def _wait_for(self, name: str, seconds: float) -> bool:
        end = time.monotonic() + seconds
        while not (there := bool(_call_store(self.store.check, [name]))) and time.monotonic() < end:
            time.sleep(_POLL_S)
        return there


SINGLE_PROCESS = WorkerGroup()


def _agree_on_start(store: Any, rank: int, size: int) -> tuple[str, tuple[str, ...], str | None]:
    """A name that only this start of the group has, each rank's host, and the error of an earlier start that no restart cures.

    torchrun's store outlives its restarts, with the keys of earlier starts, and its count of restarts is not the same on every
    machine (PyTorch issue 135712). So the main process publishes a new name and waits for an answer from each of the others,
    which wait until it confirms their own answer: the main process of an earlier start never does.
    """
    own, end = uuid.uuid4().hex, time.monotonic() + _START_S
    host = platform.node()
    if rank == 0:
        _call_store(store.set, "start", own)
        answers = {0: {"id": own, "host": host}}
        for other in range(1, size):
            while not _call_store(store.check, [f"{own} {other}"]):
                if time.monotonic() > end:
                    raise _no_answer(f"rank {other} of {size}", _START_S)
                time.sleep(_POLL_S)
            answers[other] = json.loads(_call_store(store.get, f"{own} {other}"))
        failed = _call_store(store.get, _FINAL).decode() if _call_store(store.check, [_FINAL]) else None
        present = [answers[each] for each in range(size)]
        _call_store(store.set, f"{own} all", json.dumps({"processes": present, "failed": failed}))
        return own, tuple(answer["host"] for answer in present), failed
    while time.monotonic() < end:
        if _call_store(store.check, ["start"]):
            name = _call_store(store.get, "start").decode()
            _call_store(store.set, f"{name} {rank}", json.dumps({"id": own, "host": host}))
            if _call_store(store.check, [f"{name} all"]):
                confirmed = json.loads(_call_store(store.get, f"{name} all"))
                present = confirmed["processes"]
                if len(present) == size and present[rank]["id"] == own:
                    return name, tuple(answer["host"] for answer in present), confirmed["failed"]
        time.sleep(_POLL_S)
    raise _no_answer(f"rank 0 of {size}", _START_S)


def _no_answer(what: str, seconds: float) -> ProcessGroupError:
    return ProcessGroupError(
        f"no answer for {seconds:.0f} s: {what}; expected every process to run the same command; look for its error above"
    )


def single_process_threads() -> int:
    """PyTorch's number of CPU threads in a process that was not started by torchrun, which sets one thread for many.

    The thread count may change the last bits of a target, so it must not depend on the number of processes.
    """
    if "OMP_NUM_THREADS" in _environment_of(os.getppid()):
        import torch

        return torch.get_num_threads()  # set by the user, which a single process follows too
    cores = psutil.cpu_count(logical=False) or 1
    return max(1, min(cores, available_cores()))


def _environment_of(process: int) -> set[str]:
    """Names of the environment variables that a process was started with."""
    try:
        entries = Path(f"/proc/{process}/environ").read_bytes().split(b"\0")
    except OSError:
        return set()
    return {entry.split(b"=")[0].decode(errors="replace") for entry in entries}


def _call_store(method: Any, *arguments: Any) -> Any:
    """Call a method of the store. Raises ProcessGroupError where the store's process has ended."""
    try:
        return method(*arguments)
    except (RuntimeError, OSError) as error:
        raise ProcessGroupError(
            f"the other processes of this job are gone ({_first_line(error)}); expected all to run to the end; run it again"
        ) from None


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
