"""Runs the steps of an epoch: over batches that a backend streams, or over ids where all data is on the device."""

import contextlib
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import fields, replace
from typing import Any, Protocol, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from udkd.augment.apply import ViewTable
from udkd.data.batch import Backend, Batch
from udkd.training.exchange import Exchange
from udkd.training.metrics import TrainMetrics
from udkd.training.schedule import EpochSchedule
from udkd.training.sliced_step import SlicedStep
from udkd.training.step import TrainStep


class StepRunner(Protocol):
    """Runs the training steps of an epoch."""

    def epoch(
        self, order: NDArray[np.int64], schedule: EpochSchedule, metrics: TrainMetrics, first_step: int = 0
    ) -> Generator[int, None, None]:
        """Train on the full batches of `order`, int64 ids, in turn. Yields each step's number of images once it is queued.

        The iterator may be closed early. first_step: the number in the epoch of the first batch's step.
        """


@final
class StreamingRunner:
    """Steps over the batches that a backend delivers: of each batch, the share of this process."""

    def __init__(
        self, step: TrainStep | SlicedStep, backend: Backend, batch_size: int, *, exchange: Exchange | None = None
    ) -> None:
        self._step, self._backend, self._batch_size = step, backend, batch_size
        self._exchange = exchange or Exchange()

    def epoch(
        self, order: NDArray[np.int64], schedule: EpochSchedule, metrics: TrainMetrics, first_step: int = 0
    ) -> Generator[int, None, None]:
        """See StepRunner."""
        step_number = torch.full((), first_step, dtype=torch.int64, device=metrics.count.device)
        share = self._exchange.share(order, self._batch_size)
        own_size = self._batch_size // self._exchange.batch_parts
        with contextlib.closing(_generator(self._backend.epoch(share, own_size))) as batches:
            for batch in batches:
                self._exchange.before_step()
                self._step(batch, step_number, schedule, metrics)
                step_number += 1
                yield self._batch_size


@final
class ResidentRunner:
    """Runs steps on memory that never moves: canvases, views, targets and schedule are on the device, only ids are copied in.

    rows: every sample of the split on the device, row i is id i. metrics: the object that every epoch adds to.
    capture: turns the step into one that is replayed, such as CudaGraphCapture; None calls it directly, with the same bits.
    exchange: with the other processes, which replay the same steps; None for a single one.
    """

    def __init__(
        self,
        step: TrainStep | SlicedStep,
        rows: Batch,
        batch_size: int,
        metrics: TrainMetrics,
        *,
        capture: Callable[[Callable[[], None], Sequence[Tensor]], Callable[[], None]] | None = None,
        exchange: Exchange | None = None,
    ) -> None:
        self._step, self._rows, self._batch_size, self._metrics = step, rows, batch_size, metrics
        self._capture = capture
        self._exchange = exchange or Exchange()
        own_size = batch_size // self._exchange.batch_parts
        self._ids = torch.zeros(own_size, dtype=torch.int64, device=rows.labels.device)
        self._step_number = torch.zeros((), dtype=torch.int64, device=rows.labels.device)
        self._schedule: EpochSchedule | None = None
        self._replay: Callable[[], None] | None = None

    def epoch(
        self, order: NDArray[np.int64], schedule: EpochSchedule, metrics: TrainMetrics, first_step: int = 0
    ) -> Generator[int, None, None]:
        """See StepRunner."""
        assert metrics is self._metrics, "the captured step adds to one object"
        assert len(order) % self._batch_size == 0, "full batches"
        self._load(schedule)
        self._step_number.fill_(first_step)
        share_E = torch.from_numpy(self._exchange.share(order, self._batch_size)).to(self._ids.device, non_blocking=True)
        for ids in torch.split(share_E, len(self._ids)):
            self._exchange.before_step()
            self._ids.copy_(ids)
            self._run()
            yield self._batch_size

    def _load(self, schedule: EpochSchedule) -> None:
        """Overwrite the epoch's values in place. One copy is enough, as the device executes calls in order."""
        if self._schedule is None:
            self._schedule = _clone(schedule)
        else:
            _copy(schedule, self._schedule)
            self._schedule = replace(self._schedule, view=schedule.view)
        self._step.teacher.load(schedule.view)

    def _run(self) -> None:
        if self._replay is None:
            mutable_state = [*self._step.mutable_state(), *self._metrics.tensors, self._step_number]
            self._replay = self._capture(self._work, mutable_state) if self._capture else self._work
        self._replay()

    def _work(self) -> None:
        assert self._schedule is not None, "an epoch has begun"
        canvas_BSS3 = self._rows.canvas.index_select(0, self._ids)
        labels_B = self._rows.labels.index_select(0, self._ids)
        batch = Batch(ids=self._ids, canvas=canvas_BSS3, labels=labels_B)
        self._step(batch, self._step_number, self._schedule, self._metrics)
        self._step_number += 1


def _clone(schedule: EpochSchedule) -> EpochSchedule:
    tensors = {field.name: getattr(schedule, field.name) for field in fields(schedule)}
    views = ViewTable(**{name: value.clone() for name, value in schedule.views.tensors.items()})
    copies = {name: value.clone() for name, value in tensors.items() if isinstance(value, Tensor)}
    return EpochSchedule(view=schedule.view, views=views, **copies)


def _copy(schedule: EpochSchedule, into: EpochSchedule) -> None:
    for field in fields(schedule):
        if isinstance(value := getattr(schedule, field.name), Tensor):
            getattr(into, field.name).copy_(value)
    for name, value in schedule.views.tensors.items():
        getattr(into.views, name).copy_(value, non_blocking=True)


def _generator(batches: Iterator[Any]) -> Any:
    """A backend's iterator as one that can be closed, so that leaving the loop early frees its threads."""
    return batches if hasattr(batches, "close") else (batch for batch in batches)
