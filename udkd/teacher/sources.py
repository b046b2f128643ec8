"""Sources of a batch's teacher logits and weights: the cache, a live teacher, or none."""

import json
from collections.abc import Callable, Collection, Sequence
from functools import partial
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from udkd.augment import apply as augment
from udkd.augment.mixing import MixedLabels
from udkd.augment.preprocessing import NetworkInput
from udkd.augment.view_table import EpochLabels, EpochViews
from udkd.config.recipe import Recipe
from udkd.data.batch import Batch
from udkd.data.dataset import DatasetFolder
from udkd.losses.sample_weight import SampleWeighting, needs_labels, sample_weight, uncertainty_of
from udkd.losses.storage import Storage
from udkd.teacher.cache.key import CacheKey, Differing
from udkd.teacher.cache.reader import ESTIMATORS_WITH, Cache
from udkd.teacher.cache.tables import DeviceTable, MappedTable, TargetTable
from udkd.teacher.ensemble import TeacherEnsemble
from udkd.teacher.folder import TeacherFolder
from udkd.teacher.frozen import require_same_classes
from udkd.teacher.target import TargetSource, TeacherTargets
from udkd.teacher.target_key import target_fields, training_remedy
from udkd.utils.errors import CacheError, ConfigError
from udkd.utils.progress import SILENT, Observer

REGULARISER_EPOCHS = 10
"""Epochs over which the evidential loss's regulariser grows to its full weight: Sensoy et al., arXiv 1806.01768, section 4."""


@final
class NoTargets:
    """The source of a run without a teacher."""

    num_features = 0

    def load(self, view: int) -> None:
        """Nothing to load."""

    def __call__(self, batch: Batch, x_BCHW: Tensor, view: int, labels: Tensor | MixedLabels | None = None) -> TeacherTargets:
        return TeacherTargets(logits=None, weight=None)


@final
class EvidentialRampUp:
    """No teacher, but the evidential label loss: weights are its regulariser's, min(1, epoch / 10). The view is the epoch."""

    num_features = 0

    def __init__(self, device: torch.device) -> None:
        self._weight = torch.zeros((), device=device)
        self._view = 0

    def load(self, view: int) -> None:
        """See TargetSource."""
        if view != self._view:
            self._weight.fill_(min(1.0, view / REGULARISER_EPOCHS))
            self._view = view

    def __call__(self, batch: Batch, x_BCHW: Tensor, view: int, labels: Tensor | MixedLabels | None = None) -> TeacherTargets:
        self.load(view)
        return TeacherTargets(logits=None, weight=self._weight.repeat(len(batch.labels)))


@final
class CachedTargets:
    """Targets gathered from a cache. A cache of evaluation views has only view 0, which serves every view of the students.

    labels_of: the labels of all ids in a view, on the CPU, for weights that depend on them.
    features: whether the teacher's pooled features are part of the targets. ids: the ids that will be looked up; each view is
    checked for them when it is loaded. in_memory: see Cache.lookup_table.
    """

    def __init__(
        self,
        cache: Cache,
        device: torch.device,
        weighting: SampleWeighting | None = None,
        labels_of: Callable[[int], Tensor | MixedLabels] | None = None,
        *,
        features: bool = False,
        ids: NDArray[np.int64] | None = None,
        in_memory: bool = False,
    ) -> None:
        weighting = weighting or SampleWeighting()
        self.num_features = cache.key.features if features else 0
        self._weighted = weighting.kind != "constant"
        self._evaluation_view = cache.key.policy == "canonical"
        self._open = partial(
            cache.lookup_table,
            device=device,
            weighting=weighting,
            features=features,
            ids=ids,
            in_memory=in_memory,
        )
        self._labels_of = labels_of
        self._view: int | None = None
        self._table: TargetTable | None = None
        self._mapped: dict[int, TargetTable] = {}  # by view: each remembers which of its blocks were verified

    def load(self, view: int) -> None:
        """See TargetSource. Raises CacheError for a view that is absent, incomplete or damaged."""
        view = 0 if self._evaluation_view else view
        if view == self._view:
            return
        labels_N = None if self._labels_of is None else self._labels_of(view)
        if isinstance(self._table, DeviceTable):
            self._open(view, labels_N=labels_N, into=self._table)
        else:
            if isinstance(self._table, MappedTable):
                self._table.labels_N = None  # those of mixed samples are another copy for every view
            self._table = self._mapped[view] = self._mapped.get(view) or self._open(view, labels_N=labels_N)
            if isinstance(self._table, MappedTable):
                self._table.labels_N = labels_N
        self._view = view

    def __call__(self, batch: Batch, x_BCHW: Tensor, view: int, labels: Tensor | MixedLabels | None = None) -> TeacherTargets:
        self.load(view)
        assert self._table is not None
        logits_BC, weight_B = self._table.lookup(batch.ids)
        return TeacherTargets(
            logits=logits_BC,
            weight=weight_B if self._weighted else None,
            features=self._table.features(batch.ids) if self.num_features else None,
        )


@final
class LiveTargets:
    """Targets that the teachers compute in every step: with a cache's pixels and rounding, and so CachedTargets' bits.

    evaluation_views: what the teachers see; None shows them what the students see.
    weighting: one that depends on each sample alone.
    """

    def __init__(
        self, teachers: TeacherEnsemble, evaluation_views: EpochViews | None, weighting: SampleWeighting | None = None
    ) -> None:
        self._teachers = teachers
        self._evaluation_views = evaluation_views
        self._kind = (weighting or SampleWeighting()).kind
        self._maps: dict[str, list[Tensor]] = {}

    @property
    def input(self) -> NetworkInput:
        """The size and preprocessing of the teachers' input."""
        return self._teachers.input

    @property
    def shares_views(self) -> bool:
        """Whether the teachers see the students' crop, flip and jitter."""
        return self._evaluation_views is None

    @property
    def network(self) -> nn.Module:
        """The first teacher's network."""
        return self._teachers.members[0].model

    @property
    def num_features(self) -> int:
        """See TargetSource."""
        return self._teachers.num_features

    def keep_maps(self, modules: Sequence[str]) -> None:
        """Include the feature maps of these modules of `network` in all further targets."""
        for name in modules:
            maps = self._maps[name] = []
            self.network.get_submodule(name).register_forward_hook(partial(_append_output, maps))

    def load(self, view: int) -> None:
        """Nothing to load."""

    @torch.no_grad()
    def __call__(self, batch: Batch, x_BCHW: Tensor, view: int, labels: Tensor | MixedLabels | None = None) -> TeacherTargets:
        for blocks in self._maps.values():
            blocks.clear()
        if self._evaluation_views is not None:
            view, table = 0, self._evaluation_views.table(0)
            (x_BCHW,) = augment.apply_each(batch.canvas, table.gather(batch.ids), [self.input], self._evaluation_views.spec)
        packed = self._teachers.targets(x_BCHW, batch.ids, view)
        logits_BC = packed.dense(self._teachers.num_classes)
        weight_B = None
        if self._kind != "constant":
            uncertainty_B = packed.uncertainties.get(uncertainty_of(self._kind) or "")
            weight_B = sample_weight(
                self._kind,
                logits_BC,
                uncertainty_B,
                batch.labels if labels is None else labels,
                num_members=self._teachers.num_members,
            )
        # The network runs on blocks of one shape, in order, the last one padded.
        maps = {name: torch.cat(blocks)[: len(batch.ids)] for name, blocks in self._maps.items()}
        return TeacherTargets(logits=logits_BC, weight=weight_B, features=packed.features, maps=maps)


def _append_output(outputs: list[Tensor], module: nn.Module, inputs: Any, output: Tensor) -> None:
    outputs.append(output.detach())


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
    """The source of a recipe's targets, and its provenance for the run folder ("num_views": how many views are reused in turn).

    cache, teachers: folders; teachers given with a cache are checked against its key. allow: fields that may differ.
    observer: notified where a cache's storage differs from the default.
    ConfigError: the folder that the recipe needs was not given. MismatchError, CacheError: it does not fit.
    """
    if not recipe.needs_teacher:
        return (EvidentialRampUp(device) if recipe.loss.label_loss == "evidential" else NoTargets()), {}
    views = recipe.teacher.views
    provenance: dict[str, Any] = {} if views == "eval" else {"num_views": views}
    if len(teachers) == 1:
        provenance["teacher"] = str(teachers[0].resolve())
    elif teachers:
        provenance["teachers"] = [str(teacher.resolve()) for teacher in teachers]
    source: TargetSource
    if recipe.teacher.source == "cache":
        source, more = _cached(recipe, dataset, pixel_class, device, cache, teachers, allow, observer)
    else:
        source, more = _live(recipe, dataset, device, teachers)
    return source, provenance | more


def _cached(
    recipe: Recipe,
    dataset: DatasetFolder,
    pixel_class: str,
    device: torch.device,
    cache: Path | None,
    teachers: Sequence[Path],
    allow: Collection[str],
    observer: Observer,
) -> tuple[CachedTargets, dict[str, Any]]:
    if cache is None:
        raise ConfigError(
            "no cache was given; expected --cache CACHE for teacher.source = cache; "
            "make one with udkd cache build, or give --teacher TEACHER, which makes it, too"
        )
    opened = Cache.open(cache)
    expected = target_fields(recipe, dataset, pixel_class)
    provenance: dict[str, Any] = {"cache": str(cache.resolve()), "cache_key": json.loads(opened.key.to_json())}
    if teachers:
        folders = [TeacherFolder.open(teacher) for teacher in teachers]
        for folder in folders:
            require_same_classes(folder, dataset)
        expected["teacher"] = " + ".join(folder.info.architecture for folder in folders)
        expected["teacher_sha256"] = " + ".join(folder.info.weights_sha256 for folder in folders)
        expected["normalisation"] = folders[0].info.preprocessing.key_values
    storage, split = recipe.teacher.storage, dataset.split("train")
    if storage != Storage():
        expected["storage"] = storage.text
    elif opened.key.storage != storage.text:  # a recipe with the default storage accepts any
        observer.note(
            f"the cache stores {opened.key.storage} where the recipe's teacher.logits_dtype and top_k are {storage.text}"
        )

    def remedy(key: CacheKey, differing: Differing) -> str:
        return training_remedy(key, len(opened.views), recipe, dataset, pixel_class, differing)

    provenance["allowed"] = opened.require(expected, allow, remedy)
    if opened.unchecked:
        observer.note(opened.unchecked)
    opened.require_rows(len(split.labels), split.ids, len(dataset.classes))
    if recipe.views.spec.mixes != opened.key.mixes:  # an allowed difference, but these are targets of other samples
        stored, wanted = ("two mixed samples", "one") if opened.key.mixes else ("one sample", "two mixed samples")
        raise CacheError(
            f"{cache} holds targets of views that show {stored}, and the students' views show {wanted}; expected targets of "
            "what the students see; build a cache for these settings"
        )
    if opened.key.policy == "views":
        views = recipe.teacher.views
        opened.require_views(recipe.train.epochs if views == "eval" else views)
    weighting = recipe.loss.sample_weighting
    opened.require_uncertainty(weighting.kind)
    if recipe.pools_features:
        opened.require_features()
    source = CachedTargets(
        opened,
        device,
        weighting,
        EpochLabels(recipe.teacher_spec, recipe.views.seed, split) if needs_labels(weighting.kind) else None,
        features=recipe.pools_features,
        ids=split.ids,
        in_memory=recipe.train.input == "resident",
    )
    return source, provenance


def _live(
    recipe: Recipe, dataset: DatasetFolder, device: torch.device, teachers: Sequence[Path]
) -> tuple[LiveTargets, dict[str, Any]]:
    if not teachers:
        raise ConfigError("no teacher was given; expected --teacher TEACHER for teacher.source = live")
    weighting = recipe.loss.sample_weighting
    if weighting.needs_all:
        setting = f"sample_weight_control = {weighting.control}" if weighting.control != "none" else "sample_weight_mean_one"
        raise ConfigError(
            f"loss.{setting} needs the weights of all samples, and a live teacher sees one batch; "
            "expected teacher.source = cache; build a cache"
        )
    needed = uncertainty_of(weighting.kind)
    if needed is not None and needed not in recipe.teacher.estimator_settings.uncertainties:
        raise ConfigError(
            f"loss.sample_weight is {weighting.kind} and teacher.estimator {recipe.teacher.estimator}; expected one that gives "
            f"{needed}: {' or '.join(ESTIMATORS_WITH[needed])}; change one of them"
        )
    folders = [TeacherFolder.open(teacher) for teacher in teachers]
    ensemble = TeacherEnsemble.load(folders, recipe, dataset, device, features=recipe.pools_features)
    is_eval = recipe.teacher.views == "eval"
    views = EpochViews(recipe.teacher_evaluation_spec, 0, dataset.split("train"), device) if is_eval else None
    return LiveTargets(ensemble, views, weighting), {"teacher_sha256": ensemble.describe()["teacher_sha256"]}
