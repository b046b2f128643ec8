"""Asks teachers about stored samples, block by block, each block by itself."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from udkd.augment.apply import ViewTable, apply
from udkd.augment.views import ViewSpec, draw_views
from udkd.data.batch import Backend, Batch
from udkd.data.dataset import Split
from udkd.teacher.ensemble import TeacherEnsemble
from udkd.teacher.targets import PackedTargets, concat_targets


def predict_blocks(
    ensemble: TeacherEnsemble,
    backend: Backend,
    split: Split,
    spec: ViewSpec,
    seed: int,
    view: int,
    blocks: Sequence[NDArray[np.int64]],
    *,
    unrounded: bool = False,
) -> Iterator[PackedTargets]:
    """What teachers say of view number `view`: for each block of ids its targets, on the CPU.

    spec, seed: of the views. exactly: unrounded, logits of all classes in float32.
    A block is computed by itself, whatever else is asked for, in pieces of the teacher's batch: memory holds a few of those.
    """
    pieces = [[ids[start : start + ensemble.batch] for start in range(0, len(ids), ensemble.batch)] for ids in blocks]
    order = np.concatenate([np.zeros(0, np.int64), *blocks])
    batches = rebatch(backend.epoch(order, ensemble.batch), [len(piece) for block in pieces for piece in block])
    answer = ensemble.predictions if unrounded else ensemble.targets
    for block in pieces:
        answers = [ensemble.empty_targets(unrounded=unrounded)]
        for ids, batch in zip(block, batches, strict=False):
            assert np.array_equal(batch.ids.cpu().numpy(), ids), "the backend left the order"
            table = ViewTable.of(draw_views(spec, seed, view, ids, split.sizes[ids]), batch.canvas.device)
            answers.append(answer(apply(batch.canvas, table, spec), batch.ids, view).to("cpu"))
        yield concat_targets(answers)


def rebatch(batches: Iterator[Batch], sizes: Sequence[int]) -> Iterator[Batch]:
    """Cut a stream of batches anew, into one batch for each size above 0.

    Where ids are excluded a backend's batches straddle blocks, but the block decides which samples are computed together.
    """
    waiting: list[Batch] = []
    for size in sizes:
        while sum(len(batch.ids) for batch in waiting) < size:
            waiting.append(next(batches))
        whole = waiting[0] if len(waiting) == 1 else _joined(waiting)
        yield _rows(whole, slice(size))
        waiting = [_rows(whole, slice(size, None))] if len(whole.ids) > size else []


def _joined(batches: Sequence[Batch]) -> Batch:
    return Batch(
        ids=torch.cat([batch.ids for batch in batches]),
        canvas=torch.cat([batch.canvas for batch in batches]),
        labels=torch.cat([batch.labels for batch in batches]),
    )


def _rows(batch: Batch, rows: slice) -> Batch:
    return Batch(ids=batch.ids[rows], canvas=batch.canvas[rows], labels=batch.labels[rows])
