"""`udkd.import_teacher`: a network's weights as a teacher folder, in one call."""

from pathlib import Path

import torch

from udkd.augment.preprocessing import Preprocessing
from udkd.config.loading import load_recipe
from udkd.config.recipe import Recipe
from udkd.data.dataset import DatasetFolder
from udkd.teacher.folder import TeacherFolder, new_teacher
from udkd.training.make_teacher import evaluate_and_write, from_weights
from udkd.utils.environment import prepare_device
from udkd.utils.progress import SILENT, Observer


def import_teacher(
    out: str | Path,
    *,
    data: DatasetFolder | str | Path,
    model: str,
    weights: str | Path | None = None,
    entry: str | None = None,
    preprocessing: Preprocessing | None = None,
    recipe: Recipe | str | Path = "imagenet100-paper",
    device: torch.device | str = "auto",
    observer: Observer = SILENT,
) -> TeacherFolder:
    """Make a teacher folder `out` of a pretrained network, as `udkd teacher import` does, and measure its accuracy.

    data: the dataset whose classes it predicts. model: torchvision's name, timm/NAME or package.module:function.
    weights: a .safetensors or .pth file; None for published ones, or those that the function returns. entry: which of several
    state dicts in the file. preprocessing: of its input; None for the weights' or the network's own.
    recipe: its teacher.size_px is the size of the input, and its evaluation view is what accuracy is measured on.
    Raises the UserErrors of udkd.training.make_teacher.from_weights; RunError: `out` holds something already.

        udkd.import_teacher("teacher", data="data", model="timm/vit_tiny_patch16_224", weights="finetuned.pth")
    """
    recipe = recipe if isinstance(recipe, Recipe) else load_recipe(recipe)
    dataset = data if isinstance(data, DatasetFolder) else DatasetFolder.open(Path(data))
    with new_teacher(Path(out)):
        candidate = from_weights(
            model,
            None if weights is None else Path(weights),
            [entry.wnid for entry in dataset.classes],
            [entry.name for entry in dataset.classes],
            entry,
            image_px=recipe.teacher_px,
            preprocessing=preprocessing,
        )
        for note in candidate.notes:
            observer.note(note)
        written = evaluate_and_write(Path(out), candidate, dataset, recipe, prepare_device(device), observer)
    if "rows" in candidate.made and written.info.accuracy["top1"] <= 150 / len(dataset.classes):
        observer.note(
            f"warning: top-1 {written.info.accuracy['top1']:.2f} % is hardly better than chance: are the outputs of these "
            "weights these classes, in this order?"
        )
    return written
