"""What commands share: the terminal, progress bars, errors as one line, Ctrl-C as a request."""

import errno
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.markup import escape
from rich.measure import Measurement
from rich.progress import BarColumn, MofNCompleteColumn, Progress, Task, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from udkd.words.errors import UserError
from udkd.words.signals import KINDS, Stopped, handled, stop

STOPPED = 130
"""Exit code of a command that was asked to stop."""

QUIET_S = 30.0
"""Without a terminal, seconds between two lines of progress."""

_WIDEST = 10_000
"""Characters of a line."""

# No emoji: a path may well hold ":bee:".
out = Console(highlight=False, emoji=False)
err = Console(stderr=True, highlight=False, soft_wrap=True, emoji=False)

RecipeOption = Annotated[str, typer.Option("--recipe", help="A shipped recipe's name, or a .toml file.")]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a key of the recipe; may be given again.")
]
BackendOption = Annotated[
    str | None, typer.Option("--backend", help="auto, resident, ffcv, dali or folder: short for data.backend.")
]
DeviceOption = Annotated[str, typer.Option("--device", help="auto (a GPU where there is one), cpu or cuda.")]


class Speed(TextColumn):
    """Units per second of a bar."""

    def __init__(self) -> None:
        super().__init__("")

    def render(self, task: Task) -> Text:
        """The speed over the last moments."""
        speed = task.finished_speed or task.speed
        return Text(f"{speed:,.0f} {task.fields['unit']}/s" if speed else "")


class RichObserver:
    """Shows an actor's progress: one bar at a time, notes as lines above it. Without a terminal, a line every half minute."""

    def __init__(self) -> None:
        self._progress: Progress | None = None
        self._task = TaskID(0)
        self._quiet_since = 0.0

    def start(self, task: str, total: int, unit: str) -> None:
        """See udkd.words.observer.Observer."""
        self.finish()
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            Speed(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[figures]}"),
            console=err,
            transient=True,
            disable=not err.is_terminal,
        )
        self._task = self._progress.add_task(escape(task), total=total, unit=unit, figures="")
        self._progress.start()
        self._quiet_since = time.monotonic()

    def advance(self, count: int, **fields: float | str) -> None:
        """See udkd.words.observer.Observer."""
        assert self._progress is not None, "a task was started"
        if fields:
            shown = {name: f"{value:.3g}" if isinstance(value, float) else value for name, value in fields.items()}
            figures = "  ".join(f"{name} {value}" for name, value in shown.items())
            self._progress.update(self._task, figures=escape(figures))
        self._progress.advance(self._task, count)
        if not err.is_terminal and time.monotonic() - self._quiet_since > QUIET_S:
            self._quiet_since = time.monotonic()
            self._print_progress(self._progress.tasks[0])

    def finish(self) -> None:
        """See udkd.words.observer.Observer."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    def note(self, line: str) -> None:
        """See udkd.words.observer.Observer."""
        err.print(escape(line))

    def _print_progress(self, task: Task) -> None:
        speed = f", {task.speed:,.0f} {task.fields['unit']}/s" if task.speed else ""
        left = f", {task.time_remaining:,.0f} s left" if task.time_remaining else ""
        err.print(
            f"{task.description}: {task.completed:,.0f}/{task.total:,.0f}{speed}{left}  {task.fields['figures']}".rstrip()
        )


@contextmanager
def observed() -> Iterator[RichObserver]:
    """An observer whose bar is gone, whatever happens, when the block ends."""
    observer = RichObserver()
    try:
        yield observer
    finally:
        observer.finish()


@contextmanager
def stop_requests() -> Iterator[Callable[[], bool]]:
    """Turn the first Ctrl-C or SIGTERM into an answer of True; the second one ends the process at once.

    Yields the question "was I asked to stop?".
    """
    asked = False

    def ask(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        asked = True
        err.print("stopping after this step; once more to stop at once")
        for kind, handler in before.items():
            signal.signal(kind, handler)

    before = {kind: signal.getsignal(kind) for kind in KINDS}
    with handled(ask):
        yield lambda: asked


def run(app: Callable[[], object]) -> None:
    """Run a command line, a typer.Typer. What a user can cause is one line on stderr and exit code 1; a signal n is 128 + n."""
    try:
        with handled(stop):
            app()
    except UserError as error:
        fail(str(error))
    except Stopped as stopped:
        fail(f"stopped by {stopped.name}; whatever was finished is kept, the same command goes on", code=stopped.exit_code)
    except OSError as error:
        remedy = "check the path and its rights"
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            remedy = "free some room and run it again"
        where = f"{error.filename}: " if error.filename else ""
        fail(f"{where}{error.strerror or error}; expected to be able to read and write there; {remedy}")
    except (MemoryError, RuntimeError) as error:
        known = _machine_s_limit(error)
        if known is None:
            raise
        fail(known)


def _machine_s_limit(error: MemoryError | RuntimeError) -> str | None:
    """What PyTorch means where the machine, not the program, is at fault; None for anything else."""
    text = str(error) or type(error).__name__
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or "allocate memory" in text:
        return f"out of memory ({_first_sentence(text)}); expected it to fit; lower train.batch, teacher.batch or views.size_px"
    if type(error).__module__.startswith(("torch._inductor", "torch._dynamo")):
        return f"torch.compile failed ({_first_sentence(text)}); expected a working compiler; take --set train.compile=off"
    return None


def _first_sentence(text: str) -> str:
    return next((line.strip() for line in text.splitlines() if line.strip()), "")[:200]


def print_whole(table: Table) -> None:
    """Print a table with every cell on one line, however narrow the terminal: a path stays one that can be copied."""
    for column in table.columns:
        column.no_wrap = True
    width = Measurement.get(out, out.options.update(max_width=_WIDEST), table).maximum
    wide = Console(file=out.file, width=width, highlight=False, emoji=False, soft_wrap=True)
    wide.print(table, crop=False)


def fail(message: str, *, code: int = 1) -> None:
    """Print one line and exit."""
    err.print(f"[red]error:[/red] {escape(' '.join(message.split()))}")
    sys.exit(code)
