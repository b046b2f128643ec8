"""RUN/export/NAME: model.pt2, model.onnx, on request model-int8.onnx, and preprocessing.json. Written only if checks pass."""

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from udkd.augment import apply as augment
from udkd.augment.view_table import EpochViews
from udkd.data.backends.registry import open_backend
from udkd.data.dataset import DatasetFolder, Split
from udkd.export.graphs import INPUT, OUTPUT, LogitsFn, export_graphs, onnx_classifier, program_classifier, require_packages
from udkd.export.quantise import quantise
from udkd.training.run_folder import RunFolder
from udkd.training.scoring import Score, score
from udkd.training.trained import ENSEMBLE, TrainedClassifier
from udkd.utils.environment import set_threads
from udkd.utils.errors import MismatchError, RunError
from udkd.utils.files import FolderLock, write_bytes, write_json
from udkd.utils.progress import SILENT, Observer
from udkd.utils.rng import Stream, permutation

MAX_DEVIATION = 1e-4
"""Bound on a logit's deviation from the checkpoint's, relative to the row's largest where that is above 1."""

CHECKED_IMAGES, CALIBRATION_IMAGES = 32, 256
_CPU = torch.device("cpu")


@dataclass(frozen=True, kw_only=True)
class ExportResult:
    """What was written. By file: difference, the largest deviation of a logit; accuracy, validation scores; bytes, the size."""

    folder: Path
    name: str
    difference: dict[str, float]
    accuracy: dict[str, Score]
    bytes: dict[str, int]


def export(
    run: RunFolder, *, student: str | None, ensemble: bool, int8: bool, data: Path | None = None, observer: Observer = SILENT
) -> ExportResult:
    """Export one student, or the average of all, and check the files.

    data: the run's dataset folder, if it has moved; the files are checked on its validation images.
    RunError: a file's logits differ from the checkpoint's. ConfigError: missing packages. MismatchError: other data.
    """
    require_packages()
    trained = TrainedClassifier.load(run, student, ensemble=ensemble)
    set_threads(trained.recipe.train.threads)
    dataset = _dataset(run, data)
    images = _Images(dataset, trained)
    observer.note(f"{trained.name}: torch.export and ONNX")
    program, onnx = export_graphs(trained.model, trained.recipe.views.size_px)
    checked = images.inputs("val", CHECKED_IMAGES)
    difference = {
        "model.pt2": _require_equal("model.pt2", program_classifier(program), trained, checked),
        "model.onnx": _require_equal("model.onnx", onnx_classifier(onnx), trained, checked),
    }
    files, accuracy = {"model.pt2": program, "model.onnx": onnx}, {}
    if int8:
        observer.note(f"int8: calibration on {CALIBRATION_IMAGES} training images, then both models on the validation images")
        files["model-int8.onnx"] = quantise(onnx, images.inputs("train", CALIBRATION_IMAGES))
        for name in ("model.onnx", "model-int8.onnx"):
            accuracy[name] = images.score(onnx_classifier(files[name]), observer)
    folder = run.path / "export" / trained.name.replace("/", "-")
    sizes = {name: len(content) for name, content in files.items()}
    exported = ExportResult(folder=folder, name=trained.name, difference=difference, accuracy=accuracy, bytes=sizes)
    write_files(folder, files, _notes(trained, dataset, exported))
    return exported


def write_files(folder: Path, files: Mapping[str, bytes], notes: Mapping[str, Any]) -> None:
    """Write all files of one export, preprocessing.json last. Raises BusyError while another process does the same."""
    folder.mkdir(parents=True, exist_ok=True)
    with FolderLock(folder):
        (folder / "preprocessing.json").unlink(missing_ok=True)
        (folder / "model-int8.onnx").unlink(missing_ok=True)
        for name, content in files.items():
            write_bytes(folder / name, content)
        write_json(folder / "preprocessing.json", notes)


def _dataset(run: RunFolder, data: Path | None) -> DatasetFolder:
    provenance = run.provenance
    dataset = DatasetFolder.open(data or Path(provenance["dataset"]))
    if dataset.digest != provenance["dataset_digest"]:
        fields = [("dataset_digest", provenance["dataset_digest"], dataset.digest)]
        raise MismatchError(f"the run in {run.path}", fields, "name the data it was trained on with --data")
    return dataset


class _Images:
    """Images of a dataset folder in a run's evaluation view."""

    def __init__(self, dataset: DatasetFolder, trained: TrainedClassifier) -> None:
        self._dataset = dataset
        self._recipe, self._preprocessing = trained.recipe, trained.preprocessing

    def inputs(self, name: str, count: int) -> list[Tensor]:
        """The same `count` images of a split every time, in batches of up to 16: float32 [B, 3, O, O]."""
        split = self._dataset.split(name)
        views = self._views(split)
        ids = np.sort(permutation(split.ids, 0, Stream.INT8_CALIBRATION)[:count])
        with contextlib.closing(open_backend(self._recipe.data.backend, split, _CPU)) as backend:
            return [
                augment.apply(batch.canvas, views.table(0).gather(batch.ids), views.spec, self._preprocessing).contiguous()
                for batch in backend.epoch(ids, 16)
            ]

    def score(self, classifier: LogitsFn, observer: Observer) -> Score:
        """Accuracy on the validation split."""
        split = self._dataset.split("val")
        observer.start("validation", len(split.ids), "images")
        with contextlib.closing(open_backend(self._recipe.data.backend, split, _CPU)) as backend:
            batch = self._recipe.train.batch_size
            scores = score(
                [classifier],
                backend,
                split.ids,
                self._views(split),
                batch=batch,
                precision="float32",
                preprocessing=(self._preprocessing,),
                on_batch=observer.advance,
            )
        observer.finish()
        return scores.each[0]

    def _views(self, split: Split) -> EpochViews:
        return EpochViews(self._recipe.evaluation_spec, 0, split, _CPU)


def _require_equal(name: str, classifier: LogitsFn, trained: TrainedClassifier, batches: Sequence[Tensor]) -> float:
    """The largest deviation from the checkpoint's logits; RunError where it is above LIMIT."""
    deviations = []
    with torch.no_grad():
        for x_BCHW in batches:
            expected_BC = trained.model(x_BCHW)
            scale_B1 = expected_BC.abs().amax(-1, keepdim=True).clamp(min=1.0)
            deviations.append(((classifier(x_BCHW) - expected_BC).abs() / scale_B1).max())
    largest = float(torch.stack(deviations).max())  # torch's max keeps a NaN, Python's may lose it
    if not largest <= MAX_DEVIATION:
        raise RunError(
            f"{name} differs from the checkpoint (logits by {largest:.2g}); expected at most {MAX_DEVIATION:g}; "
            "nothing was written; please report it with the architecture"
        )
    return largest


def _notes(trained: TrainedClassifier, dataset: DatasetFolder, exported: ExportResult) -> dict[str, Any]:
    """The content of preprocessing.json: what running the files requires."""
    spec = trained.recipe.evaluation_spec
    names = {entry.wnid: entry.name for entry in dataset.classes}
    resize = (
        f"both sides to {spec.resize_px} px" if spec.scheme == "centre_squash" else f"the shorter side to {spec.resize_px} px"
    )
    size = spec.size_px
    softmax = "log-probabilities of the mean over students" if trained.name == ENSEMBLE else "logits"
    if trained.recipe.evaluation.flip_tta:
        softmax += ", the mean over the image and its mirror image (the file mirrors it itself)"
    return {
        "student": trained.name,
        "step": trained.step,
        "input": {"name": INPUT, "dtype": "float32", "shape": ["batch", 3, size, size], "order": "RGB, channels first"},
        "output": {"name": OUTPUT, "meaning": f"{softmax}; softmax gives probabilities", "classes": len(trained.classes)},
        "steps": [
            "decode to 8-bit RGB; EXIF orientation is ignored",
            f"resize {resize}, {trained.preprocessing.interpolation} with antialiasing "
            "(torchvision's Resize(antialias=True) is within 1 of 255)",
            f"cut the central {size} x {size} px",
            "divide by 255, subtract mean, divide by std",
        ],
        "mirrored": trained.recipe.evaluation.flip_tta,
        "mean": list(trained.preprocessing.mean),
        "std": list(trained.preprocessing.std),
        "classes": [{"id": wnid, "name": names.get(wnid, wnid)} for wnid in trained.classes],
        "largest_logit_difference": exported.difference,
        "checked_images": CHECKED_IMAGES,
        "bytes": exported.bytes,
        "validation": {name: value.to_dict() for name, value in exported.accuracy.items()},
    }
