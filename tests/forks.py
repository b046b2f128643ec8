"""Work in a forked process, which spares it the imports, and death at a given system call."""

import os
import signal
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn


def forked(work: Callable[..., None], *arguments: object) -> int:
    """The id of a child process that does the work."""
    child = os.fork()
    if child == 0:
        work_and_exit(work, *arguments)
    return child


def work_and_exit(work: Callable[..., None], *arguments: object) -> NoReturn:
    """Exit as the interpreter would: with SystemExit's code, or with a traceback and 1 for an uncaught exception."""
    code = 0
    try:
        work(*arguments)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    except BaseException:
        sys.excepthook(*sys.exc_info())
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def die_at(call: int, after: bool, functions: Sequence[str] = ("fsync", "replace")) -> None:
    """Kill this process before or after its `call`-th call of these functions of `os`; a pwrite stops half-way."""
    left = call

    def armed(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*arguments: Any) -> Any:
            nonlocal left
            left -= 1
            if left == 0:
                if name == "pwrite":
                    descriptor, data, offset = arguments
                    real(descriptor, bytes(data)[: len(data) // 2], offset)
                elif after:
                    real(*arguments)
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*arguments)

        return wrapped

    for name in functions:
        setattr(os, name, armed(name, getattr(os, name)))
