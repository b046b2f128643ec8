"""The trainer: one loop for 1 to N students, whoever teaches them.

Every number it draws is a pure function of (seed, epoch, step, sample), so a checkpoint holds weights, momentum, the
epoch's sums and a step counter, and a resumed run ends in the same bits.
"""

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from udkd.backends import choose, open_backend
from udkd.engine.lessons import open_lessons
from udkd.engine.scalars import write_scalars
from udkd.engine.scoring import Scores, score
from udkd.engine.step import Step, Tally
from udkd.formats.config import Recipe
from udkd.formats.dataset import DatasetFolder
from udkd.formats.run import Checkpoint, RunFolder
from udkd.operations.compiled import compiled_loss, eager_loss
from udkd.parts.environment import environment, set_threads
from udkd.parts.epoch_views import EpochViews
from udkd.parts.students import make_students
from udkd.words.batch import Backend
from udkd.words.errors import ConfigError, DataError, MismatchError, RunError
from udkd.words.files import FolderLock
from udkd.words.hashing import permutation
from udkd.words.observer import SILENT, Observer

_ORDER = 3  # the name of the sample order among the uses of train.seed


@dataclass(frozen=True, kw_only=True)
class Job:
    """What to train, on what, where.

    cache, teacher: folders; which is needed follows from recipe.teacher.source. With a cache, a teacher is only compared.
    more_teachers: the other members of an ensemble.
    allow: fields of the cache's key that may differ. stopped: asked after every step; True ends the run at a checkpoint.
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
class Outcome:
    """How a call to `train` ended: finished, or stopped at a checkpoint after `step` steps."""

    finished: bool
    step: int


def train(job: Job) -> Outcome:
    """Train the recipe's students; everything that is learnt is in the run folder.

    Raises UserError kin: unusable data, cache, teacher or run folder, another process that trains it, a loss that is not
    finite (the last checkpoint stays).
    """
    set_threads(job.recipe.train.threads)
    with contextlib.closing(Trainer(job)) as trainer, FolderLock(job.out):
        return trainer.run()


class Trainer:
    """The state of one run: students, tally and the step they are at."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.recipe = recipe = job.recipe
        self.dataset = DatasetFolder.open(job.data)
        self.split = self.dataset.split("train")
        self.steps_per_epoch = self._steps_per_epoch()
        self.backends: list[Backend] = []
        self.backend = self._open_backend("train")
        self.validation = self._open_backend("val")
        pixels, device = self.backend.describe(), job.device
        teachers = ((job.teacher,) if job.teacher else ()) + job.more_teachers
        lessons, record = open_lessons(
            recipe, self.dataset, pixels, device, cache=job.cache, teachers=teachers, allow=job.allow
        )
        self.num_views = record.get("num_views")
        self.views = EpochViews(recipe.views.spec, recipe.views.seed, self.split, device)
        self.val_views = EpochViews(recipe.evaluation_spec, 0, self.dataset.split("val"), device)
        self.students = make_students(recipe, len(self.dataset.classes), device)
        settings = recipe.loss.settings
        self.train_step = Step(
            students=self.students,
            spec=recipe.views.spec,
            lessons=lessons,
            loss=eager_loss(settings) if recipe.train.compile == "off" else compiled_loss(settings),
            autocast=recipe.train.precision == "bfloat16",
            channels_last=recipe.train.channels_last,
        )
        self.tally = Tally.empty(len(self.students), device)
        self.step = 0
        # The folder last: whatever does not fit has been refused by now, and nothing half-begun is left.
        self.run_folder = self._begin_or_reopen(record)
        if job.resume and self.run_folder.has_checkpoint:
            self._restore()

    def run(self) -> Outcome:
        """Train from the present step to the end, or until asked to stop."""
        total = self.recipe.train.epochs * self.steps_per_epoch
        self.run_folder.drop_metrics_after(self.step)
        if self.step >= total:
            self.job.observer.note(f"{self.job.out} is finished already: {self.recipe.train.epochs} epochs")
        while self.step < total:
            epoch, done = divmod(self.step, self.steps_per_epoch)
            stopped = self._train_epoch(epoch, done)
            if stopped:
                return Outcome(finished=False, step=self.step)
        return Outcome(finished=True, step=self.step)

    def close(self) -> None:
        """Release the backends."""
        for backend in self.backends:
            backend.close()

    def view_of(self, epoch: int) -> int:
        """Which view the students see: a new one every epoch, or the cached ones in turn."""
        return epoch if self.num_views is None else epoch % self.num_views

    def _train_epoch(self, epoch: int, done_steps: int) -> bool:
        """Train what is left of an epoch, then evaluate; True where the run was stopped on the way."""
        observer, batch_size = self.job.observer, self.recipe.train.batch
        order = permutation(self.split.ids, self.recipe.train.seed, _ORDER, epoch)[: self.steps_per_epoch * batch_size]
        view = self.view_of(epoch)
        table = self.views.table(view)
        observer.start(f"epoch {epoch + 1}/{self.recipe.train.epochs}", len(order), "images")
        observer.advance(done_steps * batch_size)
        for student in self.students:
            student.model.train()
        started = time.perf_counter()
        before = self.step
        with contextlib.closing(_generator(self.backend.epoch(order[done_steps * batch_size :], batch_size))) as batches:
            for batch in batches:
                for student in self.students:
                    student.begin_step(
                        self.step,
                        seed=self.recipe.train.seed,
                        steps_per_epoch=self.steps_per_epoch,
                        epochs=self.recipe.train.epochs,
                    )
                self.train_step(batch, table, view, self.tally, self.step)
                self.step += 1
                log = self.step % self.recipe.train.log_every_steps == 0
                observer.advance(len(batch.labels), **(self._figures() if log else {}))
                if self.job.stopped() and self.step % self.steps_per_epoch:
                    observer.finish()
                    self._save()
                    return True
        seconds = time.perf_counter() - started
        observer.finish()
        self._finish_epoch(epoch, view, seconds, (self.step - before) * batch_size)
        return self.job.stopped() and epoch + 1 < self.recipe.train.epochs

    def _finish_epoch(self, epoch: int, view: int, seconds: float, images: int) -> None:
        """Evaluate, then write the epoch's row and a checkpoint that begins the next one."""
        train_row = self._train_row()
        scores = self._evaluate()
        row = {
            "epoch": epoch + 1,
            "step": self.step,
            "lr": [student.lr for student in self.students],
            "seconds": seconds,
            "images_per_s": images / seconds,
            "view": view,
            "train": train_row,
            "val": scores.to_dict(),
        }
        self.tally = Tally.empty(len(self.students), self.job.device)
        # The checkpoint last: a run killed between the two trains the epoch again and replaces the row.
        self.run_folder.drop_metrics_after(self.step - 1)
        self.run_folder.append_metrics(row)
        self._save()
        if self.recipe.train.tensorboard:
            write_scalars(self.job.out / "tensorboard", row, [student.name for student in self.students])
        names = [student.name for student in self.students]
        figures = ", ".join(f"{name} {value.top1:.2f} %" for name, value in zip(names, scores.each, strict=True))
        average = f", averaged {scores.ensemble.top1:.2f} %" if len(names) > 1 else ""
        self.job.observer.note(f"epoch {epoch + 1}: validation top-1 {figures}{average} ({images / seconds:.0f} images/s)")

    def _evaluate(self) -> Scores:
        split = self.dataset.split("val")
        for student in self.students:
            student.model.eval()
        self.job.observer.start("validation", len(split.ids), "images")
        scores = score(
            [student.model for student in self.students],
            self.validation,
            split.ids,
            self.val_views,
            batch=self.recipe.train.batch,
            autocast=self.recipe.train.precision == "bfloat16",
            on_batch=self.job.observer.advance,
        )
        self.job.observer.finish()
        return scores

    def _train_row(self) -> dict[str, list[float]]:
        """The epoch's means so far, one list entry per student. Raises RunError where a loss was not finite."""
        bad = int(self.tally.bad_step)
        if bad >= 0:
            kept = (
                f"the checkpoint in {self.job.out} is kept" if self.run_folder.has_checkpoint else "no checkpoint was due yet"
            )
            raise RunError(
                f"the loss of step {bad} (epoch {bad // self.steps_per_epoch + 1}) is not finite; expected a number; "
                f"{kept}; lower students.*.lr or train in float32"
            )
        return self.tally.means(self.recipe.loss.settings)

    def _figures(self) -> dict[str, float | str]:
        """What the progress bar shows beside the speed."""
        row = self._train_row()
        figures: dict[str, float | str] = {}
        for index, student in enumerate(self.students):
            terms = "/".join(f"{row[term][index]:.2f}" for term in ("hard", "teacher", "peer"))
            figures[student.name] = f"{terms} {row['top1'][index]:.0f} %"
        return figures

    def _save(self) -> None:
        self._train_row()  # a run whose loss is not finite keeps its last good checkpoint
        tensors = {"tally.sums": self.tally.sums, "tally.count": self.tally.count}
        for student in self.students:
            tensors |= student.tensors()
        broken = [name for name, value in tensors.items() if value.is_floating_point() and not value.isfinite().all()]
        if broken:
            raise RunError(
                f"{broken[0]} is not finite after step {self.step - 1}; expected numbers; "
                "the last checkpoint is kept; lower students.*.lr or train in float32"
            )
        self.run_folder.save(Checkpoint(tensors=tensors, progress={"step": self.step, "steps_per_epoch": self.steps_per_epoch}))

    def _restore(self) -> None:
        checkpoint = self.run_folder.load()
        self.step = int(checkpoint.progress["step"])
        tensors = {name: value.to(self.job.device) for name, value in checkpoint.tensors.items()}
        for student in self.students:
            student.restore(tensors)
        self.tally.sums.copy_(tensors["tally.sums"])
        self.tally.count.copy_(tensors["tally.count"])
        self.job.observer.note(f"resumed at step {self.step} (epoch {self.step // self.steps_per_epoch + 1})")

    def _steps_per_epoch(self) -> int:
        """Whole batches only: a smaller last one would need other kernels, and the next epoch deals anew."""
        steps = len(self.split.ids) // self.recipe.train.batch
        if steps == 0:
            raise ConfigError(
                f"train.batch = {self.recipe.train.batch} is more than the {len(self.split.ids)} training images; "
                "expected at least one whole batch; lower it"
            )
        if len(self.dataset.split("val").ids) == 0:
            raise DataError(f"{self.job.data} has no validation images; expected some to evaluate on; convert with --hold-out")
        return steps

    def _begin_or_reopen(self, record: dict[str, Any]) -> RunFolder:
        """The run folder. record: what teaches; a resumed run must find its recipe, data and teacher as they were."""
        config, out = self.recipe.to_dict(), self.job.out
        facts = {
            "dataset": str(self.job.data.resolve()),
            "dataset_digest": self.dataset.digest,
            "classes": [entry.wnid for entry in self.dataset.classes],
        } | record
        if not self.job.resume:
            return RunFolder.create(out, config, facts | environment(self.job.device))
        run = RunFolder.open(out)
        run.require_config(config)
        stored = run.provenance
        decisive = ("dataset_digest", "cache_key", "teacher_sha256", "num_views")
        fields = [(name, stored.get(name), facts.get(name)) for name in decisive if stored.get(name) != facts.get(name)]
        if fields:
            raise MismatchError(f"the run in {out}", fields, "resume with the data and the teacher or cache it began with")
        return run

    def _open_backend(self, name: str) -> Backend:
        split, device = self.dataset.split(name), self.job.device
        chosen, why = choose(self.recipe.data.backend, split, device)
        self.job.observer.note(f"{name} images: {chosen} backend, because {why}")
        backend = open_backend(chosen, split, device, workers=self.recipe.data.workers)
        self.backends.append(backend)
        return backend


def _generator(batches: Iterator[Any]) -> Any:
    """A backend's iterator as one that can be closed, so that leaving the loop early frees its threads."""
    return batches if hasattr(batches, "close") else (batch for batch in batches)
