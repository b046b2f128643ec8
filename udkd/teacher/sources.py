"""Where a batch's teacher logits and weights come from: the cache, a live teacher, or nowhere."""

import json
from collections.abc import Collection, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from udkd.augment import apply as augment
from udkd.augment.view_table import EpochViews
from udkd.config.recipe import Recipe
from udkd.data.batch import Batch
from udkd.data.dataset import DatasetFolder
from udkd.losses.sample_weight import SampleWeighting, needs_labels, sample_weight, uncertainty_of
from udkd.losses.storage import Storage
from udkd.teacher.cache.key import CacheKey, Differing
from udkd.teacher.cache.reader import ESTIMATORS_WITH, Cache
from udkd.teacher.cache.tables import TargetTable
from udkd.teacher.ensemble import TeacherEnsemble
from udkd.teacher.folder import TeacherFolder
from udkd.teacher.frozen import require_same_classes
from udkd.teacher.target import TargetSource, TeacherTargets
from udkd.teacher.target_key import target_fields, training_remedy
from udkd.utils.errors import ConfigError
from udkd.utils.progress import SILENT, Observer


@final
class NoTargets:
    """Hard labels only."""

    def lookup(self, batch: Batch, x_BCHW: Tensor, view: int) -> TeacherTargets:
        return TeacherTargets(logits=None, weight=None)


REGULARISED_EPOCHS = 10
"""Over which the evidential loss's regulariser grows to its whole weight: Sensoy et al., arXiv 1806.01768, section 4."""


@final
class EvidentialRampUp:
    """Hard labels by the evidential loss: the regulariser's weight min(1, epoch / 10); without a teacher a view is an epoch."""

    def lookup(self, batch: Batch, x_BCHW: Tensor, view: int) -> TeacherTargets:
        share = min(1.0, view / REGULARISED_EPOCHS)
        return TeacherTargets(logits=None, weight=torch.full(batch.labels.shape, share, device=batch.labels.device))


@final
class CachedTargets:
    """A gather from the cache. Canonical targets are view 0 of the cache whatever the students see.

    labels_N: class indices of all ids, on the CPU, for weights that are held against them. features: the teacher's pooled
    features belong to each lesson. ids: that will be asked for; each view is then held against them as it is opened.
    """

    def __init__(
        self,
        targets: Cache,
        device: torch.device,
        weighing: SampleWeighting | None = None,
        labels_N: Tensor | None = None,
        *,
        features: bool = False,
        ids: NDArray[np.int64] | None = None,
    ) -> None:
        self.num_features = targets.key.features if features else 0
        self._canonical = targets.key.policy == "canonical"

        @lru_cache(maxsize=None)  # noqa: UP033 ("cache" is another word here)
        def table(view: int) -> TargetTable:
            return targets.lookup_table(view, device, weighing, labels_N, features=features, ids=ids)

        self._table = table

    def lookup(self, batch: Batch, x_BCHW: Tensor, view: int) -> TeacherTargets:
        table = self._table(0 if self._canonical else view)
        logits_BC, weight_B = table.lookup(batch.ids)
        return TeacherTargets(
            logits=logits_BC, weight=weight_B, features=table.features(batch.ids) if self.num_features else None
        )


@final
class LiveTargets:
    """The teachers themselves, on the very pixels of the cache and through the same packing: the same bits as CachedTargets.

    canonical: evaluation views to show them; None shows them what the students see.
    weighing: one that needs no other samples.
    """

    def __init__(self, panel: TeacherEnsemble, canonical: EpochViews | None, weighing: SampleWeighting | None = None) -> None:
        self._panel = panel
        self._canonical = canonical
        self._kind = (weighing or SampleWeighting()).kind

    @property
    def network(self) -> nn.Module:
        """The network that answers."""
        return self._panel.members[0].model

    @property
    def num_features(self) -> int:
        """Pooled features of each lesson."""
        return self._panel.num_features

    @torch.no_grad()
    def lookup(self, batch: Batch, x_BCHW: Tensor, view: int) -> TeacherTargets:
        if self._canonical is not None:
            view, table = 0, self._canonical.table(0)
            x_BCHW = augment.apply(batch.canvas, table.gather(batch.ids), self._canonical.spec)
        packed = self._panel.targets(x_BCHW, batch.ids, view)
        logits_BC = packed.dense(self._panel.num_classes)
        if self._kind == "constant":
            return TeacherTargets(logits=logits_BC, weight=None, features=packed.features)
        uncertainty_B = packed.uncertainties.get(uncertainty_of(self._kind) or "")
        members = self._panel.num_members
        weight_B = sample_weight(self._kind, logits_BC, uncertainty_B, batch.labels, num_members=members)
        return TeacherTargets(logits=logits_BC, weight=weight_B, features=packed.features)


@final
class UnweightedTargets:
    """Another's lessons with every sample's weight 1: plain knowledge distillation."""

    def __init__(self, lessons: TargetSource) -> None:
        self._lessons = lessons

    @property
    def network(self) -> nn.Module:
        """That of a live teacher."""
        return live_network(self._lessons)

    @property
    def num_features(self) -> int:
        """Those of the other's."""
        return num_features(self._lessons)

    def lookup(self, batch: Batch, x_BCHW: Tensor, view: int) -> TeacherTargets:
        return replace(self._lessons.lookup(batch, x_BCHW, view), weight=None)


def live_network(lessons: TargetSource) -> nn.Module:
    """The network behind lessons that ask one."""
    assert isinstance(lessons, LiveTargets | UnweightedTargets), "a recipe whose method looks inside its teacher has a live one"
    return lessons.network


def num_features(lessons: TargetSource) -> int:
    """How many pooled features a teacher's lessons hold; 0 for none."""
    return lessons.num_features if isinstance(lessons, CachedTargets | LiveTargets | UnweightedTargets) else 0


def open_targets(
    recipe: Recipe,
    dataset: DatasetFolder,
    pixel_class: str,
    device: torch.device,
    *,
    cache: Path | None,
    teachers: Sequence[Path],
    allow: Collection[str] = (),
    observer: Observer = SILENT,
) -> tuple[TargetSource, dict[str, Any]]:
    """Whoever teaches a recipe's students, and what the run should record of it ("num_views": how many views recur).

    cache, teachers: folders; teachers beside a cache are held against its key. allow: fields of the key that may differ.
    observer: is told where a cache is stored otherwise than a recipe says by default.
    Raises ConfigError where the folder that is needed was not given, MismatchError and CacheError where it does not fit.
    """
    if not recipe.needs_teacher:
        return (EvidentialRampUp() if recipe.loss.label_loss == "evidential" else NoTargets()), {}
    views = recipe.teacher.views
    record: dict[str, Any] = {} if views == "eval" else {"num_views": views}
    if len(teachers) == 1:
        record["teacher"] = str(teachers[0].resolve())
    elif teachers:
        record["teachers"] = [str(teacher.resolve()) for teacher in teachers]
    if recipe.teacher.source == "cache":
        lessons, more = _cached(recipe, dataset, pixel_class, device, cache, teachers, allow, observer)
    else:
        lessons, more = _live(recipe, dataset, device, teachers)
    return (UnweightedTargets(lessons) if recipe.loss.sample_weight == "constant" else lessons), record | more


def _cached(
    recipe: Recipe,
    dataset: DatasetFolder,
    pixel_class: str,
    device: torch.device,
    cache: Path | None,
    teachers: Sequence[Path],
    allow: Collection[str],
    observer: Observer,
) -> tuple[TargetSource, dict[str, Any]]:
    if cache is None:
        raise ConfigError("no cache was given; expected --cache CACHE for teacher.source = cache; build one or set live")
    targets = Cache.open(cache)
    expected = target_fields(recipe, dataset, pixel_class)
    record: dict[str, Any] = {"cache": str(cache.resolve()), "cache_key": json.loads(targets.key.to_json())}
    if teachers:
        folders = [TeacherFolder.open(teacher) for teacher in teachers]
        for folder in folders:
            require_same_classes(folder, dataset)
        expected["teacher"] = " + ".join(folder.info.architecture for folder in folders)
        expected["teacher_sha256"] = " + ".join(folder.info.weights_sha256 for folder in folders)
    asked, split = recipe.teacher.storage, dataset.split("train")
    if asked != Storage():
        expected["storage"] = asked.text
    elif targets.key.storage != asked.text:  # a recipe that says nothing of it takes a cache as it is
        observer.note(
            f"the cache stores {targets.key.storage} where the recipe's teacher.logits_dtype and top_k say {asked.text}"
        )

    def remedy(key: CacheKey, differing: Differing) -> str:
        return training_remedy(key, len(targets.views), recipe, dataset, pixel_class, differing)

    record["allowed"] = targets.require(expected, allow, remedy)
    targets.require_rows(len(split.labels), split.ids, len(dataset.classes))
    if targets.key.policy == "views":
        views = recipe.teacher.views
        targets.require_views(recipe.train.epochs if views == "eval" else views)
    weighing = recipe.loss.sample_weighting
    targets.require_uncertainty(weighing.kind)
    if recipe.pools_features:
        targets.require_features()
    labels_N = torch.from_numpy(split.labels.astype("int64")) if needs_labels(weighing.kind) else None
    return CachedTargets(targets, device, weighing, labels_N, features=recipe.pools_features, ids=split.ids), record


def _live(
    recipe: Recipe, dataset: DatasetFolder, device: torch.device, teachers: Sequence[Path]
) -> tuple[TargetSource, dict[str, Any]]:
    if not teachers:
        raise ConfigError("no teacher was given; expected --teacher TEACHER for teacher.source = live")
    weighing = recipe.loss.sample_weighting
    if weighing.needs_all:
        setting = f"sample_weight_control = {weighing.control}" if weighing.control != "none" else "sample_weight_mean_one"
        raise ConfigError(
            f"loss.{setting} needs the weights of all samples, and a live teacher knows one batch; "
            "expected teacher.source = cache; build a cache"
        )
    needed = uncertainty_of(weighing.kind)
    if needed is not None and needed not in recipe.teacher.estimator_settings.uncertainties:
        raise ConfigError(
            f"loss.sample_weight is {weighing.kind} and teacher.estimator {recipe.teacher.estimator}; expected one that gives "
            f"{needed}: {' or '.join(ESTIMATORS_WITH[needed])}; change one of them"
        )
    folders = [TeacherFolder.open(teacher) for teacher in teachers]
    panel = TeacherEnsemble.load(folders, recipe, dataset, device, features=recipe.pools_features)
    canonical = recipe.teacher.views == "eval"
    shown = EpochViews(recipe.evaluation_spec, 0, dataset.split("train"), device) if canonical else None
    return LiveTargets(panel, shown, weighing), {"teacher_sha256": panel.describe()["teacher_sha256"]}
