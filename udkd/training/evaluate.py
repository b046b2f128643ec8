"""Accuracy and predictions of a run's students, of their averaged probabilities, and of their teacher."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from udkd.augment.view_table import EpochViews
from udkd.config.recipe import Recipe
from udkd.data.backends.registry import open_backend
from udkd.data.dataset import DatasetFolder, Split
from udkd.models.build import num_parameters
from udkd.teacher.folder import TeacherFolder
from udkd.teacher.frozen import FrozenTeacher, require_same_classes
from udkd.training.prediction_collector import PredictionCollector, cached_targets
from udkd.training.predictions import Predictions, TeacherPredictions, TopPredictions, write_predictions
from udkd.training.run_folder import RunFolder
from udkd.training.scoring import Score, Scores, score
from udkd.training.student import Student, make_students
from udkd.utils.environment import prepare_device, set_threads
from udkd.utils.errors import MismatchError, UserError
from udkd.utils.progress import SILENT, Observer


def evaluate(
    run: RunFolder | str | Path,
    *,
    data: str | Path | None = None,
    teacher: str | Path | None = None,
    device: torch.device | str = "auto",
    observer: Observer = SILENT,
    cache: str | Path | None = None,
) -> dict[str, Any]:
    """Score the run's newest checkpoint on the validation split; write predictions.safetensors, then eval.json.

    data, teacher, cache: their current paths, if they have moved. Returns the content of eval.json. A trainer may be running.
    UserError: data, teacher, cache or checkpoint that are not the run's. BusyError: another process evaluates the run.

        udkd.evaluate("run")["students"][0]["top1"]  # percent
    """
    run = run if isinstance(run, RunFolder) else RunFolder.open(Path(run))
    data, teacher, cache = (folder if folder is None else Path(folder) for folder in (data, teacher, cache))
    with run.evaluating():
        return _evaluate(run, data=data, teacher=teacher, device=prepare_device(device), observer=observer, cache=cache)


def _evaluate(
    run: RunFolder, *, data: Path | None, teacher: Path | None, device: torch.device, observer: Observer, cache: Path | None
) -> dict[str, Any]:
    recipe = Recipe.from_stored(run.config, str(run.path))
    set_threads(recipe.train.threads)
    provenance = run.provenance
    dataset = DatasetFolder.open(data or Path(provenance["dataset"]))
    if dataset.digest != provenance["dataset_digest"]:
        fields = [("dataset_digest", provenance["dataset_digest"], dataset.digest)]
        raise MismatchError(f"the run in {run.path}", fields, "evaluate on the data it was trained on")
    checkpoint, split = run.load(), dataset.split("val")
    steps_per_epoch = len(dataset.split("train").ids) // recipe.train.batch_size
    checkpoint.require_counts(batch=recipe.train.batch_size, epochs=recipe.train.epochs, steps_per_epoch=steps_per_epoch)
    students = make_students(recipe, len(dataset.classes), device)
    for student in students:
        student.restore_weights(dict(checkpoint.tensors), f"the checkpoint in {run.path}")
        student.eval_model.eval()
    folder = _teacher_folder(teacher, provenance)
    frozen = None if folder is None else _frozen(folder, dataset, recipe, device)
    step = checkpoint.progress.step
    started = recipe.started_students(step, steps_per_epoch)
    scored = _scored(students, started, frozen, recipe, split, device, observer)
    predictions = Predictions(
        dataset_digest=dataset.digest,
        step=step,
        num_classes=len(dataset.classes),
        ids=split.ids,
        labels=split.labels[split.ids].astype(np.int64),
        names=tuple(student.name for student in students),
        students=scored.predictions,
        average=scored.average,
        teacher_name=frozen.architecture if frozen else None,
        teacher=scored.teacher_predictions,
        targets=_training_targets(dataset, provenance, cache, observer),
    )
    result = {
        "split": "val",
        "num_samples": len(split.ids),
        "num_classes": len(dataset.classes),
        "step": step,
        "students": [
            {"name": student.name, "parameters": num_parameters(student.model)} | value.to_dict()
            for student, value in zip(students, scored.students.each, strict=True)
        ],
        "ensemble": scored.students.ensemble.to_dict(),
        "teacher": None
        if frozen is None or scored.teacher is None
        else {"name": frozen.architecture, "parameters": num_parameters(frozen.model)} | scored.teacher.to_dict(),
        "predictions_sha256": write_predictions(run.predictions_path, predictions),
    }
    run.write_evaluation(result)
    return result


@dataclass(frozen=True, kw_only=True, eq=False)
class _Scored:
    """Accuracies and predictions of the students, of their average, and of the teacher (None without one)."""

    students: Scores
    predictions: tuple[TopPredictions, ...]
    average: TopPredictions
    teacher: Score | None
    teacher_predictions: TopPredictions | None


def _scored(
    students: Sequence[Student],
    started: list[int],
    frozen: FrozenTeacher | None,
    recipe: Recipe,
    split: Split,
    device: torch.device,
    observer: Observer,
) -> _Scored:
    """Run every network on each image of the split once. started: indices of the students whose probabilities are averaged."""
    backend = open_backend(recipe.data.backend, split, device, workers=recipe.data.workers)
    views = EpochViews(recipe.evaluation_spec, 0, split, device)
    collector, teacher_collector = PredictionCollector(), PredictionCollector()
    observer.start("evaluation", len(split.ids) * (1 if frozen is None else 2), "images")
    try:
        options: dict[str, Any] = {"on_batch": observer.advance, "on_log_p": collector.add}
        options |= {"batch": recipe.train.batch_size, "precision": recipe.train.precision}
        scores = score(
            [student.eval_model for student in students],
            backend,
            split.ids,
            views,
            preprocessing=tuple(student.preprocessing for student in students),
            flip=recipe.evaluation.flip_tta,
            ensemble=started,
            **options,
        )
        teacher_scores = None
        if frozen is not None:
            options |= {"batch": frozen.batch, "precision": frozen.precision, "on_log_p": teacher_collector.add}
            views = EpochViews(recipe.teacher_evaluation_spec, 0, split, device)
            options["preprocessing"] = (frozen.input.preprocessing,)
            teacher_scores = score([frozen.model], backend, split.ids, views, **options)
    finally:
        backend.close()
        observer.finish()
    *predictions, average = collector.predictions()
    return _Scored(
        students=scores,
        predictions=tuple(predictions),
        average=average,
        teacher=None if teacher_scores is None else teacher_scores.each[0],
        teacher_predictions=None if teacher_scores is None else teacher_collector.predictions()[0],
    )


def _training_targets(
    dataset: DatasetFolder, provenance: dict[str, Any], cache: Path | None, observer: Observer
) -> TeacherPredictions | None:
    """The cached teacher's predictions for the training images. An unusable cache is an error only if the caller named it."""
    if "cache" not in provenance:
        return None
    try:
        return cached_targets(dataset.split("train"), provenance, cache)
    except (UserError, OSError) as error:
        if cache is not None:
            raise
        observer.note(f"left out the teacher's predictions for the training images: {error}")
        return None


def _frozen(folder: TeacherFolder, dataset: DatasetFolder, recipe: Recipe, device: torch.device) -> FrozenTeacher:
    """The teacher as it ran in training: with the recipe's batch size and precision."""
    require_same_classes(folder, dataset)
    return FrozenTeacher.load(
        folder,
        device=device,
        batch=recipe.teacher.batch_size,
        precision=recipe.teacher.precision,
        image_px=recipe.teacher_px,
    )


def _teacher_folder(teacher: Path | None, provenance: dict[str, Any]) -> TeacherFolder | None:
    """The folder `teacher`, else the recorded one if it still exists. MismatchError: not the run's teacher."""
    recorded = provenance.get("teacher")
    if teacher is None and (recorded is None or not Path(recorded).is_dir()):
        return None
    folder = TeacherFolder.open(teacher or Path(str(recorded)))
    sha256 = provenance.get("teacher_sha256") or provenance.get("cache_key", {}).get("teacher_sha256")
    if sha256 not in (None, folder.info.weights_sha256):
        fields = [("teacher_sha256", sha256, folder.info.weights_sha256)]
        raise MismatchError(f"the teacher in {folder.path}", fields, "name the teacher of this run")
    return folder
