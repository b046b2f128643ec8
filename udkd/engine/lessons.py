"""Where a batch's teacher logits and weights come from: the cache, a live teacher, or nowhere."""

from functools import cache
from typing import final

import torch
from torch import Tensor

from udkd.formats.cache import Cache, TargetTable
from udkd.operations import augment
from udkd.parts.epoch_views import EpochViews
from udkd.parts.frozen_teacher import FrozenTeacher
from udkd.words.batch import Batch
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

        @cache
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
