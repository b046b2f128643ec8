"""udkd run verify."""

import typer

from udkd.cli.arguments import RunArgument
from udkd.utils.commands import Commands
from udkd.utils.output import print_error, print_json
from udkd.utils.terminal import JsonOption, out

run_app = Commands(help="Check run folders, written by udkd train.")


@run_app.callback()
def run_group() -> None:
    """Check run folders, written by udkd train."""


@run_app.command("verify", example="udkd run verify run")
def verify_command(run: RunArgument, as_json: JsonOption = False) -> None:
    """Check every file of a run, by its checksum and the other files.

    Names each damaged file; the exit code is then 1. Runs of earlier versions have checksums of the checkpoint and the
    predictions only.
    """
    from udkd.training.verify_run import verify_run

    problems = verify_run(run)
    for problem in problems:
        print_error(problem)
    if as_json:
        print_json({"run": str(run), "intact": not problems, "problems": problems})
    elif not problems:
        out.print(f"{run} is intact", soft_wrap=True)
    if problems:
        raise typer.Exit(1)
