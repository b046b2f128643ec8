"""What a trained student says of pictures that are in no data set: by the code path of evaluation."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from udkd.augment import apply as augment
from udkd.augment.apply import ViewTable
from udkd.augment.views import ViewSpec, draw
from udkd.data.dataset import DatasetFolder
from udkd.data.image_files import read_picture
from udkd.training.run_folder import RunFolder
from udkd.training.trained import TrainedClassifier
from udkd.utils.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Guess:
    """wnid, name: of a class. percent: its probability."""

    wnid: str
    name: str
    percent: float


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """The likeliest classes of one picture, or why it could not be read."""

    image: Path
    guesses: tuple[Guess, ...] = ()
    error: str = ""


def predict(trained: TrainedClassifier, images: Sequence[Path], names: Sequence[str], *, top: int = 5) -> list[Prediction]:
    """Ask a trained network about picture files, one by one. names: of its classes, in order."""
    found = []
    for image in images:
        try:
            x_1CHW = evaluation_input(read_picture(image), trained.recipe.evaluation_spec)
        except UserError as error:
            found.append(Prediction(image=image, error=str(error)))
            continue
        with torch.no_grad():
            p_C = trained.model(x_1CHW).float().softmax(-1)[0]
        best = p_C.topk(min(top, len(p_C)))
        guesses = tuple(
            Guess(wnid=trained.classes[place], name=names[place], percent=100 * share)
            for share, place in zip(best.values.tolist(), best.indices.tolist(), strict=True)
        )
        found.append(Prediction(image=image, guesses=guesses))
    return found


def evaluation_input(pixels_hw3: np.ndarray, spec: ViewSpec) -> Tensor:
    """One picture, uint8 [h, w, 3], as a network sees it at validation: float32 [1, 3, O, O].

    The picture is put into a canvas of its own, then seen by the views and the augmentation that evaluation uses.
    """
    height, width = pixels_hw3.shape[:2]
    side = max(height, width)
    canvas = np.zeros((1, side, side, 3), np.uint8)
    canvas[0, :height, :width] = pixels_hw3
    sizes = np.array([[height, width, height, width]], np.int64)
    table = ViewTable.of(draw(spec, 0, 0, np.zeros(1, np.int64), sizes))
    return augment.apply(torch.from_numpy(canvas), table, spec).contiguous()


def class_names(run: RunFolder, classes: Sequence[str]) -> list[str]:
    """Names that people read, from the run's dataset folder if it is still there; else the wnids."""
    try:
        dataset = DatasetFolder.open(Path(run.provenance["dataset"]))
    except (UserError, OSError):
        return list(classes)
    names = {entry.wnid: entry.name for entry in dataset.classes}
    return [names.get(wnid, wnid) for wnid in classes]
