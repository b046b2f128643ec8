"""A study's pictures: differences with their intervals, every run as a dot, and the way there."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from udkd.report.page import Plot
from udkd.report.style import MARKERS, NUM_STUDENT_COLOURS, Palette, plot
from udkd.report.text import comma_list, count
from udkd.study.results import Comparison, RunResult, Summary
from udkd.study.tables import main_comparisons, signed
from udkd.utils.statistics import CLAIMS, LEVEL, MIN_RUNS

_ROW_INCHES, _FRAME_INCHES = 0.3, 0.75


@dataclass(frozen=True, kw_only=True)
class StudyPlots:
    """One picture of each kind for every learner that has it."""

    differences: list[Plot]
    accuracies: list[Plot]
    curves: list[Plot]


def differences(name: str, learner: str, comparisons: Sequence[Comparison]) -> Plot:
    """One learner's mean differences: thick the bootstrap's interval, thin Student's, a dot for each seed's mean."""

    def draw(figure: Figure, palette: Palette) -> None:
        axes = figure.add_subplot()
        axes.grid(True, axis="x")
        axes.grid(False, axis="y")
        axes.axvline(0, color=palette.soft, linewidth=1)
        for place, comparison in enumerate(comparisons):
            own = comparison.difference
            clear = own.verdict in CLAIMS
            colour = palette.student(0) if clear else palette.soft
            if own.student_t and own.bootstrap:
                axes.plot(own.student_t, (place, place), color=colour, linewidth=1)
                axes.plot(own.bootstrap, (place, place), color=colour, linewidth=4, solid_capstyle="butt")
            axes.plot(own.spread.mean, place, marker="o" if clear else "s", color=colour, markersize=6)
        _name_rows(axes, [comparison.arm for comparison in comparisons])
        axes.set_xlabel("difference of top-1, percentage points")

    clear = [comparison for comparison in comparisons if comparison.difference.verdict in CLAIMS]
    enough = any(comparison.difference.verdict != "too few runs" for comparison in comparisons)
    against = comma_list(list(dict.fromkeys(comparison.against for comparison in comparisons)))
    said = [f"{comparison.arm} {signed(comparison.difference.spread.mean)}" for comparison in clear]
    told = f"Clear of 0: {comma_list(said)}." if said else "No difference is clear."
    caption = f"{told} Last epoch, against “{against}”; thick the bootstrap’s {LEVEL:.0%} interval, thin Student’s."
    if not enough:
        caption = f"Fewer than {MIN_RUNS} seeds, which say nothing yet. Last epoch, against “{against}”."
    return plot(name, f"{learner}: difference", caption, draw, height=_height(len(comparisons)))


def accuracies(name: str, learner: str, arms: Sequence[str], runs: Sequence[RunResult]) -> Plot:
    """Every run of one learner as a dot, and each arm's mean as a line."""
    values = {arm: [outcome.last for run in runs if run.arm == arm and (outcome := run.outcome(learner))] for arm in arms}

    def draw(figure: Figure, palette: Palette) -> None:
        axes = figure.add_subplot()
        axes.grid(True, axis="x")
        axes.grid(False, axis="y")
        for place, own in enumerate(values.values()):
            axes.plot(own, [place] * len(own), linestyle="none", marker="o", markersize=5, color=palette.student(0), alpha=0.6)
            axes.plot([fmean(own)] * 2, (place - 0.28, place + 0.28), color=palette.ink, linewidth=2)
        _name_rows(axes, list(values))
        axes.set_xlabel("top-1 of the last epoch, %")

    highest = max(fmean(own) for own in values.values())
    best = [f"“{arm}”" for arm, own in values.items() if math.isclose(fmean(own), highest)]
    whose = f"that of {comma_list(best)}" if len(best) < 4 else f"that of {len(best)} arms"
    caption = f"Each dot is a run, the stroke their mean; the highest mean, {highest:.1f} %, is {whose}."
    return plot(name, f"{learner}: every run", caption, draw, height=_height(len(values)))


def curves(name: str, learner: str, arms: Sequence[str], runs: Sequence[RunResult]) -> Plot:
    """One learner's mean validation accuracy by epoch, a line for each arm."""
    lines = {}
    for arm in arms:
        own = [outcome.curve for run in runs if run.arm == arm and (outcome := run.outcome(learner))]
        lines[arm] = [fmean(math.nan if value is None else value for value in values) for values in zip(*own, strict=True)]

    def draw(figure: Figure, palette: Palette) -> None:
        axes = figure.add_subplot()
        for place, (arm, line) in enumerate(lines.items()):
            marker = MARKERS[place % len(MARKERS)]
            style = "-" if place < NUM_STUDENT_COLOURS else "--"
            axes.plot(
                range(1, len(line) + 1),
                line,
                style,
                color=palette.student(place),
                label=arm,
                linewidth=1.4,
                marker=marker,
                markersize=3.5,
                markevery=max(1, len(line) // 8),
            )
        axes.set_ylim(0, min(100.0, 1.08 * axes.get_ylim()[1]))
        axes.set_xlabel("epoch")
        axes.set_ylabel("top-1, %")
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True, min_n_ticks=1))
        figure.legend(loc="outside lower center", ncols=2)

    epochs = max(len(line) for line in lines.values())
    caption = f"Validation accuracy over {count(epochs, 'epoch')}, the mean of an arm’s runs."
    return plot(name, f"{learner}: the way there", caption, draw, height=2.9 + 0.22 * ((len(lines) + 1) // 2))


def all_plots(summary: Summary, arms: Sequence[str], runs: Sequence[RunResult]) -> StudyPlots:
    """The pictures of every learner."""
    found = StudyPlots(differences=[], accuracies=[], curves=[])
    for place, learner in enumerate(dict.fromkeys(arm_summary.learner for arm_summary in summary.arm_summaries), start=1):
        having = [arm for arm in arms if any(run.arm == arm and run.outcome(learner) for run in runs)]
        compared = [other for other in main_comparisons(summary, "last") if other.learner == learner]
        if compared:
            found.differences.append(differences(f"difference-{place}", learner, compared))
        found.accuracies.append(accuracies(f"accuracy-{place}", learner, having, runs))
        found.curves.append(curves(f"curve-{place}", learner, having, runs))
    return found


def _name_rows(axes: Axes, names: Sequence[str]) -> None:
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.spines["left"].set_visible(False)


def _height(rows: int) -> float:
    return _FRAME_INCHES + _ROW_INCHES * rows
