"""What drives steps through an epoch: batches that a backend streams, or ids alone where all else lies on the device."""

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
from udkd.teacher.target import TargetSource, TeacherTargets
from udkd.training.schedule import EpochSchedule
from udkd.training.step import TrainMetrics, TrainStep

_REHEARSALS = 3
"""Runs before a recording: compilation, autotuning and libraries' work space must lie behind it."""


class StepRunner(Protocol):
    """Trains on whole batches of `order`, int64 ids, in turn."""

    def epoch(self, order: NDArray[np.int64], plan: EpochSchedule, tally: TrainMetrics) -> Generator[int, None, None]:
        """Yield how many images each step took, once it is given to the device. The iterator may be closed early."""


@final
class StreamingRunner:
    """Steps on whatever batches a backend delivers."""

    def __init__(self, step: TrainStep, backend: Backend, batch_size: int) -> None:
        self._step, self._backend, self._batch_size = step, backend, batch_size

    def epoch(self, order: NDArray[np.int64], plan: EpochSchedule, tally: TrainMetrics) -> Generator[int, None, None]:
        """See Drive."""
        with contextlib.closing(_generator(self._backend.epoch(order, self._batch_size))) as batches:
            for batch in batches:
                self._step(batch, plan, tally)
                yield len(batch.labels)


@final
class ResidentRunner:
    """The same step over memory that never moves: canvases, views, targets and plan lie there, the ids are all that comes.

    rows: every sample of the split on the device, row i is id i. tally: the one that every epoch uses.
    ids: those that are taught. by_id: whether what a teacher says depends on ids alone (a cache's does, a live one's not).
    record: turns the step into one that is replayed; None calls it, line by line, to the same bits.
    """

    def __init__(
        self,
        step: TrainStep,
        rows: Batch,
        batch_size: int,
        tally: TrainMetrics,
        *,
        ids: NDArray[np.int64],
        by_id: bool,
        record: "Callable[[Callable[[], None], Sequence[Tensor]], Callable[[], None]] | None" = None,
    ) -> None:
        self._rows, self._batch_size, self._tally = rows, batch_size, tally
        self._fixed = FixedLessons(step.lessons, rows, ids) if by_id else None
        self._step = _with_lessons(step, self._fixed) if self._fixed else step
        self._record = record
        self._ids = torch.zeros(batch_size, dtype=torch.int64, device=rows.labels.device)
        self._plan: EpochSchedule | None = None
        self._run: Callable[[], None] | None = None

    def epoch(self, order: NDArray[np.int64], plan: EpochSchedule, tally: TrainMetrics) -> Generator[int, None, None]:
        """See Drive."""
        assert tally is self._tally, "the recorded step adds to one tally"
        assert len(order) % self._batch_size == 0, "whole batches"
        self._load(plan)
        order_E = torch.from_numpy(order).to(self._ids.device, non_blocking=True)
        for start in range(0, len(order), self._batch_size):
            self._ids.copy_(order_E[start : start + self._batch_size])
            self._replay()
            yield self._batch_size

    def _load(self, plan: EpochSchedule) -> None:
        """Overwrite the epoch's numbers where they lie. One table is enough: the device works in the order it was told."""
        if self._plan is None:
            self._plan = _clone(plan)
        else:
            _copy(plan, self._plan)
            self._plan = replace(self._plan, view=plan.view)
        if self._fixed is not None:
            self._fixed.load(plan.view)

    def _replay(self) -> None:
        if self._run is None:
            mutable_state = [*self._step.mutable_state(), self._tally.sums, self._tally.count, self._tally.first_nonfinite_step]
            self._run = self._record(self._work, mutable_state) if self._record else self._work
        self._run()

    def _work(self) -> None:
        assert self._plan is not None, "an epoch was begun"
        canvas_BSS3 = self._rows.canvas.index_select(0, self._ids)
        labels_B = self._rows.labels.index_select(0, self._ids)
        self._step(Batch(ids=self._ids, canvas=canvas_BSS3, labels=labels_B), self._plan, self._tally)


@final
class FixedLessons:
    """Another's lessons for all ids of one view, in memory that never moves."""

    def __init__(self, lessons: TargetSource, rows: Batch, ids: NDArray[np.int64]) -> None:
        self._lessons, self._rows = lessons, rows
        self._ids = torch.from_numpy(ids).to(rows.labels.device)
        self._view: int | None = None
        self._logits_NC: Tensor | None = None
        self._weight_N: Tensor | None = None
        self._features_ND: Tensor | None = None

    def load(self, view: int) -> None:
        """Ask for all ids of a view at once."""
        if view == self._view:
            return
        asked = Batch(ids=self._ids, canvas=self._rows.canvas[:0], labels=self._rows.labels.index_select(0, self._ids))
        lesson = self._lessons.lookup(asked, self._rows.canvas[:0], view)
        self._logits_NC = self._stored(self._logits_NC, lesson.logits)
        self._weight_N = self._stored(self._weight_N, lesson.weight)
        self._features_ND = self._stored(self._features_ND, lesson.features)
        self._view = view

    def lookup(self, batch: Batch, x_BCHW: Tensor, view: int) -> TeacherTargets:
        """See Lessons; `view` is the one that was loaded."""
        logits_NC, weight_N, features_ND = self._logits_NC, self._weight_N, self._features_ND
        return TeacherTargets(
            logits=None if logits_NC is None else logits_NC.index_select(0, batch.ids),
            weight=None if weight_N is None else weight_N.index_select(0, batch.ids),
            features=None if features_ND is None else features_ND.index_select(0, batch.ids),
        )

    def _stored(self, place: Tensor | None, values: Tensor | None) -> Tensor | None:
        if values is None:
            return None
        if place is None:
            place = values.new_full((len(self._rows.labels), *values.shape[1:]), float("nan"))
        place.index_copy_(0, self._ids, values)
        return place


def warm_up(work: Callable[[], None], mutable_state: Sequence[Tensor], times: int = _REHEARSALS) -> None:
    """Run `work` a few times, each time from the same state, and undo it: `mutable_state` is every tensor it changes.

    Were it undone at the end alone, the later runs would be steps that the epoch's plan may not have.
    """
    kept = [tensor.detach().clone() for tensor in mutable_state]
    for _ in range(times):
        work()
        with torch.no_grad():
            for tensor, before in zip(mutable_state, kept, strict=True):
                tensor.copy_(before)


@final
class CudaGraphCapture:
    """Turns work into a CUDA graph: replaying it costs the host one launch. What the work changes is left as it was.

    It is rehearsed and recorded on one side stream, as torch.cuda.graph asks: autograd remembers the stream on which it
    first met a weight, and the default stream cannot be recorded. All graphs of a recorder share one pool of memory, so that
    several take what the largest needs: no work may leave anything in it that another replay could overwrite, and steps
    leave nothing (weights, momentum and tally lie outside, gradients are dropped).
    """

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, work: Callable[[], None], mutable_state: Sequence[Tensor]) -> Callable[[], None]:
        """The replay of `work`. changing: every tensor it changes."""
        device = self._stream.device
        self._stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(self._stream):
            warm_up(work, mutable_state)
        torch.cuda.current_stream(device).wait_stream(self._stream)
        graph = torch.cuda.CUDAGraph()
        # Only this thread's calls may break the recording: a DataLoader's thread may pin memory meanwhile.
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
            work()
        replay: Callable[[], None] = graph.replay
        return replay


def _with_lessons(step: TrainStep, lessons: TargetSource) -> TrainStep:
    return TrainStep(**{field.name: getattr(step, field.name) for field in fields(step)} | {"lessons": lessons})


def _clone(plan: EpochSchedule) -> EpochSchedule:
    tensors = {field.name: getattr(plan, field.name) for field in fields(plan)}
    views = ViewTable(**{field.name: getattr(plan.views, field.name).clone() for field in fields(plan.views)})
    copies = {name: value.clone() for name, value in tensors.items() if isinstance(value, Tensor)}
    return EpochSchedule(view=plan.view, views=views, **copies)


def _copy(plan: EpochSchedule, into: EpochSchedule) -> None:
    for name in ("rates", "dropout_keys", "averaging", "weights"):
        getattr(into, name).copy_(getattr(plan, name))
    for field in fields(plan.views):
        getattr(into.views, field.name).copy_(getattr(plan.views, field.name), non_blocking=True)


def _generator(batches: Iterator[Any]) -> Any:
    """A backend's iterator as one that can be closed, so that leaving the loop early frees its threads."""
    return batches if hasattr(batches, "close") else (batch for batch in batches)
