"""Asks the teacher once about every (sample, view) and writes down what it says."""

import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from udkd.backends import choose, open_backend
from udkd.formats.cache import Cache, CacheKey, CacheSummary, CacheWriter, summarise
from udkd.formats.config import Recipe
from udkd.formats.dataset import DatasetFolder, Split
from udkd.formats.teacher import TeacherFolder
from udkd.operations.augment import ViewTable, apply
from udkd.operations.targets import PackedTargets
from udkd.parts.environment import set_threads
from udkd.parts.frozen_teacher import FrozenTeacher, require_same_classes
from udkd.parts.target_key import target_meaning
from udkd.words.batch import Backend, Batch
from udkd.words.errors import DataError
from udkd.words.observer import Observer, Silent
from udkd.words.views import draw

BLOCK_ROWS = 256
"""About how many samples a killed build computes again. A block is a whole number of the teacher's batches."""


_SILENT = Silent()


@dataclass(frozen=True, kw_only=True)
class BuiltCache:
    """A finished cache, and what this build computed of it: views of `num_images` samples in `seconds`."""

    cache: Cache
    summary: CacheSummary
    num_images: int
    seconds: float

    @property
    def images_per_s(self) -> float:
        """0 where everything was there already."""
        return self.num_images / self.seconds if self.num_images else 0.0


def build_cache(
    folder: Path,
    *,
    dataset: DatasetFolder,
    teacher: TeacherFolder,
    recipe: Recipe,
    device: torch.device,
    observer: Observer = _SILENT,
) -> BuiltCache:
    """Compute what `folder` lacks of the recipe's views of the training split, and leave a finished cache there.

    The policy, the number of views and what they are drawn from come from the recipe. A build that was killed goes on where
    it stopped, and more views are added to those that are there; the bytes are those of one uninterrupted build.
    MismatchError: a teacher of other classes, or a folder with targets of another key. BusyError: someone else is building.
    CacheError: a full disk, or targets that are not finite. DataError: from the backend or the teacher's folder.
    """
    set_threads(recipe.train.threads)
    require_same_classes(teacher, dataset)
    split = dataset.split("train")
    if len(split.ids) == 0:
        raise DataError(f"{dataset.path} has no training images; expected some to ask the teacher about; convert again")
    with contextlib.closing(_open_backend(split, recipe, device, observer)) as backend:
        frozen = FrozenTeacher.load(
            teacher,
            device=device,
            batch=recipe.teacher.batch,
            precision=recipe.teacher.precision,
            image_px=recipe.views.size_px,
        )
        block_rows = frozen.batch * max(1, BLOCK_ROWS // frozen.batch)
        fields: dict[str, Any] = target_meaning(recipe, dataset, backend.describe()) | frozen.describe()
        key = CacheKey(**fields, block_rows=block_rows)
        started = time.perf_counter()
        with CacheWriter(folder, key, split.excluded) as writer:
            num_images = _add_views(writer, frozen, backend, split, recipe, observer)
        seconds = time.perf_counter() - started
    cache = Cache.open(folder)
    return BuiltCache(cache=cache, summary=summarise(cache, split.labels), num_images=num_images, seconds=seconds)


def _open_backend(split: Split, recipe: Recipe, device: torch.device, observer: Observer) -> Backend:
    name, why = choose(recipe.data.backend, split, device)
    observer.note(f"backend: {name}, because {why}")
    return open_backend(name, split, device, workers=recipe.data.workers)


def _add_views(
    writer: CacheWriter, teacher: FrozenTeacher, backend: Backend, split: Split, recipe: Recipe, observer: Observer
) -> int:
    """Write every view that is not finished; how many targets that took."""
    num_views = 1 if recipe.teacher.views == "canonical" else recipe.teacher.views
    num_images = 0
    for number in sorted(set(range(num_views)) - set(writer.finished)):
        with writer.view(number) as view:
            blocks = list(view.unfinished)
            ids = [view.ids(block) for block in blocks]
            count = sum(map(len, ids))
            if count < len(split.ids):
                observer.note(f"view {number + 1}: {len(split.ids) - count} of {len(split.ids)} samples are there already")
            observer.start(f"teacher, view {number + 1} of {num_views}", count, "images")
            for block, targets in zip(blocks, ask(teacher, backend, split, recipe, number, ids), strict=True):
                view.write(block, targets.logits.numpy(), targets.entropy.numpy())
                observer.advance(len(targets.entropy))
            view.finish()
            observer.finish()
            num_images += count
    return num_images


def ask(
    teacher: FrozenTeacher,
    backend: Backend,
    split: Split,
    recipe: Recipe,
    view: int,
    blocks: Sequence[NDArray[np.int64]],
) -> Iterator[PackedTargets]:
    """What the teacher says of view number `view`: for each block of ids its targets, on the CPU.

    A block is computed by itself, whatever else is asked for.
    """
    spec = recipe.teacher_spec
    batches = backend.epoch(np.concatenate([np.zeros(0, np.int64), *blocks]), max(1, *map(len, blocks)))
    for ids, batch in zip(blocks, in_blocks(batches, [len(ids) for ids in blocks]), strict=True):
        if batch is None:
            nothing = torch.zeros(0, teacher.num_classes, dtype=torch.float16)
            yield PackedTargets(logits=nothing, entropy=torch.zeros(0))
            continue
        assert np.array_equal(batch.ids.cpu().numpy(), ids), "the backend left the order"
        table = ViewTable.of(draw(spec, recipe.views.seed, view, ids, split.sizes[ids]), batch.canvas.device)
        targets = teacher.targets(apply(batch.canvas, table, spec))
        yield PackedTargets(logits=targets.logits.cpu(), entropy=targets.entropy.cpu())


def in_blocks(batches: Iterator[Batch], sizes: Sequence[int]) -> Iterator[Batch | None]:
    """Cut a stream of batches anew, into one batch for each size; None for size 0.

    Where ids are excluded a backend's batches straddle blocks, but the block decides which samples are computed together.
    """
    waiting: list[Batch] = []
    for size in sizes:
        if size == 0:
            yield None
            continue
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
