"""A teacher ensemble's predictions for stored samples, block by block."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from udkd.augment.apply import ViewTable, apply_each
from udkd.augment.mixing import partners
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
    """Targets for view number `view`, on the CPU: one PackedTargets for each block of ids.

    spec, seed: of the views, which are rendered in the ensemble's size. unrounded: logits of all classes in float32.
    Each block is computed independently of the others, in pieces of the teacher's batch size: memory holds a few pieces.
    """
    partner = partners(seed, view, split.ids, split.num_samples) if spec.mixes else None
    pieces = [[ids[start : start + ensemble.batch] for start in range(0, len(ids), ensemble.batch)] for ids in blocks]
    loaded = [_with_partners(piece, partner) for block in pieces for piece in block]
    order = np.concatenate([np.zeros(0, np.int64), *loaded])
    batches = zip(loaded, rebatch(backend.epoch(order, ensemble.batch), [len(ids) for ids in loaded]), strict=False)
    predict = ensemble.predictions if unrounded else ensemble.targets
    for block in pieces:
        targets = [ensemble.empty_targets(unrounded=unrounded)]
        for piece, (ids, batch) in zip(block, batches, strict=False):
            assert np.array_equal(batch.ids.cpu().numpy(), ids), "the backend changed the order"
            views = draw_views(spec, seed, view, ids, split.sizes[ids], None if partner is None else partner[ids])
            table = ViewTable.of(views, batch.canvas.device)
            table = table if partner is None else table.paired(batch.ids)
            (x_BCHW,) = apply_each(batch.canvas, table, [ensemble.input], spec)
            targets.append(predict(x_BCHW[: len(piece)], batch.ids[: len(piece)], view).to("cpu"))
        yield concat_targets(targets)


def _with_partners(ids: NDArray[np.int64], partner: NDArray[np.int64] | None) -> NDArray[np.int64]:
    """Some ids, and after them those that they are mixed with and that are not among them."""
    return ids if partner is None else np.concatenate([ids, np.setdiff1d(partner[ids], ids)])


def rebatch(batches: Iterator[Batch], sizes: Sequence[int]) -> Iterator[Batch]:
    """Regroup a stream of batches into one batch for each size above 0.

    Where ids are excluded a backend's batches straddle blocks, but the block decides which samples are computed together.
    """
    waiting: list[Batch] = []
    for size in sizes:
        while sum(len(batch.ids) for batch in waiting) < size:
            waiting.append(next(batches))
        merged = waiting[0] if len(waiting) == 1 else _concat(waiting)
        yield _rows(merged, slice(size))
        waiting = [_rows(merged, slice(size, None))] if len(merged.ids) > size else []


def _concat(batches: Sequence[Batch]) -> Batch:
    return Batch(
        ids=torch.cat([batch.ids for batch in batches]),
        canvas=torch.cat([batch.canvas for batch in batches]),
        labels=torch.cat([batch.labels for batch in batches]),
    )


def _rows(batch: Batch, rows: slice) -> Batch:
    return Batch(ids=batch.ids[rows], canvas=batch.canvas[rows], labels=batch.labels[rows])
