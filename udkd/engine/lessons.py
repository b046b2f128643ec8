"""Where a batch's teacher logits and weights come from: the cache, a live teacher, or nowhere."""

import json
from collections.abc import Collection
from functools import lru_cache
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor

from udkd.formats.cache import Cache, TargetTable
from udkd.formats.config import Recipe
from udkd.formats.dataset import DatasetFolder
from udkd.formats.teacher import TeacherFolder
from udkd.operations import augment
from udkd.parts.epoch_views import EpochViews
from udkd.parts.frozen_teacher import FrozenTeacher, require_same_classes
from udkd.parts.target_key import target_meaning
from udkd.words.batch import Batch
from udkd.words.errors import ConfigError
from udkd.words.lesson import Lesson, Lessons
from udkd.words.uncertainty import entropy_weight


@final
class NoLessons:
    """Hard labels only."""

    def lookup(self, batch: Batch, x_BCHW: Tensor, view: int) -> Lesson:
        return Lesson(logits=None, weight=None)


@final
class CachedLessons:
    """A gather from the cache. Canonical targets are view 0 of the cache whatever the students see."""

    def __init__(self, targets: Cache, device: torch.device) -> None:
        self._canonical = targets.key.policy == "canonical"

        @lru_cache(maxsize=None)  # noqa: UP033 ("cache" is another word here)
        def table(view: int) -> TargetTable:
            return targets.lookup_table(view, device)

        self._table = table

    def lookup(self, batch: Batch, x_BCHW: Tensor, view: int) -> Lesson:
        logits_BC, weight_B = self._table(0 if self._canonical else view).lookup(batch.ids)
        return Lesson(logits=logits_BC, weight=weight_B)


@final
class LiveLessons:
    """The teacher itself, on the very pixels of the cache and through the same packing: the same bits as CachedLessons.

    canonical: evaluation views to show the teacher; None shows it what the students see.
    """

    def __init__(self, teacher: FrozenTeacher, canonical: EpochViews | None) -> None:
        self._teacher = teacher
        self._canonical = canonical

    @torch.no_grad()
    def lookup(self, batch: Batch, x_BCHW: Tensor, view: int) -> Lesson:
        if self._canonical is not None:
            x_BCHW = augment.apply(batch.canvas, self._canonical.table(0).gather(batch.ids), self._canonical.spec)
        packed = self._teacher.targets(x_BCHW)
        return Lesson(logits=packed.logits, weight=entropy_weight(packed.entropy, self._teacher.num_classes))


@final
class Unweighted:
    """Another's lessons with every sample's weight 1: plain knowledge distillation."""

    def __init__(self, lessons: Lessons) -> None:
        self._lessons = lessons

    def lookup(self, batch: Batch, x_BCHW: Tensor, view: int) -> Lesson:
        return Lesson(logits=self._lessons.lookup(batch, x_BCHW, view).logits, weight=None)


def open_lessons(
    recipe: Recipe,
    dataset: DatasetFolder,
    pixel_class: str,
    device: torch.device,
    *,
    cache: Path | None,
    teacher: Path | None,
    allow: Collection[str] = (),
) -> tuple[Lessons, dict[str, Any]]:
    """Whoever teaches a recipe's students, and what the run should record of it ("num_views": how many views recur).

    cache, teacher: folders; a teacher beside a cache is held against its key. allow: fields of the key that may differ.
    Raises ConfigError where the folder that is needed was not given, MismatchError and CacheError where it does not fit.
    """
    if recipe.loss.beta == 0:
        return NoLessons(), {}
    views = recipe.teacher.views
    record: dict[str, Any] = {} if views == "canonical" else {"num_views": views}
    if recipe.teacher.source == "cache":
        lessons, more = _cached(recipe, dataset, pixel_class, device, cache, teacher, allow)
    else:
        lessons, more = _live(recipe, dataset, device, teacher)
    return (Unweighted(lessons) if recipe.loss.weight == "constant" else lessons), record | more


def _cached(
    recipe: Recipe,
    dataset: DatasetFolder,
    pixel_class: str,
    device: torch.device,
    cache: Path | None,
    teacher: Path | None,
    allow: Collection[str],
) -> tuple[Lessons, dict[str, Any]]:
    if cache is None:
        raise ConfigError("no cache was given; expected --cache CACHE for teacher.source = cache; build one or set live")
    targets = Cache.open(cache)
    expected = target_meaning(recipe, dataset, pixel_class)
    record: dict[str, Any] = {"cache": str(cache.resolve()), "cache_key": json.loads(targets.key.to_json())}
    if teacher is not None:
        info = TeacherFolder.open(teacher).info
        expected |= {"teacher": info.architecture, "teacher_sha256": info.weights_sha256}
        record["teacher"] = str(teacher.resolve())
    record["allowed"] = targets.require(expected, allow)
    if recipe.teacher.views != "canonical":
        targets.require_views(recipe.teacher.views)
    return CachedLessons(targets, device), record


def _live(recipe: Recipe, dataset: DatasetFolder, device: torch.device, teacher: Path | None) -> tuple[Lessons, dict[str, Any]]:
    if teacher is None:
        raise ConfigError("no teacher was given; expected --teacher TEACHER for teacher.source = live")
    folder = TeacherFolder.open(teacher)
    require_same_classes(folder, dataset)
    frozen = FrozenTeacher.load(
        folder,
        device=device,
        batch=recipe.teacher.batch,
        precision=recipe.teacher.precision,
        image_px=recipe.views.size_px,
    )
    canonical = recipe.teacher.views == "canonical"
    shown = EpochViews(recipe.evaluation_spec, 0, dataset.split("train"), device) if canonical else None
    return LiveLessons(frozen, shown), {"teacher": str(teacher.resolve()), "teacher_sha256": folder.info.weights_sha256}
