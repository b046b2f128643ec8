"""Where the students disagree, and which of them are correct."""

from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from udkd.report import class_gains, gallery
from udkd.report.analysis.agreement import AgreementCounts, agreement, patterns
from udkd.report.analysis.intervals import wilson
from udkd.report.inputs import ReportInputs
from udkd.report.page import Block, Note, PageSection, Plot, Plots, Row, Table
from udkd.report.style import MARKERS, Palette, plot
from udkd.report.text import comma_list, count, percent, short_name
from udkd.training.predictions import Predictions

_MAX_PAIRS = 3
_MAX_PATTERNS = 4
_IMAGES_EACH = 6
_ALPHA = 0.5

Subset = tuple[str, NDArray[np.bool_]]
PatternCounts = tuple[str, dict[str, int]]


def section(inputs: ReportInputs) -> PageSection | None:
    """Plots, a table and images; a note where there is one student; None without predictions."""
    predictions = inputs.predictions
    if predictions is None:
        return None
    title = "Where the students disagree"
    if len(predictions.names) == 1:
        text = "There is only one student."
        return PageSection(anchor="disagreement", title=title, blocks=[Note(text=text)])
    pairs = list(combinations(range(len(predictions.names)), 2))
    plots = [_matrix(predictions) if len(pairs) == 1 else _correct_students(predictions)]
    plots += [_classes(inputs, predictions, first, second) for first, second in pairs[:_MAX_PAIRS]]
    blocks: list[Block] = [Plots(plots=plots), _table(predictions, pairs), *_images(inputs, predictions)]
    left_out = len(pairs) - _MAX_PAIRS
    if left_out > 0:
        blocks.append(Note(text=f"Classes are shown for the first {_MAX_PAIRS} of {len(pairs)} pairs of students."))
    return PageSection(anchor="disagreement", title=title, blocks=blocks)


def subsets(predictions: Predictions) -> list[Subset]:
    """Validation images to count: all, those on which the teacher is correct, those on which it is incorrect."""
    every: Subset = ("all", np.ones(len(predictions.ids), np.bool_))
    if predictions.teacher is None:
        return [every]
    correct = predictions.teacher.correct(predictions.labels)
    return [every, ("teacher correct", correct), ("teacher wrong", ~correct)]


def pair_of(predictions: Predictions, first: int, second: int, among: NDArray[np.bool_]) -> AgreementCounts:
    """Agreement of two students on the samples `among`, bool [n]."""
    students = predictions.students
    return agreement(students[first].predicted, students[second].predicted, predictions.labels, among)


def _matrix(predictions: Predictions) -> Plot:
    """Two-by-two tables of two students' correctness, for images on which the teacher is correct and incorrect."""
    every, *by_teacher = subsets(predictions)
    shown = [subset for subset in by_teacher if subset[1].any()] or [every]
    names = [short_name(name, 16) for name in predictions.names]

    def draw(figure: Figure, palette: Palette) -> None:
        grid = figure.subplots(1, len(shown), squeeze=False)
        for column, (subset, among) in enumerate(shown):
            pair = pair_of(predictions, 0, 1, among)
            _squares(grid[0, column], palette, pair, len(predictions.ids), names, column == 0)
            title = f"{subset}: {pair.samples:,}" if by_teacher else f"{pair.samples:,} images"
            grid[0, column].set_title(title, loc="left", fontsize=9, color=palette.ink)

    return plot("agreement", "Which student is correct", _caption(predictions), draw, height=2.6)


def _squares(axes: Axes, palette: Palette, pair: AgreementCounts, total: int, names: list[str], first: bool) -> None:
    cells = {
        (0, 0): (pair.both, palette.fill),
        (1, 0): (pair.first, palette.student(0)),
        (0, 1): (pair.second, palette.student(1)),
        (1, 1): (pair.neither, palette.mark),
    }
    for (x, y), (number, colour) in cells.items():
        alpha = _ALPHA * (0.15 + 0.85 * number / max(1, max(value for value, _ in cells.values())))
        axes.add_patch(Rectangle((x, y), 0.97, 0.96, facecolor=colour, alpha=alpha, edgecolor="none"))
        axes.text(x + 0.485, y + 0.4, f"{number:,}", fontsize=11, color=palette.ink, ha="center", va="center")
        axes.text(
            x + 0.485, y + 0.68, percent(100 * number / total, 1), fontsize=8, color=palette.ink, ha="center", va="center"
        )
    axes.set_xlim(0, 2)
    axes.set_ylim(2, 0)
    axes.grid(False)
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.set_xticks([0.485, 1.485], ["correct", "wrong"])
    axes.set_yticks([0.48, 1.48], ["correct", "wrong"] if first else ["", ""], rotation=90, va="center")
    axes.tick_params(length=0)
    axes.set_xlabel(names[1], color=palette.student(1))
    if first:
        axes.set_ylabel(names[0], color=palette.student(0))


def _correct_students(predictions: Predictions) -> Plot:
    """Bars of images, one for each set of correct students (shown by markers), or for many students, one for each number."""
    rows = correct_patterns(predictions)
    number = len(predictions.names)
    every, *by_teacher = subsets(predictions)

    def draw(figure: Figure, palette: Palette) -> None:
        if number > _MAX_PATTERNS:
            axes = figure.subplots()
            axes.set_yticks(range(len(rows)), [label for label, _ in rows])
            axes.tick_params(axis="y", length=0)
        else:
            markers_axes, axes = figure.subplots(1, 2, sharey=True, width_ratios=(0.24 * number, 3))
            _markers(markers_axes, palette, number)
            axes.tick_params(axis="y", length=0, labelleft=False)
            handles = [Line2D([], [], **_mark(palette, index, True)) for index in range(number)]
            names = [short_name(name, 22) for name in predictions.names]
            figure.legend(handles, names, loc="outside upper left", ncols=2, fontsize=8, labelcolor=palette.soft)
        _bars(axes, palette, rows, [subset for subset, _ in by_teacher or [every]], len(predictions.ids))
        axes.invert_yaxis()

    height = 1.35 + 0.22 * len(rows)
    title = "How many students are correct" if number > _MAX_PATTERNS else "Which students are correct (filled)"
    return plot("agreement", title, _caption(predictions), draw, height=height)


def _markers(axes: Axes, palette: Palette, number: int) -> None:
    """A row for each pattern; filled markers: correct students."""
    for row, code in enumerate(_codes(number)):
        for index in range(number):
            axes.plot([index], [row], **_mark(palette, index, bool(code >> index & 1)))
    axes.set_xlim(-0.6, number - 0.4)
    axes.set_axis_off()


def _mark(palette: Palette, index: int, correct: bool) -> dict[str, Any]:
    colour = palette.student(index)
    style: dict[str, Any] = {"marker": MARKERS[index % len(MARKERS)], "markersize": 6, "linestyle": "none"}
    if correct:
        return style | {"markerfacecolor": colour, "markeredgecolor": colour}
    return style | {"markerfacecolor": "none", "markeredgecolor": palette.rule}


def _bars(axes: Axes, palette: Palette, rows: list[PatternCounts], parts: list[str], total: int) -> None:
    """Bars stacked by the subsets `parts`, with the number at the end."""
    ys, left = list(range(len(rows))), np.zeros(len(rows))
    for index, subset in enumerate(parts):
        percents = np.array([100 * counts[subset] / total for _, counts in rows])
        axes.barh(
            ys,
            percents,
            0.72,
            left=left,
            label=subset if len(parts) > 1 else "images",
            linewidth=0.0 if index == 0 else 0.6,
            facecolor=palette.fill if index == 0 else "none",
            edgecolor=palette.mark,
            hatch=None if index == 0 else "////",
        )
        left += percents
    for y, (_, counts) in zip(ys, rows, strict=True):
        end = (left[y], y)
        text, offset = f"{counts['all']:,}", (4, 0)
        axes.annotate(text, end, offset, textcoords="offset points", va="center", fontsize=8, color=palette.soft)
    axes.grid(False)
    axes.grid(True, axis="x")
    axes.set_xlim(0, 1.15 * max(1.0, float(left.max())))
    axes.set_xlabel("validation images, % (number)")
    if len(parts) > 1:
        above = (-0.02, 1)
        axes.legend(loc="lower left", bbox_to_anchor=above, ncols=2, borderaxespad=0, fontsize=8, labelcolor=palette.soft)


def correct_patterns(predictions: Predictions) -> list[PatternCounts]:
    """Labelled rows, the most correct students first, each with its number of images by subset (see `subsets`)."""
    correct = np.stack([student.correct(predictions.labels) for student in predictions.students])
    number = len(correct)
    if number > _MAX_PATTERNS:
        hits = correct.sum(axis=0)
        counts = {subset: np.bincount(hits[among], minlength=number + 1) for subset, among in subsets(predictions)}
        labels = {k: f"{k} of {number} correct" for k in range(number, -1, -1)}
    else:
        counts = {subset: patterns(correct, among) for subset, among in subsets(predictions)}
        labels = {code: _pattern(predictions.names, code) for code in _codes(number)}
    return [(label, {subset: int(count[key]) for subset, count in counts.items()}) for key, label in labels.items()]


def _codes(number: int) -> list[int]:
    """All patterns of `number` students, the most correct first; bit s: student s is correct."""
    return sorted(range(1 << number), key=lambda code: (-code.bit_count(), code))


def _pattern(names: Sequence[str], code: int) -> str:
    correct = [short_name(name, 14) for index, name in enumerate(names) if code >> index & 1]
    if len(correct) in (0, len(names)):
        return "all correct" if correct else "all wrong"
    if len(correct) == len(names) - 1 > 1:
        return f"all but {next(short_name(name, 14) for index, name in enumerate(names) if not code >> index & 1)}"
    return f"only {comma_list(correct)}"


def _caption(predictions: Predictions) -> str:
    correct = np.stack([student.correct(predictions.labels) for student in predictions.students])
    some, best = 100 * float(correct.any(axis=0).mean()), 100 * float(correct.mean(axis=1).max())
    average = 100 * float(predictions.average.correct(predictions.labels).mean())
    text = f"At least one student is correct on {percent(some, 1)} of {count(len(predictions.ids), 'validation image')}, "
    text += f"the best one on {percent(best, 1)}, their average on {percent(average, 1)}"
    if predictions.teacher is not None:
        missed = ~predictions.teacher.correct(predictions.labels)
        fixed = int((correct.any(axis=0) & missed).sum())
        text += f"; of the {count(int(missed.sum()), 'image')} on which the teacher is wrong, a student is correct on {fixed:,}"
    return text + "."


def _classes(inputs: ReportInputs, predictions: Predictions, first: int, second: int) -> Plot:
    ahead, behind = predictions.names[first], predictions.names[second]
    correct, other = (predictions.students[index].correct(predictions.labels) for index in (first, second))
    gains = class_gains.class_gains(correct, other, predictions.labels, predictions.num_classes)
    name, title = f"classes-{first}-{second}", f"By class: ← {short_name(behind, 18)} ahead · {short_name(ahead, 18)} ahead →"
    return class_gains.chart(name, title, gains, inputs.class_names, ahead, behind, (first, second))


def _table(predictions: Predictions, pairs: list[tuple[int, int]]) -> Table:
    rows, caption = [], ""
    for first, second in pairs:
        names = f"{predictions.names[first]} / {predictions.names[second]}"
        for subset, among in subsets(predictions):
            pair = pair_of(predictions, first, second, among)
            label = subset if len(pairs) == 1 else f"{names}, {subset}"
            rows.append(Row(label=label, cells=_cells(pair)))
        caption = caption or _pair_text(predictions, first, second)
    heads = ["only 1st", "only 2nd"]
    if len(pairs) == 1:
        heads = [f"only {short_name(predictions.names[index], 18)}" for index in pairs[0]]
    return Table(
        name="pairs",
        title="Pairs of students, validation images",
        head=("", "both correct", *heads, "both wrong", "same guess", "1st wins, %"),
        rows=rows,
        caption=caption,
        notes=(
            "“Same guess”: both predict the same wrong class. “1st wins”: how often the first is correct where exactly one is, "
            "with its 95 % interval (Wilson).",
        ),
    )


def _cells(pair: AgreementCounts) -> tuple[str, ...]:
    differing = pair.first + pair.second
    low, high = wilson(pair.first, differing)
    wins = f"{100 * pair.first / differing:.0f} [{100 * low:.0f}, {100 * high:.0f}]" if differing else "–"
    return (*(f"{number:,}" for number in (pair.both, pair.first, pair.second, pair.neither, pair.same)), wins)


def _pair_text(predictions: Predictions, first: int, second: int) -> str:
    """A sentence on which of two students is correct where exactly one is."""
    pair = pair_of(predictions, first, second, np.ones(len(predictions.ids), np.bool_))
    a, b = predictions.names[first], predictions.names[second]
    differing = pair.first + pair.second
    if not differing:
        return f"{a} and {b} are correct on the same images."
    low, high = wilson(pair.first, differing)
    verdict = f"{a} is ahead" if low > 0.5 else f"{b} is ahead" if high < 0.5 else "neither is clearly ahead"
    numbers = f"{a} on {pair.first:,}, {b} on {pair.second:,}"
    return f"Exactly one of {a} and {b} is correct on {count(differing, 'image')}: {numbers}; {verdict}."


def _images(inputs: ReportInputs, predictions: Predictions) -> list[Block]:
    """For each of the first two students, images on which it alone is correct, the most confident first."""
    blocks: list[Block] = []
    for index, other in ((0, 1), (1, 0)):
        winner, loser = predictions.students[index], predictions.students[other]
        name, against = predictions.names[index], predictions.names[other]
        won = np.flatnonzero(winner.correct(predictions.labels) & ~loser.correct(predictions.labels))
        if not len(won):
            blocks.append(Note(text=f"There is no image on which {name} is correct and {against} wrong."))
            continue
        rows = won[np.lexsort((predictions.ids[won], -winner.confidence[won]))][:_IMAGES_EACH]
        number = count(len(won), "image")
        caption = f"{name} is correct and {against} wrong on {number}, of which {name}’s most confident are shown."
        compared = [(short_name(name, 22), winner), (short_name(against, 22), loser)]
        title = f"Only {name} is correct"
        blocks.append(gallery.versus(f"disagreement-{index}", title, caption, rows, predictions, compared, inputs))
    return blocks
