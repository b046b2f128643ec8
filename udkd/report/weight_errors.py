"""Does a low weight mean that the teacher errs: accuracy by tenths of the weight."""

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from udkd.report.analysis.groups import tenths
from udkd.report.analysis.separation import separation
from udkd.report.classifiers import classifiers, dodge, draw_line, legend, share
from udkd.report.inputs import ReportInputs
from udkd.report.page import Block, Note, Picture, Pictures, Section
from udkd.report.style import Palette, picture
from udkd.report.text import count, listed, percent
from udkd.training.predictions import Predictions, TeacherPredictions


def section(inputs: ReportInputs) -> Section | None:
    """Pictures by tenths, on validation images where the teacher answered them and on training images; None without either."""
    pictures: list[Picture] = []
    blocks: list[Block] = []
    if inputs.predictions is not None and inputs.predictions.val_targets is not None:
        pictures.append(_validation(inputs.predictions, inputs.predictions.val_targets))
    elif inputs.predictions is not None and inputs.recipe.needs_teacher:
        text = "What the teacher says of validation images is not known: udkd eval --teacher TEACHER adds it."
        blocks.append(Note(text=text, missing=True))
    if inputs.targets is not None:
        pictures.append(_training(inputs.targets))
    if pictures:
        note = "Bars and whiskers: 95 % intervals of a share (Wilson), for each group alone."
        blocks = [Pictures(pictures=pictures), *blocks, Note(text=note)]
    return Section(anchor="weight-errors", title="Does a low weight mean an error?", blocks=blocks) if blocks else None


def by_tenths(targets: TeacherPredictions, right: NDArray[np.bool_]) -> list[tuple[float, float, float]]:
    """Percent of right guesses and its interval in groups of equal size, the least sure first: ten, or as few as samples."""
    return [share(right[rows]) for rows in tenths(targets.entropy, targets.ids)]


def told_apart(targets: TeacherPredictions) -> str:
    """How well the weight tells the teacher's right guesses from wrong ones, in words."""
    area = separation(-targets.entropy.astype(np.float64), targets.correct)
    if area is None:
        return "its guesses are all right" if targets.correct.all() else "its guesses are all wrong"
    return f"a right guess has the higher weight than a wrong one with probability {area:.2f} (0.50: the weight says nothing)"


def _validation(predictions: Predictions, targets: TeacherPredictions) -> Picture:
    asked = classifiers(predictions)
    lines = [(voice, by_tenths(targets, voice.answers.correct(targets.labels))) for voice in asked]
    groups = len(lines[0][1])
    ends = [f"{voice.label} {points[0][0]:.0f} → {percent(points[-1][0], 0)}" for voice, points in lines]
    caption = (
        f"{count(len(targets.ids), 'validation image')} by the teacher’s weight, from the least sure "
        f"{_group(groups)} to the surest: {listed(ends)}. Of the teacher: {told_apart(targets)}."
    )

    def draw(figure: Figure, palette: Palette) -> None:
        axes = figure.subplots()
        for rank, (voice, points) in enumerate(lines):
            places = [dodge(place, rank, len(lines), 0.4) for place in range(1, groups + 1)]
            draw_line(axes, palette, voice, points, places=places)
        axes.set_ylim(0, 104)
        axes.set_yticks(range(0, 101, 20))
        axes.set_xticks(range(1, groups + 1))
        axes.set_xlabel(f"{_group(groups)}s of the validation images, the lowest weight first")
        axes.set_ylabel("first guess right, %")
        legend(axes, palette, len(lines))

    return picture("right-by-weight-val", "New images: who is right where the teacher is unsure", caption, draw, height=3.2)


def _training(targets: TeacherPredictions) -> Picture:
    points = by_tenths(targets, targets.correct)
    first, last = points[0], points[-1]
    parted = first[2] < last[1]
    told = "lower, as it should be" if parted else "not clearly lower: here a low weight is no sign of error"
    caption = (
        f"Training images: the first guess is right for {percent(first[0], 1)} of the least sure {_group(len(points))} and for "
        f"{percent(last[0], 1)} of the surest, {told}; {told_apart(targets)}."
    )
    if len(points) == 1:
        caption = f"One training image, on which the teacher is {'right' if targets.correct.all() else 'wrong'}."

    def draw(figure: Figure, palette: Palette) -> None:
        axes = figure.subplots()
        places = list(range(1, len(points) + 1))
        axes.bar(places, [value for value, _, _ in points], 0.82, color=palette.fill)
        axes.vlines(places, [low for _, low, _ in points], [high for _, _, high in points], color=palette.mark, linewidth=1)
        for place, (value, _, high) in zip(places, points, strict=True):
            where = (place, max(value, high))
            axes.annotate(
                f"{value:.0f}", where, (0, 2), textcoords="offset points", ha="center", fontsize=8, color=palette.soft
            )
        axes.set_ylim(0, 112)
        axes.set_yticks(range(0, 101, 20))
        axes.set_xticks(places)
        axes.set_xlabel(f"{_group(len(points))}s of the training images, the lowest weight first")
        axes.set_ylabel("teacher right, %")

    return picture("right-by-weight", "Training images: is the teacher wrong where it is unsure?", caption, draw, height=3.2)


def _group(groups: int) -> str:
    return "tenth" if groups == 10 else "image" if groups == 1 else "group"
