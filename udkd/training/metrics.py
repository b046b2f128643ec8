"""Training metrics: sums over the steps of an epoch, on the device, read once at its end."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from udkd.config.recipe import Recipe
from udkd.losses.distill import Labels, Terms, correct_share
from udkd.losses.settings import LossSettings

ROWS = ("hard", "teacher", "peer", "top1")
"""What every step records. With fixed weights the loss follows from the means of the first three."""
DETAIL_ROWS = ("method", "loss", "confidence")
"""Recorded too where the loss has a method's term, or weights that differ between steps or students: the method's term before
its weight, the student's part of the total, and the mean sample weight w."""


def recorded_rows(recipe: Recipe) -> tuple[str, ...]:
    """Rows of TrainMetrics.sums. They depend on the recipe alone, because a checkpoint must have the same rows."""
    loss = recipe.loss
    fixed = not loss.scheduled and loss.method == "none" and all(student.loss_weight == 1 for student in recipe.students)
    return ROWS if fixed else (*ROWS, *DETAIL_ROWS)


@dataclass(frozen=True, kw_only=True)
class TrainMetrics:
    """Sums since the epoch began, on the device. Adding to them never makes the host wait; reading them does.

    sums:  float64 [R, N], one row for each of `rows`, each batch's mean times its size (top1: correct predictions).
    count: int64 [], samples seen.
    first_nonfinite_step: int64 [], the first step of the epoch whose loss was not finite, or -1. nonfinite_slice: int64 [], the
    first slice of that step whose loss was not.
    """

    sums: Tensor
    count: Tensor
    first_nonfinite_step: Tensor
    nonfinite_slice: Tensor
    rows: tuple[str, ...] = ROWS

    @classmethod
    def empty(cls, num_students: int, device: torch.device, rows: tuple[str, ...] = ROWS) -> "TrainMetrics":
        return cls(
            rows=rows,
            sums=torch.zeros(len(rows), num_students, dtype=torch.float64, device=device),
            count=torch.zeros((), dtype=torch.int64, device=device),
            first_nonfinite_step=torch.full((), -1, dtype=torch.int64, device=device),
            nonfinite_slice=torch.zeros((), dtype=torch.int64, device=device),
        )

    def clear(self) -> None:
        """Reset everything, in the same memory."""
        self.sums.zero_()
        self.count.zero_()
        self.first_nonfinite_step.fill_(-1)
        self.nonfinite_slice.zero_()

    @torch.no_grad()
    def of_batch(
        self,
        logits: Sequence[Tensor],
        labels: Labels,
        terms: Terms,
        weights_4N: Tensor,
        sample_weight_B: Tensor | None,
    ) -> Tensor:
        """A batch's means, or a slice's: float32 [R, N], a row for each of `rows`.

        weights_4N: this step's loss weights. sample_weight_B: float32 [B], None for 1.
        """
        size = len(logits[0])
        correct_N = torch.stack([correct_share(z_BC.argmax(-1), labels).sum() for z_BC in logits]) / size
        rows = [terms.hard, terms.teacher, terms.peer, correct_N]
        if len(self.rows) > len(ROWS):
            method_N = torch.zeros_like(correct_N) if terms.method is None else terms.method
            loss_N = (weights_4N * torch.stack([terms.hard, terms.teacher, terms.peer, method_N])).sum(0)
            confidence = correct_N.new_ones(()) if sample_weight_B is None else sample_weight_B.mean().to(loss_N.dtype)
            rows += [method_N, loss_N, confidence.expand(len(logits))]
        return torch.stack(rows)

    @torch.no_grad()
    def add(self, step: Tensor, means_RN: Tensor, size: int, totals_S: Tensor, student_indices: Tensor | None = None) -> None:
        """Add the batch of step number `step` of the epoch.

        means_RN: see `of_batch`. size: of the batch. totals_S: float32 [S], the total loss of each slice.
        student_indices: int64, the students' indices in the recipe where not all of them train.
        """
        sums = means_RN.double()
        if student_indices is None:
            self.sums.add_(sums, alpha=size)
        else:
            self.sums.index_add_(1, student_indices, sums, alpha=size)
        self.count.add_(size)
        nonfinite_S = ~torch.isfinite(totals_S)
        is_first = (self.first_nonfinite_step < 0) & nonfinite_S.any()
        self.first_nonfinite_step.copy_(torch.where(is_first, step, self.first_nonfinite_step))
        self.nonfinite_slice.copy_(torch.where(is_first, nonfinite_S.int().argmax(), self.nonfinite_slice))

    def means(self, loss: LossSettings) -> dict[str, list[float]]:
        """The means so far, one entry per student: "loss" and each of `rows`, top1 in percent. Makes the host wait."""
        row = dict(zip(self.rows, (self.sums / self.count.clamp(min=1)).tolist(), strict=True))
        weighted = zip(row["hard"], row["teacher"], row["peer"], strict=True)
        row["top1"] = [100 * fraction for fraction in row["top1"]]
        return {"loss": [loss.alpha * hard + loss.beta * teacher + loss.gamma * peer for hard, teacher, peer in weighted]} | row

    @property
    def tensors(self) -> list[Tensor]:
        """Every tensor that a step changes."""
        return [self.sums, self.count, self.first_nonfinite_step, self.nonfinite_slice]
