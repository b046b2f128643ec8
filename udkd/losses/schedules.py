"""Schedules of the loss's weights: pure functions of the step, or of statistics recorded in each epoch."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

ScheduleKind = Literal["constant", "linear", "cosine", "progress", "confidence"]


@dataclass(frozen=True, kw_only=True)
class EpochStats:
    """Statistics of the last epoch; 0 before the first one, so that every schedule starts at its first value.

    progress: each student's training accuracy, from 0 to 1. confidence: the samples' mean weight w.
    """

    progress: Sequence[float]
    confidence: float

    @classmethod
    def none(cls, num_students: int) -> "EpochStats":
        """The statistics before the first epoch."""
        return cls(progress=(0.0,) * num_students, confidence=0.0)


def interpolate(kind: ScheduleKind, first: float, last: float, *, progress: float) -> float:
    """Interpolate a weight from `first` (progress 0) to `last` (progress 1): linearly, or with a half cosine."""
    if kind == "constant":
        return first
    if kind == "cosine":
        progress = 0.5 - 0.5 * math.cos(math.pi * progress)
    return first + (last - first) * progress


def schedule_progress(kind: ScheduleKind, stats: EpochStats, student: int, *, fraction: float, until: float) -> float:
    """The progress of a schedule, in [0, 1].

    linear, cosine: `fraction`, the completed part of the run, over `until`, at most 1.
    progress: the student's training accuracy. confidence: the mean sample weight.
    """
    if kind == "progress":
        return stats.progress[student]
    if kind == "confidence":
        return stats.confidence
    return min(1.0, fraction / until)
