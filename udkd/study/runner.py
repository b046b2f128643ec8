"""Carries a plan out: a teacher once, each cache once, each run once, whatever was interrupted before.

Several processes may carry out plans in one folder: each takes a run that nobody trains. The folders' locks are all they
share, so one that is killed leaves its run to the others.
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
from udkd.study.folder import StudyFolder, described, is_finished
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
"""Between two looks at what another process is at."""


@dataclass(frozen=True, kw_only=True)
class StudyContext:
    """Where a study happens. teacher: given by the user, else one is fitted. stopped: asked after every step."""

    data: Path
    folder: StudyFolder
    device: torch.device
    teacher: Path | None = None
    observer: Observer = SILENT
    stopped: Callable[[], bool] = lambda: False


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a study has come.

    failed: what went wrong, by the run's description; they are tried again next time. elsewhere: runs that another process
    was training when they were looked at.
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
        """Whether all that is missing is being trained by other processes."""
        return 0 < self.total - self.finished - len(self.failed) <= self.elsewhere


def run_study(plan: StudyPlan, site: StudyContext, *, wait: bool = False) -> Progress:
    """Do whatever of the plan is not done yet, until asked to stop.

    wait: where all that is missing is trained by other processes, wait for them and take over what they leave.
    Raises UserError kin for what ends all runs alike; a run that fails by itself (a loss that is not finite) is recorded.
    """
    dataset = DatasetFolder.open(site.data)
    teacher: TeacherFolder | None = None
    if plan.needs_teacher:
        teacher = make_teacher(plan.base, dataset, site)
        if teacher is None:
            return Progress(finished=0, total=len(plan.trials))
    failed: dict[str, str] = {}
    while True:
        progress = _one_pass(plan, site, dataset, teacher, failed)
        if not (wait and progress.left_to_others):
            return progress
        time.sleep(POLL_S)


def _one_pass(
    plan: StudyPlan, site: StudyContext, dataset: DatasetFolder, teacher: TeacherFolder | None, failed: dict[str, str]
) -> Progress:
    """Train each run that is neither done, nor failed already, nor busy. failed: takes in those that fail."""
    elsewhere = 0
    for number, trial in enumerate(plan.trials):
        run = run_path(trial, dataset, teacher, site.folder)
        if described(trial) in failed or is_finished(run, trial.recipe):
            continue
        if site.stopped():
            break
        if is_busy(run):
            elsewhere += 1
            continue
        site.observer.note(f"run {number + 1} of {len(plan.trials)}: {described(trial)}")
        try:
            _train(trial, dataset, teacher, run, plan, site)
        except BusyError:
            elsewhere += 1  # taken between the look and the lock
        except RunError as error:
            failed[described(trial)] = str(error)
            site.observer.note(f"{described(trial)}: {error}")
    finished = sum(is_finished(run_path(trial, dataset, teacher, site.folder), trial.recipe) for trial in plan.trials)
    return Progress(finished=finished, total=len(plan.trials), failed=dict(failed), elsewhere=elsewhere)


def is_busy(run: Path) -> bool:
    """Whether another process writes a run."""
    if not run.exists():
        return False
    try:
        with FolderLock(run):
            return False
    except BusyError:
        return True


def _patiently(folder: Path, action: Callable[[], _T], site: StudyContext) -> _T | None:
    """What `action` gives once no other process is at work in `folder`; None where the study was stopped before that."""
    folder.mkdir(parents=True, exist_ok=True)
    said = False
    while not site.stopped():
        if not is_busy(folder):
            with contextlib.suppress(BusyError):  # taken between the look and the lock
                return action()
        if not said:
            site.observer.note(f"waiting for another process, which makes {folder}")
            said = True
        time.sleep(POLL_S)
    return None


def run_path(trial: Trial, dataset: DatasetFolder, teacher: TeacherFolder | None, folder: StudyFolder) -> Path:
    """The folder of a trial's run."""
    return folder.run(trial.run_name(dataset.digest, teacher.info.weights_sha256 if teacher else ""))


def find_teacher(recipe: Recipe, dataset: DatasetFolder, site: StudyContext) -> TeacherFolder | None:
    """The user's teacher, or the one that was fitted already."""
    if site.teacher is not None:
        return TeacherFolder.open(site.teacher)
    path = site.folder.teacher(teacher_name(recipe, dataset.digest))
    return TeacherFolder.open(path) if (path / "teacher.json").exists() else None


def make_teacher(recipe: Recipe, dataset: DatasetFolder, site: StudyContext) -> TeacherFolder | None:
    """The study's teacher, fitted by the recipe's [fit] section where there is none; None where that was stopped."""
    found = find_teacher(recipe, dataset, site)
    if found is not None:
        return found
    path = site.folder.teacher(teacher_name(recipe, dataset.digest))
    return _patiently(path, lambda: _fitted(recipe, path, dataset, site), site)


def _fitted(recipe: Recipe, path: Path, dataset: DatasetFolder, site: StudyContext) -> TeacherFolder | None:
    with FolderLock(path):
        found = find_teacher(recipe, dataset, site)
        if found is not None:
            return found
        how = recipe.for_teacher()
        site.observer.note(f"teacher: {recipe.fit.architecture}, {recipe.fit.epochs} epochs")
        if not _train_to_end(how, path / "run", dataset, site):
            return None
        candidate = from_run(RunFolder.open(path / "run"), None, [name.wnid for name in dataset.classes])
        return evaluate_and_write(path, candidate, dataset, how, site.device, site.observer)


def make_cache(trials: Sequence[Trial], dataset: DatasetFolder, teacher: TeacherFolder, site: StudyContext) -> Path | None:
    """The one cache of some trials, with as many views as any of them needs, built as far as it is not.

    None where the study was stopped while another process built it.
    """
    widest = max(trials, key=lambda trial: trial.num_views)
    name = widest.cache_name(dataset.digest, teacher.info.weights_sha256)
    path = site.folder.cache(name)

    def built() -> Path:
        if not _is_built(path, widest.num_views):
            _build(path, widest.recipe, dataset, teacher, site)
        return path

    return built() if _is_built(path, widest.num_views) else _patiently(path, built, site)


def _build(path: Path, recipe: Recipe, dataset: DatasetFolder, teacher: TeacherFolder, site: StudyContext) -> None:
    started = time.perf_counter()
    built = build_cache(path, dataset=dataset, teacher=teacher, recipe=recipe, device=site.device, observer=site.observer)
    site.folder.add_cache_cost(path.name, built.num_images, time.perf_counter() - started)


def _is_built(path: Path, num_views: int) -> bool:
    """Whether a cache has its views already: no teacher need be loaded then."""
    try:
        Cache.open(path).require_views(num_views)
    except CacheError:
        return False
    return True


def _train(
    trial: Trial, dataset: DatasetFolder, teacher: TeacherFolder | None, run: Path, plan: StudyPlan, site: StudyContext
) -> None:
    cache = None
    if trial.cached:
        assert teacher is not None, "a taught trial has a teacher"
        identity = dataset.digest, teacher.info.weights_sha256
        own = trial.cache_name(*identity)
        sharers = [other for other in plan.trials if other.cached and other.cache_name(*identity) == own]
        cache = make_cache(sharers, dataset, teacher, site)
        if cache is None:
            return
    asked = teacher.path if teacher is not None and trial.taught else None
    _train_to_end(trial.recipe, run, dataset, site, cache=cache, teacher=asked)


def _train_to_end(
    recipe: Recipe,
    run: Path,
    dataset: DatasetFolder,
    site: StudyContext,
    *,
    cache: Path | None = None,
    teacher: Path | None = None,
) -> bool:
    """Train or go on; False where it was stopped at a checkpoint."""
    if is_finished(run, recipe):
        return True
    run.parent.mkdir(parents=True, exist_ok=True)
    job = TrainJob(
        recipe=recipe,
        data=dataset.path,
        out=run,
        device=site.device,
        cache=cache,
        teacher=teacher,
        resume=(run / "config.json").exists(),
        observer=site.observer,
        stopped=site.stopped,
    )
    return train(job).finished
