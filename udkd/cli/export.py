"""udkd export."""

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from udkd.training.run_folder import RunFolder
from udkd.utils.terminal import err, observed, out


def export_command(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder, made by udkd train.")],
    student: Annotated[str | None, typer.Option("--student", help="Which student; may be left out where there is one.")] = None,
    averaged: Annotated[bool, typer.Option("--averaged", help="All students in one, probabilities averaged.")] = False,
    int8: Annotated[bool, typer.Option("--int8", help="Also an 8-bit ONNX model, with both accuracies beside it.")] = False,
    data: Annotated[Path | None, typer.Option("--data", help="Dataset folder, if it has moved.")] = None,
) -> None:
    """Write RUN/export/NAME: a torch.export program, an ONNX model and preprocessing.json with what comes before them.

    Both files' logits are held against the checkpoint's on validation images before anything is kept.
    """
    from udkd.export.export import LIMIT, export  # ONNX takes a second

    with observed() as observer:
        done = export(RunFolder.open(run), student=student, averaged=averaged, int8=int8, data=data, observer=observer)
    table = Table("file", "MB", "logits differ by", "top-1 %", box=None, pad_edge=False)
    for column in table.columns[1:]:
        column.justify = "right"
    for name, size in done.bytes.items():
        difference, scored = done.difference.get(name), done.accuracy.get(name)
        apart = "" if difference is None else f"{difference:.1e} (limit {LIMIT:g})"
        table.add_row(name, f"{size / 1e6:.1f}", apart, "" if scored is None else f"{scored.top1:.2f}")
    out.print(table)
    err.print(f"{done.name} in {done.folder}", soft_wrap=True)
