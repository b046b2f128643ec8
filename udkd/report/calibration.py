"""Is a network right as often as it says: reliability diagrams and expected calibration error."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from udkd.report.analysis.calibration import (
    BINS,
    RESAMPLES,
    Reliability,
    adaptive_calibration_error,
    calibration_error,
    calibration_error_by_chance,
    calibration_error_interval,
    reliability,
)
from udkd.report.analysis.intervals import wilson
from udkd.report.classifiers import Classifier, classifiers
from udkd.report.inputs import ReportInputs
from udkd.report.page import Block, Note, Picture, Pictures, Row, Section, Table
from udkd.report.style import Palette, picture
from udkd.report.text import count, percent, signed
from udkd.training.predictions import Predictions


def section(inputs: ReportInputs) -> Section | None:
    """Diagrams and a table; None without predictions."""
    predictions = inputs.predictions
    if predictions is None:
        return None
    asked = classifiers(predictions)
    note = (
        f"ECE: the mean distance between confidence and accuracy over {BINS} bins of equal width (Guo et al. 2017); adaptive: "
        f"over {BINS} bins of equal counts. Even a perfect network shows some where images are few: “by chance” is what it "
        "would show with these confidences. Whiskers: 95 % intervals (Wilson). Confidence: the first guess’s probability. "
        f"ECE’s interval, 95 %: the bootstrap over images ({RESAMPLES:,} resamples, seed 0), which leans upward as ECE itself."
    )
    blocks: list[Block] = [
        Pictures(pictures=[_diagram(predictions, voice) for voice in asked]),
        _table(predictions, asked),
        Note(text=note),
    ]
    return Section(anchor="calibration", title="Calibration: is it right as often as it says?", blocks=blocks)


def _diagram(predictions: Predictions, voice: Classifier) -> Picture:
    confidence, right = voice.answers.confidence, voice.answers.correct(predictions.labels)
    bins, gap = reliability(confidence, right), _gap(predictions, voice)
    how = f"it claims {abs(gap):.1f} points too {'much' if gap > 0 else 'little'}"
    chance = calibration_error_by_chance(confidence)
    said, was = percent(100 * float(confidence.mean()), 1), percent(100 * float(right.mean()), 1)
    caption = (
        f"It claims {said} on average and is right for {was} of {count(len(right), 'validation image')}: {how}. ECE "
        f"{percent(100 * bins.error, 1)}; a perfect network would show {percent(100 * chance, 1)} by chance."
    )

    def draw(figure: Figure, palette: Palette) -> None:
        _draw(figure.subplots(), palette, voice, bins)

    name = "averaged" if voice.kind == "average" else voice.name
    return picture(_figure(voice), f"Reliability: {name}", caption, draw, height=2.9)


def _figure(voice: Classifier) -> str:
    return f"reliability-{voice.index}" if voice.kind == "student" else f"reliability-{voice.kind}"


def _draw(axes: Axes, palette: Palette, voice: Classifier, bins: Reliability) -> None:
    """Accuracy over confidence with its intervals; below, how many images claim as much."""
    held = np.flatnonzero(bins.count)
    centres = (np.arange(BINS) + 0.5) / BINS * 100
    axes.bar(centres, 22 * bins.count / bins.count.max(), 0.86 * 100 / BINS, color=palette.fill)
    axes.plot([0, 100], [0, 100], color=palette.soft, linewidth=1, linestyle=(0, (2, 2)))
    limits = [wilson(int(bins.right[m]), int(bins.count[m])) for m in held]
    said, was = 100 * bins.confidence[held], 100 * bins.accuracy[held]
    colour = voice.colour(palette)
    axes.vlines(
        said, [100 * low for low, _ in limits], [100 * high for _, high in limits], color=colour, linewidth=1, alpha=0.6
    )
    axes.plot(said, was, color=colour, marker=voice.marker, markersize=4.5, linewidth=1.5, clip_on=False)
    axes.set_xlim(0, 100)
    axes.set_ylim(0, 103)
    axes.set_xticks(range(0, 101, 20))
    axes.set_yticks(range(0, 101, 20))
    axes.set_xlabel("confidence, % (grey: how many images)")
    axes.set_ylabel("right, %")


def _gap(predictions: Predictions, voice: Classifier) -> float:
    """Mean confidence beyond accuracy, percentage points."""
    return 100 * float(voice.answers.confidence.mean() - voice.answers.correct(predictions.labels).mean())


def _table(predictions: Predictions, asked: list[Classifier]) -> Table:
    rows = []
    for voice in asked:
        confidence, right = voice.answers.confidence, voice.answers.correct(predictions.labels)
        low, high = calibration_error_interval(confidence, right)
        cells = (
            f"{100 * right.mean():.1f}",
            f"{100 * confidence.mean():.1f}",
            signed(_gap(predictions, voice)),
            f"{100 * calibration_error(confidence, right):.1f}",
            f"[{100 * low:.1f}, {100 * high:.1f}]",
            f"{100 * adaptive_calibration_error(confidence, right):.1f}",
            f"{100 * calibration_error_by_chance(confidence):.1f}",
            f"{voice.answers.loss:.3f}",
        )
        rows.append(Row(label=voice.name, cells=cells, hue=voice.hue, key=True))
    best = min(asked, key=lambda voice: calibration_error(voice.answers.confidence, voice.answers.correct(predictions.labels)))
    return Table(
        name="calibration-table",
        title="Calibration, %",
        head=("", "right", "confidence", "difference", "ECE", "95 % interval", "adaptive", "by chance", "loss, nats"),
        rows=rows,
        caption=f"The smallest ECE is that of {best.name}. A positive difference: it claims more than what holds.",
    )
