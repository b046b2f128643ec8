"""Runs a plan: the teacher once, each cache once, each run once, resuming what was interrupted.

Several processes may work in one folder: each takes a run that no other trains. They share only the folders' locks, so the
run of a killed process is resumed by another.
"""

import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import torch

from udkd.config.recipe import Recipe
from udkd.data.dataset import DatasetFolder
from udkd.study.folder import StudyFolder, is_finished, trial_label
from udkd.study.plan import StudyPlan, Trial, teacher_name
from udkd.teacher.cache.build import build_cache
from udkd.teacher.cache.reader import Cache
from udkd.teacher.folder import TeacherFolder
from udkd.training.make_teacher import evaluate_and_write, from_run
from udkd.training.run_folder import RunFolder
from udkd.training.trainer import TrainJob, train
from udkd.utils.errors import BusyError, CacheError, RunError
from udkd.utils.files import FolderLock
from udkd.utils.progress import SILENT, Observer

_T = TypeVar("_T")

POLL_S = 1.0
"""Seconds between two checks of another process's lock."""


@dataclass(frozen=True, kw_only=True)
class StudyContext:
    """Folders, device and callbacks of a study. teacher: given by the user, else one is fitted. stopped: polled every step."""

    data: Path
    folder: StudyFolder
    device: torch.device
    teacher: Path | None = None
    observer: Observer = SILENT
    stopped: Callable[[], bool] = lambda: False


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How many runs of a study are finished.

    failed: error text by the run's label; failed runs are retried next time. elsewhere: runs that were being trained by
    another process.
    """

    finished: int
    total: int
    failed: dict[str, str] = field(default_factory=dict)
    elsewhere: int = 0

    @property
    def complete(self) -> bool:
        return self.finished == self.total

    @property
    def left_to_others(self) -> bool:
        """Whether other processes are training all missing runs."""
        return 0 < self.total - self.finished - len(self.failed) <= self.elsewhere


def run_study(plan: StudyPlan, context: StudyContext, *, wait: bool = False) -> Progress:
    """Do all work that a plan has left, until stopped.

    wait: where other processes train all missing runs, wait for them and take over what they leave.
    Raises a UserError that concerns every run; the failure of a single run (a loss that is not finite) is recorded.
    """
    dataset = DatasetFolder.open(context.data)
    teacher: TeacherFolder | None = None
    if plan.needs_teacher:
        teacher = make_teacher(plan.base, dataset, context)
        if teacher is None:
            return Progress(finished=0, total=len(plan.trials))
    failed: dict[str, str] = {}
    while True:
        progress = _one_pass(plan, context, dataset, teacher, failed)
        if not (wait and progress.left_to_others):
            return progress
        time.sleep(POLL_S)


def _one_pass(
    plan: StudyPlan, context: StudyContext, dataset: DatasetFolder, teacher: TeacherFolder | None, failed: dict[str, str]
) -> Progress:
    """Train each run that is neither finished, failed nor busy. failed: runs that fail are added to it."""
    elsewhere = 0
    for number, trial in enumerate(plan.trials):
        run = run_path(trial, dataset, teacher, context.folder)
        if trial_label(trial) in failed or is_finished(run, trial.recipe):
            continue
        if context.stopped():
            break
        if is_busy(run):
            elsewhere += 1
            continue
        context.observer.note(f"run {number + 1} of {len(plan.trials)}: {trial_label(trial)}")
        try:
            _train(trial, dataset, teacher, run, plan, context)
        except BusyError:
            elsewhere += 1  # taken between the check and the lock
        except RunError as error:
            failed[trial_label(trial)] = str(error)
            context.observer.note(f"{trial_label(trial)}: {error}")
    finished = sum(is_finished(run_path(trial, dataset, teacher, context.folder), trial.recipe) for trial in plan.trials)
    return Progress(finished=finished, total=len(plan.trials), failed=dict(failed), elsewhere=elsewhere)


def is_busy(run: Path) -> bool:
    """Whether another process holds a run's lock."""
    if not run.exists():
        return False
    try:
        with FolderLock(run):
            return False
    except BusyError:
        return True


def _when_free(folder: Path, action: Callable[[], _T], context: StudyContext) -> _T | None:
    """The result of `action`, run once no other process works in `folder`; None where the study was stopped before that."""
    folder.mkdir(parents=True, exist_ok=True)
    announced = False
    while not context.stopped():
        if not is_busy(folder):
            with contextlib.suppress(BusyError):  # taken between the check and the lock
                return action()
        if not announced:
            context.observer.note(f"waiting for another process, which makes {folder}")
            announced = True
        time.sleep(POLL_S)
    return None


def run_path(trial: Trial, dataset: DatasetFolder, teacher: TeacherFolder | None, folder: StudyFolder) -> Path:
    """The run folder of a trial."""
    return folder.run(trial.run_name(dataset.digest, teacher.info.weights_sha256 if teacher else ""))


def find_teacher(recipe: Recipe, dataset: DatasetFolder, context: StudyContext) -> TeacherFolder | None:
    """The user's teacher, or the one fitted before; None where there is neither."""
    if context.teacher is not None:
        return TeacherFolder.open(context.teacher)
    path = context.folder.teacher(teacher_name(recipe, dataset.digest))
    return TeacherFolder.open(path) if (path / "teacher.json").exists() else None


def make_teacher(recipe: Recipe, dataset: DatasetFolder, context: StudyContext) -> TeacherFolder | None:
    """The study's teacher, fitted by the recipe's [fit] section where there is none; None where that was stopped."""
    teacher = find_teacher(recipe, dataset, context)
    if teacher is not None:
        return teacher
    path = context.folder.teacher(teacher_name(recipe, dataset.digest))
    return _when_free(path, lambda: _fit_teacher(recipe, path, dataset, context), context)


def _fit_teacher(recipe: Recipe, path: Path, dataset: DatasetFolder, context: StudyContext) -> TeacherFolder | None:
    with FolderLock(path):
        teacher = find_teacher(recipe, dataset, context)
        if teacher is not None:
            return teacher
        teacher_recipe = recipe.for_teacher()
        context.observer.note(f"teacher: {recipe.fit.architecture}, {recipe.fit.epochs} epochs")
        if not _train_to_end(teacher_recipe, path / "run", dataset, context):
            return None
        candidate = from_run(RunFolder.open(path / "run"), None, [entry.wnid for entry in dataset.classes])
        return evaluate_and_write(path, candidate, dataset, teacher_recipe, context.device, context.observer)


def make_cache(trials: Sequence[Trial], dataset: DatasetFolder, teacher: TeacherFolder, context: StudyContext) -> Path | None:
    """The cache that some trials share, with as many views as any of them needs; missing views are computed.

    None where the study was stopped while another process built it.
    """
    widest = max(trials, key=lambda trial: trial.num_views)
    name = widest.cache_name(dataset.digest, teacher.info.weights_sha256)
    path = context.folder.cache(name)

    def build() -> Path:
        if not _is_built(path, widest.num_views):
            _build(path, widest.recipe, dataset, teacher, context)
        return path

    return build() if _is_built(path, widest.num_views) else _when_free(path, build, context)


def _build(path: Path, recipe: Recipe, dataset: DatasetFolder, teacher: TeacherFolder, context: StudyContext) -> None:
    started = time.perf_counter()
    built = build_cache(path, dataset=dataset, teacher=teacher, recipe=recipe, device=context.device, observer=context.observer)
    context.folder.add_cache_cost(path.name, built.num_images, time.perf_counter() - started)


def _is_built(path: Path, num_views: int) -> bool:
    """Whether a cache has all its views, so that no teacher must be loaded."""
    try:
        Cache.open(path).require_views(num_views)
    except CacheError:
        return False
    return True


def _train(
    trial: Trial, dataset: DatasetFolder, teacher: TeacherFolder | None, run: Path, plan: StudyPlan, context: StudyContext
) -> None:
    cache = None
    if trial.needs_cache:
        assert teacher is not None, "a trial with a cache has a teacher"
        identity = dataset.digest, teacher.info.weights_sha256
        name = trial.cache_name(*identity)
        same_cache = [other for other in plan.trials if other.needs_cache and other.cache_name(*identity) == name]
        cache = make_cache(same_cache, dataset, teacher, context)
        if cache is None:
            return
    teacher_path = teacher.path if teacher is not None and trial.needs_teacher else None
    _train_to_end(trial.recipe, run, dataset, context, cache=cache, teacher=teacher_path)


def _train_to_end(
    recipe: Recipe,
    run: Path,
    dataset: DatasetFolder,
    context: StudyContext,
    *,
    cache: Path | None = None,
    teacher: Path | None = None,
) -> bool:
    """Train or resume; False where it was stopped at a checkpoint."""
    if is_finished(run, recipe):
        return True
    run.parent.mkdir(parents=True, exist_ok=True)
    job = TrainJob(
        recipe=recipe,
        data=dataset.path,
        out=run,
        device=context.device,
        cache=cache,
        teacher=teacher,
        resume=(run / "config.json").exists(),
        observer=context.observer,
        stopped=context.stopped,
    )
    return train(job).finished
