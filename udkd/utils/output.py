"""All output to the terminal: two consoles that escape control characters, and errors as one line."""

import errno
import os
import sys
from collections.abc import Callable, Iterable
from typing import IO, Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from udkd.utils.errors import UserError
from udkd.utils.printable import printable, printable_lines
from udkd.utils.signals import QUIET_SIGNALS, Stopped, raise_stopped, signal_handler


class SafeConsole(Console):
    """A console that prints each string as one line, with control characters escaped and brackets unchanged (no markup).

    Styles come from Text objects only. NO_COLOR turns off colours and bold.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(
            color_system=None if os.environ.get("NO_COLOR") else "auto", markup=False, highlight=False, emoji=False, **options
        )

    @property
    def file(self) -> IO[str]:
        """The stream to write to: the unescaped one of a SafeStream, which would escape rich's styles."""
        stream = super().file
        return getattr(stream, "unescaped", stream)

    @file.setter
    def file(self, new_file: IO[str]) -> None:
        self._file = new_file

    def render_str(self, text: str, **options: Any) -> Text:
        """Overrides rich: every string in messages, tables and titles passes through here."""
        return super().render_str(printable(text), **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Overrides rich: everything else passes through here."""
        for segment in super().render(renderable, options):
            safe = segment.control or segment.text == "\n" or segment.text.isprintable()
            yield segment if safe else Segment(printable_lines(segment.text, None), segment.style)


out = SafeConsole()
err = SafeConsole(stderr=True, soft_wrap=True)


def fail(message: str, *, code: int = 1) -> None:
    """Print one line and exit."""
    print_error(message)
    sys.exit(code)


def print_error(message: str) -> None:
    """Print an error as one line on stderr."""
    err.print(Text.assemble(("error:", "red"), " ", printable(" ".join(message.split()))))


def run(app: Callable[[], object], explain: Callable[[Exception], str | None] = lambda error: None) -> None:
    """Run a typer.Typer. A UserError or OSError becomes one line on stderr and exit code 1; signal n exits with 128 + n.

    explain: returns the line for any other error that is not a bug, such as a lack of memory; None for a traceback.
    """
    try:
        with signal_handler(raise_stopped):
            app()
    except UserError as error:
        fail(str(error))
    except Stopped as stopped:
        if stopped.number in QUIET_SIGNALS:
            sys.exit(stopped.exit_code)
        fail(f"stopped by {stopped.name}; finished work is kept, the same command resumes", code=stopped.exit_code)
    except OSError as error:
        fail(_describe(error))
    except Exception as error:
        line = explain(error)
        if line is None:
            raise
        fail(line)


def _describe(error: OSError) -> str:
    remedy = "check the path and its permissions"
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        remedy = "free some space, then the same command resumes"
    where = f"{os.fsdecode(error.filename)}: " if isinstance(error.filename, str | bytes | os.PathLike) else ""
    return f"{where}{error.strerror or error}; expected to be able to read and write there; {remedy}"
