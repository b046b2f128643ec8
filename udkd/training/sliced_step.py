"""The step in slices: each slice of a batch is a forward and backward pass of its own, also of its batch norm statistics."""

from typing import final

import torch
from torch import Tensor, nn

from udkd.data.batch import Batch
from udkd.teacher.target import TargetSource
from udkd.training.exchange import Exchange, SliceVectors
from udkd.training.metrics import TrainMetrics
from udkd.training.schedule import EpochSchedule
from udkd.training.step import TrainStep


@final
class SlicedStep:
    """A TrainStep over the slices of a batch that a process owns, in turn, whose means over all slices the processes share.

    Means of gradients, of the running statistics of batch norm, and of the metrics: the same bits on every process. Each slice
    starts from the statistics before the step. The optimizer's step is then the same everywhere.
    """

    def __init__(self, step: TrainStep, exchange: Exchange) -> None:
        self._step, self._exchange = step, exchange
        modules: list[nn.Module] = []
        for student in step.students:
            modules += [student.model, *([] if student.connector is None else [student.connector])]
        self._parameters = [parameter for module in modules for parameter in module.parameters() if parameter.requires_grad]
        buffers = [buffer for module in modules for buffer in module.buffers()]
        is_sum = [buffer.is_floating_point() and bool(buffer.isfinite().all()) for buffer in buffers]
        self._statistics = [buffer for buffer, each in zip(buffers, is_sum, strict=True) if each]
        counters = [buffer for buffer, each in zip(buffers, is_sum, strict=True) if not each]
        self._before = [torch.empty_like(buffer) for buffer in self._statistics]
        self._buffers = [(self._statistics, self._before), (counters, [torch.empty_like(buffer) for buffer in counters])]
        self._trained: list[nn.Parameter] = []  # those that get a gradient
        self._vectors: SliceVectors | None = None

    @property
    def teacher(self) -> TargetSource:
        """See TrainStep."""
        return self._step.teacher

    def mutable_state(self) -> list[Tensor]:
        """See TrainStep."""
        return self._step.mutable_state()

    def __call__(self, batch: Batch, step: Tensor, schedule: EpochSchedule, metrics: TrainMetrics) -> None:
        """Train every student. batch: the slices that this process owns, one after another. Else see TrainStep."""
        exchange = self._exchange
        now = self._step.begin(step, schedule)
        size = len(batch.labels) // len(exchange.own)
        for buffers, before in self._buffers:
            _copy(before, buffers)
        for turn, index in enumerate(exchange.own):
            for buffers, before in self._buffers if turn else ():
                _copy(buffers, before)
            part = batch.rows(slice(turn * size, (turn + 1) * size))
            means_RN, total = self._step.backward(part, schedule, now, metrics, index)
            self._add(index, means_RN, total)
        assert self._vectors is not None
        tensors, more = self._vectors.mean()
        for parameter, gradient in zip(self._trained, tensors, strict=False):
            parameter.grad = gradient.to(parameter.dtype)
        if self._statistics:
            torch._foreach_copy_(self._statistics, self._before)
            torch._foreach_add_(self._statistics, tensors[len(self._trained) :])
        self._step.finish(now)
        means, totals_S, requests_2 = torch.split(more, [means_RN.numel(), exchange.slices, 2])
        exchange.found_2.copy_(requests_2)
        batch_size = size * exchange.slices
        metrics.add(step, means.view(means_RN.shape), batch_size, totals_S, self._step.student_indices)

    @torch.no_grad()
    def _add(self, index: int, means_RN: Tensor, total: Tensor) -> None:
        """Add what a slice computed to the vectors, and drop its gradients."""
        slices = self._exchange.slices
        if self._vectors is None:
            self._trained = [parameter for parameter in self._parameters if parameter.grad is not None]
            like = [*self._trained, *self._statistics]
            self._vectors = SliceVectors(like, means_RN.numel() + slices + 2, self._exchange)
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in self._trained]
        totals_S = torch.zeros(slices, device=total.device)
        totals_S[index] = total
        # Changes, which are exactly 0 for buffers that are constant.
        changes = list(torch._foreach_sub(self._statistics, self._before)) if self._statistics else []
        self._vectors.add([*gradients, *changes], [means_RN, totals_S, self._exchange.wanted_2])
        for parameter in self._parameters:
            parameter.grad = None


def _copy(into: list[Tensor], tensors: list[Tensor]) -> None:
    if into:
        torch._foreach_copy_(into, tensors)
