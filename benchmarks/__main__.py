"""`python -m benchmarks NAME …`: finds the benchmark's file by its name and imports nothing else."""

import ast
import difflib
import importlib
import os
import sys
from pathlib import Path

# Two processes that each spin their OpenMP threads slow each other down sevenfold; this must be set before torch loads.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "0")

from udkd.utils import output
from udkd.utils.signals import exit_at_once, signal_handler
from udkd.utils.stdio import install_safe_streams

HERE = Path(__file__).parent


def names() -> dict[str, str]:
    """Benchmark -> the first line of its file."""
    files = sorted(file for file in HERE.glob("*.py") if not file.name.startswith("_"))
    return {file.stem: (ast.get_docstring(ast.parse(file.read_text())) or "").split("\n")[0] for file in files}


def _list(known: dict[str, str]) -> None:
    width = max(map(len, known))
    output.out.print("usage: python -m benchmarks NAME [OPTIONS]   (NAME --help tells the options)", soft_wrap=True)
    output.out.print()
    for name, line in known.items():
        output.out.print(f"  {name:{width}}  {line}", soft_wrap=True)


def main(words: list[str]) -> None:
    """Run the benchmark that the first word names; without one, list them."""
    install_safe_streams()
    known = names()
    if not words or words[0] in ("--help", "-h"):
        output.run(lambda: _list(known))
        return
    name, *rest = words
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1) or [", ".join(known)]
        output.fail(f"no benchmark is called {name!r}; expected one such as {near[0]}; correct it")
    with signal_handler(exit_at_once):
        import typer

        from udkd.utils import terminal

        try:
            module = importlib.import_module(f"benchmarks.{name}")
        except ModuleNotFoundError as error:
            output.fail(f"benchmark {name} needs the package {error.name}, which is not installed; install it or run another")
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
    app.command(name)(module.main)
    terminal.run(lambda: app(rest, prog_name=f"python -m benchmarks {name}"))


if __name__ == "__main__":
    main(sys.argv[1:])
