"""All output to the terminal: consoles that escape control characters, results as JSON, errors as one line.

Standard output is for what a command found or made. Standard error is for everything else: how far it is, and errors.
"""

import errno
import json
import math
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import IO, Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from udkd.utils.errors import UserError
from udkd.utils.launcher import is_torchrun_follower
from udkd.utils.printable import printable, printable_lines
from udkd.utils.signals import QUIET_SIGNALS, Stopped, raise_stopped, signal_handler


class SafeConsole(Console):
    """A console that prints each string as one line, with control characters escaped and brackets unchanged (no markup).

    Styles come from Text objects only. NO_COLOR turns off colours and bold. verbose: of `err`, whether --verbose was given.
    """

    verbose = False

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
"""For progress, notes and headings. --quiet turns it off (`err.quiet`)."""

_errors = SafeConsole(stderr=True, soft_wrap=True)


def print_json(value: object) -> None:
    """Print a command's result for programs: one JSON document on standard output, in ASCII. NaN and infinity become null."""
    print_as_is(json.dumps(_finite(value), indent=2, allow_nan=False) + "\n")


def print_as_is(text: str) -> None:
    """Write text that is printable already to standard output, however long its lines are."""
    getattr(sys.stdout, "unescaped", sys.stdout).write(text)


def _finite(value: object) -> object:
    if isinstance(value, Mapping):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


@contextmanager
def json_result(wanted: bool) -> Iterator[dict[str, Any]]:
    """A dict that the block fills. wanted: it is printed as JSON at the end, also after an error; other output goes to stderr.

    Nothing is printed where the block has not filled it.
    """
    result: dict[str, Any] = {}
    out.stderr = wanted
    try:
        yield result
    finally:
        out.stderr = False
        if wanted and result:
            print_json(result)


def fail(message: str, *, code: int = 1) -> None:
    """Print one line and exit."""
    print_error(message)
    sys.exit(code)


def print_error(message: str) -> None:
    """Print an error as one line on stderr."""
    _print_line("error", "red", message)


def print_warning(message: str) -> None:
    """Print a warning as one line on stderr, also with --quiet."""
    _print_line("warning", "yellow", message)


def _print_line(kind: str, colour: str, message: str) -> None:
    _errors.print(Text.assemble((f"{kind}:", colour), " ", printable(" ".join(message.split()))))


def run(app: Callable[[], object], explain: Callable[[Exception], str | None] = lambda error: None) -> None:
    """Run a typer.Typer. A UserError or OSError becomes one line on stderr and exit code 1; signal n exits with 128 + n.

    explain: returns the line for any other error that is not a bug, such as a lack of memory; None for a traceback.
    """
    started = time.perf_counter()
    try:
        with signal_handler(raise_stopped):
            app()
    except Stopped as stopped:
        if stopped.number in QUIET_SIGNALS or is_torchrun_follower():  # torchrun sends the signal to all of its processes
            sys.exit(stopped.exit_code)
        fail(f"stopped by {stopped.name}; finished work is kept, the same command resumes", code=stopped.exit_code)
    except Exception as error:
        line = (
            str(error) if isinstance(error, UserError) else _describe(error) if isinstance(error, OSError) else explain(error)
        )
        if line is None:
            raise
        if err.verbose:
            traceback.print_exc()
        fail(line)
    finally:
        if err.verbose:
            err.print(f"took {time.perf_counter() - started:.1f} s")
        err.quiet = err.verbose = False  # the next command of this process may say otherwise


def _describe(error: OSError) -> str:
    remedy = "check the path and its permissions"
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        remedy = "free some space, then the same command resumes"
    where = f"{os.fsdecode(error.filename)}: " if isinstance(error.filename, str | bytes | os.PathLike) else ""
    return f"{where}{error.strerror or error}; expected to be able to read and write there; {remedy}"
