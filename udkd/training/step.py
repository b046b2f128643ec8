"""The step: augment, N students, one loss, one backward, N optimizers."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from udkd.augment.apply import ViewTable
from udkd.augment.mixing import MixedLabels
from udkd.data.batch import Batch
from udkd.losses.distill import Labels, Loss, Terms
from udkd.models.features import FeatureExtractor
from udkd.teacher.target import TargetSource, TeacherTargets
from udkd.training.exchange import Exchange
from udkd.training.loss_scale import LossScale
from udkd.training.method_loss import MethodLoss
from udkd.training.metrics import TrainMetrics
from udkd.training.schedule import EpochSchedule, StepValues
from udkd.training.student import Student
from udkd.utils.autocast import autocast

ForwardLoss = Callable[
    [list[Tensor], Labels, Tensor | None, Tensor | None, Tensor], tuple[list[Tensor], list[list[Tensor]], Terms]
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
    parts: equal parts that forward and backward passes take a batch in. loss_scale: of float16 training.
    exchange: with the processes that train the other students, where train.parallel is "students"; `students` is then the one
    that this process trains, its rank's.
    """

    students: Sequence[Student]
    augment: Callable[[Tensor, ViewTable], list[Tensor]]
    teacher: TargetSource
    forward_loss: ForwardLoss
    method: MethodLoss | None = None
    student_indices: Tensor | None = None
    teacher_input: int = 0
    parts: int = 1
    loss_scale: LossScale | None = None
    exchange: Exchange | None = None

    def __call__(self, batch: Batch, step: Tensor, schedule: EpochSchedule, metrics: TrainMetrics) -> None:
        """Train every student on one batch. step: int64 [], its number in the epoch, on the device.

        Nothing here waits for the device, and what depends on the step's number is looked up there. So the same code runs
        eagerly, or is captured once as a CUDA graph.
        """
        now = self.begin(step, schedule)
        means_RN, total = self.backward(batch, schedule, now, metrics)
        self.finish(now)
        metrics.add(step, means_RN, len(batch.labels), total.view(1), self.student_indices)

    def begin(self, step: Tensor, schedule: EpochSchedule) -> StepValues:
        """Look up what depends on the step's number, and give it to the students."""
        now = schedule.at(step, self.student_indices)
        first = self.exchange.group.rank if self.exchange else 0
        for place, student in enumerate(self.students, first):
            student.set_step_inputs(now.lr_N[place], now.dropout_key_N[place])
        return now

    def backward(
        self, batch: Batch, schedule: EpochSchedule, now: StepValues, metrics: TrainMetrics, slice_index: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """Compute the gradients of a batch, or of one of its slices: the means of TrainMetrics.of_batch, and the total loss.

        slice_index: of the slice, whose dropout is that of the complete batch; None for a batch that is not sliced.
        """
        views = schedule.views.gather(batch.ids)
        inputs, labels = self.augment(batch.canvas, views), views.labels(batch.labels)
        target = self.teacher(batch, inputs[self.teacher_input], schedule.view, labels)
        if self.parts == 1:
            if slice_index is not None:
                self._set_part(slice_index)
            logits, terms = self._backward(batch, labels, target, inputs, now)
        else:
            logits, terms = self._backward_in_parts(batch, labels, target, inputs, now, (slice_index or 0) * self.parts)
        means_RN = metrics.of_batch(logits, labels, terms, now.loss_weights_4N, target.weight)
        return means_RN, terms.total.detach()

    def finish(self, now: StepValues) -> None:
        """Apply the gradients."""
        found_inf = [student.optimizer_step(now.ema_rate, self.loss_scale) for student in self.students]
        if self.loss_scale is not None:
            found = torch.stack([found for found in found_inf if found is not None])
            self.loss_scale.update(self.exchange.largest(found) if self.exchange else found)

    def _set_part(self, part: int) -> None:
        for student in self.students:
            student.set_part(part)

    def _backward(
        self, batch: Batch, labels: Labels, target: TeacherTargets, inputs: list[Tensor], now: StepValues
    ) -> tuple[list[Tensor], Terms]:
        """The forward and backward pass of a batch or one of its parts: N logits and the terms."""
        logits, maps, terms = self.forward_loss(inputs, labels, target.logits, target.weight, now.term_weights_3N)
        if self.method is not None:
            terms = terms.plus(self.method(batch, target, logits, maps, now.dropout_key_N.unbind()), now.method_weight_N)
        loss = terms.total if self.parts == 1 else terms.total / self.parts
        if self.loss_scale is not None:
            loss = loss * self.loss_scale.scale
        loss.backward()  # type: ignore[no-untyped-call]
        return logits, terms

    def _backward_in_parts(
        self, batch: Batch, labels: Labels, target: TeacherTargets, inputs: list[Tensor], now: StepValues, first_part: int
    ) -> tuple[list[Tensor], Terms]:
        """The same for equal parts in turn: gradients add up, the terms are means over the complete batch."""
        size = len(batch.labels) // self.parts
        logits: list[list[Tensor]] = []
        terms: list[Terms] = []
        for part in range(self.parts):
            chosen = slice(part * size, (part + 1) * size)
            self._set_part(first_part + part)
            inputs_of_part = [x_BCHW[chosen] for x_BCHW in inputs]
            labels_of_part = labels.rows(chosen) if isinstance(labels, MixedLabels) else labels[chosen]
            logits_of_part, terms_of_part = self._backward(
                batch.rows(chosen), labels_of_part, target.rows(chosen), inputs_of_part, now
            )
            logits.append([z_BC.detach() for z_BC in logits_of_part])
            terms.append(terms_of_part.detached())
        return [torch.cat(parts) for parts in zip(*logits, strict=True)], Terms.mean(terms)

    def mutable_state(self) -> list[Tensor]:
        """Every tensor that a step changes, except those of the metrics."""
        scale = [] if self.loss_scale is None else list(self.loss_scale.tensors.values())
        return [*(tensor for student in self.students for tensor in student.mutable_state()), *scale]


def make_forward_loss(
    networks: Sequence[FeatureExtractor], input_indices: Sequence[int], loss: Loss, *, device_type: str, precision: str
) -> ForwardLoss:
    """N forward passes of one view, then one loss: peers see each other's logits of the same pass.

    input_indices: of each network's input among the inputs, which differ where the networks are normalised differently.
    """

    def forward_loss(
        inputs: list[Tensor], labels_B: Labels, teacher_BC: Tensor | None, weight_B: Tensor | None, weights_3N: Tensor
    ) -> tuple[list[Tensor], list[list[Tensor]], Terms]:
        with autocast(device_type, precision):
            outputs = [network(inputs[index]) for network, index in zip(networks, input_indices, strict=True)]
        logits = [logits_BC for logits_BC, _ in outputs]
        return logits, [maps for _, maps in outputs], loss(logits, labels_B, teacher_BC, weight_B, weights_3N)

    return forward_loss


def make_forward_loss_of_one(
    network: FeatureExtractor, input_index: int, loss: Loss, exchange: Exchange, *, device_type: str, precision: str
) -> ForwardLoss:
    """The forward pass of one student, then the loss of all: the logits of its peers come from the processes that train them.

    Only this student's logits have a gradient, the same as in one process, where its peers' losses do not reach it either.
    """

    def forward_loss(
        inputs: list[Tensor], labels_B: Labels, teacher_BC: Tensor | None, weight_B: Tensor | None, weights_3N: Tensor
    ) -> tuple[list[Tensor], list[list[Tensor]], Terms]:
        with autocast(device_type, precision):
            own_BC, maps = network(inputs[input_index])
        logits = exchange.gather_logits(own_BC)
        logits[exchange.group.rank] = own_BC
        return logits, [maps], loss(logits, labels_B, teacher_BC, weight_B, weights_3N)

    return forward_loss
