"""udkd eval, udkd report."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from udkd.actors.evaluator import evaluate
from udkd.commands.console import DeviceOption, err, observed, out
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

    err.print(f"report: {write_report(gather(run))}")


def result_table(result: dict[str, Any]) -> Table:
    """The result of an evaluation for a terminal."""
    table = Table(title=f"Validation accuracy, {result['num_samples']} images, {result['num_classes']} classes")
    for name in ("", "top-1 %", "top-5 %", "parameters"):
        table.add_column(name, justify="right" if name else "left")
    rows = [(student["name"], student) for student in result["students"]]
    if len(rows) > 1:
        rows.append(("students averaged", result["ensemble"]))
    if result["teacher"] is not None:
        rows.append((f"teacher {result['teacher']['name']}", result["teacher"]))
    for name, row in rows:
        size = f"{row['parameters'] / 1e6:.1f} M" if "parameters" in row else ""
        table.add_row(name, f"{row['top1']:.2f}", f"{row['top5']:.2f}", size)
    return table
