"""udkd predict."""

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from udkd.config.recipe import Recipe
from udkd.export.predict import Prediction, class_names, predict
from udkd.training.run_folder import RunFolder
from udkd.training.trained import TrainedClassifier
from udkd.utils.output import print_error
from udkd.utils.terminal import print_whole

StudentOption = Annotated[str | None, typer.Option("--student", help="Which student; may be left out where there is one.")]
AveragedOption = Annotated[bool, typer.Option("--averaged", help="All students, their probabilities averaged.")]


def predict_command(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder, made by udkd train.")],
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE…", help="Picture files of any usual kind.")],
    student: StudentOption = None,
    averaged: AveragedOption = False,
    top: Annotated[int, typer.Option("--top", min=1, help="How many classes to name.")] = 5,
) -> None:
    """Name the likeliest classes of pictures, seen as validation images are.

    A run of several students answers averaged unless one is named. A picture that cannot be read is one line on stderr, the
    others are answered, and the exit code is 1.
    """
    folder = RunFolder.open(run)
    several = student is None and len(Recipe.stored(folder.config, str(run)).students) > 1
    trained = TrainedClassifier.load(folder, student, averaged=averaged or several)
    predictions = predict(trained, images, class_names(folder, trained.classes), top=top)
    answered = [prediction for prediction in predictions if prediction.guesses]
    if answered:
        print_whole(_table(answered, trained.name))
    for prediction in predictions:
        if prediction.error:
            print_error(prediction.error)
    if len(answered) < len(predictions):
        raise typer.Exit(1)


def _table(predictions: list[Prediction], name: str) -> Table:
    table = Table("image", name, "%", "class", box=None, pad_edge=False)
    table.columns[2].justify = "right"
    for prediction in predictions:
        for place, guess in enumerate(prediction.guesses):
            image = str(prediction.image) if place == 0 else ""
            table.add_row(image, guess.name, f"{guess.percent:.1f}", guess.wnid)
    return table
