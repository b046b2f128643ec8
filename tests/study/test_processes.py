"""Whether locks exclude other processes: said where they do not, and never where they do."""

import contextlib
import fcntl
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO

import pytest

from tests.preload import without_locks
from tests.timeouts import scaled, wait_until
from udkd.study import processes as module
from udkd.utils.operating_system import is_local_file_system

PROGRAM = """
import platform, sys
from pathlib import Path
from udkd.study import processes
from udkd.utils.errors import BusyError
out, host, is_local = sys.argv[1:]
processes.RENEW_S, processes._SILENT_S = 0.2, 4
processes.is_local_file_system = lambda path: is_local == "local"
platform.node = lambda: host
with processes.StudyProcess(Path(out)) as process:
    print("ready", flush=True)
    for line in sys.stdin:
        try:
            getattr(process, "require_" + line.strip())()
            print("yes", flush=True)
        except BusyError as error:
            print(error, flush=True)
"""


class Process:
    """A process with a StudyProcess, on a host of a name, where OUT is local or on a network file system."""

    def __init__(self, out: Path, variables: Mapping[str, str], host: str, kind: str) -> None:
        words = [sys.executable, "-c", PROGRAM, str(out), host, kind]
        self.popen = subprocess.Popen(words, env=variables, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._read() == "ready"

    def finds(self, what: str = "exclusion") -> str:
        """Whether it finds exclusion, or proof: "yes", or the error."""
        self._pipe(self.popen.stdin).write(f"{what}\n")
        self._pipe(self.popen.stdin).flush()
        return self._read()

    def end(self) -> None:
        self.popen.kill()
        self.popen.communicate()

    def _read(self) -> str:
        return self._pipe(self.popen.stdout).readline().strip()

    def _pipe(self, pipe: IO[str] | None) -> IO[str]:
        assert pipe is not None
        return pipe


@contextlib.contextmanager
def processes(
    out: Path, *hosts: str, kind: str = "local", variables: Mapping[str, str] = os.environ
) -> Iterator[list[Process]]:
    started: list[Process] = []
    try:
        for host in hosts:
            started.append(Process(out, variables, host, kind))
        yield started
    finally:
        for process in started:
            process.end()


each_kind = pytest.mark.parametrize("kind", ["local", "network"])


@each_kind
def test_locks_that_work_raise_no_alarm(tmp_path: Path, kind: str) -> None:
    with processes(tmp_path, "a", "a", "b.example.org", kind=kind) as all_of_them:
        assert [process.finds() for process in all_of_them] == ["yes"] * 3
        one, killed, stopped = all_of_them
        killed.end()
        stopped.popen.send_signal(signal.SIGSTOP)
        assert one.finds() == "yes"
        one.popen.communicate()
        assert one.popen.returncode == 0
    with processes(tmp_path, "a", kind=kind) as (after,):
        assert after.finds() == "yes"
        # The files of those that were killed are gone.
        assert [path.name.split(".")[-2] for path in (tmp_path / ".processes").iterdir()] == [str(after.popen.pid)]


def test_a_process_killed_at_any_moment_raises_no_alarm(tmp_path: Path) -> None:
    """Its file may have been renewed just before: with locks that work, nobody else renews it."""
    with processes(tmp_path, *"abc", kind="network") as (one, *others):
        for other in others:
            file = next((tmp_path / ".processes").glob(f"*.{other.popen.pid}.*"))
            before = file.stat().st_mtime_ns
            assert wait_until(lambda file=file, before=before: file.stat().st_mtime_ns != before)
            other.end()
        assert one.finds() == "yes"


@each_kind
def test_locks_that_do_not_exclude_are_named(tmp_path: Path, kind: str) -> None:
    with processes(tmp_path, "a", "b.example.org", kind=kind, variables=without_locks(tmp_path)) as (one, other):
        for process, against, host in ((one, other, "b.example.org"), (other, one, "a")):
            for what in ("exclusion", "proof", "exclusion"):
                assert process.finds(what) == (
                    f"locks in {tmp_path} do not exclude process {against.popen.pid} on host {host}; expected a file system "
                    "whose locks do; use --share I/N, which needs none"
                )
        other.popen.communicate(timeout=scaled(60))
        assert one.finds() == "yes", "it is the only one now"
        assert one.finds("proof").startswith(f"locks in {tmp_path} exclude no process; expected")


def test_a_killed_process_raises_no_alarm_where_locks_do_not_exclude(tmp_path: Path) -> None:
    with processes(tmp_path, "a", "b", variables=without_locks(tmp_path)) as (one, other):
        other.end()
        assert one.finds() == "yes"


def test_proof_is_a_lock_of_another_host(tmp_path: Path) -> None:
    """Unless the file system is of one host: a lock may exclude only the processes of its host."""
    with processes(tmp_path / "local", "a") as (alone,):
        assert alone.finds("proof") == "yes"
    with processes(tmp_path / "network", "a", "a", kind="network") as (one, _):
        unproven = f"locks in {tmp_path / 'network'} may not exclude other hosts, none of which was seen; expected"
        assert one.finds("proof").startswith(unproven)
        with processes(tmp_path / "network", "b", kind="network") as (other,):
            assert one.finds("proof") == other.finds("proof") == "yes"
        assert one.finds("proof") == "yes", "it has ended, and its lock was seen"


def test_file_systems_of_one_host(tmp_path: Path) -> None:
    """Against findmnt, which reads the mounts by other means."""
    findmnt = shutil.which("findmnt")
    if findmnt is None:
        pytest.skip("no findmnt")
    for path in (tmp_path, Path("/dev/shm"), Path("/proc")):
        found = subprocess.run([findmnt, "-nT", path, "-o", "FSTYPE"], capture_output=True, text=True, check=True).stdout
        assert is_local_file_system(path) == (set(found.split()) <= {"ext4", "tmpfs", "xfs", "overlay"}), (path, found)


def test_a_file_that_is_looked_at_before_it_is_locked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process holds it for a moment: this one waits."""
    real, calls = fcntl.flock, 0

    def taken_at_first(file: IO[bytes], operation: int) -> None:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise BlockingIOError
        real(file, operation)

    monkeypatch.setattr(module, "RENEW_S", 0.01)
    monkeypatch.setattr(fcntl, "flock", taken_at_first)
    with module.StudyProcess(tmp_path):
        assert calls == 2
