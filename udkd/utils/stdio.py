"""Standard output and error that accept any text and report a failed write."""

import io
import os
import select
import signal
import sys
from typing import Any, TextIO

from udkd.utils.printable import printable_lines
from udkd.utils.signals import Stopped


class _Descriptor(io.RawIOBase):
    """File descriptor 1 or 2. A failed write is an error on standard output and ignored on standard error."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def fileno(self) -> int:
        return self._descriptor

    def isatty(self) -> bool:
        return os.isatty(self._descriptor)

    def writable(self) -> bool:
        return True

    def write(self, data: bytes | memoryview, /) -> int:  # type: ignore[override]  # the types that TextIOWrapper passes
        """Raises Stopped (SIGPIPE) if the reader of standard output has exited, OSError if the device is full or closed."""
        try:
            self._write_all(memoryview(data))
        except BrokenPipeError:
            if self._descriptor == 1:
                raise Stopped(signal.SIGPIPE) from None
        except OSError as error:
            if self._descriptor == 1:
                error.filename = "standard output"
                raise
        return len(data)

    def _write_all(self, rest: memoryview) -> None:
        while rest:
            try:
                rest = rest[os.write(self._descriptor, rest) :]
            except BlockingIOError:  # another process made the shared descriptor non-blocking
                select.select([], [self._descriptor], [])


class SafeStream(io.TextIOWrapper):
    """A standard stream that escapes control characters except line breaks, and characters that its encoding lacks.

    unescaped: the same stream for udkd.utils.output, which writes styles and escapes text itself.
    """

    def __init__(self, descriptor: int, encoding: str) -> None:
        raw: Any = _Descriptor(descriptor)  # a write-only raw stream is all that TextIOWrapper needs
        options: dict[str, Any] = {"errors": "backslashreplace", "newline": "\n", "write_through": True}
        super().__init__(raw, encoding, **options)
        self.unescaped = io.TextIOWrapper(raw, encoding, **options)

    def write(self, text: str, /) -> int:
        super().write(printable_lines(text))
        return len(text)


def install_safe_streams() -> None:
    """Replace the interpreter's standard output and error with SafeStreams, and open standard streams that were closed.

    If standard error stayed closed, the next file to be opened would take its number. Writing to a standard output that was
    closed is an error. Streams that the caller has already replaced are left alone.
    """
    for descriptor, flags in ((0, os.O_RDONLY), (1, os.O_RDONLY), (2, os.O_WRONLY)):
        _open_if_closed(descriptor, flags)
    if sys.stdout is sys.__stdout__:
        sys.stdout = SafeStream(1, _encoding(sys.stdout))
    if sys.stderr is sys.__stderr__:
        sys.stderr = SafeStream(2, _encoding(sys.stderr))


def _open_if_closed(descriptor: int, flags: int) -> None:
    try:
        os.fstat(descriptor)
    except OSError:
        opened = os.open(os.devnull, flags)  # the lowest free number: all below are open
        os.set_inheritable(opened, True)


def _encoding(stream: TextIO | None) -> str:
    if stream is None:
        return "utf-8"
    stream.flush()
    return stream.encoding
