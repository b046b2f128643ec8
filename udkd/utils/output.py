"""The one way of texts to the terminal: two consoles that show control characters escaped, and errors as one line."""

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
from udkd.utils.signals import QUIET, Stopped, handled, stop


class SafeConsole(Console):
    """A console that shows each text as one line, control characters escaped and brackets as they are (no markup).

    Colours and bold are left out where NO_COLOR is set. Text objects carry the few styles that there are.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(
            color_system=None if os.environ.get("NO_COLOR") else "auto", markup=False, highlight=False, emoji=False, **options
        )

    @property
    def file(self) -> IO[str]:
        """The stream itself, where it is one that would escape rich's own styles."""
        stream = super().file
        return getattr(stream, "unescaped", stream)

    @file.setter
    def file(self, new_file: IO[str]) -> None:
        self._file = new_file

    def render_str(self, text: str, **options: Any) -> Text:
        """See rich: the way of every string, in messages, tables and titles."""
        return super().render_str(printable(text), **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """See rich: the way of everything else."""
        for segment in super().render(renderable, options):
            whole = segment.control or segment.text == "\n" or segment.text.isprintable()
            yield segment if whole else Segment(printable_lines(segment.text, None), segment.style)


out = SafeConsole()
err = SafeConsole(stderr=True, soft_wrap=True)


def fail(message: str, *, code: int = 1) -> None:
    """Print one line and exit."""
    print_error(message)
    sys.exit(code)


def print_error(message: str) -> None:
    """One line on stderr."""
    err.print(Text.assemble(("error:", "red"), " ", printable(" ".join(message.split()))))


def run(app: Callable[[], object], explain: Callable[[Exception], str | None] = lambda error: None) -> None:
    """Run a command line, a typer.Typer. What a user can cause is one line on stderr and exit code 1; a signal n is 128 + n.

    explain: the line for another error that is no fault of ours; None lets it end in a traceback.
    """
    try:
        with handled(stop):
            app()
    except UserError as error:
        fail(str(error))
    except Stopped as stopped:
        if stopped.number in QUIET:
            sys.exit(stopped.exit_code)
        fail(f"stopped by {stopped.name}; whatever was finished is kept, the same command goes on", code=stopped.exit_code)
    except OSError as error:
        fail(_about(error))
    except Exception as error:
        line = explain(error)
        if line is None:
            raise
        fail(line)


def _about(error: OSError) -> str:
    remedy = "check the path and its rights"
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        remedy = "free some room, then the same command goes on"
    where = f"{os.fsdecode(error.filename)}: " if isinstance(error.filename, str | bytes | os.PathLike) else ""
    return f"{where}{error.strerror or error}; expected to be able to read and write there; {remedy}"
