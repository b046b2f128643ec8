"""How sure the teacher is: histograms of weight and entropy, and the mean weight of each class."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from udkd.actors.reporter import paper
from udkd.actors.reporter.inputs import ReportInputs, Targets
from udkd.actors.reporter.page import Block, Note, Picture, Pictures, Section
from udkd.actors.reporter.style import Palette, picture
from udkd.actors.reporter.words import percent, sentence, short

SURE = 0.9
_BINS = 25
_GROUPS = 10
_MOST_CLASSES, _ENDS = 24, 10


@dataclass(frozen=True, kw_only=True)
class Mark:
    """A vertical line in a histogram and the words beside it, on its left or its right."""

    place: float
    text: str
    colour: str
    left: bool


def section(inputs: ReportInputs) -> Section:
    """Pictures of the teacher's certainty, or a sentence that says why there are none."""
    blocks: list[Block] = []
    targets = inputs.targets
    if targets is None:
        blocks.append(Note(text=sentence(inputs.why_no_targets or "This run has no cached targets"), missing=True))
    else:
        right = first_guess_is_right(targets)
        blocks.append(
            Pictures(
                pictures=[
                    _weights(targets, right),
                    _entropies(targets, right),
                    _classes(targets, inputs.class_names),
                    _right_by_weight(targets, right),
                ]
            )
        )
        blocks += [Note(text=text) for text in _notes(inputs, targets)]
    return Section(anchor="certainty", title="How sure the teacher is", blocks=blocks)


def first_guess_is_right(targets: Targets) -> NDArray[np.bool_]:
    """Whether the likeliest class is the label, bool [n]; of equal logits the lower class counts as the guess."""
    right = np.empty(len(targets.ids), np.bool_)
    for start in range(0, len(right), 1 << 16):  # the logits may be mapped from a file larger than memory
        part = slice(start, start + (1 << 16))
        right[part] = np.argmax(targets.logits[part], axis=1) == targets.labels[part]
    return right


def right_by_weight(targets: Targets, right: NDArray[np.bool_]) -> list[float]:
    """Percent of right first guesses in groups of equal size, the least sure first: ten, or as many as there are samples."""
    order = np.lexsort((targets.ids, -targets.entropy))
    groups = np.array_split(order, min(_GROUPS, len(order)))
    return [100 * float(right[group].mean()) for group in groups]


def class_means(targets: Targets) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Classes that have samples, int64 [k], and their mean weight, float64 [k], the surest first."""
    counts = np.bincount(targets.labels, minlength=targets.num_classes)
    sums = np.bincount(targets.labels, weights=targets.weight.astype(np.float64), minlength=targets.num_classes)
    present = np.flatnonzero(counts)
    means = sums[present] / counts[present]
    order = np.argsort(-means, kind="stable")
    return present[order].astype(np.int64), means[order]


def mean_weight(targets: Targets) -> float:
    return float(targets.weight.astype(np.float64).mean())


def _weights(targets: Targets, right: NDArray[np.bool_]) -> Picture:
    mean = mean_weight(targets)
    sure = targets.weight > SURE
    caption = (
        f"Mean weight {mean:.3f}: the teacher is nearly certain (w > {SURE}) of {percent(100 * float(sure.mean()), 0)} of the "
        f"training samples. Its first guess is right for {percent(100 * float(right.mean()), 1)} of all"
    )
    caption += f", and for {percent(100 * float(right[sure].mean()), 1)} of those." if sure.any() else "."

    def draw(figure: Figure, palette: Palette) -> None:
        printed = paper.MEAN_WEIGHT
        marks = [
            Mark(place=mean, text=f"mean {mean:.3f}", colour=palette.ink, left=mean > 0.84 or 0.25 < mean < printed),
            Mark(place=printed, text=f"paper {printed}", colour=palette.soft, left=printed < mean),
        ]
        _histogram(figure, palette, targets.weight, right, 1.0, "weight w = 1 − H / ln C", marks)

    return picture("weights", "Weights of the teacher's word", caption, draw)


def _entropies(targets: Targets, right: NDArray[np.bool_]) -> Picture:
    mean, most = float(targets.entropy.astype(np.float64).mean()), targets.max_entropy
    caption = (
        f"Mean entropy {mean:.3f} of at most ln {targets.num_classes} = {most:.3f} nats, a share of {mean / most:.3f}; "
        f"half of the samples lie below {float(np.median(targets.entropy)):.3f} nats."
    )

    def draw(figure: Figure, palette: Palette) -> None:
        marks = [Mark(place=mean, text=f"mean {mean:.3f}", colour=palette.ink, left=mean > most / 2)]
        _histogram(figure, palette, targets.entropy, right, most, "entropy H, nats", marks)

    return picture("entropies", "Entropy of the teacher's word", caption, draw)


def _histogram(
    figure: Figure,
    palette: Palette,
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
    axes.set_ylabel("training samples, %")
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


def _classes(targets: Targets, names: tuple[str, ...]) -> Picture:
    classes, means = class_means(targets)
    full = [short(names[label], 60) if label < len(names) else f"class {label}" for label in classes]
    labels = [short(name, 26) for name in full]
    cut = len(classes) > _MOST_CLASSES
    shown = [*range(_ENDS), *range(len(classes) - _ENDS, len(classes))] if cut else list(range(len(classes)))
    rows = [row + (1 if cut and row >= _ENDS else 0) for row in range(len(shown))]  # a gap where classes are left out
    caption = f"From {means[0]:.3f} ({full[0]}) down to {means[-1]:.3f} ({full[-1]})"
    caption += f"; the {_ENDS} surest and the {_ENDS} least sure of {len(classes)} classes." if cut else "."

    def draw(figure: Figure, palette: Palette) -> None:
        axes = figure.subplots()
        axes.barh(rows, [means[row] for row in shown], height=0.72, color=palette.fill)
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
    return picture("classes", "Mean weight by class", caption, draw, height=max(height, 1.8))


def _right_by_weight(targets: Targets, right: NDArray[np.bool_]) -> Picture:
    shares = right_by_weight(targets, right)
    caption = (
        f"The first guess is right for {percent(shares[0], 1)} of the least sure tenth and for {percent(shares[-1], 1)} of the "
        "surest: a low weight is worth something only where the left bars are lower."
    )

    def draw(figure: Figure, palette: Palette) -> None:
        axes = figure.subplots()
        axes.bar(range(1, len(shares) + 1), shares, 0.82, color=palette.fill)
        for place, share in enumerate(shares, start=1):
            axes.annotate(
                f"{share:.0f}", (place, share), (0, 2), textcoords="offset points", ha="center", fontsize=8, color=palette.soft
            )
        axes.set_ylim(0, 109)
        axes.set_yticks(range(0, 101, 20))
        axes.set_xticks(range(1, len(shares) + 1))
        axes.set_xlabel("tenths of the training samples, the least sure first")
        axes.set_ylabel("first guess right, %")

    return picture("right-by-weight", "Is it wrong where it is unsure?", caption, draw)


def _notes(inputs: ReportInputs, targets: Targets) -> list[str]:
    notes = []
    if inputs.recipe.loss.weight != "entropy":
        notes.append("This run did not use these weights: it weighed all samples alike (loss.weight = constant).")
    if not targets.canonical:
        notes.append(
            f"These are the targets of augmented view {targets.view}, one of {targets.num_views} that training went through."
        )
    notes.append(
        "These are training images: a teacher that learnt from them is surer of them, and right more often, than on new ones."
    )
    share = targets.entropy.astype(np.float64).mean() / targets.max_entropy
    notes.append(
        f"The paper's mean weight is {paper.MEAN_WEIGHT}, of another teacher on {paper.NUM_CLASSES} classes of ImageNet; "
        f"here it is {mean_weight(targets):.3f} (mean normalised entropy {share:.3f}). {paper.NOTE_ENTROPY}"
    )
    return notes
