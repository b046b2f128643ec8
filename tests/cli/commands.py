"""Commands as a user's shell starts them, each in a separate process: forked by the command server, as a start takes 9 s."""

import atexit
import fcntl
import functools
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, NamedTuple

import pytest

from tests.build_once import SHARED
from tests.timeouts import scaled

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore::DeprecationWarning"}
ENVIRONMENT.pop("COLUMNS", None)
_LONGEST = 1 << 10
"""Bytes of an answer."""


class Result(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def last(self) -> str:
        return self.err.splitlines()[-1] if self.err else ""


Call = Callable[..., Result]


def set_options(*settings: str) -> list[str]:
    """`--set SETTING` for each."""
    return [arg for setting in settings for arg in ("--set", setting)]


class Server:
    """A connection to the session's server, which ends after the last of them."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._codes: dict[int, int] = {}

    def start(self, request: dict[str, object], out: IO[bytes], err: IO[bytes]) -> int:
        socket.send_fds(self._connection, [json.dumps(request).encode()], [out.fileno(), err.fileno()])
        while len(answer := self._answer()) != 1:
            pass
        return answer[0]

    def code(self, pid: int, within_s: float) -> int | None:
        """The exit code of a command, None while it still runs."""
        end = time.monotonic() + within_s
        while pid not in self._codes and select.select([self._connection], [], [], max(0, end - time.monotonic()))[0]:
            self._answer()
        return self._codes.get(pid)

    def _answer(self) -> list[int]:
        answer: list[int] = json.loads(self._connection.recv(_LONGEST))
        if len(answer) == 2:
            self._codes[answer[0]] = answer[1]
        return answer


class Command:
    """A running command."""

    def __init__(self, server: Server, pid: int, out: IO[bytes], err: IO[bytes]) -> None:
        self.pid = pid
        self._server, self._out, self._err = server, out, err

    def ended(self) -> bool:
        return self._server.code(self.pid, 0) is not None

    def send_signal(self, kind: signal.Signals) -> None:
        if not self.ended():
            os.kill(self.pid, kind)

    def finish(self, seconds: float = 60) -> Result:
        """Wait for its end: exit code, standard output, standard error."""
        code = self._server.code(self.pid, scaled(seconds))
        with self._out, self._err:
            texts = [os.pread(file.fileno(), os.fstat(file.fileno()).st_size, 0).decode() for file in (self._out, self._err)]
        assert code is not None, f"it hangs: {texts}"
        return Result(code, *texts)


def start(
    *arguments: object,
    module: str = "udkd",
    folder: Path = ROOT,
    limit_bytes: int = 0,
    variables: Mapping[str, str] | None = None,
) -> Command:
    """`python -m MODULE ARGUMENTS…`, in a working directory, with a limit on the file size and extra environment variables."""
    request = {
        "module": module,
        "arguments": [str(argument) for argument in arguments],
        "folder": str(folder),
        "limit_bytes": limit_bytes,
        "variables": dict(variables or {}),
    }
    server = _server()
    out, err = (tempfile.TemporaryFile() for _ in range(2))  # noqa: SIM115 (closed by `finish`)
    return Command(server, server.start(request, out, err), out, err)


def run(*arguments: object, seconds: float = 300, **options: object) -> Result:
    """`start`, and wait."""
    return start(*arguments, **options).finish(seconds)  # type: ignore[arg-type]


def inside(capsys: pytest.CaptureFixture[str], *arguments: object) -> Result:
    """The command in this process, without a fork: for commands that end early, or where the test has patched the product."""
    return Result(code_of(*arguments), *capsys.readouterr())


def code_of(*arguments: object) -> int:
    """The exit code of a command in this process."""
    import torch

    from udkd.cli.app import build
    from udkd.utils import terminal

    threads = torch.get_num_threads()
    try:
        terminal.run(lambda: build()([str(argument) for argument in arguments], prog_name="udkd"))  # type: ignore[arg-type]
    except SystemExit as end:
        return int(end.code or 0)
    finally:
        torch.set_num_threads(threads)
    return 0


def refused(result: Result, *texts: str) -> None:
    """One line, and only one, on stderr."""
    assert result.code == 1, result
    assert result.out == ""
    assert result.err.startswith("error: "), result.err
    assert result.err.count("\n") == 1, result.err
    for text in texts:
        assert text in result.err


def failed(result: Result, *texts: str) -> None:
    """One line of error, perhaps after notes on what was being done."""
    assert result.code == 1, result
    assert "Traceback" not in result.err
    assert result.last.startswith("error: "), result.err
    assert result.err.count("error:") == 1
    for text in texts:
        assert text in result.last


@functools.cache
def _server() -> Server:
    """The first caller starts it."""
    name = Path(os.environ[SHARED]).name
    with open(Path(os.environ[SHARED], "commands.lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            connection = _connected(name)
        except OSError:
            command = [sys.executable, "-m", "tests.cli.command_server", name]
            subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, stdin=subprocess.DEVNULL, check=True, timeout=scaled(120))
            connection = _connected(name)
    atexit.register(connection.close)
    return Server(connection)


def _connected(name: str) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        connection.connect(f"\0{name}")
        if not connection.recv(_LONGEST):
            raise ConnectionResetError("the server was about to end")
    except OSError:
        connection.close()
        raise
    return connection
