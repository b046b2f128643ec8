"""The step: augment, N students, one loss, one backward, N optimizers."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from udkd.operations import augment
from udkd.operations.augment import ViewTable
from udkd.operations.compiled import Loss
from udkd.parts.students import Student
from udkd.words.batch import Batch
from udkd.words.lesson import Lessons
from udkd.words.losses import LossSettings
from udkd.words.views import ViewSpec

ROWS = ("hard", "teacher", "peer", "top1")
"""Rows of Tally.sums."""


@dataclass(frozen=True, kw_only=True)
class Tally:
    """Sums since the epoch began, on the device: reading them makes the host wait, adding to them does not.

    sums:     float64 [4, N], one row for each of ROWS, each batch's mean times its size (top1: correct predictions).
    count:    int64 [], samples seen.
    bad_step: int64 [], the first step whose loss was not finite, or -1.
    """

    sums: Tensor
    count: Tensor
    bad_step: Tensor

    @classmethod
    def empty(cls, num_students: int, device: torch.device) -> "Tally":
        return cls(
            sums=torch.zeros(len(ROWS), num_students, dtype=torch.float64, device=device),
            count=torch.zeros((), dtype=torch.int64, device=device),
            bad_step=torch.full((), -1, dtype=torch.int64, device=device),
        )

    def means(self, loss: LossSettings) -> dict[str, list[float]]:
        """The means so far, one entry per student: "loss" and each of ROWS (top1 in percent). Makes the host wait."""
        row = dict(zip(ROWS, (self.sums / self.count.clamp(min=1)).tolist(), strict=True))
        weighted = zip(row["hard"], row["teacher"], row["peer"], strict=True)
        row["top1"] = [100 * share for share in row["top1"]]
        return {"loss": [loss.alpha * hard + loss.beta * teacher + loss.gamma * peer for hard, teacher, peer in weighted]} | row


@dataclass(frozen=True, kw_only=True)
class Step:
    """All that a step needs and that no step changes but the students.

    spec: the training views. autocast: bfloat16 for the students' forward pass; the loss is outside.
    """

    students: Sequence[Student]
    spec: ViewSpec
    lessons: Lessons
    loss: Loss
    autocast: bool
    channels_last: bool

    def __call__(self, batch: Batch, table: ViewTable, view: int, tally: Tally, step: int) -> None:
        """Train every student on one batch and add what happened to the tally. table: the views of all ids."""
        views = table.gather(batch.ids)
        x_BCHW = augment.apply(batch.canvas, views, self.spec)
        lesson = self.lessons.lookup(batch, x_BCHW, view)
        if not self.channels_last:
            x_BCHW = x_BCHW.contiguous()
        with torch.autocast(x_BCHW.device.type, dtype=torch.bfloat16, enabled=self.autocast):
            logits = [student.forward(x_BCHW) for student in self.students]
        terms = self.loss(logits, batch.labels, lesson.logits, lesson.weight)
        terms.total.backward()  # type: ignore[no-untyped-call]
        for student in self.students:
            student.optimizer.step()
            student.optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            size = len(batch.labels)
            correct = torch.stack([(z_BC.argmax(-1) == batch.labels).sum() for z_BC in logits]) / size
            tally.sums.add_(torch.stack([terms.hard, terms.teacher, terms.peer, correct]).double(), alpha=size)
            tally.count.add_(size)
            first_bad = (tally.bad_step < 0) & ~torch.isfinite(terms.total)
            tally.bad_step.copy_(torch.where(first_bad, step, tally.bad_step))
