"""udkd train."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from udkd.cli.arguments import BackendOption, DatasetOption, RecipeArgument, SetOption
from udkd.cli.summary import print_outcome
from udkd.utils.progress import SILENT
from udkd.utils.terminal import DeviceOption, explain_machine_error, observed, stop_requests


def train_command(
    recipe: RecipeArgument,
    data: DatasetOption,
    out: Annotated[Path, typer.Option("--out", metavar="RUN", help="Run folder to create, or to continue with --resume.")],
    cache: Annotated[
        Path | None, typer.Option("--cache", metavar="CACHE", help="Teacher cache, written by udkd cache build.")
    ] = None,
    teacher: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TEACHER",
            help="Teacher folder, or a network with published weights, such as timm/resnet50.a1_in1k: the live teacher, or "
            "that of the cache, which is built in RUN/cache unless --cache names it. Repeat it with folders for an ensemble.",
        ),
    ] = None,
    backend: BackendOption = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue from the newest checkpoint in RUN; where there is no run yet, begin one.")
    ] = False,
    extend: Annotated[
        int | None, typer.Option("--extend", min=1, metavar="EPOCHS", help="With --resume: train on to so many epochs.")
    ] = None,
    profile: Annotated[
        int | None, typer.Option("--profile", min=1, metavar="N", help="Write a trace of N steps to RUN/profile.")
    ] = None,
    allow: Annotated[
        list[str] | None,
        typer.Option(
            "--allow-mismatch",
            metavar="FIELD",
            help="Field of the cache's key that may differ from the run, such as pixel_class. May be repeated.",
        ),
    ] = None,
    overrides: SetOption = None,
    device: DeviceOption = "auto",
) -> None:
    """Train the recipe's students together.

    Ctrl-C, SIGTERM or SIGHUP stops the run at a checkpoint; --resume continues it to the same bits. Up to train.slices
    processes train one run together under torchrun: torchrun --nproc-per-node 4 -m udkd train ... --set train.slices=4
    """
    from udkd.config.loading import load_recipe
    from udkd.utils.workers import WorkerGroup

    group = WorkerGroup.join()
    with group.reports_once(explain_machine_error):
        settings = [*(overrides or []), *([f'data.backend="{backend}"'] if backend else [])]
        loaded = load_recipe(recipe, settings)  # before the imports that take seconds: a wrong key is reported at once
        from udkd.training.exchange import require_divisible
        from udkd.training.make_targets import with_targets
        from udkd.training.trainer import TrainJob, train
        from udkd.utils.environment import choose_device, set_cublas_workspace

        set_cublas_workspace(deterministic=loaded.train.deterministic)
        require_divisible(loaded.train, len(loaded.students), group.size)
        with observed() as observer:
            job = TrainJob(
                recipe=loaded,
                data=data,
                out=out,
                device=choose_device(group.device_name(device)),
                cache=cache,
                more_teachers=tuple(map(Path, teacher[1:])) if teacher else (),
                resume=resume,
                extend=extend or 0,
                profile=profile or 0,
                allow=tuple(allow or ()),
                observer=observer if group.is_main else SILENT,
                group=group,
            )
            job = with_targets(job, teacher[0] if teacher else None)  # a signal ends it at once: it resumes where it was
            with stop_requests(announce=group.is_main) as stopped:
                outcome = train(replace(job, stopped=stopped))
    if group.is_main or not outcome.finished:
        print_outcome(outcome, out, stopped.exit_code, announce=group.is_main)
