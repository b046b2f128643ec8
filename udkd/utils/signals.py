"""Ctrl-C, SIGTERM and SIGHUP end a command with one clear line, at any time."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, NoReturn

from udkd.utils.launcher import is_torchrun_follower

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
QUIET_SIGNALS = (signal.SIGPIPE,)
"""Signals that end a command silently: the reader of its output has exited."""

Handler = Callable[[int, FrameType | None], object]


class Stopped(BaseException):
    """A signal as an exception, so that locks, temporary files and workers are cleaned up.

    Not a KeyboardInterrupt: typer would catch it and exit silently.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number
        self.name = signal.Signals(number).name
        self.exit_code = 128 + number


def raise_stopped(number: int, frame: FrameType | None) -> NoReturn:
    """A signal handler that raises Stopped. Further signals are ignored, as they would interrupt the clean-up."""
    for kind in STOP_SIGNALS:
        signal.signal(kind, signal.SIG_IGN)
    raise Stopped(number)


def exit_at_once(number: int, frame: FrameType | None) -> NoReturn:
    """A signal handler for the imports: there is nothing to clean up, and an exception would break half-imported modules."""
    with suppress(OSError):
        if not is_torchrun_follower():
            os.write(2, f"error: stopped by {signal.Signals(number).name} before it started; nothing was changed\n".encode())
    os._exit(128 + number)


@contextmanager
def signal_handler(handler: Handler) -> Iterator[dict[signal.Signals, Any]]:
    """Handle SIGINT, SIGTERM and SIGHUP with `handler` inside the block; yields the previous handlers.

    An ignored SIGHUP stays ignored, as under nohup.
    """
    handled = [kind for kind in STOP_SIGNALS if kind != signal.SIGHUP or signal.getsignal(kind) != signal.SIG_IGN]
    before = {kind: signal.signal(kind, handler) for kind in handled}
    try:
        yield before
    finally:
        for kind, previous in before.items():
            signal.signal(kind, previous)
