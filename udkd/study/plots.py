"""A study's plots: differences with their intervals, every run as a dot, and accuracy by epoch."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from udkd.report.page import Plot
from udkd.report.style import MARKERS, NUM_STUDENT_COLOURS, Palette, plot
from udkd.report.text import comma_list, count, signed
from udkd.study.results import Comparison, RunResult, Summary
from udkd.study.tables import main_comparisons
from udkd.utils.statistics import CLAIMS, LEVEL, MIN_RUNS

_ROW_INCHES, _FRAME_INCHES = 0.3, 0.75


@dataclass(frozen=True, kw_only=True)
class StudyPlots:
    """One plot of each kind per learner."""

    differences: list[Plot]
    accuracies: list[Plot]
    curves: list[Plot]


def differences(name: str, learner: str, comparisons: Sequence[Comparison]) -> Plot:
    """One learner's mean differences; thick lines: the bootstrap's intervals, thin lines: Student's."""

    def draw(figure: Figure, palette: Palette) -> None:
        axes = figure.add_subplot()
        axes.grid(True, axis="x")
        axes.grid(False, axis="y")
        axes.axvline(0, color=palette.soft, linewidth=1)
        for y, comparison in enumerate(comparisons):
            difference = comparison.difference
            clear = difference.verdict in CLAIMS
            colour = palette.student(0) if clear else palette.soft
            if difference.student_t and difference.bootstrap:
                axes.plot(difference.student_t, (y, y), color=colour, linewidth=1)
                axes.plot(difference.bootstrap, (y, y), color=colour, linewidth=4, solid_capstyle="butt")
            axes.plot(difference.spread.mean, y, marker="o" if clear else "s", color=colour, markersize=6)
        _name_rows(axes, [comparison.arm for comparison in comparisons])
        axes.set_xlabel("difference of top-1, percentage points")

    clear = [comparison for comparison in comparisons if comparison.difference.verdict in CLAIMS]
    enough = any(comparison.difference.verdict != "too few runs" for comparison in comparisons)
    against = comma_list(list(dict.fromkeys(comparison.against for comparison in comparisons)))
    gains = [f"{comparison.arm} {signed(comparison.difference.spread.mean, 2)}" for comparison in clear]
    verdict = f"Clear: {comma_list(gains)}." if gains else "No difference is clear."
    caption = f"{verdict} Last epoch, against “{against}”; thick: the bootstrap’s {LEVEL:.0%} interval, thin: Student’s."
    if not enough:
        caption = f"Fewer than {MIN_RUNS} seeds: too few for a verdict. Last epoch, against “{against}”."
    return plot(name, f"{learner}: difference", caption, draw, height=_height(len(comparisons)))


def accuracies(name: str, learner: str, arms: Sequence[str], runs: Sequence[RunResult]) -> Plot:
    """Every run of one learner as a dot, and each arm's mean as a line."""
    values = {arm: [outcome.last for run in runs if run.arm == arm and (outcome := run.outcome(learner))] for arm in arms}

    def draw(figure: Figure, palette: Palette) -> None:
        axes = figure.add_subplot()
        axes.grid(True, axis="x")
        axes.grid(False, axis="y")
        for y, top1s in enumerate(values.values()):
            axes.plot(top1s, [y] * len(top1s), linestyle="none", marker="o", markersize=5, color=palette.student(0), alpha=0.6)
            axes.plot([fmean(top1s)] * 2, (y - 0.28, y + 0.28), color=palette.ink, linewidth=2)
        _name_rows(axes, list(values))
        axes.set_xlabel("top-1 of the last epoch, %")

    highest = max(fmean(top1s) for top1s in values.values())
    best = [f"“{arm}”" for arm, top1s in values.items() if math.isclose(fmean(top1s), highest)]
    best_arms = comma_list(best) if len(best) < 4 else f"{len(best)} arms"
    caption = f"Each dot is a run, the line their mean; the highest mean, {highest:.1f} %, is that of {best_arms}."
    return plot(name, f"{learner}: every run", caption, draw, height=_height(len(values)))


def curves(name: str, learner: str, arms: Sequence[str], runs: Sequence[RunResult]) -> Plot:
    """One learner's mean validation accuracy by epoch, a line for each arm."""
    lines = {}
    for arm in arms:
        arm_curves = [outcome.curve for run in runs if run.arm == arm and (outcome := run.outcome(learner))]
        by_epoch = zip(*arm_curves, strict=True)
        lines[arm] = [fmean(math.nan if value is None else value for value in values) for values in by_epoch]

    def draw(figure: Figure, palette: Palette) -> None:
        axes = figure.add_subplot()
        for index, (arm, line) in enumerate(lines.items()):
            marker = MARKERS[index % len(MARKERS)]
            style = "-" if index < NUM_STUDENT_COLOURS else "--"
            axes.plot(
                range(1, len(line) + 1),
                line,
                style,
                color=palette.student(index),
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
    return plot(name, f"{learner}: by epoch", caption, draw, height=2.9 + 0.22 * ((len(lines) + 1) // 2))


def all_plots(summary: Summary, arms: Sequence[str], runs: Sequence[RunResult]) -> StudyPlots:
    """The plots of every learner."""
    plots = StudyPlots(differences=[], accuracies=[], curves=[])
    for number, learner in enumerate(dict.fromkeys(arm_summary.learner for arm_summary in summary.arm_summaries), start=1):
        with_learner = [arm for arm in arms if any(run.arm == arm and run.outcome(learner) for run in runs)]
        compared = [each for each in main_comparisons(summary, "last") if each.learner == learner]
        if compared:
            plots.differences.append(differences(f"difference-{number}", learner, compared))
        plots.accuracies.append(accuracies(f"accuracy-{number}", learner, with_learner, runs))
        plots.curves.append(curves(f"curve-{number}", learner, with_learner, runs))
    return plots


def _name_rows(axes: Axes, names: Sequence[str]) -> None:
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.spines["left"].set_visible(False)


def _height(rows: int) -> float:
    return _FRAME_INCHES + _ROW_INCHES * rows
