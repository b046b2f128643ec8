"""Whether the locks of a study's folder keep its processes apart, also those on other hosts.

On some network file systems a lock excludes only the processes of one host, or none. Each process of a study therefore holds a
lock file of its own in OUT/.processes, and renews its modification time every second. Another process that sees the time change
while it holds the lock itself knows that locks do not work there. The time of a killed process's file does not change, and no
clock is read, so neither looks like such a fault.
"""

import contextlib
import fcntl
import os
import platform
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from udkd.utils.errors import BusyError
from udkd.utils.files import FolderLock

RENEW_S = 1.0
_LOOK_S = 3 * RENEW_S
"""Seconds in which a running process has renewed its file, also when the machine is busy."""


class StudyProcess:
    """This process among those in a study's folder `out`: `with StudyProcess(out) as process: …`."""

    def __init__(self, out: Path) -> None:
        self._out, self._folder = out, out / ".processes"
        # The time only makes the name unique: a killed process of this host may have had this id.
        self._lock = FolderLock(self._folder, f"{platform.node()}.{os.getpid()}.{time.time_ns()}")
        self._ended = threading.Event()
        self._renewal = threading.Thread(target=self._renew, daemon=True)
        self._excluded: set[str] = set()

    def __enter__(self) -> Self:
        self._folder.mkdir(parents=True, exist_ok=True)
        while True:
            with contextlib.suppress(BusyError):  # another process looks at the file, which was not locked yet
                self._lock.__enter__()
                break
            time.sleep(RENEW_S)
        self._renewal.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._ended.set()
        self._renewal.join()
        self._lock.__exit__(kind, error, trace)

    def require_exclusion(self) -> None:
        """Raise BusyError if another process runs whose lock this process can take, too.

        Takes a few seconds where there is such a lock, whose process may have been killed, otherwise no time.
        """
        with contextlib.ExitStack() as stack:
            taken = {name: renewed for name, renewed in self._others().items() if self._take(name, stack)}
            if not taken:
                return
            time.sleep(_LOOK_S)
            later = self._others()
            for name, renewed in taken.items():
                if later.get(name, renewed) != renewed:
                    host, process, _ = name.rsplit(".", 2)
                    raise BusyError(
                        f"locks in {self._out} do not exclude process {process} on host {host}; expected a file system whose "
                        "locks do; use --share I/N, which needs none"
                    )
                (self._folder / name).unlink(missing_ok=True)  # of a killed process

    def _renew(self) -> None:
        while not self._ended.wait(RENEW_S):
            with contextlib.suppress(OSError):  # removed by hand
                os.utime(self._lock.path)

    def _others(self) -> dict[str, int]:
        """The modification times, in ns, of other processes' files, without those known to exclude this process."""
        times = {}
        for path in self._folder.iterdir():
            if path != self._lock.path and path.name not in self._excluded and path.name.count(".") >= 2:
                with contextlib.suppress(FileNotFoundError), open(path, "rb") as file:  # NFS asks its server at each open
                    times[path.name] = os.fstat(file.fileno()).st_mtime_ns
        return times

    def _take(self, name: str, stack: contextlib.ExitStack) -> bool:
        """Lock another process's file until the stack is closed; False if that process holds it, or has ended."""
        try:
            file = stack.enter_context((self._folder / name).open("rb"))
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except FileNotFoundError:
            return False
        except BlockingIOError:
            self._excluded.add(name)
            return False
        return True
