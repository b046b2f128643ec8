"""Whether locks exclude other processes: said where they do not, and never where they do."""

import contextlib
import os
import platform
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO

import pytest

from tests.preload import without_locks
from tests.timeouts import scaled, wait_until

PROGRAM = """
import sys
from pathlib import Path
from udkd.study import processes
from udkd.utils.errors import BusyError
processes.RENEW_S, processes._LOOK_S = 0.2, 1.5
with processes.StudyProcess(Path(sys.argv[1])) as process:
    print("ready", flush=True)
    for line in sys.stdin:
        try:
            process.require_exclusion()
            print("excluded", flush=True)
        except BusyError as error:
            print(error, flush=True)
"""


class Process:
    """A process with a StudyProcess."""

    def __init__(self, out: Path, variables: Mapping[str, str]) -> None:
        words = [sys.executable, "-c", PROGRAM, str(out)]
        self.popen = subprocess.Popen(words, env=variables, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._read() == "ready"

    def look(self) -> str:
        """What it finds about the locks."""
        self._pipe(self.popen.stdin).write("look\n")
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
def processes(out: Path, count: int, variables: Mapping[str, str] = os.environ) -> Iterator[list[Process]]:
    started: list[Process] = []
    try:
        for _ in range(count):
            started.append(Process(out, variables))
        yield started
    finally:
        for process in started:
            process.end()


def test_locks_that_work_raise_no_alarm(tmp_path: Path) -> None:
    with processes(tmp_path, 3) as all_of_them:
        assert [process.look() for process in all_of_them] == ["excluded"] * 3
        one, killed, stopped = all_of_them
        killed.end()
        stopped.popen.send_signal(signal.SIGSTOP)
        assert one.look() == "excluded"
        one.popen.communicate()
        assert one.popen.returncode == 0
    with processes(tmp_path, 1) as (after,):
        assert after.look() == "excluded"
        # The files of those that were killed are gone.
        assert [path.name.split(".")[-2] for path in (tmp_path / ".processes").iterdir()] == [str(after.popen.pid)]


def test_a_process_killed_at_any_moment_raises_no_alarm(tmp_path: Path) -> None:
    """Its file may have been renewed just before: with locks that work, nobody else renews it."""
    with processes(tmp_path, 4) as (one, *others):
        for other in others:
            file = next((tmp_path / ".processes").glob(f"*.{other.popen.pid}.*"))
            before = file.stat().st_mtime_ns
            assert wait_until(lambda file=file, before=before: file.stat().st_mtime_ns != before)
            other.end()
        assert one.look() == "excluded"


def test_locks_that_do_not_exclude_are_named(tmp_path: Path) -> None:
    with processes(tmp_path, 2, without_locks(tmp_path)) as (one, other):
        for process, against in ((one, other), (other, one)):
            who = f"process {against.popen.pid} on host {re.escape(platform.node())}"
            assert re.fullmatch(
                rf"locks in {tmp_path} do not exclude {who}; expected .*; use --share I/N, which needs none", process.look()
            )
        other.popen.communicate(timeout=scaled(60))
        assert one.look() == "excluded", "it is the only one now"


def test_a_killed_process_raises_no_alarm_where_locks_do_not_exclude(tmp_path: Path) -> None:
    with processes(tmp_path, 2, without_locks(tmp_path)) as (one, other):
        other.end()
        assert one.look() == "excluded"


def test_a_file_that_is_looked_at_before_it_is_locked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process holds it for a moment: this one waits."""
    import fcntl

    from udkd.study import processes as module

    real, calls = fcntl.flock, 0

    def taken_at_first(file: IO[bytes], operation: int) -> None:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise BlockingIOError
        real(file, operation)

    monkeypatch.setattr(module, "RENEW_S", 0.01)
    monkeypatch.setattr(fcntl, "flock", taken_at_first)
    with module.StudyProcess(tmp_path) as process:
        process.require_exclusion()
        assert calls == 2
