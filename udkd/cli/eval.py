"""udkd eval."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from udkd.cli.arguments import CheckpointOption, MovedCacheOption, RunArgument
from udkd.cli.summary import accuracy_table
from udkd.utils.output import print_json
from udkd.utils.terminal import DeviceOption, JsonOption, observed, print_unwrapped


def eval_command(
    run: RunArgument,
    data: Annotated[
        Path | None,
        typer.Option(
            "--data",
            metavar="DATA",
            help="Dataset folder of the run, if it has moved, or another one of its classes, such as a test set.",
        ),
    ] = None,
    split: Annotated[
        Literal["val", "train"] | None,
        typer.Option("--split", help="Images of --data; default: val, or train where other data have no val images."),
    ] = None,
    name: Annotated[
        str,
        typer.Option(
            "--name", metavar="NAME", help="Name of the results on other data, RUN/eval-NAME.json; default: the folder's."
        ),
    ] = "",
    teacher: Annotated[
        Path | None,
        typer.Option("--teacher", metavar="TEACHER", help="Teacher folder: adds the teacher's accuracy to the table."),
    ] = None,
    cache: MovedCacheOption = None,
    checkpoint: CheckpointOption = "last",
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Measure a run's accuracy on validation images or other data.

    The table has each student, the mean of their probabilities, and the teacher. Writes the predictions for every validation
    image to RUN/predictions.safetensors, which udkd report reads. Results on other data are in RUN/eval-NAME.json.
    """
    from udkd.training.evaluate import evaluate
    from udkd.training.run_folder import RunFolder
    from udkd.utils.environment import choose_device

    selected = choose_device(device)
    with observed() as observer:
        folders = {"data": data, "teacher": teacher, "cache": cache}
        result = evaluate(
            RunFolder.open(run),
            **folders,
            split=split,
            name=name,
            checkpoint=checkpoint,
            device=selected,
            observer=observer,
        )
    if as_json:
        print_json(result)
    else:
        print_unwrapped(accuracy_table(result))
