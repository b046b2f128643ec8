"""Teachers from a run of udkd, or from pretrained weights of a library, a file or a user's function."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from udkd.augment.preprocessing import IMAGENET, NetworkInput, Preprocessing
from udkd.augment.view_table import EpochViews
from udkd.config.recipe import Recipe
from udkd.data.backends.registry import open_backend
from udkd.data.dataset import DatasetFolder
from udkd.losses.settings import LabelLoss
from udkd.models.architectures import (
    TIMM,
    default_preprocessing,
    is_torchvision,
    is_users,
    label_names,
    own_input,
    pretrained_state,
    registered_name,
)
from udkd.models.build import build, check_input_size, first_difference, head_parameter_names, load_weights, meta_state_dict
from udkd.models.state_dicts import StateDictMatch, as_float32, find_state_dicts, first_not_finite, strip_wrappers
from udkd.models.weight_files import WeightsFile, read_weights
from udkd.teacher.folder import TeacherFolder, require_classes, write_teacher
from udkd.teacher.frozen import require_several_classes
from udkd.training.run_folder import RunFolder
from udkd.training.scoring import score
from udkd.training.student import prefixed
from udkd.utils.environment import set_threads
from udkd.utils.errors import ConfigError, DataError, RunError
from udkd.utils.progress import Observer

IMAGENET_CLASSES = 1000
_MAX_ROWS = 1 << 20  # of a head whose shapes are compared


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """Weights that are to become a teacher.

    preprocessing: of its input. loss: the one they were trained with. notes: remarks for the user.
    """

    architecture: str
    weights: Mapping[str, Tensor]
    made: Mapping[str, Any]
    preprocessing: Preprocessing = IMAGENET
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
        preprocessing=recipe.student_preprocessing(index),
        loss=recipe.loss.label_loss,
    )


def from_weights(
    architecture: str,
    file: Path | None,
    classes: Sequence[str],
    names: Sequence[str] = (),
    entry: str | None = None,
    *,
    image_px: int = 224,
    preprocessing: Preprocessing | None = None,
    new_head: bool = False,
) -> Candidate:
    """A pretrained classifier with the head's rows of `classes` (wnids, or folder names), in their order.

    file: local weights (udkd.models.weight_files); None takes those that torchvision or timm publish, or that a user's function
    returns. names: readable names of the classes. entry: which of several state dicts. Outputs are matched by the names that
    the file records. Without names, a head of 1,000 rows is ImageNet's, and one with a row per class is this data's in sorted
    order. image_px: side of its input. preprocessing: None for that of the weights or the network, or else ImageNet's.
    new_head: leave out the head's weights where they are of other classes, as for a student that is fine-tuned.
    Raises DataError: no such classes, no network, a file of another architecture, of several state dicts or of no numbers.
    ConfigError: no such architecture, or one with auxiliary outputs.
    """
    check_input_size(architecture, len(classes) if is_users(architecture) else IMAGENET_CLASSES, image_px)
    own = own_input(architecture)
    if file is None:
        weights_file, origin = _published(architecture, classes, image_px, any_classes=new_head)
        preprocessing = preprocessing or (own.preprocessing if own else None)
    else:
        weights_file, origin = read_weights(file), str(file.resolve())
        preprocessing = preprocessing or weights_file.preprocessing
    chosen = _choose(weights_file, origin, architecture, entry, image_px)
    rows, note = _rows_or_none(chosen.rows, weights_file.classes, classes, names, origin, new_head=new_head)
    try:
        state, dtype = as_float32(chosen.tensors, meta_state_dict(architecture, chosen.rows, image_px))
    except ValueError as error:
        raise DataError(f"{origin}: {error}; take other weights") from None
    head = head_parameter_names(architecture)
    known = {"weights": origin, ("rows" if note else "rows_of_1000"): rows}
    registered = registered_name(architecture)
    same = registered == architecture or not first_difference(state, meta_state_dict(registered, chosen.rows, image_px))
    return Candidate(
        architecture=registered if same else architecture,
        weights={name: value[rows] if name in head else value for name, value in state.items() if rows or name not in head},
        made=known if file is None else known | {"sha256": weights_file.sha256, "entry": chosen.label},
        preprocessing=preprocessing or default_preprocessing(architecture),
        notes=tuple(
            line
            for line in (
                *_reading_notes(weights_file, chosen, dtype),
                note,
                _input_note(architecture, own, image_px, preprocessing, student=new_head),
            )
            if line
        ),
    )


def _published(architecture: str, classes: Sequence[str], image_px: int, *, any_classes: bool) -> tuple[WeightsFile, str]:
    """The weights that come with an architecture, and their origin for texts."""
    if is_users(architecture):
        state = build(architecture, len(classes), image_px=image_px, seed=0).state_dict()
        return WeightsFile(path=Path(), entries={"": state}), f"what {architecture} returns"
    if not any_classes and ":" not in architecture:  # a hub's or a folder's may be of any classes
        imagenet_rows(classes)  # before anything is downloaded
    library = "timm" if architecture.startswith(TIMM) else "torchvision"
    state = pretrained_state(architecture, image_px)
    return WeightsFile(path=Path(), entries={"": state}, classes=label_names(architecture)), f"{library}'s default weights"


def _input_note(
    architecture: str, own: NetworkInput | None, image_px: int, preprocessing: Preprocessing | None, *, student: bool
) -> str:
    """What a user should check about the network's input, or ""."""
    if own is None and preprocessing is None:
        options = "set the student's mean and std" if student else "give --mean and --std"
        return f"{architecture} says nothing of its normalisation: ImageNet's mean and std are used; else {options}"
    if own is not None and own.size_px not in (0, image_px) and not is_torchvision(architecture):
        remedy = "" if student else f"; --set teacher.size_px={own.size_px} gives it its own size"
        return f"{architecture} was trained with images of {own.size_px} px and gets {image_px} px by this recipe{remedy}"
    return ""


def _choose(weights_file: WeightsFile, origin: str, architecture: str, entry: str | None, image_px: int) -> StateDictMatch:
    """The one state dict that fits. Raises DataError: none, or several and no `entry`."""
    wanted = meta_state_dict(architecture, IMAGENET_CLASSES, image_px)
    state_dicts = find_state_dicts(weights_file.entries, wanted, head_parameter_names(architecture)[0])
    candidates = {each.label: each for each in state_dicts}
    if entry is not None and entry not in candidates:
        held = ", ".join(candidates) or f"none for a {architecture}"
        raise DataError(f"{origin} has no entry {entry!r} of weights (it has {held}); expected one of those; correct --entry")
    considered = candidates if entry is None else {entry: candidates[entry]}
    differences = {
        label: first_difference(each.tensors, meta_state_dict(architecture, min(each.rows, _MAX_ROWS), image_px))
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
    if size_px := _size_of(considered.values(), architecture, wanted, image_px):
        raise DataError(
            f"{origin} has the weights of {architecture} for {size_px} px images, and its input has {image_px} px by this "
            f"recipe; expected the same size; set teacher.size_px={size_px}, or for a student views.size_px"
        )
    recorded = weights_file.architecture
    claim = f', and it calls itself "{recorded[:40]}"' if recorded not in ("", architecture.removeprefix(TIMM)) else ""
    raise DataError(f"{origin} does not fit {architecture} ({difference}{claim}); expected its weights; name its MODEL")


def _size_of(matches: Iterable[StateDictMatch], architecture: str, wanted: Mapping[str, Tensor], image_px: int) -> int:
    """The other input size whose network one of `matches` fits, by the number of its position embeddings; 0 for none."""
    if not architecture.startswith(TIMM):
        return 0
    for match in matches:
        for name, value in wanted.items():
            held = match.tensors[name].shape
            if name.endswith("pos_embed") and held != value.shape and len(held) == value.dim() == 3:
                patches = math.isqrt(value.shape[1])  # along a side; the rest are tokens such as the class token
                size_px = image_px * math.isqrt(held[1]) // patches
                try:
                    expected = meta_state_dict(architecture, min(match.rows, _MAX_ROWS), size_px)
                except ConfigError:
                    continue
                if not first_difference(match.tensors, expected):
                    return size_px
    return 0


def _misfit(weights_file: WeightsFile, wanted: Mapping[str, Tensor]) -> str:
    """The first tensor that the file's largest dictionary lacks, and what it holds instead."""
    held = strip_wrappers(max(weights_file.entries.values(), key=len))
    others = [name[:60] for name in held if name not in wanted]
    return first_difference(held, wanted) + (f"; it holds {', '.join(others[:2])}, …" if others else "")


def _rows_or_none(
    num_rows: int,
    recorded: Sequence[str] | None,
    classes: Sequence[str],
    names: Sequence[str],
    origin: str,
    *,
    new_head: bool,
) -> tuple[list[int], str]:
    """`_rows`, or with new_head no rows and a note where there are none for these classes."""
    try:
        return _rows(num_rows, recorded, classes, names, origin)
    except DataError:
        if not new_head:
            raise
        return (
            [],
            f"{origin} has a head of {num_rows:,} rows, of other classes: the {len(classes)} rows of the head are new",
        )


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
    text = (files("udkd") / "assets" / "imagenet1k-classes.tsv").read_text(encoding="utf-8")
    return {line.split("\t")[0]: row for row, line in enumerate(text.splitlines())}


def evaluate_and_write(
    path: Path, candidate: Candidate, dataset: DatasetFolder, recipe: Recipe, device: torch.device, observer: Observer
) -> TeacherFolder:
    """Measure a candidate on the validation split in the recipe's evaluation view of the teacher, and write its folder.

    DataError: no validation images, or weights that do not fit the architecture or are not finite.
    """
    split = dataset.split("val")
    if len(split.ids) == 0:
        raise DataError(f"{dataset.path} has no validation images; expected some to measure on; convert with --hold-out")
    require_several_classes(dataset)
    set_threads(recipe.train.threads)
    model = build(candidate.architecture, len(dataset.classes), image_px=recipe.teacher_px, seed=0)
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
            EpochViews(recipe.teacher_evaluation_spec, 0, split, device),
            batch=recipe.teacher.batch_size,
            precision=recipe.teacher.precision,
            preprocessing=(candidate.preprocessing,),
            on_batch=observer.advance,
        )
    finally:
        backend.close()
        observer.finish()
    spec = recipe.teacher_evaluation_spec
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
        preprocessing=candidate.preprocessing,
    )
