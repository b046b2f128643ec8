"""The work that a plan has left, and an estimate of its time on this machine."""

from dataclasses import dataclass
from statistics import median

import torch

from udkd.config.recipe import Recipe
from udkd.data.dataset import DatasetFolder
from udkd.study.folder import read_metrics
from udkd.study.plan import StudyPlan, Trial, teacher_name
from udkd.study.runner import StudyContext, find_teacher, run_path, trials_by_cache
from udkd.teacher.cache.reader import Cache
from udkd.teacher.folder import TeacherFolder
from udkd.training.speed_probe import StepTimes, measure_step_times
from udkd.utils.errors import CacheError


@dataclass(frozen=True, kw_only=True)
class WorkItem:
    """A teacher, cache or run to make: `done` of `total` epochs (of a cache, views), and the seconds for the rest."""

    kind: str
    detail: str
    done: int
    total: int
    seconds: float


def estimate(plan: StudyPlan, context: StudyContext) -> list[WorkItem]:
    """The teacher, caches and runs, each once, in the order of execution; speeds are measured on one constant batch."""
    dataset = DatasetFolder.open(context.data)
    images, val_images = len(dataset.split("train").ids), len(dataset.split("val").ids)
    speeds = _Speeds(len(dataset.classes), context.device)
    items: list[WorkItem] = []
    teacher = find_teacher(plan.base, dataset, context) if plan.needs_teacher else None
    if plan.needs_teacher and teacher is None:
        speed, fit = speeds.of(plan.base), plan.base.fit
        done = len(read_metrics(context.folder.teacher(teacher_name(plan.base, dataset.digest)) / "run"))
        epoch_s = images * speed.teacher_step_s + val_images * speed.teacher_forward_s
        items.append(
            WorkItem(
                kind="teacher", detail=fit.architecture, done=done, total=fit.epochs, seconds=(fit.epochs - done) * epoch_s
            )
        )
    for name, trials in trials_by_cache(plan, dataset, teacher).items():
        widest = max(trials, key=lambda trial: trial.num_views)
        done = _views_done(context, name) if teacher else 0
        left = max(0, widest.num_views - done)
        detail = f"{len({trial.arm for trial in trials})} arms share it"
        seconds = left * images * speeds.of(widest.recipe).teacher_forward_s
        items.append(
            WorkItem(kind="cache", detail=detail, done=min(done, widest.num_views), total=widest.num_views, seconds=seconds)
        )
    return [*items, *_runs(plan, dataset, teacher, context, speeds)]


def _runs(
    plan: StudyPlan, dataset: DatasetFolder, teacher: TeacherFolder | None, context: StudyContext, speeds: "_Speeds"
) -> list[WorkItem]:
    images, val_images = len(dataset.split("train").ids), len(dataset.split("val").ids)
    sharing: dict[str, list[Trial]] = {}
    for trial in plan.trials:
        sharing.setdefault(run_path(trial, dataset, teacher, context.folder).name, []).append(trial)
    items = []
    for name, trials in sharing.items():
        recipe, rows = trials[0].recipe, read_metrics(context.folder.run(name))
        speed = speeds.of(recipe)
        image_s = speed.students_step_s + (
            speed.teacher_forward_s if trials[0].needs_teacher and recipe.teacher.source == "live" else 0.0
        )
        if rows:  # the run itself has measured it
            image_s = 1 / median(row["images_per_s"] for row in rows)
        epoch_s = images * image_s + val_images * speed.students_step_s / 3  # no backward pass: a third of a training step
        arms = " = ".join(dict.fromkeys(trial.arm for trial in trials))
        left = recipe.train.epochs - len(rows)
        items.append(
            WorkItem(
                kind="run",
                detail=f"{arms}, seed {trials[0].seed}",
                done=len(rows),
                total=recipe.train.epochs,
                seconds=left * epoch_s,
            )
        )
    return items


def _views_done(context: StudyContext, name: str) -> int:
    try:
        return len(Cache.open(context.folder.cache(name)).views)
    except CacheError:
        return 0


class _Speeds:
    """Probes each set of networks once."""

    def __init__(self, num_classes: int, device: torch.device) -> None:
        self._num_classes = num_classes
        self._device = device
        self._measured: dict[object, StepTimes] = {}

    def of(self, recipe: Recipe) -> StepTimes:
        networks = (recipe.fit.architecture, *(student.architecture for student in recipe.students))
        train = recipe.train
        setting = (networks, recipe.views.size_px, train.batch_size, train.accumulate, train.precision, train.threads)
        if setting not in self._measured:
            self._measured[setting] = measure_step_times(recipe, self._num_classes, self._device)
        return self._measured[setting]
