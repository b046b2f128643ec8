"""Builds a cache: computes the teacher's targets for every (sample, view) once."""

import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from udkd.config.recipe import Recipe
from udkd.data.backends.registry import open_backend
from udkd.data.batch import Backend
from udkd.data.dataset import DatasetFolder, Split
from udkd.teacher.cache.key import CacheKey
from udkd.teacher.cache.reader import Cache
from udkd.teacher.cache.summary import CacheSummary, summarise_cache
from udkd.teacher.cache.writer import CacheWriter, Share, ViewWriter, join_view
from udkd.teacher.ensemble import TeacherEnsemble
from udkd.teacher.folder import TeacherFolder
from udkd.teacher.frozen import require_several_classes
from udkd.teacher.predict import predict_blocks
from udkd.teacher.target_key import building_remedy, target_fields
from udkd.teacher.targets import PackedTargets
from udkd.utils.environment import prepare_device, set_threads
from udkd.utils.errors import DataError
from udkd.utils.progress import SILENT, Observer
from udkd.utils.workers import SINGLE_PROCESS, WorkerGroup, single_process_threads

BLOCK_ROWS = 256
"""About how many samples a killed build computes again. A block is a multiple of the teacher's batch size."""

_POLL_S = 0.1


@dataclass(frozen=True, kw_only=True)
class BuiltCache:
    """A finished cache, and this build's work: `num_images` targets in `seconds`. labels: class indices of all rows, [N]."""

    cache: Cache
    labels: NDArray[np.integer]
    num_images: int
    seconds: float

    @cached_property
    def summary(self) -> CacheSummary:
        """Summary of the complete cache; reads it once."""
        return summarise_cache(self.cache, self.labels)

    @property
    def images_per_s(self) -> float:
        """Targets computed per second; 0 where the cache was already complete."""
        return self.num_images / self.seconds if self.num_images else 0.0


def build_cache(
    folder: str | Path,
    *,
    dataset: DatasetFolder,
    teacher: TeacherFolder | str | Path,
    other_teachers: Sequence[TeacherFolder] = (),
    recipe: Recipe,
    device: torch.device | str = "auto",
    features: bool = False,
    observer: Observer = SILENT,
    group: WorkerGroup = SINGLE_PROCESS,
) -> BuiltCache:
    """Complete the cache in `folder`: compute the recipe's missing views of the training split.

    The recipe defines the policy, the views and their number. A killed build resumes where it stopped, and views are added
    to existing ones; the result has the same bytes as one uninterrupted build.
    features: store the teacher's pooled features too; implied by a recipe whose method needs them.
    other_teachers: further members of an ensemble. group: the processes that share the work; all return when the main one
    has finished.
    MismatchError: a teacher of other classes, or a folder with targets of another key. BusyError: another process is
    building there. CacheError: a full disk, or targets that are not finite. DataError: an unusable dataset or teacher folder.
    ConfigError: teachers that the recipe's estimator cannot use.

        udkd.build_cache("cache", dataset=data, teacher="teacher", recipe=udkd.load_recipe("quickstart"))
    """
    folder, device = Path(folder), prepare_device(device)
    teacher = teacher if isinstance(teacher, TeacherFolder) else TeacherFolder.open(Path(teacher))
    _set_threads(recipe, device, group)
    require_several_classes(dataset)
    split = dataset.split("train")
    if len(split.ids) == 0:
        raise DataError(f"{dataset.path} has no training images; expected some to compute targets for; convert again")
    workers = recipe.data.workers
    with contextlib.closing(open_backend(recipe.data.backend, split, device, workers=workers, observer=observer)) as backend:
        ensemble = TeacherEnsemble.load(
            [teacher, *other_teachers], recipe, dataset, device, features=features or recipe.pools_features
        )
        block_rows = ensemble.batch * max(1, BLOCK_ROWS // ensemble.batch)
        fields: dict[str, Any] = target_fields(recipe, dataset, backend.describe()) | ensemble.describe()
        build = _Build(
            folder=folder,
            key=CacheKey(**fields, block_rows=block_rows),
            ensemble=ensemble,
            teachers=[teacher, *other_teachers],
            backend=backend,
            split=split,
            recipe=recipe,
            observer=observer,
            group=group,
        )
        started = time.perf_counter()
        num_images = build.run_main() if group.is_main else build.run_worker()
        seconds = time.perf_counter() - started
    return BuiltCache(cache=Cache.open(folder), labels=split.labels, num_images=num_images, seconds=seconds)


def _set_threads(recipe: Recipe, device: torch.device, group: WorkerGroup) -> None:
    """Set the same number of threads, and so compute the same bits, whatever the size of the group."""
    threads = recipe.train.threads
    if device.type == "cpu" and group.size > 1 and not threads:
        threads = single_process_threads()
    set_threads(threads)


@dataclass(frozen=True, kw_only=True)
class _Build:
    """One process's part of a build: the main process coordinates, others may share the work."""

    folder: Path
    key: CacheKey
    ensemble: TeacherEnsemble
    teachers: Sequence[TeacherFolder]
    backend: Backend
    split: Split
    recipe: Recipe
    observer: Observer
    group: WorkerGroup

    @property
    def share(self) -> Share:
        return Share(rank=self.group.rank, size=self.group.size)

    def run_main(self) -> int:
        """Write every unfinished view together with the group; returns how many targets the group computed."""
        num_views = 1 if self.recipe.teacher.views == "eval" else self.recipe.teacher.views
        num_images = 0
        with CacheWriter(self.folder, self.key, self.split.excluded, building_remedy) as writer:
            missing = sorted(set(range(num_views)) - set(writer.finished))
            writer.require_disk_space(missing)
            for line in self._size_notes() if missing else ():
                self.observer.note(line)
            self.group.set("views", missing)
            for number in missing:
                with writer.view(number, self.share) as view:
                    self.group.set(f"started {number}")
                    remaining = self._count_missing(view)
                    if remaining < len(self.split.ids):
                        done = len(self.split.ids) - remaining
                        self.observer.note(f"view {number + 1}: {done} of {len(self.split.ids)} samples are done already")
                    self.observer.start(f"teacher, view {number + 1} of {num_views}", remaining, "images")
                    num_images += self._write(view, number)
                    self.observer.finish()
                    view.finish()
        self.group.set("finished", num_images)
        return num_images

    def _size_notes(self) -> Iterator[str]:
        """What the teacher will see, and sizes that suggest another recipe than that of the training run."""
        recipe, teacher_px = self.recipe, self.recipe.teacher_px
        students = f"the students' {recipe.views.size_px} px" if recipe.rendered_px else "as the students"
        yield f"the teacher sees {teacher_px} px, {students}: train with the same recipe and settings"
        side, size_px = self.split.side, recipe.views.size_px
        if side < size_px:
            yield f"warning: the canvases are {side} px and views {size_px} px: is this the recipe that you will train with?"
        for info in (teacher.info for teacher in self.teachers if teacher.info.image_px != teacher_px):
            yield (
                f"warning: the accuracy of teacher {info.architecture} was measured at {info.image_px} px and it sees "
                f"{teacher_px} px here; teacher.size_px={info.image_px} would give it that size"
            )

    def run_worker(self) -> int:
        """Write this process's share of every view that the main process starts; returns how many targets the group wrote."""
        for number in self.group.wait("views"):
            self.group.wait(f"started {number}")
            with join_view(self.folder, self.key, number, self.split.excluded, self.share) as view:
                self.group.set(f"left {number} {self.group.rank}", sum(len(view.ids(block)) for block in view.unfinished))
                self._write(view, number)
        return int(self.group.wait("finished"))

    def _count_missing(self, view: ViewWriter) -> int:
        """How many targets the view lacks: in the main process's share, and as the others report in theirs."""
        main = sum(len(view.ids(block)) for block in view.unfinished)
        others = (int(self.group.wait(f"left {view.header.view} {rank}")) for rank in range(1, self.group.size))
        return main + sum(others)

    def _write(self, view: ViewWriter, number: int) -> int:
        """Write this process's share of a view; the main process waits for the others'. Returns the group's target count."""
        blocks, reported = list(view.unfinished), 0
        ids = [view.ids(block) for block in blocks]
        for block, targets in zip(blocks, self._predict(number, ids), strict=True):
            view.write(block, *(_stored(view, name, array) for name, array in targets.arrays.items()))
            count = len(targets.entropy)
            done = self.group.add(f"done {number}", count) if self.group.size > 1 else reported + count
            if self.group.is_main:
                self.observer.advance(done - reported)
            reported = done
        self.group.set(f"done {number} {self.group.rank}")
        while self.group.is_main and not all(self.group.check(f"done {number} {rank}") for rank in range(1, self.group.size)):
            time.sleep(_POLL_S)
            done = self.group.add(f"done {number}", 0)
            self.observer.advance(done - reported)
            reported = done
        return self.group.add(f"done {number}", 0) if self.group.size > 1 else reported

    def _predict(self, number: int, blocks: Sequence[NDArray[np.int64]]) -> Iterator[PackedTargets]:
        return predict_blocks(
            self.ensemble, self.backend, self.split, self.recipe.teacher_spec, self.recipe.views.seed, number, blocks
        )


def _stored(view: ViewWriter, name: str, array: torch.Tensor) -> np.ndarray:
    """An array in the file's dtype, which is narrower for classes."""
    spec = next(spec for spec in view.header.arrays if spec.name == name)
    return array.numpy().astype(spec.dtype, copy=False)
