"""Ctrl-C, SIGTERM and SIGHUP as one clear line, at any moment of a command's life."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, NoReturn

KINDS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
QUIET = (signal.SIGPIPE,)
"""Signals that need no word: whoever read our output has left."""

Handler = Callable[[int, FrameType | None], object]


class Stopped(BaseException):
    """A signal as an exception, so that locks, temporary files and workers are cleaned up on the way out.

    Not a KeyboardInterrupt: typer would swallow it and end without a word.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number
        self.name = signal.Signals(number).name
        self.exit_code = 128 + number


def stop(number: int, frame: FrameType | None) -> NoReturn:
    """A handler that raises Stopped; what cleans up is short, and no second signal interrupts it."""
    for kind in KINDS:
        signal.signal(kind, signal.SIG_IGN)
    raise Stopped(number)


def quit_at_once(number: int, frame: FrameType | None) -> NoReturn:
    """A handler for the seconds in which modules load: there is nothing to clean up, and imports do not survive exceptions."""
    with suppress(OSError):
        os.write(2, f"error: stopped by {signal.Signals(number).name} before it began; nothing was changed\n".encode())
    os._exit(128 + number)


@contextmanager
def handled(handler: Handler) -> Iterator[dict[signal.Signals, Any]]:
    """Hand SIGINT, SIGTERM and SIGHUP to `handler` until the block ends; yields the handlers before it.

    SIGHUP stays ignored where it was, as under nohup.
    """
    heard = [kind for kind in KINDS if kind != signal.SIGHUP or signal.getsignal(kind) != signal.SIG_IGN]
    before = {kind: signal.signal(kind, handler) for kind in heard}
    try:
        yield before
    finally:
        for kind, previous in before.items():
            signal.signal(kind, previous)
