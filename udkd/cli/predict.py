"""udkd predict."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from udkd.cli.arguments import CheckpointOption, EnsembleOption, RunArgument, StudentOption
from udkd.utils.output import print_error, print_json
from udkd.utils.terminal import JsonOption, print_unwrapped

if TYPE_CHECKING:
    from udkd.export.predict import Prediction


def predict_command(
    run: RunArgument,
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE…", help="Image files of any common format.")],
    student: StudentOption = None,
    ensemble: EnsembleOption = False,
    checkpoint: CheckpointOption = "last",
    top: Annotated[int, typer.Option("--top", metavar="N", min=1, help="Number of classes to print per image.")] = 5,
    as_json: JsonOption = False,
) -> None:
    """Print the most likely classes of images.

    The images are preprocessed like validation images. A run of several students predicts as their ensemble unless
    --student names one. Each image that cannot be read is one line on stderr; the others are classified, and the exit code
    is 1.
    """
    from udkd.config.recipe import Recipe
    from udkd.export.predict import predict, readable_class_names
    from udkd.training.run_folder import RunFolder
    from udkd.training.trained import TrainedClassifier

    folder = RunFolder.open(run)
    several = student is None and len(Recipe.from_stored(folder.config, str(run)).students) > 1
    trained = TrainedClassifier.load(folder, student, ensemble=ensemble or several, checkpoint=checkpoint)
    predictions = predict(trained, images, readable_class_names(folder, trained.classes), top=top)
    classified = [prediction for prediction in predictions if prediction.classes]
    if as_json:
        print_json({"student": trained.name, "images": [_values(prediction) for prediction in predictions]})
    elif classified:
        print_unwrapped(_table(classified, trained.name))
    for prediction in predictions:
        if prediction.error:
            print_error(prediction.error)
    if len(classified) < len(predictions):
        raise typer.Exit(1)


def _values(prediction: "Prediction") -> dict[str, Any]:
    """For JSON: an image that could not be read has no classes and an error."""
    values = asdict(prediction) | {"image": str(prediction.image)}
    return values | {"error": prediction.error or None}


def _table(predictions: "list[Prediction]", name: str) -> Table:
    table = Table("image", name, "%", "class", box=None, pad_edge=False)
    table.columns[2].justify = "right"
    for prediction in predictions:
        for rank, guess in enumerate(prediction.classes):
            image = str(prediction.image) if rank == 0 else ""
            table.add_row(image, guess.name, f"{guess.percent:.1f}", guess.wnid)
    return table
