"""udkd run verify."""

import typer
from rich.markup import escape

from udkd.cli.arguments import RunArgument
from udkd.utils.terminal import err

run_app = typer.Typer(no_args_is_help=True, help="Check run folders, written by udkd train.")


@run_app.callback()
def run_group() -> None:
    """Check run folders, written by udkd train."""


@run_app.command("verify", epilog="Example: udkd run verify runs/first")
def verify_command(run: RunArgument) -> None:
    """Check every file of a run against its checksum and against the other files; name each damaged one.

    Runs of earlier versions have checksums of the checkpoint and the predictions only.
    """
    from udkd.training.verify_run import verify_run

    problems = verify_run(run)
    for problem in problems:
        err.print(f"[red]error:[/red] {escape(problem)}")
    if problems:
        raise typer.Exit(1)
    err.print(f"{escape(str(run))} is intact")
