"""How a weight of the loss changes over a run: a pure function of the step, or of statistics that each epoch records."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

ScheduleKind = Literal["constant", "linear", "cosine", "progress", "confidence"]


@dataclass(frozen=True, kw_only=True)
class EpochStats:
    """Statistics of the last epoch; 0 before the first, so that every schedule begins at its first value.

    progress: each student's training accuracy, from 0 to 1. confidence: the samples' mean weight w.
    """

    progress: Sequence[float]
    confidence: float

    @classmethod
    def none(cls, num_students: int) -> "EpochStats":
        """The statistics before the first epoch."""
        return cls(progress=(0.0,) * num_students, confidence=0.0)


def interpolate(kind: ScheduleKind, first: float, last: float, *, progress: float) -> float:
    """A weight between `first` (progress 0) and `last` (1): linearly, or (cosine) slowly at both ends."""
    if kind == "constant":
        return first
    if kind == "cosine":
        progress = 0.5 - 0.5 * math.cos(math.pi * progress)
    return first + (last - first) * progress


def schedule_progress(kind: ScheduleKind, stats: EpochStats, student: int, *, fraction: float, until: float) -> float:
    """How far along a weight is, in [0, 1].

    linear, cosine: by `fraction`, the part of the run that is done; 1 from `until` on.
    progress: by the student's accuracy. confidence: by the mean sample weight.
    """
    if kind == "progress":
        return stats.progress[student]
    if kind == "confidence":
        return stats.confidence
    return min(1.0, fraction / until)
