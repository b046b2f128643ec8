"""Teachers from a run of udkd, or from pretrained weights of torchvision or a file."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http.client import HTTPException
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor

from udkd.augment.view_table import EpochViews
from udkd.config.recipe import Recipe
from udkd.data.backends.registry import open_backend
from udkd.data.dataset import DatasetFolder
from udkd.losses.distill import LabelLoss
from udkd.models.build import build, check_input_size, first_difference, head_parameter_names, load_weights, meta_state_dict
from udkd.models.state_dicts import StateDictMatch, as_float32, find_state_dicts, first_not_finite, strip_wrappers
from udkd.models.weight_files import WeightsFile, read_weights
from udkd.teacher.folder import TeacherFolder, require_classes, write_teacher
from udkd.teacher.frozen import require_several_classes
from udkd.training.run_folder import RunFolder
from udkd.training.scoring import score
from udkd.training.student import prefixed
from udkd.utils.environment import set_threads
from udkd.utils.errors import DataError, RunError
from udkd.utils.progress import Observer

IMAGENET_CLASSES = 1000
_MAX_ROWS = 1 << 20  # of a head whose shapes are compared


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """Weights that are to become a teacher. loss: the one they were trained with. notes: remarks for the user."""

    architecture: str
    weights: Mapping[str, Tensor]
    made: Mapping[str, Any]
    loss: LabelLoss = "cross_entropy"
    notes: tuple[str, ...] = ()


def from_run(run: RunFolder, student: str | None, classes: Sequence[str]) -> Candidate:
    """One student of a run, by name (None where there is only one). classes: of the dataset."""
    recipe = Recipe.from_stored(run.config, str(run.path))
    names = recipe.student_names()
    if (student is None and len(names) > 1) or (student is not None and student not in names):
        raise RunError(f"{run.path} holds the students {', '.join(names)}; expected {student or 'one'}; give --student")
    index = 0 if student is None else names.index(student)
    require_classes(f"the run in {run.path}", run.classes or classes, classes, "take a run on this data set")
    tensors = dict(run.load().tensors)
    weights = prefixed(tensors, f"average.{index}.") or prefixed(tensors, f"student.{index}.")
    return Candidate(
        architecture=recipe.students[index].architecture,
        weights=weights,
        made={"run": str(run.path.resolve()), "student": names[index], "recipe": run.config},
        loss=recipe.loss.label_loss,
    )


def from_weights(
    architecture: str, file: Path | None, classes: Sequence[str], names: Sequence[str] = (), entry: str | None = None
) -> Candidate:
    """A pretrained classifier with the head's rows of `classes` (wnids, or folder names), in their order.

    file: local weights (udkd.models.weight_files); None downloads torchvision's. names: readable names of the classes.
    entry: which of several state dicts. Outputs are matched by the names that the file records. Without names, a head of
    1,000 rows is ImageNet's, and one with a row per class is this data's in sorted order.
    Raises DataError: no such classes, no network, a file of another architecture, of several state dicts or of no numbers.
    ConfigError: no such architecture, or one with auxiliary outputs.
    """
    check_input_size(architecture, IMAGENET_CLASSES, 224)
    if file is None:
        imagenet_rows(classes)  # before anything is downloaded
        weights_file, origin = WeightsFile(path=Path(), entries={"": _download(architecture)}), "torchvision's default weights"
    else:
        weights_file, origin = read_weights(file), str(file.resolve())
    chosen = _choose(weights_file, origin, architecture, entry)
    rows, note = _rows(chosen.rows, weights_file.classes, classes, names, origin)
    try:
        state, dtype = as_float32(chosen.tensors, meta_state_dict(architecture, chosen.rows))
    except ValueError as error:
        raise DataError(f"{origin}: {error}; take other weights") from None
    head = head_parameter_names(architecture)
    known = {"weights": origin, ("rows" if note else "rows_of_1000"): rows}
    return Candidate(
        architecture=architecture,
        weights={name: value[rows] if name in head else value for name, value in state.items()},
        made=known if file is None else known | {"sha256": weights_file.sha256, "entry": chosen.label},
        notes=tuple(line for line in (*_reading_notes(weights_file, chosen, dtype), note) if line),
    )


def _choose(weights_file: WeightsFile, origin: str, architecture: str, entry: str | None) -> StateDictMatch:
    """The one state dict that fits. Raises DataError: none, or several and no `entry`."""
    wanted = meta_state_dict(architecture, IMAGENET_CLASSES)
    state_dicts = find_state_dicts(weights_file.entries, wanted, head_parameter_names(architecture)[0])
    candidates = {each.label: each for each in state_dicts}
    if entry is not None and entry not in candidates:
        held = ", ".join(candidates) or f"none for a {architecture}"
        raise DataError(f"{origin} has no entry {entry!r} of weights (it has {held}); expected one of those; correct --entry")
    considered = candidates if entry is None else {entry: candidates[entry]}
    differences = {
        label: first_difference(each.tensors, meta_state_dict(architecture, min(each.rows, _MAX_ROWS)))
        for label, each in considered.items()
    }
    fitting = [label for label, difference in differences.items() if not difference]
    if len(fitting) > 1:
        raise DataError(
            f"{origin} holds the weights of {len(fitting)} networks ({', '.join(fitting)}); expected one; name it with --entry"
        )
    if fitting:
        return candidates[fitting[0]]
    difference = next(iter(differences.values()), "") or _misfit(weights_file, wanted)
    recorded = weights_file.architecture
    claim = f', and it calls itself "{recorded[:40]}"' if recorded not in ("", architecture) else ""
    raise DataError(
        f"{origin} does not fit {architecture} ({difference}{claim}); expected its weights; name its --architecture"
    )


def _misfit(weights_file: WeightsFile, wanted: Mapping[str, Tensor]) -> str:
    """The first tensor that the file's largest dictionary lacks, and what it holds instead."""
    held = strip_wrappers(max(weights_file.entries.values(), key=len))
    others = [name[:60] for name in held if name not in wanted]
    return first_difference(held, wanted) + (f"; it holds {', '.join(others[:2])}, …" if others else "")


def _rows(
    num_rows: int, recorded: Sequence[str] | None, classes: Sequence[str], names: Sequence[str], origin: str
) -> tuple[list[int], str]:
    """The head's row of each class, and how they were matched where the head is not ImageNet's. Raises DataError: no match."""
    if recorded is not None and len(recorded) == num_rows == len(set(recorded)):
        for labels in (classes, names):
            if set(labels) <= set(recorded) and len(set(labels)) == len(classes):
                return [
                    recorded.index(name) for name in labels
                ], "the rows of its head are taken by the class names that it records"
        if num_rows != IMAGENET_CLASSES:
            missing = next(name for name in classes if name not in recorded)
            raise DataError(
                f"{origin} records outputs such as {', '.join(name[:40] for name in recorded[:3])} and none is {missing}; "
                "expected this data's classes; use weights of these classes, or the data they were trained on"
            )
    if num_rows == IMAGENET_CLASSES and (len(classes) != num_rows or not _not_in_imagenet(classes)):
        return imagenet_rows(classes), ""
    if num_rows != len(classes):
        raise DataError(
            f"{origin} has a head of {num_rows:,} rows and this data {len(classes):,} classes; expected as many, or ImageNet's "
            "1,000; take weights of these classes"
        )
    order = sorted(classes)
    shown = ", ".join(order if len(order) <= 4 else [*order[:2], "…", order[-1]])
    return [order.index(name) for name in classes], (
        f"its head has {num_rows} rows, as many as this data has classes: they are taken in sorted order, {shown}"
    )


def _reading_notes(weights_file: WeightsFile, chosen: StateDictMatch, dtype: str) -> list[str]:
    """What a user should know about how a file was read: a text for each remark, "" where it does not apply."""
    others = chosen.other_names
    ignored = f"; {len(others)} other tensors are ignored, {others[0][:60]} first" if others else ""
    return [
        f"weights: {chosen.label} of {weights_file.path}{ignored}" if chosen.label != "." else "",
        f"{dtype} weights are converted to float32" if dtype else "",
        f"{weights_file.unchecked}, so a damaged bit would go unnoticed: sha256 {weights_file.sha256}"
        if weights_file.unchecked
        else "",
    ]


def imagenet_rows(classes: Sequence[str]) -> list[int]:
    """Index of each wnid among ILSVRC2012's 1,000 sorted ones, as in pretrained classifiers. DataError: other classes."""
    missing = _not_in_imagenet(classes)
    if missing:
        raise DataError(
            f"{len(missing)} of {len(classes)} classes are not ImageNet's ({', '.join(missing[:3])}); "
            "expected wnids such as n01440764; fit a teacher on this data instead, or name weights with a row for each class"
        )
    index = _imagenet()
    return [index[wnid] for wnid in classes]


def _not_in_imagenet(classes: Sequence[str]) -> list[str]:
    """The classes that are not among ImageNet's."""
    index = _imagenet()
    return [wnid for wnid in classes if wnid not in index]


def _imagenet() -> dict[str, int]:
    text = (files("udkd") / "assets" / "imagenet1k-classes.tsv").read_text()
    return {line.split("\t")[0]: row for row, line in enumerate(text.splitlines())}


def evaluate_and_write(
    path: Path, candidate: Candidate, dataset: DatasetFolder, recipe: Recipe, device: torch.device, observer: Observer
) -> TeacherFolder:
    """Measure a candidate on the validation split in the recipe's evaluation view, and write its folder.

    DataError: no validation images, or weights that do not fit the architecture or are not finite.
    """
    split = dataset.split("val")
    if len(split.ids) == 0:
        raise DataError(f"{dataset.path} has no validation images; expected some to measure on; convert with --hold-out")
    require_several_classes(dataset)
    set_threads(recipe.train.threads)
    model = build(candidate.architecture, len(dataset.classes), image_px=recipe.views.size_px, seed=0)
    difference = first_difference(candidate.weights, model.state_dict())
    if difference:
        raise DataError(
            f"the weights do not fit {candidate.architecture} ({difference}); expected its weights; name another source"
        )
    not_finite = first_not_finite(candidate.weights)
    if not_finite:
        raise DataError(f"the weights in {not_finite} are not all finite; expected finite numbers; name another source")
    load_weights(model, candidate.weights)
    model.eval().to(device)
    backend = open_backend(recipe.data.backend, split, device, workers=recipe.data.workers)
    observer.start("teacher's accuracy", len(split.ids), "images")
    try:
        scores = score(
            [model],
            backend,
            split.ids,
            EpochViews(recipe.evaluation_spec, 0, split, device),
            batch=recipe.teacher.batch_size,
            precision=recipe.teacher.precision,
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
        classes=tuple(entry.wnid for entry in dataset.classes),
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
    except (OSError, HTTPException, RuntimeError) as error:  # RuntimeError: not the published hash
        raise DataError(
            f"torchvision's {architecture} could not be downloaded ({error}); expected a network connection; "
            "copy the file here and name it with --weights"
        ) from None
    return state
