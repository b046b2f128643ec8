"""udkd quickstart: all steps in one command, on synthetic images or the user's."""

import math
import shlex
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from udkd.cli.arguments import SetOption
from udkd.cli.summary import accuracy_table
from udkd.utils.errors import ConfigError
from udkd.utils.launcher import module_command, module_environment
from udkd.utils.terminal import DeviceOption, RichObserver, err, observed, out, print_unwrapped, stop_requests

if TYPE_CHECKING:
    import torch

    from udkd.config.recipe import Recipe
    from udkd.data.dataset import DatasetFolder

CLASSES, IMAGES, VAL_IMAGES, SIDE = 10, 1600, 300, 64
GPU_CLASSES, GPU_IMAGES, GPU_VAL_IMAGES, GPU_SIDE = 20, 20_000, 2_000, 128
GPU_RECIPE = (
    "views.size_px=96",
    "views.resize_px=112",
    "evaluation.resize_px=112",
    "fit.epochs=15",
    "train.epochs=15",
    'train.precision="bfloat16"',
)


def quickstart(
    data: Annotated[
        Path | None,
        typer.Option("--data", metavar="IMAGES", help="Your images: what udkd data convert reads. Default: synthetic images."),
    ] = None,
    folder: Annotated[Path, typer.Option("--out", metavar="OUT", help="Output folder; the same command resumes there.")] = Path(
        "quickstart"
    ),
    hold_out: Annotated[
        float | None,
        typer.Option(
            "--hold-out", metavar="PERCENT", help="For --data without train/ and val/: percentage to set aside for validation."
        ),
    ] = None,
    overrides: SetOption = None,
    device: DeviceOption = "auto",
) -> None:
    """Run all steps in a few minutes, on synthetic images or yours.

    Images -> dataset folder -> teacher -> cache -> two students -> evaluation -> report.
    """
    from udkd.config.loading import load_recipe
    from udkd.data.dataset import DatasetFolder
    from udkd.teacher.cache.build import build_cache
    from udkd.teacher.folder import TeacherFolder
    from udkd.training.evaluate import evaluate
    from udkd.training.run_folder import RunFolder
    from udkd.utils.environment import choose_device

    started = time.perf_counter()
    selected = choose_device(device)
    gpu = selected.type == "cuda"
    settings = [*(GPU_RECIPE if gpu else ()), *(overrides or [])]
    recipe = load_recipe("quickstart", settings)
    _check_same_images(folder, data)
    recipe_arguments = shlex.join(["quickstart", *(part for setting in settings for part in ("--set", setting))])
    folder.mkdir(parents=True, exist_ok=True)
    if data is None:
        images, val_images = (GPU_IMAGES, GPU_VAL_IMAGES) if gpu else (IMAGES, VAL_IMAGES)
        _announce(recipe, selected, images, val_images)
        source = _synthetic_images(folder / "images", GPU_CLASSES if gpu else CLASSES, images, val_images)
        if not (folder / "data" / "dataset.json").exists():
            _convert(source, folder / "data", GPU_SIDE if gpu else SIDE, None)
        dataset = DatasetFolder.open(folder / "data")
    else:
        _convert(data, folder / "data", GPU_SIDE if gpu else SIDE, hold_out)  # refuses a finished folder of other images
        dataset = DatasetFolder.open(folder / "data")
        _announce(recipe, selected, len(dataset.split("train").ids), len(dataset.split("val").ids))
    teacher, cache, run = folder / "teacher", folder / "cache", folder / "run"
    with observed() as observer:
        _heading("teacher", f"udkd teacher fit {recipe_arguments} --data {folder}/data --out {teacher}")
        _fit(dataset, recipe, teacher, selected, observer)
        options = f"--data {folder}/data --teacher {teacher} --out {cache}"
        _heading("cache", f"udkd cache build {recipe_arguments} {options}")
        opened = TeacherFolder.open(teacher)
        build_cache(cache, dataset=dataset, teacher=opened, recipe=recipe, device=selected, observer=observer)
        options = f"--data {folder}/data --cache {cache} --teacher {teacher} --out {run}"
        _heading("students", f"udkd train {recipe_arguments} {options}")
        _train(dataset, recipe, run, selected, observer, cache=cache, teacher=teacher)
        _heading("evaluation", f"udkd eval {run}")
        result = evaluate(RunFolder.open(run), data=dataset.path, teacher=teacher, device=selected, observer=observer)
    _heading("report", f"udkd report {run}")
    from udkd.report.inputs import load_inputs
    from udkd.report.report import write_report  # matplotlib takes a second

    page = write_report(load_inputs(run))
    print_unwrapped(accuracy_table(result))
    out.print(f"report: {page}", soft_wrap=True)
    err.print(f"{(time.perf_counter() - started) / 60:.1f} minutes in total")


def _announce(recipe: "Recipe", device: "torch.device", images: int, val_images: int) -> None:
    from udkd.training.speed_probe import measure_step_times

    err.print("measuring this machine …")
    speeds = measure_step_times(recipe, CLASSES, device)
    minutes = speeds.total_s(recipe, train_images=images, val_images=val_images) / 60
    err.print(
        f"teacher {recipe.fit.architecture} {1 / speeds.teacher_step_s:,.0f} images/s, "
        f"both students {1 / speeds.students_step_s:,.0f} images/s: {images:,} + {val_images:,} images, "
        f"{recipe.fit.epochs} and {recipe.train.epochs} epochs will take about {math.ceil(minutes)} minutes"
    )


def _heading(title: str, command: str) -> None:
    err.print()
    err.print(Text.assemble((title, "bold"), "  ", (command, "dim")))


def _check_same_images(folder: Path, data: Path | None) -> None:
    """Refuse to resume on other images: their teacher and cache would be taken for those of the new ones."""
    synthetic = (folder / "images").exists() or (folder / "images.unfinished").exists()
    if data is not None and synthetic:
        raise ConfigError(f"{folder} is the quickstart on synthetic images; expected a new folder for {data}; set --out")
    if data is None and not synthetic and (folder / "data").exists():
        raise ConfigError(f"{folder} is a quickstart on other images; expected --data again; give it, or set --out")


def _synthetic_images(folder: Path, classes: int, images: int, val_images: int) -> Path:
    """Write the synthetic images, unless they exist; a folder with the final name is complete."""
    if not folder.exists():
        unfinished = folder.with_name(folder.name + ".unfinished")
        _prep("synth", "--out", unfinished, "--classes", classes, "--images", images, "--val-images", val_images, "--seed", 0)
        unfinished.rename(folder)
    return folder


def _convert(source: Path, folder: Path, side: int, hold_out: float | None) -> None:
    options = () if hold_out is None else ("--hold-out", hold_out)
    _prep("convert", source, "--out", folder, "--side", side, "--fit", "squash", *options)


def _prep(*arguments: object) -> None:
    """Run udkd data as a process, which needs no torch."""
    _heading("images", f"udkd data {' '.join(map(str, arguments))}")
    levels = [option for option, given in (("--quiet", err.quiet), ("--verbose", err.verbose)) if given]
    code = subprocess.run(
        module_command("udkd.data_prep", [*levels, *arguments]), env=module_environment(), check=False
    ).returncode
    if code:
        raise typer.Exit(code)  # it has printed the reason


def _fit(dataset: "DatasetFolder", recipe: "Recipe", teacher: Path, device: "torch.device", observer: RichObserver) -> None:
    from udkd.teacher.folder import new_teacher
    from udkd.training.make_teacher import evaluate_and_write, from_run
    from udkd.training.run_folder import RunFolder

    if (teacher / "teacher.json").exists():
        err.print("already done")
        return
    teacher_recipe = recipe.for_teacher()
    with new_teacher(teacher):
        _train(dataset, teacher_recipe, teacher / "run", device, observer)
        candidate = from_run(RunFolder.open(teacher / "run"), None, [entry.wnid for entry in dataset.classes])
        evaluate_and_write(teacher, candidate, dataset, teacher_recipe, device, observer)


def _train(
    dataset: "DatasetFolder",
    recipe: "Recipe",
    run: Path,
    device: "torch.device",
    observer: RichObserver,
    *,
    cache: Path | None = None,
    teacher: Path | None = None,
) -> None:
    from udkd.training.trainer import TrainJob, train

    with stop_requests() as stopped:
        outcome = train(
            TrainJob(
                recipe=recipe,
                data=dataset.path,
                out=run,
                device=device,
                cache=cache,
                teacher=teacher,
                resume=(run / "config.json").exists(),
                observer=observer,
                stopped=stopped,
            )
        )
    if not outcome.finished:
        err.print(f"stopped after step {outcome.step}, at a checkpoint; the same command resumes")
        raise typer.Exit(stopped.exit_code)
