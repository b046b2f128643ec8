"""The teacher's accuracy by tenths of its weight: whether a low weight predicts an error."""

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from udkd.report.analysis.groups import tenths
from udkd.report.analysis.separation import separation
from udkd.report.classifiers import accuracy_with_ci, classifiers, dodge, draw_line, legend
from udkd.report.inputs import ReportInputs
from udkd.report.page import Block, Note, PageSection, Plot, Plots
from udkd.report.style import Palette, plot
from udkd.report.text import comma_list, count, percent
from udkd.training.predictions import Predictions, TeacherPredictions


def section(inputs: ReportInputs) -> PageSection | None:
    """Plots by tenths, of validation images with teacher predictions and of training images; None without either."""
    plots: list[Plot] = []
    blocks: list[Block] = []
    if inputs.predictions is not None and inputs.predictions.val_targets is not None:
        plots.append(_validation(inputs.predictions, inputs.predictions.val_targets))
    elif inputs.predictions is not None and inputs.recipe.needs_teacher:
        text = "The teacher’s predictions for the validation images are missing: udkd eval --teacher TEACHER adds them."
        blocks.append(Note(text=text, missing=True))
    if inputs.targets is not None:
        plots.append(_training(inputs.targets))
    if plots:
        note = "Whiskers: 95 % intervals of each group’s accuracy (Wilson)."
        blocks = [Plots(plots=plots), *blocks, Note(text=note)]
    return PageSection(anchor="weight-errors", title="Does a low weight mean an error?", blocks=blocks) if blocks else None


def accuracy_by_tenths(targets: TeacherPredictions, correct: NDArray[np.bool_]) -> list[tuple[float, float, float]]:
    """Accuracy and its interval, percent, in ten groups of equal size (fewer for fewer samples), the lowest weight first."""
    return [accuracy_with_ci(correct[rows]) for rows in tenths(targets.entropy, targets.ids)]


def separation_text(targets: TeacherPredictions) -> str:
    """A clause on how well the weight separates the teacher's correct predictions from incorrect ones."""
    area = separation(-targets.entropy.astype(np.float64), targets.correct)
    if area is None:
        return "all its predictions are correct" if targets.correct.all() else "all its predictions are wrong"
    return f"a correct prediction has a higher weight than a wrong one with probability {area:.2f} (0.50: no information)"


def _validation(predictions: Predictions, targets: TeacherPredictions) -> Plot:
    compared = classifiers(predictions)
    lines = [(each, accuracy_by_tenths(targets, each.predictions.correct(targets.labels))) for each in compared]
    groups = len(lines[0][1])
    ends = [f"{classifier.label} {points[0][0]:.0f} → {percent(points[-1][0], 0)}" for classifier, points in lines]
    caption = (
        f"Accuracy on {count(len(targets.ids), 'validation image')} by the teacher’s weight, from the lowest {_group(groups)} "
        f"to the highest: {comma_list(ends)}. The teacher: {separation_text(targets)}."
    )

    def draw(figure: Figure, palette: Palette) -> None:
        axes = figure.subplots()
        for rank, (classifier, points) in enumerate(lines):
            xs = [dodge(x, rank, len(lines), 0.4) for x in range(1, groups + 1)]
            draw_line(axes, palette, classifier, points, xs=xs)
        axes.set_ylim(0, 104)
        axes.set_yticks(range(0, 101, 20))
        axes.set_xticks(range(1, groups + 1))
        axes.set_xlabel(f"{_group(groups)}s of the validation images, the lowest weight first")
        axes.set_ylabel("accuracy, %")
        legend(axes, palette, len(lines))

    return plot("teacher-accuracy-val", "Validation images: accuracy by the teacher’s weight", caption, draw, height=3.2)


def _training(targets: TeacherPredictions) -> Plot:
    points = accuracy_by_tenths(targets, targets.correct)
    first, last = points[0], points[-1]
    lower = first[2] < last[1]
    verdict = "lower, as it should be" if lower else "not clearly lower: a low weight does not predict an error here"
    caption = (
        f"The teacher’s accuracy on training images is {percent(first[0], 1)} in the {_group(len(points))} of lowest "
        f"weight and {percent(last[0], 1)} in the highest: {verdict}; {separation_text(targets)}."
    )
    if len(points) == 1:
        caption = f"One training image, on which the teacher is {'correct' if targets.correct.all() else 'wrong'}."

    def draw(figure: Figure, palette: Palette) -> None:
        axes = figure.subplots()
        xs = list(range(1, len(points) + 1))
        axes.bar(xs, [value for value, _, _ in points], 0.82, color=palette.fill)
        axes.vlines(xs, [low for _, low, _ in points], [high for _, _, high in points], color=palette.mark, linewidth=1)
        for x, (value, _, high) in zip(xs, points, strict=True):
            top = (x, max(value, high))
            axes.annotate(f"{value:.0f}", top, (0, 2), textcoords="offset points", ha="center", fontsize=8, color=palette.soft)
        axes.set_ylim(0, 112)
        axes.set_yticks(range(0, 101, 20))
        axes.set_xticks(xs)
        axes.set_xlabel(f"{_group(len(points))}s of the training images, the lowest weight first")
        axes.set_ylabel("teacher’s accuracy, %")

    return plot("teacher-accuracy", "Training images: the teacher’s accuracy by its weight", caption, draw, height=3.2)


def _group(groups: int) -> str:
    return "tenth" if groups == 10 else "image" if groups == 1 else "group"
