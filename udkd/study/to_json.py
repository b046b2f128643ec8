"""study.json: a study, its data, teacher and hardware, every run's numbers, and the statistics that follow from them."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from udkd.data.dataset import DatasetFolder
from udkd.study.folder import StudyFolder, read_metrics
from udkd.study.plan import StudyPlan, Trial
from udkd.study.results import FORMAT, VERSION, RunResult, Summary
from udkd.study.runner import Progress
from udkd.teacher.folder import TeacherFolder
from udkd.training.run_folder import RunFolder
from udkd.utils.statistics import LEVEL, METHOD, RESAMPLES


def to_json(
    plan: StudyPlan,
    *,
    dataset: DatasetFolder,
    teacher: TeacherFolder | None,
    folder: StudyFolder,
    progress: Progress,
    runs: Sequence[RunResult],
    summary: Summary,
) -> dict[str, Any]:
    """Plain values without any path of this machine."""
    return {
        "format": FORMAT,
        "version": VERSION,
        "name": plan.name,
        "study": plan.study.stored(),
        "seeds": list(plan.seeds),
        "recipe": plan.base.to_dict(),
        "progress": {"finished": progress.finished, "total": progress.total, "failed": progress.failed},
        "statistics": {"method": METHOD, "level": LEVEL, "resamples": RESAMPLES, "seed": 0},
        "data": {
            "name": dataset.path.resolve().name,
            "digest": dataset.digest,
            "classes": len(dataset.classes),
            "train_images": len(dataset.split("train").ids),
            "val_images": len(dataset.split("val").ids),
            "side": dataset.side,
        },
        "teacher": None if teacher is None else _teacher(teacher),
        "targets": {trial.arm: _targets(trial, dataset, teacher) for trial in plan.trials if trial.needs_cache and teacher},
        "caches": {path.stem: folder.cache_cost(path.stem) for path in sorted((folder.out / "caches").glob("*.json"))},
        "machine": _machine(folder, runs),
        "runs": [run.to_dict() for run in runs],
        "standings": [asdict(results) for results in summary.arm_summaries],
        "comparisons": [asdict(comparison) | {"verdict": comparison.difference.verdict} for comparison in summary.comparisons],
        "costs": [asdict(cost) for cost in summary.costs],
    }


def _targets(trial: Trial, dataset: DatasetFolder, teacher: TeacherFolder) -> dict[str, Any]:
    """The cache that an arm reads, and the number of targets in the arm's share of it."""
    images = trial.num_views * len(dataset.split("train").ids)
    return {"cache": trial.cache_name(dataset.digest, teacher.info.weights_sha256), "images": images}


def _teacher(teacher: TeacherFolder) -> dict[str, Any]:
    """The teacher, and how long fitting it took where the study fitted it."""
    rows = read_metrics(teacher.path / "run")
    info = teacher.info
    return {
        "architecture": info.architecture,
        "weights_sha256": info.weights_sha256,
        "accuracy": dict(info.accuracy),
        "image_px": info.image_px,
        "fit_epochs": len(rows),
        "fit_seconds": sum(row["seconds"] for row in rows),
    }


def _machine(folder: StudyFolder, runs: Sequence[RunResult]) -> dict[str, Any]:
    """Hardware and versions that the runs recorded; several where runs were made on several machines."""
    recorded: dict[str, Any] = {"hardware": [], "versions": []}
    for run in runs:
        provenance = RunFolder.open(Path(folder.run(run.run))).provenance
        for name, values in recorded.items():
            if provenance.get(name) not in (None, *values):
                values.append(provenance[name])
    return recorded
