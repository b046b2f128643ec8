"""Runs a plan: the teacher once, each cache once, each run once, resuming what was interrupted.

Several processes may work in one folder: each takes a run that no other trains. They share only the folders' locks, so the
run of a killed process is resumed by another. Where locks may not work, each process has a share of the runs of its own.
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
from udkd.study.processes import StudyProcess
from udkd.study.share import Share
from udkd.teacher.cache.build import build_cache
from udkd.teacher.cache.reader import Cache
from udkd.teacher.folder import TeacherFolder
from udkd.training.make_teacher import evaluate_and_write, from_run
from udkd.training.run_folder import RunFolder
from udkd.training.trainer import TrainJob, train
from udkd.training.with_processes import train_with_processes
from udkd.utils.errors import BusyError, CacheError, RunError
from udkd.utils.files import FolderLock
from udkd.utils.progress import SILENT, Observer

_T = TypeVar("_T")

POLL_S = 1.0
"""Seconds between two checks of another process's lock."""


@dataclass(frozen=True, kw_only=True)
class StudyContext:
    """Folders, device and callbacks of a study. teacher: given by the user, else one is fitted. stopped: polled every step.

    share: of the process's own runs, None where it takes any run that is free. process: knows whether locks exclude the other
    processes; None where there are none. processes: that train each run together.
    """

    data: Path
    folder: StudyFolder
    device: torch.device
    processes: int = 1
    teacher: Path | None = None
    share: Share | None = None
    process: StudyProcess | None = None
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


def run_share(studies: Sequence[tuple[StudyPlan, StudyContext]], share: Share) -> list[Progress]:
    """Train this process's share of the runs of several studies in one folder; then what is left, where locks exclude others.

    Waits for no other process. Raises RunError where a teacher or a cache is missing.
    """
    prepared = [(plan, context, *_require_prepared(plan, context)) for plan, context in studies]
    own = frozenset(share.of([run.name for run, _ in distinct_runs(studies)]))
    failed: list[dict[str, str]] = [{} for _ in studies]
    try:
        for only in (own, None):
            for arguments, failures in zip(prepared, failed, strict=True):
                _one_pass(*arguments, failures, only)
    except BusyError as error:  # of `require_proof`
        studies[0][1].observer.note(f"warning: {error}; runs of other shares are left to them")
    return [_progress(*arguments, failures) for arguments, failures in zip(prepared, failed, strict=True)]


def prepare_study(plan: StudyPlan, context: StudyContext) -> bool:
    """Make the teacher and the caches that a plan needs. False where that was stopped."""
    dataset = DatasetFolder.open(context.data)
    if not plan.needs_teacher:
        return True
    teacher = make_teacher(plan.base, dataset, context)
    if teacher is None:
        return False
    return all(
        not context.stopped() and make_cache(trials, dataset, teacher, context) is not None
        for trials in trials_by_cache(plan, dataset, teacher).values()
    )


def study_progress(plan: StudyPlan, context: StudyContext) -> Progress:
    """How many runs of a plan are finished; trains nothing."""
    dataset = DatasetFolder.open(context.data)
    return _progress(plan, context, dataset, find_teacher(plan.base, dataset, context) if plan.needs_teacher else None, {})


def distinct_runs(studies: Sequence[tuple[StudyPlan, StudyContext]]) -> list[tuple[Path, Recipe]]:
    """The run folders of several studies in one folder, each once, in the plans' order, with their recipes.

    Where there is no teacher yet, the names of the runs that need it are not the final ones.
    """
    runs: dict[Path, Recipe] = {}
    for plan, context in studies:
        dataset = DatasetFolder.open(context.data)
        teacher = find_teacher(plan.base, dataset, context) if plan.needs_teacher else None
        runs |= {run_path(trial, dataset, teacher, context.folder): trial.recipe for trial in plan.trials}
    return list(runs.items())


def trials_by_cache(plan: StudyPlan, dataset: DatasetFolder, teacher: TeacherFolder | None) -> dict[str, list[Trial]]:
    """The trials that need a cache, by its name."""
    sha256 = teacher.info.weights_sha256 if teacher else ""
    by_cache: dict[str, list[Trial]] = {}
    for trial in plan.trials:
        if trial.needs_cache:
            by_cache.setdefault(trial.cache_name(dataset.digest, sha256), []).append(trial)
    return by_cache


def _require_prepared(plan: StudyPlan, context: StudyContext) -> tuple[DatasetFolder, TeacherFolder | None]:
    """The dataset and the teacher. Raises RunError where the teacher or a cache is missing."""
    dataset = DatasetFolder.open(context.data)
    teacher = find_teacher(plan.base, dataset, context) if plan.needs_teacher else None
    missing = plan.needs_teacher and teacher is None
    if teacher is not None:
        missing = not all(
            _is_built(context.folder.cache(name), max(trial.num_views for trial in trials))
            for name, trials in trials_by_cache(plan, dataset, teacher).items()
        )
    if missing:
        what = "a cache" if teacher else "the teacher"
        raise RunError(
            f"{context.folder.out} lacks {what} of {plan.name}; expected teacher and caches before --share; run the same "
            "command with --only prepare instead"
        )
    return dataset, teacher


def _one_pass(
    plan: StudyPlan,
    context: StudyContext,
    dataset: DatasetFolder,
    teacher: TeacherFolder | None,
    failed: dict[str, str],
    own: frozenset[str] | None = None,
) -> Progress:
    """Train each run that is neither finished, failed nor busy.

    failed: runs that fail are added to it. own: names of runs that no other process trains, which are the only ones then.
    Without it, raises BusyError where locks do not exclude another process.
    """
    elsewhere = 0
    for number, trial in enumerate(plan.trials):
        run = run_path(trial, dataset, teacher, context.folder)
        if own is not None and run.name not in own:
            continue
        if trial_label(trial) in failed or is_finished(run, trial.recipe):
            continue
        if context.stopped():
            break
        if is_busy(run):
            elsewhere += 1
            continue
        if own is None and context.process is not None:
            if context.share is None:
                context.process.require_exclusion()
            else:  # a share that has not begun yet would train the run without asking
                context.process.require_proof()
        context.observer.note(f"run {number + 1} of {len(plan.trials)}: {trial_label(trial)}")
        try:
            _train(trial, dataset, teacher, run, plan, context)
        except BusyError:
            elsewhere += 1  # taken between the check and the lock
        except RunError as error:
            failed[trial_label(trial)] = str(error)
            context.observer.note(f"{trial_label(trial)}: {error}")
    return _progress(plan, context, dataset, teacher, failed, elsewhere)


def _progress(
    plan: StudyPlan,
    context: StudyContext,
    dataset: DatasetFolder,
    teacher: TeacherFolder | None,
    failed: dict[str, str],
    elsewhere: int = 0,
) -> Progress:
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
        name = trial.cache_name(dataset.digest, teacher.info.weights_sha256)
        cache = make_cache(trials_by_cache(plan, dataset, teacher)[name], dataset, teacher, context)
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
    nothing_to_share = recipe.train.slices == 1 and recipe.train.parallel == "slices"  # a teacher, beside parallel students
    if context.processes == 1 or nothing_to_share:
        return train(job).finished
    train_with_processes(job, context.processes)
    return is_finished(run, recipe)
