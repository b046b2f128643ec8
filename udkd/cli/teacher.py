"""udkd teacher fit, udkd teacher import."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from udkd.cli.arguments import DatasetArgument
from udkd.cli.summary import print_outcome
from udkd.config.loading import load_recipe
from udkd.data.dataset import DatasetFolder
from udkd.data.header import ClassName
from udkd.teacher.folder import TeacherFolder, new_teacher
from udkd.training.make_teacher import Candidate, evaluate_and_write, from_run, from_weights
from udkd.training.run_folder import RunFolder
from udkd.training.trainer import TrainJob, train
from udkd.utils.environment import choose_device
from udkd.utils.errors import ConfigError
from udkd.utils.terminal import DeviceOption, RecipeOption, SetOption, err, observed, stop_requests

teacher_app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Create a teacher folder: architecture, classes and weights.",
)

TeacherArgument = Annotated[Path, typer.Argument(metavar="TEACHER", help="Teacher folder to create.")]


@teacher_app.command("fit", epilog="Example: udkd teacher fit data teacher --architecture resnet50")
def fit(
    data: DatasetArgument,
    teacher: TeacherArgument,
    recipe: RecipeOption = "imagenet100-paper",
    architecture: Annotated[str | None, typer.Option(help="Short for --set fit.architecture=NAME.")] = None,
    loss: Annotated[
        str | None,
        typer.Option(help="cross_entropy, or evidential to estimate vacuity. Short for fit.loss."),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue from the newest checkpoint in TEACHER/run.")] = False,
    overrides: SetOption = None,
    device: DeviceOption = "auto",
) -> None:
    """Train a teacher on the dataset folder with hard labels, as the recipe's [fit] and [train] sections say."""
    settings = [*(overrides or []), *([f'fit.architecture="{architecture}"'] if architecture else [])]
    settings += [f'fit.loss="{loss}"'] if loss else []
    teacher_recipe = load_recipe(recipe, settings).for_teacher()
    with new_teacher(teacher), observed() as observer, stop_requests() as stopped:
        job = TrainJob(
            recipe=teacher_recipe,
            data=data,
            out=teacher / "run",
            device=choose_device(device),
            resume=resume,
            observer=observer,
            stopped=stopped,
        )
        outcome = train(job)
        if outcome.finished:
            dataset = DatasetFolder.open(data)
            candidate = from_run(RunFolder.open(teacher / "run"), None, [entry.wnid for entry in dataset.classes])
            _announce(evaluate_and_write(teacher, candidate, dataset, teacher_recipe, job.device, observer))
    print_outcome(outcome, teacher / "run", stopped.exit_code)


@teacher_app.command("import", epilog="Example: udkd teacher import data teacher --weights resnet50.pth")
def import_(
    data: DatasetArgument,
    teacher: TeacherArgument,
    architecture: Annotated[str, typer.Option(help="torchvision's name of the architecture.")] = "resnet50",
    weights: Annotated[
        Path | None,
        typer.Option(
            help="Local .safetensors or .pth file, of ImageNet's 1,000 classes or of this data's in sorted order. "
            "Default: download torchvision's weights."
        ),
    ] = None,
    entry: Annotated[str | None, typer.Option(help="Which of several state dicts in --weights, such as model_ema.")] = None,
    run: Annotated[Path | None, typer.Option(help="Run folder: one of its students becomes the teacher.")] = None,
    student: Annotated[str | None, typer.Option(help="Name of the student of --run.")] = None,
    recipe: RecipeOption = "imagenet100-paper",
    overrides: SetOption = None,
    device: DeviceOption = "auto",
) -> None:
    """Use a pretrained classifier, or a student of a run, as a teacher.

    Of a classifier for ImageNet's 1,000 classes, the head keeps the rows of this data's classes.
    """
    loaded = load_recipe(recipe, overrides or [])
    dataset = DatasetFolder.open(data)
    with new_teacher(teacher), observed() as observer:
        candidate = _candidate(architecture, weights, entry, run, student, dataset.classes)
        for note in candidate.notes:
            observer.note(note)
        written = evaluate_and_write(teacher, candidate, dataset, loaded, choose_device(device), observer)
    _announce(written)
    if "rows" in candidate.made and written.info.accuracy["top1"] <= 150 / len(dataset.classes):
        err.print("this is hardly better than chance: are the outputs of these weights these classes, in this order?")


def _candidate(
    architecture: str,
    weights: Path | None,
    entry: str | None,
    run: Path | None,
    student: str | None,
    classes: Sequence[ClassName],
) -> Candidate:
    wnids = [each.wnid for each in classes]
    if run is None:
        if student is not None:
            raise ConfigError(f"--student {student} without --run; expected its run; add --run")
        if entry is not None and weights is None:
            raise ConfigError(f"--entry {entry} without --weights; expected the file that contains it; add --weights")
        return from_weights(architecture, weights, wnids, [each.name for each in classes], entry)
    if weights is not None or entry is not None:
        raise ConfigError("--run and --weights are both given; expected one source; drop one")
    return from_run(RunFolder.open(run), student, wnids)


def _announce(folder: TeacherFolder) -> None:
    accuracy = folder.info.accuracy
    err.print(
        f"teacher {folder.info.architecture}, {len(folder.info.classes)} classes: "
        f"validation top-1 {accuracy['top1']:.2f} %, top-5 {accuracy['top5']:.2f} %, in {folder.path}"
    )
