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
_MOST_ROWS = 1 << 20  # of a head whose shapes are compared


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """Weights that are to become a teacher. loss: the one they were trained with. notes: on how they were read."""

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

    file: local weights (udkd.models.weight_files); None downloads torchvision's. A head of 1,000 rows is ImageNet's, one of
    as many rows as there are classes is this data's own, in sorted order; where the file names its outputs, those names decide.
    names: readable names of the classes. entry: which of several state dicts.
    Raises DataError: no such classes, no network, a file of another architecture, of several state dicts or of no numbers.
    ConfigError: no such architecture, or one with auxiliary outputs.
    """
    check_input_size(architecture, IMAGENET_CLASSES, 224)
    if file is None:
        imagenet_rows(classes)  # before anything is downloaded
        read, origin = WeightsFile(path=Path(), entries={"": _download(architecture)}), "torchvision's default weights"
    else:
        read, origin = read_weights(file), str(file.resolve())
    chosen = _choose(read, origin, architecture, entry)
    rows, note = _rows(chosen.rows, read.classes, classes, names, origin)
    try:
        state, dtype = as_float32(chosen.tensors, meta_state_dict(architecture, chosen.rows))
    except ValueError as error:
        raise DataError(f"{origin}: {error}; take other weights") from None
    head = head_parameter_names(architecture)
    known = {"weights": origin, ("rows" if note else "rows_of_1000"): rows}
    return Candidate(
        architecture=architecture,
        weights={name: value[rows] if name in head else value for name, value in state.items()},
        made=known if file is None else known | {"sha256": read.sha256, "entry": chosen.label},
        notes=tuple(line for line in (*_reading_notes(read, chosen, dtype), note) if line),
    )


def _choose(read: WeightsFile, origin: str, architecture: str, entry: str | None) -> StateDictMatch:
    """The one state dict that fits. Raises DataError: none, or several and no `entry`."""
    wanted = meta_state_dict(architecture, IMAGENET_CLASSES)
    candidates = {each.label: each for each in find_state_dicts(read.entries, wanted, head_parameter_names(architecture)[0])}
    if entry is not None and entry not in candidates:
        held = ", ".join(candidates) or f"none for a {architecture}"
        raise DataError(f"{origin} has no entry {entry!r} of weights (it has {held}); expected one of those; correct --entry")
    considered = candidates if entry is None else {entry: candidates[entry]}
    differences = {
        label: first_difference(each.tensors, meta_state_dict(architecture, min(each.rows, _MOST_ROWS)))
        for label, each in considered.items()
    }
    fitting = [label for label, difference in differences.items() if not difference]
    if len(fitting) > 1:
        raise DataError(
            f"{origin} holds the weights of {len(fitting)} networks ({', '.join(fitting)}); expected one; name it with --entry"
        )
    if fitting:
        return candidates[fitting[0]]
    difference = next(iter(differences.values()), "") or _misfit(read, wanted)
    claim = f', and it calls itself "{read.architecture[:40]}"' if read.architecture not in ("", architecture) else ""
    raise DataError(
        f"{origin} does not fit {architecture} ({difference}{claim}); expected its weights; name its --architecture"
    )


def _misfit(read: WeightsFile, wanted: Mapping[str, Tensor]) -> str:
    """The first tensor that the file's largest dictionary lacks, and what it holds instead."""
    held = strip_wrappers(max(read.entries.values(), key=len))
    others = [name[:60] for name in held if name not in wanted]
    return first_difference(held, wanted) + (f"; it holds {', '.join(others[:2])}, …" if others else "")


def _rows(
    rows: int, recorded: Sequence[str] | None, classes: Sequence[str], names: Sequence[str], origin: str
) -> tuple[list[int], str]:
    """The head's row of each class, and how they were matched where the head is not ImageNet's. Raises DataError: no match."""
    if recorded is not None and len(recorded) == rows == len(set(recorded)):
        for labels in (classes, names):
            if set(labels) <= set(recorded) and len(set(labels)) == len(classes):
                return [
                    recorded.index(name) for name in labels
                ], "the rows of its head are taken by the class names that it records"
        if rows != IMAGENET_CLASSES:
            missing = next(name for name in classes if name not in recorded)
            raise DataError(
                f"{origin} records outputs such as {', '.join(name[:40] for name in recorded[:3])} and none is {missing}; "
                "expected this data's classes; take a teacher of these, or its own data"
            )
    if rows == IMAGENET_CLASSES and (len(classes) != rows or not _not_in_imagenet(classes)):
        return imagenet_rows(classes), ""
    if rows != len(classes):
        raise DataError(
            f"{origin} has a head of {rows:,} rows and this data {len(classes):,} classes; expected as many, or ImageNet's "
            "1,000; take weights of these classes"
        )
    order = sorted(classes)
    shown = ", ".join(order if len(order) <= 4 else [*order[:2], "…", order[-1]])
    return [order.index(name) for name in classes], (
        f"its head has {rows} rows, as many as this data has classes: they are taken in sorted order, {shown}"
    )


def _reading_notes(read: WeightsFile, chosen: StateDictMatch, dtype: str) -> list[str]:
    """What a user should know about how a file was read."""
    others = chosen.other_names
    beside = f"; {len(others)} other tensors beside them are left, {others[0][:60]} first" if others else ""
    return [
        f"weights: {chosen.label} of {read.path}{beside}" if chosen.label != "." else "",
        f"numbers of {dtype} are taken as float32" if dtype else "",
        f"{read.unchecked}, so a damaged bit would not be seen: sha256 {read.sha256}" if read.unchecked else "",
    ]


def imagenet_rows(classes: Sequence[str]) -> list[int]:
    """Index of each wnid among ILSVRC2012's 1,000 sorted ones: the order that pretrained classifiers use."""
    missing = _not_in_imagenet(classes)
    if missing:
        raise DataError(
            f"{len(missing)} of {len(classes)} classes are not ImageNet's ({', '.join(missing[:3])}); "
            "expected wnids such as n01440764; fit a teacher on this data instead, or bring weights with a row for each class"
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
    """Measure a candidate on the validation split in the recipe's evaluation view, and write its folder."""
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
    broken = first_not_finite(candidate.weights)
    if broken:
        raise DataError(f"the weights hold numbers in {broken} that are not finite; expected finite ones; name another source")
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
    except (OSError, HTTPException, RuntimeError) as error:  # RuntimeError: not the published hash
        raise DataError(
            f"torchvision's {architecture} could not be downloaded ({error}); expected a network; "
            "bring the file and name it with --weights"
        ) from None
    return state
