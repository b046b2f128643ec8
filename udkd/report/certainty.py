"""How sure the teacher is: histograms of weight and entropy, and the mean weight of each class."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from udkd.losses.sample_weight import SampleWeighting
from udkd.report import paper
from udkd.report.analysis.groups import by_class
from udkd.report.inputs import ReportInputs
from udkd.report.page import Block, Facts, Note, Picture, Pictures, Section
from udkd.report.style import Palette, picture
from udkd.report.text import class_name, count, listed, percent, sentence, short
from udkd.training.predictions import TeacherPredictions

SURE = 0.9
_BINS = 25
_MOST_CLASSES, _ENDS = 24, 10


@dataclass(frozen=True, kw_only=True)
class Mark:
    """A vertical line in a histogram and the words beside it, on its left or its right."""

    place: float
    text: str
    colour: str
    left: bool


@dataclass(frozen=True, kw_only=True, eq=False)
class Side:
    """The teacher on one split. suffix: of its figures' names."""

    word: str
    targets: TeacherPredictions
    suffix: str


def section(inputs: ReportInputs) -> Section:
    """Pictures of the teacher's certainty, or a sentence that says why there are none."""
    blocks: list[Block] = []
    sides = _sides(inputs)
    if inputs.targets is None:
        blocks.append(Note(text=sentence(inputs.why_no_targets or "This run has no cached targets"), missing=True))
    if sides:
        pictures = [draw(side) for draw in (_weights, _entropies) for side in sides]
        pictures += [_classes(side, inputs.class_names) for side in sides]
        blocks = [Pictures(pictures=pictures), *blocks, _every_class(sides, inputs.class_names)]
    if inputs.targets is not None:
        blocks += [Note(text=text) for text in _notes(inputs, inputs.targets)]
    return Section(anchor="certainty", title="How sure the teacher is", blocks=blocks)


def class_means(targets: TeacherPredictions) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Classes that have samples, int64 [k], and their mean weight, float64 [k], the surest first."""
    counts = np.bincount(targets.labels, minlength=targets.num_classes)
    sums = np.bincount(targets.labels, weights=targets.weight.astype(np.float64), minlength=targets.num_classes)
    present = np.flatnonzero(counts)
    means = sums[present] / counts[present]
    order = np.argsort(-means, kind="stable")
    return present[order].astype(np.int64), means[order]


def _sides(inputs: ReportInputs) -> list[Side]:
    found = [Side(word="training", targets=inputs.targets, suffix="")] if inputs.targets is not None else []
    val = inputs.predictions.val_targets if inputs.predictions else None
    return found if val is None else [*found, Side(word="validation", targets=val, suffix="-val")]


def mean_weight(targets: TeacherPredictions) -> float:
    return float(targets.weight.astype(np.float64).mean())


def _weights(side: Side) -> Picture:
    targets, right, weight = side.targets, side.targets.correct, side.targets.weight
    mean, sure = mean_weight(targets), weight > SURE
    caption = (
        f"Mean weight {mean:.3f}: the teacher is nearly certain (w > {SURE}) of {percent(100 * float(sure.mean()), 0)} of the "
        f"{side.word} samples. Its first guess is right for {percent(100 * float(right.mean()), 1)} of all"
    )
    caption += f", and for {percent(100 * float(right[sure].mean()), 1)} of those." if sure.any() else "."

    def draw(figure: Figure, palette: Palette) -> None:
        printed = paper.MEAN_WEIGHT
        marks = [
            Mark(place=mean, text=f"mean {mean:.3f}", colour=palette.ink, left=mean > 0.84 or 0.25 < mean < printed),
            Mark(place=printed, text=f"paper {printed}", colour=palette.soft, left=printed < mean),
        ]
        _histogram(figure, palette, side.word, weight, right, 1.0, "weight w = 1 − H / ln C", marks)

    return picture(f"weights{side.suffix}", f"Weights of the teacher’s word, {side.word}", caption, draw)


def _entropies(side: Side) -> Picture:
    targets = side.targets
    mean, most = float(targets.entropy.astype(np.float64).mean()), targets.max_entropy
    caption = (
        f"Mean entropy {mean:.3f} of at most ln {targets.num_classes} = {most:.3f} nats, a share of {mean / most:.3f}; "
        f"half of the samples lie below {float(np.median(targets.entropy)):.3f} nats."
    )

    def draw(figure: Figure, palette: Palette) -> None:
        marks = [Mark(place=mean, text=f"mean {mean:.3f}", colour=palette.ink, left=mean > most / 2)]
        _histogram(figure, palette, side.word, targets.entropy, targets.correct, most, "entropy H, nats", marks)

    return picture(f"entropies{side.suffix}", f"Entropy of the teacher’s word, {side.word}", caption, draw)


def _histogram(
    figure: Figure,
    palette: Palette,
    word: str,
    values: NDArray[np.float32],
    right: NDArray[np.bool_],
    most: float,
    label: str,
    marks: Sequence[Mark],
) -> None:
    """Bars of right first guesses with the wrong ones on top, hatched; vertical lines at `marks`."""
    axes = figure.subplots()
    edges = np.linspace(0.0, most, _BINS + 1)
    held = np.clip(values, 0.0, most)
    whole = 100 / len(held)
    good = np.histogram(held[right], edges)[0] * whole
    bad = np.histogram(held[~right], edges)[0] * whole
    width = 0.88 * most / _BINS
    centres = (edges[:-1] + edges[1:]) / 2
    axes.bar(centres, good, width, color=palette.fill, label="first guess right")
    axes.bar(
        centres, bad, width, bottom=good, facecolor="none", edgecolor=palette.mark, hatch="////", linewidth=0.6, label="wrong"
    )
    top = 1.3 * max(float((good + bad).max()), 1e-9)
    axes.set_ylim(0, top)
    axes.set_xlim(0, most)
    axes.set_xlabel(label)
    axes.set_ylabel(f"{word} samples, %")
    for rank, mark in enumerate(marks):
        axes.axvline(mark.place, color=mark.colour, linewidth=1.2, linestyle="-" if rank == 0 else (0, (2, 2)))
        axes.annotate(
            mark.text,
            xy=(mark.place, 1 - 0.085 * rank),
            xycoords=("data", "axes fraction"),
            xytext=(-5 if mark.left else 5, -2),
            textcoords="offset points",
            ha="right" if mark.left else "left",
            va="top",
            color=mark.colour,
            bbox={"facecolor": palette.paper, "edgecolor": "none", "pad": 1.2},
        )
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, borderaxespad=0, handlelength=1.2, labelcolor=palette.soft)


def _classes(side: Side, names: tuple[str, ...]) -> Picture:
    targets, weight = side.targets, side.targets.weight
    classes, means = class_means(targets)
    full = [class_name(names, int(label)) for label in classes]
    labels = [short(name, 26) for name in full]
    cut = len(classes) > _MOST_CLASSES
    shown = [*range(_ENDS), *range(len(classes) - _ENDS, len(classes))] if cut else list(range(len(classes)))
    rows = [row + (1 if cut and row >= _ENDS else 0) for row in range(len(shown))]  # a gap where classes are left out
    parts = by_class(targets.labels, targets.num_classes)
    spans = [np.quantile(weight[parts[classes[at]]], (0.1, 0.9)) for at in shown]
    fewest = min(len(parts[label]) for label in classes)
    caption = f"From {means[0]:.3f} ({full[0]}) down to {means[-1]:.3f} ({full[-1]})"
    caption += f"; the {_ENDS} surest and the {_ENDS} least sure of {len(classes)} classes" if cut else ""
    caption += f". The line spans four fifths of a class’s {side.word} images, of which there are {fewest:,} or more."

    def draw(figure: Figure, palette: Palette) -> None:
        axes = figure.subplots()
        axes.barh(rows, [means[at] for at in shown], height=0.72, color=palette.fill)
        axes.hlines(rows, [span[0] for span in spans], [span[1] for span in spans], color=palette.mark, linewidth=0.9)
        for row, at in zip(rows, shown, strict=True):
            axes.text(1.01, row, f"{means[at]:.2f}", va="center_baseline", color=palette.soft, fontsize=8)
        if cut:
            axes.text(0.015, _ENDS, f"… {len(classes) - 2 * _ENDS} more", va="center_baseline", color=palette.soft, fontsize=8)
        axes.axvline(mean_weight(targets), color=palette.ink, linewidth=1, linestyle=(0, (2, 2)))
        axes.set_yticks(rows, [labels[at] for at in shown])
        axes.invert_yaxis()
        axes.grid(False)
        axes.spines["left"].set_visible(False)
        axes.set_xlim(0, 1)
        axes.set_xlabel("mean weight (dashed: all samples)")

    height = 0.75 + 0.19 * (rows[-1] + 1)
    title = f"Mean weight by class, {side.word}"
    return picture(f"classes{side.suffix}", title, caption, draw, height=max(height, 1.8))


def _every_class(sides: list[Side], names: tuple[str, ...]) -> Facts:
    """The figures behind the bars, of every class, the surest first."""
    first = sides[0].targets
    told: dict[int, list[str]] = {}
    for side in sides:
        parts, weight, right = by_class(side.targets.labels, first.num_classes), side.targets.weight, side.targets.correct
        for label, rows in enumerate(parts):
            told.setdefault(label, []).append(f"{side.word} {count(len(rows), 'image')}{_figures(weight[rows], right[rows])}")
    order = [*class_means(first)[0].tolist()]
    order += [label for label in range(first.num_classes) if label not in set(order)]
    facts = [(class_name(names, label), "; ".join(told[label])) for label in order]
    return Facts(title=f"Every class in figures ({first.num_classes})", facts=facts)


def _settings(weighing: SampleWeighting) -> str:
    """The recipe's keys that make the weights what they are."""
    told = [f"loss.sample_weight = {weighing.kind}"]
    told += [f"loss.sample_weight_control = {weighing.control}"] if weighing.control != "none" else []
    return listed([*told, "loss.sample_weight_mean_one = true"] if weighing.mean_one else told)


def _figures(weight: NDArray[np.float32], right: NDArray[np.bool_]) -> str:
    """Of one class's images, if it has any."""
    if not len(weight):
        return ""
    return f": mean weight {weight.astype(np.float64).mean():.3f}, right {percent(100 * float(right.mean()), 0)}"


def _notes(inputs: ReportInputs, targets: TeacherPredictions) -> list[str]:
    notes = [inputs.targets_from] if inputs.targets_from else []
    weighing = inputs.recipe.loss.weighing
    if weighing.text != "entropy":
        used = "samples by another measure"
        if weighing.kind == "constant":
            used = "all samples alike"
        elif weighing.control == "equal_mean":
            used = "every sample by the mean of all weights, a control"
        elif weighing.control == "shuffled":
            used = "each sample by another sample’s weight, a control"
        elif weighing.mean_one and weighing.kind == "entropy":
            used = "samples by these weights divided by their mean"
        notes.append(f"This run did not use these weights: it weighed {used} ({_settings(weighing)}).")
    if not targets.canonical:
        notes.append(
            f"Training: these are the targets of augmented view 0, one of {targets.num_views} that training went through."
        )
    notes.append("Training images: a teacher that learnt from them is surer of them, and right more often, than on new ones.")
    share = targets.entropy.astype(np.float64).mean() / targets.max_entropy
    notes.append(
        f"The paper's mean weight is {paper.MEAN_WEIGHT}, of another teacher on {paper.NUM_CLASSES} classes of ImageNet; "
        f"here it is {mean_weight(targets):.3f} (mean normalised entropy {share:.3f}). {paper.NOTE_ENTROPY}"
    )
    return notes
