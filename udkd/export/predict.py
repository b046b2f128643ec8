"""A trained student's predictions for image files, with the preprocessing of evaluation."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from udkd.augment import apply as augment
from udkd.augment.apply import ViewTable
from udkd.augment.preprocessing import IMAGENET, Preprocessing
from udkd.augment.views import ViewSpec, draw_views
from udkd.data.dataset import DatasetFolder
from udkd.data.image_files import read_image_file
from udkd.training.run_folder import RunFolder
from udkd.training.trained import TrainedClassifier
from udkd.utils.errors import UserError


@dataclass(frozen=True, kw_only=True)
class ClassProbability:
    """A class, by wnid and readable name, and its probability in percent."""

    wnid: str
    name: str
    percent: float


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """The most probable classes of one image, best first, or why it could not be read."""

    image: Path
    classes: tuple[ClassProbability, ...] = ()
    error: str = ""


def predict(trained: TrainedClassifier, images: Sequence[Path], names: Sequence[str], *, top: int = 5) -> list[Prediction]:
    """Predict the `top` most probable classes of image files, one by one. names: of the classes, in order."""
    predictions = []
    for image in images:
        try:
            x_1CHW = evaluation_input(read_image_file(image), trained.recipe.evaluation_spec, trained.preprocessing)
        except UserError as error:
            predictions.append(Prediction(image=image, error=str(error)))
            continue
        with torch.no_grad():
            p_C = trained.model(x_1CHW).float().softmax(-1)[0]
        best = p_C.topk(min(top, len(p_C)))
        classes = tuple(
            ClassProbability(wnid=trained.classes[index], name=names[index], percent=100 * probability)
            for probability, index in zip(best.values.tolist(), best.indices.tolist(), strict=True)
        )
        predictions.append(Prediction(image=image, classes=classes))
    return predictions


def evaluation_input(pixels_hw3: np.ndarray, spec: ViewSpec, preprocessing: Preprocessing = IMAGENET) -> Tensor:
    """One image, uint8 [h, w, 3], as evaluation's input: float32 [1, 3, O, O].

    The image is placed on a canvas of its own size, to which evaluation's view and augmentation are applied.
    """
    height, width = pixels_hw3.shape[:2]
    side = max(height, width)
    canvas = np.zeros((1, side, side, 3), np.uint8)
    canvas[0, :height, :width] = pixels_hw3
    sizes = np.array([[height, width, height, width]], np.int64)
    table = ViewTable.of(draw_views(spec, 0, 0, np.zeros(1, np.int64), sizes))
    return augment.apply(torch.from_numpy(canvas), table, spec, preprocessing).contiguous()


def readable_class_names(run: RunFolder, classes: Sequence[str]) -> list[str]:
    """Readable class names from the run's dataset folder if it still exists, else the wnids."""
    try:
        dataset = DatasetFolder.open(Path(run.provenance["dataset"]))
    except (UserError, OSError):
        return list(classes)
    names = {entry.wnid: entry.name for entry in dataset.classes}
    return [names.get(wnid, wnid) for wnid in classes]
