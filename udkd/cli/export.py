"""udkd export."""

from typing import Annotated

import typer
from rich.table import Table

from udkd.cli.arguments import CheckpointOption, EnsembleOption, MovedDatasetOption, RunArgument, StudentOption
from udkd.training.run_folder import RunFolder
from udkd.utils.terminal import err, observed, out


def export_command(
    run: RunArgument,
    student: StudentOption = None,
    ensemble: EnsembleOption = False,
    int8: Annotated[bool, typer.Option("--int8", help="Also an 8-bit ONNX model; both accuracies are measured.")] = False,
    data: MovedDatasetOption = None,
    checkpoint: CheckpointOption = "last",
) -> None:
    """Export a student as torch.export and ONNX files.

    Writes RUN/export/NAME: both models, and preprocessing.json, which describes their input. Nothing is kept unless the
    logits of both files match the checkpoint's on validation images.
    """
    from udkd.export.export import MAX_DEVIATION, export  # ONNX takes a second

    with observed() as observer:
        folder = RunFolder.open(run)
        exported = export(
            folder, student=student, ensemble=ensemble, int8=int8, data=data, checkpoint=checkpoint, observer=observer
        )
    table = Table("file", "MB", "logits differ by", "top-1 %", box=None, pad_edge=False)
    for column in table.columns[1:]:
        column.justify = "right"
    for name, size in exported.bytes.items():
        difference, score = exported.difference.get(name), exported.accuracy.get(name)
        deviation = "" if difference is None else f"{difference:.1e} (limit {MAX_DEVIATION:g})"
        table.add_row(name, f"{size / 1e6:.1f}", deviation, "" if score is None else f"{score.top1:.2f}")
    out.print(table)
    err.print(f"{exported.name} in {exported.folder}", soft_wrap=True)
