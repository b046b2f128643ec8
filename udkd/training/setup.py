"""The parts of a training run: data, teacher and students, opened and connected as the recipe says."""

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from udkd.augment.mixing import pairs_together
from udkd.augment.view_table import EpochViews
from udkd.augment.views import ViewSpec
from udkd.config.recipe import Recipe
from udkd.data.backends.registry import open_backend
from udkd.data.backends.resident import ResidentBackend
from udkd.data.batch import Backend
from udkd.data.dataset import DatasetFolder
from udkd.losses.methods.builtin import METHODS
from udkd.losses.methods.connect import Connection, connect
from udkd.losses.schedules import EpochStats
from udkd.teacher.frozen import require_several_classes
from udkd.teacher.sources import LiveTargets, open_targets
from udkd.teacher.target import TargetSource
from udkd.training.build_step import build_step
from udkd.training.cuda_graph import CudaGraphCapture
from udkd.training.exchange import Exchange, require_divisible
from udkd.training.init_from import initial_weights, weights_sha256
from udkd.training.loss_scale import LossScale
from udkd.training.lr import progressive_px
from udkd.training.metrics import TrainMetrics
from udkd.training.run_folder import RunFolder
from udkd.training.runners import ResidentRunner, StepRunner, StreamingRunner
from udkd.training.schedule import EpochSchedule
from udkd.training.student import make_students
from udkd.utils.errors import ConfigError, DataError
from udkd.utils.operating_system import available_cores
from udkd.utils.progress import SILENT, Observer
from udkd.utils.rng import Stream, permutation
from udkd.utils.workers import SINGLE_PROCESS, WorkerGroup


@dataclass(frozen=True, kw_only=True)
class TrainJob:
    """A recipe, its data, and everything else that a training run needs.

    cache, teacher: folders; which is needed follows from recipe.teacher.source. A teacher given with a cache is only checked
    against it. more_teachers: the other members of an ensemble.
    allow: fields of the cache's key that may differ. stopped: called after every step; True ends the run at a checkpoint.
    extend: train a resumed run to so many epochs, in place of the recipe's; 0: the recipe's. profile: steps to profile.
    resume: continue the run in `out` if there is one. group: the processes that train together, which torchrun started.
    """

    recipe: Recipe
    data: Path
    out: Path
    device: torch.device
    cache: Path | None = None
    teacher: Path | None = None
    more_teachers: tuple[Path, ...] = ()
    resume: bool = False
    extend: int = 0
    profile: int = 0
    allow: tuple[str, ...] = ()
    observer: Observer = SILENT
    stopped: Callable[[], bool] = lambda: False
    group: WorkerGroup = SINGLE_PROCESS


class TrainSetup:
    """The data, teacher and students of a job; close it after use. Raises a UserError for whatever does not fit.

    Nothing is written.

    steps_per_epoch: full batches of the training split. provenance: what the run folder records of the teacher and of the
    weights that the students started from.
    """

    def __init__(self, job: TrainJob) -> None:
        self.job = job
        self.recipe = job.recipe
        require_divisible(job.recipe.train, len(job.recipe.students), job.group.size)
        self.dataset = DatasetFolder.open(job.data)
        require_several_classes(self.dataset)
        self.split = self.dataset.split("train")
        self.steps_per_epoch = self._count_steps()
        with contextlib.ExitStack() as stack:
            self.backend = self._open_backend("train")
            stack.callback(self.backend.close)
            self.validation = self._open_backend("val")
            stack.callback(self.validation.close)
            self._connect_all()
            self._backends = stack.pop_all()

    def _connect_all(self) -> None:
        """Open the teacher, build the students, and connect them."""
        recipe, job = self.recipe, self.job
        pixels, device = self.backend.describe(), job.device
        teachers = ((job.teacher,) if job.teacher else ()) + job.more_teachers
        self.teacher, self.provenance = open_targets(
            recipe, self.dataset, pixels, device, cache=job.cache, teachers=teachers, allow=job.allow, observer=job.observer
        )
        self._num_views: int | None = self.provenance.get("num_views")
        self._views = EpochViews(recipe.views.spec, recipe.views.seed, self.split, device)
        self.val_views = EpochViews(recipe.evaluation_spec, 0, self.dataset.split("val"), device)
        self.students = make_students(recipe, len(self.dataset.classes), device)
        self.loss_scale = LossScale(device) if recipe.train.precision == "float16" else None
        self._connections = self._connect(self.teacher)
        self.provenance |= self._init_students()

    def close(self) -> None:
        """Release the backends."""
        self._backends.close()

    def view_of(self, epoch: int) -> int:
        """The number of the view that the students see: a new one every epoch, or the cached ones in turn."""
        return epoch if self._num_views is None else epoch % self._num_views

    def spec(self, epoch: int) -> ViewSpec:
        """The specification of the students' views: smaller at first in a progressive run."""
        train, spec = self.recipe.train, self.recipe.views.spec
        size_px = progressive_px(
            epoch,
            epochs=train.epochs,
            first_px=train.progressive_px,
            last_px=spec.size_px,
            until=train.progressive_until,
        )
        return replace(spec, size_px=size_px)

    def order(self, epoch: int) -> NDArray[np.int64]:
        """The ids of an epoch, int64, in full batches: shuffled, with samples that are mixed side by side."""
        ids = permutation(self.split.ids, self.recipe.train.seed, Stream.SAMPLE_ORDER, epoch)
        if self.recipe.views.spec.mixes:
            ids = pairs_together(ids, self._views.partner(self.view_of(epoch)))
        return ids[: self.steps_per_epoch * self.recipe.train.batch_size]

    def active_students(self, epoch: int) -> list[int]:
        """Indices of the students that train in an epoch: those whose start_epoch has come."""
        return [index for index, student in enumerate(self.recipe.students) if epoch >= student.start_epoch]

    def schedule(self, epoch: int, stats: EpochStats) -> EpochSchedule:
        """The epoch's values; a thread begins to draw the next epoch's views. stats: of the epoch before."""
        view = self.view_of(epoch)
        table = self._views.table(view, self.spec(epoch))
        if epoch + 1 < self.recipe.train.epochs:
            self._views.prepare(self.view_of(epoch + 1), self.spec(epoch + 1))
        return EpochSchedule.of(self.recipe, epoch, self.steps_per_epoch, view, table, self.job.device, stats)

    def make_runner(self, spec: ViewSpec, active: Sequence[int], metrics: TrainMetrics, exchange: Exchange) -> StepRunner:
        """What runs the steps of the active students on views of `spec`. ConfigError: the device or backend cannot."""
        recipe, device = self.recipe, self.job.device
        students = [self.students[index] for index in active]
        connections = [self._connections[index] for index in active] if self._connections else []
        step = build_step(recipe, spec, students, self.teacher, device, connections, self.loss_scale, exchange)
        if recipe.train.input == "stream":
            return StreamingRunner(step, self.backend, recipe.train.batch_size, exchange=exchange)
        if not isinstance(self.backend, ResidentBackend):
            raise ConfigError(
                "train.input is resident and the backend is not; expected canvas.npy, and memory for it on the device; "
                "write it with udkd data derive, or set train.input to stream"
            )
        if recipe.train.cuda_graph and device.type != "cuda":
            raise ConfigError("train.cuda_graph is true; expected a CUDA device; set it to false")
        if recipe.train.cuda_graph and exchange.through_host:
            raise ConfigError(
                "train.cuda_graph is true and processes share a GPU; expected a GPU for each, as NCCL does; set it to false"
            )
        live = recipe.needs_teacher and recipe.teacher.source == "live"
        if recipe.train.cuda_graph and live and recipe.teacher.estimator == "mc_dropout":
            raise ConfigError(
                "train.cuda_graph is true and a live teacher drops features by the view's number, which a graph would fix; "
                "expected a cache or another estimator; build a cache or set train.cuda_graph to false"
            )
        return ResidentRunner(
            step,
            self.backend.full_batch(),
            recipe.train.batch_size,
            metrics,
            capture=CudaGraphCapture(device) if recipe.train.cuda_graph else None,
            exchange=exchange,
        )

    def _count_steps(self) -> int:
        """Full batches only: a smaller last one would need other kernels, and the next epoch has another order anyway."""
        steps = len(self.split.ids) // self.recipe.train.batch_size
        if steps == 0:
            raise ConfigError(
                f"train.batch_size = {self.recipe.train.batch_size} is more than the {len(self.split.ids)} training images; "
                "expected at least one full batch; lower it"
            )
        if len(self.dataset.split("val").ids) == 0:
            raise DataError(f"{self.job.data} has no validation images; expected some to evaluate on; convert with --hold-out")
        return steps

    def _open_backend(self, name: str) -> Backend:
        settings, job = self.recipe.data, self.job
        split = self.dataset.split(name)
        workers = settings.workers
        if job.group.local_size > 1 and not workers:
            workers = max(1, available_cores() // job.group.local_size)
        return open_backend(settings.backend, split, job.device, workers=workers, observer=job.observer)

    def _connect(self, teacher: TargetSource) -> list[Connection]:
        """Connect the students to their teacher as loss.method says. A live teacher then returns the maps that it needs."""
        recipe = self.recipe
        if recipe.loss.method == "none":
            return []
        network = None
        if METHODS[recipe.loss.method].needs == "maps":
            assert isinstance(teacher, LiveTargets), "a recipe whose method compares maps has a live teacher"
            network = teacher.network
        options: dict[str, Any] = {
            "labels_I": self.split.labels.astype("int64"),
            "ids": self.split.ids,
            "features": teacher.num_features,
            "seed": recipe.train.seed,
            "image_px": recipe.views.size_px,
            "device": self.job.device,
        }
        connections = [
            connect(recipe.loss.method, recipe.methods, student.model, network, index=student.index, **options)
            for student in self.students
        ]
        pairs = zip(self.students, connections, strict=True)
        self.students = [student.with_connector(connection.connector) for student, connection in pairs]
        if isinstance(teacher, LiveTargets):
            teacher.keep_maps(sorted({name for connection in connections for name in connection.teacher_modules}))
        return connections

    def _init_students(self) -> dict[str, Any]:
        """Load the weights that students.*.init_from or pretrained names, unless a checkpoint will; their digests."""
        sections = self.recipe.students
        chosen = [each for each in self.students if sections[each.index].init_from or sections[each.index].pretrained]
        resumed = self.job.resume and RunFolder.is_at(self.job.out) and RunFolder.open(self.job.out).has_checkpoint
        if resumed or not chosen or not self.job.group.is_main:  # the others get them from the main process
            return {}
        digests = {}
        for student in chosen:
            weights, note = initial_weights(
                sections[student.index], student.name, self.dataset.classes, self.recipe.views.size_px
            )
            if note:
                self.job.observer.note(note)
            student.load_weights(weights)
            digests[student.name] = weights_sha256(weights)
        return {"starts": digests}
