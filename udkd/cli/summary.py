"""The outcomes of training and evaluation, for the terminal."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.table import Table

from udkd.utils.terminal import err

if TYPE_CHECKING:
    from udkd.training.trainer import TrainResult


STOPPED = 143
"""Exit code of a process that stops because another one of the run was asked to: that of SIGTERM."""


def print_outcome(outcome: "TrainResult", folder: Path, exit_code: int, *, announce: bool = True) -> None:
    """One line on how training ended; exits with `exit_code` if the run was stopped. announce: print the line."""
    if not announce:
        raise typer.Exit(exit_code or STOPPED)
    if outcome.finished:
        err.print(f"finished: {outcome.step} steps, in {folder}")
        return
    err.print(f"stopped after step {outcome.step}, at a checkpoint in {folder}; the same command with --resume continues")
    raise typer.Exit(exit_code or STOPPED)


def accuracy_table(result: dict[str, Any]) -> Table:
    """The result of an evaluation (the values of eval.json or eval-NAME.json) as a table."""
    what = f"Accuracy on {result['name']} ({result['split']})" if "name" in result else "Validation accuracy"
    table = Table(title=f"{what}, {result['num_samples']} images, {result['num_classes']} classes")
    for name in ("", "top-1 %", "top-5 %", "parameters"):
        table.add_column(name, justify="right" if name else "left")
    rows = [(student["name"], student) for student in result["students"]]
    if len(rows) > 1:
        rows.append(("ensemble", result["ensemble"]))
    if result["teacher"] is not None:
        rows.append((f"teacher {result['teacher']['name']}", result["teacher"]))
    for name, row in rows:
        size = f"{row['parameters'] / 1e6:.1f} M" if "parameters" in row else ""
        table.add_row(name, f"{row['top1']:.2f}", f"{row['top5']:.2f}", size)
    return table
