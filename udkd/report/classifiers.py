"""Whose answers a report compares: the students, their average, the teacher."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from udkd.report.analysis.intervals import wilson
from udkd.report.style import MARKERS, NUM_STUDENT_COLOURS, Palette
from udkd.report.text import shorten
from udkd.training.predictions import Predictions, TopPredictions


@dataclass(frozen=True, kw_only=True, eq=False)
class Classifier:
    """One of those who answer. index: a student's number, which decides its colour and marker."""

    name: str
    kind: Literal["student", "average", "teacher"]
    answers: TopPredictions
    index: int = 0

    def colour(self, palette: Palette) -> str:
        return {"average": palette.ink, "teacher": palette.soft}.get(self.kind) or palette.student(self.index)

    @property
    def hue(self) -> str:
        """The role of its colour in the page's tables."""
        return {"average": "ink", "teacher": "soft"}.get(self.kind) or f"s{self.index % NUM_STUDENT_COLOURS}"

    @property
    def marker(self) -> str:
        return {"average": "*", "teacher": "X"}.get(self.kind) or MARKERS[self.index % len(MARKERS)]

    @property
    def label(self) -> str:
        """Short enough for a legend."""
        return shorten(self.name, 18)


def classifiers(predictions: Predictions) -> list[Classifier]:
    """The students, the average where there are several, the teacher where it was asked."""
    told = [
        Classifier(name=name, kind="student", answers=answers, index=index)
        for index, (name, answers) in enumerate(zip(predictions.names, predictions.students, strict=True))
    ]
    if len(told) > 1:
        told.append(Classifier(name="averaged", kind="average", answers=predictions.average))
    if predictions.teacher is not None:
        told.append(Classifier(name="teacher", kind="teacher", answers=predictions.teacher))
    return told


def accuracy_with_ci(correct: NDArray[np.bool_]) -> tuple[float, float, float]:
    """Percent of right ones among at least one, and its Wilson interval."""
    low, high = wilson(int(correct.sum()), len(correct))
    return 100 * float(correct.mean()), 100 * low, 100 * high


def draw_line(
    axes: Axes, palette: Palette, classifier: Classifier, points: list[tuple[float, float, float]], *, places: list[float]
) -> None:
    """A voice's figures with their intervals, one at each place."""
    colour = classifier.colour(palette)
    axes.vlines(places, [low for _, low, _ in points], [high for _, _, high in points], color=colour, linewidth=0.9, alpha=0.55)
    axes.plot(
        places,
        [value for value, _, _ in points],
        color=colour,
        marker=classifier.marker,
        markersize=4,
        linewidth=1.3,
        linestyle=(0, (5, 1.5)) if classifier.kind == "average" else (0, (1, 1.2)) if classifier.kind == "teacher" else "-",
        label=classifier.label,
    )


def dodge(place: float, rank: int, of: int, width: float = 0.5) -> float:
    """A place moved aside, so that the intervals of several voices do not cover each other."""
    return place + (0.0 if of == 1 else width * (rank / (of - 1) - 0.5))


def legend(axes: Axes, palette: Palette, entries: int) -> None:
    """Above the drawing, in at most three columns."""
    axes.legend(
        loc="lower left",
        bbox_to_anchor=(-0.02, 1),
        ncols=min(entries, 3),
        borderaxespad=0,
        handlelength=1.6,
        columnspacing=1.0,
        fontsize=8,
        labelcolor=palette.soft,
    )
