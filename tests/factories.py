"""Small real inputs for tests: a dataset folder, a teacher, a recipe."""

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from tests.build_once import build_once
from udkd.config.loading import load_recipe
from udkd.config.recipe import Recipe
from udkd.data.dataset import DatasetFolder
from udkd.data_prep.convert import ConvertSettings, convert
from udkd.losses.methods.registry import METHODS, MethodsSection
from udkd.models.build import build
from udkd.teacher.folder import TeacherFolder, write_teacher
from udkd.utils.files import write_bytes
from udkd.utils.json_checksum import dump_checked, load_checked
from udkd.utils.progress import SILENT

CLASSES = ("ant", "bee", "cat", "dog")


def make_images(folder: Path, per_class: int = 24, val_per_class: int = 6, side: int = 36) -> Path:
    """An ImageFolder tree of small JPEGs whose colour identifies the class."""
    rng = np.random.default_rng(0)
    for split, count in (("train", per_class), ("val", val_per_class)):
        for label, name in enumerate(CLASSES):
            class_folder = folder / split / name
            class_folder.mkdir(parents=True)
            for n in range(count):
                height, width = rng.integers(side // 2, side + 1, 2)
                pixels = rng.integers(0, 120, (height, width, 3)) + np.array([60 * (label & 1), 120 * (label >> 1), 20 * label])
                data = io.BytesIO()
                Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(data, "JPEG", quality=90)
                (class_folder / f"{n:03d}.jpg").write_bytes(data.getvalue())
    return folder


def make_dataset(folder: Path, side: int = 36, **images: int) -> DatasetFolder:
    """A dataset folder of `make_images`, padded, with the resident format."""

    def make(folder: Path) -> None:
        convert([make_images(folder / "images", **images)], folder / "data", ConvertSettings(side=side), SILENT)

    build_once("-".join(["data", str(side), *(f"{name}{count}" for name, count in sorted(images.items()))]), make, folder)
    return DatasetFolder.open(folder / "data")


def make_teacher(folder: Path, dataset: DatasetFolder, seed: int = 0, image_px: int = 32) -> TeacherFolder:
    """An untrained teacher with confident predictions: a SqueezeNet, fast on any machine."""
    model = build("squeezenet1_1", len(dataset.classes), image_px=image_px, seed=seed)
    weights = model.state_dict()
    weights["classifier.1.weight"] = weights["classifier.1.weight"] * 40 + torch.arange(4.0).view(4, 1, 1, 1) * 0.01
    classes = [name.wnid for name in dataset.classes]
    return write_small_teacher(folder, weights, "squeezenet1_1", classes, image_px=image_px)


def write_small_teacher(
    folder: Path, weights: dict[str, torch.Tensor], architecture: str, classes: Sequence[str], **more: Any
) -> TeacherFolder:
    """A teacher folder for images of 32 px."""
    described = {"image_px": 32, "resize_px": 36, "scheme": "centre", "accuracy": {}, "made": {}} | more
    return write_teacher(folder, weights, architecture=architecture, classes=tuple(classes), **described)


def rewrite_json(path: Path, changed: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Rewrite a JSON file with changed values and a matching checksum, as an attacker would."""
    write_bytes(path, dump_checked(changed(load_checked(path.read_bytes()))))


def unregister_method(name: str) -> None:
    """Undo the registration of a method, which is for the rest of the process."""
    del METHODS[name], MethodsSection.__pydantic_fields__[name]
    MethodsSection.model_rebuild(force=True)
    Recipe.model_rebuild(force=True)


SMALL = (
    "train.batch_size=8",
    "teacher.batch_size=8",
    "train.epochs=3",
    "train.threads=1",
    "students=[{architecture='squeezenet1_1', lr=0.01}, {architecture='squeezenet1_0', lr=0.002}]",
)
"""Overrides of the smoke recipe: batch 8, three epochs, one thread, two students with dropout and few weights."""

BATCH_NORM = "students=[{architecture='squeezenet1_1', lr=0.01}, {architecture='mobilenet_v2', lr=0.05}]"
"""Students with batch norm, for tests of running statistics; a step takes three times as long."""


def small_recipe(*overrides: str) -> Recipe:
    """The smoke recipe with SMALL and further overrides."""
    return load_recipe("smoke", [*SMALL, *overrides])
