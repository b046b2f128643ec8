"""The inputs of a report, and loading them from a run folder.

Only `load_inputs` opens datasets, caches and predictions.
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
from udkd.report.text import comma_list
from udkd.teacher.folder import TeacherFolder
from udkd.training.metrics import recorded_rows
from udkd.training.prediction_collector import cached_targets
from udkd.training.predictions import Predictions, TeacherPredictions, read_predictions
from udkd.training.run_folder import RunFolder
from udkd.utils.errors import MismatchError, RunError, UserError

THUMBNAIL_PX = 160


@dataclass(frozen=True, kw_only=True)
class DataFacts:
    """Facts on the images. side: px of the stored canvas. imagenet100: the classes are the paper's."""

    train_images: int
    val_images: int
    num_classes: int
    side: int
    imagenet100: bool


@dataclass(frozen=True, kw_only=True, eq=False)
class Baseline:
    """Another run on the same data to compare with, or several combined. config: its recipe as plain values.

    parts, sources: only where several runs are combined: the runs, and the name of each student's run. Their students are
    concatenated and have no average.
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
    """Everything that a report shows; where a part is None, the report prints the reason in `why_no_…`.

    metrics: rows of metrics.jsonl. evaluation: eval.json. provenance: run.json. class_names: by label.
    thumbnail, val_thumbnail: id of a training or validation sample -> uint8 [h, w, 3] of the stored image.
    teacher: the known fields of teacher.json. targets_from: the origin of the targets, if not the cache.
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


def load_inputs(
    run_folder: Path, *, data: Path | None = None, cache: Path | None = None, baselines: Sequence[Path] = ()
) -> ReportInputs:
    """Load the inputs of a run's report. data, cache: their current paths, if they have moved. baselines: other runs.

    Images, a cache or predictions that are missing, damaged or of another run become a sentence in the report, not an error.
    Raises RunError or ConfigError where a file of the run folder itself is damaged; RunError or MismatchError where a baseline
    cannot be compared with the run, or several leave a student without one; BusyError while udkd eval writes the files.
    """
    run = RunFolder.open(run_folder)
    recipe = Recipe.from_stored(run.config, str(run_folder))
    metrics = run.metrics()
    if metrics and ("method" in metrics[0]["train"]) != ("method" in recorded_rows(recipe)):
        raise RunError(
            f"metrics.jsonl in {run_folder} belongs to another loss than config.json; expected the same; train again"
        )
    evaluation, predictions, why_no_predictions = _evaluated(run, recipe)
    opened = [open_baseline(run, predictions, why_no_predictions, folder) for folder in baselines]
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
        baseline=combine_baselines(recipe, opened),
    )
    return _with_targets(_with_images(inputs, data), data, cache)


def open_baseline(run: RunFolder, predictions: Predictions | None, why_no_predictions: str, folder: Path) -> Baseline:
    """A run to compare `run` with. Raises RunError, MismatchError or ConfigError: no run, no predictions, other data."""
    other = RunFolder.open(folder)
    if other.path.resolve() == run.path.resolve():
        raise RunError(f"the baseline {folder} is the run itself; expected another run; name the one to compare with")
    stored, expected = other.provenance["dataset_digest"], run.provenance["dataset_digest"]
    if stored != expected:
        fields = [("dataset_digest", stored, expected)]
        raise MismatchError(f"the baseline in {folder}", fields, "name a run on the same data")
    if predictions is None:
        raise RunError(f"a baseline was named and {why_no_predictions}")
    recipe = Recipe.from_stored(other.config, str(folder))
    _, baseline_predictions, why_no_baseline = _evaluated(other, recipe)
    if baseline_predictions is None:
        raise RunError(f"a baseline was named and {why_no_baseline}")
    if any(not np.array_equal(getattr(baseline_predictions, name), getattr(predictions, name)) for name in ("ids", "labels")):
        raise RunError(f"{folder} was evaluated on other images than {run.path}; expected the same; run udkd eval on both")
    return Baseline(
        name=_name(folder.resolve()),
        student_names=tuple(recipe.student_names()),
        architectures=tuple(student.architecture for student in recipe.students),
        predictions=baseline_predictions,
        config=recipe.to_dict(),
    )


def combine_baselines(recipe: Recipe, baselines: Sequence[Baseline]) -> Baseline | None:
    """All baselines as one; None where there is none. RunError: with several, a baseline is unused or a student has none."""
    if len(baselines) < 2:
        return baselines[0] if baselines else None
    left = Counter(student.architecture for student in recipe.students)
    for baseline in baselines:
        matched = left & Counter(baseline.architectures)
        if not matched:
            raise RunError(
                f"the baseline {baseline.name} has {comma_list(list(baseline.architectures))}; expected a student of "
                f"{comma_list(sorted(left), 'or') or 'this run that no other baseline has'}; drop it or name another"
            )
        left -= matched
    if left:
        named = "; ".join(f"{baseline.name}: {comma_list(list(baseline.architectures))}" for baseline in baselines)
        raise RunError(
            f"no baseline has {comma_list(sorted(left))} ({named}); expected one for each student; add one with --baseline"
        )
    students = [student for baseline in baselines for student in baseline.predictions.students]
    names = tuple(name for baseline in baselines for name in baseline.student_names)
    all_predictions = [baseline.predictions for baseline in baselines]
    with_teacher = next((one for one in all_predictions if one.teacher is not None), all_predictions[0])
    return Baseline(
        name=comma_list([baseline.name for baseline in baselines]),
        student_names=names,
        architectures=tuple(name for baseline in baselines for name in baseline.architectures),
        predictions=replace(with_teacher, names=names, students=tuple(students)),
        config={},
        parts=tuple(baselines),
        sources=tuple(baseline.name for baseline in baselines for _ in baseline.student_names),
    )


def _evaluated(run: RunFolder, recipe: Recipe) -> tuple[dict[str, Any] | None, Predictions | None, str]:
    """eval.json, the predictions of the same evaluation, and the reason where there are none.

    Raises RunError where one is damaged, BusyError while udkd eval has written only one of the two.
    """
    for _ in range(2):  # an evaluation may end right after eval.json was read
        evaluation = _evaluation(run, recipe)
        if not run.predictions_path.is_file():
            return evaluation, None, f"{run.path} has no predictions; run udkd eval {run.path}"
        predictions, sha256 = read_predictions(run.predictions_path)
        if evaluation is not None and evaluation.get("predictions_sha256") == sha256:
            _require_same(run, recipe, evaluation, predictions)
            return evaluation, predictions, ""
        run.evaluating().require_free()
    why = f"{run.predictions_path} and {run.path / 'eval.json'} differ; expected them of one evaluation; run udkd eval again"
    return evaluation, None, why


def _evaluation(run: RunFolder, recipe: Recipe) -> dict[str, Any] | None:
    """eval.json. Raises RunError where it belongs to another run."""
    evaluation = run.evaluation
    if evaluation is None:
        return None
    names = [student["name"] for student in evaluation["students"]]
    num_classes = len(run.classes or []) or evaluation["num_classes"]
    for what, stored, expected in (
        ("students", names, recipe.student_names()),
        ("classes", evaluation["num_classes"], num_classes),
    ):
        if stored != expected:
            raise RunError(f"eval.json in {run.path} has {what} {stored}; expected {expected}; run udkd eval again")
    return evaluation


def _require_same(run: RunFolder, recipe: Recipe, evaluation: Mapping[str, Any], predictions: Predictions) -> None:
    """RunError unless the predictions belong to the run, students and images of eval.json."""
    for what, stored, expected in (
        ("data", predictions.dataset_digest, run.provenance["dataset_digest"]),
        ("students", list(predictions.names), recipe.student_names()),
        ("classes", predictions.num_classes, evaluation["num_classes"]),
        ("images", len(predictions.ids), evaluation["num_samples"]),
        ("step", predictions.step, evaluation["step"]),
    ):
        if stored != expected:
            raise RunError(f"{run.predictions_path} has {what} {stored}; expected {expected}; run udkd eval again")


def _with_images(inputs: ReportInputs, data: Path | None) -> ReportInputs:
    """Add class names and thumbnails, or the reason why there are none."""
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
    """Add the teacher's targets of the training images, from the cache, else as udkd eval stored them."""
    why = _why_no_cache(inputs.recipe, inputs.provenance) or inputs.why_no_data
    if not why:
        try:
            split = _dataset(inputs.provenance, data).split("train")
            return replace(inputs, targets=cached_targets(split, inputs.provenance, cache))
        except (UserError, OSError) as error:
            why = str(error)
    stored = inputs.predictions.targets if inputs.predictions else None
    if stored is None:
        return replace(inputs, why_no_targets=why)
    origin = f"The cache was not read ({why}): the targets are those that udkd eval stored."
    return replace(inputs, targets=stored, targets_from=origin)


def thumbnail(split: Split, sample_id: int) -> NDArray[np.uint8]:
    """A stored image in its source's aspect ratio, uint8 [h, w, 3], at most THUMBNAIL_PX px on the longer side."""
    source_h, source_w, height, width = split.sizes[sample_id].tolist()
    pixels = split.pixels(sample_id)[:height, :width]
    scale = min(THUMBNAIL_PX, max(height, width)) / max(source_h, source_w)
    size = max(1, round(source_w * scale)), max(1, round(source_h * scale))
    if size == (width, height):
        return np.ascontiguousarray(pixels)
    return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.LANCZOS))


def _name(path: Path) -> str:
    """The folder's name, with its parent's where it is just `run`, as in quickstart."""
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
    paper_wnids = (files("udkd") / "assets" / "imagenet100-wnids.txt").read_text(encoding="utf-8").split()
    return DataFacts(
        train_images=len(dataset.split("train").ids),
        val_images=len(dataset.split("val").ids) if "val" in dataset.splits else 0,
        num_classes=len(dataset.classes),
        side=dataset.side,
        imagenet100={entry.wnid for entry in dataset.classes} == set(paper_wnids),
    )


def _why_no_cache(recipe: Recipe, provenance: Mapping[str, Any]) -> str:
    """The reason why a run has no cached targets; empty where it has some."""
    if "cache" in provenance:
        return ""
    if not recipe.needs_teacher:
        return "This run had no teacher (β = 0): there are no weights to show."
    return "This run had a live teacher, whose logits are not stored. To see its weights, train from a cache."


def _teacher(provenance: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Known fields of the teacher: from its folder if that is still there and the same, else those in run.json."""
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
