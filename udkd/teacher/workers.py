"""Several processes that build one cache: who they are, and how they tell each other what is done.

torchrun starts them and keeps a key-value store; nothing else of torch.distributed is needed, as they meet in the files.
"""

import json
import os
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import psutil
import torch
from torch.distributed.rendezvous import rendezvous

from udkd.utils.errors import CacheError, UserError
from udkd.utils.launcher import LAUNCHER_GONE, die_with_parent, is_launched, is_launcher_gone

_POLL_S = 0.05
_CONNECT_S = 20.0  # torchrun's store is there first; this is for a network, and for variables that nobody's torchrun set
_LINGER_S = 10.0


@dataclass(frozen=True, kw_only=True)
class WorkerGroup:
    """rank of size processes, local_rank on this machine; store is None for one alone."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    store: Any = None

    @classmethod
    def join(cls, environment: Mapping[str, str] = os.environ) -> "WorkerGroup":
        """The team that torchrun's variables name; one process alone without them. Raises CacheError where it is not there."""
        if not is_launched(environment):
            return cls()
        die_with_parent(signal.SIGTERM)  # from here on there is something to clean up
        if is_launcher_gone(environment):
            raise CacheError(LAUNCHER_GONE)
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
        """Whether this process holds the lock, finishes files and speaks to the user."""
        return self.rank == 0

    def device(self, device: torch.device) -> torch.device:
        """This process's own of several GPUs."""
        return torch.device("cuda", self.local_rank) if self.size > 1 and device.type == "cuda" else device

    def set(self, name: str, value: object = None) -> None:
        """Let everybody know a JSON value under a name of its own."""
        if self.store is not None:
            _asked(self.store.set, name, json.dumps(value))

    def wait(self, name: str) -> Any:
        """Wait for what somebody tells. Raises UserError with the words of a process that failed."""
        while not self.check(name):
            time.sleep(_POLL_S)
        return json.loads(_asked(self.store.get, name))

    def check(self, name: str) -> bool:
        """Whether it was told. Raises UserError with the words of a process that failed."""
        if self.is_main and _asked(self.store.check, ["failed"]):
            raise UserError(json.loads(self.store.get("failed")))
        return bool(_asked(self.store.check, [name]))

    def add(self, name: str, count: int) -> int:
        """Add to a number that all share; what it is now."""
        return count if self.store is None else int(_asked(self.store.add, name, count))

    def fail(self, error: UserError) -> None:
        """Hand an error to the leader, who tells the user, and wait for torchrun to end us."""
        self.set("failed", str(error))
        time.sleep(_LINGER_S)


def single_process_threads() -> int:
    """PyTorch's threads on the CPU as a process alone has them, in spite of the one that torchrun sets for many.

    The thread count may move the last bits of a target, so it must not depend on how many processes share the work.
    """
    if "OMP_NUM_THREADS" in _environment_of(os.getppid()):
        return torch.get_num_threads()  # the user's own word, which a process alone obeys too
    cores = psutil.cpu_count(logical=False) or 1
    return max(1, min(cores, len(os.sched_getaffinity(0))))


def _environment_of(process: int) -> set[str]:
    """Names of the variables that a process was started with."""
    try:
        entries = Path(f"/proc/{process}/environ").read_bytes().split(b"\0")
    except OSError:
        return set()
    return {entry.split(b"=")[0].decode(errors="replace") for entry in entries}


def _asked(question: Any, *arguments: Any) -> Any:
    """Ask the store. Raises CacheError where it went with its process."""
    try:
        return question(*arguments)
    except (RuntimeError, OSError) as error:
        raise CacheError(
            f"the other processes of this build are gone ({_first_line(error)}); expected them to the end; run it again"
        ) from None


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
