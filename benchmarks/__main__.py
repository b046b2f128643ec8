"""`python -m benchmarks NAME …`: runs a benchmark; only that benchmark's module is imported."""

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
    """Benchmark -> the first line of its module's docstring."""
    files = sorted(file for file in HERE.glob("*.py") if not file.name.startswith("_"))
    return {file.stem: (ast.get_docstring(ast.parse(file.read_text())) or "").split("\n")[0] for file in files}


def _list(summaries: dict[str, str]) -> None:
    width = max(map(len, summaries))
    output.out.print("usage: python -m benchmarks NAME [OPTIONS]   (NAME --help lists the options)", soft_wrap=True)
    output.out.print()
    for name, line in summaries.items():
        output.out.print(f"  {name:{width}}  {line}", soft_wrap=True)


def main(args: list[str]) -> None:
    """Run the benchmark named by the first argument; without arguments, list all benchmarks."""
    install_safe_streams()
    summaries = names()
    if not args or args[0] in ("--help", "-h"):
        output.run(lambda: _list(summaries))
        return
    name, *rest = args
    if name not in summaries:
        suggestions = difflib.get_close_matches(name, summaries, n=1) or [", ".join(summaries)]
        output.fail(f"no benchmark is called {name!r}; expected one such as {suggestions[0]}; correct it")
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
