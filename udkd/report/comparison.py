"""This run against a baseline run, image by image."""

from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from udkd.report import class_gains, gallery
from udkd.report.analysis.gain import Gain, gain
from udkd.report.analysis.groups import tenths
from udkd.report.analysis.intervals import LEVEL
from udkd.report.classifiers import dodge, legend
from udkd.report.inputs import Baseline, ReportInputs
from udkd.report.page import Block, Facts, Note, Picture, Pictures, Row, Section, Table
from udkd.report.style import MARKERS, Palette, picture
from udkd.report.text import bounds, count, listed, sentence, short, signed
from udkd.training.predictions import Predictions, TeacherPredictions, TopPredictions
from udkd.training.run_folder import flatten

_MOST = 3
_IMAGES = 12


@dataclass(frozen=True, kw_only=True, eq=False)
class Match:
    """A student, and whom of the baseline it is held against. index: a student's number; -1 for the average."""

    index: int
    name: str
    against: str
    own: TopPredictions
    other: TopPredictions


def matches(inputs: ReportInputs, predictions: Predictions, baseline: Baseline) -> list[Match]:
    """Students of one architecture, those of one name first; failing that the only students of both runs. Then the averages."""
    own = [student.architecture for student in inputs.recipe.students]
    free = list(range(len(baseline.student_names)))
    found: dict[int, int] = {}
    for same_name in (True, False):
        for index, name in enumerate(predictions.names):
            if index in found:
                continue
            fits = [at for at in free if baseline.architectures[at] == own[index]]
            fits = [at for at in fits if baseline.student_names[at] == name] if same_name else fits
            if fits:
                found[index] = fits[0]
                free.remove(fits[0])
    if not found and len(own) == len(baseline.student_names) == 1:
        found = {0: 0}
    matched = [
        Match(
            index=index,
            name=predictions.names[index],
            against=f"{baseline.student_names[at]} of {baseline.sources[at]}" if baseline.parts else baseline.student_names[at],
            own=predictions.students[index],
            other=baseline.predictions.students[at],
        )
        for index, at in sorted(found.items())
    ]
    if matched and len(own) > 1 and len(baseline.student_names) > 1 and not baseline.parts:
        average = (predictions.average, baseline.predictions.average)
        matched.append(Match(index=-1, name="averaged", against="averaged", own=average[0], other=average[1]))
    return matched


def section(inputs: ReportInputs) -> Section | None:
    """Gains and losses; None where no baseline was named."""
    predictions, baseline = inputs.predictions, inputs.baseline
    if predictions is None or baseline is None:
        return None
    matched = matches(inputs, predictions, baseline)
    title = f"Against the baseline{'s' if baseline.parts else ''} {baseline.name}"
    if not matched:
        text = (
            f"No student of this run ({listed(list(predictions.names))}) has a counterpart of its architecture in "
            f"{baseline.name} ({listed(list(baseline.student_names))})."
        )
        return Section(anchor="baseline", title=title, blocks=[Note(text=text, missing=True)])
    students = [match for match in matched if match.index >= 0][:_MOST]
    pictures: list[Picture] = []
    targets = predictions.val_targets or baseline.predictions.val_targets
    if targets is not None:
        pictures.append(_by_tenths(targets, matched))
    pictures += [_classes(inputs, predictions, match) for match in students]
    blocks: list[Block] = [Pictures(pictures=pictures), _table(predictions, matched, baseline)]
    if targets is None:
        blocks.append(
            Note(text="No teacher was asked about the validation images: there are no tenths by weight.", missing=True)
        )
    blocks += [_failures(inputs, predictions, baseline, match) for match in students]
    blocks += [_differences(inputs, part) for part in baseline.parts or (baseline,)]
    blocks += [Note(text=_note(predictions))]
    return Section(anchor="baseline", title=title, blocks=blocks)


def overall(predictions: Predictions, match: Match) -> Gain:
    """Over all validation images."""
    return gain(match.own.correct(predictions.labels), match.other.correct(predictions.labels))


def in_words(predictions: Predictions, match: Match) -> str:
    """`resnet18 +1.2 [−0.3, +2.7] points: no clear difference`."""
    found = overall(predictions, match)
    return f"{match.name} {signed(found.points)} {bounds(found.low, found.high)} points: {found.verdict}"


def lead(inputs: ReportInputs) -> str:
    """The comparison in a sentence, or nothing."""
    predictions, baseline = inputs.predictions, inputs.baseline
    if predictions is None or baseline is None:
        return ""
    told = [in_words(predictions, match) for match in matches(inputs, predictions, baseline)]
    return sentence(f"against {baseline.name}: {'; '.join(told)}") if told else ""


def gains_by_tenths(targets: TeacherPredictions, match: Match) -> list[Gain]:
    """The paired difference in groups of equal size, the lowest weight first."""
    own, other = match.own.correct(targets.labels), match.other.correct(targets.labels)
    return [gain(own[rows], other[rows]) for rows in tenths(targets.entropy, targets.ids)]


def failures(predictions: Predictions, match: Match) -> NDArray[np.int64]:
    """Rows that the student has wrong and the baseline right, those of which the student is surest first, int64."""
    own, other = match.own.correct(predictions.labels), match.other.correct(predictions.labels)
    rows = np.flatnonzero(~own & other)
    return rows[np.lexsort((predictions.ids[rows], -match.own.confidence[rows]))]


def _table(predictions: Predictions, matched: list[Match], baseline: Baseline) -> Table:
    rows = []
    for match in matched:
        found = overall(predictions, match)
        cells = (
            f"{100 * match.other.correct(predictions.labels).mean():.2f}",
            f"{100 * match.own.correct(predictions.labels).mean():.2f}",
            signed(found.points, 2),
            bounds(found.low, found.high),
            f"{found.gained:,}",
            f"{found.lost:,}",
            found.verdict,
        )
        against = "" if match.against == match.name else f"against {match.against}"
        hue = "ink" if match.index < 0 else f"s{match.index % 6}"
        rows.append(Row(label=match.name, detail=against, cells=cells, hue=hue, key=True))
    left = [name for name in predictions.names if name not in {match.name for match in matched}]
    more = f" Without a counterpart there: {listed(left)}." if left else ""
    return Table(
        name="gains",
        title=f"Top-1, %, on {count(len(predictions.ids), 'validation image')}",
        head=("", "baseline", "this run", "gain", "95 % interval", "only this right", "only baseline right", "verdict"),
        rows=rows,
        caption=f"{_verdicts(predictions, matched)}{more}",
        stacked=True,
    )


def _verdicts(predictions: Predictions, matched: list[Match]) -> str:
    """`Improves: a and b. No clear difference: c.`"""
    found: dict[str, list[str]] = {}
    for match in matched:
        found.setdefault(overall(predictions, match).verdict, []).append(match.name)
    return " ".join(sentence(f"{verdict}: {listed(names)}") for verdict, names in found.items())


def _by_tenths(targets: TeacherPredictions, matched: list[Match]) -> Picture:
    lines = [(match, gains_by_tenths(targets, match)) for match in matched]
    groups = len(lines[0][1])

    def told(match: Match, gains: list[Gain]) -> str:
        return f"{match.name} {signed(gains[0].points)} {bounds(gains[0].low, gains[0].high)}" + (
            f" and {signed(gains[-1].points)} {bounds(gains[-1].low, gains[-1].high)}" if groups > 1 else ""
        )

    ends = "; ".join(told(match, gains) for match, gains in lines if match.index >= 0 or len(lines) == 1)
    made = len(lines) * groups
    clear = sum(found.verdict != "no clear difference" for _, gains in lines for found in gains)
    caption = (
        f"Points gained where the teacher is least sure, and where it is surest: {ends}. "
        f"{clear} of {made} intervals keep clear of 0; chance alone gives up to {(1 - LEVEL) * made:.2g}."
    )

    def draw(figure: Figure, palette: Palette) -> None:
        axes = figure.subplots()
        axes.axhline(0, color=palette.soft, linewidth=1)
        for rank, (match, gains) in enumerate(lines):
            colour = palette.ink if match.index < 0 else palette.student(match.index)
            places = [dodge(place, rank, len(lines), 0.4) for place in range(1, groups + 1)]
            axes.vlines(places, [g.low for g in gains], [g.high for g in gains], color=colour, linewidth=1, alpha=0.6)
            marker = "*" if match.index < 0 else MARKERS[match.index % len(MARKERS)]
            points = [found.points for found in gains]
            axes.plot(places, points, color=colour, marker=marker, markersize=5, linestyle="none", label=short(match.name, 18))
        axes.set_xticks(range(1, groups + 1))
        axes.set_xlabel("tenths of the validation images, the lowest weight first")
        axes.set_ylabel("gain, percentage points")
        legend(axes, palette, len(lines))

    return picture("gain-by-weight", "Gain by the teacher’s weight", caption, draw, height=3.0)


def _classes(inputs: ReportInputs, predictions: Predictions, match: Match) -> Picture:
    own, other = match.own.correct(predictions.labels), match.other.correct(predictions.labels)
    gains = class_gains.class_gains(own, other, predictions.labels, predictions.num_classes)
    name, title = f"gain-classes-{match.index}", f"By class, {short(match.name, 20)}: ← lost · gained →"
    return class_gains.chart(name, title, gains, inputs.class_names, "This run", "the baseline", (match.index, None))


def _failures(inputs: ReportInputs, predictions: Predictions, baseline: Baseline, match: Match) -> Block:
    rows = failures(predictions, match)
    if not len(rows):
        return Note(text=f"No image is wrong for {match.name} and right for the baseline.")
    found, shown = overall(predictions, match), rows[:_IMAGES]
    which = f"the {len(shown)} of which it is surest" if len(shown) < len(rows) else "all of them"
    other = match.against if baseline.parts else baseline.name
    caption = (
        f"{match.name} is wrong and {other} right on {count(found.lost, 'image')}, shown are {which}; "
        f"the other way round it is {found.gained:,}."
    )
    asked = [("this run", match.own), ("baseline", match.other)]
    title = f"Failures: {match.name} wrong, the baseline right"
    return gallery.versus(f"failures-{match.index}", title, caption, shown, predictions, asked, inputs)


def _differences(inputs: ReportInputs, baseline: Baseline) -> Facts:
    """What the recipes do not share."""
    own, other = flatten(inputs.recipe.to_dict()), flatten(dict(baseline.config))
    keys = [key for key in sorted(own.keys() | other.keys()) if own.get(key) != other.get(key) and not key.startswith("data.")]
    facts = [(key, f"{own.get(key, 'absent')} (baseline: {other.get(key, 'absent')})") for key in keys]
    return Facts(title=f"What the recipe does not share with that of {baseline.name}", facts=facts or [("recipes", "the same")])


def _note(predictions: Predictions) -> str:
    return (
        "Intervals, 95 %, paired image by image: as wide as the bootstrap’s (2,000 resamples, seed 0) and Bonett and Price’s "
        "together; a verdict asks the whole interval to keep clear of 0. They say how far these "
        f"{count(len(predictions.ids), 'image')} carry; another seed of either run adds its own difference, which two runs "
        "cannot show."
    )
