"""The step: augment, N students, one loss, one backward, N optimizers."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from udkd.augment.apply import ViewTable
from udkd.data.batch import Batch
from udkd.losses.distill import Loss, Terms
from udkd.models.features import FeatureExtractor
from udkd.teacher.target import TargetSource
from udkd.training.method_loss import MethodLoss
from udkd.training.metrics import TrainMetrics
from udkd.training.schedule import EpochSchedule
from udkd.training.student import Student

ForwardLoss = Callable[
    [list[Tensor], Tensor, Tensor | None, Tensor | None, Tensor], tuple[list[Tensor], list[list[Tensor]], Terms]
]
"""(inputs, labels, teacher logits, sample weights, weights_3N) to N logits [B, C], N lists of feature maps, and the terms."""


@dataclass(frozen=True, kw_only=True)
class TrainStep:
    """Everything a step needs. What is compiled was decided by build_step.

    augment:      canvases and their views to the different inputs of the networks.
    teacher_input: index of a live teacher's input among them.
    forward_loss: see `make_forward_loss`; one graph if train.compile is "all" and the loss is compiled.
    method:       a further term for every student, where loss.method is set.
    student_indices: int64, the students' indices in the recipe where not all of them train.
    """

    students: Sequence[Student]
    augment: Callable[[Tensor, ViewTable], list[Tensor]]
    teacher: TargetSource
    forward_loss: ForwardLoss
    method: MethodLoss | None = None
    student_indices: Tensor | None = None
    teacher_input: int = 0

    def __call__(self, batch: Batch, step: Tensor, schedule: EpochSchedule, metrics: TrainMetrics) -> None:
        """Train every student on one batch. step: int64 [], its number in the epoch, on the device.

        Nothing here waits for the device, and what depends on the step's number is looked up there. So the same code runs
        eagerly, or is captured once as a CUDA graph.
        """
        now = schedule.at(step, self.student_indices)
        for student, lr, dropout_key in zip(self.students, now.lr_N, now.dropout_key_N, strict=True):
            student.set_step_inputs(lr, dropout_key)
        inputs = self.augment(batch.canvas, schedule.views.gather(batch.ids))
        target = self.teacher(batch, inputs[self.teacher_input], schedule.view)

        logits, maps, terms = self.forward_loss(inputs, batch.labels, target.logits, target.weight, now.term_weights_3N)
        if self.method is not None:
            terms = terms.plus(self.method(batch, target, logits, maps, now.dropout_key_N.unbind()), now.method_weight_N)
        terms.total.backward()  # type: ignore[no-untyped-call]

        for student in self.students:
            student.optimizer_step(now.ema_rate)
        metrics.add(step, logits, batch.labels, terms, now.loss_weights_4N, target.weight, self.student_indices)

    def mutable_state(self) -> list[Tensor]:
        """Every tensor that a step changes, except those of the metrics."""
        return [tensor for student in self.students for tensor in student.mutable_state()]


def make_forward_loss(
    networks: Sequence[FeatureExtractor], input_indices: Sequence[int], loss: Loss, *, device_type: str, autocast: bool
) -> ForwardLoss:
    """N forward passes of one view, then one loss: peers see each other's logits of the same pass.

    input_indices: of each network's input among the inputs, which differ where the networks are normalised differently.
    """

    def forward_loss(
        inputs: list[Tensor], labels_B: Tensor, teacher_BC: Tensor | None, weight_B: Tensor | None, weights_3N: Tensor
    ) -> tuple[list[Tensor], list[list[Tensor]], Terms]:
        with torch.autocast(device_type, dtype=torch.bfloat16, enabled=autocast):
            outputs = [network(inputs[index]) for network, index in zip(networks, input_indices, strict=True)]
        logits = [logits_BC for logits_BC, _ in outputs]
        return logits, [maps for _, maps in outputs], loss(logits, labels_B, teacher_BC, weight_B, weights_3N)

    return forward_loss
