"""Standard output and error that take any text: signs a terminal lacks are escaped, a stream that fails ends no work unseen."""

import io
import os
import select
import signal
import sys
from typing import Any, TextIO

from udkd.utils.printable import printable_lines
from udkd.utils.signals import Stopped


class _Descriptor(io.RawIOBase):
    """Descriptor 1 or 2. What cannot be written to standard error is lost; on standard output it is an error."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def fileno(self) -> int:
        return self._descriptor

    def isatty(self) -> bool:
        return os.isatty(self._descriptor)

    def writable(self) -> bool:
        return True

    def write(self, data: bytes | memoryview, /) -> int:  # type: ignore[override]  # what TextIOWrapper hands over
        """Raises Stopped (SIGPIPE) where nobody reads standard output any more, OSError where it is full or closed."""
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
            except BlockingIOError:  # whoever shares it made it so
                select.select([], [self._descriptor], [])


class SafeStream(io.TextIOWrapper):
    """A standard stream for everybody: control characters are escaped, all but the ends of lines.

    unescaped: the same stream for udkd.utils.output, which has styles of its own and escapes texts itself.
    """

    def __init__(self, descriptor: int, encoding: str) -> None:
        raw: Any = _Descriptor(descriptor)  # what TextIOWrapper needs of a buffer that only takes
        how: dict[str, Any] = {"errors": "backslashreplace", "newline": "\n", "write_through": True}
        super().__init__(raw, encoding, **how)
        self.unescaped = io.TextIOWrapper(raw, encoding, **how)

    def write(self, text: str, /) -> int:
        super().write(printable_lines(text))
        return len(text)


def guard() -> None:
    """Make this process's standard streams safe ones, and give it those that it was started without.

    Otherwise the next file it opens would be its standard error. A closed standard output refuses what is written to it.
    Streams that someone has put in place of the interpreter's stay.
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
