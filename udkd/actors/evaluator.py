"""Accuracy of a run's students, of their averaged probabilities, and of their teacher."""

from pathlib import Path
from typing import Any

import torch

from udkd.backends import open_backend
from udkd.engine.scoring import score
from udkd.formats.config import Recipe
from udkd.formats.dataset import DatasetFolder
from udkd.formats.run import RunFolder
from udkd.formats.teacher import TeacherFolder
from udkd.operations.models import num_parameters
from udkd.parts.environment import set_threads
from udkd.parts.epoch_views import EpochViews
from udkd.parts.frozen_teacher import FrozenTeacher, require_same_classes
from udkd.parts.students import make_students
from udkd.words.errors import MismatchError
from udkd.words.observer import Observer


def evaluate(
    run: RunFolder, *, data: Path | None, teacher: Path | None, device: torch.device, observer: Observer
) -> dict[str, Any]:
    """Score the run's newest checkpoint on the validation split and write eval.json.

    data, teacher: where they lie now, if not where the run found them. Raises UserError kin for what does not fit.
    """
    recipe = Recipe.of(run.config, str(run.path))
    set_threads(recipe.train.threads)
    provenance = run.provenance
    dataset = DatasetFolder.open(data or Path(provenance["dataset"]))
    if dataset.digest != provenance["dataset_digest"]:
        fields = [("dataset_digest", provenance["dataset_digest"], dataset.digest)]
        raise MismatchError(f"the run in {run.path}", fields, "evaluate on the data it was trained on")
    checkpoint = run.load()
    students = make_students(recipe, len(dataset.classes), device)
    for student in students:
        student.restore(dict(checkpoint.tensors))
        student.model.eval()
    folder = _teacher_folder(teacher, provenance)
    models = [student.model for student in students]
    frozen = None if folder is None else _frozen(folder, dataset, recipe, device)
    split = dataset.split("val")
    backend = open_backend(recipe.data.backend, split, device, workers=recipe.data.workers)
    views = EpochViews(recipe.evaluation_spec, 0, split, device)
    observer.start("evaluation", len(split.ids) * (1 if frozen is None else 2), "images")
    try:
        options: dict[str, Any] = {"batch": recipe.train.batch, "autocast": recipe.train.precision == "bfloat16"}
        scores = score(models, backend, split.ids, views, on_batch=observer.advance, **options)
        taught = None
        if frozen is not None:
            options = {"batch": frozen.batch, "autocast": frozen.precision == "bfloat16"}
            taught = score([frozen.model], backend, split.ids, views, on_batch=observer.advance, **options)
    finally:
        backend.close()
        observer.finish()
    result = {
        "split": "val",
        "num_samples": len(split.ids),
        "num_classes": len(dataset.classes),
        "step": checkpoint.progress["step"],
        "students": [
            {"name": student.name, "parameters": num_parameters(student.model)} | value.to_dict()
            for student, value in zip(students, scores.each, strict=True)
        ],
        "ensemble": scores.ensemble.to_dict(),
        "teacher": None
        if frozen is None or taught is None
        else {"name": frozen.architecture, "parameters": num_parameters(frozen.model)} | taught.each[0].to_dict(),
    }
    run.write_evaluation(result)
    return result


def _frozen(folder: TeacherFolder, dataset: DatasetFolder, recipe: Recipe, device: torch.device) -> FrozenTeacher:
    """The teacher as it taught: its batch and precision are the recipe's."""
    require_same_classes(folder, dataset)
    return FrozenTeacher.load(
        folder,
        device=device,
        batch=recipe.teacher.batch,
        precision=recipe.teacher.precision,
        image_px=recipe.views.size_px,
    )


def _teacher_folder(teacher: Path | None, provenance: dict[str, Any]) -> TeacherFolder | None:
    """The teacher that was named now, or the one the run recorded if it is still there; it must be the one that taught."""
    recorded = provenance.get("teacher")
    if teacher is None and (recorded is None or not Path(recorded).is_dir()):
        return None
    folder = TeacherFolder.open(teacher or Path(str(recorded)))
    taught = provenance.get("teacher_sha256") or provenance.get("cache_key", {}).get("teacher_sha256")
    if taught not in (None, folder.info.weights_sha256):
        fields = [("teacher_sha256", taught, folder.info.weights_sha256)]
        raise MismatchError(f"the teacher in {folder.path}", fields, "name the teacher that taught this run")
    return folder
