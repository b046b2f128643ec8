"""Teachers: trained here, taken from torchvision's pretrained classifiers, or taken from a run of ours."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http.client import HTTPException
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
import torchvision
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor, nn

from udkd.backends import open_backend
from udkd.engine.scoring import score
from udkd.formats.config import Recipe
from udkd.formats.dataset import DatasetFolder
from udkd.formats.run import RunFolder
from udkd.formats.teacher import TeacherFolder, require_classes, write_teacher
from udkd.operations.models import build, first_difference
from udkd.parts.environment import set_threads
from udkd.parts.epoch_views import EpochViews
from udkd.parts.students import prefixed
from udkd.words.errors import DataError, RunError
from udkd.words.losses import HardLoss
from udkd.words.observer import Observer

IMAGENET_CLASSES = 1000


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """Weights that are to become a teacher. loss: they were fitted with."""

    architecture: str
    weights: Mapping[str, Tensor]
    made: Mapping[str, Any]
    loss: HardLoss = "cross_entropy"


def from_run(run: RunFolder, student: str | None, classes: Sequence[str]) -> Candidate:
    """One student of a run of ours, by name (it may be left out where there is one). `classes` of the data it should teach."""
    recipe = Recipe.of(run.config, str(run.path))
    names = recipe.student_names()
    if (student is None and len(names) > 1) or (student is not None and student not in names):
        raise RunError(f"{run.path} holds the students {', '.join(names)}, asked for {student}; name one with --student")
    index = 0 if student is None else names.index(student)
    require_classes(f"the run in {run.path}", run.classes or classes, classes, "take a run on this data set")
    tensors = dict(run.load().tensors)
    weights = prefixed(tensors, f"average.{index}.") or prefixed(tensors, f"student.{index}.")
    return Candidate(
        architecture=recipe.students[index].architecture,
        weights=weights,
        made={"run": str(run.path.resolve()), "student": names[index], "recipe": run.config},
        loss=recipe.loss.hard,
    )


def from_imagenet(architecture: str, weights_file: Path | None, classes: Sequence[str]) -> Candidate:
    """Torchvision's pretrained classifier with the head's rows of `classes` (wnids), in their order.

    weights_file: a local .safetensors, or .pth as torchvision publishes (read without unpickling objects); None downloads.
    Raises DataError: a class that is none of ILSVRC2012's, no network, a file of another architecture.
    """
    rows = imagenet_rows(classes)
    model = build(architecture, IMAGENET_CLASSES, image_px=224, seed=0)
    if weights_file is None:
        state, origin = _download(architecture), "torchvision's default weights"
    else:
        state, origin = read_weights(weights_file), str(weights_file.resolve())
    difference = first_difference(state, model.state_dict())
    if difference:
        raise DataError(f"{origin} does not fit {architecture} with 1000 classes ({difference}); name its --architecture")
    model.load_state_dict(state)
    head = _head(model)
    picked = {name: value[rows] if name.startswith(head + ".") else value for name, value in model.state_dict().items()}
    return Candidate(architecture=architecture, weights=picked, made={"weights": origin, "rows_of_1000": rows})


def imagenet_rows(classes: Sequence[str]) -> list[int]:
    """Index of each wnid among ILSVRC2012's 1,000 sorted ones: the order that pretrained classifiers use."""
    text = (files("udkd") / "data" / "imagenet1k-classes.tsv").read_text()
    index = {line.split("\t")[0]: row for row, line in enumerate(text.splitlines())}
    missing = [wnid for wnid in classes if wnid not in index]
    if missing:
        raise DataError(
            f"{len(missing)} of {len(classes)} classes are none of ImageNet's ({', '.join(missing[:3])}); "
            "expected wnids such as n01440764; fit a teacher on this data instead"
        )
    return [index[wnid] for wnid in classes]


def read_weights(file: Path) -> dict[str, Tensor]:
    """A state dict from .safetensors or .pth; only tensors are read, whatever else the file holds is refused."""
    if not file.is_file():
        raise DataError(f"{file} is no file; expected weights as .safetensors or .pth; check the path")
    try:
        if file.suffix == ".safetensors":
            return load(file.read_bytes())
        state = torch.load(file, map_location="cpu", weights_only=True)
    except SafetensorError as error:
        raise DataError(f"{file} is no safetensors file ({error}); check where it is from") from None
    except Exception as error:  # torch.load raises whatever the damage causes
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"{file} cannot be read as weights ({reason}); expected a state dict of tensors") from None
    if not isinstance(state, dict) or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items()):
        raise DataError(f"{file} holds no state dict; expected tensors by name; save model.state_dict()")
    return state


def write_measured(
    path: Path, candidate: Candidate, dataset: DatasetFolder, recipe: Recipe, device: torch.device, observer: Observer
) -> TeacherFolder:
    """Measure a candidate on the validation split in the recipe's evaluation view, and write its folder."""
    split = dataset.split("val")
    if len(split.ids) == 0:
        raise DataError(f"{dataset.path} has no validation images; expected some to measure on; convert with --hold-out")
    set_threads(recipe.train.threads)
    model = build(candidate.architecture, len(dataset.classes), image_px=recipe.views.size_px, seed=0)
    difference = first_difference(candidate.weights, model.state_dict())
    if difference:
        raise DataError(
            f"the weights do not fit {candidate.architecture} ({difference}); expected its own; name another source"
        )
    model.load_state_dict(dict(candidate.weights))
    model.eval().to(device)
    backend = open_backend(recipe.data.backend, split, device, workers=recipe.data.workers)
    observer.start("teacher's accuracy", len(split.ids), "images")
    try:
        scores = score(
            [model],
            backend,
            split.ids,
            EpochViews(recipe.evaluation_spec, 0, split, device),
            batch=recipe.teacher.batch,
            autocast=recipe.teacher.precision == "bfloat16",
            on_batch=observer.advance,
        )
    finally:
        backend.close()
        observer.finish()
    spec = recipe.evaluation_spec
    return write_teacher(
        path,
        candidate.weights,
        architecture=candidate.architecture,
        classes=tuple(name.wnid for name in dataset.classes),
        image_px=spec.size_px,
        resize_px=spec.resize_px,
        scheme=spec.scheme,
        accuracy={"top1": scores.each[0].top1, "top5": scores.each[0].top5},
        made=candidate.made,
        loss=candidate.loss,
    )


def _download(architecture: str) -> dict[str, Tensor]:
    try:
        weights = torchvision.models.get_model_weights(architecture).DEFAULT
        state: dict[str, Tensor] = weights.get_state_dict(progress=False, check_hash=True)
    except ValueError:
        raise DataError(f"torchvision has no pretrained {architecture}; expected one such as resnet50") from None
    except (OSError, HTTPException, RuntimeError) as error:  # RuntimeError: the hash of what came is not the published one
        raise DataError(
            f"torchvision's {architecture} could not be downloaded ({error}); expected a network; "
            "bring the file and name it with --weights"
        ) from None
    return state


def _head(model: nn.Module) -> str:
    """Name of the layer that gives the logits: the last one with 1,000 outputs."""
    names: list[str] = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d) and module.weight.shape[0] == IMAGENET_CLASSES
    ]
    assert names, "a classifier of 1000 classes has a layer with 1000 outputs"
    return names[-1]
