"""udkd export."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.table import Table

from udkd.cli.arguments import CheckpointOption, EnsembleOption, MovedDatasetOption, RunArgument, StudentOption
from udkd.utils.errors import ConfigError
from udkd.utils.progress import Observer
from udkd.utils.terminal import observed, out, print_unwrapped

if TYPE_CHECKING:
    from udkd.training.run_folder import RunFolder


def export_command(
    run: RunArgument,
    folder: Annotated[
        Path | None, typer.Option("--out", metavar="OUT", help="Default: RUN/export/NAME, RUN/students or RUN/hf/NAME.")
    ] = None,
    format: Annotated[
        Literal["onnx", "safetensors", "hf"],
        typer.Option(
            "--format",
            help="onnx: torch.export and ONNX; safetensors: weights for load_state_dict, of each student unless --student "
            "names one; hf: a folder for timm.create_model('local-dir:OUT', pretrained=True).",
        ),
    ] = "onnx",
    student: StudentOption = None,
    ensemble: EnsembleOption = False,
    int8: Annotated[bool, typer.Option("--int8", help="onnx: also an 8-bit model; both accuracies are measured.")] = False,
    data: MovedDatasetOption = None,
    checkpoint: CheckpointOption = "last",
) -> None:
    """Export a student for other libraries.

    onnx writes both models, and preprocessing.json, which describes their input. Nothing is kept unless the logits of both
    files match the checkpoint's on validation images. hf needs timm, and refuses a network whose logits differ from timm's.
    """
    from udkd.training.run_folder import RunFolder

    given = {"--ensemble": ensemble, "--int8": int8, "--data": data is not None}
    unused = [option for option, is_given in given.items() if is_given]
    if format != "onnx" and unused:
        raise ConfigError(f"{unused[0]} with --format {format}; expected --format onnx with it; drop one")
    if format == "safetensors" and checkpoint != "last" and folder is None:
        raise ConfigError(
            f"--checkpoint {checkpoint} without --out; expected a folder, as RUN/students holds the newest; name one"
        )
    with observed() as observer:
        if format == "safetensors":
            from udkd.export.student_files import export_student_files

            for file in export_student_files(RunFolder.open(run), student, folder, checkpoint=checkpoint):
                out.print(f"weights in {file}", soft_wrap=True)
        elif format == "hf":
            from udkd.export.hf import export_hf

            written = export_hf(RunFolder.open(run), folder, student=student, checkpoint=checkpoint, observer=observer)
            out.print(
                f"{written.name} as timm's {written.architecture} in {written.folder}, logits differ by "
                f"{written.difference:.1e}; open it with timm.create_model('local-dir:{written.folder}', pretrained=True)",
                soft_wrap=True,
            )
        else:
            _export_onnx(RunFolder.open(run), folder, student, ensemble, int8, data, checkpoint, observer)


def _export_onnx(
    run: "RunFolder",
    folder: Path | None,
    student: str | None,
    ensemble: bool,
    int8: bool,
    data: Path | None,
    checkpoint: str,
    observer: Observer,
) -> None:
    from udkd.export.export import MAX_DEVIATION, export  # ONNX takes a second

    exported = export(
        run, folder, student=student, ensemble=ensemble, int8=int8, data=data, checkpoint=checkpoint, observer=observer
    )
    table = Table("file", "MB", "logits differ by", "top-1 %", box=None, pad_edge=False)
    for column in table.columns[1:]:
        column.justify = "right"
    for name, size in exported.bytes.items():
        difference, score = exported.difference.get(name), exported.accuracy.get(name)
        deviation = "" if difference is None else f"{difference:.1e} (limit {MAX_DEVIATION:g})"
        table.add_row(name, f"{size / 1e6:.1f}", deviation, "" if score is None else f"{score.top1:.2f}")
    print_unwrapped(table)
    out.print(f"{exported.name} in {exported.folder}", soft_wrap=True)
