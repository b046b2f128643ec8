"""How a weight of the loss moves over a run: a pure function of the step, or of figures that each epoch records."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

ScheduleKind = Literal["constant", "linear", "cosine", "progress", "confidence"]


@dataclass(frozen=True, kw_only=True)
class EpochStats:
    """What the last epoch recorded; 0 before the first, so that every schedule begins where it should.

    progress: of each student, the share of training samples that it got right. confidence: the samples' mean weight w.
    """

    progress: Sequence[float]
    confidence: float

    @classmethod
    def none(cls, num_students: int) -> "EpochStats":
        """Before anything was recorded."""
        return cls(progress=(0.0,) * num_students, confidence=0.0)


def interpolate(shape: ScheduleKind, first: float, last: float, *, progress: float) -> float:
    """A weight that is on its way from `first` (progress 0) to `last` (1): straight, or (cosine) slowly at both ends."""
    if shape == "constant":
        return first
    if shape == "cosine":
        progress = 0.5 - 0.5 * math.cos(math.pi * progress)
    return first + (last - first) * progress


def schedule_progress(shape: ScheduleKind, figures: EpochStats, student: int, *, share: float, until: float) -> float:
    """How far along a weight is, in [0, 1].

    linear, cosine: by `share`, the part of the run that is done; all the way after `until`.
    progress: by the student's own accuracy. confidence: by the teacher's mean weight.
    """
    if shape == "progress":
        return figures.progress[student]
    if shape == "confidence":
        return figures.confidence
    return min(1.0, share / until)
