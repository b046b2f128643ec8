"""udkd teacher fit, udkd teacher import."""

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from udkd.cli.arguments import DatasetOption, RecipeArgument, RecipeOption, SetOption
from udkd.cli.summary import print_outcome
from udkd.utils.commands import Commands
from udkd.utils.errors import ConfigError
from udkd.utils.progress import SILENT
from udkd.utils.terminal import DeviceOption, explain_machine_error, observed, out, stop_requests

if TYPE_CHECKING:
    from udkd.augment.preprocessing import Preprocessing
    from udkd.teacher.folder import TeacherFolder

teacher_app = Commands(help="Make a teacher folder, by training or of pretrained weights.")

NewTeacherOption = Annotated[Path, typer.Option("--out", metavar="TEACHER", help="Teacher folder to create.")]


@teacher_app.command(
    "fit",
    example="udkd teacher fit imagenet100-paper --data data --out teacher",
    old_order=("--data", "--out"),
    old_first=("--recipe",),
)
def fit(
    data: DatasetOption,
    teacher: NewTeacherOption,
    recipe: RecipeArgument = "imagenet100-paper",
    architecture: Annotated[str | None, typer.Option(metavar="NAME", help="Short for --set fit.architecture=NAME.")] = None,
    loss: Annotated[
        str | None,
        typer.Option(metavar="LOSS", help="cross_entropy, or evidential to estimate vacuity. Short for fit.loss."),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue from the newest checkpoint in TEACHER/run.")] = False,
    overrides: SetOption = None,
    device: DeviceOption = "auto",
) -> None:
    """Train a teacher with hard labels.

    The recipe's [fit] and [train] sections say how. Several processes share the work under torchrun, as of udkd train.
    """
    from udkd.config.loading import load_recipe
    from udkd.utils.workers import WorkerGroup

    group = WorkerGroup.join()
    with group.reports_once(explain_machine_error):
        settings = [*(overrides or []), *([f'fit.architecture="{architecture}"'] if architecture else [])]
        settings += [f'fit.loss="{loss}"'] if loss else []
        teacher_recipe = load_recipe(recipe, settings).for_teacher()  # before the imports that take seconds
        from udkd.data.dataset import DatasetFolder
        from udkd.teacher.folder import TeacherFolder, new_teacher
        from udkd.training.make_teacher import evaluate_and_write, from_run
        from udkd.training.run_folder import RunFolder
        from udkd.training.trainer import TrainJob, train
        from udkd.utils.environment import choose_device, set_cublas_workspace

        set_cublas_workspace(deterministic=teacher_recipe.train.deterministic)
        locked = new_teacher(teacher, resume=resume) if group.is_main else contextlib.nullcontext()
        with locked, observed() as observer, stop_requests(announce=group.is_main) as stopped:
            job = TrainJob(
                recipe=teacher_recipe,
                data=data,
                out=teacher / "run",
                device=choose_device(group.device_name(device)),
                resume=resume,
                observer=observer if group.is_main else SILENT,
                stopped=stopped,
                group=group,
            )
            outcome = train(job)
            if outcome.finished and group.is_main:
                if not (teacher / "teacher.json").exists():
                    dataset = DatasetFolder.open(data)
                    candidate = from_run(RunFolder.open(teacher / "run"), None, [entry.wnid for entry in dataset.classes])
                    evaluate_and_write(teacher, candidate, dataset, teacher_recipe, job.device, observer)
                _announce(TeacherFolder.open(teacher))
    if group.is_main or not outcome.finished:
        print_outcome(outcome, teacher / "run", stopped.exit_code, announce=group.is_main)


@teacher_app.command(
    "import",
    example="udkd teacher import timm/resnet50.a1_in1k --data data --out teacher",
    old_order=("--data", "--out"),
    old_first=("--model", "--architecture"),
)
def import_(
    data: DatasetOption,
    teacher: NewTeacherOption,
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="MODEL",
            help="Its architecture: a name of torchvision's, timm/NAME, or package.module:function, which is called with "
            "num_classes and returns a torch.nn.Module. Default: resnet50.",
        ),
    ] = None,
    weights: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Local .safetensors or .pth file, of ImageNet's 1,000 classes or of this data's in sorted order. "
            "Default: download torchvision's or timm's weights, or take those that the function returns.",
        ),
    ] = None,
    entry: Annotated[
        str | None, typer.Option(metavar="NAME", help="Which of several state dicts in --weights, such as model_ema.")
    ] = None,
    run: Annotated[
        Path | None,
        typer.Option(metavar="RUN", help="Run folder, instead of MODEL: one of its students becomes the teacher."),
    ] = None,
    student: Annotated[str | None, typer.Option(metavar="NAME", help="Name of the student of --run.")] = None,
    mean: Annotated[
        str | None,
        typer.Option(metavar="R,G,B", help="Mean of its input's normalisation. Default: the model's own."),
    ] = None,
    std: Annotated[str | None, typer.Option(metavar="R,G,B", help="Standard deviation, likewise.")] = None,
    interpolation: Annotated[
        str | None,
        typer.Option(metavar="bilinear|bicubic", help="Resize of its input. Default: the model's own."),
    ] = None,
    recipe: RecipeOption = "imagenet100-paper",
    overrides: SetOption = None,
    device: DeviceOption = "auto",
) -> None:
    """Take a pretrained classifier, or a student of a run, as a teacher.

    Of a classifier for ImageNet's 1,000 classes, the head keeps the rows of this data's classes. Its input has the size that
    the recipe's teacher.size_px says, else views.size_px.
    """
    from udkd.config.loading import load_recipe

    loaded = load_recipe(recipe, overrides or [])
    from udkd.data.dataset import DatasetFolder
    from udkd.teacher.folder import new_teacher
    from udkd.training.import_teacher import import_teacher
    from udkd.training.make_teacher import evaluate_and_write, from_run
    from udkd.training.run_folder import RunFolder
    from udkd.utils.environment import choose_device

    dataset = DatasetFolder.open(data)
    given = weights is not None or entry is not None or mean or std or interpolation
    if run is not None and given:
        raise ConfigError("--run and options of other weights are both given; expected one source; drop one")
    if run is not None and model is not None:
        raise ConfigError(f"{model} and --run are both given; expected one source of the teacher; drop one")
    if run is None and student is not None:
        raise ConfigError(f"--student {student} without --run; expected its run; add --run")
    if entry is not None and weights is None:
        raise ConfigError(f"--entry {entry} without --weights; expected the file that contains it; add --weights")
    with observed() as observer:
        if run is None:
            written = import_teacher(
                teacher,
                data=dataset,
                model=model or "resnet50",
                weights=weights,
                entry=entry,
                preprocessing=_preprocessing(model or "resnet50", mean, std, interpolation),
                recipe=loaded,
                device=choose_device(device),
                observer=observer,
            )
        else:
            with new_teacher(teacher):
                candidate = from_run(RunFolder.open(run), student, [each.wnid for each in dataset.classes])
                written = evaluate_and_write(teacher, candidate, dataset, loaded, choose_device(device), observer)
    _announce(written)


def _preprocessing(model: str, mean: str | None, std: str | None, interpolation: str | None) -> "Preprocessing | None":
    """What the options say, completed by the model's own; None without options."""
    from udkd.augment.preprocessing import Preprocessing
    from udkd.models.architectures import default_preprocessing

    if (mean is None) != (std is None):
        raise ConfigError(f"--{'std' if mean is None else 'mean'} alone; expected mean and std; give both or neither")
    if mean is None and interpolation is None:
        return None
    own = default_preprocessing(model)
    return Preprocessing(
        mean=_channels("--mean", mean) if mean else own.mean,
        std=_channels("--std", std) if std else own.std,
        interpolation=interpolation or own.interpolation,  # type: ignore[arg-type]  # Preprocessing checks it
    )


def _channels(option: str, text: str) -> tuple[float, float, float]:
    try:
        red, green, blue = map(float, text.split(","))
    except ValueError:
        raise ConfigError(f"{option} {text!r}; expected three numbers, such as 0.5,0.5,0.5; correct it") from None
    return red, green, blue


def _announce(folder: "TeacherFolder") -> None:
    accuracy = folder.info.accuracy
    out.print(
        f"teacher {folder.info.architecture}, {len(folder.info.classes)} classes: "
        f"validation top-1 {accuracy['top1']:.2f} %, top-5 {accuracy['top5']:.2f} %, in {folder.path}",
        soft_wrap=True,
    )
