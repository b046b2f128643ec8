"""udkd eval, udkd report."""

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from udkd.actors.evaluator import evaluate
from udkd.console.outcome import result_table
from udkd.console.terminal import DeviceOption, err, observed, out
from udkd.formats.run import RunFolder
from udkd.parts.environment import choose_device

RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="Run folder, made by udkd train.")]


def eval_command(
    run: RunArgument,
    data: Annotated[Path | None, typer.Option("--data", help="Dataset folder, if it has moved.")] = None,
    teacher: Annotated[
        Path | None, typer.Option("--teacher", help="Teacher folder, to have its accuracy in the table.")
    ] = None,
    device: DeviceOption = "auto",
) -> None:
    """Score a run on the validation split: each student, their averaged probabilities and the teacher."""
    with observed() as observer:
        result = evaluate(RunFolder.open(run), data=data, teacher=teacher, device=choose_device(device), observer=observer)
    out.print(result_table(result))


def report_command(run: RunArgument) -> None:
    """Write RUN/report/index.html: one page with everything that can be seen of a run, and its figures as PNG files."""
    from udkd.actors.reporter import gather, write_report  # matplotlib takes a second

    err.print(f"report: {escape(str(write_report(gather(run))))}")
