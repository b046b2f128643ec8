"""udkd train."""

from pathlib import Path
from typing import Annotated

import typer

from udkd.cli.outcome import end
from udkd.config.recipe import load_recipe
from udkd.training.trainer import TrainJob, train
from udkd.utils.environment import choose_device
from udkd.utils.terminal import BackendOption, DeviceOption, SetOption, observed, stop_requests


def train_command(
    recipe: Annotated[str, typer.Argument(help="A shipped recipe's name, or a .toml file.")],
    data: Annotated[Path, typer.Option("--data", help="Dataset folder, made by udkd-prep convert.")],
    out: Annotated[Path, typer.Option("--out", help="Run folder to make (or to go on with, with --resume).")],
    cache: Annotated[Path | None, typer.Option("--cache", help="Teacher cache, made by udkd cache build.")] = None,
    teacher: Annotated[
        list[Path] | None,
        typer.Option(help="Teacher folder: asked live, or held against the cache's key. Again for more of an ensemble."),
    ] = None,
    backend: BackendOption = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the newest checkpoint of OUT.")] = False,
    allow: Annotated[
        list[str] | None, typer.Option("--allow", help="A field of the cache's key that may differ, such as pixel_class.")
    ] = None,
    overrides: SetOption = None,
    device: DeviceOption = "auto",
) -> None:
    """Train the recipe's students together.

    Ctrl-C, SIGTERM or SIGHUP ends the run at a checkpoint; --resume goes on to the same bits.
    """
    chosen = [*(overrides or []), *([f'data.backend="{backend}"'] if backend else [])]
    with observed() as observer, stop_requests() as stopped:
        outcome = train(
            TrainJob(
                recipe=load_recipe(recipe, chosen),
                data=data,
                out=out,
                device=choose_device(device),
                cache=cache,
                teacher=teacher[0] if teacher else None,
                more_teachers=tuple(teacher[1:]) if teacher else (),
                resume=resume,
                allow=tuple(allow or ()),
                observer=observer,
                stopped=stopped,
            )
        )
    end(outcome, out, stopped.exit_code)
