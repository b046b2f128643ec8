"""The classifiers that a report compares: the students, their average, the teacher."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from udkd.report.analysis.intervals import wilson
from udkd.report.style import MARKERS, NUM_STUDENT_COLOURS, Palette
from udkd.report.text import short_name
from udkd.training.predictions import Predictions, TopPredictions


@dataclass(frozen=True, kw_only=True, eq=False)
class Classifier:
    """A classifier and its predictions. index: a student's number, which determines its colour and marker."""

    name: str
    kind: Literal["student", "average", "teacher"]
    predictions: TopPredictions
    index: int = 0

    def colour(self, palette: Palette) -> str:
        return {"average": palette.ink, "teacher": palette.soft}.get(self.kind) or palette.student(self.index)

    @property
    def hue(self) -> str:
        """The CSS variable of its colour."""
        return {"average": "ink", "teacher": "soft"}.get(self.kind) or f"s{self.index % NUM_STUDENT_COLOURS}"

    @property
    def marker(self) -> str:
        return {"average": "*", "teacher": "X"}.get(self.kind) or MARKERS[self.index % len(MARKERS)]

    @property
    def label(self) -> str:
        """The name, short enough for a legend."""
        return short_name(self.name, 18)


def classifiers(predictions: Predictions) -> list[Classifier]:
    """The students, their average where there are several, and the teacher where its predictions are stored."""
    result = [
        Classifier(name=name, kind="student", predictions=student, index=index)
        for index, (name, student) in enumerate(zip(predictions.names, predictions.students, strict=True))
    ]
    if len(result) > 1:
        result.append(Classifier(name="averaged", kind="average", predictions=predictions.average))
    if predictions.teacher is not None:
        result.append(Classifier(name="teacher", kind="teacher", predictions=predictions.teacher))
    return result


def accuracy_with_ci(correct: NDArray[np.bool_]) -> tuple[float, float, float]:
    """Accuracy over at least one sample and its Wilson interval, percent: value, low, high."""
    low, high = wilson(int(correct.sum()), len(correct))
    return 100 * float(correct.mean()), 100 * low, 100 * high


def draw_line(
    axes: Axes, palette: Palette, classifier: Classifier, points: list[tuple[float, float, float]], *, xs: list[float]
) -> None:
    """Draw a line through a classifier's values, with intervals. points: (value, low, high) at each of `xs`."""
    colour = classifier.colour(palette)
    axes.vlines(xs, [low for _, low, _ in points], [high for _, _, high in points], color=colour, linewidth=0.9, alpha=0.55)
    axes.plot(
        xs,
        [value for value, _, _ in points],
        color=colour,
        marker=classifier.marker,
        markersize=4,
        linewidth=1.3,
        linestyle=(0, (5, 1.5)) if classifier.kind == "average" else (0, (1, 1.2)) if classifier.kind == "teacher" else "-",
        label=classifier.label,
    )


def dodge(x: float, rank: int, number: int, width: float = 0.5) -> float:
    """Shift x for series `rank` of `number`, so that intervals of several series do not overlap."""
    return x + (0.0 if number == 1 else width * (rank / (number - 1) - 0.5))


def legend(axes: Axes, palette: Palette, entries: int) -> None:
    """Draw the legend above the axes, in at most three columns."""
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
