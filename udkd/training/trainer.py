"""The trainer: one loop for 1 to N students and any source of targets.

Every random number is a pure function of (seed, epoch, step, sample), so a checkpoint holds no generator state: tensors
(weights, buffers, optimizers, averages, the epoch's sums), the step, and the statistics that schedules use. A resumed run
ends in the same bits on a CPU. On a GPU it gets the same views, targets and order, but cuDNN sums gradients in no fixed order.
"""

import contextlib
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from udkd.losses.schedules import EpochStats
from udkd.training.checkpoints import Checkpoint
from udkd.training.loss_scale import MIN_SCALE
from udkd.training.metrics import TrainMetrics, recorded_rows
from udkd.training.resume import create_or_reopen, load_checkpoint, lock_run_folder, stats_after
from udkd.training.run_records import CheckpointProgress, StoredEpochStats
from udkd.training.runners import StepRunner
from udkd.training.scalars import write_scalars
from udkd.training.schedule import learning_rates
from udkd.training.scoring import score
from udkd.training.setup import TrainJob as TrainJob
from udkd.training.setup import TrainSetup
from udkd.utils.environment import cudnn_benchmark, set_threads
from udkd.utils.errors import RunError
from udkd.utils.rng import Stream, permutation


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
        self.job, self.recipe = job, job.recipe
        with contextlib.ExitStack() as stack:
            self.setup = stack.enter_context(contextlib.closing(TrainSetup(job)))
            self.steps_per_epoch = self.setup.steps_per_epoch
            self.students = self.setup.students
            self.metrics = TrainMetrics.empty(len(self.students), job.device, recorded_rows(job.recipe))
            self.stats = EpochStats.none(len(self.students))
            self.step = 0
            self._runner: tuple[tuple[int, tuple[int, ...]], StepRunner] | None = None
            self._prepare_runner(0)
            # The folder last: inputs that do not fit have been refused by now, and no unfinished folder is left behind.
            stack.enter_context(lock_run_folder(job))
            self.run_folder = create_or_reopen(job, self.setup)
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

    def _prepare_runner(self, epoch: int) -> StepRunner:
        """The runner of an epoch's steps; a new one is made only where the size of the views changes or a student starts."""
        spec, active = self.setup.spec(epoch), self.setup.active_students(epoch)
        if self._runner is None or self._runner[0] != (spec.size_px, tuple(active)):
            self._runner = None  # frees a captured step's memory before the next one is built
            self._runner = (spec.size_px, tuple(active)), self.setup.make_runner(spec, active, self.metrics)
        return self._runner[1]

    def _train_epoch(self, epoch: int, done_steps: int) -> bool:
        """Train the rest of an epoch, then evaluate; True where the run was stopped on the way."""
        observer, batch_size = self.job.observer, self.recipe.train.batch_size
        epoch_ids = permutation(self.setup.split.ids, self.recipe.train.seed, Stream.SAMPLE_ORDER, epoch)
        order = epoch_ids[: self.steps_per_epoch * batch_size]
        schedule, active = self.setup.schedule(epoch, self.stats), self.setup.active_students(epoch)
        observer.start(f"epoch {epoch + 1}/{self.recipe.train.epochs}", len(order), "images")
        observer.advance(done_steps * batch_size)
        for student in self.students:
            student.train_mode()
        started = time.perf_counter()
        before = self.step
        epoch_steps = self._prepare_runner(epoch).epoch(order[done_steps * batch_size :], schedule, self.metrics, done_steps)
        with cudnn_benchmark(self.recipe.perf.cudnn_benchmark), contextlib.closing(epoch_steps) as steps:
            for images in steps:
                self.step += 1
                log = self.step % self.recipe.train.log_every_steps == 0
                observer.advance(images, **(self._progress_fields(active) if log else {}))
                if self.job.stopped() and self.step % self.steps_per_epoch:
                    observer.finish()
                    self._save()
                    return True
        self._train_row()  # waits for the device, so that `seconds` covers the work
        seconds = time.perf_counter() - started
        observer.finish()
        self._finish_epoch(epoch, active, seconds, (self.step - before) * batch_size)
        return self.job.stopped() and epoch + 1 < self.recipe.train.epochs

    def _finish_epoch(self, epoch: int, active: Sequence[int], seconds: float, images: int) -> None:
        """Evaluate, then write the epoch's row and a checkpoint that begins the next one."""
        train_row = self._train_row()
        val_row = self._evaluate(active)
        row = {
            "epoch": epoch + 1,
            "step": self.step,
            "lr": learning_rates(self.recipe, self.step - 1, self.steps_per_epoch),
            "seconds": seconds,
            "images_per_s": images / seconds,
            "view": self.setup.view_of(epoch),
            "size_px": self.setup.spec(epoch).size_px,
            "train": {name: _for_active(values, active) for name, values in train_row.items()},
            "val": val_row,
        }
        if self.recipe.needs_epoch_stats:
            self.stats = stats_after(row)
        self.metrics.clear()
        # The checkpoint last: a run killed between the two trains the epoch again and replaces the row.
        self.run_folder.drop_metrics_after(self.step - 1)
        self.run_folder.append_metrics(row)
        self._save()
        if self.recipe.train.tensorboard:
            write_scalars(self.job.out / "tensorboard", row, [student.name for student in self.students])
        top1 = ", ".join(f"{self.students[index].name} {val_row['students'][index]['top1']:.2f} %" for index in active)
        average = f", ensemble {val_row['ensemble']['top1']:.2f} %" if len(active) > 1 else ""
        self.job.observer.note(f"epoch {epoch + 1}: validation top-1 {top1}{average} ({images / seconds:.0f} images/s)")

    def _evaluate(self, active: Sequence[int]) -> dict[str, Any]:
        """Scores of the students that have started, and of their averaged probabilities; None for the others."""
        split = self.setup.dataset.split("val")
        for student in self.students:
            student.model.eval()
        self.job.observer.start("validation", len(split.ids), "images")
        scores = score(
            [self.students[index].eval_model for index in active],
            self.setup.validation,
            split.ids,
            self.setup.val_views,
            batch=self.recipe.train.batch_size,
            precision=self.recipe.train.precision,
            preprocessing=tuple(self.students[index].preprocessing for index in active),
            flip=self.recipe.evaluation.flip_tta,
            on_batch=self.job.observer.advance,
        )
        self.job.observer.finish()
        if not all(math.isfinite(value.loss) for value in (*scores.each, scores.ensemble)):
            raise RunError(
                f"the validation loss after step {self.step} is not finite; expected a number; {self._kept()}; "
                "lower students.*.lr or train in float32"
            )
        each = dict(zip(active, (value.to_dict() for value in scores.each), strict=True))
        return {"students": [each.get(index) for index in range(len(self.students))], "ensemble": scores.ensemble.to_dict()}

    def _train_row(self) -> dict[str, list[float]]:
        """The epoch's means so far, one list entry per student. Raises RunError where a loss was not finite."""
        first = int(self.metrics.first_nonfinite_step)
        if first >= 0:
            step = (self.step - 1) // self.steps_per_epoch * self.steps_per_epoch + first
            raise RunError(
                f"the loss of step {step} (epoch {step // self.steps_per_epoch + 1}) is not finite; expected a number; "
                f"{self._kept()}; lower students.*.lr or train in float32"
            )
        scale = self.setup.loss_scale
        if scale is not None and float(scale.scale) < MIN_SCALE:
            raise RunError(
                f"the loss scale is {float(scale.scale):g} after step {self.step - 1}, as gradients overflow at any scale; "
                f"expected at least {MIN_SCALE:g}; {self._kept()}; lower students.*.lr or set train.precision to float32"
            )
        return self.metrics.means(self.recipe.loss.settings)

    def _kept(self) -> str:
        """For errors: what is left of the run."""
        kept = self.run_folder.has_checkpoint
        return f"the checkpoint in {self.job.out} is kept" if kept else "no checkpoint was due yet"

    def _progress_fields(self, active: Sequence[int]) -> dict[str, float | str]:
        """What the progress bar shows in addition to the speed."""
        row = self._train_row()
        shown: dict[str, float | str] = {}
        for index in active:
            terms = "/".join(f"{row[term][index]:.2f}" for term in ("hard", "teacher", "peer"))
            shown[self.students[index].name] = f"{terms} {row['top1'][index]:.0f} %"
        return shown

    def _save(self) -> None:
        self._train_row()  # a run whose loss is not finite keeps its last good checkpoint
        tensors = self._tensors()
        not_finite = [name for name, value in tensors.items() if value.is_floating_point() and not value.isfinite().all()]
        if not_finite:
            raise RunError(
                f"{not_finite[0]} is not finite after step {self.step - 1}; expected numbers; {self._kept()}; "
                "lower students.*.lr or train in float32"
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
        return tensors | ({} if self.setup.loss_scale is None else self.setup.loss_scale.tensors)

    def _restore(self) -> None:
        """Continue from the newest checkpoint, where there is one."""
        loaded = load_checkpoint(self.run_folder, self.recipe, self.steps_per_epoch, self._tensors())
        if loaded is None:
            return
        checkpoint, self.stats = loaded
        self.step = checkpoint.progress.step
        tensors = {name: value.to(self.job.device) for name, value in checkpoint.tensors.items()}
        for student in self.students:
            student.restore(tensors)
        self.metrics.sums.copy_(tensors["tally.sums"])
        self.metrics.count.copy_(tensors["tally.count"])
        for name, value in (self.setup.loss_scale.tensors if self.setup.loss_scale else {}).items():
            value.copy_(tensors[name])
        self.job.observer.note(f"resumed at step {self.step} (epoch {self.step // self.steps_per_epoch + 1})")


def _for_active(values: Sequence[float], active: Sequence[int]) -> list[float | None]:
    """Each student's value, None before its start_epoch, where 0 would look like a loss of 0."""
    return [value if index in active else None for index, value in enumerate(values)]
