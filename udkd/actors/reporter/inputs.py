"""What a report is made of, and how it is gathered from a run folder.

Nothing beyond `gather` opens a dataset or a cache. Letters: n training samples that are not excluded, C classes.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from udkd.formats.cache import Cache
from udkd.formats.config import Recipe
from udkd.formats.dataset import DatasetFolder, Split
from udkd.formats.run import RunFolder
from udkd.formats.teacher import TeacherFolder
from udkd.words.errors import CacheError, MismatchError, UserError
from udkd.words.uncertainty import entropy_weight

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
class Targets:
    """What the teacher said of the training samples in one view.

    ids, labels: int64 [n]. logits: float16 or float32 [n, C], up to a constant per row. weight, entropy: float32 [n].
    view, num_views: which of how many cached views this is. canonical: it is the evaluation view.
    """

    ids: NDArray[np.int64]
    labels: NDArray[np.int64]
    logits: np.ndarray
    weight: NDArray[np.float32]
    entropy: NDArray[np.float32]
    view: int = 0
    num_views: int = 1
    canonical: bool = True

    def __post_init__(self) -> None:
        n = len(self.ids)
        assert self.labels.shape == self.weight.shape == self.entropy.shape == (n,), "one row per sample in every array"
        assert self.logits.ndim == 2, "logits are [n, C]"
        assert len(self.logits) == n, "one row of logits per sample"

    @property
    def num_classes(self) -> int:
        return int(self.logits.shape[1])

    @property
    def max_entropy(self) -> float:
        """The entropy of a guess among C classes, nats."""
        return math.log(self.num_classes)


@dataclass(frozen=True, kw_only=True, eq=False)
class ReportInputs:
    """Everything a report shows; a part that is None is said to be missing, with its `why_no_…`.

    metrics: rows of metrics.jsonl. evaluation: eval.json. provenance: run.json. class_names: by label.
    thumbnail: sample id -> uint8 [h, w, 3] of the stored image. teacher: fields of teacher.json, as far as they are known.
    """

    name: str
    recipe: Recipe
    metrics: Sequence[Mapping[str, Any]]
    evaluation: Mapping[str, Any] | None
    provenance: Mapping[str, Any]
    class_names: tuple[str, ...]
    data: DataFacts | None
    targets: Targets | None
    thumbnail: Callable[[int], NDArray[np.uint8]] | None
    teacher: Mapping[str, Any] | None
    out: Path
    why_no_data: str = ""
    why_no_targets: str = ""

    @property
    def student_names(self) -> list[str]:
        return self.recipe.student_names()


def gather(run_folder: Path, *, data: Path | None = None, cache: Path | None = None) -> ReportInputs:
    """Collect a run's report. data, cache: where they lie now, if not where the run found them.

    Images or a cache that are gone, damaged or others than the run's become a sentence in the report, not an error.
    Raises RunError or ConfigError where the run folder itself cannot be read.
    """
    run = RunFolder.open(run_folder)
    provenance = run.provenance
    recipe = Recipe.of(run.config, str(run_folder))
    inputs = ReportInputs(
        name=_name(run_folder.resolve()),
        recipe=recipe,
        metrics=run.metrics(),
        evaluation=run.evaluation,
        provenance=provenance,
        class_names=(),
        data=None,
        targets=None,
        thumbnail=None,
        teacher=_teacher(provenance),
        out=run_folder / "report",
    )
    try:
        dataset = _dataset(provenance, data)
    except (UserError, OSError) as error:
        reason = str(error)
        return replace(inputs, why_no_data=reason, why_no_targets=_why_no_cache(recipe, provenance) or reason)
    split = dataset.split("train")
    inputs = replace(
        inputs,
        class_names=tuple(entry.name for entry in dataset.classes),
        data=_facts(dataset),
        thumbnail=lambda sample_id: thumbnail(split, sample_id),
    )
    why = _why_no_cache(recipe, provenance)
    if why:
        return replace(inputs, why_no_targets=why)
    try:
        return replace(inputs, targets=_targets(split, provenance, cache))
    except (UserError, OSError) as error:
        return replace(inputs, why_no_targets=str(error))


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
    paper = (files("udkd") / "data" / "imagenet100-wnids.txt").read_text().split()
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
    if recipe.loss.beta == 0:
        return "This run had no teacher (β = 0): there are no weights to show."
    return "This run asked its teacher live and kept nothing of what it said. To see its weights, train from a cache."


def _targets(split: Split, provenance: Mapping[str, Any], folder: Path | None) -> Targets:
    """View 0 of the run's cache, every block verified. Raises CacheError, MismatchError."""
    cache = Cache.open(folder or Path(provenance["cache"]))
    cache.require(provenance["cache_key"])
    if cache.num_rows != split.num_samples:
        raise CacheError(f"{cache.folder} has {cache.num_rows} rows; expected {split.num_samples}; build it again")
    file = cache.view_file(0)
    damaged = file.damaged_blocks()
    if damaged:
        file.require_block(damaged[0])
    ids = split.ids
    # All rows of a big cache stay mapped where they can; a selection is a copy.
    pick: NDArray[np.int64] | slice = slice(None) if len(ids) == cache.num_rows else ids
    entropy = np.asarray(file.uncertainties["entropy"][pick], np.float32)
    if np.isnan(entropy).any():
        raise CacheError(f"{cache.folder} lacks targets of samples that are in use; expected all of them; build it again")
    return Targets(
        ids=ids,
        labels=split.labels[ids].astype(np.int64),
        logits=file.logits[pick],
        weight=entropy_weight(torch.from_numpy(entropy), cache.num_classes).numpy(),
        entropy=entropy,
        num_views=int(provenance.get("num_views", 1)),
        canonical=cache.key.policy == "canonical",
    )


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
