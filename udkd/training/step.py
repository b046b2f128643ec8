"""The step: augment, N students, one loss, one backward, N optimizers."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from udkd.augment.apply import ViewTable
from udkd.data.batch import Batch
from udkd.losses.distill import LossSettings, Terms
from udkd.teacher.target import TargetSource, TeacherTargets
from udkd.training.schedule import EpochSchedule, at_step
from udkd.training.student import Student

Objective = Callable[[Tensor, Batch, TeacherTargets, EpochSchedule, Tensor], tuple[list[Tensor], Terms]]
"""(x, batch, lesson, plan, place: the step's number in the epoch) to N logits [B, C] and the terms of the loss."""

ROWS = ("hard", "teacher", "peer", "top1")
"""Rows of Tally.sums."""


@dataclass(frozen=True, kw_only=True)
class TrainMetrics:
    """Sums since the epoch began, on the device: reading them makes the host wait, adding to them does not.

    sums:      float64 [R, N], one row for each of `rows`, each batch's mean times its size (top1: correct predictions).
    count:     int64 [], samples seen. With whole batches it also tells the step's number within the epoch.
    bad_place: int64 [], the first step of the epoch whose loss was not finite, or -1.
    rows:      ROWS, and the names of what a step records besides (Terms.more).
    """

    sums: Tensor
    count: Tensor
    first_nonfinite_step: Tensor
    rows: tuple[str, ...] = ROWS

    @classmethod
    def empty(cls, num_students: int, device: torch.device, more: tuple[str, ...] = ()) -> "TrainMetrics":
        return cls(
            rows=(*ROWS, *more),
            sums=torch.zeros(len(ROWS) + len(more), num_students, dtype=torch.float64, device=device),
            count=torch.zeros((), dtype=torch.int64, device=device),
            first_nonfinite_step=torch.full((), -1, dtype=torch.int64, device=device),
        )

    def clear(self) -> None:
        """Begin anew, in the same memory."""
        self.sums.zero_()
        self.count.zero_()
        self.first_nonfinite_step.fill_(-1)

    @torch.no_grad()
    def add(
        self, place: Tensor, logits: Sequence[Tensor], terms: Terms, labels_B: Tensor, columns: Tensor | None = None
    ) -> None:
        """One batch more, in step number `place` of the epoch. columns: int64, the students' places where not all train."""
        size = len(labels_B)
        correct = torch.stack([(z_BC.argmax(-1) == labels_B).sum() for z_BC in logits]) / size
        rows = torch.stack([terms.hard, terms.teacher, terms.peer, correct, *terms.more]).double()
        self.sums.add_(rows, alpha=size) if columns is None else self.sums.index_add_(1, columns, rows, alpha=size)
        self.count.add_(size)
        first_bad = (self.first_nonfinite_step < 0) & ~torch.isfinite(terms.total)
        self.first_nonfinite_step.copy_(torch.where(first_bad, place, self.first_nonfinite_step))

    def means(self, loss: LossSettings) -> dict[str, list[float]]:
        """The means so far, one entry per student: "loss" and each of `rows` (top1 in percent). Makes the host wait."""
        row = dict(zip(self.rows, (self.sums / self.count.clamp(min=1)).tolist(), strict=True))
        weighted = zip(row["hard"], row["teacher"], row["peer"], strict=True)
        row["top1"] = [100 * share for share in row["top1"]]
        return {"loss": [loss.alpha * hard + loss.beta * teacher + loss.gamma * peer for hard, teacher, peer in weighted]} | row


@dataclass(frozen=True, kw_only=True)
class TrainStep:
    """All that a step needs and that no step changes but the students. What is compiled was decided when it was assembled.

    augment: canvases and views to the students' input. objective: all students and their loss.
    columns: int64, the students' places in the recipe, where not all of them train.
    """

    students: Sequence[Student]
    augment: Callable[[Tensor, ViewTable], Tensor]
    lessons: TargetSource
    objective: Objective
    channels_last: bool
    columns: Tensor | None = None

    def __call__(self, batch: Batch, plan: EpochSchedule, tally: TrainMetrics) -> None:
        """Train every student on one batch and add what happened to the tally.

        Nothing here waits for the device, and whatever a step's number decides is looked up on the device: the same lines
        run batch by batch or, recorded once, as one CUDA graph.
        """
        place = tally.count // len(batch.labels)
        rates, keys, ema_rate = (at_step(each, place) for each in (plan.rates, plan.dropout_keys, plan.ema_rate))
        for student in self.students:
            student.set_step_inputs(rates[student.index], keys[student.index])
        views = plan.views.gather(batch.ids)
        x_BCHW = self.augment(batch.canvas, views)
        lesson = self.lessons.lookup(batch, x_BCHW, plan.view)
        if not self.channels_last:
            x_BCHW = x_BCHW.contiguous()
        logits, terms = self.objective(x_BCHW, batch, lesson, plan, place)
        terms.total.backward()  # type: ignore[no-untyped-call]
        for student in self.students:
            student.optimizer_step(ema_rate)
        tally.add(place, logits, terms, batch.labels, self.columns)

    def mutable_state(self) -> list[Tensor]:
        """Every tensor that a step changes, but for the tally's."""
        return [tensor for student in self.students for tensor in student.mutable_state()]
