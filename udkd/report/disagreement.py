"""Where the students disagree, and who is right."""

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
from udkd.report.analysis.agreement import Pair, agreement, patterns
from udkd.report.analysis.intervals import wilson
from udkd.report.inputs import ReportInputs
from udkd.report.page import Block, Note, Picture, Pictures, Row, Section, Table
from udkd.report.style import MARKERS, Palette, picture
from udkd.report.text import count, listed, percent, short
from udkd.training.predictions import Predictions

_MOST_PAIRS = 3
_MOST_PATTERNS = 4
_IMAGES_EACH = 6
_ALPHA = 0.5

Side = tuple[str, NDArray[np.bool_]]
Counted = tuple[str, dict[str, int]]


def section(inputs: ReportInputs) -> Section | None:
    """Pictures, a table and images; a sentence where there is one student; None without predictions."""
    predictions = inputs.predictions
    if predictions is None:
        return None
    title = "Where the students disagree"
    if len(predictions.names) == 1:
        text = "One student: it has nobody to disagree with."
        return Section(anchor="disagreement", title=title, blocks=[Note(text=text)])
    pairs = list(combinations(range(len(predictions.names)), 2))
    pictures = [_matrix(predictions) if len(pairs) == 1 else _who_is_right(predictions)]
    pictures += [_classes(inputs, predictions, first, second) for first, second in pairs[:_MOST_PAIRS]]
    blocks: list[Block] = [Pictures(pictures=pictures), _table(predictions, pairs), *_images(inputs, predictions)]
    left_out = len(pairs) - _MOST_PAIRS
    if left_out > 0:
        blocks.append(Note(text=f"Classes are shown for the first {_MOST_PAIRS} of {len(pairs)} pairs of students."))
    return Section(anchor="disagreement", title=title, blocks=blocks)


def sides(predictions: Predictions) -> list[Side]:
    """Which validation images to count: all, those that the teacher has right, those it has wrong."""
    every: Side = ("all", np.ones(len(predictions.ids), np.bool_))
    if predictions.teacher is None:
        return [every]
    right = predictions.teacher.correct(predictions.labels)
    return [every, ("teacher right", right), ("teacher wrong", ~right)]


def pair_of(predictions: Predictions, first: int, second: int, among: NDArray[np.bool_]) -> Pair:
    students = predictions.students
    return agreement(students[first].predicted, students[second].predicted, predictions.labels, among)


def _matrix(predictions: Predictions) -> Picture:
    """Both right, only one, none, in a square for each of what the teacher says."""
    every, *by_teacher = sides(predictions)
    shown = [side for side in by_teacher if side[1].any()] or [every]
    names = [short(name, 16) for name in predictions.names]

    def draw(figure: Figure, palette: Palette) -> None:
        grid = figure.subplots(1, len(shown), squeeze=False)
        for place, (who, among) in enumerate(shown):
            pair = pair_of(predictions, 0, 1, among)
            _squares(grid[0, place], palette, pair, len(predictions.ids), names, place == 0)
            title = f"{who}: {pair.samples:,}" if by_teacher else f"{pair.samples:,} images"
            grid[0, place].set_title(title, loc="left", fontsize=9, color=palette.ink)

    return picture("agreement", "Who is right", _caption(predictions), draw, height=2.6)


def _squares(axes: Axes, palette: Palette, pair: Pair, total: int, names: list[str], first: bool) -> None:
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
    axes.set_xticks([0.485, 1.485], ["right", "wrong"])
    axes.set_yticks([0.48, 1.48], ["right", "wrong"] if first else ["", ""], rotation=90, va="center")
    axes.tick_params(length=0)
    axes.set_xlabel(names[1], color=palette.student(1))
    if first:
        axes.set_ylabel(names[0], color=palette.student(0))


def _who_is_right(predictions: Predictions) -> Picture:
    """Bars of images by which students are right, told by a row of their markers; of many students by how many are."""
    rows = right_patterns(predictions)
    number = len(predictions.names)
    every, *by_teacher = sides(predictions)

    def draw(figure: Figure, palette: Palette) -> None:
        if number > _MOST_PATTERNS:
            axes = figure.subplots()
            axes.set_yticks(range(len(rows)), [label for label, _ in rows])
            axes.tick_params(axis="y", length=0)
        else:
            beside, axes = figure.subplots(1, 2, sharey=True, width_ratios=(0.24 * number, 3))
            _markers(beside, palette, number)
            axes.tick_params(axis="y", length=0, labelleft=False)
            handles = [Line2D([], [], **_mark(palette, index, True)) for index in range(number)]
            names = [short(name, 22) for name in predictions.names]
            figure.legend(handles, names, loc="outside upper left", ncols=2, fontsize=8, labelcolor=palette.soft)
        _bars(axes, palette, rows, [who for who, _ in by_teacher or [every]], len(predictions.ids))
        axes.invert_yaxis()

    height = 1.35 + 0.22 * len(rows)
    title = "Who is right" if number > _MOST_PATTERNS else "Who is right (markers filled)"
    return picture("agreement", title, _caption(predictions), draw, height=height)


def _markers(axes: Axes, palette: Palette, number: int) -> None:
    """A row for each pattern: a student's marker is filled where it is right."""
    for row, code in enumerate(_codes(number)):
        for index in range(number):
            axes.plot([index], [row], **_mark(palette, index, bool(code >> index & 1)))
    axes.set_xlim(-0.6, number - 0.4)
    axes.set_axis_off()


def _mark(palette: Palette, index: int, right: bool) -> dict[str, Any]:
    colour = palette.student(index)
    look: dict[str, Any] = {"marker": MARKERS[index % len(MARKERS)], "markersize": 6, "linestyle": "none"}
    if right:
        return look | {"markerfacecolor": colour, "markeredgecolor": colour}
    return look | {"markerfacecolor": "none", "markeredgecolor": palette.rule}


def _bars(axes: Axes, palette: Palette, rows: list[Counted], parts: list[str], total: int) -> None:
    """Stacked by what the teacher says, the number at the end."""
    places, left = list(range(len(rows))), np.zeros(len(rows))
    for index, who in enumerate(parts):
        shares = np.array([100 * counts[who] / total for _, counts in rows])
        axes.barh(
            places,
            shares,
            0.72,
            left=left,
            label=who if len(parts) > 1 else "images",
            linewidth=0.0 if index == 0 else 0.6,
            facecolor=palette.fill if index == 0 else "none",
            edgecolor=palette.mark,
            hatch=None if index == 0 else "////",
        )
        left += shares
    for place, (_, counts) in zip(places, rows, strict=True):
        where = (left[place], place)
        text, offset = f"{counts['all']:,}", (4, 0)
        axes.annotate(text, where, offset, textcoords="offset points", va="center", fontsize=8, color=palette.soft)
    axes.grid(False)
    axes.grid(True, axis="x")
    axes.set_xlim(0, 1.15 * max(1.0, float(left.max())))
    axes.set_xlabel("validation images, % (number)")
    if len(parts) > 1:
        above = (-0.02, 1)
        axes.legend(loc="lower left", bbox_to_anchor=above, ncols=2, borderaxespad=0, fontsize=8, labelcolor=palette.soft)


def right_patterns(predictions: Predictions) -> list[Counted]:
    """Rows in words, the most students first, each with its number of images by side (see `sides`)."""
    right = np.stack([answers.correct(predictions.labels) for answers in predictions.students])
    number = len(right)
    counted = {who: patterns(right, among) for who, among in sides(predictions)} if number <= _MOST_PATTERNS else {}
    if not counted:
        hits = right.sum(axis=0)
        tallies = {who: np.bincount(hits[among], minlength=number + 1) for who, among in sides(predictions)}
        return [(f"{k} of {number} right", {who: int(t[k]) for who, t in tallies.items()}) for k in range(number, -1, -1)]
    return [
        (_pattern(predictions.names, code), {who: int(tally[code]) for who, tally in counted.items()})
        for code in _codes(number)
    ]


def _codes(number: int) -> list[int]:
    """Patterns of so many students, the most right first: bit s is student s."""
    return sorted(range(1 << number), key=lambda code: (-code.bit_count(), code))


def _pattern(names: Sequence[str], code: int) -> str:
    right = [short(name, 14) for index, name in enumerate(names) if code >> index & 1]
    if len(right) in (0, len(names)):
        return "all right" if right else "all wrong"
    if len(right) == len(names) - 1 > 1:
        return f"all but {next(short(name, 14) for index, name in enumerate(names) if not code >> index & 1)}"
    return f"only {listed(right)}"


def _caption(predictions: Predictions) -> str:
    right = np.stack([answers.correct(predictions.labels) for answers in predictions.students])
    some, best = 100 * float(right.any(axis=0).mean()), 100 * float(right.mean(axis=1).max())
    average = 100 * float(predictions.average.correct(predictions.labels).mean())
    who = "At least one student" if len(right) > 2 else "One student or the other"
    told = f"{who} is right for {percent(some, 1)} of {count(len(predictions.ids), 'validation image')}: "
    told += f"the best alone for {percent(best, 1)}, their average for {percent(average, 1)}"
    if predictions.teacher is not None:
        wrong = ~predictions.teacher.correct(predictions.labels)
        rescued = int((right.any(axis=0) & wrong).sum())
        told += f"; of the {count(int(wrong.sum()), 'image')} that the teacher has wrong, a student has {rescued:,} right"
    return told + "."


def _classes(inputs: ReportInputs, predictions: Predictions, first: int, second: int) -> Picture:
    ahead, behind = predictions.names[first], predictions.names[second]
    rights = [predictions.students[index].correct(predictions.labels) for index in (first, second)]
    gains = class_gains.class_gains(rights[0], rights[1], predictions.labels, predictions.num_classes)
    name, title = f"classes-{first}-{second}", f"By class: ← {short(behind, 18)} ahead · {short(ahead, 18)} ahead →"
    return class_gains.chart(name, title, gains, inputs.class_names, ahead, behind, (first, second))


def _table(predictions: Predictions, pairs: list[tuple[int, int]]) -> Table:
    rows, told = [], ""
    for first, second in pairs:
        names = f"{predictions.names[first]} / {predictions.names[second]}"
        for who, among in sides(predictions):
            pair = pair_of(predictions, first, second, among)
            label = who if len(pairs) == 1 else f"{names}, {who}"
            rows.append(Row(label=label, cells=_cells(pair)))
        told = told or _parting(predictions, first, second)
    heads = (
        [f"only {short(predictions.names[index], 18)}" for index in pairs[0]] if len(pairs) == 1 else ["only 1st", "only 2nd"]
    )
    return Table(
        name="pairs",
        title="Pairs of students, validation images",
        head=("", "both right", *heads, "both wrong", "same guess", "1st wins, %"),
        rows=rows,
        caption=told,
        notes=(
            "“Same guess”: both name one wrong class. “1st wins”: how often the first is right where exactly one is, with the "
            "95 % interval of a share (Wilson).",
        ),
    )


def _cells(pair: Pair) -> tuple[str, ...]:
    parted = pair.first + pair.second
    low, high = wilson(pair.first, parted)
    share = f"{100 * pair.first / parted:.0f} [{100 * low:.0f}, {100 * high:.0f}]" if parted else "–"
    return (*(f"{number:,}" for number in (pair.both, pair.first, pair.second, pair.neither, pair.same)), share)


def _parting(predictions: Predictions, first: int, second: int) -> str:
    """Who is right where exactly one is, in words."""
    pair = pair_of(predictions, first, second, np.ones(len(predictions.ids), np.bool_))
    a, b = predictions.names[first], predictions.names[second]
    parted = pair.first + pair.second
    if not parted:
        return f"{a} and {b} are right and wrong on the same images."
    low, high = wilson(pair.first, parted)
    lead = f"{a} is ahead" if low > 0.5 else f"{b} is ahead" if high < 0.5 else "neither is clearly ahead"
    told = f"{a} on {pair.first:,}, {b} on {pair.second:,}; {lead}"
    return f"Exactly one of {a} and {b} is right on {count(parted, 'image')}: {told}."


def _images(inputs: ReportInputs, predictions: Predictions) -> list[Block]:
    """For each of the first two students the images that it has right and the other wrong, the surest first."""
    blocks: list[Block] = []
    for own, other in ((0, 1), (1, 0)):
        winner, loser = (predictions.students[index] for index in (own, other))
        name, against = predictions.names[own], predictions.names[other]
        won = np.flatnonzero(winner.correct(predictions.labels) & ~loser.correct(predictions.labels))
        if not len(won):
            blocks.append(Note(text=f"No image is right for {name} and wrong for {against}."))
            continue
        rows = won[np.lexsort((predictions.ids[won], -winner.confidence[won]))][:_IMAGES_EACH]
        caption = f"Of {count(len(won), 'image')} that {name} has right and {against} wrong, those of which {name} is surest."
        asked = [(short(name, 22), winner), (short(against, 22), loser)]
        title = f"Only {name} is right"
        blocks.append(gallery.versus(f"disagreement-{own}", title, caption, rows, predictions, asked, inputs))
    return blocks
