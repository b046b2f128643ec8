"""What a plan has still to do, and about how long that takes on this machine."""

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median

import torch

from udkd.config.recipe import Recipe
from udkd.data.dataset import DatasetFolder
from udkd.study.folder import epochs_done, rows_of
from udkd.study.plan import StudyPlan, Trial, teacher_name
from udkd.study.runner import StudyContext, find_teacher, run_path
from udkd.teacher.cache.reader import Cache
from udkd.teacher.folder import TeacherFolder
from udkd.training.speed_probe import StepTimes, measure_step_times
from udkd.utils.errors import CacheError


@dataclass(frozen=True, kw_only=True)
class Item:
    """Something to be done: `done` of `total` epochs (a cache: views), and the seconds of the rest."""

    what: str
    detail: str
    done: int
    total: int
    seconds: float


def estimate(plan: StudyPlan, site: StudyContext) -> list[Item]:
    """Teacher, caches and runs, each once, in the order in which they come; speeds are measured on one constant batch."""
    dataset = DatasetFolder.open(site.data)
    images, val_images = len(dataset.split("train").ids), len(dataset.split("val").ids)
    speeds = _Speeds(len(dataset.classes), site.device)
    items: list[Item] = []
    teacher = find_teacher(plan.base, dataset, site) if plan.needs_teacher else None
    if plan.needs_teacher and teacher is None:
        own, fit = speeds.of(plan.base), plan.base.fit
        done = epochs_done(site.folder.teacher(teacher_name(plan.base, dataset.digest)) / "run")
        each = images * own.teacher_step_s + val_images * own.teacher_forward_s
        items.append(
            Item(what="teacher", detail=fit.architecture, done=done, total=fit.epochs, seconds=(fit.epochs - done) * each)
        )
    for name, trials in _caches(plan, dataset, teacher).items():
        widest = max(trials, key=lambda trial: trial.num_views)
        done = _views_done(site, name) if teacher else 0
        left = max(0, widest.num_views - done)
        detail = f"{len({trial.arm for trial in trials})} arms share it"
        seconds = left * images * speeds.of(widest.recipe).teacher_forward_s
        items.append(
            Item(what="cache", detail=detail, done=min(done, widest.num_views), total=widest.num_views, seconds=seconds)
        )
    return [*items, *_runs(plan, dataset, teacher, site, speeds)]


def _runs(
    plan: StudyPlan, dataset: DatasetFolder, teacher: TeacherFolder | None, site: StudyContext, speeds: "_Speeds"
) -> list[Item]:
    images, val_images = len(dataset.split("train").ids), len(dataset.split("val").ids)
    sharing: dict[str, list[Trial]] = {}
    for trial in plan.trials:
        sharing.setdefault(run_path(trial, dataset, teacher, site.folder).name, []).append(trial)
    items = []
    for name, trials in sharing.items():
        recipe, rows = trials[0].recipe, rows_of(site.folder.run(name))
        own = speeds.of(recipe)
        a_step = own.students_step_s + (own.teacher_forward_s if trials[0].taught and recipe.teacher.source == "live" else 0.0)
        if rows:  # what was seen is better than a guess
            a_step = 1 / median(row["images_per_s"] for row in rows)
        each = images * a_step + val_images * own.students_step_s / 3  # no backward pass: a third of a training step
        arms = " = ".join(dict.fromkeys(trial.arm for trial in trials))
        left = recipe.train.epochs - len(rows)
        items.append(
            Item(
                what="run",
                detail=f"{arms}, seed {trials[0].seed}",
                done=len(rows),
                total=recipe.train.epochs,
                seconds=left * each,
            )
        )
    return items


def _caches(plan: StudyPlan, dataset: DatasetFolder, teacher: TeacherFolder | None) -> Mapping[str, list[Trial]]:
    """Trials by the cache they need."""
    sha256 = teacher.info.weights_sha256 if teacher else ""
    found: dict[str, list[Trial]] = {}
    for trial in plan.trials:
        if trial.cached:
            found.setdefault(trial.cache_name(dataset.digest, sha256), []).append(trial)
    return found


def _views_done(site: StudyContext, name: str) -> int:
    try:
        return len(Cache.open(site.folder.cache(name)).views)
    except CacheError:
        return 0


class _Speeds:
    """Probes each set of networks once."""

    def __init__(self, num_classes: int, device: torch.device) -> None:
        self._num_classes = num_classes
        self._device = device
        self._seen: dict[object, StepTimes] = {}

    def of(self, recipe: Recipe) -> StepTimes:
        networks = (recipe.fit.architecture, *(student.architecture for student in recipe.students))
        setting = (networks, recipe.views.size_px, recipe.train.batch_size, recipe.train.precision, recipe.train.threads)
        if setting not in self._seen:
            self._seen[setting] = measure_step_times(recipe, self._num_classes, self._device)
        return self._seen[setting]
