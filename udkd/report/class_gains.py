"""Difference in accuracy of two networks, by class."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from udkd.report.analysis.gain import Gain, gain
from udkd.report.analysis.groups import by_class
from udkd.report.page import Plot
from udkd.report.style import Palette, plot
from udkd.report.text import class_name, count, interval, short_name, signed
from udkd.utils.statistics import LEVEL

_MAX_CLASSES, _ENDS = 24, 10


@dataclass(frozen=True, kw_only=True)
class ClassGain:
    """A class and the paired difference on its images."""

    label: int
    gain: Gain


def class_gains(
    correct: NDArray[np.bool_], other: NDArray[np.bool_], labels: NDArray[np.integer], num_classes: int
) -> list[ClassGain]:
    """The gain of `correct` over `other` in every class that has images, the largest first, ties in the order of labels."""
    rows = enumerate(by_class(labels, num_classes))
    gains = [ClassGain(label=label, gain=gain(correct[part], other[part])) for label, part in rows if len(part)]
    return sorted(gains, key=lambda entry: (-entry.gain.points, entry.label))


def chart(
    name: str,
    title: str,
    gains: Sequence[ClassGain],
    names: Sequence[str],
    ahead: str,
    behind: str,
    hues: tuple[int, int | None],
) -> Plot:
    """Bars to the right where `ahead` is more accurate, to the left where `behind` is, with intervals.

    hues: indices of the students whose colours the two take; None is grey.
    """
    cut = len(gains) > _MAX_CLASSES
    shown = [*gains[:_ENDS], *gains[-_ENDS:]] if cut else list(gains)
    rows = [row + (1 if cut and row >= _ENDS else 0) for row in range(len(shown))]  # a gap where classes are left out

    def draw(figure: Figure, palette: Palette) -> None:
        axes = figure.subplots()
        colours = (palette.student(hues[0]), palette.soft if hues[1] is None else palette.student(hues[1]))
        for row, entry in zip(rows, shown, strict=True):
            points = entry.gain.points
            axes.barh(row, points, height=0.66, color=colours[0 if points > 0 else 1], alpha=0.75)
            axes.hlines(row, entry.gain.low, entry.gain.high, color=palette.mark, linewidth=0.9)
        if cut:
            axes.text(0.015, _ENDS, f"… {len(gains) - 2 * _ENDS} more", va="center_baseline", color=palette.soft, fontsize=8)
        axes.axvline(0, color=palette.soft, linewidth=1)
        labels = [f"{short_name(class_name(names, entry.label), 20)} ({entry.gain.samples})" for entry in shown]
        axes.set_yticks(rows, labels)
        axes.invert_yaxis()
        axes.grid(False)
        axes.grid(True, axis="x")
        axes.spines["left"].set_visible(False)
        axes.set_xlabel("difference, percentage points")

    caption = _caption(gains, names, ahead, behind)
    return plot(name, title, caption, draw, height=max(1.8, 0.75 + 0.19 * (rows[-1] + 1)))


def _caption(gains: Sequence[ClassGain], names: Sequence[str], ahead: str, behind: str) -> str:
    up, down = sum(entry.gain.points > 0 for entry in gains), sum(entry.gain.points < 0 for entry in gains)
    clear = sum(entry.gain.verdict != "no clear difference" for entry in gains)
    text = f"{ahead} is more accurate in {count(up, 'class', 'classes')}, {behind} in {down}"
    ends = [gains[0]] if up else []
    ends += [gains[-1]] if down else []
    for entry in ends:
        points = f"{signed(entry.gain.points)} {interval(entry.gain.low, entry.gain.high)}"
        text += f"; {class_name(names, entry.label)} {points}, {count(entry.gain.samples, 'image')}"
    by_chance = (1 - LEVEL) * len(gains)
    return f"{text}. The interval excludes 0 in {clear} of {len(gains)} classes; chance alone gives up to {by_chance:.2g}."
