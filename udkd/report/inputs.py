"""What a report is made of, and how it is gathered from a run folder.

Nothing beyond `gather` opens a dataset, a cache or predictions.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from udkd.config.recipe import Recipe
from udkd.data.dataset import DatasetFolder, Split
from udkd.report.text import listed
from udkd.teacher.folder import TeacherFolder
from udkd.training.metrics import recorded_rows
from udkd.training.prediction_collector import cached_targets
from udkd.training.predictions import Predictions, TeacherPredictions, read_predictions
from udkd.training.run_folder import RunFolder
from udkd.utils.errors import MismatchError, RunError, UserError

THUMBNAIL_PX = 160


@dataclass(frozen=True, kw_only=True)
class DataFacts:
    """What a report says of the images. side: px of the stored canvas. imagenet100: the classes are the paper's."""

    train_images: int
    val_images: int
    num_classes: int
    side: int
    imagenet100: bool


@dataclass(frozen=True, kw_only=True, eq=False)
class Baseline:
    """Another run on the same data, to hold this one against, or several in one. config: its recipe as plain values.

    parts: the runs where there are several; their students stand one after the other, and have no average.
    sources: the name of each student's run, then.
    """

    name: str
    student_names: tuple[str, ...]
    architectures: tuple[str, ...]
    predictions: Predictions
    config: Mapping[str, Any]
    parts: tuple["Baseline", ...] = ()
    sources: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, eq=False)
class ReportInputs:
    """Everything a report shows; a part that is None is said to be missing, with its `why_no_…`.

    metrics: rows of metrics.jsonl. evaluation: eval.json. provenance: run.json. class_names: by label.
    thumbnail, val_thumbnail: id of a training or validation sample -> uint8 [h, w, 3] of the stored image.
    teacher: fields of teacher.json, as far as they are known. targets_from: where the targets are from, if not the cache.
    """

    name: str
    recipe: Recipe
    metrics: Sequence[Mapping[str, Any]]
    evaluation: Mapping[str, Any] | None
    provenance: Mapping[str, Any]
    class_names: tuple[str, ...]
    data: DataFacts | None
    targets: TeacherPredictions | None
    thumbnail: Callable[[int], NDArray[np.uint8]] | None
    teacher: Mapping[str, Any] | None
    out: Path
    why_no_data: str = ""
    why_no_targets: str = ""
    predictions: Predictions | None = None
    why_no_predictions: str = ""
    val_thumbnail: Callable[[int], NDArray[np.uint8]] | None = None
    baseline: Baseline | None = None
    targets_from: str = ""

    @property
    def student_names(self) -> list[str]:
        return self.recipe.student_names()


def gather(
    run_folder: Path, *, data: Path | None = None, cache: Path | None = None, baselines: Sequence[Path] = ()
) -> ReportInputs:
    """Collect a run's report. data, cache: where they lie now, if not where the run found them. baselines: other runs.

    Images or a cache that are gone, damaged or others than the run's, and predictions that are not there, become a sentence
    in the report, not an error. Raises RunError or ConfigError where a file of the run folder itself is damaged; RunError or
    MismatchError where a baseline was asked for and cannot be held against the run, or several leave a student without one;
    BusyError while udkd eval writes what is to be read.
    """
    run = RunFolder.open(run_folder)
    recipe = Recipe.stored(run.config, str(run_folder))
    metrics = run.metrics()
    if metrics and ("method" in metrics[0]["train"]) != ("method" in recorded_rows(recipe)):
        raise RunError(f"metrics.jsonl in {run_folder} is of another loss than config.json; expected one recipe's; train again")
    evaluation, predictions, why_no_predictions = _evaluated(run, recipe)
    others = [open_baseline(run, predictions, why_no_predictions, folder) for folder in baselines]
    inputs = ReportInputs(
        name=_name(run_folder.resolve()),
        recipe=recipe,
        metrics=metrics,
        evaluation=evaluation,
        provenance=run.provenance,
        class_names=(),
        data=None,
        targets=None,
        thumbnail=None,
        teacher=_teacher(run.provenance),
        out=run_folder / "report",
        predictions=predictions,
        why_no_predictions=why_no_predictions,
        baseline=together(recipe, others),
    )
    return _with_targets(_with_images(inputs, data), data, cache)


def open_baseline(run: RunFolder, predictions: Predictions | None, why_none: str, folder: Path) -> Baseline:
    """A run to hold `run` against. Raises RunError, MismatchError, ConfigError: none, no predictions, other data."""
    other = RunFolder.open(folder)
    if other.path.resolve() == run.path.resolve():
        raise RunError(f"the baseline {folder} is the run itself; expected another run; name the one to compare with")
    stored, wanted = other.provenance["dataset_digest"], run.provenance["dataset_digest"]
    if stored != wanted:
        fields = [("dataset_digest", stored, wanted)]
        raise MismatchError(f"the baseline in {folder}", fields, "name a run on the same data")
    if predictions is None:
        raise RunError(f"a baseline was named and {why_none}")
    recipe = Recipe.stored(other.config, str(folder))
    _, theirs, why_not = _evaluated(other, recipe)
    if theirs is None:
        raise RunError(f"a baseline was named and {why_not}")
    if not np.array_equal(theirs.ids, predictions.ids) or not np.array_equal(theirs.labels, predictions.labels):
        raise RunError(f"{folder} was evaluated on other images than {run.path}; expected the same; run udkd eval on both")
    return Baseline(
        name=_name(folder.resolve()),
        student_names=tuple(recipe.student_names()),
        architectures=tuple(student.architecture for student in recipe.students),
        predictions=theirs,
        config=recipe.to_dict(),
    )


def together(recipe: Recipe, baselines: Sequence[Baseline]) -> Baseline | None:
    """None, the only one, or several as one. Raises RunError where several leave a student without one, or one is of no use."""
    if len(baselines) < 2:
        return baselines[0] if baselines else None
    left = Counter(student.architecture for student in recipe.students)
    for baseline in baselines:
        found = left & Counter(baseline.architectures)
        if not found:
            raise RunError(
                f"the baseline {baseline.name} has {listed(list(baseline.architectures))}; expected a student of "
                f"{listed(sorted(left), 'or') or 'this run that no other baseline has'}; drop it or name another"
            )
        left -= found
    if left:
        held = "; ".join(f"{baseline.name}: {listed(list(baseline.architectures))}" for baseline in baselines)
        raise RunError(
            f"no baseline has {listed(sorted(left))} ({held}); expected one for each student; name one more with --baseline"
        )
    students = [answers for baseline in baselines for answers in baseline.predictions.students]
    names = tuple(name for baseline in baselines for name in baseline.student_names)
    teacher = next((own.predictions for own in baselines if own.predictions.teacher is not None), baselines[0].predictions)
    return Baseline(
        name=listed([baseline.name for baseline in baselines]),
        student_names=names,
        architectures=tuple(name for baseline in baselines for name in baseline.architectures),
        predictions=replace(teacher, names=names, students=tuple(students)),
        config={},
        parts=tuple(baselines),
        sources=tuple(baseline.name for baseline in baselines for _ in baseline.student_names),
    )


def _evaluated(run: RunFolder, recipe: Recipe) -> tuple[dict[str, Any] | None, Predictions | None, str]:
    """eval.json, the predictions that belong to it, or why there are none to be shown.

    Raises RunError where one is damaged, BusyError while udkd eval has written one of the two.
    """
    for _ in range(2):  # an evaluation may end just after eval.json was read
        evaluation = _evaluation(run, recipe)
        if not run.predictions_path.is_file():
            return evaluation, None, f"{run.path} has no predictions; run udkd eval {run.path}"
        predictions, sha256 = read_predictions(run.predictions_path)
        if evaluation is not None and evaluation.get("predictions_sha256") == sha256:
            _require_same(run, recipe, evaluation, predictions)
            return evaluation, predictions, ""
        run.evaluating().refuse_if_held()
    why = f"{run.predictions_path} is not of {run.path / 'eval.json'}; expected one evaluation's; run udkd eval again"
    return evaluation, None, why


def _evaluation(run: RunFolder, recipe: Recipe) -> dict[str, Any] | None:
    """eval.json. Raises RunError where it is not of this run."""
    evaluation = run.evaluation
    if evaluation is None:
        return None
    names = [student["name"] for student in evaluation["students"]]
    num_classes = len(run.classes or []) or evaluation["num_classes"]
    for what, found, wanted in (
        ("students", names, recipe.student_names()),
        ("classes", evaluation["num_classes"], num_classes),
    ):
        if found != wanted:
            raise RunError(f"eval.json in {run.path} is of the {what} {found}; expected {wanted}; run udkd eval again")
    return evaluation


def _require_same(run: RunFolder, recipe: Recipe, evaluation: Mapping[str, Any], predictions: Predictions) -> None:
    """RunError unless predictions are of the run, the students and the images that eval.json is of."""
    for what, found, wanted in (
        ("data", predictions.dataset_digest, run.provenance["dataset_digest"]),
        ("students", list(predictions.names), recipe.student_names()),
        ("classes", predictions.num_classes, evaluation["num_classes"]),
        ("images", len(predictions.ids), evaluation["num_samples"]),
        ("step", predictions.step, evaluation["step"]),
    ):
        if found != wanted:
            raise RunError(f"{run.predictions_path} is of the {what} {found}; expected {wanted}; run udkd eval again")


def _with_images(inputs: ReportInputs, data: Path | None) -> ReportInputs:
    """With class names and thumbnails, or with the reason why there are none."""
    try:
        dataset = _dataset(inputs.provenance, data)
    except (UserError, OSError) as error:
        return replace(inputs, why_no_data=str(error))
    split, val = dataset.split("train"), dataset.splits.get("val")
    return replace(
        inputs,
        class_names=tuple(entry.name for entry in dataset.classes),
        data=_facts(dataset),
        thumbnail=lambda sample_id: thumbnail(split, sample_id),
        val_thumbnail=None if val is None else lambda sample_id: thumbnail(val, sample_id),
    )


def _with_targets(inputs: ReportInputs, data: Path | None, cache: Path | None) -> ReportInputs:
    """With what the teacher says of the training images: the cache's word, else what udkd eval kept of it."""
    why = _why_no_cache(inputs.recipe, inputs.provenance) or inputs.why_no_data
    if not why:
        try:
            split = _dataset(inputs.provenance, data).split("train")
            return replace(inputs, targets=cached_targets(split, inputs.provenance, cache))
        except (UserError, OSError) as error:
            why = str(error)
    kept = inputs.predictions.targets if inputs.predictions else None
    if kept is None:
        return replace(inputs, why_no_targets=why)
    told = f"The cache was not read ({why}): the targets are those that udkd eval took from it."
    return replace(inputs, targets=kept, targets_from=told)


def thumbnail(split: Split, sample_id: int) -> NDArray[np.uint8]:
    """A stored image in its source's aspect ratio, uint8 [h, w, 3], the longer side at most THUMBNAIL_PX."""
    source_h, source_w, height, width = split.sizes[sample_id].tolist()
    pixels = split.pixels(sample_id)[:height, :width]
    scale = min(THUMBNAIL_PX, max(height, width)) / max(source_h, source_w)
    size = max(1, round(source_w * scale)), max(1, round(source_h * scale))
    if size == (width, height):
        return np.ascontiguousarray(pixels)
    return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.LANCZOS))


def _name(path: Path) -> str:
    """The folder's name; one that is called `run`, as quickstart's is, says too little without its parent's."""
    return f"{path.parent.name}/{path.name}" if path.name == "run" else path.name


def _dataset(provenance: Mapping[str, Any], data: Path | None) -> DatasetFolder:
    dataset = DatasetFolder.open(data or Path(provenance["dataset"]))
    if dataset.digest != provenance["dataset_digest"]:
        raise MismatchError(
            f"the dataset in {dataset.path}",
            [("dataset_digest", provenance["dataset_digest"], dataset.digest)],
            "name the folder that the run was trained on",
        )
    return dataset


def _facts(dataset: DatasetFolder) -> DataFacts:
    paper = (files("udkd") / "assets" / "imagenet100-wnids.txt").read_text().split()
    return DataFacts(
        train_images=len(dataset.split("train").ids),
        val_images=len(dataset.split("val").ids) if "val" in dataset.splits else 0,
        num_classes=len(dataset.classes),
        side=dataset.side,
        imagenet100={entry.wnid for entry in dataset.classes} == set(paper),
    )


def _why_no_cache(recipe: Recipe, provenance: Mapping[str, Any]) -> str:
    """Why a run has no cached targets; empty where it has."""
    if "cache" in provenance:
        return ""
    if not recipe.needs_teacher:
        return "This run had no teacher (β = 0): there are no weights to show."
    return "This run asked its teacher live and kept nothing of what it said. To see its weights, train from a cache."


def _teacher(provenance: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """What is known of the teacher: its folder's word if it is still there and the same, else what the run recorded."""
    key = provenance.get("cache_key", {})
    sha256 = provenance.get("teacher_sha256") or key.get("teacher_sha256")
    if sha256 is None:
        return None
    known = {"architecture": key.get("teacher"), "weights_sha256": sha256}
    if "teacher" in provenance:
        try:
            info = TeacherFolder.open(Path(provenance["teacher"])).info
        except (UserError, OSError):
            return known
        if info.weights_sha256 == sha256:
            return asdict(info)
    return known
