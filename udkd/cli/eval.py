"""udkd eval."""

from pathlib import Path
from typing import Annotated

import typer

from udkd.cli.arguments import CheckpointOption, MovedCacheOption, MovedDatasetOption, RunArgument
from udkd.cli.summary import accuracy_table
from udkd.training.evaluate import evaluate
from udkd.training.run_folder import RunFolder
from udkd.utils.environment import choose_device
from udkd.utils.terminal import DeviceOption, observed, out


def eval_command(
    run: RunArgument,
    data: MovedDatasetOption = None,
    teacher: Annotated[
        Path | None, typer.Option("--teacher", help="Teacher folder: adds the teacher's accuracy to the table.")
    ] = None,
    cache: MovedCacheOption = None,
    checkpoint: CheckpointOption = "last",
    device: DeviceOption = "auto",
) -> None:
    """Measure the validation accuracy of a run.

    The table has each student, the mean of their probabilities, and the teacher. Writes the predictions for every image to
    RUN/predictions.safetensors, which udkd report reads.
    """
    selected = choose_device(device)
    with observed() as observer:
        folders = {"data": data, "teacher": teacher, "cache": cache}
        result = evaluate(RunFolder.open(run), **folders, checkpoint=checkpoint, device=selected, observer=observer)
    out.print(accuracy_table(result))
