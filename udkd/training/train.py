"""`udkd.train`: training in one call. udkd.training.trainer has every option."""

import contextlib
from pathlib import Path

import torch

from udkd.config.recipe import Recipe
from udkd.training import trainer
from udkd.training.trainer import TrainJob, TrainResult
from udkd.utils.environment import prepare_device
from udkd.utils.progress import SILENT, Observer
from udkd.utils.terminal import observed


def train(
    recipe: Recipe,
    *,
    data: str | Path,
    out: str | Path,
    cache: str | Path | None = None,
    teacher: str | Path | None = None,
    device: torch.device | str = "auto",
    resume: bool = False,
    extend: int = 0,
    progress: bool = False,
    observer: Observer = SILENT,
) -> TrainResult:
    """Train a recipe's students together, as `udkd train` does; the results are in the run folder `out`.

    data, cache, teacher: folders; whether a cache or a teacher is needed follows from recipe.teacher.source.
    resume: continue an existing run; extend: to so many epochs. progress: show a bar and notes on stderr or in the notebook, in
    place of `observer`. Raises the UserErrors of udkd.training.trainer.train.

        udkd.train(udkd.load_recipe("quickstart"), data="data", cache="cache", out="run")
    """
    with observed() if progress else contextlib.nullcontext(observer) as shown:
        return trainer.train(
            TrainJob(
                recipe=recipe,
                data=Path(data),
                out=Path(out),
                device=prepare_device(device),
                cache=None if cache is None else Path(cache),
                teacher=None if teacher is None else Path(teacher),
                resume=resume,
                extend=extend,
                observer=shown,
            )
        )
