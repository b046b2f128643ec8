"""Accuracy and predictions of a run's students, of their averaged probabilities, and of their teacher."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from udkd.augment.view_table import EpochViews
from udkd.config.recipe import Recipe
from udkd.data.backends.registry import open_backend
from udkd.data.dataset import DatasetFolder, Split
from udkd.models.build import num_parameters
from udkd.teacher.folder import TeacherFolder, require_classes
from udkd.teacher.frozen import FrozenTeacher
from udkd.training.checkpoints import Checkpoint
from udkd.training.other_data import OtherData, RelabelledBackend, SplitName
from udkd.training.prediction_collector import PredictionCollector, cached_targets
from udkd.training.predictions import Predictions, TeacherPredictions, TopPredictions, write_predictions
from udkd.training.run_folder import RunFolder
from udkd.training.scoring import Score, Scores, score
from udkd.training.student import Student, make_students
from udkd.utils.environment import prepare_device, set_threads
from udkd.utils.errors import ConfigError, MismatchError, RunError, UserError
from udkd.utils.progress import SILENT, Observer


def evaluate(
    run: RunFolder | str | Path,
    *,
    data: str | Path | None = None,
    teacher: str | Path | None = None,
    device: torch.device | str = "auto",
    observer: Observer = SILENT,
    cache: str | Path | None = None,
    split: SplitName | None = None,
    name: str = "",
    checkpoint: str = "last",
) -> dict[str, Any]:
    """Score a checkpoint of a run on the validation split; write predictions.safetensors, then eval.json.

    checkpoint: "last", "best" (train.keep_best) or a kept one's step as text.
    teacher, cache: their current paths, if they have moved. Returns the content of the JSON file. A trainer may be running.
    data: likewise, or other data of the run's classes, in any order, or of some of them: then only eval-NAME.json is written.
    split: of the data; None for val, or train where other data have no val images. name: of the results on other data; "" for
    the folder's name. With split="train" or a name, the run's own data count as other data.
    UserError: a teacher, cache or checkpoint that is not the run's, a class that the run lacks, results of that name on other
    images. BusyError: another process evaluates the run.

        udkd.evaluate("run")["students"][0]["top1"]  # percent
        udkd.evaluate("run", data="imagenetv2")["ensemble"]["top1"]
    """
    run = run if isinstance(run, RunFolder) else RunFolder.open(Path(run))
    data, teacher, cache = (folder if folder is None else Path(folder) for folder in (data, teacher, cache))
    device = prepare_device(device)
    with run.evaluating():
        dataset, digest = DatasetFolder.open(data or Path(run.provenance["dataset"])), run.provenance["dataset_digest"]
        if data is None and dataset.digest != digest:
            fields = [("dataset_digest", digest, dataset.digest)]
            raise MismatchError(f"the run in {run.path}", fields, "name the data with --data")
        if split == "train" or name or dataset.digest != digest:
            if cache is not None:
                raise ConfigError(f"--cache {cache} and other data; expected no cache, which is of the run's data; drop it")
            return _evaluate_other(run, checkpoint, dataset, split, name, teacher=teacher, device=device, observer=observer)
        return _evaluate(run, checkpoint, dataset, teacher=teacher, device=device, observer=observer, cache=cache)


def _evaluate(
    run: RunFolder,
    checkpoint_name: str,
    dataset: DatasetFolder,
    *,
    teacher: Path | None,
    device: torch.device,
    observer: Observer,
    cache: Path | None,
) -> dict[str, Any]:
    recipe = Recipe.from_stored(run.config, str(run.path))
    set_threads(recipe.train.threads)
    provenance = run.provenance
    checkpoint, split = run.load(checkpoint_name), dataset.split("val")
    steps_per_epoch = len(dataset.split("train").ids) // recipe.train.batch_size
    checkpoint.require_counts(batch=recipe.train.batch_size, epochs=recipe.train.epochs, steps_per_epoch=steps_per_epoch)
    students = _restored(run, recipe, checkpoint, len(dataset.classes), device)
    folder = _teacher_folder(teacher, provenance)
    frozen = None if folder is None else _frozen(folder, [entry.wnid for entry in dataset.classes], recipe, device)
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
        targets=_training_targets(recipe, dataset, provenance, cache, observer),
    )
    result = {
        "split": "val",
        "num_samples": len(split.ids),
        "num_classes": len(dataset.classes),
        "step": step,
        **_rows(students, scored, frozen),
        "predictions_sha256": write_predictions(run.predictions_path, predictions),
    }
    run.write_evaluation(result)
    return result


def _evaluate_other(
    run: RunFolder,
    checkpoint_name: str,
    dataset: DatasetFolder,
    split: SplitName | None,
    name: str,
    *,
    teacher: Path | None,
    device: torch.device,
    observer: Observer,
) -> dict[str, Any]:
    """Score a checkpoint on other data of the run's classes, and write eval-NAME.json."""
    recipe, classes = Recipe.from_stored(run.config, str(run.path)), run.classes
    if classes is None:
        raise RunError(f"{run.path / 'run.json'} does not name its classes; expected them in order; train again")
    set_threads(recipe.train.threads)
    other = OtherData.of(dataset, classes, split, name)
    other.require_no_others(run)
    checkpoint = run.load(checkpoint_name)
    checkpoint.require_counts(batch=recipe.train.batch_size, epochs=recipe.train.epochs)
    students = _restored(run, recipe, checkpoint, len(classes), device)
    folder = _teacher_folder(teacher, run.provenance)
    frozen = None if folder is None else _frozen(folder, classes, recipe, device)
    started = recipe.started_students(checkpoint.progress.step, checkpoint.progress.steps_per_epoch)
    if split is None and other.split.name == "train":
        observer.note(f"{dataset.path} has no val images; its train images are evaluated")
    if other.classes_present < len(classes):
        observer.note(
            f"{other.classes_present} of the run's {len(classes)} classes have images; all {len(classes)} outputs compete"
        )
    # Not the run's backend, whose files other data may lack.
    any_backend = recipe.model_copy(update={"data": recipe.data.model_copy(update={"backend": "auto"})})
    scored = _scored(students, started, frozen, any_backend, other.split, device, observer, outputs=other.outputs)
    result = {
        "name": other.name,
        "dataset": str(dataset.path.resolve()),
        "dataset_digest": dataset.digest,
        "split": other.split.name,
        "num_samples": len(other.split.ids),
        "num_classes": len(classes),
        "classes_present": other.classes_present,
        "step": checkpoint.progress.step,
        **_rows(students, scored, frozen),
    }
    run.write_other_evaluation(result)
    observer.note(f"results in {run.other_evaluation_path(other.name)}")
    return result


def _restored(run: RunFolder, recipe: Recipe, checkpoint: Checkpoint, num_classes: int, device: torch.device) -> list[Student]:
    """The students in evaluation mode, with a checkpoint's weights."""
    students = make_students(recipe, num_classes, device)
    for student in students:
        student.restore_weights(dict(checkpoint.tensors), f"the checkpoint in {run.path}")
        student.eval_model.eval()
    return students


def _rows(students: Sequence[Student], scored: "_Scored", frozen: FrozenTeacher | None) -> dict[str, Any]:
    """The scores of students, ensemble and teacher, as the JSON files hold them."""
    return {
        "students": [
            {"name": student.name, "parameters": num_parameters(student.model)} | value.to_dict()
            for student, value in zip(students, scored.students.each, strict=True)
        ],
        "ensemble": scored.students.ensemble.to_dict(),
        "teacher": None
        if frozen is None or scored.teacher is None
        else {"name": frozen.architecture, "parameters": num_parameters(frozen.model)} | scored.teacher.to_dict(),
    }


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
    *,
    outputs: Tensor | None = None,
) -> _Scored:
    """Run every network on each image of the split once. started: indices of the students whose probabilities are averaged.

    outputs: the output of each label, int64; None where they are the same.
    """
    backend = open_backend(recipe.data.backend, split, device, workers=recipe.data.workers)
    views = EpochViews(recipe.evaluation_spec, 0, split, device)
    source = backend if outputs is None else RelabelledBackend(backend, outputs)
    collector, teacher_collector = PredictionCollector(), PredictionCollector()
    observer.start("evaluation", len(split.ids) * (1 if frozen is None else 2), "images")
    try:
        options: dict[str, Any] = {"on_batch": observer.advance, "on_log_p": collector.add}
        options |= {"batch": recipe.train.batch_size, "precision": recipe.train.precision}
        scores = score(
            [student.eval_model for student in students],
            source,
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
            teacher_scores = score([frozen.model], source, split.ids, views, **options)
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
    recipe: Recipe, dataset: DatasetFolder, provenance: dict[str, Any], cache: Path | None, observer: Observer
) -> TeacherPredictions | None:
    """The cached teacher's predictions for the training images. An unusable cache is an error only if the caller named it."""
    if "cache" not in provenance:
        return None
    if recipe.views.spec.mixes:
        observer.note("left out the teacher's predictions for the training images: its targets are those of mixed samples")
        return None
    try:
        return cached_targets(dataset.split("train"), provenance, cache)
    except (UserError, OSError) as error:
        if cache is not None:
            raise
        observer.note(f"left out the teacher's predictions for the training images: {error}")
        return None


def _frozen(folder: TeacherFolder, classes: Sequence[str], recipe: Recipe, device: torch.device) -> FrozenTeacher:
    """The teacher as it ran in training: with the recipe's batch size and precision."""
    require_classes(f"the teacher in {folder.path}", folder.info.classes, classes, "use a teacher for the run's classes")
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
