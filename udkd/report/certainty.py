"""The teacher's certainty: histograms of weight and entropy, and the mean weight of each class."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from udkd.losses.sample_weight import SampleWeighting
from udkd.report import paper
from udkd.report.analysis.groups import by_class
from udkd.report.inputs import ReportInputs
from udkd.report.page import Block, Facts, Note, PageSection, Plot, Plots
from udkd.report.style import Palette, plot
from udkd.report.text import class_name, comma_list, count, percent, sentence, short_name
from udkd.training.predictions import TeacherPredictions

SURE_WEIGHT = 0.9
_BINS = 25
_MAX_CLASSES, _ENDS = 24, 10


@dataclass(frozen=True, kw_only=True)
class VerticalLine:
    """A labelled vertical line in a histogram. left: the label is on the left of the line."""

    x: float
    text: str
    colour: str
    left: bool


@dataclass(frozen=True, kw_only=True, eq=False)
class SplitTargets:
    """The teacher's targets of one split. suffix: ends the names of the split's figures."""

    name: str
    targets: TeacherPredictions
    suffix: str


def section(inputs: ReportInputs) -> PageSection:
    """Plots of the teacher's certainty, or a note on why there are none."""
    blocks: list[Block] = []
    splits = _splits(inputs)
    if inputs.targets is None:
        blocks.append(Note(text=sentence(inputs.why_no_targets or "This run has no cached targets"), missing=True))
    if splits:
        plots = [draw(split) for draw in (_weights, _entropies) for split in splits]
        plots += [_classes(split, inputs.class_names) for split in splits]
        blocks = [Plots(plots=plots), *blocks, _every_class(splits, inputs.class_names)]
    if inputs.targets is not None:
        blocks += [Note(text=text) for text in _notes(inputs, inputs.targets)]
    return PageSection(anchor="certainty", title="The teacher’s certainty", blocks=blocks)


def class_means(targets: TeacherPredictions) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Classes that have samples, int64 [k], and their mean weight, float64 [k], in descending order of weight."""
    counts = np.bincount(targets.labels, minlength=targets.num_classes)
    sums = np.bincount(targets.labels, weights=targets.weight.astype(np.float64), minlength=targets.num_classes)
    present = np.flatnonzero(counts)
    means = sums[present] / counts[present]
    order = np.argsort(-means, kind="stable")
    return present[order].astype(np.int64), means[order]


def _splits(inputs: ReportInputs) -> list[SplitTargets]:
    train = [SplitTargets(name="training", targets=inputs.targets, suffix="")] if inputs.targets is not None else []
    val = inputs.predictions.val_targets if inputs.predictions else None
    return train if val is None else [*train, SplitTargets(name="validation", targets=val, suffix="-val")]


def mean_weight(targets: TeacherPredictions) -> float:
    """Mean weight of all samples, in [0, 1]."""
    return float(targets.weight.astype(np.float64).mean())


def _weights(split: SplitTargets) -> Plot:
    targets, correct, weight = split.targets, split.targets.correct, split.targets.weight
    mean, sure = mean_weight(targets), weight > SURE_WEIGHT
    caption = (
        f"Mean weight {mean:.3f}: the teacher is nearly certain (w > {SURE_WEIGHT}) of {percent(100 * float(sure.mean()), 0)} "
        f"of the {split.name} samples. Its accuracy is {percent(100 * float(correct.mean()), 1)} on all of them"
    )
    caption += f" and {percent(100 * float(correct[sure].mean()), 1)} on those." if sure.any() else "."

    def draw(figure: Figure, palette: Palette) -> None:
        printed = paper.MEAN_WEIGHT
        lines = [
            VerticalLine(x=mean, text=f"mean {mean:.3f}", colour=palette.ink, left=mean > 0.84 or 0.25 < mean < printed),
            VerticalLine(x=printed, text=f"paper {printed}", colour=palette.soft, left=printed < mean),
        ]
        _histogram(figure, palette, split.name, weight, correct, 1.0, "weight w = 1 − H / ln C", lines)

    return plot(f"weights{split.suffix}", f"Teacher weights, {split.name}", caption, draw)


def _entropies(split: SplitTargets) -> Plot:
    targets = split.targets
    mean, max_entropy = float(targets.entropy.astype(np.float64).mean()), targets.max_entropy
    caption = (
        f"Mean entropy {mean:.3f} of at most ln {targets.num_classes} = {max_entropy:.3f} nats, a fraction of "
        f"{mean / max_entropy:.3f}; the median is {float(np.median(targets.entropy)):.3f} nats."
    )

    def draw(figure: Figure, palette: Palette) -> None:
        lines = [VerticalLine(x=mean, text=f"mean {mean:.3f}", colour=palette.ink, left=mean > max_entropy / 2)]
        _histogram(figure, palette, split.name, targets.entropy, targets.correct, max_entropy, "entropy H, nats", lines)

    return plot(f"entropies{split.suffix}", f"Teacher entropy, {split.name}", caption, draw)


def _histogram(
    figure: Figure,
    palette: Palette,
    split: str,
    values: NDArray[np.float32],
    correct: NDArray[np.bool_],
    x_max: float,
    label: str,
    lines: Sequence[VerticalLine],
) -> None:
    """Stacked bars of correct and, hatched, incorrect top-1 predictions by `values`, with vertical `lines`."""
    axes = figure.subplots()
    edges = np.linspace(0.0, x_max, _BINS + 1)
    clipped = np.clip(values, 0.0, x_max)
    sample_percent = 100 / len(clipped)
    correct_percent = np.histogram(clipped[correct], edges)[0] * sample_percent
    incorrect_percent = np.histogram(clipped[~correct], edges)[0] * sample_percent
    width = 0.88 * x_max / _BINS
    centres = (edges[:-1] + edges[1:]) / 2
    axes.bar(centres, correct_percent, width, color=palette.fill, label="top-1 correct")
    hatched: dict[str, Any] = {"facecolor": "none", "edgecolor": palette.mark, "hatch": "////", "linewidth": 0.6}
    axes.bar(centres, incorrect_percent, width, bottom=correct_percent, label="wrong", **hatched)
    top = 1.3 * max(float((correct_percent + incorrect_percent).max()), 1e-9)
    axes.set_ylim(0, top)
    axes.set_xlim(0, x_max)
    axes.set_xlabel(label)
    axes.set_ylabel(f"{split} samples, %")
    for rank, line in enumerate(lines):
        axes.axvline(line.x, color=line.colour, linewidth=1.2, linestyle="-" if rank == 0 else (0, (2, 2)))
        axes.annotate(
            line.text,
            xy=(line.x, 1 - 0.085 * rank),
            xycoords=("data", "axes fraction"),
            xytext=(-5 if line.left else 5, -2),
            textcoords="offset points",
            ha="right" if line.left else "left",
            va="top",
            color=line.colour,
            bbox={"facecolor": palette.paper, "edgecolor": "none", "pad": 1.2},
        )
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, borderaxespad=0, handlelength=1.2, labelcolor=palette.soft)


def _classes(split: SplitTargets, names: tuple[str, ...]) -> Plot:
    targets, weight = split.targets, split.targets.weight
    classes, means = class_means(targets)
    full = [class_name(names, int(label)) for label in classes]
    labels = [short_name(name, 26) for name in full]
    cut = len(classes) > _MAX_CLASSES
    shown = [*range(_ENDS), *range(len(classes) - _ENDS, len(classes))] if cut else list(range(len(classes)))
    rows = [row + (1 if cut and row >= _ENDS else 0) for row in range(len(shown))]  # a gap where classes are left out
    parts = by_class(targets.labels, targets.num_classes)
    spans = [np.quantile(weight[parts[classes[index]]], (0.1, 0.9)) for index in shown]
    fewest = min(len(parts[label]) for label in classes)
    caption = f"From {means[0]:.3f} ({full[0]}) down to {means[-1]:.3f} ({full[-1]})"
    caption += f"; the {_ENDS} highest and the {_ENDS} lowest of {len(classes)} classes" if cut else ""
    caption += f". Lines: 10 % to 90 % quantiles of each class’s {split.name} images, at least {fewest:,} per class."

    def draw(figure: Figure, palette: Palette) -> None:
        axes = figure.subplots()
        axes.barh(rows, [means[index] for index in shown], height=0.72, color=palette.fill)
        axes.hlines(rows, [span[0] for span in spans], [span[1] for span in spans], color=palette.mark, linewidth=0.9)
        for row, index in zip(rows, shown, strict=True):
            axes.text(1.01, row, f"{means[index]:.2f}", va="center_baseline", color=palette.soft, fontsize=8)
        if cut:
            axes.text(0.015, _ENDS, f"… {len(classes) - 2 * _ENDS} more", va="center_baseline", color=palette.soft, fontsize=8)
        axes.axvline(mean_weight(targets), color=palette.ink, linewidth=1, linestyle=(0, (2, 2)))
        axes.set_yticks(rows, [labels[index] for index in shown])
        axes.invert_yaxis()
        axes.grid(False)
        axes.spines["left"].set_visible(False)
        axes.set_xlim(0, 1)
        axes.set_xlabel("mean weight (dashed: all samples)")

    height = 0.75 + 0.19 * (rows[-1] + 1)
    title = f"Mean weight by class, {split.name}"
    return plot(f"classes{split.suffix}", title, caption, draw, height=max(height, 1.8))


def _every_class(splits: list[SplitTargets], names: tuple[str, ...]) -> Facts:
    """Numbers of every class, in descending order of mean weight."""
    first = splits[0].targets
    texts: dict[int, list[str]] = {}
    for split in splits:
        parts, weight, correct = by_class(split.targets.labels, first.num_classes), split.targets.weight, split.targets.correct
        for label, rows in enumerate(parts):
            numbers = _numbers(weight[rows], correct[rows])
            texts.setdefault(label, []).append(f"{split.name} {count(len(rows), 'image')}{numbers}")
    order = [*class_means(first)[0].tolist()]
    order += [label for label in range(first.num_classes) if label not in set(order)]
    facts = [(class_name(names, label), "; ".join(texts[label])) for label in order]
    return Facts(title=f"Numbers of every class ({first.num_classes})", facts=facts)


def _settings(weighting: SampleWeighting) -> str:
    """The recipe's keys that determine the weights."""
    settings = [f"loss.sample_weight = {weighting.kind}"]
    settings += [f"loss.sample_weight_control = {weighting.control}"] if weighting.control != "none" else []
    return comma_list([*settings, "loss.sample_weight_mean_one = true"] if weighting.mean_one else settings)


def _numbers(weight: NDArray[np.float32], correct: NDArray[np.bool_]) -> str:
    """Mean weight and accuracy of one class; empty without images."""
    if not len(weight):
        return ""
    return f": mean weight {weight.astype(np.float64).mean():.3f}, accuracy {percent(100 * float(correct.mean()), 0)}"


def _notes(inputs: ReportInputs, targets: TeacherPredictions) -> list[str]:
    notes = [inputs.targets_from] if inputs.targets_from else []
    weighting = inputs.recipe.loss.sample_weighting
    if weighting.text != "entropy":
        used = "samples by another measure"
        if weighting.kind == "constant":
            used = "all samples equally"
        elif weighting.control == "equal_mean":
            used = "every sample by the mean of all weights, a control"
        elif weighting.control == "shuffled":
            used = "each sample by another sample’s weight, a control"
        elif weighting.mean_one and weighting.kind == "entropy":
            used = "samples by these weights divided by their mean"
        notes.append(f"This run did not use these weights: it weighed {used} ({_settings(weighting)}).")
    if not targets.canonical:
        notes.append(f"Training: the targets of augmented view 0, one of the {targets.num_views} views of the training.")
    notes.append("A teacher that was trained on the training images is surer and more accurate on them than on new ones.")
    normalised_entropy = targets.entropy.astype(np.float64).mean() / targets.max_entropy
    notes.append(
        f"The paper's mean weight is {paper.MEAN_WEIGHT}, of another teacher on {paper.NUM_CLASSES} classes of ImageNet; "
        f"here it is {mean_weight(targets):.3f} (mean normalised entropy {normalised_entropy:.3f}). {paper.NOTE_ENTROPY}"
    )
    return notes
