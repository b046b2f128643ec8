"""Jobs for workers, in a module that is light to import."""

import errno
import os
import signal
import time
from dataclasses import dataclass

from udkd.utils.errors import DataError


@dataclass(frozen=True)
class Echo:
    """Returns the task and the process id, or fails in the way that the task names."""

    def __call__(self, task: object) -> object:
        if task == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if task == "user":
            raise DataError("sample 3 (x.jpg) is bad")
        if task == "disk":
            raise OSError(errno.ENOSPC, "No space left on device", "/x")
        if task == "bug":
            raise KeyError("oops")
        if isinstance(task, float):
            time.sleep(task)
        return (task, os.getpid())


class Unreadable:
    """A task that no worker can unpickle."""

    def __reduce__(self) -> tuple[type, tuple[str]]:
        return int, ("x",)


@dataclass(frozen=True)
class Double:
    """A second job, to tell apart from the first."""

    def __call__(self, task: int) -> int:
        return 2 * task
