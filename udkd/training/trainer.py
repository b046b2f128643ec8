"""The trainer: one loop for 1 to N students and any source of targets.

Every random number is a pure function of (seed, epoch, step, sample), so a checkpoint needs only weights, momentum, the
epoch's sums and the step, and a resumed run ends in the same bits on a CPU. On a GPU it gets the same views, targets and
order, but cuDNN sums gradients in no fixed order.
"""

import contextlib
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

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
from udkd.training.checkpoints import Checkpoint
from udkd.training.init_from import initial_weights, weights_sha256
from udkd.training.lr import progressive_px
from udkd.training.metrics import TrainMetrics, recorded_rows
from udkd.training.run_folder import RunFolder
from udkd.training.run_records import CheckpointProgress, StoredEpochStats
from udkd.training.runners import CudaGraphCapture, ResidentRunner, StepRunner, StreamingRunner
from udkd.training.scalars import write_scalars
from udkd.training.schedule import EpochSchedule, learning_rates
from udkd.training.scoring import score
from udkd.training.student import make_students, require_like
from udkd.utils.environment import cudnn_benchmark, environment, set_threads
from udkd.utils.errors import ConfigError, DataError, MismatchError, RunError
from udkd.utils.files import FolderLock
from udkd.utils.progress import SILENT, Observer
from udkd.utils.rng import Stream, permutation


@dataclass(frozen=True, kw_only=True)
class TrainJob:
    """A recipe, its data, and everything else that a training run needs.

    cache, teacher: folders; which is needed follows from recipe.teacher.source. A teacher given with a cache is only checked
    against it. more_teachers: the other members of an ensemble.
    allow: fields of the cache's key that may differ. stopped: called after every step; True ends the run at a checkpoint.
    """

    recipe: Recipe
    data: Path
    out: Path
    device: torch.device
    cache: Path | None = None
    teacher: Path | None = None
    more_teachers: tuple[Path, ...] = ()
    resume: bool = False
    allow: tuple[str, ...] = ()
    observer: Observer = SILENT
    stopped: Callable[[], bool] = lambda: False


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """Whether a call to `train` finished the run, or was stopped at a checkpoint after `step` steps."""

    finished: bool
    step: int


def train(job: TrainJob) -> TrainResult:
    """Train the recipe's students; the results are in the run folder.

    Raises a UserError: unusable data, cache, teacher or run folder, another process that trains the run, a loss that is not
    finite (the last checkpoint is kept).
    """
    set_threads(job.recipe.train.threads)
    with contextlib.closing(Trainer(job)) as trainer:
        return trainer.run()


class Trainer:
    """The state of one run: students, metrics, and the step they are at."""

    def __init__(self, job: TrainJob) -> None:
        self.job = job
        self.recipe = recipe = job.recipe
        self.dataset = DatasetFolder.open(job.data)
        require_several_classes(self.dataset)
        self.split = self.dataset.split("train")
        self.steps_per_epoch = self._steps_per_epoch()
        self.backends: list[Backend] = []
        self.backend = self._open_backend("train")
        self.validation = self._open_backend("val")
        pixels, device = self.backend.describe(), job.device
        teachers = ((job.teacher,) if job.teacher else ()) + job.more_teachers
        teacher, provenance = open_targets(
            recipe, self.dataset, pixels, device, cache=job.cache, teachers=teachers, allow=job.allow, observer=job.observer
        )
        self.num_views = provenance.get("num_views")
        self.views = EpochViews(recipe.views.spec, recipe.views.seed, self.split, device)
        self.val_views = EpochViews(recipe.evaluation_spec, 0, self.dataset.split("val"), device)
        self.students = make_students(recipe, len(self.dataset.classes), device)
        self.teacher, self.connections = teacher, self._connect(teacher)
        provenance |= self._init_students()
        self.metrics = TrainMetrics.empty(len(self.students), device, recorded_rows(recipe))
        self.stats = EpochStats.none(len(self.students))
        self.step = 0
        self.training: list[int] = []  # indices of the students that have started
        self._runner: tuple[tuple[int, int], StepRunner] | None = None
        self.runner(0)
        # The folder last: inputs that do not fit have been refused by now, and no unfinished folder is left behind.
        with contextlib.ExitStack() as stack:
            stack.enter_context(self._lock())
            self.run_folder = self._create_or_reopen(provenance)
            if job.resume:
                self._restore()
            self._resources = stack.pop_all()

    def run(self) -> TrainResult:
        """Train from the current step to the end, or until stopped."""
        total = self.recipe.train.epochs * self.steps_per_epoch
        self.run_folder.drop_metrics_after(self.step)
        if self.step >= total:
            self.job.observer.note(f"{self.job.out} is finished already: {self.recipe.train.epochs} epochs")
        while self.step < total:
            epoch, done = divmod(self.step, self.steps_per_epoch)
            stopped = self._train_epoch(epoch, done)
            if stopped:
                return TrainResult(finished=False, step=self.step)
        return TrainResult(finished=True, step=self.step)

    def close(self) -> None:
        """Release the run folder and the backends."""
        self._resources.close()
        for backend in self.backends:
            backend.close()

    def view_of(self, epoch: int) -> int:
        """The number of the view that the students see: a new one every epoch, or the cached ones in turn."""
        return epoch if self.num_views is None else epoch % self.num_views

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

    def runner(self, epoch: int) -> StepRunner:
        """The runner of an epoch's steps; a new one is made only where the size of the views changes or a student starts."""
        spec = self.spec(epoch)
        self.training = [student.index for student in self.students if epoch >= self.recipe.students[student.index].start_epoch]
        if self._runner is None or self._runner[0] != (spec.size_px, len(self.training)):
            self._runner = None  # frees a captured step's memory before the next one is built
            self._runner = (spec.size_px, len(self.training)), self._make_runner(spec)
        return self._runner[1]

    def _make_runner(self, spec: ViewSpec) -> StepRunner:
        recipe, device = self.recipe, self.job.device
        students = [self.students[index] for index in self.training]
        connections = [self.connections[index] for index in self.training] if self.connections else []
        step = build_step(recipe, spec, students, self.teacher, device, connections)
        if recipe.train.input == "stream":
            return StreamingRunner(step, self.backend, recipe.train.batch_size)
        if not isinstance(self.backend, ResidentBackend):
            raise ConfigError(
                "train.input is resident and the backend is not; expected canvas.npy, and memory for it on the device; "
                "write it with udkd-prep derive, or set train.input to stream"
            )
        if recipe.train.cuda_graph and device.type != "cuda":
            raise ConfigError("train.cuda_graph is true; expected a CUDA device; set it to false")
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
            self.metrics,
            capture=CudaGraphCapture(device) if recipe.train.cuda_graph else None,
        )

    def _schedule(self, epoch: int) -> EpochSchedule:
        """The epoch's values; a thread begins to draw the next epoch's views."""
        view = self.view_of(epoch)
        table = self.views.table(view, self.spec(epoch))
        if epoch + 1 < self.recipe.train.epochs:
            self.views.prepare(self.view_of(epoch + 1), self.spec(epoch + 1))
        return EpochSchedule.of(self.recipe, epoch, self.steps_per_epoch, view, table, self.job.device, self.stats)

    def _train_epoch(self, epoch: int, done_steps: int) -> bool:
        """Train the rest of an epoch, then evaluate; True where the run was stopped on the way."""
        observer, batch_size = self.job.observer, self.recipe.train.batch_size
        epoch_ids = permutation(self.split.ids, self.recipe.train.seed, Stream.SAMPLE_ORDER, epoch)
        order = epoch_ids[: self.steps_per_epoch * batch_size]
        schedule = self._schedule(epoch)
        observer.start(f"epoch {epoch + 1}/{self.recipe.train.epochs}", len(order), "images")
        observer.advance(done_steps * batch_size)
        for student in self.students:
            student.model.train()
        started = time.perf_counter()
        before = self.step
        epoch_steps = self.runner(epoch).epoch(order[done_steps * batch_size :], schedule, self.metrics, done_steps)
        with cudnn_benchmark(self.recipe.perf.cudnn_benchmark), contextlib.closing(epoch_steps) as steps:
            for images in steps:
                self.step += 1
                log = self.step % self.recipe.train.log_every_steps == 0
                observer.advance(images, **(self._progress_fields() if log else {}))
                if self.job.stopped() and self.step % self.steps_per_epoch:
                    observer.finish()
                    self._save()
                    return True
        self._train_row()  # waits for the device, so that `seconds` covers the work
        seconds = time.perf_counter() - started
        observer.finish()
        self._finish_epoch(epoch, schedule.view, seconds, (self.step - before) * batch_size)
        return self.job.stopped() and epoch + 1 < self.recipe.train.epochs

    def _finish_epoch(self, epoch: int, view: int, seconds: float, images: int) -> None:
        """Evaluate, then write the epoch's row and a checkpoint that begins the next one."""
        train_row = self._train_row()
        training = self.training
        val_row = self._evaluate(training)
        row = {
            "epoch": epoch + 1,
            "step": self.step,
            "lr": learning_rates(self.recipe, self.step - 1, self.steps_per_epoch),
            "seconds": seconds,
            "images_per_s": images / seconds,
            "view": view,
            "size_px": self.spec(epoch).size_px,
            "train": {name: _for_training(values, training) for name, values in train_row.items()},
            "val": val_row,
        }
        if self.recipe.needs_epoch_stats:
            self.stats = _stats_after(row)
        self.metrics.clear()
        # The checkpoint last: a run killed between the two trains the epoch again and replaces the row.
        self.run_folder.drop_metrics_after(self.step - 1)
        self.run_folder.append_metrics(row)
        self._save()
        if self.recipe.train.tensorboard:
            write_scalars(self.job.out / "tensorboard", row, [student.name for student in self.students])
        top1 = ", ".join(f"{self.students[index].name} {val_row['students'][index]['top1']:.2f} %" for index in training)
        average = f", averaged {val_row['ensemble']['top1']:.2f} %" if len(training) > 1 else ""
        self.job.observer.note(f"epoch {epoch + 1}: validation top-1 {top1}{average} ({images / seconds:.0f} images/s)")

    def _evaluate(self, training: Sequence[int]) -> dict[str, Any]:
        """Scores of the students that have started, and of their averaged probabilities; None for the others."""
        split = self.dataset.split("val")
        for student in self.students:
            student.model.eval()
        self.job.observer.start("validation", len(split.ids), "images")
        scores = score(
            [self.students[index].eval_model for index in training],
            self.validation,
            split.ids,
            self.val_views,
            batch=self.recipe.train.batch_size,
            autocast=self.recipe.train.precision == "bfloat16",
            flip=self.recipe.evaluation.flip_tta,
            on_batch=self.job.observer.advance,
        )
        self.job.observer.finish()
        if not all(math.isfinite(value.loss) for value in (*scores.each, scores.ensemble)):
            raise RunError(
                f"the validation loss after step {self.step} is not finite; expected a number; the last checkpoint is kept; "
                "lower students.*.lr or train in float32"
            )
        each = dict(zip(training, (value.to_dict() for value in scores.each), strict=True))
        return {"students": [each.get(index) for index in range(len(self.students))], "ensemble": scores.ensemble.to_dict()}

    def _train_row(self) -> dict[str, list[float]]:
        """The epoch's means so far, one list entry per student. Raises RunError where a loss was not finite."""
        first = int(self.metrics.first_nonfinite_step)
        if first >= 0:
            step = (self.step - 1) // self.steps_per_epoch * self.steps_per_epoch + first
            kept = (
                f"the checkpoint in {self.job.out} is kept" if self.run_folder.has_checkpoint else "no checkpoint was due yet"
            )
            raise RunError(
                f"the loss of step {step} (epoch {step // self.steps_per_epoch + 1}) is not finite; expected a number; "
                f"{kept}; lower students.*.lr or train in float32"
            )
        return self.metrics.means(self.recipe.loss.settings)

    def _progress_fields(self) -> dict[str, float | str]:
        """What the progress bar shows in addition to the speed."""
        row = self._train_row()
        shown: dict[str, float | str] = {}
        for index in self.training:
            terms = "/".join(f"{row[term][index]:.2f}" for term in ("hard", "teacher", "peer"))
            shown[self.students[index].name] = f"{terms} {row['top1'][index]:.0f} %"
        return shown

    def _save(self) -> None:
        self._train_row()  # a run whose loss is not finite keeps its last good checkpoint
        tensors = self._tensors()
        not_finite = [name for name, value in tensors.items() if value.is_floating_point() and not value.isfinite().all()]
        if not_finite:
            raise RunError(
                f"{not_finite[0]} is not finite after step {self.step - 1}; expected numbers; "
                "the last checkpoint is kept; lower students.*.lr or train in float32"
            )
        stats = StoredEpochStats(progress=list(self.stats.progress), confidence=self.stats.confidence)
        progress = CheckpointProgress(
            step=self.step, steps_per_epoch=self.steps_per_epoch, figures=stats if self.recipe.needs_epoch_stats else None
        )
        self.run_folder.save(Checkpoint(tensors=tensors, progress=progress))

    def _tensors(self) -> dict[str, Tensor]:
        """Every tensor that a checkpoint holds."""
        tensors = {"tally.sums": self.metrics.sums, "tally.count": self.metrics.count}
        for student in self.students:
            tensors |= student.tensors()
        return tensors

    def _restore(self) -> None:
        """Resume from the newest checkpoint. Raises RunError for one that does not fit recipe, data and rows in every count."""
        if not self.run_folder.has_checkpoint:
            self._require_no_epochs()
            return
        checkpoint, train = self.run_folder.load(), self.recipe.train
        checkpoint.require_counts(batch=train.batch_size, epochs=train.epochs, steps_per_epoch=self.steps_per_epoch)
        require_like(checkpoint.tensors, self._tensors(), f"the checkpoint in {self.job.out}")
        self.step = checkpoint.progress.step
        self._restore_stats(checkpoint.progress.figures)
        self.run_folder.drop_older_checkpoints()
        tensors = {name: value.to(self.job.device) for name, value in checkpoint.tensors.items()}
        for student in self.students:
            student.restore(tensors)
        self.metrics.sums.copy_(tensors["tally.sums"])
        self.metrics.count.copy_(tensors["tally.count"])
        self.job.observer.note(f"resumed at step {self.step} (epoch {self.step // self.steps_per_epoch + 1})")

    def _require_no_epochs(self) -> None:
        """RunError where a checkpoint is lost; the first epoch's row is written before its checkpoint."""
        done = len(self.run_folder.metrics())
        if done > 1:
            raise RunError(
                f"checkpoints/last.json in {self.job.out} is missing and {done} epochs are done; expected their checkpoint; "
                "restore it or train again in another folder"
            )

    def _restore_stats(self, stored: StoredEpochStats | None) -> None:
        """RunError unless metrics.jsonl has each epoch before the checkpoint, and the statistics that its schedules follow."""
        rows = [row for row in self.run_folder.metrics() if row["step"] <= self.step]
        done = self.step // self.steps_per_epoch
        if len(rows) != done or (rows and rows[-1]["step"] != done * self.steps_per_epoch):
            raise RunError(
                f"metrics.jsonl in {self.job.out} has {len(rows)} epochs up to step {self.step}; expected {done} of "
                f"{self.steps_per_epoch} steps; restore it or train again"
            )
        if self.recipe.needs_epoch_stats:
            self.stats = _stats_after(rows[-1]) if rows else EpochStats.none(len(self.students))
        expected = [*self.stats.progress, self.stats.confidence] if self.recipe.needs_epoch_stats else None
        in_checkpoint = None if stored is None else [*stored.progress, stored.confidence]
        if in_checkpoint != expected:
            raise RunError(
                f"the checkpoint in {self.job.out} has statistics {in_checkpoint}; expected {expected} as in metrics.jsonl; "
                "restore it or train again"
            )

    def _steps_per_epoch(self) -> int:
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
        """Load the weights that students.*.init_from names, unless a checkpoint will; their digests for the run folder."""
        chosen = [student for student in self.students if self.recipe.students[student.index].init_from]
        if self.job.resume or not chosen:
            return {}
        digests = {}
        for student in chosen:
            section, classes = self.recipe.students[student.index], [entry.wnid for entry in self.dataset.classes]
            weights = initial_weights(section, student.name, classes)
            student.load_weights(weights)
            digests[student.name] = weights_sha256(weights)
        return {"starts": digests}

    def _lock(self) -> FolderLock:
        """One process trains a run. A folder to resume must exist; it is not created."""
        if not self.job.resume:
            self.job.out.mkdir(parents=True, exist_ok=True)
        elif not self.job.out.is_dir():
            RunFolder.open(self.job.out)  # raises, naming what is missing
        return FolderLock(self.job.out)

    def _create_or_reopen(self, provenance: dict[str, Any]) -> RunFolder:
        """The run folder. provenance: the teacher's; a resumed run must find its recipe, data and teacher as they were."""
        config, out = self.recipe.to_dict(), self.job.out
        facts = {
            "dataset": str(self.job.data.resolve()),
            "dataset_digest": self.dataset.digest,
            "classes": [entry.wnid for entry in self.dataset.classes],
        } | provenance
        if not self.job.resume:
            return RunFolder.create(out, config, facts | environment(self.job.device))
        run = RunFolder.open(out)
        run.require_config(config, Recipe.from_stored(run.config, str(out)).to_dict())
        stored = run.provenance
        decisive = ("dataset_digest", "cache_key", "teacher_sha256", "num_views")
        fields = [(name, stored.get(name), facts.get(name)) for name in decisive if stored.get(name) != facts.get(name)]
        if fields:
            raise MismatchError(f"the run in {out}", fields, "resume with the data and the teacher or cache it began with")
        return run

    def _open_backend(self, name: str) -> Backend:
        split, device = self.dataset.split(name), self.job.device
        settings = self.recipe.data
        backend = open_backend(settings.backend, split, device, workers=settings.workers, observer=self.job.observer)
        self.backends.append(backend)
        return backend


def _stats_after(row: Mapping[str, Any]) -> EpochStats:
    """The statistics that schedules use, from an epoch's row of metrics.jsonl. Progress is 0 before a student's start_epoch."""
    top1, confidence = row["train"]["top1"], row["train"]["confidence"]
    return EpochStats(progress=[(value or 0.0) / 100 for value in top1], confidence=max(value or 0.0 for value in confidence))


def _for_training(values: Sequence[float], training: Sequence[int]) -> list[float | None]:
    """Each student's value, None before its start_epoch, where 0 would look like a loss of 0."""
    return [value if index in training else None for index, value in enumerate(values)]
