"""`udkd.train`: training in one call. udkd.training.trainer has every option."""

import contextlib
from collections.abc import Sequence
from pathlib import Path

import torch

from udkd.config.loading import load_recipe
from udkd.config.recipe import Recipe
from udkd.training import trainer
from udkd.training.make_targets import with_targets
from udkd.training.trainer import TrainJob, TrainResult
from udkd.utils.environment import prepare_device
from udkd.utils.progress import SILENT, Observer
from udkd.utils.terminal import observed


def train(
    recipe: Recipe | str | Path = "imagenet100-paper",
    *,
    data: str | Path,
    out: str | Path,
    teacher: str | Path | None = None,
    students: Sequence[str] | None = None,
    cache: str | Path | None = None,
    device: torch.device | str = "auto",
    resume: bool = False,
    extend: int = 0,
    progress: bool = False,
    observer: Observer = SILENT,
) -> TrainResult:
    """Train a recipe's students together, as `udkd train` does; the results are in the run folder `out`.

    recipe: also a shipped recipe's name, or a TOML file. students: architectures that replace the recipe's students; each has
    the settings of the recipe's student of the same architecture, or of its first.
    data, cache: folders. teacher: a folder, or a network with published weights, such as "timm/resnet50.a1_in1k", which is
    imported into out/teacher. Without `cache`, a recipe that needs one gets the teacher's in out/cache. A recipe with
    teacher.source = "live" needs no cache, one with "none" no teacher.
    resume: continue the run in `out`, if there is one; extend: to so many epochs. progress: show a bar and notes on stderr or
    in the notebook, in place of `observer`. Raises the UserErrors of udkd.training.trainer.train.

        udkd.train(data="data", teacher="timm/resnet50.a1_in1k", students=["resnet18", "mobilenet_v2"], out="run")
    """
    recipe = recipe if isinstance(recipe, Recipe) else load_recipe(recipe)
    recipe = recipe if students is None else recipe.with_students(students)
    with observed() if progress else contextlib.nullcontext(observer) as shown:
        job = TrainJob(
            recipe=recipe,
            data=Path(data),
            out=Path(out),
            device=prepare_device(device),
            cache=None if cache is None else Path(cache),
            resume=resume,
            extend=extend,
            observer=shown,
        )
        return trainer.train(with_targets(job, teacher))
