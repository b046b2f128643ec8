"""Grids of images: the teacher's lowest and highest entropies, and images on which two networks differ."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from udkd.report.inputs import ReportInputs
from udkd.report.page import Block, Card, Gallery, Guess, Note, PageSection
from udkd.report.style import Palette, png
from udkd.report.text import class_name, count, percent, sentence, short_name
from udkd.training.predictions import Predictions, TeacherPredictions, TopPredictions
from udkd.utils.errors import DataError, UserError

IMAGES = 12
GUESSES = 3
_COLUMNS = 4


def section(inputs: ReportInputs) -> PageSection:
    """Two grids of images, or a note on why there are none."""
    blocks: list[Block] = []
    targets, thumbnail = inputs.targets, inputs.thumbnail
    if targets is None or thumbnail is None:
        why = inputs.why_no_targets or inputs.why_no_data or "This run has no cached targets"
        blocks.append(Note(text=sentence(why), missing=True))
    else:
        try:
            blocks += _galleries(inputs, targets, thumbnail)
        except (UserError, OSError) as error:
            blocks.append(Note(text=sentence(f"The images cannot be shown: {error}"), missing=True))
        if not targets.canonical:
            blocks.append(Note(text="The stored images are shown; the teacher saw an augmented view of each."))
    return PageSection(anchor="images", title="Surest and least sure images", blocks=blocks)


def extremes(targets: TeacherPredictions, images: int = IMAGES) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows of the lowest and of the highest entropies, the most extreme first, ties in the order of ids; int64.

    No row is in both, however few samples there are.
    """
    images = min(images, len(targets.ids) // 2)
    surest = np.lexsort((targets.ids, targets.entropy))[:images]
    least = np.lexsort((targets.ids, -targets.entropy))[:images]
    return surest, least


def guesses(network: TopPredictions, labels: NDArray[np.int64], row: int, names: tuple[str, ...]) -> tuple[Guess, ...]:
    """A network's most probable classes for a row, at temperature 1; of equal logits the lower class comes first."""
    probabilities = np.exp(network.top_log_p[row, :GUESSES].astype(np.float64))
    return tuple(
        Guess(name=class_name(names, int(label)), percent=100 * min(float(p), 1.0), correct=bool(label == labels[row]))
        for label, p in zip(network.top[row, :GUESSES], probabilities, strict=True)
    )


def versus(
    name: str,
    title: str,
    caption: str,
    rows: NDArray[np.int64],
    predictions: Predictions,
    compared: Sequence[tuple[str, TopPredictions]],
    inputs: ReportInputs,
) -> Gallery | Note:
    """Validation images with the top-1 guess of each network; a note where the images cannot be read."""
    targets, thumbnail = predictions.val_targets, inputs.val_thumbnail
    try:
        if thumbnail is None:
            raise DataError(inputs.why_no_data or "the dataset folder is missing")
        cards = [
            Card(
                sample_id=int(predictions.ids[row]),
                pixels=thumbnail(int(predictions.ids[row])),
                label=class_name(inputs.class_names, int(predictions.labels[row])),
                weight=None if targets is None else float(targets.weight[row]),
                guesses=tuple(
                    replace(guesses(network, predictions.labels, int(row), inputs.class_names)[0], by=by)
                    for by, network in compared
                ),
                kind="Validation image",
            )
            for row in rows
        ]
    except (UserError, OSError) as error:
        return Note(text=sentence(f"{title}: the images cannot be shown: {error}"), missing=True)
    return Gallery(name=name, title=title, cards=cards, png=_contact_sheet(cards), caption=caption)


def _galleries(
    inputs: ReportInputs, targets: TeacherPredictions, thumbnail: Callable[[int], NDArray[np.uint8]]
) -> list[Gallery]:
    correct, weight = targets.correct, targets.weight
    surest, least = extremes(targets)
    if not len(surest):
        return []
    error_rate = percent(100 * float((~correct).mean()), 1)

    def gallery(name: str, title: str, rows: NDArray[np.int64], bound: str) -> Gallery:
        cards = [
            Card(
                sample_id=int(targets.ids[row]),
                pixels=thumbnail(int(targets.ids[row])),
                label=class_name(inputs.class_names, int(targets.labels[row])),
                weight=float(weight[row]),
                guesses=guesses(targets.predictions, targets.labels, int(row), inputs.class_names),
            )
            for row in rows
        ]
        incorrect = int((~correct[rows]).sum())
        errors = "no top-1 guess is wrong" if not incorrect else f"{incorrect} of {len(rows)} top-1 guesses are wrong"
        caption = f"The {count(len(rows), 'training image')} of {bound}: {errors}; of all samples {error_rate} are."
        return Gallery(name=name, title=title, cards=cards, png=_contact_sheet(cards), caption=caption)

    return [
        gallery("surest", "Surest", surest, f"the lowest entropy, w ≥ {float(weight[surest].min()):.3f}"),
        gallery("least-sure", "Least sure", least, f"the highest entropy, w ≤ {float(weight[least].max()):.3f}"),
    ]


def _contact_sheet(cards: Sequence[Card]) -> bytes:
    rows = -(-len(cards) // _COLUMNS)

    def draw(figure: Figure, palette: Palette) -> None:
        grid = figure.subplots(rows, _COLUMNS, squeeze=False)
        for axes in grid.flat:
            axes.set_axis_off()
        for axes, card in zip(grid.flat, cards, strict=False):
            height, width = card.pixels.shape[:2]
            side = max(height, width)
            axes.imshow(card.pixels)
            axes.set_xlim((width - side) / 2 - 0.5, (width + side) / 2 - 0.5)  # equal squares, so that the texts line up
            axes.set_ylim((height + side) / 2 - 0.5, (height - side) / 2 - 0.5)
            axes.set_title(short_name(card.label, 18), fontsize=8, color=palette.ink)
            lines = [
                f"{_mark(card, rank)}{short_name(guess.name, 15)} {guess.percent:.0f} %"
                for rank, guess in enumerate(card.guesses)
            ]
            axes.text(
                0.5, -0.06, "\n".join(lines), transform=axes.transAxes, ha="center", va="top", fontsize=6.5, color=palette.soft
            )

    return png(draw, height=2.35 * rows, width=7.2)


def _mark(card: Card, rank: int) -> str:
    """A check mark or cross, for the first guess on a card, or for every guess where each is of another network."""
    guess = card.guesses[rank]
    return ("✓ " if guess.correct else "✗ ") if guess.by or rank == 0 else ""
