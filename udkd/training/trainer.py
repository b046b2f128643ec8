"""The trainer: one loop for 1 to N students and any source of targets.

Every random number is a pure function of (seed, epoch, step, sample), so a checkpoint holds no generator state: tensors
(weights, buffers, optimizers, averages, the epoch's sums), the step, and the statistics that schedules use. A resumed run
ends in the same bits on a CPU. On a GPU it gets the same views, targets and order, but cuDNN sums gradients in no fixed order.
"""

import contextlib
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from udkd.losses.schedules import EpochStats
from udkd.training.build_step import compiles
from udkd.training.checkpoints import Checkpoint
from udkd.training.exchange import NONE, Exchange, Requests
from udkd.training.loggers import LoggedRun, Loggers, epoch_values, require_loggers
from udkd.training.loss_scale import MIN_SCALE
from udkd.training.metrics import TrainMetrics, recorded_rows
from udkd.training.profile import WARM_UP_STEPS, StepProfiler
from udkd.training.resume import create_or_reopen, load_checkpoint, lock_run_folder, stats_after
from udkd.training.run_folder import RunFolder, flatten
from udkd.training.run_log import RunLog
from udkd.training.run_records import CheckpointProgress, StoredEpochStats
from udkd.training.runners import StepRunner
from udkd.training.schedule import learning_rates
from udkd.training.scoring import score
from udkd.training.setup import TrainJob as TrainJob
from udkd.training.setup import TrainSetup
from udkd.training.student_files import write_student
from udkd.utils.environment import cudnn_benchmark, deterministic, set_threads
from udkd.utils.errors import ConfigError, MismatchError, RunError
from udkd.utils.progress import duration
from udkd.utils.workers import SETUP_S


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
    set_threads(job.recipe.train.cpu_threads)
    with deterministic(job.recipe.train.deterministic), contextlib.closing(Trainer(job)) as trainer:
        return trainer.run()


class Trainer:
    """The state of one run: students, metrics, and the step they are at."""

    def __init__(self, job: TrainJob) -> None:
        if job.extend and not job.resume:
            raise ConfigError(f"--extend {job.extend} and no --resume; expected a run to continue; add --resume")
        self._is_main = job.group.is_main
        self._log = RunLog(job.observer)
        job = replace(job, observer=self._log, recipe=job.recipe.with_epochs(job.extend) if job.extend else job.recipe)
        self.job, self.recipe = job, job.recipe
        require_loggers(self._logger_names)
        with contextlib.ExitStack() as stack:
            self.setup = stack.enter_context(contextlib.closing(TrainSetup(job)))
            self._require_same_setups()  # and no collective before all processes are here, or one has said why it is not
            self.exchange = Exchange(
                self.recipe.train.slices, job.group, job.device, parallel=self.recipe.train.parallel, requests=self._requests
            )
            stack.callback(self.exchange.close)
            self._saved_at = time.monotonic()
            self.steps_per_epoch = self.setup.steps_per_epoch
            self.students = self.setup.students
            self.metrics = TrainMetrics.empty(len(self.students), job.device, recorded_rows(job.recipe))
            self.stats = EpochStats.none(len(self.students))
            self.step = 0
            self._runner: tuple[tuple[int, tuple[int, ...]], StepRunner] | None = None
            self._prepare_runner(0)
            self._step_s = 0.0  # seconds per step of the last epoch, with its share of validation; 0: not known yet
            self._loggers: Loggers | None = None
            self._profiler: StepProfiler | None = None
            self.total_steps = self.recipe.train.epochs * self.steps_per_epoch
            if job.profile and job.profile + WARM_UP_STEPS > self.total_steps:
                raise ConfigError(
                    f"--profile {job.profile} and the run has {self.total_steps} steps, of which the first {WARM_UP_STEPS} are "
                    "not recorded; expected fewer; lower it"
                )
            # The folder last: inputs that do not fit have been refused by now, and no unfinished folder is left behind.
            if self._is_main:
                stack.enter_context(lock_run_folder(job))
                self.run_folder = create_or_reopen(job, self.setup)
                stack.callback(self._log.close)
                self._log.open(job.out)
                if job.resume:
                    self._restore()
                if job.extend and self.run_folder.extend(job.extend, self.step):
                    self.job.observer.note(f"extended to {job.extend} epochs")
                if job.group.size > 1 or "processes" in self.run_folder.provenance:
                    self.run_folder.add_processes(self.step, job.group.hosts)
            self._share_state()
            self._resources = stack.pop_all()

    def _require_same_setups(self) -> None:
        """MismatchError where a process of the group would compute something else than the main one."""
        setup, group = self.setup, self.job.group
        own = {
            "recipe": self.recipe.to_dict(),
            "dataset_digest": setup.dataset.digest,
            "pixel_class": setup.backend.describe(),
            "device": self.job.device.type,
            "torch": torch.__version__,
        } | {name: setup.provenance.get(name) for name in ("cache_key", "teacher_sha256")}
        values = [flatten(facts) for facts in group.gather("setup", own)]
        for rank, facts in enumerate(values):
            names = sorted(values[0].keys() | facts.keys())
            fields = [(key, values[0].get(key), facts.get(key)) for key in names if values[0].get(key) != facts.get(key)]
            if fields:
                remedy = f"start every process with the same command, data and packages as {group.where(0)}"
                raise MismatchError(group.where(rank), fields, remedy)

    def _share_state(self) -> None:
        """Give the other processes the main one's state: they neither write nor read the run folder."""
        group = self.job.group
        if group.size == 1:
            return
        if self._is_main:
            group.set("state", {"step": self.step, "progress": list(self.stats.progress), "confidence": self.stats.confidence})
        else:
            state = group.wait("state", SETUP_S)
            self.run_folder, self.step = RunFolder(self.job.out), state["step"]
            self.stats = EpochStats(progress=state["progress"], confidence=state["confidence"])
        self.exchange.broadcast(list(self._tensors().values()))

    @property
    def _logger_names(self) -> list[str]:
        train = self.recipe.train
        return list(dict.fromkeys([*train.loggers, *(["tensorboard"] if train.tensorboard else [])]))

    def run(self) -> TrainResult:
        """Train from the current step to the end, or until stopped."""
        try:
            result = self._run()
        except Exception as error:
            self._log.write(f"error: {error}")
            raise
        self._log.write(f"{'finished' if result.finished else 'stopped'} after step {self.step}")
        return result

    def _run(self) -> TrainResult:
        if self._is_main:
            self.run_folder.drop_metrics_after(self.step)
            if self.step and self.step % self.steps_per_epoch == 0:  # the run may have been killed before it wrote them
                self._write_student_files(self.run_folder.metrics()[-1])
        if self.step >= self.total_steps:
            self.job.observer.note(f"{self.job.out} is finished already: {self.recipe.train.epochs} epochs")
            return TrainResult(finished=True, step=self.step)
        if self._is_main:
            self._open_watchers()
        while self.step < self.total_steps:
            epoch, done = divmod(self.step, self.steps_per_epoch)
            stopped = self._train_epoch(epoch, done)
            if stopped:
                return TrainResult(finished=False, step=self.step)
        return TrainResult(finished=True, step=self.step)

    def _open_watchers(self) -> None:
        """Start the loggers and the profile."""
        job, names = self.job, [student.name for student in self.students]
        logged = [(row["step"], epoch_values(row, names)) for row in self.run_folder.metrics()]
        run = LoggedRun(folder=job.out, recipe=self.recipe.to_dict(), logged=logged)
        self._loggers = Loggers(self._logger_names, run, job.observer.note)
        self._resources.callback(self._loggers.close)
        if job.profile:
            self._profiler = StepProfiler(job.out, self.step, job.profile, job.device, job.observer.note)
            self._resources.callback(self._profiler.close)

    def close(self) -> None:
        """Release the run folder and the backends."""
        self._resources.close()

    def _prepare_runner(self, epoch: int) -> StepRunner:
        """The runner of an epoch's steps; a new one is made only where the size of the views changes or a student starts."""
        spec, active = self.setup.spec(epoch), self.setup.active_students(epoch)
        if self._runner is None or self._runner[0] != (spec.size_px, tuple(active)):
            self._runner = None  # frees a captured step's memory before the next one is built
            self._runner = (spec.size_px, tuple(active)), self.setup.make_runner(spec, active, self.metrics, self.exchange)
            self._compiling = compiles(self.recipe)
        return self._runner[1]

    def _train_epoch(self, epoch: int, done_steps: int) -> bool:
        """Train the rest of an epoch, then evaluate; True where the run was stopped on the way."""
        observer, batch_size = self.job.observer, self.recipe.train.batch_size
        order = self.setup.order(epoch)
        schedule, active = self.setup.schedule(epoch, self.stats), self.setup.active_students(epoch)
        observer.start(f"epoch {epoch + 1}/{self.recipe.train.epochs}", len(order), "images")
        observer.advance(done_steps * batch_size)
        for student in self.students:
            student.train_mode()
        started = time.perf_counter()
        before = self.step
        compile_s = 0.0
        runner = self._prepare_runner(epoch)
        if self._compiling:
            observer.note("compiling …")
        epoch_steps = runner.epoch(order[done_steps * batch_size :], schedule, self.metrics, done_steps)
        with cudnn_benchmark(self.recipe.perf.cudnn_benchmark), contextlib.closing(epoch_steps) as steps:
            for images in steps:
                self.step += 1
                if self._compiling:
                    compile_s, self._compiling = time.perf_counter() - started, False
                    observer.note(f"compiled in {duration(compile_s)}")
                log = self.step % self.recipe.train.log_every_steps == 0
                observer.advance(images, **(self._progress_fields(active) if log else {}))
                if self._profiler is not None:
                    self._profiler.step()
                requests = self.exchange.agreed() if self.step % self.steps_per_epoch else NONE
                if requests.stop:
                    observer.finish()
                if requests != NONE:
                    self._collect_students()
                    self._save()
                if requests.stop:
                    return True
        self._train_row()  # waits for the device, so that `seconds` covers the work
        seconds = time.perf_counter() - started
        self._step_s = (seconds - compile_s) / (self.step - before)
        observer.finish()
        self._finish_epoch(epoch, active, seconds, (self.step - before) * batch_size)
        return self.exchange.agreed(finished_epoch=True).stop and epoch + 1 < self.recipe.train.epochs

    def _finish_epoch(self, epoch: int, active: Sequence[int], seconds: float, images: int) -> None:
        """Evaluate, then write the epoch's row and a checkpoint that begins the next one."""
        train_row = self._train_row()
        started = time.perf_counter()
        self._collect_students()
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
        if not self._is_main:
            return
        # The checkpoint last: a run killed between the two trains the epoch again and replaces the row.
        self.run_folder.drop_metrics_after(self.step - 1)
        self.run_folder.append_metrics(row)
        if self._loggers is not None:
            self._loggers.log(self.step, epoch_values(row, [student.name for student in self.students]))
        self._save()
        self._write_student_files(row)
        self._keep_best(val_row["students"])
        self._step_s += (time.perf_counter() - started) / self.steps_per_epoch
        top1 = ", ".join(f"{self.students[index].name} {val_row['students'][index]['top1']:.2f} %" for index in active)
        average = f", ensemble {val_row['ensemble']['top1']:.2f} %" if len(active) > 1 else ""
        more = "".join(f", {name} {value}" for name, value in self._resources_shown().items())
        self.job.observer.note(f"epoch {epoch + 1}: validation top-1 {top1}{average} ({images / seconds:.0f} images/s{more})")

    def _evaluate(self, active: Sequence[int]) -> dict[str, Any]:
        """Scores of the students that have started, and of their averaged probabilities; None for the others."""
        split = self.setup.dataset.split("val")
        for student in self.students:
            student.model.eval()
        own = self.exchange.batches(split.ids, self.recipe.train.batch_size)
        self.job.observer.start("validation", sum(map(len, own)), "images")
        scores = score(
            [self.students[index].eval_model for index in active],
            self.setup.validation,
            split.ids,
            self.setup.val_views,
            batch=self.recipe.train.batch_size,
            precision=self.recipe.train.precision,
            preprocessing=tuple(self.students[index].preprocessing for index in active),
            flip=self.recipe.evaluation.flip_tta,
            exchange=self.exchange,
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
                f"the loss of step {step} (epoch {step // self.steps_per_epoch + 1}{self._nonfinite_slice()}) is not finite; "
                f"expected a number; {self._kept()}; lower students.*.lr or train in float32"
            )
        scale = self.setup.loss_scale
        if scale is not None and float(scale.scale) < MIN_SCALE:
            raise RunError(
                f"the loss scale is {float(scale.scale):g} after step {self.step - 1}, as gradients overflow at any scale; "
                f"expected at least {MIN_SCALE:g}; {self._kept()}; lower students.*.lr or set train.precision to float32"
            )
        return self.metrics.means(self.recipe.loss.settings)

    def _nonfinite_slice(self) -> str:
        """For errors: the slice whose loss was not finite, and the process that computed it."""
        slices, group = self.exchange.slices, self.job.group
        if slices == 1:
            return ""
        index = int(self.metrics.nonfinite_slice)
        of_process = f", {group.where(index * group.size // slices)}" if group.size > 1 else ""
        return f", slice {index} of {slices}{of_process}"

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
        return shown | self._resources_shown()

    def _resources_shown(self) -> dict[str, str]:
        """The time that the run still needs, once an epoch is done, and a GPU's peak memory."""
        shown = {}
        if self._step_s and self.step < self.total_steps:
            shown["run"] = f"{duration(self._step_s * (self.total_steps - self.step))} left"
        if self.job.device.type == "cuda":
            shown["GPU"] = f"{torch.cuda.max_memory_allocated(self.job.device) / 2**30:.1f} GiB"
        return shown

    def _requests(self) -> Requests:
        """Whether this process was asked to stop, and whether the last checkpoint is checkpoint_minutes old."""
        minutes = self.recipe.train.checkpoint_minutes
        due = self._is_main and minutes > 0 and time.monotonic() - self._saved_at >= 60 * minutes
        return Requests(stop=self.job.stopped(), save=due)

    def _keep_best(self, scores: Sequence[dict[str, float] | None]) -> None:
        """Keep the checkpoint just saved if no epoch had a better mean top-1. Epochs before a start_epoch do not count."""
        started = [score["top1"] for score in scores if score is not None]
        if self.recipe.train.keep_best and len(started) == len(scores):
            self.run_folder.keep_best(sum(started) / len(started))

    def _save(self) -> None:
        self._train_row()  # a run whose loss is not finite keeps its last good checkpoint
        if not self._is_main:
            return
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
        self.run_folder.save(Checkpoint(tensors=tensors, progress=progress), self.recipe.train.keep_checkpoints)
        self._saved_at = time.monotonic()

    def _collect_students(self) -> None:
        """Let every process have the students that the others train."""
        if self.exchange.by_student:
            for student in self.students:
                self.exchange.broadcast(list(student.tensors().values()), source=student.index)

    def _write_student_files(self, row: Mapping[str, Any]) -> None:
        """Write the evaluated weights of the students that have started, as other libraries load them."""
        for student in self.students:
            if row["val"]["students"][student.index] is not None:
                write_student(
                    self.run_folder.student_path(student.name),
                    student.eval_model.state_dict(),
                    recipe=self.recipe,
                    index=student.index,
                    classes=self.setup.dataset.classes,
                    step=self.step,
                    row=row,
                )

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
        epochs, within = divmod(self.step, self.steps_per_epoch)
        for row in [] if within else self.run_folder.metrics()[:epochs][-1:]:
            self._keep_best(row["val"]["students"])  # a process may have been killed just before it
        self.job.observer.note(f"resumed at step {self.step} (epoch {self.step // self.steps_per_epoch + 1})")


def _for_active(values: Sequence[float], active: Sequence[int]) -> list[float | None]:
    """Each student's value, None before its start_epoch, where 0 would look like a loss of 0."""
    return [value if index in active else None for index, value in enumerate(values)]
