"""Whether confidence equals accuracy: reliability diagrams and the expected calibration error."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from udkd.report.analysis.calibration import (
    BINS,
    ECE_RESAMPLES,
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
from udkd.report.page import Block, Note, PageSection, Plot, Plots, Row, Table
from udkd.report.style import Palette, plot
from udkd.report.text import count, percent, signed
from udkd.training.predictions import Predictions


def section(inputs: ReportInputs) -> PageSection | None:
    """Diagrams and a table; None without predictions."""
    predictions = inputs.predictions
    if predictions is None:
        return None
    compared = classifiers(predictions)
    note = (
        f"ECE: the mean distance between confidence and accuracy over {BINS} bins of equal width (Guo et al. 2017); adaptive: "
        f"over {BINS} bins of equal counts. With few images even a perfectly calibrated network has a positive ECE: “by "
        "chance” is its mean at these confidences. Whiskers: 95 % intervals (Wilson). Confidence: the top-1 probability. The "
        f"ECE’s 95 % interval: the bootstrap over images ({ECE_RESAMPLES:,} resamples, seed 0), biased upward like the ECE "
        "itself."
    )
    blocks: list[Block] = [
        Plots(plots=[_diagram(predictions, classifier) for classifier in compared]),
        _table(predictions, compared),
        Note(text=note),
    ]
    return PageSection(anchor="calibration", title="Calibration: is it correct as often as it claims?", blocks=blocks)


def _diagram(predictions: Predictions, classifier: Classifier) -> Plot:
    confidence, correct = classifier.predictions.confidence, classifier.predictions.correct(predictions.labels)
    bins, gap = reliability(confidence, correct), _gap(predictions, classifier)
    bias = f"{abs(gap):.1f} points too {'confident' if gap > 0 else 'cautious'}"
    chance = calibration_error_by_chance(confidence)
    claimed, accuracy = percent(100 * float(confidence.mean()), 1), percent(100 * float(correct.mean()), 1)
    caption = (
        f"Mean confidence {claimed}, accuracy {accuracy} on {count(len(correct), 'validation image')}: {bias}. ECE "
        f"{percent(100 * bins.error, 1)}; a perfectly calibrated network has {percent(100 * chance, 1)} by chance."
    )

    def draw(figure: Figure, palette: Palette) -> None:
        _draw(figure.subplots(), palette, classifier, bins)

    name = "averaged" if classifier.kind == "average" else classifier.name
    return plot(_figure(classifier), f"Reliability: {name}", caption, draw, height=2.9)


def _figure(classifier: Classifier) -> str:
    return f"reliability-{classifier.index}" if classifier.kind == "student" else f"reliability-{classifier.kind}"


def _draw(axes: Axes, palette: Palette, classifier: Classifier, bins: Reliability) -> None:
    """Accuracy over confidence with its intervals; below, a histogram of the confidence."""
    filled = np.flatnonzero(bins.count)
    centres = (np.arange(BINS) + 0.5) / BINS * 100
    axes.bar(centres, 22 * bins.count / bins.count.max(), 0.86 * 100 / BINS, color=palette.fill)
    axes.plot([0, 100], [0, 100], color=palette.soft, linewidth=1, linestyle=(0, (2, 2)))
    limits = [wilson(int(bins.correct[m]), int(bins.count[m])) for m in filled]
    confidence, accuracy = 100 * bins.confidence[filled], 100 * bins.accuracy[filled]
    colour = classifier.colour(palette)
    axes.vlines(
        confidence, [100 * low for low, _ in limits], [100 * high for _, high in limits], color=colour, linewidth=1, alpha=0.6
    )
    axes.plot(confidence, accuracy, color=colour, marker=classifier.marker, markersize=4.5, linewidth=1.5, clip_on=False)
    axes.set_xlim(0, 100)
    axes.set_ylim(0, 103)
    axes.set_xticks(range(0, 101, 20))
    axes.set_yticks(range(0, 101, 20))
    axes.set_xlabel("confidence, % (grey: number of images)")
    axes.set_ylabel("accuracy, %")


def _gap(predictions: Predictions, classifier: Classifier) -> float:
    """Mean confidence minus accuracy, percentage points."""
    return 100 * float(classifier.predictions.confidence.mean() - classifier.predictions.correct(predictions.labels).mean())


def _table(predictions: Predictions, compared: list[Classifier]) -> Table:
    rows = []
    for classifier in compared:
        confidence, correct = classifier.predictions.confidence, classifier.predictions.correct(predictions.labels)
        low, high = calibration_error_interval(confidence, correct)
        cells = (
            f"{100 * correct.mean():.1f}",
            f"{100 * confidence.mean():.1f}",
            signed(_gap(predictions, classifier)),
            f"{100 * calibration_error(confidence, correct):.1f}",
            f"[{100 * low:.1f}, {100 * high:.1f}]",
            f"{100 * adaptive_calibration_error(confidence, correct):.1f}",
            f"{100 * calibration_error_by_chance(confidence):.1f}",
            f"{classifier.predictions.loss:.3f}",
        )
        rows.append(Row(label=classifier.name, cells=cells, hue=classifier.hue, key=True))
    best = min(
        compared,
        key=lambda each: calibration_error(each.predictions.confidence, each.predictions.correct(predictions.labels)),
    )
    return Table(
        name="calibration-table",
        title="Calibration, %",
        head=("", "accuracy", "confidence", "difference", "ECE", "95 % interval", "adaptive", "by chance", "loss, nats"),
        rows=rows,
        caption=f"The smallest ECE is that of {best.name}. A positive difference: overconfident.",
    )
