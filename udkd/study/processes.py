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
from udkd.utils.operating_system import is_local_file_system

RENEW_S = 1.0
_SILENT_S = 15.0
"""A process whose file was not renewed for so long has ended: many times RENEW_S, as the machine may be busy."""

_EXPECTED = "expected a file system whose locks do; use --share I/N, which needs none"


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

        Takes up to 15 seconds where a process was killed on a network file system, otherwise hardly any time.
        """
        with contextlib.ExitStack() as stack:
            taken = {name: renewed for name, renewed in self._others().items() if self._take(name, stack)}
            end = time.monotonic() + (0 if self._excludes_here and is_local_file_system(self._folder) else _SILENT_S)
            while taken and time.monotonic() < end:
                time.sleep(RENEW_S / 2)
                for name, renewed in self._others().items():
                    if taken.get(name, renewed) != renewed:
                        host, process, _ = name.rsplit(".", 2)
                        raise BusyError(f"locks in {self._out} do not exclude process {process} on host {host}; {_EXPECTED}")
            for name in taken:
                (self._folder / name).unlink(missing_ok=True)  # of a killed process

    def require_proof(self) -> None:
        """Raise BusyError unless locks exclude all processes, also those that are still to come.

        Proof is a lock that this process cannot take: of a process on another host, or any on a file system of this host alone.
        """
        self.require_exclusion()
        if not self._excludes_here:
            raise BusyError(f"locks in {self._out} exclude no process; {_EXPECTED}")
        hosts = {name.rsplit(".", 2)[0] for name in self._excluded}
        if hosts <= {platform.node()} and not is_local_file_system(self._folder):
            raise BusyError(f"locks in {self._out} may not exclude other hosts, none of which was seen; {_EXPECTED}")

    @property
    def _excludes_here(self) -> bool:
        """Whether a lock excludes at least this process itself, where it opens the file again."""
        with contextlib.ExitStack() as stack:
            return not self._take(self._lock.path.name, stack)

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
        """Lock a process's file until the stack is closed; False if that process holds it, or has ended."""
        try:
            file = stack.enter_context((self._folder / name).open("rb"))
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except FileNotFoundError:
            return False
        except BlockingIOError:
            self._excluded.add(name)
            return False
        return True
