"""The group of processes that build one cache, and their communication.

torchrun starts them and provides a key-value store; nothing else of torch.distributed is needed, as they share the files.
"""

import json
import os
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from udkd.utils.errors import CacheError, UserError
from udkd.utils.launcher import LAUNCHER_GONE, is_torchrun_gone, is_torchrun_worker
from udkd.utils.operating_system import available_cores, die_with_parent

if TYPE_CHECKING:
    import torch

_POLL_S = 0.05
_CONNECT_S = 20.0  # torchrun's store exists before its processes; this bounds a slow network, or variables set by hand
_LINGER_S = 10.0


@dataclass(frozen=True, kw_only=True)
class WorkerGroup:
    """A process's rank of size, and its local_rank on this machine. store: None for a single process."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    store: Any = None

    @classmethod
    def join(cls, environment: Mapping[str, str] = os.environ) -> "WorkerGroup":
        """Join the group that torchrun's variables describe, or a group of one. CacheError: the store does not answer."""
        if not is_torchrun_worker(environment):
            return cls()
        die_with_parent(signal.SIGTERM)  # not SIGKILL: from here on there is something to clean up
        if is_torchrun_gone(environment):
            raise CacheError(LAUNCHER_GONE)
        from torch.distributed.rendezvous import rendezvous  # takes seconds, and a single process does not need it

        try:
            store, rank, size = next(rendezvous("env://", timeout=timedelta(seconds=_CONNECT_S)))
        except (RuntimeError, ValueError, OSError) as error:
            raise CacheError(
                f"WORLD_SIZE is {environment['WORLD_SIZE']} and no other process answers ({_first_line(error)}); "
                "expected to be started by torchrun; use it, or unset WORLD_SIZE"
            ) from None
        return cls(rank=rank, size=size, local_rank=int(environment.get("LOCAL_RANK", "0")), store=store)

    @property
    def is_main(self) -> bool:
        """Whether this process holds the lock, finishes files and talks to the user."""
        return self.rank == 0

    def device(self, device: "torch.device") -> "torch.device":
        """The GPU of this process where the group has several."""
        import torch

        return torch.device("cuda", self.local_rank) if self.size > 1 and device.type == "cuda" else device

    def set(self, name: str, value: object = None) -> None:
        """Publish a JSON value under a name."""
        if self.store is not None:
            _call_store(self.store.set, name, json.dumps(value))

    def wait(self, name: str) -> Any:
        """Wait for the value of a name. Raises UserError with the message of a process that failed."""
        while not self.check(name):
            time.sleep(_POLL_S)
        return json.loads(_call_store(self.store.get, name))

    def check(self, name: str) -> bool:
        """Whether a name has a value. Raises UserError with the message of a process that failed."""
        if self.is_main and _call_store(self.store.check, ["failed"]):
            raise UserError(json.loads(self.store.get("failed")))
        return bool(_call_store(self.store.check, [name]))

    def add(self, name: str, count: int) -> int:
        """Add to a shared counter and return its new value."""
        return count if self.store is None else int(_call_store(self.store.add, name, count))

    def fail(self, error: UserError) -> None:
        """Pass an error to the main process, which reports it, and wait for torchrun to end this one."""
        self.set("failed", str(error))
        time.sleep(_LINGER_S)


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
    """Call a method of the store. Raises CacheError where the store's process has ended."""
    try:
        return method(*arguments)
    except (RuntimeError, OSError) as error:
        raise CacheError(
            f"the other processes of this build are gone ({_first_line(error)}); expected all to run to the end; run it again"
        ) from None


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
