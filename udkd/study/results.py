"""The numbers of a study's runs, and every statistic recomputed from those numbers alone.

study.json holds both; `summarise` takes the stored runs, so the page depends on nothing else.
Accuracies are percent, differences percentage points.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from udkd.data.dataset import DatasetFolder
from udkd.study.folder import StudyFolder, is_finished, read_metrics
from udkd.study.plan import StudyPlan, Trial
from udkd.study.runner import run_path
from udkd.study.spec import Study
from udkd.teacher.folder import TeacherFolder
from udkd.training.run_folder import RunFolder, epoch_seconds
from udkd.training.trained import AVERAGED
from udkd.utils.statistics import Difference, MeanStd, mean_std, min_claim, paired_difference

FORMAT, VERSION = "udkd-study", 1
_NUMBER = re.compile(r"-\d+$")  # a recipe numbers students of one architecture
EPOCH_CHOICES = ("last", "best")
"""The epoch whose accuracy is compared: each run's last one, or its best one."""


@dataclass(frozen=True, kw_only=True)
class LearnerResult:
    """Accuracy in one run of one learner: a student, or the average of the students' probabilities (AVERAGED).

    last, best: top-1 of the last epoch, and the highest of all epochs. curve: top-1 by epoch; None before the student's
    start_epoch.
    """

    learner: str
    last: float
    best: float
    best_epoch: int
    last_top5: float
    curve: tuple[float | None, ...]


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """Numbers of a finished run. seconds: of all training steps, without validation. run: the name of its folder."""

    arm: str
    seed: int
    run: str
    outcomes: tuple[LearnerResult, ...]
    images_per_s: float
    seconds: float

    def outcome(self, learner: str) -> LearnerResult | None:
        """The result of a learner, or None."""
        return next((outcome for outcome in self.outcomes if outcome.learner == learner), None)

    def to_dict(self) -> dict[str, Any]:
        """Plain values as in study.json."""
        return {
            "arm": self.arm,
            "seed": self.seed,
            "run": self.run,
            "images_per_s": self.images_per_s,
            "seconds": self.seconds,
            "outcomes": [vars(outcome) | {"curve": list(outcome.curve)} for outcome in self.outcomes],
        }

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> "RunResult":
        """The inverse of `to_dict`."""
        outcomes = tuple(LearnerResult(**dict(row) | {"curve": tuple(row["curve"])}) for row in values["outcomes"])
        return cls(**dict(values) | {"outcomes": outcomes})


@dataclass(frozen=True, kw_only=True)
class ArmSummary:
    """Accuracy of one learner of one arm, over the seeds."""

    arm: str
    learner: str
    last: MeanStd
    best: MeanStd
    best_epochs: tuple[int, ...]
    last_top5: MeanStd


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One learner of `arm` against the same learner of `against`, over the seeds that both have.

    figure: one of EPOCH_CHOICES. isolates: the difference between the arms, for a contrast of the study; else empty.
    """

    arm: str
    against: str
    learner: str
    figure: str
    seeds: tuple[int, ...]
    difference: Difference
    isolates: str = ""


@dataclass(frozen=True, kw_only=True)
class ArmCost:
    """Training time of an arm's run.

    ratios: its seconds over each baseline's. to_sum: its seconds over the sum of the baselines', if there are several, which
    together train what this arm trains at once.
    """

    arm: str
    images_per_s: MeanStd
    seconds: MeanStd
    ratios: Mapping[str, float]
    to_sum: float | None


@dataclass(frozen=True, kw_only=True)
class Summary:
    """All statistics of a study's runs."""

    arm_summaries: tuple[ArmSummary, ...]
    comparisons: tuple[Comparison, ...]
    costs: tuple[ArmCost, ...]


def load_results(
    plan: StudyPlan, dataset: DatasetFolder, teacher: TeacherFolder | None, folder: StudyFolder
) -> list[RunResult]:
    """The numbers of every finished run, in the plan's order."""
    results = []
    for trial in plan.trials:
        path = run_path(trial, dataset, teacher, folder)
        if is_finished(path, trial.recipe):
            results.append(_result(trial, RunFolder.open(path)))
    return results


def _result(trial: Trial, run: RunFolder) -> RunResult:
    rows = read_metrics(run.path)
    learners = {
        name: [row["val"]["students"][index] for row in rows] for index, name in enumerate(trial.recipe.student_names())
    }
    if len(learners) > 1:
        learners[AVERAGED] = [_average(row["val"]) for row in rows]
    return RunResult(
        arm=trial.arm,
        seed=trial.seed,
        run=run.path.name,
        outcomes=tuple(_outcome(name, scores) for name, scores in learners.items()),
        images_per_s=median(row["images_per_s"] for row in rows),
        seconds=math.fsum(epoch_seconds(rows, trial.recipe.train.batch_size)),
    )


def _average(val: Mapping[str, Any]) -> Mapping[str, float] | None:
    """The average's scores; None while only one student trains, whose scores they would repeat."""
    started = sum(student is not None for student in val["students"])
    return dict(val["ensemble"]) if started > 1 else None


def _outcome(learner: str, scores: Sequence[Mapping[str, float] | None]) -> LearnerResult:
    curve = [None if score is None else score["top1"] for score in scores]
    scored = [(top1, epoch) for epoch, top1 in enumerate(curve, start=1) if top1 is not None]
    best, last = max(scored, key=lambda pair: pair[0]), scores[-1]
    assert last is not None, "every student starts before the last epoch"
    return LearnerResult(
        learner=learner, last=last["top1"], best=best[0], best_epoch=best[1], last_top5=last["top5"], curve=tuple(curve)
    )


def summarise(study: Study, runs: Sequence[RunResult], val_images: int) -> Summary:
    """Every statistic of a study, from its runs' numbers. val_images: the number of validation images."""
    return Summary(
        arm_summaries=tuple(
            _arm_summary(arm.name, learner, runs) for arm in study.arms for learner in _learners(arm.name, runs)
        ),
        comparisons=tuple(_comparisons(study, runs, min_claim(val_images))),
        costs=tuple(_cost(arm.name, study, runs) for arm in study.arms if _runs_of(arm.name, runs)),
    )


def _runs_of(arm: str, runs: Sequence[RunResult]) -> list[RunResult]:
    return [run for run in runs if run.arm == arm]


def _learners(arm: str, runs: Sequence[RunResult]) -> list[str]:
    return list(dict.fromkeys(outcome.learner for run in _runs_of(arm, runs) for outcome in run.outcomes))


def counterpart(learner: str, others: Sequence[str]) -> str | None:
    """The learner of the same name, else the first of the same architecture (names differ in a number); None if neither."""
    if learner in others:
        return learner
    architecture = _NUMBER.sub("", learner)
    return next((other for other in others if _NUMBER.sub("", other) == architecture), None)


def _arm_summary(arm: str, learner: str, runs: Sequence[RunResult]) -> ArmSummary:
    outcomes = [outcome for run in _runs_of(arm, runs) for outcome in run.outcomes if outcome.learner == learner]
    return ArmSummary(
        arm=arm,
        learner=learner,
        last=mean_std([outcome.last for outcome in outcomes]),
        best=mean_std([outcome.best for outcome in outcomes]),
        best_epochs=tuple(outcome.best_epoch for outcome in outcomes),
        last_top5=mean_std([outcome.last_top5 for outcome in outcomes]),
    )


def _comparisons(study: Study, runs: Sequence[RunResult], least: float) -> list[Comparison]:
    """The comparisons with the baseline, then the study's contrasts; learners without a counterpart are left out."""
    requested: list[tuple[str, str, str, str]] = []
    for arm in study.arms:
        for learner in _learners(arm.name, runs):
            against = next((name for name in study.baseline if counterpart(learner, _learners(name, runs))), None)
            if against is not None and arm.name not in study.baseline:
                requested.append((arm.name, against, learner, ""))
    for contrast in study.contrasts:
        others = _learners(contrast.against, runs)
        requested += [
            (contrast.arm, contrast.against, learner, contrast.isolates)
            for learner in _learners(contrast.arm, runs)
            if counterpart(learner, others)
        ]
    return [
        comparison
        for figure in EPOCH_CHOICES
        for arm, against, learner, isolates in requested
        if (comparison := _comparison(arm, against, learner, figure, isolates, runs, least)) is not None
    ]


def _comparison(
    arm: str, against: str, learner: str, figure: str, isolates: str, runs: Sequence[RunResult], least: float
) -> Comparison | None:
    other_learner = counterpart(learner, _learners(against, runs))
    sides = [
        {run.seed: getattr(outcome, figure) for run in _runs_of(name, runs) if (outcome := run.outcome(side_learner))}
        for name, side_learner in ((arm, learner), (against, other_learner or ""))
    ]
    seeds = tuple(sorted(sides[0].keys() & sides[1].keys()))
    if not seeds:
        return None
    values, baseline = ([side[seed] for seed in seeds] for side in sides)
    return Comparison(
        arm=arm,
        against=against,
        learner=learner,
        figure=figure,
        seeds=seeds,
        difference=paired_difference(values, baseline, least),
        isolates=isolates,
    )


def _cost(arm: str, study: Study, runs: Sequence[RunResult]) -> ArmCost:
    seconds = {
        name: mean_std([run.seconds for run in _runs_of(name, runs)]) for name in (arm, *study.baseline) if _runs_of(name, runs)
    }
    bases = [name for name in study.baseline if name in seconds]
    summable = len(bases) == len(study.baseline) > 1 and arm not in bases
    return ArmCost(
        arm=arm,
        images_per_s=mean_std([run.images_per_s for run in _runs_of(arm, runs)]),
        seconds=seconds[arm],
        ratios={name: seconds[arm].mean / seconds[name].mean for name in bases if name != arm},
        to_sum=seconds[arm].mean / math.fsum(seconds[name].mean for name in bases) if summable else None,
    )
