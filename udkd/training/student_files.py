"""RUN/students/NAME.safetensors: a student's evaluated weights under the names of its own network, for other libraries.

Written after the checkpoint at the end of each epoch, and again when a run resumes from there, so a file is the newest epoch's;
it says itself which (`epoch`, `step`). Stopped within an epoch, a run has a newer checkpoint than files.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from udkd.config.recipe import Recipe
from udkd.data.header import ClassName
from udkd.models.plain_weights import plain_weights
from udkd.utils.environment import package_version
from udkd.utils.files import write_bytes


def write_student(
    path: Path,
    weights: Mapping[str, Tensor],
    *,
    recipe: Recipe,
    index: int,
    classes: Sequence[ClassName],
    step: int,
    row: Mapping[str, Any] | None,
) -> None:
    """Write a student's weights with metadata, completely or not at all; `path`'s folder is made.

    row: of metrics.jsonl, where the weights are those at the end of an epoch.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    described = description(recipe, index, classes=classes, step=step, row=row)
    texts = {name: value if isinstance(value, str) else json.dumps(value) for name, value in described.items()}
    write_bytes(path, plain_weights(weights, texts))


def description(
    recipe: Recipe, index: int, *, classes: Sequence[ClassName], step: int, row: Mapping[str, Any] | None
) -> dict[str, Any]:
    """What a user of a student's weights needs to know, as JSON values.

    classes: wnid or folder name of each output. top1: validation accuracy in percent in the evaluation view, of the image and
    its mirror image averaged where flip_tta is true. top1 and epoch are absent without a row.
    """
    spec, preprocessing = recipe.evaluation_spec, recipe.student_preprocessing(index)
    score = None if row is None else row["val"]["students"][index]
    return {
        "architecture": recipe.students[index].architecture,
        "student": recipe.student_names()[index],
        "classes": [entry.wnid for entry in classes],
        "class_names": [entry.name for entry in classes],
        "image_px": spec.size_px,
        "resize_px": spec.resize_px,
        "scheme": spec.scheme,
        "mean": preprocessing.mean,
        "std": preprocessing.std,
        "interpolation": preprocessing.interpolation,
        "flip_tta": recipe.evaluation.flip_tta,
        "step": step,
        **({} if row is None or score is None else {"epoch": row["epoch"], "top1": score["top1"]}),
        "udkd_version": package_version("udkd"),
    }
