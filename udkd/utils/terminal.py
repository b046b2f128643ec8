"""What both command lines share: options, progress bars, graceful stop on Ctrl-C, explanations of PyTorch's errors."""

import logging
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from types import FrameType
from typing import Annotated

import typer
from rich.measure import Measurement
from rich.progress import BarColumn, MofNCompleteColumn, Progress, Task, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from udkd.utils import output
from udkd.utils.output import SafeConsole, print_warning
from udkd.utils.output import err as err
from udkd.utils.output import out as out
from udkd.utils.printable import printable
from udkd.utils.signals import signal_handler

QUIET_S = 30.0
"""Seconds between progress lines when stderr is not a terminal."""

NOTEBOOK_S = 0.5
"""Seconds between two drawings of the bar in a notebook."""

_MAX_WIDTH = 10_000
"""Characters per line."""

_WARNING = "warning: "

DeviceOption = Annotated[str, typer.Option("--device", metavar="DEVICE", help="auto (a GPU if there is one), cpu or cuda.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as one JSON document.")]


class Speed(TextColumn):
    """A column of the progress bar: units per second."""

    def __init__(self) -> None:
        super().__init__("")

    def render(self, task: Task) -> Text:
        """The recent speed; empty before the first measurement."""
        speed = task.finished_speed or task.speed
        return Text(f"{speed:,.0f} {task.fields['unit']}/s" if speed else "")


class RichObserver:
    """Shows progress on stderr: one bar at a time, with notes as lines above it.

    If stderr is not a terminal, it prints a line every half minute. summaries: print one line at the end of each task instead,
    as --verbose does. A notebook with ipywidgets shows the bar, too. --quiet leaves warnings only.
    """

    def __init__(self, *, summaries: bool = False) -> None:
        self._summaries = summaries or err.verbose
        self._notebook = err.is_jupyter and find_spec("ipywidgets") is not None
        self._shows_bar = (err.is_interactive or self._notebook) and not err.quiet
        self._progress: Progress | None = None
        self._task = TaskID(0)
        self._quiet_since = 0.0
        self._started = 0.0

    def start(self, task: str, total: int, unit: str) -> None:
        """See udkd.utils.progress.Observer."""
        self.close()
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            Speed(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[metrics]}", markup=False),
            console=err,
            transient=True,
            auto_refresh=not self._notebook,  # its thread would draw notes of this one into the bar
            disable=not self._shows_bar,
        )
        self._task = self._progress.add_task(printable(task), total=total, unit=unit, metrics="")
        self._progress.start()
        self._started = self._quiet_since = time.monotonic()

    def advance(self, count: int, **fields: float | str) -> None:
        """See udkd.utils.progress.Observer."""
        assert self._progress is not None, "a task was started"
        if fields:
            shown = {name: f"{value:.3g}" if isinstance(value, float) else value for name, value in fields.items()}
            metrics = "  ".join(f"{name} {value}" for name, value in shown.items())
            self._progress.update(self._task, metrics=printable(metrics))
        self._progress.advance(self._task, count)
        quiet_s = time.monotonic() - self._quiet_since
        if self._notebook and quiet_s > NOTEBOOK_S:
            self._quiet_since = time.monotonic()
            self._progress.refresh()
        if not (self._summaries or self._shows_bar) and quiet_s > QUIET_S:
            self._quiet_since = time.monotonic()
            self._print_progress(self._progress.tasks[0])

    def finish(self) -> None:
        """See udkd.utils.progress.Observer."""
        task = self._progress.tasks[0] if self._progress is not None else None
        self.close()
        if self._summaries and task is not None:
            seconds, unit = time.monotonic() - self._started, task.fields["unit"]
            total = task.total or 0
            self.note(f"{task.description}: {total:,} {unit} in {seconds:,.1f} s ({total / max(seconds, 1e-9):,.0f} {unit}/s)")

    def close(self) -> None:
        """Remove the bar of an unfinished task, if there is one."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    def note(self, line: str) -> None:
        """See udkd.utils.progress.Observer."""
        if line.startswith(_WARNING):
            print_warning(line.removeprefix(_WARNING))
        else:
            err.print(line)

    def _print_progress(self, task: Task) -> None:
        speed = f", {task.speed:,.0f} {task.fields['unit']}/s" if task.speed else ""
        left = f", {task.time_remaining:,.0f} s left" if task.time_remaining else ""
        err.print(
            f"{task.description}: {task.completed:,.0f}/{task.total:,.0f}{speed}{left}  {task.fields['metrics']}".rstrip()
        )


@contextmanager
def observed(*, summaries: bool = False) -> Iterator[RichObserver]:
    """Yield an observer and remove its bar when the block ends, also after an error. summaries: see RichObserver."""
    observer = RichObserver(summaries=summaries)
    try:
        yield observer
    finally:
        observer.close()


class StopRequest:
    """Call it to learn whether the user wants to stop. exit_code: 128 + the signal's number; 0 if there was no signal."""

    def __init__(self) -> None:
        self.exit_code = 0

    def __call__(self) -> bool:
        return self.exit_code > 0


@contextmanager
def stop_requests(*, announce: bool = True) -> Iterator[StopRequest]:
    """Turn the first Ctrl-C, SIGTERM or SIGHUP into a stop request; the next one ends the process at once.

    A second SIGHUP is ignored: when a terminal closes, the kernel and the shell may both send one. announce: print a line then.
    """
    request = StopRequest()

    def on_signal(number: int, frame: FrameType | None) -> None:
        request.exit_code = 128 + number
        if announce:
            err.print("stopping after this step; once more to stop at once")
        for kind, handler in before.items():
            signal.signal(kind, signal.SIG_IGN if kind == signal.SIGHUP else handler)

    with signal_handler(on_signal) as before:
        yield request


def run(app: Callable[[], object]) -> None:
    """Run a command line, a typer.Typer; see udkd.utils.output.run."""
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # in a home that is read-only it warns of its temporary folder
    output.run(app, explain_machine_error)


def explain_machine_error(error: Exception) -> str | None:
    """One line for an error caused by the machine and not by the program; None for any other error."""
    if not isinstance(error, MemoryError | RuntimeError):
        return None
    text = str(error) or type(error).__name__
    if "does not have a deterministic implementation" in text:
        return f"{_first_line(text)}; expected a network without it; set train.deterministic to false"
    torch = sys.modules.get("torch")  # not imported here: the converter uses this module without it
    out_of_memory = (MemoryError,) if torch is None else (MemoryError, torch.OutOfMemoryError)
    if isinstance(error, out_of_memory) or "allocate memory" in text:
        keys = "train.batch_size, teacher.batch_size or views.size_px"
        return f"out of memory ({_first_line(text)}); expected it to fit; lower {keys}"
    if type(error).__module__.startswith(("torch._inductor", "torch._dynamo")):
        return f"torch.compile failed ({_first_line(text)}); expected a working compiler; use --set train.compile=off"
    return None


def _first_line(text: str) -> str:
    return next((line.strip() for line in text.splitlines() if line.strip()), "")[:200]


def print_unwrapped(table: Table) -> None:
    """Print a table with every cell on one line, however narrow the terminal, so that paths can be copied."""
    for column in table.columns:
        column.no_wrap = True
    width = Measurement.get(out, out.options.update(max_width=_MAX_WIDTH), table).maximum
    SafeConsole(file=out.file, width=width, soft_wrap=True).print(table, crop=False)
