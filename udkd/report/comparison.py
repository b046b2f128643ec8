"""This run against a baseline run, image by image."""

from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from udkd.report import class_gains, gallery
from udkd.report.analysis.gain import Gain, gain
from udkd.report.analysis.groups import tenths
from udkd.report.classifiers import dodge, legend
from udkd.report.inputs import Baseline, ReportInputs
from udkd.report.page import Block, Facts, Note, PageSection, Plot, Plots, Row, Table
from udkd.report.style import MARKERS, NUM_STUDENT_COLOURS, Palette, plot
from udkd.report.text import comma_list, count, interval, sentence, short_name, signed
from udkd.training.predictions import Predictions, TeacherPredictions, TopPredictions
from udkd.training.run_folder import flatten
from udkd.utils.statistics import LEVEL

_MAX_STUDENTS = 3
_MAX_IMAGES = 12


@dataclass(frozen=True, kw_only=True, eq=False)
class Match:
    """A student and its counterpart in the baseline. index: the student's number; -1 for the average."""

    index: int
    name: str
    against: str
    predictions: TopPredictions
    baseline: TopPredictions


def matches(inputs: ReportInputs, predictions: Predictions, baseline: Baseline) -> list[Match]:
    """Pairs of students of equal architecture, preferably of equal name, else each run's only student; last, the averages."""
    architectures = [student.architecture for student in inputs.recipe.students]
    unmatched = list(range(len(baseline.student_names)))
    counterparts: dict[int, int] = {}
    for same_name in (True, False):
        for index, name in enumerate(predictions.names):
            if index in counterparts:
                continue
            candidates = [other for other in unmatched if baseline.architectures[other] == architectures[index]]
            candidates = [other for other in candidates if not same_name or baseline.student_names[other] == name]
            if candidates:
                counterparts[index] = candidates[0]
                unmatched.remove(candidates[0])
    if not counterparts and len(architectures) == len(baseline.student_names) == 1:
        counterparts = {0: 0}
    names = [
        f"{name} of {source}" if baseline.parts else name
        for name, source in zip(baseline.student_names, baseline.sources or baseline.student_names, strict=True)
    ]
    matched = [
        Match(
            index=index,
            name=predictions.names[index],
            against=names[other],
            predictions=predictions.students[index],
            baseline=baseline.predictions.students[other],
        )
        for index, other in sorted(counterparts.items())
    ]
    if matched and len(architectures) > 1 and len(baseline.student_names) > 1 and not baseline.parts:
        average = (predictions.average, baseline.predictions.average)
        matched.append(Match(index=-1, name="averaged", against="averaged", predictions=average[0], baseline=average[1]))
    return matched


def section(inputs: ReportInputs) -> PageSection | None:
    """Gains and losses; None where no baseline was named."""
    predictions, baseline = inputs.predictions, inputs.baseline
    if predictions is None or baseline is None:
        return None
    matched = matches(inputs, predictions, baseline)
    title = f"Against the baseline{'s' if baseline.parts else ''} {baseline.name}"
    if not matched:
        text = (
            f"No student of this run ({comma_list(list(predictions.names))}) has a counterpart of its architecture in "
            f"{baseline.name} ({comma_list(list(baseline.student_names))})."
        )
        return PageSection(anchor="baseline", title=title, blocks=[Note(text=text, missing=True)])
    students = [match for match in matched if match.index >= 0][:_MAX_STUDENTS]
    plots: list[Plot] = []
    targets = predictions.val_targets or baseline.predictions.val_targets
    if targets is not None:
        plots.append(_by_tenths(targets, matched))
    plots += [_classes(inputs, predictions, match) for match in students]
    blocks: list[Block] = [Plots(plots=plots), _table(predictions, matched, baseline)]
    if targets is None:
        blocks.append(
            Note(text="There are no teacher predictions for the validation images, hence no gains by weight.", missing=True)
        )
    blocks += [_failures(inputs, predictions, baseline, match) for match in students]
    blocks += [_differences(inputs, part) for part in baseline.parts or (baseline,)]
    blocks += [Note(text=_note(predictions))]
    return PageSection(anchor="baseline", title=title, blocks=blocks)


def overall_gain(predictions: Predictions, match: Match) -> Gain:
    """The gain over all validation images."""
    return gain(match.predictions.correct(predictions.labels), match.baseline.correct(predictions.labels))


def gain_text(predictions: Predictions, match: Match) -> str:
    """A match's gain as text, such as `resnet18 +1.2 [−0.3, +2.7] points: no clear difference`."""
    total = overall_gain(predictions, match)
    return f"{match.name} {signed(total.points)} {interval(total.low, total.high)} points: {total.verdict}"


def lead(inputs: ReportInputs) -> str:
    """The comparison in a sentence; empty without a baseline."""
    predictions, baseline = inputs.predictions, inputs.baseline
    if predictions is None or baseline is None:
        return ""
    gains = [gain_text(predictions, match) for match in matches(inputs, predictions, baseline)]
    return sentence(f"against {baseline.name}: {'; '.join(gains)}") if gains else ""


def gains_by_tenths(targets: TeacherPredictions, match: Match) -> list[Gain]:
    """The gain in groups of equal size, the lowest weight first."""
    correct, baseline = match.predictions.correct(targets.labels), match.baseline.correct(targets.labels)
    return [gain(correct[rows], baseline[rows]) for rows in tenths(targets.entropy, targets.ids)]


def failures(predictions: Predictions, match: Match) -> NDArray[np.int64]:
    """Rows where the student is incorrect and the baseline correct, the student's most confident first, int64."""
    correct, baseline = match.predictions.correct(predictions.labels), match.baseline.correct(predictions.labels)
    rows = np.flatnonzero(~correct & baseline)
    return rows[np.lexsort((predictions.ids[rows], -match.predictions.confidence[rows]))]


def _table(predictions: Predictions, matched: list[Match], baseline: Baseline) -> Table:
    rows = []
    for match in matched:
        total = overall_gain(predictions, match)
        cells = (
            f"{100 * match.baseline.correct(predictions.labels).mean():.2f}",
            f"{100 * match.predictions.correct(predictions.labels).mean():.2f}",
            signed(total.points, 2),
            interval(total.low, total.high),
            f"{total.gained:,}",
            f"{total.lost:,}",
            total.verdict,
        )
        against = "" if match.against == match.name else f"against {match.against}"
        hue = "ink" if match.index < 0 else f"s{match.index % NUM_STUDENT_COLOURS}"
        rows.append(Row(label=match.name, detail=against, cells=cells, hue=hue, key=True))
    left = [name for name in predictions.names if name not in {match.name for match in matched}]
    more = f" Without a counterpart in the baseline: {comma_list(left)}." if left else ""
    return Table(
        name="gains",
        title=f"Top-1, %, on {count(len(predictions.ids), 'validation image')}",
        head=("", "baseline", "this run", "gain", "95 % interval", "only this correct", "only baseline correct", "verdict"),
        rows=rows,
        caption=f"{_verdicts(predictions, matched)}{more}",
        stacked=True,
    )


def _verdicts(predictions: Predictions, matched: list[Match]) -> str:
    """The students by verdict, such as `Improves: a and b. No clear difference: c.`"""
    by_verdict: dict[str, list[str]] = {}
    for match in matched:
        by_verdict.setdefault(overall_gain(predictions, match).verdict, []).append(match.name)
    return " ".join(sentence(f"{verdict}: {comma_list(names)}") for verdict, names in by_verdict.items())


def _by_tenths(targets: TeacherPredictions, matched: list[Match]) -> Plot:
    lines = [(match, gains_by_tenths(targets, match)) for match in matched]
    groups = len(lines[0][1])

    def ends_text(match: Match, gains: list[Gain]) -> str:
        return f"{match.name} {signed(gains[0].points)} {interval(gains[0].low, gains[0].high)}" + (
            f" and {signed(gains[-1].points)} {interval(gains[-1].low, gains[-1].high)}" if groups > 1 else ""
        )

    ends = "; ".join(ends_text(match, gains) for match, gains in lines if match.index >= 0 or len(lines) == 1)
    number = len(lines) * groups
    clear = sum(one.verdict != "no clear difference" for _, gains in lines for one in gains)
    caption = (
        f"Points gained where the teacher is least sure, and where it is surest: {ends}. "
        f"{clear} of {number} intervals exclude 0; chance alone gives up to {(1 - LEVEL) * number:.2g}."
    )

    def draw(figure: Figure, palette: Palette) -> None:
        axes = figure.subplots()
        axes.axhline(0, color=palette.soft, linewidth=1)
        for rank, (match, gains) in enumerate(lines):
            colour = palette.ink if match.index < 0 else palette.student(match.index)
            xs = [dodge(x, rank, len(lines), 0.4) for x in range(1, groups + 1)]
            axes.vlines(xs, [g.low for g in gains], [g.high for g in gains], color=colour, linewidth=1, alpha=0.6)
            marker = "*" if match.index < 0 else MARKERS[match.index % len(MARKERS)]
            points = [one.points for one in gains]
            axes.plot(xs, points, color=colour, marker=marker, markersize=5, linestyle="none", label=short_name(match.name, 18))
        axes.set_xticks(range(1, groups + 1))
        axes.set_xlabel("tenths of the validation images, the lowest weight first")
        axes.set_ylabel("gain, percentage points")
        legend(axes, palette, len(lines))

    return plot("gain-by-weight", "Gain by the teacher’s weight", caption, draw, height=3.0)


def _classes(inputs: ReportInputs, predictions: Predictions, match: Match) -> Plot:
    correct, baseline = match.predictions.correct(predictions.labels), match.baseline.correct(predictions.labels)
    gains = class_gains.class_gains(correct, baseline, predictions.labels, predictions.num_classes)
    name, title = f"gain-classes-{match.index}", f"By class, {short_name(match.name, 20)}: ← lost · gained →"
    return class_gains.chart(name, title, gains, inputs.class_names, "This run", "the baseline", (match.index, None))


def _failures(inputs: ReportInputs, predictions: Predictions, baseline: Baseline, match: Match) -> Block:
    rows = failures(predictions, match)
    if not len(rows):
        return Note(text=f"There is no image on which {match.name} is wrong and the baseline correct.")
    total, shown = overall_gain(predictions, match), rows[:_MAX_IMAGES]
    selection = f"the {len(shown)} of highest confidence" if len(shown) < len(rows) else "all of them"
    other = match.against if baseline.parts else baseline.name
    caption = (
        f"{match.name} is wrong and {other} correct on {count(total.lost, 'image')}, of which {selection} are shown; "
        f"the opposite holds on {total.gained:,}."
    )
    compared = [("this run", match.predictions), ("baseline", match.baseline)]
    title = f"Failures: {match.name} wrong, the baseline correct"
    return gallery.versus(f"failures-{match.index}", title, caption, shown, predictions, compared, inputs)


def _differences(inputs: ReportInputs, baseline: Baseline) -> Facts:
    """The settings in which the recipes differ."""
    values, others = flatten(inputs.recipe.to_dict()), flatten(dict(baseline.config))
    keys = [key for key in sorted(values.keys() | others.keys()) if values.get(key) != others.get(key)]
    facts = [
        (key, f"{values.get(key, 'absent')} (baseline: {others.get(key, 'absent')})")
        for key in keys
        if not key.startswith("data.")
    ]
    return Facts(title=f"Differences from the recipe of {baseline.name}", facts=facts or [("recipes", "the same")])


def _note(predictions: Predictions) -> str:
    return (
        "Intervals: 95 %, paired by image; the union of the bootstrap’s (2,000 resamples, seed 0) and Bonett and Price’s. A "
        "verdict needs the interval to exclude 0. They cover the sampling of these "
        f"{count(len(predictions.ids), 'image')}, not the variation between seeds, which two runs cannot show."
    )
