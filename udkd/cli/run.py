"""udkd run verify."""

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from udkd.training.verify_run import verify_run
from udkd.utils.terminal import err

run_app = typer.Typer(no_args_is_help=True, help="Run folders, made by udkd train.")


@run_app.callback()
def run_group() -> None:
    """Run folders, made by udkd train."""


@run_app.command("verify")
def verify_command(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder, made by udkd train.")],
) -> None:
    """Hold every file of a run against its checksum and against the others; each damaged one is named.

    Runs of earlier versions have checksums of checkpoint and predictions only.
    """
    problems = verify_run(run)
    for problem in problems:
        err.print(f"[red]error:[/red] {escape(problem)}")
    if problems:
        raise typer.Exit(1)
    err.print(f"{escape(str(run))} is as it was written")
