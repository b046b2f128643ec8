"""Output to the terminal: no text moves the cursor, and a stream that fails does not end the work."""

import ast
import io
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.panel import Panel
from rich.progress import Progress, TextColumn
from rich.table import Table
from rich.text import Text

from udkd.utils.errors import UserError
from udkd.utils.output import SafeConsole, print_error, run
from udkd.utils.signals import Stopped

ROOT = Path(__file__).resolve().parents[2]
HOSTILE = "a\x1b[31mred\r\n\x07\u202e\u2028\x9b2J\x00\udcff[fit] [bold]b[/bold] :bee: $x_1^{$"
OUTPUT_MODULES = ("udkd/utils/output.py", "udkd/utils/stdio.py")


def table() -> Table:
    made = Table(HOSTILE, title=HOSTILE, caption=HOSTILE)
    made.add_row(HOSTILE)
    return made


def bar() -> Progress:
    made = Progress(TextColumn("{task.description}", markup=False))
    made.add_task(HOSTILE)
    return made


@pytest.mark.parametrize("shown", [HOSTILE, Text(HOSTILE), table(), Panel(HOSTILE), bar().get_renderable()], ids=type)
def test_no_control_character_passes(shown: object) -> None:
    file = io.StringIO()
    SafeConsole(file=file, width=400).print(shown)
    written = file.getvalue()
    assert all(character.isprintable() for character in written.replace("\n", "")), ascii(written)
    assert r"\x1b[31mred" in written
    assert "[fit] [bo" in written, "brackets are no markup"


def test_a_string_is_one_line_of_readable_length() -> None:
    file = io.StringIO()
    SafeConsole(file=file, soft_wrap=True).print("x\ny" * 1_000_000)
    assert file.getvalue().count("\n") == 1
    assert len(file.getvalue()) < 8_000
    assert "characters left out" in file.getvalue()


@pytest.mark.parametrize(("variables", "coloured"), [({}, True), ({"NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False)])
def test_no_color_is_obeyed(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], coloured: bool) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    file = io.StringIO()
    SafeConsole(file=file, force_terminal=True).print(Text("error:", "bold red"))
    assert ("\x1b" in file.getvalue()) == coloured


def ending(error: BaseException, **options: Callable[[Exception], str | None]) -> int:
    def app() -> None:
        raise error

    with pytest.raises(SystemExit) as ended:
        run(app, **options)
    assert isinstance(ended.value.code, int)
    return ended.value.code


def test_exit_codes_and_error_lines(capsys: pytest.CaptureFixture[str]) -> None:
    assert ending(UserError(f"{HOSTILE} is bad")) == 1
    text = capsys.readouterr().err
    assert text.startswith(r"error: a\x1b[31mred")
    assert text.count("\n") == 1
    for kind in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        assert ending(Stopped(kind)) == 128 + kind
        assert f"stopped by {kind.name}" in capsys.readouterr().err
    assert ending(Stopped(signal.SIGPIPE)) == 141
    assert capsys.readouterr().err == "", "the reader has exited"
    assert ending(OSError(28, "No space left on device", b"/x\xff")) == 1
    assert r"/x\udcff: No space left on device" in capsys.readouterr().err
    assert ending(MemoryError(), explain=lambda error: "out of memory") == 1
    with pytest.raises(KeyError):
        run(lambda: {}["nowhere"])


def test_errors_need_no_colour_to_be_seen(capsys: pytest.CaptureFixture[str]) -> None:
    print_error("two\n lines")
    assert capsys.readouterr().err == "error: two lines\n"


PROGRAM = """
import sys, warnings
from udkd.utils.stdio import install_safe_streams
install_safe_streams()
from udkd.utils.output import err, out, run
def app():
    {}
run(app)
"""


def program(body: str, redirections: str = "", **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a command's body with streams as a shell sets them up."""
    command = ["bash", "-c", f'"$0" -c "$1" {redirections}', sys.executable, PROGRAM.format(body)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)} | variables
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)


def test_characters_that_the_terminal_lacks_are_escaped() -> None:
    done = program(r"out.print('\u65e5 \u2026'); print('\u65e5 \x1b[2J')", PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "\\u65e5 \\u2026\n\\u65e5 \\x1b[2J\n"


def test_text_outside_the_console_is_escaped_too() -> None:
    """Warnings, other packages' messages, and the traceback of an unexpected error."""
    done = program(r"warnings.warn('w\x1b[31m'); raise KeyError('k', type('E\x1b[2J', (), {})())")
    assert done.returncode == 1
    assert "\x1b" not in done.stderr
    assert r"w\x1b[31m" in done.stderr
    assert "KeyError" in done.stderr


@pytest.mark.parametrize("redirection", ["2>&-", "2>/dev/full", "2> >(:)"])
def test_work_continues_without_standard_error(tmp_path: Path, redirection: str) -> None:
    """A file opened later must not become descriptor 2 either, where other libraries write to."""
    body = f"err.print('x' * 100_000); file = open({str(tmp_path / 'f')!r}, 'w'); assert file.fileno() > 2; out.print('done')"
    done = program(body, redirection)
    assert (done.returncode, done.stdout) == (0, "done\n")
    assert (tmp_path / "f").read_bytes() == b""


@pytest.mark.parametrize(("redirection", "reason"), [(">&-", "Bad file descriptor"), (">/dev/full", "No space left on device")])
def test_a_result_that_cannot_be_written_is_an_error(redirection: str, reason: str) -> None:
    done = program("out.print('result')", redirection)
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: standard output: {reason}; expected to be able to")
    assert done.stderr.count("\n") == 1


def test_a_reader_that_leaves_ends_it_quietly() -> None:
    done = program("[out.print('x' * 1000) for _ in range(1000)]", "| head -1; exit ${PIPESTATUS[0]}")
    assert (done.returncode, done.stderr) == (141, "")
    assert done.stdout.count("\n") == 1


FORBIDDEN = ("print", "typer.echo", "typer.secho", "sys.stdout", "sys.stderr", "Console", "sys.exit")
SOURCES = [path for folder in ("udkd", "data_prep", "benchmarks") for path in sorted((ROOT / folder).rglob("*.py"))]
SOURCES = [path for path in SOURCES if str(path.relative_to(ROOT)) not in OUTPUT_MODULES]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_all_output_goes_through_the_terminal_module(path: Path) -> None:
    """No print, no echo, no standard stream, no console and no other markup."""
    for node in ast.walk(ast.parse(path.read_text())):
        name = ast.unparse(node) if isinstance(node, ast.Name | ast.Attribute) else ""
        assert name not in FORBIDDEN, node.lineno
